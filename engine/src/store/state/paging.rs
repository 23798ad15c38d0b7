//! Leaving memory and coming back. A row leaves when the index has it: a final one for good, one beyond its
//! queue's window until the window gets there. Nothing leaves before it is durable.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use tokio::sync::Notify;

use super::item::{count, entry, item};
use super::parked::Parked;
use super::snapshot::stored;
use super::{State, Unplaced};
use crate::event::Event;
use crate::header::{Header, Status};
use crate::host::KeepFamily;
use crate::id::MessageId;
use crate::store::bodies::Bodies;
use crate::store::dropped;
use crate::store::index::Unfinished;
use crate::store::row::{Names, Row};
use crate::store::spine::{Reference, Spot};

/// The next messages that a queue wants to have in its window.
#[derive(Debug)]
pub(in crate::store) struct Page {
    pub(in crate::store) item: u32,
    pub(in crate::store) references: Vec<Reference>,
    /// Those of them whose header is not in memory, in the same order.
    pub(in crate::store) absent: Vec<Reference>,
}

/// What memory knows of a session.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct KnownSession {
    /// Something of it is not finished.
    pub(in crate::store) unfinished: bool,
    /// In microseconds since 1970; `i64::MIN` = nothing of it is here.
    pub(in crate::store) last_activity: i64,
    /// The last transaction that changed a header of it.
    pub(in crate::store) sequence: u64,
    /// Its newest event.
    pub(in crate::store) event: u64,
}

/// Some of what the index should get.
#[derive(Debug)]
pub(in crate::store) struct Step<T> {
    pub(in crate::store) rows: Vec<T>,
    /// There is no more.
    pub(in crate::store) ended: bool,
}

impl<T> Step<T> {
    fn of(ids: Vec<u64>, most: usize, row: impl FnMut(u64) -> Option<T>) -> Self {
        let ended = ids.len() < most;
        Step { rows: ids.into_iter().filter_map(row).collect(), ended }
    }
}

/// A header as the state has it: copied for next to nothing while the lock is held, read when it is not.
#[derive(Clone, Debug)]
pub(in crate::store) struct Stored {
    pub(in crate::store) id: MessageId,
    row: Arc<Row>,
    /// It is wanted as it was before anything was done about it.
    as_born: bool,
}

impl Stored {
    /// The header; `names` must have been taken after it.
    pub(in crate::store) fn header(&self, names: &Names) -> Header {
        // Of one that is being delivered a later start knows that it waits.
        let header = stored(self.id.0, &self.row, names);
        if self.as_born { as_born(header) } else { header }
    }
}

/// What has left memory for the index. Dropped when the lock is not held: that takes its time.
#[derive(Debug, Default)]
pub(in crate::store) struct Left {
    rows: Vec<Arc<Row>>,
    events: Vec<Arc<Event>>,
    /// Bodies that nobody in memory needs any more.
    pub(in crate::store) bodies: Vec<u64>,
}

/// Looks sessions up in order: between two that are there, nothing is looked for.
struct Walk<'a> {
    all: &'a BTreeSet<(u64, u64)>,
    /// Sessions that are not there.
    absent: Range<u64>,
}

impl<'a> Walk<'a> {
    fn over(all: &'a BTreeSet<(u64, u64)>) -> Self {
        Walk { all, absent: 0..0 }
    }

    /// The ids of a session.
    fn each(&mut self, session: u64, mut id: impl FnMut(u64)) {
        if self.absent.contains(&session) {
            return;
        }
        self.absent = session.saturating_add(1)..u64::MAX;
        for (of, known) in self.all.range((session, 0)..) {
            if *of != session {
                self.absent.end = *of;
                return;
            }
            id(*known);
        }
    }
}

impl State {
    // --- out ---

    /// The names of all items.
    pub(in crate::store) fn item_names(&self) -> Names {
        self.names.items()
    }

    /// The frame is on stable storage, and with it everything up to a transaction.
    pub(in crate::store) fn placed(&mut self, last: u64, frame: Option<Spot>, bodies: &Bodies) {
        self.expired.durable(last);
        self.stood.durable(last);
        let until = self.unplaced.iter().take_while(|unplaced| unplaced.sequence <= last).count();
        if until == 0 {
            return;
        }
        let placed: Vec<Unplaced> = self.unplaced.drain(..until).collect();
        let ids: Vec<u64> = placed.iter().map(|unplaced| unplaced.body).collect();
        let places: std::collections::HashMap<u64, _> =
            bodies.places(&ids).into_iter().map(|(id, place, kind)| (id.0, (place, kind))).collect();
        let Some(frame) = frame else { return };
        for Unplaced { sequence, item: number, position, body, parks } in placed {
            match parks {
                Some(id) => self.place_parked(number, Parked { id, position, frame }, sequence),
                None => item(&mut self.items, number).spine.placed(position, frame, places.get(&body)),
            }
        }
    }

