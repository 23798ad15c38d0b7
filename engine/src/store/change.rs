//! A transaction after `submit` has settled everything that was open in it: positions, event ids, times,
//! attempts. It is what [`super::state::State::apply`] folds, what the journal writes, and what recovery
//! reads back: the three must mean the same thing.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::api::{Guard, Transition};
use crate::body::Body;
use crate::event::Event;
use crate::fault::Fault;
use crate::header::{Header, Status};
use crate::host::KeepFamily;
use crate::id::{BodyId, MessageId};

/// One settled transaction.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    /// Its place in the order of all transactions.
    pub(super) sequence: u64,
    /// When it was submitted.
    pub(super) at: Timestamp,
    /// What it changes, in order.
    pub(super) changes: Vec<Change>,
}

/// One settled change.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A new body.
    Body(BodyId, Body),
    /// A new header; its position is set.
    Header(Box<Header>),
    /// A change of a header's status; guards have been checked.
    Move(Move),
    /// A new event.
    Event(Arc<Event>),
    /// A kept value in clear, or its removal.
    Keep(KeepFamily, String, Option<Bytes>),
    /// A header as it stands, written again because the segment that has it is about to be dropped.
    Carried(Box<Header>),
    /// Expired sessions, of which segments up to this one may still have rows.
    Expired(u64, Vec<u64>),
}

impl Change {
    /// The status that it gives a header, if it is about that one.
    pub(super) fn makes(&self, id: MessageId) -> Option<Status> {
        match self {
            Change::Header(header) if header.id == id => Some(header.status),
            Change::Move(change) if change.id == id => Some(change.to),
            _ => None,
        }
    }
}

/// A settled transition.
#[derive(Clone, Debug)]
pub(super) struct Move {
    /// The header.
    pub(super) id: MessageId,
    /// Its new status.
    pub(super) to: Status,
    /// Its new error; `None` leaves it, `Some(None)` clears it.
    pub(super) error: Option<Option<Fault>>,
    /// Its new number of attempts; `None` leaves it.
    pub(super) attempts: Option<u32>,
    /// Not before this moment.
    pub(super) next_attempt: Option<Timestamp>,
    /// When the current run of failures began.
    pub(super) failing_since: Option<Timestamp>,
}

/// A change on its way to being settled: under the lock its guard is checked and its open places are filled.
#[derive(Debug)]
pub(super) struct Settling {
    /// The change.
    pub(super) change: Change,
    /// What must hold.
    pub(super) guard: Option<Guard>,
}

impl From<Change> for Settling {
    fn from(change: Change) -> Self {
        Settling { change, guard: None }
    }
}

impl From<Transition> for Settling {
    fn from(transition: Transition) -> Self {
        let Transition { id, guard, to, error, attempts, next_attempt, failing_since } = transition;
        let change = Change::Move(Move { id, to, error, attempts, next_attempt, failing_since });
        Settling { change, guard: Some(guard) }
    }
}
