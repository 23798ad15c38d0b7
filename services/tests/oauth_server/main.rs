//! The authorization server over real sockets: what it answers to clients that know nothing of it, and our own
//! token manager and verifier against it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod code;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::tz::TimeZone;
use reqwest::Client;
use septet_engine::clock::{Clock, ManualClock};
use septet_engine::config::diagnostic::Severity;
use septet_engine::config::env::Env;
use septet_engine::config::load::load_text;
use septet_engine::config::settings::OAuthClient;
use septet_engine::host::{Accepted, Inbound, Intake, Refused, Runtime, ServiceContext};
use septet_engine::id::ItemName;
use septet_engine::record::MessageTypes;
use septet_engine::registry::{Factory, Registry};
use septet_engine::store::{EventFilter, Store};
use septet_engine::token::{NoTokens, TokenSource};
use septet_oauth::keys::{Algorithm, SigningKey};
use septet_oauth::{Auth, Check, TokenManager, Verifier};
use septet_services::oauth_server;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An authorization server brings nothing in.
#[derive(Debug)]
struct NoIntake;

#[async_trait]
impl Intake for NoIntake {
    async fn receive(&self, _: Inbound) -> Result<Accepted, Refused> {
        Err(Refused::Stopping)
    }

    fn accepting(&self) -> bool {
        true
    }

    async fn until_accepting(&self) {}
}

struct Running {
    issuer: String,
    store: Store,
    clock: Arc<ManualClock>,
    http: Client,
    stop: CancellationToken,
    task: JoinHandle<Result<(), septet_engine::host::HostFault>>,
}

const CLIENTS: &str = r#"
scopes = { "results:write" = "Submit results", "results:read" = "Read results" }
[services.auth.clients.lab]
secret = "lab-secret"
scopes = ["results:write"]
[services.auth.clients.other]
secret = "other secret+%"
audience = ["api://results", "api://orders"]
"#;

/// A port nobody listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn production(issuer: &str, port: u16, rest: &str) -> String {
    format!(
        r#"
[production]
name = "vendor"
[store]
retention = "7d"
[services.auth]
type = "oauth.server"
listen = "127.0.0.1:{port}"
issuer = "{issuer}"
{rest}"#
    )
}

/// The errors that `check` finds in a production with this server.
fn problems(rest: &str) -> Vec<String> {
    let text = production("http://127.0.0.1:8791", 8791, rest);
    let folder = std::path::Path::new("/p");
    let loaded = load_text(&text, folder, &Registry::of(vec![oauth_server::CLASS]), &Env::empty());
    loaded
        .diagnostics
        .iter()
        .filter(|found| found.severity == Severity::Error)
        .map(|found| format!("{}:{} {} {}", found.line, found.column, found.code, found.text))
        .collect()
}

impl Running {
    async fn start(rest: &str) -> Running {
        let clock = Arc::new(ManualClock::new("2026-11-22T08:00:00Z".parse().unwrap()));
        let store = Store::memory(clock.clone());
        let port = free_port();
        Running::over(store, clock, port, &format!("http://127.0.0.1:{port}"), rest).await
    }

    async fn over(store: Store, clock: Arc<ManualClock>, port: u16, issuer: &str, rest: &str) -> Running {
        let text = production(issuer, port, rest);
        let folder = std::path::Path::new("/p");
        let loaded = load_text(&text, folder, &Registry::of(vec![oauth_server::CLASS]), &Env::empty());
        let plan = loaded.plan.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
        let item = ItemName::new("auth");
        let Factory::Service(factory) = &plan.item(&item).unwrap().built.factory else {
            panic!("no service")
        };
        let stop = CancellationToken::new();
        let runtime = Runtime {
            production: "vendor".into(),
            clock: clock.clone(),
            timezone: TimeZone::UTC,
            types: MessageTypes::default(),
            vault: store.vault().clone(),
            tokens: Arc::new(NoTokens),
            epoch: store.epoch(),
            keep: Arc::new(store.clone()),
        };
        let cx = ServiceContext { item, runtime, stop: stop.clone(), intake: Arc::new(NoIntake) };
        let mut service = factory.create();
        service.bind(&cx).await.unwrap();
        let task = tokio::spawn(service.run(cx));
        let http = Client::builder().no_proxy().build().unwrap();
        Running { issuer: issuer.to_owned(), store, clock, http, stop, task }
    }

