//! Counts wrong guesses of passwords and secrets in memory of a fixed size. Each user has a counter of its own;
//! names that do not exist, and clients by their address, share counters by a hash nobody outside can foresee: so
//! that a name that is held up says nothing about whether it exists, and a flood of names costs no memory.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};

/// Shared counters.
const SHARED: usize = 8192;
/// How long a name has to wait after too many guesses (seconds).
const WAIT: i64 = 60;

/// Counters of guesses.
pub(super) struct Guesses {
    most: u32,
    own: usize,
    hasher: RandomState,
    /// Guesses in a row, and when the last one is forgotten (seconds).
    counters: Mutex<Vec<(u32, i64)>>,
}

impl Guesses {
    /// For `own` known names; each may have `most` guesses in a row.
    pub(super) fn new(own: usize, most: u32) -> Self {
        let counters = Mutex::new(vec![(0, 0); own + SHARED]);
        Guesses { most, own, hasher: RandomState::new(), counters }
    }

    /// The counter of a known name, by its number; of any other, by its hash.
    pub(super) fn counter(&self, known: Option<usize>, name: impl Hash) -> usize {
        let shared = || self.own + usize::try_from(self.hasher.hash_one(name) % SHARED as u64).unwrap_or(0);
        known.filter(|number| *number < self.own).unwrap_or_else(shared)
    }

    /// Counts an attempt before it is judged, so that parallel guesses count too; `false` when it must wait.
    pub(super) fn may_try(&self, counter: usize, now: i64) -> bool {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((count, until)) = counters.get_mut(counter) else { return false };
        if *count >= self.most {
            if now < *until {
                return false;
            }
            *count = 0;
        }
        *count += 1;
        *until = now.saturating_add(WAIT);
        true
    }

    /// The attempt was right.
    pub(super) fn right(&self, counter: usize) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = counters.get_mut(counter) {
            *counter = (0, 0);
        }
    }
}
