//! The store: transactions in, durability out, and the in-memory state that everything reads.
//!
//! # Invariants
//! - **Submitting fixes the order.** [`Store::submit`] is synchronous: under one short lock it checks guards,
//!   gives the transaction its sequence, folds it into the state with the same pure `State::apply` that
//!   recovery uses, and hands it to the writer. A failed guard is [`Conflict`] and nothing is applied.
//! - **Durable in order.** Sequence n is durable only after every sequence below n ([`Store::durable`]).
//! - **A failed sync poisons the store**; it is never retried. No receipt is given after it.
//! - **Only permits reach the writer**, and permits never exceed its channel: the hand-over never blocks.
//! - **No lock is held over I/O or await**, and bodies are never copied on their way to the disk from 8 KiB on.
//!
//! One handle, two kinds of backend: memory (for `septet test`) and the embedded journal. Both pass the
//! contract suite in `tests/`.
//!
//! # How it is built
//! ```text
//! submit ── lock(state): check guards, settle positions and attempts, apply ──► channel ──► writer thread
//!             │                                                                               │ encode, write,
//!             └─ bodies: in memory until located                                              │ fdatasync
//!                                                                                             ▼
//!     waiters of that batch ◄─ durable ◄─ ids raised ◄─ bodies located (cache: evictable) ◄─ synced
//! ```
//! | file | what it is for |
//! |---|---|
//! | `api` | what goes in and out |
//! | `change` | a transaction after everything open in it is settled: what is folded, written and read back |
//! | `state`, `row` | headers, queues, leases, counters, events, kept values; the one pure `apply` |
//! | `queues` | taking messages and giving them back |
//! | `reads`, `search` | headers, lists, bodies, kept values; filters |
//! | `bodies`, `readers` | where bodies are: memory, cache, journal |
//! | `permit`, `durable`, `ids` | room on the way to the disk, waiting for it, ids that are never reused |
//! | `codec`, `record`, `segment` | the format: fields, transactions, files |
//! | `journal` | the writer: group commit, linger, roll, full disk, poison |
//! | `disk` | when new messages are refused for want of space |
//! | `backup` | copies of a running store, and stores made of them |
//! | `offline` | check and repair of a store that nobody has open |
//! | `keeper`, `fresh`, `index`, `overlay` | out of memory into index files, and which of their rows count |
//! | `checkpoint`, `rebuild`, `lag` | the state as of a segment's end; index files made again, and how far that is |
//! | `shelf` | kept values, shared with who looks at all of them |
//! | `spine`, `pager` | what waits beyond a queue's window, and its way back |
//! | `purge` | dropping segments, carrying what lives on |
//! | `recovery`, `window`, `heal`, `open`, `key` | opening: lock, key, folding, healing |
//!
//! # Files
//! `lock` (the pid; held while open), `store.key` (unless the key comes from outside), and in `journal/`:
//! `NUMBER.seg`, the truth; `prepared`, the next segment's room; `reserve`, 1 MiB for a segment that the disk has no room for, so
//! that completions go on and the store opens on a full disk too; `NUMBER-OFFSET.torn`, what was cut after a
//! crash; `.NAME.part`, files on their way. The byte format is in `segment.rs` (files and
//! frames), `record.rs` (transactions) and `codec.rs` (fields); a fixture of version 1 must keep opening.
//!
//! # Why nothing acknowledged is lost
//! 1. A receipt for n is given only after an fdatasync that came after the write of the frame with n, in the
//!    segment that is named durably (header synced, renamed, folder synced) before its first frame. Earlier
//!    frames were synced before the next was written, so the synced part of the journal is always a prefix.
//! 2. After a crash the whole frames form a prefix of what was submitted that contains at least the synced
//!    part. A frame that is not whole lies behind it (torn: cut, kept aside) or within it (damage: reported,
//!    skipped, never cut); each frame says what was synced before it, which tells the two apart.
//! 3. Folding a prefix of the journal through `apply` gives the state that submitting it gave, leases
//!    excepted: what was delivered is queued again (at-least-once, P3), and `recovered` says so.
//! 4. What recovery shows is made durable before anybody can see it: the last segment of an unclean stop is
//!    copied, synced and renamed, because after a failed sync the page cache may show what the disk lost.
//! 5. Ids come from reservations that were synced before they are given out; positions are part of headers.
//!
//! `tests/power.rs` checks exactly this on a disk that forgets, tears and fails at random moments.
//!
//! # What is in memory
//! Headers that are unfinished or not yet in the index, and their bodies' places; events not yet in the index;
//! kept values; per queue a window of messages and references to those beyond it, and to suspended ones. The keeper moves what is
//! durable and final into index files and writes checkpoints; the pager brings waiting messages back. Reading
//! asks memory first, then the index: what leaves memory in between is found in the index.
//!
//! Values sealed with one key must stay below 2^32 (random nonces).

