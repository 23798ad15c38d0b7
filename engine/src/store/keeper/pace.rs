//! The journal waits for the keeper where much more has gathered in memory than one part: memory stays bounded
//! also where the keeper gets too little of the machine. Nobody is refused and nothing is left out; senders feel
//! it as a slow disk. As long as the keeper keeps up it costs nothing.
//!
//! The writer asks for room between two batches and waits until the keeper has got that far. It waits neither
//! for a keeper that itself waits for the journal (before a checkpoint), nor for one that could make no room a
//! moment ago (the index cannot be written), nor longer than [`PATIENCE`] for one batch: a broken index slows
//! messages down at worst.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a batch waits at most.
const PATIENCE: Duration = if cfg!(test) { Duration::from_secs(30) } else { Duration::from_secs(2) };
/// How often whoever waits looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(20);
/// After this time the writer asks again a keeper that could make no room.
const PAUSE: Duration = Duration::from_millis(200);

/// What the journal's writer and the keeper tell each other.
#[derive(Debug, Default)]
pub(in crate::store) struct Pace {
    turns: Mutex<Turns>,
    changed: Condvar,
    /// How often the writer has begun to wait.
    waits: AtomicU64,
}

#[derive(Debug, Default)]
struct Turns {
    asked: u64,
    answered: u64,
    /// The keeper waits until this transaction is durable.
    wanted: u64,
    /// Until then there is no use in asking.
    futile: Option<Instant>,
}

impl Pace {
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer asks for room by `tell`, which gives `false` where nobody hears it, and waits for it; `synced` is
    /// durable.
    pub(in crate::store) fn wait(&self, synced: u64, stop: &AtomicBool, tell: impl FnOnce(u64) -> bool) {
        let began = Instant::now();
        let turn = {
            let mut turns = self.turns();
            if turns.wanted > synced || turns.futile.is_some_and(|until| began < until) {
                return;
            }
            turns.asked += 1;
            turns.asked
        };
        if !tell(turn) {
            return;
        }
        self.waits.fetch_add(1, Ordering::AcqRel);
        let mut turns = self.turns();
        while turns.answered < turn
            && turns.wanted <= synced
            && began.elapsed() < PATIENCE
            && !stop.load(Ordering::Acquire)
        {
            turns = self.changed.wait_timeout(turns, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(turns);
        metrics::histogram!("septet_store_index_wait_seconds").record(began.elapsed().as_secs_f64());
    }

    /// The keeper has made what room it could: enough, or not.
    pub(super) fn answer(&self, turn: u64, enough: bool) {
        let mut turns = self.turns();
        turns.answered = turns.answered.max(turn);
        turns.futile = (!enough).then(|| Instant::now() + PAUSE);
        drop(turns);
        self.changed.notify_all();
    }

    /// The keeper waits until a transaction is durable; 0 = it does not.
    pub(super) fn want(&self, sequence: u64) {
        self.turns().wanted = sequence;
        self.changed.notify_all();
    }

    /// How often the writer has begun to wait.
    #[cfg(test)]
    pub(in crate::store) fn waits(&self) -> u64 {
        self.waits.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_writer_waits_until_there_is_room_unless_the_keeper_waits_for_it() {
        let (pace, stop) = (Arc::new(Pace::default()), AtomicBool::new(false));
        let answering = pace.clone();
        let (asked, hears) = std::sync::mpsc::channel();
        let keeper = std::thread::spawn(move || {
            let turn = hears.recv().unwrap();
            answering.answer(turn - 1, true);
            answering.answer(turn, true);
            let turn = hears.recv().unwrap();
            answering.want(8);
            turn
        });
        pace.wait(7, &stop, |turn| asked.send(turn).is_ok());
        assert_eq!(pace.turns().answered, 1);
        pace.wait(7, &stop, |turn| asked.send(turn).is_ok());
        assert_eq!((keeper.join().unwrap(), pace.turns().answered), (2, 1), "it is needed by the keeper");
        pace.wait(7, &stop, |_| unreachable!("as long as that is so it does not even ask"));
        pace.want(0);
        pace.answer(2, false);
        pace.wait(7, &stop, |_| unreachable!("there was no room a moment ago"));
        assert_eq!(pace.waits(), 2);
        // A keeper that has ended, and a store that ends.
        pace.answer(2, true);
        pace.wait(7, &stop, |_| false);
        pace.wait(7, &AtomicBool::new(true), |_| true);
        assert_eq!(pace.waits(), 3);
    }
}
