//! The verifier against an issuer of the tests' own and against hand-made hostile tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Header;
use septet_engine::clock::{Clock, ManualClock};
use septet_engine::config::settings::Secret;
use septet_engine::config::units::Strings;
use septet_oauth::keys::{Algorithm, SigningKey};
use septet_oauth::{Auth, Check, Claims, Presented, Refusal, Verifier, Wanted, check_auth};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{Server, json as reply};

/// An issuer with keys, and a verifier that trusts it.
struct Bench {
    issuer: String,
    server: Server,
    published: Arc<Mutex<Vec<Value>>>,
    key: SigningKey,
    clock: Arc<ManualClock>,
    verifier: Verifier,
}

impl Bench {
    async fn new(algorithm: Algorithm, change: impl FnOnce(&mut Auth)) -> Bench {
        let key = SigningKey::generate(algorithm).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let published = Arc::new(Mutex::new(vec![key.public()]));
        let (keys, name) = (published.clone(), issuer.clone());
        let server = Server::on(listener, move |seen, _| match seen.path.as_str() {
            "/.well-known/openid-configuration" => {
                reply(200, &json!({ "issuer": name, "jwks_uri": format!("{name}/keys") }).to_string())
            }
            "/keys" => reply(200, &json!({ "keys": *keys.lock().unwrap() }).to_string()),
            _ => reply(404, "{}"),
        });
        let clock = Arc::new(ManualClock::new("2026-11-22T08:00:00Z".parse().unwrap()));
        let mut auth = Auth { issuer: Some(issuer.clone()), ..Auth::default() };
        auth.audience = Strings(vec!["api://results".into(), "lab".into()]);
        auth.scope = Some("results:write".into());
        change(&mut auth);
        assert_eq!(check_auth(&auth), []);
        let verifier = Verifier::with_timeout(auth, clock.clone(), Duration::from_secs(2));
        Bench { issuer, server, published, key, clock, verifier }
    }

    fn claims(&self) -> Value {
        let now = self.clock.now().as_second();
        json!({
            "iss": self.issuer, "aud": "lab", "exp": now + 60, "iat": now, "sub": "lab",
            "client_id": "lab", "scope": "other results:write",
        })
    }

    /// A good token with some claims changed; `null` takes a claim away.
    fn token(&self, changes: Value) -> String {
        let mut claims = self.claims();
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => claims.as_object_mut().unwrap().remove(name),
                value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
            };
        }
        self.key.sign_with(Header::new(self.key.algorithm()), &claims).unwrap()
    }

    async fn verify(&self, token: &str) -> Result<Claims, Refusal> {
        self.verifier.verify(Some(&format!("Bearer {token}"))).await
    }

    async fn refused(&self, token: &str) -> Refusal {
        self.verify(token).await.expect_err("the token should be refused")
    }

    fn fetches(&self, path: &str) -> usize {
        self.server.seen().iter().filter(|seen| seen.path == path).count()
    }
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

// === what is accepted ===

#[tokio::test]
async fn a_good_token_of_every_algorithm_is_accepted_and_the_keys_are_fetched_once() {
    for algorithm in [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::ES256,
        Algorithm::ES384,
    ] {
        let bench = Bench::new(algorithm, |_| {}).await;
        assert_eq!(bench.server.count(), 0, "nothing is fetched before the first token");
        for _ in 0..3 {
            let claims = bench.verify(&bench.token(json!({}))).await.unwrap();
            assert_eq!((claims.subject(), claims.client()), (Some("lab"), Some("lab")));
            assert_eq!(claims.scopes, ["other", "results:write"]);
        }
        assert_eq!(bench.fetches("/keys"), 1);
    }
}

#[tokio::test]
async fn scopes_and_audiences_are_found_wherever_issuers_put_them() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    for changes in [
        json!({ "scope": ["results:write"] }),
        json!({ "scope": null, "scp": "a results:write" }),
        json!({ "scope": null, "scp": ["a", "results:write"] }),
        json!({ "scope": null, "roles": ["results:write"] }),
        json!({ "scope": "a", "roles": "results:write" }),
        json!({ "aud": ["x", "api://results"] }),
        json!({ "exp": 4_000_000_000.5, "nbf": 0 }),
    ] {
        assert!(bench.verify(&bench.token(changes.clone())).await.is_ok(), "{changes}");
    }
}