mod api;
pub mod backup;
mod bodies;
mod change;
mod checkpoint;
mod codec;
mod disk;
mod dropped;
mod durable;
mod fresh;
mod heal;
mod ids;

mod index;
mod journal;
mod keeper;
mod key;
mod lag;
pub mod offline;
mod open;
mod overlay;
mod pager;
mod permit;
mod purge;
mod queues;
mod readers;
mod reads;
mod rebuild;
mod record;
mod recovery;
mod row;
mod search;
mod segment;
mod shared;
mod shelf;
mod spine;
mod state;
#[cfg(test)]
mod tests;
mod text;
mod vitals;
mod window;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use jiff::Timestamp;
use tokio::sync::oneshot;

pub use self::api::{
    Class, Committed, Conflict, Delivery, EventFilter, Guard, ItemCounts, Lanes, Lease, MessageFilter, Op,
    Page, QueueView, ReadError, Receipt, StoreFailed, Transaction, Transition, Unavailable,
};
use self::bodies::Bodies;
use self::change::{Change, Commit, Settling};
use self::disk::{Admitted, Disk};
use self::durable::Durable;
use self::ids::Ids;
use self::index::Index;
#[doc(hidden)]
pub use self::index::{IndexBench, Part};
use self::journal::{Job, Journal};
use self::keeper::{KeeperThread, Pace, Task};
pub use self::lag::IndexProgress;
use self::lag::Lag;
pub use self::open::{OpenError, Options};
use self::pager::Pager;
use self::permit::{Held, Share};
pub use self::purge::{Purge, PurgeError, Purged};
use self::readers::Readers;
use self::shared::Shared;
use self::state::{State, Touched};
pub use self::vitals::Vitals;
use crate::clock::SharedClock;
use crate::event::{Event, Level, NewEvent};
use crate::files::Files;
use crate::id::EventId;
use crate::vault::Vault;

/// A reserved place in the writer's channel and on the disk. Dropping it gives the place back.
#[derive(Debug, Default)]
pub struct Permit {
    held: Option<Held>,
    /// New messages: their bytes on the disk.
    admitted: Option<Admitted>,
}

/// The store of one production. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    /// What a store on disk has beyond the memory.
    embedded: Option<Embedded>,
}

/// The threads end in this order: the keeper may have to hear of what the writer did last.
struct Embedded {
    journal: Journal,
    pager: Pager,
    keeper: KeeperThread,
    disk: Arc<Disk>,
    readers: Arc<Readers>,
    index: Index,
    /// One purge at a time.
    purging: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// A store that keeps everything in memory: durable at once, gone when dropped.
    pub fn memory(clock: SharedClock) -> Store {
        let vault = Vault::ephemeral().expect("the system's random source works");
        let shared = Arc::new(Shared {
            clock,
            epoch: format!("memory-{:08x}", vault.key_id()).into(),
            vault,
            state: Mutex::new(State::default()),
            bodies: Bodies::new(u64::MAX),
            ids: Ids::new(1, u64::MAX),
            durable: Durable::default(),
            ingest: Share::new(u64::MAX),
            completion: Share::new(u64::MAX),
            failed: OnceLock::new(),
            closed: AtomicBool::new(false),
            dropped_events: AtomicU64::new(0),
            reported: Mutex::default(),
            told: Mutex::default(),
            open_segment: AtomicU64::new(0),
            open_since: AtomicI64::new(i64::MAX),
            lag: Lag::default(),
            pace: Pace::default(),
        });
        Store(Arc::new(Inner { shared, embedded: None }))
    }

    /// Opens or makes the embedded store in a folder; everything acknowledged before is there when this
    /// returns. Blocks while it reads the journal.
    pub fn open(options: Options, clock: SharedClock, files: Arc<dyn Files>) -> Result<Store, OpenError> {
        open::open(options, clock, files)
    }

    /// The clock it was opened with.
    pub fn clock(&self) -> &SharedClock {
        &self.0.shared.clock
    }

    /// Seals and opens with the store's key.
    pub fn vault(&self) -> &Vault {
        &self.0.shared.vault
    }

    /// Names this store in idempotency keys; a restored copy has another.
    pub fn epoch(&self) -> Arc<str> {
        self.0.shared.epoch.clone()
    }

