//! Reading a store. Headers, sessions, queues and counters come from memory and are never behind; bodies
//! may have to be read from the journal.

use std::ops::Bound;
use std::sync::PoisonError;

use async_trait::async_trait;
use bytes::Bytes;

use super::bodies::{Absent, Found, Place};
use super::readers::ReadFailure;
use super::search::{self, Compiled};
use super::{
    Class, EventFilter, ItemCounts, MessageFilter, Op, Page, QueueView, ReadError, Store, StoreFailed,
    Transaction, Unavailable, record,
};
use crate::body::Body;
use crate::event::{Event, Level, NewEvent};
use crate::header::Header;
use crate::host::{Keep, KeepFamily};
use crate::id::{BodyId, EventId, ItemName, MessageId, SessionId};

impl Store {
    /// One header.
    pub fn header(&self, id: MessageId) -> Option<Header> {
        self.state().header(id)
    }

    /// The headers of a session in order of their ids.
    pub fn session(&self, id: SessionId) -> Vec<Header> {
        self.state().session(id)
    }

    /// The events of a session, oldest first.
    pub fn session_events(&self, id: SessionId) -> Vec<Event> {
        self.state().session_events(id)
    }

    /// A body, from memory or from the journal (checked against its CRC).
    pub async fn body(&self, id: BodyId) -> Result<Body, ReadError> {
        let absent = match self.0.shared.bodies.find(id).ok_or(ReadError::Gone(id))? {
            Found::Resident(body) => return Ok(body),
            Found::Absent(absent) => absent,
        };
        let store = self.clone();
        let read = tokio::task::spawn_blocking(move || store.read_body(id, &absent));
        let body = read.await.map_err(|error| ReadError::Io(id, error.to_string()))??;
        self.0.shared.bodies.keep(id, &body);
        Ok(body)
    }

    /// Whether a body is in the store, without reading it.
    pub fn has_body(&self, id: BodyId) -> bool {
        self.0.shared.bodies.find(id).is_some()
    }

    fn read_body(&self, id: BodyId, absent: &Absent) -> Result<Body, ReadError> {
        let Some(embedded) = &self.0.embedded else { return Err(ReadError::Gone(id)) };
        let place = &absent.place;
        let damaged = || self.damaged_body(id, place, &embedded.readers.name(place));
        let stored = match embedded.readers.read(place) {
            Ok(stored) => stored,
            Err(ReadFailure::Damaged) => return Err(damaged()),
            Err(ReadFailure::Io(error)) => return Err(ReadError::Io(id, error.to_string())),
        };
        let bytes = record::open_body(stored, place.sealed, &self.0.shared.vault).map_err(|_| damaged())?;
        Ok(absent.body(bytes))
    }

    /// Reports a damaged body, once.
    fn damaged_body(&self, id: BodyId, place: &Place, name: &str) -> ReadError {
        let mut reported = self.0.shared.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let new = reported.insert((place.segment, place.offset));
        drop(reported);
        if new {
            tracing::error!(name: "store.corrupt", place = name, "store.corrupt: body {id} is damaged");
            let text = format!("body {id} is damaged at {name}; everything else is there");
            self.log(NewEvent::new(Level::Error, "store.corrupt", text));
        }
        ReadError::Corrupt { id, place: name.to_owned() }
    }

    /// Items that have queued or suspended messages, or had any: for orphan checks.
    pub fn queued_items(&self) -> Vec<(ItemName, u64)> {
        self.state().queued_items()
    }

    /// All queues of requests.
    pub fn queues(&self) -> Vec<QueueView> {
        self.state().queues()
    }

    /// Counters of one item.
    pub fn counts(&self, item: &ItemName) -> ItemCounts {
        self.state().counts(item)
    }

