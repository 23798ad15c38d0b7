//! The order in which an item's messages run: a pure, in-memory schedule over queue entries. The store's
//! `State` owns one per item and changes it only while folding transactions, so recovery rebuilds it.
//!
//! Invariants (DESIGN §6): without `order_by` entries start in position order, at most `pool_size` at a
//! time, and a waiting retry holds back everything behind it. With `order_by` an entry runs when it is the
//! oldest unfinished holder of each of its keys; an entry without keys is a barrier both ways. A suspended
//! entry is out of the queue; what waits for it is decided by `on_suspend`. A resumed entry goes back to
//! its position.
//!
//! How it is kept: `slots` has the unfinished entries by position, `keys` the positions of the holders of
//! each key. Waiting entries that are first for all their keys are *eligible*; a change rechecks only the
//! first holders of the keys it touched, so every operation costs O(keys × log n). Two cases the invariants
//! leave open: a key in flight is never started a second time, not even for an older message that was
//! resumed meanwhile; and a suspended entry *without* keys holds nothing back under `hold_key` (one poison
//! message never stops the rest, P11), it is marked as overtaken instead. Of a suspended entry only its place
//! and its keys are known here, in a few bytes: there may be millions of them. Whoever takes one back says both.

mod aside;
mod lines;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use self::aside::Aside;
use self::lines::Holders;
use crate::config::settings::{OnSuspend, PoolSize};
use crate::id::{IdMap, MessageId};
use crate::sorted::Sorted;

/// How a queue schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// At most this many entries in flight.
    pub pool: PoolSize,
    /// The item has `order_by`.
    pub ordered: bool,
    /// What a suspended entry holds back.
    pub on_suspend: OnSuspend,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { pool: PoolSize::Limited(1), ordered: false, on_suspend: OnSuspend::Pass }
    }
}

/// One waiting message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its header.
    pub id: MessageId,
    /// Its place; unique within the store.
    pub position: u64,
    /// Hashes of its `order_by` values; empty = none.
    pub keys: Arc<[u64]>,
    /// A retry: not before this moment.
    pub not_before: Option<Timestamp>,
}

/// What an unfinished entry is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    InFlight,
    /// In flight without a pool slot: what it called is suspended.
    Stalled,
}

#[derive(Clone, Debug)]
struct Slot {
    id: MessageId,
    keys: Arc<[u64]>,
    not_before: Option<Timestamp>,
    state: State,
}

/// The schedule of one item.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    policy: Policy,
    /// Where each entry is, but for suspended ones.
    places: IdMap<MessageId, u64>,
    /// Unfinished entries.
    slots: BTreeMap<u64, Slot>,
    /// Suspended and stalled entries, whatever the policy makes of them.
    aside: Aside,
    /// Eligible entries without a time; without `order_by` all waiting entries.
    ready: BTreeSet<u64>,
    /// With `order_by`: eligible retries by their time.
    timed: BTreeSet<(Timestamp, u64)>,
    keys: IdMap<u64, Holders>,
    /// With `order_by`: unfinished entries without keys.
    barriers: BTreeSet<u64>,
    /// Entries in flight that use a pool slot.
    running: usize,
    stalled: usize,
    /// How many barriers are in flight.
    barriers_running: usize,
}

/// An entry that may run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its header.
    pub id: MessageId,
    /// It overtakes a suspended message (P4: the trace says so).
    pub overtakes: bool,
}

impl Queue {
    /// An empty queue.
    pub fn new(policy: Policy) -> Self {
        Queue { policy, ..Queue::default() }
    }

    /// Changes how it schedules; entries in flight stay in flight.
    pub fn set_policy(&mut self, policy: Policy) {
        if policy == self.policy {
            return;
        }
        let slots = std::mem::take(&mut self.slots);
        let aside = std::mem::take(&mut self.aside);
        *self = Queue { aside, ..Queue::new(policy) };
        for (position, slot) in slots {
            self.insert(position, slot);
        }
    }

