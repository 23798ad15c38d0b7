//! The state that everything reads, and the one function that changes it for good: [`State::apply`]. It is
//! pure (no time, no randomness, no I/O), so that folding the journal after a crash gives what was there
//! before it. What `apply` does not touch, and a crash therefore forgets, is who holds which lease:
//! `delivered` is only ever set by [`State::take`] and shown as queued after recovery.
//!
//! `apply` never fails. Guards have been checked by [`State::check`] when the transaction was submitted;
//! in recovery a change may name a header that was lost to a damaged part of the journal: it is skipped.

mod paging;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Notify;

pub(super) use self::snapshot::{ItemSnapshot, Snapshot, respine};
use super::api::{Conflict, Delivery, Guard, ItemCounts, Lanes, Lease, QueueView};
use super::change::{Change, Commit, Move, Settling};
use super::fresh::Fresh;
use super::row::{Micros, Names, Row};
use super::spine::Spine;
use crate::event::Event;
use crate::fault::Fault;
use crate::header::{Header, Kind, Status};
use crate::host::KeepFamily;
use crate::id::{ItemName, MessageId, SessionId};
use crate::queue::{Entry, Policy, Queue};

/// Everything but bodies.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) names: Names,
    pub(super) rows: BTreeMap<u64, Box<Row>>,
    pub(super) by_session: BTreeSet<(u64, u64)>,
    pub(super) events: BTreeMap<u64, Event>,
    session_events: BTreeSet<(u64, u64)>,
    items: Vec<Item>,
    keep: BTreeMap<KeepFamily, BTreeMap<String, Bytes>>,
    /// The generation under which each delivered header is out.
    leases: HashMap<u64, u64>,
    generation: u64,
    /// The last transaction folded.
    pub(super) sequence: u64,
    next_position: u64,
    /// The highest id seen anywhere.
    pub(super) highest_id: u64,
    /// Headers below were there when the store was opened.
    opened_at: u64,
    /// The message that the transaction being folded took in: one message may have several first headers.
    took_in: (u64, u32, u64),
    /// What the index does not have yet.
    pub(super) fresh: Fresh,
    /// The keeper has been told that much has gathered.
    pub(super) called: bool,
    /// How many headers in memory have each body.
    body_users: HashMap<u64, u32>,
    /// Born beyond a window and not yet known to be in the journal: transaction, item, position, body.
    unplaced: VecDeque<(u64, u32, u64, u64)>,
    /// Items whose window runs low while messages wait beyond it.
    pub(super) low: BTreeSet<u32>,
    /// How many headers have come back into memory so far.
    pub(super) came_back: u64,
    /// How many entries a queue schedules; what is born beyond them waits in the spine. Without a journal
    /// to read them back from, all.
    window: Option<usize>,
    /// Expired sessions that still have rows in index files, and the last segment that may have any.
    pub(super) dead: HashMap<u64, u64>,
    /// Bodies of what expired in memory: nobody needs them any more.
    expired_bodies: Vec<u64>,
}

/// One item's queues and counters.
#[derive(Debug, Default)]
pub(super) struct Item {
    queue: Queue,
    /// What waits beyond the queue's window.
    pub(super) spine: Spine,
    /// It takes requests: its counters count what it was sent. Otherwise, for services, what it took in.
    receives: bool,
    /// Responses to take, by position; those in flight are not here.
    responses: BTreeMap<u64, u64>,
    ready: Arc<Notify>,
    taken_in: u64,
    rejected: u64,
    completed: u64,
    errors: u64,
    suspended: u64,
    last_activity: Micros,
    last_error: Option<String>,
}

/// Items in which something may have become ready to take.
pub(super) type Touched = Vec<Arc<Notify>>;

impl State {
    /// An empty state whose queues schedule at most this many messages at a time.
    pub(super) fn new(window: usize) -> State {
        State { window: Some(window), ..State::default() }
    }

    fn window(&self) -> usize {
        self.window.unwrap_or(usize::MAX)
    }

    // --- submitting ---

