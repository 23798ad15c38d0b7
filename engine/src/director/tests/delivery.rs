//! Operations: order, retry, suspension, and what must be durable before what.

use std::time::Duration;

use super::support::*;
use crate::body::Body;
use crate::clock::Clock;
use crate::config::settings::{Common, OnSuspend, PoolSize};
use crate::director::ItemState;
use crate::header::Status;
use crate::host::OperationError;
use crate::record::Record;
use crate::reply::{Action, Family, ReplyActions};

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
    bench.item_is(&engine, "out", ItemState::Paused).await;
    out.hears_nothing().await;
    let statuses: Vec<_> = ids.iter().map(|id| bench.header(*id).status).collect();
    assert_eq!(statuses, [Status::Suspended, Status::Suspended, Status::Queued, Status::Queued]);
    engine.start_item("out", None).await.unwrap();
    assert_eq!(out.next().await.id(), ids[2], "the last one is at its place");
}

#[tokio::test]
async fn a_host_that_panics_on_one_message_goes_on_with_the_next() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let poison = gate.receive("poison").await;
    gate.receive("good").await;
    out.next().await.panic();
    let suspended = bench.becomes(poison, Status::Suspended).await;
    assert_eq!(suspended.error.unwrap().to_string(), "panic: the host panicked");
    let good = out.next().await;
    assert_eq!(good.text(), "good");
    assert_eq!(engine.find("out").unwrap().state(), ItemState::Running);
}

#[tokio::test]
async fn after_five_minutes_of_retrying_there_is_one_alert() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let _engine = bench.start().await;
    let id = gate.receive("hello").await;
    let mut waited = 0;
    for attempt in 1..=14 {
        let call = out.next().await;
        assert_eq!(call.cx.attempt, attempt);
        call.outcome(Err(OperationError::fault("connect", "refused")));
        let retrying = bench.becomes(id, Status::Queued).await;
        let wait = retrying.next_attempt.unwrap().duration_since(bench.clock.now()).as_secs();
        waited += wait;
        assert_eq!(wait, [5, 10, 20, 40, 60][usize::min(attempt as usize - 1, 4)], "attempt {attempt}");
        let alerts = bench.events("alert");
        assert_eq!(alerts.len(), usize::from(waited - wait >= 300), "after {} s", waited - wait);
        bench.clock.advance(Duration::from_secs(wait as u64));
    }
    assert_eq!(bench.events("alert")[0].message_id, Some(id));
}

#[tokio::test]
async fn the_success_of_another_key_does_not_repeat_the_alert_about_one_that_fails() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let (order_by, pool_size) = (vec!["mrn".to_owned()], PoolSize::Limited(2));
    let mut out = bench.operation("out", Common { order_by, pool_size, ..common() });
    let _engine = bench.start().await;
    let send = async |mrn: &str| {
        let fields = serde_json::json!({ "mrn": mrn });
        gate.receive_body(Body::record(Record::untyped("R", fields))).await
    };
    let failing = send("a").await;
    for _ in 0..10 {
        out.next().await.code("fault");
        bench.becomes(failing, Status::Queued).await;
        let good = send("b").await;
        out.next().await.code("AA");
        bench.becomes(good, Status::Completed).await;
        bench.clock.advance(Duration::from_secs(60));
    }
    assert_eq!(bench.events("alert").len(), 1);
}

#[tokio::test]
async fn after_failure_timeout_a_message_is_suspended_and_the_next_one_goes() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let timeout = Some(Duration::from_secs(20));
    let mut out = bench.operation("out", Common { failure_timeout: timeout, ..common() });
    let _engine = bench.start().await;
    let id = gate.receive("hello").await;
    gate.receive("next").await;
    for wait in [5, 10, 20] {
        out.next().await.code("fault");
        bench.becomes(id, Status::Queued).await;
        bench.clock.advance(Duration::from_secs(wait));
    }
    out.next().await.code("fault");
    bench.becomes(id, Status::Suspended).await;
    assert_eq!(out.next().await.text(), "next");
}

#[tokio::test]
async fn keys_go_in_order_and_different_keys_in_parallel() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let order_by = vec!["mrn".to_owned()];
    let pool_size = PoolSize::Limited(4);
    let on_suspend = OnSuspend::HoldKey;
    let mut out = bench.operation("out", Common { order_by, pool_size, on_suspend, ..common() });
    let engine = bench.start().await;
    let send = async |mrn: &str| {
        let fields = serde_json::json!({ "mrn": mrn });
        gate.receive_body(Body::record(Record::untyped("R", fields))).await
    };
    let (a1, a2, b1) = (send("a").await, send("a").await, send("b").await);
    let mut first = [out.next().await, out.next().await];
    first.sort_by_key(Call::id);
    assert_eq!(first.each_ref().map(Call::id), [a1, b1]);
    out.hears_nothing().await;
    let [a, _b] = first;
    a.code("AE");
    bench.becomes(a1, Status::Suspended).await;
    out.hears_nothing().await;
    engine.resume(a1, None).await.unwrap();
    let again = out.next().await;
    assert_eq!(again.id(), a1, "back at its place, before its successor");
    again.code("AA");
    assert_eq!(out.next().await.id(), a2);
}

#[tokio::test]
async fn a_message_that_overtakes_a_suspended_one_is_marked() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let _engine = bench.start().await;
    gate.receive("bad").await;
    out.next().await.code("AE");
    let good = gate.receive("good").await;
    out.next().await.code("AA");
    bench.becomes(good, Status::Completed).await;
    assert_eq!(bench.events("message.overtook")[0].message_id, Some(good));
}

#[tokio::test]
async fn reply_actions_warn_fail_and_disable() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let entries = [("AE", Action::Warn), ("AR", Action::Fail), ("CR", Action::Disable)];
    let reply_actions = Some(ReplyActions::new(Family::Hl7, entries).unwrap());
    let mut out = bench.operation("out", Common { reply_actions, ..common() });
    let engine = bench.start().await;
    let warned = gate.receive("1").await;
    out.next().await.code("AE");
    bench.becomes(warned, Status::Completed).await;
    assert_eq!(bench.events("message.warned")[0].message_id, Some(warned));
    let failed = gate.receive("2").await;
    out.next().await.code("AR");
    assert!(bench.becomes(failed, Status::Error).await.is_error());
    let kept = gate.receive("3").await;
    out.next().await.code("CR");
    bench.item_is(&engine, "out", ItemState::Disabled).await;
    assert_eq!(bench.header(kept).status, Status::Queued);
    engine.start_item("out", None).await.unwrap();
    assert_eq!(out.next().await.id(), kept);
}

#[tokio::test]
async fn a_resend_of_the_same_attempt_has_the_same_key() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let _engine = bench.start().await;
    gate.receive("hello").await;
    let first = out.next().await;
    let key = first.cx.idempotency_key.clone();
    assert_eq!(key, format!("{}-{}", bench.store.epoch(), first.id()));
    first.code("none");
    bench.settle().await;
    bench.clock.advance(Duration::from_secs(5));
    assert_eq!(out.next().await.cx.idempotency_key, key);
}