    /// Final headers that the index should get: of transactions up to `last`, passing over `from`.
    pub(in crate::store) fn settled(&self, last: u64, from: usize, most: usize) -> Step<Stored> {
        // One that is being carried on comes again, with a later transaction; which a crash may yet take back.
        Step::of(self.fresh.settled.peek(last, from, most), most, |id| self.stored_at(id, last))
    }

    /// Headers that were born unfinished and were so after transaction `last`: all, or those that may leave
    /// memory.
    pub(in crate::store) fn unfinished(
        &self,
        last: u64,
        all: bool,
        from: usize,
        most: usize,
    ) -> Step<Stored> {
        let line = if all { &self.fresh.born } else { &self.fresh.spilled };
        Step::of(line.peek(last, from, most), most, |id| {
            let row = self.rows.get(&id).or_else(|| self.expired.row(id, last))?;
            let later = row.sequence > last;
            let unfinished = !row.status.is_final() || later;
            if later && let Some(row) = self.stood.row(id, last) {
                return all.then(|| Stored { id: MessageId(id), row: row.clone(), as_born: false });
            }
            let stored =
                (unfinished && (all || self.can_page_out(id, last))).then(|| self.stored_at(id, last))??;
            // What became of it later a crash may take back.
            Some(Stored { as_born: later, ..stored })
        })
    }

    /// Events that the index should get.
    pub(in crate::store) fn fresh_events(&self, last: u64, from: usize, most: usize) -> Step<Arc<Event>> {
        Step::of(self.fresh.events.peek(last, from, most), most, |id| {
            self.events.get(&id).or_else(|| self.expired.event(id, last)).cloned()
        })
    }

    /// A header in memory, or one that left it after transaction `last` because its session expired.
    fn stored_at(&self, id: u64, last: u64) -> Option<Stored> {
        let row = self.rows.get(&id).or_else(|| self.expired.row(id, last))?;
        Some(Stored { id: MessageId(id), row: row.clone(), as_born: false })
    }

    /// Bodies whose places the index should get.
    pub(in crate::store) fn fresh_bodies(&self, last: u64, from: usize, most: usize) -> Step<u64> {
        Step::of(self.fresh.bodies.peek(last, from, most), most, Some)
    }

    /// The index has what the transactions up to `last` made: it leaves memory, at most `most` of each at a
    /// time. Gives what has left, and whether there is more to do.
    pub(in crate::store) fn indexed(&mut self, last: u64, sealed: bool, most: usize) -> (Left, bool) {
        let mut left = Left { bodies: std::mem::take(&mut self.expired_bodies), ..Left::default() };
        let settled = self.fresh.settled.take(last, most);
        let spilled = self.fresh.spilled.take(last, most);
        let events = self.fresh.events.take(last, most);
        let bodies = self.fresh.bodies.take(last, most);
        let born = if sealed { self.fresh.born.take(last, most).len() } else { 0 };
        for id in &settled {
            if self.rows.get(id).is_some_and(|row| row.status.is_final() && row.sequence <= last) {
                left.rows.extend(self.drop_row(*id, &mut left.bodies));
            }
        }
        for id in &spilled {
            if self.can_page_out(*id, last) {
                left.rows.extend(self.drop_row(*id, &mut left.bodies));
            }
        }
        for id in &events {
            let Some(event) = self.events.remove(id) else { continue };
            if let Some(session) = event.session {
                self.session_events.remove(&(session.0, *id));
            }
            left.events.push(event);
        }
        for id in &bodies {
            if let Some(times) = self.rewritten.get_mut(id) {
                *times -= 1;
                if *times == 0 {
                    self.rewritten.remove(id);
                }
            }
            if !self.body_users.contains_key(id) {
                left.bodies.push(*id);
            }
        }
        // A body that is being carried is needed until the index has its new place, whoever had it before.
        left.bodies.retain(|id| !self.rewritten.contains_key(id));
        let more = [settled.len(), spilled.len(), events.len(), bodies.len(), born];
        (left, more.contains(&most))
    }

    /// With its place in the journal known: as it was born, beyond its queue's window; or suspended, as it stood
    /// after transaction `last`.
    fn can_page_out(&self, id: u64, last: u64) -> bool {
        let Some(row) = self.rows.get(&id) else { return false };
        let index = row.target().and_then(|target| usize::try_from(target).ok());
        let Some(item) = index.and_then(|index| self.items.get(index)) else { return false };
        match row.status {
            Status::Suspended => row.sequence <= last && item.parked(id).is_some(),
            _ => row.is_as_born() && item.spine.get(row.position).is_some_and(|found| found.frame.is_some()),
        }
    }