    async fn stop(self) -> (Store, Arc<ManualClock>) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        (self.store, self.clock)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.issuer)
    }

    /// A token request with basic authentication.
    async fn ask(&self, id: &str, secret: &str, form: &[(&str, &str)]) -> (u16, Value) {
        let request = self.http.post(self.url("/oauth2/token")).basic_auth(id, Some(secret)).form(form);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn post(&self, form: &[(&str, &str)]) -> (u16, Value) {
        let response = self.http.post(self.url("/oauth2/token")).form(form).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn get(&self, path: &str) -> Value {
        self.http.get(self.url(path)).send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
    }

    fn verifier(&self, change: impl FnOnce(&mut Auth)) -> Verifier {
        let mut auth = Auth { issuer: Some(self.issuer.clone()), ..Auth::default() };
        change(&mut auth);
        Verifier::new(auth, self.clock.clone())
    }
}

fn parts(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap());
    let mut part = || serde_json::from_slice(&parts.next().unwrap()).unwrap();
    (part(), part())
}

const GRANT: (&str, &str) = ("grant_type", "client_credentials");

// === tokens ===

#[tokio::test]
async fn a_client_gets_a_signed_access_token_as_rfc_9068_describes_it() {
    let server = Running::start(CLIENTS).await;
    let request = server.http.post(server.url("/oauth2/token")).basic_auth("lab", Some("lab-secret"));
    let response = request.form(&[GRANT, ("scope", "results:write")]).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers().get("cache-control").unwrap(), "no-store");
    let reply: Value = response.json().await.unwrap();
    assert_eq!((&reply["token_type"], &reply["expires_in"]), (&json!("Bearer"), &json!(3600)));
    assert_eq!(reply["scope"], "results:write");
    let (header, claims) = parts(reply["access_token"].as_str().unwrap());
    assert_eq!((&header["typ"], &header["alg"]), (&json!("at+jwt"), &json!("RS256")));
    let now = server.clock.now().as_second();
    assert_eq!(claims["iss"], *server.issuer);
    assert_eq!((&claims["sub"], &claims["client_id"]), (&json!("lab"), &json!("lab")));
    assert_eq!((&claims["iat"], &claims["exp"]), (&json!(now), &json!(now + 3600)));
    assert_eq!((&claims["aud"], &claims["scope"]), (&json!(server.issuer), &json!("results:write")));
    let keys = server.get("/oauth2/jwks").await;
    assert_eq!(keys["keys"][0]["kid"], header["kid"]);
    assert!(keys["keys"][0].get("d").is_none());
    let (_, again) = server.ask("lab", "lab-secret", &[GRANT]).await;
    assert_ne!(parts(again["access_token"].as_str().unwrap()).1["jti"], claims["jti"]);
    assert_eq!(again["scope"], "results:write", "one who asks for no scope gets those it may have");
}

#[tokio::test]
async fn clients_authenticate_by_header_body_or_json_but_by_one_at_a_time() {
    let server = Running::start(CLIENTS).await;
    assert_eq!(server.ask("other", "other secret+%", &[GRANT]).await.0, 200, "not encoded, as curl sends it");
    assert_eq!(
        server.ask("other", "other+secret%2B%25", &[GRANT]).await.0,
        200,
        "encoded, as RFC 6749 has it"
    );
    let body = [GRANT, ("client_id", "lab"), ("client_secret", "lab-secret")];
    assert_eq!(server.post(&body).await.0, 200);
    let object =
        json!({ "grant_type": "client_credentials", "client_id": "lab", "client_secret": "lab-secret" });
    let response = server.http.post(server.url("/oauth2/token")).json(&object).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let (status, both) = server.ask("lab", "lab-secret", &body).await;
    assert_eq!((status, &both["error"]), (400, &json!("invalid_request")));
}

