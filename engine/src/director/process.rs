//! Drives one business process: gives jobs to the host (inline, or in batches to a lane) and commits what
//! comes back, one transaction per job, in order.
//!
//! Invariants: one driver per process, so jobs that touch `state` follow each other; a batch has at most one
//! job per instance; the header of a waiting instance stays delivered, so that its pool slot and its keys
//! are held until it ends (§6); a response that no open call waits for is discarded. What cannot be
//! committed (the lease was fenced) is as if it had never run.
//!
//! The ready prefix of the queue is taken as one batch, beyond the pool: jobs run and commit in order, and
//! most requests end with their first job. As soon as one waits and the pool is used up, or one is
//! suspended, the requests behind it go back to their places as if they had never been taken.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::config::settings::PoolSize;
use crate::director::alerts::Alert;
use crate::director::core::{Core, Routed};
use crate::director::instance::Waiting;
use crate::director::items::End;
use crate::director::lanes::{BATCH, Lanes, Step};
use crate::director::outcome;
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::header::{Header, ReplyTo, Status};
use crate::host::{HostFault, Keep, KeepFamily};
use crate::id::{BodyId, ItemName, MessageId};
use crate::process::{Definition, Done, Effect, Input, Job, Outgoing};
use crate::registry::ProcessHost;
use crate::store::{self, Class, Delivery, Lease, StoreFailed, Unavailable};

/// The time a script may take where its process does not say.
const SCRIPT_TIME: Duration = Duration::from_secs(1);

/// An instance as the driver knows it.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) request: Header,
    /// The right to finish it; none while it is suspended.
    pub(super) lease: Option<Lease>,
    pub(super) waiting: Waiting,
}

/// Something to run.
#[derive(Debug)]
pub(super) enum Work {
    /// A new request.
    Request(Delivery),
    /// A response to an open call.
    Response(Delivery, MessageId, u64),
    /// A timer that came due.
    Timer(MessageId, u64),
}

impl Work {
    /// The instance it is about.
    pub(super) fn instance(&self) -> MessageId {
        match self {
            Work::Request(delivery) => delivery.header.id,
            Work::Response(_, instance, _) | Work::Timer(instance, _) => *instance,
        }
    }
}

/// Drives one process from start to end.
pub(super) struct Driver {
    pub(super) core: Arc<Core>,
    lanes: Arc<Lanes>,
    pub(super) routed: Arc<Routed>,
    host: ProcessHost,
    ready: Arc<Notify>,
    stop: CancellationToken,
    kill: CancellationToken,
    pub(super) instances: HashMap<MessageId, Instance>,
    /// Those of them that wait for an operator: they have no lease.
    pub(super) suspended: HashSet<MessageId>,
    pub(super) timers: BTreeSet<(Timestamp, MessageId, u64)>,
    /// Definitions that instances run, by hash.
    definitions: HashMap<String, Arc<Definition>>,
    /// Taken, but behind another job of the same instance.
    backlog: VecDeque<Work>,
    /// Responses of suspended instances.
    parked: Vec<Work>,
    /// Leases of everything taken and not yet committed.
    pub(super) held: HashMap<MessageId, Lease>,
    pub(super) state: Option<Bytes>,
}

/// How an attempt to commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commit {
    /// The request has ended.
    Done,
    /// The instance waits.
    Waits,
    /// The message is suspended.
    Suspended,
    /// Somebody else ended the lease: nothing was applied.
    Refused,
}

impl Driver {
    pub(super) fn new(
        core: Arc<Core>,
        lanes: Arc<Lanes>,
        routed: Arc<Routed>,
        host: ProcessHost,
        stop: CancellationToken,
        kill: CancellationToken,
    ) -> Self {
        let ready = core.store.ready(&routed.plan.name);
        let state = core.store.get(KeepFamily::ProcessState, routed.plan.name.as_str());
        Driver {
            core,
            lanes,
            routed,
            host,
            ready,
            stop,
            kill,
            instances: HashMap::new(),
            suspended: HashSet::new(),
            timers: BTreeSet::new(),
            definitions: HashMap::new(),
            backlog: VecDeque::new(),
            parked: Vec::new(),
            held: HashMap::new(),
            state,
        }
    }

    pub(super) fn name(&self) -> &ItemName {
        &self.routed.plan.name
    }