    /// A new id; never given twice, also after a crash.
    pub fn next_id(&self) -> u64 {
        self.0.shared.ids.take(|| {
            if let Some(embedded) = &self.0.embedded {
                embedded.journal.send(Job::Ids);
            }
        })
    }

    /// Reserves a place for a transaction of about this many body bytes. Waits while the writer is busy.
    pub async fn reserve(&self, class: Class, bytes: u64) -> Result<Permit, Unavailable> {
        let shared = &self.0.shared;
        let Some(embedded) = &self.0.embedded else { return Ok(Permit::default()) };
        let share = match class {
            Class::Ingest => &shared.ingest,
            Class::Completion => &shared.completion,
        };
        if class == Class::Ingest && shared.failure().is_none() && !embedded.disk.accepts() {
            // Before waiting for room in the channel: behind a full disk nothing moves.
            self.tell_news(embedded);
            return Err(Unavailable::Full);
        }
        let held = share.reserve(bytes).await.ok_or_else(|| self.failure())?;
        let admitted = match class {
            Class::Completion => None,
            Class::Ingest => {
                let admitted = embedded.disk.admit(bytes);
                self.tell_news(embedded);
                Some(admitted.ok_or(Unavailable::Full)?)
            }
        };
        Ok(Permit { held: Some(held), admitted })
    }

    /// Commits in memory and hands over to the writer; see the module's invariants.
    pub fn submit(&self, permit: Permit, transaction: Transaction) -> Result<Committed, Conflict> {
        let shared = &self.0.shared;
        let at = shared.clock.now();
        let mut changes = self.settle(transaction, at);
        let mut state = shared.state();
        // With neighbours only once: they would drive out what was brought back for this transaction before.
        let mut near = true;
        while let Err(conflict) = state.check(&changes) {
            drop(state);
            self.bring_back(conflict, std::mem::take(&mut near))?;
            state = shared.state();
        }
        state.place(&mut changes, at);
        let changes = changes.into_iter().map(|settling| settling.change).collect();
        Ok(self.commit(state, permit, at, changes))
    }

    /// Applies settled changes and hands them to the writer, under the lock that settled them.
    fn commit(
        &self,
        mut state: MutexGuard<'_, State>,
        permit: Permit,
        at: Timestamp,
        changes: Vec<Change>,
    ) -> Committed {
        let shared = &self.0.shared;
        let mut touched = Touched::new();
        let commit = Commit { sequence: state.sequence + 1, at, changes };
        for change in &commit.changes {
            if let Change::Body(id, body) = change {
                shared.bodies.add(*id, body);
            }
        }
        state.apply(&commit, &mut touched);
        let sequence = commit.sequence;
        match &self.0.embedded {
            Some(embedded) => embedded.journal.send(Job::Commit(commit, permit)),
            None => shared.durable.advance(sequence),
        }
        let full = !state.called && state.fresh.weight() >= keeper::PART;
        state.called |= full;
        let low = !state.low.is_empty();
        drop(state);
        for ready in touched {
            ready.notify_one();
        }
        if let Some(embedded) = &self.0.embedded {
            if low {
                embedded.pager.call();
            }
            if full && !embedded.keeper.tell(Task::Relieve) {
                shared.state().called = false;
            }
        }
        Committed { sequence }
    }

    /// What was not in memory may wait beyond its queue's window: then it is read back, and the check can be
    /// made again. Otherwise the conflict stands.
    fn bring_back(&self, conflict: Conflict, near: bool) -> Result<(), Conflict> {
        let Conflict::Unknown(id) = conflict else { return Err(conflict) };
        let shared = &self.0.shared;
        let Some(embedded) = &self.0.embedded else { return Err(conflict) };
        let mut frame = None;
        loop {
            let wanted = shared.state().wanted(id, near);
            let Some((now, references)) = wanted.filter(|(now, _)| frame.is_none() || *now != frame) else {
                // It may have come back by itself meanwhile.
                let back = shared.state().rows.contains_key(&id.0);
                return if back { Ok(()) } else { Err(conflict) };
            };
            // Tried again where a purge has carried it to another place meanwhile.
            frame = now;
            let loaded = pager::load(&references, &embedded.readers, &shared.vault);
            let mut state = shared.state();
            loaded.enter(&references, &mut state, &shared.bodies);
            if state.rows.contains_key(&id.0) {
                return Ok(());
            }
        }
    }

    /// Returns when everything up to `sequence` is on stable storage.
    pub async fn durable(&self, sequence: u64) -> Result<Receipt, StoreFailed> {
        self.0.shared.durable.wait(sequence).await?;
        Ok(Receipt { sequence })
    }

