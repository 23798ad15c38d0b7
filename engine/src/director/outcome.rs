//! Turns what a process wants done into one transaction, and the driver's memory into what it is after the
//! commit. Effects, the new process state and the instance's own record commit with the end of the job.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use crate::body::{self, Body};
use crate::director::alerts::Alert;
use crate::director::exchange::{Draft, Placed};
use crate::director::instance::Waiting;
use crate::director::items::End;
use crate::director::process::{Commit, Driver, Instance, Work};
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::header::{Header, ReplyTo, Status};
use crate::host::{Keep, KeepFamily};
use crate::id::{BodyId, MessageId};
use crate::process::{Done, Effect, Job, Next, Outgoing};
use crate::store::{Class, Conflict, Guard, Lease, Op, Transition};

/// What a job works on, apart from the driver.
struct Subject {
    request: Header,
    lease: Lease,
    waiting: Waiting,
    /// It is kept on disk already.
    kept: bool,
}

/// Commits the outcome of a job.
pub(super) async fn commit(
    driver: &mut Driver,
    work: Work,
    job: &Job,
    done: &Done,
    bodies: BTreeMap<BodyId, Body>,
) -> Result<Commit, End> {
    // Calls to cancel whose requests turned out to be in flight when the transaction was tried.
    let mut in_flight = HashSet::new();
    loop {
        let Some(mut subject) = subject(driver, &work) else { return Ok(Commit::Refused) };
        let before = subject.waiting.clone();
        let core = driver.core.clone();
        let mut draft = Draft::new(&core);
        let next = effects(driver, &mut draft, &mut subject, job, done, &bodies, &in_flight);
        if let Work::Response(delivery, ..) = &work {
            draft.finish(delivery.lease, Status::Completed);
        }
        let waits_for_nothing = subject.waiting.calls.is_empty() && subject.waiting.timers.is_empty();
        let next =
            match next {
                Ok(()) if matches!(done.next, Next::Wait { .. }) && waits_for_nothing => Next::Fail(
                    Fault::new("script", "waits", "the process waits, and there is nothing to wait for"),
                ),
                Ok(()) => done.next.clone(),
                Err(fault) => Next::Fail(fault),
            };
        close(driver, &mut draft, &mut subject, &next);
        if let Some(state) = &done.state {
            draft.bytes += state.len() as u64;
            let key = driver.name().as_str().to_owned();
            draft.ops.push(Op::Keep(KeepFamily::ProcessState, key, Some(state.clone())));
        }
        // What adds bodies waits while the disk is full; what only finishes is served from the reserve.
        let adds = draft.ops.iter().any(|op| matches!(op, Op::Body(..)));
        let class = if adds { Class::Ingest } else { Class::Completion };
        let bytes = draft.bytes;
        let permit = driver.permit(class, bytes).await?;
        match draft.submit(permit) {
            Ok(_) => {
                settle(driver, &work, subject, &before, &next, done.state.clone());
                return Ok(match next {
                    Next::Complete | Next::Fail(_) => Commit::Done,
                    Next::Wait { .. } => Commit::Waits,
                    Next::Suspend(_) => Commit::Suspended,
                });
            }
            Err(Conflict::Status { id, .. }) if in_flight.insert(id) => {}
            Err(_) => {
                driver.held.remove(&work.instance());
                return Ok(Commit::Refused);
            }
        }
    }
}

fn subject(driver: &Driver, work: &Work) -> Option<Subject> {
    if let Work::Request(delivery) = work {
        return Some(Subject {
            request: delivery.header.clone(),
            lease: delivery.lease,
            waiting: Waiting {
                item: driver.name().clone(),
                definition: driver.definition().hash.clone(),
                bytes: Bytes::new(),
                calls: BTreeMap::new(),
                timers: BTreeMap::new(),
                replied: false,
            },
            kept: false,
        });
    }
    let instance = driver.instances.get(&work.instance())?;
    let mut waiting = instance.waiting.clone();
    match work {
        Work::Response(_, _, call) => waiting.calls.remove(call).map(|_| ()),
        Work::Timer(_, timer) => waiting.timers.remove(timer).map(|_| ()),
        Work::Request(_) => None,
    };
    Some(Subject { request: instance.request.clone(), lease: instance.lease?, waiting, kept: true })
}

