//! The operation against a vendor of its own over real sockets: what the vendor gets, and what becomes of
//! what it answers.

mod checks;
mod replies;
mod tls;

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use septet_engine::body::Body;
use septet_engine::config::settings::ClientTls;
use septet_engine::fault::Fault;
use septet_engine::host::{BusinessOperation, Disposition, OperationError, Outcome, Runtime};
use septet_engine::record::{MessageType, MessageTypes, Undeclared};
use septet_engine::token::Placement;
use serde_json::{Value, json};

use super::{BodyKind, RequestPlan, Rest};
use crate::http_client::PeerPlan;
use crate::http_operation::HttpOperation;
use crate::message_map::MessageMap;
use crate::oauth_use::OauthPlan;
use crate::template::Template;
use crate::testing::{Events, delivery, hl7, runtime};
use crate::testing_http::{Seen, Tokens, Vendor};

// === One operation ===

struct Setup {
    method: &'static str,
    path: &'static str,
    body: Option<BodyKind>,
    headers: &'static [(&'static str, &'static str)],
    query: &'static [(&'static str, &'static str)],
    reply: Option<&'static str>,
    placement: Option<Placement>,
    tls: Option<ClientTls>,
}

const PLAIN: Setup = Setup {
    method: "POST",
    path: "/results/{accession}",
    body: None,
    headers: &[],
    query: &[],
    reply: None,
    placement: None,
    tls: None,
};

impl Setup {
    async fn operation(&self, type_name: &str, url: &str) -> HttpOperation<Rest> {
        let templates = |entries: &[(&str, &str)]| -> Vec<(String, Template)> {
            entries.iter().map(|(name, text)| ((*name).to_owned(), Template::parse(text).unwrap())).collect()
        };
        let plan = RequestPlan {
            method: self.method.parse().unwrap(),
            url: Template::parse(&format!("{url}{}", self.path)).unwrap(),
            body: self.body,
            headers: templates(self.headers).into_iter().map(|(n, t)| (n.parse().unwrap(), t)).collect(),
            query: templates(self.query),
            reply: self.reply.map(str::to_owned),
        };
        let oauth = self.placement.map(|placement| OauthPlan::named("vendor", placement));
        let rest = Rest {
            requests: MessageMap::of("a request", [(type_name.to_owned(), plan)]),
            peer: PeerPlan {
                name: "vendor.example:443".into(),
                oauth,
                tls: self.tls.clone(),
                idempotency_header: "idempotency-key".parse().unwrap(),
            },
        };
        let mut operation = HttpOperation::new(Arc::new(rest));
        operation.start().await.unwrap();
        operation
    }
}

fn types() -> MessageTypes {
    let declared = |name: &str, fields: &[(&str, &str)]| MessageType {
        name: name.into(),
        fields: fields.iter().map(|(name, kind)| ((*name).to_owned(), kind.parse().unwrap())).collect(),
    };
    MessageTypes::new([
        declared("Submit", &[("accession", "string"), ("note", "string?"), ("token", "secret?")]),
        declared("SubmitReply", &[("status", "string"), ("count", "integer?")]),
        declared("Bearer", &[("access_token", "secret"), ("expires_in", "integer")]),
    ])
}

fn engine(tokens: Tokens) -> Runtime {
    let mut runtime = runtime(Arc::new(Events::default()));
    runtime.types = types();
    runtime.tokens = Arc::new(tokens);
    runtime
}

fn submit(runtime: &Runtime, fields: Value) -> Body {
    Body::record(runtime.types.create("Submit", fields, Undeclared::Refuse, &runtime.vault).unwrap())
}

/// What the vendor saw of one message, and what became of it.
async fn send(
    setup: Setup,
    fields: Value,
    answer: impl Fn(&Seen) -> Response + Send + Sync + 'static,
) -> Sent {
    let runtime = engine(Tokens::default());
    let body = submit(&runtime, fields);
    let vendor = Vendor::start(answer).await;
    let mut operation = setup.operation("Submit", &vendor.url).await;
    let cx = delivery(42, body, &runtime);
    let result = operation.on_message(&cx).await;
    Sent { seen: vendor.seen(), result, runtime }
}

struct Sent {
    seen: Vec<Seen>,
    result: Result<Outcome, OperationError>,
    runtime: Runtime,
}

