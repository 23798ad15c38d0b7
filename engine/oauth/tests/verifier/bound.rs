//! Tokens that are good only with something else: the certificate they are bound to (RFC 8705), or the
//! interaction that their SMART scope allows.

use septet_oauth::{Presented, Wanted};

use super::*;

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