#[tokio::test]
async fn clocks_may_differ_by_a_minute() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    let now = bench.clock.now().as_second();
    assert!(bench.verify(&bench.token(json!({ "exp": now - 59, "nbf": now + 60 }))).await.is_ok());
    assert_eq!(bench.refused(&bench.token(json!({ "exp": now - 60 }))).await.check, Check::Exp);
    assert_eq!(bench.refused(&bench.token(json!({ "nbf": now + 61 }))).await.check, Check::Nbf);
    let token = bench.token(json!({}));
    bench.clock.advance(Duration::from_secs(119));
    assert!(bench.verify(&token).await.is_ok());
    bench.clock.advance(Duration::from_secs(1));
    assert_eq!(bench.refused(&token).await.check, Check::Exp);
}

// === what is refused ===

#[tokio::test]
async fn each_refusal_names_its_check_with_both_values() {
    let bench = Bench::new(Algorithm::RS256, |_| {}).await;
    let issuer = bench.issuer.clone();
    for (changes, check, expected, actual) in [
        (json!({ "iss": "https://evil.example" }), Check::Iss, issuer.as_str(), "https://evil.example"),
        (json!({ "iss": null }), Check::Iss, &issuer, "none"),
        (json!({ "iss": format!("{issuer}/") }), Check::Iss, &issuer, &format!("{issuer}/")),
        (json!({ "aud": ["x", "y"] }), Check::Aud, "api://results or lab", "x y"),
        (json!({ "aud": null }), Check::Aud, "api://results or lab", "none"),
        (json!({ "exp": null }), Check::Exp, "later than 2026-11-22T08:00:00Z", "none"),
        (json!({ "exp": "tomorrow" }), Check::Exp, "later than 2026-11-22T08:00:00Z", "none"),
        (json!({ "exp": 0 }), Check::Exp, "later than 2026-11-22T08:00:00Z", "1970-01-01T00:00:00Z"),
        (json!({ "nbf": "x" }), Check::Nbf, "not later than 2026-11-22T08:00:00Z", "not a time"),
        (json!({ "scope": "results:read" }), Check::Scope, "results:write", "results:read"),
        (json!({ "scope": null }), Check::Scope, "results:write", "none"),
    ] {
        let refusal = bench.refused(&bench.token(changes)).await;
        assert_eq!(
            (refusal.check, refusal.expected.as_str(), refusal.actual.as_str()),
            (check, expected, actual)
        );
        let event = refusal.event();
        assert_eq!((event.kind, event.text.as_str()), ("auth.refused", check.as_str()));
        assert_eq!(event.detail.unwrap().0, format!("expected {expected}, got {actual}"));
        let header = refusal.www_authenticate.clone().unwrap();
        if check == Check::Scope {
            assert_eq!(refusal.status, 403);
            assert_eq!(header, r#"Bearer realm="septet", error="insufficient_scope", scope="results:write""#);
        } else {
            assert_eq!(refusal.status, 401);
            assert!(header.starts_with(r#"Bearer realm="septet", error="invalid_token""#), "{header}");
        }
        assert!(!format!("{refusal:?} {refusal}").contains(actual), "Debug must not show the peer's values");
    }
}

#[tokio::test]
async fn a_request_without_a_bearer_token_is_told_what_is_missing() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    for header in [None, Some(""), Some("Bearer"), Some("Bearer  "), Some("Basic bGFiOmxhYg==")] {
        let refusal = bench.verifier.verify(header).await.unwrap_err();
        assert_eq!((refusal.check, refusal.status), (Check::Missing, 401), "{header:?}");
        assert_eq!(refusal.www_authenticate.as_deref(), Some(r#"Bearer realm="septet""#));
    }
    assert!(bench.verifier.verify(Some(&format!("bEaReR   {}", bench.token(json!({}))))).await.is_ok());
}

#[tokio::test]
async fn unsigned_tokens_and_confused_algorithms_are_refused() {
    let bench = Bench::new(Algorithm::RS256, |_| {}).await;
    let claims = encoded(&bench.claims());
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let token = format!("{}.{claims}.", encoded(&json!({ "alg": none, "typ": "at+jwt" })));
        assert_eq!(bench.refused(&token).await.check, Check::Alg, "{none}");
    }
    assert_eq!(bench.refused(&format!("{}.{claims}.", encoded(&json!({})))).await.check, Check::Alg);
    // HMAC with the public key as the secret, in the forms that libraries have fallen for.
    let public = bench.key.public();
    let modulus = URL_SAFE_NO_PAD.decode(public["n"].as_str().unwrap()).unwrap();
    for secret in
        [modulus, public.to_string().into_bytes(), public["n"].as_str().unwrap().as_bytes().to_vec()]
    {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(bench.key.key_id().to_owned());
        let key = jsonwebtoken::EncodingKey::from_secret(&secret);
        let token = jsonwebtoken::encode(&header, &bench.claims(), &key).unwrap();
        let refusal = bench.refused(&token).await;
        assert_eq!((refusal.check, refusal.actual.as_str()), (Check::Alg, "HS256"));
    }
    // An accepted algorithm, but not the one the issuer ties the key to.
    let rs384 = SigningKey::from_pem(bench.key.pem(), Some(Algorithm::RS384)).unwrap();
    let mut header = Header::new(Algorithm::RS384);
    header.kid = Some(bench.key.key_id().to_owned());
    assert_eq!(bench.refused(&rs384.sign_with(header, &bench.claims()).unwrap()).await.check, Check::Alg);
    // An elliptic signature under the name of an RSA key.
    let ec = SigningKey::generate(Algorithm::ES256).unwrap();
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(bench.key.key_id().to_owned());
    assert_eq!(bench.refused(&ec.sign_with(header, &bench.claims()).unwrap()).await.check, Check::Alg);
}

#[tokio::test]
async fn an_algorithm_outside_the_list_is_refused_though_its_signature_is_good() {
    let bench =
        Bench::new(Algorithm::RS256, |auth| auth.algorithms = Strings(vec!["ES256".into(), "PS256".into()]))
            .await;
    let refusal = bench.refused(&bench.token(json!({}))).await;
    assert_eq!(
        (refusal.check, refusal.expected.as_str(), refusal.actual.as_str()),
        (Check::Alg, "ES256 PS256", "RS256")
    );
    assert_eq!(bench.server.count(), 0, "no key is needed to say so");
}

#[tokio::test]
async fn a_changed_token_does_not_verify() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    let token = bench.token(json!({ "scope": "results:read" }));
    let parts: Vec<&str> = token.split('.').collect();
    let raised = format!("{}.{}.{}", parts[0], encoded(&bench.claims()), parts[2]);
    assert_eq!(bench.refused(&raised).await.check, Check::Sig);
    assert_eq!(bench.refused(&format!("{}.{}.", parts[0], parts[1])).await.check, Check::Sig);
    assert_eq!(bench.refused(&format!("{}.{}.!!", parts[0], parts[1])).await.check, Check::Malformed);
    assert_eq!(bench.refused(&format!("{}.{}.==", parts[0], parts[1])).await.check, Check::Sig);
    let forger = SigningKey::generate(Algorithm::ES256).unwrap();
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(bench.key.key_id().to_owned());
    assert_eq!(bench.refused(&forger.sign_with(header, &bench.claims()).unwrap()).await.check, Check::Sig);
    // A key that the token brings along counts for nothing.
    let mut header = Header::new(Algorithm::ES256);
    header.jwk = Some(serde_json::from_value(forger.public()).unwrap());
    header.jku = Some(bench.server.url("/forged"));
    header.kid = Some("forged".into());
    assert_eq!(bench.refused(&forger.sign_with(header, &bench.claims()).unwrap()).await.check, Check::Kid);
    assert_eq!(bench.fetches("/forged"), 0);
}

#[tokio::test]
async fn a_token_with_any_one_character_changed_is_refused() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    let token = bench.token(json!({}));
    assert!(bench.verify(&token).await.is_ok());
    for place in 0..token.len() {
        for other in ["A", "_", ".", "="] {
            let mut changed = token.clone();
            changed.replace_range(place..=place, other);
            assert!(changed == token || bench.verify(&changed).await.is_err(), "{other} at {place}");
        }
    }
}

#[tokio::test]
async fn a_token_of_another_type_is_refused() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    let typed = |typ: Option<&str>| {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = typ.map(str::to_owned);
        bench.key.sign_with(header, &bench.claims()).unwrap()
    };
    for good in [None, Some("JWT"), Some("at+jwt"), Some("AT+JWT"), Some("application/at+jwt")] {
        assert!(bench.verify(&typed(good)).await.is_ok(), "{good:?}");
    }
    for bad in ["logout+jwt", "dpop+jwt", "secevent+jwt", ""] {
        assert_eq!(bench.refused(&typed(Some(bad))).await.check, Check::Typ, "{bad}");
    }
    let mut header = Header::new(Algorithm::ES256);
    header.crit = Some(vec!["exp".into()]);
    assert_eq!(
        bench.refused(&bench.key.sign_with(header, &bench.claims()).unwrap()).await.check,
        Check::Malformed
    );
}

