//! The token manager: how many requests reach the token endpoint, what they say, and what callers get.

use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Redirect};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use septet_engine::config::settings::Secret;
use septet_engine::host::{Keep, KeepFamily};
use septet_engine::token::TokenSource;
use septet_oauth::ClientState;
use septet_oauth::keys::{Algorithm, SigningKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{Bench, Server, json};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

// === when it fetches ===

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

// === what survives ===

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

// === the request ===

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

// === discovery ===

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

// === a failing endpoint ===

async fn failure(server: Server) -> septet_engine::fault::Fault {
    let bench = Bench::over(server, |_| {});
    let fault = bench.token().await.unwrap_err();
    let events = bench.events();
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].kind.as_str(), events[0].item.as_ref().unwrap().as_str()),
        ("oauth.failed", "submit")
    );
    assert!(events[0].text.starts_with(&fault.code), "{}", events[0].text);
    assert_eq!(events[0].detail, fault.detail);
    let view = bench.manager.clients().remove(0);
    assert_eq!((view.state, view.last_error), (ClientState::Failing, Some(fault.to_string())));
    assert!(bench.store.get(KeepFamily::Token, "vendor").is_none());
    fault
}

#[tokio::test]
async fn every_kind_of_failing_endpoint_has_its_own_code() {
    let fault = failure(
        Server::start(|_, _| (axum::http::StatusCode::INTERNAL_SERVER_ERROR, "boom").into_response()).await,
    )
    .await;
    assert_eq!((fault.code.as_str(), fault.detail.unwrap().0.as_str()), ("http 500", "boom"));
    assert!(!fault.text.contains("boom"));

    let denied = r#"{"error":"invalid_client","error_description":"no such client"}"#;
    let fault = failure(Server::start(move |_, _| json(401, denied)).await).await;
    assert_eq!((fault.code.as_str(), fault.detail.unwrap().0.as_str()), ("invalid_client", "no such client"));

    let fault = failure(Server::start(|_, _| "<html>sign in</html>".into_response()).await).await;
    assert_eq!((fault.code.as_str(), fault.detail), ("reply", None));

    let fault = failure(Server::start(|_, _| json(200, r#"{"access_token":"tok"#)).await).await;
    assert_eq!(fault.code, "reply");

    let fault = failure(Server::start(|_, _| Redirect::temporary("/elsewhere").into_response()).await).await;
    assert_eq!(fault.code, "http 307");

    let fault = failure(Server::start(|_, _| json(200, &format!("\"{}\"", "x".repeat(1 << 20)))).await).await;
    assert!(fault.text.contains("larger than 1 MiB"), "{}", fault.text);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let server = Server::start(|_, _| Redirect::temporary("/elsewhere").into_response()).await;
    let bench = Bench::over(server, |_| {});
    bench.token().await.unwrap_err();
    assert_eq!(bench.server.count(), 1);
}

#[tokio::test]
async fn a_slow_endpoint_times_out_and_a_missing_one_is_a_connection_fault() {
    let server = Server::counting(60).await;
    server.hold(true);
    let fault = failure(server).await;
    assert_eq!(fault.code, "timeout");

    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut bench = Bench::new(60).await;
    bench.configure(|client| client.token_url = Some(format!("http://{unused}/token")));
    assert_eq!(bench.token().await.unwrap_err().code, "connect");
}

#[tokio::test]
async fn a_reply_that_breaks_off_is_no_reply() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = socket.read(&mut request).await.unwrap();
        socket
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"access_token\":\"half")
            .await
            .unwrap();
    });
    let mut bench = Bench::new(60).await;
    bench.configure(|client| client.token_url = Some(url));
    let fault = bench.token().await.unwrap_err();
    assert_eq!(fault.code, "reply");
    assert!(!format!("{fault:?}").contains("half"));
}

#[tokio::test]
async fn a_failing_endpoint_is_left_alone_for_longer_each_time() {
    let bench = Bench::over(Server::start(|_, _| json(500, "{}")).await, |_| {});
    for (wait, requests) in [(0, 1), (999, 1), (1, 2), (1999, 2), (1, 3), (3999, 3), (1, 4)] {
        bench.clock.advance(Duration::from_millis(wait));
        bench.token().await.unwrap_err();
        assert_eq!(bench.server.count(), requests);
    }
}

#[tokio::test]
async fn retry_after_is_respected_and_success_ends_the_waiting() {
    let server = Server::start(|_, n| match n {
        1 => {
            (axum::http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "30")], "slow down").into_response()
        }
        _ => json(200, r#"{"access_token":"good","expires_in":60}"#),
    })
    .await;
    let bench = Bench::over(server, |_| {});
    assert_eq!(bench.token().await.unwrap_err().code, "http 429");
    bench.clock.advance(Duration::from_millis(29_999));
    assert_eq!(bench.token().await.unwrap_err().code, "http 429");
    assert_eq!(bench.server.count(), 1);
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(bench.token().await.unwrap(), "good");
    let view = bench.manager.clients().remove(0);
    assert_eq!((view.state, view.last_error), (ClientState::Valid, None));
}

#[tokio::test]
async fn a_token_about_to_expire_is_better_than_none() {
    let bench = Bench::new(3600).await;
    bench.token().await.unwrap();
    bench.server.script(|_, _| json(503, "{}"));
    bench.clock.advance(seconds(3550));
    assert_eq!(bench.token().await.unwrap(), "token-1");
    assert_eq!(bench.token().await.unwrap(), "token-1");
    assert_eq!(bench.server.count(), 2, "the endpoint is not asked again at once");
    bench.clock.advance(seconds(50));
    assert_eq!(bench.token().await.unwrap_err().code, "http 503");
}

// === refresh on demand and in the background ===

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

// === nothing leaks ===

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
