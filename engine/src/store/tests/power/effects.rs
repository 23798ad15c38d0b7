//! What transactions and purges did, and what should be there after them.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;

use crate::header::Status;
use crate::id::SessionId;

/// What one transaction did, as a simple model sees it.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Received {
        id: u64,
        session: SessionId,
        body: u64,
        text: Bytes,
        target: &'static str,
        at: Timestamp,
    },
    Moved {
        id: u64,
        to: Status,
        at: Timestamp,
    },
    Kept {
        key: String,
        value: Option<Bytes>,
    },
    Event {
        text: String,
        session: Option<SessionId>,
        at: Timestamp,
    },
    /// A purge took these.
    Purged {
        messages: Vec<u64>,
        events: Vec<String>,
    },
}

/// What should be there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) messages: BTreeMap<u64, (&'static str, Status, u64, Bytes)>,
    pub(super) sessions: BTreeMap<u64, SessionId>,
    /// When something was last done about a session.
    pub(super) active: BTreeMap<SessionId, Timestamp>,
    pub(super) kept: BTreeMap<String, Bytes>,
    pub(super) events: Vec<(String, Timestamp)>,
    /// Completed and failed at each target, also what has been purged since.
    pub(super) done: BTreeMap<&'static str, (u64, u64)>,
}

impl Model {
    pub(super) fn of(effects: &[Vec<Effect>]) -> Model {
        let mut model = Model::default();
        for effect in effects.iter().flatten().cloned() {
            match effect {
                Effect::Received { id, session, body, text, target, at } => {
                    model.active(session, at);
                    model.sessions.insert(id, session);
                    model.messages.insert(id, (target, Status::Queued, body, text));
                }
                Effect::Moved { id, to, at } => {
                    if to.is_final() {
                        model.active(model.sessions[&id], at);
                    }
                    let message = model.messages.get_mut(&id).unwrap();
                    message.1 = to;
                    let done = model.done.entry(message.0).or_default();
                    done.0 += u64::from(to == Status::Completed);
                    done.1 += u64::from(to == Status::Error);
                }
                Effect::Kept { key, value: Some(value) } => {
                    model.kept.insert(key, value);
                }
                Effect::Kept { key, value: None } => {
                    model.kept.remove(&key);
                }
                Effect::Event { text, session, at } => {
                    if let Some(session) = session {
                        model.active(session, at);
                    }
                    model.events.push((text, at));
                }
                Effect::Purged { messages, events } => {
                    messages.iter().for_each(|id| drop(model.messages.remove(id)));
                    model.events.retain(|(text, _)| !events.contains(text));
                }
            }
        }
        model
    }

    fn active(&mut self, session: SessionId, at: Timestamp) {
        let last = self.active.entry(session).or_insert(at);
        *last = at.max(*last);
    }
}

pub(super) fn brief(model: &Model) -> Vec<(u64, &'static str, Status, usize)> {
    model.messages.iter().map(|(id, m)| (*id, m.0, m.1, m.3.len())).collect()
}
