//! Who has what: taking messages under a lease and giving them back. All of it is in memory only, so that a
//! crash forgets it.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::State;
use super::item::{entry, item};
use crate::header::{Kind, Status};
use crate::id::{ItemName, MessageId};
use crate::queue::Policy;
use crate::store::api::{Delivery, Lanes, Lease};

impl State {
    pub(in crate::store) fn item_number(&mut self, name: &ItemName) -> u32 {
        self.names.item(name)
    }

    pub(in crate::store) fn configure_queue(&mut self, name: &ItemName, policy: Policy) -> Arc<Notify> {
        let number = self.item_number(name);
        let item = item(&mut self.items, number);
        item.receives = true;
        item.queue.set_policy(policy);
        item.ready.clone()
    }

    pub(in crate::store) fn ready(&mut self, name: &ItemName) -> Arc<Notify> {
        let number = self.item_number(name);
        item(&mut self.items, number).ready.clone()
    }

    /// Whether more may come into an item's window at once: it may be twice as full as it gets by itself.
    pub(in crate::store) fn has_room(&self, name: &ItemName) -> bool {
        let depth = self.known_item(name.as_str()).map_or(0, |item| item.queue.depth());
        self.window.is_none_or(|window| depth < window.saturating_mul(2))
    }

    pub(in crate::store) fn take(
        &mut self,
        name: &ItemName,
        lanes: Lanes,
        max: usize,
        now: Timestamp,
    ) -> Vec<Delivery> {
        let Some(item) = self.known_item_mut(name.as_str()) else { return Vec::new() };
        let taken: Vec<(MessageId, bool)> = match lanes {
            Lanes::Requests => {
                item.queue.take(now, max).into_iter().map(|taken| (taken.id, taken.overtakes)).collect()
            }
            Lanes::Responses => {
                let first = std::iter::from_fn(|| item.responses.pop_first());
                first.take(max).map(|(_, id)| (MessageId(id), false)).collect()
            }
        };
        let mut deliveries = Vec::with_capacity(taken.len());
        for (id, overtakes) in taken {
            let lease = self.lease(id);
            let Some(row) = self.rows.get_mut(&id.0).map(Arc::make_mut) else { continue };
            row.status = Status::Delivered;
            row.attempts = row.attempts.saturating_add(1);
            deliveries.push(Delivery {
                header: row.header(id, &self.names),
                lease,
                sequence: row.sequence,
                recovered: id.0 < self.opened_at,
                overtakes,
            });
        }
        deliveries
    }

    fn lease(&mut self, id: MessageId) -> Lease {
        self.generation += 1;
        self.leases.insert(id.0, self.generation);
        Lease { id, generation: self.generation }
    }

    /// Retries that wait may be taken at once.
    pub(in crate::store) fn hurry(&mut self, name: &ItemName) -> Option<Arc<Notify>> {
        let item = self.known_item_mut(name.as_str())?;
        let (waiting, ready) = (item.queue.hurry(), item.ready.clone());
        for id in waiting {
            if let Some(row) = self.rows.get_mut(&id.0).map(Arc::make_mut) {
                row.hurry();
            }
        }
        Some(ready)
    }

    pub(in crate::store) fn next_due(&self, name: &ItemName) -> Option<Timestamp> {
        self.known_item(name.as_str())?.queue.next_due()
    }

    /// `tried`: it may have been worked on; otherwise taking it does not count as an attempt.
    pub(in crate::store) fn release(&mut self, lease: Lease, tried: bool) -> Option<Arc<Notify>> {
        let id = lease.id;
        if self.leases.get(&id.0) != Some(&lease.generation) {
            return None;
        }
        self.leases.remove(&id.0);
        let row = self.rows.get_mut(&id.0).map(Arc::make_mut)?;
        row.status = Status::Queued;
        row.attempts = row.attempts.saturating_sub(u32::from(!tried));
        let item = item(&mut self.items, row.target()?);
        match row.kind {
            Kind::Request => item.queue.put_back(id, None),
            Kind::Response => {
                item.responses.insert(row.position, id.0);
            }
        }
        Some(item.ready.clone())
    }

    pub(in crate::store) fn fence(&mut self, id: MessageId) -> Option<Lease> {
        self.leases.contains_key(&id.0).then(|| self.lease(id))
    }

    pub(in crate::store) fn adopt(&mut self, id: MessageId) -> Option<Lease> {
        let row = self.rows.get_mut(&id.0).map(Arc::make_mut)?;
        if row.kind != Kind::Request {
            return None;
        }
        match row.status {
            Status::Delivered => {}
            Status::Queued => {
                let item = item(&mut self.items, row.target()?);
                if item.spine.remove(row.position) {
                    item.queue.push(entry(id, row));
                }
                item.queue.claim(id).then_some(())?;
                row.status = Status::Delivered;
            }
            _ => return None,
        }
        Some(self.lease(id))
    }

    pub(in crate::store) fn stall(&mut self, id: MessageId, stalled: bool) -> Option<Arc<Notify>> {
        let item = item(&mut self.items, self.rows.get(&id.0)?.target()?);
        item.queue.stall(id, stalled);
        Some(item.ready.clone())
    }
}
