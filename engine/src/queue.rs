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
//! message never stops the rest, P11), it is marked as overtaken instead.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use crate::config::settings::{OnSuspend, PoolSize};
use crate::id::MessageId;

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

/// The unfinished holders of one key, and what is suspended with it.
#[derive(Clone, Debug, Default)]
struct Holders {
    /// Everything that must come in order.
    line: BTreeSet<u64>,
    /// How many of them are in flight: one, or two after a stall ended.
    running: u32,
    /// Suspended or stalled entries that let others pass.
    passed: BTreeSet<u64>,
}

impl Holders {
    fn is_empty(&self) -> bool {
        self.line.is_empty() && self.passed.is_empty() && self.running == 0
    }
}

/// The schedule of one item.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    policy: Policy,
    /// Where each entry is, suspended ones included.
    places: HashMap<MessageId, u64>,
    /// Unfinished entries.
    slots: BTreeMap<u64, Slot>,
    /// Suspended entries: they have left the queue and may come back.
    suspended: BTreeMap<u64, Slot>,
    /// Eligible entries without a time; without `order_by` all waiting entries.
    ready: BTreeSet<u64>,
    /// With `order_by`: eligible retries by their time.
    timed: BTreeSet<(Timestamp, u64)>,
    keys: HashMap<u64, Holders>,
    /// With `order_by`: unfinished entries without keys.
    barriers: BTreeSet<u64>,
    /// Suspended or stalled entries that hold everything behind them.
    holds: BTreeSet<u64>,
    /// Suspended or stalled entries that hold nothing, or only their keys.
    passed: BTreeSet<u64>,
    /// Those of `passed` that have no keys.
    passed_barriers: BTreeSet<u64>,
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
        let suspended = std::mem::take(&mut self.suspended);
        *self = Queue::new(policy);
        for (position, slot) in suspended {
            self.places.insert(slot.id, position);
            self.step_aside(position, &slot.keys);
            self.suspended.insert(position, slot);
        }
        for (position, slot) in slots {
            self.insert(position, slot);
        }
    }

    /// Adds a new, recovered or resumed entry at its position.
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

    /// An entry (in flight, waiting or suspended) is finished and forgotten.
    pub fn finish(&mut self, id: MessageId) {
        let Some(position) = self.places.remove(&id) else { return };
        if self.remove(position).is_none()
            && let Some(slot) = self.suspended.remove(&position)
        {
            self.step_back(position, &slot.keys);
        }
    }

    /// An entry is suspended: out of the queue, holding back what the policy says.
    pub fn suspend(&mut self, id: MessageId) {
        let Some(position) = self.places.get(&id).copied() else { return };
        if let Some(slot) = self.remove(position) {
            self.step_aside(position, &slot.keys);
            self.suspended.insert(position, slot);
        }
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

    // --- choosing ---

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
        if self.holds.first().is_some_and(|hold| *hold < position) {
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
        let before = |passed: &BTreeSet<u64>| passed.first().is_some_and(|first| *first < position);
        if !self.policy.ordered {
            return before(&self.passed);
        }
        if !before(&self.passed) {
            return false;
        }
        let keys = self.slots.get(&position).map(|slot| slot.keys.clone()).unwrap_or_default();
        keys.is_empty()
            || before(&self.passed_barriers)
            || keys.iter().filter_map(|key| self.keys.get(key)).any(|holders| before(&holders.passed))
    }

    fn release_due(&mut self, now: Timestamp) {
        while let Some((at, position)) = self.timed.first().copied()
            && at <= now
        {
            self.timed.pop_first();
            self.ready.insert(position);
        }
    }

    // --- bookkeeping ---

    /// Enters an entry into every index that its state asks for.
    fn insert(&mut self, position: u64, slot: Slot) {
        self.places.insert(slot.id, position);
        let (keys, state) = (slot.keys.clone(), slot.state);
        self.slots.insert(position, slot);
        if state == State::Stalled {
            self.stalled += 1;
            self.step_aside(position, &keys);
        } else if self.policy.ordered {
            self.line_up(position, &keys);
        }
        match state {
            State::Waiting if !self.policy.ordered => {
                self.ready.insert(position);
            }
            State::Waiting => self.recheck(position),
            State::InFlight => self.start(&keys),
            State::Stalled => {}
        }
    }

    /// Takes an entry out of every index.
    fn remove(&mut self, position: u64) -> Option<Slot> {
        let slot = self.slots.remove(&position)?;
        self.ready.remove(&position);
        if let Some(at) = slot.not_before {
            self.timed.remove(&(at, position));
        }
        match slot.state {
            State::Waiting => {}
            State::InFlight => self.running -= 1,
            State::Stalled => {
                self.stalled -= 1;
                self.step_back(position, &slot.keys);
                return Some(slot);
            }
        }
        if self.policy.ordered {
            self.leave(position, &slot.keys, slot.state == State::InFlight);
        }
        Some(slot)
    }

    /// An entry starts: its keys, or the barrier it is, are in flight.
    fn start(&mut self, keys: &[u64]) {
        self.running += 1;
        if !self.policy.ordered {
            return;
        }
        if keys.is_empty() {
            self.barriers_running += 1;
        }
        for key in keys {
            self.keys.entry(*key).or_default().running += 1;
            self.recheck_first(*key);
        }
    }

    /// Joins the line of each key; whoever was first there may no longer be.
    fn line_up(&mut self, position: u64, keys: &[u64]) {
        if keys.is_empty() {
            self.barriers.insert(position);
        }
        for key in keys {
            let line = &mut self.keys.entry(*key).or_default().line;
            let before = line.first().copied();
            line.insert(position);
            if let Some(before) = before.filter(|before| *before > position) {
                self.recheck(before);
            }
        }
    }

    /// Leaves the line of each key; whoever is first there now may be eligible.
    fn leave(&mut self, position: u64, keys: &[u64], was_running: bool) {
        if keys.is_empty() {
            self.barriers.remove(&position);
            self.barriers_running -= usize::from(was_running);
        }
        for key in keys {
            if let Some(holders) = self.keys.get_mut(key) {
                holders.line.remove(&position);
                holders.running -= u32::from(was_running);
            }
            self.tidy(*key);
        }
        for key in keys {
            self.recheck_first(*key);
        }
    }

    /// A suspended or stalled entry holds back what the policy says.
    fn step_aside(&mut self, position: u64, keys: &[u64]) {
        match self.policy.on_suspend {
            OnSuspend::HoldItem => {
                self.holds.insert(position);
            }
            OnSuspend::HoldKey if self.policy.ordered && !keys.is_empty() => {
                self.passed.insert(position);
                self.line_up(position, keys);
            }
            OnSuspend::HoldKey | OnSuspend::Pass => {
                self.passed.insert(position);
                if keys.is_empty() {
                    self.passed_barriers.insert(position);
                }
                for key in keys.iter().filter(|_| self.policy.ordered) {
                    self.keys.entry(*key).or_default().passed.insert(position);
                }
            }
        }
    }

    /// Undoes [`Queue::step_aside`].
    fn step_back(&mut self, position: u64, keys: &[u64]) {
        self.holds.remove(&position);
        self.passed.remove(&position);
        self.passed_barriers.remove(&position);
        if !self.policy.ordered {
            return;
        }
        for key in keys {
            if let Some(holders) = self.keys.get_mut(key) {
                holders.passed.remove(&position);
                holders.line.remove(&position);
            }
            self.tidy(*key);
        }
        for key in keys {
            self.recheck_first(*key);
        }
    }

    fn tidy(&mut self, key: u64) {
        if self.keys.get(&key).is_some_and(Holders::is_empty) {
            self.keys.remove(&key);
        }
    }

    fn recheck_first(&mut self, key: u64) {
        if let Some(first) = self.keys.get(&key).and_then(|holders| holders.line.first().copied()) {
            self.recheck(first);
        }
    }

    /// Puts a waiting entry among the eligible ones, or takes it out, as its keys say.
    fn recheck(&mut self, position: u64) {
        let Some(slot) = self.slots.get(&position).filter(|slot| slot.state == State::Waiting) else {
            return;
        };
        let free = |key: &u64| {
            self.keys
                .get(key)
                .is_some_and(|holders| holders.running == 0 && holders.line.first() == Some(&position))
        };
        let eligible = slot.keys.iter().all(free);
        match (eligible, slot.not_before) {
            (true, None) => {
                self.ready.insert(position);
            }
            (true, Some(at)) => {
                if !self.ready.contains(&position) {
                    self.timed.insert((at, position));
                }
            }
            (false, at) => {
                self.ready.remove(&position);
                if let Some(at) = at {
                    self.timed.remove(&(at, position));
                }
            }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POOLS: [PoolSize; 4] =
        [PoolSize::Limited(1), PoolSize::Limited(2), PoolSize::Limited(4), PoolSize::Unlimited];
    const ON_SUSPEND: [OnSuspend; 3] = [OnSuspend::Pass, OnSuspend::HoldKey, OnSuspend::HoldItem];

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn queue(pool: u32, ordered: bool, on_suspend: OnSuspend) -> Queue {
        Queue::new(Policy { pool: PoolSize::Limited(pool), ordered, on_suspend })
    }

    fn push(queue: &mut Queue, id: u64, keys: &[u64]) {
        queue.push(Entry { id: MessageId(id), position: id, keys: keys.into(), not_before: None });
    }

    fn take(queue: &mut Queue, second: i64) -> Vec<u64> {
        queue.take(at(second), 100).into_iter().map(|taken| taken.id.0).collect()
    }

    #[test]
    fn a_pool_of_one_is_strictly_first_in_first_out() {
        let mut queue = queue(1, false, OnSuspend::Pass);
        (1..=3).for_each(|id| push(&mut queue, id, &[]));
        for id in 1..=3 {
            assert_eq!(take(&mut queue, 0), [id]);
            assert_eq!(take(&mut queue, 0), [0; 0]);
            queue.finish(MessageId(id));
        }
        assert_eq!((queue.depth(), queue.in_flight(), queue.head()), (0, 0, None));
    }

    #[test]
    fn a_waiting_retry_holds_back_everything_behind_it() {
        let mut queue = queue(2, false, OnSuspend::Pass);
        (1..=3).for_each(|id| push(&mut queue, id, &[]));
        assert_eq!(take(&mut queue, 0), [1, 2]);
        queue.put_back(MessageId(1), Some(at(5)));
        assert_eq!(queue.next_due(), Some(at(5)));
        queue.finish(MessageId(2));
        assert_eq!(take(&mut queue, 4), [0; 0]);
        assert_eq!(take(&mut queue, 5), [1, 3]);
    }

    #[test]
    fn a_waiting_retry_holds_back_only_its_keys_with_order_by() {
        let mut queue = queue(4, true, OnSuspend::HoldKey);
        push(&mut queue, 1, &[10]);
        push(&mut queue, 2, &[20]);
        push(&mut queue, 3, &[10]);
        assert_eq!(take(&mut queue, 0), [1, 2]);
        queue.put_back(MessageId(1), Some(at(5)));
        push(&mut queue, 4, &[20]);
        queue.finish(MessageId(2));
        assert_eq!(take(&mut queue, 1), [4]);
        assert_eq!(queue.next_due(), Some(at(5)));
        assert_eq!(take(&mut queue, 5), [1]);
        queue.finish(MessageId(1));
        assert_eq!(take(&mut queue, 5), [3]);
    }

    #[test]
    fn hurrying_lets_every_retry_run_at_once() {
        for ordered in [false, true] {
            let mut queue = queue(4, ordered, OnSuspend::HoldKey);
            push(&mut queue, 1, &[10]);
            push(&mut queue, 2, &[20]);
            assert_eq!(take(&mut queue, 0), [1, 2]);
            queue.put_back(MessageId(2), Some(at(60)));
            queue.put_back(MessageId(1), Some(at(60)));
            assert_eq!(take(&mut queue, 1), [0; 0]);
            assert_eq!(queue.hurry(), [MessageId(1), MessageId(2)]);
            assert_eq!(take(&mut queue, 1), [1, 2]);
            assert!(queue.hurry().is_empty());
        }
    }

    #[test]
    fn an_entry_with_several_keys_waits_for_each_of_them() {
        let mut queue = queue(8, true, OnSuspend::HoldKey);
        push(&mut queue, 1, &[10]);
        push(&mut queue, 2, &[20]);
        push(&mut queue, 3, &[10, 20]);
        push(&mut queue, 4, &[20, 30]);
        push(&mut queue, 5, &[40]);
        assert_eq!(take(&mut queue, 0), [1, 2, 5]);
        queue.finish(MessageId(1));
        assert_eq!(take(&mut queue, 0), [0; 0]);
        queue.finish(MessageId(2));
        assert_eq!(take(&mut queue, 0), [3]);
        queue.finish(MessageId(3));
        assert_eq!(take(&mut queue, 0), [4]);
    }

    #[test]
    fn an_entry_without_keys_is_a_barrier_both_ways() {
        let mut queue = queue(8, true, OnSuspend::HoldKey);
        push(&mut queue, 1, &[10]);
        push(&mut queue, 2, &[]);
        push(&mut queue, 3, &[30]);
        assert_eq!(take(&mut queue, 0), [1]);
        queue.finish(MessageId(1));
        assert_eq!(take(&mut queue, 0), [2]);
        assert_eq!(take(&mut queue, 0), [0; 0]);
        queue.finish(MessageId(2));
        assert_eq!(take(&mut queue, 0), [3]);
    }

    #[test]
    fn a_suspended_entry_holds_its_key_and_comes_back_to_its_place() {
        let mut queue = queue(4, true, OnSuspend::HoldKey);
        for (id, key) in [(1, 10), (2, 10), (3, 20), (4, 10)] {
            push(&mut queue, id, &[key]);
        }
        assert_eq!(take(&mut queue, 0), [1, 3]);
        queue.suspend(MessageId(1));
        assert_eq!((queue.depth(), queue.head()), (3, Some(MessageId(2))));
        assert_eq!(take(&mut queue, 0), [0; 0]);
        push(&mut queue, 1, &[10]);
        assert_eq!(queue.head(), Some(MessageId(1)));
        assert_eq!(take(&mut queue, 0), [1]);
        queue.suspend(MessageId(1));
        queue.finish(MessageId(1));
        assert_eq!(take(&mut queue, 0), [2]);
    }

    #[test]
    fn passing_a_suspended_entry_is_marked() {
        let mut unordered = queue(1, false, OnSuspend::Pass);
        (1..=2).for_each(|id| push(&mut unordered, id, &[]));
        assert!(!unordered.take(at(0), 1).iter().any(|taken| taken.overtakes));
        unordered.suspend(MessageId(1));
        assert!(unordered.take(at(0), 1).iter().all(|taken| taken.overtakes));

        let mut ordered = queue(4, true, OnSuspend::Pass);
        for (id, key) in [(1, 10), (2, 20), (3, 10)] {
            push(&mut ordered, id, &[key]);
        }
        assert_eq!(take(&mut ordered, 0), [1, 2]);
        ordered.suspend(MessageId(1));
        let taken = ordered.take(at(0), 4);
        assert_eq!(taken, [Taken { id: MessageId(3), overtakes: true }]);
    }

    #[test]
    fn a_held_item_starts_nothing_behind_the_suspended_entry() {
        let mut queue = queue(4, false, OnSuspend::HoldItem);
        (1..=3).for_each(|id| push(&mut queue, id, &[]));
        assert_eq!(queue.take(at(0), 2).len(), 2);
        queue.suspend(MessageId(2));
        queue.put_back(MessageId(1), None);
        assert_eq!(take(&mut queue, 0), [1]);
        queue.finish(MessageId(2));
        assert_eq!(take(&mut queue, 0), [3]);
    }

    #[test]
    fn a_stalled_instance_gives_up_its_slot_and_keeps_its_key() {
        let mut queue = queue(1, true, OnSuspend::HoldKey);
        for (id, key) in [(1, 10), (2, 10), (3, 20)] {
            push(&mut queue, id, &[key]);
        }
        assert_eq!(take(&mut queue, 0), [1]);
        queue.stall(MessageId(1), true);
        assert_eq!(take(&mut queue, 0), [3]);
        queue.stall(MessageId(1), false);
        queue.finish(MessageId(3));
        assert_eq!(take(&mut queue, 0), [0; 0]);
        queue.finish(MessageId(1));
        assert_eq!(take(&mut queue, 0), [2]);
    }

    // --- against a model that looks at everything every time ---

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum At {
        Waiting,
        Running,
        Stalled,
        Suspended,
    }

    #[derive(Clone, Debug)]
    struct Modelled {
        keys: Vec<u64>,
        not_before: Option<Timestamp>,
        at: At,
    }

    #[derive(Debug)]
    struct Model {
        policy: Policy,
        entries: BTreeMap<u64, Modelled>,
    }

    impl Model {
        fn may_start(&self, place: u64, now: Timestamp) -> bool {
            let entry = &self.entries[&place];
            if entry.at != At::Waiting || entry.not_before.is_some_and(|due| due > now) {
                return false;
            }
            self.entries.iter().filter(|(other, _)| **other != place).all(|(other, there)| {
                let earlier = *other < place;
                let aside = matches!(there.at, At::Suspended | At::Stalled);
                let shared = there.keys.iter().any(|key| entry.keys.contains(key));
                if aside {
                    return match self.policy.on_suspend {
                        OnSuspend::HoldItem => !earlier,
                        OnSuspend::HoldKey => !(earlier && shared && self.policy.ordered),
                        OnSuspend::Pass => true,
                    };
                }
                if !self.policy.ordered {
                    return !(earlier && there.at == At::Waiting);
                }
                let barrier = there.keys.is_empty() || entry.keys.is_empty();
                !((barrier || shared) && (earlier || there.at == At::Running))
            })
        }

        fn take(&mut self, now: Timestamp, max: usize) -> Vec<u64> {
            let mut taken = Vec::new();
            while taken.len() < max {
                let running = self.entries.values().filter(|entry| entry.at == At::Running).count();
                let full = match self.policy.pool {
                    PoolSize::Limited(pool) => running >= pool as usize,
                    PoolSize::Unlimited => false,
                };
                let places: Vec<u64> = self.entries.keys().copied().collect();
                let Some(place) = places.into_iter().find(|place| self.may_start(*place, now)) else { break };
                if full {
                    break;
                }
                let entry = self.entries.get_mut(&place).unwrap();
                (entry.at, entry.not_before) = (At::Running, None);
                taken.push(place);
            }
            taken
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(Vec<u64>),
        Take(usize),
        Finish(usize),
        PutBack(usize, Option<i64>),
        Suspend(usize),
        Resume(usize),
        Stall(usize, bool),
        Wait(i64),
        Policy(usize, bool, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => prop::collection::vec(0u64..4, 0..3).prop_map(Step::Push),
            6 => (1usize..4).prop_map(Step::Take),
            4 => any::<usize>().prop_map(Step::Finish),
            2 => (any::<usize>(), prop::option::of(1i64..6)).prop_map(|(n, wait)| Step::PutBack(n, wait)),
            2 => any::<usize>().prop_map(Step::Suspend),
            2 => any::<usize>().prop_map(Step::Resume),
            1 => (any::<usize>(), any::<bool>()).prop_map(|(n, stalled)| Step::Stall(n, stalled)),
            2 => (1i64..4).prop_map(Step::Wait),
            1 => (0usize..4, any::<bool>(), 0usize..3).prop_map(|(a, b, c)| Step::Policy(a, b, c)),
        ]
    }

    fn policy(pool: usize, ordered: bool, on_suspend: usize) -> Policy {
        Policy { pool: POOLS[pool], ordered, on_suspend: ON_SUSPEND[on_suspend] }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        /// Order per key, the pool, and who waits for whom are exactly the model's; nothing is lost.
        #[test]
        fn it_schedules_exactly_like_the_model(
            start in (0usize..4, any::<bool>(), 0usize..3),
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let first = policy(start.0, start.1, start.2);
            let (mut queue, mut model) = (Queue::new(first), Model { policy: first, entries: BTreeMap::new() });
            let (mut now, mut last) = (0, 0);
            for step in steps {
                let nth = |model: &Model, n: usize, wanted: &[At]| {
                    let fitting: Vec<u64> = model.entries.iter()
                        .filter(|(_, entry)| wanted.contains(&entry.at)).map(|(place, _)| *place).collect();
                    (!fitting.is_empty()).then(|| fitting[n % fitting.len()])
                };
                match step {
                    Step::Push(keys) => {
                        last += 1;
                        push(&mut queue, last, &keys);
                        model.entries.insert(last, Modelled { keys, not_before: None, at: At::Waiting });
                    }
                    Step::Take(max) => {
                        let taken: Vec<u64> = queue.take(at(now), max).iter().map(|taken| taken.id.0).collect();
                        prop_assert_eq!(taken, model.take(at(now), max));
                    }
                    Step::Finish(n) => if let Some(place) = nth(&model, n, &[At::Running, At::Suspended, At::Waiting, At::Stalled]) {
                        queue.finish(MessageId(place));
                        model.entries.remove(&place);
                    },
                    Step::PutBack(n, wait) => if let Some(place) = nth(&model, n, &[At::Running]) {
                        let due = wait.map(|wait| at(now + wait));
                        queue.put_back(MessageId(place), due);
                        let entry = model.entries.get_mut(&place).unwrap();
                        (entry.at, entry.not_before) = (At::Waiting, due);
                    },
                    Step::Suspend(n) => if let Some(place) = nth(&model, n, &[At::Running, At::Waiting]) {
                        queue.suspend(MessageId(place));
                        model.entries.get_mut(&place).unwrap().at = At::Suspended;
                    },
                    Step::Resume(n) => if let Some(place) = nth(&model, n, &[At::Suspended]) {
                        let entry = model.entries.get_mut(&place).unwrap();
                        push(&mut queue, place, &entry.keys.clone());
                        (entry.at, entry.not_before) = (At::Waiting, None);
                    },
                    Step::Stall(n, stalled) => {
                        let (from, to) = if stalled { (At::Running, At::Stalled) } else { (At::Stalled, At::Running) };
                        if let Some(place) = nth(&model, n, &[from]) {
                            queue.stall(MessageId(place), stalled);
                            model.entries.get_mut(&place).unwrap().at = to;
                        }
                    }
                    Step::Wait(seconds) => now += seconds,
                    Step::Policy(pool, ordered, on_suspend) => {
                        queue.set_policy(policy(pool, ordered, on_suspend));
                        model.policy = policy(pool, ordered, on_suspend);
                    }
                }
                let unfinished: Vec<MessageId> = model.entries.iter()
                    .filter(|(_, entry)| entry.at != At::Suspended).map(|(place, _)| MessageId(*place)).collect();
                let flying = model.entries.values().filter(|e| matches!(e.at, At::Running | At::Stalled)).count();
                prop_assert_eq!(queue.head(), unfinished.first().copied());
                prop_assert_eq!((queue.depth(), queue.in_flight()), (unfinished.len(), flying));
                prop_assert_eq!(queue.ids(), unfinished);
                // Whoever sleeps until the next due time finds something then.
                if let Some(due) = queue.next_due() {
                    prop_assert!(!queue.clone().take(due.max(at(now)), 1).is_empty());
                }
            }
        }
    }
}
