//! Reply actions: what an operation does with a reply or fault (CONTRACT §2.1 "reply actions").
//!
//! A table has the configured entries and the built-ins of its kind of operation. The most specific of
//! the *configured* entries wins (exact code, then class `4xx`, then `*`); only what none of them covers
//! falls to the built-ins, which are resolved the same way.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What to do with a message after a reply or fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Done.
    Complete,
    /// Done, with an event `message.warned`.
    Warn,
    /// Try again after the back-off; later messages wait behind it.
    Retry,
    /// Wait for an operator; the rest goes on.
    Suspend,
    /// The message goes back to its place and the item is switched off.
    Disable,
    /// The message ends with status error.
    Fail,
}

impl Action {
    /// All names, for diagnostics.
    pub const NAMES: [(&'static str, Action); 6] = [
        ("complete", Action::Complete),
        ("warn", Action::Warn),
        ("retry", Action::Retry),
        ("suspend", Action::Suspend),
        ("disable", Action::Disable),
        ("fail", Action::Fail),
    ];
}

/// Which built-ins apply below the configured entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// MLLP: AA,CA complete; AE,CE suspend; AR,CR,none,fault retry; `*` suspend.
    Hl7,
    /// `hl7.http`: as MLLP. Beside the codes of acknowledgements there are those of refusals without one that are
    /// about the message ([`Family::refused`]).
    Hl7OverHttp,
    /// REST: 2xx complete; 401,407,408,429,5xx,fault retry; other 4xx and 3xx suspend.
    Http,
    /// Mail: 2xx complete; 4xx,fault retry, and so does a refused sign-in (530,534,535,538), which is no
    /// fault of the message; other 5xx suspend.
    Smtp,
    /// Operations without replies (files): fault retry; `*` complete.
    Plain,
}

impl Family {
    fn builtin(self, code: &str) -> Action {
        match self {
            Family::Hl7 | Family::Hl7OverHttp => match code {
                "AA" | "CA" => Action::Complete,
                "AR" | "CR" | "none" | "fault" => Action::Retry,
                _ => Action::Suspend,
            },
            Family::Http => match code {
                "401" | "407" | "408" | "429" | "fault" => Action::Retry,
                _ => match code.as_bytes().first() {
                    Some(b'2') => Action::Complete,
                    Some(b'5') => Action::Retry,
                    _ => Action::Suspend,
                },
            },
            Family::Smtp => match code {
                "530" | "534" | "535" | "538" | "fault" => Action::Retry,
                _ => match code.as_bytes().first() {
                    Some(b'2') => Action::Complete,
                    Some(b'4') => Action::Retry,
                    _ => Action::Suspend,
                },
            },
            Family::Plain => match code {
                "fault" => Action::Retry,
                _ => Action::Complete,
            },
        }
    }

    /// Whether an HTTP status by itself refuses the message, rather than saying that it may be taken later.
    pub fn refused(status: u16) -> bool {
        (300..500).contains(&status) && Family::Http.builtin(&status.to_string()) == Action::Suspend
    }

    /// Whether `code` is something this family of operations can see: a code, a class, or `*`.
    pub fn knows(self, code: &str) -> bool {
        let class = code.len() == 3
            && matches!(code.as_bytes(), [b'1'..=b'5', b'x', b'x'] | [b'1'..=b'5', b'0'..=b'9', b'0'..=b'9']);
        match (self, code) {
            (_, "*" | "fault") => true,
            (Family::Hl7 | Family::Hl7OverHttp, "AA" | "AE" | "AR" | "CA" | "CE" | "CR" | "none") => true,
            (Family::Http | Family::Smtp, _) => class,
            (Family::Hl7OverHttp, _) => class && code.starts_with(['3', '4']),
            _ => false,
        }
    }
}

/// The reply actions of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyActions {
    family: Family,
    configured: BTreeMap<String, Action>,
}

/// A mistake in a `reply_actions` table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyActionsError {
    /// The same code twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A code this kind of operation never sees.
    #[error("{0} is no reply code of this kind of operation")]
    Unknown(String),
}

