//! The state as a checkpoint keeps it: taken under the lock by counting what is shared, encoded without it. A snapshot put back is the state that folding the same transactions gives, leases excepted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::State;
use super::item::{count, entry, item};
use super::parked::Parked;
use crate::event::Event;
use crate::header::{Header, Kind, Status};
use crate::host::KeepFamily;
use crate::id::{ItemName, MessageId};
use crate::sorted::Sorted;
use crate::store::fresh::Fresh;
use crate::store::row::{Names, Row};
use crate::store::shelf::Shelf;
use crate::store::spine::{Reference, Spine};

/// One item's counters, and what waits beyond its window.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct ItemSnapshot {
    pub(in crate::store) name: String,
    pub(in crate::store) receives: bool,
    pub(in crate::store) taken_in: u64,
    pub(in crate::store) rejected: u64,
    pub(in crate::store) completed: u64,
    pub(in crate::store) errors: u64,
    pub(in crate::store) last_activity: Option<jiff::Timestamp>,
    pub(in crate::store) last_error: Option<String>,
    pub(in crate::store) spine: Spine,
    pub(in crate::store) parked: Sorted<Parked>,
    /// Order keys and positions of what is suspended, those of `parked` among them.
    pub(in crate::store) keys_aside: Sorted<(u64, u64)>,
}

/// Everything that folding the journal up to `sequence` gives, but for what the index has.
#[derive(Debug, Default)]
pub(in crate::store) struct Snapshot {
    pub(in crate::store) sequence: u64,
    pub(in crate::store) next_position: u64,
    pub(in crate::store) highest_id: u64,
    pub(in crate::store) items: Vec<ItemSnapshot>,
    /// Names of the rows' items.
    pub(in crate::store) names: Names,
    /// Headers in memory.
    pub(in crate::store) rows: Vec<(u64, Arc<Row>)>,
    pub(in crate::store) events: Vec<Arc<Event>>,
    pub(in crate::store) keep: BTreeMap<KeepFamily, Shelf>,
    pub(in crate::store) fresh: Fresh,
    pub(in crate::store) dead: HashMap<u64, u64>,
    /// Bodies of headers in memory.
    bodies: Vec<u64>,
}

impl Snapshot {
    /// Headers as a crash would leave them, with the transaction that last changed each. A message that is
    /// being delivered counts as queued.
    pub(in crate::store) fn headers(&self) -> impl Iterator<Item = (Header, u64)> {
        self.rows.iter().map(|(id, row)| (stored(*id, row, &self.names), row.sequence))
    }

    /// Adds a header.
    pub(in crate::store) fn add(&mut self, header: &Header, sequence: u64) {
        let row = Row::new(header, sequence, &mut self.names);
        self.rows.push((header.id.0, Arc::new(row)));
    }

    /// Bodies of headers in memory, and those that the index does not have.
    pub(in crate::store) fn bodies(&self) -> Vec<u64> {
        let fresh = self.fresh.bodies.all().map(|(_, id)| id);
        let mut bodies: Vec<u64> = self.bodies.iter().copied().chain(fresh).collect();
        bodies.sort_unstable();
        bodies.dedup();
        bodies
    }
}

/// A header as a crash would leave it.
pub(super) fn stored(id: u64, row: &Row, names: &Names) -> Header {
    let mut header = row.header(MessageId(id), names);
    if header.status == Status::Delivered {
        header.status = Status::Queued;
        header.attempts = header.attempts.saturating_sub(1);
    }
    header
}

impl State {
    /// A header in memory as a crash would leave it.
    pub(in crate::store) fn stored_header(&self, id: MessageId) -> Option<Header> {
        self.rows.get(&id.0).map(|row| stored(id.0, row, &self.names))
    }

