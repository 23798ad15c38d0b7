//! A bounded number of events a minute, for events that strangers can cause.

use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

/// More refusals than this in a minute are counted, not stored: a flood of bad tokens must not fill the
/// journal.
const EVENTS_A_MINUTE: u32 = 120;

/// Lets a bounded number of events a minute through.
#[derive(Debug)]
pub struct EventLimit(Mutex<Noted>);

/// How many events this minute has had.
#[derive(Debug)]
struct Noted {
    since: Timestamp,
    events: u32,
}

impl EventLimit {
    /// Starts counting.
    pub fn new(now: Timestamp) -> Self {
        EventLimit(Mutex::new(Noted { since: now, events: 0 }))
    }

    /// Whether one more event may be stored.
    pub fn allows(&self, now: Timestamp) -> bool {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(noted.since) >= SignedDuration::from_mins(1) {
            *noted = Noted { since: now, events: 0 };
        }
        noted.events = noted.events.saturating_add(1);
        noted.events <= EVENTS_A_MINUTE
    }
}
