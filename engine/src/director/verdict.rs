//! What an operation's outcome means for its message: the pure part of delivery. Reply actions turn a code
//! into an [`Action`]; time and settings turn a retry into a moment or, after `failure_timeout`, into a
//! suspension.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::body::Body;
use crate::config::settings::Common;
use crate::fault::Fault;
use crate::header::Header;
use crate::host::{Disposition, OperationError, Outcome};
use crate::reply::{Action, ReplyActions};

/// Waits between attempts never grow beyond this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A peer's `Retry-After` is believed up to this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Retrying for this long is worth an alert.
pub(super) const ALERT_AFTER: SignedDuration = SignedDuration::from_mins(5);

/// An outcome, judged.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) action: Action,
    /// The peer's code, for events.
    pub(super) code: String,
    /// Why it is not well; with a completing action what the caller gets along with the reply.
    pub(super) fault: Option<Fault>,
    /// The reply worth keeping.
    pub(super) body: Option<Body>,
    retry_after: Option<Duration>,
}

/// Looks the outcome up in the reply actions.
pub(super) fn judge(outcome: Result<Outcome, OperationError>, actions: &ReplyActions) -> Verdict {
    match outcome {
        Ok(Outcome::Sent) => Verdict {
            action: Action::Complete,
            code: "sent".to_owned(),
            fault: None,
            body: None,
            retry_after: None,
        },
        Ok(Outcome::Replied { code, body, fault, retry_after }) => {
            let action = actions.action(&code);
            let completes = matches!(action, Action::Complete | Action::Warn);
            let said = || Fault::new("call", code.clone(), format!("the peer answered {code}"));
            let fault = if completes { fault } else { Some(fault.unwrap_or_else(said)) };
            Verdict { action, fault, body, retry_after, code }
        }
        Err(OperationError { disposition, fault }) => {
            let action = match disposition {
                Disposition::ByCode(code) => actions.action(code),
                Disposition::Suspend => Action::Suspend,
            };
            Verdict { action, code: fault.code.clone(), fault: Some(fault), body: None, retry_after: None }
        }
    }
}

/// When a message that must be retried comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// Not before this moment; failing since that one.
    At(Timestamp, Timestamp),
    /// It has failed for `failure_timeout`.
    GiveUp,
}

impl Verdict {
    /// Doubles the wait with every attempt up to a minute, or waits as long as the peer asked.
    pub(super) fn retry(&self, header: &Header, common: &Common, now: Timestamp) -> Retry {
        let since = header.failing_since.unwrap_or(now);
        let timeout = common.failure_timeout.and_then(|timeout| SignedDuration::try_from(timeout).ok());
        if timeout.is_some_and(|timeout| now.duration_since(since) >= timeout) {
            return Retry::GiveUp;
        }
        let first = common.retry_interval;
        let doublings = header.attempts.saturating_sub(1).min(16);
        let wait = first.saturating_mul(1 << doublings).min(LONGEST_WAIT.max(first));
        let asked = self.retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
        let wait = SignedDuration::try_from(wait.max(asked)).unwrap_or(SignedDuration::MAX);
        Retry::At(now.saturating_add(wait).unwrap_or(Timestamp::MAX), since)
    }
}
