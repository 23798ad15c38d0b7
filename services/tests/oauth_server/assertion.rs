//! Assertions: clients that sign who they are, or for whom they ask.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use septet_engine::clock::Clock;
use septet_engine::token::TokenSource;
use septet_oauth::TokenManager;
use septet_oauth::keys::{Algorithm, SigningKey};
use serde_json::{Value, json};

use crate::support::{GRANT, Running, client, parts, text};

const BEARER: (&str, &str) = ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");
const KIND: (&str, &str) =
    ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");

#[tokio::test]
async fn a_client_with_keys_signs_who_it_is_and_each_assertion_counts_once() {
    let key = SigningKey::generate(Algorithm::ES384).unwrap();
    let jwks = json!({ "keys": [key.public()] }).to_string();
    let server = Running::start(&format!("[services.auth.clients.signer]\njwks = '{jwks}'\n")).await;
    let now = server.clock.now().as_second();
    let token_url = server.url("/oauth2/token");
    let good = json!({ "iss": "signer", "sub": "signer", "aud": token_url, "exp": now + 60, "jti": "1" });
    let kind = ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    let ask = async |claims: &Value, key: &SigningKey| {
        let assertion = key.sign("JWT", claims).unwrap();
        server.post(&[GRANT, kind, ("client_assertion", &assertion)]).await
    };
    assert_eq!(ask(&good, &key).await.0, 200);
    let (status, again) = ask(&good, &key).await;
    assert_eq!((status, &again["error"]), (401, &json!("invalid_client")), "the same id a second time");
    for (name, value) in [
        ("aud", json!("https://other.example")),
        ("sub", json!("lab")),
        ("exp", json!(now - 60)),
        ("exp", json!(now + 7200)),
        ("nbf", json!(now + 120)),
        ("jti", Value::Null),
        ("iss", json!("nobody")),
    ] {
        let mut claims = good.clone();
        claims["jti"] = json!(format!("{name}{value}"));
        claims[name] = value;
        assert_eq!(ask(&claims, &key).await.0, 401, "{claims}");
    }
    let mut fresh = good.clone();
    fresh["jti"] = json!("2");
    assert_eq!(ask(&fresh, &SigningKey::generate(Algorithm::ES384).unwrap()).await.0, 401, "another key");
    fresh["aud"] = json!([server.issuer]);
    assert_eq!(ask(&fresh, &key).await.0, 200);
}

// === the JWT bearer grant ===

struct Signer {
    server: Running,
    key: SigningKey,
}

fn signers(key: &SigningKey) -> String {
    let jwks = json!({ "keys": [key.public()] }).to_string();
    format!(
        r#"
scopes = {{ "results:write" = "Submit", "results:read" = "Read" }}
[services.auth.clients.signer]
jwks = '{jwks}'
grants = ["jwt_bearer"]
scopes = ["results:write"]
[services.auth.clients.twin]
jwks = '{jwks}'
grants = ["jwt_bearer"]
[services.auth.clients.other]
jwks = '{jwks}'
[services.auth.clients.lab]
secret = "lab-secret"
[services.auth.users.ada]
password = "pa55 word"
"#
    )
}

impl Signer {
    async fn new() -> Signer {
        let key = SigningKey::generate(Algorithm::ES256).unwrap();
        Signer { server: Running::start(&signers(&key)).await, key }
    }

    fn claims(&self, id: &str, changes: &[(&str, Value)]) -> Value {
        let now = self.server.clock.now().as_second();
        let audience = self.server.url("/oauth2/token");
        let mut claims =
            json!({ "iss": "signer", "sub": "ada", "aud": audience, "exp": now + 60, "jti": id });
        for (name, value) in changes {
            claims[name] = value.clone();
        }
        claims
    }

    async fn ask(&self, claims: &Value, more: &[(&str, &str)]) -> (u16, Value) {
        let assertion = self.key.sign("JWT", claims).unwrap();
        let mut form = vec![BEARER, ("assertion", assertion.as_str())];
        form.extend_from_slice(more);
        self.server.post(&form).await
    }
}