impl ReplyActions {
    /// From a table whose keys are codes or classes, or several separated by commas.
    pub fn new<'a>(
        family: Family,
        entries: impl IntoIterator<Item = (&'a str, Action)>,
    ) -> Result<Self, ReplyActionsError> {
        let mut configured = BTreeMap::new();
        for (keys, action) in entries {
            for code in keys.split(',').map(str::trim) {
                if !family.knows(code) {
                    return Err(ReplyActionsError::Unknown(code.to_owned()));
                }
                if configured.insert(code.to_owned(), action).is_some() {
                    return Err(ReplyActionsError::Twice(code.to_owned()));
                }
            }
        }
        Ok(ReplyActions { family, configured })
    }

    /// Nothing configured: the built-ins alone.
    pub fn builtin(family: Family) -> Self {
        ReplyActions { family, configured: BTreeMap::new() }
    }

    /// What to do with a reply of this code (`AA`, `404`, `none`, `fault`, …).
    pub fn action(&self, code: &str) -> Action {
        let class = match code.as_bytes() {
            [hundreds @ b'1'..=b'5', b'0'..=b'9', b'0'..=b'9'] => {
                Some(format!("{}xx", char::from(*hundreds)))
            }
            _ => None,
        };
        let exact = self.configured.get(code);
        let by_class = || class.as_ref().and_then(|class| self.configured.get(class));
        let any = || self.configured.get("*");
        exact.or_else(by_class).or_else(any).copied().unwrap_or_else(|| self.family.builtin(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(entries: &[(&str, Action)]) -> ReplyActions {
        ReplyActions::new(Family::Http, entries.iter().copied()).unwrap()
    }

    #[test]
    fn the_most_specific_configured_entry_wins() {
        let table = http(&[("*", Action::Fail), ("4xx", Action::Suspend), ("404", Action::Complete)]);
        assert_eq!(table.action("404"), Action::Complete);
        assert_eq!(table.action("409"), Action::Suspend);
        assert_eq!(table.action("500"), Action::Fail);
        assert_eq!(table.action("fault"), Action::Fail);
    }

    #[test]
    fn what_nothing_covers_falls_to_the_built_ins() {
        let table = http(&[("404", Action::Complete)]);
        assert_eq!(table.action("200"), Action::Complete);
        assert_eq!(table.action("302"), Action::Suspend);
        assert_eq!(table.action("401"), Action::Retry);
        assert_eq!(table.action("503"), Action::Retry);
        let hl7 = ReplyActions::new(Family::Hl7, []).unwrap();
        assert_eq!(hl7.action("AE"), Action::Suspend);
        assert_eq!(hl7.action("none"), Action::Retry);
        assert_eq!(hl7.action("ZZ"), Action::Suspend);
        let over_http = ReplyActions::new(Family::Hl7OverHttp, [("404", Action::Retry)]).unwrap();
        let of = |code| over_http.action(code);
        assert_eq!((of("AA"), of("AR"), of("fault")), (Action::Complete, Action::Retry, Action::Retry));
        assert_eq!((of("404"), of("413"), of("302")), (Action::Retry, Action::Suspend, Action::Suspend));
        assert!(ReplyActions::new(Family::Hl7OverHttp, [("503", Action::Fail)]).is_err());
        let mail = ReplyActions::builtin(Family::Smtp);
        let of = |code| mail.action(code);
        assert_eq!((of("250"), of("451"), of("fault")), (Action::Complete, Action::Retry, Action::Retry));
        assert_eq!((of("550"), of("535")), (Action::Suspend, Action::Retry));
    }

    #[test]
    fn several_codes_in_one_key_are_keys_of_their_own_and_none_may_come_twice() {
        assert_eq!(http(&[("408, 429", Action::Fail)]).action("429"), Action::Fail);
        let twice = ReplyActions::new(Family::Http, [("404,409", Action::Fail), ("404", Action::Retry)]);
        assert_eq!(twice.unwrap_err(), ReplyActionsError::Twice("404".into()));
        assert!(ReplyActions::new(Family::Http, [("AA", Action::Fail)]).is_err());
    }
}
