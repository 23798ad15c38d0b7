//! Who may call: bearer tokens, SMART scopes, tokens bound to a TLS certificate, and TLS itself.

use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Certificate, Client, Identity};
use septet_engine::clock::Clock as _;
use septet_oauth::keys::{SigningKey, algorithm};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{bench, service, told};
use crate::hl7_common::testing::Desk;

/// An authorization server that publishes one key.
async fn issuer() -> (String, SigningKey) {
    let key = SigningKey::generate(algorithm("RS256").unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let (keys, name) = (json!({ "keys": [key.public()] }), issuer.clone());
    let discovery = json!({ "issuer": name, "jwks_uri": format!("{name}/keys") });
    let router = axum::Router::new()
        .route("/.well-known/openid-configuration", get(move || async move { axum::Json(discovery) }))
        .route("/keys", get(move || async move { axum::Json(keys) }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (issuer, key)
}

#[tokio::test]
async fn callers_need_a_token_of_the_issuer_with_the_scope() {
    let (issuer, key) = issuer().await;
    let auth = json!({ "issuer": issuer, "audience": ["lab"], "scope": "results:write" });
    let bench = bench(json!({ "auth": auth, "message": "Result" })).await;
    let now = bench.desk.clock.now().as_second();
    let token = |aud: &str, scope: &str, exp: i64| {
        let claims = json!({ "iss": issuer, "aud": aud, "scope": scope, "exp": exp, "sub": "lab" });
        key.sign("at+jwt", &claims).unwrap()
    };
    let good = token("lab", "results:write", now + 60);
    let body = r#"{"accession":"A1"}"#;
    let post = || bench.post("/", "application/json", body);

    assert_eq!(told(post().bearer_auth(&good)).await.status, 202);
    for (token, status, check) in [
        (token("other", "results:write", now + 60), 401, "aud"),
        (token("lab", "results:write", now - 600), 401, "exp"),
        (token("lab", "other", now + 60), 403, "scope"),
        (good.replace('.', "x"), 401, "malformed"),
    ] {
        let told = told(post().bearer_auth(&token)).await;
        assert_eq!(told.status, status, "{check}");
        assert!(told.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
        assert_eq!(bench.desk.events().last().unwrap(), &format!("auth.refused: {check}"));
    }
    let missing = told(post()).await;
    assert_eq!((missing.status, missing.headers.contains_key("www-authenticate")), (401, true));
    assert_eq!(bench.desk.events().last().unwrap(), "auth.refused: missing");
    assert_eq!(bench.desk.taken().len(), 1, "nothing of a refused request is stored");

    // RFC 6750 §2.2 and §2.3; the token is no part of the message.
    let form = format!("accession=A2&access_token={good}");
    assert_eq!(told(bench.post("/", "application/x-www-form-urlencoded", form)).await.status, 202);
    let query = format!("/?access_token={good}");
    assert_eq!(told(bench.post(&query, "application/json", body)).await.status, 202);
    let twice = told(bench.post(&query, "application/json", body).bearer_auth(&good)).await;
    assert_eq!(twice.status, 400);
    assert!(twice.headers["www-authenticate"].to_str().unwrap().contains("invalid_request"));
    assert_eq!(bench.desk.events().last().unwrap(), "auth.refused: several");
    assert!(bench.desk.taken().iter().all(|taken| !taken.body.as_text().unwrap().contains("access_token")));
    bench.end().await;
}

#[tokio::test]
async fn o_12_with_smart_the_request_decides_which_scope_is_needed() {
    let (issuer, key) = issuer().await;
    let auth = json!({ "issuer": issuer, "smart": true });
    let methods = ["GET", "POST", "PUT", "DELETE"];
    let bench = bench(json!({ "auth": auth, "path": "/fhir", "methods": methods })).await;
    let exp = bench.desk.clock.now().as_second() + 60;
    let scope = "system/Observation.rs?category=laboratory user/Patient.read system/Claim.write";
    let token = key.sign("at+jwt", &json!({ "iss": issuer, "exp": exp, "scope": scope })).unwrap();
    for (request, status) in [
        ("GET /fhir/Observation?category=laboratory", 202),
        ("GET /fhir/Observation?category=imaging", 403),
        ("GET /fhir/Observation", 403),
        ("POST /fhir/Observation", 403),
        ("GET /fhir/Patient/1", 202),
        ("GET /fhir/Patient?name=x", 202),
        ("PUT /fhir/Patient/1", 403),
        ("DELETE /fhir/Claim/1", 202),
        ("GET /fhir/Claim/1", 403),
        ("GET /fhir/metadata", 202),
        ("POST /fhir", 403),
        ("GET /fhir/Patient/1/$everything", 403),
    ] {
        let (method, path) = request.split_once(' ').unwrap();
        let request = Client::new().request(method.parse().unwrap(), bench.url(path));
        assert_eq!(told(request.bearer_auth(&token)).await.status, status, "{method} {path}");
    }
    bench.end().await;
}

#[tokio::test]
async fn a_bound_token_is_good_over_the_connection_of_its_certificate_only() {
    let (issuer, key) = issuer().await;
    let tls = json!({ "cert": pem("server.pem"), "key": pem("server.key"), "client_ca": pem("ca.pem") });
    let auth = json!({ "issuer": issuer, "certificate_bound": true });
    let bench = bench(json!({ "tls": tls, "auth": auth })).await;
    let exp = bench.desk.clock.now().as_second() + 60;
    let token = |cnf: Value| {
        let mut claims = json!({ "iss": issuer, "exp": exp });
        claims.as_object_mut().unwrap().extend(cnf.as_object().unwrap().clone());
        key.sign("at+jwt", &claims).unwrap()
    };
    let thumbprint = |name: &str| {
        use rustls::pki_types::pem::PemObject as _;
        let certificate = rustls::pki_types::CertificateDer::from_pem_file(pem(name)).unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &certificate);
        json!({ "cnf": { "x5t#S256": URL_SAFE_NO_PAD.encode(digest) } })
    };
    let client = client_with("client");
    let url = format!("https://localhost:{}/", bench.address.port());
    let post = |token: String| told(client.post(&url).body("x").bearer_auth(token));
    assert_eq!(post(token(thumbprint("client.pem"))).await.status, 202);
    for (what, wrong) in [("another's", thumbprint("server.pem")), ("unbound", json!({}))] {
        let refused = post(token(wrong)).await;
        assert_eq!(refused.status, 401, "{what}");
        assert_eq!(bench.desk.events().last().unwrap(), "auth.refused: cnf");
    }
    assert_eq!(bench.desk.taken().len(), 1);
    bench.end().await;
}

/// A client that trusts the tests' authority and has this certificate of its.
fn client_with(name: &str) -> Client {
    let ca = Certificate::from_pem(&std::fs::read(pem("ca.pem")).unwrap()).unwrap();
    let mut identity = std::fs::read(pem(&format!("{name}.pem"))).unwrap();
    identity.extend(std::fs::read(pem(&format!("{name}.key"))).unwrap());
    let identity = Identity::from_pem(&identity).unwrap();
    Client::builder().tls_certs_only([ca]).identity(identity).build().unwrap()
}

// === TLS ===

/// A file of the tests' own certificates.
fn pem(name: &str) -> String {
    format!("{}/../tests/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn a_listener_with_tls_may_ask_for_client_certificates() {
    let tls = json!({ "cert": pem("server.pem"), "key": pem("server.key"), "client_ca": pem("ca.pem") });
    let bench = bench(json!({ "tls": tls })).await;
    let url = format!("https://localhost:{}/", bench.address.port());
    let ca = reqwest::Certificate::from_pem(&std::fs::read(pem("ca.pem")).unwrap()).unwrap();
    let known = client_with("client");
    assert_eq!(known.post(&url).body("x").send().await.unwrap().status(), 202);
    let stranger = Client::builder().tls_certs_only([ca]).build().unwrap();
    assert!(stranger.post(&url).body("x").send().await.is_err());
    let plain = Client::new().post(bench.url("/")).body("x").send().await;
    assert!(plain.is_err());
    assert_eq!(bench.desk.taken().len(), 1);
    bench.end().await;
}

#[tokio::test]
async fn a_listener_takes_up_new_certificates_and_keeps_the_old_ones_when_they_are_broken() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::copy(pem("renamed.pem"), file("cert.pem")).unwrap();
    std::fs::copy(pem("renamed.key"), file("key.pem")).unwrap();
    let bench = bench(json!({ "tls": { "cert": file("cert.pem"), "key": file("key.pem") } })).await;
    let url = format!("https://localhost:{}/", bench.address.port());
    let ca = reqwest::Certificate::from_pem(&std::fs::read(pem("ca.pem")).unwrap()).unwrap();
    let post = || async {
        let client = Client::builder().tls_certs_only([ca.clone()]).build().unwrap();
        client.post(&url).body("x").send().await.map(|response| response.status().as_u16())
    };
    assert!(post().await.is_err(), "that certificate is for another name");
    std::fs::copy(pem("server.pem"), file("cert.pem")).unwrap();
    std::fs::copy(pem("server.key"), file("key.pem")).unwrap();
    assert_eq!(post().await.unwrap(), 202);
    std::fs::write(file("cert.pem"), "broken").unwrap();
    assert_eq!(post().await.unwrap(), 202);
    assert_eq!(bench.desk.events().len(), 1);
    bench.end().await;
}

#[tokio::test]
async fn certificates_that_are_missing_or_do_not_fit_are_faults_of_the_environment() {
    for (cert, key, names) in [
        ("none.pem", "server.key", "none.pem"),
        ("server.pem", "renamed.key", "do not belong together"),
        ("server.key", "server.key", "no usable certificate"),
    ] {
        let more = json!({ "tls": { "cert": pem(cert), "key": pem(key) } });
        let fault = service(&Desk::new(), "api", more).await.err().unwrap();
        assert_eq!(fault.code, "certificate");
        assert!(fault.text.contains(names), "{fault}");
    }
}
