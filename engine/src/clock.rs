//! The only source of time, so that tests can move it. `Clock` also owns waiting: whoever waits for a
//! moment waits on the clock, never on the runtime's timer directly.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

/// Tells the time and waits for it.
#[async_trait]
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time now, with microseconds.
    fn now(&self) -> Timestamp;

    /// Returns once `now() >= moment`. Cancel-safe.
    async fn until(&self, moment: Timestamp);

    /// Returns after `duration` of this clock's time. Cancel-safe.
    async fn sleep(&self, duration: Duration) {
        let wait = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        self.until(self.now().saturating_add(wait).unwrap_or(Timestamp::MAX)).await;
    }
}

/// A moment as people and programs are shown it: RFC 3339 in UTC, always with six digits of the second.
pub fn rfc3339(at: Timestamp) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
    PRINTER.timestamp_to_string(&at)
}

/// A clock shared by everything of one engine.
pub type SharedClock = Arc<dyn Clock>;

/// A limit that is set anew for every message: its timer stays in place from one message to the next and is
/// looked at again only when it goes off, so that what ends in time costs no timer.
#[derive(Default)]
pub struct Patience(Option<(Timestamp, BoxFuture<'static, ()>)>);

impl Patience {
    /// Returns once `clock.now() >= moment`. Cancel-safe.
    pub async fn until(&mut self, clock: &SharedClock, moment: Timestamp) {
        loop {
            let timer = match &mut self.0 {
                Some((armed, timer)) if *armed <= moment => timer,
                _ => {
                    let clock = clock.clone();
                    &mut self.0.insert((moment, Box::pin(async move { clock.until(moment).await }))).1
                }
            };
            timer.await;
            self.0 = None;
            if clock.now() >= moment {
                return;
            }
        }
    }

    /// As [`Patience::until`], so long from now.
    pub async fn run_out(&mut self, clock: &SharedClock, after: Duration) {
        let after = SignedDuration::try_from(after).unwrap_or(SignedDuration::MAX);
        self.until(clock, clock.now().saturating_add(after).unwrap_or(Timestamp::MAX)).await;
    }
}

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine for the time")]
    fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    async fn until(&self, moment: Timestamp) {
        loop {
            let left = moment.duration_since(self.now());
            if left <= SignedDuration::ZERO {
                return;
            }
            // The wall clock may be set while we wait: look again at least every minute.
            let left = Duration::try_from(left).unwrap_or(Duration::ZERO).min(Duration::from_secs(60));
            tokio::time::sleep(left.max(Duration::from_micros(100))).await;
        }
    }
}

/// A clock that stands still until a test moves it.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<Timestamp>,
    moved: Notify,
}

impl ManualClock {
    /// A clock that shows `start`.
    pub fn new(start: Timestamp) -> Self {
        ManualClock { now: Mutex::new(start), moved: Notify::new() }
    }

    /// Moves the clock forward and wakes everyone whose moment has come.
    pub fn advance(&self, by: Duration) {
        let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
        let mut now = self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *now = now.saturating_add(by).unwrap_or(Timestamp::MAX);
        drop(now);
        self.moved.notify_waiters();
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn until(&self, moment: Timestamp) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.now() >= moment {
                return;
            }
            moved.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_moment_is_shown_with_microseconds_also_where_they_end_in_zeros() {
        let shown = rfc3339(Timestamp::new(1_767_225_600, 120_000_000).unwrap());
        assert_eq!(shown, "2026-01-01T00:00:00.120000Z");
    }

    #[tokio::test]
    async fn patience_lasts_as_long_as_it_was_last_asked_for() {
        let manual = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
        let clock: SharedClock = manual.clone();
        let mut patience = Patience::default();
        let ten = Duration::from_secs(10);
        assert!(patience.run_out(&clock, ten).now_or_never().is_none());
        manual.advance(Duration::from_secs(9));
        // The timer of the first ten seconds is still in place, and is not what counts.
        assert!(patience.run_out(&clock, ten).now_or_never().is_none());
        manual.advance(Duration::from_secs(9));
        assert!(patience.run_out(&clock, Duration::from_secs(1)).now_or_never().is_none());
        let end = Timestamp::from_second(19).unwrap();
        assert!(patience.until(&clock, end).now_or_never().is_none());
        manual.advance(Duration::from_secs(1));
        assert!(patience.until(&clock, end).now_or_never().is_some());
        assert!(patience.run_out(&clock, ten).now_or_never().is_none(), "it can be used again");
    }
}
