//! Folding headers: born, moved and carried, each into its queue and into what the index will get.

use std::sync::Arc;

use jiff::Timestamp;

use super::item::{entry, item};
use super::{State, Touched, Unplaced};
use crate::fault::Fault;
use crate::header::{Header, Kind, Status};
use crate::id::MessageId;
use crate::store::change::Move;
use crate::store::row::Row;

/// One that waits beyond its queue's window.
fn unplaced(sequence: u64, item: u32, row: &Row) -> Unplaced {
    Unplaced { sequence, item, position: row.position, body: row.body_id, parks: None }
}

impl State {
    pub(super) fn add_header(&mut self, header: &Header, sequence: u64, touched: &mut Touched) {
        let id = header.id.0;
        if self.rows.contains_key(&id) {
            return;
        }
        let row = Row::new(header, sequence, &mut self.names);
        self.count_new(id, &row, header.error.as_ref());
        match row.status.is_final() {
            true => self.fresh.settled.push_heavy(sequence, id, row.text_bytes()),
            false => self.fresh.born.push(sequence, id),
        }
        self.enter(header.id, row, touched);
    }

    /// Puts a header into memory and, where it waits, into its queue.
    pub(super) fn enter(&mut self, id: MessageId, row: Row, touched: &mut Touched) {
        self.saw(id.0);
        self.next_position = self.next_position.max(row.position);
        let (sequence, mut deepens, mut parks) = (row.sequence, false, false);
        let window = if self.window.is_some() { self.next_share } else { usize::MAX };
        if let Some((number, item)) = row.target().map(|target| (target, item(&mut self.items, target))) {
            match (row.kind, row.status) {
                (Kind::Request, Status::Queued) => {
                    if item.spine.is_empty() && item.queue.depth() < window {
                        item.queue.push(entry(id, &row));
                    } else {
                        deepens = item.spine.is_empty();
                        item.spine.push(row.position, id.0);
                        self.unplaced.push_back(unplaced(sequence, number, &row));
                        self.fresh.spilled.push_heavy(sequence, id.0, row.text_bytes());
                    }
                }
                (Kind::Request, Status::Suspended) => {
                    item.queue.suspend(id, row.position, &row.order_keys());
                    item.suspended += 1;
                    parks = true;
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
        if deepens {
            self.share_windows();
        }
        self.keep_row(id.0, Arc::new(row));
        if parks {
            self.park(sequence, id.0);
        }
    }

    pub(super) fn keep_row(&mut self, id: u64, row: Arc<Row>) {
        self.by_session.insert((row.session, id));
        if row.body_id != 0 {
            *self.body_users.entry(row.body_id).or_default() += 1;
        }
        self.rows.insert(id, row);
    }

    /// A header is in a newer segment now: the index will have it there. Nothing is counted again.
    pub(super) fn carry(&mut self, header: &Header, sequence: u64, touched: &mut Touched) {
        let id = header.id.0;
        // Whoever looked at memory before, and looks at the index when its file is gone, must look again.
        self.came_back += 1;
        self.stood(sequence, id);
        if let Some(row) = self.rows.get_mut(&id).map(Arc::make_mut) {
            let (position, target) = (row.position, row.target());
            // The segment that has its body now must know of it, or the next purge drops the body.
            match row.status.is_final() {
                true => {
                    row.sequence = sequence;
                    self.fresh.settled.push_heavy(sequence, id, row.text_bytes());
                }
                false => self.fresh.born.push(sequence, id),
            }
            if row.status == Status::Suspended {
                row.sequence = sequence;
                return self.park(sequence, id);
            }
            let unplaced = unplaced(sequence, target.unwrap_or_default(), row);
            let beyond = target.filter(|target| item(&mut self.items, *target).spine.holds(position));
            if let Some(target) = beyond {
                item(&mut self.items, target).spine.unplace(position);
                self.unplaced.push_back(unplaced);
                self.fresh.spilled.push(sequence, id);
            }
            return;
        }
        let row = Row::new(header, sequence, &mut self.names);
        if row.status.is_final() {
            self.fresh.settled.push_heavy(sequence, id, row.text_bytes());
            return self.keep_row(id, Arc::new(row));
        }
        let (position, target) = (row.position, row.target());
        if let Some((number, _)) = self.parked(id) {
            return self.carry_parked(header.id, number, row, touched);
        }
        let beyond = target.filter(|target| item(&mut self.items, *target).spine.holds(position));
        match beyond {
            Some(target) => {
                item(&mut self.items, target).spine.unplace(position);
                self.unplaced.push_back(unplaced(sequence, target, &row));
                self.fresh.born.push(sequence, id);
                self.fresh.spilled.push(sequence, id);
                self.keep_row(id, Arc::new(row));
            }
            // Where the journal begins behind its birth.
            None => {
                self.fresh.born.push(sequence, id);
                self.put_in_line(header.id, row, touched);
            }
        }
    }

    /// One that was suspended and is not in memory.
    fn carry_parked(&mut self, id: MessageId, number: u32, row: Row, touched: &mut Touched) {
        self.fresh.born.push(row.sequence, id.0);
        if row.status == Status::Suspended {
            let sequence = row.sequence;
            self.keep_row(id.0, Arc::new(row));
            return self.park(sequence, id.0);
        }
        // It was resumed when it could not be read.
        let item = item(&mut self.items, number);
        item.unpark(id.0);
        item.queue.take_back(row.position, &row.order_keys());
        item.suspended -= 1;
        self.put_in_line(id, row, touched);
    }

    /// Counts a new header for the item that took it in, and for its target where it is born finished.
    pub(super) fn count_new(&mut self, id: u64, row: &Row, error: Option<&Fault>) {
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

    pub(super) fn move_header(&mut self, change: &Move, sequence: u64, at: Timestamp, touched: &mut Touched) {
        let id = change.id;
        self.stood(sequence, id.0);
        let Some(row) = self.rows.get_mut(&id.0).map(Arc::make_mut) else {
            return self.move_absent(change, at);
        };
        let before = row.status;
        self.leases.remove(&id.0);
        row.change(change, sequence, at);
        let (status, kind, position) = (row.status, row.kind, row.position);
        if status.is_final() && !before.is_final() {
            self.fresh.settled.push_heavy(sequence, id.0, row.text_bytes());
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
        let keys = row.order_keys();
        if before == Status::Suspended {
            item.unpark(id.0);
            item.queue.take_back(position, &keys);
        }
        let queued = matches!(before, Status::Queued | Status::Delivered);
        let window = if self.window.is_some() { self.share } else { usize::MAX };
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
                }
                item.queue.suspend(id, position, &keys);
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

    /// What became of a message that waited and cannot be read: its segment is damaged, or has been purged since
    /// the checkpoint that folding began with. Where it lives on, it comes again as one that was carried.
    fn move_absent(&mut self, change: &Move, at: Timestamp) {
        let Some((number, reference)) = self.absent(change.id).filter(|_| change.to != Status::Queued) else {
            return;
        };
        let window = self.window();
        let item = item(&mut self.items, number);
        match item.parked(change.id.0) {
            Some(_) => {
                item.unpark(change.id.0);
                item.queue.take_back_lost(reference.position);
                item.suspended -= 1;
            }
            None => drop(item.spine.remove(reference.position)),
        }
        let error = change.error.as_ref().and_then(Option::as_ref);
        item.finished(change.to, Some(at).into(), error);
        if item.is_low(window) {
            self.low.insert(number);
        }
    }

    /// Puts a waiting message, whose birth is not in the journal any more, to its place in its queue.
    fn put_in_line(&mut self, id: MessageId, row: Row, touched: &mut Touched) {
        let Some(target) = row.target().filter(|_| (row.kind, row.status) == (Kind::Request, Status::Queued))
        else {
            return self.enter(id, row, touched);
        };
        let item = item(&mut self.items, target);
        let ahead = item.spine.last_position().is_none_or(|last| last < row.position);
        if ahead {
            return self.enter(id, row, touched);
        }
        match item.spine.first_position().is_some_and(|first| first <= row.position) {
            true => item.spine.give_back(row.position, id.0),
            false => item.queue.push(entry(id, &row)),
        }
        touched.push(item.ready.clone());
        self.saw(id.0);
        self.keep_row(id.0, Arc::new(row));
    }
}
