//! Operators: resend, replay, resume, discard.

use super::support::*;
use crate::body::Body;
use crate::config::settings::Common;
use crate::director::ControlError;
use crate::fault::Fault;
use crate::header::Status;
use crate::host::Inbound;
use crate::record::Record;

#[tokio::test]
async fn a_resend_is_a_new_header_over_the_same_body() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let id = gate.receive("hello").await;
    out.next().await.code("AA");
    let resent = engine.resend(id, None, None, Some("anna")).await.unwrap();
    let call = out.next().await;
    assert_eq!((call.id(), call.text().as_str()), (resent.id, "hello"));
    let (old, new) = (bench.header(id), bench.header(resent.id));
    assert_eq!((new.session, new.source.clone(), new.resent_from), (old.session, old.source, Some(id)));
    assert_eq!(new.body_id, old.body_id);
    assert!(!call.cx.idempotency_key.ends_with(&format!("-{id}")), "a resend gets a new key");
    assert_eq!(bench.events("message.resent")[0].who.as_deref(), Some("anna"));

    let edited = Body::text("Text", "edited".into());
    let edited = engine.resend(id, None, Some(edited), None).await.unwrap();
    call.code("AA");
    let call = out.next().await;
    assert_eq!((call.id(), call.text().as_str()), (edited.id, "edited"));
}

#[tokio::test]
async fn an_edited_message_is_found_by_what_it_says_now() {
    let mut bench = Bench::new();
    let search = vec![("mrn".to_owned(), "mrn".to_owned())];
    let gate = bench.service_with("in", Common { targets: vec!["out".into()], search, ..common() });
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let record = |mrn: &str| Body::record(Record::untyped("R", serde_json::json!({ "mrn": mrn })));
    let id = gate.receive_body(record("A")).await;
    out.next().await.code("AA");
    let resent = engine.resend(id, None, Some(record("B")), None).await.unwrap().id;
    let keys = |id| bench.header(id).keys.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>();
    assert_eq!((keys(id), keys(resent)), (vec!["A".to_owned()], vec!["B".to_owned()]));
}

#[tokio::test]
async fn only_requests_with_a_target_are_sent_again() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let id = gate.receive("hello").await;
    out.next().await.reply("AA", Body::text("Ack", "ok".into()));
    bench.becomes(id, Status::Completed).await;
    let response = bench.store.session(id.into())[1].id;
    let refused = async |id, target| engine.resend(id, target, None, None).await.unwrap_err();
    assert!(matches!(refused(response, None).await, ControlError::NotAllowed(_)));
    assert!(matches!(refused(id, Some("in")).await, ControlError::NotAllowed(_)));
    assert!(matches!(refused(id, Some("nobody")).await, ControlError::UnknownItem(_)));
    assert!(matches!(refused(crate::id::MessageId(9999), None).await, ControlError::UnknownMessage(_)));

    let mut rejected = Inbound::new(Body::text("Text", "junk".into()));
    rejected.reject = Some(Fault::new("message", "101", "no MSH"));
    let accepted = gate.intake().receive(rejected).await.unwrap();
    let header = bench.header(accepted.headers[0]);
    assert_eq!((header.status, header.target.is_none(), header.is_error()), (Status::Error, true, true));
    assert_eq!(bench.events("message.rejected")[0].text, "101: no MSH");
    assert!(matches!(refused(header.id, None).await, ControlError::NotAllowed(_)));
}

#[tokio::test]
async fn in_flight_messages_are_not_discarded_and_queued_ones_are() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let first = gate.receive("first").await;
    let second = gate.receive("second").await;
    let third = gate.receive("third").await;
    let call = out.next().await;
    assert!(matches!(engine.discard(first, None).await, Err(ControlError::NotAllowed(_))));
    assert!(matches!(engine.resume(second, None).await, Err(ControlError::NotAllowed(_))));
    engine.discard(second, None).await.unwrap();
    call.code("AA");
    assert_eq!(out.next().await.id(), third);
    assert_eq!(bench.header(second).status, Status::Discarded);
}
