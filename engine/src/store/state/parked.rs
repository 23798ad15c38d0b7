//! Suspended messages leave memory like those beyond a window: they wait for an operator, and there may be
//! millions. The transaction that suspends one has its header as it stands then ([`State::stands`]); once the index
//! has it too, all that is left is where that is. Whoever wants to change one reads it back: it *visits* memory, and
//! leaves it again if nothing comes of it.
//!
//! Invariants: what is parked is suspended, and nothing has happened to it since the frame named was written; of
//! its rows in the index the newest counts, which is the one in that frame's segment. A message in memory may be
//! parked too.

use std::collections::{HashSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use jiff::Timestamp;

use super::item::{Item, item};
use super::{State, Unplaced};
use crate::header::{Header, Kind, Status};
use crate::id::MessageId;
use crate::store::bodies::Bodies;
use crate::store::change::{Change, Move, Settling};
use crate::store::row::Row;
use crate::store::spine::{Reference, Spot};

/// So many are read back and kept for a while: who resumes one often resumes its neighbours.
const VISITORS: usize = if cfg!(test) { 8 } else { 2048 };
/// How many neighbours are read back with one, and from how many frames.
const NEIGHBOURS: usize = 64;
const FRAMES: usize = 4;

/// Where the header of a suspended message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) struct Parked {
    pub(in crate::store) id: u64,
    pub(in crate::store) position: u64,
    pub(in crate::store) frame: Spot,
}

impl Parked {
    fn lowest(id: u64) -> Parked {
        Parked { id, position: 0, frame: Spot::NOWHERE }
    }

    pub(super) fn reference(self) -> Reference {
        Reference { id: self.id, position: self.position, frame: Some(self.frame), body: None }
    }
}

/// Those that were read back: ids, and the transaction that last changed each.
pub(super) type Visiting = VecDeque<(u64, u64)>;

impl Item {
    pub(super) fn parked(&self, id: u64) -> Option<Parked> {
        self.parked.from(Parked::lowest(id)).next().filter(|parked| parked.id == id)
    }

    pub(super) fn any_parked(&self, ids: &RangeInclusive<u64>) -> bool {
        let first = self.parked.from(Parked::lowest(*ids.start())).next();
        first.is_some_and(|parked| ids.contains(&parked.id))
    }

    /// What was written of it is not how it stands any more.
    pub(super) fn unpark(&mut self, id: u64) {
        if let Some(parked) = self.parked(id) {
            self.parked.remove(&parked);
        }
    }
}

impl State {
    /// What is added to a transaction that suspends messages: each as it will stand. Without a journal to read them
    /// back from, nothing.
    pub(super) fn stands(&self, changes: &[Settling], at: Timestamp) -> Vec<Settling> {
        let stands = |settling: &Settling| {
            let Change::Move(change) = &settling.change else { return None };
            let suspends = self.window.is_some() && change.to == Status::Suspended;
            let once = || changes.iter().filter(|other| other.change.makes(change.id).is_some()).count() == 1;
            let header = (suspends && once()).then(|| self.after(change, at))??;
            Some(Change::Carried(Box::new(header)).into())
        };
        changes.iter().filter_map(stands).collect()
    }

    /// A request as it stands after a change.
    fn after(&self, change: &Move, at: Timestamp) -> Option<Header> {
        let mut row = self.rows.get(&change.id.0)?.as_ref().clone();
        (row.kind == Kind::Request && row.target().is_some()).then_some(())?;
        row.change(change, self.sequence + 1, at);
        Some(row.header(change.id, &self.names))
    }

    /// A suspended message's header as it stands is in this transaction: where, is known when that is durable.
    pub(super) fn park(&mut self, sequence: u64, id: u64) {
        let Some(row) = self.rows.get(&id).filter(|_| self.window.is_some()) else { return };
        let Some(number) = row.target().filter(|_| row.kind == Kind::Request) else { return };
        let (position, body, bytes) = (row.position, row.body_id, row.text_bytes());
        item(&mut self.items, number).unpark(id);
        self.unplaced.push_back(Unplaced { sequence, item: number, position, body, parks: Some(id) });
        self.fresh.spilled.push_heavy(sequence, id, bytes);
    }

