//! OAuth clients on the real binary, against token endpoints and APIs scripted by the test. Where each
//! requirement of the client side is tested:
//!
//! - O-01 explicit token flow: `readme.rs`, productions/token-by-hand (`septet test`).
//! - O-02 JSON bodies, pointers, `expires_in` of every kind: `engine/oauth/src/answer.rs`,
//!   `engine/oauth/tests/manager`; absolute dates by the server's clock: `engine/oauth/tests/sign_in.rs`.
//! - O-03 tokens survive, encrypted, and show nowhere: `main_job.rs`, `oauth_client_leaks.rs`.
//! - O-04 no token flow of one's own: `main_job.rs`, productions/lab-results.
//! - O-05 failing token endpoints: here; every kind of failure: `engine/oauth/tests/manager/failures.rs`.
//! - O-06, O-07 HL7 over HTTP, placements: `operations/src/hl7_http.rs`, `operations/src/rest/tests.rs`.
//! - O-08 grants and authentications: `oauth_client_oidc.rs`, `engine/oauth/tests/{check,manager,sign_in}.rs`.
//! - O-09 `septet oauth test`, O-15 keys of one's own: `oauth_client_oidc.rs`, `engine/oauth/tests/manager`.
//! - O-16 background renewal, single flight: `engine/oauth/tests/manager/mod.rs`, `main_job.rs`.
//! - O-18 an id_token with client credentials: `engine/oauth/tests/sign_in.rs`.
//! - O-19 secrets from outside: here and `engine/src/config`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::response::IntoResponse as _;
use serde_json::{Value, json};

use crate::support::authority::Authority;
use crate::support::scripted::{Scripted, json as answer};
use crate::support::{PATIENCE, Septet, free_port};

/// A production that posts each record it is given to `url`, with `oauth` as that operation's.
fn production(inbound: u16, url: &str, oauth: &str, clients: &str) -> String {
    format!(
        r#"
[production]
name = "clients"
alerts = ["mail"]
[store]
path = "data"
retention = "30d"
[admin]
listen = "127.0.0.1:{{admin}}"
{clients}
[messages.Result]
tenant = "string"
value = "string"
[services.in]
type = "http"
listen = "127.0.0.1:{inbound}"
message = "Result"
targets = ["out"]
[operations.out]
type = "rest"
url = "{url}"
retry_interval = "50ms"
{oauth}
[operations.out.requests.Result]
path = "/results"
[operations.mail]
type = "file"
path = "alerts/{{id}}.json"
"#
    )
}

fn client(name: &str, token_url: &str, more: &str) -> String {
    format!(
        "[oauth.{name}]\ntoken_url = \"{token_url}\"\ngrant = \"client_credentials\"\nclient_id = \"{name}\"\n\
         client_secret = \"${{env:NO_SUCH_VARIABLE:-{name}-secret}}\"\n{more}\n"
    )
}

