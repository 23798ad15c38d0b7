//! The life of items: faults and back-off, stops that last, drains, reloads.

use std::time::Duration;

use super::support::*;
use crate::config::settings::Common;
use crate::director::{ItemState, Orphans, ProductionState, StartError};
use crate::header::Status;
use crate::host::{HostFault, Refused};
use crate::id::ItemName;
use crate::registry::ItemKind;

#[tokio::test]
async fn a_panicking_host_touches_only_its_item() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let other = bench.service("other", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    gate.panics.notify_one();
    bench.item_is(&engine, "in", ItemState::Faulted).await;
    other.receive("still here").await;
    assert_eq!(out.next().await.text(), "still here");
    assert_eq!(bench.events("item.faulted").len(), 1);
    assert!(engine.ready().is_err());
    bench.clock.advance(Duration::from_secs(1));
    bench.item_is(&engine, "in", ItemState::Running).await;
    assert_eq!(bench.events("item.resumed").len(), 1);
    assert_eq!(engine.ready(), Ok(()));
}

#[tokio::test]
async fn what_the_environment_does_not_let_run_is_tried_again_with_one_alert() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let _out = bench.operation("out", common());
    *gate.failing.lock().unwrap() = Some(HostFault::new("bind", "the port is taken"));
    let engine = bench.start().await;
    for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
        bench.item_is(&engine, "in", ItemState::Faulted).await;
        bench.settle().await;
        bench.clock.advance(Duration::from_secs(wait));
    }
    bench.settle().await;
    assert_eq!(bench.events("item.faulted").len(), 1);
    let alerts = bench.events("alert");
    assert_eq!((alerts.len(), alerts[0].item.as_ref()), (1, Some(&ItemName::new("in"))));
    assert!(engine.items()[0].counts.last_error.as_ref().unwrap().contains("the port is taken"));
    *gate.failing.lock().unwrap() = None;
    bench.clock.advance(Duration::from_secs(60));
    bench.item_is(&engine, "in", ItemState::Running).await;
}

#[tokio::test]
async fn stop_survives_restart() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    engine.stop_item("out", Some("anna")).await.unwrap();
    assert_eq!(engine.find("out").unwrap().state(), ItemState::Stopped);
    gate.receive("waits").await;
    out.hears_nothing().await;
    engine.shutdown(Duration::from_secs(1)).await;
    assert_eq!(engine.state(), ProductionState::Stopped);

    let engine = bench.start().await;
    assert_eq!(engine.find("out").unwrap().state(), ItemState::Stopped);
    out.hears_nothing().await;
    engine.start_item("out", Some("anna")).await.unwrap();
    assert_eq!(out.next().await.text(), "waits");
    let who: Vec<_> = bench.events("item.stopped").into_iter().filter_map(|event| event.who).collect();
    assert_eq!(who, ["anna"]);
}

#[tokio::test]
async fn stopping_lets_the_message_in_flight_finish() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let id = gate.receive("in flight").await;
    let call = out.next().await;
    let stopping = tokio::spawn({
        let engine = engine.clone();
        async move { engine.shutdown(Duration::from_secs(10)).await }
    });
    bench.item_is(&engine, "out", ItemState::Stopping).await;
    assert_eq!(engine.state(), ProductionState::Draining);
    call.code("AA");
    soon("the shutdown", stopping).await.unwrap();
    assert_eq!(bench.header(id).status, Status::Completed);
    let refused =
        gate.intake().receive(crate::host::Inbound::new(crate::body::Body::text("T", "x".into()))).await;
    assert_eq!(refused.unwrap_err(), Refused::Stopping);
}

#[tokio::test]
async fn at_the_deadline_a_message_in_flight_goes_back_and_is_sent_again() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let id = gate.receive("slow").await;
    let call = out.next().await;
    let stopping = tokio::spawn({
        let engine = engine.clone();
        async move { engine.stop_item("out", None).await }
    });
    bench.item_is(&engine, "out", ItemState::Stopping).await;
    bench.settle().await;
    bench.clock.advance(Duration::from_secs(10));
    soon("the stop", stopping).await.unwrap().unwrap();
    let header = bench.header(id);
    assert_eq!((header.status, header.attempts), (Status::Queued, 1));
    drop(call);
    engine.start_item("out", None).await.unwrap();
    let again = out.next().await;
    assert_eq!((again.cx.attempt, again.cx.tried_before), (2, true));
}

