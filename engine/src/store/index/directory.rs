//! The directory of an index file as bytes. No bytes make reading it panic, nor promise more than the file
//! has.

use super::format::{
    Coverage, Description, Directory, Extent, Fence, Group, GroupKey, HASH, HASHES, HashFence, Meta, Span,
    Table,
};
use super::wire::Wire;
use crate::store::codec::{DecodeError, Encoder, Field, Fields};

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
        kind.encode(&mut out);
        out.end(nested);
    }
    let nested = out.begin(7, false);
    out.number(1, directory.foreign.offset);
    out.number(2, directory.foreign.length);
    out.number(3, u64::from(directory.foreign.crc));
    out.end(nested);
    out.slices().concat()
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
            6 => descriptions.push(Description::decode(field.fields())?),
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
