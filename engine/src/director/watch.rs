//! Looks at every item from time to time, for the alerts that an item's own settings ask for
//! (`alert = { queue_age, queue_depth, inactive, during }`), one per change of state.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::config::plan::ItemPlan;
use crate::director::alerts::Alert;
use crate::director::core::{Core, Directory};
use crate::event::Level;
use crate::id::ItemName;

const TICK: Duration = Duration::from_secs(5);

/// What one look saw of an item.
struct Seen {
    queued: u64,
    /// Age of the oldest queued message.
    age: SignedDuration,
    /// How long nothing came in.
    quiet: SignedDuration,
}

/// Watches until cancelled.
pub(super) async fn watch(core: &Core, started: Timestamp, stop: CancellationToken) {
    let mut raised: HashSet<(ItemName, &'static str)> = HashSet::new();
    let clock = core.store.clock().clone();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = clock.sleep(TICK) => {}
        }
        let directory = core.directory();
        let now = clock.now();
        let oldest: HashMap<ItemName, Timestamp> = match directory.plan.items.iter().any(|item| asks(item)) {
            true => core
                .store
                .queues()
                .into_iter()
                .filter_map(|queue| Some((queue.item, queue.oldest?)))
                .collect(),
            false => continue,
        };
        for item in directory.plan.items.iter().filter(|item| asks(item)) {
            let counts = core.store.counts(&item.name);
            let since =
                |moment: Option<&Timestamp>| moment.map_or(SignedDuration::ZERO, |m| now.duration_since(*m));
            let seen = Seen {
                queued: counts.queued,
                age: since(oldest.get(&item.name)),
                quiet: now.duration_since(counts.last_activity.unwrap_or(started).max(started)),
            };
            for (kind, over, text) in judge(item, &seen, within(&directory, item, now)) {
                let key = (item.name.clone(), kind);
                if !over {
                    raised.remove(&key);
                } else if raised.insert(key) {
                    core.raise(Alert::item(Level::Warning, kind, &item.name, text), Vec::new()).await;
                }
            }
        }
    }
}

fn asks(item: &ItemPlan) -> bool {
    let alert = &item.common.alert;
    alert.queue_age.is_some() || alert.queue_depth.is_some() || alert.inactive.is_some()
}

fn within(directory: &Directory, item: &ItemPlan, now: Timestamp) -> bool {
    let local = now.to_zoned(directory.runtime.timezone.clone());
    item.common.alert.during.as_ref().is_none_or(|hours| hours.contains(local.datetime()))
}

/// Each alert the item asks for: its kind, whether it is due, its text.
fn judge(item: &ItemPlan, seen: &Seen, within: bool) -> Vec<(&'static str, bool, String)> {
    let alert = &item.common.alert;
    let over = |limit: Duration, age: SignedDuration| {
        within && SignedDuration::try_from(limit).is_ok_and(|limit| age > limit)
    };
    let mut judged = Vec::new();
    if let Some(limit) = alert.queue_age {
        let text = format!("the oldest queued message waits for more than {} s", limit.as_secs());
        judged.push(("queue_age", over(limit, seen.age), text));
    }
    if let Some(limit) = alert.queue_depth {
        let text = format!("more than {limit} messages are queued");
        judged.push(("queue_depth", within && seen.queued > limit, text));
    }
    if let Some(limit) = alert.inactive {
        let text = format!("no message for more than {} s", limit.as_secs());
        judged.push(("inactive", over(limit, seen.quiet), text));
    }
    judged
}
