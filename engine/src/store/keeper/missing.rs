//! What is missing in the index, and making it again.
//!
//! The keeper looks when somebody could not read a file, and now and then by itself. A file that is in the set but
//! not on the disk any more (an open file can be read after it was removed) goes on serving until there is a new
//! one: then lists are not behind.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Keeper;
use crate::event::{Level, NewEvent};
use crate::store::index::IndexFile;
use crate::store::rebuild::{Failure, Progress, Rebuild, Remaker};
use crate::store::recovery;

/// When a rebuild that failed, or that has no room, is tried again.
const LATER: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(10) };

/// What the index should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Missing {
    /// Segments whose rows are nowhere but in the journal.
    lost: BTreeSet<u64>,
    /// Segments whose file can be read but has no name on the disk.
    gone: BTreeSet<u64>,
    /// Parts of the open segment, and whether its rows are nowhere but in the journal; see [`Keeper::lose`].
    hole: Option<u64>,
    lacks: bool,
}

impl Missing {
    fn is_nothing(&self) -> bool {
        *self == Missing::default()
    }

    /// Whether lists lack something.
    fn is_lack(&self) -> bool {
        !self.lost.is_empty() || self.lacks
    }

    /// Segments whose files are to be made.
    pub(in crate::store) fn segments(&self) -> BTreeSet<u64> {
        self.lost.union(&self.gone).copied().collect()
    }
}

/// Rows of the open segment, up to a transaction, that are in no part.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Hole {
    pub(in crate::store) segment: u64,
    pub(in crate::store) last: u64,
    pub(in crate::store) loss: u64,
}

impl Keeper {
    /// From now on what is missing is made again.
    pub(in crate::store) fn remakes(&mut self, remaker: Remaker) {
        self.remaker = Some(remaker);
        self.look(true);
    }

    /// Looks what is missing. Where nobody has said that something is, it must have been missing the last time too:
    /// a purge removes first the file, then the segment.
    pub(super) fn look(&mut self, told: bool) {
        if self.remaker.is_none() {
            return;
        }
        let readers = &self.tools.readers;
        let Ok(segments) = recovery::segments(readers.files(), readers.folder()) else { return };
        let names: Option<HashSet<String>> = match self.tools.index.names() {
            Ok(names) => Some(names.into_iter().collect()),
            Err(error) => {
                self.report("the index could not be looked at", &error.to_string());
                None
            }
        };
        let on_disk = |file: &IndexFile| names.as_ref().is_none_or(|names| names.contains(file.name()));
        self.drop_orphans(segments.first().copied().unwrap_or(0));
        let set = self.tools.index.files();
        let whole = set.iter().filter(|file| file.meta().coverage.part == 0);
        let whole: HashMap<u64, &Arc<IndexFile>> =
            whole.map(|file| (file.meta().coverage.segment, file)).collect();
        let mut missing = Missing::default();
        for segment in segments.into_iter().filter(|segment| *segment <= self.sealed.0) {
            match whole.get(&segment) {
                None if self.hopeless.contains(&segment) => {}
                None => drop(missing.lost.insert(segment)),
                Some(file) if on_disk(file) => {}
                Some(_) => drop(missing.gone.insert(segment)),
            }
        }
        self.look_at_parts(&set, on_disk);
        (missing.hole, missing.lacks) = (self.hole, self.lacks);
        if told || missing == self.suspected {
            self.found(missing.clone());
            if !Arc::ptr_eq(&set, &self.tools.index.files()) && !missing.is_lack() {
                // Somebody may have taken out a file meanwhile, and has said so: it is seen the next time.
                self.lacks_from_now();
            }
        }
        self.suspected = missing;
    }

    fn look_at_parts(&mut self, set: &[Arc<IndexFile>], on_disk: impl Fn(&IndexFile) -> bool) {
        let in_set = |part: &Arc<IndexFile>| set.iter().any(|file| Arc::ptr_eq(file, part));
        let all = self.parts.len() + self.stale.len();
        self.parts.retain(in_set);
        self.stale.retain(in_set);
        if self.parts.len() + self.stale.len() < all {
            self.lose(true);
        }
        let (here, mut gone) = std::mem::take(&mut self.parts).into_iter().partition(|part| on_disk(part));
        self.parts = here;
        if !gone.is_empty() {
            self.stale.append(&mut gone);
            self.lose(false);
        }
    }