#[tokio::test]
async fn an_item_that_hangs_while_it_binds_can_be_stopped() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let _out = bench.operation("out", common());
    let engine = bench.start().await;
    engine.stop_item("in", None).await.unwrap();
    gate.hangs.store(true, std::sync::atomic::Ordering::Relaxed);
    let starting = tokio::spawn({
        let engine = engine.clone();
        async move { engine.start_item("in", None).await }
    });
    bench.item_is(&engine, "in", ItemState::Starting).await;
    soon("the stop", engine.stop_item("in", None)).await.unwrap();
    assert_eq!(engine.find("in").unwrap().state(), ItemState::Stopped);
    soon("the end of the start", starting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_disabled_item_keeps_its_queue() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", Common { enabled: false, ..common() });
    let engine = bench.start().await;
    let id = gate.receive("waits").await;
    out.hears_nothing().await;
    assert_eq!(bench.header(id).status, Status::Queued);
    assert_eq!(engine.find("out").unwrap().state(), ItemState::Disabled);
    assert!(engine.start_item("out", None).await.is_err());
}

#[tokio::test]
async fn alerts_go_to_their_items_except_about_themselves() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut mail = bench.operation("mail", common());
    let mut out = bench.operation("out", Common { suspend_limit: 1, ..common() });
    bench.alerts = vec!["mail".into(), "out".into()];
    let _engine = bench.start().await;
    let id = gate.receive("bad").await;
    out.next().await.code("AE");
    let call = mail.next().await;
    let record = call.cx.body.as_record().unwrap().clone();
    assert_eq!(record.type_name, "Alert");
    let field = |name: &str| record.fields[name].clone();
    assert_eq!((field("kind"), field("item")), ("item.paused".into(), "out".into()));
    assert_eq!((field("id"), field("message_id")), (call.id().0.into(), id.0.into()));
    assert_eq!(call.cx.header.caused_by, Some(id));
    assert_eq!(call.cx.header.session, call.id().into(), "a session of its own");
    mail.hears_nothing().await;
    out.hears_nothing().await;
}

#[tokio::test]
async fn a_long_queue_raises_one_alert_until_it_is_short_again() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut limits = common();
    limits.alert.queue_depth = Some(1);
    let mut out = bench.operation("out", limits);
    let _engine = bench.start().await;
    gate.receive("1").await;
    gate.receive("2").await;
    let first = out.next().await;
    for _ in 0..3 {
        bench.settle().await;
        bench.clock.advance(Duration::from_secs(5));
    }
    bench.settle().await;
    assert_eq!(bench.events("alert").len(), 1);
    first.code("AA");
    out.next().await.code("AA");
    bench.settle().await;
    bench.clock.advance(Duration::from_secs(5));
    bench.settle().await;
    gate.receive("3").await;
    gate.receive("4").await;
    bench.clock.advance(Duration::from_secs(5));
    bench.settle().await;
    assert_eq!(bench.events("alert").len(), 2);
}

#[tokio::test]
async fn a_reload_touches_only_what_changed() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    gate.receive("before").await;
    let call = out.next().await;
    let other = bench.service("new", &["out"]);
    soon("the reload", engine.reload(bench.plan(), Orphans::Refuse, None)).await.unwrap();
    assert_eq!(engine.items().len(), 3);
    call.code("AA");
    other.receive("after").await;
    assert_eq!(out.next().await.text(), "after");
    assert_eq!(bench.events("production.reloaded").len(), 1);
    assert_eq!(bench.events("item.started").len(), 3, "out and in were started once");
}

