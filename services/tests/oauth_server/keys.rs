//! Signing keys: kept over restarts, replaced by order.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{CLIENTS, GRANT, Running, parts};

/// The key ids that are published.
async fn published(server: &Running) -> Vec<String> {
    let set = server.get("/oauth2/jwks").await;
    set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

async fn token(server: &Running) -> String {
    let (_, reply) = server.ask("lab", "lab-secret", &[GRANT]).await;
    reply["access_token"].as_str().unwrap().to_owned()
}

fn key_id(token: &str) -> String {
    parts(token).0["kid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn keys_survive_a_restart_and_another_algorithm_keeps_the_old_key_published() {
    let server = Running::start(CLIENTS).await;
    let before = server.get("/oauth2/jwks").await;
    let (_, reply) = server.ask("lab", "lab-secret", &[GRANT]).await;
    let token = reply["access_token"].as_str().unwrap().to_owned();
    let server = server.again(CLIENTS).await;
    assert_eq!(server.get("/oauth2/jwks").await, before);
    let server = server.again(&format!("signing_alg = \"ES256\"\n{CLIENTS}")).await;
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
async fn a_rotation_publishes_the_new_key_and_keeps_the_old_one_until_its_tokens_have_ended() {
    let server = Running::start(&format!("signing_alg = \"ES256\"\n{CLIENTS}")).await;
    let (before, old) = (published(&server).await, token(&server).await);
    let verifier = server.verifier(|_| {});
    assert!(verifier.verify(Some(&format!("Bearer {old}"))).await.is_ok());
    server.clock.advance(Duration::from_secs(600));
    let summary = server.rotate().await.unwrap();
    assert_eq!(summary["old"][0]["key_id"], before[0]);
    assert_eq!(published(&server).await, [summary["key_id"].as_str().unwrap(), before[0].as_str()]);
    let new = token(&server).await;
    assert_eq!(key_id(&new), summary["key_id"]);
    for token in [&old, &new] {
        assert!(
            verifier.verify(Some(&format!("Bearer {token}"))).await.is_ok(),
            "also with keys fetched before"
        );
    }
    let server = server.again(&format!("signing_alg = \"ES256\"\n{CLIENTS}")).await;
    assert_eq!(published(&server).await.len(), 2, "both survive a restart");
    assert_eq!(key_id(&token(&server).await), summary["key_id"]);
    // The last token of the old key could have been signed a moment before the rotation.
    server.clock.advance(Duration::from_secs(3600));
    assert_eq!(published(&server).await.len(), 2);
    server.clock.advance(Duration::from_secs(121));
    assert_eq!(published(&server).await, [summary["key_id"].as_str().unwrap()]);
    let event = &server.events("oauth.rotated")[0];
    assert_eq!((event.who.as_deref(), event.item.as_ref().unwrap().as_str()), (Some("root"), "auth"));
    assert!(!format!("{event:?}{summary}").contains("PRIVATE"));
}

#[tokio::test]
async fn a_shorter_lifetime_after_a_restart_does_not_cut_older_tokens_off() {
    let server =
        Running::start(&format!("signing_alg = \"ES256\"\naccess_token_lifetime = \"8h\"\n{CLIENTS}")).await;
    let old = token(&server).await;
    let short = format!("signing_alg = \"ES256\"\naccess_token_lifetime = \"1m\"\n{CLIENTS}");
    let server = server.again(&short).await;
    server.rotate().await.unwrap();
    server.clock.advance(Duration::from_secs(8 * 3600 - 1));
    assert!(server.verifier(|_| {}).verify(Some(&format!("Bearer {old}"))).await.is_ok());
}

#[tokio::test]
async fn a_key_set_stays_small_and_only_a_running_server_takes_orders() {
    let server = Running::start(&format!("signing_alg = \"ES256\"\n{CLIENTS}")).await;
    for _ in 0..20 {
        server.rotate().await.unwrap();
    }
    let refused = server.rotate().await.unwrap_err();
    assert!(refused.text.contains("still needed"), "{refused}");
    assert_eq!(published(&server).await.len(), 21);
    server.clock.advance(Duration::from_secs(3600 + 121));
    server.rotate().await.unwrap();
    assert_eq!(published(&server).await.len(), 2);
    assert!(server.factory.order("restart", None).await.is_none(), "no order of this class");
    let factory = server.factory.clone();
    server.stop().await;
    assert_eq!(factory.order("rotate", None).await.unwrap().unwrap_err().code, "stopped");
}

#[tokio::test]
async fn keys_of_the_first_format_keep_opening() {
    use septet_engine::host::{Keep as _, KeepFamily};
    let server = Running::start(&format!("signing_alg = \"ES256\"\n{CLIENTS}")).await;
    let kept = server.store.get(KeepFamily::ServerKey, "auth").unwrap();
    let kept: Value = serde_json::from_slice(&kept).unwrap();
    let (pem, before) = (kept["keys"][0]["pem"].clone(), token(&server).await);
    let key = json!({ "algorithm": "ES256", "pem": pem });
    let first = json!({ "format": 1, "keys": [key, key] }).to_string();
    server.store.put(KeepFamily::ServerKey, "auth", Some(first.into())).await.unwrap();
    let server = server.again(&format!("signing_alg = \"ES256\"\n{CLIENTS}")).await;
    assert_eq!(published(&server).await, [key_id(&before), key_id(&before)]);
    assert_eq!(key_id(&token(&server).await), key_id(&before));
}
