//! Checkpoints: the state as of a transaction, so that opening a store reads the end of the journal only.
//!
//! `checkpoint-NUMBER` in the store's folder, NUMBER being the segment where reading goes on; the last two
//! are kept, and no segment is dropped that the older of them needs. A checkpoint is written aside, synced
//! and renamed, once everything in it is durable in the journal.
//!
//! ```text
//! "SEPTETC1" ‖ length of the payload u64 ‖ CRC-32 of the payload u32 ‖ key id u32 ‖ payload
//! ```
//!
//! | in | tags |
//! |---|---|
//! | payload | 1 transaction, 2 segment, 3 next position, 4 highest id, 5 first id not reserved, 16 item, 17 header, 18 event, 19 kept value, 20 body, 21 line of what the index does not have, 22 expired session |
//! | item | 1 name, 2 receives, 3 taken in, 4 rejected, 5 completed, 6 errors, 7 last activity, 8 last error, 9 reference |
//! | header | 1 transaction, 2 the header as in the journal |
//! | body | 1 id, 2 type, 3 content type, 4 charset, 5 place |
//! | reference | 1 id, 2 position, 3 frame (segment, offset), 4 type, 5 content type, 6 charset, 7 place |
//! | place | segment u64 ‖ offset u64 ‖ length u32 ‖ CRC-32 u32 ‖ sealed u8 |
//! | line | 1 number, 2 pairs of transaction u64 and id u64 |
//! | expired session | 1 session, 2 last segment that may have a row of it |
//!
//! Sealed as in the journal. A required field that is not known makes the checkpoint unusable: a newer
//! version wrote it, and the journal is read instead as far as it goes.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bodies::{Description, Place, describe};
use super::change::Change;
use super::codec::{DecodeError, Encoder, Field, Fields};
use super::record::{self, RecordError, Sealer};
use super::spine::{Reference, Spot};
use super::state::{ItemSnapshot, Snapshot, respine};
use crate::files::{self, Files};
use crate::id::BodyId;
use crate::vault::{Vault, VaultError};

const MAGIC: &[u8; 8] = b"SEPTETC1";
const HEADER: usize = 24;

/// A checkpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Checkpoint {
    pub(super) snapshot: Snapshot,
    /// The segment where reading goes on; the index has everything before it.
    pub(super) segment: u64,
    /// The first id that no reservation covered.
    pub(super) reserved: u64,
    /// Bodies that are on stable storage.
    pub(super) bodies: Vec<(BodyId, Place, Arc<Description>)>,
}

/// `checkpoint-0000000007`.
fn file_name(segment: u64) -> String {
    format!("checkpoint-{segment:010}")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("checkpoint-")?.parse().ok()
}

/// The segments at which there are checkpoints, in order.
pub(super) fn list(files: &dyn Files, folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = files.list(folder)?.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Writes a checkpoint durably and removes all but the newest one before it. Gives its length in bytes.
pub(super) fn write(
    files: &dyn Files,
    folder: &Path,
    checkpoint: &Checkpoint,
    sealer: &Sealer,
) -> io::Result<u64> {
    let payload = encode(checkpoint, sealer).map_err(|error| io::Error::other(error.to_string()))?;
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&u64::try_from(payload.length()).unwrap_or(u64::MAX).to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    payload.slices().into_iter().for_each(|slice| crc.update(slice));
    header.extend_from_slice(&crc.finalize().to_le_bytes());
    header.extend_from_slice(&sealer.vault.key_id().to_le_bytes());
    let name = file_name(checkpoint.segment);
    let aside = folder.join(format!(".{name}.part"));
    let file = files.create(&aside)?;
    let mut slices = vec![IoSlice::new(&header)];
    slices.extend(payload.slices().into_iter().filter(|slice| !slice.is_empty()).map(IoSlice::new));
    files::write_all(&*file, &mut slices, 0)?;
    file.sync()?;
    files.rename(&aside, &folder.join(&name))?;
    files.sync_dir(folder)?;
    let older: Vec<u64> =
        list(files, folder)?.into_iter().filter(|number| *number < checkpoint.segment).collect();
    for number in older.iter().rev().skip(1) {
        files.remove(&folder.join(file_name(*number)))?;
    }
    Ok(u64::try_from(HEADER + payload.length()).unwrap_or(u64::MAX))
}

/// What was found of checkpoints.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The newest that can be read, with its length in bytes.
    pub(super) newest: Option<(Checkpoint, u64)>,
    /// Newer ones that could not.
    pub(super) unreadable: Vec<PathBuf>,
}