#[tokio::test]
async fn a_signed_assertion_gets_a_token_for_its_client_or_a_user_and_no_refresh_token() {
    let signer = Signer::new().await;
    let (status, reply) = signer.ask(&signer.claims("1", &[]), &[]).await;
    assert_eq!(status, 200, "{reply}");
    let (header, claims) = parts(text(&reply, "access_token"));
    assert_eq!(
        (&header["typ"], &claims["sub"], &claims["client_id"]),
        (&json!("at+jwt"), &json!("ada"), &json!("signer"))
    );
    assert_eq!((text(&reply, "scope"), reply.get("refresh_token")), ("results:write", None));
    let own = signer.claims("2", &[("sub", json!("signer")), ("aud", json!([signer.server.issuer]))]);
    let (_, reply) = signer.ask(&own, &[("client_id", "signer"), ("scope", "results:write")]).await;
    assert_eq!(parts(text(&reply, "access_token")).1["sub"], "signer");
    let (status, reply) = signer.ask(&signer.claims("3", &[]), &[("scope", "openid")]).await;
    assert_eq!((status, text(&reply, "error")), (400, "invalid_scope"), "nobody signed in");
}

#[tokio::test]
async fn an_assertion_that_is_not_right_is_refused_by_name() {
    let signer = Signer::new().await;
    let now = signer.server.clock.now().as_second();
    for (changes, named) in [
        (vec![("aud", json!("https://other.example/token"))], "aud"),
        (vec![("aud", Value::Null)], "aud"),
        (vec![("exp", json!(now - 61))], "expired"),
        (vec![("exp", Value::Null)], "exp"),
        (vec![("exp", json!(now + 7200))], "ten minutes"),
        (vec![("nbf", json!(now + 120))], "not valid yet"),
        (vec![("iat", json!(now + 120))], "not valid yet"),
        (vec![("jti", Value::Null)], "jti"),
        (vec![("jti", json!(""))], "jti"),
        (vec![("sub", json!("nobody"))], "sub"),
        (vec![("sub", Value::Null)], "sub"),
        (vec![("iss", json!("nobody"))], "no client"),
        (vec![("iss", json!("lab"))], "no client"),
    ] {
        let id = format!("{changes:?}");
        let claims = signer.claims(&id, &changes);
        let (status, reply) = signer.ask(&claims, &[]).await;
        assert_eq!((status, text(&reply, "error")), (400, "invalid_grant"), "{changes:?}");
        assert!(text(&reply, "error_description").contains(named), "{changes:?}: {reply}");
    }
    let (status, reply) = signer.ask(&signer.claims("a", &[("iss", json!("other"))]), &[]).await;
    assert_eq!(
        (status, text(&reply, "error")),
        (400, "unauthorized_client"),
        "it says who it is only in the assertion"
    );
    for (more, status, error) in [
        (("client_id", "lab"), 400, "unauthorized_client"),
        (("client_id", "other"), 400, "unauthorized_client"),
        (("client_id", "twin"), 400, "invalid_grant"),
        (("client_id", "nobody"), 401, "invalid_client"),
    ] {
        let (found, reply) = signer.ask(&signer.claims("b", &[]), &[more]).await;
        assert_eq!((found, text(&reply, "error")), (status, error), "{more:?}");
    }
    let strange =
        SigningKey::generate(Algorithm::ES256).unwrap().sign("JWT", &signer.claims("c", &[])).unwrap();
    assert_eq!(signer.server.post(&[BEARER, ("assertion", &strange)]).await.0, 400);
    assert_eq!(signer.server.post(&[BEARER, ("assertion", "x.y.z")]).await.0, 400);
    let (status, reply) = signer.server.post(&[BEARER]).await;
    assert_eq!((status, text(&reply, "error")), (400, "invalid_request"));
    assert_eq!(signer.ask(&signer.claims("b", &[]), &[]).await.0, 200, "what was refused is not used up");
}

