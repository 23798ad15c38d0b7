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
        Err(OperationError { disposition, fault, retry_after }) => {
            let action = match disposition {
                Disposition::ByCode(code) => actions.action(code),
                Disposition::Suspend => Action::Suspend,
            };
            let retry_after = retry_after.map(|seconds| Duration::from_secs(seconds.into()));
            Verdict { action, code: fault.code.clone(), fault: Some(fault), body: None, retry_after }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::director::tests::support::{common, header};
    use crate::reply::Family;

    fn replied(code: &str, retry_after: Option<u64>) -> Result<Outcome, OperationError> {
        let retry_after = retry_after.map(Duration::from_secs);
        Ok(Outcome::Replied { code: code.into(), body: None, fault: None, retry_after })
    }

    fn wait(attempts: u32, retry_after: Option<u64>) -> i64 {
        let verdict = judge(replied("503", retry_after), &ReplyActions::builtin(Family::Http));
        assert_eq!(verdict.action, Action::Retry);
        let now = Timestamp::from_second(1000).unwrap();
        let failed = Header { attempts, ..header() };
        match verdict.retry(&failed, &common(), now) {
            Retry::At(at, since) => {
                assert_eq!(since, now);
                at.duration_since(now).as_secs()
            }
            Retry::GiveUp => panic!("there is no failure_timeout"),
        }
    }

    #[test]
    fn a_wait_doubles_up_to_a_minute_and_respects_retry_after() {
        assert_eq!([1, 2, 3, 4, 5, 99].map(|attempts| wait(attempts, None)), [5, 10, 20, 40, 60, 60]);
        assert_eq!(wait(1, Some(120)), 120);
        assert_eq!(wait(4, Some(1)), 40, "never sooner than our own");
        assert_eq!(wait(1, Some(u64::MAX)), 3600, "a day in a header is no day of silence");
    }

    #[test]
    fn a_code_that_does_not_complete_is_the_error_and_one_that_does_keeps_its_fault_for_the_caller() {
        let refused = judge(replied("404", None), &ReplyActions::builtin(Family::Http));
        assert_eq!(refused.fault.unwrap().to_string(), "404: the peer answered 404");
        let mistyped = Outcome::Replied {
            code: "200".into(),
            body: None,
            fault: Some(Fault::new("message", "reply", "Reply.status is missing")),
            retry_after: None,
        };
        let kept = judge(Ok(mistyped), &ReplyActions::builtin(Family::Http));
        assert_eq!((kept.action, kept.fault.unwrap().name), (Action::Complete, "message".into()));
        let wrong = judge(Err(OperationError::message("path", "x")), &ReplyActions::builtin(Family::Http));
        assert_eq!(wrong.action, Action::Suspend);
        let plain = ReplyActions::builtin(Family::Plain);
        assert_eq!(judge(Ok(Outcome::Sent), &plain).action, Action::Complete);
    }
}
