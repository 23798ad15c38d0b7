//! From a filter to the rows of a file that can match: rows with the hashes asked for, in the groups asked
//! for. What is left is compared after decoding, so that a hash that two values share does no harm.

use std::borrow::Cow;
use std::fmt;

use super::file::IndexFile;
use super::format::{GroupKey, PROVISIONAL, RESPONSE, Table, VARIOUS};
use super::hash::Secret;
use super::{Error, Kind, Unfinished};
use crate::event::{Event, Level};
use crate::header::{self, Header, Status};
use crate::store::codec::Fields;
use crate::store::record::{RecordError, decode_event, decode_header, level_number, status_number};
use crate::store::search::{folded, selects};
use crate::store::{EventFilter, MessageFilter};
use crate::vault::Vault;

/// What a search gives: messages or events.
pub(in crate::store) trait Searched: Sized + fmt::Debug {
    /// Its filter.
    type Filter: Clone + fmt::Debug + Send;
    /// Its table.
    const KIND: Kind;
    /// From the bytes of a row.
    fn decode(row: &[u8], vault: &Vault) -> Result<Self, RecordError>;
    /// Its id.
    fn id(&self) -> u64;
    /// What of the filter hashes and groups can answer.
    fn terms(filter: &Self::Filter, secret: &Secret) -> Terms;
    /// Whether it is one of those asked for; keys of the filter have been folded.
    fn matches(&self, filter: &Self::Filter) -> bool;
    /// The filter with everything in it that can be made ready once.
    fn ready(filter: &Self::Filter) -> Self::Filter;
}

/// What hashes, groups and fences are asked for.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Terms {
    hashes: Vec<u64>,
    /// Bits of the codes wanted; 0 = any.
    codes: u32,
    /// Flags that are compared, and their values.
    flags: (u8, u8),
    names: [Option<String>; 3],
    /// Created not before, and before.
    pub(super) from: Option<i64>,
    pub(super) to: Option<i64>,
}

impl Searched for Header {
    type Filter = MessageFilter;
    const KIND: Kind = Kind::Headers;

    fn decode(row: &[u8], vault: &Vault) -> Result<Self, RecordError> {
        decode_header(Fields::new(row, 0), vault)
    }

    fn id(&self) -> u64 {
        self.id.0
    }

    fn ready(filter: &MessageFilter) -> MessageFilter {
        let fold = |(name, value): &(String, String)| (name.clone(), folded(value).into_owned());
        MessageFilter { keys: filter.keys.iter().map(fold).collect(), ..filter.clone() }
    }

    fn terms(filter: &MessageFilter, secret: &Secret) -> Terms {
        let mut hashes: Vec<u64> = filter.keys.iter().map(|(name, value)| secret.key(name, value)).collect();
        hashes.extend(filter.session.map(|session| secret.session(session)));
        let control_id = filter.control_id.as_ref().filter(|id| !id.is_empty());
        hashes.extend(control_id.map(|id| secret.control_id(id)));
        let code = |codes: u32, status: &Status| codes | 1 << status_number(*status);
        Terms {
            hashes,
            codes: filter.status.iter().fold(0, code),
            flags: match filter.kind {
                None => (0, 0),
                Some(header::Kind::Request) => (RESPONSE, 0),
                Some(header::Kind::Response) => (RESPONSE, RESPONSE),
            },
            names: [filter.source.clone(), filter.target.clone(), filter.type_name.clone()],
            from: filter.from.map(|from| from.as_microsecond()),
            to: filter.to.map(|to| to.as_microsecond()),
        }
    }

    fn matches(&self, filter: &MessageFilter) -> bool {
        let has_key = |(name, value): &(String, String)| {
            self.keys
                .iter()
                .any(|(known, given)| **known == **name && folded(given) == Cow::Borrowed(value.as_str()))
        };
        (filter.status.is_empty() || filter.status.contains(&self.status))
            && filter.kind.is_none_or(|kind| kind == self.kind)
            && filter.session.is_none_or(|session| session == self.session)
            && filter.source.as_ref().is_none_or(|source| self.source.as_str() == source)
            && filter
                .target
                .as_ref()
                .is_none_or(|name| self.target.as_ref().is_some_and(|target| target.as_str() == name))
            && filter.from.is_none_or(|from| self.created >= from)
            && filter.to.is_none_or(|to| self.created < to)
            && filter.type_name.as_ref().is_none_or(|name| **name == *self.type_name)
            && filter.control_id.as_ref().is_none_or(|id| **id == *self.control_id)
            && filter.keys.iter().all(has_key)
    }
}

