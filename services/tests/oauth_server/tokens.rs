//! Client credentials, discovery, our own token manager and verifier against the server, and `check`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use septet_engine::clock::{Clock, ManualClock};
use septet_engine::store::{EventFilter, Store};
use septet_engine::token::TokenSource;
use septet_oauth::{Check, TokenManager};
use serde_json::{Value, json};

use crate::support::{CLIENTS, GRANT, Running, client, free_port, parts, problems};

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
    let events = server.store.events(&EventFilter::default(), None, 100).unwrap();
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
async fn every_selectable_algorithm_signs_what_the_verifier_accepts() {
    for algorithm in ["RS256", "RS384", "RS512", "ES256", "ES384", "PS256"] {
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
fn grants_fit_what_a_client_proves_itself_with() {
    let found = problems(
        r#"
scopes = { "results:write" = "Submit" }
registration = { grants = ["client_credentials", "codes"], scopes = ["else"], max_clients = 3 }
[services.auth.clients.a]
secret = "x"
grants = ["jwt_bearer"]
[services.auth.clients.b]
public = true
pkce = false
grants = ["client_credentials"]
[services.auth.clients.c]
public = true
secret = "x"
[services.auth.clients.d]
jwks = { keys = [{ kty = "EC", crv = "P-256", x = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", y = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0", alg = "ES256" }] }
signing_alg = "RS384"
[services.auth.clients.e]
secret = "x"
signing_alg = "HS256"
"#,
    );
    insta::assert_snapshot!(found.join("\n"), @r"
    12:28 S0502 client_credentials without token would give tokens to anybody
    12:50 S0502 there is no grant codes
    12:70 S0502 the server has no scope else
    13:1 S0501 client a needs jwks for grant jwt_bearer: its assertions are signed
    16:1 S0502 client b is public: it may use authorization_code and refresh_token only
    18:8 S0502 client b is public: nothing but PKCE protects its codes
    20:1 S0502 client c is public: it may use authorization_code and refresh_token only
    21:10 S0502 client c is public: it can keep neither secret nor key
    24:8 S0502 jwks holds no key that can verify a signature by RS384
    28:15 S0502 this is no asymmetric algorithm
    ");
    let elsewhere = crate::support::problems_of("0.0.0.0", "https://auth.example", CLIENTS);
    assert_eq!(
        elsewhere,
        ["8:10 S0502 off loopback the listener needs tls, or behind_proxy = true where a proxy ends TLS"]
    );
    let proxied = format!("behind_proxy = true\n{CLIENTS}");
    assert_eq!(crate::support::problems_of("0.0.0.0", "https://auth.example", &proxied), [""; 0]);
    let plain = crate::support::problems_of("127.0.0.1", "http://auth.example", CLIENTS);
    assert_eq!(plain, ["9:10 S0502 the issuer must be https; plain http is for loopback only"]);
}

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
