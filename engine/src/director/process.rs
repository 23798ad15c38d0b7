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
//! suspended, the requests behind it go back to their places as if they had never been taken; how far
//! ahead is taken shrinks then, and grows while nothing waits.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config::settings::PoolSize;
use crate::director::alerts::Alert;
use crate::director::core::{Core, Routed};
use crate::director::instance::Waiting;
use crate::director::items::End;
use crate::director::lanes::{BATCH, Lanes};
use crate::event::{Level, NewEvent};
use crate::header::{Header, ReplyTo, Status};
use crate::host::{Keep, KeepFamily};
use crate::id::{ItemName, MessageId};
use crate::process::{BusinessProcess, Definition};
use crate::registry::ProcessHost;
use crate::store::{self, Class, Delivery, Lease, StoreFailed, Unavailable};

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
    pub(super) lanes: Arc<Lanes>,
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
    pub(super) definitions: HashMap<String, Arc<Definition>>,
    /// How many requests are taken though the pool may not have room for them.
    ahead: usize,
    /// The last batch had requests.
    asked: bool,
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
            ahead: 1,
            asked: false,
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
                ProcessHost::Inline(process, _) if self.all_known(&*process, &batch) => {
                    self.run_batch(batch, |job| catch_unwind(AssertUnwindSafe(|| process.handle(job))).ok())
                        .await
                }
                ProcessHost::Inline(..) | ProcessHost::Lane(_) => self.run_on_lane(batch).await,
            };
            if let Err(end) = ended {
                return end;
            }
        }
    }

    /// Whether the host can go on with all of these. An instance of another definition may need the script
    /// engine though this host does not (P12: a flow that has become a router meanwhile).
    fn all_known(&mut self, process: &dyn BusinessProcess, batch: &[Work]) -> bool {
        batch.iter().all(|work| {
            let Some(known) = self.instances.get(&work.instance()) else { return true };
            let hash = known.waiting.definition.clone();
            // Where it is lost, the job says so.
            hash == self.definition().hash
                || self.definition_of(&hash).is_ok_and(|definition| process.knows(&definition))
        })
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
        let free = match self.room() {
            0 => 0,
            free => free.max(self.ahead).min(room(&batch)),
        };
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
        self.asked = batch.iter().any(|work| matches!(work, Work::Request(_)));
        self.backlog = later;
        Ok(batch)
    }

    /// How many instances the pool has room for. Instances count from start to end, waits included; those
    /// that are suspended, or whose call is, do not.
    pub(super) fn room(&self) -> usize {
        let PoolSize::Limited(pool) = self.routed.plan.common.pool_size else { return usize::MAX };
        let aside = self.suspended.len() + self.core.stalled_of(&self.instances);
        let active = self.instances.len().saturating_sub(aside);
        usize::try_from(pool).unwrap_or(usize::MAX).saturating_sub(active)
    }

    /// What the last batch teaches about taking ahead: running what then goes back is work for nothing.
    pub(super) fn learn(&mut self, full: bool) {
        match full {
            true => self.ahead = 1,
            false if self.asked => self.ahead = (self.ahead * 2).min(BATCH),
            false => {}
        }
    }

    /// A request of the batch goes back to its place; it has not been run, or not for good.
    pub(super) fn untake(&mut self, work: Work) {
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

    /// Scripted items rest until the process is restarted.
    async fn pause(&self) -> End {
        let text = "paused: script threads hang; restart the engine";
        let event = NewEvent::new(Level::Error, "item.paused", text).item(self.name());
        self.core.raise(Alert::item(Level::Error, "item.paused", self.name(), text), vec![event]).await;
        End::Paused
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