/// Adds what the process wants done, in order. A fault means that it cannot be done.
fn effects(
    driver: &Driver,
    draft: &mut Draft<'_>,
    subject: &mut Subject,
    job: &Job,
    done: &Done,
    bodies: &BTreeMap<BodyId, Body>,
    in_flight: &HashSet<MessageId>,
) -> Result<(), Fault> {
    let source = driver.name();
    let (session, id) = (subject.request.session, subject.request.id);
    let unknown = |target: &str| Fault::new("call", "target", format!("there is no item {target} any more"));
    for effect in &done.effects {
        if let Effect::Send { target, .. } | Effect::Call { target, .. } = effect
            && draft.directory.get(target.as_str()).is_none()
        {
            return Err(unknown(target.as_str()));
        }
    }
    for effect in &done.effects {
        match effect {
            Effect::Send { target, body } => {
                let placed = place(draft, job, body, bodies)?;
                draft.request(&subject.request, source, target, &placed, ReplyTo::Nobody);
            }
            Effect::Call { call, target, body } => {
                let placed = place(draft, job, body, bodies)?;
                let reply_to = ReplyTo::Call { instance: id, call: *call };
                let request = draft.request(&subject.request, source, target, &placed, reply_to);
                subject.waiting.calls.insert(*call, request);
            }
            Effect::CancelCall { call, leave } => {
                if let Some(request) = subject.waiting.calls.remove(call)
                    && !leave
                    && !in_flight.contains(&request)
                    && let Some(status) = driver.core.store.header(request).map(|header| header.status)
                    && matches!(status, Status::Queued | Status::Suspended)
                {
                    let to = Status::Discarded;
                    draft.transition(Transition::new(request, Guard::Status(status), to));
                    let text = "no longer wanted by its caller; it is not sent";
                    let event = NewEvent::new(Level::Info, "message.discarded", text).item(source);
                    draft.event(event.message(session, request));
                }
            }
            Effect::Timer { timer, at } => {
                subject.waiting.timers.insert(*timer, *at);
            }
            Effect::CancelTimer { timer } => {
                subject.waiting.timers.remove(timer);
            }
            Effect::Reply { body, fault } => {
                if !std::mem::replace(&mut subject.waiting.replied, true) {
                    let placed = body.as_ref().map(|body| place(draft, job, body, bodies)).transpose()?;
                    draft.respond(&subject.request, placed.as_ref(), fault.clone());
                }
            }
            Effect::Alert { template, filled } => {
                let mut alert = Alert::item(Level::Warning, "alert", source, template.clone());
                alert.detail = Some(filled.clone());
                draft.alert(alert.message(&subject.request));
            }
            Effect::Event(event) => {
                if event.kind == "message.unmatched" {
                    driver.routed.meters.unmatched.increment(1);
                }
                draft.event(event.clone().item(source).message(session, id));
            }
        }
    }
    Ok(())
}

fn place(
    draft: &mut Draft<'_>,
    job: &Job,
    outgoing: &Outgoing,
    bodies: &BTreeMap<BodyId, Body>,
) -> Result<Placed, Fault> {
    match outgoing {
        Outgoing::Request => match (job.request.body_id, &job.request_body) {
            (Some(id), Some(body)) => Ok(Placed { id, body: body.clone() }),
            _ => Ok(draft.body(Body::new(&job.request.type_name, body::BINARY, None, Bytes::new()))),
        },
        Outgoing::Stored(id) => {
            let gone = || Fault::new("message", "body", format!("body {id} is not in the store"));
            Ok(Placed { id: *id, body: bodies.get(id).cloned().ok_or_else(gone)? })
        }
        Outgoing::New(body) => Ok(draft.body(body.clone())),
    }
}

