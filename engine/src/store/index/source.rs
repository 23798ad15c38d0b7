//! Where the rows of a new file come from, in order of their ids: rows collected in memory, and files
//! written before, whose rows are copied without being decoded.

use super::file::{IndexFile, RowBlock};
use super::format::{GroupKey, NOBODY, VARIOUS};
use super::intern::{Groups, Names};
use super::runs::{self, Run};
use super::{Error, Kind};
use crate::header::Status;
use crate::id::BodyId;
use crate::store::codec::{DecodeError, Fields};
use crate::store::record::status_number;

/// A row that was dropped: a later one has its id.
pub(super) const DROPPED: u32 = u32::MAX;

/// Bytes of rows that are collected together.
const CHUNK: usize = 256 * 1024;

/// Rows collected in memory, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// In chunks: one list would take twice its length and more while it grows.
    chunks: Vec<Vec<u8>>,
    entries: Vec<Entry>,
    pub(super) hashes: Vec<(u64, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u64,
    chunk: u32,
    start: u32,
    length: u32,
    group: u32,
    provisional: bool,
}

impl Collected {
    /// Adds a row and gives it its number among those collected.
    pub(super) fn add(&mut self, id: u64, provisional: bool, group: u32, slices: &[&[u8]]) -> u32 {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let room = |chunk: &Vec<u8>| chunk.capacity() - chunk.len();
        if self.chunks.last().is_none_or(|chunk| room(chunk) < length) {
            self.chunks.push(Vec::with_capacity(length.max(CHUNK)));
        }
        let (chunk, mut start) = (self.chunks.len() as u32 - 1, 0);
        if let Some(bytes) = self.chunks.last_mut() {
            start = bytes.len() as u32;
            slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        }
        self.entries.push(Entry { id, chunk, start, length: length as u32, group, provisional });
        (self.entries.len() - 1) as u32
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// A row that is next in its source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next<'a> {
    pub(super) id: u64,
    pub(super) provisional: bool,
    pub(super) group: u32,
    /// Its number within the source.
    pub(super) number: u32,
    pub(super) bytes: &'a [u8],
}

/// Rows of one table in order.
#[derive(Debug)]
pub(super) enum Source<'a> {
    Collected {
        rows: &'a Collected,
        order: Vec<u32>,
        next: usize,
    },
    Part {
        file: &'a IndexFile,
        kind: Kind,
        groups: Vec<u32>,
        block: RowBlock,
        next_block: usize,
        next: usize,
    },
}

impl<'a> Source<'a> {
    pub(super) fn collected(rows: &'a Collected) -> Self {
        let mut order: Vec<u32> = (0..rows.entries.len() as u32).collect();
        let key = |index: &u32| {
            let entry = rows.entries.get(*index as usize);
            // Of two rows of one id the settled one counts, else the later: it comes last.
            entry.map(|entry| (entry.id, !entry.provisional, *index))
        };
        if !order.is_sorted_by_key(key) {
            order.sort_unstable_by_key(key);
        }
        let id = |index: &u32| rows.entries.get(*index as usize).map(|entry| entry.id);
        order.dedup_by(|later, earlier| {
            let same = id(later) == id(earlier);
            if same {
                *earlier = *later;
            }
            same
        });
        Source::Collected { rows, order, next: 0 }
    }

    /// Rows of a file; its groups get the numbers they have in the new one.
    pub(super) fn part(
        file: &'a IndexFile,
        kind: Kind,
        names: &mut Names,
        groups: &mut Groups,
    ) -> Result<Self, Error> {
        let table = file.table(kind);
        let mut numbers = vec![0; if kind == Kind::Bodies { 0 } else { table.rows as usize }];
        let known: Vec<u32> = table
            .groups
            .iter()
            .map(|group| {
                let names = group.key.names.map(|name| match name {
                    VARIOUS | NOBODY => name,
                    name => {
                        file.directory.names.get(usize::from(name)).map_or(VARIOUS, |name| names.number(name))
                    }
                });
                groups.number(GroupKey { names, ..group.key })
            })
            .collect();
        file.members(kind, table.groups.iter(), |group, row| {
            if let (Some(slot), Some(number)) = (numbers.get_mut(row as usize), known.get(group)) {
                *slot = *number;
            }
        })?;
        let block = RowBlock::default();
        let mut source = Source::Part { file, kind, groups: numbers, block, next_block: 0, next: 0 };
        source.fill()?;
        Ok(source)
    }