    /// Checks every guard of a transaction, in order, against the state as it would be then.
    pub(super) fn check(&self, changes: &[Settling]) -> Result<(), Conflict> {
        let mut changed: Vec<(MessageId, Status)> = Vec::new();
        for settling in changes {
            let (change, guard) = match (&settling.change, settling.guard) {
                (Change::Move(change), Some(guard)) => (change, guard),
                (Change::Header(header), _) => {
                    changed.push((header.id, header.status));
                    continue;
                }
                _ => continue,
            };
            let id = change.id;
            let earlier = changed.iter().rev().find(|(other, _)| *other == id).map(|(_, status)| *status);
            let stored = self.rows.get(&id.0).map(|row| row.status);
            let status = earlier.or(stored).ok_or(Conflict::Unknown(id))?;
            match guard {
                Guard::Lease(lease) => {
                    if lease.id != id || self.leases.get(&id.0) != Some(&lease.generation) {
                        return Err(Conflict::Lease(id));
                    }
                }
                Guard::Status(expected) if expected != status => return Err(Conflict::Status { id, status }),
                Guard::Status(_) => {}
            }
            if !status.may_become(change.to) {
                return Err(Conflict::Status { id, status });
            }
            changed.push((id, change.to));
        }
        Ok(())
    }

    /// Fills what only the state knows: queue positions, and how often a message was given that is leaving
    /// its delivery (`take` counts in memory only).
    pub(super) fn place(&mut self, changes: &mut [Settling]) {
        for settling in changes {
            match &mut settling.change {
                Change::Header(header) => {
                    self.next_position += 1;
                    header.position = self.next_position;
                }
                Change::Move(change) if change.attempts.is_none() => {
                    let row = self.rows.get(&change.id.0).filter(|row| row.status == Status::Delivered);
                    change.attempts = row.map(|row| row.attempts);
                }
                _ => {}
            }
        }
    }

    // --- folding ---

    /// Folds one transaction.
    pub(super) fn apply(&mut self, commit: &Commit, touched: &mut Touched) {
        self.sequence = self.sequence.max(commit.sequence);
        for change in &commit.changes {
            match change {
                Change::Body(id, _) => {
                    self.saw(id.0);
                    self.fresh.bodies.push(commit.sequence, id.0);
                }
                Change::Header(header) => self.add_header(header, commit.sequence, touched),
                Change::Move(change) => self.move_header(change, commit.sequence, commit.at, touched),
                Change::Event(event) => {
                    self.fresh.events.push(commit.sequence, event.id.0);
                    self.add_event(event);
                }
                Change::Carried(header) => self.carry(header, commit.sequence, touched),
                Change::Expired(last, sessions) => self.expire(*last, sessions),
                Change::Keep(family, key, value) => {
                    let family = self.keep.entry(*family).or_default();
                    match value {
                        Some(value) => family.insert(key.clone(), value.clone()),
                        None => family.remove(key),
                    };
                }
            }
        }
    }

    fn saw(&mut self, id: u64) {
        self.highest_id = self.highest_id.max(id);
    }

    /// Adds an event; also one that cannot be made durable any more.
    pub(super) fn add_event(&mut self, event: &Event) {
        self.saw(event.id.0);
        if let Some(session) = event.session {
            self.session_events.insert((session.0, event.id.0));
        }
        self.events.insert(event.id.0, event.clone());
    }

    fn add_header(&mut self, header: &Header, sequence: u64, touched: &mut Touched) {
        let id = header.id.0;
        if self.rows.contains_key(&id) {
            return;
        }
        let row = Row::new(header, sequence, &mut self.names);
        self.count_new(id, &row, header.error.as_ref());
        match row.status.is_final() {
            true => self.fresh.settled.push(sequence, id),
            false => self.fresh.born.push(sequence, id),
        }
        self.enter(header.id, row, touched);
    }

    /// Puts a header into memory and, where it waits, into its queue.
    fn enter(&mut self, id: MessageId, row: Row, touched: &mut Touched) {
        self.saw(id.0);
        self.next_position = self.next_position.max(row.position);
        let (sequence, window) = (row.sequence, self.window());
        if let Some((number, item)) = row.target().map(|target| (target, item(&mut self.items, target))) {
            match (row.kind, row.status) {
                (Kind::Request, Status::Queued) => {
                    if item.spine.is_empty() && item.queue.depth() < window {
                        item.queue.push(entry(id, &row));
                    } else {
                        item.spine.push(row.position, id.0);
                        self.unplaced.push_back((sequence, number, row.position, row.body_id));
                        self.fresh.spilled.push(sequence, id.0);
                    }
                }
                (Kind::Request, Status::Suspended) => {
                    item.queue.push(entry(id, &row));
                    item.queue.suspend(id);
                    item.suspended += 1;
                }
                (Kind::Response, Status::Queued) => {
                    item.responses.insert(row.position, id.0);
                }
                _ => {}
            }
            item.receives |= row.kind == Kind::Request;
            if row.status == Status::Queued {
                touched.push(item.ready.clone());
            }
        }
        self.keep_row(id.0, row);
    }

