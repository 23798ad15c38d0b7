//! What is in a queue beyond its window: a line of small references instead of headers, so that a queue of
//! millions costs tens of bytes a message. The pager turns references back into rows by reading the
//! journal forward, long before the window runs empty.
//!
//! Invariants: references are in the order of their positions; everything here comes after everything in
//! the window, except what was suspended there and resumed (it goes back to its position, here or in the
//! window). A reference without a frame has its header in memory. The chunks are shared with checkpoints
//! being written: changing one copies it, if somebody else looks at it.

mod chunk;

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use self::chunk::CHUNK;
pub(super) use self::chunk::Chunk;
use super::bodies::{Description, Place};

/// A frame of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Spot {
    pub(super) segment: u32,
    pub(super) offset: u32,
}

impl Spot {
    pub(super) const NOWHERE: Spot = Spot { segment: 0, offset: 0 };

    /// `None` beyond what a reference can say: such a header stays in memory.
    pub(super) fn new(segment: u64, offset: u64) -> Option<Spot> {
        Some(Spot { segment: u32::try_from(segment).ok()?, offset: u32::try_from(offset).ok()? })
    }
}

/// One message that waits beyond the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) id: u64,
    pub(super) position: u64,
    /// The frame that holds its header; `None` while that is in memory only.
    pub(super) frame: Option<Spot>,
    /// Where its body is, if it has one and the place is known.
    pub(super) body: Option<(Place, Arc<Description>)>,
}

/// The line beyond one queue's window.
#[derive(Clone, Debug, Default)]
pub(super) struct Spine {
    chunks: VecDeque<Arc<Chunk>>,
    /// Resumed messages whose position is in here; their headers stay in memory.
    returned: BTreeMap<u64, u64>,
    length: usize,
}

impl Spine {
    /// How many messages wait here.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A new message, behind all others.
    pub(super) fn push(&mut self, position: u64, id: u64) {
        let fits = self.chunks.back_mut().is_some_and(|last| Arc::make_mut(last).push(id, position));
        if !fits {
            let mut chunk = Chunk::starting(id, position);
            chunk.push(id, position);
            chunk.entries.reserve_exact(CHUNK - 1);
            self.chunks.push_back(Arc::new(chunk));
        }
        self.length += 1;
    }

    /// A message goes back to its place in the line.
    pub(super) fn give_back(&mut self, position: u64, id: u64) {
        if self.returned.insert(position, id).is_none() {
            self.length += 1;
        }
    }

    /// The first message's position.
    pub(super) fn first_position(&self) -> Option<u64> {
        let chunks = self.chunks.iter().flat_map(|chunk| {
            let first = chunk.entries.iter().find(|entry| entry.live);
            first.map(|entry| chunk.base_position + u64::from(entry.position))
        });
        let returned = self.returned.first_key_value().map(|(position, _)| *position);
        chunks.take(1).chain(returned).min()
    }

    /// A message is being written again: where it was, it may soon be no more.
    pub(super) fn unplace(&mut self, position: u64) {
        if let Some((chunk, index)) = self.at(position)
            && let Some(chunk) = self.chunks.get_mut(chunk)
        {
            Arc::make_mut(chunk).unplace(index);
        }
    }

    /// A position that no message is or was behind, as far as is known.
    pub(super) fn last_position(&self) -> Option<u64> {
        let last = self.chunks.back().and_then(|chunk| {
            let last = chunk.entries.last();
            last.map(|entry| chunk.base_position + u64::from(entry.position))
        });
        last.max(self.returned.last_key_value().map(|(position, _)| *position))
    }

    /// The first messages, in order.
    pub(super) fn first(&self, most: usize) -> Vec<Reference> {
        let mut first: Vec<Reference> =
            self.chunks.iter().flat_map(|chunk| chunk.live()).take(most).collect();
        let returned = self.returned.iter().take(most);
        let bare = |(position, id): (&u64, &u64)| Reference {
            id: *id,
            position: *position,
            frame: None,
            body: None,
        };
        first.extend(returned.map(bare));
        first.sort_by_key(|reference| reference.position);
        first.truncate(most);
        first
    }

    /// Messages from a position on, those that came back left out.
    pub(super) fn from(&self, position: u64, most: usize) -> Vec<Reference> {
        let first = self.chunk_of(position).unwrap_or(0);
        let chunks = self.chunks.range(first..).flat_map(|chunk| chunk.live());
        chunks.skip_while(|reference| reference.position < position).take(most).collect()
    }

