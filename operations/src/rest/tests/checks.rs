//! What `check` says of the settings.

use crate::testing::check;

const TABLES: &str = r#"
[oauth.vendor]
token_url = "https://a.example/token"
grant = "client_credentials"
client_id = "${env:ID:-x}"
[messages.Submit]
accession = "string"
[messages.Login]
password = "secret"
"#;

fn problems(operation: &str) -> String {
    check(&format!("{TABLES}[operations.out]\ntype = \"rest\"\n{operation}"))
}

#[test]
fn a_right_operation_has_no_problem() {
    let text = r#"
url = "https://vendor.example/api"
oauth = { client = "vendor", placement = "query" }
idempotency_header = "X-Request-Id"
requests.Submit = { method = "PUT", path = "/r/{accession}?s={session}", query = { a = "{accession}" } }
requests."ADT^A01" = { path = "/p/{PID-3.1}" }
requests.Json = { path = "/{anything}" }
requests.Login = { body = "form", reply = "Submit", headers = { Accept = "application/json" } }
"#;
    assert_eq!(problems(text), "");
}

#[test]
fn tokens_and_secrets_stay_off_plain_http() {
    let requests = "requests.Submit = { path = \"/r\" }\n";
    let out = problems(&format!("url = \"http://vendor.example\"\noauth = \"vendor\"\n{requests}"));
    assert!(out.starts_with("error S0332: an OAuth token would be sent over plain http"), "{out}");
    let out = problems(&format!(
        "url = \"http://vendor.example\"\noauth = \"vendor\"\nallow_plain_http = true\n{requests}"
    ));
    assert_eq!(out, "warning S0332: an OAuth token would be sent over plain http (use https)");
    let out = problems("url = \"http://10.0.0.1\"\nrequests.Login = {}\n");
    assert!(out.starts_with("error S0332: a secret would be sent"), "{out}");
    assert_eq!(problems(&format!("url = \"http://127.0.0.1:1\"\noauth = \"vendor\"\n{requests}")), "");
    assert_eq!(problems(&format!("url = \"http://vendor.example\"\n{requests}")), "");
}

#[test]
fn every_mistake_is_named_at_once() {
    let out = problems(
        r#"
url = "https://user:pw@vendor.example/api"
oauth = "vender"
requests.Submit = { method = "get", path = "/{accesion}", reply = "Nothing", headers = { "a b" = "c" } }
requests.Sumbit = {}
requests."ADT^A01" = { path = "/{PID-}", body = "json" }
requests.Login = { method = "GET", body = "form", path = "/{x", headers = { Authorization = "y" } }
"#,
    );
    let expected = [
        "S0331: a URL cannot hold user name and password",
        "S0204: there is no OAuth client named vender (did you mean vendor?)",
        "S0335: a method is one of GET, POST, PUT, PATCH, DELETE, HEAD (did you mean GET?)",
        "S0337: Submit has no field accesion (did you mean accession?)",
        "S0202: message type Nothing is not declared",
        "S0336: this is no name of an HTTP header",
        "S0202: message type Sumbit is not declared (did you mean Submit?)",
        "S0335: an HL7 message is sent as raw bytes",
        "S0337: this is no HL7 path",
        "S0335: GET has no body",
        "S0337: a { at character",
        "S0336: Authorization is set by oauth",
    ];
    for line in expected {
        assert!(out.contains(line), "missing {line} in\n{out}");
    }
}

#[test]
fn an_operation_without_requests_sends_nothing() {
    let out = problems("url = \"https://a.example\"\nrequests = {}\n");
    assert!(out.contains("S0334"), "{out}");
}
