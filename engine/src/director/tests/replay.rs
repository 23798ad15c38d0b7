//! Operators, many messages at once: replay, resume and discard by filter.

use std::time::Duration;

use super::support::*;
use crate::body::Body;
use crate::config::settings::Common;
use crate::director::{Bulk, ControlError, Engine, Order, Replay, ReplayState};
use crate::header::{Kind, Status};
use crate::id::MessageId;
use crate::store::MessageFilter;

fn requests() -> Order {
    let filter = MessageFilter { kind: Some(Kind::Request), ..MessageFilter::default() };
    Order { filter, ..Order::default() }
}

/// Waits until a replay has ended.
async fn ended(engine: &Engine, id: u64) -> Replay {
    let end = async {
        loop {
            let replay = engine.replay_of(id).unwrap();
            if replay.state != ReplayState::Running {
                return replay;
            }
            tokio::task::yield_now().await;
        }
    };
    soon("the end of the replay", end).await
}

/// A production that has sent these messages.
async fn after(texts: &[&str]) -> (Bench, Peer, Engine, Vec<MessageId>) {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let mut ids = Vec::new();
    for text in texts {
        ids.push(gate.receive(text).await);
        out.next().await.code("AA");
        bench.becomes(ids[ids.len() - 1], Status::Completed).await;
    }
    (bench, out, engine, ids)
}

#[tokio::test]
async fn a_replay_goes_oldest_first_and_names_what_it_cannot() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let mut off = bench.operation("off", Common { enabled: false, ..common() });
    let engine = bench.start().await;
    let mut originals = Vec::new();
    for text in ["1", "2"] {
        originals.push(gate.receive(text).await);
        out.next().await.reply("AA", Body::text("Ack", "ok".into()));
    }
    bench.settle().await;
    let everything = Order { dry_run: true, ..Order::default() };
    let dry = engine.replay(&everything, None).await.unwrap();
    assert_eq!((dry.selected, dry.replayable, dry.blocked_count, dry.started), (4, 2, 2, false));
    assert!(dry.blocked[0].0 < dry.blocked[1].0 && dry.blocked[0].1.contains("response"));
    assert!(engine.replays().is_empty());
    out.hears_nothing().await;
    let to_off = engine.replay(&Order { target: Some("off".into()), ..everything }, None).await.unwrap();
    assert_eq!(to_off.replayable, 0);
    assert!(to_off.blocked.iter().any(|(_, reason)| reason.contains("disabled")));
    off.hears_nothing().await;

    let started = engine.replay(&Order::default(), Some("anna")).await.unwrap();
    assert!(started.started);
    for (text, original) in ["1", "2"].iter().zip(originals) {
        let call = out.next().await;
        assert_eq!((call.text().as_str(), call.cx.header.resent_from), (*text, Some(original)));
        call.code("AA");
    }
    let replay = ended(&engine, started.id.unwrap()).await;
    assert_eq!((replay.state, replay.sent, replay.failed), (ReplayState::Completed, 2, 0));
    let events = bench.events("replay");
    assert_eq!(events.len(), 2, "its start and its end: {events:?}");
    assert!(events.iter().all(|event| event.who.as_deref() == Some("anna")));
    assert!(events[1].text.ends_with("2 of 2 sent again"), "{}", events[1].text);
    out.hears_nothing().await;
}

#[tokio::test]
async fn a_replay_keeps_to_its_rate_and_ends_where_it_is_cancelled() {
    let (bench, mut out, engine, _) = after(&["1", "2", "3", "4"]).await;
    let started = engine.replay(&Order { rate: Some(2), ..requests() }, Some("anna")).await.unwrap();
    let id = started.id.unwrap();
    out.next().await.code("AA");
    out.hears_nothing().await;
    bench.clock.advance(Duration::from_millis(500));
    let second = out.next().await;
    assert_eq!(second.text(), "2");
    second.code("AA");
    let replay = soon("the end", engine.cancel_replay(id, Some("bert"))).await.unwrap();
    assert_eq!((replay.state, replay.sent), (ReplayState::Cancelled, 2));
    assert_eq!(replay.cancelled_by.as_deref(), Some("bert"));
    bench.clock.advance(Duration::from_secs(60));
    out.hears_nothing().await;
    assert!(matches!(engine.cancel_replay(id, None).await, Err(ControlError::NotAllowed(_))));
    assert!(matches!(engine.cancel_replay(4711, None).await, Err(ControlError::UnknownReplay(4711))));
    let last = bench.events("replay").pop().unwrap();
    assert_eq!(last.who.as_deref(), Some("bert"));
    assert!(last.text.contains("was cancelled: 2 of 4"), "{}", last.text);
}

