//! What an index file consists of. The format is described in [`super`]; how a directory becomes bytes, in
//! [`super::directory`].

use std::sync::Arc;

use super::wire::Wire;

/// The first bytes of a file.
pub(super) const MAGIC: &[u8; 8] = b"SEPTETI1";
/// Length of a file's header: magic ‖ version u32 ‖ CRC-32 of the 12 bytes before.
pub(super) const HEADER: usize = 16;
/// The version that this code writes.
pub(super) const VERSION: u32 = 1;
/// Length of a file's trailer.
pub(super) const TRAILER: usize = 32;
const TRAILER_MAGIC: u32 = u32::from_le_bytes(*b"SPIE");

/// Entries in a block of hashes.
pub(super) const HASHES: usize = 512;
/// Bytes of one hash and its row.
pub(super) const HASH: usize = 12;

/// The group, or the name, was not written down because there were too many different ones.
pub(super) const VARIOUS: u16 = u16::MAX;
/// No name: the target of a rejected frame, the item of an event about none.
pub(super) const NOBODY: u16 = u16::MAX - 1;

/// The row was not final when the file was written.
pub(super) const PROVISIONAL: u8 = 1;
/// The header is a response.
pub(super) const RESPONSE: u8 = 2;
/// `Header::is_error`.
pub(super) const IS_ERROR: u8 = 4;

/// What a file covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Coverage {
    /// The journal that it was derived from: a file of another one is not used.
    pub(in crate::store) epoch: u64,
    /// The segment.
    pub(in crate::store) segment: u64,
    /// Which part of an open segment; 0 = the whole of a sealed one.
    pub(in crate::store) part: u32,
    /// The first transaction in it.
    pub(in crate::store) first_sequence: u64,
    /// The last.
    pub(in crate::store) last_sequence: u64,
    /// No id below was born in the segment; sessions below are foreign.
    pub(in crate::store) first_id: u64,
}

/// Rows of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Span {
    /// How many.
    pub(in crate::store) rows: u32,
    /// The lowest id; meaningless without rows.
    pub(in crate::store) min: u64,
    /// The highest.
    pub(in crate::store) max: u64,
}

impl Span {
    pub(super) fn contains(&self, id: u64) -> bool {
        self.rows > 0 && (self.min..=self.max).contains(&id)
    }
}

/// What is always known of a file. Times are microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Meta {
    /// What it covers.
    pub(in crate::store) coverage: Coverage,
    /// Its headers.
    pub(in crate::store) headers: Span,
    /// Of these, how many are provisional.
    pub(in crate::store) provisional: u32,
    /// Its events.
    pub(in crate::store) events: Span,
    /// Its bodies.
    pub(in crate::store) bodies: Span,
    /// The lowest and the highest session of a header or an event; 0 and 0 = none.
    pub(in crate::store) sessions: (u64, u64),
    /// When its headers were created, first and last; only with headers.
    pub(in crate::store) created: (i64, i64),
    /// The latest moment at which a header was created or finished, or an event happened.
    pub(in crate::store) last_activity: i64,
    /// How many sessions with a lower id than `coverage.first_id` it has.
    pub(in crate::store) foreign: u32,
    /// The file's length.
    pub(in crate::store) length: u64,
}

/// A block of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fence {
    pub(super) first_id: u64,
    pub(super) offset: u64,
    /// When its rows were created, first and last.
    pub(super) created: (i64, i64),
    pub(super) first_row: u32,
    pub(super) crc: u32,
}

/// A block of hashes: the high half of the first one, and the block's CRC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashFence {
    pub(super) high: u32,
    pub(super) crc: u32,
}

/// Rows that are equal in what there are few different values of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) key: GroupKey,
    pub(super) rows: u32,
    /// Where the list of its rows is, counted from the first group's.
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) crc: u32,
}

/// What the rows of a group have in common. Names are numbers within the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct GroupKey {
    pub(super) flags: u8,
    /// Status of a header, level of an event, by their number in the journal.
    pub(super) code: u8,
    /// Source, target and type of a header; kind and item of an event.
    pub(super) names: [u16; 3],
}

/// A table of rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) rows: u32,
    /// Where its last block ends.
    pub(super) end: u64,
    pub(super) fences: Box<[Fence]>,
    /// How many hashes there are, and where.
    pub(super) hashes: u32,
    pub(super) hash_offset: u64,
    pub(super) hash_fences: Box<[HashFence]>,
    pub(super) group_offset: u64,
    pub(super) groups: Box<[Group]>,
}