/// Hands a record in; its session.
async fn hand_in(port: u16, tenant: &str) -> u64 {
    let request = reqwest::Client::new().post(format!("http://127.0.0.1:{port}/"));
    let request = request.json(&json!({ "tenant": tenant, "value": "1" }));
    let answer: Value = serde_json::from_str(&request.send().await.unwrap().text().await.unwrap()).unwrap();
    answer["session"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

fn token(name: &str) -> axum::response::Response {
    answer(200, json!({ "access_token": format!("token-of-{name}"), "expires_in": 3600 }))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tenant_has_a_token_of_its_own_and_an_unknown_one_is_suspended() {
    let vendor = Scripted::start(|seen| match seen.uri.path() {
        "/token/north" => token("north"),
        "/token/south" => token("south"),
        _ => answer(200, json!({})),
    })
    .await;
    let inbound = free_port();
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", vendor.port);
    let clients = client("at-north", &url("/token/north"), "")
        + &client("at-south", &url("/token/south"), "")
        + &client("other-api", &url("/token/other"), "");
    let oauth = "oauth = { client = \"at-{tenant}\" }";
    let septet = Septet::start(&production(inbound, &url("/api"), oauth, &clients)).await;
    for tenant in ["north", "south", "north", "south"] {
        let session = hand_in(inbound, tenant).await;
        assert_eq!(septet.settled(session).await["status"], "completed", "{}", septet.log());
    }
    let sent: Vec<_> = vendor
        .at("/api/results")
        .iter()
        .map(|seen| seen.header("authorization").unwrap().to_owned())
        .collect();
    let (north, south) = ("Bearer token-of-north", "Bearer token-of-south");
    assert_eq!(sent, [north, south, north, south]);
    assert_eq!((vendor.at("/token/north").len(), vendor.at("/token/south").len()), (1, 1));

    for stranger in ["west", "", "north "] {
        let session = hand_in(inbound, stranger).await;
        let trace = septet.settled(session).await;
        assert_eq!(trace["status"], "suspended", "{trace:#}");
        let error = trace["messages"][0]["error"].as_str().unwrap();
        assert!(
            error.contains("the message names no OAuth client: there is none for at-{tenant}"),
            "{error}"
        );
    }
    assert_eq!(vendor.at("/api/results").len(), 4, "nothing is sent with another tenant's token");
    let used: Vec<_> = septet.get("/api/v1/oauth").await["clients"]
        .as_array()
        .unwrap()
        .iter()
        .map(|client| client["used_by"].to_string())
        .collect();
    assert_eq!(used, ["[\"out\"]", "[\"out\"]", "[]"], "clients that the template can name");
}

/// The token endpoint fails for a while: its status and words reach the event log and the message, nothing is sent
/// without a token, and the waits of client and operation do not add up: each attempt really asks.
#[tokio::test(flavor = "multi_thread")]
async fn o_05_a_failing_token_endpoint_is_told_waited_for_and_recovered_from() {
    let up = Arc::new(AtomicBool::new(false));
    let (is_up, asked) = (up.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let times = asked.clone();
    let vendor = Scripted::start(move |seen| {
        if seen.uri.path() != "/token" {
            return answer(200, json!({}));
        }
        times.lock().unwrap().push(Instant::now());
        match is_up.load(Ordering::SeqCst) {
            true => token("lab"),
            false => {
                answer(503, json!({ "error": "temporarily_unavailable", "error_description": "tea break" }))
            }
        }
    })
    .await;
    let inbound = free_port();
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", vendor.port);
    let clients = client("lab", &url("/token"), "");
    let septet = Septet::start(&production(inbound, &url("/api"), "oauth = \"lab\"", &clients)).await;
    let session = hand_in(inbound, "x").await;
    let trace = septet
        .until(&format!("/api/v1/sessions/{session}"), |trace| {
            trace["messages"][0]["attempts"].as_u64() >= Some(3)
        })
        .await;
    assert_eq!(trace["status"], "active");
    let error = trace["messages"][0]["error"].as_str().unwrap();
    assert!(error.starts_with("oauth: no token: temporarily_unavailable: "), "{error}");
    assert!(error.contains("status 503") && !error.contains("not asked again"), "{error}");
    assert!(!error.contains("tea break"), "the server's words are detail");
    let events = septet.get("/api/v1/events?kind=oauth.failed").await;
    assert!(events["events"][0]["text"].as_str().unwrap().contains("temporarily_unavailable"));
    let shown = septet.get("/api/v1/oauth/lab").await;
    assert_eq!((&shown["state"], &shown["detail"]), (&json!("failing"), &json!("tea break")));
    assert!(shown["last_error"].as_str().unwrap().starts_with("temporarily_unavailable: "));
    assert!(septet.get("/api/v1/oauth").await["clients"][0].get("detail").is_none());
    let viewed = septet.get("/api/v1/events?kind=message.viewed").await;
    let about = |event: &Value| event["text"].as_str().unwrap().contains("OAuth client lab");
    assert!(viewed["events"].as_array().unwrap().iter().any(about), "{viewed}");

    up.store(true, Ordering::SeqCst);
    let trace = septet.settled(session).await;
    assert_eq!(trace["status"], "completed");
    let times = asked.lock().unwrap().clone();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    // The fourth attempt comes after four seconds, the fifth after eight.
    let wait = Duration::from_secs(1 << (times.len() - 2));
    assert!(longest < wait + Duration::from_secs(8), "one wait of {wait:?}, not two: {longest:?}");
    let attempts = trace["messages"][0]["attempts"].as_u64().unwrap();
    assert_eq!(vendor.at("/token").len() as u64, attempts, "no attempt was in vain");
    assert_eq!(vendor.at("/api/results").len(), 1, "nothing is sent without a token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_of_the_token_endpoint_is_respected_and_a_revoked_token_costs_one_refresh() {
    let revoked = Arc::new(AtomicBool::new(false));
    let (is_revoked, asked) = (revoked.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let times = asked.clone();
    let vendor = Scripted::start(move |seen| {
        if seen.uri.path() == "/token" {
            let mut times = times.lock().unwrap();
            times.push(Instant::now());
            return match times.len() {
                1 => (axum::http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3")], "").into_response(),
                n => token(&n.to_string()),
            };
        }
        let refused =
            is_revoked.load(Ordering::SeqCst) && seen.header("authorization") == Some("Bearer token-of-2");
        answer(if refused { 401 } else { 200 }, json!({}))
    })
    .await;
    let inbound = free_port();
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", vendor.port);
    let clients = client("lab", &url("/token"), "");
    let septet = Septet::start(&production(inbound, &url("/api"), "oauth = \"lab\"", &clients)).await;
    let session = hand_in(inbound, "x").await;
    assert_eq!(septet.settled(session).await["status"], "completed");
    let waited = {
        let times = asked.lock().unwrap();
        assert_eq!(times.len(), 2, "asked twice in all");
        times[1].duration_since(times[0])
    };
    assert!(waited >= Duration::from_secs(3), "{waited:?}");
    assert_eq!(septet.get("/api/v1/oauth/lab").await["last_401"], Value::Null);

    revoked.store(true, Ordering::SeqCst);
    let session = hand_in(inbound, "x").await;
    let trace = septet.settled(session).await;
    assert_eq!((&trace["status"], &trace["messages"][0]["attempts"]), (&json!("completed"), &json!(1)));
    assert_eq!(asked.lock().unwrap().len(), 3, "one refresh");
    assert_eq!(vendor.at("/api/results").len(), 3, "one more send");
    assert!(septet.get("/api/v1/oauth/lab").await["last_401"].is_string());
}

/// A token endpoint and an API with different authorities and different client certificates, the client known by
/// its certificate alone (RFC 8705); the same by a pin, and by another name.
#[tokio::test(flavor = "multi_thread")]
async fn token_endpoint_and_api_have_trust_and_certificates_of_their_own() {
    let [login_ca, login_clients, api_ca, api_clients] =
        ["login", "login clients", "api", "api clients"].map(Authority::new);
    let (login, api) = (login_ca.certify(&["login.example"]), api_ca.certify(&["127.0.0.1"]));
    let (at_login, at_api) = (login_clients.certify(&["lab.example"]), api_clients.certify(&["lab.example"]));
    let inbound = free_port();
    let mut septet = Septet::write("");
    let file = |name: &str, text: &str| {
        let path = septet.path(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    for (name, certified) in [("at-login", &at_login), ("at-api", &at_api)] {
        file(&format!("{name}.pem"), &certified.cert);
        file(&format!("{name}.key"), &certified.key);
    }
    file("login-ca.pem", &login_ca.pem);
    file("api-ca.pem", &api_ca.pem);
    let login_files = [
        file("login.pem", &login.cert),
        file("login.key", &login.key),
        file("login-clients.pem", &login_clients.pem),
    ];
    let api_files =
        [file("api.pem", &api.cert), file("api.key", &api.key), file("api-clients.pem", &api_clients.pem)];
    let login_server = Scripted::tls(login_files, |_| token("lab")).await;
    let api_server = Scripted::tls(api_files, |_| answer(200, json!({}))).await;
    let token_url = format!("https://127.0.0.1:{}/token", login_server.port);
    let by_certificate = |name: &str, trust: &str| {
        format!(
            "[oauth.{name}]\ntoken_url = \"{token_url}\"\ngrant = \"client_credentials\"\nclient_id = \"lab\"\n\
             client_auth = \"tls\"\ntls = {{ cert = \"at-login.pem\", key = \"at-login.key\", {trust} }}\n"
        )
    };
    let clients = [
        by_certificate("named", "ca = \"login-ca.pem\", server_name = \"login.example\""),
        by_certificate("pinned", &format!("pin = \"{}\"", login.pin)),
        by_certificate("other-pin", &format!("pin = \"{}\"", api.pin)),
        by_certificate("other-name", "ca = \"login-ca.pem\""),
        by_certificate("other-ca", "ca = \"api-ca.pem\", server_name = \"login.example\""),
        by_certificate("other-certificate", "ca = \"login-ca.pem\", server_name = \"login.example\"")
            .replace("at-login.", "at-api."),
    ]
    .concat();
    let oauth =
        "oauth = \"{name}\"\ntls = { ca = \"api-ca.pem\", cert = \"at-api.pem\", key = \"at-api.key\" }";
    let url = format!("https://127.0.0.1:{}/api", api_server.port);
    let text = production(inbound, &url, &oauth.replace("{name}", "named"), &clients);
    std::fs::write(septet.path("production.toml"), text.replace("{admin}", &septet.admin.to_string()))
        .unwrap();
    septet.run().await;
    let session = hand_in(inbound, "x").await;
    assert_eq!(septet.settled(session).await["status"], "completed", "{}", septet.log());
    assert_eq!(login_server.seen()[0].form().get("client_id").map(String::as_str), Some("lab"));
    assert_eq!(api_server.seen()[0].header("authorization"), Some("Bearer token-of-lab"));

    let test = |name: &str| septet.command(&["oauth", "test", name]);
    assert_eq!(test("pinned").status.code(), Some(0));
    for (name, words) in [
        ("other-pin", "certificate"),
        ("other-name", "certificate"),
        ("other-ca", "certificate"),
        ("other-certificate", ""),
    ] {
        let output = test(name);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(said.contains("tls: ") || said.contains("reply: "), "{name}: {said}");
        assert!(said.contains(words), "{name}: {said}");
    }
}

fn hash(token: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Signing in takes an operator; the provider may send people back from its own site, and nobody may send them
/// there from another. A refused refresh token is an alert, also to the items of `production.alerts`.
#[tokio::test(flavor = "multi_thread")]
async fn o_08_signing_in_takes_an_operator_and_a_refused_refresh_token_is_a_loud_alert() {
    let vendor = Scripted::start(|seen| match seen.form().get("grant_type").map(String::as_str) {
        Some("authorization_code") => {
            answer(200, json!({ "access_token": "by-sign-in", "expires_in": 2, "refresh_token": "r" }))
        }
        Some(_) => answer(400, json!({ "error": "invalid_grant" })),
        None => answer(200, json!({})),
    })
    .await;
    let inbound = free_port();
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", vendor.port);
    let accounts = ["look", "work", "rule"].map(|name| {
        let role = if name == "look" { "viewer" } else { "operator" };
        format!("[admin.tokens.{name}]\nhash = \"{}\"\nrole = \"{role}\"\n", hash(name))
    });
    let person = format!(
        "{}[oauth.person]\ntoken_url = \"{}\"\nauthorization_url = \"{}\"\ngrant = \"authorization_code\"\n\
         client_id = \"lab\"\nclient_secret = \"${{env:NO_SUCH_VARIABLE:-x-secret}}\"\n",
        accounts.concat(),
        url("/token"),
        url("/authorize")
    );
    let septet = Septet::start(&production(inbound, &url("/api"), "oauth = \"person\"", &person)).await;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let go = async |path: &str, who: &str, headers: &[(&str, &str)]| {
        let request = client.get(septet.url(path)).bearer_auth(who);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answer = request.send().await.unwrap();
        let location = answer.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), location.unwrap_or_default())
    };
    let (connect, callback) = ("/oauth/person/connect", "/oauth/person/callback");
    let foreign = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    assert_eq!(client.get(septet.url(connect)).send().await.unwrap().status(), 401);
    assert_eq!(go(connect, "look", &[]).await.0, 403);
    assert_eq!(go(connect, "work", &foreign).await.0, 403, "another site's page sends nobody there");
    assert_eq!(go(connect, "work", &[("host", "evil.example")]).await.0, 303, "any host with accounts");
    let leave = async || {
        let (status, location) = go(connect, "work", &[("sec-fetch-site", "none")]).await;
        assert_eq!(status, 303);
        let url = url::Url::parse(&location).unwrap();
        let state = url.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
        format!("{callback}?code=c&state={state}")
    };
    let back = leave().await;
    assert_eq!(go(&back, "look", &foreign).await.0, 403);
    assert_eq!(go(&back, "rule", &foreign).await.0, 400, "another account has begun it");
    let back = leave().await;
    assert_eq!(
        go(&back, "work", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]).await.0,
        403
    );
    assert_eq!(go(&back, "work", &[("origin", "https://evil.example")]).await.0, 403);
    assert_eq!(go(&back, "work", &foreign).await.0, 200, "{}", septet.log());

    // Two seconds later its token has ended, and the refresh token is refused.
    tokio::time::sleep(Duration::from_secs(2)).await;
    hand_in(inbound, "x").await;
    let deadline = Instant::now() + PATIENCE;
    let alert = loop {
        let files = crate::support::files_below(&septet.path("alerts"));
        let finished = files.iter().find(|file| file.extension().is_some_and(|suffix| suffix == "json"));
        if let Some(file) = finished {
            break std::fs::read_to_string(file).unwrap();
        }
        assert!(Instant::now() < deadline, "no alert came:\n{}", septet.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let alert: Value = serde_json::from_str(&alert).unwrap();
    assert_eq!((&alert["level"], &alert["kind"]), (&json!("error"), &json!("oauth.refresh_token")));
    let text = alert["text"].as_str().unwrap();
    assert!(text.contains("OAuth client person: the refresh token was refused (invalid_grant)"), "{text}");
    assert!(text.contains(&septet.url(connect)), "{text}");
    let events =
        client.get(septet.url("/api/v1/events?kind=alert")).bearer_auth("look").send().await.unwrap();
    assert!(events.text().await.unwrap().contains("was refused (invalid_grant)"));
}

#[test]
fn o_19_a_missing_variable_is_named_before_anything_starts() {
    let clients = client("lab", "http://127.0.0.1:1/token", "").replace(":-lab-secret", "");
    let septet = Septet::write(&production(free_port(), "http://127.0.0.1:1", "oauth = \"lab\"", &clients));
    let output = septet.command(&["check", septet.folder.path().to_str().unwrap()]);
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("NO_SUCH_VARIABLE"), "{said}");
}
