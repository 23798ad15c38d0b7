//! Tokens that only their issuer can read: introspection (RFC 7662), and how often it is asked.

use std::collections::HashMap;

use septet_engine::config::settings::Secret;

use super::*;

#[tokio::test]
async fn opaque_tokens_are_asked_about_once_in_a_while() {
    let server = Server::start(|seen, _| {
        assert_eq!(seen.header("authorization"), Some("Basic YXBpOmFwaSUyQnNlY3JldA=="));
        let known: HashMap<&str, &str> = HashMap::from([
            ("good", r#"{"active":true,"scope":"results:write","aud":"lab","client_id":"x"}"#),
            ("weak", r#"{"active":true,"scope":"results:read","aud":"lab"}"#),
            ("old", r#"{"active":true,"scope":"results:write","aud":"lab","exp":1}"#),
        ]);
        reply(200, known.get(seen.form()["token"].as_str()).unwrap_or(&r#"{"active":false}"#))
    })
    .await;
    let url = server.url("/introspect");
    let bench = Bench::new(Algorithm::ES256, |auth| {
        auth.introspection_url = Some(url);
        auth.client_id = Some("api".into());
        auth.client_secret = Some(Secret::new("api+secret"));
    })
    .await;
    for _ in 0..5 {
        assert_eq!(bench.verify("good").await.unwrap().client(), Some("x"));
        assert_eq!(bench.refused("revoked").await.check, Check::Inactive);
    }
    assert_eq!(server.count(), 2);
    assert_eq!(bench.refused("weak").await.status, 403);
    assert_eq!(bench.refused("old").await.check, Check::Exp);
    bench.clock.advance(Duration::from_secs(60));
    assert!(bench.verify("good").await.is_ok());
    assert_eq!(server.count(), 5);
    server.script(|_, _| reply(500, ""));
    bench.clock.advance(Duration::from_secs(60));
    assert_eq!(bench.refused("good").await.check, Check::Keys);
}

#[tokio::test]
async fn a_flood_of_opaque_tokens_is_asked_about_a_bounded_number_of_times() {
    let server = Server::start(|seen, _| match seen.form()["token"].as_str() {
        "good" => reply(200, r#"{"active":true,"scope":"results:write","aud":"lab"}"#),
        _ => reply(200, r#"{"active":false}"#),
    })
    .await;
    let url = server.url("/introspect");
    let bench = Bench::new(Algorithm::ES256, |auth| {
        auth.introspection_url = Some(url);
        auth.client_id = Some("api".into());
        auth.client_secret = Some(Secret::new("secret"));
    })
    .await;
    assert!(bench.verify("good").await.is_ok());
    for n in 0..1000 {
        let check = bench.refused(&format!("guess-{n}")).await.check;
        assert_eq!(check, if n < 200 { Check::Inactive } else { Check::Keys }, "{n}");
    }
    assert_eq!(server.count(), 201);
    assert!(bench.verify("good").await.is_ok(), "a known token goes on meanwhile");
    assert_eq!(server.count(), 201);
    bench.clock.advance(Duration::from_secs(10));
    assert_eq!(bench.refused("guess-again").await.check, Check::Inactive);
    // What no token looks like is not asked about at all.
    assert_eq!(bench.refused("{\"x\":1}").await.check, Check::Malformed);
    assert_eq!(server.count(), 202);
}

#[tokio::test]
async fn many_who_show_the_same_opaque_token_share_one_question() {
    let server =
        Server::start(|_, _| reply(200, r#"{"active":true,"scope":"results:write","aud":"lab"}"#)).await;
    let url = server.url("/introspect");
    let bench = Bench::new(Algorithm::ES256, |auth| {
        auth.introspection_url = Some(url);
        auth.client_id = Some("api".into());
        auth.client_secret = Some(Secret::new("secret"));
    })
    .await;
    let bench = Arc::new(bench);
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let bench = bench.clone();
            tokio::spawn(async move { bench.verify("good").await.is_ok() })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.unwrap());
    }
    assert_eq!(server.count(), 1);
}
