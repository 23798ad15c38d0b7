//! Ids: one dense sequence, given out from blocks that a synced record has reserved, so that no id is ever
//! given twice: a crash may take back the transaction that used an id, but not the reservation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How many ids one reservation takes.
const BLOCK: u64 = 1 << 17;

/// The sequence of ids.
#[derive(Debug)]
pub(super) struct Ids {
    next: AtomicU64,
    /// Ids below are reserved on stable storage.
    limit: AtomicU64,
    /// The last reservation on stable storage, also after the end.
    reserved: AtomicU64,
    raised: Condvar,
    lock: Mutex<()>,
}

impl Ids {
    /// Ids from `next`, of which those below `limit` may be given out.
    pub(super) fn new(next: u64, limit: u64) -> Self {
        Ids {
            next: AtomicU64::new(next),
            limit: AtomicU64::new(limit),
            reserved: AtomicU64::new(limit),
            raised: Condvar::new(),
            lock: Mutex::new(()),
        }
    }

    /// Starts at `next`, once recovery knows it.
    pub(super) fn start(&self, next: u64, limit: u64) {
        self.next.store(next, Ordering::Release);
        self.limit.store(limit, Ordering::Release);
        self.reserved.store(limit, Ordering::Release);
    }

    /// The first id that no reservation on stable storage covers.
    pub(super) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }

    /// The next id. `ask` is called when the block is used up, which only a stalled disk brings about:
    /// then this waits for the next reservation.
    pub(super) fn take(&self, ask: impl Fn()) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        while id >= self.limit.load(Ordering::Acquire) {
            ask();
            let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            if id >= self.limit.load(Ordering::Acquire) {
                let _woken = self.raised.wait_timeout(guard, Duration::from_millis(2));
            }
        }
        id
    }

    /// The next id to be given out.
    pub(super) fn peek(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// The limit that should be reserved now, when half of the block is used.
    pub(super) fn wanted(&self) -> Option<u64> {
        let next = self.peek();
        let left = self.limit.load(Ordering::Acquire).saturating_sub(next);
        (left < BLOCK / 2).then(|| reservation(next))
    }

    /// A reservation is on stable storage; or, with `u64::MAX`, nothing will ever be stored again.
    pub(super) fn raise(&self, limit: u64) {
        self.limit.fetch_max(limit, Ordering::AcqRel);
        if limit < u64::MAX {
            self.reserved.fetch_max(limit, Ordering::AcqRel);
        }
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.raised.notify_all();
    }
}

/// The limit that a reservation made now should have.
pub(super) fn reservation(next: u64) -> u64 {
    next.saturating_add(BLOCK)
}
