//! Making missing index files again: the journal is folded into a state of its own, one segment at a time, and
//! the files that are wanted are written on the way. It begins at a checkpoint that lies before all of them, or
//! where the journal begins: what a header is at the end of a segment, all segments before it say together.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::checkpoint::{self, Checkpoint};
use super::disk::Disk;
use super::index::IndexFile;
use super::journal::Identity;
use super::keeper::{Hole, Keeper, Tools};
use super::open::Options;
use super::recovery::{self, Refold};
use super::shared::Shared;
use super::state::State;
use crate::clock::SharedClock;
use crate::vault::Vault;

/// What rebuilds of one store are made with.
#[derive(Clone, Debug)]
pub(super) struct Remaker {
    pub(super) tools: Tools,
    pub(super) options: Options,
    pub(super) identity: Identity,
    pub(super) clock: SharedClock,
    pub(super) vault: Vault,
    pub(super) disk: Arc<Disk>,
}

/// How far it is.
#[derive(Debug)]
pub(super) struct Rebuild {
    tools: Tools,
    identity: Identity,
    shared: Arc<Shared>,
    keeper: Box<Keeper>,
    /// Segments to fold, up to the last that is wanted.
    segments: VecDeque<u64>,
    total: usize,
    hole: Option<Hole>,
    /// How far it has folded.
    next: Refold,
}

/// After a step.
#[derive(Debug)]
pub(super) enum Progress {
    /// There is more to do.
    Goes,
    /// That was all; parts of the open segment where some were asked for.
    Done(Vec<Arc<IndexFile>>),
}

/// Why a step failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// A segment cannot be read. The others can be gone on with.
    Segment(u64, String),
    /// Nothing can be written now.
    Write(String),
}

impl Remaker {
    /// Begins to make the files of these segments again, and parts of the open one.
    pub(super) fn begin(&self, mut wanted: BTreeSet<u64>, hole: Option<Hole>) -> Result<Rebuild, String> {
        if !self.disk.has_spare() {
            return Err("the disk is full".to_owned());
        }
        let tools = &self.tools;
        tools.index.try_write().map_err(|error| error.to_string())?;
        wanted.extend(hole.map(|hole| hole.segment));
        let (first, last) = (wanted.first().copied(), wanted.last().copied());
        let (first, last) = (first.unwrap_or_default(), last.unwrap_or_default());
        let segments = recovery::segments(tools.readers.files(), tools.readers.folder());
        let segments = segments.map_err(|error| error.to_string())?;
        let checkpoint = checkpoint::load_at_most(&*tools.files, &tools.folder, &self.vault, first);
        // One that a power cut brought back after its segment was purged still has what went with that.
        let begins = segments.first().copied().unwrap_or_default();
        let checkpoint = checkpoint.map_err(|error| error.to_string())?;
        let checkpoint = checkpoint.filter(|checkpoint| checkpoint.segment >= begins);
        let mark = checkpoint.as_ref().map(Checkpoint::mark);
        let from = mark.map_or(0, |mark| mark.segment);
        let segments = segments.into_iter();
        let segments: VecDeque<u64> = segments.filter(|number| (from..=last).contains(number)).collect();

        // Bodies are not kept: only where they are.
        let options = Options { memory: 0, ..self.options.clone() };
        let shared = Shared::new(&options, self.clock.clone(), self.vault.clone(), self.identity);
        let shared = Arc::new(shared);
        let known = mark.map_or(0, |mark| mark.sequence);
        let keeper = Keeper::of_rebuild(tools.clone(), shared.clone(), mark, wanted);
        if let Some(Checkpoint { mut snapshot, bodies, .. }) = checkpoint {
            snapshot.keep.clear();
            for (id, place, kind) in bodies {
                shared.bodies.page_in(id, place, kind);
            }
            *shared.state() = State::restore(snapshot, options.window);
            shared.durable.advance(known);
        }
        let (tools, identity, total) = (tools.clone(), self.identity, segments.len());
        let keeper = Box::new(keeper);
        let next = Refold { number: from, known, sequence: known, read: 0, open: false };
        Ok(Rebuild { tools, identity, shared, keeper, segments, total, hole, next })
    }
}

impl Rebuild {
    /// Folds one segment.
    pub(super) fn step(&mut self) -> Result<Progress, Failure> {
        if let Some(number) = self.segments.pop_front() {
            self.fold(number)?;
            if let Some(why) = self.keeper.stuck() {
                return Err(Failure::Write(why));
            }
            let done = self.total - self.segments.len();
            tracing::info!(done, of = self.total, "making the index again");
        }
        match (self.segments.is_empty(), self.hole) {
            (false, _) => Ok(Progress::Goes),
            (true, None) => Ok(Progress::Done(Vec::new())),
            (true, Some(hole)) => {
                let parts = self.keeper.take_parts(hole.segment, hole.last);
                parts.map(Progress::Done).map_err(|error| Failure::Write(error.to_string()))
            }
        }
    }

    fn fold(&mut self, number: u64) -> Result<(), Failure> {
        let readers = &self.tools.readers;
        let open = self.hole.is_some_and(|hole| hole.segment == number);
        self.shared.open_segment.store(number, Ordering::Release);
        let this = Refold { number, open, ..self.next };
        let (files, folder) = (readers.files(), readers.folder());
        match recovery::refold(files, folder, this, self.identity, &self.shared, &mut self.keeper) {
            Ok(next) => self.next = next,
            Err(error) => {
                let there = recovery::segments(files, folder);
                if there.is_ok_and(|there| there.contains(&number)) {
                    return Err(Failure::Segment(number, error.to_string()));
                }
                // Purged meanwhile.
            }
        }
        Ok(())
    }

    /// Segments to be read, and of how many.
    pub(super) fn left(&self) -> (usize, usize) {
        (self.segments.len(), self.total)
    }

    pub(super) fn hole(&self) -> Option<Hole> {
        self.hole
    }
}
