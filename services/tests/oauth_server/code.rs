//! People sign in: the pages as a browser without scripts sees them, codes, id tokens and refresh tokens.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use septet_engine::clock::Clock;
use serde_json::json;

use crate::support::{BACK, Browser, CHALLENGE, Form, VERIFIER, parts, returned, settings, text};

// === the whole way ===

#[tokio::test]
async fn a_person_signs_in_allows_and_the_client_gets_its_tokens() {
    let browser = Browser::new().await;
    let page = browser.authorize(&[]).await;
    assert!(
        page.headers()
            .get("content-security-policy")
            .unwrap()
            .to_str()
            .unwrap()
            .contains("frame-ancestors 'none'")
    );
    assert_eq!(page.headers().get("cache-control").unwrap(), "no-store");
    let form = Form::read(page.text().await.unwrap());
    assert!(form.html.contains("<strong>app</strong>") && !form.html.contains("<script"));
    let page = browser.submit(&form, &[("username", "ada"), ("password", "pa55 word")]).await;
    let consent = Form::read(page.text().await.unwrap());
    assert!(consent.html.contains("Submit &lt;your&gt; results"), "{}", consent.html);
    assert!(consent.html.contains(r#"<button name="decision" value="allow">"#));
    let response = browser.submit(&consent, &[("decision", "allow")]).await;
    assert!(
        response
            .headers()
            .get("location")
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("https://app.example/callback?")
    );
    let answer = returned(&response);
    assert_eq!((answer["state"].as_str(), answer["keep"].as_str()), ("st&te=ü", "1"));
    assert_eq!(answer["iss"], browser.server.issuer);
    assert_eq!(browser.submit(&consent, &[("decision", "allow")]).await.status(), 400, "a page counts once");

    let (status, reply) = browser.redeem(&answer["code"], &[]).await;
    assert_eq!(status, 200, "{reply}");
    assert_eq!(text(&reply, "scope"), "openid results:write");
    let (_, access) = parts(text(&reply, "access_token"));
    assert_eq!((text(&access, "sub"), text(&access, "client_id")), ("ada", "app"));
    let (header, id) = parts(text(&reply, "id_token"));
    assert_eq!(text(&header, "alg"), "RS256");
    let now = browser.server.clock.now().as_second();
    assert_eq!((text(&id, "sub"), text(&id, "aud"), text(&id, "nonce")), ("ada", "app", "n-1"));
    assert_eq!((text(&id, "iss"), &id["auth_time"]), (browser.server.issuer.as_str(), &json!(now)));
    let verifier = browser.server.verifier(|auth| auth.scope = Some("results:write".into()));
    assert!(verifier.verify(Some(&format!("Bearer {}", text(&reply, "access_token")))).await.is_ok());
}

#[tokio::test]
async fn without_openid_there_is_no_id_token_and_without_the_grant_no_refresh_token() {
    let browser = Browser::new().await;
    let code = browser.code(&[("scope", "")]).await;
    let (_, reply) = browser.redeem(&code, &[]).await;
    assert!(reply.get("id_token").is_none());
    assert_eq!(text(&reply, "scope"), "results:write results:read", "all it may have, but for openid");
    let old = [
        ("client_id", "old"),
        ("redirect_uri", ""),
        ("scope", "results:read"),
        ("code_challenge", ""),
        ("code_challenge_method", ""),
    ];
    let answer = browser.answer(&old, ("bob", "letmein"), "allow").await;
    let form = [("grant_type", "authorization_code"), ("code", answer["code"].as_str())];
    let (status, reply) = browser.server.ask("old", "old-secret", &form).await;
    assert_eq!((status, reply.get("refresh_token")), (200, None), "{reply}");
    assert_eq!(parts(text(&reply, "access_token")).1["sub"], "bob");
}

#[tokio::test]
async fn a_person_who_denies_is_sent_back_without_a_code() {
    let browser = Browser::new().await;
    let answer = browser.answer(&[], ("ada", "pa55 word"), "deny").await;
    assert_eq!(answer["error"], "access_denied");
    assert_eq!(answer["state"], "st&te=ü");
    assert!(!answer.contains_key("code"));
}

// === requests that are refused ===

#[tokio::test]
async fn an_unknown_client_or_address_is_told_to_the_person_and_never_redirected() {
    let browser = Browser::new().await;
    for changes in [
        [("client_id", "nobody")],
        [("client_id", "")],
        [("redirect_uri", "https://evil.example/")],
        [("redirect_uri", "https://app.example/callback")],
        [("redirect_uri", "https://app.example/callback?keep=1&x=2")],
        [("redirect_uri", "HTTPS://app.example/callback?keep=1")],
        [("redirect_uri", "")],
    ] {
        let response = browser.authorize(&changes).await;
        assert_eq!(
            (response.status().as_u16(), response.headers().get("location")),
            (400, None),
            "{changes:?}"
        );
    }
}

#[tokio::test]
async fn other_mistakes_are_told_to_the_client() {
    let browser = Browser::new().await;
    for (changes, error) in [
        (vec![("response_type", "token")], "unsupported_response_type"),
        (vec![("scope", "admin")], "invalid_scope"),
        (vec![("code_challenge", "")], "invalid_request"),
        (vec![("code_challenge", ""), ("code_challenge_method", "")], "invalid_request"),
        (vec![("code_challenge_method", "plain")], "invalid_request"),
        (vec![("code_challenge_method", "")], "invalid_request"),
        (vec![("code_challenge", "short")], "invalid_request"),
        (vec![("request", "x.y.z")], "request_not_supported"),
    ] {
        let answer = returned(&browser.authorize(&changes).await);
        assert_eq!((answer["error"].as_str(), answer["state"].as_str()), (error, "st&te=ü"), "{changes:?}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_asked_again_and_guessing_is_stopped() {
    let browser = Browser::new().await;
    let form = Form::read(browser.authorize(&[]).await.text().await.unwrap());
    let wrong = [("username", "ada"), ("password", "guess")];
    for _ in 0..5 {
        assert_eq!(browser.submit(&form, &wrong).await.status(), 401);
    }
    let right = [("username", "ada"), ("password", "pa55 word")];
    assert_eq!(browser.submit(&form, &right).await.status(), 429);
    assert_eq!(browser.submit(&form, &[("username", "nobody"), ("password", "x")]).await.status(), 401);
    assert_eq!(
        browser.submit(&form, &[("username", "bob"), ("password", "letmein")]).await.status(),
        200,
        "others are not held up"
    );
    browser.server.clock.advance(Duration::from_secs(60));
    let form = Form::read(browser.authorize(&[]).await.text().await.unwrap());
    assert_eq!(browser.submit(&form, &right).await.status(), 200);
}

#[tokio::test]
async fn a_page_that_stood_open_for_too_long_has_expired() {
    let browser = Browser::new().await;
    let form = Form::read(browser.authorize(&[]).await.text().await.unwrap());
    browser.server.clock.advance(Duration::from_secs(600));
    let response = browser.submit(&form, &[("username", "ada"), ("password", "pa55 word")]).await;
    assert_eq!(response.status(), 400);
    assert_eq!(browser.submit(&form, &[("decision", "allow")]).await.status(), 400);
}

#[tokio::test]
async fn nobody_allows_without_having_signed_in() {
    let browser = Browser::new().await;
    let form = Form::read(browser.authorize(&[]).await.text().await.unwrap());
    assert_eq!(browser.submit(&form, &[("decision", "allow")]).await.status(), 400);
}

// === codes ===

#[tokio::test]
async fn a_code_is_for_its_client_its_address_and_its_verifier() {
    let browser = Browser::new().await;
    for changes in [
        vec![("code_verifier", "wrong")],
        vec![("code_verifier", "")],
        vec![("redirect_uri", "http://127.0.0.1:9/cb")],
        vec![("redirect_uri", "")],
    ] {
        let code = browser.code(&[]).await;
        let (status, reply) = browser.redeem(&code, &changes).await;
        assert_eq!((status, text(&reply, "error")), (400, "invalid_grant"), "{changes:?}");
    }
    let code = browser.code(&[]).await;
    let form = [
        ("grant_type", "authorization_code"),
        ("code", code.as_str()),
        ("redirect_uri", BACK),
        ("code_verifier", VERIFIER),
    ];
    let (status, reply) = browser.server.ask("old", "old-secret", &form).await;
    assert_eq!((status, text(&reply, "error")), (400, "invalid_grant"));
    let (status, reply) = browser.redeem("invented", &[]).await;
    assert_eq!((status, text(&reply, "error")), (400, "invalid_grant"));
    let (status, reply) = browser.redeem("", &[]).await;
    assert_eq!((status, text(&reply, "error")), (400, "invalid_request"));
}

#[tokio::test]
async fn a_code_ends_after_a_minute() {
    let browser = Browser::new().await;
    let code = browser.code(&[]).await;
    browser.server.clock.advance(Duration::from_secs(60));
    assert_eq!(browser.redeem(&code, &[]).await.0, 400);
}

#[tokio::test]
async fn a_code_survives_a_restart_and_still_counts_once() {
    let browser = Browser::new().await;
    let code = browser.code(&[]).await;
    let browser = Browser::of(browser.server.again(&settings()).await);
    let (status, reply) = browser.redeem(&code, &[]).await;
    assert_eq!(status, 200, "{reply}");
    let refresh = text(&reply, "refresh_token").to_owned();
    let browser = Browser::of(browser.server.again(&settings()).await);
    assert_eq!(browser.redeem(&code, &[]).await.0, 400);
    assert_eq!(browser.refresh(&refresh, &[]).await.0, 400, "the second use ended what the first gave");
}

#[tokio::test]
async fn a_code_that_comes_twice_revokes_what_it_gave() {
    let browser = Browser::new().await;
    let code = browser.code(&[]).await;
    let (_, reply) = browser.redeem(&code, &[]).await;
    let refresh = text(&reply, "refresh_token").to_owned();
    let (status, again) = browser.redeem(&code, &[]).await;
    assert_eq!((status, text(&again, "error")), (400, "invalid_grant"));
    assert_eq!(browser.refresh(&refresh, &[]).await.0, 400);
}

// === refresh tokens ===

#[tokio::test]
async fn a_refresh_token_is_replaced_at_each_use_and_an_old_one_ends_them_all() {
    let browser = Browser::new().await;
    let code = browser.code(&[]).await;
    let (_, reply) = browser.redeem(&code, &[]).await;
    let first = text(&reply, "refresh_token").to_owned();
    let (status, reply) = browser.refresh(&first, &[]).await;
    assert_eq!(status, 200, "{reply}");
    let second = text(&reply, "refresh_token").to_owned();
    assert_ne!(first, second);
    assert_eq!(parts(text(&reply, "access_token")).1["sub"], "ada");
    assert!(reply.get("id_token").is_some());
    let (status, reply) = browser.refresh(&first, &[]).await;
    assert_eq!((status, text(&reply, "error")), (400, "invalid_grant"));
    assert_eq!(browser.refresh(&second, &[]).await.0, 400, "the family has ended");
}

#[tokio::test]
async fn a_refresh_may_ask_for_less_but_not_for_more() {
    let browser = Browser::new().await;
    let code = browser.code(&[]).await;
    let (_, reply) = browser.redeem(&code, &[]).await;
    let token = text(&reply, "refresh_token").to_owned();
    let (status, reply) = browser.refresh(&token, &[("scope", "results:read")]).await;
    assert_eq!((status, text(&reply, "error")), (400, "invalid_scope"));
    let (status, reply) = browser.refresh(&token, &[("scope", "results:write")]).await;
    assert_eq!((status, text(&reply, "scope")), (200, "results:write"));
    let (_, reply) = browser.refresh(text(&reply, "refresh_token"), &[]).await;
    assert_eq!(text(&reply, "scope"), "openid results:write", "less was asked for once only");
}

#[tokio::test]
async fn refresh_tokens_survive_a_restart_and_end_after_a_day() {
    let browser = Browser::new().await;
    let code = browser.code(&[]).await;
    let (_, reply) = browser.redeem(&code, &[]).await;
    let token = text(&reply, "refresh_token").to_owned();
    let browser = Browser::of(browser.server.again(&settings()).await);
    browser.server.clock.advance(Duration::from_secs(24 * 3600 - 1));
    let (status, reply) = browser.refresh(&token, &[]).await;
    assert_eq!(status, 200, "{reply}");
    let token = text(&reply, "refresh_token").to_owned();
    browser.server.clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(browser.refresh(&token, &[]).await.0, 400);
}

#[test]
fn the_challenge_of_these_tests_is_that_of_the_verifier() {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, VERIFIER.as_bytes());
    assert_eq!(URL_SAFE_NO_PAD.encode(hash), CHALLENGE);
}