impl Searched for Event {
    type Filter = EventFilter;
    const KIND: Kind = Kind::Events;

    fn decode(row: &[u8], vault: &Vault) -> Result<Self, RecordError> {
        decode_event(Fields::new(row, 0), vault)
    }

    fn id(&self) -> u64 {
        self.id.0
    }

    fn ready(filter: &EventFilter) -> EventFilter {
        filter.clone()
    }

    fn terms(filter: &EventFilter, secret: &Secret) -> Terms {
        let code = |level: Level| 1 << level_number(level);
        Terms {
            hashes: filter.session.map(|session| secret.session(session)).into_iter().collect(),
            codes: filter.level.map_or(0, code),
            names: [filter.kind.clone(), filter.item.clone(), None],
            ..Terms::default()
        }
    }

    fn matches(&self, filter: &EventFilter) -> bool {
        selects(filter, self)
    }
}

/// Rows of a file that can match.
#[derive(Debug)]
pub(super) enum Candidates {
    All,
    Bits(Vec<u64>),
    /// Lowest first.
    List(Vec<u32>),
}

impl Candidates {
    /// Those of a block, as places within it, lowest first.
    pub(super) fn within(&self, first: u32, end: u32) -> Vec<u32> {
        match self {
            Candidates::All => (0..end.saturating_sub(first)).collect(),
            Candidates::Bits(bits) => {
                (first..end).filter(|row| has(bits, *row)).map(|row| row - first).collect()
            }
            Candidates::List(rows) => {
                let from = rows.partition_point(|row| *row < first);
                let rows = rows.get(from..).unwrap_or_default().iter();
                rows.take_while(|row| **row < end).map(|row| row - first).collect()
            }
        }
    }

    /// The highest of them below a row.
    pub(super) fn last_before(&self, end: u32) -> Option<u32> {
        match self {
            Candidates::All => end.checked_sub(1),
            Candidates::Bits(bits) => {
                let last = end.checked_sub(1)?;
                let below = |index: usize, word: u64| {
                    // Of the word that the end is in only the lower bits.
                    let mask =
                        if index == last as usize / 64 { u64::MAX >> (63 - last % 64) } else { u64::MAX };
                    let found = (word & mask).checked_ilog2()?;
                    Some(index as u32 * 64 + found)
                };
                let words = bits.get(..=last as usize / 64).unwrap_or(bits).iter().enumerate();
                words.rev().find_map(|(index, word)| below(index, *word))
            }
            Candidates::List(rows) => {
                rows.get(rows.partition_point(|row| *row < end).checked_sub(1)?).copied()
            }
        }
    }
}

/// Below this many rows of the other list each row is looked up in it.
const FEW: usize = 16;

/// Keeps the rows that the other list has, too; both are lowest first. The rows of a long list are marked first:
/// where two long lists alternate, a merge would guess wrong at every other row.
fn keep_common(rows: &mut Vec<u32>, list: &[u32]) {
    if list.len() < FEW {
        return rows.retain(|row| list.contains(row));
    }
    let mut bits = vec![0; list.last().map_or(0, |last| *last as usize / 64 + 1)];
    list.iter().for_each(|row| mark(&mut bits, *row));
    rows.retain(|row| has(&bits, *row));
}

fn mark(bits: &mut [u64], row: u32) {
    if let Some(word) = bits.get_mut(row as usize / 64) {
        *word |= 1 << (row % 64);
    }
}

