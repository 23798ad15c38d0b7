//! How a store on disk is doing, for whoever watches it.

use std::io;

use super::{IndexProgress, Store, recovery, segment};

/// Numbers of a store on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// Files of the journal.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What the disk has free.
    pub free: u64,
    /// How much of it new messages leave.
    pub floor: u64,
    /// Transactions on their way to the disk.
    pub waiting: u64,
    /// Rows that are in memory and not in the index yet.
    pub unindexed: u64,
    /// New messages are taken.
    pub accepting: bool,
    /// How far the index is behind.
    pub index: IndexProgress,
}

impl Store {
    /// How it is doing; `None` for a store in memory. Asks the file system: blocks.
    pub fn vitals(&self) -> io::Result<Option<Vitals>> {
        let Some(embedded) = &self.0.embedded else { return Ok(None) };
        let disk = &embedded.disk;
        let (mut segments, mut bytes) = (0, 0);
        for number in recovery::segments(disk.files(), disk.folder())? {
            // One that is purged meanwhile does not count any more.
            let Ok(file) = disk.files().open(&segment::path(disk.folder(), number)) else { continue };
            segments += 1;
            bytes += file.length()?;
        }
        let free = disk.files().space(disk.folder())?.free;
        let (waiting, accepting) = (embedded.journal.waiting(), self.accepting());
        let unindexed = u64::try_from(self.state().fresh.waiting()).unwrap_or(u64::MAX);
        let index = self.index_progress().unwrap_or_default();
        Ok(Some(Vitals { segments, bytes, free, floor: disk.floor(), waiting, unindexed, accepting, index }))
    }
}
