//! What goes in and out of the store: transactions and their guards, receipts, deliveries, filters, views.

use bytes::Bytes;
use jiff::Timestamp;

use crate::body::Body;
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::header::{Header, Kind, Status};
use crate::host::KeepFamily;
use crate::id::{BodyId, ItemName, MessageId, SessionId};

/// Which share of the store's room a permit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// New messages: refused when the disk is full.
    Ingest,
    /// Completions, state, events: served from the reserve when the disk is full.
    Completion,
}

/// Why no permit was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Less than `min_free` is left on the disk.
    #[error("the disk is full")]
    Full,
    /// The store is poisoned or closed.
    #[error(transparent)]
    Failed(#[from] StoreFailed),
}

/// The store can make nothing durable any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store failed: {0}")]
pub struct StoreFailed(pub String);

/// A guard did not hold: somebody else was faster. Nothing was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// There is no such header.
    #[error("there is no message {0}")]
    Unknown(MessageId),
    /// It has another status.
    #[error("message {id} is {status}", status = .status.as_str())]
    Status {
        /// The header.
        id: MessageId,
        /// What it is.
        status: Status,
    },
    /// The lease was fenced (stop, watchdog, discard).
    #[error("the lease on message {0} has ended")]
    Lease(MessageId),
}

/// The right to finish one delivery. A stop, a discard or the watchdog ends it by raising the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The header.
    pub id: MessageId,
    /// The delivery.
    pub generation: u64,
}

/// What must hold for a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The header is delivered under this lease.
    Lease(Lease),
    /// The header has this status.
    Status(Status),
}

/// A change of one header's status.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The header.
    pub id: MessageId,
    /// What must hold.
    pub guard: Guard,
    /// The new status; `Queued` puts it back to its place.
    pub to: Status,
    /// The new error; `None` leaves it as it is, `Some(None)` clears it.
    pub error: Option<Option<Fault>>,
    /// The new number of attempts; `None` leaves it.
    pub attempts: Option<u32>,
    /// With `to: Queued`: not before this moment.
    pub next_attempt: Option<Timestamp>,
    /// When the current run of failures began.
    pub failing_since: Option<Timestamp>,
}

impl Transition {
    /// To `to` under `guard`, changing nothing else.
    pub fn new(id: MessageId, guard: Guard, to: Status) -> Self {
        Transition { id, guard, to, error: None, attempts: None, next_attempt: None, failing_since: None }
    }
}

/// One change.
#[derive(Clone, Debug)]
pub enum Op {
    /// A new body under an id from [`super::Store::next_id`].
    Body(BodyId, Body),
    /// A new header under an id from [`super::Store::next_id`]. With status queued it enters its target's queue
    /// (for a response: the target's queue of responses).
    Header(Box<Header>),
    /// A guarded change of a header.
    Transition(Transition),
    /// A new event; the store gives it id and time.
    Event(NewEvent),
    /// A kept value; sealed at rest.
    Keep(KeepFamily, String, Option<Bytes>),
}

/// Changes that happen together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// In order.
    pub ops: Vec<Op>,
}

impl Transaction {
    /// A transaction of these changes.
    pub fn new(ops: Vec<Op>) -> Self {
        Transaction { ops }
    }
}

/// A transaction that has its place. Not yet durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Committed {
    /// Its place in the order of all transactions.
    pub sequence: u64,
}

/// Proof that everything up to a sequence is on stable storage: positive answers need one (P1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub(super) sequence: u64,
}

impl Receipt {
    /// Everything up to here is durable.
    pub fn sequence(self) -> u64 {
        self.sequence
    }
}

/// Which of an item's two queues: processes have responses of their calls apart from requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lanes {
    /// New requests, scheduled by the item's policy.
    Requests,
    /// Responses to calls of running instances: always FIFO, never held back by the pool.
    Responses,
}

/// A message taken from a queue.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its header; status is delivered, `attempts` counts this delivery.
    pub header: Header,
    /// The right to finish it.
    pub lease: Lease,
    /// It must be durable before any effect of this delivery.
    pub sequence: u64,
    /// It was in the queue when the store was opened: it may have been sent before.
    pub recovered: bool,
    /// It overtakes a suspended message.
    pub overtakes: bool,
}

/// Which messages: the query parameters of `GET /api/v1/messages`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageFilter {
    /// `session`.
    pub session: Option<SessionId>,
    /// `source`.
    pub source: Option<String>,
    /// `target`.
    pub target: Option<String>,
    /// `status`, any of.
    pub status: Vec<Status>,
    /// `type`.
    pub type_name: Option<String>,
    /// `control_id`.
    pub control_id: Option<String>,
    /// `kind`.
    pub kind: Option<Kind>,
    /// `key.NAME`: equality after Unicode normalisation and case folding, all must hold.
    pub keys: Vec<(String, String)>,
    /// `from`, inclusive.
    pub from: Option<Timestamp>,
    /// `to`, exclusive.
    pub to: Option<Timestamp>,
    /// `q`: text in the stored body.
    pub text: Option<String>,
}

/// One page of a list, newest first.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// Where the next page goes on.
    pub next: Option<u64>,
    /// How far the list is behind, in milliseconds; 0 = everything committed before the request is in it.
    pub lag_ms: u64,
    /// Why the list ends before its time: the bound of a search for text was hit; `next` goes on.
    pub incomplete: Option<String>,
}

/// Which events: the query parameters of `GET /api/v1/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// `item`.
    pub item: Option<String>,
    /// `level`.
    pub level: Option<Level>,
    /// `kind`.
    pub kind: Option<String>,
    /// `session`.
    pub session: Option<SessionId>,
}

/// Counters of one item, kept and not scanned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemCounts {
    /// Waiting, in flight included.
    pub queued: u64,
    /// Being worked on.
    pub in_flight: u64,
    /// Completed by this item (services: taken in).
    pub completed: u64,
    /// Ended in error.
    pub errors: u64,
    /// Suspended now.
    pub suspended: u64,
    /// When it last took in, finished or failed a message.
    pub last_activity: Option<Timestamp>,
    /// Code and text of its last error.
    pub last_error: Option<String>,
}

/// One queue as `GET /api/v1/queues` shows it.
#[derive(Clone, Debug)]
pub struct QueueView {
    /// The item.
    pub item: ItemName,
    /// Unfinished entries.
    pub depth: u64,
    /// When its oldest entry was created.
    pub oldest: Option<Timestamp>,
    /// The oldest entry.
    pub head: Option<Header>,
}

/// A body could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It never was, or has been purged.
    #[error("body {0} is not in the store")]
    Gone(BodyId),
    /// The journal is damaged there.
    #[error("body {id} is damaged at {place}")]
    Corrupt {
        /// The body.
        id: BodyId,
        /// File and offset.
        place: String,
    },
    /// The disk did not answer.
    #[error("body {0} could not be read: {1}")]
    Io(BodyId, String),
    /// Index files are being made again, and it may be in one of them.
    #[error("the index is being made again, {left} of {total} segments are left; try again later")]
    Behind {
        /// Segments of the journal that are still to be read.
        left: u64,
        /// Of so many.
        total: u64,
    },
    /// The index could not be read.
    #[error("the search failed: {0}")]
    Search(String),
}
