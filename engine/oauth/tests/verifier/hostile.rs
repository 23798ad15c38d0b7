//! Tokens that somebody made to get in: unsigned, confused, changed, degenerate, or very many.

use super::*;

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
