//! openid-client, a certified relying party that nobody here wrote, against our authorization server: the code
//! flow through the real pages, refresh, client credentials, and what must be refused on the way. It runs on the
//! shipped productions.

use serde_json::{Value, json};

use crate::support::peers;
use crate::support::shipped::Shipped;

const PACKAGES: [&str; 1] = ["openid-client"];

/// Runs a shipped production and openid-client against it.
async fn openid_client(production: &str, admin: &str, asked: Value, ca: Option<&str>) -> Option<Value> {
    let mut shipped = Shipped::new();
    shipped.spawn(&["run", production]);
    shipped.until_ready(admin).await;
    let asked = serde_json::from_str(&shipped.here(&asked.to_string())).expect("JSON");
    let ca = ca.map(|ca| shipped.path(ca));
    tokio::task::spawn_blocking(move || {
        let report = peers::run_node("openid-client.mjs", &PACKAGES, &asked, ca.as_deref());
        drop(shipped);
        report
    })
    .await
    .expect("the script ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn openid_client_signs_a_person_in_through_our_pages() {
    let asked = json!({
        "issuer": "https://localhost:8845/authserver",
        "client_id": "postman", "secret": "postman-secret",
        "redirect_uri": "https://oauth.pstmn.io/v1/callback",
        "scope": "openid scope1 scope2",
        "user": "jane", "password": "jane-password",
        "client_credentials": "scope1",
        "api": "https://localhost:8845/api?day=2026-03-01",
    });
    let ca = Some("productions/auth-server/tls/ca.pem");
    let report = openid_client("productions/auth-server", "http://127.0.0.1:8713", asked, ca).await;
    let Some(report) = report else { return };

    assert_eq!(report["wrong_password"], 401);
    assert_eq!(report["denied"], "access_denied");
    let consent = report["consent"].as_str().unwrap();
    for words in ["jane", "postman", "Read the list of appointments", "Book and cancel appointments"] {
        assert!(consent.contains(words), "the consent page says {words}: {consent}");
    }
    let location = report["location"].as_str().unwrap();
    assert!(location.starts_with("https://oauth.pstmn.io/v1/callback?code="), "{location}");

    let tokens = &report["tokens"];
    assert_eq!(
        (&tokens["type"], &tokens["expires_in"], &tokens["has_refresh"]),
        (&json!("bearer"), &json!(3600), &json!(true))
    );
    assert_eq!(tokens["claims"]["sub"], "jane");
    assert_eq!(tokens["claims"]["aud"], "postman");
    let access = &report["access_token"];
    assert_eq!((&access["head"]["alg"], &access["head"]["typ"]), (&json!("RS512"), &json!("at+jwt")));
    assert_eq!(access["claims"]["sub"], "jane");
    assert_eq!(report["api"]["with_token"]["status"], 200);
    assert_eq!(report["api"]["with_token"]["body"]["day"], "2026-03-01");
    assert_eq!(report["api"]["without"]["status"], 401);

    for what in ["code_again", "wrong_verifier", "reused", "after_reuse"] {
        assert_eq!(report[what], "invalid_grant", "{what}: {report:#}");
    }
    assert_ne!(report["wrong_state"], "no error", "state comes back as it was sent");
    assert_eq!(report["refreshed"]["rotated"], true);
    assert_eq!(report["refreshed"]["api"]["status"], 200);
    assert_eq!(report["client_credentials"]["api"]["status"], 200);
    assert_eq!(report["client_credentials"]["has_refresh"], false);
    assert_eq!(report["unknown_scope"], "invalid_scope");
    beyond_the_core(&report, "jane");
}

/// Userinfo, introspection and revocation, where the server has them.
fn beyond_the_core(report: &Value, user: &str) {
    if report["metadata"]["userinfo_endpoint"].is_string() {
        assert_eq!(report["userinfo"]["sub"], user);
    }
    if report["metadata"]["introspection_endpoint"].is_string() {
        assert_eq!(report["introspection"]["active"], true);
        assert_eq!(report["introspection"]["sub"], user);
        assert_eq!(report["introspection_of_nothing"]["active"], false);
        assert_eq!(report["introspection_after_code_again"]["active"], false);
    }
    if report["metadata"]["revocation_endpoint"].is_string() {
        assert_eq!(report["revoked"], "invalid_grant");
        assert_eq!(report["revoked_access"]["active"], false);
    }
}

/// O-26: code flow with client, redirect address and state; the code is swapped with the secret; each call has a
/// token; the refresh token renews it without the person, and is rotated. O-27: all of it the standard way.
#[tokio::test(flavor = "multi_thread")]
async fn o_26_o_27_an_app_gets_renews_and_uses_tokens_in_the_name_of_a_person() {
    let asked = json!({
        "issuer": "http://127.0.0.1:8846",
        "client_id": "risk-app", "secret": "risk-app-secret", "auth": "post",
        "redirect_uri": "http://127.0.0.1:8896/callback",
        "scope": "risk:calculate",
        "user": "robin", "password": "robin-password",
        "api": "http://127.0.0.1:8846/risk",
        "api_body": {
            "sex": "female", "age": 61, "total_cholesterol": 180, "hdl_cholesterol": 47, "systolic": 124,
            "treated": false, "smoker": true, "diabetes": false,
        },
    });
    let report = openid_client("productions/risk-app", "http://127.0.0.1:8714", asked, None).await;
    let Some(report) = report else { return };
    assert_eq!(report["tokens"]["claims"], Value::Null, "without openid there is no id token");
    assert_eq!(report["access_token"]["claims"]["sub"], "robin");
    assert_eq!(report["access_token"]["claims"]["aud"], "risk-api");
    let score = json!({ "risk_percent": 10.5, "category": "intermediate" });
    assert_eq!(report["api"]["with_token"], json!({ "status": 200, "body": score }));
    assert_eq!(report["api"]["without"]["status"], 401);
    assert_eq!(report["refreshed"]["rotated"], true);
    assert_eq!(report["refreshed"]["api"]["body"], score);
    assert_eq!(
        (&report["reused"], &report["after_reuse"]),
        (&json!("invalid_grant"), &json!("invalid_grant"))
    );
}
