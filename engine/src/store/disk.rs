//! Room on the disk. New messages are admitted as long as `min_free` and a reserve for completions stay
//! free; the reserve is up to two segments. Full is a state that ends by itself: whoever asks looks again,
//! at most once per [`Disk::pace`].

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::segment::Position;
use crate::files::{Files, Space};

/// The default of `min_free` is never more than this.
const MOST_FREE: u64 = 2 << 30;

/// The disk below a store.
#[derive(Debug)]
pub(super) struct Disk {
    files: Arc<dyn Files>,
    folder: PathBuf,
    /// The smallest time between two looks at a full disk, and between two attempts to write to it.
    pub(super) pace: Duration,
    /// What ingest must leave free.
    floor: u64,
    /// What was free at the last look.
    free: AtomicU64,
    /// Preallocated and not yet written.
    room: AtomicU64,
    /// Admitted and not yet written.
    admitted: AtomicU64,
    full: AtomicBool,
    /// The writer got ENOSPC and has not yet succeeded.
    stuck: AtomicBool,
    /// What has been said about it: one event for each change.
    announced: AtomicBool,
    looked: Mutex<Instant>,
    /// The journal up to here is on stable storage.
    synced: Mutex<Position>,
    resumed: Notify,
}

/// Bytes that were admitted, until they are written.
#[derive(Debug)]
pub(super) struct Admitted {
    disk: Arc<Disk>,
    bytes: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.disk.admitted.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Disk {
    pub(super) fn new(
        files: Arc<dyn Files>,
        folder: PathBuf,
        min_free: Option<u64>,
        segment_size: u64,
        pace: Duration,
    ) -> std::io::Result<Arc<Self>> {
        let Space { free, total } = files.space(&folder)?;
        let min_free = min_free.unwrap_or_else(|| MOST_FREE.min(total / 20));
        let reserve = (segment_size.saturating_mul(2)).min(total / 16);
        Ok(Arc::new(Disk {
            files,
            folder,
            pace,
            floor: min_free.saturating_add(reserve),
            free: AtomicU64::new(free),
            room: AtomicU64::new(0),
            admitted: AtomicU64::new(0),
            full: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            looked: Mutex::new(Instant::now()),
            synced: Mutex::new(Position { segment: 0, offset: 0 }),
            resumed: Notify::new(),
        }))
    }

    /// The journal has been begun: a disk without room for messages is full from the start.
    pub(super) fn begin(&self) {
        self.look();
        self.full.store(!self.has_room(0), Ordering::Release);
    }

    /// Whether there is more than what messages and completions may need.
    pub(super) fn has_spare(&self) -> bool {
        self.files.space(&self.folder).is_ok_and(|space| space.free >= self.floor)
    }

    /// Admits new bytes, or says that the disk is full.
    pub(super) fn admit(self: &Arc<Self>, bytes: u64) -> Option<Admitted> {
        // What surrounds a body on disk is about this much.
        let bytes = bytes.saturating_add(1024);
        if self.is_full() && !self.look_again() {
            return None;
        }
        if !self.has_room(bytes) {
            self.look();
            if !self.has_room(bytes) {
                self.full.store(true, Ordering::Release);
                return None;
            }
        }
        self.admitted.fetch_add(bytes, Ordering::AcqRel);
        Some(Admitted { disk: self.clone(), bytes })
    }

    fn has_room(&self, bytes: u64) -> bool {
        let there = self.free.load(Ordering::Acquire).saturating_add(self.room.load(Ordering::Acquire));
        let taken = self.admitted.load(Ordering::Acquire).saturating_add(bytes);
        there.saturating_sub(taken) >= self.floor
    }

    /// Whether messages are refused; does not look.
    fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire) || self.stuck.load(Ordering::Acquire)
    }

    /// Whether messages are taken, after a look at a full disk if the last one is long enough ago.
    pub(super) fn accepts(&self) -> bool {
        !self.is_full() || self.look_again()
    }

    /// Looks whether a full disk has room again.
    fn look_again(&self) -> bool {
        let due = self.looked.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= self.pace;
        if due {
            self.look();
            if self.has_room(0) {
                self.full.store(false, Ordering::Release);
            }
        }
        let accepts = !self.is_full();
        if accepts {
            self.resumed.notify_waiters();
        }
        accepts
    }

    /// Waits until it is time to try a full disk again; `false` when it is time to stop.
    pub(super) fn rest(&self, stop: &AtomicBool) -> bool {
        let until = Instant::now() + self.pace;
        while Instant::now() < until {
            if stop.load(Ordering::Acquire) {
                return false;
            }
            std::thread::sleep((self.pace / 10).min(Duration::from_millis(20)));
        }
        true
    }

    /// Asks the file system.
    pub(super) fn look(&self) {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if let Ok(space) = self.files.space(&self.folder) {
            self.free.store(space.free, Ordering::Release);
        }
    }

    /// The journal took this much; the file system is asked only now and then.
    pub(super) fn grew(&self, bytes: u64) {
        let less = |free: u64| Some(free.saturating_sub(bytes));
        // Always changes: the closure never gives `None`.
        let _ = self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// Whether this many bytes may be preallocated without touching what others may need.
    pub(super) fn can_prepare(&self, bytes: u64) -> bool {
        self.free.load(Ordering::Acquire) >= bytes.saturating_add(self.floor)
    }

    /// The journal up to here is on stable storage.
    pub(super) fn set_synced(&self, position: Position) {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = position;
    }

    /// Up to where the journal is on stable storage.
    pub(super) fn synced(&self) -> Position {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What new messages leave free.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn files(&self) -> &dyn Files {
        &*self.files
    }

    /// The folder of segments.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// How much is preallocated and not yet written.
    pub(super) fn set_room(&self, bytes: u64) {
        self.room.store(bytes, Ordering::Release);
    }

    /// The writer got ENOSPC, or could write again.
    pub(super) fn set_stuck(&self, stuck: bool) {
        if self.stuck.swap(stuck, Ordering::AcqRel) && !stuck {
            self.resumed.notify_waiters();
        }
    }

    /// The state, where it has changed since this last told it.
    pub(super) fn news(&self) -> Option<bool> {
        let full = self.is_full();
        (self.announced.swap(full, Ordering::AcqRel) != full).then_some(full)
    }

    /// Is notified when messages are taken again.
    pub(super) fn resumed(&self) -> &Notify {
        &self.resumed
    }
}
