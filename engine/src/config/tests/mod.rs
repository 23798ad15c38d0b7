//! The loader as its users see it: files in, diagnostics or a plan out.

mod classes;

use crate::clock::{Clock as _, SystemClock};
use std::path::Path;

use proptest::prelude::*;

use crate::config::diagnostic;
use crate::config::env::Env;
use crate::config::load::{load, load_all, load_sources, load_text};
use crate::config::plan::Plan;

/// The lab-results example of CONTRACT §2, whole.
const LAB_RESULTS: &str = include_str!("lab-results.toml");

/// Loads a text; gives the problems, one a line.
fn problems(text: &str) -> String {
    problems_with(text, &Env::empty())
}

fn problems_with(text: &str, env: &Env) -> String {
    let dir = tempfile::tempdir().unwrap();
    let loaded = load_text(text, dir.path(), &classes::registry(), env);
    let show = |diagnostic: &diagnostic::Diagnostic| match &diagnostic.suggestion {
        Some(suggestion) => format!("{diagnostic} ({suggestion})"),
        None => diagnostic.to_string(),
    };
    let all: Vec<_> = loaded.diagnostics.iter().map(show).collect();
    assert_eq!(loaded.plan.is_some(), loaded.errors() == 0, "{all:#?}");
    all.join("\n").replace(&dir.path().display().to_string(), "").replace("production.toml:", "")
}

fn plan(text: &str) -> Plan {
    let loaded = load_text(text, Path::new("/p"), &classes::registry(), &Env::empty());
    loaded.plan.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics))
}

#[test]
fn the_example_of_the_contract_loads_without_a_problem() {
    insta::assert_snapshot!(problems(LAB_RESULTS), @"");
}

