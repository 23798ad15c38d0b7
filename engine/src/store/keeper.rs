//! The keeper: a thread that moves what is durable and final from memory into the index, and writes
//! checkpoints. The index is derived from the journal and never needed to recover; a checkpoint only makes
//! opening quick. When neither can be written, messages flow on.
//!
//! - When much has gathered (`PART` rows), the keeper writes it to a part file of the open segment.
//! - When the writer has sealed a segment, parts and rest become the segment's one index file, durably; then
//!   comes a checkpoint, unless the last one is so large that the journal has not grown by a multiple of it.
//! - What cannot be written stays in memory and is tried again, until it gets too much (`MOST`): then it leaves
//!   memory all the same, and is made again from the journal when that can be done.
//! - Where more gathers than it keeps up with (`BEHIND`), the journal waits for it: see `pace`.
//! - `missing`: index files that are damaged, or that somebody removed, are made again from the journal, a
//!   segment at a time between other work.

mod gather;
mod missing;
mod pace;
mod thread;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub(super) use self::missing::Hole;
use self::missing::Missing;
pub(super) use self::pace::Pace;
pub(super) use self::thread::{KeeperThread, Task};
use super::checkpoint::{self, Checkpoint, Mark};
use super::index::{self, Coverage, Index, IndexFile};
use super::readers::Readers;
use super::rebuild::{Rebuild, Remaker};
use super::record::Sealer;
use super::shared::Shared;
use crate::event::{Level, NewEvent};
use crate::files::Files;

/// So many rows in memory make a part file; one with large texts counts as several.
pub(super) const PART: usize = if cfg!(test) { 48 } else { 4 * 1024 };
/// When so many rows are in memory, the journal waits for the keeper.
pub(super) const BEHIND: usize = 3 * PART;
/// So many rows wait in memory for an index that cannot be written.
const MOST: usize = 6 * PART;
/// When rows that could not be written are tried again.
const AGAIN: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(1) };
/// How many rows are copied or dropped under one lock.
const STEP: usize = 256;
/// A checkpoint is due when the journal has grown by this multiple of the last one.
const GROWTH: u64 = 4;

/// What the keepers of one store work with.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    pub(super) files: Arc<dyn Files>,
    /// The store's folder.
    pub(super) folder: PathBuf,
    pub(super) index: Index,
    pub(super) readers: Arc<Readers>,
    pub(super) sealer: Sealer,
    /// Tells index files of this journal from those of others.
    pub(super) journal: u64,
    pub(super) segment_size: u64,
}

/// The keeper, run by its thread; or, over a state of its own, by a rebuild.
#[derive(Debug)]
pub(super) struct Keeper {
    tools: Tools,
    shared: Arc<Shared>,
    /// A rebuild makes the files of these segments, whether there are any or not.
    wanted: Option<BTreeSet<u64>>,
    /// The last segment that ended, and its last transaction.
    sealed: (u64, u64),
    /// Segments that have ended and have no index file yet.
    waiting: VecDeque<(u64, u64)>,
    parts: Vec<Arc<IndexFile>>,
    /// The last transaction in a part.
    in_parts: u64,
    /// Parts that can be read but have no name on the disk any more: they serve until there are others.
    stale: Vec<Arc<IndexFile>>,
    /// Parts of the open segment are to be made again; the number tells one such loss from another.
    hole: Option<u64>,
    losses: u64,
    /// Rows of the open segment have left memory and are in no part that can be read.
    lacks: bool,
    /// The first id that can have been born in the open segment.
    first_id: u64,
    /// The segments of the last two checkpoints, the length of the last, and the journal's growth since.
    checkpoints: Vec<u64>,
    checkpoint_length: u64,
    grown: u64,
    /// What it makes files again with; a rebuild has none.
    remaker: Option<Remaker>,
    rebuild: Option<Rebuild>,
    /// What is to be made again, and what was seen to be missing when it last looked.
    missing: Missing,
    suspected: Missing,
    /// Segments that cannot be read: their index is given up until the next start.
    hopeless: BTreeSet<u64>,
    /// Not before this is a rebuild that failed tried again.
    again: Option<Instant>,
    /// What went wrong last: said once.
    trouble: Option<String>,
    /// When a part could not be written, the last time.
    refused: Option<Instant>,
}