#[tokio::test]
async fn what_is_no_jwt_is_malformed_and_costs_no_fetch() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    let good = bench.token(json!({}));
    let huge = format!("{good}{}", "A".repeat(16 * 1024));
    for token in
        ["opaque", "a.b", "a.b.c", "a.b.c.d.e", "..", "eyJ9.e30.x", "e30=.e30=.x", "W10.W10.x", huge.as_str()]
    {
        assert_eq!(bench.refused(token).await.check, Check::Malformed, "{token:.20}");
    }
    assert_eq!(bench.server.count(), 0);
}

// === keys ===

#[tokio::test]
async fn an_unknown_key_is_looked_for_once_in_ten_seconds() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    assert!(bench.verify(&bench.token(json!({}))).await.is_ok());
    let stranger = SigningKey::generate(Algorithm::ES256).unwrap();
    let token = stranger.sign_with(Header::new(Algorithm::ES256), &bench.claims()).unwrap();
    for _ in 0..20 {
        let refusal = bench.refused(&token).await;
        assert_eq!((refusal.check, refusal.actual.as_str()), (Check::Kid, stranger.key_id()));
    }
    assert_eq!(bench.fetches("/keys"), 2);
    // The issuer gets a new key: it is seen as soon as the ten seconds are over.
    bench.published.lock().unwrap().push(stranger.public());
    bench.clock.advance(Duration::from_secs(9));
    assert_eq!(bench.refused(&token).await.check, Check::Kid);
    bench.clock.advance(Duration::from_secs(1));
    assert!(bench.verify(&token).await.is_ok());
    assert_eq!((bench.fetches("/keys"), bench.fetches("/.well-known/openid-configuration")), (3, 1));
}

