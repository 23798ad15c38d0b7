//! The directory of an index file: what is known of it without reading its blocks. The format is described
//! in [`super`].

use std::sync::Arc;

use super::wire::Wire;
use crate::store::codec::{DecodeError, Encoder, Field, Fields};

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

// === Writing ===

fn put_table(tag: u64, table: &Table, out: &mut Encoder) {
    let nested = out.begin(tag, true);
    out.number(1, u64::from(table.rows));
    out.number(2, table.end);
    let mut packed = Vec::with_capacity(table.fences.len() * 40);
    for fence in &table.fences {
        packed.extend_from_slice(&fence.first_id.to_le_bytes());
        packed.extend_from_slice(&fence.offset.to_le_bytes());
        packed.extend_from_slice(&fence.created.0.to_le_bytes());
        packed.extend_from_slice(&fence.created.1.to_le_bytes());
        packed.extend_from_slice(&fence.first_row.to_le_bytes());
        packed.extend_from_slice(&fence.crc.to_le_bytes());
    }
    out.bytes(3, &packed);
    out.number(4, u64::from(table.hashes));
    out.number(5, table.hash_offset);
    packed.clear();
    for fence in &table.hash_fences {
        packed.extend_from_slice(&fence.high.to_le_bytes());
        packed.extend_from_slice(&fence.crc.to_le_bytes());
    }
    out.bytes(6, &packed);
    packed.clear();
    for group in &table.groups {
        packed.extend_from_slice(&[group.key.flags, group.key.code]);
        for name in group.key.names {
            packed.extend_from_slice(&name.to_le_bytes());
        }
        packed.extend_from_slice(&group.rows.to_le_bytes());
        packed.extend_from_slice(&group.offset.to_le_bytes());
        packed.extend_from_slice(&group.length.to_le_bytes());
        packed.extend_from_slice(&group.crc.to_le_bytes());
    }
    out.bytes(7, &packed);
    out.number(8, table.group_offset);
    out.end(nested);
}

fn put_span(tag: u64, span: &Span, out: &mut Encoder) {
    let nested = out.begin(tag, false);
    out.number(1, u64::from(span.rows));
    out.number(2, span.min);
    out.number(3, span.max);
    out.end(nested);
}

fn put_meta(directory: &Directory, out: &mut Encoder) {
    let meta = &directory.meta;
    let nested = out.begin(1, true);
    out.number(1, meta.coverage.epoch);
    out.number(2, meta.coverage.segment);
    out.number(3, u64::from(meta.coverage.part));
    out.number(4, meta.coverage.first_sequence);
    out.number(5, meta.coverage.last_sequence);
    out.number(6, meta.coverage.first_id);
    put_span(7, &meta.headers, out);
    out.number(8, u64::from(meta.provisional));
    put_span(9, &meta.events, out);
    put_span(10, &meta.bodies, out);
    out.number(11, meta.sessions.0);
    out.number(12, meta.sessions.1);
    out.number(13, meta.created.0.cast_unsigned());
    out.number(14, meta.created.1.cast_unsigned());
    out.number(16, meta.last_activity.cast_unsigned());
    out.number(17, u64::from(meta.foreign));
    out.number(18, directory.secret);
    out.end(nested);
}

/// The bytes of a directory; `meta.length` is left to the trailer.
pub(super) fn encode(directory: &Directory) -> Vec<u8> {
    let mut out = Encoder::default();
    put_meta(directory, &mut out);
    for name in &directory.names {
        out.text(2, name);
    }
    put_table(3, &directory.headers, &mut out);
    put_table(4, &directory.events, &mut out);
    put_table(5, &directory.bodies, &mut out);
    for kind in &directory.descriptions {
        let nested = out.begin(6, false);
        out.text(1, &kind.type_name);
        out.text(2, &kind.content_type);
        if let Some(charset) = &kind.charset {
            out.text(3, charset);
        }
        out.end(nested);
    }
    let nested = out.begin(7, false);
    out.number(1, directory.foreign.offset);
    out.number(2, directory.foreign.length);
    out.number(3, u64::from(directory.foreign.crc));
    out.end(nested);
    out.slices().concat()
}

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

// === Reading ===