    /// Adds a new, recovered or resumed entry at its position; one that was suspended has been taken back.
    pub fn push(&mut self, entry: Entry) {
        self.finish(entry.id);
        let Entry { id, position, keys, not_before } = entry;
        self.insert(position, Slot { id, keys: distinct(keys), not_before, state: State::Waiting });
    }

    /// Takes up to `max` entries that may run now; they are in flight from here on.
    pub fn take(&mut self, now: Timestamp, max: usize) -> Vec<Taken> {
        let mut taken = Vec::new();
        self.release_due(now);
        while taken.len() < max && self.has_room() {
            let Some(position) = self.next(now) else { break };
            let overtakes = self.overtakes(position);
            let Some(slot) = self.slots.get_mut(&position) else { break };
            slot.state = State::InFlight;
            slot.not_before = None;
            let (id, keys) = (slot.id, slot.keys.clone());
            self.ready.remove(&position);
            self.start(&keys);
            taken.push(Taken { id, overtakes });
        }
        taken
    }

    /// A waiting entry counts as in flight without having been taken: an instance that waits on disk goes on
    /// after a restart. `false` if it is not waiting here.
    pub fn claim(&mut self, id: MessageId) -> bool {
        let Some(position) = self.places.get(&id).copied() else { return false };
        let waiting = self.slots.get(&position).is_some_and(|slot| slot.state == State::Waiting);
        if waiting && let Some(mut slot) = self.remove(position) {
            slot.state = State::InFlight;
            slot.not_before = None;
            self.insert(position, slot);
        }
        waiting
    }

    /// Every waiting retry may run at once; gives those that had to wait.
    pub fn hurry(&mut self) -> Vec<MessageId> {
        let waits = |slot: &&Slot| slot.state == State::Waiting && slot.not_before.is_some();
        let waiting: Vec<MessageId> = self.slots.values().filter(waits).map(|slot| slot.id).collect();
        for id in &waiting {
            self.put_back(*id, None);
        }
        waiting
    }

    /// When the next waiting retry may run, if that is what the queue waits for.
    pub fn next_due(&self) -> Option<Timestamp> {
        if !self.has_room() {
            return None;
        }
        if self.policy.ordered {
            return self.timed.iter().find(|(_, position)| self.may_pass(*position)).map(|(at, _)| *at);
        }
        let first = self.ready.first().filter(|position| self.may_pass(**position))?;
        self.slots.get(first)?.not_before
    }

    /// An in-flight entry goes back to its place, to run again not before a moment (or at once).
    pub fn put_back(&mut self, id: MessageId, not_before: Option<Timestamp>) {
        let Some(position) = self.places.get(&id).copied() else { return };
        if let Some(mut slot) = self.remove(position) {
            slot.state = State::Waiting;
            slot.not_before = not_before;
            self.insert(position, slot);
        }
    }

    /// An entry (in flight or waiting) is finished and forgotten.
    pub fn finish(&mut self, id: MessageId) {
        if let Some(position) = self.places.remove(&id) {
            self.remove(position);
        }
    }

    /// An entry is suspended: out of the queue, holding back what the policy says. It need not have been here.
    pub fn suspend(&mut self, id: MessageId, position: u64, keys: &[u64]) {
        self.finish(id);
        self.step_aside(position, keys);
    }

    /// A suspended entry is no longer: it is finished, or about to be pushed again.
    pub fn take_back(&mut self, position: u64, keys: &[u64]) {
        self.step_back(position, keys);
    }

    /// As [`Queue::take_back`], where nobody knows its keys any more. Looks at all that is suspended.
    pub fn take_back_lost(&mut self, position: u64) {
        let keys = self.aside.keys_of(position);
        self.step_back(position, &keys);
    }

    /// The keys of suspended and stalled entries, and their positions.
    pub(crate) fn keys_aside(&self) -> &Sorted<(u64, u64)> {
        self.aside.keyed()
    }