#[tokio::test]
async fn a_rolled_over_key_is_found_at_once() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    assert!(bench.verify(&bench.token(json!({}))).await.is_ok());
    let next = SigningKey::generate(Algorithm::ES256).unwrap();
    bench.published.lock().unwrap().push(next.public());
    let token = next.sign_with(Header::new(Algorithm::ES256), &bench.claims()).unwrap();
    assert!(bench.verify(&token).await.is_ok());
}

#[tokio::test]
async fn many_first_callers_share_one_fetch() {
    let bench = Arc::new(Bench::new(Algorithm::ES256, |_| {}).await);
    let token = bench.token(json!({}));
    let callers: Vec<_> = (0..30)
        .map(|_| {
            let (bench, token) = (bench.clone(), token.clone());
            tokio::spawn(async move { bench.verify(&token).await.is_ok() })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.unwrap());
    }
    assert_eq!(bench.fetches("/keys"), 1);
}

#[tokio::test]
async fn two_services_of_one_issuer_share_its_keys() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    let auth = Auth { issuer: Some(bench.issuer.clone()), ..Auth::default() };
    let second = Verifier::with_timeout(auth, bench.clock.clone(), Duration::from_secs(2));
    assert!(bench.verify(&bench.token(json!({}))).await.is_ok());
    assert!(second.verify(Some(&format!("Bearer {}", bench.token(json!({}))))).await.is_ok());
    assert_eq!(bench.fetches("/keys"), 1);
}

#[tokio::test]
async fn a_stranger_s_token_names_the_issuer_and_causes_no_second_fetch() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    assert!(bench.verify(&bench.token(json!({}))).await.is_ok());
    let stranger = SigningKey::generate(Algorithm::ES256).unwrap();
    let mut claims = bench.claims();
    claims["iss"] = "https://other.example".into();
    let token = stranger.sign_with(Header::new(Algorithm::ES256), &claims).unwrap();
    assert_eq!(bench.refused(&token).await.check, Check::Iss);
    assert_eq!(bench.fetches("/keys"), 1);
}

#[tokio::test]
async fn keys_without_an_id_are_tried() {
    let bench = Bench::new(Algorithm::RS256, |_| {}).await;
    let mut unnamed = bench.key.public();
    unnamed.as_object_mut().unwrap().remove("kid");
    let other = SigningKey::generate(Algorithm::RS256).unwrap();
    *bench.published.lock().unwrap() = vec![other.public(), unnamed];
    let claims = encoded(&bench.claims());
    let message = format!("{}.{claims}", encoded(&json!({ "alg": "RS256" })));
    let key = jsonwebtoken::EncodingKey::from_rsa_pem(bench.key.pem().as_bytes()).unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::RS256).unwrap();
    assert!(bench.verify(&format!("{message}.{signature}")).await.is_ok());
}