#[tokio::test]
async fn refusals_are_those_of_rfc_6749() {
    let server = Running::start(CLIENTS).await;
    for (id, secret) in [("lab", "wrong"), ("lab", ""), ("nobody", "lab-secret"), ("other", "lab-secret")] {
        let (status, reply) = server.ask(id, secret, &[GRANT]).await;
        assert_eq!((status, &reply["error"]), (401, &json!("invalid_client")), "{id}");
    }
    let request =
        server.http.post(server.url("/oauth2/token")).basic_auth("lab", Some("wrong")).form(&[GRANT]);
    assert!(
        request
            .send()
            .await
            .unwrap()
            .headers()
            .get("www-authenticate")
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("Basic ")
    );
    for (form, status, error) in [
        (vec![GRANT], 401, "invalid_client"),
        (vec![GRANT, ("client_id", "lab")], 401, "invalid_client"),
        (vec![GRANT, ("client_id", "lab"), ("client_secret", "x")], 401, "invalid_client"),
    ] {
        let (found, reply) = server.post(&form).await;
        assert_eq!((found, &reply["error"]), (status, &json!(error)));
    }
    for (form, error) in [
        (vec![], "invalid_request"),
        (vec![GRANT, GRANT], "invalid_request"),
        (vec![("grant_type", "password")], "unsupported_grant_type"),
        (vec![GRANT, ("scope", "results:read")], "invalid_scope"),
        (vec![GRANT, ("scope", "results:write admin")], "invalid_scope"),
        (vec![GRANT, ("scope", "results:write\u{7}")], "invalid_scope"),
    ] {
        let (status, reply) = server.ask("lab", "lab-secret", &form).await;
        assert_eq!((status, &reply["error"]), (400, &json!(error)), "{form:?}");
    }
    let get = server.http.get(server.url("/oauth2/token")).send().await.unwrap();
    assert_eq!(get.status(), 405);
    let text = server.http.post(server.url("/oauth2/token")).body("grant_type=client_credentials");
    assert_eq!(text.send().await.unwrap().status(), 400);
    let huge = server.http.post(server.url("/oauth2/token")).form(&[("scope", "x".repeat(100_000))]);
    assert_eq!(huge.send().await.unwrap().status(), 413);
    let events = server.store.events(&EventFilter::default(), None, 100);
    assert!(
        events.entries.iter().any(|event| event.kind == "auth.refused" && event.text == "invalid_client")
    );
    assert!(!format!("{:?}", events.entries).contains("lab-secret"));
}

#[tokio::test]
async fn an_audience_is_given_as_asked_where_the_client_may_have_it() {
    let server = Running::start(CLIENTS).await;
    let audience = |reply: &Value| parts(reply["access_token"].as_str().unwrap()).1["aud"].clone();
    let (_, any) = server.ask("lab", "lab-secret", &[GRANT, ("audience", "api")]).await;
    assert_eq!(audience(&any), "api");
    let (_, two) =
        server.ask("lab", "lab-secret", &[GRANT, ("resource", "https://a"), ("resource", "https://b")]).await;
    assert_eq!(audience(&two), json!(["https://a", "https://b"]));
    let (_, first) = server.ask("other", "other secret+%", &[GRANT]).await;
    assert_eq!(audience(&first), "api://results");
    let (status, refused) = server.ask("other", "other secret+%", &[GRANT, ("audience", "api://else")]).await;
    assert_eq!((status, &refused["error"]), (400, &json!("invalid_target")));
}