/// Type, content type and character set of bodies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::store) struct Description {
    /// `ORU^R01`, or a record's type.
    pub(in crate::store) type_name: Arc<str>,
    /// The media type.
    pub(in crate::store) content_type: Arc<str>,
    /// The character set that was assumed.
    pub(in crate::store) charset: Option<Arc<str>>,
}

/// A list on disk of which nothing is kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) crc: u32,
}

/// Everything that an open file keeps in memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) meta: Meta,
    /// Tells whether hashes were made with our secret.
    pub(super) secret: u64,
    pub(super) names: Box<[Box<str>]>,
    pub(super) headers: Table,
    pub(super) events: Table,
    pub(super) bodies: Table,
    pub(super) descriptions: Box<[Description]>,
    /// Sessions with a lower id than the first one born here: (session u64, last activity i64).
    pub(super) foreign: Extent,
}

impl Table {
    /// Where a block begins and ends, and the rows it has.
    pub(super) fn block(&self, index: usize) -> Option<Block> {
        let fence = self.fences.get(index)?;
        let (end, end_row) = match self.fences.get(index + 1) {
            Some(next) => (next.offset, next.first_row),
            None => (self.end, self.rows),
        };
        Some(Block { fence: *fence, length: end.checked_sub(fence.offset)?, end_row })
    }

    /// The block that has an id if the table has it.
    pub(super) fn block_of(&self, id: u64) -> Option<usize> {
        self.fences.partition_point(|fence| fence.first_id <= id).checked_sub(1)
    }

    /// The block that has a row.
    pub(super) fn block_with(&self, row: u32) -> Option<usize> {
        self.fences.partition_point(|fence| fence.first_row <= row).checked_sub(1)
    }

    /// The highest id that can be in a block.
    pub(super) fn last_id(&self, index: usize, max: u64) -> u64 {
        self.fences.get(index + 1).map_or(max, |next| next.first_id.saturating_sub(1))
    }

    fn memory(&self) -> usize {
        size_of_val(&*self.fences) + size_of_val(&*self.hash_fences) + size_of_val(&*self.groups)
    }
}

/// Where a block of rows is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) fence: Fence,
    pub(super) length: u64,
    pub(super) end_row: u32,
}

impl Directory {
    /// The number of a name within the file.
    pub(super) fn name(&self, name: &str) -> Option<u16> {
        let index = self.names.iter().position(|known| **known == *name)?;
        u16::try_from(index).ok()
    }

    /// About how many bytes of memory it takes.
    pub(super) fn memory(&self) -> usize {
        let names: usize = self.names.iter().map(|name| name.len() + size_of::<Box<str>>()).sum();
        let kind = |kind: &Description| {
            let charset = kind.charset.as_ref().map_or(0, |charset| charset.len());
            size_of::<Description>() + 48 + kind.type_name.len() + kind.content_type.len() + charset
        };
        let descriptions: usize = self.descriptions.iter().map(kind).sum();
        size_of::<Directory>()
            + names
            + descriptions
            + [&self.headers, &self.events, &self.bodies].map(Table::memory).iter().sum::<usize>()
    }
}

// === Header and trailer ===

/// The bytes at the beginning of a file.
pub(super) fn header() -> [u8; HEADER] {
    let mut out = [0; HEADER];
    let (head, crc) = out.split_at_mut(12);
    let (magic, version) = head.split_at_mut(8);
    magic.copy_from_slice(MAGIC);
    version.copy_from_slice(&VERSION.to_le_bytes());
    crc.copy_from_slice(&crc32fast::hash(head).to_le_bytes());
    out
}

/// Where the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) crc: u32,
    /// The length of the whole file.
    pub(super) file: u64,
}

impl Trailer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TRAILER);
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
        out.extend_from_slice(&self.file.to_le_bytes());
        out.extend_from_slice(&TRAILER_MAGIC.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; TRAILER]) -> Option<Trailer> {
        let (covered, crc) = bytes.split_at_checked(TRAILER - 4)?;
        if crc32fast::hash(covered).to_le_bytes() != *crc {
            return None;
        }
        let mut wire = Wire::new(covered);
        let trailer =
            Trailer { offset: wire.u64()?, length: wire.u32()?, crc: wire.u32()?, file: wire.u64()? };
        (wire.u32()? == TRAILER_MAGIC).then_some(trailer)
    }
}
