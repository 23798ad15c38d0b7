//! Searching all files, newest row first: a lazy merge. Each file is a stream that says how high its next row
//! can be; it is opened, and a block of it read, only when nothing else can come before.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::file::{IndexFile, RowBlock};
use super::query::{Candidates, Searched, Terms};
use super::source::{Peeked, peek};
use super::{Candidate, Error, Index, Kind, Overlay, Set, Unfinished};

/// How many blocks, or files, one step reads.
const READS: usize = 64;

/// A search that goes on. It holds the files it has not finished with; dropping it ends it.
///
/// Rows leave memory after the file that has them joined the index. So for each page: look at memory first,
/// then [`Cursor::refresh`], then [`Cursor::step`]; a row that comes twice is the same row.
#[derive(Debug)]
pub(in crate::store) struct Cursor<T: Searched> {
    index: Index,
    filter: T::Filter,
    terms: Terms,
    set: Arc<Set>,
    streams: BinaryHeap<Stream>,
    /// Everything from here up has been given.
    position: u64,
}

/// What one step gave.
#[derive(Debug)]
pub(in crate::store) struct Step<T> {
    /// Rows that match, newest first; all of them lie below those of the step before.
    pub(in crate::store) rows: Vec<T>,
    /// Every matching row of the files with this id or a higher one has been given. 0 at the end.
    pub(in crate::store) reached: u64,
}

impl<T: Searched> Cursor<T> {
    pub(super) fn new(index: &Index, filter: &T::Filter, before: Option<u64>) -> Self {
        let filter = T::ready(filter);
        let terms = T::terms(&filter, &index.environment().secret);
        let position = before.unwrap_or(u64::MAX);
        let (index, set) = (index.clone(), Arc::default());
        let mut cursor = Cursor { index, filter, terms, set, streams: BinaryHeap::new(), position };
        cursor.refresh();
        cursor
    }

    /// Takes in files that joined the index since, and lets go of those that left it.
    pub(in crate::store) fn refresh(&mut self) {
        let set = self.index.files();
        if Arc::ptr_eq(&set, &self.set) {
            return;
        }
        let known = std::mem::replace(&mut self.set, set);
        let stays = |file: &Arc<IndexFile>| self.set.iter().any(|other| Arc::ptr_eq(other, file));
        self.streams.retain(|stream| stays(&stream.file));
        for file in self.set.iter() {
            let old = known.iter().any(|other| Arc::ptr_eq(other, file));
            if !old && let Some(stream) = Stream::new(file, T::KIND, &self.terms, self.position) {
                self.streams.push(stream);
            }
        }
    }

    /// Goes on: at most `limit` rows, from a bounded number of blocks. Reads the disk.
    pub(in crate::store) fn step(
        &mut self,
        overlay: &mut dyn Overlay,
        limit: usize,
    ) -> Result<Step<T>, Error> {
        let mut rows: Vec<T> = Vec::new();
        let mut reads = 0;
        while rows.len() < limit
            && reads < READS
            && let Some(mut stream) = self.streams.pop()
        {
            match stream.take::<T>(&self.filter)? {
                Taken::Row(id, row) => {
                    // Of two rows of one id the newer file's came first.
                    if id < self.position {
                        self.position = id;
                        rows.extend(row);
                    }
                }
                Taken::Nothing => {
                    reads += 1;
                    stream.read(T::KIND, &self.terms, self.position, overlay)?;
                }
            }
            if !stream.ended() {
                self.streams.push(stream);
            }
        }
        self.position = match self.streams.peek() {
            None => 0,
            Some(stream) => self.position.min(stream.bound.saturating_add(1)),
        };
        Ok(Step { rows, reached: self.position })
    }
}

/// What is left of one file.
#[derive(Debug)]
struct Stream {
    file: Arc<IndexFile>,
    /// Its next row is not higher.
    bound: u64,
    /// Absent until the file was asked.
    candidates: Option<Candidates>,
    /// The next block with candidates; below it nothing has been looked at.
    next: Option<usize>,
    block: RowBlock,
    /// Rows of the block that count, lowest first.
    pending: Vec<u32>,
}

enum Taken<T> {
    /// A row of this id; absent where it turned out not to match.
    Row(u64, Option<T>),
    /// Something must be read first.
    Nothing,
}

impl Stream {
    fn new(file: &Arc<IndexFile>, kind: Kind, terms: &Terms, before: u64) -> Option<Stream> {
        let meta = file.meta();
        let span = match kind {
            Kind::Headers => &meta.headers,
            Kind::Events => &meta.events,
            Kind::Bodies => &meta.bodies,
        };
        let in_time = kind != Kind::Headers || terms.in_time(meta.created);
        if span.rows == 0 || span.min >= before || !in_time {
            return None;
        }
        let bound = span.max.min(before - 1);
        let next = file.table(kind).block_of(bound);
        let (file, block) = (file.clone(), RowBlock::default());
        Some(Stream { file, bound, candidates: None, next, block, pending: Vec::new() })
    }

