//! The main job against an independent vendor and MLLP client.

use serde_json::json;

use crate::support::mllp::{Client, msa, oru};
use crate::support::vendor::Vendor;
use crate::support::{Septet, assert_nowhere, free_port};

/// The contract's example, with the ports of the test.
fn production(vendor: &Vendor, mllp: u16) -> String {
    format!(
        r#"
[production]
name = "lab-results"
alerts = ["mail"]
[store]
path = "data"
retention = "30d"
[admin]
listen = "127.0.0.1:{{admin}}"
[oauth.vendor]
token_url = "http://127.0.0.1:{port}/token"
grant = "client_credentials"
client_id = "lab"
client_secret = "${{env:NO_SUCH_VARIABLE:-clear-client-secret}}"
scope = "results:write"
[messages.SubmitResult]
accession = "string"
mrn = "string"
values = "list"
note = "string?"
[messages.SubmitResultReply]
status = "string"
[services.lis]
type = "hl7.mllp"
listen = "127.0.0.1:{mllp}"
targets = ["router"]
search = {{ mrn = "PID-3.1", accession = "OBR-3.1" }}
[processes.router]
type = "router"
[[processes.router.rules]]
name = "lab results"
when = {{ "MSH-9.1" = "ORU", "MSH-9.2" = ["R01", "R03"] }}
send = ["submit"]
[[processes.router.rules]]
name = "everything else"
when = {{}}
send = ["archive"]
[processes.submit]
type = "flow"
steps = [
  {{ transform = "to_result", from = "request", into = "context.result" }},
  {{ call = "vendor", message = "SubmitResult", with = "context.result", into = "context.reply" }},
  {{ if = "context.reply.status !== 'accepted'", then = [ {{ alert = "vendor refused the result" }} ] }},
]
[transforms.to_result]
to = "SubmitResult"
set = {{ accession = "OBR-3.1", mrn = "PID-3.1", note = {{ value = "from Septet" }} }}
code = "target.values = source.all('OBX').map(o => ({{ code: o.get('OBX-3.1'), value: o.get('OBX-5') }}))"
[operations.vendor]
type = "rest"
url = "http://127.0.0.1:{port}/api"
oauth = "vendor"
retry_interval = "200ms"
[operations.vendor.requests.SubmitResult]
method = "POST"
path = "/results/{{accession}}"
reply = "SubmitResultReply"
[operations.archive]
type = "file"
path = "out/{{control_id}}-{{id}}.hl7"
[operations.mail]
type = "file"
path = "alerts/{{id}}.json"
"#,
        port = vendor.port
    )
}

async fn start() -> (Septet, Vendor, u16) {
    let vendor = Vendor::start().await;
    let mllp = free_port();
    let septet = Septet::start(&production(&vendor, mllp)).await;
    (septet, vendor, mllp)
}

