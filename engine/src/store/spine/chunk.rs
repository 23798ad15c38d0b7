//! A run of references, packed: what one costs in memory, and what it is in a checkpoint.

use std::sync::Arc;

use super::{Reference, Spot};
use crate::store::bodies::{Description, Place};
use crate::store::codec::{DecodeError, Encoder, Fields};

/// References in one chunk.
pub(super) const CHUNK: usize = 1024;
/// Bytes of a reference in a checkpoint.
const PACKED: usize = 36;

/// The number of what is in no list.
const NONE: u16 = u16::MAX;
/// Lists as long as this have many in them that nobody needs any more.
const LONG: usize = 4 * CHUNK;

/// A reference as it is kept, in 28 bytes: numbers relative to the chunk's, or in its lists.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    pub(super) id: u32,
    pub(super) position: u32,
    /// Its number among the chunk's frames; many messages share one.
    frame: u16,
    /// Among the segments.
    body_segment: u16,
    body_offset: u32,
    length: u32,
    crc: u32,
    kind: u16,
    sealed: bool,
    pub(super) live: bool,
}

/// A run of references.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Chunk {
    pub(super) base_id: u64,
    pub(super) base_position: u64,
    pub(super) entries: Vec<Packed>,
    frames: Vec<Spot>,
    /// Where bodies are.
    segments: Vec<u32>,
    kinds: Vec<Arc<Description>>,
    pub(super) live: usize,
    /// The lowest and the highest id that ever was here.
    pub(super) ids: (u64, u64),
}

impl Chunk {
    pub(super) fn starting(id: u64, position: u64) -> Chunk {
        // Ids are nearly, not strictly, in the order of positions.
        let base_id = id.saturating_sub(1 << 31);
        Chunk { base_id, base_position: position, ids: (id, id), ..Chunk::default() }
    }

    pub(super) fn push(&mut self, new: u64, position: u64) -> bool {
        let id = new.checked_sub(self.base_id).and_then(|id| u32::try_from(id).ok());
        let position = position.checked_sub(self.base_position).and_then(|at| u32::try_from(at).ok());
        let (Some(id), Some(position)) = (id, position) else { return false };
        if self.entries.len() >= CHUNK {
            return false;
        }
        self.entries.push(Packed {
            id,
            position,
            frame: NONE,
            body_segment: NONE,
            body_offset: 0,
            length: 0,
            crc: 0,
            kind: NONE,
            sealed: false,
            live: true,
        });
        self.live += 1;
        self.ids = (self.ids.0.min(new), self.ids.1.max(new));
        true
    }

    pub(super) fn last_position(&self) -> Option<u64> {
        self.entries.last().map(|entry| self.base_position + u64::from(entry.position))
    }

    pub(super) fn index(&self, position: u64) -> Option<usize> {
        let at = u32::try_from(position.checked_sub(self.base_position)?).ok()?;
        let index = self.entries.binary_search_by_key(&at, |entry| entry.position).ok()?;
        self.entries.get(index).filter(|entry| entry.live).map(|_| index)
    }

    pub(super) fn reference(&self, entry: &Packed) -> Reference {
        let kind = self.kinds.get(usize::from(entry.kind));
        let segment = self.segments.get(usize::from(entry.body_segment));
        let place = Place {
            segment: segment.copied().unwrap_or_default().into(),
            offset: u64::from(entry.body_offset),
            length: entry.length,
            crc: entry.crc,
            sealed: entry.sealed,
        };
        Reference {
            id: self.base_id + u64::from(entry.id),
            position: self.base_position + u64::from(entry.position),
            frame: self.frame(entry),
            body: kind.map(|kind| (place, kind.clone())),
        }
    }

    fn frame(&self, entry: &Packed) -> Option<Spot> {
        self.frames.get(usize::from(entry.frame)).copied()
    }

    pub(super) fn live(&self) -> impl Iterator<Item = Reference> {
        self.entries.iter().filter(|entry| entry.live).map(|entry| self.reference(entry))
    }