#[tokio::test]
async fn an_issuer_that_cannot_be_reached_is_no_fault_of_the_token() {
    let mut bench = Bench::new(Algorithm::ES256, |_| {}).await;
    let token = bench.token(json!({}));
    bench.server.script(|_, _| reply(500, "{}"));
    for _ in 0..10 {
        let refusal = bench.refused(&token).await;
        assert_eq!((refusal.check, refusal.status, refusal.www_authenticate), (Check::Keys, 503, None));
    }
    let asked = bench.server.count();
    assert!(asked <= 3, "one look at each well-known place, not one per request: {asked}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = format!("http://{}", listener.local_addr().unwrap());
    // The issuer must be who it says it is.
    let server =
        Server::on(listener, |_, _| reply(200, r#"{"issuer":"https://other.example","jwks_uri":"x"}"#));
    let token = bench.token(json!({ "iss": elsewhere }));
    let auth = Auth { issuer: Some(elsewhere), ..Auth::default() };
    bench.verifier = Verifier::with_timeout(auth, bench.clock.clone(), Duration::from_secs(2));
    let refusal = bench.refused(&token).await;
    assert!(refusal.actual.contains("https://other.example"), "{}", refusal.actual);
    drop(server);
}

// === introspection ===

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

// === bound tokens, SMART, hostile tokens ===

#[tokio::test]
async fn a_token_bound_to_a_certificate_is_good_with_that_certificate_only() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    let (ours, other) = ([7; 32], [8; 32]);
    let thumbprint = URL_SAFE_NO_PAD.encode(ours);
    let header = format!("Bearer {}", bench.token(json!({ "cnf": { "x5t#S256": thumbprint } })));
    let judged = async |certificate| {
        let shown = Presented { authorization: Some(&header), certificate, ..Presented::default() };
        bench.verifier.judge(shown).await.map(|_| ()).map_err(|refusal| (refusal.check, refusal.status))
    };
    assert_eq!(judged(Some(ours)).await, Ok(()));
    assert_eq!(judged(Some(other)).await, Err((Check::Cnf, 401)));
    assert_eq!(judged(None).await, Err((Check::Cnf, 401)));
    // Bound to something else (RFC 9449), or to nothing that can be read: no bearer token.
    for cnf in [json!({ "jkt": thumbprint }), json!({}), json!("x"), json!(null), json!({ "x5t#S256": 1 })] {
        let token = bench.key.sign_with(Header::new(bench.key.algorithm()), &{
            let mut claims = bench.claims();
            claims["cnf"] = cnf.clone();
            claims
        });
        assert_eq!(bench.refused(&token.unwrap()).await.check, Check::Cnf, "{cnf}");
    }
    let strict = Bench::new(Algorithm::ES256, |auth| auth.certificate_bound = true).await;
    assert_eq!(strict.refused(&strict.token(json!({}))).await.check, Check::Cnf);
}

#[tokio::test]
async fn smart_scopes_are_judged_by_the_interaction_of_the_request() {
    let bench = Bench::new(Algorithm::ES256, |auth| {
        auth.scope = None;
        auth.smart = true;
    })
    .await;
    let scope = "openid system/Observation.rs?category=laboratory system/Patient.read";
    let header = format!("Bearer {}", bench.token(json!({ "scope": scope })));
    let judged = async |wanted: Option<Wanted>| {
        let shown =
            Presented { authorization: Some(&header), wanted: wanted.as_ref(), ..Presented::default() };
        bench.verifier.judge(shown).await
    };
    assert!(judged(Some(Wanted::of("GET", "/Observation", "category=laboratory"))).await.is_ok());
    assert!(judged(Some(Wanted::of("GET", "/Patient/1", ""))).await.is_ok());
    let refusal = judged(Some(Wanted::of("POST", "/Observation", ""))).await.unwrap_err();
    assert_eq!((refusal.check, refusal.status), (Check::Scope, 403));
    assert_eq!((refusal.expected.as_str(), refusal.actual.as_str()), ("system/Observation.c", scope));
    assert!(refusal.www_authenticate.unwrap().ends_with(r#"scope="system/Observation.c""#));
    assert_eq!(judged(None).await.unwrap_err().check, Check::Scope, "an unknown request needs everything");
}

/// A token of our key with this header and payload as they stand.
fn signed(bench: &Bench, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = jsonwebtoken::EncodingKey::from_ec_pem(bench.key.pem().as_bytes()).unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::ES256).unwrap();
    format!("{message}.{signature}")
}

#[tokio::test]
async fn what_parsers_disagree_about_is_refused_though_it_is_signed() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    let (kid, claims) = (bench.key.key_id(), bench.claims().to_string());
    let header = format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#);
    assert!(bench.verify(&signed(&bench, &header, &claims)).await.is_ok());
    let doubled = format!("{},\"scope\":\"results:write\"}}", &claims[..claims.len() - 1]);
    let deep = format!("{},\"x\":{}}}", &claims[..claims.len() - 1], "[".repeat(3000));
    let inner = signed(&bench, &header, &claims);
    for (what, header, claims, check) in [
        ("a claim twice", header.clone(), doubled, Check::Malformed),
        (
            "alg twice",
            format!(r#"{{"alg":"none","alg":"ES256","kid":"{kid}"}}"#),
            claims.clone(),
            Check::Malformed,
        ),
        ("deep nesting", header.clone(), deep, Check::Malformed),
        (
            "a nested token",
            format!(r#"{{"alg":"ES256","cty":"JWT","kid":"{kid}"}}"#),
            inner,
            Check::Malformed,
        ),
        ("an array of claims", header.clone(), format!("[{claims}]"), Check::Malformed),
        ("a mark before the claims", header.clone(), format!("\u{feff}{claims}"), Check::Malformed),
        ("kid as a number", r#"{"alg":"ES256","kid":7}"#.to_owned(), claims.clone(), Check::Kid),
        ("kid as a list", format!(r#"{{"alg":"ES256","kid":["{kid}"]}}"#), claims.clone(), Check::Kid),
        ("alg as a list", format!(r#"{{"alg":["ES256"],"kid":"{kid}"}}"#), claims.clone(), Check::Alg),
        (
            "kid as a path",
            r#"{"alg":"ES256","kid":"../../../../dev/null"}"#.to_owned(),
            claims.clone(),
            Check::Kid,
        ),
        (
            "kid as SQL",
            r#"{"alg":"ES256","kid":"x' UNION SELECT 'key"}"#.to_owned(),
            claims.clone(),
            Check::Kid,
        ),
        (
            "an extension",
            format!(r#"{{"alg":"ES256","b64":false,"crit":["b64"],"kid":"{kid}"}}"#),
            claims.clone(),
            Check::Malformed,
        ),
    ] {
        let refusal = bench.refused(&signed(&bench, &header, &claims)).await;
        assert_eq!(refusal.check, check, "{what}");
    }
}

#[tokio::test]
async fn degenerate_signatures_verify_nothing() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    let header = json!({ "alg": "ES256", "kid": bench.key.key_id() });
    let message = format!("{}.{}", encoded(&header), encoded(&bench.claims()));
    // n, the order of P-256 (FIPS 186-4 D.1.2.3).
    let order = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let order: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&order[2 * at..2 * at + 2], 16).unwrap()).collect();
    let one = [vec![0; 31], vec![1]].concat();
    for (what, signature) in [
        ("r = s = 0", vec![0; 64]),
        ("r = 0", [vec![0; 32], one.clone()].concat()),
        ("s = 0", [one.clone(), vec![0; 32]].concat()),
        ("r = s = n", [order.clone(), order.clone()].concat()),
        ("r = n", [order, one].concat()),
        ("DER of zeros", vec![0x30, 6, 2, 1, 0, 2, 1, 0]),
        ("nothing", vec![]),
        ("too long", vec![1; 65]),
        ("much too long", vec![1; 4096]),
    ] {
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
        assert_eq!(bench.refused(&token).await.check, Check::Sig, "{what}");
    }
}

#[tokio::test]
async fn a_flood_of_hostile_tokens_costs_a_bounded_number_of_fetches() {
    let bench = Bench::new(Algorithm::ES256, |_| {}).await;
    assert!(bench.verify(&bench.token(json!({}))).await.is_ok());
    for n in 0..500 {
        let token = signed(
            &bench,
            &format!(r#"{{"alg":"ES256","kid":"{n}","jku":"{0}/{n}","x5u":"{0}/{n}"}}"#, bench.issuer),
            &bench.claims().to_string(),
        );
        assert_eq!(bench.refused(&token).await.check, Check::Kid);
    }
    assert_eq!(bench.server.count(), 3, "discovery, the keys, and the keys once more");
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
