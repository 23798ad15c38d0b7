//! What items do with their queues: taking messages under leases and giving them back. Schedules and leases are in
//! the state, in memory only.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::api::{Conflict, Delivery, Lanes, Lease};
use super::{Store, pager};
use crate::header::Header;
use crate::id::{ItemName, MessageId};
use crate::queue::Policy;

impl Store {
    /// Sets how an item's queue of requests schedules; creates the queue.
    pub fn configure_queue(&self, item: &ItemName, policy: Policy) {
        let ready = self.state().configure_queue(item, policy);
        ready.notify_one();
    }

    /// Is notified (one permit kept) whenever something of this item may have become ready to take.
    pub fn ready(&self, item: &ItemName) -> Arc<Notify> {
        self.state().ready(item)
    }

    /// Whether suspended messages may go back to this item. They go to its window, which is in memory: a million that
    /// are resumed at once come back as fast as they are taken.
    pub fn has_room(&self, item: &ItemName) -> bool {
        self.state().has_room(item)
    }

    /// Takes what may run now; each is delivered under a lease of its own.
    pub fn take(&self, item: &ItemName, lanes: Lanes, max: usize) -> Vec<Delivery> {
        let now = self.clock().now();
        self.state().take(item, lanes, max, now)
    }

    /// Lets waiting retries of an item be taken at once: it has been started, and a start tries at once.
    pub fn hurry(&self, item: &ItemName) {
        let ready = self.state().hurry(item);
        notify(ready);
    }

    /// When the next waiting retry of this item may run.
    pub fn next_due(&self, item: &ItemName) -> Option<Timestamp> {
        self.state().next_due(item)
    }

    /// Ends a lease without an outcome: the message is queued at its place, to be taken again. `false` if
    /// the lease had ended already.
    pub fn release(&self, lease: Lease) -> bool {
        let ready = self.state().release(lease, true);
        notify(ready)
    }

    /// As [`Store::release`], for a message that was taken and not touched: it does not count as an attempt.
    pub fn untake(&self, lease: Lease) -> bool {
        let ready = self.state().release(lease, false);
        notify(ready)
    }

    /// Ends whatever lease there is on a message, leaving it delivered: a late result is refused.
    /// Gives a new lease to whoever fenced it; `None` if it was not delivered.
    pub fn fence(&self, id: MessageId) -> Option<Lease> {
        self.state().fence(id)
    }

    /// Marks a delivered process request as an instance that waits on disk (it stays delivered and keeps
    /// its pool slot), also after recovery; gives the lease under which it goes on.
    pub fn adopt(&self, id: MessageId) -> Option<Lease> {
        // If it does not come back, it is not there to adopt.
        let _ = self.bring_back(Conflict::Unknown(id), true);
        self.state().adopt(id)
    }

    /// One that has come back into memory meanwhile; or one that waits or is suspended and that the index lacks: where
    /// it is in the journal, memory knows.
    pub(super) fn waiting_header(&self, id: MessageId) -> Option<Header> {
        let mut tried = None;
        loop {
            let (recent, absent) = {
                let state = self.state();
                (state.header(id), state.absent(id))
            };
            let Some((_, reference)) = absent.filter(|_| recent.is_none()) else { return recent };
            // Tried again where a purge has carried it to another place meanwhile.
            if reference.frame.is_none() || reference.frame == tried {
                return None;
            }
            tried = reference.frame;
            let embedded = self.0.embedded.as_ref()?;
            let found = pager::load(&[reference], &embedded.readers, &self.0.shared.vault).take(id);
            if found.is_some() {
                return found;
            }
        }
    }

    /// See [`crate::queue::Queue::stall`].
    pub fn stall(&self, id: MessageId, stalled: bool) {
        let ready = self.state().stall(id, stalled);
        notify(ready);
    }
}

/// Wakes who waits for something to take; whether there was somebody to wake.
fn notify(ready: Option<Arc<Notify>>) -> bool {
    ready.inspect(|ready| ready.notify_one()).is_some()
}