    pub(super) fn definition(&self) -> &Arc<Definition> {
        match &self.host {
            ProcessHost::Inline(_, definition) | ProcessHost::Lane(definition) => definition,
        }
    }

    /// Runs until told to stop.
    pub(super) async fn run(mut self) -> End {
        let kill = self.kill.clone();
        let end = tokio::select! {
            biased;
            end = self.drive() => end,
            () = kill.cancelled() => End::Stopped,
        };
        // What was taken and not run goes back to its place.
        for lease in self.held.into_values() {
            self.core.store.untake(lease);
        }
        end
    }

    async fn drive(&mut self) -> End {
        self.recover();
        loop {
            if self.stop.is_cancelled() {
                return End::Stopped;
            }
            if matches!(self.host, ProcessHost::Lane(_)) && self.lanes.exhausted() {
                return self.pause().await;
            }
            let batch = match self.gather().await {
                Ok(batch) => batch,
                Err(failed) => return End::Store(failed),
            };
            if batch.is_empty() {
                self.wait().await;
                continue;
            }
            let ended = match self.host.clone() {
                ProcessHost::Inline(process, _) => {
                    self.run_batch(batch, |job| catch_unwind(AssertUnwindSafe(|| process.handle(job))).ok())
                        .await
                }
                ProcessHost::Lane(_) => self.run_on_lane(batch).await,
            };
            if let Err(end) = ended {
                return end;
            }
        }
    }

    /// Instances that waited when the engine or the item stopped go on where they were.
    fn recover(&mut self) {
        for (key, kept) in self.core.store.scan(KeepFamily::Instance, "") {
            let Some(waiting) = Waiting::decode(&kept).filter(|waiting| &waiting.item == self.name()) else {
                continue;
            };
            let Some(id) = key.parse().ok().map(MessageId) else { continue };
            let Some(request) = self.core.store.header(id) else { continue };
            let lease = self.core.store.adopt(id);
            if lease.is_none() && request.status != Status::Suspended {
                continue;
            }
            for call in waiting.calls.values() {
                if let Some(call) = self.core.store.header(*call) {
                    self.core.call_changed(&call);
                }
            }
            match lease {
                Some(_) => self.arm(id, &waiting),
                None => {
                    self.suspended.insert(id);
                }
            }
            self.instances.insert(id, Instance { request, lease, waiting });
        }
    }

    pub(super) fn arm(&mut self, id: MessageId, waiting: &Waiting) {
        self.timers.extend(waiting.timers.iter().map(|(timer, at)| (*at, id, *timer)));
    }

    pub(super) fn disarm(&mut self, id: MessageId, waiting: &Waiting) {
        for (timer, at) in &waiting.timers {
            self.timers.remove(&(*at, id, *timer));
        }
    }

    /// What can run now: at most one job per instance.
    async fn gather(&mut self) -> Result<Vec<Work>, StoreFailed> {
        let mut batch = Vec::new();
        let mut taken: HashSet<MessageId> = HashSet::new();
        let mut later = VecDeque::new();
        while let Some(work) = self.backlog.pop_front() {
            if batch.len() < BATCH && self.is_current(&work) && taken.insert(work.instance()) {
                batch.push(work);
            } else if self.is_current(&work) {
                later.push_back(work);
            } else if let Work::Response(delivery, ..) = work {
                self.discard(&delivery).await?;
            }
        }
        let room = |batch: &Vec<Work>| BATCH.saturating_sub(batch.len());
        for delivery in self.take(store::Lanes::Responses, room(&batch)) {
            let Some(work) = self.route(delivery).await? else { continue };
            if taken.insert(work.instance()) { batch.push(work) } else { later.push_back(work) }
        }
        let now = self.core.store.clock().now();
        while let Some((at, instance, timer)) = self.timers.first().copied()
            && at <= now
            && !room(&batch).eq(&0)
        {
            self.timers.pop_first();
            let work = Work::Timer(instance, timer);
            if taken.insert(instance) { batch.push(work) } else { later.push_back(work) }
        }
        let free = if self.has_room() { room(&batch) } else { 0 };
        for delivery in self.take(store::Lanes::Requests, free) {
            if delivery.overtakes && delivery.header.attempts == 1 {
                let (session, id) = (delivery.header.session, delivery.header.id);
                let text = "goes before a message that is suspended";
                let event = NewEvent::new(Level::Info, "message.overtook", text).item(self.name());
                self.core.store.log(event.message(session, id));
            }
            if self.instances.contains_key(&delivery.header.id) {
                self.revive(delivery, &mut later);
            } else {
                taken.insert(delivery.header.id);
                batch.push(Work::Request(delivery));
            }
        }
        self.backlog = later;
        Ok(batch)
    }