#[tokio::test]
async fn a_client_with_keys_signs_who_it_is_and_each_assertion_counts_once() {
    let key = SigningKey::generate(Algorithm::ES384).unwrap();
    let jwks = json!({ "keys": [key.public()] }).to_string();
    let server = Running::start(&format!("[services.auth.clients.signer]\njwks = '{jwks}'\n")).await;
    let now = server.clock.now().as_second();
    let token_url = server.url("/oauth2/token");
    let good = json!({ "iss": "signer", "sub": "signer", "aud": token_url, "exp": now + 60, "jti": "1" });
    let kind = ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    let ask = async |claims: &Value, key: &SigningKey| {
        let assertion = key.sign("JWT", claims).unwrap();
        server.post(&[GRANT, kind, ("client_assertion", &assertion)]).await
    };
    assert_eq!(ask(&good, &key).await.0, 200);
    let (status, again) = ask(&good, &key).await;
    assert_eq!((status, &again["error"]), (401, &json!("invalid_client")), "the same id a second time");
    for (name, value) in [
        ("aud", json!("https://other.example")),
        ("sub", json!("lab")),
        ("exp", json!(now - 60)),
        ("exp", json!(now + 7200)),
        ("nbf", json!(now + 120)),
        ("jti", Value::Null),
        ("iss", json!("nobody")),
    ] {
        let mut claims = good.clone();
        claims["jti"] = json!(format!("{name}{value}"));
        claims[name] = value;
        assert_eq!(ask(&claims, &key).await.0, 401, "{claims}");
    }
    let mut fresh = good.clone();
    fresh["jti"] = json!("2");
    assert_eq!(ask(&fresh, &SigningKey::generate(Algorithm::ES384).unwrap()).await.0, 401, "another key");
    fresh["aud"] = json!([server.issuer]);
    assert_eq!(ask(&fresh, &key).await.0, 200);
}

// === discovery and keys ===

#[tokio::test]
async fn both_discovery_documents_name_endpoints_below_the_issuer() {
    let server = Running::start(CLIENTS).await;
    for path in ["/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"] {
        let document = server.get(path).await;
        assert_eq!(document["issuer"], *server.issuer);
        assert_eq!(document["token_endpoint"], server.url("/oauth2/token"));
        assert_eq!(document["jwks_uri"], server.url("/oauth2/jwks"));
        assert_eq!(document["scopes_supported"], json!(["results:write", "results:read"]));
    }
}

#[tokio::test]
async fn an_issuer_with_a_path_is_found_by_a_client_that_discovers_it() {
    let clock = Arc::new(ManualClock::new("2026-11-22T08:00:00Z".parse().unwrap()));
    let port = free_port();
    let issuer = format!("http://127.0.0.1:{port}/hospital/lab");
    let server = Running::over(Store::memory(clock.clone()), clock, port, &issuer, CLIENTS).await;
    let client = client(|client| client.issuer = Some(issuer.clone()));
    let manager = TokenManager::new(Arc::new(server.store.clone()), server.clock.clone());
    manager.update([Arc::new(client)], &BTreeMap::new());
    let token = manager.token("vendor", "submit").await.unwrap();
    let verified = server.verifier(|_| {}).verify(Some(&format!("Bearer {}", *token.secret))).await;
    assert_eq!(verified.unwrap().subject(), Some("lab"));
    assert_eq!(manager.clients()[0].token_url, Some(format!("{issuer}/oauth2/token")));
}

#[tokio::test]
async fn keys_survive_a_restart_and_another_algorithm_keeps_the_old_key_published() {
    let server = Running::start(CLIENTS).await;
    let before = server.get("/oauth2/jwks").await;
    let (_, reply) = server.ask("lab", "lab-secret", &[GRANT]).await;
    let token = reply["access_token"].as_str().unwrap().to_owned();
    let issuer = server.issuer.clone();
    let port = issuer.rsplit(':').next().unwrap().parse().unwrap();
    let (store, clock) = server.stop().await;
    let server = Running::over(store, clock, port, &issuer, CLIENTS).await;
    assert_eq!(server.get("/oauth2/jwks").await, before);
    let (store, clock) = server.stop().await;
    let server =
        Running::over(store, clock, port, &issuer, &format!("signing_alg = \"ES256\"\n{CLIENTS}")).await;
    let after = server.get("/oauth2/jwks").await;
    assert_eq!((&after["keys"][0]["alg"], &after["keys"][1]), (&json!("ES256"), &before["keys"][0]));
    let (_, reply) = server.ask("lab", "lab-secret", &[GRANT]).await;
    let newer = reply["access_token"].as_str().unwrap();
    let verifier = server.verifier(|_| {});
    for token in [newer, &token] {
        assert!(verifier.verify(Some(&format!("Bearer {token}"))).await.is_ok());
    }
}

