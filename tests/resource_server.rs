//! The resource server on all three doors, `http`, `hl7.http` and the admin API, against tokens that jose made:
//! each refused with the right status and challenge, and an event that names the check with both values.

use std::time::Instant;

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::support::issuer::Issuer;
use crate::support::peers::Peer;
use crate::support::{Septet, assert_nowhere, free_port};

const PRODUCTION: &str = r#"
[production]
name = "doors"
[store]
path = "data"
retention = "1d"

[admin]
listen = "127.0.0.1:{admin}"
[admin.auth]
issuer = "{issuer}"
audience = ["api", "api://results"]
scope = "results:write"
algorithms = ["RS256", "ES256"]
[admin.roles]
"results:write" = "viewer"

[services.api]
type = "http"
listen = "127.0.0.1:{http}"
targets = ["out"]
auth = { issuer = "{issuer}", audience = ["api", "api://results"], scope = "results:write", algorithms = ["RS256", "ES256"] }

[services.hl7]
type = "hl7.http"
listen = "127.0.0.1:{http}"
path = "/hl7"
targets = ["out"]
auth = { issuer = "{issuer}", audience = ["api", "api://results"], scope = "results:write", algorithms = ["RS256", "ES256"] }

[operations.out]
type = "file"
path = "out/{id}"
"#;

const MESSAGE: &str = "MSH|^~\\&|LAB|HOSP|SEPTET|X|20261122091500||ORU^R01|M1|P|2.5\rPID|1||4711\r";

/// Status, challenge, and what the body says.
async fn told(request: RequestBuilder) -> (u16, String, String) {
    let answer = request.send().await.unwrap();
    let challenge = answer.headers().get("www-authenticate").map(|value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), challenge.unwrap_or_default(), answer.text().await.unwrap())
}

async fn json_of(url: &str, token: &str) -> Value {
    Client::new().get(url).bearer_auth(token).send().await.unwrap().json().await.unwrap()
}

/// O-10: when a token is refused, the event says which check failed, with expected and actual value; several
/// audiences are accepted. O-06 and O-13: the same on `hl7.http` and the admin API.
#[tokio::test(flavor = "multi_thread")]
async fn o_10_hostile_tokens_are_refused_at_every_door_with_the_check_named() {
    let Some(issuer) = Peer::node("hostile.mjs", &["jose"], &[]) else { return };
    let name = issuer.ready["issuer"].as_str().unwrap();
    let http = free_port();
    let text = PRODUCTION.replace("{issuer}", name).replace("{http}", &http.to_string());
    let septet = Septet::start(&text).await;
    let tokens = json_of(&format!("{name}/tokens"), "").await;
    let tokens = tokens.as_array().unwrap();
    assert!(tokens.len() > 50, "jose made its tokens");
    let good = tokens[0]["token"].as_str().unwrap();
    let (client, began) = (Client::new(), Instant::now());

    let mut refused = Vec::new();
    for case in tokens {
        let (what, token) = (&case["name"], case["token"].as_str().unwrap());
        let status = u16::try_from(case["status"].as_u64().unwrap()).unwrap();
        let doors = [
            ("api", client.post(format!("http://127.0.0.1:{http}/")).json(&json!({ "a": 1 })), 202),
            (
                "hl7",
                client
                    .post(format!("http://127.0.0.1:{http}/hl7"))
                    .header("content-type", "application/hl7-v2")
                    .body(MESSAGE),
                200,
            ),
            ("admin", client.get(septet.url("/api/v1/items")), 200),
        ];
        for (door, request, yes) in doors {
            let (found, challenge, body) = told(request.bearer_auth(token)).await;
            assert_eq!(found, if status == 202 { yes } else { status }, "{what} at {door}: {body}");
            if status == 202 {
                continue;
            }
            let error = if status == 403 { "insufficient_scope" } else { "invalid_token" };
            assert!(
                challenge.starts_with("Bearer realm=\"septet\", error="),
                "{what} at {door}: {challenge}"
            );
            assert!(challenge.contains(error), "{what} at {door}: {challenge}");
            assert!(
                !body.contains("evil") && !body.contains("someone"),
                "{what}: the body repeats the token"
            );
            refused.push((door, case["check"].as_str()));
        }
    }

    // The events, in order, each with both values as its detail.
    let events = json_of(&septet.url("/api/v1/events?kind=auth.refused&limit=1000"), good).await;
    let events: Vec<&Value> = events["events"].as_array().unwrap().iter().rev().collect();
    assert_eq!(events.len(), refused.len());
    for (event, (door, check)) in events.iter().zip(&refused) {
        assert_eq!(event["item"].as_str().unwrap_or("admin"), *door);
        assert_eq!(event["detail"], Value::Null, "a list shows no foreign words");
        if let Some(check) = check {
            assert_eq!(event["text"], *check, "{event}");
        }
    }
    let audience = events.iter().find(|event| event["text"] == "aud").unwrap();
    let shown = json_of(&septet.url(&format!("/api/v1/events/{}", audience["id"])), good).await;
    assert_eq!(shown["detail"], "expected api or api://results, got other");
    let viewed = json_of(&septet.url("/api/v1/events?kind=message.viewed"), good).await;
    assert_eq!(viewed["events"][0]["who"], "someone", "reading it is on record");

    // What they cost: no fetch for what a token names, and none per token.
    let fetched = json_of(&format!("{name}/fetched"), "").await;
    let fetched: Vec<&str> = fetched.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(!fetched.contains(&"/forged"), "{fetched:?}");
    let allowed = usize::try_from(began.elapsed().as_secs() / 10).unwrap() + 2;
    assert!(fetched.iter().filter(|path| **path == "/jwks").count() <= allowed, "{fetched:?}");
    assert!(!septet.log().contains("eyJ"), "no token is in the log");
}

