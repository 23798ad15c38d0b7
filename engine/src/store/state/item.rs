//! One item's queues and counters, as the state keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::fault::Fault;
use crate::header::Status;
use crate::id::MessageId;
use crate::queue::{Entry, Queue};
use crate::sorted::Sorted;
use crate::store::row::{Micros, Row};
use crate::store::spine::Spine;
use crate::store::state::Parked;

/// One item's queues and counters.
#[derive(Debug, Default)]
pub(in crate::store) struct Item {
    pub(super) queue: Queue,
    /// What waits beyond the queue's window.
    pub(super) spine: Spine,
    /// Suspended messages that need not be in memory.
    pub(super) parked: Sorted<Parked>,
    /// It takes requests: its counters count what it was sent. Otherwise, for services, what it took in.
    pub(super) receives: bool,
    /// Responses to take, by position; those in flight are not here.
    pub(super) responses: BTreeMap<u64, u64>,
    pub(super) ready: Arc<Notify>,
    pub(super) taken_in: u64,
    pub(super) rejected: u64,
    pub(super) completed: u64,
    pub(super) errors: u64,
    pub(super) suspended: u64,
    pub(super) last_activity: Micros,
    pub(super) last_error: Option<String>,
}

impl Item {
    /// Its window should be filled from the spine.
    pub(super) fn is_low(&self, window: usize) -> bool {
        !self.spine.is_empty() && self.queue.depth() <= window / 2
    }

    /// Unfinished messages, wherever they wait.
    pub(super) fn depth(&self) -> u64 {
        count(self.queue.depth() + self.spine.length())
    }

    /// Counts what became of a request at its target.
    pub(super) fn finished(&mut self, status: Status, at: Micros, error: Option<&Fault>) {
        self.completed += u64::from(status == Status::Completed);
        self.errors += u64::from(status == Status::Error);
        self.last_activity = self.last_activity.max(at);
        if let Some(error) = error {
            self.last_error = Some(error.to_string());
        }
    }
}

pub(super) fn entry(id: MessageId, row: &Row) -> Entry {
    Entry { id, position: row.position, keys: row.order_keys(), not_before: row.next_attempt() }
}

/// The item of a number from [`Names`], made at first sight.
#[expect(clippy::indexing_slicing, reason = "the vector has just been grown beyond the index")]
pub(super) fn item(items: &mut Vec<Item>, number: u32) -> &mut Item {
    let index = usize::try_from(number).unwrap_or_default();
    if items.len() <= index {
        items.resize_with(index + 1, Item::default);
    }
    &mut items[index]
}

pub(super) fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