    fn keep_row(&mut self, id: u64, row: Row) {
        self.by_session.insert((row.session, id));
        if row.body_id != 0 {
            *self.body_users.entry(row.body_id).or_default() += 1;
        }
        self.rows.insert(id, Box::new(row));
    }

    /// A header is in a newer segment now: the index will have it there. Nothing is counted again.
    fn carry(&mut self, header: &Header, sequence: u64, touched: &mut Touched) {
        let id = header.id.0;
        if let Some(row) = self.rows.get_mut(&id) {
            let (position, target, body) = (row.position, row.target(), row.body_id);
            // The segment that has its body now must know of it, or the next purge drops the body.
            match row.status.is_final() {
                true => {
                    row.sequence = sequence;
                    self.fresh.settled.push(sequence, id);
                }
                false => self.fresh.born.push(sequence, id),
            }
            let beyond = target.filter(|target| item(&mut self.items, *target).spine.holds(position));
            if let Some(target) = beyond {
                self.unplaced.push_back((sequence, target, position, body));
                self.fresh.spilled.push(sequence, id);
            }
            return;
        }
        let row = Row::new(header, sequence, &mut self.names);
        if row.status.is_final() {
            self.fresh.settled.push(sequence, id);
            return self.keep_row(id, row);
        }
        let (position, target, body) = (row.position, row.target(), row.body_id);
        let beyond = target.filter(|target| item(&mut self.items, *target).spine.holds(position));
        match beyond {
            Some(target) => {
                self.unplaced.push_back((sequence, target, position, body));
                self.fresh.born.push(sequence, id);
                self.fresh.spilled.push(sequence, id);
                self.keep_row(id, row);
            }
            // Where the journal begins behind its birth.
            None => {
                self.fresh.born.push(sequence, id);
                self.enter(header.id, row, touched);
            }
        }
    }

    /// Counts a new header for the item that took it in, and for its target where it is born finished.
    fn count_new(&mut self, id: u64, row: &Row, error: Option<&Fault>) {
        if row.came_in() {
            let rejected = row.target().is_none() && row.status == Status::Error;
            let this = (row.sequence, row.source, if row.body_id == 0 { id } else { row.body_id });
            let source = item(&mut self.items, row.source);
            if rejected {
                source.rejected += 1;
                source.last_error = error.map(ToString::to_string);
            } else if self.took_in != this {
                source.taken_in += 1;
            }
            source.last_activity = source.last_activity.max(row.created);
            self.took_in = this;
        }
        if let (Kind::Request, Some(target)) = (row.kind, row.target())
            && row.status.is_final()
        {
            item(&mut self.items, target).finished(row.status, row.created, error);
        }
    }

    fn move_header(&mut self, change: &Move, sequence: u64, at: Timestamp, touched: &mut Touched) {
        let id = change.id;
        let Some(row) = self.rows.get_mut(&id.0) else { return };
        let before = row.status;
        self.leases.remove(&id.0);
        row.change(change, sequence, at);
        let (status, kind, position) = (row.status, row.kind, row.position);
        if status.is_final() && !before.is_final() {
            self.fresh.settled.push(sequence, id.0);
        }
        let Some(target) = row.target() else { return };
        let item = item(&mut self.items, target);
        touched.push(item.ready.clone());
        if kind == Kind::Response {
            item.responses.remove(&position);
            if status == Status::Queued {
                item.responses.insert(position, id.0);
            }
            return;
        }
        let queued = matches!(before, Status::Queued | Status::Delivered);
        let window = self.window.unwrap_or(usize::MAX);
        let beyond = !item.spine.is_empty() && item.spine.first_position().is_some_and(|at| at <= position);
        let waits_beyond = beyond && item.spine.holds(position);
        match status {
            Status::Queued if waits_beyond => {}
            Status::Queued if queued => item.queue.put_back(id, change.next_attempt),
            Status::Queued if beyond => {
                item.queue.finish(id);
                item.spine.give_back(position, id.0);
            }
            Status::Queued => item.queue.push(entry(id, row)),
            Status::Suspended => {
                if waits_beyond {
                    item.spine.remove(position);
                    item.queue.push(entry(id, row));
                }
                item.queue.suspend(id);
            }
            _ if waits_beyond => {
                item.spine.remove(position);
            }
            _ => item.queue.finish(id),
        }
        item.suspended -= u64::from(before == Status::Suspended);
        item.suspended += u64::from(status == Status::Suspended);
        let error = change.error.as_ref().and_then(Option::as_ref);
        item.finished(status, Some(at).into(), error);
        if item.is_low(window) {
            self.low.insert(target);
        }
    }