    /// The frame with a suspended message's header, as it stood after transaction `sequence`, is durable.
    pub(super) fn place_parked(&mut self, number: u32, parked: Parked, sequence: u64) {
        let stands = |row: &Arc<Row>| row.status == Status::Suspended && row.sequence <= sequence;
        if self.rows.get(&parked.id).is_some_and(stands) {
            item(&mut self.items, number).parked.insert(parked);
        }
    }

    /// Something is done to a suspended message: until that is durable, the index must get it as it was.
    pub(super) fn stood(&mut self, sequence: u64, id: u64) {
        let stood = self.rows.get(&id).filter(|row| {
            self.window.is_some() && row.status == Status::Suspended && row.sequence < sequence
        });
        if let Some(row) = stood.cloned() {
            self.stood.keep_row(sequence, id, row);
        }
    }

    /// Where the header of a suspended message is, and whose queue it would go back to.
    pub(in crate::store) fn parked(&self, id: u64) -> Option<(u32, Parked)> {
        let mut items = self.items.iter().enumerate().filter(|(_, item)| !item.parked.is_empty());
        items.find_map(|(number, item)| Some((u32::try_from(number).ok()?, item.parked(id)?)))
    }

    /// What is to be read back where a message is wanted that is not in memory, and the frame that has itself. `near`:
    /// with those that are likely to be wanted soon.
    pub(in crate::store) fn wanted(
        &self,
        id: MessageId,
        near: bool,
    ) -> Option<(Option<Spot>, Vec<Reference>)> {
        let (item, reference) = self.absent(id)?;
        let frame = reference.frame;
        let all = match self.parked(id.0) {
            Some(_) if near => self.neighbours(item, &reference),
            _ => vec![reference],
        };
        Some((frame, all))
    }

    /// A suspended message and some that are likely to be wanted with it; itself last.
    pub(in crate::store) fn neighbours(&self, number: u32, parked: &Reference) -> Vec<Reference> {
        let item = usize::try_from(number).ok().and_then(|index| self.items.get(index));
        let mut frames: Vec<Option<Spot>> = Vec::with_capacity(FRAMES);
        let behind = item.into_iter().flat_map(|item| item.parked.from(Parked::lowest(parked.id + 1)));
        let near = behind.take(NEIGHBOURS).map(Parked::reference).take_while(|reference| {
            let known = frames.contains(&reference.frame);
            if !known {
                frames.push(reference.frame);
            }
            frames.len() <= FRAMES
        });
        let absent = near.filter(|reference| !self.rows.contains_key(&reference.id));
        let mut all: Vec<Reference> = absent.collect();
        all.push(parked.clone());
        all
    }

    /// Somebody wants to change a suspended message, which has just been read back. Whoever came longest ago, and
    /// nothing became of, leaves memory again: the index has it.
    pub(super) fn visits(&mut self, id: u64, sequence: u64, bodies: &Bodies) {
        self.visiting.push_back((id, sequence));
        let mut released = Vec::new();
        while self.visiting.len() > VISITORS
            && let Some((id, sequence)) = self.visiting.pop_front()
        {
            if self.still_visits(id, sequence) {
                self.drop_row(id, &mut released);
            }
        }
        released.retain(|id| !self.rewritten.contains_key(id));
        drop(bodies.forget(&released));
    }

    fn still_visits(&self, id: u64, sequence: u64) -> bool {
        let row = self.rows.get(&id);
        row.is_some_and(|row| row.sequence == sequence && row.status == Status::Suspended)
            && self.parked(id).is_some()
    }

    /// Those who visit memory: a checkpoint need not have them.
    pub(super) fn visitors(&self) -> HashSet<u64> {
        let still = |(id, sequence): &&(u64, u64)| self.still_visits(*id, *sequence);
        self.visiting.iter().filter(still).map(|(id, _)| *id).collect()
    }

    /// Whether a row that the index has of an unfinished message may count, where memory has none: the newest of those
    /// that may does. An older one, because whoever has been reading for a while does not know of newer files.
    pub(in crate::store) fn may_count(&self, id: u64, segment: u64, suspended: bool) -> bool {
        match self.parked(id) {
            Some((_, parked)) => suspended && segment <= u64::from(parked.frame.segment),
            None => !suspended && self.waits_beyond(id),
        }
    }
}
