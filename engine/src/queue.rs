//! The order in which an item's messages run: a pure, in-memory schedule over queue entries. The store's
//! `State` owns one per item and changes it only while folding transactions, so recovery rebuilds it.
//!
//! Invariants (DESIGN §6): without `order_by` entries start in position order, at most `pool_size` at a
//! time, and a waiting retry holds back everything behind it. With `order_by` an entry runs when it is the
//! oldest unfinished holder of each of its keys; an entry without keys is a barrier both ways. A suspended
//! entry is out of the queue; what waits for it is decided by `on_suspend`. A resumed entry goes back to
//! its position.

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

/// The schedule of one item.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    policy: Policy,
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
        Queue { policy }
    }

    /// Changes how it schedules; entries in flight stay in flight.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Adds a new, recovered or resumed entry at its position.
    pub fn push(&mut self, _entry: Entry) {
        unimplemented!("filled in with the Director")
    }

    /// Takes up to `max` entries that may run now; they are in flight from here on.
    pub fn take(&mut self, _now: Timestamp, _max: usize) -> Vec<Taken> {
        unimplemented!("filled in with the Director")
    }

    /// When the next waiting retry may run, if that is what the queue waits for.
    pub fn next_due(&self) -> Option<Timestamp> {
        unimplemented!("filled in with the Director")
    }

    /// An in-flight entry goes back to its place, to run again not before a moment (or at once).
    pub fn put_back(&mut self, _id: MessageId, _not_before: Option<Timestamp>) {
        unimplemented!("filled in with the Director")
    }

    /// An entry (in flight, waiting or suspended) is finished and forgotten.
    pub fn finish(&mut self, _id: MessageId) {
        unimplemented!("filled in with the Director")
    }

    /// An entry is suspended: out of the queue, holding back what the policy says.
    pub fn suspend(&mut self, _id: MessageId) {
        unimplemented!("filled in with the Director")
    }

    /// A process instance in flight gives up its slot because what it called is suspended (`true`), or
    /// takes it back (`false`); its keys follow `on_suspend`.
    pub fn stall(&mut self, _id: MessageId, _stalled: bool) {
        unimplemented!("filled in with the Director")
    }

    /// Unfinished entries, in flight included, suspended ones not.
    pub fn depth(&self) -> usize {
        unimplemented!("filled in with the Director")
    }

    /// Entries in flight.
    pub fn in_flight(&self) -> usize {
        unimplemented!("filled in with the Director")
    }

    /// The oldest unfinished entry.
    pub fn head(&self) -> Option<MessageId> {
        unimplemented!("filled in with the Director")
    }

    /// Every unfinished entry in position order, for pre-flight checks and discards.
    pub fn ids(&self) -> Vec<MessageId> {
        unimplemented!("filled in with the Director")
    }
}
