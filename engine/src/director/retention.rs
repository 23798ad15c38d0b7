//! Keeps the store within `[store] retention` and `max_size`: a look at the start and every minute, more often
//! where little is kept. Whoever purges, an event says what was dropped, and where it takes long, how far it is. Ages are
//! counted by a clock that can be believed (`steady`).

mod steady;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use self::steady::{News, Steady};
use crate::clock::rfc3339;
use crate::config::settings;
use crate::director::control::by;
use crate::director::core::Core;
use crate::event::{Level, NewEvent};
use crate::store::{Purge, PurgeError, Purged, Store};

const TICK: Duration = Duration::from_secs(60);
const SHORTEST_TICK: Duration = Duration::from_secs(1);
/// How often the size of the store is looked at.
const SIZE_TICK: Duration = Duration::from_secs(2);
/// How often a long purge says how far it is.
const PROGRESS: SignedDuration = SignedDuration::from_secs(5);
/// The open segment is ended when its beginning has this share of the retention behind it: what is old does not
/// wait for a segment to be full.
const ROLL: u32 = 8;

/// Purges until cancelled.
pub(super) async fn keep(core: &Core, stop: CancellationToken) {
    let clock = core.store.clock().clone();
    let (mut trouble, mut steady) = (None, Steady::of(&core.store));
    // The first look is at the start: what is restarted every now and then is purged, too.
    while !stop.is_cancelled() {
        if !look(&core.store, &core.directory().plan.store, &mut steady, &mut trouble).await {
            return;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = clock.sleep(tick(&core.directory().plan.store)) => {}
        }
    }
}

/// Purges what is due; `false` when there is nothing to purge ever.
async fn look(
    store: &Store,
    settings: &settings::Store,
    steady: &mut Steady,
    trouble: &mut Option<PurgeError>,
) -> bool {
    let now = store.clock().now();
    if let Some(news) = settings.retention.and_then(|retention| steady.look(now, retention)) {
        tell(store, news);
    }
    if settings.retention.is_some() {
        // On a full disk it is kept another time: first of all there must be room.
        let _ = steady.keep(store).await;
    }
    for purge in due(settings, steady.now(now)) {
        match run(store, purge, None).await {
            Ok(purged) => {
                *trouble = None;
                if purged.segments > 0 {
                    report(store, "purged", &purged, None);
                }
            }
            Err(PurgeError::Memory | PurgeError::Failed(_)) => return false,
            Err(error) => {
                // Said once, however often it is tried.
                if trouble.as_ref() != Some(&error) {
                    store.log(NewEvent::new(Level::Warning, "purge", error.to_string()));
                }
                *trouble = Some(error);
            }
        }
    }
    true
}

/// Says what is new about the clock.
fn tell(store: &Store, news: News) {
    let (level, text) = match news {
        News::Doubted { trusted, wait } => {
            let hours = wait.as_hours();
            tracing::warn!(%trusted, "purge: the clock has jumped ahead; the age of messages is counted from before");
            let text = format!(
                "the clock has jumped ahead of {}: by age nothing more is purged until it is back or has gone on \
                 for {hours} hours; POST /api/v1/purge purges at once",
                rfc3339(trusted)
            );
            (Level::Warning, text)
        }
        News::Back => (Level::Info, "the clock is back: ages are counted by it".to_owned()),
        News::Believed => {
            (Level::Info, "the clock went on from where it jumped to: ages are counted by it".to_owned())
        }
    };
    store.log(NewEvent::new(level, "purge", text));
}

/// The audit events before this are old, by a clock that can be believed.
pub(super) fn audit_before(store: &Store, settings: &settings::Store) -> Timestamp {
    ago(Steady::of(store).now(store.clock().now()), settings.audit_retention)
}

fn ago(now: Timestamp, age: Duration) -> Timestamp {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    now.checked_sub(age).unwrap_or(Timestamp::MIN)
}

/// Who keeps messages for a minute does not mean two; and fast writers fill gigabytes in a minute.
fn tick(settings: &settings::Store) -> Duration {
    let by_age = settings.retention.map_or(TICK, |age| (age / ROLL).clamp(SHORTEST_TICK, TICK));
    if settings.max_size.is_some() { by_age.min(SIZE_TICK) } else { by_age }
}

/// What the settings ask for now.
fn due(settings: &settings::Store, now: Timestamp) -> Vec<Purge> {
    let ago = |age| ago(now, age);
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Clock as _, ManualClock};
    use crate::files::SystemFiles;
    use crate::store::{EventFilter, Options};

    const DAY: Duration = Duration::from_secs(86_400);

    fn settings(path: &Path) -> settings::Store {
        settings::Store {
            path: path.to_owned(),
            retention: Some(30 * DAY),
            max_size: None,
            min_free: None,
            segment_size: 1 << 20,
            memory: 1 << 20,
            audit_retention: 60 * DAY,
            key: None,
            old_keys: Vec::new(),
            encrypt_bodies: false,
        }
    }

    #[tokio::test]
    async fn a_clock_that_jumps_ahead_takes_nothing_until_it_has_gone_on() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new("2026-11-22T08:00:00Z".parse().unwrap()));
        let settings = settings(folder.path());
        let open = || {
            let options = Options { min_free: Some(0), ..Options::new(folder.path()) };
            Store::open(options, clock.clone(), Arc::new(SystemFiles)).unwrap()
        };
        let there = |store: &Store, kind: &str| {
            let filter = EventFilter { kind: Some(kind.to_owned()), ..EventFilter::default() };
            store.events(&filter, None, 10).unwrap().entries.len()
        };
        let store = open();
        let audited = NewEvent::new(Level::Info, "message.viewed", "seen");
        store.log(by(audited, Some("anna")));
        store.log(NewEvent::new(Level::Info, "trace", "something"));
        let mut steady = Steady::of(&store);
        assert!(look(&store, &settings, &mut steady, &mut None).await);
        // The machine starts again, with a clock that is years ahead.
        store.close().await.unwrap();
        drop(store);
        clock.advance(3650 * DAY);
        let store = open();
        let mut steady = Steady::of(&store);
        for _ in 0..23 {
            assert!(look(&store, &settings, &mut steady, &mut None).await);
            assert_eq!((there(&store, "trace"), there(&store, "message.viewed")), (1, 1));
            clock.advance(DAY / 24);
        }
        assert_eq!(there(&store, "purge"), 1, "said once");
        assert!(audit_before(&store, &settings) < clock.now() - 3000 * DAY);
        // So it is the time after all.
        clock.advance(DAY / 12);
        while there(&store, "trace") > 0 {
            assert!(look(&store, &settings, &mut steady, &mut None).await);
        }
        assert_eq!(there(&store, "message.viewed"), 0);
    }
}
