//! How far a purge can go: which segments are there, which of them recovery still needs, and for which it is
//! worth to carry what lives on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::judge::{Believed, Verdict};
use super::{AHEAD, Purge, PurgeError, Run, stopped};
use crate::store::index::IndexFile;
use crate::store::journal::Job;
use crate::store::keeper::Task;
use crate::store::{Embedded, Store, recovery};

/// What the store takes on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Segments below this one.
    until: u64,
    sealed: u64,
    /// The segment that is written to.
    open: u64,
    index: u64,
}

impl Size {
    pub(super) fn total(self) -> u64 {
        self.sealed + self.open + self.index
    }

    /// A segment and its index file went, or would have.
    pub(super) fn dropped(&mut self, segment: u64, index: u64) {
        self.sealed = self.sealed.saturating_sub(segment);
        self.index = self.index.saturating_sub(index);
    }
}

impl Store {
    /// The first segment that has to stay. What could go but for a checkpoint gets one; where the open
    /// segment has something that is old enough, it is ended.
    pub(super) async fn reach(&self, embedded: &Embedded, purge: &Purge) -> Result<u64, PurgeError> {
        // What was committed before this was asked for counts.
        let sequence = self.0.shared.state().sequence;
        self.durable(sequence).await?;
        let since = self.0.shared.open_since.load(Ordering::Acquire);
        if since < purge.roll_before.as_microsecond() {
            self.roll(embedded).await;
        }
        // The keeper answers when it has put into the index what was ended before.
        let mut covered = self.covered(embedded, false).await;
        // One without any rows has been made to end another: it goes when something behind it does.
        let old = |file: &&Arc<IndexFile>| {
            let meta = file.meta();
            let rows = meta.headers.rows + meta.events.rows + meta.bodies.rows;
            meta.coverage.part == 0 && rows > 0 && self.is_old(embedded, file, purge)
        };
        let newest = embedded.index.files().iter().filter(old).map(|file| file.meta().coverage.segment).max();
        let Some(newest) = newest.filter(|newest| *newest >= covered) else { return Ok(covered) };
        if let Some(most) = purge.down_to
            && self.size(embedded)?.total() <= most
        {
            return Ok(covered);
        }
        covered = self.covered(embedded, true).await;
        // The older of two checkpoints must not need it either: that takes one more segment.
        if covered <= newest && purge.down_to.is_none() {
            self.roll(embedded).await;
            covered = self.covered(embedded, true).await;
        }
        Ok(covered)
    }

    /// Before which segment nothing is needed to recover; with a checkpoint made for it, where asked for.
    async fn covered(&self, embedded: &Embedded, checkpoint: bool) -> u64 {
        let (sender, covered) = oneshot::channel();
        match embedded.keeper.tell(Task::Covered { checkpoint, done: sender }) {
            true => covered.await.unwrap_or(0),
            false => 0,
        }
    }

    /// Ends the open segment. Where the writer has no time for that, nothing is lost but time.
    async fn roll(&self, embedded: &Embedded) {
        let (sender, rolled) = oneshot::channel();
        embedded.journal.send(Job::Roll(sender));
        let _ = rolled.await;
    }

    /// Whether everything in a segment is older than what may go; or something, where that is enough.
    fn is_old(&self, embedded: &Embedded, file: &IndexFile, purge: &Purge) -> bool {
        let meta = file.meta();
        if purge.within && meta.headers.rows > 0 && meta.created.0 < purge.before.as_microsecond() {
            return true;
        }
        let believed = Believed::of(&embedded.index.files(), meta.coverage.segment, self.clock().now());
        believed.time(meta.last_activity) < purge.before.as_microsecond()
    }

    /// The index file of the first segment behind `passed`, if that may go.
    pub(super) fn next_old(
        &self,
        embedded: &Embedded,
        passed: u64,
        run: &Run,
    ) -> Result<Option<Arc<IndexFile>>, PurgeError> {
        let segments = self.segments(embedded)?;
        let oldest = segments.into_iter().find(|number| *number > passed && *number < run.end);
        let files = embedded.index.files();
        let file = files.iter().find(|file| {
            let coverage = file.meta().coverage;
            Some(coverage.segment) == oldest && coverage.part == 0
        });
        Ok(file.filter(|file| self.is_old(embedded, file, &run.purge)).cloned())
    }

    /// Whether little enough has to be carried for a segment to go now: of it alone, or of it and those behind
    /// it that can go when it is gone.
    pub(super) async fn is_worth_it(
        &self,
        embedded: &Embedded,
        run: &mut Run,
        verdict: &Verdict,
        number: u64,
        length: u64,
    ) -> Result<bool, PurgeError> {
        if number <= run.worth {
            return Ok(true);
        }
        let (mut last, mut bytes, mut length) = (number, verdict.bytes, length);
        for _ in 0..AHEAD {
            let most = if run.purge.down_to.is_some() { length / 10 * 9 } else { length / 2 };
            if bytes <= most {
                run.worth = last;
                return Ok(true);
            }
            let Some(next) = self.next_old(embedded, last, run)? else { break };
            last = next.meta().coverage.segment;
            bytes += self.judged(&next, run).await?.bytes;
            length += self.length(embedded, last)?;
        }
        Ok(false)
    }

    fn segments(&self, embedded: &Embedded) -> Result<Vec<u64>, PurgeError> {
        recovery::segments(embedded.readers.files(), embedded.readers.folder()).map_err(stopped)
    }

    pub(super) fn length(&self, embedded: &Embedded, segment: u64) -> Result<u64, PurgeError> {
        embedded.readers.length(segment).map_err(stopped)
    }

    /// What journal and index take on the disk.
    pub(super) fn size(&self, embedded: &Embedded) -> Result<Size, PurgeError> {
        let first = self.segments(embedded)?.first().copied().unwrap_or_default();
        let mut size = Size { until: first, sealed: 0, open: 0, index: 0 };
        self.grown(embedded, &mut size);
        Ok(size)
    }

    /// The same after a while: only what is new is looked at.
    pub(super) fn grown(&self, embedded: &Embedded, size: &mut Size) {
        let length = |number| embedded.readers.length(number).unwrap_or_default();
        let open = self.open_segment();
        size.sealed += (size.until..open).map(length).sum::<u64>();
        (size.until, size.open) = (open, length(open));
        size.index = embedded.index.files().iter().map(|file| file.meta().length).sum();
    }
}