    /// Whether messages are taken now.
    pub fn accepting(&self) -> bool {
        if self.0.shared.failure().is_some() {
            return false;
        }
        let Some(embedded) = &self.0.embedded else { return true };
        let accepts = embedded.disk.accepts();
        self.tell_news(embedded);
        self.log_told();
        accepts
    }

    /// Returns when messages are taken (again); never, once the store has failed.
    pub async fn until_accepting(&self) {
        while !self.accepting() {
            let Some(embedded) = &self.0.embedded else { return std::future::pending().await };
            if self.0.shared.failure().is_some() {
                return std::future::pending().await;
            }
            tokio::select! {
                () = embedded.disk.resumed().notified() => {}
                () = self.clock().sleep(embedded.disk.pace) => {}
            }
        }
    }

    /// Logs an event without waiting; counted and dropped where the store cannot take it.
    pub fn log(&self, event: NewEvent) {
        if self.try_log(event).is_some() {
            self.0.shared.drop_event();
        }
    }

    /// Logs an event, or gives it back where there is no room for it now.
    fn try_log(&self, event: NewEvent) -> Option<NewEvent> {
        let shared = &self.0.shared;
        if shared.failure().is_some() {
            return Some(event);
        }
        let permit = match &self.0.embedded {
            None => Permit::default(),
            Some(_) => match shared.completion.try_reserve(0) {
                None => return Some(event),
                held => Permit { held, admitted: None },
            },
        };
        // A transaction without guards has nothing to conflict with.
        let _ = self.submit(permit, Transaction::new(vec![Op::Event(event)]));
        None
    }

    /// Logs what threads have told that cannot log themselves. What finds no room now does so the next time.
    fn log_told(&self) {
        let mut told = self.0.shared.take_told().into_iter();
        let refused = told.find_map(|event| self.try_log(event));
        refused.into_iter().chain(told).for_each(|event| self.0.shared.tell(event));
    }

    /// Makes everything submitted so far durable, marks a clean stop and closes. No submit after it.
    pub async fn close(&self) -> Result<(), StoreFailed> {
        let Some(embedded) = &self.0.embedded else { return Ok(()) };
        let (sender, closed) = oneshot::channel();
        embedded.journal.send(Job::Close(sender));
        // A full disk would keep it waiting for ever; what is not yet durable was not acknowledged.
        embedded.journal.stop_retrying();
        match closed.await {
            Ok(result) => {
                let (sender, kept) = oneshot::channel();
                if result.is_ok() && embedded.keeper.tell(Task::Close(sender)) {
                    // Without a checkpoint the next opening reads more; nothing is lost.
                    let _ = kept.await;
                }
                result
            }
            // The writer has ended: it closed before, or it failed with this in its hands.
            Err(_) if self.0.shared.closed.load(Ordering::Acquire) => Ok(()),
            Err(_) => Err(self.failure()),
        }
    }

    /// Logs that the disk is full, or has room again: once for each change.
    fn tell_news(&self, embedded: &Embedded) {
        match embedded.disk.news() {
            None => {}
            Some(true) => {
                tracing::error!(name: "store.full", "store.full: the disk is full; new messages are refused");
                self.log(NewEvent::new(
                    Level::Error,
                    "store.full",
                    "the disk is full; new messages are refused",
                ));
            }
            Some(false) => {
                tracing::info!("the disk has room again; new messages are taken");
                self.log(NewEvent::new(
                    Level::Info,
                    "store.full",
                    "the disk has room again; new messages are taken",
                ));
            }
        }
    }

    fn failure(&self) -> StoreFailed {
        self.0.shared.failure().unwrap_or_else(|| StoreFailed("it was closed".to_owned()))
    }

    // --- inside ---

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.shared.state()
    }

    /// Settles what needs no lock: ids and times of events.
    fn settle(&self, transaction: Transaction, at: Timestamp) -> Vec<Settling> {
        let settle = |op| match op {
            Op::Body(id, body) => Change::Body(id, body).into(),
            Op::Header(header) => Change::Header(header).into(),
            Op::Transition(transition) => transition.into(),
            Op::Event(event) => Change::Event(Arc::new(Event {
                id: EventId(self.next_id()),
                at,
                level: event.level,
                kind: event.kind.into(),
                item: event.item,
                session: event.session,
                message_id: event.message_id,
                who: event.who,
                text: event.text,
                detail: event.detail,
            }))
            .into(),
            Op::Keep(family, key, value) => Change::Keep(family, key, value).into(),
        };
        transaction.ops.into_iter().map(settle).collect()
    }
}
