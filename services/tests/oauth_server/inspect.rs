//! Introspection, revocation, userinfo.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Browser, GRANT, Running, parts, settings, text};

const APP: (&str, &str) = ("app", "app-secret");
const OLD: (&str, &str) = ("old", "old-secret");

#[tokio::test]
async fn introspection_tells_a_resource_server_what_a_token_is_worth() {
    let browser = Browser::new().await;
    let tokens = browser.tokens(&[]).await;
    let access = text(&tokens, "access_token");
    let found = browser.server.introspect(OLD, access).await;
    let claims = parts(access).1;
    for name in ["sub", "aud", "iss", "exp", "iat", "scope", "client_id", "jti"] {
        assert_eq!(found[name], claims[name], "{name}");
    }
    assert_eq!((&found["active"], &found["username"]), (&json!(true), &json!("ada")));
    assert_eq!(found["token_type"], "Bearer");
    let refresh = text(&tokens, "refresh_token");
    assert_eq!(browser.server.introspect(APP, refresh).await["active"], true);
    assert_eq!(browser.server.introspect(OLD, refresh).await, json!({ "active": false }), "not theirs");
    for dead in ["", "x", "a.b.c", text(&tokens, "id_token"), &format!("{access}x")] {
        let form = [("token", dead)];
        let (status, reply) = browser.server.send("/oauth2/introspect", Some(OLD), &form).await;
        match dead {
            "" => assert_eq!((status, text(&reply, "error")), (400, "invalid_request")),
            _ => assert_eq!((status, reply), (200, json!({ "active": false })), "{dead}"),
        }
    }
    browser.server.clock.advance(Duration::from_secs(3600));
    assert_eq!(browser.server.introspect(OLD, access).await, json!({ "active": false }), "expired");
}

#[tokio::test]
async fn only_clients_that_prove_themselves_may_ask_or_revoke() {
    let public = "[services.auth.clients.phone]\npublic = true\ngrants = [\"authorization_code\"]\nredirect_uris = [\"https://p/\"]\n";
    let browser = Browser::of(Running::start(&format!("{}{public}", settings())).await);
    let tokens = browser.tokens(&[]).await;
    let access = text(&tokens, "access_token");
    for path in ["/oauth2/introspect", "/oauth2/revoke"] {
        for client in [None, Some(("app", "wrong")), Some(("nobody", "x"))] {
            let (status, reply) = browser.server.send(path, client, &[("token", access)]).await;
            assert_eq!((status, text(&reply, "error")), (401, "invalid_client"), "{path} {client:?}");
        }
    }
    let form = [("token", access), ("client_id", "phone")];
    assert_eq!(
        browser.server.send("/oauth2/introspect", None, &form).await.0,
        401,
        "a public client is anybody"
    );
    let (status, reply) = browser.server.send("/oauth2/revoke", None, &form).await;
    assert_eq!((status, text(&reply, "error")), (400, "unauthorized_client"), "not its token");
    let (status, reply) = browser.server.send("/oauth2/revoke", Some(OLD), &[("token", access)]).await;
    assert_eq!((status, text(&reply, "error")), (400, "unauthorized_client"));
    assert_eq!(browser.server.introspect(APP, access).await["active"], true);
    assert_eq!(
        browser.server.http.get(browser.server.url("/oauth2/revoke")).send().await.unwrap().status(),
        405
    );
}

#[tokio::test]
async fn a_revoked_access_token_is_inactive_also_after_a_restart() {
    let browser = Browser::new().await;
    let (first, second) = (browser.tokens(&[]).await, browser.tokens(&[]).await);
    let (first, second) = (text(&first, "access_token"), text(&second, "access_token"));
    let form = [("token", first), ("token_type_hint", "access_token")];
    assert_eq!(browser.server.send("/oauth2/revoke", Some(APP), &form).await.0, 200);
    assert_eq!(browser.server.send("/oauth2/revoke", Some(APP), &form).await.0, 200, "again is no error");
    assert_eq!(browser.server.send("/oauth2/revoke", Some(APP), &[("token", "unknown")]).await.0, 200);
    let browser = Browser::of(browser.server.again(&settings()).await);
    assert_eq!(browser.server.introspect(OLD, first).await["active"], false);
    assert_eq!(browser.server.introspect(OLD, second).await["active"], true);
    assert_eq!(browser.server.events("oauth.revoked").len(), 1);
    browser.server.clock.advance(Duration::from_secs(3600));
    let third = browser.tokens(&[]).await;
    browser.server.send("/oauth2/revoke", Some(APP), &[("token", text(&third, "access_token"))]).await;
    assert_eq!(kept(&browser.server, "revoked"), 1, "what has ended is forgotten");
}