/// O-13: an issuer's tokens are accounts of the admin API, with the role that a claim gives.
#[tokio::test(flavor = "multi_thread")]
async fn o_13_the_admin_api_takes_roles_from_claims() {
    let issuer = Issuer::start().await;
    let production = r#"
[production]
name = "roles"
[store]
path = "data"
retention = "1d"
[admin]
listen = "127.0.0.1:{admin}"
role_claim = "/realm_access/roles"
auth = { issuer = "{issuer}", audience = ["septet"] }
roles = { "Septet.Look" = "viewer", "Septet.Work" = "operator", "Septet.All" = "admin" }
"#;
    let septet = Septet::start(&production.replace("{issuer}", &issuer.url)).await;
    let token = |roles: Value| {
        issuer.token(json!({ "aud": "septet", "sub": "jane", "realm_access": { "roles": roles } }))
    };
    let client = Client::new();
    let status = async |request: RequestBuilder, token: &str| told(request.bearer_auth(token)).await.0;
    for (roles, look, start, reload) in [
        (json!(["Septet.Look"]), 200, 403, 403),
        (json!("other Septet.Work"), 200, 404, 403),
        (json!(["Septet.Look", "Septet.All"]), 200, 404, 200),
        (json!(["septet.all"]), 403, 403, 403),
        (json!([]), 403, 403, 403),
        (json!({ "Septet.All": true }), 403, 403, 403),
    ] {
        let token = token(roles.clone());
        assert_eq!(status(client.get(septet.url("/api/v1/items")), &token).await, look, "{roles}");
        assert_eq!(status(client.post(septet.url("/api/v1/items/x/start")), &token).await, start, "{roles}");
        let request = client.post(septet.url("/api/v1/production/reload"));
        assert_eq!(status(request, &token).await, reload, "{roles}");
    }
    let admin = token(json!("Septet.All"));
    let events = json_of(&septet.url("/api/v1/events?kind=auth.refused&limit=1"), &admin).await;
    assert_eq!(events["events"][0]["text"], "role");
    let (none, challenge, _) = told(client.get(septet.url("/api/v1/items"))).await;
    assert_eq!((none, challenge.as_str()), (401, "Basic realm=\"septet\", Bearer realm=\"septet\""));
    assert_eq!(client.get(septet.url("/readyz")).send().await.unwrap().status(), 200);
}

const PLACEMENTS: &str = r#"
[production]
name = "placements"
[store]
path = "data"
retention = "1d"
[admin]
listen = "127.0.0.1:{admin}"

[messages.Note]
place = "string"

[services.auth]
type = "oauth.server"
listen = "127.0.0.1:{auth}"
issuer = "http://127.0.0.1:{auth}"
scopes = { "notes:write" = "Write notes" }
[services.auth.clients.app]
secret = "${env:NO_SUCH_VARIABLE:-placement-secret}"

[services.api]
type = "http"
listen = "127.0.0.1:{api}"
path = "/notes"
message = "Note"
targets = ["out"]
auth = { issuer = "http://127.0.0.1:{auth}", scope = "notes:write" }
[operations.out]
type = "file"
path = "out/{place}"

[oauth.app]
token_url = "http://127.0.0.1:{auth}/oauth2/token"
client_id = "app"
client_secret = "${env:NO_SUCH_VARIABLE:-placement-secret}"
grant = "client_credentials"

[services.in]
type = "http"
listen = "127.0.0.1:{in}"
targets = ["fan"]
[processes.fan]
type = "flow"
steps = [
  { send = "by_header", message = "Note", with = "{ place: 'header' }" },
  { send = "by_body", message = "Note", with = "{ place: 'body' }" },
  { send = "by_query", message = "Note", with = "{ place: 'query' }" },
]
[operations.by_header]
type = "rest"
url = "http://127.0.0.1:{api}"
oauth = "app"
requests.Note = { method = "POST", path = "/notes" }
[operations.by_body]
type = "rest"
url = "http://127.0.0.1:{api}"
oauth = { client = "app", placement = "body" }
requests.Note = { method = "POST", path = "/notes" }
[operations.by_query]
type = "rest"
url = "http://127.0.0.1:{api}"
oauth = { client = "app", placement = "query" }
requests.Note = { method = "POST", path = "/notes" }
"#;

