//! The productions that answer forum threads, as shipped: what their section of the README promises.

use reqwest::{Certificate, Client};
use serde_json::{Value, json};

use crate::support::shipped::{Shipped, text};

/// The leg that ended as `status`, in a list of messages.
fn with_status<'a>(list: &'a Value, status: &str) -> Option<&'a Value> {
    list["messages"].as_array()?.iter().find(|header| header["status"] == status)
}

/// O-06: HL7 over HTTPS with client credentials, both ways; the client is a setting, the ack is judged.
#[tokio::test(flavor = "multi_thread")]
async fn o_06_hl7_goes_over_https_with_tokens_both_ways_and_the_ack_is_judged() {
    let mut shipped = Shipped::new();
    shipped.spawn(&["run", "productions/hl7-over-https", "productions/hl7-partner"]);
    shipped.until_ready("http://127.0.0.1:8711").await;
    shipped.until_ready("http://127.0.0.1:8712").await;
    let messages = "http://127.0.0.1:8711/api/v1/messages?target=partner";

    // Out: over MLLP to us, over HTTPS with a token to the partner.
    let sent = shipped.walk("septet send mllp://127.0.0.1:2578 productions/hl7-over-https/messages/oru.hl7");
    assert!(text(&sent).contains("MSA|AA|HTTPS-0001"), "{}", text(&sent));
    shipped.until("it is delivered", messages, |list| with_status(list, "completed").is_some()).await;
    let there = shipped.written("productions/hl7-partner/out", 1).await;
    let original = std::fs::read(shipped.path("productions/hl7-over-https/messages/oru.hl7")).unwrap();
    assert_eq!(there.len(), 1);
    assert_eq!(std::fs::read(&there[0]).unwrap(), original, "byte for byte");

    // The partner's ack says AE: the message is suspended, not lost and not sent again and again.
    shipped.walk("septet send mllp://127.0.0.1:2578 productions/hl7-over-https/messages/no-patient.hl7");
    let list =
        shipped.until("it is refused", messages, |list| with_status(list, "suspended").is_some()).await;
    let suspended = with_status(&list, "suspended").unwrap();
    assert_eq!(suspended["control_id"], "HTTPS-0002");
    assert!(suspended["error"].as_str().unwrap().starts_with("AE"), "{suspended}");
    // An operator gives it up; the patient's next result goes on meanwhile.
    shipped.walk("septet send mllp://127.0.0.1:2578 productions/hl7-over-https/messages/oru.hl7");
    let clients = shipped.get("http://127.0.0.1:8711/api/v1/oauth").await;
    assert_eq!(
        (&clients["clients"][0]["state"], &clients["clients"][0]["fetches"]),
        (&json!("valid"), &json!(1))
    );
    shipped.post(&format!("http://127.0.0.1:8711/api/v1/messages/{}/discard", suspended["id"])).await;

    // In: the partner's messages come with a token of their own.
    shipped.walk("septet send mllp://127.0.0.1:2579 productions/hl7-partner/messages/adt.hl7");
    let archived = "http://127.0.0.1:8711/api/v1/messages?target=archive";
    shipped.until("the partner's came", archived, |list| with_status(list, "completed").is_some()).await;

    // Nobody gets in without one, nor with a token for the other door.
    let ca = std::fs::read(shipped.path("productions/hl7-over-https/tls/ca.pem")).unwrap();
    let client = Client::builder().tls_certs_only([Certificate::from_pem(&ca).unwrap()]).build().unwrap();
    let post = |token: Option<String>| {
        let request = client.post(shipped.here("https://localhost:8843/hl7")).body(original.clone());
        let request = request.header("content-type", "application/hl7-v2");
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(post(None).await, 401);
    let form = [("grant_type", "client_credentials"), ("scope", "hl7:send")];
    let url = shipped.here("https://localhost:8844/oauth2/token");
    let reply = client.post(url).basic_auth("hospital", Some("hospital-secret")).form(&form);
    let reply: Value = reply.send().await.unwrap().json().await.unwrap();
    assert_eq!(post(reply["access_token"].as_str().map(str::to_owned)).await, 401, "it is for the partner");
    let refused = shipped.get("http://127.0.0.1:8711/api/v1/events?kind=auth.refused").await;
    let checks: Vec<_> = refused["events"].as_array().unwrap().iter().map(|event| &event["text"]).collect();
    assert_eq!(checks, ["aud", "missing"]);
}

/// O-20, O-22, O-25: issuer with a path, discovery and keys there, RS512, TLS with a certificate for its name.
#[tokio::test(flavor = "multi_thread")]
async fn o_20_o_22_o_25_an_authorization_server_over_tls_is_found_below_its_issuer() {
    let mut shipped = Shipped::new();
    shipped.spawn(&["run", "productions/auth-server"]);
    shipped.until_ready("http://127.0.0.1:8713").await;
    let ca = std::fs::read(shipped.path("productions/auth-server/tls/ca.pem")).unwrap();
    let client = Client::builder().tls_certs_only([Certificate::from_pem(&ca).unwrap()]).build().unwrap();
    let issuer = shipped.here("https://localhost:8845/authserver");
    let host = shipped.here("https://localhost:8845");
    for url in [
        format!("{issuer}/.well-known/openid-configuration"),
        format!("{host}/.well-known/oauth-authorization-server/authserver"),
    ] {
        let found: Value = client.get(&url).send().await.unwrap().json().await.unwrap();
        assert_eq!(found["issuer"], *issuer, "{url}");
        assert_eq!(found["token_endpoint"], format!("{issuer}/oauth2/token"));
        let keys = found["jwks_uri"].as_str().unwrap();
        let keys: Value = client.get(keys).send().await.unwrap().json().await.unwrap();
        assert_eq!(keys["keys"][0]["alg"], "RS512");
        assert_eq!(keys["keys"][0].get("d"), None, "a private key is published");
    }
    // The certificate is for this machine's loopback names; a client with other authorities does not connect.
    let stranger = Client::builder().tls_certs_only([]).build().unwrap();
    assert!(stranger.get(&issuer).send().await.is_err());
    assert!(
        Client::new().get(issuer.replace("https:", "http:")).send().await.is_err(),
        "there is no plain http"
    );
}

/// The value of a hidden field of a page of ours.
fn hidden(page: &str) -> String {
    let (_, rest) =
        page.split_once("name=\"request\" value=\"").unwrap_or_else(|| panic!("no form in {page}"));
    rest.split('"').next().unwrap_or_default().to_owned()
}

/// O-26: a person signs in once, from then on the app calls the API in that person's name; the API is closed to
/// everybody else. Renewal and rotation are in `openid`.
#[tokio::test(flavor = "multi_thread")]
async fn o_26_the_risk_app_scores_for_a_person_who_signed_in_once() {
    let mut shipped = Shipped::new();
    shipped.spawn(&["run", "productions/risk-app"]);
    shipped.until_ready("http://127.0.0.1:8714").await;
    let client = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let post = |url: &str, age: u32| {
        let factors = json!({
            "sex": "female", "age": age, "total_cholesterol": 180, "hdl_cholesterol": 47, "systolic": 124,
            "treated": false, "smoker": true, "diabetes": false,
        });
        client.post(shipped.here(url)).json(&factors).send()
    };

    // The API without a token.
    let answer = post("http://127.0.0.1:8846/risk", 61).await.unwrap();
    assert_eq!(answer.status(), 401);
    assert!(answer.headers().contains_key("www-authenticate"));
    let list = shipped.get("http://127.0.0.1:8714/api/v1/messages").await;
    assert_eq!(list["messages"], json!([]), "nothing of it is stored");

    // The person's way: from the app to the pages of the authorization server, and back.
    let to = |answer: &reqwest::Response| answer.headers()["location"].to_str().unwrap().to_owned();
    let connect = shipped.here("http://127.0.0.1:8714/oauth/risk/connect");
    let started = client.get(connect).send().await.unwrap();
    let cookie = started.headers().get("set-cookie").map(|cookie| cookie.to_str().unwrap().to_owned());
    let page = client.get(to(&started)).send().await.unwrap().text().await.unwrap();
    let pages = shipped.here("http://127.0.0.1:8846/oauth2/authorize");
    let request = hidden(&page);
    let form = [("request", request.as_str()), ("username", "robin"), ("password", "robin-password")];
    let page = client.post(&pages).form(&form).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("Calculate cardiovascular risk from the values you enter"), "{page}");
    let request = hidden(&page);
    let form = [("request", request.as_str()), ("decision", "allow")];
    let allowed = client.post(&pages).form(&form).send().await.unwrap();
    let mut back = client.get(to(&allowed));
    if let Some(cookie) = &cookie {
        back = back.header("cookie", cookie.split(';').next().unwrap_or_default());
    }
    assert_eq!(back.send().await.unwrap().status(), 200);

    // Users of the app see scores and no tokens.
    let answer = post("http://127.0.0.1:8847/patients", 61).await.unwrap();
    assert_eq!(answer.status(), 200);
    let score: Value = answer.json().await.unwrap();
    assert_eq!(score, json!({ "risk_percent": 10.5, "category": "intermediate" }));
    let answer = post("http://127.0.0.1:8847/patients", 20).await.unwrap();
    assert_eq!(answer.status(), 422);
    let clients = shipped.get("http://127.0.0.1:8714/api/v1/oauth").await;
    assert_eq!(
        (&clients["clients"][0]["state"], &clients["clients"][0]["fetches"]),
        (&json!("valid"), &json!(1))
    );
}
