//! Reading a store: memory first, then the index for what has left memory, then the journal for bodies.
//! Nothing is ever behind, unless index files are being made again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::bodies::{Absent, Found, Place};
use super::index::{Cursor, Index, Searched};
use super::lag::Watch;
use super::overlay::Memory;
use super::readers::ReadFailure;
use super::search::{self, Compiled};
use super::{
    Class, Embedded, EventFilter, IndexProgress, ItemCounts, MessageFilter, Op, Page, QueueView, ReadError,
    Store, StoreFailed, Task, Transaction, Unavailable, index, record, text,
};
use crate::body::Body;
use crate::event::{Event, NewEvent};
use crate::header::Header;
use crate::host::{Keep, KeepFamily};
use crate::id::{BodyId, EventId, ItemName, MessageId, SessionId};

/// How long one message waits for index files that are being made again, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(10);
const NAP: Duration = Duration::from_millis(20);

impl Store {
    /// One header. One that is not in memory is read from the disk.
    pub fn header(&self, id: MessageId) -> Option<Header> {
        let recent = self.state().header(id);
        let found =
            recent.or_else(|| self.indexed(|index| index.header(id, &mut Memory(&self.0.shared))).flatten());
        found.or_else(|| self.waiting_header(id))
    }

    /// The headers of a session in order of their ids; those that are not in memory are read from the disk.
    pub fn session(&self, id: SessionId) -> Vec<Header> {
        let recent = self.state().session(id);
        let Some((headers, _)) = self.indexed_session(id) else { return recent };
        // What came back into memory meanwhile was not counted by the index.
        let mut now = self.state().session(id);
        now.extend(recent);
        merged(now, headers, |header| header.id.0)
    }

    /// The events of a session, oldest first; those that are not in memory are read from the disk.
    pub fn session_events(&self, id: SessionId) -> Vec<Event> {
        let recent = self.state().session_events(id);
        let Some((_, events)) = self.indexed_session(id) else { return recent };
        // What was carried meanwhile is in memory again.
        let mut now = self.state().session_events(id);
        now.extend(recent);
        merged(now, events, |event| event.id.0)
    }

    /// What the index has of a session. Asked after memory: what left memory meanwhile is in the index.
    fn indexed_session(&self, id: SessionId) -> Option<(Vec<Header>, Vec<Event>)> {
        self.indexed(|index| index.session(id, &mut Memory(&self.0.shared)))
    }

    /// What the index says. A broken file is reported and left out; messages flow on.
    pub(super) fn indexed<T>(&self, ask: impl Fn(&Index) -> Result<T, index::Error>) -> Option<T> {
        let embedded = self.0.embedded.as_ref()?;
        loop {
            match ask(&embedded.index) {
                Ok(found) => return Some(found),
                Err(error) if self.left_out(embedded, &error) => {}
                Err(_) => return None,
            }
        }
    }

    /// Reports what the index could not read. A broken file is taken out and made again by the keeper; until
    /// then lists say that they are behind. Whether to ask again without it.
    fn left_out(&self, embedded: &Embedded, error: &index::Error) -> bool {
        self.leave_out_broken(embedded);
        error.is_of_a_file()
    }

    /// Takes out what somebody found broken.
    pub(super) fn leave_out_broken(&self, embedded: &Embedded) {
        if let Some(below) = embedded.index.broken_below() {
            // Before it is out: whoever reads without it learns that something is missing.
            self.0.shared.lag.begin(self.clock().now(), below);
        }
        let broken = embedded.index.take_broken();
        broken.iter().for_each(|file| self.0.shared.report_broken(file));
        if !broken.is_empty() {
            // One that is too busy to hear looks by itself before long.
            embedded.keeper.tell(Task::Missing);
        }
        self.log_told();
    }

    /// A body, from memory or from the journal (checked against its CRC).
    pub async fn body(&self, id: BodyId) -> Result<Body, ReadError> {
        let absent = match self.0.shared.bodies.find(id) {
            Some(Found::Resident(body)) => return Ok(body),
            Some(Found::Absent(absent)) => Some(absent),
            None => None,
        };
        if let Some(body) = absent.as_ref().and_then(|absent| self.body_at_hand(absent)) {
            self.0.shared.bodies.keep(id, &body);
            return Ok(body);
        }
        let body = match self.body_on_disk(id, absent).await {
            Err(ReadError::Gone(_)) if self.0.shared.lag.may_lack(id.0) => {
                self.until_indexed(id.0).await?;
                self.body_on_disk(id, None).await?
            }
            body => body?,
        };
        self.0.shared.bodies.keep(id, &body);
        Ok(body)
    }