#[tokio::test]
async fn every_selectable_algorithm_signs_what_the_verifier_accepts() {
    for algorithm in ["RS384", "RS512", "ES256", "ES384", "PS256"] {
        let server = Running::start(&format!("signing_alg = \"{algorithm}\"\n{CLIENTS}")).await;
        let (_, reply) = server.ask("lab", "lab-secret", &[GRANT]).await;
        let token = reply["access_token"].as_str().unwrap();
        assert_eq!(parts(token).0["alg"], algorithm);
        assert!(
            server.verifier(|_| {}).verify(Some(&format!("Bearer {token}"))).await.is_ok(),
            "{algorithm}"
        );
    }
}

// === our own client and resource server ===

fn client(change: impl FnOnce(&mut OAuthClient)) -> OAuthClient {
    let text = r#"
[production]
name = "lab"
[oauth.vendor]
issuer = "http://127.0.0.1:1"
grant = "client_credentials"
client_id = "lab"
client_secret = "lab-secret"
scope = "results:write"
"#;
    let loaded = load_text(text, std::path::Path::new("/p"), &Registry::of(Vec::new()), &Env::empty());
    let plan = loaded.plan.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
    let mut client = plan.oauth.get("vendor").unwrap().as_ref().clone();
    change(&mut client);
    client
}

#[tokio::test]
async fn the_main_job_gets_its_token_renews_it_and_the_resource_server_judges_it() {
    let server = Running::start(&format!("access_token_lifetime = \"30s\"\n{CLIENTS}")).await;
    let client = client(|client| {
        client.issuer = None;
        client.token_url = Some(server.url("/oauth2/token"));
    });
    let manager = TokenManager::new(Arc::new(server.store.clone()), server.clock.clone());
    manager.update([Arc::new(client)], &BTreeMap::new());
    let verifier = server.verifier(|auth| auth.scope = Some("results:write".into()));
    let stricter = server.verifier(|auth| auth.scope = Some("results:write results:read".into()));
    let first = manager.token("vendor", "submit").await.unwrap();
    let bearer = format!("Bearer {}", *first.secret);
    assert!(verifier.verify(Some(&bearer)).await.is_ok());
    assert_eq!(stricter.verify(Some(&bearer)).await.unwrap_err().status, 403);
    server.clock.advance(Duration::from_secs(23));
    let second = manager.token("vendor", "submit").await.unwrap();
    assert_ne!(*first.secret, *second.secret);
    server.clock.advance(Duration::from_secs(67));
    assert_eq!(verifier.verify(Some(&bearer)).await.unwrap_err().check, Check::Exp);
    assert!(verifier.verify(Some(&format!("Bearer {}", *second.secret))).await.is_ok());
}

// === check ===

#[test]
fn the_example_has_no_problems_and_misuse_is_named_in_its_place() {
    assert_eq!(problems(CLIENTS), [""; 0]);
    let found = problems(
        r#"
signing_alg = "RS265"
access_token_lifetime = "0s"
scopes = { "results:write" = "Submit" }
[services.auth.clients.a]
[services.auth.clients.b]
secret = "x"
jwks = "{}"
[services.auth.clients.c]
secret = "x"
grants = ["client_credential", "authorization_code"]
scopes = ["results:wrote"]
[services.auth.clients.d]
secret = "x"
grants = ["authorization_code"]
redirect_uris = ["/callback", "http://app.example/", "https://app.example/#x", "http://localhost:1/cb"]
[services.auth.users.ada]
[services.auth.users.bob]
password_hash = "letmein"
"#,
    );
    insta::assert_snapshot!(found.join("\n"), @r"
    11:15 S0502 signing_alg is one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384
    12:25 S0502 access_token_lifetime must be at least one second
    14:1 S0501 client a needs secret or jwks
    15:1 S0502 client b has secret and jwks; give one of them
    18:1 S0501 client c needs redirect_uris for grant authorization_code
    20:11 S0502 there is no grant client_credential
    21:11 S0502 the server has no scope results:wrote
    25:18 S0502 a redirect URI is absolute, such as https://app.example/callback
    25:31 S0502 a redirect URI must be https; plain http is for loopback only
    25:54 S0502 a redirect URI has no fragment (RFC 6749 §3.1.2)
    26:1 S0501 user ada needs either password or password_hash
    28:17 S0502 this is no password hash
    ");
}