    /// What is here, in the order of positions but for what came back.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().map(|chunk| &**chunk).filter(|chunk| chunk.live > 0)
    }

    /// What came back: positions and ids.
    pub(super) fn returned(&self) -> impl Iterator<Item = (u64, u64)> {
        self.returned.iter().map(|(position, id)| (*position, *id))
    }

    /// More of the line, behind all that is here. Whether that is where it belongs.
    pub(super) fn append(&mut self, chunk: Chunk) -> bool {
        let end = self.chunks.back().and_then(|chunk| chunk.last_position());
        if end.is_some_and(|end| chunk.base_position <= end) {
            return false;
        }
        self.length += chunk.live;
        self.chunks.push_back(Arc::new(chunk));
        true
    }

    fn chunk_of(&self, position: u64) -> Option<usize> {
        self.chunks.partition_point(|chunk| chunk.base_position <= position).checked_sub(1)
    }

    fn at(&self, position: u64) -> Option<(usize, usize)> {
        let chunk = self.chunk_of(position)?;
        Some((chunk, self.chunks.get(chunk)?.index(position)?))
    }

    /// The message at a position.
    pub(super) fn get(&self, position: u64) -> Option<Reference> {
        let (chunk, index) = self.at(position)?;
        let chunk = self.chunks.get(chunk)?;
        chunk.entries.get(index).map(|entry| chunk.reference(entry))
    }

    /// Whether a message waits here.
    pub(super) fn holds(&self, position: u64) -> bool {
        self.returned.contains_key(&position) || self.at(position).is_some()
    }

    /// Takes a message out of the line.
    pub(super) fn remove(&mut self, position: u64) -> bool {
        if self.returned.remove(&position).is_some() {
            self.length -= 1;
            return true;
        }
        let Some((chunk, index)) = self.at(position) else { return false };
        let Some(chunk) = self.chunks.get_mut(chunk) else { return false };
        let chunk = Arc::make_mut(chunk);
        if let Some(entry) = chunk.entries.get_mut(index) {
            entry.live = false;
            chunk.live -= 1;
            self.length -= 1;
        }
        while self
            .chunks
            .front()
            .is_some_and(|chunk| chunk.live == 0 && (self.chunks.len() > 1 || chunk.entries.len() >= CHUNK))
        {
            self.chunks.pop_front();
        }
        true
    }

    /// Whether any message with one of these ids may be here.
    pub(super) fn any(&self, ids: &RangeInclusive<u64>) -> bool {
        let overlaps = |chunk: &Arc<Chunk>| chunk.ids.0 <= *ids.end() && chunk.ids.1 >= *ids.start();
        self.chunks.iter().any(overlaps) || self.returned.values().any(|id| ids.contains(id))
    }

    /// The position of a message.
    pub(super) fn find(&self, id: u64) -> Option<u64> {
        let here = |chunk: &Arc<Chunk>| {
            if !(chunk.ids.0..=chunk.ids.1).contains(&id) {
                return None;
            }
            let wanted = u32::try_from(id.checked_sub(chunk.base_id)?).ok()?;
            let found = chunk.entries.iter().find(|entry| entry.live && entry.id == wanted)?;
            Some(chunk.base_position + u64::from(found.position))
        };
        let found = self.chunks.iter().find_map(here);
        found.or_else(|| self.returned.iter().find(|(_, known)| **known == id).map(|(position, _)| *position))
    }

    /// Header and body of a message are in the journal now.
    pub(super) fn placed(&mut self, position: u64, frame: Spot, body: Option<&(Place, Arc<Description>)>) {
        if let Some((chunk, index)) = self.at(position)
            && let Some(chunk) = self.chunks.get_mut(chunk)
        {
            Arc::make_mut(chunk).place(index, frame, body);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::bodies::describe;

    fn place() -> (Place, Arc<Description>) {
        let place = Place { segment: 3, offset: 77, length: 9, crc: 5, sealed: true };
        (place, Arc::new(describe("ADT^A01", "application/hl7-v2", None)))
    }

    #[test]
    fn a_placed_reference_says_where_its_header_and_body_are() {
        let mut spine = Spine::default();
        spine.push(10, 100);
        spine.push(11, 99);
        assert_eq!(spine.get(10).unwrap().frame, None);
        spine.placed(11, Spot { segment: 2, offset: 64 }, Some(&place()));
        let reference = spine.get(11).unwrap();
        assert_eq!((reference.id, reference.frame), (99, Some(Spot { segment: 2, offset: 64 })));
        assert_eq!(reference.body.unwrap(), place());
        assert_eq!((spine.find(99), spine.find(100), spine.find(1)), (Some(11), Some(10), None));
    }

    proptest! {
        /// Against a sorted map: whatever is pushed, removed and given back.
        #[test]
        fn it_is_a_line_in_the_order_of_positions(steps in prop::collection::vec((0u8..4, 0usize..4000), 1..400), bulk in 0usize..3000) {
            let mut spine = Spine::default();
            let mut model = std::collections::BTreeMap::new();
            let mut next = 0u64;
            let mut push = |spine: &mut Spine, model: &mut std::collections::BTreeMap<u64, u64>| {
                next += 1;
                let id = 5_000 + next * 2 - next % 3;
                spine.push(next, id);
                model.insert(next, id);
            };
            for _ in 0..bulk {
                push(&mut spine, &mut model);
            }
            let mut taken = Vec::new();
            for (what, which) in steps {
                match what {
                    0 => push(&mut spine, &mut model),
                    1 => {
                        if let Some((position, id)) = model.pop_first() {
                            prop_assert!(spine.remove(position));
                            taken.push((position, id));
                        }
                    }
                    2 => {
                        let position = model.keys().nth(which % model.len().max(1)).copied();
                        if let Some(position) = position {
                            prop_assert!(spine.remove(position));
                            taken.push((position, model.remove(&position).unwrap()));
                        }
                    }
                    _ => {
                        if let Some((position, id)) = taken.pop() {
                            spine.give_back(position, id);
                            model.insert(position, id);
                        }
                    }
                }
                prop_assert_eq!(spine.length(), model.len());
                prop_assert_eq!(spine.first_position(), model.keys().next().copied());
            }
            let first: Vec<_> = spine.first(100).into_iter().map(|one| (one.position, one.id)).collect();
            let expected: Vec<_> = model.iter().take(100).map(|(position, id)| (*position, *id)).collect();
            prop_assert_eq!(first, expected);
            for (position, id) in model {
                prop_assert!(spine.holds(position));
                prop_assert_eq!(spine.find(id), Some(position));
            }
        }
    }
}