    /// Messages, newest first; `before` is a cursor from [`Page::next`].
    pub async fn search(
        &self,
        filter: &MessageFilter,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Page<Header>, ReadError> {
        let compiled = Compiled::new(filter, &self.state());
        let mut entries = Vec::new();
        let mut before = before.unwrap_or(u64::MAX);
        loop {
            // One more than asked for: it tells whether there is a next page.
            let wanted = limit.saturating_add(1).saturating_sub(entries.len());
            let (found, rest) = compiled.step(&self.state(), before, wanted);
            match &filter.text {
                None => entries.extend(found),
                Some(text) => {
                    for header in found {
                        if self.body_contains(&header, text).await? {
                            entries.push(header);
                        }
                    }
                }
            }
            match rest {
                Some(rest) if entries.len() <= limit => before = rest,
                _ => break,
            }
            tokio::task::yield_now().await;
        }
        Ok(page(entries, limit, |header| header.id.0))
    }

    /// Whether the body of a message contains a text. A body that is gone contains nothing; neither does a
    /// damaged one, which has been reported when it was read.
    async fn body_contains(&self, header: &Header, text: &str) -> Result<bool, ReadError> {
        let Some(id) = header.body_id else { return Ok(false) };
        match self.body(id).await {
            Ok(body) => Ok(search::contains(body.bytes(), text)),
            Err(ReadError::Gone(_) | ReadError::Corrupt { .. }) => Ok(false),
            Err(error @ ReadError::Io(..)) => Err(error),
        }
    }

    /// Events, newest first; `before` is a cursor from [`Page::next`].
    pub fn events(&self, filter: &EventFilter, before: Option<EventId>, limit: usize) -> Page<Event> {
        let before = before.map_or(u64::MAX, |id| id.0);
        let wanted = limit.saturating_add(1);
        let entries = match filter.session {
            Some(session) => {
                let mut events = self.session_events(session);
                events.retain(|event| event.id.0 < before && search::selects(filter, event));
                events.reverse();
                events.truncate(wanted);
                events
            }
            None => self.newest_events(filter, before, wanted),
        };
        page(entries, limit, |event| event.id.0)
    }

    /// Walks down in short steps, so that a rare kind of event does not keep everybody waiting.
    fn newest_events(&self, filter: &EventFilter, mut before: u64, wanted: usize) -> Vec<Event> {
        let mut found = Vec::new();
        loop {
            let state = self.state();
            let mut looked = 0;
            for (id, event) in state.events.range(..before).rev().take(search::STEP) {
                (before, looked) = (*id, looked + 1);
                if search::selects(filter, event) {
                    found.push(event.clone());
                    if found.len() == wanted {
                        return found;
                    }
                }
            }
            if looked < search::STEP {
                return found;
            }
        }
    }
}

/// A page of at most `limit` of the entries found, and where the next one goes on if there are more.
fn page<T>(mut entries: Vec<T>, limit: usize, id: impl Fn(&T) -> u64) -> Page<T> {
    let more = entries.len() > limit;
    entries.truncate(limit);
    let next = entries.last().map(id).filter(|_| more);
    Page { entries, next, lag_ms: 0 }
}

#[async_trait]
impl Keep for Store {
    fn get(&self, family: KeepFamily, key: &str) -> Option<Bytes> {
        self.state().keep(family)?.get(key).cloned()
    }

    fn scan(&self, family: KeepFamily, prefix: &str) -> Vec<(String, Bytes)> {
        let state = self.state();
        let Some(entries) = state.keep(family) else { return Vec::new() };
        let from = entries.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    async fn put(&self, family: KeepFamily, key: &str, value: Option<Bytes>) -> Result<(), StoreFailed> {
        let bytes = value.as_ref().map_or(0, |value| u64::try_from(value.len()).unwrap_or(u64::MAX));
        let permit = match self.reserve(Class::Completion, bytes).await {
            Ok(permit) => permit,
            Err(Unavailable::Failed(why)) => return Err(why),
            Err(Unavailable::Full) => return Err(StoreFailed("the disk is full".to_owned())),
        };
        let transaction = Transaction::new(vec![Op::Keep(family, key.to_owned(), value)]);
        let committed =
            self.submit(permit, transaction).map_err(|conflict| StoreFailed(conflict.to_string()))?;
        self.durable(committed.sequence).await.map(|_| ())
    }

    fn event(&self, event: NewEvent) {
        self.log(event);
    }
}
