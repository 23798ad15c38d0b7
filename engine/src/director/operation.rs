//! Runs one operation: a task per pool slot, each with its own host and one message at a time.
//!
//! A slot takes the head of the queue, waits until everything that message depends on is durable and a
//! place for its completion is reserved (P1: what could not be recorded is not sent), hands it to the host,
//! and commits what the reply action says. It goes on with the next message without waiting for the sync of
//! that commit, up to [`WINDOW`] messages per item (P3).

use std::collections::{HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::body::{self, Body};
use crate::director::alerts::Alert;
use crate::director::core::{Core, Routed, lock};
use crate::director::exchange::Draft;
use crate::director::items::{Control, End};
use crate::director::verdict::{self, Retry, Verdict};
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::header::{Header, Status};
use crate::host::{
    BusinessOperation, HostFault, OperationContext, OperationError, OperationFactory, Outcome, Runtime,
};
use crate::id::{ItemName, MessageId};
use crate::reply::{Action, Family, ReplyActions};
use crate::store::{Class, Delivery, Guard, Lanes, Lease, Permit, ReadError, Transition, Unavailable};

/// Completions of one item that may be unsynced before its slots wait.
const WINDOW: usize = 1024;

/// One running operation; shared by its slots.
#[derive(Debug)]
pub(super) struct Operation {
    core: Arc<Core>,
    routed: Arc<Routed>,
    runtime: Runtime,
    factory: Arc<dyn OperationFactory>,
    actions: ReplyActions,
    ready: Arc<Notify>,
    /// Finish the message in flight, then end.
    stop: CancellationToken,
    /// The deadline: drop the message in flight.
    kill: CancellationToken,
    /// Slots that wait for work.
    idle: AtomicUsize,
    /// Completions that may not be durable yet, oldest first.
    window: Mutex<VecDeque<u64>>,
    failures: Mutex<Failures>,
}

/// The current run of failures.
#[derive(Debug, Default)]
struct Failures {
    /// Different messages suspended in a row.
    suspended: HashSet<MessageId>,
    /// Messages that have been retried for minutes: the alert is out as long as there is one.
    alerted: HashSet<MessageId>,
}

/// What became of a delivery.
enum Handed {
    Outcome(Result<Outcome, OperationError>),
    /// The host panicked and must be replaced.
    Panicked,
    /// The stop deadline came first: outcome unknown.
    Dropped,
}

impl Operation {
    pub(super) fn new(
        core: Arc<Core>,
        routed: Arc<Routed>,
        factory: Arc<dyn OperationFactory>,
        stop: CancellationToken,
        kill: CancellationToken,
    ) -> Self {
        let ready = core.store.ready(&routed.plan.name);
        let runtime = core.directory().runtime.clone();
        let family = routed.plan.built.facts.replies.unwrap_or(Family::Plain);
        let actions = routed.plan.common.reply_actions.clone();
        let actions = actions.unwrap_or_else(|| ReplyActions::builtin(family));
        Operation {
            core,
            routed,
            runtime,
            factory,
            actions,
            ready,
            stop,
            kill,
            idle: AtomicUsize::new(0),
            window: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    fn name(&self) -> &ItemName {
        &self.routed.plan.name
    }

    /// One slot, from start to end.
    pub(super) async fn slot(self: Arc<Self>, started: tokio::sync::oneshot::Sender<()>) -> End {
        let mut started = Some(started);
        loop {
            let mut host = self.factory.create(&self.runtime, self.name());
            let start = AssertUnwindSafe(host.start()).catch_unwind();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return End::Stopped,
                result = start => match result {
                    Ok(Ok(())) => {}
                    Ok(Err(fault)) => return End::Fault(fault),
                    Err(_) => return End::Fault(panicked()),
                },
            }
            if let Some(started) = started.take() {
                // Nobody listens when the item is being stopped again already.
                let _ = started.send(());
            }
            if let Some(end) = self.work(&mut host).await {
                tokio::select! {
                    biased;
                    () = self.kill.cancelled() => {}
                    _ = AssertUnwindSafe(host.stop()).catch_unwind() => {}
                }
                return end;
            }
        }
    }

    /// Delivers until something ends the slot; `None` = with a new host.
    async fn work(&self, host: &mut Box<dyn BusinessOperation>) -> Option<End> {
        loop {
            if self.stop.is_cancelled() {
                return Some(End::Stopped);
            }
            let Some(delivery) = self.core.store.take(self.name(), Lanes::Requests, 1).pop() else {
                if let Err(fault) = self.wait(host).await {
                    return Some(End::Fault(fault));
                }
                continue;
            };
            if self.idle.load(Ordering::Relaxed) > 0 {
                // The queue keeps one wake-up; there may be work for a second slot.
                self.ready.notify_one();
            }
            if delivery.overtakes && delivery.header.attempts == 1 {
                let text = "goes before a message that is suspended";
                self.core.store.log(self.about(&delivery.header, Level::Info, "message.overtook", text));
            }
            let mut held = Held { core: &self.core, lease: delivery.lease, tried: false, concluded: false };
            let permit = match self.admit(&delivery).await {
                Ok(permit) => permit,
                Err(Some(end)) => return Some(end),
                Err(None) => continue,
            };
            let handed = match self.body(&delivery.header).await {
                Ok(body) => {
                    held.tried = true;
                    self.hand_over(host, &delivery, body).await
                }
                Err(error) => Handed::Outcome(Err(error)),
            };
            let (outcome, fresh) = match handed {
                Handed::Outcome(outcome) => (outcome, false),
                Handed::Panicked => (Err(OperationError::message("panic", "the host panicked")), true),
                Handed::Dropped => {
                    held.concluded = true;
                    self.put_back(permit, &delivery);
                    return Some(End::Stopped);
                }
            };
            let end = self.conclude(permit, &delivery, outcome);
            held.concluded = true;
            if end.is_some() {
                return end;
            }
            if fresh {
                return None;
            }
        }
    }

    /// Waits for something to do.
    async fn wait(&self, host: &mut Box<dyn BusinessOperation>) -> Result<(), HostFault> {
        let clock = self.core.store.clock();
        let due = self.core.store.next_due(self.name());
        let due = async {
            match due {
                Some(due) => clock.until(due).await,
                None => std::future::pending().await,
            }
        };
        self.idle.fetch_add(1, Ordering::Relaxed);
        let result = tokio::select! {
            biased;
            () = self.stop.cancelled() => Ok(()),
            () = self.ready.notified() => Ok(()),
            () = due => Ok(()),
            idle = AssertUnwindSafe(host.idle()).catch_unwind() => idle.map_err(|_| panicked()),
        };
        self.idle.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Everything that must be so before the message may leave. An error without an end: try again.
    async fn admit(&self, delivery: &Delivery) -> Result<Permit, Option<End>> {
        let store = &self.core.store;
        let steps = async {
            let permit = match store.reserve(Class::Completion, 0).await {
                Ok(permit) => permit,
                Err(Unavailable::Full) => {
                    store.until_accepting().await;
                    return Err(None);
                }
                Err(Unavailable::Failed(failed)) => return Err(Some(End::Store(failed))),
            };
            let mut needed = delivery.sequence;
            while let Some(oldest) = self.overfull() {
                needed = needed.max(oldest);
            }
            store.durable(needed).await.map_err(|failed| Some(End::Store(failed)))?;
            Ok(permit)
        };
        tokio::select! {
            biased;
            result = steps => result,
            () = self.stop.cancelled() => Err(Some(End::Stopped)),
        }
    }

    /// A completion that must be durable before another message may leave.
    fn overfull(&self) -> Option<u64> {
        let mut window = lock(&self.window);
        if window.len() < WINDOW { None } else { window.pop_front() }
    }

    async fn body(&self, header: &Header) -> Result<Body, OperationError> {
        let Some(id) = header.body_id else {
            return Ok(Body::new(&header.type_name, body::BINARY, None, Bytes::new()));
        };
        self.core.store.body(id).await.map_err(|error| match error {
            ReadError::Gone(_) | ReadError::Corrupt { .. } => {
                OperationError::message("body", error.to_string())
            }
            ReadError::Io(..) | ReadError::Search(_) | ReadError::Behind { .. } => {
                OperationError::fault("body", error.to_string())
            }
        })
    }

    async fn hand_over(
        &self,
        host: &mut Box<dyn BusinessOperation>,
        delivery: &Delivery,
        body: Body,
    ) -> Handed {
        let attempt = delivery.header.attempts;
        let cx = OperationContext {
            item: self.name().clone(),
            header: delivery.header.clone(),
            body,
            attempt,
            tried_before: attempt > 1 || delivery.recovered,
            idempotency_key: format!("{}-{}", self.runtime.epoch, delivery.header.id),
            response_timeout: self.routed.plan.common.response_timeout,
            runtime: self.runtime.clone(),
        };
        let call = AssertUnwindSafe(host.on_message(&cx)).catch_unwind();
        tokio::select! {
            biased;
            outcome = call => match outcome {
                Ok(outcome) => Handed::Outcome(outcome),
                Err(_) => Handed::Panicked,
            },
            () = self.kill.cancelled() => Handed::Dropped,
        }
    }

    /// The stop deadline came while the message was out: it is sent again later, with the same key.
    fn put_back(&self, permit: Permit, delivery: &Delivery) {
        let mut draft = Draft::new(&self.core);
        draft.transition(Transition {
            attempts: Some(delivery.header.attempts),
            failing_since: delivery.header.failing_since,
            ..leased(delivery.lease, Status::Queued)
        });
        // A conflict means that somebody else has ended the lease, which is all we wanted.
        let _ = draft.submit(permit);
    }

    /// Commits what the reply action says; `Some` ends the slot.
    fn conclude(
        &self,
        permit: Permit,
        delivery: &Delivery,
        outcome: Result<Outcome, OperationError>,
    ) -> Option<End> {
        let (plan, header) = (&self.routed.plan, &delivery.header);
        let verdict = verdict::judge(outcome, &self.actions);
        let mut draft = Draft::new(&self.core);
        let end = match verdict.action {
            Action::Complete | Action::Warn | Action::Fail => {
                self.finish(&mut draft, delivery, verdict);
                None
            }
            Action::Retry => match verdict.retry(header, &plan.common, draft.now) {
                Retry::At(at, since) => {
                    self.routed.meters.retries.increment(1);
                    if header.failing_since.is_none() {
                        self.first_failure(&mut draft, header, verdict.fault.as_ref());
                    }
                    draft.transition(Transition {
                        error: Some(verdict.fault),
                        attempts: Some(header.attempts),
                        next_attempt: Some(at),
                        failing_since: Some(since),
                        ..leased(delivery.lease, Status::Queued)
                    });
                    self.alert_retrying(&mut draft, header, since);
                    None
                }
                Retry::GiveUp => self.suspend(&mut draft, delivery, verdict),
            },
            Action::Suspend => self.suspend(&mut draft, delivery, verdict),
            Action::Disable => {
                self.return_to_place(&mut draft, delivery, verdict.fault);
                let text = format!("switched off by reply action disable: {}", verdict.code);
                draft.ops.push(Control::Disabled.keep(self.name()));
                draft.event(NewEvent::new(Level::Error, "item.stopped", text.clone()).item(self.name()));
                draft.alert(Alert::item(Level::Error, "item.stopped", self.name(), text).message(header));
                Some(End::Disabled)
            }
        };
        // The place was reserved before sending; a reply with a large body takes more than was reserved
        // rather than go unrecorded.
        match draft.submit(permit) {
            Ok(committed) => {
                lock(&self.window).push_back(committed.sequence);
                self.core.call_changed(header);
            }
            Err(conflict) => tracing::debug!(item = %self.name(), %conflict, "a late result was refused"),
        }
        end
    }

    /// The message has ended here.
    fn finish(&self, draft: &mut Draft<'_>, delivery: &Delivery, verdict: Verdict) {
        let header = &delivery.header;
        let failed = verdict.action == Action::Fail;
        {
            let mut failures = lock(&self.failures);
            failures.suspended.clear();
            failures.alerted.remove(&header.id);
        }
        match failed {
            true => self.routed.meters.errors.increment(1),
            false => self.routed.meters.completed.increment(1),
        }
        draft.transition(Transition {
            error: Some(verdict.fault.clone().filter(|_| failed)),
            attempts: Some(header.attempts),
            ..leased(delivery.lease, if failed { Status::Error } else { Status::Completed })
        });
        if verdict.action == Action::Warn {
            let text = format!("completed with a warning: {}", verdict.code);
            let mut event = self.about(header, Level::Warning, "message.warned", text);
            event.detail = verdict.fault.as_ref().and_then(|fault| fault.detail.clone());
            draft.event(event);
        }
        if failed {
            let text = verdict.fault.as_ref().map(Fault::to_string).unwrap_or_default();
            draft.event(self.about(header, Level::Error, "item.error", text));
        }
        let placed = verdict.body.map(|body| draft.body(body));
        // An action that completes says that this answer is all right: then only a reply that is not what its
        // type declares is the caller's concern.
        let fault = verdict.fault.filter(|fault| failed || fault.name == "message");
        draft.respond(header, placed.as_ref(), fault);
    }

    /// Suspends the message, or pauses the item when it is one too many.
    fn suspend(&self, draft: &mut Draft<'_>, delivery: &Delivery, verdict: Verdict) -> Option<End> {
        let header = &delivery.header;
        let fault = verdict.fault.unwrap_or_else(|| Fault::new("call", "suspended", "suspended"));
        let limit = usize::try_from(self.routed.plan.common.suspend_limit).unwrap_or(usize::MAX);
        let in_a_row = {
            let mut failures = lock(&self.failures);
            failures.suspended.insert(header.id);
            failures.alerted.remove(&header.id);
            failures.suspended.len()
        };
        if limit > 0 && in_a_row >= limit {
            let text = format!("paused after {in_a_row} suspended messages in a row; last: {fault}");
            self.return_to_place(draft, delivery, Some(fault));
            if !self.stop.is_cancelled() {
                draft.event(NewEvent::new(Level::Error, "item.paused", text.clone()).item(self.name()));
                draft.alert(Alert::item(Level::Error, "item.paused", self.name(), text).message(header));
            }
            // The other slots finish what they have; what they would suspend returns to its place too.
            self.stop.cancel();
            return Some(End::Paused);
        }
        self.routed.meters.suspended.increment(1);
        tracing::warn!(item = %self.name(), message = %header.id, "suspended: {fault}");
        let mut event = self.about(header, Level::Error, "message.suspended", fault.to_string());
        event.detail.clone_from(&fault.detail);
        draft.event(event);
        draft.transition(Transition {
            error: Some(Some(fault)),
            attempts: Some(header.attempts),
            ..leased(delivery.lease, Status::Suspended)
        });
        None
    }

    fn return_to_place(&self, draft: &mut Draft<'_>, delivery: &Delivery, fault: Option<Fault>) {
        draft.transition(Transition {
            error: Some(fault),
            attempts: Some(delivery.header.attempts),
            ..leased(delivery.lease, Status::Queued)
        });
    }

    /// Says why a message is retried: once for each run of its failures, not for each attempt.
    fn first_failure(&self, draft: &mut Draft<'_>, header: &Header, fault: Option<&Fault>) {
        let text = fault.map(Fault::to_string).unwrap_or_default();
        tracing::warn!(item = %self.name(), message = %header.id, "retrying: {text}");
        let mut event = self.about(header, Level::Warning, "item.error", format!("is retried: {text}"));
        event.detail = fault.and_then(|fault| fault.detail.clone());
        draft.event(event);
    }

    /// One alert, until no message is left that has been failing for so long.
    fn alert_retrying(&self, draft: &mut Draft<'_>, header: &Header, since: jiff::Timestamp) {
        if draft.now.duration_since(since) < verdict::ALERT_AFTER {
            return;
        }
        let first = {
            let mut failures = lock(&self.failures);
            failures.alerted.insert(header.id) && failures.alerted.len() == 1
        };
        if first {
            let minutes = draft.now.duration_since(since).as_mins();
            let text = format!("message {} has been failing for {minutes} minutes and is retried", header.id);
            draft.alert(Alert::item(Level::Warning, "retrying", self.name(), text).message(header));
        }
    }

    fn about(&self, header: &Header, level: Level, kind: &'static str, text: impl Into<String>) -> NewEvent {
        NewEvent::new(level, kind, text).item(self.name()).message(header.session, header.id)
    }
}

/// A delivery that goes back to its place when the slot is dropped in the middle of it.
struct Held<'a> {
    core: &'a Core,
    lease: Lease,
    /// The host has had it.
    tried: bool,
    concluded: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.concluded {
            return;
        }
        match self.tried {
            true => self.core.store.release(self.lease),
            false => self.core.store.untake(self.lease),
        };
    }
}

fn leased(lease: Lease, to: Status) -> Transition {
    Transition::new(lease.id, Guard::Lease(lease), to)
}

fn panicked() -> HostFault {
    HostFault::new("panic", "the host panicked")
}