    fn ended(&self) -> bool {
        self.pending.is_empty() && self.next.is_none()
    }

    fn take<T: Searched>(&mut self, filter: &T::Filter) -> Result<Taken<T>, Error> {
        let Some(index) = self.pending.pop() else { return Ok(Taken::Nothing) };
        let damaged = || self.file.damaged(self.block.offset());
        let row = self.block.at(index as usize).ok_or_else(damaged)?;
        let vault = &self.file.environment.sealer.vault;
        let found = T::decode(self.block.bytes(row), vault).map_err(|_| damaged())?;
        let id = row.id;
        if found.id() != id {
            return Err(damaged());
        }
        match self.pending.last().and_then(|index| self.block.at(*index as usize)) {
            Some(row) => self.bound = row.id,
            None => self.bound_below(T::KIND),
        }
        Ok(Taken::Row(id, found.matches(filter).then_some(found)))
    }

    /// The bound after a block was used up.
    fn bound_below(&mut self, kind: Kind) {
        if let Some(next) = self.next {
            self.bound = self.bound.min(self.file.table(kind).last_id(next, u64::MAX));
        }
    }

    /// Finds the next block with candidates, from `self.next` down, without reading.
    fn settle(&mut self, kind: Kind, terms: &Terms) {
        let Some(candidates) = &self.candidates else { return };
        let table = self.file.table(kind);
        while let Some(block) = self.next.and_then(|index| table.block(index)) {
            let last = candidates.last_before(block.end_row);
            let found = last.and_then(|row| table.block_with(row));
            self.next = found;
            let in_time = |index: usize| {
                let fence = table.fences.get(index);
                kind != Kind::Headers || fence.is_some_and(|fence| terms.in_time(fence.created))
            };
            if found.is_none_or(in_time) {
                break;
            }
            self.next = found.and_then(|index| index.checked_sub(1));
        }
        self.bound_below(kind);
    }

    /// Asks the file for candidates, or reads its next block.
    fn read(
        &mut self,
        kind: Kind,
        terms: &Terms,
        before: u64,
        overlay: &mut dyn Overlay,
    ) -> Result<(), Error> {
        let Some(candidates) = &self.candidates else {
            let meta = self.file.meta();
            let unfinished = match kind == Kind::Headers && meta.provisional > 0 {
                true => overlay.any_unfinished(meta.headers.min..=meta.headers.max),
                false => Unfinished::default(),
            };
            self.candidates = Some(terms.candidates(&self.file, kind, unfinished)?);
            self.settle(kind, terms);
            return Ok(());
        };
        let Some(index) = self.next else { return Ok(()) };
        self.next = index.checked_sub(1);
        self.block = self.file.rows(kind, index)?;
        let end = self.block.first_row() + self.block.len() as u32;
        let within = candidates.within(self.block.first_row(), end);
        self.pending = counting(&self.file, kind, &self.block, within, before, overlay)?;
        let highest = self.pending.last().and_then(|index| self.block.at(*index as usize)).map(|row| row.id);
        self.settle(kind, terms);
        if let Some(highest) = highest {
            self.bound = highest;
        }
        Ok(())
    }
}

/// Of these rows of a block, those below `before` that count.
pub(super) fn counting(
    file: &IndexFile,
    kind: Kind,
    block: &RowBlock,
    within: Vec<u32>,
    before: u64,
    overlay: &mut dyn Overlay,
) -> Result<Vec<u32>, Error> {
    let damaged = || file.damaged(block.offset());
    let mut unfinished = None;
    let mut kept = Vec::with_capacity(within.len());
    let mut candidates = Vec::with_capacity(within.len());
    for index in within {
        let row = block.at(index as usize).ok_or_else(damaged)?;
        if row.id >= before {
            break;
        }
        if row.provisional {
            // Most provisional rows are long finished: one question for all of them.
            let ids = || row.id..=block.iter().next_back().map_or(row.id, |last| last.id);
            if !unfinished.get_or_insert_with(|| overlay.any_unfinished(ids())).any() {
                continue;
            }
        }
        let Peeked { session, audited, suspended, .. } =
            peek(kind, block.bytes(row)).map_err(|_| damaged())?;
        let segment = file.meta().coverage.segment;
        kept.push(index);
        let provisional = row.provisional;
        candidates.push(Candidate { id: row.id, session, segment, provisional, suspended, audited });
    }
    if candidates.is_empty() {
        return Ok(kept);
    }
    let mut counts = overlay.admit(&candidates).into_iter();
    kept.retain(|_| counts.next().unwrap_or(false));
    Ok(kept)
}

// The highest bound first; of equal ones those that must be read first, so that all rows of that id are
// known, then the newer file's.
impl Ord for Stream {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |stream: &Stream| (stream.bound, stream.pending.is_empty(), stream.file.order());
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Stream {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Stream {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Stream {}
