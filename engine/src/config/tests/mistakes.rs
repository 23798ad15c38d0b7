//! What is wrong in one place of a file: all of it is reported at once, at its character, and no text at all
//! makes the loader panic.

use std::path::Path;

use proptest::prelude::*;

use super::*;

#[test]
fn all_problems_of_a_file_are_reported_at_once() {
    let text = r#"
[production]
nam = "lab"
timezone = "Europe/Berlim"
alerts = ["mial"]

[store]
retention = "30 days"

[services.lis]
type    = "hl7.mllp"
listenn = "127.0.0.1:2575"
ack     = "imediate"
frame_timeout = 30
targets = ["rooter"]
search  = { mrn = "PID-3.x", name = "patient_name" }

[services.lis.tls]
cert = "missing.pem"

[processes.router]
type = "router"
[[processes.router.rules]]
name = "lab"
wen = { "MSH-9.1" = "ORU" }
send = ["submit", "arcive"]
[[processes.router.rules]]
when = { "MSH-9.1" = 5 }

[operations.archive]
type = "fil"
path = "out"

[operations.vendor]
type = "rest"
url = "${env:VENDOR_URL}"
response_timeout = "5"
pool_size = 0
reply_actions = { "2xx" = "complete", "AA" = "retry", "404,4xx" = "suspend", "404" = "fail" }
[operations.vendor.requests.SubmitResult]
method = "PST"

[operations."bad name"]
type = "file"
path = "out"
"#;
    insta::assert_snapshot!(problems(text), @r##"
3:1: error S0102: unknown key nam (did you mean name?)
4:12: error S0107: there is no timezone named Europe/Berlim (names are like "Europe/Berlin" or "UTC")
5:11: error S0201: there is no process or operation named mial
8:13: error S0105: expected a duration such as "5s" (ms, s, m, h, d), or "never"
10:1: error S0103: listen is missing (an address such as "127.0.0.1:2575": Where it listens.)
12:1: error S0102: unknown key listenn (did you mean listen?)
13:11: error S0104: expected "immediate", "application", "msh" or "never" (did you mean immediate?)
14:17: error S0104: expected a duration such as "5s", found a whole number
15:12: error S0201: there is no process or operation named rooter (did you mean router?)
16:19: error S0213: "PID-3.x", character 7: expected a component number (HL7 paths are like PID-3.1 or OBX[2]-5)
18:1: error S0103: key is missing (a path: Private key, PEM file.)
19:8: error S0106: there is no file /missing.pem
25:1: error S0102: unknown key wen (did you mean when?)
26:9: error S0201: there is no process or operation named submit
26:19: error S0201: there is no process or operation named arcive (did you mean archive?)
27:1: error S0103: send is missing (a string or a list: Where to.)
28:22: error S0104: expected a string or a list, found a whole number
31:8: error S0205: there is no operation of type fil (did you mean file?)
36:8: error S0101: the environment variable VENDOR_URL is not set (set it, or give a default: ${env:VENDOR_URL:-…})
37:20: error S0105: expected a duration such as "5s": a number with ms, s, m, h or d
38:13: error S0104: this must be at least 1
39:39: error S0214: "AA" is no reply code of this kind of operation (there are codes such as 404, classes such as 4xx, fault and *)
39:78: error S0214: 404 is given twice
40:1: error S0103: path is missing (a string: Below the URL.)
41:10: error S0104: expected "GET", "POST" or "PUT" (did you mean POST?)
43:13: error S0207: "bad name" is no legal item name (a letter, then letters, digits, _ and -)
"##);
}

#[test]
fn a_mistake_in_a_script_is_reported_at_its_character() {
    let text = "[processes.p]\ntype = 'flow'\nsteps = [\n  { if = \"a\\t ===== b\" },\n  { if = '''\n  x ===== y''' },\n]";
    insta::assert_snapshot!(problems(&around(text)), @r##"
13:12: warning S0401: nothing leads to p
16:15: error S0220: unexpected token
18:5: error S0220: unexpected token
"##);
}

#[test]
fn syntax_errors_do_not_hide_the_rest() {
    insta::assert_snapshot!(problems(&around("colour = \n[operations.more]\ntype = 'file'\npath = 'y'\npaht = 'z'\n")), @r##"
13:1: error S0102: unknown key colour (there are path, type, enabled, pool_size, order_by, on_suspend, alert, schedule, description, category, retry_interval, failure_timeout, suspend_limit, response_timeout, reply_actions, idempotency_header)
13:10: error S0002: string values must be quoted, expected literal string
14:13: warning S0401: nothing leads to more
17:1: error S0102: unknown key paht (did you mean path?)
"##);
    insta::assert_snapshot!(problems("[production\nname = 'p'\n[store]\npath = \"a\n"), @r##"
1:12: error S0002: unclosed table, expected `]`
4:10: error S0002: invalid basic string, expected `"`
"##);
}

#[test]
fn annotations_are_ignored_where_keys_are_settings_and_kept_where_they_are_data() {
    let text = "x-owner = 'ann'\n[production]\nname = 'p'\nx-note = 1\n[store]\nretention = '30d'\nx-a = {}\n\
        [services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:1'\ntargets = ['r']\nx-b = ''\n\
        [processes.r]\ntype = 'router'\n[[processes.r.rules]]\nsend = ['api']\nx-c = []\n\
        [operations.api]\ntype = 'rest'\nurl = 'https://x'\nheaders = { x-api-key = 'k' }\n\
        [messages.M]\nx-ray = 'string'\n";
    assert_eq!(problems(text), "");
    insta::assert_snapshot!(problems(&text.replace("x-api-key = 'k'", "x-api-key = 5")), @"21:25: error S0104: expected a string, found a whole number");
    assert!(plan(text).types.get("M").unwrap().fields.iter().any(|(name, _)| name == "x-ray"));
}

#[test]
fn a_value_that_could_not_be_resolved_is_reported_once() {
    let text = "[operations.peer]\ntype = 'hl7.mllp'\nconnect = '${env:PEER}'\nreply_actions = { AE = 'complete', x-why = 1 }\n";
    let text = around(text).replace("['out']", "['out', 'peer']");
    insta::assert_snapshot!(problems(&text), @"15:12: error S0101: the environment variable PEER is not set (set it, or give a default: ${env:PEER:-…})");
}

#[test]
fn deep_nesting_is_an_error_and_no_crash() {
    for (open, close) in [("[", "]"), ("{ a = ", " }")] {
        let text = format!("a = {}1{}", open.repeat(20_000), close.repeat(20_000));
        assert!(problems(&text).contains("S0002"));
    }
    assert!(!problems(&format!("[{}]\n", vec!["a"; 20_000].join("."))).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_text_panics_the_loader(text in "(\\[{1,2}[a-z.]{0,12}\\]{0,2}\n|[a-z_.\" -]{0,8} ?= ?[\\[\\]{}\"'a-z0-9$:./, -]{0,24}\n|\\PC{0,12}|\n){0,12}") {
        let loaded = load_text(&text, Path::new("/p"), &classes::registry(), &Env::empty());
        for diagnostic in &loaded.diagnostics {
            loaded.render(diagnostic);
        }
    }

    #[test]
    fn no_damage_to_a_good_file_panics_the_loader(at in 0..LAB_RESULTS.len(), cut in 0..40_usize, put in "\\PC{0,4}|[\\[\\]{}\"'=,\n$]{1,3}") {
        let mut text: Vec<char> = LAB_RESULTS.chars().collect();
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, put.chars());
        let text: String = text.into_iter().collect();
        let loaded = load_text(&text, Path::new("/p"), &classes::registry(), &Env::empty());
        for diagnostic in &loaded.diagnostics {
            prop_assert!(diagnostic.line > 0 && diagnostic.column > 0);
            loaded.render(diagnostic);
        }
    }
}