/// Reads the newest checkpoint that can be read.
pub(super) fn load(files: &dyn Files, folder: &Path, vault: &Vault) -> io::Result<Found> {
    let mut found = Found::default();
    for number in list(files, folder)?.into_iter().rev() {
        let path = folder.join(file_name(number));
        let content = files::read(files, &path)?;
        match decode(&content, vault) {
            Some(checkpoint) if checkpoint.segment == number => {
                let length = u64::try_from(content.len()).unwrap_or(u64::MAX);
                found.newest = Some((checkpoint, length));
                break;
            }
            _ => found.unreadable.push(path),
        }
    }
    Ok(found)
}

// === Writing ===

fn encode(checkpoint: &Checkpoint, sealer: &Sealer) -> Result<Encoder, VaultError> {
    let Checkpoint { snapshot, segment, reserved, bodies } = checkpoint;
    let mut out = Encoder::default();
    out.number(1, snapshot.sequence);
    out.number(2, *segment);
    out.number(3, snapshot.next_position);
    out.number(4, snapshot.highest_id);
    out.number(5, *reserved);
    for item in &snapshot.items {
        let nested = out.begin(16, true);
        encode_item(item, &mut out);
        out.end(nested);
    }
    for (header, sequence) in &snapshot.rows {
        let nested = out.begin(17, true);
        out.number(1, *sequence);
        let inner = out.begin(2, true);
        record::encode_header(header, sealer, &mut out)?;
        out.end(inner);
        out.end(nested);
    }
    for event in &snapshot.events {
        let nested = out.begin(18, true);
        record::encode_event(event, sealer, &mut out)?;
        out.end(nested);
    }
    for (family, values) in &snapshot.keep {
        for (key, value) in values {
            let nested = out.begin(19, true);
            record::encode_keep(*family, key, Some(value), sealer, &mut out)?;
            out.end(nested);
        }
    }
    for (id, place, kind) in bodies {
        let nested = out.begin(20, true);
        out.number(1, id.0);
        encode_body(2, place, kind, &mut out);
        out.end(nested);
    }
    for (number, line) in snapshot.fresh.lines() {
        let nested = out.begin(21, true);
        out.number(1, number);
        let pairs = line.all().flat_map(|(sequence, id)| [sequence, id]);
        let pairs: Vec<u8> = pairs.flat_map(u64::to_le_bytes).collect();
        out.bytes(2, &pairs);
        out.end(nested);
    }
    for (session, last) in &snapshot.dead {
        let nested = out.begin(22, true);
        out.number(1, *session);
        out.number(2, *last);
        out.end(nested);
    }
    Ok(out)
}

fn encode_item(item: &ItemSnapshot, out: &mut Encoder) {
    out.text(1, &item.name);
    out.flag(2, item.receives);
    out.number(3, item.taken_in);
    out.number(4, item.rejected);
    out.number(5, item.completed);
    out.number(6, item.errors);
    if let Some(at) = item.last_activity {
        out.time(7, at);
    }
    if let Some(error) = &item.last_error {
        out.text(8, error);
    }
    for reference in item.spine.all() {
        let nested = out.begin(9, true);
        out.number(1, reference.id);
        out.number(2, reference.position);
        if let Some(Spot { segment, offset }) = reference.frame {
            out.number(3, u64::from(segment) << 32 | u64::from(offset));
        }
        if let Some((place, kind)) = &reference.body {
            encode_body(4, place, kind, out);
        }
        out.end(nested);
    }
}

/// A body's kind in the fields `first` to `first + 2`, its place in the one behind them.
fn encode_body(first: u64, place: &Place, kind: &Description, out: &mut Encoder) {
    out.text(first, &kind.type_name);
    out.text(first + 1, &kind.content_type);
    if let Some(charset) = &kind.charset {
        out.text(first + 2, charset);
    }
    let mut bytes = Vec::with_capacity(25);
    bytes.extend_from_slice(&place.segment.to_le_bytes());
    bytes.extend_from_slice(&place.offset.to_le_bytes());
    bytes.extend_from_slice(&place.length.to_le_bytes());
    bytes.extend_from_slice(&place.crc.to_le_bytes());
    bytes.push(u8::from(place.sealed));
    out.bytes(first + 3, &bytes);
}

// === Reading ===

/// `None` where it is not whole, or not of this version.
fn decode(content: &[u8], vault: &Vault) -> Option<Checkpoint> {
    let rest = content.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (_key, payload) = rest.split_first_chunk::<4>()?;
    if u64::from_le_bytes(*length) != u64::try_from(payload.len()).ok()?
        || crc32fast::hash(payload) != u32::from_le_bytes(*crc)
    {
        return None;
    }
    decode_payload(payload, vault).ok()
}

