//! The operation against a server of its own over real sockets: what the server gets, and what becomes of what
//! it answers. A FHIR server nobody here wrote is met in the end-to-end tests.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use septet_engine::body::Body;
use septet_engine::fault::Fault;
use septet_engine::host::{BusinessOperation as _, Disposition, OperationError, Outcome};
use septet_engine::record::{MessageType, MessageTypes, Record, Undeclared};
use septet_engine::token::Placement;
use serde_json::{Value, json};

use super::{Fhir, Interaction, RequestPlan};
use crate::http_client::PeerPlan;
use crate::http_operation::HttpOperation;
use crate::message_map::MessageMap;
use crate::oauth_use::OauthPlan;
use crate::template::Template;
use crate::testing::{Events, check, delivery, record, runtime};
use crate::testing_http::{Seen, Tokens, Vendor};

struct Sent {
    result: Result<Outcome, OperationError>,
    seen: Vec<Seen>,
}

impl Sent {
    fn reply(self) -> (String, Option<Body>, Option<Fault>) {
        match self.result.unwrap() {
            Outcome::Replied { code, body, fault, .. } => (code, body, fault),
            Outcome::Sent => panic!("there is always a reply"),
        }
    }

    fn refused(self) -> String {
        let error = self.result.unwrap_err();
        assert_eq!((error.disposition, self.seen.len()), (Disposition::Suspend, 0), "it was sent");
        error.fault.text
    }
}

/// Sends `body` as `plan` says to a server that answers with `answer`.
async fn send(
    plan: RequestPlan,
    body: Body,
    answer: impl Fn(&Seen) -> Response + Send + Sync + 'static,
) -> Sent {
    let server = Vendor::start(answer).await;
    let fhir = Fhir {
        base: format!("{}/r4", server.url),
        requests: MessageMap::of("an interaction", [(body.type_name().to_owned(), plan)]),
        peer: PeerPlan {
            name: "fhir.example:443".into(),
            oauth: Some(OauthPlan::named("fhir", Placement::Header)),
            tls: None,
            idempotency_header: "idempotency-key".parse().unwrap(),
        },
    };
    let mut operation = HttpOperation::new(Arc::new(fhir));
    operation.start().await.unwrap();
    let mut runtime = runtime(Arc::new(Events::default()));
    runtime.tokens = Arc::new(Tokens::default());
    runtime.types = types();
    let result = operation.on_message(&delivery(42, body, &runtime)).await;
    Sent { result, seen: server.seen() }
}

fn types() -> MessageTypes {
    let declared = |name: &str, fields: &[(&str, &str)]| MessageType {
        name: name.into(),
        fields: fields.iter().map(|(name, kind)| ((*name).to_owned(), kind.parse().unwrap())).collect(),
    };
    MessageTypes::new([
        declared("PutPatient", &[("mrn", "string"), ("resource", "object")]),
        declared("Made", &[("id", "string")]),
    ])
}

fn interaction(interaction: Interaction) -> RequestPlan {
    RequestPlan { interaction: Some(interaction), ..RequestPlan::default() }
}

fn template(text: &str) -> Option<Template> {
    Some(Template::parse(text).unwrap())
}

fn fhir(value: Value) -> Response {
    ([("content-type", "application/fhir+json")], value.to_string()).into_response()
}

fn patient() -> Value {
    json!({ "resourceType": "Patient", "id": "p1", "name": [{ "family": "Doe" }] })
}

// === Requests ===

