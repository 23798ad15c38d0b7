//! Grant `authorization_code` and what keeps a sign-in alive: state, PKCE and nonce, accounts, issuers, rotated
//! and refused refresh tokens, the alerts about their end. Also what a server's wrong clock does (O-02, O-08, O-16).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use septet_engine::config::settings::{OAuthClient, Secret};
use septet_engine::event::Level;
use septet_oauth::keys::{Algorithm, SigningKey};
use septet_oauth::{Callback, ClientState, SignInError, TokenAlert};
use tokio_util::sync::CancellationToken;

use crate::support::{Bench, PATIENCE, Seen, Server, json};

const BACK: &str = "http://127.0.0.1:8700/oauth/vendor/callback";

fn by_person(server: &Server) -> impl Fn(&mut OAuthClient) + use<> {
    let url = server.url("/authorize");
    move |client: &mut OAuthClient| {
        client.grant = "authorization_code".into();
        client.authorization_url = Some(url.clone());
    }
}

/// Gives `token-N` and `refresh-N`, each refresh token good once.
fn rotating(lifetime: u32) -> impl FnMut(&Seen, usize) -> Response + Send + 'static {
    let mut good = String::from("code-1");
    move |seen: &Seen, n: usize| {
        let form = seen.form();
        let shown = form.get("refresh_token").or_else(|| form.get("code")).cloned().unwrap_or_default();
        if shown != good {
            return json(400, r#"{"error":"invalid_grant","error_description":"used up"}"#);
        }
        good = format!("refresh-{n}");
        json(
            200,
            &format!(r#"{{"access_token":"token-{n}","expires_in":{lifetime},"refresh_token":"{good}"}}"#),
        )
    }
}

/// Begins a sign-in; the parameters that the person leaves with.
async fn leave(bench: &Bench, who: Option<&str>) -> BTreeMap<String, String> {
    let url = bench.manager.connect("vendor", BACK, who).await.unwrap();
    let url = url::Url::parse(&url).unwrap();
    assert_eq!(url.path(), "/authorize");
    url.query_pairs().into_owned().collect()
}

fn back(sent: &BTreeMap<String, String>, code: &str) -> Callback {
    Callback { state: Some(sent["state"].clone()), code: Some(code.into()), ..Callback::default() }
}

async fn signed_in(server: Server, change: impl Fn(&mut OAuthClient)) -> Bench {
    let person = by_person(&server);
    let bench = Bench::over(server, |client| {
        person(client);
        change(client);
    });
    let sent = leave(&bench, None).await;
    bench.manager.callback("vendor", back(&sent, "code-1"), None).await.unwrap();
    bench
}

fn refused(result: Result<septet_oauth::ClientView, SignInError>) -> String {
    match result {
        Err(SignInError::Refused(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn o_08_a_sign_in_leaves_with_state_and_challenge_and_comes_back_with_a_code() {
    let server = Server::start(rotating(3600)).await;
    let person = by_person(&server);
    let mut bench = Bench::over(server, &person);
    bench.manager.reached_at("http://127.0.0.1:8700");
    let view = bench.manager.clients().remove(0);
    assert_eq!(view.state, ClientState::None);
    let text = "nobody has signed in yet; sign in at http://127.0.0.1:8700/oauth/vendor/connect";
    assert!(view.last_error.unwrap().ends_with(text));
    for _ in 0..3 {
        let fault = bench.token().await.unwrap_err();
        assert!(fault.code == "sign_in" && fault.text.ends_with(text), "{fault}");
    }
    assert_eq!(bench.events().len(), 1, "said once, not at each message");
    assert_eq!((bench.server.count(), bench.manager.clients().remove(0).state), (0, ClientState::None));

    let sent = leave(&bench, None).await;
    assert_eq!((sent["client_id"].as_str(), sent["scope"].as_str()), ("lab", "results:write"));
    assert_eq!(sent["redirect_uri"], BACK);
    assert!(!sent.contains_key("nonce"), "without openid there is no id_token");
    bench.manager.callback("vendor", back(&sent, "code-1"), None).await.unwrap();
    let form = bench.server.seen().remove(0).form();
    assert_eq!((form["grant_type"].as_str(), form["code"].as_str()), ("authorization_code", "code-1"));
    assert_eq!(form["redirect_uri"], BACK);
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, form["code_verifier"].as_bytes());
    assert_eq!(URL_SAFE_NO_PAD.encode(hash), sent["code_challenge"]);
    assert_eq!(bench.token().await.unwrap(), "token-1");

    // From then on refresh tokens, over restarts.
    bench.clock.advance(Duration::from_secs(3600));
    assert_eq!(bench.token().await.unwrap(), "token-2");
    bench.clock.advance(Duration::from_secs(3600));
    bench.restart(&person);
    assert_eq!(bench.token().await.unwrap(), "token-3");
    assert_eq!(bench.server.seen().remove(2).form()["refresh_token"], "refresh-2");
}

#[tokio::test]
async fn o_27_a_state_is_good_once_for_one_client_one_account_and_ten_minutes() {
    let server = Server::start(rotating(3600)).await;
    let person = by_person(&server);
    let bench = Bench::over(server, person);
    let sent = leave(&bench, Some("ada")).await;
    let forged = Callback { state: Some("x".into()), code: Some("code-1".into()), ..Callback::default() };
    assert!(refused(bench.manager.callback("vendor", forged, Some("ada")).await).contains("state"));
    let without = Callback { code: Some("code-1".into()), ..Callback::default() };
    assert!(refused(bench.manager.callback("vendor", without, Some("ada")).await).contains("state"));
    let other = bench.manager.callback("vendor", back(&sent, "code-1"), Some("bob")).await;
    assert!(refused(other).contains("another account"));
    let again = bench.manager.callback("vendor", back(&sent, "code-1"), Some("ada")).await;
    assert!(refused(again).contains("used up"));
    let late = leave(&bench, None).await;
    bench.clock.advance(Duration::from_secs(601));
    assert!(refused(bench.manager.callback("vendor", back(&late, "code-1"), None).await).contains("state"));
    assert_eq!(bench.server.count(), 0, "no code was exchanged");
    assert!(matches!(bench.manager.connect("nobody", BACK, None).await, Err(SignInError::UnknownClient)));
}

#[tokio::test]
async fn an_answer_from_another_issuer_and_a_refusal_are_told_apart() {
    let server = Server::start(rotating(3600)).await;
    let person = by_person(&server);
    let bench = Bench::over(server, |client| {
        person(client);
        client.issuer = Some("https://login.example".into());
    });
    let sent = leave(&bench, None).await;
    let mut from_other = back(&sent, "code-1");
    from_other.iss = Some("https://evil.example/".into());
    let text = refused(bench.manager.callback("vendor", from_other, None).await);
    assert!(
        text.contains("https://login.example is expected") && text.contains("https://evil.example/"),
        "{text}"
    );
    let sent = leave(&bench, None).await;
    let mut denied = back(&sent, "");
    denied.code = None;
    denied.error = Some("access_denied".into());
    denied.error_description = Some("not today".into());
    let Err(SignInError::Failed(fault)) = bench.manager.callback("vendor", denied, None).await else {
        panic!()
    };
    assert_eq!((fault.code.as_str(), fault.detail.unwrap().0.as_str()), ("access_denied", "not today"));
    assert!(!fault.text.contains("not today"));
}

#[tokio::test]
async fn o_18_an_id_token_is_judged_after_a_sign_in_and_ignored_otherwise() {
    let claims: Arc<Mutex<serde_json::Value>> = Arc::default();
    let given = claims.clone();
    let server = Server::start(move |seen, n| {
        let payload = URL_SAFE_NO_PAD.encode(given.lock().unwrap().to_string());
        let nonsense = if seen.form()["grant_type"] == "client_credentials" {
            "x.y.z".into()
        } else {
            format!("e30.{payload}.x")
        };
        json(200, &format!(r#"{{"access_token":"token-{n}","expires_in":60,"id_token":"{nonsense}"}}"#))
    })
    .await;
    let person = by_person(&server);
    let openid = |client: &mut OAuthClient| client.scope = Some("openid".into());
    let mut bench = Bench::over(server, openid);
    assert_eq!(bench.token().await.unwrap(), "token-1", "Keycloak sends one with client credentials, too");
    bench.configure(|client| {
        person(client);
        openid(client);
        client.issuer = Some("https://login.example".into());
    });
    let now = 1_795_334_400; // 2026-11-22T08:00:00Z
    let attempt = async |iss: &str, aud: serde_json::Value, exp: i64, nonce: Option<&str>| {
        let sent = leave(&bench, None).await;
        let nonce = nonce.unwrap_or(&sent["nonce"]);
        *claims.lock().unwrap() = serde_json::json!({ "iss": iss, "aud": aud, "exp": exp, "nonce": nonce });
        match bench.manager.callback("vendor", back(&sent, "c"), None).await {
            Ok(_) => String::new(),
            Err(SignInError::Failed(fault)) => fault.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let right = "https://login.example";
    assert!(attempt(right, "lab".into(), now + 60, Some("replayed")).await.contains("another nonce"));
    let mismatch = attempt("https://other.example/", "lab".into(), now + 60, None).await;
    assert!(mismatch.contains(right) && mismatch.contains("https://other.example/"), "{mismatch}");
    assert!(attempt(right, "else".into(), now + 60, None).await.contains("not for client_id lab"));
    assert!(attempt(right, "lab".into(), now - 61, None).await.contains("expired"));
    assert_eq!(bench.manager.clients().remove(0).state, ClientState::Failing);
    assert_eq!(attempt(right, serde_json::json!(["x", "lab"]), now + 60, None).await, "");
    assert_eq!(bench.manager.clients().remove(0).state, ClientState::Valid);
}

/// Runs the renewal and collects its alerts.
fn renewing(bench: &Bench) -> (Arc<Mutex<Vec<TokenAlert>>>, CancellationToken) {
    let alerts: Arc<Mutex<Vec<TokenAlert>>> = Arc::default();
    let stop = CancellationToken::new();
    let raise = {
        let alerts = alerts.clone();
        move |alert: TokenAlert| {
            alerts.lock().unwrap().push(alert);
            async {}
        }
    };
    tokio::spawn(bench.manager.clone().renew(raise, stop.clone()));
    (alerts, stop)
}

async fn until(alerts: &Mutex<Vec<TokenAlert>>, n: usize) -> TokenAlert {
    let wait = async {
        while alerts.lock().unwrap().len() < n {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the alert comes");
    alerts.lock().unwrap()[n - 1].clone()
}

#[tokio::test]
async fn a_loud_alert_comes_days_before_a_refresh_token_ends_and_when_it_has_ended() {
    let month = 30 * 86_400;
    let reply = r#"{"access_token":"t","expires_in":3600,"refresh_token":"r","refresh_expires_in":2592000}"#;
    let again = r#"{"access_token":"t","expires_in":3600}"#;
    let server =
        Server::start(move |seen, _| json(200, if seen.form().contains_key("code") { reply } else { again }))
            .await;
    let bench = signed_in(server, |_| {}).await;
    let ends = bench.manager.clients().remove(0).refresh_ends_at.unwrap();
    assert_eq!(ends, "2026-12-22T08:00:00Z".parse().unwrap());
    let (alerts, stop) = renewing(&bench);
    bench.clock.advance(Duration::from_secs(month - 7 * 86_400 - 1));
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    assert!(alerts.lock().unwrap().is_empty());
    bench.clock.advance(Duration::from_secs(1));
    let alert = until(&alerts, 1).await;
    assert_eq!(alert.level, Level::Warning);
    assert!(alert.text.contains("ends at 2026-12-22T08:00:00Z; sign in at "), "{}", alert.text);
    assert_eq!(bench.server.count(), 2, "another refresh token was asked for first");
    bench.clock.advance(Duration::from_secs(7 * 86_400));
    let alert = until(&alerts, 2).await;
    assert_eq!(alert.level, Level::Error);
    stop.cancel();
}

#[tokio::test]
async fn a_server_that_gives_a_new_refresh_token_in_time_keeps_the_sign_in_alive_without_an_alert() {
    let server = Server::start(rotating(60)).await;
    let day = |client: &mut OAuthClient| client.refresh_token_lifetime = Some(Duration::from_secs(86_400));
    let bench = signed_in(server, day).await;
    let (alerts, stop) = renewing(&bench);
    for day in 1..4 {
        bench.clock.advance(Duration::from_secs(86_400 * 3 / 4));
        bench.server.until(1 + day).await;
        while bench.manager.clients().remove(0).fetches < 1 + day as u64 {
            tokio::task::yield_now().await;
        }
    }
    assert!(alerts.lock().unwrap().is_empty(), "nobody asked for a token for days, and the sign-in lives");
    stop.cancel();
}

#[tokio::test]
async fn a_refused_refresh_token_is_a_loud_alert_that_says_where_to_sign_in() {
    let server = Server::start(rotating(60)).await;
    let person = by_person(&server);
    let mut bench = signed_in(server, |_| {}).await;
    let (alerts, stop) = renewing(&bench);
    bench.server.script(|_, _| json(400, r#"{"error":"invalid_grant","error_description":"revoked"}"#));
    bench.clock.advance(Duration::from_secs(60));
    let fault = bench.token().await.unwrap_err();
    assert_eq!(fault.code, "invalid_grant");
    assert!(fault.text.contains("sign in at ") && fault.text.contains("/oauth/vendor/connect"), "{fault}");
    let alert = until(&alerts, 1).await;
    assert_eq!(alert.level, Level::Error);
    assert!(alert.text.contains("was refused (invalid_grant); sign in at "), "{}", alert.text);
    assert_eq!(bench.manager.clients().remove(0).state, ClientState::Failing);
    let asked = bench.server.count();
    bench.clock.advance(Duration::from_secs(120));
    assert_eq!(bench.token().await.unwrap_err().code, "sign_in");
    bench.restart(person);
    assert_eq!(bench.token().await.unwrap_err().code, "sign_in");
    assert_eq!(bench.server.count(), asked, "a refused refresh token is not shown again");
    stop.cancel();
}

#[tokio::test]
async fn a_sign_in_without_a_refresh_token_says_so_at_once() {
    let server = Server::start(|_, _| json(200, r#"{"access_token":"t","expires_in":60}"#)).await;
    let bench = signed_in(server, |_| {}).await;
    let (alerts, stop) = renewing(&bench);
    assert!(until(&alerts, 1).await.text.contains("no refresh token"));
    stop.cancel();
}

// === a server whose clock is off ===

fn at(date: &str, response: Response) -> Response {
    ([("date", date.to_owned())], response).into_response()
}

#[tokio::test]
async fn an_assertion_refused_by_a_server_90_seconds_off_is_made_once_more_by_its_time() {
    for (date, server_now) in [
        ("Sun, 22 Nov 2026 07:58:30 GMT", 1_795_334_400 - 90),
        ("Sun, 22 Nov 2026 08:01:30 GMT", 1_795_334_400 + 90),
    ] {
        let server = Server::start(move |seen, n| {
            let assertion = seen.form()["client_assertion"].clone();
            let payload = URL_SAFE_NO_PAD.decode(assertion.split('.').nth(1).unwrap()).unwrap();
            let claims: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            let (iat, exp) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
            // A strict server: five minutes at most, counted by its own clock, and nothing from the future.
            let answer = if iat > server_now || exp <= server_now || iat < server_now - 30 {
                json(401, r#"{"error":"invalid_client"}"#)
            } else {
                json(200, &format!(r#"{{"access_token":"token-{n}","expires_in":60}}"#))
            };
            at(date, answer)
        })
        .await;
        let key = SigningKey::generate(Algorithm::ES256).unwrap();
        let bench = Bench::over(server, |client| {
            client.client_auth = "private_key_jwt".into();
            client.private_key = Some(Secret::new(key.pem()));
        });
        assert_eq!(bench.token().await.unwrap(), "token-2");
        assert!(bench.events().iter().all(|event| event.kind == "oauth.fetched"));
        bench.manager.refresh("vendor").await.unwrap().unwrap();
        assert_eq!(bench.server.count(), 3, "its clock is remembered");
    }
}

#[tokio::test]
async fn o_02_an_absolute_expiry_is_by_the_servers_clock() {
    let server = Server::start(|_, _| {
        let answer = json(200, r#"{"access_token":"t","expires_in":"2026-11-22T09:01:30Z"}"#);
        at("Sun, 22 Nov 2026 08:01:30 GMT", answer)
    })
    .await;
    let bench = Bench::over(server, |_| {});
    bench.token().await.unwrap();
    let expires_at = bench.manager.clients().remove(0).expires_at;
    assert_eq!(expires_at, Some("2026-11-22T09:00:00Z".parse().unwrap()), "an hour, whatever its clock says");
}

#[tokio::test]
async fn what_a_server_echoes_of_a_sign_in_is_masked() {
    let server = Server::start(|seen, _| {
        let words = serde_json::json!({ "error": "invalid_request", "error_description": seen.body });
        json(400, &words.to_string())
    })
    .await;
    let person = by_person(&server);
    let bench = Bench::over(server, person);
    let sent = leave(&bench, None).await;
    let result = bench.manager.callback("vendor", back(&sent, "s3cret-code"), None).await;
    let Err(SignInError::Failed(fault)) = result else { panic!() };
    let words = fault.detail.unwrap().0;
    let verifier = bench.server.seen().remove(0).form()["code_verifier"].clone();
    assert!(words.contains("code=•••"), "{words}");
    assert!(!words.contains("s3cret-code") && !words.contains(&verifier), "{words}");
}