impl Keeper {
    /// Before anything has been folded.
    pub(super) fn new(
        tools: Tools,
        shared: Arc<Shared>,
        checkpoint: Option<Mark>,
        checkpoints: Vec<u64>,
    ) -> Keeper {
        let sealed = checkpoint.map_or((0, 0), |checkpoint| (checkpoint.segment.saturating_sub(1), 0));
        let first_id = checkpoint.map_or(0, |checkpoint| checkpoint.highest_id + 1);
        Keeper {
            tools,
            shared,
            wanted: None,
            sealed,
            waiting: VecDeque::new(),
            parts: Vec::new(),
            in_parts: 0,
            stale: Vec::new(),
            hole: None,
            losses: 0,
            lacks: false,
            first_id,
            checkpoints,
            checkpoint_length: checkpoint.map_or(0, |checkpoint| checkpoint.length),
            grown: 0,
            remaker: None,
            rebuild: None,
            missing: Missing::default(),
            suspected: Missing::default(),
            hopeless: BTreeSet::new(),
            again: None,
            trouble: None,
            refused: None,
        }
    }

    /// One that makes the files of these segments again, over a state of its own.
    pub(super) fn of_rebuild(
        tools: Tools,
        shared: Arc<Shared>,
        checkpoint: Option<Mark>,
        wanted: BTreeSet<u64>,
    ) -> Keeper {
        Keeper { wanted: Some(wanted), ..Keeper::new(tools, shared, checkpoint, Vec::new()) }
    }

    pub(super) fn readers(&self) -> &Readers {
        &self.tools.readers
    }

    /// Whether the index has the whole of a segment, so that nothing has to be written.
    fn has(&self, segment: u64) -> bool {
        match &self.wanted {
            Some(wanted) => !wanted.contains(&segment),
            None => covers(&self.tools.index, segment),
        }
    }

    /// A segment has ended with transaction `last`: its index file is made, unless it is there.
    pub(super) fn sealed(&mut self, segment: u64, last: u64) {
        self.grown += self.tools.segment_size;
        self.waiting.push_back((segment, last));
        self.seal_waiting();
    }

    /// Makes the index files of segments that have ended, oldest first, until one cannot be made.
    fn seal_waiting(&mut self) {
        let mut lost = false;
        while let Some((segment, last)) = self.waiting.front().copied() {
            if !self.lacks
                && !self.has(segment)
                && let Err(error) = self.seal(segment, last)
            {
                self.report("the index file of a segment could not be made", &error.to_string());
                if !self.lost_a_part() && !self.has_too_much() {
                    break;
                }
                lost = true;
            }
            // Of what was not written, the journal has everything.
            lost |= self.lacks;
            if lost {
                self.lacks_from_now();
            }
            self.waiting.pop_front();
            let parts = self.take_all_parts();
            self.tools.index.replace(&parts, Vec::new());
            self.drop_indexed(last, true);
            self.sealed = (segment, last);
            (self.hole, self.lacks) = (None, false);
            self.first_id = self.shared.state().highest_id + 1;
        }
        if lost {
            self.look(true);
        } else if self.waiting.is_empty() {
            self.trouble = None;
        }
    }

    /// Whether a file could not be made because one of the parts is broken.
    fn lost_a_part(&self) -> bool {
        let broken = self.tools.index.take_broken();
        broken.iter().for_each(|file| self.shared.report_broken(file));
        self.parts.iter().chain(&self.stale).any(|part| part.broken().is_some())
    }

    /// Whether more waits in memory than may.
    fn has_too_much(&self) -> bool {
        self.wanted.is_none() && self.shared.state().fresh.weight() >= MOST
    }

    /// Writes what has gathered to a part file: what transactions up to `last` made, which is durable and of this
    /// segment or an earlier one.
    pub(super) fn relieve(&mut self, last: u64) {
        let segment = self.sealed.0 + 1;
        // Looked at in this order: what was durable before belongs to this segment.
        if self.shared.open_segment.load(Ordering::Acquire) != segment {
            return;
        }
        if self.has(segment) {
            return self.drop_indexed(last, false);
        }
        if self.refused.is_some_and(|at| at.elapsed() < AGAIN) && !self.has_too_much() {
            return;
        }
        match self.write_part(segment, last, false) {
            Ok(()) => {
                self.drop_indexed(last, false);
                (self.trouble, self.refused) = (None, None);
            }
            Err(error) => {
                self.refused = Some(Instant::now());
                self.report("what has gathered could not be put into the index", &error.to_string());
                if self.has_too_much() {
                    self.lacks_from_now();
                    self.drop_indexed(last, false);
                    self.in_parts = last;
                    self.lose(true);
                    self.look(true);
                }
            }
        }
    }

    /// Writes what transactions up to `last` made to a part file, if that is anything.
    fn write_part(&mut self, segment: u64, last: u64, seal: bool) -> Result<(), index::Error> {
        let builder = self.gather(last, seal)?;
        if builder.rows() == 0 {
            return Ok(());
        }
        let part = builder.write(self.coverage(segment, self.tools.index.next_part(), last), &[])?;
        self.tools.index.replace(&[], vec![part.clone()]);
        self.parts.push(part);
        self.in_parts = last;
        Ok(())
    }

