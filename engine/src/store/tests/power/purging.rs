//! Purges beside the work: what they may take, and what they took.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::super::sim::Random;
use super::World;
use super::effects::{Effect, Model};
use crate::clock::Clock as _;
use crate::id::MessageId;
use crate::store::{EventFilter, MessageFilter, Purge, PurgeError, Purged, Store};

/// A purge beside the work.
pub(super) type Purging = JoinHandle<(Purge, Result<Purged, PurgeError>)>;

impl World {
    /// Begins to purge, beside the work: what is old, by age or by size or because somebody asked for a moment.
    pub(super) fn purge(&mut self, store: &Store) -> Purging {
        let now = self.clock.now();
        let ago = |random: &mut Random| now - Duration::from_secs(random.below(3600));
        let mut purge = match self.random.below(8) {
            0 => Purge::down_to(self.segment_size * self.random.below(8)),
            1 => Purge { roll_before: Timestamp::MIN, ..Purge::before(Timestamp::MAX) },
            2 => Purge { roll_before: ago(&mut self.random), ..Purge::before(ago(&mut self.random)) },
            3 | 4 => Purge { within: true, ..Purge::before(ago(&mut self.random)) },
            5 => Purge { within: true, ..Purge::before(now) },
            _ => Purge::before(Timestamp::MAX),
        };
        if self.random.one_in(4) {
            purge.audit_before = ago(&mut self.random);
        }
        purge.dry_run = self.random.one_in(8);
        if !purge.dry_run {
            self.purged_from.get_or_insert(self.effects.len());
            let (before, audit_before) = self.purged_before;
            self.purged_before = (before.max(purge.before), audit_before.max(purge.audit_before));
        }
        self.story.push(format!("purge at {}: {purge:?}", self.effects.len()));
        let store = store.clone();
        tokio::spawn(async move { (purge, store.purge(purge).await) })
    }

    /// What a purge took before it ended well is gone for good. `true` when the disk has failed.
    pub(super) async fn purged(
        &mut self,
        store: &Store,
        purge: Purge,
        purged: Result<Purged, PurgeError>,
    ) -> bool {
        self.story.push(format!("{purged:?} at {}", self.effects.len()));
        let purged = match purged {
            Ok(purged) => purged,
            Err(error) => return error != PurgeError::Memory,
        };
        if purge.dry_run {
            return false;
        }
        if purged.messages == 0 && purged.segments == 0 {
            return false;
        }
        self.durable = self.durable.max(usize::try_from(store.0.shared.durable.synced()).unwrap());
        self.effects.resize(self.effects.len().max(self.durable), Vec::new());
        let Some((messages, events)) = self.missing(store, &Model::of(&self.effects)).await else {
            return true;
        };
        assert!(messages.len() as u64 >= purged.messages, "{purged:?} and {messages:?} are gone");
        if let Some(last) = self.durable.checked_sub(1) {
            self.effects[last].push(Effect::Purged { messages, events });
        }
        false
    }

    /// What a purge has taken of what there was; `None` when the disk has failed while the index was made again.
    pub(super) async fn missing(&self, store: &Store, expected: &Model) -> Option<(Vec<u64>, Vec<String>)> {
        while store.search(&MessageFilter::default(), None, 1).await.unwrap().lag_ms > 0 {
            if self.files.has_failed() {
                return None;
            }
            // On a full disk it waits until somebody makes room.
            self.files.make_room();
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        if self.files.has_failed() {
            return None;
        }
        let there = store.search(&MessageFilter::default(), None, 1_000_000).await.unwrap().entries;
        let there: BTreeSet<u64> = there.iter().map(|header| header.id.0).collect();
        let messages = expected.messages.iter().filter(|(id, _)| !there.contains(id));
        let (before, audit_before) = self.purged_before;
        let messages: Vec<u64> = messages
            .map(|(id, message)| {
                let last = expected.active[&expected.sessions[id]];
                assert!(last < before, "{id} of {last} is gone: {:#?}", self.story);
                assert!(message.1.is_final(), "{id} was {:?} and is gone: {:#?}", message.1, self.story);
                *id
            })
            .collect();
        let there = store.events(&EventFilter::default(), None, 1_000_000).unwrap().entries;
        let there: BTreeSet<String> = there.into_iter().map(|event| event.text).collect();
        let events = expected.events.iter().filter(|(text, _)| !there.contains(text));
        let events: Vec<String> = events
            .map(|(text, at)| {
                let audit = text.contains("looked") && *at >= audit_before;
                assert!(!audit, "{text} is an audit event and gone: {:#?}", self.story);
                text.clone()
            })
            .collect();
        let may = self.purged_from.is_some_and(|from| from < self.effects.len());
        assert!(may || (messages.is_empty() && events.is_empty()), "nothing was purged: {:#?}", self.story);
        for id in &messages {
            assert_eq!(store.header(MessageId(*id)), None);
            let session = expected.sessions[id];
            assert!(store.session(session).is_empty(), "half of {session:?} is gone: {:#?}", self.story);
            assert!(store.session_events(session).iter().all(|event| event.who.is_some()));
        }
        Some((messages, events))
    }
}
