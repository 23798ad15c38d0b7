//! Suspended messages on a disk that fails: an operator resumes and discards them, and what they hold back is what a
//! queue says that never left memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::support::item;
use super::World;
use super::effects::{Effect, Model};
use crate::clock::Clock as _;
use crate::header::Status;
use crate::id::MessageId;
use crate::queue::{Entry, Queue};
use crate::store::{Guard, Lanes, Op, Store, Transition};

/// Order keys of a message: none, one or two, some of them twice.
pub(super) fn order_keys(id: u64) -> Arc<[u64]> {
    let all = [id / 7 % 5, id / 3 % 5];
    Arc::from(all.get(..id as usize / 2 % 3).unwrap_or_default())
}

impl World {
    /// An operator resumes or discards some that are suspended, perhaps together.
    pub(super) fn act(&mut self, store: &Store) -> (Vec<Op>, Vec<Effect>) {
        let mut suspended = BTreeSet::new();
        for effect in self.effects.iter().flatten() {
            if let Effect::Moved { id, to, .. } = effect {
                match to {
                    Status::Suspended => suspended.insert(*id),
                    _ => suspended.remove(id),
                };
            }
        }
        let mut suspended: Vec<u64> = suspended.into_iter().collect();
        let (mut ops, mut effects) = (Vec::new(), Vec::new());
        for _ in 0..=self.random.below(3) {
            if suspended.is_empty() {
                break;
            }
            let id = suspended.swap_remove(self.random.below(suspended.len() as u64) as usize);
            let to = [Status::Queued, Status::Queued, Status::Discarded][self.random.below(3) as usize];
            ops.push(Op::Transition(Transition::new(MessageId(id), Guard::Status(Status::Suspended), to)));
            effects.push(Effect::Moved { id, to, at: self.clock.now() });
        }
        if ops.is_empty() { self.receive(store) } else { (ops, effects) }
    }

    /// What may run next, and whom it overtakes, is what a queue says that never left memory.
    pub(super) fn schedules(&self, store: &Store, expected: &Model, target: &str) {
        store.configure_queue(&item(target), self.policy);
        if self.window < 1 << 14 {
            // What waits beyond the window comes when it comes.
            return;
        }
        let mut queue = Queue::new(self.policy);
        for (id, message) in expected.messages.iter().filter(|(_, message)| message.0 == target) {
            let (id, keys) = (MessageId(*id), order_keys(*id));
            match message.1 {
                Status::Queued => queue.push(Entry { id, position: id.0, keys, not_before: None }),
                Status::Suspended => queue.suspend(id, id.0, &keys),
                _ => {}
            }
        }
        let taken = store.take(&item(target), Lanes::Requests, 8);
        let found: Vec<_> = taken.iter().map(|taken| (taken.header.id, taken.overtakes)).collect();
        let next = queue.take(self.clock.now(), 8);
        let next: Vec<_> = next.into_iter().map(|taken| (taken.id, taken.overtakes)).collect();
        assert_eq!(found, next, "{target} {:?}: {:#?}", self.policy, self.story);
        assert!(taken.iter().all(|taken| store.untake(taken.lease)));
    }
}