    async fn body_on_disk(&self, id: BodyId, absent: Option<Absent>) -> Result<Body, ReadError> {
        let store = self.clone();
        let read = tokio::task::spawn_blocking(move || store.absent_body(id, absent));
        read.await.map_err(|error| ReadError::Io(id, error.to_string()))?
    }

    /// Returns when the index has everything of the session that began with this message: unless index files are
    /// being made again, that is at once.
    pub async fn until_indexed(&self, id: u64) -> Result<(), ReadError> {
        self.patiently(id, || None).await.map(|_: Option<()>| ())
    }

    /// One header, which is waited for while the index file that may have it is being made again.
    pub async fn find(&self, id: MessageId) -> Result<Option<Header>, ReadError> {
        let found = self.patiently(id.0, || self.header(id)).await?;
        Ok(found.or_else(|| self.header(id)))
    }

    /// Looks until it is found, or until the index has everything of this id.
    async fn patiently<T>(&self, id: u64, look: impl Fn() -> Option<T>) -> Result<Option<T>, ReadError> {
        let lag = &self.0.shared.lag;
        let mut left = PATIENCE.as_millis() / NAP.as_millis();
        loop {
            let found = look();
            if found.is_some() || !lag.may_lack(id) {
                return Ok(found);
            }
            left = left.checked_sub(1).ok_or_else(|| {
                let IndexProgress { left, total, .. } = lag.progress(self.clock().now());
                ReadError::Behind { left, total }
            })?;
            tokio::time::sleep(NAP).await;
        }
    }

    /// Reads a body that is not in memory. Its segment may be purged meanwhile: then it is gone, or it was
    /// carried and is elsewhere.
    fn absent_body(&self, id: BodyId, mut known: Option<Absent>) -> Result<Body, ReadError> {
        let mut tried = None;
        loop {
            let absent = match known.take().or_else(|| self.indexed_body(id)) {
                Some(absent) => absent,
                None => match self.0.shared.bodies.find(id) {
                    Some(Found::Resident(body)) => return Ok(body),
                    Some(Found::Absent(absent)) => absent,
                    None => return Err(ReadError::Gone(id)),
                },
            };
            match (self.read_body(id, &absent), tried) {
                (Err(ReadError::Io(..)), Some(place)) if place == absent.place && self.is_dropped(&place) => {
                    return Err(ReadError::Gone(id));
                }
                (Err(ReadError::Io(..)), before) if before != Some(absent.place) => {
                    tried = Some(absent.place);
                }
                (read, _) => return read,
            }
        }
    }

    fn is_dropped(&self, place: &Place) -> bool {
        self.0.embedded.as_ref().is_some_and(|embedded| embedded.readers.is_dropped(place.segment))
    }

    /// Which of these bodies cannot be given out, and why. They are read in the order of the journal, as far as
    /// there is `room` for so many bytes; beyond it, only those that are not in the store are found.
    pub fn unusable_bodies(&self, ids: &BTreeSet<BodyId>, room: &mut u64) -> HashMap<BodyId, ReadError> {
        let (mut absent, mut unknown) = (Vec::new(), Vec::new());
        for id in ids.iter().copied() {
            match self.0.shared.bodies.find(id) {
                Some(Found::Resident(_)) => {}
                Some(Found::Absent(known)) => absent.push((id, known)),
                None => unknown.push(id),
            }
        }
        let indexed = self.indexed(|index| index.bodies(&unknown)).unwrap_or_default();
        let indexed: HashMap<BodyId, Absent> = indexed
            .into_iter()
            .map(|row| (row.id, Absent { place: row.place, kind: Arc::new(row.kind) }))
            .collect();
        // One that was carried meanwhile is in memory again.
        let gone = |id: &BodyId| !indexed.contains_key(id) && self.0.shared.bodies.find(*id).is_none();
        let gone = unknown.into_iter().filter(gone);
        let mut unusable: HashMap<BodyId, ReadError> = gone.map(|id| (id, ReadError::Gone(id))).collect();
        absent.extend(indexed);
        absent.sort_unstable_by_key(|(_, absent)| (absent.place.segment, absent.place.offset));
        for (id, absent) in absent {
            *room = room.saturating_sub(u64::from(absent.place.length));
            if *room == 0 {
                break;
            }
            if let Err(error) = self.absent_body(id, Some(absent)) {
                unusable.insert(id, error);
            }
        }
        unusable
    }

