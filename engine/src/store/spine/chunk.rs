//! A run of references, packed: what one costs in memory, and what it is in a checkpoint.

use std::sync::Arc;

use super::{Reference, Spot};
use crate::store::bodies::{Description, Place};
use crate::store::codec::{DecodeError, Encoder, Fields};

/// References in one chunk.
pub(super) const CHUNK: usize = 1024;
/// Bytes of a reference in a checkpoint.
const PACKED: usize = 36;

/// A reference as it is kept: numbers relative to the chunk's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    pub(super) id: u32,
    pub(super) position: u32,
    frame: Spot,
    body: Spot,
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
            frame: Spot::NOWHERE,
            body: Spot::NOWHERE,
            length: 0,
            crc: 0,
            kind: u16::MAX,
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
        let place = Place {
            segment: u64::from(entry.body.segment),
            offset: u64::from(entry.body.offset),
            length: entry.length,
            crc: entry.crc,
            sealed: entry.sealed,
        };
        Reference {
            id: self.base_id + u64::from(entry.id),
            position: self.base_position + u64::from(entry.position),
            frame: (entry.frame != Spot::NOWHERE).then_some(entry.frame),
            body: kind.map(|kind| (place, kind.clone())),
        }
    }

    pub(super) fn live(&self) -> impl Iterator<Item = Reference> {
        self.entries.iter().filter(|entry| entry.live).map(|entry| self.reference(entry))
    }

    /// Where a message was, it may soon be no more.
    pub(super) fn unplace(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.frame = Spot::NOWHERE;
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
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.frame = frame;
        if let Some((spot, place, kind)) = kind {
            entry.body = spot;
            entry.length = place.length;
            entry.crc = place.crc;
            entry.sealed = place.sealed;
            entry.kind = kind;
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
            let Spot { segment, offset } = entry.frame;
            let numbers = [entry.id, entry.position, segment, offset, entry.body.segment];
            let rest = [entry.body.offset, entry.length, entry.crc, kind];
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
            let body = Spot { segment: next(), offset: next() };
            let (length, crc, kind) = (next(), next(), next());
            let sealed = kind >> 16 & 1 == 1;
            let kind = (kind & 0xffff) as u16;
            chunk.entries.push(Packed { id, position, frame, body, length, crc, kind, sealed, live: true });
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