/// The session of the message with this control id.
async fn session_of(septet: &Septet, control_id: &str) -> u64 {
    let path = format!("/api/v1/messages?control_id={control_id}&limit=1000");
    let found = septet.until(&path, |page| !page["messages"].as_array().unwrap().is_empty()).await;
    found["messages"][0]["session"].as_u64().expect("a session")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_reaches_the_vendor_and_every_leg_is_in_the_trace() {
    let (septet, vendor, mllp) = start().await;
    let message = oru("C1", "ACC/1", "MRN-77");
    let ack = Client::connect(mllp).await.send(&message).await;
    assert_eq!(msa(&ack), ("AA".into(), "C1".into()));

    let session = session_of(&septet, "C1").await;
    let trace = septet.settled(session).await;
    assert_eq!(
        Septet::legs(&trace),
        [
            "request lis>router ORU^R01 completed",
            "request router>submit ORU^R01 completed",
            "request submit>vendor SubmitResult completed",
            "response vendor>submit SubmitResultReply completed",
        ]
    );
    assert_eq!(trace["status"], "completed");

    let results = vendor.results();
    assert_eq!(results.len(), 1);
    assert_eq!(results[0].method, "POST");
    assert_eq!(results[0].uri, "/api/results/ACC%2F1");
    assert_eq!(results[0].authorization.as_deref(), Some("Bearer tok-1-secretpart"));
    let body: serde_json::Value = serde_json::from_str(&results[0].body).unwrap();
    let values = json!([{ "code": "2345-7", "value": "98" }, { "code": "2160-0", "value": "0.9" }]);
    assert_eq!(
        body,
        json!({ "accession": "ACC/1", "mrn": "MRN-77", "note": "from Septet", "values": values })
    );

    // The exact bytes as they arrived.
    let id = trace["messages"][0]["id"].as_u64().unwrap();
    let raw = reqwest::get(septet.url(&format!("/api/v1/messages/{id}/raw"))).await.unwrap();
    assert_eq!(raw.bytes().await.unwrap(), message.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn o_04_one_token_serves_until_it_is_refused_and_survives_a_kill() {
    let (mut septet, vendor, mllp) = start().await;
    let mut client = Client::connect(mllp).await;
    for n in 1..=5 {
        client.send(&oru(&format!("C{n}"), "A", "M")).await;
        let session = session_of(&septet, &format!("C{n}")).await;
        septet.settled(session).await;
    }
    assert_eq!(vendor.tokens().len(), 1, "one token for all");

    septet.kill();
    septet.run().await;
    let mut client = Client::connect(mllp).await;
    client.send(&oru("C6", "A", "M")).await;
    septet.settled(session_of(&septet, "C6").await).await;
    assert_eq!(vendor.tokens().len(), 1, "the token survives kill -9");

    // Refused in mid-life: dropped, fetched once, sent once more, in one attempt.
    vendor.revoke();
    client.send(&oru("C7", "A", "M")).await;
    let trace = septet.settled(session_of(&septet, "C7").await).await;
    assert_eq!(vendor.tokens().len(), 2);
    assert_eq!(trace["status"], "completed");
    let request =
        trace["messages"].as_array().unwrap().iter().find(|h| h["target"] == "vendor").unwrap().clone();
    assert_eq!(request["attempts"], 1);

    // Nothing of it is anywhere in clear.
    septet.terminate();
    assert_nowhere(septet.folder.path(), &["secretpart", "clear-client-secret"]);
    assert!(!septet.log().contains("Testpatient"), "patient data in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_vendor_is_retried_in_order_with_the_same_key() {
    let (septet, vendor, mllp) = start().await;
    vendor.down(true);
    let mut client = Client::connect(mllp).await;
    for n in 1..=3 {
        client.send(&oru(&format!("C{n}"), &format!("A{n}"), "M")).await;
    }
    let queues = septet
        .until("/api/v1/queues", |all| {
            let vendor = all["queues"].as_array().unwrap().iter().find(|q| q["item"] == "vendor").cloned();
            vendor.is_some_and(|q| q["head"]["attempts"].as_u64() >= Some(2))
        })
        .await;
    assert!(queues.to_string().contains("503"), "the queue shows why it waits");
    vendor.down(false);
    for n in 1..=3 {
        septet.settled(session_of(&septet, &format!("C{n}")).await).await;
    }
    let results = vendor.results();
    let order: Vec<_> = results.iter().map(|seen| seen.uri.rsplit('/').next().unwrap().to_owned()).collect();
    let mut deduplicated = order.clone();
    deduplicated.dedup();
    assert_eq!(deduplicated, ["A1", "A2", "A3"], "a retry holds back what comes behind");
    let keys: std::collections::BTreeSet<_> =
        results.iter().filter(|seen| seen.uri.ends_with("/A1")).map(|seen| seen.key.clone()).collect();
    assert_eq!(keys.len(), 1, "the key is the same over retries");
    assert!(keys.iter().all(Option::is_some));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_vendor_refuses_is_suspended_and_can_be_resumed_resent_and_discarded() {
    let (septet, vendor, mllp) = start().await;
    vendor.answers(422, r#"{"error":"patient Testpatient unknown"}"#);
    let mut client = Client::connect(mllp).await;
    client.send(&oru("C1", "A1", "M")).await;
    let session = session_of(&septet, "C1").await;
    let is_held = |trace: &serde_json::Value| {
        trace["messages"].as_array().unwrap().iter().any(|header| header["status"] == "suspended")
    };
    let trace = septet.until(&format!("/api/v1/sessions/{session}"), is_held).await;
    assert_eq!(trace["status"], "active", "the flow waits for what an operator decides");
    let held =
        trace["messages"].as_array().unwrap().iter().find(|h| h["target"] == "vendor").unwrap().clone();
    assert_eq!(held["status"], "suspended");
    assert!(held["error"].as_str().unwrap().contains("422"), "{held}");
    assert!(!held["error"].as_str().unwrap().contains("Testpatient"), "foreign words are detail");

    let (status, _) = septet.post(&format!("/api/v1/messages/{}/resume", held["id"]), json!({})).await;
    assert!(status < 300, "resume: {status}");
    let trace = septet.settled(session).await;
    assert_eq!(trace["status"], "completed");

    let (status, resent) = septet.post(&format!("/api/v1/messages/{}/resend", held["id"]), json!({})).await;
    assert_eq!(status, 201, "{resent}");
    assert_eq!(resent["resent_from"], held["id"]);
    assert_eq!(resent["session"], json!(session));
    let new = resent["id"].as_u64().unwrap();
    septet.until(&format!("/api/v1/messages/{new}"), |header| header["status"] == "completed").await;
    assert_eq!(vendor.results().len(), 3);

    let (status, problem) = septet.post("/api/v1/messages/999999999/resend", json!({})).await;
    assert_eq!(status, 404, "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_token_endpoint_is_retried_and_nothing_is_sent_without_a_token() {
    let (septet, vendor, mllp) = start().await;
    vendor.token_answers(400, r#"{"error":"invalid_client","error_description":"who is lab?"}"#);
    vendor.token_answers(500, "oops");
    Client::connect(mllp).await.send(&oru("C1", "A1", "M")).await;
    let trace = septet.settled(session_of(&septet, "C1").await).await;
    assert_eq!(trace["status"], "completed");
    assert!(vendor.results().iter().all(|seen| seen.authorization.is_some()), "sent without a token");
    let events = septet.get("/api/v1/events?kind=oauth.failed").await;
    assert!(!events["events"].as_array().unwrap().is_empty(), "a failed fetch is an event");
    let clients = septet.get("/api/v1/oauth").await;
    assert_eq!(clients["clients"][0]["state"], "valid");
    assert!(!clients.to_string().contains("secretpart"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_no_result_is_archived_byte_for_byte() {
    let (septet, _vendor, mllp) = start().await;
    let adt = "MSH|^~\\&|A|B|C|D|2026||ADT^A01|ADT1|P|2.5\rPID|1||M1\r\r\nZZZ|odd\\X4\\|\r";
    let ack = Client::connect(mllp).await.send(adt).await;
    assert_eq!(msa(&ack).0, "AA");
    septet.settled(session_of(&septet, "ADT1").await).await;
    let out: Vec<_> = crate::support::files_below(&septet.path("out"));
    assert_eq!(out.len(), 1);
    assert_eq!(std::fs::read(&out[0]).unwrap(), adt.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_is_answered_kept_and_visible_and_the_connection_lives_on() {
    let (septet, _vendor, mllp) = start().await;
    let mut client = Client::connect(mllp).await;
    let ack = client.send("HELLO").await;
    assert_eq!(msa(&ack), ("AE".into(), String::new()));
    let ack = client.send(&oru("C2", "A", "M")).await;
    assert_eq!(msa(&ack), ("AA".into(), "C2".into()));
    let rejected = septet
        .until("/api/v1/messages?status=error", |p| !p["messages"].as_array().unwrap().is_empty())
        .await;
    let header = &rejected["messages"][0];
    assert_eq!((header["source"].as_str(), header["target"].as_str()), (Some("lis"), None));
    let raw = reqwest::get(septet.url(&format!("/api/v1/messages/{}/raw", header["id"]))).await.unwrap();
    assert_eq!(raw.text().await.unwrap(), "HELLO");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_lived_token_is_replaced_before_it_expires() {
    let (septet, vendor, mllp) = start().await;
    // As a string, as some servers write it; a quarter of it is left for the way.
    vendor.lifetime(json!("2"));
    let mut client = Client::connect(mllp).await;
    let began = std::time::Instant::now();
    for n in 1..=12 {
        client.send(&oru(&format!("C{n}"), "A", "M")).await;
        septet.settled(session_of(&septet, &format!("C{n}")).await).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    // Each lasts for a second and a half at least; the last one may be there before the last is needed.
    let (tokens, took) = (vendor.tokens().len(), began.elapsed());
    let most = 3 + usize::try_from(took.as_millis() / 1500).unwrap();
    assert!((2..=most).contains(&tokens), "{tokens} tokens in {took:?}");
    assert!(
        vendor.tokens().iter().all(|seen| seen.content_type.starts_with("application/x-www-form-urlencoded"))
    );
    let statuses = septet.get("/api/v1/messages?target=vendor&limit=100").await;
    let all = statuses["messages"].as_array().unwrap();
    assert!(all.iter().all(|header| header["attempts"] == 1 && header["error"].is_null()), "a 401 came up");
}