    /// Where the index says that a body is.
    fn indexed_body(&self, id: BodyId) -> Option<Absent> {
        let row = self.indexed(|index| index.body(id)).flatten()?;
        Some(Absent { place: row.place, kind: Arc::new(row.kind) })
    }

    /// A body that can be read without waiting for the disk.
    fn body_at_hand(&self, absent: &Absent) -> Option<Body> {
        let embedded = self.0.embedded.as_ref()?;
        let stored = embedded.readers.read_cached(&absent.place)?;
        let bytes = record::open_body(stored, absent.place.sealed, &self.0.shared.vault).ok()?;
        Some(absent.body(bytes))
    }

    pub(super) fn read_body(&self, id: BodyId, absent: &Absent) -> Result<Body, ReadError> {
        let Some(embedded) = &self.0.embedded else { return Err(ReadError::Gone(id)) };
        let place = &absent.place;
        let damaged = || self.damaged_body(id, place, &embedded.readers.name(place));
        let stored = match embedded.readers.read(place) {
            Ok(stored) => stored,
            Err(ReadFailure::Damaged) => return Err(damaged()),
            Err(ReadFailure::Io(error)) => {
                return Err(ReadError::Io(id, format!("{}: {error}", embedded.readers.name(place))));
            }
        };
        let bytes = record::open_body(stored, place.sealed, &self.0.shared.vault).map_err(|_| damaged())?;
        Ok(absent.body(bytes))
    }

    /// Reports a damaged body, once.
    pub(super) fn damaged_body(&self, id: BodyId, _place: &Place, name: &str) -> ReadError {
        self.0.shared.report_damage(name, &format!("body {id}"));
        self.log_told();
        ReadError::Corrupt { id, place: name.to_owned() }
    }

    /// Items that have queued or suspended messages, or had any: for orphan checks.
    pub fn queued_items(&self) -> Vec<(ItemName, u64)> {
        self.state().queued_items()
    }

    /// All queues of requests.
    pub fn queues(&self) -> Vec<QueueView> {
        let queues = self.state().queues();
        let whole = |(mut view, absent): (QueueView, Option<MessageId>)| {
            if let Some(head) = absent.and_then(|id| self.header(id)) {
                view.oldest = Some(head.created);
                view.head = Some(head);
            }
            view
        };
        queues.into_iter().map(whole).collect()
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
        match &filter.text {
            None => self.headers(filter.clone(), before, limit).await,
            Some(text) => self.search_text(filter, text, before, limit, text::BOUND).await,
        }
    }