impl Sent {
    fn outcome(&self) -> (&str, Option<&Body>, Option<&Fault>) {
        match self.result.as_ref().unwrap() {
            Outcome::Replied { code, body, fault, .. } => (code, body.as_ref(), fault.as_ref()),
            Outcome::Sent => panic!("an HTTP request always has a reply"),
        }
    }
}

fn ok(_: &Seen) -> Response {
    axum::Json(json!({ "status": "accepted" })).into_response()
}

// === Requests ===

#[tokio::test]
async fn a_record_becomes_a_request_with_its_whole_json_and_its_own_url() {
    let setup = Setup {
        headers: &[("X-Note", "{note}"), ("X-Absent", "{token}"), ("X-Session", "s{session}")],
        query: &[("n", "{note}"), ("t", "{token}")],
        ..PLAIN
    };
    let sent = send(setup, json!({ "accession": "A/1 b", "note": "ü & co" }), ok).await;
    let seen = &sent.seen[0];
    assert_eq!((seen.method.as_str(), seen.uri.as_str()), ("POST", "/results/A%2F1%20b?n=%C3%BC+%26+co"));
    assert_eq!(seen.body, r#"{"accession":"A/1 b","note":"ü & co"}"#);
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("x-note"), Some("%C3%BC & co"));
    assert_eq!(seen.header("x-absent"), None);
    assert_eq!(seen.header("x-session"), Some("s7"));
    assert_eq!(sent.outcome().0, "200");
}

#[tokio::test]
async fn a_repeat_is_the_same_request_with_the_same_key_and_trace() {
    let runtime = engine(Tokens::default());
    let vendor = Vendor::start(ok).await;
    let mut operation = PLAIN.operation("Submit", &vendor.url).await;
    let body = submit(&runtime, json!({ "accession": "A1" }));
    let mut cx = delivery(42, body, &runtime);
    operation.on_message(&cx).await.unwrap();
    cx.attempt = 2;
    operation.on_message(&cx).await.unwrap();
    let seen = vendor.seen();
    assert_eq!(
        (&seen[0].uri, &seen[0].headers, &seen[0].body),
        (&seen[1].uri, &seen[1].headers, &seen[1].body)
    );
    assert_eq!(seen[0].header("idempotency-key"), Some("e1-42"));
    assert_eq!(seen[0].header("septet-session"), Some("7"));
    let parent: Vec<_> = seen[0].header("traceparent").unwrap().split('-').collect();
    assert_eq!(parent.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2]);
}

#[tokio::test]
async fn get_has_no_body_and_a_form_has_fields() {
    let sent = send(Setup { method: "GET", ..PLAIN }, json!({ "accession": "A1" }), ok).await;
    assert_eq!((sent.seen[0].body.as_str(), sent.seen[0].header("content-type")), ("", None));
    let form = Setup { body: Some(BodyKind::Form), ..PLAIN };
    let sent = send(form, json!({ "accession": "A 1", "token": "s3cret-token" }), ok).await;
    assert_eq!(sent.seen[0].body, "accession=A+1&token=s3cret-token");
    assert_eq!(sent.seen[0].header("content-type"), Some("application/x-www-form-urlencoded"));
}

#[tokio::test]
async fn an_hl7_message_goes_out_byte_for_byte_on_a_url_from_its_fields() {
    let raw = "MSH|^~\\&|A|B|C|D|20260101||ORU^R01|X1|P|2.5\rPID|1||4711^^^H\rZZZ|odd\n";
    let runtime = engine(Tokens::default());
    let vendor = Vendor::start(ok).await;
    let mut operation = Setup { path: "/p/{PID-3.1}", ..PLAIN }.operation("ORU^R01", &vendor.url).await;
    let body = hl7(raw);
    let body = Body::hl7(body.as_hl7().unwrap().clone());
    operation.on_message(&delivery(1, body, &runtime)).await.unwrap();
    let seen = &vendor.seen()[0];
    assert_eq!((seen.uri.as_str(), seen.body.as_str()), ("/p/4711", raw));
    assert_eq!(seen.header("content-type"), Some("application/hl7-v2"));
}