#[tokio::test]
async fn an_assertion_counts_once_also_over_a_restart_and_as_either_kind() {
    let signer = Signer::new().await;
    let claims = signer.claims("1", &[]);
    assert_eq!(signer.ask(&claims, &[]).await.0, 200);
    let (status, reply) = signer.ask(&claims, &[]).await;
    assert_eq!((status, text(&reply, "error")), (400, "invalid_grant"));
    let Signer { server, key } = signer;
    let server = server.again(&signers(&key)).await;
    let signer = Signer { server, key };
    assert_eq!(signer.ask(&claims, &[]).await.0, 400, "after a restart");
    let twin = signer.claims("1", &[("iss", json!("twin"))]);
    assert_eq!(signer.ask(&twin, &[]).await.0, 200, "another client may have the same ids");
    let proof = signer.claims("p", &[("sub", json!("signer"))]);
    let proof = signer.key.sign("JWT", &proof).unwrap();
    let granted = signer.claims("g", &[]);
    let more = [KIND, ("client_assertion", proof.as_str())];
    assert_eq!(signer.ask(&granted, &more).await.0, 200, "with client authentication beside it");
    let again = signer.claims("h", &[]);
    assert_eq!(signer.ask(&again, &more).await.0, 401, "the proof is used up");
    signer.server.clock.advance(Duration::from_secs(121));
    assert_eq!(
        signer.ask(&signer.claims("1", &[]), &[]).await.0,
        200,
        "ids are forgotten with their assertions"
    );
}

#[tokio::test]
async fn our_own_client_gets_a_token_by_assertion() {
    let signer = Signer::new().await;
    let pem = signer.key.pem().to_owned();
    let issuer = signer.server.issuer.clone();
    for (auth, subject) in [("none", None), ("private_key_jwt", Some("ada"))] {
        let (pem, issuer) = (pem.clone(), issuer.clone());
        let client = client(|client| {
            client.issuer = Some(issuer);
            client.grant = "jwt_bearer".into();
            client.client_id = "signer".into();
            client.client_secret = None;
            client.client_auth = auth.into();
            client.private_key = Some(septet_engine::config::settings::Secret::new(pem));
            client.subject = subject.map(str::to_owned);
        });
        let manager = TokenManager::new(Arc::new(signer.server.store.clone()), signer.server.clock.clone());
        manager.update([Arc::new(client)], &BTreeMap::new());
        let token = manager.token("vendor", "submit").await.unwrap();
        assert_eq!(parts(&token.secret).1["sub"], subject.unwrap_or("signer"));
    }
}

#[tokio::test]
async fn a_client_may_be_held_to_one_algorithm() {
    let key = SigningKey::generate(Algorithm::RS256).unwrap();
    let mut public = key.public();
    public.as_object_mut().unwrap().remove("alg");
    let jwks = json!({ "keys": [public] }).to_string();
    let free = format!("[services.auth.clients.signer]\njwks = '{jwks}'\n");
    let held = format!("{free}signing_alg = \"RS384\"\n");
    for (settings, algorithm, status) in
        [(&free, Algorithm::RS256, 200), (&held, Algorithm::RS256, 401), (&held, Algorithm::RS384, 200)]
    {
        let server = Running::start(&format!("signing_alg = \"ES256\"\n{settings}")).await;
        let key = SigningKey::from_pem(key.pem(), Some(algorithm)).unwrap();
        let now = server.clock.now().as_second();
        let claims =
            json!({ "iss": "signer", "sub": "signer", "aud": server.issuer, "exp": now + 60, "jti": "1" });
        let assertion = key.sign("JWT", &claims).unwrap();
        let (found, reply) = server.post(&[GRANT, KIND, ("client_assertion", &assertion)]).await;
        assert_eq!(found, status, "{algorithm:?} {reply}");
    }
}