fn has(bits: &[u64], row: u32) -> bool {
    bits.get(row as usize / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
}

impl Terms {
    /// The rows of a file that can match. `unfinished`: which provisional ones can.
    pub(super) fn candidates(
        &self,
        file: &IndexFile,
        kind: Kind,
        unfinished: Unfinished,
    ) -> Result<Candidates, Error> {
        let table = file.table(kind);
        let groups = Wanted::new(self, file, unfinished);
        let all = groups.is_all(file.meta().provisional > 0);
        let chosen = || table.groups.iter().filter(|group| all || groups.has(&group.key));
        let rows = || chosen().map(|group| u64::from(group.rows)).sum();
        let sum: u64 = if all { u64::from(table.rows) } else { rows() };
        if sum == 0 {
            return Ok(Candidates::List(Vec::new()));
        }
        let mut list: Option<Vec<u32>> = None;
        for (blocks, hash) in self.rarest_first(table) {
            let left = list.as_ref().map_or(sum, |list| list.len() as u64);
            if blocks > left.saturating_mul(2) {
                // To look at the rows that are left is cheaper than to read where all of this value are.
                break;
            }
            let mut rows = Vec::new();
            file.with_hash(kind, hash, &mut rows)?;
            // A value that a row has twice.
            rows.dedup();
            if let Some(list) = &list {
                keep_common(&mut rows, list);
            }
            if rows.is_empty() {
                return Ok(Candidates::List(rows));
            }
            list = Some(rows);
        }
        match &list {
            // To look at the rows takes no longer than to ask the groups.
            Some(rows) if sum == u64::from(table.rows) || rows.len() <= chosen().count() => {
                return Ok(Candidates::List(list.unwrap_or_default()));
            }
            None if sum == u64::from(table.rows) => return Ok(Candidates::All),
            _ => {}
        }
        let mut bits = vec![0u64; (table.rows as usize).div_ceil(64)];
        file.members(kind, chosen(), |_, row| mark(&mut bits, row))?;
        match list {
            None => Ok(Candidates::Bits(bits)),
            Some(mut rows) => {
                rows.retain(|row| has(&bits, *row));
                Ok(Candidates::List(rows))
            }
        }
    }

    /// The hashes with the blocks that they begin, those with the fewest first: what is not there then costs
    /// one block.
    fn rarest_first(&self, table: &Table) -> Vec<(u64, u64)> {
        let blocks = |hash: &u64| {
            let high = (*hash >> 32) as u32;
            let fences = &table.hash_fences;
            let from = fences.partition_point(|fence| fence.high < high);
            let equal = fences.get(from..).unwrap_or_default().iter().take_while(|fence| fence.high == high);
            (equal.count() as u64, *hash)
        };
        let mut hashes: Vec<_> = self.hashes.iter().map(blocks).collect();
        hashes.sort_unstable();
        hashes
    }

    /// Whether rows created within these bounds can be among those asked for.
    pub(super) fn in_time(&self, (first, last): (i64, i64)) -> bool {
        self.from.is_none_or(|from| last >= from) && self.to.is_none_or(|to| first < to)
    }
}

/// The groups asked for, with the numbers that names have in one file.
struct Wanted<'a> {
    terms: &'a Terms,
    unfinished: Unfinished,
    /// `Some(None)`: the file has no such name.
    names: [Option<Option<u16>>; 3],
}

impl<'a> Wanted<'a> {
    fn new(terms: &'a Terms, file: &IndexFile, unfinished: Unfinished) -> Self {
        let names = terms.names.each_ref().map(|name| name.as_ref().map(|name| file.directory.name(name)));
        Wanted { terms, unfinished, names }
    }

    /// Whether every group is wanted, as far as can be told without looking at them.
    fn is_all(&self, has_provisional: bool) -> bool {
        ((self.unfinished.waiting && self.unfinished.suspended) || !has_provisional)
            && self.terms.codes == 0
            && self.terms.flags.0 == 0
            && self.names.iter().all(Option::is_none)
    }

    fn has(&self, key: &GroupKey) -> bool {
        let (mask, flags) = self.terms.flags;
        let counts = match key.code == status_number(Status::Suspended) {
            true => self.unfinished.suspended,
            false => self.unfinished.waiting,
        };
        (counts || key.flags & PROVISIONAL == 0)
            && (self.terms.codes == 0 || self.terms.codes >> key.code.min(31) & 1 == 1)
            && key.flags & mask == flags
            && self.names.iter().zip(key.names).all(|(wanted, name)| match wanted {
                None => true,
                Some(number) => name == VARIOUS || *number == Some(name),
            })
    }
}