    fn found(&mut self, missing: Missing) {
        let lacks = missing.is_lack() || !self.hopeless.is_empty();
        if missing.lacks {
            self.lacks_from_now();
        } else if lacks {
            self.shared.lag.begin(self.shared.clock.now(), self.first_id);
        }
        if missing != self.missing && !missing.is_nothing() {
            let files = missing.segments().len() + usize::from(missing.hole.is_some());
            let until = if lacks { "lists lack what was in them until then" } else { "lists lack nothing" };
            tracing::warn!(files, "index files are missing and are made again; {until}");
            let text = format!("{files} files of the index are made again from the journal; {until}");
            self.shared.tell(NewEvent::new(Level::Warning, "store.index", text));
        }
        self.missing = missing;
        if !lacks && self.shared.lag.is_behind() {
            tracing::info!("the index is complete again");
            // Before it shows: whoever sees that nothing is missing finds the event.
            self.shared.tell(NewEvent::new(Level::Info, "store.index", "the index is complete again"));
            self.shared.lag.end();
        }
    }

    /// What a rebuild made of a segment that was purged meanwhile. Where a segment was lost, lists keep what was in it.
    fn drop_orphans(&self, first: u64) {
        let set = self.tools.index.files();
        let dropped = self.shared.state().dropped().unwrap_or(u64::MAX);
        let is_orphan = |file: &&Arc<IndexFile>| {
            let segment = file.meta().coverage.segment;
            segment < first && segment <= dropped
        };
        let orphans: Vec<_> = set.iter().filter(is_orphan).cloned().collect();
        self.tools.index.replace(&orphans, Vec::new());
    }

    /// Whether there is something to make again now.
    pub(super) fn rebuilds(&self) -> bool {
        (self.rebuild.is_some() || !self.missing.is_nothing())
            && self.again.is_none_or(|again| Instant::now() >= again)
    }

    /// Reads the next segment of the journal for what is missing.
    pub(super) fn rebuild_some(&mut self) {
        if !self.rebuilds() {
            return;
        }
        self.again = None;
        let Some(mut rebuild) = self.rebuild.take().or_else(|| self.begin()) else {
            self.again = Some(Instant::now() + LATER);
            return;
        };
        match rebuild.step() {
            Ok(Progress::Goes) => {
                self.progress(rebuild.left());
                self.rebuild = Some(rebuild);
            }
            Ok(Progress::Done(parts)) => {
                self.take_over(rebuild.hole(), parts);
                self.progress((0, 0));
                self.look(true);
            }
            Err(Failure::Segment(number, error)) => {
                self.hopeless.insert(number);
                let what = format!("segment {number} cannot be read; lists lack what is only there");
                self.report(&what, &error);
                self.rebuild = Some(rebuild);
            }
            Err(Failure::Write(error)) => {
                self.report("the index could not be completed, it is tried again", &error);
                self.progress((0, 0));
                self.again = Some(Instant::now() + LATER);
            }
        }
    }

    /// Begins to make again what is missing, where that can be done now.
    fn begin(&mut self) -> Option<Rebuild> {
        let remaker = self.remaker.clone()?;
        let hole = self.missing.hole.filter(|loss| self.hole == Some(*loss));
        let hole = hole.map(|loss| Hole { segment: self.sealed.0 + 1, last: self.in_parts, loss });
        match remaker.begin(self.missing.segments(), hole) {
            Ok(rebuild) => {
                self.progress(rebuild.left());
                Some(rebuild)
            }
            Err(error) => {
                self.report("the index cannot be made again now", &error);
                None
            }
        }
    }

    /// What a rebuild made of the open segment is as good as what was lost, unless more was, or it has ended.
    fn take_over(&mut self, hole: Option<Hole>, parts: Vec<Arc<IndexFile>>) {
        if hole.is_some_and(|hole| self.hole == Some(hole.loss)) {
            self.tools.index.replace(&std::mem::take(&mut self.stale), Vec::new());
            self.parts.extend(parts);
            (self.hole, self.lacks) = (None, false);
        } else {
            self.tools.index.replace(&parts, Vec::new());
        }
    }

    fn progress(&self, (left, total): (usize, usize)) {
        self.shared.lag.set_left(left, total);
        metrics::gauge!("septet_store_index_rebuild_left").set(left as f64);
    }
}