    /// What is there now.
    pub(in crate::store) fn snapshot(&self) -> Snapshot {
        let items = self.named_items().map(|(name, item)| ItemSnapshot {
            name: name.as_str().to_owned(),
            receives: item.receives,
            taken_in: item.taken_in,
            rejected: item.rejected,
            completed: item.completed,
            errors: item.errors,
            last_activity: item.last_activity.time(),
            last_error: item.last_error.clone(),
            spine: item.spine.clone(),
            parked: item.parked.clone(),
            keys_aside: item.queue.keys_aside().clone(),
        });
        let visitors = self.visitors();
        let stays = |(id, _): &(&u64, &Arc<Row>)| !visitors.contains(id);
        Snapshot {
            sequence: self.sequence,
            next_position: self.next_position,
            highest_id: self.highest_id,
            items: items.collect(),
            names: self.names.items(),
            rows: self.rows.iter().filter(stays).map(|(id, row)| (*id, row.clone())).collect(),
            events: self.events.values().cloned().collect(),
            keep: self.keep.clone(),
            fresh: self.fresh.clone(),
            dead: self.dead.clone(),
            bodies: self.body_users.keys().copied().collect(),
        }
    }

    /// The state of a snapshot.
    pub(in crate::store) fn restore(snapshot: Snapshot, window: usize) -> State {
        let mut state = State::new(window);
        state.sequence = snapshot.sequence;
        state.next_position = snapshot.next_position;
        state.highest_id = snapshot.highest_id;
        state.keep = snapshot.keep;
        state.dead = snapshot.dead;
        state.names = snapshot.names;
        for saved in snapshot.items {
            let number = state.names.item(&ItemName::new(&saved.name));
            let item = item(&mut state.items, number);
            item.receives = saved.receives;
            item.taken_in = saved.taken_in;
            item.rejected = saved.rejected;
            item.completed = saved.completed;
            item.errors = saved.errors;
            item.last_activity = saved.last_activity.into();
            item.last_error = saved.last_error;
            item.spine = saved.spine;
            item.suspended = count(saved.parked.len());
            let positions = saved.parked.iter().map(|parked| parked.position).collect();
            item.queue.set_aside(&positions, &saved.keys_aside);
            item.parked = saved.parked;
        }
        for (id, row) in snapshot.rows {
            state.put_back(id, row);
        }
        for event in snapshot.events {
            state.put_event(event);
        }
        state.fresh = snapshot.fresh;
        // Which of them were written again is not known.
        for (_, id) in state.fresh.bodies.all() {
            *state.rewritten.entry(id).or_default() += 1;
        }
        state.share_windows();
        let window = state.window();
        let low = state.items.iter().enumerate().filter(|(_, item)| item.is_low(window));
        state.low = low.filter_map(|(number, _)| u32::try_from(number).ok()).collect();
        state
    }

    /// A header in its place: nothing is counted, only what is counted while it lasts.
    fn put_back(&mut self, number: u64, row: Arc<Row>) {
        let id = MessageId(number);
        if let Some(item) = row.target().map(|target| item(&mut self.items, target)) {
            match (row.kind, row.status) {
                (Kind::Request, Status::Queued) if item.spine.holds(row.position) => {}
                (Kind::Request, Status::Queued) => item.queue.push(entry(id, &row)),
                (Kind::Request, Status::Suspended) => {
                    item.queue.suspend(id, row.position, &row.order_keys());
                    item.suspended += u64::from(item.parked(number).is_none());
                }
                (Kind::Response, Status::Queued) => {
                    item.responses.insert(row.position, number);
                }
                _ => {}
            }
        }
        self.keep_row(number, row);
    }
}

/// What a spine's references are in a checkpoint.
pub(in crate::store) fn respine(references: impl IntoIterator<Item = Reference>) -> Spine {
    let mut references: Vec<Reference> = references.into_iter().collect();
    references.sort_by_key(|reference| reference.position);
    let mut spine = Spine::default();
    for reference in references {
        spine.push(reference.position, reference.id);
        if let Some(frame) = reference.frame {
            spine.placed(reference.position, frame, reference.body.as_ref());
        }
    }
    spine
}
