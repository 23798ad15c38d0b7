//! Lanes: jobs on threads of their own, threads that hang or die, and what that costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::support::*;
use crate::body::Body;
use crate::director::ItemState;
use crate::header::Status;
use crate::id::ItemName;
use crate::process::{Done, Effect, Input, Job, Lane, Next, Outgoing};
use crate::registry::{Factory, ProcessHost};

/// Counts in `state`; hangs on `hang`, dies on `die`.
struct Counter {
    hangs: Arc<tokio::sync::Notify>,
    release: Arc<std::sync::Barrier>,
}

impl Lane for Counter {
    fn run(&mut self, jobs: Vec<Job>, emit: &mut dyn FnMut(Done)) {
        let mut state = jobs.first().and_then(|job| job.state.clone());
        for job in jobs {
            match job.request_body.as_ref().and_then(Body::as_text) {
                Some("hang") => {
                    self.hangs.notify_one();
                    self.release.wait();
                }
                Some("die") => panic!("as the test wants it"),
                _ => {}
            }
            let count = state.as_ref().map_or(0, |state| state[0]) + 1;
            state = Some(Bytes::from(vec![count]));
            let body = Outgoing::New(Body::text("Count", count.to_string()));
            let send = Effect::Send { target: ItemName::new("out"), body };
            emit(Done { effects: vec![send], next: Next::Complete, state: state.clone() });
        }
    }
}

struct Scripts {
    bench: Bench,
    gate: Gate,
    out: Peer,
    built: Arc<AtomicU32>,
    hangs: Arc<tokio::sync::Notify>,
    release: Arc<std::sync::Barrier>,
}

fn scripts() -> Scripts {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["flow"]);
    bench.process("flow", Factory::Process(ProcessHost::Lane(definition())));
    let out = bench.operation("out", common());
    let built = Arc::new(AtomicU32::new(0));
    let hangs = Arc::new(tokio::sync::Notify::new());
    let release = Arc::new(std::sync::Barrier::new(2));
    bench.lanes = {
        let (built, hangs, release) = (built.clone(), hangs.clone(), release.clone());
        Arc::new(move |_| {
            built.fetch_add(1, Ordering::Relaxed);
            Box::new(Counter { hangs: hangs.clone(), release: release.clone() })
        })
    };
    Scripts { bench, gate, out, built, hangs, release }
}

#[tokio::test]
async fn jobs_of_a_batch_see_the_state_their_predecessor_left() {
    let Scripts { bench, gate, mut out, built, .. } = scripts();
    let _engine = bench.start().await;
    for _ in 0..100 {
        gate.receive("x").await;
    }
    for expected in 1..=100 {
        let call = out.next().await;
        assert_eq!(call.text(), expected.to_string());
        call.code("AA");
    }
    assert_eq!(built.load(Ordering::Relaxed), 1, "one lane was enough");
}

/// Waits for a timer that never comes, and counts how often it ran.
struct Waiter(Arc<AtomicU32>);

impl Lane for Waiter {
    fn run(&mut self, jobs: Vec<Job>, emit: &mut dyn FnMut(Done)) {
        for job in jobs {
            self.0.fetch_add(1, Ordering::Relaxed);
            let next = match job.input {
                Input::Request => Next::Wait { instance: Bytes::new() },
                _ => Next::Complete,
            };
            let at = job.now.saturating_add(jiff::SignedDuration::from_secs(1)).unwrap();
            let effects = vec![Effect::Timer { timer: 1, at }];
            emit(Done { effects, next, state: None });
        }
    }
}

#[tokio::test]
async fn a_flow_that_always_waits_is_not_run_ahead_for_nothing() {
    let Scripts { mut bench, gate, .. } = scripts();
    let ran = Arc::new(AtomicU32::new(0));
    bench.lanes = {
        let ran = ran.clone();
        Arc::new(move |_| Box::new(Waiter(ran.clone())))
    };
    // The test moves the clock faster than threads run.
    bench.script_time("flow", Duration::from_secs(100_000));
    let _engine = bench.start().await;
    let mut last = None;
    for _ in 0..20 {
        last = Some(gate.receive("x").await);
    }
    let last = last.unwrap();
    let all = async {
        while bench.header(last).status != Status::Completed {
            bench.settle().await;
            bench.clock.advance(Duration::from_secs(1));
        }
    };
    soon("the end of all", all).await;
    let ran = ran.load(Ordering::Relaxed);
    assert_eq!(ran, 20 * 2, "two jobs for each message");
}

#[tokio::test]
async fn a_script_that_hangs_suspends_its_message_and_loses_its_thread() {
    let Scripts { bench, gate, mut out, built, hangs, release } = scripts();
    let engine = bench.start().await;
    let hung = gate.receive("hang").await;
    let behind = gate.receive("behind").await;
    soon("the hang", hangs.notified()).await;
    bench.clock.advance(Duration::from_secs(2));
    let header = bench.becomes(hung, Status::Suspended).await;
    assert_eq!(header.error.unwrap().name, "script");
    let call = out.next().await;
    assert_eq!((call.text().as_str(), call.cx.header.caused_by), ("1", Some(behind)));
    call.code("AA");
    assert_eq!(built.load(Ordering::Relaxed), 2);
    // The result that comes after all reaches nobody.
    release.wait();
    out.hears_nothing().await;

    let hung = gate.receive("hang").await;
    soon("the hang", hangs.notified()).await;
    bench.clock.advance(Duration::from_secs(2));
    bench.becomes(hung, Status::Suspended).await;
    bench.item_is(&engine, "flow", ItemState::Paused).await;
    assert!(bench.events("alert").iter().any(|alert| alert.text.contains("restart")));
    release.wait();
}

#[tokio::test]
async fn a_lane_that_dies_costs_one_message() {
    let Scripts { bench, gate, mut out, .. } = scripts();
    let _engine = bench.start().await;
    let dead = gate.receive("die").await;
    gate.receive("behind").await;
    bench.becomes(dead, Status::Suspended).await;
    assert_eq!(out.next().await.text(), "1");
}
