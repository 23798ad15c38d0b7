//! What the state shows: headers, sessions, queues, counters.

use super::State;
use super::item::{Item, count};
use crate::event::Event;
use crate::header::Header;
use crate::host::KeepFamily;
use crate::id::{ItemName, MessageId, SessionId};
use crate::store::api::{ItemCounts, QueueView};
use crate::store::shelf::Shelf;

impl State {
    pub(in crate::store) fn header(&self, id: MessageId) -> Option<Header> {
        self.rows.get(&id.0).map(|row| row.header(id, &self.names))
    }

    pub(in crate::store) fn session(&self, id: SessionId) -> Vec<Header> {
        let ids = self.by_session.range((id.0, 0)..=(id.0, u64::MAX));
        ids.filter_map(|(_, id)| self.header(MessageId(*id))).collect()
    }

    pub(in crate::store) fn session_events(&self, id: SessionId) -> Vec<Event> {
        let ids = self.session_events.range((id.0, 0)..=(id.0, u64::MAX));
        ids.filter_map(|(_, id)| self.events.get(id).map(|event| Event::clone(event))).collect()
    }

    pub(in crate::store) fn keep(&self, family: KeepFamily) -> Option<&Shelf> {
        self.keep.get(&family)
    }

    pub(super) fn named_items(&self) -> impl Iterator<Item = (ItemName, &Item)> {
        let named = |(number, item)| (self.names.name(u32::try_from(number).unwrap_or(u32::MAX)), item);
        self.items.iter().enumerate().map(named)
    }

    pub(in crate::store) fn queued_items(&self) -> Vec<(ItemName, u64)> {
        let counted = |(name, item): (ItemName, &Item)| {
            (
                name,
                count(item.queue.depth() + item.spine.length())
                    + count(item.responses.len())
                    + item.suspended,
            )
        };
        self.named_items()
            .filter(|(_, item)| item.receives || !item.responses.is_empty())
            .map(counted)
            .collect()
    }

    /// All queues of requests; a head that is not in memory is given by its id.
    pub(in crate::store) fn queues(&self) -> Vec<(QueueView, Option<MessageId>)> {
        let view = |(name, item): (ItemName, &Item)| {
            let beyond = || item.spine.first(1).first().map(|first| MessageId(first.id));
            let id = item.queue.head().or_else(beyond);
            let head = id.and_then(|id| self.header(id));
            let absent = id.filter(|_| head.is_none());
            let oldest = head.as_ref().map(|head| head.created);
            (QueueView { item: name, depth: item.depth(), oldest, head }, absent)
        };
        self.named_items().filter(|(_, item)| item.receives).map(view).collect()
    }

    pub(in crate::store) fn counts(&self, name: &ItemName) -> ItemCounts {
        let Some(item) = self.known_item(name.as_str()) else { return ItemCounts::default() };
        let (completed, errors) = match item.receives {
            true => (item.completed, item.errors),
            false => (item.taken_in, item.rejected),
        };
        ItemCounts {
            queued: item.depth(),
            in_flight: count(item.queue.in_flight()),
            completed,
            errors,
            suspended: item.suspended,
            last_activity: item.last_activity.time(),
            last_error: item.last_error.clone(),
        }
    }
}
