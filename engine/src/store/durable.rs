//! Who waits for durability. Thousands of connections wait for different sequences: each waiter is woken
//! once, by the batch that makes its own sequence durable.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

use super::api::StoreFailed;

/// The highest durable sequence and those who wait for a higher one.
#[derive(Debug, Default)]
pub(super) struct Durable {
    synced: AtomicU64,
    waiters: Mutex<Waiters>,
}

#[derive(Debug, Default)]
struct Waiters {
    /// By sequence, the lowest first.
    line: VecDeque<(u64, oneshot::Sender<()>)>,
    failed: Option<StoreFailed>,
}

impl Durable {
    /// Everything up to here is durable.
    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    fn waiters(&self) -> std::sync::MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody waits for a later one.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiters().line.is_empty()
    }

    /// Everything up to `sequence` has been synced. Wakes whoever waited for it.
    pub(super) fn advance(&self, sequence: u64) {
        self.synced.fetch_max(sequence, Ordering::AcqRel);
        let done: Vec<_> = {
            let mut waiters = self.waiters();
            let count = waiters.line.partition_point(|(waited, _)| *waited <= sequence);
            waiters.line.drain(..count).collect()
        };
        for (_, waiter) in done {
            // Whoever stopped waiting needs no answer.
            let _ = waiter.send(());
        }
    }

    /// Nothing further will become durable. Wakes everybody.
    pub(super) fn fail(&self, why: &StoreFailed) {
        let waiting = {
            let mut waiters = self.waiters();
            waiters.failed.get_or_insert_with(|| why.clone());
            std::mem::take(&mut waiters.line)
        };
        drop(waiting);
    }

    /// Returns when `sequence` is durable. Cancel-safe.
    pub(super) async fn wait(&self, sequence: u64) -> Result<(), StoreFailed> {
        match self.subscribe(sequence)? {
            None => Ok(()),
            Some(woken) => woken.await.map_err(|_| self.failure()),
        }
    }

    /// As [`Durable::wait`], for threads.
    pub(super) fn wait_blocking(&self, sequence: u64) -> Result<(), StoreFailed> {
        match self.subscribe(sequence)? {
            None => Ok(()),
            Some(woken) => woken.blocking_recv().map_err(|_| self.failure()),
        }
    }

    /// Who is sent to when `sequence` is durable; `None` if it is.
    fn subscribe(&self, sequence: u64) -> Result<Option<oneshot::Receiver<()>>, StoreFailed> {
        if self.synced() >= sequence {
            return Ok(None);
        }
        let mut waiters = self.waiters();
        // Looked at under the lock: a sync that came between would not see this waiter.
        if self.synced() >= sequence {
            return Ok(None);
        }
        if let Some(why) = &waiters.failed {
            return Err(why.clone());
        }
        let (sender, receiver) = oneshot::channel();
        // They come nearly in order: its place is near the end.
        let place = waiters.line.iter().rposition(|(waited, _)| *waited <= sequence).map_or(0, |at| at + 1);
        waiters.line.insert(place, (sequence, sender));
        Ok(Some(receiver))
    }

    fn failure(&self) -> StoreFailed {
        let failed = self.waiters().failed.clone();
        failed.unwrap_or_else(|| StoreFailed("it was closed".to_owned()))
    }
}
