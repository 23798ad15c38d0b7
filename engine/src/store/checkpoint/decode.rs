//! Reading a checkpoint, a field at a time.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use super::{BUFFER, Checkpoint, HEADER, MAGIC};
use crate::files::{self, File};
use crate::id::BodyId;
use crate::store::bodies::{Description, Place, describe};
use crate::store::change::Change;
use crate::store::codec::{self, DecodeError, Field, Fields};
use crate::store::record::{self, RecordError};
use crate::store::spine::{Chunk, Reference, Spot};
use crate::store::state::{ItemSnapshot, Parked, Snapshot, respine};
use crate::vault::Vault;

/// The payload of a file, of which a piece is in memory.
struct Input<'a> {
    file: &'a dyn File,
    /// Where the next bytes are read, and where they end.
    next: u64,
    end: u64,
    piece: Vec<u8>,
    used: usize,
}

impl Input<'_> {
    /// Makes sure that so many bytes are in memory, if there are so many.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        if self.piece.len() - self.used >= wanted || self.next == self.end {
            return Ok(());
        }
        self.piece.drain(..self.used);
        self.used = 0;
        let from = self.piece.len();
        let more = wanted.max(BUFFER) - from;
        let more = usize::try_from(self.end - self.next).map_or(more, |left| left.min(more));
        self.piece.resize(from + more, 0);
        files::read_exact(self.file, self.piece.get_mut(from..).unwrap_or_default(), self.next)?;
        self.next += more as u64;
        Ok(())
    }

    /// The bytes of the next field; `None` at the end.
    fn field(&mut self) -> Result<Option<&[u8]>, Failure> {
        // A key and a length are two varints.
        self.fill(20)?;
        let rest = self.piece.get(self.used..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let length = codec::extent(rest)?;
        if length as u64 > rest.len() as u64 + (self.end - self.next) {
            return Err(DecodeError::Malformed.into());
        }
        self.fill(length)?;
        let from = self.used;
        self.used += length;
        Ok(self.piece.get(from..self.used))
    }
}

