//! Whether the clock can be believed when it says how old messages are. A clock that jumps ahead by years (a bad
//! RTC at boot, a bad time server) would make everything old at once. So ages are counted from the last look at
//! which the clock was where it could be, and from the new time only after it has gone on from there for a while.
//! What was believed is kept in the store: a jump at boot is seen too.

use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use crate::host::{Keep as _, KeepFamily};
use crate::store::{Store, StoreFailed};

/// Its key; no item has such a name.
const KEY: &str = ".purge";
/// The clock may be ahead by half the retention of what it was at the last look, which no more than a minute before
/// unless the engine was stopped; by less than this nobody minds.
const SHORTEST: SignedDuration = SignedDuration::from_hours(1);
/// A clock in doubt is believed after half the retention, but no later than this.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);
/// How often what is believed is kept.
const KEEP: SignedDuration = SignedDuration::from_mins(10);

/// What is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Steady {
    trusted: Timestamp,
    doubt: Option<Doubt>,
}

/// A clock that has jumped ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doubt {
    /// Where it has gone on from.
    since: Timestamp,
    /// Where it was last seen.
    last: Timestamp,
}

/// What a look found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It jumped ahead; ages are counted from `trusted` for at least so long.
    Doubted { trusted: Timestamp, wait: SignedDuration },
    /// It is back.
    Back,
    /// It went on from there: that is the time.
    Believed,
}

impl Steady {
    /// What a store remembers; in a new one, the time now.
    pub(super) fn of(store: &Store) -> Steady {
        let kept = store.get(KeepFamily::Counter, KEY).and_then(|bytes| decode(&bytes));
        kept.unwrap_or_else(|| Steady { trusted: store.clock().now(), doubt: None })
    }

    /// The time from which ages are counted.
    pub(super) fn now(&self, clock: Timestamp) -> Timestamp {
        if self.doubt.is_some() { self.trusted.min(clock) } else { clock }
    }

    /// Looks at the clock.
    pub(super) fn look(&mut self, now: Timestamp, retention: Duration) -> Option<News> {
        let half = SignedDuration::try_from(retention / 2).unwrap_or(SignedDuration::MAX);
        let (bound, wait) = (half.max(SHORTEST), half.clamp(SHORTEST, LONGEST));
        let is_ahead = |of: Timestamp| now.duration_since(of) > bound;
        if !is_ahead(self.trusted) {
            self.trusted = now;
            return self.doubt.take().map(|_| News::Back);
        }
        let Some(doubt) = &mut self.doubt else {
            self.doubt = Some(Doubt { since: now, last: now });
            return Some(News::Doubted { trusted: self.trusted, wait });
        };
        // It has jumped again, this way or that: the wait begins again.
        if is_ahead(doubt.last) || now < doubt.since {
            doubt.since = now;
        }
        doubt.last = now;
        if now.duration_since(doubt.since) < wait {
            return None;
        }
        *self = Steady { trusted: now, doubt: None };
        Some(News::Believed)
    }

    /// Keeps what is believed, now and then and whenever that is news.
    pub(super) async fn keep(&self, store: &Store) -> Result<(), StoreFailed> {
        let kept = store.get(KeepFamily::Counter, KEY).and_then(|bytes| decode(&bytes));
        let seen = |steady: &Steady| steady.doubt.map_or(steady.trusted, |doubt| doubt.last);
        let stale = kept.is_none_or(|kept| {
            kept.doubt.is_some() != self.doubt.is_some()
                || seen(self).duration_since(seen(&kept)).abs() >= KEEP
        });
        if stale {
            store.put(KeepFamily::Counter, KEY, Some(self.encode())).await?;
        }
        Ok(())
    }

    fn encode(&self) -> Bytes {
        let times =
            [Some(self.trusted), self.doubt.map(|doubt| doubt.since), self.doubt.map(|doubt| doubt.last)];
        let times: Vec<String> =
            times.into_iter().flatten().map(|time| time.as_microsecond().to_string()).collect();
        times.join(" ").into()
    }
}

/// Microseconds since 1970: the trusted time; in doubt, also since when, and the last look.
fn decode(bytes: &[u8]) -> Option<Steady> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut times = text.split(' ').map(|time| Timestamp::from_microsecond(time.parse().ok()?).ok());
    let trusted = times.next()??;
    let doubt = match (times.next().flatten(), times.next().flatten()) {
        (Some(since), Some(last)) => Some(Doubt { since, last }),
        _ => None,
    };
    Some(Steady { trusted, doubt })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);
    const MONTH: Duration = Duration::from_secs(30 * 86_400);

    fn begin() -> (Steady, Timestamp) {
        let now: Timestamp = "2026-11-22T08:00:00Z".parse().unwrap();
        (Steady { trusted: now, doubt: None }, now)
    }

    #[test]
    fn a_clock_that_goes_on_is_believed_also_after_a_stop() {
        let (mut steady, mut now) = begin();
        for step in [SignedDuration::from_secs(60), DAY, DAY * 14, -DAY * 20, DAY] {
            now += step;
            assert_eq!(steady.look(now, MONTH), None);
            assert_eq!(steady.now(now), now);
        }
    }

    #[test]
    fn a_clock_that_jumped_is_doubted_until_it_has_gone_on_for_a_day() {
        let (mut steady, before) = begin();
        let mut now = before + DAY * 3650;
        assert_eq!(steady.look(now, MONTH), Some(News::Doubted { trusted: before, wait: DAY }));
        for _ in 0..23 {
            now += DAY / 24;
            assert_eq!(steady.look(now, MONTH), None);
            assert_eq!(steady.now(now), before);
        }
        // Over a restart, too.
        assert_eq!(decode(&steady.encode()), Some(steady));
        now += DAY / 24;
        assert_eq!(steady.look(now, MONTH), Some(News::Believed));
        assert_eq!(steady.now(now), now);
    }

    #[test]
    fn a_clock_that_comes_back_is_believed_at_once_and_one_that_jumps_again_is_doubted_for_longer() {
        let (mut steady, before) = begin();
        let away = before + DAY * 3650;
        steady.look(away, MONTH);
        assert_eq!(steady.look(away + DAY * 3650, MONTH), None);
        assert_eq!(steady.look(away + DAY * 100, MONTH), None);
        assert_eq!(steady.now(away), before);
        assert_eq!(steady.look(before + DAY, MONTH), Some(News::Back));
        assert_eq!(steady.now(before + DAY), before + DAY);
    }
}
