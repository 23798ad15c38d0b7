//! The requirements on an authorization server, each as a test named after it: O-14 and O-20 to O-27 of the list
//! that issue 4 names (`O-NN` in its words, shortened, above each test). What one sentence asks in more depth is
//! tested in the other files of this folder; O-26's other half, the application, is the production `risk-app`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Browser, CLIENTS, Form, GRANT, Running, parts, problems_of, returned, settings, text};

/// Client id and secret are shown once after registration; scopes such as `user/*.read`; client credentials as
/// Postman sends them.
#[tokio::test]
async fn o_14_a_registered_client_gets_tokens_with_fhir_scopes() {
    let server = Running::start(
        "registration = { token = \"t\", grants = [\"client_credentials\"] }\nscopes = { \"user/*.read\" = \"Read\", \"system/Observation.rs?category=laboratory\" = \"Search\" }\n",
    )
    .await;
    let metadata = json!({ "client_name": "postman", "grant_types": ["client_credentials"] });
    let request = server.http.post(server.url("/oauth2/register")).bearer_auth("t").json(&metadata);
    let client: Value = request.send().await.unwrap().json().await.unwrap();
    let (id, secret) = (text(&client, "client_id"), text(&client, "client_secret"));
    let scope = "user/*.read system/Observation.rs?category=laboratory";
    for by_body in [false, true] {
        let mut form = vec![GRANT, ("scope", scope)];
        let client = if by_body {
            form.extend([("client_id", id), ("client_secret", secret)]);
            None
        } else {
            Some((id, secret))
        };
        let (status, reply) = server.send("/oauth2/token", client, &form).await;
        assert_eq!((status, text(&reply, "scope")), (200, scope), "{reply}");
        assert_eq!(parts(text(&reply, "access_token")).1["scope"], scope);
    }
}

/// Issuer with a prefix; discovery and key set are served; all endpoints.
#[tokio::test]
async fn o_20_everything_is_found_below_the_issuer() {
    let port = crate::support::free_port();
    let issuer = format!("http://127.0.0.1:{port}/authserver/main");
    let clock =
        std::sync::Arc::new(septet_engine::clock::ManualClock::new("2026-11-22T08:00:00Z".parse().unwrap()));
    let store = septet_engine::store::Store::memory(clock.clone());
    let settings = format!("registration = true\n{}", settings());
    let server = Running::over(store, clock, port, &issuer, &settings).await;
    let document = server.get("/.well-known/openid-configuration").await;
    assert_eq!(document, server.get("/.well-known/oauth-authorization-server").await);
    assert_eq!(document["issuer"], *issuer);
    for (name, path) in [
        ("authorization", "authorize"),
        ("token", "token"),
        ("userinfo", "userinfo"),
        ("introspection", "introspect"),
        ("revocation", "revoke"),
        ("registration", "register"),
    ] {
        let url = text(&document, &format!("{name}_endpoint")).to_owned();
        assert_eq!(url, format!("{issuer}/oauth2/{path}"));
        let status = server.http.get(&url).send().await.unwrap().status();
        assert!(matches!(status.as_u16(), 400 | 401 | 405), "{name} is there: {status}");
    }
    let keys =
        server.http.get(text(&document, "jwks_uri")).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
}

