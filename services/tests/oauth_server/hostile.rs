//! What attackers try (RFC 9700, RFC 6819), each thing once.

use std::time::Duration;

use serde_json::json;

use crate::support::{Browser, CLIENTS, Form, GRANT, Running, VERIFIER, settings, text};

#[tokio::test]
async fn guessing_a_secret_is_stopped_for_the_client_and_address_that_guess() {
    let server = Running::start(CLIENTS).await;
    for guess in 0..20 {
        assert_eq!(server.ask("lab", &format!("guess{guess}"), &[GRANT]).await.0, 401);
    }
    let response =
        server.http.post(server.url("/oauth2/token")).basic_auth("lab", Some("lab-secret")).form(&[GRANT]);
    let response = response.send().await.unwrap();
    assert_eq!(response.status(), 429, "the right one is not looked at either");
    assert_eq!(response.headers().get("retry-after").unwrap(), "60");
    assert_eq!(server.ask("other", "other secret+%", &[GRANT]).await.0, 200, "others are not held up");
    server.clock.advance(Duration::from_secs(60));
    for _ in 0..50 {
        assert_eq!(server.ask("lab", "lab-secret", &[GRANT]).await.0, 200, "right ones do not count");
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_held_up_like_one_that_does() {
    let browser = Browser::new().await;
    let form = Form::read(browser.authorize(&[]).await.text().await.unwrap());
    for name in ["bob", "nobody"] {
        for _ in 0..5 {
            let page = browser.submit(&form, &[("username", name), ("password", "guess")]).await;
            assert_eq!(page.status(), 401, "{name}");
        }
        let page = browser.submit(&form, &[("username", name), ("password", "guess")]).await;
        assert_eq!(page.status(), 429, "{name}");
    }
    let failed = browser.server.events("sign_in.failed");
    let names: Vec<_> = failed.iter().filter_map(|event| event.who.as_deref()).collect();
    assert!(
        names.iter().all(|name| *name == "bob") && !names.is_empty(),
        "only names that exist are written down"
    );
}

#[tokio::test]
async fn a_code_of_another_client_is_worth_nothing_and_is_used_up() {
    let browser = Browser::new().await;
    let code = browser.code(&[]).await;
    let form = [
        ("grant_type", "authorization_code"),
        ("code", code.as_str()),
        ("redirect_uri", crate::support::BACK),
        ("code_verifier", VERIFIER),
    ];
    assert_eq!(browser.server.ask("old", "old-secret", &form).await.0, 400);
    assert_eq!(browser.redeem(&code, &[]).await.0, 400, "somebody else had it");
}

#[tokio::test]
async fn a_refresh_token_of_another_client_is_worth_nothing_and_stays_good() {
    let other = "[services.auth.clients.thief]\nsecret = \"t\"\ngrants = [\"authorization_code\", \"refresh_token\"]\nredirect_uris = [\"https://t/\"]\n";
    let browser = Browser::of(Running::start(&format!("{}{other}", settings())).await);
    let tokens = browser.tokens(&[]).await;
    let token = text(&tokens, "refresh_token");
    for token in [token, &format!("{}.wrong", token.split('.').next().unwrap())] {
        let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
        let (status, reply) = browser.server.ask("thief", "t", &form).await;
        assert_eq!((status, text(&reply, "error")), (400, "invalid_grant"));
    }
    assert_eq!(browser.refresh(token, &[]).await.0, 200);
}

#[tokio::test]
async fn pkce_cannot_be_taken_away_or_added() {
    let browser = Browser::new().await;
    let old = [("client_id", "old"), ("redirect_uri", "https://old.example/"), ("scope", "results:read")];
    let without = [("code_challenge", ""), ("code_challenge_method", "")];
    let redeem = async |code: &str, verifier: &str| {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", "https://old.example/"),
            ("code_verifier", verifier),
        ];
        browser.server.ask("old", "old-secret", &form).await.0
    };
    let code = browser.code(&[&old[..], &without].concat()).await;
    assert_eq!(redeem(&code, VERIFIER).await, 400, "a verifier though there was no challenge");
    let code = browser.code(&old).await;
    assert_eq!(redeem(&code, "").await, 400, "no verifier though there was a challenge");
    let code = browser.code(&old).await;
    assert_eq!(redeem(&code, VERIFIER).await, 200);
}

#[tokio::test]
async fn a_public_client_has_its_verifier_and_nothing_else() {
    let phone = "[services.auth.clients.phone]\npublic = true\ngrants = [\"authorization_code\", \"refresh_token\"]\nredirect_uris = [\"https://phone.example/\"]\n";
    let browser = Browser::of(Running::start(&format!("{}{phone}", settings())).await);
    let changes = [("client_id", "phone"), ("redirect_uri", "https://phone.example/")];
    let form = |code: &str, verifier: &str| {
        let form = [
            ("grant_type", "authorization_code"),
            ("client_id", "phone"),
            ("code", code),
            ("redirect_uri", "https://phone.example/"),
            ("code_verifier", verifier),
        ];
        form.map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    let post = async |form: &[(String, String)]| {
        let form: Vec<(&str, &str)> =
            form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        browser.server.post(&form).await
    };
    let code = browser.code(&changes).await;
    let (status, reply) = post(&form(&code, VERIFIER)).await;
    assert_eq!(status, 200, "{reply}");
    let refresh = [
        ("grant_type", "refresh_token"),
        ("client_id", "phone"),
        ("refresh_token", text(&reply, "refresh_token")),
    ];
    assert_eq!(browser.server.post(&refresh).await.0, 200);
    let code = browser.code(&changes).await;
    assert_eq!(post(&form(&code, "wrong")).await.0, 400);
    let changed = [changes[0], changes[1], ("code_challenge", ""), ("code_challenge_method", "")];
    let answer = crate::support::returned(&browser.authorize(&changed).await);
    assert_eq!(answer["error"], "invalid_request");
    assert_eq!(browser.server.ask("phone", "guess", &refresh).await.0, 401, "it has no secret");
    assert_eq!(browser.server.post(&[("client_id", "app"), refresh[0], refresh[2]]).await.0, 401);
}

#[tokio::test]
async fn forms_of_other_sites_and_forms_that_were_changed_are_refused() {
    let browser = Browser::new().await;
    let form = Form::read(browser.authorize(&[]).await.text().await.unwrap());
    let url = browser.server.url(&form.action);
    let request = form.fields[0].1.clone();
    let right = [("request", request.as_str()), ("username", "ada"), ("password", "pa55 word")];
    let foreign =
        browser.http.post(&url).header("sec-fetch-site", "cross-site").form(&right).send().await.unwrap();
    assert_eq!(foreign.status(), 403);
    let own =
        browser.http.post(&url).header("sec-fetch-site", "same-origin").form(&right).send().await.unwrap();
    assert_eq!(own.status(), 200);
    let (text, signature) = request.split_once('.').unwrap();
    let swapped: String = text.chars().rev().collect();
    for wrong in [
        format!("{swapped}.{signature}"),
        format!("{text}.AAAA"),
        text.to_owned(),
        String::new(),
        "x".repeat(60_000),
    ] {
        let form = [("request", wrong.as_str()), ("username", "ada"), ("password", "pa55 word")];
        assert_eq!(browser.http.post(&url).form(&form).send().await.unwrap().status(), 400);
    }
    let other = Browser::new().await;
    let there = other.http.post(other.server.url(&form.action)).form(&right).send().await.unwrap();
    assert_eq!(there.status(), 400, "a form of another server");
}

#[tokio::test]
async fn a_sign_in_page_survives_a_restart_and_its_consent_is_for_one_person_only() {
    let browser = Browser::new().await;
    let form = Form::read(browser.authorize(&[]).await.text().await.unwrap());
    let browser = Browser::of(browser.server.again(&settings()).await);
    let first = browser.submit(&form, &[("username", "ada"), ("password", "pa55 word")]).await;
    let first = Form::read(first.text().await.unwrap());
    let second = browser.submit(&form, &[("username", "bob"), ("password", "letmein")]).await;
    let second = Form::read(second.text().await.unwrap());
    assert_ne!(first.fields, second.fields, "whoever saw the sign-in page knows nothing of the consent page");
    assert_eq!(browser.submit(&second, &[("decision", "deny")]).await.status(), 303);
    assert_eq!(browser.submit(&first, &[("decision", "allow")]).await.status(), 303);
}

#[tokio::test]
async fn nothing_that_came_from_outside_becomes_html() {
    let named = settings()
        .replace("[services.auth.clients.app]", "[services.auth.clients.app]\nname = \"<img src=x> & 'Co'\"");
    let browser = Browser::of(Running::start(&named).await);
    let state = "\"><script>alert(1)</script>";
    let changes = [("state", state), ("login_hint", state), ("nonce", state), ("ui_locales", state)];
    let page = browser.authorize(&changes).await;
    let policy = page.headers().get("content-security-policy").unwrap().to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for (name, value) in [
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(page.headers().get(name).unwrap(), value);
    }
    let form = Form::read(page.text().await.unwrap());
    let wrong = browser.submit(&form, &[("username", state), ("password", "x")]).await.text().await.unwrap();
    let consent =
        browser.submit(&form, &[("username", "ada"), ("password", "pa55 word")]).await.text().await.unwrap();
    for html in [&form.html, &wrong, &consent] {
        assert!(!html.contains("<script") && !html.contains("<img"), "{html}");
        assert!(html.contains("&lt;img src=x&gt; &amp; &#39;Co&#39;"));
    }
    let problem = browser.authorize(&[("client_id", state)]).await.text().await.unwrap();
    assert!(!problem.contains("<script"));
}

#[tokio::test]
async fn large_and_odd_requests_are_refused_cheaply() {
    let browser = Browser::new().await;
    let long = "x".repeat(3000);
    for name in ["state", "nonce", "scope", "code_challenge", "audience"] {
        let answer = crate::support::returned(&browser.authorize(&[(name, &long)]).await);
        assert!(answer.contains_key("error"), "{name}");
    }
    assert_eq!(browser.authorize(&[("state", &"x".repeat(20_000))]).await.status(), 400);
    let many: Vec<(&str, &str)> = std::iter::repeat_n(("resource", "https://a"), 11).chain([GRANT]).collect();
    let server = Running::start(CLIENTS).await;
    let (status, reply) = server.ask("lab", "lab-secret", &many).await;
    assert_eq!((status, text(&reply, "error")), (400, "invalid_target"));
    for (changes, error) in [
        (("prompt", "none"), "login_required"),
        (("response_mode", "fragment"), "invalid_request"),
        (("request_uri", "https://x/"), "request_uri_not_supported"),
    ] {
        assert_eq!(crate::support::returned(&browser.authorize(&[changes]).await)["error"], error);
    }
    let twice = browser.server.url("/oauth2/authorize?client_id=app&client_id=old");
    assert_eq!(browser.http.get(twice).send().await.unwrap().status(), 400);
    let url = browser.server.url("/oauth2/authorize");
    let posted = browser.http.post(url).form(&Browser::request(&[])).send().await.unwrap();
    assert_eq!(posted.status(), 200, "OpenID Connect asks for POST as well");
}

#[tokio::test]
async fn tokens_that_anybody_could_make_are_not_ours() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let server = Running::start(CLIENTS).await;
    let (_, reply) = server.ask("lab", "lab-secret", &[GRANT]).await;
    let token = text(&reply, "access_token");
    let parts: Vec<&str> = token.split('.').collect();
    let header = |header: serde_json::Value| URL_SAFE_NO_PAD.encode(header.to_string());
    let none = header(json!({ "alg": "none", "typ": "at+jwt" }));
    let symmetric = header(json!({ "alg": "HS256", "typ": "at+jwt" }));
    let client = ("lab", "lab-secret");
    assert_eq!(server.introspect(client, token).await["active"], true);
    for forged in [
        format!("{none}.{}.", parts[1]),
        format!("{symmetric}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
    ] {
        assert_eq!(server.introspect(client, &forged).await["active"], false, "{forged}");
    }
}
