//! A replay at work: batches, pace, its end, and what a restart makes of it.

use jiff::{SignedDuration, Timestamp};

use super::{Handle, REMEMBERED, Replay, ReplayState};
use crate::director::control::{again, full, refused};
use crate::director::core::lock;
use crate::director::exchange::Draft;
use crate::director::selection::Ids;
use crate::director::{ControlError, Engine};
use crate::event::Level;
use crate::header::Header;
use crate::host::{Keep as _, KeepFamily};
use crate::id::MessageId;
use crate::store::{Class, Op, StoreFailed, Transaction, Unavailable};

/// Batches a second: often enough for a smooth rate, seldom enough for few syncs.
const BATCHES: u32 = 20;

/// How much lateness of a batch the next ones make up for.
const CATCH_UP: SignedDuration = SignedDuration::from_millis(200);

/// Takes a replay out of those at work, however its task ends.
struct Leaving<'a> {
    engine: &'a Engine,
    id: u64,
    handle: &'a Handle,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        lock(&self.engine.0.replays.0).remove(&self.id);
        self.handle.over.cancel();
    }
}

impl Engine {
    /// Makes the start of a replay durable and lets it run.
    pub(super) async fn begin(&self, replay: Replay, ids: Ids) -> Result<(), ControlError> {
        let handle = Handle::default();
        self.0.replays.enter(replay.id, &handle)?;
        let engine = self.clone();
        let (started, has_started) = tokio::sync::oneshot::channel();
        // The task owns the entry from here on: the caller may go away at any moment.
        tokio::spawn(async move {
            let _leaving = Leaving { engine: &engine, id: replay.id, handle: &handle };
            let begun = engine.write_start(&replay).await;
            let failed = begun.is_err();
            let _ = started.send(begun);
            if !failed {
                engine.run_replay(replay, ids, &handle).await;
            }
        });
        match has_started.await {
            Ok(begun) => begun.map_err(|failed| ControlError::Unavailable(failed.to_string())),
            Err(_) => Err(ControlError::Unavailable("the replay could not be started".to_owned())),
        }
    }

    async fn write_start(&self, replay: &Replay) -> Result<(), Unavailable> {
        let Replay { id, replayable, rate, blocked, duplicates, .. } = replay;
        let mut event = replay.event(Level::Info, "started", replay.who.as_deref());
        event.text = format!(
            "replay {id} started: {replayable} messages, {rate} a second at most; \
             {blocked} are blocked, {duplicates} will be duplicates"
        );
        let mut ops = vec![replay.keep(), Op::Event(event)];
        let kept = self.store().scan(KeepFamily::Replay, "");
        for (key, _) in kept.iter().rev().skip(REMEMBERED - 1) {
            ops.push(Op::Keep(KeepFamily::Replay, key.clone(), None));
        }
        self.write(ops).await
    }

    async fn write(&self, ops: Vec<Op>) -> Result<(), Unavailable> {
        let store = self.store();
        let permit = store.reserve(Class::Completion, 0).await?;
        let committed = store.submit(permit, Transaction::new(ops));
        let committed = committed.map_err(|conflict| StoreFailed(conflict.to_string()))?;
        store.durable(committed.sequence).await?;
        Ok(())
    }

    async fn run_replay(&self, mut replay: Replay, mut ids: Ids, handle: &Handle) {
        let ended = self.send_all(&mut replay, &mut ids, handle).await;
        let cancelled = lock(&handle.cancelled).clone();
        let (state, what, who) = match (&ended, cancelled) {
            (Ok(true), _) => (ReplayState::Completed, "ended".to_owned(), replay.who.clone()),
            (_, Some(who)) => (ReplayState::Cancelled, "was cancelled".to_owned(), who),
            (Ok(false), None) => {
                (ReplayState::Interrupted, "was interrupted, the engine stops".to_owned(), None)
            }
            (Err(error), None) => (ReplayState::Interrupted, format!("was interrupted, {error}"), None),
        };
        replay.state = state;
        replay.ended = Some(self.store().clock().now());
        if state == ReplayState::Cancelled {
            replay.cancelled_by = who.clone();
        }
        let level =
            if state == ReplayState::Completed && replay.failed == 0 { Level::Info } else { Level::Warning };
        let event = replay.event(level, &what, who.as_deref());
        if let Err(error) = self.write(vec![replay.keep(), Op::Event(event)]).await {
            // The next start finds it running, and says that it was interrupted.
            tracing::warn!(%error, "the end of replay {} could not be written", replay.id);
        }
    }