    /// Entries that were suspended when a checkpoint was made: their positions, and what [`Queue::keys_aside`] gave
    /// then, of which only those count.
    pub(crate) fn set_aside(&mut self, positions: &Sorted<u64>, keyed: &Sorted<(u64, u64)>) {
        self.aside.restore(positions, keyed);
    }

    /// A process instance in flight gives up its slot because what it called is suspended (`true`), or
    /// takes it back (`false`); its keys follow `on_suspend`. Taking it back does not wait for a free slot:
    /// until another entry ends there may be more in flight than the pool has.
    pub fn stall(&mut self, id: MessageId, stalled: bool) {
        let Some(position) = self.places.get(&id).copied() else { return };
        let (from, to) = match stalled {
            true => (State::InFlight, State::Stalled),
            false => (State::Stalled, State::InFlight),
        };
        if self.slots.get(&position).is_some_and(|slot| slot.state == from)
            && let Some(mut slot) = self.remove(position)
        {
            slot.state = to;
            self.insert(position, slot);
        }
    }

    /// Unfinished entries, in flight included, suspended ones not.
    pub fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Entries in flight.
    pub fn in_flight(&self) -> usize {
        self.running + self.stalled
    }

    /// The oldest unfinished entry.
    pub fn head(&self) -> Option<MessageId> {
        self.slots.first_key_value().map(|(_, slot)| slot.id)
    }

    /// Every unfinished entry in position order, for pre-flight checks and discards.
    pub fn ids(&self) -> Vec<MessageId> {
        self.slots.values().map(|slot| slot.id).collect()
    }

    // === Choosing ===

    fn has_room(&self) -> bool {
        match self.policy.pool {
            PoolSize::Limited(size) => self.running < usize::try_from(size).unwrap_or(usize::MAX),
            PoolSize::Unlimited => true,
        }
    }

    /// The next entry to start, if any may.
    fn next(&self, now: Timestamp) -> Option<u64> {
        let position = *self.ready.first()?;
        let due = self.slots.get(&position)?.not_before.is_none_or(|at| at <= now);
        (due && self.may_pass(position)).then_some(position)
    }

    /// Whether neither a barrier nor a held item stands before `position`.
    fn may_pass(&self, position: u64) -> bool {
        if self.policy.on_suspend == OnSuspend::HoldItem && self.aside.any_before(position) {
            return false;
        }
        if !self.policy.ordered {
            return true;
        }
        match self.barriers.first() {
            _ if self.barriers_running > 0 => false,
            Some(barrier) if *barrier == position => self.running == 0 && self.is_oldest(position),
            Some(barrier) => position < *barrier,
            None => true,
        }
    }

    /// Whether everything before `position` is out of the way.
    fn is_oldest(&self, position: u64) -> bool {
        let mut unfinished = self.slots.iter().filter(|(_, slot)| slot.state != State::Stalled);
        unfinished.next().is_some_and(|(first, _)| *first == position)
    }

    fn overtakes(&self, position: u64) -> bool {
        if self.policy.on_suspend == OnSuspend::HoldItem || !self.aside.any_before(position) {
            return false;
        }
        if !self.policy.ordered || self.aside.bare_before(position) {
            return true;
        }
        let keys = self.slots.get(&position).map(|slot| slot.keys.clone()).unwrap_or_default();
        // Whose key is held does not run.
        let passes =
            |key: &u64| self.policy.on_suspend == OnSuspend::Pass && self.aside.key_before(*key, position);
        keys.is_empty() || keys.iter().any(passes)
    }

    fn release_due(&mut self, now: Timestamp) {
        while let Some((at, position)) = self.timed.first().copied()
            && at <= now
        {
            self.timed.pop_first();
            self.ready.insert(position);
        }
    }
}

fn distinct(keys: Arc<[u64]>) -> Arc<[u64]> {
    if keys.len() < 2 {
        return keys;
    }
    let distinct: BTreeSet<u64> = keys.iter().copied().collect();
    if distinct.len() == keys.len() { keys } else { distinct.into_iter().collect() }
}