/// Codes and assertions, S256, exact redirect URI, state echoed, single use within 60 s, `ui_locales` on the pages,
/// scope descriptions on the consent page.
#[tokio::test]
async fn o_21_the_code_flow_holds_to_the_letter_and_speaks_the_persons_language() {
    let browser = Browser::new().await;
    for (locale, lang, sign_in, allow) in [
        ("ja", "ja", "サインイン", "許可"),
        ("fr de", "de", "Anmelden", "Erlauben"),
        ("en-GB", "en", "Sign in", "Allow"),
        ("xx", "de", "Anmelden", "Erlauben"),
    ] {
        let url = browser.server.url("/oauth2/authorize");
        let query = Browser::request(&[("ui_locales", locale)]);
        let page = browser.http.get(url).query(&query).header("accept-language", "de-AT, en;q=0.5");
        let form = Form::read(page.send().await.unwrap().text().await.unwrap());
        assert!(
            form.html.contains(&format!("<html lang=\"{lang}\">")) && form.html.contains(sign_in),
            "{}",
            form.html
        );
        let wrong =
            browser.submit(&form, &[("username", "ada"), ("password", "x")]).await.text().await.unwrap();
        assert!(wrong.contains(&format!("<html lang=\"{lang}\">")) && wrong.contains("role=\"alert\""));
        let consent = browser.submit(&form, &[("username", "ada"), ("password", "pa55 word")]).await;
        let consent = Form::read(consent.text().await.unwrap());
        assert!(consent.html.contains(&format!("value=\"allow\">{allow}</button>")), "{}", consent.html);
        assert!(consent.html.contains("Submit &lt;your&gt; results"));
        let answer = returned(&browser.submit(&consent, &[("decision", "allow")]).await);
        assert_eq!(answer["state"], "st&te=ü");
        assert_eq!(browser.redeem(&answer["code"], &[]).await.0, 200);
        assert_eq!(browser.redeem(&answer["code"], &[]).await.0, 400, "once");
    }
    let document = browser.server.get("/.well-known/openid-configuration").await;
    assert_eq!(document["ui_locales_supported"], json!(["en", "de", "ja"]));
    assert!(
        document["grant_types_supported"]
            .as_array()
            .unwrap()
            .contains(&json!("urn:ietf:params:oauth:grant-type:jwt-bearer"))
    );
    let code = browser.code(&[]).await;
    browser.server.clock.advance(Duration::from_secs(59));
    assert_eq!(browser.redeem(&code, &[]).await.0, 200);
    let code = browser.code(&[]).await;
    browser.server.clock.advance(Duration::from_secs(60));
    assert_eq!(browser.redeem(&code, &[]).await.0, 400, "sixty seconds");
    let problem =
        browser.http.get(browser.server.url("/oauth2/authorize?ui_locales=ja")).send().await.unwrap();
    assert_eq!(problem.headers().get("content-language").unwrap(), "ja");
}

/// JWT access tokens, RS512 selectable; an algorithm for each client's assertions; `none` and algorithm confusion
/// refused. (Per-client algorithms: `assertion::a_client_may_be_held_to_one_algorithm`; forged tokens:
/// `hostile::tokens_that_anybody_could_make_are_not_ours`.)
#[tokio::test]
async fn o_22_the_algorithm_is_chosen_here_and_by_nobody_else() {
    for algorithm in ["RS512", "ES384"] {
        let server = Running::start(&format!("signing_alg = \"{algorithm}\"\n{CLIENTS}")).await;
        let (_, reply) = server.ask("lab", "lab-secret", &[GRANT]).await;
        let (header, _) = parts(text(&reply, "access_token"));
        assert_eq!((&header["alg"], &header["typ"]), (&json!(algorithm), &json!("at+jwt")));
        let key = &server.get("/oauth2/jwks").await["keys"][0];
        assert_eq!(
            (&key["alg"], &key["use"], &key["kid"]),
            (&json!(algorithm), &json!("sig"), &header["kid"])
        );
    }
}

/// Client descriptions: name, confidential or public, redirect URIs, grants within the server's; registration.
#[tokio::test]
async fn o_23_a_client_is_described_by_name_kind_addresses_and_grants() {
    let phone = "[services.auth.clients.phone]\nname = \"Ward phone\"\npublic = true\ngrants = [\"authorization_code\"]\nredirect_uris = [\"com.example.ward:/back\"]\n";
    let browser = Browser::of(Running::start(&format!("{}{phone}", settings())).await);
    let changes = [("client_id", "phone"), ("redirect_uri", "com.example.ward:/back")];
    let page = browser.authorize(&changes).await.text().await.unwrap();
    assert!(page.contains("<strong>Ward phone</strong>"));
    assert!(browser.answer(&changes, ("bob", "letmein"), "allow").await.contains_key("code"));
    let (status, reply) = browser.server.ask("app", "app-secret", &[GRANT]).await;
    assert_eq!((status, text(&reply, "error")), (400, "unauthorized_client"), "not one of its grants");
}

/// `openid` gives an id token, without it none; nonce and audience are right.
#[tokio::test]
async fn o_24_openid_gives_an_id_token_for_the_client_with_its_nonce() {
    let browser = Browser::new().await;
    let tokens = browser.tokens(&[("scope", "openid"), ("nonce", "n-77")]).await;
    let (_, id) = parts(text(&tokens, "id_token"));
    assert_eq!((&id["aud"], &id["nonce"], &id["sub"]), (&json!("app"), &json!("n-77"), &json!("ada")));
    let without = browser.tokens(&[("scope", "results:read")]).await;
    assert!(without.get("id_token").is_none());
}