fn packed<T>(
    bytes: &[u8],
    size: usize,
    one: impl Fn(&mut Wire<'_>) -> Option<T>,
) -> Result<Box<[T]>, DecodeError> {
    if !bytes.len().is_multiple_of(size) {
        return Err(DecodeError::Malformed);
    }
    bytes.chunks_exact(size).map(|chunk| one(&mut Wire::new(chunk)).ok_or(DecodeError::Malformed)).collect()
}

fn table(field: Field<'_>, length: u64) -> Result<Table, DecodeError> {
    let mut table = Table::default();
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => table.rows = field.small()?,
            2 => table.end = field.number()?,
            3 => {
                table.fences = packed(field.value, 40, |wire| {
                    Some(Fence {
                        first_id: wire.u64()?,
                        offset: wire.u64()?,
                        created: (wire.u64()?.cast_signed(), wire.u64()?.cast_signed()),
                        first_row: wire.u32()?,
                        crc: wire.u32()?,
                    })
                })?;
            }
            4 => table.hashes = field.small()?,
            5 => table.hash_offset = field.number()?,
            6 => {
                table.hash_fences =
                    packed(field.value, 8, |wire| Some(HashFence { high: wire.u32()?, crc: wire.u32()? }))?;
            }
            7 => {
                table.groups = packed(field.value, 24, |wire| {
                    Some(Group {
                        key: GroupKey {
                            flags: wire.u8()?,
                            code: wire.u8()?,
                            names: [wire.u16()?, wire.u16()?, wire.u16()?],
                        },
                        rows: wire.u32()?,
                        offset: wire.u32()?,
                        length: wire.u32()?,
                        crc: wire.u32()?,
                    })
                })?;
            }
            8 => table.group_offset = field.number()?,
            _ => field.skip()?,
        }
    }
    // What is computed with later: nothing lies outside of the file, so that no read asks for more memory
    // than the file has bytes.
    let ascending = table.fences.is_sorted_by(|one, next| {
        one.offset < next.offset && one.first_row < next.first_row && one.first_id < next.first_id
    });
    let inside = table.end <= length
        && table.fences.last().is_none_or(|last| last.offset < table.end && last.first_row < table.rows)
        && table.groups.iter().all(|group| {
            let end = u64::from(group.offset) + u64::from(group.length);
            group.rows <= table.rows && table.group_offset.saturating_add(end) <= length
        })
        && table.hash_offset.saturating_add(u64::from(table.hashes) * HASH as u64) <= length
        && table.hash_fences.len() == (table.hashes as usize).div_ceil(HASHES);
    let first = table.fences.first();
    let whole = (table.rows == 0) == first.is_none() && first.is_none_or(|first| first.first_row == 0);
    if ascending && inside && whole { Ok(table) } else { Err(DecodeError::Malformed) }
}

fn span(field: Field<'_>) -> Result<Span, DecodeError> {
    let mut span = Span::default();
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => span.rows = field.small()?,
            2 => span.min = field.number()?,
            3 => span.max = field.number()?,
            _ => field.skip()?,
        }
    }
    Ok(span)
}

fn meta(field: Field<'_>, length: u64) -> Result<(Meta, u64), DecodeError> {
    let coverage =
        Coverage { epoch: 0, segment: 0, part: 0, first_sequence: 0, last_sequence: 0, first_id: 0 };
    let (headers, events, bodies) = (Span::default(), Span::default(), Span::default());
    let mut meta = Meta {
        coverage,
        headers,
        provisional: 0,
        events,
        bodies,
        sessions: (0, 0),
        created: (0, 0),
        last_activity: 0,
        foreign: 0,
        length,
    };
    let mut secret = 0;
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => meta.coverage.epoch = field.number()?,
            2 => meta.coverage.segment = field.number()?,
            3 => meta.coverage.part = field.small()?,
            4 => meta.coverage.first_sequence = field.number()?,
            5 => meta.coverage.last_sequence = field.number()?,
            6 => meta.coverage.first_id = field.number()?,
            7 => meta.headers = span(field)?,
            8 => meta.provisional = field.small()?,
            9 => meta.events = span(field)?,
            10 => meta.bodies = span(field)?,
            11 => meta.sessions.0 = field.number()?,
            12 => meta.sessions.1 = field.number()?,
            13 => meta.created.0 = field.number()?.cast_signed(),
            14 => meta.created.1 = field.number()?.cast_signed(),
            16 => meta.last_activity = field.number()?.cast_signed(),
            17 => meta.foreign = field.small()?,
            18 => secret = field.number()?,
            _ => field.skip()?,
        }
    }
    Ok((meta, secret))
}

fn description(field: Field<'_>) -> Result<Description, DecodeError> {
    let mut kind = Description { type_name: Arc::default(), content_type: Arc::default(), charset: None };
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => kind.type_name = field.text()?.into(),
            2 => kind.content_type = field.text()?.into(),
            3 => kind.charset = Some(field.text()?.into()),
            _ => field.skip()?,
        }
    }
    Ok(kind)
}

fn extent(field: Field<'_>, file: u64) -> Result<Extent, DecodeError> {
    let mut extent = Extent::default();
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => extent.offset = field.number()?,
            2 => extent.length = field.number()?,
            3 => extent.crc = field.small()?,
            _ => field.skip()?,
        }
    }
    let inside = extent.offset.checked_add(extent.length).is_some_and(|end| end <= file);
    if inside { Ok(extent) } else { Err(DecodeError::Malformed) }
}

/// Reads the directory of a file of this length.
pub(super) fn decode(bytes: &[u8], length: u64) -> Result<Directory, DecodeError> {
    let (mut known, mut names, mut descriptions) = (None, Vec::new(), Vec::new());
    let (mut headers, mut events, mut bodies) = (Table::default(), Table::default(), Table::default());
    let mut foreign = Extent::default();
    for field in Fields::new(bytes, 0) {
        let field = field?;
        match field.tag {
            1 => known = Some(meta(field, length)?),
            2 => names.push(field.text()?.into()),
            3 => headers = table(field, length)?,
            4 => events = table(field, length)?,
            5 => bodies = table(field, length)?,
            6 => descriptions.push(description(field)?),
            7 => foreign = extent(field, length)?,
            _ => field.skip()?,
        }
    }
    let (meta, secret) = known.ok_or(DecodeError::Malformed)?;
    let agreed = [(&headers, &meta.headers), (&events, &meta.events), (&bodies, &meta.bodies)];
    if agreed.iter().any(|(table, span)| table.rows != span.rows) {
        return Err(DecodeError::Malformed);
    }
    let (names, descriptions) = (names.into(), descriptions.into());
    Ok(Directory { meta, secret, names, headers, events, bodies, descriptions, foreign })
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
