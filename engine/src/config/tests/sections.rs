//! The sections beside the items: store, admin API, messages, transforms, lookups, OAuth clients; and how the
//! items fit together.

use super::*;

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
fn a_store_needs_a_folder_and_its_old_keys_are_secrets_too() {
    let store = |text: &str| {
        let text = format!("[production]\nname = 'x'\n[store]\nretention = '30d'\n{text}\n");
        problems(&text)
    };
    insta::assert_snapshot!(store("path = ''"), @r#"5:8: error S0105: the path is empty: a store needs a folder of its own (for example path = "data")"#);
    let old = "1".repeat(64);
    insta::assert_snapshot!(store(&format!("old_keys = ['${{env:OLD:-{old}}}', '{old}']")), @"5:1: warning S0601: old_keys stands in the file in clear text (write ${env:NAME} or ${file:path})");
    insta::assert_snapshot!(store(&format!("old_keys = ['${{env:OLD:-{old}}}']")), @"");
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