/// The TLS certificate must match the host: a client that trusts its authority gets a token under the right name
/// and nothing under another, and the server says why. Plain http only on loopback.
#[tokio::test]
async fn o_25_off_loopback_it_is_https_and_the_certificate_must_match_its_host() {
    assert_eq!(problems_of("127.0.0.1", "http://127.0.0.1:8791", CLIENTS), [""; 0]);
    assert_eq!(problems_of("127.0.0.1", "http://auth.example", CLIENTS).len(), 1);
    assert_eq!(problems_of("0.0.0.0", "https://auth.example", CLIENTS).len(), 1);
    let redirect = "[services.auth.clients.x]\nsecret = \"x\"\ngrants = [\"authorization_code\"]\nredirect_uris = [\"http://app.example/\"]\n";
    assert_eq!(problems_of("127.0.0.1", "http://127.0.0.1:8791", redirect).len(), 1);

    let files = format!("{}/../tests/support/tls", env!("CARGO_MANIFEST_DIR"));
    for (certificate, fits) in [("server", true), ("other", false)] {
        let (clock, store) = crate::support::clock_and_store();
        let port = crate::support::free_port();
        let issuer = format!("https://localhost:{port}");
        let tls = format!(
            "tls = {{ cert = \"{files}/{certificate}.pem\", key = \"{files}/{certificate}.key\" }}\n{CLIENTS}"
        );
        let server = Running::bind(store, clock, port, &issuer, &tls).await;
        let authority = std::fs::read(format!("{files}/ca.pem")).unwrap();
        let authority = reqwest::Certificate::from_pem(&authority).unwrap();
        let http = reqwest::Client::builder().no_proxy().add_root_certificate(authority).build().unwrap();
        let request =
            http.post(server.url("/oauth2/token")).basic_auth("lab", Some("lab-secret")).form(&[GRANT]);
        assert_eq!(request.send().await.is_ok(), fits, "{certificate}");
        let warned =
            server.events("item.error").iter().any(|event| event.text.contains("is not for localhost"));
        assert_eq!(warned, !fits, "{certificate}");
    }
}

/// The code flow with `state`, swapped server side with the secret; refresh without the person, rotated; revocation
/// cuts access.
#[tokio::test]
async fn o_26_an_application_stays_connected_without_the_person_until_it_is_revoked() {
    let browser = Browser::new().await;
    let mut tokens = browser.tokens(&[]).await;
    for _ in 0..3 {
        browser.server.clock.advance(Duration::from_secs(3600));
        let old = text(&tokens, "refresh_token").to_owned();
        let (status, next) = browser.refresh(&old, &[]).await;
        assert_eq!(status, 200, "{next}");
        assert_ne!(text(&next, "refresh_token"), old, "rotated");
        tokens = next;
    }
    let access = text(&tokens, "access_token");
    let verifier = browser.server.verifier(|auth| auth.scope = Some("results:write".into()));
    assert!(verifier.verify(Some(&format!("Bearer {access}"))).await.is_ok());
    let app = ("app", "app-secret");
    let form = [("token", text(&tokens, "refresh_token"))];
    assert_eq!(browser.server.send("/oauth2/revoke", Some(app), &form).await.0, 200);
    assert_eq!(browser.server.introspect(app, access).await["active"], false, "at once, for those who ask");
    browser.server.clock.advance(Duration::from_secs(3600 + 60));
    assert!(
        verifier.verify(Some(&format!("Bearer {access}"))).await.is_err(),
        "within its lifetime, for the rest"
    );
    assert_eq!(browser.refresh(text(&tokens, "refresh_token"), &[]).await.0, 400);
}

/// Standard `grant_type=refresh_token`; PKCE is required unless a client is excused.
#[tokio::test]
async fn o_27_there_are_no_shortcuts() {
    let browser = Browser::new().await;
    let tokens = browser.tokens(&[]).await;
    let refresh = browser
        .http
        .post(browser.server.url("/refresh"))
        .form(&[("refresh_token", text(&tokens, "refresh_token"))]);
    assert_eq!(refresh.send().await.unwrap().status(), 404);
    assert_eq!(browser.refresh(text(&tokens, "refresh_token"), &[]).await.0, 200);
    let without = [("code_challenge", ""), ("code_challenge_method", "")];
    assert_eq!(returned(&browser.authorize(&without).await)["error"], "invalid_request");
    assert_eq!(returned(&browser.authorize(&without).await)["state"], "st&te=ü");
}
