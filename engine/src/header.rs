//! Headers: one for each leg of a session, and the one table of their status transitions.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::id::{BodyId, ItemName, MessageId, SessionId};

/// The two kinds of header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `source` sends, `target` receives.
    Request,
    /// `source` answers, `target` asked; `request_id` names its request.
    Response,
}

/// Where a header stands. `Delivered` lives in memory only: recovery shows such headers as queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, not yet in a queue.
    Created,
    /// Waiting in the target's queue.
    Queued,
    /// Being worked on.
    Delivered,
    /// The receiver finished; for a flow: at its end.
    Completed,
    /// The receiver will answer later.
    Deferred,
    /// Will not be processed any more.
    Discarded,
    /// Waits for an operator.
    Suspended,
    /// Stopped by an operator while in a queue.
    Aborted,
    /// Failed.
    Error,
}

impl Status {
    /// Every status with its name.
    pub const ALL: [(Status, &'static str); 9] = [
        (Status::Created, "created"),
        (Status::Queued, "queued"),
        (Status::Delivered, "delivered"),
        (Status::Completed, "completed"),
        (Status::Deferred, "deferred"),
        (Status::Discarded, "discarded"),
        (Status::Suspended, "suspended"),
        (Status::Aborted, "aborted"),
        (Status::Error, "error"),
    ];

    /// `queued`, `delivered`, …
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(status, _)| *status == self).map_or("created", |(_, name)| name)
    }

    /// The status of this name.
    pub fn from_name(name: &str) -> Option<Status> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(status, _)| *status)
    }

    /// No further transition is possible.
    pub fn is_final(self) -> bool {
        matches!(self, Status::Completed | Status::Discarded | Status::Aborted | Status::Error)
    }

    /// Still to be worked on by the engine itself.
    pub fn is_active(self) -> bool {
        matches!(self, Status::Created | Status::Queued | Status::Delivered | Status::Deferred)
    }

    /// Whether a header may go from `self` to `next`.
    pub fn may_become(self, next: Status) -> bool {
        use Status::{Aborted, Completed, Created, Deferred, Delivered, Discarded, Error, Queued, Suspended};
        match self {
            Created => matches!(next, Queued | Completed | Discarded | Error),
            Queued => matches!(next, Delivered | Completed | Discarded | Aborted | Suspended | Error),
            Delivered => {
                matches!(next, Queued | Completed | Deferred | Discarded | Suspended | Aborted | Error)
            }
            Deferred => matches!(next, Completed | Discarded | Error | Queued),
            Suspended => matches!(next, Queued | Discarded),
            Completed | Discarded | Aborted | Error => false,
        }
    }
}

/// Who waits for the answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplyTo {
    /// Nobody: fire and forget.
    #[default]
    Nobody,
    /// The service that sent it, in memory only (an application ack, an HTTP `reply = "wait"`).
    Service,
    /// An instance of the source process, on disk.
    Call {
        /// The request whose handling is the instance.
        instance: MessageId,
        /// Which of its calls.
        call: u64,
    },
}

/// One leg of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its id.
    pub id: MessageId,
    /// The session: the id of its first header.
    pub session: SessionId,
    /// Request or response.
    pub kind: Kind,
    /// For a response: its request.
    pub request_id: Option<MessageId>,
    /// The header being handled when this one was created.
    pub caused_by: Option<MessageId>,
    /// The header that this one resends.
    pub resent_from: Option<MessageId>,
    /// The item that sends or answers.
    pub source: ItemName,
    /// The item that receives or asked; absent for a rejected frame.
    pub target: Option<ItemName>,
    /// `ORU^R01` for HL7, the record type otherwise.
    pub type_name: Arc<str>,
    /// MSH-10; for records that of the session's first message.
    pub control_id: Arc<str>,
    /// Where it stands.
    pub status: Status,
    /// Why it failed or last failed.
    pub error: Option<Fault>,
    /// How often the target has been given it.
    pub attempts: u32,
    /// When it was created.
    pub created: Timestamp,
    /// When it reached a final status.
    pub processed: Option<Timestamp>,
    /// Its body, if any.
    pub body_id: Option<BodyId>,
    /// The body's length in bytes.
    pub size: u64,
    /// Search keys extracted at receipt: patient data.
    pub keys: Arc<[(Arc<str>, String)]>,

    // What follows is the engine's own bookkeeping and is not part of the API.
    /// Who waits for the answer.
    pub reply_to: ReplyTo,
    /// Its place in the target's queue, given by the store when it is committed and kept for life: a
    /// retried or resumed message goes back to it.
    pub position: u64,
    /// Hashes of the target's `order_by` values; empty without `order_by` or where the message has none.
    pub order_keys: Arc<[u64]>,
    /// For a queued header: not before this moment (a retry).
    pub next_attempt: Option<Timestamp>,
    /// When the first of the current run of failed attempts began (`failure_timeout`).
    pub failing_since: Option<Timestamp>,
    /// For a response to a call: given to no process (kept only for the record).
    pub unsolicited: bool,
}

impl Header {
    /// Status error, or a response that carries a fault.
    pub fn is_error(&self) -> bool {
        self.status == Status::Error || (self.kind == Kind::Response && self.error.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_status_is_never_left() {
        for (from, _) in Status::ALL {
            for (to, _) in Status::ALL {
                assert!(!(from.is_final() && from.may_become(to)), "{from:?} -> {to:?}");
            }
        }
    }

    #[test]
    fn names_read_back() {
        for (status, name) in Status::ALL {
            assert_eq!(Status::from_name(name), Some(status));
            assert_eq!(status.as_str(), name);
        }
    }
}
