//! The state that everything reads, and the one function that changes it for good: [`State::apply`]. It is
//! pure (no time, no randomness, no I/O), so that folding the journal after a crash gives what was there
//! before it. What `apply` does not touch, and a crash therefore forgets, is who holds which lease:
//! `delivered` is only ever set by [`State::take`] and shown as queued after recovery.
//!
//! `apply` never fails. Guards have been checked by [`State::check`] when the transaction was submitted;
//! in recovery a change may name a header that was lost to a damaged part of the journal: it is skipped.

mod deliveries;
mod expired;
mod headers;
mod item;
mod paging;
mod parked;
mod snapshot;
mod submit;
mod views;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;

use self::expired::Expired;
use self::item::Item;
#[cfg(test)]
pub(super) use self::paging::{Page, Stored};
pub(super) use self::parked::Parked;
use self::parked::Visiting;
pub(super) use self::snapshot::{ItemSnapshot, Snapshot, respine};
use super::change::{Change, Commit};
use super::fresh::Fresh;
use super::row::{Names, Row};
use super::shelf::Shelf;
use crate::event::Event;
use crate::host::KeepFamily;
use crate::id::IdMap;

/// Everything but bodies.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) names: Names,
    /// Shared, as are events and kept values, with a checkpoint that is being written: to take one is to count.
    pub(super) rows: BTreeMap<u64, Arc<Row>>,
    pub(super) by_session: BTreeSet<(u64, u64)>,
    pub(super) events: BTreeMap<u64, Arc<Event>>,
    session_events: BTreeSet<(u64, u64)>,
    items: Vec<Item>,
    keep: BTreeMap<KeepFamily, Shelf>,
    /// The generation under which each delivered header is out.
    leases: IdMap<u64, u64>,
    generation: u64,
    /// The last transaction folded.
    pub(super) sequence: u64,
    next_position: u64,
    /// The highest id seen anywhere.
    pub(super) highest_id: u64,
    /// Headers below were there when the store was opened.
    opened_at: u64,
    /// The message that the transaction being folded took in: one message may have several first headers.
    took_in: (u64, u32, u64),
    /// What the index does not have yet.
    pub(super) fresh: Fresh,
    /// The keeper has been told that much has gathered.
    pub(super) called: bool,
    /// Bodies that were written again and whose new place the index does not have yet; how often.
    rewritten: IdMap<u64, u32>,
    /// How many headers in memory have each body.
    body_users: IdMap<u64, u32>,
    /// Beyond a window, or suspended, and not yet known to be in the journal.
    unplaced: VecDeque<Unplaced>,
    /// Suspended messages that were read back.
    visiting: Visiting,
    /// How suspended messages stood before what was done to them, until that is durable.
    stood: Expired,
    /// Items whose window runs low while messages wait beyond it.
    pub(super) low: BTreeSet<u32>,
    /// How many headers and events have come back into memory so far.
    pub(super) came_back: u64,
    /// How many entries a queue schedules; what is born beyond them waits in the spine. Without a journal
    /// to read them back from, all.
    window: Option<usize>,
    /// Of that, what one queue gets among all that are deep, and what the next one would get that becomes so.
    share: usize,
    next_share: usize,
    /// Expired sessions that still have rows in index files, and the last segment that may have any.
    pub(super) dead: HashMap<u64, u64>,
    /// What expired in memory, until that is durable.
    expired: Expired,
    /// Bodies of what expired in memory: nobody needs them any more.
    expired_bodies: Vec<u64>,
}

/// A header that is on its way into the journal.
#[derive(Clone, Copy, Debug)]
struct Unplaced {
    /// The transaction.
    sequence: u64,
    item: u32,
    position: u64,
    body: u64,
    /// The id of one that is suspended; the others wait beyond a window.
    parks: Option<u64>,
}

/// Every queue schedules so many messages, however many queues are deep.
const LEAST: usize = 1024;

/// Items in which something may have become ready to take.
pub(super) type Touched = Vec<Arc<Notify>>;

impl State {
    /// An empty state whose queues schedule at most this many messages at a time.
    pub(super) fn new(window: usize) -> State {
        State { window: Some(window), share: window, next_share: window, ..State::default() }
    }

    fn window(&self) -> usize {
        if self.window.is_some() { self.share } else { usize::MAX }
    }

    /// Where many queues are deep, each gets less: together they must not take more memory with every one. What
    /// fills a window already stays.
    fn share_windows(&mut self) {
        let Some(window) = self.window else { return };
        let deep = self.items.iter().filter(|item| !item.spine.is_empty()).count();
        let share = |queues: usize| (window / queues.max(1)).max(window.min(LEAST));
        (self.share, self.next_share) = (share(deep), share(deep + 1));
    }

    // --- folding ---

    /// Folds one transaction.
    pub(super) fn apply(&mut self, commit: &Commit, touched: &mut Touched) {
        self.sequence = self.sequence.max(commit.sequence);
        for change in &commit.changes {
            match change {
                Change::Body(id, _) => {
                    if id.0 <= self.highest_id {
                        *self.rewritten.entry(id.0).or_default() += 1;
                    }
                    self.saw(id.0);
                    self.fresh.bodies.push(commit.sequence, id.0);
                }
                Change::Header(header) => self.add_header(header, commit.sequence, touched),
                Change::Move(change) => self.move_header(change, commit.sequence, commit.at, touched),
                Change::Event(event) => {
                    self.fresh.events.push_heavy(commit.sequence, event.id.0, event.text_bytes());
                    // It may be one that is carried, and was in the index.
                    self.came_back += u64::from(event.id.0 <= self.highest_id);
                    self.put_event(event.clone());
                }
                Change::Carried(header) => self.carry(header, commit.sequence, touched),
                Change::Expired(last, sessions) => self.expire(commit.sequence, *last, sessions),
                Change::Keep(family, key, value) => {
                    let family = self.keep.entry(*family).or_default();
                    match value {
                        Some(value) => family.insert(key, value),
                        None => family.remove(key),
                    }
                }
            }
        }
    }

    fn saw(&mut self, id: u64) {
        self.highest_id = self.highest_id.max(id);
    }

    /// Adds an event; also one that cannot be made durable any more.
    pub(super) fn add_event(&mut self, event: &Event) {
        self.put_event(Arc::new(event.clone()));
    }

    fn put_event(&mut self, event: Arc<Event>) {
        self.saw(event.id.0);
        if let Some(session) = event.session {
            self.session_events.insert((session.0, event.id.0));
        }
        self.events.insert(event.id.0, event);
    }

    /// What is there now was there when the store was opened.
    pub(super) fn opened(&mut self, first_new_id: u64) {
        self.opened_at = first_new_id;
    }

    fn known_item(&self, name: &str) -> Option<&Item> {
        let number = self.names.known(name)?;
        self.items.get(usize::try_from(number).ok()?)
    }

    fn known_item_mut(&mut self, name: &str) -> Option<&mut Item> {
        let number = self.names.known(name)?;
        self.items.get_mut(usize::try_from(number).ok()?)
    }
}
