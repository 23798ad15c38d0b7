//! Resuming and discarding every suspended message that a filter selects.
//!
//! Whoever is resumed comes back into memory. So a million come back as fast as their items take them, and where an
//! item takes nothing, no more than fit its window: the others stay suspended, and the report says so.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use crate::director::selection::{Ids, Refusals, Walk};
use crate::director::{ControlError, Engine};
use crate::header::Status;
use crate::id::{ItemName, MessageId};
use crate::store::MessageFilter;

/// How long an item that takes nothing is waited for, and how often it is looked at.
const PATIENCE: u32 = 500;
const NAP: Duration = Duration::from_millis(10);

/// What to do with the suspended messages of a selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bulk {
    /// Back to their places.
    Resume,
    /// They will not be processed.
    Discard,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default)]
pub struct BulkReport {
    /// How many suspended messages the filter selects.
    pub selected: u64,
    /// With how many it was done; 0 in a dry run.
    pub done: u64,
    /// With how many it could not be done.
    pub failed_count: u64,
    /// The first of them, and why.
    pub failed: VecDeque<(MessageId, String)>,
}

impl Engine {
    /// Resumes or discards every suspended message that the filter selects, oldest first. Goes to its end
    /// once begun, also when the caller goes away; what was done is durable when this returns.
    pub async fn bulk(
        &self,
        filter: &MessageFilter,
        action: Bulk,
        dry_run: bool,
        who: Option<&str>,
    ) -> Result<BulkReport, ControlError> {
        if !filter.status.is_empty() && !filter.status.contains(&Status::Suspended) {
            return Ok(BulkReport::default());
        }
        let filter = MessageFilter { status: vec![Status::Suspended], ..filter.clone() };
        let (mut ids, mut walk) = (Ids::default(), Walk::default());
        while let Some(page) = walk.next(self.core(), &filter).await? {
            ids.push(&page.iter().map(|header| header.id).collect::<Vec<_>>());
        }
        if dry_run {
            return Ok(BulkReport { selected: ids.len(), ..BulkReport::default() });
        }
        let (engine, who) = (self.clone(), who.map(str::to_owned));
        let work = tokio::spawn(async move { engine.all_of(ids, action, who.as_deref()).await });
        work.await.map_err(|failed| ControlError::Unavailable(failed.to_string()))?
    }

    async fn all_of(
        &self,
        mut ids: Ids,
        action: Bulk,
        who: Option<&str>,
    ) -> Result<BulkReport, ControlError> {
        let (mut done, mut refusals) = (0, Refusals::default());
        let selected = ids.len();
        let mut full = HashSet::new();
        while let Some(page) = ids.pop() {
            let mut last = None;
            for id in page {
                let outcome = match action {
                    Bulk::Resume if !self.has_room(id, &mut full).await => Err(ControlError::NotAllowed(
                        "the queue has no room: resume it when it is shorter".to_owned(),
                    )),
                    Bulk::Resume => self.put_back(id, who).await,
                    Bulk::Discard => self.give_up(id, who).await,
                };
                match outcome {
                    Ok(committed) => (done, last) = (done + 1, Some(committed)),
                    Err(failed @ ControlError::Unavailable(_)) => return Err(failed),
                    // Somebody else was faster.
                    Err(error) => refusals.younger(id, || error.to_string()),
                }
            }
            // One wait for a page, not one for each message.
            if let Some(last) = last {
                self.durable(last).await?;
            }
        }
        Ok(BulkReport { selected, done, failed_count: refusals.count, failed: refusals.listed })
    }

    /// Waits until the item of a message has room, as long as it takes something; `full` are those that do not.
    async fn has_room(&self, id: MessageId, full: &mut HashSet<ItemName>) -> bool {
        let store = &self.core().store;
        // Whoever is not there is refused for that.
        let Some(item) = store.header(id).and_then(|header| header.target) else { return true };
        let (mut left, mut before) = (PATIENCE, None);
        while !store.has_room(&item) {
            let counts = store.counts(&item);
            let now = Some((counts.completed, counts.errors, counts.suspended));
            left = if now == before { left - 1 } else { PATIENCE };
            before = now;
            if left == 0 || full.contains(&item) {
                full.insert(item);
                return false;
            }
            store.clock().sleep(NAP).await;
        }
        full.remove(&item);
        true
    }
}
