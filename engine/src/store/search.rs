//! Which messages and events a filter selects. Searches walk the state from the newest id down, in short
//! steps under the lock; text in bodies is looked for outside of it (see [`super::text`]).

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization as _;

use super::api::{EventFilter, MessageFilter};
use super::row::Row;
use super::state::State;
use crate::event::Event;
use crate::header::Header;
use crate::id::MessageId;

/// How many headers are looked at under one lock.
pub(super) const STEP: usize = 2048;

/// A filter made ready for comparing.
#[derive(Debug)]
pub(super) struct Compiled<'a> {
    filter: &'a MessageFilter,
    /// Numbers of the items named; `Err` = nobody knows that item, so nothing matches.
    source: Option<Result<u32, ()>>,
    target: Option<Result<u32, ()>>,
    keys: Vec<(&'a str, String)>,
}

impl<'a> Compiled<'a> {
    /// The filter against the names that the state knows now.
    pub(super) fn new(filter: &'a MessageFilter, state: &State) -> Self {
        let item = |name: &Option<String>| name.as_ref().map(|name| state.names.known(name).ok_or(()));
        Compiled {
            filter,
            source: item(&filter.source),
            target: item(&filter.target),
            keys: filter
                .keys
                .iter()
                .map(|(name, value)| (name.as_str(), folded(value).into_owned()))
                .collect(),
        }
    }

    fn matches(&self, row: &Row) -> bool {
        let filter = self.filter;
        let created = row.created.time();
        (filter.status.is_empty() || filter.status.contains(&row.status))
            && filter.kind.is_none_or(|kind| kind == row.kind)
            && filter.session.is_none_or(|session| session.0 == row.session)
            && self.source.is_none_or(|source| source == Ok(row.source))
            && self.target.is_none_or(|target| target.ok() == row.target() && target.is_ok())
            && filter.from.is_none_or(|from| created.is_some_and(|created| created >= from))
            && filter.to.is_none_or(|to| created.is_some_and(|created| created < to))
            && filter.type_name.as_ref().is_none_or(|name| **name == *row.type_name)
            && filter.control_id.as_ref().is_none_or(|id| **id == *row.control_id)
            && self.keys.iter().all(|(name, value)| has_key(row, name, value))
    }

    /// Headers below `before` that match, newest first, from at most [`STEP`] looked at; and where the next
    /// step goes on, `None` at the end.
    pub(super) fn step(&self, state: &State, before: u64, limit: usize) -> (Vec<Header>, Option<u64>) {
        let mut found = Vec::new();
        let mut last = None;
        let mut take = |id: u64, row: &Row| {
            last = Some(id);
            if self.matches(row) {
                found.push(row.header(MessageId(id), &state.names));
            }
            found.len() < limit
        };
        let mut looked = 0;
        let mut rest = false;
        match self.filter.session {
            Some(session) => {
                let ids = state.by_session.range((session.0, 0)..(session.0, before)).rev();
                for (_, id) in ids {
                    looked += 1;
                    let Some(row) = state.rows.get(id) else { continue };
                    if !take(*id, row) || looked == STEP {
                        rest = true;
                        break;
                    }
                }
            }
            None => {
                for (id, row) in state.rows.range(..before).rev() {
                    looked += 1;
                    if !take(*id, row) || looked == STEP {
                        rest = true;
                        break;
                    }
                }
            }
        }
        (found, last.filter(|_| rest))
    }
}

fn has_key(row: &Row, name: &str, value: &str) -> bool {
    row.keys.iter().any(|(known, given)| **known == *name && folded(given) == value)
}

/// A key value as it is compared: canonically composed (NFC), case folded. Folding goes through upper case,
/// so that `ß` equals `SS` and the final sigma equals the others.
pub(super) fn folded(value: &str) -> Cow<'_, str> {
    if value.is_ascii() {
        return match value.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(value.to_ascii_lowercase()),
            false => Cow::Borrowed(value),
        };
    }
    let upper = value.nfc().flat_map(char::to_uppercase);
    Cow::Owned(upper.flat_map(char::to_lowercase).nfc().collect())
}

/// Whether an event is one of those asked for.
pub(super) fn selects(filter: &EventFilter, event: &Event) -> bool {
    filter.level.is_none_or(|level| level == event.level)
        && filter.kind.as_ref().is_none_or(|kind| *kind == event.kind)
        && filter.session.is_none_or(|session| event.session == Some(session))
        && filter
            .item
            .as_ref()
            .is_none_or(|name| event.item.as_ref().is_some_and(|item| item.as_str() == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_equal_after_normalisation_and_case_folding() {
        for (one, other) in
            [("Müller", "MU\u{308}LLER"), ("straße", "STRASSE"), ("ΟΔΟΣ", "οδος"), ("abc", "ABC")]
        {
            assert_eq!(folded(one), folded(other), "{one} {other}");
        }
        assert_ne!(folded("a"), folded("b"));
    }
}