    /// Works the selection off; `false` when it was told to stop before the end.
    async fn send_all(
        &self,
        replay: &mut Replay,
        ids: &mut Ids,
        handle: &Handle,
    ) -> Result<bool, ControlError> {
        let clock = self.store().clock().clone();
        let size = usize::try_from((replay.rate / BATCHES).max(1)).unwrap_or(1);
        let mut due = clock.now();
        while let Some(page) = ids.pop() {
            for batch in page.chunks(size) {
                tokio::select! {
                    biased;
                    () = handle.stop.cancelled() => return Ok(false),
                    () = clock.until(due) => {}
                }
                // What was late by more than this is not made up for by a burst.
                let earliest = clock.now().saturating_sub(CATCH_UP).unwrap_or(Timestamp::MIN);
                due = after(due.max(earliest), batch.len(), replay.rate);
                if !self.send_batch(replay, batch, handle).await? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Sends a batch again in one transaction with the progress; waits while the disk is full. `false` when
    /// it was told to stop meanwhile.
    async fn send_batch(
        &self,
        replay: &mut Replay,
        batch: &[MessageId],
        handle: &Handle,
    ) -> Result<bool, ControlError> {
        let (engine, ids) = (self.clone(), batch.to_vec());
        // Old headers are read from the disk.
        let headers = tokio::task::spawn_blocking(move || {
            ids.into_iter().map(|id| (id, engine.header(id))).collect::<Vec<_>>()
        });
        let headers = headers.await.map_err(|failed| ControlError::Unavailable(failed.to_string()))?;
        loop {
            let mut draft = Draft::new(self.core());
            let mut next = replay.clone();
            for (id, header) in &headers {
                let sent = match header {
                    Ok(original) => self.send_one(&mut draft, original, replay).await,
                    Err(error) => Err(error.to_string()),
                };
                match sent {
                    Ok(()) => next.sent += 1,
                    // It was purged or its target went away since the check: say so, and go on.
                    Err(error) => {
                        next.failed += 1;
                        next.last_failure = Some(format!("message {id}: {error}"));
                    }
                }
                next.last_message = Some(*id);
            }
            draft.ops.push(next.keep());
            match draft.commit(Class::Ingest).await {
                Ok(committed) => {
                    let committed = committed.map_err(refused)?;
                    *replay = next;
                    self.durable(committed).await?;
                    return Ok(true);
                }
                Err(Unavailable::Full) => tokio::select! {
                    () = handle.stop.cancelled() => return Ok(false),
                    () = self.store().until_accepting() => {}
                },
                Err(failed) => return Err(full(&failed)),
            }
        }
    }

    async fn send_one(
        &self,
        draft: &mut Draft<'_>,
        original: &Header,
        replay: &Replay,
    ) -> Result<(), String> {
        // A reload may have disabled it since the order was checked.
        let target = self.taker(original, replay.target.as_deref())?;
        let placed = self.stored(original).await?;
        again(draft, original, &target, &placed, replay.who.as_deref());
        Ok(())
    }

    /// Replays that were at work when the process ended are interrupted: said once, at the start.
    pub(in crate::director) async fn find_interrupted_replays(&self) {
        for mut replay in self.replays() {
            if replay.state != ReplayState::Running {
                continue;
            }
            replay.state = ReplayState::Interrupted;
            replay.ended = Some(self.store().clock().now());
            let event = replay.event(Level::Warning, "was interrupted when the engine ended", None);
            if let Err(error) = self.write(vec![replay.keep(), Op::Event(event)]).await {
                tracing::warn!(%error, "an interrupted replay could not be written down");
                return;
            }
        }
    }
}

/// When the next batch may go, after one of so many messages.
fn after(begun: Timestamp, messages: usize, rate: u32) -> Timestamp {
    let micros = messages as u64 * 1_000_000 / u64::from(rate.max(1));
    let pause = SignedDuration::from_micros(i64::try_from(micros).unwrap_or(i64::MAX));
    begun.saturating_add(pause).unwrap_or(Timestamp::MAX)
}
