//! What left memory because its session expired, until the transaction that says so is durable. A segment may
//! end meanwhile, and its index file be made: it must have these rows, because after a crash the session has
//! not expired, and nobody else would show them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::Event;
use crate::store::row::Row;

/// Rows and events with the transaction that they expired in.
#[derive(Debug, Default)]
pub(super) struct Expired {
    rows: BTreeMap<u64, (u64, Arc<Row>)>,
    events: BTreeMap<u64, (u64, Arc<Event>)>,
}

impl Expired {
    pub(super) fn add_row(&mut self, sequence: u64, id: u64, row: Arc<Row>) {
        self.rows.insert(id, (sequence, row));
    }

    /// As [`Expired::add_row`], unless there is one from before.
    pub(super) fn keep_row(&mut self, sequence: u64, id: u64, row: Arc<Row>) {
        self.rows.entry(id).or_insert((sequence, row));
    }

    pub(super) fn add_event(&mut self, sequence: u64, id: u64, event: Arc<Event>) {
        self.events.insert(id, (sequence, event));
    }

    /// A header that had not expired yet when transaction `last` was made.
    pub(super) fn row(&self, id: u64, last: u64) -> Option<&Arc<Row>> {
        self.rows.get(&id).filter(|(sequence, _)| *sequence > last).map(|(_, row)| row)
    }

    /// An event that had not expired yet when transaction `last` was made.
    pub(super) fn event(&self, id: u64, last: u64) -> Option<&Arc<Event>> {
        self.events.get(&id).filter(|(sequence, _)| *sequence > last).map(|(_, event)| event)
    }

    /// What expired up to transaction `last` did so for good.
    pub(super) fn durable(&mut self, last: u64) {
        if !self.rows.is_empty() || !self.events.is_empty() {
            self.rows.retain(|_, (sequence, _)| *sequence > last);
            self.events.retain(|_, (sequence, _)| *sequence > last);
        }
    }
}
