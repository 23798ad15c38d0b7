//! Operations: order, retry, suspension, and what must be durable before what.

use super::support::*;
use crate::body::Body;
use crate::config::settings::Common;
use crate::director::ItemState;
use crate::header::Status;

#[tokio::test]
async fn a_message_goes_from_service_through_router_to_operation() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["router"]);
    bench.process("router", router(&["out"]));
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let id = gate.receive("hello").await;
    let call = out.next().await;
    assert_eq!(call.text(), "hello");
    assert_eq!(call.cx.attempt, 1);
    assert!(!call.cx.tried_before);
    let sent = call.id();
    call.code("AA");
    bench.becomes(sent, Status::Completed).await;
    assert_eq!(bench.trace(id), ["in>router completed", "router>out completed"]);
    assert_eq!(bench.header(sent).caused_by, Some(id));
    assert_eq!(bench.header(sent).body_id, bench.header(id).body_id, "one body, stored once");
    assert_eq!(engine.ready(), Ok(()));
}

#[tokio::test]
async fn retry_keeps_later_messages_behind() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let _engine = bench.start().await;
    let first = gate.receive("first").await;
    gate.receive("second").await;
    out.next().await.code("AR");
    bench.becomes(first, Status::Queued).await;
    out.hears_nothing().await;
    bench.clock.advance(common().retry_interval);
    let again = out.next().await;
    assert_eq!((again.text().as_str(), again.cx.attempt, again.cx.tried_before), ("first", 2, true));
    again.code("AA");
    assert_eq!(out.next().await.text(), "second");
}

#[tokio::test]
async fn a_reply_worth_keeping_is_a_response_to_the_sender() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let _engine = bench.start().await;
    let id = gate.receive("hello").await;
    out.next().await.reply("AA", Body::text("Ack", "thanks".to_owned()));
    bench.becomes(id, Status::Completed).await;
    assert_eq!(bench.trace(id), ["in>out completed", "~out>in completed"]);
}

#[tokio::test]
async fn suspend_limit_pauses_and_puts_the_last_message_back() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", Common { suspend_limit: 3, ..common() });
    let engine = bench.start().await;
    let mut ids = Vec::new();
    for text in ["1", "2", "3", "4"] {
        ids.push(gate.receive(text).await);
    }
    for _ in 0..3 {
        out.next().await.code("AE");
    }
    let out_item = engine.find("out").unwrap();
    soon("the pause", async {
        while out_item.state() != ItemState::Paused {
            tokio::task::yield_now().await;
        }
    })
    .await;
    out.hears_nothing().await;
    let statuses: Vec<_> = ids.iter().map(|id| bench.header(*id).status).collect();
    assert_eq!(statuses, [Status::Suspended, Status::Suspended, Status::Queued, Status::Queued]);
    engine.start_item("out", None).await.unwrap();
    assert_eq!(out.next().await.id(), ids[2], "the last one is at its place");
}
