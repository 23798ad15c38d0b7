//! Keeps the store within `[store] retention` and `max_size`: a look every minute, and an event whenever
//! something was dropped.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::config::settings;
use crate::director::core::Core;
use crate::event::{Level, NewEvent};
use crate::store::{Purge, PurgeError, Purged, Store};

const TICK: Duration = Duration::from_secs(60);

/// Purges until cancelled.
pub(super) async fn keep(core: &Core, stop: CancellationToken) {
    let clock = core.store.clock().clone();
    let mut trouble = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = clock.sleep(TICK) => {}
        }
        let directory = core.directory();
        let settings = &directory.plan.store;
        for purge in due(settings, clock.now()) {
            match core.store.purge(purge).await {
                Ok(purged) => {
                    trouble = None;
                    if purged.segments > 0 {
                        report(&core.store, purged, None);
                    }
                }
                Err(PurgeError::Memory | PurgeError::Failed(_)) => return,
                Err(error) => {
                    // Said once, however often it is tried.
                    if trouble.as_ref() != Some(&error) {
                        core.store.log(NewEvent::new(Level::Warning, "purge", error.to_string()));
                    }
                    trouble = Some(error);
                }
            }
        }
    }
}

/// What the settings ask for now.
fn due(settings: &settings::Store, now: Timestamp) -> Vec<Purge> {
    let ago = |age: Duration| {
        let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
        now.checked_sub(age).unwrap_or(Timestamp::MIN)
    };
    let audit_before = ago(settings.audit_retention);
    let by_age =
        settings.retention.map(|age| Purge { before: ago(age), audit_before, dry_run: false, down_to: None });
    let by_size = settings.max_size.map(|most| Purge {
        before: now,
        audit_before,
        dry_run: false,
        down_to: Some(most),
    });
    by_age.into_iter().chain(by_size).collect()
}

/// An event for what was dropped, and by whom.
pub(super) fn report(store: &Store, purged: Purged, who: Option<&str>) {
    let Purged { segments, bytes, messages, sessions, carried } = purged;
    let text = format!(
        "purged {messages} messages of {sessions} sessions: {segments} segments, {bytes} bytes; {carried} carried on"
    );
    tracing::info!(segments, bytes, messages, sessions, carried, "purged");
    let event = NewEvent::new(Level::Info, "purge", text);
    store.log(match who {
        Some(who) => event.who(who),
        None => event,
    });
}
