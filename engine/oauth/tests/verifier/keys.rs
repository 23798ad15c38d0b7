//! Where the keys of an issuer come from: fetched when they are needed, shared, and never because a stranger
//! says so.

use super::*;

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
    let second = Verifier::with_timeout(auth, bench.clock.clone(), PATIENCE);
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
    bench.verifier = Verifier::with_timeout(auth, bench.clock.clone(), PATIENCE);
    let refusal = bench.refused(&token).await;
    assert!(refusal.actual.contains("https://other.example"), "{}", refusal.actual);
    drop(server);
}