#[tokio::test]
async fn what_cannot_be_sent_is_the_messages_own_fault_and_names_the_place() {
    let suspended = |result: Result<Outcome, OperationError>| {
        let error = result.unwrap_err();
        assert_eq!(error.disposition, Disposition::Suspend);
        error.fault.text
    };
    let sent = send(Setup { path: "/{note}", ..PLAIN }, json!({ "accession": "A1" }), ok).await;
    assert!(suspended(sent.result).contains("note"));
    assert!(sent.seen.is_empty());
    let sent = send(PLAIN, json!({ "accession": ".." }), ok).await;
    suspended(sent.result);

    let runtime = engine(Tokens::default());
    let mut operation = PLAIN.operation("Other", "http://127.0.0.1:9").await;
    let body = submit(&runtime, json!({ "accession": "A1" }));
    let text = suspended(operation.on_message(&delivery(1, body, &runtime)).await);
    assert_eq!(text, "no request is mapped to messages of type Submit");
}

// === Tokens ===

fn with_token(placement: Placement) -> Setup {
    Setup { placement: Some(placement), ..PLAIN }
}

#[tokio::test]
async fn the_token_goes_where_the_placement_says() {
    let message = || json!({ "accession": "A1", "note": "x" });
    let header = send(with_token(Placement::Header), message(), ok).await;
    assert_eq!(header.seen[0].header("authorization"), Some("Bearer token-1"));
    let query = send(with_token(Placement::Query), message(), ok).await;
    assert_eq!(query.seen[0].uri, "/results/A1?access_token=token-1");
    assert_eq!(query.seen[0].header("authorization"), None);
    let body = send(with_token(Placement::Body), message(), ok).await;
    assert_eq!(body.seen[0].body, "accession=A1&note=x&access_token=token-1");
    assert_eq!(body.seen[0].header("content-type"), Some("application/x-www-form-urlencoded"));
}

#[tokio::test]
async fn without_a_token_nothing_is_sent() {
    let runtime = engine(Tokens { fails: true, ..Tokens::default() });
    let vendor = Vendor::start(ok).await;
    let mut operation = with_token(Placement::Header).operation("Submit", &vendor.url).await;
    let body = submit(&runtime, json!({ "accession": "A1" }));
    let error = operation.on_message(&delivery(1, body, &runtime)).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::ByCode("fault"));
    let text = "oauth: no token: http 503: the token endpoint answered with status 503";
    assert_eq!(error.fault.to_string(), text);
    assert!(error.fault.detail.is_some());
    assert!(error.retry_after.unwrap() > 3600, "no sooner than the client asks again");
    assert!(vendor.seen().is_empty());
}

#[tokio::test]
async fn a_401_fetches_once_and_sends_once_more() {
    let accepts_second = |seen: &Seen| match seen.header("authorization") {
        Some("Bearer token-2") => ok(seen),
        _ => http::StatusCode::UNAUTHORIZED.into_response(),
    };
    let sent = send(with_token(Placement::Header), json!({ "accession": "A1" }), accepts_second).await;
    assert_eq!((sent.seen.len(), sent.outcome().0), (2, "200"));
    assert_eq!(sent.seen[0].header("idempotency-key"), sent.seen[1].header("idempotency-key"));

    let refuses = |_: &Seen| {
        (http::StatusCode::UNAUTHORIZED, [("www-authenticate", "Bearer error=\"invalid_token\"")])
            .into_response()
    };
    let sent = send(with_token(Placement::Header), json!({ "accession": "A1" }), refuses).await;
    let (code, _, fault) = sent.outcome();
    assert_eq!((sent.seen.len(), code), (2, "401"));
    assert!(fault.unwrap().detail.as_ref().unwrap().0.contains("invalid_token"));
}

#[tokio::test]
async fn an_echoed_token_or_secret_does_not_reach_the_trace() {
    let echo = |seen: &Seen| {
        let text = format!("{:?} {}", seen.header("authorization"), seen.body);
        (http::StatusCode::BAD_REQUEST, text).into_response()
    };
    let message = json!({ "accession": "A1", "token": "s3cret-token" });
    let sent = send(with_token(Placement::Header), message, echo).await;
    assert!(sent.seen[0].body.contains("s3cret-token"), "the peer gets it in clear");
    let (_, body, fault) = sent.outcome();
    for text in [body.unwrap().as_text().unwrap(), &fault.unwrap().detail.as_ref().unwrap().0] {
        assert!(!text.contains("s3cret-token") && !text.contains("token-1"), "{text}");
    }
}
