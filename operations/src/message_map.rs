//! The message map of an operation over HTTP, `requests`: message type → what is sent for it. What an entry
//! says differs from class to class; that there must be one, how its reply is typed and how a message finds its
//! own does not.

use std::collections::BTreeMap;

use septet_engine::config::build::{At, Build};
use septet_engine::config::units::Ordered;
use septet_engine::host::{OperationContext, OperationError};

use crate::http_template::UNDECLARED;

/// The entries of a message map, checked.
pub(crate) struct MessageMap<P> {
    /// What a message type is mapped to: `a request`.
    what: &'static str,
    entries: BTreeMap<String, P>,
}

impl<P> MessageMap<P> {
    /// A map whose every entry is what `plan` makes of it; `what` names one in texts. `None` where an entry is
    /// wrong, which `plan` has reported, or there is none, which is reported here.
    pub(crate) fn check<R>(
        build: &mut Build<'_>,
        what: &'static str,
        requests: &Ordered<R>,
        mut plan: impl FnMut(&mut Build<'_>, &str, &R) -> Option<P>,
    ) -> Option<MessageMap<P>> {
        if requests.is_empty() {
            let text = format!("no message type is mapped to {what}");
            let suggestion = Some(format!("add [operations.{}.requests.TYPE]", build.item));
            build.error("S0334", &[At::Key("requests")], text, suggestion);
            return None;
        }
        // All of them, so that all problems are reported.
        let plans: Vec<_> = requests
            .iter()
            .map(|(name, request)| Some((name.to_owned(), plan(build, name, request)?)))
            .collect();
        Some(MessageMap { what, entries: plans.into_iter().collect::<Option<_>>()? })
    }

    /// A map as it is after checking.
    #[cfg(test)]
    pub(crate) fn of<const N: usize>(what: &'static str, entries: [(String, P); N]) -> Self {
        MessageMap { what, entries: entries.into() }
    }

    /// The entry for the message of `cx`.
    pub(crate) fn plan(&self, cx: &OperationContext) -> Result<&P, OperationError> {
        let type_name = cx.body.type_name();
        let unmapped = || {
            let what = self.what.rsplit(' ').next().unwrap_or(self.what);
            OperationError::message("request", format!("no {what} is mapped to messages of type {type_name}"))
        };
        self.entries.get(type_name).ok_or_else(unmapped)
    }
}

/// Checks the key `reply` of the entry for messages of type `name`: the declared type of its replies, if it has
/// one. A type that does not exist is reported.
pub(crate) fn check_reply(
    build: &mut Build<'_>,
    name: &str,
    reply: Option<&String>,
) -> Option<Option<String>> {
    let Some(reply) = reply.filter(|reply| !UNDECLARED.contains(&reply.as_str())) else {
        return Some(None);
    };
    let at = [At::Key("requests"), At::Key(name), At::Key("reply")];
    build.message_type(&at, reply).then(|| Some(reply.clone()))
}
