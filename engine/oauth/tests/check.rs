//! What `septet check` says about a client.

use septet_engine::config::settings::{OAuthClient, Secret};
use septet_oauth::check;

use crate::support::client;

fn problems(change: impl FnOnce(&mut OAuthClient)) -> Vec<String> {
    let mut client = client("https://vendor.example/token");
    change(&mut client);
    let found = check(&client);
    for (_, code, text) in &found {
        assert!(code.starts_with('S') && !text.contains("lab-secret"), "{code} {text}");
    }
    found.into_iter().map(|(key, _, text)| format!("{key}: {text}")).collect()
}

#[test]
fn the_clients_of_the_contract_have_no_problems() {
    assert_eq!(problems(|_| {}), [""; 0]);
    assert_eq!(
        problems(|client| client.token_url = Some("http://127.0.0.1:8791/oauth2/token".into())),
        [""; 0]
    );
    assert_eq!(
        problems(|client| (client.token_url, client.issuer) = (None, Some("https://i.example".into()))),
        [""; 0]
    );
}

#[test]
fn each_grant_and_each_authentication_needs_its_own_settings() {
    let found = problems(|client| {
        client.grant = "password".into();
        client.client_secret = None;
        client.token_url = None;
        client.request_body = "xml".into();
    });
    let expected = [
        "username: grant password needs username",
        "password: grant password needs password",
        "client_secret: client_auth basic needs client_secret",
        "request_body: request_body is form or json, not xml",
        "token_url: an OAuth client needs token_url or issuer",
    ];
    assert_eq!(found, expected);
    assert!(problems(|client| client.grant = "refresh_token".into())[0].contains("needs refresh_token"));
    assert!(problems(|client| client.grant = "jwt_bearer".into())[0].contains("needs private_key"));
    assert!(
        problems(|client| client.client_auth = "private_key_jwt".into())[0].contains("needs private_key")
    );
    assert!(problems(|client| client.client_auth = "tls".into())[0].contains("needs tls"));
    assert!(problems(|client| client.client_auth = "magic".into())[0].contains("not magic"));
}

#[test]
fn a_sign_in_needs_to_know_where_and_a_pin_is_a_digest() {
    let found = problems(|client| client.grant = "authorization_code".into());
    let text = "authorization_url: grant authorization_code without issuer needs authorization_url";
    assert_eq!(found, [text]);
    let plain = problems(|client| {
        client.grant = "authorization_code".into();
        client.authorization_url = Some("http://login.example/authorize".into());
    });
    assert!(
        plain[0].starts_with("authorization_url: authorization_url cannot be used: plain http"),
        "{plain:?}"
    );
    assert!(problems(|client| client.tls.pin = Some("sha256:00".into()))[0].contains("64 hex digits"));
}

#[test]
fn values_that_cannot_be_are_named() {
    let plain = problems(|client| client.token_url = Some("http://vendor.example/token".into()));
    assert_eq!(plain, ["token_url: token_url cannot be used: plain http is allowed on loopback only"]);
    let pointer = problems(|client| client.reply_access_token = "access_token".into());
    assert_eq!(pointer, ["reply: a JSON pointer starts with /: access_token"]);
    let algorithm = problems(|client| {
        client.client_auth = "private_key_jwt".into();
        client.private_key = Some(Secret::new("-----BEGIN NOTHING-----"));
        client.signing_alg = Some("none".into());
    });
    assert!(algorithm[0].starts_with("signing_alg: signing_alg is one of RS256"), "{algorithm:?}");
    let key = problems(|client| {
        client.client_auth = "private_key_jwt".into();
        client.private_key = Some(Secret::new("not a key"));
    });
    assert_eq!(key, ["private_key: private_key cannot be used: there is no PEM private key in it"]);
}
