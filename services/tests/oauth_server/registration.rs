//! Clients that register themselves.

use std::time::Duration;

use serde_json::{Value, json};

use crate::inspect::kept;
use crate::support::{Browser, GRANT, Running, returned, text};

const OPEN: &str = r#"
signing_alg = "ES256"
scopes = { "results:write" = "Submit", "results:read" = "Read" }
registration = true
[services.auth.users.ada]
password = "pa55 word"
"#;

const WITH_TOKEN: &str = r#"
signing_alg = "ES256"
scopes = { "results:write" = "Submit", "results:read" = "Read" }
registration = { token = "come in", grants = ["client_credentials", "authorization_code"], scopes = ["results:read", "openid"], max_clients = 2 }
[services.auth.users.ada]
password = "pa55 word"
"#;

async fn register(server: &Running, token: Option<&str>, metadata: &Value) -> (u16, Value) {
    let mut request = server.http.post(server.url("/oauth2/register")).json(metadata);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

fn app() -> Value {
    json!({
        "client_name": "Lab <portal>",
        "redirect_uris": ["https://portal.example/cb"],
        "grant_types": ["authorization_code", "refresh_token"],
        "scope": "openid results:read",
        "unknown_field": 7,
    })
}

#[tokio::test]
async fn a_client_registers_sees_its_secret_once_and_uses_it_also_after_a_restart() {
    let server = Running::start(OPEN).await;
    let document = server.get("/.well-known/openid-configuration").await;
    assert_eq!(document["registration_endpoint"], server.url("/oauth2/register"));
    let (status, client) = register(&server, None, &app()).await;
    assert_eq!(status, 201, "{client}");
    let (id, secret) = (text(&client, "client_id").to_owned(), text(&client, "client_secret").to_owned());
    assert_eq!(
        (&client["client_secret_expires_at"], &client["scope"]),
        (&json!(0), &json!("openid results:read"))
    );
    assert_eq!(client["token_endpoint_auth_method"], "client_secret_basic");
    assert!(client.get("unknown_field").is_none());
    let dump = format!("{:?}", server.store.scan_all());
    assert!(!dump.contains(&secret));
    let browser = Browser::of(server.again(OPEN).await);
    let changes = [
        ("client_id", id.as_str()),
        ("redirect_uri", "https://portal.example/cb"),
        ("scope", "openid results:read"),
    ];
    let page = browser.authorize(&changes).await.text().await.unwrap();
    assert!(page.contains("Lab &lt;portal&gt;"), "{page}");
    let code = browser.code(&changes).await;
    let form = [
        ("grant_type", "authorization_code"),
        ("code", code.as_str()),
        ("redirect_uri", "https://portal.example/cb"),
        ("code_verifier", crate::support::VERIFIER),
    ];
    let (status, reply) = browser.server.ask(&id, &secret, &form).await;
    assert_eq!(status, 200, "{reply}");
    let form = [("grant_type", "refresh_token"), ("refresh_token", text(&reply, "refresh_token"))];
    assert_eq!(browser.server.ask(&id, &secret, &form).await.0, 200);
    let (status, reply) = browser.server.ask(&id, &secret, &[GRANT]).await;
    assert_eq!((status, text(&reply, "error")), (400, "unauthorized_client"));
    let off = browser.server.again(&OPEN.replace("registration = true\n", "")).await;
    assert_eq!(off.ask(&id, &secret, &form).await.0, 401, "switched off, it is nobody");
    assert_eq!(off.http.post(off.url("/oauth2/register")).send().await.unwrap().status(), 404);
    assert!(off.get("/.well-known/openid-configuration").await.get("registration_endpoint").is_none());
}

trait ScanAll {
    fn scan_all(&self) -> Vec<(String, bytes::Bytes)>;
}

impl ScanAll for septet_engine::store::Store {
    fn scan_all(&self) -> Vec<(String, bytes::Bytes)> {
        use septet_engine::host::{Keep as _, KeepFamily};
        self.scan(KeepFamily::Service, "")
    }
}

#[tokio::test]
async fn with_an_initial_access_token_only_its_holder_registers() {
    let server = Running::start(WITH_TOKEN).await;
    let metadata =
        json!({ "grant_types": ["client_credentials"], "token_endpoint_auth_method": "client_secret_post" });
    for token in [None, Some("wrong"), Some("")] {
        let (status, reply) = register(&server, token, &metadata).await;
        assert_eq!((status, text(&reply, "error")), (401, "invalid_token"), "{token:?}");
    }
    let (status, client) = register(&server, Some("come in"), &metadata).await;
    assert_eq!(status, 201, "{client}");
    assert_eq!(client["scope"], "results:read openid");
    let (id, secret) = (text(&client, "client_id"), text(&client, "client_secret"));
    let (status, reply) = server.ask(id, secret, &[GRANT]).await;
    assert_eq!((status, text(&reply, "scope")), (200, "results:read"));
    assert_eq!(server.ask(id, secret, &[GRANT, ("scope", "results:write")]).await.0, 400);
    for _ in 0..30 {
        register(&server, Some("wrong"), &metadata).await;
    }
    assert_eq!(register(&server, Some("come in"), &metadata).await.0, 503, "guessing is stopped");
    server.clock.advance(Duration::from_secs(60));
    assert_eq!(register(&server, Some("come in"), &metadata).await.0, 201);
    assert!(!server.events("oauth.registered").is_empty());
}

#[tokio::test]
async fn metadata_that_cannot_be_had_is_refused() {
    let server = Running::start(OPEN).await;
    for (name, value, error) in [
        ("redirect_uris", json!(["http://portal.example/cb"]), "invalid_redirect_uri"),
        ("redirect_uris", json!(["javascript:alert(1)"]), "invalid_redirect_uri"),
        ("redirect_uris", json!(["myapp:/cb"]), "invalid_redirect_uri"),
        ("redirect_uris", json!(["https://portal.example/#x"]), "invalid_redirect_uri"),
        ("redirect_uris", json!(["https://bank.example@evil.example/"]), "invalid_redirect_uri"),
        ("redirect_uris", json!(["https://portal.example/a b"]), "invalid_redirect_uri"),
        ("redirect_uris", json!(["/cb"]), "invalid_redirect_uri"),
        ("redirect_uris", json!([]), "invalid_redirect_uri"),
        ("redirect_uris", json!(vec!["https://a.example/"; 11]), "invalid_redirect_uri"),
        ("redirect_uris", json!("https://a.example/"), "invalid_client_metadata"),
        ("grant_types", json!(["client_credentials"]), "invalid_client_metadata"),
        ("grant_types", json!(["implicit"]), "invalid_client_metadata"),
        ("grant_types", json!(["refresh_token"]), "invalid_client_metadata"),
        ("response_types", json!(["token"]), "invalid_client_metadata"),
        ("token_endpoint_auth_method", json!("client_secret_jwt"), "invalid_client_metadata"),
        ("token_endpoint_auth_method", json!("private_key_jwt"), "invalid_client_metadata"),
        ("jwks_uri", json!("https://portal.example/jwks"), "invalid_client_metadata"),
        ("scope", json!("admin"), "invalid_client_metadata"),
        ("client_name", json!("x".repeat(101)), "invalid_client_metadata"),
        ("client_name", json!("good\u{202e}lave"), "invalid_client_metadata"),
        ("client_name", json!(7), "invalid_client_metadata"),
    ] {
        let mut metadata = app();
        metadata[name] = value.clone();
        let (status, reply) = register(&server, None, &metadata).await;
        assert_eq!((status, text(&reply, "error")), (400, error), "{name} {value}");
    }
    let (_, loopback) =
        register(&server, None, &json!({ "redirect_uris": ["http://127.0.0.1:8080/cb"] })).await;
    assert_eq!(loopback["grant_types"], json!(["authorization_code"]));
    let (_, public) = register(
        &server,
        None,
        &json!({ "redirect_uris": ["https://a.example/"], "token_endpoint_auth_method": "none" }),
    )
    .await;
    assert!(public.get("client_secret").is_none() && public.get("client_id").is_some());
    let text = server.http.post(server.url("/oauth2/register")).body("{}").send().await.unwrap();
    assert_eq!(text.status(), 400);
    let huge = json!({ "redirect_uris": ["https://a.example/"], "x": "y".repeat(100_000) });
    assert_eq!(register(&server, None, &huge).await.0, 413);
}

#[tokio::test]
async fn the_number_of_registered_clients_is_bounded_and_idle_ones_make_room() {
    let server = Running::start(WITH_TOKEN).await;
    let metadata = json!({ "grant_types": ["client_credentials"] });
    let (_, used) = register(&server, Some("come in"), &metadata).await;
    let (_, idle) = register(&server, Some("come in"), &metadata).await;
    let ask = async |server: &Running, client: &Value| {
        server.ask(text(client, "client_id"), text(client, "client_secret"), &[GRANT]).await.0
    };
    assert_eq!(ask(&server, &used).await, 200);
    let (status, full) = register(&server, Some("come in"), &metadata).await;
    assert_eq!((status, text(&full, "error")), (503, "temporarily_unavailable"));
    let server = server.again(WITH_TOKEN).await;
    server.clock.advance(Duration::from_secs(24 * 3600));
    let (status, new) = register(&server, Some("come in"), &metadata).await;
    assert_eq!(status, 201, "{new}");
    assert_eq!(
        (ask(&server, &used).await, ask(&server, &idle).await, ask(&server, &new).await),
        (200, 401, 200)
    );
    assert_eq!(kept(&server, "client"), 2);
}

#[tokio::test]
async fn a_client_nobody_has_checked_cannot_send_people_away_before_they_sign_in() {
    let browser = Browser::of(Running::start(OPEN).await);
    let (_, client) = register(&browser.server, None, &app()).await;
    let id = text(&client, "client_id");
    let known = [("client_id", id), ("redirect_uri", "https://portal.example/cb")];
    let response = browser.authorize(&[known[0], known[1], ("scope", "admin")]).await;
    assert_eq!((response.status().as_u16(), response.headers().get("location")), (400, None));
    let page = response.text().await.unwrap();
    assert!(page.contains("href=\"https://portal.example/cb?error=invalid_scope&amp;"), "{page}");
    let form = crate::support::Form::read(
        browser.authorize(&[known[0], known[1], ("scope", "openid")]).await.text().await.unwrap(),
    );
    let consent = browser.submit(&form, &[("username", "ada"), ("password", "pa55 word")]).await;
    let consent = crate::support::Form::read(consent.text().await.unwrap());
    assert!(
        consent.html.contains("Nobody here has checked it")
            && consent.html.contains("https://portal.example")
    );
    let answer = returned(&browser.submit(&consent, &[("decision", "deny")]).await);
    assert_eq!(answer["error"], "access_denied", "once signed in, it is an answer like any other");
}