    /// Parts of the open segment, with everything that transactions up to `last` made and that is not in the parts
    /// already written: for a rebuild, which has folded that much of it.
    pub(super) fn take_parts(
        &mut self,
        segment: u64,
        last: u64,
    ) -> Result<Vec<Arc<IndexFile>>, index::Error> {
        // More provisional rows than needed do no harm: memory says which of them count.
        self.write_part(segment, last, true)?;
        Ok(std::mem::take(&mut self.parts))
    }

    /// Parts of the open segment must be made again; `lacks`: their rows are nowhere but in the journal.
    fn lose(&mut self, lacks: bool) {
        self.losses += 1;
        self.hole = Some(self.losses);
        self.lacks |= lacks;
    }

    /// Whatever there is may be missing.
    fn lacks_from_now(&self) {
        let below = self.shared.state().highest_id + 1;
        self.shared.lag.begin(self.shared.clock.now(), below);
    }

    fn take_all_parts(&mut self) -> Vec<Arc<IndexFile>> {
        let mut parts = std::mem::take(&mut self.parts);
        parts.append(&mut self.stale);
        parts
    }

    fn coverage(&self, segment: u64, part: u32, last: u64) -> Coverage {
        let first = self.in_parts.max(self.sealed.1) + 1;
        let first_sequence = if part == 0 { self.sealed.1 + 1 } else { first };
        Coverage {
            epoch: self.tools.journal,
            segment,
            part,
            first_sequence,
            last_sequence: last,
            first_id: self.first_id,
        }
    }

    /// Makes the index file of a segment durable.
    fn seal(&mut self, segment: u64, last: u64) -> Result<(), index::Error> {
        let builder = self.gather(last, true)?;
        let parts: Vec<_> = self.parts.iter().chain(&self.stale).cloned().collect();
        let file = builder.write(self.coverage(segment, 0, last), &parts)?;
        self.tools.index.replace(&parts, vec![file]);
        self.take_all_parts();
        Ok(())
    }

    /// Why segments that have ended have no index file yet.
    pub(super) fn stuck(&self) -> Option<String> {
        let why = || self.trouble.clone().unwrap_or_default();
        (!self.waiting.is_empty()).then(why)
    }

    // --- checkpoints ---

    /// Whether the last checkpoint is behind by enough to be worth a new one.
    fn checkpoint_due(&self) -> bool {
        self.grown >= self.checkpoint_length.saturating_mul(GROWTH).max(self.tools.segment_size)
    }

    /// Writes a checkpoint at the end of the last segment that the index has whole.
    fn checkpoint(&mut self) -> Result<(), String> {
        let segment = self.sealed.0 + 1;
        if self.checkpoints.last() == Some(&segment) {
            return Ok(());
        }
        // Nothing of the open segment may be in part files only: a crash forgets those.
        if self.in_parts > self.sealed.1 {
            return Err("part of the open segment has left memory".to_owned());
        }
        let snapshot = self.shared.state().snapshot();
        self.shared.pace.want(snapshot.sequence);
        let durable = self.shared.durable.wait_blocking(snapshot.sequence);
        self.shared.pace.want(0);
        durable.map_err(|error| error.to_string())?;
        let bodies = self.shared.bodies.places(&snapshot.bodies());
        let reserved = self.shared.ids.reserved();
        let checkpoint = Checkpoint { snapshot, segment, reserved, bodies, length: 0 };
        let Tools { files, folder, sealer, .. } = &self.tools;
        let length =
            checkpoint::write(&**files, folder, &checkpoint, sealer).map_err(|error| error.to_string())?;
        self.checkpoint_length = length;
        self.grown = 0;
        self.checkpoints.push(segment);
        if self.checkpoints.len() > 2 {
            self.checkpoints.remove(0);
        }
        metrics::gauge!("septet_store_checkpoint_bytes").set(length as f64);
        Ok(())
    }

    fn try_checkpoint(&mut self) {
        if let Err(error) = self.checkpoint() {
            self.report("no checkpoint could be written", &error);
        }
    }

    fn report(&mut self, what: &str, error: &str) {
        if self.trouble.as_deref() == Some(error) {
            return;
        }
        self.trouble = Some(error.to_owned());
        tracing::warn!(error, "{what}; messages flow on");
        let text = format!("{what}: {error}; messages flow on");
        self.shared.tell(NewEvent::new(Level::Warning, "store.index", text));
    }
}

/// Whether the index has the whole of a segment.
pub(super) fn covers(index: &Index, segment: u64) -> bool {
    index.files().iter().any(|file| {
        let coverage = file.meta().coverage;
        coverage.segment == segment && coverage.part == 0
    })
}