    /// Where a message was, it may soon be no more.
    pub(super) fn unplace(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.frame = NONE;
        }
    }

    pub(super) fn place(&mut self, index: usize, frame: Spot, body: Option<&(Place, Arc<Description>)>) {
        let kind = body.and_then(|(place, kind)| {
            let spot = Spot::new(place.segment, place.offset)?;
            let known = self.kinds.iter().position(|known| Arc::ptr_eq(known, kind) || known == kind);
            let index = known.unwrap_or_else(|| {
                self.kinds.push(kind.clone());
                self.kinds.len() - 1
            });
            Some((spot, place, u16::try_from(index).ok()?))
        });
        self.tidy();
        let number = number(&mut self.frames, frame);
        let segment = kind.map_or(NONE, |(spot, ..)| self::number(&mut self.segments, spot.segment));
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.frame = number;
        if let Some((spot, place, kind)) = kind {
            entry.body_segment = segment;
            entry.body_offset = spot.offset;
            entry.length = place.length;
            entry.crc = place.crc;
            entry.sealed = place.sealed;
            entry.kind = kind;
        }
    }

    /// Forgets frames and segments that no message is in any more: a purge may have carried them again and again.
    fn tidy(&mut self) {
        if self.frames.len() < LONG && self.segments.len() < LONG {
            return;
        }
        let (frames, segments) = (std::mem::take(&mut self.frames), std::mem::take(&mut self.segments));
        for entry in &mut self.entries {
            let frame = frames.get(usize::from(entry.frame));
            entry.frame = frame.map_or(NONE, |frame| number(&mut self.frames, *frame));
            let segment = segments.get(usize::from(entry.body_segment));
            entry.body_segment = segment.map_or(NONE, |segment| number(&mut self.segments, *segment));
        }
    }

    /// Its living references as fields: 1 first id, 2 first position, 3 kinds (1 type, 2 content type,
    /// 3 charset), 4 references: id and position from the first on, segment and offset of the frame, segment,
    /// offset, length and CRC of the body, number of its kind + 65536 where it is sealed, each u32.
    pub(in crate::store) fn encode(&self, out: &mut Encoder) {
        out.number(1, self.base_id);
        out.number(2, self.base_position);
        for kind in &self.kinds {
            let nested = out.begin(3, true);
            kind.encode(out);
            out.end(nested);
        }
        let mut bytes = Vec::with_capacity(self.live * PACKED);
        for entry in self.entries.iter().filter(|entry| entry.live) {
            let kind = u32::from(entry.kind) | u32::from(entry.sealed) << 16;
            let Spot { segment, offset } = self.frame(entry).unwrap_or(Spot::NOWHERE);
            let body = self.segments.get(usize::from(entry.body_segment)).copied().unwrap_or_default();
            let numbers = [entry.id, entry.position, segment, offset, body];
            let rest = [entry.body_offset, entry.length, entry.crc, kind];
            bytes.extend(numbers.into_iter().chain(rest).flat_map(u32::to_le_bytes));
        }
        out.bytes(4, &bytes);
    }

    /// From its fields. Its references are in the order of their positions, or it is malformed.
    pub(in crate::store) fn decode(fields: Fields<'_>) -> Result<Chunk, DecodeError> {
        let mut chunk = Chunk::default();
        let mut packed: &[u8] = &[];
        for field in fields {
            let field = field?;
            match field.tag {
                1 => chunk.base_id = field.number()?,
                2 => chunk.base_position = field.number()?,
                3 => chunk.kinds.push(Arc::new(Description::decode(field.fields())?)),
                4 => packed = field.value,
                _ => field.skip()?,
            }
        }
        let (entries, []) = packed.as_chunks::<PACKED>() else { return Err(DecodeError::Malformed) };
        chunk.entries.reserve_exact(entries.len());
        for bytes in entries {
            let mut numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
            let mut next = || numbers.next().unwrap_or_default();
            let (id, position) = (next(), next());
            let frame = Spot { segment: next(), offset: next() };
            let frame = if frame == Spot::NOWHERE { NONE } else { number(&mut chunk.frames, frame) };
            let body_segment = number(&mut chunk.segments, next());
            let (body_offset, length, crc, kind) = (next(), next(), next(), next());
            let sealed = kind >> 16 & 1 == 1;
            let kind = (kind & 0xffff) as u16;
            chunk.entries.push(Packed {
                id,
                position,
                frame,
                body_segment,
                body_offset,
                length,
                crc,
                kind,
                sealed,
                live: true,
            });
        }
        if !chunk.entries.is_sorted_by_key(|entry| entry.position) || chunk.entries.len() > CHUNK {
            return Err(DecodeError::Malformed);
        }
        chunk.live = chunk.entries.len();
        let ids = || chunk.entries.iter().map(|entry| chunk.base_id.saturating_add(u64::from(entry.id)));
        chunk.ids = (ids().min().unwrap_or_default(), ids().max().unwrap_or_default());
        Ok(chunk)
    }
}