#[tokio::test]
async fn a_resource_is_created_below_its_type_and_the_reply_is_a_record() {
    let created = |_: &Seen| (StatusCode::CREATED, fhir(json!({ "id": "7" }))).into_response();
    let sent = send(interaction(Interaction::Create), record(patient()), created).await;
    let seen = &sent.seen[0];
    assert_eq!((seen.method.as_str(), seen.uri.as_str()), ("POST", "/r4/Patient"));
    assert_eq!(seen.header("content-type"), Some("application/fhir+json"));
    assert_eq!(seen.header("accept"), Some("application/fhir+json"));
    assert_eq!(seen.header("authorization"), Some("Bearer token-1"));
    assert_eq!(seen.header("idempotency-key"), Some("e1-42"));
    assert_eq!(seen.header("if-none-exist"), None);
    assert_eq!(seen.body, patient().to_string());
    let (code, body, fault) = sent.reply();
    assert_eq!((code.as_str(), fault), ("201", None));
    assert_eq!(body.unwrap().as_record().unwrap().fields, json!({ "id": "7" }));
}

#[tokio::test]
async fn a_conditional_create_escapes_what_the_message_gives() {
    let plan = RequestPlan {
        if_none_exist: template("identifier=urn:mrn|{mrn}"),
        resource: Some("resource".into()),
        ..interaction(Interaction::Create)
    };
    let body = json!({ "mrn": "A&B|1\r\nX: y", "resource": patient() });
    let types = types();
    let vault = septet_engine::vault::Vault::ephemeral().unwrap();
    let body = Body::record(types.create("PutPatient", body, Undeclared::Refuse, &vault).unwrap());
    let sent = send(plan, body, |_| StatusCode::OK.into_response()).await;
    let seen = &sent.seen[0];
    let expected = "identifier=urn:mrn|A%26B%7C1%0D%0AX%3A%20y";
    assert_eq!(seen.header("if-none-exist"), Some(expected));
    assert_eq!(seen.body, patient().to_string(), "the message around the resource stays here");
}

#[tokio::test]
async fn an_update_goes_to_the_id_or_to_what_a_condition_finds() {
    let ok = |_: &Seen| fhir(json!({}));
    let sent = send(interaction(Interaction::Update), record(patient()), ok).await;
    assert_eq!((sent.seen[0].method.as_str(), sent.seen[0].uri.as_str()), ("PUT", "/r4/Patient/p1"));

    let plan = RequestPlan {
        condition: template("?identifier=urn:mrn|{id}&active=true"),
        if_match: template("{session}"),
        ..interaction(Interaction::Update)
    };
    let sent = send(plan, record(json!({ "resourceType": "Patient" })), ok).await;
    assert_eq!(sent.seen[0].uri, "/r4/Patient?identifier=urn:mrn|42&active=true");
    assert_eq!(sent.seen[0].header("if-match"), Some("W/\"7\""));
}

