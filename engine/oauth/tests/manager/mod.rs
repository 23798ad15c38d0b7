//! The token manager: how many requests reach the token endpoint, what they say, and what callers get.

mod failures;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use septet_engine::config::settings::Secret;
use septet_engine::host::Keep;
use septet_engine::token::TokenSource;
use septet_oauth::{ClientState, TokenManager};
use tokio_util::sync::CancellationToken;

use crate::support::{Bench, Server, json};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_until_it_is_about_to_expire() {
    let bench = Bench::new(3600).await;
    assert_eq!(bench.token().await.unwrap(), "token-1");
    bench.clock.advance(seconds(3539));
    assert_eq!(bench.token().await.unwrap(), "token-1");
    bench.clock.advance(seconds(1));
    assert_eq!(bench.token().await.unwrap(), "token-2");
    assert_eq!(bench.server.count(), 2);
}

#[tokio::test]
async fn a_short_lived_token_is_used_for_three_quarters_of_its_life() {
    let bench = Bench::new(8).await;
    bench.token().await.unwrap();
    bench.clock.advance(Duration::from_millis(5999));
    assert_eq!(bench.token().await.unwrap(), "token-1");
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(bench.token().await.unwrap(), "token-2");
}

#[tokio::test]
async fn a_token_without_a_stated_lifetime_lives_as_long_as_the_default() {
    let server = Server::start(|_, n| json(200, &format!(r#"{{"access_token":"token-{n}"}}"#))).await;
    let bench = Bench::over(server, |_| {});
    bench.token().await.unwrap();
    bench.clock.advance(seconds(239));
    assert_eq!(bench.token().await.unwrap(), "token-1");
    bench.clock.advance(seconds(1));
    assert_eq!(bench.token().await.unwrap(), "token-2");
}

#[tokio::test]
async fn fifty_callers_share_one_request() {
    let bench = Bench::new(3600).await;
    bench.server.hold(true);
    let callers: Vec<_> = (0..50)
        .map(|n| {
            let manager = bench.manager.clone();
            tokio::spawn(async move { manager.token("vendor", &format!("item{n}")).await })
        })
        .collect();
    bench.server.until(1).await;
    bench.server.hold(false);
    for caller in callers {
        assert_eq!(*caller.await.unwrap().unwrap().secret, "token-1");
    }
    assert_eq!(bench.server.count(), 1);
}

#[tokio::test]
async fn callers_who_wait_share_one_failure_too() {
    let bench = Bench::over(Server::start(|_, _| json(500, "{}")).await, |_| {});
    bench.server.hold(true);
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let manager = bench.manager.clone();
            tokio::spawn(async move { manager.token("vendor", "submit").await })
        })
        .collect();
    bench.server.until(1).await;
    bench.server.hold(false);
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap_err().fault.code, "http 500");
    }
    assert_eq!(bench.server.count(), 1);
}

#[tokio::test]
async fn a_caller_who_gives_up_takes_nothing_from_the_others() {
    let bench = Bench::new(3600).await;
    bench.server.hold(true);
    let impatient = tokio::spawn({
        let manager = bench.manager.clone();
        async move { manager.token("vendor", "submit").await }
    });
    bench.server.until(1).await;
    impatient.abort();
    let _ = impatient.await;
    bench.server.hold(false);
    assert_eq!(bench.token().await.unwrap(), "token-1");
    assert_eq!(bench.server.count(), 1);
}

#[tokio::test]
async fn a_restart_does_not_fetch_while_the_token_is_valid() {
    let mut bench = Bench::new(3600).await;
    bench.token().await.unwrap();
    bench.clock.advance(seconds(1000));
    bench.restart(|_| {});
    assert_eq!(bench.token().await.unwrap(), "token-1");
    assert_eq!(bench.server.count(), 1);
    let view = bench.manager.clients().remove(0);
    assert_eq!((view.fetches, view.state), (1, ClientState::Valid));
    assert_eq!(view.fetched_at, Some("2026-11-22T08:00:00Z".parse().unwrap()));
    assert_eq!(view.expires_at, Some("2026-11-22T09:00:00Z".parse().unwrap()));

    bench.clock.advance(seconds(2600));
    bench.restart(|_| {});
    assert_eq!(bench.token().await.unwrap(), "token-2");
    assert_eq!(bench.manager.clients().remove(0).fetches, 2);
}

