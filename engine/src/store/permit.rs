//! Permits: the right to hand one transaction to the writer. The two classes have shares of their own, so
//! that completions are never behind ingest. A permit is counted in units of a kibibyte plus a fixed part,
//! which bounds both the number of transactions on their way and the bytes they hold.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Units that every transaction costs, whatever its size.
const FIXED: u32 = 8;

/// One class's room.
#[derive(Debug)]
pub(super) struct Share {
    semaphore: Semaphore,
    units: u32,
}

impl Share {
    /// Room for this many bytes on their way to the disk.
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        let units = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).clamp(FIXED * 16, FIXED * 4096);
        Arc::new(Share { semaphore: Semaphore::new(usize::try_from(units).unwrap_or(0)), units })
    }

    /// More transactions than this are never on their way.
    pub(super) fn transactions(&self) -> usize {
        usize::try_from(self.units / FIXED).unwrap_or(0)
    }

    fn cost(&self, bytes: u64) -> u32 {
        let size = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        size.saturating_add(FIXED).min(self.units)
    }

    /// Waits for room. `None` once closed.
    pub(super) async fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Held> {
        let units = self.cost(bytes);
        self.semaphore.acquire_many(units).await.ok()?.forget();
        Some(Held { share: self.clone(), units })
    }

    /// Takes room if there is some.
    pub(super) fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Held> {
        let units = self.cost(bytes);
        self.semaphore.try_acquire_many(units).ok()?.forget();
        Some(Held { share: self.clone(), units })
    }

    /// Nobody gets room any more.
    pub(super) fn close(&self) {
        self.semaphore.close();
    }
}

/// Room that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    share: Arc<Share>,
    units: u32,
}

impl Held {
    /// Adds up the room of many transactions, so that it is given back at once.
    pub(super) fn merge(&mut self, mut other: Held) -> Option<Held> {
        if Arc::ptr_eq(&self.share, &other.share) {
            self.units = self.units.saturating_add(std::mem::take(&mut other.units));
            None
        } else {
            Some(other)
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.units > 0 {
            self.share.semaphore.add_permits(usize::try_from(self.units).unwrap_or(0));
        }
    }
}
