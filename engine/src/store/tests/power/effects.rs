//! What transactions and purges did, and what should be there after them.

use std::collections::BTreeMap;

use bytes::Bytes;

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
    },
    Moved {
        id: u64,
        to: Status,
    },
    Kept {
        key: String,
        value: Option<Bytes>,
    },
    Event {
        text: String,
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
    pub(super) kept: BTreeMap<String, Bytes>,
    pub(super) events: Vec<String>,
    /// Completed and failed at each target, also what has been purged since.
    pub(super) done: BTreeMap<&'static str, (u64, u64)>,
}

impl Model {
    pub(super) fn of(effects: &[Vec<Effect>]) -> Model {
        let mut model = Model::default();
        for effect in effects.iter().flatten().cloned() {
            match effect {
                Effect::Received { id, session, body, text, target } => {
                    model.sessions.insert(id, session);
                    model.messages.insert(id, (target, Status::Queued, body, text));
                }
                Effect::Moved { id, to } => {
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
                Effect::Event { text } => model.events.push(text),
                Effect::Purged { messages, events } => {
                    messages.iter().for_each(|id| drop(model.messages.remove(id)));
                    model.events.retain(|text| !events.contains(text));
                }
            }
        }
        model
    }
}

pub(super) fn brief(model: &Model) -> Vec<(u64, &'static str, Status, usize)> {
    model.messages.iter().map(|(id, m)| (*id, m.0, m.1, m.3.len())).collect()
}