fn decode_payload(payload: &[u8], vault: &Vault) -> Result<Checkpoint, RecordError> {
    let mut out = Checkpoint::default();
    for field in Fields::new(payload, 0) {
        let field = field?;
        let snapshot = &mut out.snapshot;
        match field.tag {
            1 => snapshot.sequence = field.number()?,
            2 => out.segment = field.number()?,
            3 => snapshot.next_position = field.number()?,
            4 => snapshot.highest_id = field.number()?,
            5 => out.reserved = field.number()?,
            16 => snapshot.items.push(decode_item(field)?),
            17 => snapshot.rows.push(decode_row(field, vault)?),
            18 => snapshot.events.push(record::decode_event(field.fields(), vault)?),
            19 => {
                if let Change::Keep(family, key, Some(value)) = record::decode_keep(field, vault)? {
                    snapshot.keep.entry(family).or_default().insert(key, value);
                }
            }
            20 => {
                let mut id = BodyId(0);
                let mut body = Body::default();
                for field in field.fields() {
                    let field = field?;
                    match field.tag {
                        1 => id = BodyId(field.number()?),
                        tag => body.field(tag, 2, &field)?,
                    }
                }
                out.bodies.extend(body.known().map(|(place, kind)| (id, place, kind)));
            }
            21 => decode_line(field, snapshot)?,
            22 => {
                let (mut session, mut last) = (0, 0);
                for field in field.fields() {
                    let field = field?;
                    match field.tag {
                        1 => session = field.number()?,
                        2 => last = field.number()?,
                        _ => field.skip()?,
                    }
                }
                snapshot.dead.insert(session, last);
            }
            _ => field.skip()?,
        }
    }
    Ok(out)
}

fn decode_row(field: Field<'_>, vault: &Vault) -> Result<(crate::header::Header, u64), RecordError> {
    let (mut header, mut sequence) = (None, 0);
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => sequence = field.number()?,
            2 => header = Some(record::decode_header(field.fields(), vault)?),
            _ => field.skip()?,
        }
    }
    Ok((header.ok_or(DecodeError::Malformed)?, sequence))
}

fn decode_line(field: Field<'_>, snapshot: &mut Snapshot) -> Result<(), RecordError> {
    let (mut number, mut pairs): (u64, &[u8]) = (0, &[]);
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => number = field.number()?,
            2 => pairs = field.value,
            _ => field.skip()?,
        }
    }
    let line = snapshot.fresh.line_mut(number).ok_or(DecodeError::Unknown(number))?;
    for pair in pairs.as_chunks::<16>().0 {
        let (sequence, id) = pair.split_at(8);
        let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        line.push(number(sequence).unwrap_or_default(), number(id).unwrap_or_default());
    }
    Ok(())
}

/// A body's place and kind while its fields are being read.
#[derive(Default)]
struct Body<'a> {
    texts: [Option<&'a str>; 3],
    place: Option<Place>,
}

impl<'a> Body<'a> {
    fn field(&mut self, tag: u64, first: u64, field: &Field<'a>) -> Result<(), DecodeError> {
        let index = tag.checked_sub(first).and_then(|index| usize::try_from(index).ok());
        match index {
            Some(3) => self.place = Some(decode_place(field.value).ok_or(DecodeError::Malformed)?),
            Some(index) => match self.texts.get_mut(index) {
                Some(text) => *text = Some(field.text()?),
                None => field.skip()?,
            },
            None => field.skip()?,
        }
        Ok(())
    }

    fn known(self) -> Option<(Place, Arc<Description>)> {
        let [type_name, content_type, charset] = self.texts;
        Some((self.place?, Arc::new(describe(type_name?, content_type?, charset))))
    }
}

fn decode_place(bytes: &[u8]) -> Option<Place> {
    let (segment, rest) = bytes.split_first_chunk::<8>()?;
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    Some(Place {
        segment: u64::from_le_bytes(*segment),
        offset: u64::from_le_bytes(*offset),
        length: u32::from_le_bytes(*length),
        crc: u32::from_le_bytes(*crc),
        sealed: rest.first() == Some(&1),
    })
}

fn decode_item(field: Field<'_>) -> Result<ItemSnapshot, RecordError> {
    let mut item = ItemSnapshot::default();
    let mut references = Vec::new();
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => item.name = field.string()?,
            2 => item.receives = true,
            3 => item.taken_in = field.number()?,
            4 => item.rejected = field.number()?,
            5 => item.completed = field.number()?,
            6 => item.errors = field.number()?,
            7 => item.last_activity = Some(field.time()?),
            8 => item.last_error = Some(field.string()?),
            9 => references.push(decode_reference(field)?),
            _ => field.skip()?,
        }
    }
    item.spine = respine(references);
    Ok(item)
}

fn decode_reference(field: Field<'_>) -> Result<Reference, RecordError> {
    let mut reference = Reference { id: 0, position: 0, frame: None, body: None };
    let mut body = Body::default();
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => reference.id = field.number()?,
            2 => reference.position = field.number()?,
            3 => {
                let spot = field.number()?;
                reference.frame = Spot::new(spot >> 32, spot & u64::from(u32::MAX));
            }
            tag => body.field(tag, 4, &field)?,
        }
    }
    reference.body = body.known();
    Ok(reference)
}