#[tokio::test]
async fn revoking_a_refresh_token_ends_its_family_and_its_access_tokens() {
    let browser = Browser::new().await;
    let first = browser.tokens(&[]).await;
    let other = browser.tokens(&[]).await;
    let (status, second) = browser.refresh(text(&first, "refresh_token"), &[]).await;
    assert_eq!(status, 200);
    let form = [("token", text(&second, "refresh_token"))];
    let (status, reply) = browser.server.send("/oauth2/revoke", Some(OLD), &form).await;
    assert_eq!((status, text(&reply, "error")), (400, "unauthorized_client"));
    assert_eq!(browser.server.send("/oauth2/revoke", Some(APP), &form).await.0, 200);
    let browser = Browser::of(browser.server.again(&settings()).await);
    assert_eq!(browser.refresh(text(&second, "refresh_token"), &[]).await.0, 400);
    for dead in [&first, &second] {
        let access = text(dead, "access_token");
        assert_eq!(browser.server.introspect(APP, access).await["active"], false);
    }
    assert_eq!(browser.server.introspect(APP, text(&other, "access_token")).await["active"], true);
    assert_eq!(browser.refresh(text(&other, "refresh_token"), &[]).await.0, 200, "another sign-in goes on");
}

#[tokio::test]
async fn reuse_ends_access_tokens_too() {
    let browser = Browser::new().await;
    let first = browser.tokens(&[]).await;
    let (_, second) = browser.refresh(text(&first, "refresh_token"), &[]).await;
    assert_eq!(browser.refresh(text(&first, "refresh_token"), &[]).await.0, 400, "an old one");
    assert_eq!(browser.server.introspect(APP, text(&second, "access_token")).await["active"], false);
    let code = browser.code(&[]).await;
    let (_, reply) = browser.redeem(&code, &[]).await;
    browser.redeem(&code, &[]).await;
    assert_eq!(browser.server.introspect(APP, text(&reply, "access_token")).await["active"], false);
}

#[tokio::test]
async fn a_user_or_client_that_is_gone_leaves_no_active_tokens() {
    let browser = Browser::new().await;
    let tokens = browser.tokens(&[]).await;
    let without_ada = settings().replace("users.ada", "users.eve");
    let browser = Browser::of(browser.server.again(&without_ada).await);
    assert_eq!(browser.server.introspect(APP, text(&tokens, "access_token")).await["active"], false);
    assert_eq!(browser.refresh(text(&tokens, "refresh_token"), &[]).await.0, 400);
    let without_app = settings().replace("clients.app", "clients.new");
    let server = browser.server.again(&without_app).await;
    assert_eq!(server.introspect(OLD, text(&tokens, "access_token")).await["active"], false);
}

#[tokio::test]
async fn userinfo_names_the_person_who_allowed_openid() {
    let with_profile =
        settings().replace("scopes = { \"results:write\"", "scopes = { profile = \"\", \"results:write\"");
    let browser = Browser::of(Running::start(&with_profile).await);
    let url = browser.server.url("/oauth2/userinfo");
    let get = async |token: &str| {
        let response = browser.http.get(&url).bearer_auth(token).send().await.unwrap();
        let challenge =
            response.headers().get("www-authenticate").map(|text| text.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        (status, challenge.unwrap_or_default(), response.json::<Value>().await.unwrap_or(Value::Null))
    };
    let person = browser.tokens(&[("scope", "openid")]).await;
    let access = text(&person, "access_token");
    assert_eq!(get(access).await, (200, String::new(), json!({ "sub": "ada" })));
    let named = browser.tokens(&[("scope", "openid profile")]).await;
    assert_eq!(get(text(&named, "access_token")).await.2["preferred_username"], "ada");
    let posted = browser.http.post(&url).form(&[("access_token", access)]).send().await.unwrap();
    assert_eq!(posted.json::<Value>().await.unwrap()["sub"], "ada");
    let without = browser.tokens(&[("scope", "results:write")]).await;
    let (status, challenge, _) = get(text(&without, "access_token")).await;
    assert_eq!(status, 403);
    assert!(challenge.contains("insufficient_scope"), "{challenge}");
    let (status, challenge, _) = get(text(&person, "id_token")).await;
    assert_eq!(status, 401);
    assert!(challenge.contains("invalid_token"), "{challenge}");
    assert_eq!(browser.http.get(&url).send().await.unwrap().status(), 401);
    browser.server.send("/oauth2/revoke", Some(APP), &[("token", access)]).await;
    assert_eq!(get(access).await.0, 401);
}

#[tokio::test]
async fn our_own_resource_server_can_ask_instead_of_verifying() {
    use septet_engine::config::settings::Secret;
    let browser = Browser::new().await;
    let tokens = browser.tokens(&[]).await;
    let bearer = format!("Bearer {}", text(&tokens, "access_token"));
    let verifier = browser.server.verifier(|auth| {
        auth.introspection_url = Some(browser.server.url("/oauth2/introspect"));
        auth.client_id = Some("old".into());
        auth.client_secret = Some(Secret::new("old-secret"));
        auth.scope = Some("results:write".into());
    });
    assert_eq!(verifier.verify(Some(&bearer)).await.unwrap().subject(), Some("ada"));
    let (status, reply) = browser.server.ask("app", "app-secret", &[GRANT]).await;
    assert_eq!((status, text(&reply, "error")), (400, "unauthorized_client"));
}

/// How many values of a kind are kept.
pub(crate) fn kept(server: &Running, kind: &str) -> usize {
    use septet_engine::host::{Keep as _, KeepFamily};
    server.store.scan(KeepFamily::Service, &format!("auth/{kind}/")).len()
}
