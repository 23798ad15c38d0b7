//! The verifier against an issuer of the tests' own and against hand-made hostile tokens.

mod bound;
mod hostile;
mod keys;
mod opaque;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Header;
use septet_engine::clock::{Clock, ManualClock};
use septet_engine::config::units::Strings;
use septet_oauth::keys::{Algorithm, SigningKey};
use septet_oauth::{Auth, Check, Claims, Refusal, Verifier, check_auth};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{PATIENCE, Server, json as reply};

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
        let verifier = Verifier::with_timeout(auth, clock.clone(), PATIENCE);
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