    /// What is there now was there when the store was opened.
    pub(super) fn opened(&mut self, first_new_id: u64) {
        self.opened_at = first_new_id;
    }

    // --- deliveries: memory only ---

    pub(super) fn item_number(&mut self, name: &ItemName) -> u32 {
        self.names.item(name)
    }

    pub(super) fn configure_queue(&mut self, name: &ItemName, policy: Policy) -> Arc<Notify> {
        let number = self.item_number(name);
        let item = item(&mut self.items, number);
        item.receives = true;
        item.queue.set_policy(policy);
        item.ready.clone()
    }

    pub(super) fn ready(&mut self, name: &ItemName) -> Arc<Notify> {
        let number = self.item_number(name);
        item(&mut self.items, number).ready.clone()
    }

    pub(super) fn take(
        &mut self,
        name: &ItemName,
        lanes: Lanes,
        max: usize,
        now: Timestamp,
    ) -> Vec<Delivery> {
        let Some(item) = self.known_item_mut(name.as_str()) else { return Vec::new() };
        let taken: Vec<(MessageId, bool)> = match lanes {
            Lanes::Requests => {
                item.queue.take(now, max).into_iter().map(|taken| (taken.id, taken.overtakes)).collect()
            }
            Lanes::Responses => {
                let first = std::iter::from_fn(|| item.responses.pop_first());
                first.take(max).map(|(_, id)| (MessageId(id), false)).collect()
            }
        };
        let mut deliveries = Vec::with_capacity(taken.len());
        for (id, overtakes) in taken {
            let lease = self.lease(id);
            let Some(row) = self.rows.get_mut(&id.0) else { continue };
            row.status = Status::Delivered;
            row.attempts = row.attempts.saturating_add(1);
            deliveries.push(Delivery {
                header: row.header(id, &self.names),
                lease,
                sequence: row.sequence,
                recovered: id.0 < self.opened_at,
                overtakes,
            });
        }
        deliveries
    }

    fn lease(&mut self, id: MessageId) -> Lease {
        self.generation += 1;
        self.leases.insert(id.0, self.generation);
        Lease { id, generation: self.generation }
    }

    /// Retries that wait may be taken at once.
    pub(super) fn hurry(&mut self, name: &ItemName) -> Option<Arc<Notify>> {
        let item = self.known_item_mut(name.as_str())?;
        let (waiting, ready) = (item.queue.hurry(), item.ready.clone());
        for id in waiting {
            if let Some(row) = self.rows.get_mut(&id.0) {
                row.hurry();
            }
        }
        Some(ready)
    }

    pub(super) fn next_due(&self, name: &ItemName) -> Option<Timestamp> {
        self.known_item(name.as_str())?.queue.next_due()
    }

    /// `tried`: it may have been worked on; otherwise taking it does not count as an attempt.
    pub(super) fn release(&mut self, lease: Lease, tried: bool) -> Option<Arc<Notify>> {
        let id = lease.id;
        if self.leases.get(&id.0) != Some(&lease.generation) {
            return None;
        }
        self.leases.remove(&id.0);
        let row = self.rows.get_mut(&id.0)?;
        row.status = Status::Queued;
        row.attempts = row.attempts.saturating_sub(u32::from(!tried));
        let item = item(&mut self.items, row.target()?);
        match row.kind {
            Kind::Request => item.queue.put_back(id, None),
            Kind::Response => {
                item.responses.insert(row.position, id.0);
            }
        }
        Some(item.ready.clone())
    }

    pub(super) fn fence(&mut self, id: MessageId) -> Option<Lease> {
        self.leases.contains_key(&id.0).then(|| self.lease(id))
    }

    pub(super) fn adopt(&mut self, id: MessageId) -> Option<Lease> {
        let row = self.rows.get_mut(&id.0)?;
        if row.kind != Kind::Request {
            return None;
        }
        match row.status {
            Status::Delivered => {}
            Status::Queued => {
                let item = item(&mut self.items, row.target()?);
                if item.spine.remove(row.position) {
                    item.queue.push(entry(id, row));
                }
                item.queue.claim(id).then_some(())?;
                row.status = Status::Delivered;
            }
            _ => return None,
        }
        Some(self.lease(id))
    }

    pub(super) fn stall(&mut self, id: MessageId, stalled: bool) -> Option<Arc<Notify>> {
        let item = item(&mut self.items, self.rows.get(&id.0)?.target()?);
        item.queue.stall(id, stalled);
        Some(item.ready.clone())
    }

