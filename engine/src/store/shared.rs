//! What the handles of a store and its writer thread share.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::api::StoreFailed;
use super::bodies::Bodies;
use super::durable::Durable;
use super::ids::Ids;
use super::index::IndexFile;
use super::journal::Identity;
use super::keeper::Pace;
use super::lag::Lag;
use super::open::Options;
use super::permit::Share;
use super::state::State;
use crate::clock::SharedClock;
use crate::event::{Event, Level, NewEvent};
use crate::id::EventId;
use crate::vault::Vault;

/// State, bodies, ids, durability, health.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) clock: SharedClock,
    pub(super) vault: Vault,
    pub(super) epoch: Arc<str>,
    pub(super) state: Mutex<State>,
    pub(super) bodies: Bodies,
    pub(super) ids: Ids,
    pub(super) durable: Durable,
    /// Room for new messages on their way to the disk.
    pub(super) ingest: Arc<Share>,
    /// Room for everything else.
    pub(super) completion: Arc<Share>,
    pub(super) failed: OnceLock<StoreFailed>,
    /// It was closed, and everything is durable.
    pub(super) closed: AtomicBool,
    /// Events that found no room.
    pub(super) dropped_events: AtomicU64,
    /// Damaged places that have been reported.
    pub(super) reported: Mutex<HashSet<String>>,
    /// Events of threads that cannot log them.
    pub(super) told: Mutex<Vec<NewEvent>>,
    /// The segment that the writer writes.
    pub(super) open_segment: AtomicU64,
    /// When the first transaction in it was submitted (microseconds since 1970); `i64::MAX` = it has none.
    pub(super) open_since: AtomicI64,
    /// What the index lacks.
    pub(super) lag: Lag,
    /// The journal waits for the keeper.
    pub(super) pace: Pace,
}

impl Shared {
    /// What an embedded store shares, with nothing in it.
    pub(super) fn new(options: &Options, clock: SharedClock, vault: Vault, identity: Identity) -> Shared {
        Shared {
            clock,
            vault,
            epoch: format!("{:016x}", identity.epoch).into(),
            state: Mutex::new(State::new(options.window)),
            bodies: Bodies::new(options.memory / 16),
            ids: Ids::new(1, 1),
            durable: Durable::default(),
            ingest: Share::new(options.memory / 4),
            completion: Share::new(options.memory / 4),
            failed: OnceLock::new(),
            closed: AtomicBool::default(),
            dropped_events: AtomicU64::default(),
            reported: Mutex::default(),
            told: Mutex::default(),
            open_segment: AtomicU64::default(),
            open_since: AtomicI64::new(i64::MAX),
            lag: Lag::default(),
            pace: Pace::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing will become durable any more. The event stays in memory; there is no disk to write it to.
    pub(super) fn poison(&self, why: &str) {
        let failed = StoreFailed(why.to_owned());
        if self.failed.set(failed.clone()).is_err() {
            return;
        }
        tracing::error!(name: "store.failed", error = why, "store.failed: nothing more is acknowledged; restart the production");
        self.ids.raise(u64::MAX);
        let event = Event {
            id: EventId(self.ids.take(|| {})),
            at: self.clock.now(),
            level: Level::Error,
            kind: "store.failed".into(),
            item: None,
            session: None,
            message_id: None,
            who: None,
            text: failed.to_string(),
            detail: None,
        };
        self.state().add_event(&event);
        self.end(&failed);
    }

    /// No permits, no receipts from here on.
    pub(super) fn end(&self, why: &StoreFailed) {
        // Whoever got that far learns it from `failed`.
        let _ = self.failed.set(why.clone());
        self.ingest.close();
        self.completion.close();
        self.ids.raise(u64::MAX);
        self.durable.fail(why);
    }

    /// A damaged place was found while reading: an error line, once for each place.
    pub(super) fn report_damage(&self, place: &str, what: &str) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if !reported.insert(place.to_owned()) {
            return;
        }
        drop(reported);
        tracing::error!(name: "store.corrupt", place, "store.corrupt: {what} cannot be read");
        let text = format!("{what} cannot be read at {place}; everything else is there");
        self.tell(NewEvent::new(Level::Error, "store.corrupt", text));
    }

    /// An index file was found broken, and has been taken out.
    pub(super) fn report_broken(&self, file: &IndexFile) {
        let why = file.broken().unwrap_or("it cannot be read");
        let name = file.name();
        tracing::error!(name: "store.corrupt", file = name, why, "store.corrupt: an index file is made again");
        let text = format!("index/{name} is made again from the journal, and nothing is lost: {why}");
        self.tell(NewEvent::new(Level::Error, "store.corrupt", text));
        self.lag.begin(self.clock.now(), file.below());
    }

    /// An event of a thread that cannot log it itself.
    pub(super) fn tell(&self, event: NewEvent) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < 1024 {
            told.push(event);
        }
    }

    /// What has been told and is not in the event log yet.
    pub(super) fn take_told(&self) -> Vec<NewEvent> {
        std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn failure(&self) -> Option<StoreFailed> {
        self.failed.get().cloned()
    }

    /// An event had no room.
    pub(super) fn drop_event(&self) {
        self.dropped_events.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("septet_store_events_dropped_total").increment(1);
    }
}