    /// Sessions are over: the index hides what it has of them, and what is in memory leaves it unindexed.
    pub(super) fn expire(&mut self, sequence: u64, last: u64, sessions: &[u64]) {
        let (mut released, mut rows, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let mut walk = Walk::over(&self.by_session);
        sessions.iter().for_each(|session| walk.each(*session, |id| rows.push(id)));
        let mut walk = Walk::over(&self.session_events);
        sessions.iter().for_each(|session| walk.each(*session, |id| events.push((*session, id))));
        self.dead.extend(sessions.iter().map(|session| (*session, last)));
        for id in rows {
            if let Some(row) = self.rows.get(&id).filter(|row| row.status.is_final()) {
                self.expired.add_row(sequence, id, row.clone());
                self.drop_row(id, &mut released);
            }
        }
        for (session, id) in events {
            // Who looked and who acted is kept for longer.
            if let Some(event) = self.events.get(&id).filter(|event| event.who.is_none()) {
                self.expired.add_event(sequence, id, event.clone());
                self.events.remove(&id);
                self.session_events.remove(&(session, id));
            }
        }
        self.expired_bodies.append(&mut released);
    }

    pub(super) fn drop_row(&mut self, id: u64, released: &mut Vec<u64>) -> Option<Arc<Row>> {
        let row = self.rows.remove(&id)?;
        self.by_session.remove(&(row.session, id));
        if let Some(users) = self.body_users.get_mut(&row.body_id) {
            *users -= 1;
            if *users == 0 {
                self.body_users.remove(&row.body_id);
                released.push(row.body_id);
            }
        }
        Some(row)
    }

    // --- in ---

    /// Whether a message waits beyond its queue's window, in memory or not.
    pub(in crate::store) fn waits_beyond(&self, id: u64) -> bool {
        self.items.iter().any(|item| !item.spine.is_empty() && item.spine.find(id).is_some())
    }

    /// As [`State::waits_beyond`], or suspended.
    pub(in crate::store) fn is_absent(&self, id: u64) -> bool {
        self.parked(id).is_some() || self.waits_beyond(id)
    }

    /// Whether a message that waits beyond its queue's window, or is suspended, has to be read back from this segment.
    pub(in crate::store) fn waits_in(&self, segment: u64) -> bool {
        let here = |reference: &Reference| reference.frame.is_some_and(|at| u64::from(at.segment) == segment);
        self.items.iter().any(|item| {
            if item.parked.iter().any(|parked| u64::from(parked.frame.segment) == segment) {
                return true;
            }
            let mut next = item.spine.first_position();
            while let Some(position) = next {
                let some = item.spine.from(position, 1024);
                if some.iter().any(here) {
                    return true;
                }
                next = some.last().map(|last| last.position + 1).filter(|_| some.len() == 1024);
            }
            false
        })
    }

    /// Whether messages with any of these ids may wait beyond their queue's window, or be suspended.
    pub(in crate::store) fn any_beyond(&self, ids: &RangeInclusive<u64>) -> Unfinished {
        Unfinished {
            waiting: self.items.iter().any(|item| !item.spine.is_empty() && item.spine.any(ids)),
            suspended: self.items.iter().any(|item| item.any_parked(ids)),
        }
    }

    /// Where the header of a message is that waits beyond its queue's window, or is suspended, and is not in memory.
    pub(in crate::store) fn absent(&self, id: MessageId) -> Option<(u32, Reference)> {
        if self.rows.contains_key(&id.0) {
            return None;
        }
        if let Some((number, parked)) = self.parked(id.0) {
            return Some((number, parked.reference()));
        }
        let found = self.items.iter().enumerate().filter(|(_, item)| !item.spine.is_empty()).find_map(
            |(number, item)| item.spine.get(item.spine.find(id.0)?).map(|reference| (number, reference)),
        )?;
        Some((u32::try_from(found.0).ok()?, found.1))
    }

    /// The messages beyond a queue's window from a position on.
    pub(in crate::store) fn behind(&self, number: u32, position: u64) -> Vec<Reference> {
        let item = usize::try_from(number).ok().and_then(|index| self.items.get(index));
        item.map(|item| item.spine.from(position, 1024)).unwrap_or_default()
    }

    /// What the queue that runs low longest should get next.
    pub(in crate::store) fn next_page(&mut self, most: usize) -> Option<Page> {
        self.share_windows();
        let window = self.window();
        loop {
            let number = self.low.pop_first()?;
            let item = item(&mut self.items, number);
            if item.is_low(window) {
                let room = window.saturating_sub(item.queue.depth()).clamp(1, most);
                let references = item.spine.first(room);
                let absent = references.iter().filter(|reference| !self.rows.contains_key(&reference.id));
                return Some(Page { item: number, absent: absent.cloned().collect(), references });
            }
        }
    }

    /// A header that was read back. It stays where it waits.
    pub(in crate::store) fn page_in(
        &mut self,
        reference: &Reference,
        header: &Header,
        sequence: u64,
        bodies: &Bodies,
    ) {
        let parked = self.parked(reference.id);
        if self.rows.contains_key(&reference.id) || (parked.is_none() && !self.waits_beyond(reference.id)) {
            return;
        }
        if parked.is_some_and(|(_, parked)| Some(parked.frame) != reference.frame) {
            // It has been carried since, and is looked for where it is now.
            return;
        }
        if let (Some((place, kind)), Some(body)) = (&reference.body, header.body_id) {
            bodies.page_in(body, *place, kind.clone());
        }
        let row = Row::new(header, sequence, &mut self.names);
        self.keep_row(reference.id, Arc::new(row));
        self.came_back += 1;
        if parked.is_some() {
            self.visits(reference.id, sequence, bodies);
        }
    }

    /// The page's messages, now in memory, move into their queue's window. Gives those that are not in
    /// memory: they are lost, and leave the queue.
    pub(in crate::store) fn fill(&mut self, page: &Page) -> (Vec<u64>, Arc<Notify>) {
        let mut lost = Vec::new();
        let window = self.window();
        let item = item(&mut self.items, page.item);
        let mut absent = page.absent.iter().peekable();
        for reference in &page.references {
            let was_absent = absent.next_if(|absent| absent.position == reference.position).is_some();
            let moved = match item.spine.get(reference.position) {
                Some(now) => !was_absent || now.frame != reference.frame,
                None => !was_absent && item.spine.holds(reference.position),
            };
            if moved && !self.rows.contains_key(&reference.id) {
                // It was in memory when the page was made and has left it since, or a purge has carried it: it has
                // a frame now, and comes with the next page. Nothing behind it may go first.
                break;
            }
            if !item.spine.remove(reference.position) {
                continue;
            }
            match self.rows.get(&reference.id) {
                Some(row) if row.status == Status::Queued => {
                    item.queue.push(entry(MessageId(reference.id), row));
                }
                Some(_) => {}
                None => lost.push(reference.id),
            }
        }
        if item.is_low(window) {
            self.low.insert(page.item);
        }
        (lost, item.ready.clone())
    }

    /// What memory knows of sessions; quick where they come in order.
    pub(in crate::store) fn sessions(&self, sessions: &[u64]) -> Vec<KnownSession> {
        let (mut rows, mut events) = (Walk::over(&self.by_session), Walk::over(&self.session_events));
        let known = |session: &u64| {
            let mut known =
                KnownSession { unfinished: false, last_activity: i64::MIN, sequence: 0, event: 0 };
            rows.each(*session, |id| {
                let Some(row) = self.rows.get(&id) else { return };
                known.unfinished |= !row.status.is_final();
                known.last_activity = known.last_activity.max(row.last_activity());
                known.sequence = known.sequence.max(row.sequence);
            });
            events.each(*session, |id| {
                let Some(event) = self.events.get(&id) else { return };
                known.last_activity = known.last_activity.max(event.at.as_microsecond());
                known.event = known.event.max(event.id.0);
            });
            known
        };
        sessions.iter().map(known).collect()
    }

    /// Whether a session has expired, as far as segments up to this one have it.
    pub(in crate::store) fn is_dead(&self, session: u64, segment: u64) -> bool {
        self.dead.get(&session).is_some_and(|last| segment <= *last)
    }

    /// The segments before this one are gone: what expired in them needs no remembering.
    pub(in crate::store) fn dropped_before(&mut self, segment: u64) {
        self.dead.retain(|_, last| *last >= segment);
    }

    /// The last segment that a purge has dropped, 0 where none has been; `None` where that is not known, because
    /// it was done before it was kept.
    pub(in crate::store) fn dropped(&self) -> Option<u64> {
        let kept = self.keep.get(&KeepFamily::Counter).and_then(|family| family.get(dropped::KEY));
        kept.and_then(|value| dropped::decode(&value)).or(self.dead.is_empty().then_some(0))
    }

    /// How many messages wait beyond windows, or are suspended and need not be in memory.
    pub(in crate::store) fn beyond(&self) -> u64 {
        self.items.iter().map(|item| count(item.spine.length() + item.parked.len())).sum()
    }
}

/// A message before anything was done about it.
fn as_born(header: Header) -> Header {
    Header {
        status: Status::Queued,
        error: None,
        attempts: 0,
        processed: None,
        next_attempt: None,
        failing_since: None,
        ..header
    }
}