    // --- reads ---

    fn known_item(&self, name: &str) -> Option<&Item> {
        let number = self.names.known(name)?;
        self.items.get(usize::try_from(number).ok()?)
    }

    fn known_item_mut(&mut self, name: &str) -> Option<&mut Item> {
        let number = self.names.known(name)?;
        self.items.get_mut(usize::try_from(number).ok()?)
    }

    pub(super) fn header(&self, id: MessageId) -> Option<Header> {
        self.rows.get(&id.0).map(|row| row.header(id, &self.names))
    }

    pub(super) fn session(&self, id: SessionId) -> Vec<Header> {
        let ids = self.by_session.range((id.0, 0)..=(id.0, u64::MAX));
        ids.filter_map(|(_, id)| self.header(MessageId(*id))).collect()
    }

    pub(super) fn session_events(&self, id: SessionId) -> Vec<Event> {
        let ids = self.session_events.range((id.0, 0)..=(id.0, u64::MAX));
        ids.filter_map(|(_, id)| self.events.get(id).cloned()).collect()
    }

    pub(super) fn keep(&self, family: KeepFamily) -> Option<&BTreeMap<String, Bytes>> {
        self.keep.get(&family)
    }

    fn named_items(&self) -> impl Iterator<Item = (ItemName, &Item)> {
        let named = |(number, item)| (self.names.name(u32::try_from(number).unwrap_or(u32::MAX)), item);
        self.items.iter().enumerate().map(named)
    }

    pub(super) fn queued_items(&self) -> Vec<(ItemName, u64)> {
        let counted = |(name, item): (ItemName, &Item)| {
            (
                name,
                count(item.queue.depth() + item.spine.length())
                    + count(item.responses.len())
                    + item.suspended,
            )
        };
        self.named_items()
            .filter(|(_, item)| item.receives || !item.responses.is_empty())
            .map(counted)
            .collect()
    }

    /// All queues of requests; a head that is not in memory is given by its id.
    pub(super) fn queues(&self) -> Vec<(QueueView, Option<MessageId>)> {
        let view = |(name, item): (ItemName, &Item)| {
            let beyond = || item.spine.first(1).first().map(|first| MessageId(first.id));
            let id = item.queue.head().or_else(beyond);
            let head = id.and_then(|id| self.header(id));
            let absent = id.filter(|_| head.is_none());
            let oldest = head.as_ref().map(|head| head.created);
            (QueueView { item: name, depth: item.depth(), oldest, head }, absent)
        };
        self.named_items().filter(|(_, item)| item.receives).map(view).collect()
    }

    pub(super) fn counts(&self, name: &ItemName) -> ItemCounts {
        let Some(item) = self.known_item(name.as_str()) else { return ItemCounts::default() };
        let (completed, errors) = match item.receives {
            true => (item.completed, item.errors),
            false => (item.taken_in, item.rejected),
        };
        ItemCounts {
            queued: item.depth(),
            in_flight: count(item.queue.in_flight()),
            completed,
            errors,
            suspended: item.suspended,
            last_activity: item.last_activity.time(),
            last_error: item.last_error.clone(),
        }
    }
}

impl Item {
    /// Its window should be filled from the spine.
    fn is_low(&self, window: usize) -> bool {
        !self.spine.is_empty() && self.queue.depth() <= window / 2
    }

    /// Unfinished messages, wherever they wait.
    fn depth(&self) -> u64 {
        count(self.queue.depth() + self.spine.length())
    }

    /// Counts what became of a request at its target.
    fn finished(&mut self, status: Status, at: Micros, error: Option<&Fault>) {
        self.completed += u64::from(status == Status::Completed);
        self.errors += u64::from(status == Status::Error);
        self.last_activity = self.last_activity.max(at);
        if let Some(error) = error {
            self.last_error = Some(error.to_string());
        }
    }
}

fn entry(id: MessageId, row: &Row) -> Entry {
    Entry { id, position: row.position, keys: row.order_keys(), not_before: row.next_attempt() }
}

/// The item of a number from [`Names`], made at first sight.
#[expect(clippy::indexing_slicing, reason = "the vector has just been grown beyond the index")]
fn item(items: &mut Vec<Item>, number: u32) -> &mut Item {
    let index = usize::try_from(number).unwrap_or_default();
    if items.len() <= index {
        items.resize_with(index + 1, Item::default);
    }
    &mut items[index]
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
