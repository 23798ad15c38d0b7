//! Processes that call, wait, time out and come back; services that wait for replies.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::SignedDuration;

use super::support::*;
use crate::body::Body;
use crate::config::settings::Common;
use crate::fault::Fault;
use crate::header::Status;
use crate::host::{Inbound, ServiceReply};
use crate::id::MessageId;
use crate::process::{Definition, Done, Effect, Input, Job, Next, Outgoing};
use crate::registry::Factory;
use crate::store::Store;

fn done(effects: Vec<Effect>, next: Next) -> Done {
    Done { effects, next, state: None }
}

fn wait(instance: &'static str) -> Next {
    Next::Wait { instance: Bytes::from_static(instance.as_bytes()) }
}

fn call(target: &str) -> Effect {
    Effect::Call { call: 1, target: target.into(), body: Outgoing::Request }
}

/// Calls `out`; sends what came back to `done`, or the name of the fault.
pub(super) fn caller() -> Factory {
    inline(|job: &Job| match &job.input {
        Input::Request => done(vec![call("out")], wait("called")),
        Input::Response { body, fault, .. } => {
            assert_eq!(job.instance.as_deref(), Some(&b"called"[..]));
            let text = match (body, fault) {
                (_, Some(fault)) => format!("fault {}", fault.name),
                (Some(body), None) => body.as_text().unwrap().to_owned(),
                (None, None) => "nothing".to_owned(),
            };
            let body = Outgoing::New(Body::text("Result", text));
            done(vec![Effect::Send { target: "done".into(), body }], Next::Complete)
        }
        Input::Timer { .. } => unreachable!("there is no timer"),
    })
}

struct Callers {
    bench: Bench,
    gate: Gate,
    out: Peer,
    done: Peer,
}

fn callers(process: Factory) -> Callers {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["flow"]);
    bench.process("flow", process);
    let out = bench.operation("out", common());
    let done = bench.operation("done", common());
    Callers { bench, gate, out, done }
}

fn kept(store: &Store) -> usize {
    use crate::host::{Keep, KeepFamily};
    store.scan(KeepFamily::Instance, "").len()
}

#[tokio::test]
async fn a_call_waits_and_gets_its_response() {
    let Callers { bench, gate, mut out, mut done } = callers(caller());
    let _engine = bench.start().await;
    let id = gate.receive("hello").await;
    let second = gate.receive("second").await;
    let asked = out.next().await;
    assert_eq!(bench.header(id).status, Status::Delivered, "the flow is in flight while it waits");
    let behind = bench.header(second);
    assert_eq!((behind.status, behind.attempts), (Status::Queued, 0), "pool 1 counts waits");
    assert_eq!(kept(&bench.store), 1);
    asked.reply("AA", Body::text("Ack", "welcome".into()));
    assert_eq!(done.next().await.text(), "welcome");
    bench.becomes(id, Status::Completed).await;
    let trace = ["in>flow completed", "flow>out completed", "~out>flow completed", "flow>done delivered"];
    assert_eq!(bench.trace(id), trace);
    bench.becomes(second, Status::Delivered).await;
    assert_eq!(kept(&bench.store), 1, "only the second one");
}

#[tokio::test]
async fn a_call_waits_and_resumes_after_restart() {
    let Callers { bench, gate, mut out, mut done } = callers(caller());
    let engine = bench.start().await;
    let id = gate.receive("hello").await;
    let asked = out.next().await;
    engine.shutdown(Duration::ZERO).await;
    drop(asked);
    let _engine = bench.start().await;
    let again = out.next().await;
    assert!(again.cx.tried_before);
    again.reply("AA", Body::text("Ack", "welcome back".into()));
    assert_eq!(done.next().await.text(), "welcome back");
    bench.becomes(id, Status::Completed).await;
    assert_eq!(kept(&bench.store), 0);
}

