//! What the manager says to the token endpoint, what it makes of odd answers, and how it finds the endpoint.

use axum::response::IntoResponse;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use septet_oauth::keys::{Algorithm, SigningKey};
use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn the_form_request_is_as_rfc_6749_writes_it() {
    let mut bench = Bench::new(60).await;
    bench.configure(|client| {
        client.client_id = "lab:1 ü".into();
        client.client_secret = Some(Secret::new("s+/ &=%"));
        client.audience = Some("api://x".into());
        client.resource = Some("https://r.example/".into());
        client.params.insert("any".into(), "extra".into());
        client.headers.insert("X-Key".into(), Secret::new("header-key"));
    });
    bench.token().await.unwrap();
    let seen = bench.server.seen().remove(0);
    assert_eq!(seen.path, "/oauth2/token");
    assert_eq!(seen.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(seen.header("accept"), Some("application/json"));
    assert_eq!(seen.header("x-key"), Some("header-key"));
    let basic = seen.header("authorization").and_then(|value| value.strip_prefix("Basic ")).unwrap();
    let pair = String::from_utf8(STANDARD.decode(basic).unwrap()).unwrap();
    assert_eq!(pair, "lab%3A1+%C3%BC:s%2B%2F+%26%3D%25");
    let form = seen.form();
    let expected = [
        ("any", "extra"),
        ("audience", "api://x"),
        ("grant_type", "client_credentials"),
        ("resource", "https://r.example/"),
        ("scope", "results:write"),
    ];
    assert_eq!(form.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_json_request_carries_the_credentials_in_its_body() {
    let mut bench = Bench::new(60).await;
    bench.configure(|client| {
        client.request_body = "json".into();
        client.client_auth = "post".into();
        client.audience = Some("api".into());
        client.params.insert("tenant".into(), 7.into());
    });
    bench.token().await.unwrap();
    let seen = bench.server.seen().remove(0);
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("authorization"), None);
    let expected = serde_json::json!({
        "grant_type": "client_credentials", "client_id": "lab", "client_secret": "lab-secret",
        "scope": "results:write", "audience": "api", "tenant": 7,
    });
    assert_eq!(seen.json(), expected);
}

#[tokio::test]
async fn a_public_client_sends_its_id_alone() {
    let mut bench = Bench::new(60).await;
    bench.configure(|client| {
        client.client_auth = "none".into();
        client.client_secret = None;
    });
    bench.token().await.unwrap();
    let form = bench.server.seen().remove(0).form();
    assert_eq!(form.get("client_id").unwrap(), "lab");
    assert!(!form.contains_key("client_secret"));
}

#[tokio::test]
async fn a_strange_reply_is_read_with_pointers() {
    let body = r#"{"data":{"token":"nested","ttl":"120"},"id_token":"x.y.z"}"#;
    let server = Server::start(move |_, _| (([("content-type", "text/html")]), body).into_response()).await;
    let bench = Bench::over(server, |client| {
        client.reply_access_token = "/data/token".into();
        client.reply_expires_in = "/data/ttl".into();
    });
    assert_eq!(bench.token().await.unwrap(), "nested");
    let expires_at = bench.manager.clients().remove(0).expires_at;
    assert_eq!(expires_at, Some("2026-11-22T08:02:00Z".parse().unwrap()));
}

#[tokio::test]
async fn the_password_grant_renews_with_its_refresh_token_and_falls_back_to_the_password() {
    let server = Server::start(|seen, n| {
        let form = seen.form();
        if n == 3 {
            return json(400, r#"{"error":"invalid_grant"}"#);
        }
        let refresh = format!(r#","refresh_token":"refresh-{n}""#);
        let refresh = if form["grant_type"] == "password" { refresh } else { String::new() };
        json(200, &format!(r#"{{"access_token":"token-{n}","expires_in":60{refresh}}}"#))
    })
    .await;
    let mut bench = Bench::over(server, |_| {});
    let password = |client: &mut septet_engine::config::settings::OAuthClient| {
        client.grant = "password".into();
        client.username = Some("ada".into());
        client.password = Some(Secret::new("pa55word"));
    };
    bench.configure(password);
    assert_eq!(bench.token().await.unwrap(), "token-1");
    bench.clock.advance(seconds(50));
    bench.restart(password);
    assert_eq!(bench.token().await.unwrap(), "token-2");
    bench.clock.advance(seconds(50));
    assert_eq!(bench.token().await.unwrap(), "token-4");
    let grants: Vec<_> = bench.server.seen().iter().map(|seen| seen.form()["grant_type"].clone()).collect();
    assert_eq!(grants, ["password", "refresh_token", "refresh_token", "password"]);
    assert_eq!(
        bench.server.seen()[2].form()["refresh_token"],
        "refresh-1",
        "not rotated: the old one goes on"
    );
}

fn claims(jwt: &str) -> (serde_json::Value, serde_json::Value) {
    let mut parts = jwt.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap());
    let mut part = || serde_json::from_slice(&parts.next().unwrap()).unwrap();
    (part(), part())
}

#[tokio::test]
async fn assertions_say_who_for_whom_and_are_fresh_each_time() {
    let key = SigningKey::generate(Algorithm::ES256).unwrap();
    let mut bench = Bench::new(60).await;
    bench.configure(|client| {
        client.grant = "jwt_bearer".into();
        client.client_auth = "private_key_jwt".into();
        client.client_secret = None;
        client.private_key = Some(Secret::new(key.pem()));
        client.key_id = Some("key-7".into());
        client.subject = Some("dr.who".into());
    });
    bench.token().await.unwrap();
    bench.clock.advance(seconds(60));
    bench.token().await.unwrap();
    let seen = bench.server.seen();
    let form = seen[0].form();
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:jwt-bearer");
    assert_eq!(form["client_assertion_type"], "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    let url = bench.server.url("/oauth2/token");
    let (header, grant) = claims(&form["assertion"]);
    assert_eq!((header["alg"].as_str(), header["kid"].as_str()), (Some("ES256"), Some("key-7")));
    assert_eq!(grant["iss"], "lab");
    assert_eq!(grant["sub"], "dr.who");
    assert_eq!(grant["aud"], *url);
    let (_, auth) = claims(&form["client_assertion"]);
    assert_eq!((&auth["iss"], &auth["sub"], &auth["aud"]), (&"lab".into(), &"lab".into(), &(*url).into()));
    assert!(auth["exp"].as_i64().unwrap() - auth["iat"].as_i64().unwrap() <= 300);
    let (_, second) = claims(&seen[1].form()["client_assertion"]);
    assert_ne!(auth["jti"], second["jti"]);
    let public = jsonwebtoken::DecodingKey::from_jwk(&serde_json::from_value(key.public()).unwrap()).unwrap();
    let (message, signature) = form["assertion"].rsplit_once('.').unwrap();
    let signed = jsonwebtoken::crypto::verify(signature, message.as_bytes(), &public, Algorithm::ES256);
    assert!(signed.unwrap());
}

#[tokio::test]
async fn an_issuer_is_discovered_at_first_use_and_must_be_who_it_says() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}/tenant", listener.local_addr().unwrap());
    let document = format!(r#"{{"issuer":"{issuer}","token_endpoint":"{issuer}/token-here"}}"#);
    let server = Server::on(listener, move |seen, n| match seen.path.as_str() {
        "/.well-known/oauth-authorization-server/tenant" => json(200, &document),
        "/tenant/token-here" => json(200, &format!(r#"{{"access_token":"token-{n}","expires_in":60}}"#)),
        _ => json(404, "{}"),
    });
    let mut bench = Bench::over(server, |client| {
        client.token_url = None;
        client.issuer = Some(issuer.clone());
    });
    assert_eq!(bench.manager.clients().remove(0).token_url, None);
    bench.token().await.unwrap();
    let paths: Vec<_> = bench.server.seen().into_iter().map(|seen| seen.path).collect();
    let openid = "/tenant/.well-known/openid-configuration";
    assert_eq!(paths, [openid, "/.well-known/oauth-authorization-server/tenant", "/tenant/token-here"]);
    assert_eq!(bench.manager.clients().remove(0).token_url, Some(format!("{issuer}/token-here")));
    bench.clock.advance(seconds(60));
    bench.token().await.unwrap();
    assert_eq!(bench.server.count(), 4, "the endpoint is remembered");

    bench.configure(|client| {
        client.token_url = None;
        client.issuer = Some(issuer.clone());
        client.expected_issuer = Some("https://login.example".into());
    });
    let fault = bench.token().await.unwrap_err();
    assert_eq!(fault.code, "issuer");
    assert!(fault.text.contains("https://login.example") && fault.text.contains(&issuer), "{}", fault.text);
}