    /// Whether the pool has room for another instance. Instances count from start to end, waits included;
    /// those that are suspended, or whose call is, do not.
    fn has_room(&self) -> bool {
        let PoolSize::Limited(pool) = self.routed.plan.common.pool_size else { return true };
        let aside = self.suspended.len() + self.core.stalled_of(&self.instances);
        self.instances.len().saturating_sub(aside) < usize::try_from(pool).unwrap_or(usize::MAX)
    }

    /// A request of the batch goes back to its place; it has not been run, or not for good.
    fn untake(&mut self, work: Work) {
        match work {
            Work::Request(delivery) => {
                self.held.remove(&delivery.header.id);
                self.core.store.untake(delivery.lease);
            }
            work => self.backlog.push_back(work),
        }
    }

    fn take(&mut self, lanes: store::Lanes, max: usize) -> Vec<Delivery> {
        if max == 0 {
            return Vec::new();
        }
        let taken = self.core.store.take(self.name(), lanes, max);
        self.held.extend(taken.iter().map(|delivery| (delivery.header.id, delivery.lease)));
        taken
    }

    /// Where a response goes; discarded when nobody waits for it.
    async fn route(&mut self, delivery: Delivery) -> Result<Option<Work>, StoreFailed> {
        let ReplyTo::Call { instance, call } = delivery.header.reply_to else {
            self.discard(&delivery).await?;
            return Ok(None);
        };
        let work = Work::Response(delivery, instance, call);
        if self.instances.get(&instance).is_some_and(|known| known.lease.is_none()) {
            let discarded = self.core.store.header(instance).is_none_or(|header| header.status.is_final());
            if !discarded {
                self.parked.push(work);
                return Ok(None);
            }
            self.instances.remove(&instance);
            self.suspended.remove(&instance);
        }
        match work {
            work if self.is_current(&work) => Ok(Some(work)),
            Work::Response(delivery, ..) => {
                self.discard(&delivery).await?;
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Whether an instance still waits for this.
    fn is_current(&self, work: &Work) -> bool {
        let waiting = |instance| self.instances.get(instance).map(|known| &known.waiting);
        match work {
            Work::Request(_) => true,
            Work::Response(delivery, instance, call) => waiting(instance)
                .is_some_and(|waiting| waiting.calls.get(call).copied() == delivery.header.request_id),
            Work::Timer(instance, timer) => {
                waiting(instance).is_some_and(|waiting| waiting.timers.contains_key(timer))
            }
        }
    }

    /// A suspended instance was resumed: it goes on with what has come in meanwhile.
    fn revive(&mut self, delivery: Delivery, later: &mut VecDeque<Work>) {
        let id = delivery.header.id;
        let lease = self.core.store.adopt(id).unwrap_or(delivery.lease);
        self.held.remove(&id);
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.lease = Some(lease);
        self.suspended.remove(&id);
        instance.request = delivery.header;
        let waiting = instance.waiting.clone();
        self.arm(id, &waiting);
        let (mine, others) = self.parked.drain(..).partition(|work: &Work| work.instance() == id);
        self.parked = others;
        let mine: Vec<Work> = mine;
        later.extend(mine);
        // Whatever is parked no longer is work for the next round.
        self.ready.notify_one();
    }

    async fn discard(&mut self, delivery: &Delivery) -> Result<(), StoreFailed> {
        let mut draft = crate::director::exchange::Draft::new(&self.core);
        draft.finish(delivery.lease, Status::Discarded);
        match draft.commit(Class::Completion).await {
            Ok(_) => {
                self.held.remove(&delivery.header.id);
                Ok(())
            }
            Err(Unavailable::Failed(failed)) => Err(failed),
            Err(Unavailable::Full) => {
                self.held.remove(&delivery.header.id);
                self.core.store.release(delivery.lease);
                self.core.store.until_accepting().await;
                Ok(())
            }
        }
    }

    async fn wait(&self) {
        let clock = self.core.store.clock();
        let timer = self.timers.first().map(|(at, ..)| *at);
        let due = async {
            match timer {
                Some(due) => clock.until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = self.ready.notified(), if self.backlog.is_empty() => {}
            () = due, if self.backlog.is_empty() => {}
            () = std::future::ready(()), if !self.backlog.is_empty() => {}
        }
    }

    // --- jobs ---

    /// The job for a piece of work; a fault where what it needs cannot be read.
    async fn job(&mut self, work: &Work) -> Result<Job, Fault> {
        let unreadable = |error: store::ReadError| Fault::new("message", "body", error.to_string());
        let instance = self.instances.get(&work.instance());
        let (request, waiting) = match (work, instance) {
            (Work::Request(delivery), _) => (delivery.header.clone(), None),
            (_, Some(instance)) => (instance.request.clone(), Some(instance.waiting.clone())),
            (_, None) => return Err(Fault::new("message", "instance", "the instance has ended")),
        };
        let request_body = match request.body_id {
            Some(id) => Some(self.core.store.body(id).await.map_err(unreadable)?),
            None => None,
        };
        let input = match work {
            Work::Request(_) => Input::Request,
            Work::Timer(_, timer) => Input::Timer { timer: *timer },
            Work::Response(delivery, _, call) => {
                let (body, unread) = match delivery.header.body_id {
                    None => (None, None),
                    Some(id) => match self.core.store.body(id).await {
                        Ok(body) => (Some(body), None),
                        Err(error) => (None, Some(unreadable(error))),
                    },
                };
                let fault = delivery.header.error.clone().or(unread);
                Input::Response { call: *call, header: Some(delivery.header.clone()), body, fault }
            }
        };
        let definition = match &waiting {
            Some(waiting) => self.definition_of(&waiting.definition)?,
            None => self.definition().clone(),
        };
        let replied = waiting.as_ref().is_some_and(|waiting| waiting.replied);
        Ok(Job {
            item: self.name().clone(),
            definition,
            input,
            wants_reply: !replied && request.reply_to != ReplyTo::Nobody,
            request,
            request_body,
            instance: waiting.map(|waiting| waiting.bytes),
            state: self.state.clone(),
            now: self.core.store.clock().now(),
        })
    }

    fn definition_of(&mut self, hash: &str) -> Result<Arc<Definition>, Fault> {
        if self.definition().hash == hash {
            return Ok(self.definition().clone());
        }
        if let Some(known) = self.definitions.get(hash) {
            return Ok(known.clone());
        }
        let kept = self.core.store.get(KeepFamily::Definition, hash);
        let lost =
            || Fault::new("script", "definition", "the definition it started with is not in the store");
        let definition = Arc::new(Definition { hash: hash.to_owned(), bytes: kept.ok_or_else(lost)? });
        self.definitions.insert(hash.to_owned(), definition.clone());
        Ok(definition)
    }

    /// Runs jobs one after the other in this task.
    async fn run_batch(
        &mut self,
        batch: Vec<Work>,
        handle: impl Fn(&Job) -> Option<Done>,
    ) -> Result<(), End> {
        let mut batch = VecDeque::from(batch);
        let mut full = false;
        while let Some(work) = batch.pop_front() {
            if full && matches!(work, Work::Request(_)) {
                self.untake(work);
                continue;
            }
            let done = match self.job(&work).await {
                Ok(job) => {
                    let panicked = || Fault::new("script", "panic", "the process panicked");
                    handle(&job).map(|done| (job, done)).ok_or_else(panicked)
                }
                Err(fault) => Err(fault),
            };
            let concluded = match done {
                Ok((job, done)) => self.conclude(work, &job, done).await,
                Err(fault) => self.suspend(work, fault, None).await,
            };
            full |= self.is_full_after(concluded?);
        }
        Ok(())
    }

    /// Whether the requests behind must not start now.
    fn is_full_after(&self, commit: Commit) -> bool {
        match commit {
            Commit::Done | Commit::Refused => false,
            Commit::Suspended => true,
            Commit::Waits => !self.has_room(),
        }
    }

    /// Runs jobs on a lane as one batch.
    async fn run_on_lane(&mut self, batch: Vec<Work>) -> Result<(), End> {
        let mut works = VecDeque::new();
        let mut jobs = Vec::new();
        for work in batch {
            match self.job(&work).await {
                Ok(job) => {
                    jobs.push(job.clone());
                    works.push_back((work, job));
                }
                Err(fault) => {
                    self.suspend(work, fault, None).await?;
                }
            }
        }
        if jobs.is_empty() {
            return Ok(());
        }
        let script_time = self.routed.plan.built.facts.script_time.unwrap_or(SCRIPT_TIME);
        let limit = script_time.saturating_mul(2);
        let Some(mut running) = self.lanes.start(jobs, limit).await else {
            return Err(End::Fault(HostFault::new("thread", "no script thread could be started")));
        };
        // Once a result does not count, the jobs behind it have seen state that is not there: they run again.
        let mut again = false;
        let mut full = false;
        while let Some(step) = running.next().await {
            let Some((work, job)) = works.pop_front() else { break };
            again |= full && matches!(work, Work::Request(_));
            if again {
                self.untake(work);
                continue;
            }
            let commit = match step {
                Step::Done(done) => self.conclude(work, &job, done).await?,
                Step::Hung => {
                    let text = format!("ran for more than {} ms; its thread is lost", limit.as_millis());
                    let fault = Fault::new("script", "hung", text);
                    let fenced = self.core.store.fence(work.instance());
                    self.suspend(work, fault, fenced).await?
                }
                Step::Broken => {
                    let fault = Fault::new("script", "panic", "the script thread ended unexpectedly");
                    self.suspend(work, fault, None).await?
                }
            };
            again = commit == Commit::Refused;
            full |= self.is_full_after(commit);
        }
        // After a lost thread: what has not run.
        for (work, _) in works {
            self.untake(work);
        }
        Ok(())
    }

    /// Scripted items rest until the process is restarted.
    async fn pause(&self) -> End {
        let text = "paused: script threads hang; restart the engine";
        let event = NewEvent::new(Level::Error, "item.paused", text).item(self.name());
        self.core.raise(Alert::item(Level::Error, "item.paused", self.name(), text), vec![event]).await;
        End::Paused
    }

    /// Commits the outcome of a job.
    async fn conclude(&mut self, work: Work, job: &Job, done: Done) -> Result<Commit, End> {
        let bodies = self.stored_bodies(&done).await;
        outcome::commit(self, work, job, &done, bodies).await
    }

    /// Bodies that are in the store already and go out again.
    async fn stored_bodies(&self, done: &Done) -> BTreeMap<BodyId, Body> {
        let mut bodies = BTreeMap::new();
        for effect in &done.effects {
            let body = match effect {
                Effect::Send { body, .. } | Effect::Call { body, .. } => Some(body),
                Effect::Reply { body, .. } => body.as_ref(),
                _ => None,
            };
            if let Some(Outgoing::Stored(id)) = body
                && let Ok(body) = self.core.store.body(*id).await
            {
                bodies.insert(*id, body);
            }
        }
        bodies
    }

    /// The message waits for an operator. A response or timer that was on its way waits with it.
    async fn suspend(&mut self, work: Work, fault: Fault, fenced: Option<Lease>) -> Result<Commit, End> {
        outcome::suspend(self, work, fault, fenced).await
    }

    /// Keeps a piece of work of a suspended instance.
    pub(super) fn park(&mut self, work: Work) {
        if matches!(work, Work::Response(..)) {
            self.parked.push(work);
        }
    }

    /// Waits for room; `Err` ends the driver.
    pub(super) async fn permit(&self, class: Class, bytes: u64) -> Result<store::Permit, End> {
        let store = &self.core.store;
        loop {
            let reserved = tokio::select! {
                biased;
                reserved = store.reserve(class, bytes) => reserved,
                () = self.stop.cancelled() => return Err(End::Stopped),
            };
            match reserved {
                Ok(permit) => return Ok(permit),
                Err(Unavailable::Failed(failed)) => return Err(End::Store(failed)),
                Err(Unavailable::Full) => tokio::select! {
                    biased;
                    () = store.until_accepting() => {}
                    () = self.stop.cancelled() => return Err(End::Stopped),
                },
            }
        }
    }
}