    /// How many rows there are, dropped ones included.
    pub(super) fn rows(&self) -> usize {
        match self {
            Source::Collected { rows, .. } => rows.entries.len(),
            Source::Part { file, kind, .. } => file.table(*kind).rows as usize,
        }
    }

    pub(super) fn peek(&self) -> Option<Next<'_>> {
        match self {
            Source::Collected { rows, order, next } => {
                let number = *order.get(*next)?;
                let entry = rows.entries.get(number as usize)?;
                let start = entry.start as usize;
                let bytes = rows.chunks.get(entry.chunk as usize)?;
                let bytes = bytes.get(start..start + entry.length as usize)?;
                let Entry { id, provisional, group, .. } = *entry;
                Some(Next { id, provisional, group, number, bytes })
            }
            Source::Part { groups, block, next, .. } => {
                let row = block.at(*next)?;
                let number = block.first_row() + *next as u32;
                let group = groups.get(number as usize).copied().unwrap_or_default();
                Some(Next {
                    id: row.id,
                    provisional: row.provisional,
                    group,
                    number,
                    bytes: block.bytes(row),
                })
            }
        }
    }

    pub(super) fn advance(&mut self) -> Result<(), Error> {
        match self {
            Source::Collected { next, .. } | Source::Part { next, .. } => *next += 1,
        }
        self.fill()
    }

    /// Reads the next block when the last one is used up.
    fn fill(&mut self) -> Result<(), Error> {
        let Source::Part { file, kind, block, next_block, next, .. } = self else { return Ok(()) };
        if *next >= block.len() && *next_block < file.table(*kind).fences.len() {
            *block = file.rows(*kind, *next_block)?;
            *next_block += 1;
            *next = 0;
        }
        Ok(())
    }

    /// Every hash in order, with the number that its row has in the new file; see `table`.
    pub(super) fn hashes<'b>(&'b self, numbers: &'b [u32]) -> Run<'b, (u64, u32)> {
        match self {
            Source::Collected { rows, .. } => {
                let mut hashes = Vec::with_capacity(rows.hashes.len());
                hashes.extend(rows.hashes.iter().filter_map(|(hash, row)| {
                    let number = *numbers.get(*row as usize)?;
                    (number != DROPPED).then_some((*hash, number))
                }));
                hashes.sort_unstable();
                runs::memory(hashes)
            }
            Source::Part { file, kind, .. } => runs::hashes(file, *kind, numbers),
        }
    }

    /// The earlier file that it reads.
    pub(super) fn file(&self) -> Option<&'a IndexFile> {
        match self {
            Source::Collected { .. } => None,
            Source::Part { file, .. } => Some(file),
        }
    }
}

/// What is needed of a row without decoding it. Times are microseconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peeked {
    pub(super) session: u64,
    pub(super) created: i64,
    /// The latest moment in it.
    pub(super) activity: i64,
    /// It is an event that says who looked or acted.
    pub(super) audited: bool,
    /// It is a header of a suspended message.
    pub(super) suspended: bool,
    /// The body of a header.
    pub(super) body: Option<BodyId>,
}

/// Session and times of a row in the journal's encoding.
pub(super) fn peek(kind: Kind, row: &[u8]) -> Result<Peeked, DecodeError> {
    const WHO: u64 = 8;
    const STATUS: u64 = 11;
    const BODY: u64 = 17;
    let suspended = u64::from(status_number(Status::Suspended));
    let (session, created, processed) = match kind {
        Kind::Headers => (2, 14, 16),
        Kind::Events => (6, 2, 2),
        Kind::Bodies => return Ok(Peeked::default()),
    };
    let (mut peeked, mut finished) = (Peeked::default(), None);
    for field in Fields::new(row, 0) {
        let field = field?;
        if field.tag == session {
            peeked.session = field.number()?;
        } else if field.tag == created {
            peeked.created = field.number()?.cast_signed();
        } else if field.tag == processed {
            finished = Some(field.number()?.cast_signed());
        } else if field.tag == WHO && kind == Kind::Events {
            peeked.audited = true;
        } else if field.tag == STATUS && kind == Kind::Headers {
            peeked.suspended = field.number()? == suspended;
        } else if field.tag == BODY && kind == Kind::Headers {
            peeked.body = Some(BodyId(field.number()?));
        }
    }
    peeked.activity = finished.map_or(peeked.created, |finished| finished.max(peeked.created));
    Ok(peeked)
}
