//! Where each entry of a queue stands: the lines behind its keys, the barriers, and what is out of the way.
//! [`Queue`] says what happens to an entry; here every index follows, and whoever becomes first in its lines
//! becomes eligible. Nothing here decides when something runs.

use std::collections::VecDeque;

use super::{Queue, Slot, State};
use crate::config::settings::OnSuspend;

/// The unfinished holders of one key.
#[derive(Clone, Debug, Default)]
pub(super) struct Holders {
    /// Everything that must come in order.
    line: Line,
    /// How many of them are in flight: one, or two after a stall ended.
    running: u32,
}

/// Positions in order. Most lines have one; most that come, come last, and most that go are first.
#[derive(Clone, Debug, Default)]
struct Line {
    first: Option<u64>,
    rest: VecDeque<u64>,
}

impl Line {
    fn insert(&mut self, position: u64) {
        let behind = match self.first {
            None => return self.first = Some(position),
            Some(first) if first == position => return,
            Some(first) if first > position => {
                self.first = Some(position);
                return self.rest.push_front(first);
            }
            Some(_) => self.rest.partition_point(|other| *other < position),
        };
        if self.rest.get(behind) != Some(&position) {
            self.rest.insert(behind, position);
        }
    }

    fn remove(&mut self, position: u64) {
        if self.first == Some(position) {
            self.first = self.rest.pop_front();
        } else if let Ok(place) = self.rest.binary_search(&position) {
            self.rest.remove(place);
        }
    }
}

impl Holders {
    fn is_empty(&self) -> bool {
        self.line.first.is_none() && self.running == 0
    }
}

impl Queue {
    /// Enters an entry into every index that its state asks for.
    pub(super) fn insert(&mut self, position: u64, slot: Slot) {
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
    pub(super) fn remove(&mut self, position: u64) -> Option<Slot> {
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
    pub(super) fn start(&mut self, keys: &[u64]) {
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
            let before = line.first;
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
                holders.line.remove(position);
                holders.running -= u32::from(was_running);
            }
            self.tidy(*key);
        }
        for key in keys {
            self.recheck_first(*key);
        }
    }

    /// A suspended or stalled entry holds back what the policy says.
    pub(super) fn step_aside(&mut self, position: u64, keys: &[u64]) {
        self.aside.insert(position, keys);
        self.recheck_held(keys);
    }

    /// Undoes [`Queue::step_aside`].
    pub(super) fn step_back(&mut self, position: u64, keys: &[u64]) {
        self.aside.remove(position, keys);
        self.recheck_held(keys);
    }

    /// Whether a key is held by an entry that stands aside before a position.
    fn is_held(&self, key: u64, position: u64) -> bool {
        self.policy.on_suspend == OnSuspend::HoldKey && self.aside.key_before(key, position)
    }

    fn recheck_held(&mut self, keys: &[u64]) {
        if self.policy.ordered && self.policy.on_suspend == OnSuspend::HoldKey {
            keys.iter().for_each(|key| self.recheck_first(*key));
        }
    }

    fn tidy(&mut self, key: u64) {
        if self.keys.get(&key).is_some_and(Holders::is_empty) {
            self.keys.remove(&key);
        }
    }

    fn recheck_first(&mut self, key: u64) {
        if let Some(first) = self.keys.get(&key).and_then(|holders| holders.line.first) {
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
                .is_some_and(|holders| holders.running == 0 && holders.line.first == Some(position))
                && !self.is_held(*key, position)
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