    /// Messages that match, whatever is in their bodies.
    pub(super) async fn headers(
        &self,
        filter: MessageFilter,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Page<Header>, ReadError> {
        let (store, watch) = (self.clone(), self.0.shared.lag.watch());
        let found = move || store.search_headers(&filter, before, limit.saturating_add(1));
        let found = tokio::task::spawn_blocking(found).await;
        let found = found.map_err(|error| ReadError::Search(error.to_string()))??;
        Ok(page(found, limit, |header| header.id.0, self.behind_ms(watch)))
    }

    /// The newest headers that match. Memory is looked at first: what leaves it meanwhile is in the index.
    /// What comes back meanwhile is in neither, then memory is looked at again.
    fn search_headers(
        &self,
        filter: &MessageFilter,
        before: Option<u64>,
        wanted: usize,
    ) -> Result<Vec<Header>, ReadError> {
        let came_back = self.state().came_back;
        let mut recent = self.headers_in_memory(filter, before, wanted);
        let Some(embedded) = &self.0.embedded else { return Ok(recent) };
        let older = self.older(embedded, wanted, |index| index.messages(filter, before))?;
        if self.state().came_back != came_back {
            let mut now = self.headers_in_memory(filter, before, wanted);
            now.append(&mut recent);
            recent = now;
        }
        Ok(newest(recent, older, wanted, |header| header.id.0))
    }

    /// The newest rows that a cursor gives.
    fn older<T: Searched>(
        &self,
        embedded: &Embedded,
        wanted: usize,
        cursor: impl Fn(&Index) -> Cursor<T>,
    ) -> Result<Vec<T>, ReadError> {
        let index = &embedded.index;
        let (mut rows, mut cursor_now) = (Vec::new(), cursor(index));
        while rows.len() < wanted {
            match cursor_now.step(&mut Memory(&self.0.shared), wanted - rows.len()) {
                Ok(step) => {
                    rows.extend(step.rows);
                    if step.reached == 0 {
                        break;
                    }
                }
                Err(error) if self.left_out(embedded, &error) => {
                    rows.clear();
                    cursor_now = cursor(index);
                }
                Err(error) => return Err(ReadError::Search(error.to_string())),
            }
        }
        Ok(rows)
    }

    fn headers_in_memory(&self, filter: &MessageFilter, before: Option<u64>, wanted: usize) -> Vec<Header> {
        let compiled = Compiled::new(filter, &self.state());
        let mut recent = Vec::new();
        let mut below = Some(before.unwrap_or(u64::MAX));
        while let Some(from) = below.filter(|_| recent.len() < wanted) {
            let (found, rest) = compiled.step(&self.state(), from, wanted - recent.len());
            recent.extend(found);
            below = rest;
        }
        recent
    }

    /// How far the index is behind; `None` for a store in memory.
    pub fn index_progress(&self) -> Option<IndexProgress> {
        self.0.embedded.as_ref()?;
        Some(self.0.shared.lag.progress(self.clock().now()))
    }

    fn behind_ms(&self, watch: Watch) -> u64 {
        self.0.shared.lag.behind_ms(watch, self.clock().now())
    }

    /// Events, newest first; `before` is a cursor from [`Page::next`]. Reads the disk: not for async threads.
    pub fn events(
        &self,
        filter: &EventFilter,
        before: Option<EventId>,
        limit: usize,
    ) -> Result<Page<Event>, ReadError> {
        self.log_told();
        let watch = self.0.shared.lag.watch();
        let found = self.search_events(filter, before.map(|id| id.0), limit.saturating_add(1))?;
        Ok(page(found, limit, |event| event.id.0, self.behind_ms(watch)))
    }

    fn search_events(
        &self,
        filter: &EventFilter,
        before: Option<u64>,
        wanted: usize,
    ) -> Result<Vec<Event>, ReadError> {
        let came_back = self.state().came_back;
        let mut recent = self.newest_events(filter, before.unwrap_or(u64::MAX), wanted);
        let Some(embedded) = &self.0.embedded else { return Ok(recent) };
        let older = self.older(embedded, wanted, |index| index.events(filter, before))?;
        if self.state().came_back != came_back {
            recent.extend(self.newest_events(filter, before.unwrap_or(u64::MAX), wanted));
        }
        Ok(newest(recent, older, wanted, |event| event.id.0))
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
                    found.push(Event::clone(event));
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
fn page<T>(mut entries: Vec<T>, limit: usize, id: impl Fn(&T) -> u64, lag_ms: u64) -> Page<T> {
    let more = entries.len() > limit;
    entries.truncate(limit);
    let next = entries.last().map(id).filter(|_| more);
    Page { entries, next, lag_ms, incomplete: None }
}

/// Two lists in order of their ids as one; of two with one id, that of memory.
fn merged<T>(recent: Vec<T>, older: Vec<T>, id: impl Fn(&T) -> u64) -> Vec<T> {
    let mut all = recent;
    all.extend(older);
    // Stable: what memory had stands first.
    all.sort_by_key(&id);
    all.dedup_by_key(|entry| id(entry));
    all
}

/// The newest of two lists that are newest first.
fn newest<T>(recent: Vec<T>, older: Vec<T>, wanted: usize, id: impl Fn(&T) -> u64) -> Vec<T> {
    let mut all = recent;
    all.extend(older);
    all.sort_by_key(|entry| std::cmp::Reverse(id(entry)));
    all.dedup_by_key(|entry| id(entry));
    all.truncate(wanted);
    all
}

#[async_trait]
impl Keep for Store {
    fn get(&self, family: KeepFamily, key: &str) -> Option<Bytes> {
        self.state().keep(family)?.get(key)
    }

    fn scan(&self, family: KeepFamily, prefix: &str) -> Vec<(String, Bytes)> {
        // What may be a million values is not read under the lock.
        let entries = self.state().keep(family).cloned().unwrap_or_default();
        let from = entries.from(prefix).take_while(|(key, _)| key.starts_with(prefix));
        from.map(|(key, value)| (key.to_owned(), value)).collect()
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
