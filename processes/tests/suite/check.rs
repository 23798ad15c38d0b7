//! What `check` says about processes: everything at once, each at its exact place.

use crate::support::{REST, problems};

fn flow(steps: &str) -> String {
    // The steps begin in line 4.
    problems(&format!("[processes.p]\ntype = \"flow\"\nsteps = [\n{steps}\n]\n{REST}"))
}

fn router(rules: &str) -> String {
    problems(&format!("[processes.p]\ntype = \"router\"\n{rules}\n{REST}"))
}

#[test]
fn unknown_verbs_and_keys_are_named_with_a_suggestion() {
    insta::assert_snapshot!(flow(r#"
    { cal = "vendor" },
    { call = "vendor", wiht = "request" },
    { send = "archive", code = "1" },
    { },
    "vendor",
    { assign = { "contxt.x" = "1", "context" = "2" } },
    "#), @r#"
    5:7 S0330 there is no step cal (did you mean call?)
    6:24 S0330 call has no key wiht (did you mean with?)
    7:5 S0330 a step has one verb, this one has both send and code (make two steps of it)
    8:5 S0330 an empty step (the verbs are assign, if, switch, foreach, while, call, sync, parallel, transform, code, send, delay, alert, trace, reply, throw, scope)
    9:5 S0330 a step is a table with one verb, for example { call = "vendor" }
    10:18 S0330 contxt.x is neither context.… nor state.…
    10:36 S0330 context names no place; write for example context.result
    "#);
}

#[test]
fn unknown_names_are_found_inside_nested_steps() {
    insta::assert_snapshot!(flow(r#"
    { if = "true", then = [ { call = "vendr", message = "Nope" } ], else = [ { transform = "tt", into = "context.x" } ] },
    { scope = [ { send = "archiv" } ], catch = [ { fault = "x", do = [ { sync = ["vendr"] } ] } ] },
    "#), @r"
    5:38 S0201 there is no process or operation named vendr (did you mean vendor?)
    5:57 S0202 message type Nope is not declared
    5:92 S0203 there is no transform named tt
    6:26 S0201 there is no process or operation named archiv (did you mean archive?)
    6:82 S0330 this flow has no call named vendr
    ");
}

#[test]
fn script_errors_have_their_place_in_the_file() {
    insta::assert_snapshot!(flow("
    { code = '''
let x = 1;
  let y = = 2;
''' },
    { alert = \"value {context.x +} of {request.type}\" },
    { if = \"a b\", then = [] },
    "), @r"
    7:11 S0301 script: unexpected token in expression: '=' (line 2, column 11 of the script)
    9:34 S0301 script: something is missing or too much up to here: unexpected token in expression: ')' (line 1, column 12 of the script)
    10:15 S0301 script: Unexpected identifier 'b' (line 1, column 3 of the script)
    ");
}

#[test]
fn missing_and_wrong_values_are_reported() {
    insta::assert_snapshot!(flow(r#"
    { foreach = "request.all('OBX')", as = "request" },
    { call = "vendor", timeout = "5 parsecs", on_timeout = "leaf", into = "reply" },
    { delay = "5x" },
    { transform = 5 },
    { switch = [ { do = [] }, { case = "true" } ] },
    { scope = [], catch = [ { do = [] } ] },
    { send = "archive", compensate = [] },
    { call = "p" },
    "#), @r#"
    5:5 S0330 foreach needs do
    5:44 S0330 request cannot name a variable
    6:34 S0330 expected a duration such as "5s": a number with ms, s, m, h or d
    6:47 S0330 on_timeout needs timeout
    6:60 S0330 on_timeout is "discard" or "leave" (did you mean leave?)
    6:75 S0330 reply is neither context.… nor state.…
    7:15 S0330 delay is a duration such as "5s", or an expression that gives a time
    8:5 S0330 transform needs into
    8:19 S0330 expected a string
    9:18 S0330 a case has either case or default = true
    9:31 S0330 a case needs do
    10:29 S0330 a handler has either fault = "name" or any = true
    11:25 S0330 compensate has a meaning only inside a scope
    12:14 S0330 a flow cannot send to itself
    "#);
}

#[test]
fn routers_are_checked_rule_by_rule() {
    insta::assert_snapshot!(router(r#"
[[processes.p.rules]]
when = { "PID-x" = "1", "MSH-9.1" = [] }
send = ["archive", "archive", "vendr"]
[[processes.p.rules]]
send = "vendor"
reply_from = "archive"
[[processes.p.rules]]
if = "request.get("
send = "vendor"
transform = "t"
[[processes.p.rules]]
wehn = {}
send = "vendor"
"#), @r#"
    5:10 S0213 "PID-x", character 5: expected a field number
    5:37 S0320 an empty list of values never matches
    6:20 S0320 archive is in this list twice
    6:31 S0201 there is no process or operation named vendr (did you mean vendor?)
    7:1 S0320 a rule needs when or if (when = {} always matches)
    9:14 S0320 reply_from is one of this rule's send, first or generated, not archive
    11:19 S0301 script: something is missing or too much up to here: Unexpected token '}' (line 1, column 13 of the script)
    13:13 S0203 there is no transform named t
    14:1 S0320 a rule needs when or if (when = {} always matches)
    15:1 S0102 unknown key wehn (did you mean when?)
    "#);
}

#[test]
fn transforms_are_checked_path_by_path() {
    let text = format!(
        r#"
[messages.Result]
accession = "string"
[transforms.a]
to = "Result"
set = {{ acession = "OBR-3.1", accession = "OBR-x", "accession.x" = {{ value = 1 }} }}
code = "target.accession = ;"
[transforms.b]
to = "Reslt"
[transforms.c]
set = {{ "PID" = {{ expr = "1 +" }}, "PID-3" = "GROUP[2]/OBX-5" }}
[processes.p]
type = "router"
rules = [ {{ when = {{}}, send = "archive" }} ]
{REST}"#
    );
    insta::assert_snapshot!(problems(&text), @r#"
    6:9 S0216 Result has no field acession (did you mean accession?)
    6:43 S0213 "OBR-x", character 5: expected a field number (set takes a path; a constant is { value = "…" }, an expression { expr = "…" })
    6:52 S0216 Result.accession is string: nothing can be set below it
    7:28 S0301 script: unexpected token in expression: ';' (line 1, column 20 of the script)
    8:1 S0312 this transform sets nothing: it has neither set nor code
    9:6 S0202 message type Reslt is not declared (did you mean Result?)
    11:9 S0213 PID is a whole segment; set takes fields, as in PID-1
    11:30 S0301 script: something is missing or too much up to here: unexpected token in expression: ')' (line 1, column 4 of the script)
    11:45 S0213 paths through groups need the message's structure, which is not known here (write the segment alone, for example OBX[2]-5)
    "#);
}