/// O-07: the token travels as header, form field or query parameter; our own resource server takes all three, and
/// it is no part of what is stored, listed or logged at either end.
#[tokio::test(flavor = "multi_thread")]
async fn o_07_tokens_travel_in_header_body_or_query_and_show_nowhere() {
    let ports = ["auth", "api", "in"].map(|name| (name, free_port().to_string()));
    let text = ports
        .iter()
        .fold(PLACEMENTS.to_owned(), |text, (name, port)| text.replace(&format!("{{{name}}}"), port));
    let mut septet = Septet::start(&text).await;
    let client = Client::new();
    let posted =
        client.post(format!("http://127.0.0.1:{}/", ports[2].1)).json(&json!({})).send().await.unwrap();
    assert_eq!(posted.status(), 202);
    let session = posted.json::<Value>().await.unwrap()["session"].as_u64().unwrap();
    septet.settled(session).await;
    let all = "/api/v1/messages?target=out";
    let done = |list: &Value| {
        let list = list["messages"].as_array().unwrap();
        list.len() == 3 && list.iter().all(|header| header["status"] == "completed")
    };
    let list = septet.until(all, done).await;
    for place in ["header", "body", "query"] {
        let written = std::fs::read_to_string(septet.path("out").join(place)).unwrap();
        let written: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(written, json!({ "place": place }), "the token is no part of the message");
    }
    // All tokens of the server begin alike.
    let form = [("grant_type", "client_credentials")];
    let token = client.post(format!("http://127.0.0.1:{}/oauth2/token", ports[0].1)).form(&form);
    let token = token.basic_auth("app", Some("placement-secret")).send().await.unwrap();
    let token = token.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned();
    let head = token.split('.').next().unwrap().to_owned();
    let trace = septet.get(&format!("/api/v1/sessions/{session}")).await;
    let shown = format!("{list} {trace} {}", septet.get("/api/v1/events?limit=1000").await);
    assert!(!shown.contains(&head) && !septet.log().contains(&head));
    assert_eq!(septet.terminate(), Some(0));
    assert_nowhere(septet.folder.path(), &[&head, "placement-secret"]);
}

const INTROSPECTION: &str = r#"
[production]
name = "asking"
[store]
path = "data"
retention = "1d"
[admin]
listen = "127.0.0.1:{admin}"

[services.auth]
type = "oauth.server"
listen = "127.0.0.1:{auth}"
issuer = "http://127.0.0.1:{auth}"
scopes = { "notes:write" = "Write notes", "notes:read" = "Read notes" }
[services.auth.clients.app]
secret = "${env:NO_SUCH_VARIABLE:-app-secret}"
[services.auth.clients.api]
secret = "${env:NO_SUCH_VARIABLE:-api-secret}"

[services.api]
type = "http"
listen = "127.0.0.1:{api}"
targets = ["out"]
[services.api.auth]
introspection_url = "http://127.0.0.1:{auth}/oauth2/introspect"
client_id = "api"
client_secret = "${env:NO_SUCH_VARIABLE:-api-secret}"
issuer = "http://127.0.0.1:{auth}"
scope = "notes:write"
[operations.out]
type = "file"
path = "out/{id}"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_api_may_ask_our_authorization_server_about_each_token() {
    let (auth, api) = (free_port().to_string(), free_port().to_string());
    let text = INTROSPECTION.replace("{auth}", &auth).replace("{api}", &api);
    let septet = Septet::start(&text).await;
    let client = Client::new();
    let server = |path: &str| client.post(format!("http://127.0.0.1:{auth}/oauth2/{path}"));
    let token = async |scope: &str| {
        let form = [("grant_type", "client_credentials"), ("scope", scope)];
        let reply = server("token").basic_auth("app", Some("app-secret")).form(&form).send().await.unwrap();
        reply.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned()
    };
    let (good, weak, revoked) =
        (token("notes:write").await, token("notes:read").await, token("notes:write").await);
    let gone = server("revoke").basic_auth("app", Some("app-secret")).form(&[("token", &revoked)]);
    assert_eq!(gone.send().await.unwrap().status(), 200);
    let cases = [
        (good.as_str(), 202, None),
        (weak.as_str(), 403, Some("scope")),
        (revoked.as_str(), 401, Some("inactive")),
        ("made-up", 401, Some("inactive")),
        ("made up", 401, Some("malformed")),
    ];
    for (token, status, check) in cases {
        let request = client.post(format!("http://127.0.0.1:{api}/")).json(&json!({}));
        let (found, challenge, body) = told(request.header("authorization", format!("Bearer {token}"))).await;
        assert_eq!(found, status, "{check:?}: {body}");
        assert_eq!(challenge.starts_with("Bearer"), status != 202, "{challenge}");
    }
    let events = septet.get("/api/v1/events?kind=auth.refused").await;
    let texts: Vec<_> =
        events["events"].as_array().unwrap().iter().rev().map(|event| &event["text"]).collect();
    let checks: Vec<_> = cases.iter().filter_map(|(_, _, check)| *check).collect();
    assert_eq!(texts, checks);
}