/// Adds how the step ended.
fn close(driver: &Driver, draft: &mut Draft<'_>, subject: &mut Subject, next: &Next) {
    let key = subject.request.id.to_string();
    let about = |level, kind, fault: &Fault| {
        let mut event = NewEvent::new(level, kind, fault.to_string()).item(driver.name());
        event.detail.clone_from(&fault.detail);
        event.message(subject.request.session, subject.request.id)
    };
    let waits_for_reply = subject.request.reply_to != ReplyTo::Nobody && !subject.waiting.replied;
    match next {
        Next::Wait { instance } => {
            subject.waiting.bytes = instance.clone();
            let hash = &subject.waiting.definition;
            if !subject.kept && driver.core.store.get(KeepFamily::Definition, hash).is_none() {
                let bytes = driver.definition().bytes.clone();
                draft.bytes += bytes.len() as u64;
                draft.ops.push(Op::Keep(KeepFamily::Definition, hash.to_string(), Some(bytes)));
            }
            let kept = subject.waiting.encode();
            draft.bytes += kept.len() as u64;
            draft.ops.push(Op::Keep(KeepFamily::Instance, key, Some(kept)));
            return;
        }
        Next::Complete => {
            draft.finish(subject.lease, Status::Completed);
            if waits_for_reply {
                draft.respond(&subject.request, None, None);
            }
            driver.routed.meters.completed.increment(1);
        }
        Next::Fail(fault) => {
            draft.transition(Transition {
                error: Some(Some(fault.clone())),
                ..Transition::new(subject.request.id, Guard::Lease(subject.lease), Status::Error)
            });
            draft.event(about(Level::Error, "item.error", fault));
            if waits_for_reply {
                draft.respond(&subject.request, None, Some(fault.clone()));
            }
            driver.routed.meters.errors.increment(1);
        }
        Next::Suspend(fault) => {
            draft.transition(Transition {
                error: Some(Some(fault.clone())),
                ..Transition::new(subject.request.id, Guard::Lease(subject.lease), Status::Suspended)
            });
            draft.event(about(Level::Error, "message.suspended", fault));
            driver.routed.meters.suspended.increment(1);
        }
    }
    if subject.kept {
        draft.ops.push(Op::Keep(KeepFamily::Instance, key, None));
    }
}

/// The driver's memory after the commit.
fn settle(
    driver: &mut Driver,
    work: &Work,
    subject: Subject,
    before: &Waiting,
    next: &Next,
    state: Option<Bytes>,
) {
    let id = work.instance();
    match work {
        Work::Request(delivery) | Work::Response(delivery, ..) => driver.held.remove(&delivery.header.id),
        Work::Timer(..) => None,
    };
    if state.is_some() {
        driver.state = state;
    }
    driver.disarm(id, before);
    for call in before.calls.values() {
        if !subject.waiting.calls.values().any(|open| open == call)
            && let Some(request) = driver.core.store.header(*call)
        {
            driver.core.call_changed(&request);
        }
    }
    match next {
        Next::Wait { .. } => {
            driver.arm(id, &subject.waiting);
            let lease = if subject.kept { Some(subject.lease) } else { driver.core.store.adopt(id) };
            let instance = Instance { request: subject.request, lease, waiting: subject.waiting };
            driver.instances.insert(id, instance);
        }
        Next::Complete | Next::Fail(_) | Next::Suspend(_) => {
            driver.instances.remove(&id);
            driver.core.forget_calls(id);
            driver.core.call_changed(&subject.request);
        }
    }
}

/// Suspends the message of a job that could not be run to its end. What brought the job about (a response,
/// a timer) stays, and comes again when the message is resumed.
pub(super) async fn suspend(
    driver: &mut Driver,
    work: Work,
    fault: Fault,
    fenced: Option<Lease>,
) -> Result<Commit, End> {
    let id = work.instance();
    let lease = match (&work, driver.instances.get(&id)) {
        (Work::Request(delivery), _) => Some(delivery.lease),
        (_, Some(instance)) => instance.lease,
        (_, None) => None,
    };
    let (Some(lease), Some(request)) = (fenced.or(lease), driver.core.store.header(id)) else {
        return Ok(Commit::Refused);
    };
    let core = driver.core.clone();
    let mut draft = Draft::new(&core);
    let mut event = NewEvent::new(Level::Error, "message.suspended", fault.to_string()).item(driver.name());
    event.detail.clone_from(&fault.detail);
    draft.event(event.message(request.session, id));
    draft.transition(Transition {
        error: Some(Some(fault)),
        ..Transition::new(id, Guard::Lease(lease), Status::Suspended)
    });
    let permit = driver.permit(Class::Completion, 0).await?;
    if draft.submit(permit).is_err() {
        return Ok(Commit::Refused);
    }
    driver.routed.meters.suspended.increment(1);
    driver.held.remove(&id);
    if let Some(instance) = driver.instances.get_mut(&id) {
        instance.lease = None;
        driver.suspended.insert(id);
        let waiting = instance.waiting.clone();
        driver.disarm(id, &waiting);
        driver.park(work);
    }
    driver.core.call_changed(&request);
    Ok(Commit::Suspended)
}