/// Why a checkpoint was not read.
enum Failure {
    Io(io::Error),
    Record,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

impl From<RecordError> for Failure {
    fn from(_: RecordError) -> Self {
        Failure::Record
    }
}

impl From<DecodeError> for Failure {
    fn from(_: DecodeError) -> Self {
        Failure::Record
    }
}

/// `None` where it is not whole, or not of this version.
pub(super) fn read(file: &dyn File, vault: &Vault) -> io::Result<Option<Checkpoint>> {
    let end = file.length()?;
    let mut header = [0; HEADER];
    if end < HEADER as u64 {
        return Ok(None);
    }
    files::read_exact(file, &mut header, 0)?;
    let Some(length) = whole(file, &header, end)? else { return Ok(None) };
    let input = Input { file, next: HEADER as u64, end, piece: Vec::new(), used: 0 };
    match payload(input, vault) {
        Ok(checkpoint) => Ok(Some(Checkpoint { length, ..checkpoint })),
        Err(Failure::Io(error)) => Err(error),
        Err(Failure::Record) => Ok(None),
    }
}

/// The length of a file whose header and CRC are right.
fn whole(file: &dyn File, header: &[u8; HEADER], end: u64) -> io::Result<Option<u64>> {
    let known = header.strip_prefix(MAGIC).and_then(|rest| {
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (crc, _key) = rest.split_first_chunk::<4>()?;
        Some((u64::from_le_bytes(*length), u32::from_le_bytes(*crc)))
    });
    let Some((length, crc)) = known.filter(|(length, _)| *length == end - HEADER as u64) else {
        return Ok(None);
    };
    let mut buffer = vec![0; BUFFER];
    let mut hasher = crc32fast::Hasher::new();
    let mut left = length;
    while left > 0 {
        let some = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
        let piece = buffer.get_mut(..some).unwrap_or_default();
        files::read_exact(file, piece, end - left)?;
        hasher.update(piece);
        left -= some as u64;
    }
    Ok((hasher.finalize() == crc).then_some(end))
}

/// One copy of each description.
#[derive(Default)]
struct Kinds(HashSet<Arc<Description>>);

impl Kinds {
    fn one(&mut self, kind: Description) -> Arc<Description> {
        if let Some(known) = self.0.get(&kind) {
            return known.clone();
        }
        let kind = Arc::new(kind);
        self.0.insert(kind.clone());
        kind
    }
}

fn payload(mut input: Input<'_>, vault: &Vault) -> Result<Checkpoint, Failure> {
    let (mut out, mut kinds) = (Checkpoint::default(), Kinds::default());
    while let Some(bytes) = input.field()? {
        let Some(field) = Fields::new(bytes, 0).next() else { break };
        let field = field?;
        let snapshot = &mut out.snapshot;
        match field.tag {
            1 => snapshot.sequence = field.number()?,
            2 => out.segment = field.number()?,
            3 => snapshot.next_position = field.number()?,
            4 => snapshot.highest_id = field.number()?,
            5 => out.reserved = field.number()?,
            16 => snapshot.items.push(decode_item(field, &mut kinds)?),
            17 => {
                let (header, sequence) = decode_row(field, vault)?;
                snapshot.add(&header, sequence);
            }
            18 => snapshot.events.push(Arc::new(record::decode_event(field.fields(), vault)?)),
            19 => {
                if let Change::Keep(family, key, Some(value)) = record::decode_keep(field, vault)? {
                    snapshot.keep.entry(family).or_default().insert(&key, &value);
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
                out.bodies.extend(body.known(&mut kinds).map(|(place, kind)| (id, place, kind)));
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
            23 => {
                let chunk = Chunk::decode(field.fields())?;
                let item = snapshot.items.last_mut().ok_or(DecodeError::Malformed)?;
                item.spine.append(chunk).then_some(()).ok_or(DecodeError::Malformed)?;
            }
            24 => {
                let item = snapshot.items.last_mut().ok_or(DecodeError::Malformed)?;
                for [id, position, spot] in tuples(field)? {
                    let frame = Spot::new(spot >> 32, spot & u64::from(u32::MAX));
                    let frame = frame.ok_or(DecodeError::Malformed)?;
                    item.parked.insert(Parked { id, position, frame });
                }
            }
            25 => {
                let item = snapshot.items.last_mut().ok_or(DecodeError::Malformed)?;
                for [key, position] in tuples(field)? {
                    item.keys_aside.insert((key, position));
                }
            }
            _ => field.skip()?,
        }
    }
    Ok(out)
}

/// Numbers of eight bytes, so many together.
fn tuples<const N: usize>(field: Field<'_>) -> Result<impl Iterator<Item = [u64; N]>, RecordError> {
    let mut bytes: &[u8] = &[];
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => bytes = field.value,
            _ => field.skip()?,
        }
    }
    let mut numbers = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    let next = move || {
        let mut tuple = [0; N];
        for number in &mut tuple {
            *number = numbers.next()?;
        }
        Some(tuple)
    };
    Ok(std::iter::from_fn(next))
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

    fn known(self, kinds: &mut Kinds) -> Option<(Place, Arc<Description>)> {
        let [type_name, content_type, charset] = self.texts;
        Some((self.place?, kinds.one(describe(type_name?, content_type?, charset))))
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

fn decode_item(field: Field<'_>, kinds: &mut Kinds) -> Result<ItemSnapshot, RecordError> {
    let mut item = ItemSnapshot::default();
    let (mut references, mut returned) = (Vec::new(), Vec::new());
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
            9 => references.push(decode_reference(field, kinds)?),
            10 => returned.push(decode_reference(field, kinds)?),
            _ => field.skip()?,
        }
    }
    item.spine = respine(references);
    for Reference { id, position, .. } in returned {
        item.spine.give_back(position, id);
    }
    Ok(item)
}

fn decode_reference(field: Field<'_>, kinds: &mut Kinds) -> Result<Reference, RecordError> {
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
    reference.body = body.known(kinds);
    Ok(reference)
}