/// A production around `more` that is right by itself.
fn around(more: &str) -> String {
    format!(
        "[production]\nname = 'p'\n[store]\npath = 'data'\nretention = '30d'\n[services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:2575'\ntargets = ['out']\n[operations.out]\ntype = 'file'\npath = 'out/x'\n{more}"
    )
}

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
7:1: warning S0605: nothing is ever purged: neither retention nor max_size is set (for example retention = "30d")
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
fn sections_are_checked() {
    let text = r#"
[production]
name = ""
[stor]
path = "data"
[store]
segment_size = "64KiB"
max_size = "lots"
key = "short"
encrypt_bodies = "yes"
url = "postgres://db/septet"
[admin]
listen = "0.0.0.0:8700"
hosts = ["septet.example"]
[admin.oidc]
issuer = "https://id.example"
[log]
format = "xml"
[messages.Alert]
id = "integer"
[messages.Result]
mrn = "text"
ok = "bool?"
count = 5
[transforms.t]
to = "Resultt"
[transforms.u]
to = "Result"
set = { mrn = "PID-3.1", mrm = { value = 1 }, ok = { valu = true } }
[lookups.sex]
M = "male"
F = 1
[lookups.more]
file = "none.csv"
[oauth.v]
grant = "client_credential"
token_url = "https://id.example/token"
client_secret = "hush"
headers = { x-api-key = "k" }
[services]
lis = "hl7.mllp"
"#;
    insta::assert_snapshot!(problems(text), @r##"
3:8: error S0107: the name is empty
4:2: error S0102: unknown key stor (did you mean store?)
6:1: warning S0605: nothing is ever purged: neither retention nor max_size is set (for example retention = "30d")
7:16: error S0105: segment_size must be at least "1MiB"
8:12: error S0105: expected a size such as "16MiB": a number with B, KiB, MiB, GiB or TiB
9:1: warning S0601: key stands in the file in clear text (write ${env:NAME} or ${file:path})
9:7: error S0606: a store key is 64 hex digits, or 32 bytes in base64 (make one with: openssl rand -hex 32)
10:18: error S0104: expected true or false, found a string
11:7: error S0604: a store in PostgreSQL is not available yet (use path = "data")
13:10: error S0603: 0.0.0.0:8700 is not this machine only, and there is no TLS (add tls = { cert, key }, or behind_proxy = true where a proxy ends TLS)
15:1: error S0604: sign-in by an OpenID provider is not available yet (programs use [admin.auth] with [admin.roles], people [admin.users.NAME])
18:10: error S0104: expected "text" or "json"
19:11: error S0207: Alert is a type of the engine's own (choose another name)
22:7: error S0108: unknown field type; there are string, integer, number, boolean, datetime, object, list, any, secret, each with ? when optional
23:6: error S0108: unknown field type; there are string, integer, number, boolean, datetime, object, list, any, secret, each with ? when optional (did you mean boolean?)
24:9: error S0108: a field's type is a string such as "string" or "list?"
26:6: error S0202: message type Resultt is not declared (did you mean Result?)
29:26: error S0216: Result has no field mrm (did you mean mrn?)
29:52: error S0103: value is missing (any value: A constant.)
29:54: error S0102: unknown key valu (did you mean value?)
32:5: error S0104: expected a string
34:8: error S0106: /none.csv cannot be read: no such file or directory
35:1: error S0103: client_id is missing (a string: The client id.)
36:9: error S0104: expected "client_credentials", "password", "refresh_token", "jwt_bearer" or "authorization_code" (did you mean client_credentials?)
38:1: warning S0601: client_secret stands in the file in clear text (write ${env:NAME} or ${file:path})
41:7: error S0104: expected a table [services.lis]
"##);
}

#[test]
fn accounts_decide_how_the_admin_api_may_listen() {
    let admin = |text: &str| problems(&around(&format!("[admin]\n{text}")));
    insta::assert_snapshot!(admin("listen = '127.0.0.1:8700'"), @"");
    insta::assert_snapshot!(admin("listen = '10.0.0.1:8700'"), @r##"
14:10: error S0602: 10.0.0.1:8700 is not this machine only, and there are no accounts (add [admin.users.NAME], [admin.tokens.NAME] or [admin.auth], or listen on 127.0.0.1)
14:10: error S0603: 10.0.0.1:8700 is not this machine only, and there is no TLS (add tls = { cert, key }, or behind_proxy = true where a proxy ends TLS)
"##);
    let token = "[admin.tokens.ci]\nhash = '0000000000000000000000000000000000000000000000000000000000000000'\nrole = 'viewer'";
    insta::assert_snapshot!(admin(&format!("listen = '10.0.0.1:8700'\nbehind_proxy = true\n{token}")), @"");
    let user = "[admin.users.ann]\npassword_hash = 'geheim'\nrole = 'boss'";
    insta::assert_snapshot!(admin(&format!("listen = '[::1]:8700'\nbehind_prox = true\n{user}")), @r##"
15:1: error S0102: unknown key behind_prox (did you mean behind_proxy?)
18:8: error S0104: expected "viewer", "operator" or "admin"
"##);
}

#[test]
fn bearer_tokens_at_the_admin_api_need_roles_and_what_they_are_bound_to() {
    let admin = |text: &str| problems(&around(&format!("[admin]\nlisten = '127.0.0.1:8700'\n{text}")));
    let right = "[admin.auth]\nissuer = 'https://i.example'\naudience = 'a'\n[admin.roles]\nall = 'admin'";
    assert_eq!(admin(right), "");
    let wrong = "role_claim = 'groups'\n[admin.auth]\nissuer = 'https://i.example'\nsmart = true\ncertificate_bound = true";
    let found = admin(wrong);
    for expected in [
        "error S0502: smart scopes are for http services",
        "error S0501: certificate_bound needs the certificates of clients",
        "warning S0620: without audience every token of this issuer counts",
        "error S0501: no value of a claim means a role",
    ] {
        assert!(found.contains(expected), "missing {expected} in\n{found}");
    }
    let alone = admin("role_claim = 'groups'\nroles = { all = 'admin' }");
    assert!(alone.contains("roles has no meaning without auth"), "{alone}");
    assert!(alone.contains("role_claim has no meaning without auth"), "{alone}");
    let open = problems(&around(&format!("[admin]\nlisten = '10.0.0.1:8700'\nbehind_proxy = true\n{right}")));
    assert_eq!(open, "", "they are accounts");
}

#[test]
fn items_that_do_not_fit_together_are_reported() {
    let text = r#"
[production]
name = "p"
[store]
max_size = "10GiB"
[admin]
listen = "127.0.0.1:8700"
[services.one]
type = "hl7.mllp"
listen = "0.0.0.0:2575"
ack = "application"
targets = ["a", "out", "a"]
[services.two]
type = "hl7.mllp"
listen = "127.0.0.1:2575"
[services.three]
type = "hl7.http"
listen = "127.0.0.1:8700"
path = "/hl7"
targets = "out"
reply_from = "a"
[services.four]
type = "hl7.http"
listen = "127.0.0.1:9000"
path = "/one"
targets = "four"
[services.five]
type = "hl7.http"
listen = "127.0.0.1:9000"
path = "/two"
targets = "out"
[services.six]
type = "hl7.http"
listen = "127.0.0.1:9000"
path = "/two"
targets = "out"
enabled = false
[processes.a]
type = "flow"
steps = [{ call = "b" }, { delay = "5s" }]
[processes.b]
type = "flow"
steps = [{ call = "c" }, { call = "out" }]
pool_size = 2
[processes.c]
type = "flow"
steps = [{ call = "a" }]
[processes.lonely]
type = "router"
[operations.out]
type = "file"
path = "x"
pool_size = 4
[operations.lonely]
type = "file"
path = "y"
pool_size = "unlimited"
"#;
    insta::assert_snapshot!(problems(text), @r##"
12:11: error S0208: with several targets it must be said whose reply is the answer (for example reply_from = "a")
12:24: error S0217: a is a target already
13:1: error S0210: a service needs targets: its messages would go nowhere (for example targets = ["router"])
15:10: error S0212: 127.0.0.1:2575 is taken by one already (10:10)
18:10: error S0212: 127.0.0.1:8700 is taken by admin already (7:10)
21:14: error S0209: a is not among the targets
26:11: error S0201: there is no process or operation named four (did you mean out?)
34:10: warning S0212: 127.0.0.1:9000/two is taken by five already (29:10)
37:11: warning S0402: six is disabled
38:12: error S0211: these call each other in a circle and would wait for ever: a → b → c → a
38:12: warning S0403: a waits, and with pool_size = 1 all messages behind wait too (raise pool_size, with order_by where order matters)
38:12: warning S0404: a's pool_size is smaller than that of b, which it calls (b can never be fully used from here)
44:13: warning S0404: b's pool_size is smaller than that of out, which it calls (out can never be fully used from here)
54:13: error S0004: lonely is defined twice: first at 48:12
"##);
}

#[test]
fn what_nothing_leads_to_is_a_warning() {
    insta::assert_snapshot!(problems(&around("[operations.old]\ntype = 'file'\npath = 'y'\nenabled = false")), @r##"
13:13: warning S0401: nothing leads to old
16:11: warning S0402: old is disabled
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
fn an_inline_secret_is_a_warning_and_a_reference_is_none() {
    let client = |secret: &str| {
        let text = format!(
            "[oauth.v]\ngrant = 'client_credentials'\nclient_id = 'lab'\ntoken_url = 'https://id.example/t'\nclient_secret = {secret}"
        );
        problems_with(&around(&text), &[("SECRET", "hush")].into_iter().collect())
    };
    insta::assert_snapshot!(client("'hush'"), @"17:1: warning S0601: client_secret stands in the file in clear text (write ${env:NAME} or ${file:path})");
    assert_eq!(client("'${env:SECRET}'"), "");
    assert_eq!(client("'${env:NONE:-hush}'"), "");
    assert!(!client("5").contains("hush"));
}

// === What is generated ===

#[test]
fn the_schema_is_whole_and_takes_the_example() {
    let schema = crate::config::document::schema(&classes::registry());
    let mut open = vec![&schema];
    while let Some(part) = open.pop() {
        if let Some(path) = part.get("$ref").and_then(serde_json::Value::as_str) {
            assert!(schema.pointer(path.trim_start_matches('#')).is_some(), "{path}");
        }
        open.extend(part.as_object().into_iter().flat_map(|map| map.values()));
        open.extend(part.as_array().into_iter().flatten());
    }
    let rest = &schema["$defs"]["operations.rest"];
    assert_eq!(rest["properties"]["type"]["const"], "rest");
    assert_eq!(rest["patternProperties"]["^x-"], true);
    for key in ["url", "retry_interval", "enabled"] {
        assert!(rest["properties"].get(key).is_some(), "{key}");
    }
}

#[test]
fn the_reference_tells_what_each_setting_takes() {
    let registry = classes::registry();
    let text = crate::config::document::reference_of(&registry, "rest").unwrap();
    insta::assert_snapshot!(text, @r##"
## rest (operation)

For tests.

- `url`: a string, required
  Base URL.
- `oauth`: any value
  The client, or `{ client, placement }`.
- `headers`: a table
  Headers.
- `requests`: a table
  Message map.
  - `method`: "GET", "POST" or "PUT", required
    HTTP method.
  - `path`: a string, required
    Below the URL.
  - `reply`: a string
    The reply's type.

Keys of all operations:

- `enabled`: true or false, default true
  A disabled item does not run; its queue takes messages and waits.
- `pool_size`: a whole number or "unlimited"
  How many messages are worked on at a time; processes also take "unlimited".
- `order_by`: a string or a list
  HL7 paths or record fields; messages that share a value are handled one after the other, in order.
- `on_suspend`: "pass", "hold_key" or "hold_item"
  What happens to the messages behind a suspended one; default "hold_key" with order_by, else "pass".
- `alert`: a table
  When an alert about the item's queue is raised.
- `schedule`: hours such as "Mon-Fri 07:00-19:00"
  The hours in which the item runs, for example "Mon-Fri 07:00-19:00".
- `description`: a string
  For people.
- `category`: a string
  For people: groups items in the portal.
- `retry_interval`: a duration such as "5s", default "5s"
  The first wait before a retry, doubled up to 60 s.
- `failure_timeout`: a duration such as "5s", or "never", default "never"
  A message that has been retried for this long is suspended.
- `suspend_limit`: a whole number, default 5
  After so many consecutive suspensions of different messages the item pauses.
- `response_timeout`: a duration such as "5s", default "30s"
  How long to wait for the peer's answer.
- `reply_actions`: a table
  What to do with a reply code: "complete", "warn", "retry", "suspend", "disable" or "fail".
- `idempotency_header`: a string, default "Idempotency-Key"
  The header under which HTTP operations send the idempotency key.
"##);
    assert!(crate::config::document::reference_of(&registry, "rset").is_none());
    let whole = crate::config::document::reference(&registry);
    for topic in crate::config::document::topics(&registry) {
        assert!(whole.contains(&topic), "{topic}");
    }
}

// === Files and the environment ===

/// Writes files into a folder and loads it; gives the problems with names relative to the folder.
fn folder(files: &[(&str, &str)], env: &Env) -> (tempfile::TempDir, crate::config::load::Loaded, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let loaded = load(dir.path(), &classes::registry(), env);
    let all: Vec<_> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    let text = all.join("\n").replace(&format!("{}/", dir.path().display()), "");
    (dir, loaded, text)
}

const MAIN: &str = "include = ['parts/*.toml', 'more.toml']\n[production]\nname = 'p'\n[store]\nretention = '30d'\n\
    [operations.out]\ntype = 'file'\npath = 'x'\n";
const PART: &str = "[services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:1'\ntargets = 'out'\n\
    tls = { cert = 'c.pem', key = 'c.pem' }\ndescription = '${file:note.txt}'\n";

/// A certificate and its key in one file.
const PEM: &str = concat!(
    include_str!("../../../../tests/tls/server.pem"),
    include_str!("../../../../tests/tls/server.key")
);

#[test]
fn included_files_are_merged_and_their_paths_are_relative_to_them() {
    let files = [
        ("production.toml", MAIN),
        ("parts/a.toml", PART),
        ("parts/c.pem", PEM),
        ("parts/note.txt", "a\nb\n"),
        ("more.toml", ""),
    ];
    let (dir, loaded, text) = folder(&files, &Env::empty());
    assert_eq!(text, "");
    let plan = loaded.plan.unwrap();
    assert_eq!(plan.item(&"in".into()).unwrap().common.description.as_deref(), Some("a\nb"));
    assert_eq!(plan.store.path, dir.path().join("data"));
    let names: Vec<_> = plan.sources.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["production.toml", "parts/a.toml", "more.toml"]);

    // What was kept loads again, without the files (those that references name are read anew).
    for name in ["production.toml", "parts/a.toml", "more.toml"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    let again = load_sources(&plan.sources, dir.path(), &classes::registry(), &Env::empty());
    let again = again.plan.unwrap();
    assert_eq!(again.version, plan.version);
    assert_eq!(again.item(&"in".into()).unwrap().fingerprint, plan.item(&"in".into()).unwrap().fingerprint);
}

#[test]
fn certificates_that_no_peer_would_accept_are_found_before_anything_runs() {
    let made = |from: (i32, u8, u8), until: (i32, u8, u8)| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        parameters.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let soon =
        SystemClock.now().to_zoned(jiff::tz::TimeZone::UTC).date().checked_add(jiff::Span::new().days(9));
    let soon = soon.unwrap();
    let month = u8::try_from(soon.month()).unwrap();
    let (good, key) = made((2020, 1, 1), (2120, 1, 1));
    let (expired, expired_key) = made((2020, 1, 1), (2021, 1, 1));
    let (later, later_key) = made((2110, 1, 1), (2120, 1, 1));
    let (short, short_key) =
        made((2020, 1, 1), (i32::from(soon.year()), month, u8::try_from(soon.day()).unwrap()));
    let say = |cert: &str, key: &str| {
        let part = "[services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:1'\ntargets = 'out'\n\
            tls = { cert = 'cert.pem', key = 'key.pem' }\n";
        let main = MAIN.replace("'parts/*.toml', 'more.toml'", "'part.toml'");
        let files =
            [("production.toml", main.as_str()), ("part.toml", part), ("cert.pem", cert), ("key.pem", key)];
        folder(&files, &Env::empty()).2
    };
    assert_eq!(say(&good, &key), "");
    assert_eq!(
        say(&expired, &expired_key),
        "part.toml:5:16: error S0621: the certificate of cert.pem expired at 2021-01-01T00:00:00Z"
    );
    assert_eq!(
        say(&later, &later_key),
        "part.toml:5:16: error S0621: the certificate of cert.pem is valid from 2110-01-01T00:00:00Z"
    );
    assert!(
        say(&short, &short_key).starts_with("part.toml:5:16: warning S0622: the certificate of cert.pem")
    );
    assert_eq!(say(&good, &short_key), "part.toml:5:34: error S0621: key.pem is not the key of cert.pem");
    assert_eq!(
        say("x", &good),
        "part.toml:5:16: error S0621: cert.pem holds no certificate in PEM form\n\
         part.toml:5:34: error S0621: key.pem holds no private key in PEM form"
    );
}

#[test]
fn deep_nesting_is_an_error_and_no_crash() {
    for (open, close) in [("[", "]"), ("{ a = ", " }")] {
        let text = format!("a = {}1{}", open.repeat(20_000), close.repeat(20_000));
        assert!(problems(&text).contains("S0002"));
    }
    assert!(!problems(&format!("[{}]\n", vec!["a"; 20_000].join("."))).is_empty());
}

#[test]
fn what_two_files_define_is_an_error_that_names_both() {
    let twice = "[operations.out]\ntype = 'file'\npath = 'y'\n[services.out]\ntype = 'hl7.mllp'\n[store]\nretention = '1d'\n";
    let files = [("production.toml", MAIN), ("more.toml", twice)];
    insta::assert_snapshot!(folder(&files, &Env::empty()).2, @r##"
production.toml:1:12: warning S0003: no file matches parts/*.toml
more.toml:1:13: error S0004: out is defined twice: first at production.toml:6:13
more.toml:4:11: error S0004: out is defined twice: first at production.toml:6:13
more.toml:7:1: error S0004: retention is defined twice: first at production.toml:5:1
"##);
    let files =
        [("production.toml", MAIN), ("parts/a.toml", "[processes.p]\ntipe = 'x'"), ("more.toml", "a = ")];
    insta::assert_snapshot!(folder(&files, &Env::empty()).2, @r##"
production.toml:6:13: warning S0401: nothing leads to out
parts/a.toml:1:1: error S0103: type is missing
more.toml:1:1: error S0102: unknown key a
more.toml:1:5: error S0002: string values must be quoted, expected literal string
"##);
    insta::assert_snapshot!(folder(&[("production.toml", "include = 5\n[production]\nname = 'x'")], &Env::empty()).2, @r##"
production.toml:1:1: warning S0605: nothing is ever purged: neither retention nor max_size is set
production.toml:1:11: error S0104: expected a list of files such as ["interfaces/*.toml"]
"##);
    insta::assert_snapshot!(folder(&[], &Env::empty()).2, @"production.toml:1:1: error S0001: production.toml cannot be read: no such file or directory");
}

#[test]
fn the_environment_overrides_store_admin_and_log() {
    let env: Env = [
        ("SEPTET__STORE__PATH", "/var/0123"),
        ("SEPTET__STORE__ENCRYPT_BODIES", "true"),
        ("SEPTET__STORE__KEY", "0123456789012345678901234567890123456789012345678901234567890123"),
        ("SEPTET__ADMIN__LISTEN", "127.0.0.1:1"),
        ("SEPTET__LOG__LEVEL", "debug"),
        ("SEPTET_URL", "http://elsewhere"),
    ]
    .into_iter()
    .collect();
    let dir = tempfile::tempdir().unwrap();
    let loaded = load_text(&around(""), dir.path(), &classes::registry(), &env);
    assert_eq!(loaded.diagnostics, []);
    let plan = loaded.plan.unwrap();
    assert_eq!(plan.store.path, Path::new("/var/0123"));
    assert!(plan.store.encrypt_bodies && plan.store.key.is_some_and(|key| key.reveal().starts_with("0123")));
    assert_eq!(plan.admin.unwrap().listen.port(), 1);
    assert_eq!(plan.log.level.as_deref(), Some("debug"));
    assert!(plan.sources.iter().all(|(name, _)| name == "production.toml"), "overrides are no files");

    let env = [("SEPTET__STORE__PTAH", "x"), ("SEPTET__STORE__MEMORY", "lots"), ("SEPTET__SERVICES__X", "y")];
    insta::assert_snapshot!(problems_with(&around(""), &env.into_iter().collect()), @r##"
$SEPTET__SERVICES__X:1:1: warning S0113: SEPTET__SERVICES__X overrides nothing (only [store], [admin] and [log] are overridden from the environment)
$SEPTET__STORE__MEMORY:1:1: error S0105: expected a size such as "16MiB": a number with B, KiB, MiB, GiB or TiB
$SEPTET__STORE__PTAH:1:1: error S0102: unknown key ptah (did you mean path?)
"##);
}

#[test]
fn overrides_are_refused_where_several_productions_run() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("production.toml"), around("")).unwrap();
    let env: Env = [("SEPTET__STORE__PATH", "/x")].into_iter().collect();
    let paths = [dir.path().to_owned(), dir.path().to_owned()];
    for loaded in load_all(&paths, &classes::registry(), &env) {
        assert_eq!(loaded.diagnostics.iter().map(|d| d.code).collect::<Vec<_>>(), ["S0112"]);
    }
    let codes = |text: &str| {
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("production.toml"), text).unwrap();
        let paths = [dir.path().to_owned(), other.path().to_owned()];
        let all = load_all(&paths, &classes::registry(), &Env::empty());
        assert_eq!(all[0].errors(), 0);
        all[1].diagnostics.iter().map(|d| format!("{} {}:{}", d.code, d.line, d.column)).collect::<Vec<_>>()
    };
    assert_eq!(codes(&around("")), ["S0212 6:11"]);
    assert_eq!(codes(&around("").replace("127.0.0.1:2575", "127.0.0.1:2576")), Vec::<String>::new());
    let path = dir.path().join("data").display().to_string();
    assert_eq!(
        codes(&around("").replace(":2575", ":2576").replace("'data'", &format!("'{path}'"))),
        ["S0611 3:2"]
    );
    assert_eq!(load_all(&paths[..1], &classes::registry(), &env)[0].errors(), 0);
}

// === Plans ===

#[test]
fn a_plan_has_the_defaults_of_the_contract() {
    let plan = plan(
        "[production]\nname = 'p'\ntimezone = 'Europe/Berlin'\n[services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:1'\ntargets = ['out']\n[operations.out]\ntype = 'rest'\nurl = 'https://x'\norder_by = 'mrn'\n",
    );
    assert_eq!(plan.store.path, Path::new("/p/data"));
    assert_eq!((plan.store.segment_size, plan.store.memory), (64 << 20, 128 << 20));
    assert_eq!(plan.store.audit_retention.as_secs(), 2190 * 86_400);
    assert_eq!(plan.production.shutdown_timeout.as_secs(), 10);
    assert!(plan.admin.is_none());
    let out = &plan.item(&"out".into()).unwrap().common;
    assert!(out.enabled && out.failure_timeout.is_none() && out.suspend_limit == 5);
    assert_eq!(out.pool_size, crate::config::settings::PoolSize::Limited(1));
    assert_eq!(out.on_suspend, crate::config::settings::OnSuspend::HoldKey);
    assert_eq!((out.retry_interval.as_secs(), out.response_timeout.as_secs()), (5, 30));
    assert_eq!(out.idempotency_header, "Idempotency-Key");
    assert_eq!(out.reply_actions.as_ref().unwrap().action("503"), crate::reply::Action::Retry);
    let service = &plan.item(&"in".into()).unwrap().common;
    assert_eq!(service.on_suspend, crate::config::settings::OnSuspend::Pass);
}

#[test]
fn a_fingerprint_changes_with_all_that_an_item_depends_on_and_with_nothing_else() {
    let text = |secret: &str, field: &str, other: &str, note: &str| {
        around(&format!(
            "[operations.api]\ntype = 'rest'\nurl = 'https://x'\noauth = 'v'\nx-note = '{note}'\n\
             [operations.api.requests.M]\nmethod = 'POST'\npath = '/'\n[messages.M]\na = '{field}'\n\
             [messages.Other]\nb = '{other}'\n[oauth.v]\ngrant = 'client_credentials'\nclient_id = 'lab'\n\
             token_url = 'https://id.example/t'\nclient_secret = '{secret}'\n"
        ))
    };
    let print = |text: &str, item: &str| plan(text).item(&item.into()).unwrap().fingerprint.clone();
    let base = text("s", "string", "string", "");
    assert_eq!(print(&base, "api"), print(&text("s", "string", "list", "note"), "api"));
    assert_ne!(print(&base, "api"), print(&text("t", "string", "string", ""), "api"));
    assert_ne!(print(&base, "api"), print(&text("s", "integer", "string", ""), "api"));
    assert_eq!(print(&base, "in"), print(&text("t", "integer", "list", ""), "in"));
    assert_ne!(plan(&base).version, plan(&text("t", "string", "string", "")).version);
}

// === Robustness ===

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