#[tokio::test]
async fn a_bundle_goes_to_the_base_as_what_its_type_says() {
    let ok = |_: &Seen| fhir(json!({ "resourceType": "Bundle", "type": "transaction-response" }));
    let bundle = |kind: &str| record(json!({ "resourceType": "Bundle", "type": kind, "entry": [] }));
    for (plan, kind, uri) in [
        (RequestPlan::default(), "transaction", "/r4"),
        (RequestPlan::default(), "batch", "/r4"),
        (RequestPlan::default(), "document", "/r4/Bundle"),
        (interaction(Interaction::Transaction), "transaction", "/r4"),
    ] {
        let sent = send(plan, bundle(kind), ok).await;
        assert_eq!((sent.seen[0].method.as_str(), sent.seen[0].uri.as_str()), ("POST", uri), "{kind}");
    }
    let untold = record(json!({ "resourceType": "Bundle", "entry": [] }));
    let sent = send(interaction(Interaction::Batch), untold, ok).await;
    assert_eq!(sent.seen[0].body, r#"{"resourceType":"Bundle","entry":[],"type":"batch"}"#);
}

#[tokio::test]
async fn what_is_no_resource_is_suspended_unsent() {
    let never = |_: &Seen| fhir(json!({}));
    let out = |plan, value| async move { send(plan, record(value), never).await.refused() };
    let no_type = "the message has no resourceType, so it is no FHIR resource";
    assert_eq!(out(RequestPlan::default(), json!({ "a": 1 })).await, no_type);
    assert_eq!(out(RequestPlan::default(), json!({ "resourceType": "../Patient" })).await, no_type);
    let no_id = "an update needs the resource's id, or a condition";
    for id in [json!(null), json!(".."), json!("a/b"), json!(7)] {
        let resource = json!({ "resourceType": "Patient", "id": id });
        assert_eq!(out(interaction(Interaction::Update), resource).await, no_id);
    }
    assert_eq!(out(interaction(Interaction::Batch), patient()).await, "a batch is a Bundle");
    let other = json!({ "resourceType": "Bundle", "type": "batch" });
    let text = out(interaction(Interaction::Transaction), other).await;
    assert_eq!(text, "the Bundle is of another type than transaction");
    let plan = RequestPlan { resource: Some("resource".into()), ..RequestPlan::default() };
    assert_eq!(out(plan, json!({ "resource": "text" })).await, "the field resource holds no resource");

    // An empty identifier would match any resource, and nothing would be created.
    let plan = RequestPlan {
        if_none_exist: template("identifier=urn:mrn|{mrn}"),
        ..interaction(Interaction::Create)
    };
    let text = out(plan, json!({ "resourceType": "Patient", "mrn": "" })).await;
    assert_eq!(text, "the message has no mrn");
}

#[tokio::test]
async fn a_body_is_sent_as_it_came() {
    let odd = br#"{ "resourceType":"Observation",  "valueQuantity":{"value":1.10} }"#;
    let body = Body::new("Json", "application/fhir+json", None, bytes::Bytes::from_static(odd));
    let sent = send(RequestPlan::default(), body, |_| StatusCode::CREATED.into_response()).await;
    assert_eq!(sent.seen[0].body.as_bytes(), odd);
}

// === Tokens ===

#[tokio::test]
async fn a_401_drops_the_token_and_is_tried_once_more_and_a_403_never() {
    let expired = |seen: &Seen| match seen.header("authorization") {
        Some("Bearer token-1") => StatusCode::UNAUTHORIZED.into_response(),
        _ => StatusCode::CREATED.into_response(),
    };
    let sent = send(RequestPlan::default(), record(patient()), expired).await;
    assert_eq!((sent.seen.len(), sent.reply().0.as_str()), (2, "201"));
    let refused =
        send(RequestPlan::default(), record(patient()), |_| StatusCode::UNAUTHORIZED.into_response());
    let sent = refused.await;
    assert_eq!((sent.seen.len(), sent.reply().0.as_str()), (2, "401"));
    let forbidden =
        send(RequestPlan::default(), record(patient()), |_| StatusCode::FORBIDDEN.into_response());
    let sent = forbidden.await;
    assert_eq!((sent.seen.len(), sent.reply().0.as_str()), (1, "403"));
}

// === Replies ===

fn outcome(issues: Value) -> Value {
    json!({ "resourceType": "OperationOutcome", "issue": issues })
}

#[tokio::test]
async fn codes_and_elements_of_an_outcome_are_the_error_and_its_words_the_detail() {
    let answer = |_: &Seen| {
        let issues = json!([
            { "severity": "warning", "code": "informational", "diagnostics": "slow today" },
            { "severity": "error", "code": "invalid", "expression": ["Patient.name[0].family"],
              "details": { "text": "Doe is no name" }, "diagnostics": "line 1" },
            { "severity": "error", "code": "Doe, Jane", "expression": ["Patient.gender"] },
            { "severity": "error", "code": "value",
              "expression": ["Patient.identifier.where(value='4711')", "Patient.identifier"] },
        ]);
        (StatusCode::UNPROCESSABLE_ENTITY, fhir(outcome(issues))).into_response()
    };
    let (code, body, fault) = send(RequestPlan::default(), record(patient()), answer).await.reply();
    let fault = fault.unwrap();
    assert_eq!((code.as_str(), fault.code.as_str()), ("422", "422"));
    let expected = "fhir.example:443 answered HTTP 422 Unprocessable Entity: \
                    invalid at Patient.name[0].family, value at Patient.identifier";
    assert_eq!(fault.text, expected);
    let detail = fault.detail.unwrap().0;
    let first = "slow today\nDoe is no name; line 1; Patient.name[0].family\n";
    assert!(detail.starts_with(first) && detail.contains("4711"), "{detail}");
    assert!(body.unwrap().as_record().is_some(), "what the server said is kept whole");
}

#[tokio::test]
async fn a_refusal_that_is_no_outcome_keeps_the_servers_words() {
    let answer = |_: &Seen| (StatusCode::BAD_GATEWAY, "<html>proxy</html>").into_response();
    let (code, _, fault) = send(RequestPlan::default(), record(patient()), answer).await.reply();
    let fault = fault.unwrap();
    assert_eq!(
        (code.as_str(), fault.text.as_str()),
        ("502", "fhir.example:443 answered HTTP 502 Bad Gateway")
    );
    assert_eq!(fault.detail.unwrap().0, "<html>proxy</html>");
}

fn answered(entries: Value) -> impl Fn(&Seen) -> Response + Send + Sync + 'static {
    move |_| fhir(json!({ "resourceType": "Bundle", "type": "batch-response", "entry": entries }))
}

