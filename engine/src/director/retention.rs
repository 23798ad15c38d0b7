//! Keeps the store within `[store] retention` and `max_size`: a look at the start and every minute, more often
//! where little is kept. Whoever purges, an event says what was dropped, and where it takes long, how far it is.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::config::settings;
use crate::director::control::by;
use crate::director::core::Core;
use crate::event::{Level, NewEvent};
use crate::store::{Purge, PurgeError, Purged, Store};

const TICK: Duration = Duration::from_secs(60);
const SHORTEST_TICK: Duration = Duration::from_secs(1);
/// How often a long purge says how far it is.
const PROGRESS: SignedDuration = SignedDuration::from_secs(5);
/// The open segment is ended when its beginning has this share of the retention behind it: what is old does not
/// wait for a segment to be full.
const ROLL: u32 = 8;

/// Purges until cancelled.
pub(super) async fn keep(core: &Core, stop: CancellationToken) {
    let clock = core.store.clock().clone();
    let mut trouble = None;
    // The first look is at the start: what is restarted every now and then is purged, too.
    while !stop.is_cancelled() {
        let due = due(&core.directory().plan.store, clock.now());
        for purge in due {
            match run(&core.store, purge, None).await {
                Ok(purged) => {
                    trouble = None;
                    if purged.segments > 0 {
                        report(&core.store, "purged", &purged, None);
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
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = clock.sleep(tick(&core.directory().plan.store)) => {}
        }
    }
}

/// Who keeps messages for a minute does not mean two.
fn tick(settings: &settings::Store) -> Duration {
    settings.retention.map_or(TICK, |age| (age / ROLL).clamp(SHORTEST_TICK, TICK))
}

/// What the settings ask for now.
fn due(settings: &settings::Store, now: Timestamp) -> Vec<Purge> {
    let ago = |age: Duration| {
        let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
        now.checked_sub(age).unwrap_or(Timestamp::MIN)
    };
    let audit_before = ago(settings.audit_retention);
    let by_age = settings.retention.map(|age| Purge {
        audit_before,
        roll_before: ago(age / ROLL),
        ..Purge::before(ago(age))
    });
    let by_size = settings.max_size.map(|most| Purge { audit_before, ..Purge::down_to(most) });
    by_age.into_iter().chain(by_size).collect()
}

/// Purges for somebody, and says so. It goes on when the caller goes away.
pub(super) async fn purge(store: &Store, purge: Purge, who: Option<&str>) -> Result<Purged, PurgeError> {
    let (store, who) = (store.clone(), who.map(str::to_owned));
    let purging = tokio::spawn(async move {
        let done = run(&store, purge, who.as_deref()).await;
        match &done {
            Ok(purged) if !purge.dry_run => report(&store, "purged", purged, who.as_deref()),
            Ok(_) => {}
            Err(error) => {
                let event = NewEvent::new(Level::Warning, "purge", error.to_string());
                store.log(by(event, who.as_deref()));
            }
        }
        done
    });
    purging.await.map_err(|failed| PurgeError::Stopped(failed.to_string()))?
}

/// Purges and says now and then how far it is.
async fn run(store: &Store, purge: Purge, who: Option<&str>) -> Result<Purged, PurgeError> {
    let mut said = store.clock().now();
    let mut progress = |purged: &Purged| {
        let now = store.clock().now();
        if !purge.dry_run && now.duration_since(said) >= PROGRESS {
            said = now;
            report(store, "purging, so far", purged, who);
        }
    };
    store.purge_telling(purge, &mut progress).await
}

/// An event for what was dropped, and by whom.
fn report(store: &Store, what: &str, purged: &Purged, who: Option<&str>) {
    let Purged { segments, bytes, messages, sessions, carried } = *purged;
    let text = format!(
        "{what} {messages} messages of {sessions} sessions: {segments} segments, {bytes} bytes; {carried} carried on"
    );
    tracing::info!(segments, bytes, messages, sessions, carried, "{what}");
    store.log(by(NewEvent::new(Level::Info, "purge", text), who));
}