/// The number of a value in a list. What comes again comes again soon.
fn number<T: PartialEq>(list: &mut Vec<T>, value: T) -> u16 {
    const LAST: usize = 8;
    let near = list.len().saturating_sub(LAST);
    let last = list.get(near..).unwrap_or_default();
    let known = last.iter().rposition(|known| *known == value).map(|index| near + index);
    let number = known.unwrap_or_else(|| {
        list.push(value);
        list.len() - 1
    });
    u16::try_from(number).unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::bodies::describe;
    use crate::store::spine::Spine;

    fn encoded(chunk: &Chunk) -> Vec<u8> {
        let mut out = Encoder::default();
        chunk.encode(&mut out);
        out.slices().concat()
    }

    #[test]
    fn a_line_reads_back_from_its_chunks_without_what_left_it() {
        let kinds = ["ADT^A01", "ORU^R01"].map(|name| Arc::new(describe(name, "application/hl7-v2", None)));
        let mut spine = Spine::default();
        for number in 0..3000u64 {
            spine.push(number * 3 + 10, 1 << 40 | (number ^ 1));
            let place =
                Place { segment: 7, offset: number * 90, length: 80, crc: 9, sealed: number % 3 == 0 };
            let body = kinds.get(number as usize % 5).map(|kind| (place, kind.clone()));
            if number % 7 != 0 {
                spine.placed(number * 3 + 10, Spot { segment: 7, offset: number as u32 }, body.as_ref());
            }
        }
        for number in (0..3000u64).filter(|number| number % 4 == 1 || (1024..2048).contains(number)) {
            assert!(spine.remove(number * 3 + 10));
        }
        let mut back = Spine::default();
        for chunk in spine.chunks() {
            let bytes = encoded(chunk);
            assert!(back.append(Chunk::decode(Fields::new(&bytes, 0)).unwrap()));
        }
        assert_eq!(back.chunks().count(), 2, "one of them is empty");
        assert_eq!((back.length(), back.first_position()), (spine.length(), spine.first_position()));
        assert_eq!(back.first(5000), spine.first(5000));
        assert_eq!(back.find(1 << 40 | 6), Some(7 * 3 + 10));
        back.push(100_000, 1 << 41);
        assert_eq!(back.get(100_000).map(|reference| reference.id), Some(1 << 41));
    }

    #[test]
    fn a_line_that_is_carried_again_and_again_takes_no_more_and_says_where_it_is() {
        let kind = Arc::new(describe("ADT^A01", "application/hl7-v2", None));
        let mut chunk = Chunk::starting(1, 1);
        (1..=CHUNK as u64).for_each(|number| assert!(chunk.push(number, number)));
        for round in 0..100u32 {
            for index in 0..CHUNK {
                // Nothing that was near is met again.
                let offset = (index as u32).wrapping_mul(977) % 1024;
                let place =
                    Place { segment: u64::from(offset) + 7, offset: 5, length: 6, crc: 7, sealed: false };
                chunk.unplace(index);
                chunk.place(index, Spot { segment: round, offset }, Some(&(place, kind.clone())));
            }
        }
        assert!(chunk.frames.len() <= LONG + 1 && chunk.segments.len() <= LONG + 1);
        for (index, reference) in chunk.live().enumerate() {
            let offset = (index as u32).wrapping_mul(977) % 1024;
            assert_eq!(reference.frame, Some(Spot { segment: 99, offset }));
            assert_eq!(reference.body.map(|(place, _)| place.segment), Some(u64::from(offset) + 7));
        }
        assert_eq!(size_of::<Packed>(), 28);
    }

    #[test]
    fn chunks_that_are_out_of_order_are_refused() {
        let mut spine = Spine::default();
        (0..1500).for_each(|number| spine.push(number, number));
        let bytes: Vec<_> = spine.chunks().map(encoded).collect();
        let mut back = Spine::default();
        let taken: Vec<bool> = [1, 0]
            .into_iter()
            .map(|index| back.append(Chunk::decode(Fields::new(&bytes[index], 0)).unwrap()))
            .collect();
        assert_eq!(taken, [true, false]);
        let cut = &bytes[0][..bytes[0].len() - 1];
        assert!(Chunk::decode(Fields::new(cut, 0)).is_err());
    }
}