#[tokio::test]
async fn entries_of_a_batch_that_failed_decide_its_code() {
    let made = json!({ "response": { "status": "201 Created" } });
    let there = json!({ "response": { "status": "304" } });
    let bundle = || record(json!({ "resourceType": "Bundle", "type": "batch" }));
    let whole = answered(json!([made, there]));
    let (code, _, fault) = send(RequestPlan::default(), bundle(), whole).await.reply();
    assert_eq!((code.as_str(), fault), ("200", None));

    let issue = json!([{ "severity": "error", "code": "required", "expression": ["Observation.code"],
                         "diagnostics": "4711 has no code" }]);
    let wrong = json!({ "response": { "status": "422 Unprocessable", "outcome": outcome(issue) } });
    let busy = json!({ "response": { "status": "503" } });
    let parts = answered(json!([made, wrong, there]));
    let (code, body, fault) = send(RequestPlan::default(), bundle(), parts).await.reply();
    let fault = fault.unwrap();
    assert_eq!((code.as_str(), fault.code.as_str()), ("422", "422"));
    let expected = "fhir.example:443 answered HTTP 200 OK, but 1 of 3 entries failed: \
                    entry 1 422 required at Observation.code";
    assert_eq!(fault.text, expected);
    assert_eq!(fault.detail.unwrap().0, "entry 1: 4711 has no code; Observation.code");
    assert!(body.is_some());

    let parts = answered(json!([wrong, busy, {}]));
    let (code, _, fault) = send(RequestPlan::default(), bundle(), parts).await.reply();
    assert_eq!(code, "503", "what is worth another try decides");
    assert!(fault.unwrap().text.ends_with("entry 1 503, entry 2 no status"));
}

#[tokio::test]
async fn a_reply_without_a_body_tells_what_was_made() {
    let minimal = |_: &Seen| {
        (StatusCode::CREATED, [("location", "https://x.example/r4/Patient/12/_history/3")]).into_response()
    };
    let sent = send(RequestPlan::default(), record(patient()), minimal).await;
    let body = sent.reply().1.unwrap();
    let expected = json!({ "resourceType": "Patient", "id": "12", "meta": { "versionId": "3" } });
    assert_eq!(body.as_record().unwrap().fields, expected);

    let plan = RequestPlan { reply: Some("Made".into()), ..RequestPlan::default() };
    let body = send(plan, record(patient()), minimal).await.reply().1.unwrap();
    assert_eq!((body.type_name(), &body.as_record().unwrap().fields), ("Made", &json!({ "id": "12" })));
}