/// Sends the hash of the definition it runs when its call has come back.
fn tells_its_definition(hash: &str) -> Factory {
    let definition = Definition { hash: hash.into(), bytes: Bytes::from(format!("flow {hash}")) };
    inline_as(&Arc::new(definition), |job| match &job.input {
        Input::Request => done(vec![call("out")], wait("called")),
        _ => {
            let ran = format!("{} {:?}", job.definition.hash, job.definition.bytes);
            let body = Outgoing::New(Body::text("Result", ran));
            done(vec![Effect::Send { target: "done".into(), body }], Next::Complete)
        }
    })
}

#[tokio::test]
async fn an_instance_goes_on_with_the_definition_it_started_with() {
    let Callers { mut bench, gate, mut out, done: mut end } = callers(tells_its_definition("d1"));
    let engine = bench.start().await;
    gate.receive("old").await;
    let asked = out.next().await;
    let changed = Common { description: Some("changed".into()), ..common() };
    bench.item("flow", crate::registry::ItemKind::Process, tells_its_definition("d2"), changed);
    soon("the reload", engine.reload(bench.plan(), crate::director::Orphans::Refuse, None)).await.unwrap();
    gate.receive("new").await;
    asked.reply("AA", Body::text("Ack", "ok".into()));
    let old = end.next().await;
    assert_eq!(old.text(), "d1 b\"flow d1\"");
    old.code("AA");
    out.next().await.reply("AA", Body::text("Ack", "ok".into()));
    assert_eq!(end.next().await.text(), "d2 b\"flow d2\"");
}

#[tokio::test]
async fn a_timer_that_came_due_while_nothing_ran_fires_at_the_start() {
    let process = inline(|job| match job.input {
        Input::Request => {
            let at = job.now.saturating_add(SignedDuration::from_secs(30)).unwrap();
            done(vec![Effect::Timer { timer: 1, at }], wait("sleeping"))
        }
        _ => {
            let body = Outgoing::New(Body::text("Result", "awake".into()));
            done(vec![Effect::Send { target: "done".into(), body }], Next::Complete)
        }
    });
    let Callers { bench, gate, out: _out, done: mut end } = callers(process);
    let engine = bench.start().await;
    let id = gate.receive("x").await;
    bench.becomes(id, Status::Delivered).await;
    engine.shutdown(Duration::from_secs(1)).await;
    bench.clock.advance(Duration::from_secs(60));
    let _engine = bench.start().await;
    assert_eq!(end.next().await.text(), "awake");
}

#[tokio::test]
async fn discarding_a_suspended_call_is_a_fault_for_the_caller() {
    let Callers { bench, gate, mut out, mut done } = callers(caller());
    let engine = bench.start().await;
    let id = gate.receive("hello").await;
    let asked = out.next().await;
    let request = asked.id();
    asked.code("AE");
    bench.becomes(request, Status::Suspended).await;
    assert_eq!(bench.header(id).status, Status::Delivered, "the caller waits on");
    engine.discard(request, None).await.unwrap();
    assert_eq!(done.next().await.text(), "fault call");
}

#[tokio::test]
async fn a_caller_whose_call_is_suspended_gives_up_its_slot() {
    let Callers { bench, gate, mut out, mut done } = callers(caller());
    let engine = bench.start().await;
    let first = gate.receive("first").await;
    gate.receive("second").await;
    let asked = out.next().await;
    let request = asked.id();
    asked.code("AE");
    let second = out.next().await;
    assert_eq!(second.text(), "second");
    second.reply("AA", Body::text("Ack", "two".into()));
    assert_eq!(done.next().await.text(), "two");
    engine.resume(request, None).await.unwrap();
    out.next().await.reply("AA", Body::text("Ack", "one".into()));
    bench.becomes(first, Status::Completed).await;
}

#[tokio::test]
async fn an_operation_that_fails_a_call_is_a_fault_for_the_caller() {
    let Callers { mut bench, gate, .. } = callers(caller());
    let reply_actions =
        crate::reply::ReplyActions::new(crate::reply::Family::Hl7, [("AE", crate::reply::Action::Fail)]);
    let mut out = bench.operation("out", Common { reply_actions: reply_actions.ok(), ..common() });
    let mut done = bench.operation("done", common());
    let _engine = bench.start().await;
    gate.receive("hello").await;
    out.next().await.code("AE");
    assert_eq!(done.next().await.text(), "fault call");
}