#[tokio::test]
async fn what_the_receiver_would_get_twice_is_said_before() {
    let (bench, _out, engine, _) = after(&["1", "2"]).await;
    let dry = Order { dry_run: true, ..requests() };
    let found = engine.replay(&dry, None).await.unwrap();
    assert_eq!((found.replayable, found.duplicates, found.duplicates_complete), (2, 2, true));
    drop(bench);

    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let id = gate.receive("refused").await;
    out.next().await.code("AE");
    bench.becomes(id, Status::Suspended).await;
    assert_eq!(engine.replay(&dry, None).await.unwrap().duplicates, 0, "it was not taken");
    engine.resend(id, None, None, None).await.unwrap();
    let filter = MessageFilter { status: vec![Status::Suspended], ..dry.filter.clone() };
    let found = engine.replay(&Order { filter, ..dry }, None).await.unwrap();
    assert_eq!((found.selected, found.duplicates), (1, 1), "it is on its way already");
}

#[tokio::test]
async fn a_replay_that_the_engine_stops_says_how_far_it_got() {
    let (bench, mut out, engine, ids) = after(&["1", "2", "3"]).await;
    let id = engine.replay(&Order { rate: Some(1), ..requests() }, None).await.unwrap().id.unwrap();
    out.next().await.code("AA");
    soon("the end", engine.shutdown(Duration::from_secs(10))).await;
    let replay = engine.replay_of(id).unwrap();
    assert_eq!((replay.state, replay.sent), (ReplayState::Interrupted, 1));
    assert_eq!(replay.last_message, Some(ids[0]));
    assert!(bench.events("replay").pop().unwrap().text.contains("1 of 3"));
}

#[tokio::test]
async fn replays_are_limited_and_their_filters_show_no_patient_data() {
    let (_bench, _out, engine, _) = after(&["1", "2"]).await;
    let slow = Order { rate: Some(1), ..requests() };
    let mut last = None;
    for _ in 0..4 {
        last = engine.replay(&slow, None).await.unwrap().id;
    }
    assert!(matches!(engine.replay(&slow, None).await, Err(ControlError::NotAllowed(_))));
    engine.cancel_replay(last.unwrap(), None).await.unwrap();
    let filter = MessageFilter { text: Some("1".into()), target: Some("out".into()), ..Default::default() };
    let started = engine.replay(&Order { filter, ..slow }, None).await.unwrap();
    let shown = engine.replay_of(started.id.unwrap()).unwrap().filter;
    assert_eq!(shown["target"], "out");
    assert_eq!(shown["q"], "•••");
}

#[tokio::test]
async fn suspended_messages_are_resumed_oldest_first_or_discarded_all_at_once() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let mut ids = Vec::new();
    for text in ["1", "2", "3"] {
        ids.push(gate.receive(text).await);
        out.next().await.code("AE");
    }
    bench.becomes(ids[2], Status::Suspended).await;
    let all = MessageFilter::default();
    let dry = engine.bulk(&all, Bulk::Resume, true, None).await.unwrap();
    assert_eq!((dry.selected, dry.done), (3, 0));
    let not_those = MessageFilter { status: vec![Status::Error], ..all.clone() };
    assert_eq!(engine.bulk(&not_those, Bulk::Resume, false, None).await.unwrap().selected, 0);
    let done = engine.bulk(&all, Bulk::Resume, false, Some("anna")).await.unwrap();
    assert_eq!((done.selected, done.done, done.failed_count), (3, 3, 0));
    for text in ["1", "2", "3"] {
        let call = out.next().await;
        assert_eq!(call.text(), text);
        call.code("AE");
    }
    bench.becomes(ids[2], Status::Suspended).await;
    let done = engine.bulk(&all, Bulk::Discard, false, Some("anna")).await.unwrap();
    assert_eq!((done.selected, done.done), (3, 3));
    assert!(ids.iter().all(|id| bench.header(*id).status == Status::Discarded));
    assert_eq!(bench.events("message.discarded").len(), 3);
}