#[tokio::test]
async fn a_message_without_an_interaction_is_suspended() {
    let body = Body::record(Record::untyped("Other", patient()));
    let server = Vendor::start(|_| StatusCode::OK.into_response()).await;
    let peer = PeerPlan {
        name: "fhir.example:443".into(),
        oauth: None,
        tls: None,
        idempotency_header: "idempotency-key".parse().unwrap(),
    };
    let fhir = Fhir { base: server.url.clone(), requests: MessageMap::of("an interaction", []), peer };
    let mut operation = HttpOperation::new(Arc::new(fhir));
    operation.start().await.unwrap();
    let runtime = runtime(Arc::new(Events::default()));
    let error = operation.on_message(&delivery(1, body, &runtime)).await.unwrap_err();
    assert_eq!(error.fault.text, "no interaction is mapped to messages of type Other");
}

// === Checks ===

const TABLES: &str = r#"
[oauth.fhir]
issuer = "https://a.example"
grant = "client_credentials"
client_id = "${env:ID:-x}"
[messages.ResultBundle]
resourceType = "string"
type = "string"
entry = "list"
[messages.PutPatient]
mrn = "string"
resource = "object"
[messages.Login]
password = "secret"
resource = "object"
"#;

fn problems(operation: &str) -> String {
    check(&format!("{TABLES}[operations.out]\ntype = \"fhir\"\n{operation}"))
}

#[test]
fn a_right_operation_has_no_problem() {
    let text = r#"
url = "https://fhir.example/r4"
oauth = "fhir"
reply_actions = { "412" = "complete" }
requests.ResultBundle = { interaction = "transaction" }
requests.PutPatient = { interaction = "update", resource = "resource", condition = "identifier={mrn}", if_match = "1" }
requests.Json = { interaction = "create", if_none_exist = "identifier={x}", headers = { Prefer = "return=minimal" } }
"#;
    assert_eq!(problems(text), "");
}

#[test]
fn every_mistake_is_named_at_once() {
    let out = problems(
        r#"
url = "https://fhir.example/{x}"
oauth = { client = "fhirr", placement = "body" }
requests.ResultBundle = { if_none_exist = "a=b" }
requests.PutPatient = { interaction = "update", if_none_exist = "a={mrm}" }
requests.Login = { interaction = "create", resource = "pasword", reply = "Nothing" }
requests."ADT^A01" = {}
requests.Nobody = {}
"#,
    );
    let expected = [
        "S0204: there is no OAuth client named fhirr (did you mean fhir?)",
        "S0335: placement = \"body\" sends a form",
        "S0331: the base URL of a FHIR server",
        "S0335: if_none_exist goes only with create (say interaction = \"create\")",
        "S0335: PutPatient has no field resourceType, so it is no resource itself",
        "S0337: PutPatient has no field mrm (did you mean mrn?)",
        "S0335: Login has no field pasword (did you mean password?)",
        "warning S0338: a create that is sent again",
        "S0202: message type Nothing is not declared",
        "S0335: an HL7 message is no FHIR resource",
        "S0202: message type Nobody is not declared",
    ];
    for line in expected {
        assert!(out.contains(line), "missing {line} in\n{out}");
    }
    assert!(problems("url = \"https://a.example\"\nrequests = {}\n").contains("S0334"));
}

#[test]
fn tokens_and_secrets_stay_off_plain_http() {
    let requests = "requests.Json = {}\n";
    let out = problems(&format!("url = \"http://fhir.example\"\noauth = \"fhir\"\n{requests}"));
    assert!(out.starts_with("error S0332: an OAuth token would be sent over plain http"), "{out}");
    let out = problems("url = \"http://10.0.0.1\"\nrequests.Login = { resource = \"resource\" }\n");
    assert!(out.starts_with("error S0332: a secret would be sent"), "{out}");
    assert_eq!(problems(&format!("url = \"http://127.0.0.1:1\"\noauth = \"fhir\"\n{requests}")), "");
}