#[tokio::test]
async fn a_timer_ends_a_call_and_the_late_response_is_discarded() {
    let process = inline(|job| match job.input {
        Input::Request => {
            let at = job.now.saturating_add(SignedDuration::from_secs(30)).unwrap();
            done(vec![call("out"), Effect::Timer { timer: 7, at }], wait("called"))
        }
        Input::Timer { timer } => {
            assert_eq!(timer, 7);
            let cancel = Effect::CancelCall { call: 1, leave: false };
            let body = Outgoing::New(Body::text("Result", "timeout".into()));
            done(vec![cancel, Effect::Send { target: "done".into(), body }], Next::Complete)
        }
        Input::Response { .. } => unreachable!("nobody waits for it"),
    });
    let Callers { bench, gate, mut out, done: mut end } = callers(process);
    let engine = bench.start().await;
    let id = gate.receive("hello").await;
    let asked = out.next().await;
    let queued = gate.receive("second").await;
    bench.clock.advance(Duration::from_secs(30));
    end.next().await.code("AA");
    bench.becomes(id, Status::Completed).await;
    asked.reply("AA", Body::text("Ack", "too late".into()));
    bench.settle().await;
    let late = bench.store.session(id.into()).into_iter().find(|header| header.request_id.is_some());
    assert_eq!(late.unwrap().status, Status::Discarded);

    // One that is still queued when the time is up is never sent.
    bench.becomes(queued, Status::Delivered).await;
    let second = out.next().await;
    second.code("AR");
    bench.settle().await;
    bench.clock.advance(Duration::from_secs(3));
    engine.stop_item("out", None).await.unwrap();
    bench.clock.advance(Duration::from_secs(30));
    end.next().await.code("AA");
    let request = bench.store.session(queued.into())[1].clone();
    assert_eq!(request.status, Status::Discarded);
    engine.start_item("out", None).await.unwrap();
    out.hears_nothing().await;
}

#[tokio::test]
async fn process_state_commits_with_the_step_and_survives() {
    let count = |job: &Job| job.state.as_ref().map_or(0, |state| state[0]) + 1;
    let process = inline(move |job| {
        let body = Outgoing::New(Body::text("Count", count(job).to_string()));
        let send = Effect::Send { target: "done".into(), body };
        Done { effects: vec![send], next: Next::Complete, state: Some(Bytes::from(vec![count(job)])) }
    });
    let Callers { bench, gate, out: _out, mut done } = callers(process);
    let engine = bench.start().await;
    for expected in ["1", "2"] {
        gate.receive("x").await;
        let call = done.next().await;
        assert_eq!(call.text(), expected);
        call.code("AA");
    }
    engine.shutdown(Duration::from_secs(1)).await;
    let _engine = bench.start().await;
    gate.receive("x").await;
    assert_eq!(done.next().await.text(), "3");
}

#[tokio::test]
async fn an_uncaught_fault_is_an_error_with_its_reason() {
    let process = inline(|_| done(Vec::new(), Next::Fail(Fault::new("script", "script", "line 1"))));
    let Callers { bench, gate, out: _out, done: _done } = callers(process);
    let _engine = bench.start().await;
    let id = gate.receive("x").await;
    let header = bench.becomes(id, Status::Error).await;
    assert_eq!(header.error.unwrap().to_string(), "script: line 1");
    assert_eq!(bench.events("item.error").len(), 1);
}

#[tokio::test]
async fn a_process_that_panics_suspends_the_message_and_goes_on() {
    let process = inline(|job| {
        assert_ne!(job.request_body.as_ref().unwrap().as_text(), Some("poison"));
        done(Vec::new(), Next::Complete)
    });
    let Callers { bench, gate, out: _out, done: _done } = callers(process);
    let _engine = bench.start().await;
    let poison = gate.receive("poison").await;
    let good = gate.receive("good").await;
    bench.becomes(poison, Status::Suspended).await;
    bench.becomes(good, Status::Completed).await;
}