#[tokio::test]
async fn a_reload_leaves_a_stopped_service_unbound() {
    let mut bench = Bench::new();
    let _gate = bench.service("in", &["out"]);
    let _out = bench.operation("out", common());
    let engine = bench.start().await;
    engine.stop_item("in", None).await.unwrap();
    let changed = Common { description: Some("changed".into()), targets: vec!["out".into()], ..common() };
    let gate = bench.service_with("in", changed);
    // It would refuse to bind, were it asked to.
    *gate.failing.lock().unwrap() = Some(HostFault::new("bind", "taken"));
    soon("the reload", engine.reload(bench.plan(), Orphans::Refuse, None)).await.unwrap();
    assert_eq!(engine.find("in").unwrap().state(), ItemState::Stopped);
    *gate.failing.lock().unwrap() = None;
    engine.start_item("in", None).await.unwrap();
    gate.receive("x").await;
}

#[tokio::test]
async fn a_reload_that_cannot_bind_changes_nothing() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    bench.service_with("in", Common { description: Some("changed".into()), ..common() });
    let bad = bench.service("bad", &["out"]);
    *bad.failing.lock().unwrap() = Some(HostFault::new("bind", "taken"));
    let refused = engine.reload(bench.plan(), Orphans::Refuse, None).await.unwrap_err();
    assert_eq!(refused.to_string(), "item bad could not start: bind: taken");
    assert_eq!(engine.items().len(), 2);
    gate.receive("as before").await;
    assert_eq!(out.next().await.text(), "as before");
}

#[tokio::test]
async fn queues_without_an_item_are_refused_unless_told_what_to_do() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let id = gate.receive("left behind").await;
    out.next().await.code("AE");
    bench.becomes(id, Status::Suspended).await;
    engine.shutdown(Duration::from_secs(1)).await;

    let mut renamed = Bench { clock: bench.clock.clone(), store: bench.store.clone(), ..Bench::new() };
    let mut new = renamed.operation("out2", common());
    let engine = renamed.try_start(Orphans::Refuse).await;
    assert!(matches!(engine, Err(StartError::Orphans(text)) if text == "out (1)"));
    let pairs = vec![(ItemName::new("out"), ItemName::new("out2"))];
    let engine = renamed.try_start(Orphans::Rename(pairs)).await.unwrap();
    assert_eq!(bench.header(id).status, Status::Discarded);
    new.hears_nothing().await;
    let moved = renamed.store.session(id.into()).pop().unwrap();
    assert_eq!((moved.status, moved.resent_from), (Status::Suspended, Some(id)));
    engine.resume(moved.id, None).await.unwrap();
    assert_eq!(new.next().await.text(), "left behind");
}

#[tokio::test]
async fn a_service_that_takes_over_an_address_is_bound_after_the_old_one_ended() {
    let mut bench = Bench::new();
    let old = bench.service("old", &["out"]);
    bench.listens("old", "127.0.0.1:2575");
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let new = bench.service("new", &["out"]);
    bench.listens("new", "127.0.0.1:2575");
    bench.remove("old");
    soon("the reload", engine.reload(bench.plan(), Orphans::Refuse, None)).await.unwrap();
    assert!(
        old.intake()
            .receive(crate::host::Inbound::new(crate::body::Body::text("T", "x".into())))
            .await
            .is_err()
    );
    new.receive("taken over").await;
    let call = out.next().await;
    assert_eq!(call.text(), "taken over");
    call.code("AA");
    // And where it cannot be bound, the old one is back.
    let bad = bench.service("bad", &["out"]);
    bench.listens("bad", "127.0.0.1:2575");
    bench.remove("new");
    *bad.failing.lock().unwrap() = Some(HostFault::new("bind", "taken"));
    assert!(engine.reload(bench.plan(), Orphans::Refuse, None).await.is_err());
    new.receive("back again").await;
    assert_eq!(out.next().await.text(), "back again");
}

#[tokio::test]
async fn an_item_may_change_its_kind() {
    let mut bench = Bench::new();
    bench.service("x", &["out"]);
    let _out = bench.operation("out", common());
    let engine = bench.start().await;
    bench.item("x", ItemKind::Process, router(&["out"]), common());
    soon("the reload", engine.reload(bench.plan(), Orphans::Refuse, None)).await.unwrap();
    let kinds: Vec<_> = engine.items().iter().map(|item| item.kind).collect();
    assert_eq!(kinds, ["operation", "process"]);
}
