//! How far the index is behind: since when it lacks rows that memory does not have any more, and how much is
//! left to read until it has them again.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;

/// Index files that are being made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexProgress {
    /// For how long lists have lacked something, in milliseconds; 0 = they lack nothing.
    pub behind_ms: u64,
    /// Segments of the journal that are still to be read.
    pub left: u64,
    /// Of so many.
    pub total: u64,
}

/// Shared by whoever finds that something is missing, whoever makes it again, and lists.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// Microseconds since 1970; 0 = nothing is missing.
    since: AtomicU64,
    /// How often something began to be missing.
    begun: AtomicU64,
    /// Only ids below are among what is missing.
    below: AtomicU64,
    left: AtomicU64,
    total: AtomicU64,
}

/// What was known when a list began to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    begun: u64,
    behind: bool,
}

fn micros(now: Timestamp) -> u64 {
    u64::try_from(now.as_microsecond()).unwrap_or(0).max(1)
}

impl Lag {
    /// Rows with ids below `below` are missing. Where some are already, they have been since then. Whether this is
    /// news.
    pub(super) fn begin(&self, now: Timestamp, below: u64) -> bool {
        self.below.fetch_max(below, Ordering::AcqRel);
        let begins = self.since.compare_exchange(0, micros(now), Ordering::AcqRel, Ordering::Acquire).is_ok();
        if begins {
            self.begun.fetch_add(1, Ordering::AcqRel);
        }
        begins
    }

    /// Begins to watch, for [`Lag::behind_ms`].
    pub(super) fn watch(&self) -> Watch {
        let begun = self.begun.load(Ordering::Acquire);
        Watch { begun, behind: self.since.load(Ordering::Acquire) != 0 }
    }

    /// How far what was read since then may be behind: also where what was missing has been made again meanwhile.
    pub(super) fn behind_ms(&self, watch: Watch, now: Timestamp) -> u64 {
        let was = watch.behind || self.begun.load(Ordering::Acquire) != watch.begun;
        self.progress(now).behind_ms.max(u64::from(was))
    }

    /// Whether something is missing.
    pub(super) fn is_behind(&self) -> bool {
        self.since.load(Ordering::Acquire) != 0
    }

    /// Nothing is missing any more.
    pub(super) fn end(&self) {
        self.below.store(0, Ordering::Release);
        self.since.store(0, Ordering::Release);
    }

    /// Whether a row of this id, or of the session that began with it, may be among what is missing.
    pub(super) fn may_lack(&self, id: u64) -> bool {
        self.since.load(Ordering::Acquire) != 0 && id < self.below.load(Ordering::Acquire)
    }

    /// So many segments of so many are to be read.
    pub(super) fn set_left(&self, left: usize, total: usize) {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.left.store(count(left), Ordering::Release);
        self.total.store(count(total), Ordering::Release);
    }

    pub(super) fn progress(&self, now: Timestamp) -> IndexProgress {
        let since = self.since.load(Ordering::Acquire);
        let behind = micros(now).saturating_sub(since) / 1000;
        IndexProgress {
            behind_ms: if since == 0 { 0 } else { behind.max(1) },
            left: self.left.load(Ordering::Acquire),
            total: self.total.load(Ordering::Acquire),
        }
    }
}