#[tokio::test]
async fn other_credentials_scope_or_audience_are_never_served_an_old_token() {
    let mut bench = Bench::new(3600).await;
    bench.token().await.unwrap();
    bench.restart(|client| client.client_secret = Some(Secret::new("changed")));
    assert_eq!(bench.token().await.unwrap(), "token-2");
    bench.configure(|client| client.scope = Some("results:read".into()));
    assert_eq!(bench.token().await.unwrap(), "token-3");
    bench.configure(|client| client.audience = Some("api://results".into()));
    assert_eq!(bench.token().await.unwrap(), "token-4");
    // Settings that do not concern the token leave it alone.
    bench.configure(|client| {
        client.audience = Some("api://results".into());
        client.refresh_before = seconds(5);
    });
    assert_eq!(bench.token().await.unwrap(), "token-4");
    assert_eq!(bench.manager.clients().remove(0).fetches, 4);
}

#[tokio::test]
async fn a_refused_token_is_dropped_once_and_its_successor_is_left_alone() {
    let bench = Bench::new(3600).await;
    let first = bench.manager.token("vendor", "submit").await.unwrap();
    let seen_by_another = first.clone();
    bench.manager.rejected(&first);
    assert_eq!(bench.manager.clients().remove(0).state, ClientState::None);
    assert_eq!(bench.token().await.unwrap(), "token-2");
    bench.manager.rejected(&seen_by_another);
    assert_eq!(bench.token().await.unwrap(), "token-2");
    assert_eq!(bench.server.count(), 2);
}

#[tokio::test]
async fn a_refresh_on_demand_fetches_and_a_failed_one_keeps_the_valid_token() {
    let bench = Bench::new(3600).await;
    bench.token().await.unwrap();
    let view = bench.manager.refresh("vendor").await.unwrap().unwrap();
    assert_eq!((view.fetches, view.state, view.used_by), (2, ClientState::Valid, vec!["submit".to_owned()]));
    bench.server.script(|_, _| json(400, r#"{"error":"invalid_scope"}"#));
    assert_eq!(bench.manager.refresh("vendor").await.unwrap().unwrap_err().code, "invalid_scope");
    let view = bench.manager.clients().remove(0);
    assert_eq!((view.state, view.fetches), (ClientState::Valid, 2));
    assert!(view.last_error.unwrap().starts_with("invalid_scope: "));
    assert_eq!(bench.token().await.unwrap(), "token-2");
    assert!(bench.manager.refresh("nobody").await.is_none());
}

#[tokio::test]
async fn o_16_a_used_token_is_renewed_in_the_background_and_an_unused_one_is_not() {
    let bench = Bench::new(3600).await;
    let stop = CancellationToken::new();
    let renewal = tokio::spawn(Arc::clone(&bench.manager).renew(async |_| {}, stop.clone()));
    bench.token().await.unwrap();
    bench.clock.advance(seconds(3540));
    bench.server.until(2).await;
    // Its successor was not used: when that one is due, nothing is fetched until somebody asks.
    while bench.manager.clients().remove(0).fetches < 2 {
        tokio::task::yield_now().await;
    }
    bench.clock.advance(seconds(3600));
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.server.count(), 2);
    assert_eq!(bench.manager.clients().remove(0).state, ClientState::Expired);
    assert_eq!(bench.token().await.unwrap(), "token-3");
    stop.cancel();
    renewal.await.unwrap();
}

#[tokio::test]
async fn no_secret_and_no_token_is_in_anything_that_can_be_shown() {
    let echo = |seen: &crate::support::Seen, n: usize| match n {
        1 => json(200, r#"{"access_token":"s3cret-token","expires_in":60}"#),
        _ => json(
            400,
            &format!(r#"{{"error":"invalid_request","error_description":"you sent {}"}}"#, seen.body),
        ),
    };
    let server = Server::start(echo).await;
    let bench = Bench::over(server, |client| {
        client.client_auth = "post".into();
        client.client_secret = Some(Secret::new("lab secret+1"));
    });
    let token = bench.manager.token("vendor", "submit").await.unwrap();
    bench.manager.rejected(&token);
    let fault = bench.manager.token("vendor", "submit").await.unwrap_err().fault;
    let detail = fault.detail.clone().unwrap().0;
    assert!(detail.contains("client_secret=•••"), "{detail}");
    let events: String = bench.events().iter().map(|event| format!("{event:?}{:?}", event.detail)).collect();
    let shown = format!(
        "{token:?} {fault} {fault:?} {:?} {:?} {events} {detail}",
        bench.manager,
        bench.manager.clients()
    );
    for hidden in ["s3cret-token", "lab secret+1", "lab+secret%2B1"] {
        assert!(!shown.contains(hidden), "{hidden} in {shown}");
    }
}