#[tokio::test]
async fn a_suspended_request_starts_anew_when_resumed() {
    let tries = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let process = inline(move |_| match tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        0 => done(Vec::new(), Next::Suspend(Fault::new("message", "unmatched", "no rule"))),
        _ => done(Vec::new(), Next::Complete),
    });
    let Callers { bench, gate, out: _out, done: _done } = callers(process);
    let engine = bench.start().await;
    let id = gate.receive("x").await;
    bench.becomes(id, Status::Suspended).await;
    engine.resume(id, Some("anna")).await.unwrap();
    bench.becomes(id, Status::Completed).await;
    assert_eq!(bench.events("message.resumed")[0].who.as_deref(), Some("anna"));
}

#[tokio::test]
async fn nothing_passes_a_suspended_request_of_a_held_item() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["flow"]);
    let process = inline(|job| match job.request_body.as_ref().and_then(Body::as_text) {
        Some("bad") if job.request.attempts == 1 => {
            done(Vec::new(), Next::Suspend(Fault::new("message", "unmatched", "no rule")))
        }
        _ => done(Vec::new(), Next::Complete),
    });
    let held = Common { on_suspend: crate::config::settings::OnSuspend::HoldItem, ..common() };
    bench.item("flow", crate::registry::ItemKind::Process, process, held);
    let engine = bench.start().await;
    let mut ids = Vec::new();
    for text in ["good", "bad", "behind", "behind"] {
        let accepted = gate.intake().receive(Inbound::new(Body::text("Text", text.into()))).await.unwrap();
        ids.push(accepted.headers[0]);
    }
    bench.becomes(ids[1], Status::Suspended).await;
    bench.settle().await;
    let statuses: Vec<_> = ids.iter().map(|id| bench.header(*id).status).collect();
    use Status::{Completed, Queued, Suspended};
    assert_eq!(statuses, [Completed, Suspended, Queued, Queued]);
    engine.resume(ids[1], None).await.unwrap();
    bench.becomes(ids[3], Status::Completed).await;
    assert_eq!(bench.header(ids[3]).attempts, 1, "what was taken and put back untouched does not count");
}

async fn ask(gate: &Gate, text: &str) -> (MessageId, Box<dyn crate::host::Pending>) {
    let mut inbound = Inbound::new(Body::text("Text", text.to_owned()));
    inbound.wants_reply = true;
    let accepted = gate.intake().receive(inbound).await.unwrap();
    (accepted.headers[0], accepted.pending)
}

#[tokio::test]
async fn a_service_gets_the_reply_it_waits_for() {
    let process = inline(|job| {
        assert!(job.wants_reply);
        let body = Some(Outgoing::New(Body::text("Answer", "42".into())));
        done(vec![Effect::Reply { body, fault: None }], Next::Complete)
    });
    let Callers { bench, gate, out: _out, done: _done } = callers(process);
    let _engine = bench.start().await;
    let (id, mut pending) = ask(&gate, "?").await;
    let ServiceReply::Reply { body: Some(body), fault: None } = pending.reply(Duration::from_secs(30)).await
    else {
        panic!("a reply was expected")
    };
    assert_eq!(body.as_text(), Some("42"));
    assert_eq!(bench.trace(id), ["in>flow completed", "~flow>in completed"]);
}

#[tokio::test]
async fn a_service_that_waited_too_long_gets_nothing_and_the_work_goes_on() {
    let mut bench = Bench::new();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let _engine = bench.start().await;
    let (id, mut pending) = ask(&gate, "?").await;
    let call = out.next().await;
    let waiting = tokio::spawn(async move { pending.reply(Duration::from_secs(30)).await });
    bench.settle().await;
    bench.clock.advance(Duration::from_secs(30));
    assert!(matches!(soon("the timeout", waiting).await.unwrap(), ServiceReply::Timeout));
    call.reply("AA", Body::text("Ack", "late".into()));
    bench.becomes(id, Status::Completed).await;
    assert_eq!(bench.trace(id), ["in>out completed", "~out>in discarded"]);
}
