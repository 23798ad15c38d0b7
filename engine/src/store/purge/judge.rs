//! What becomes of the sessions in one segment: which expire with it, and how much of it lives on. Memory is
//! looked at first and the files after it: what leaves memory meanwhile is in a file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::{Purge, PurgeError, STEP};
use crate::event::Event;
use crate::header::Header;
use crate::id::SessionId;
use crate::store::Store;
use crate::store::index::{IndexFile, Set};

/// A session that expires.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expiry {
    pub(super) session: u64,
    /// It has rows in other segments, or in memory.
    pub(super) elsewhere: bool,
    /// How many headers it has, there and here; 0 where only events are left of it.
    pub(super) messages: u64,
}

/// How far back what was seen of memory and files was true.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The last transaction.
    pub(super) sequence: u64,
    /// The highest id.
    pub(super) highest_id: u64,
    /// The index's files, looked at after memory.
    pub(super) files: Arc<Set>,
}

/// What becomes of one segment.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) expired: Vec<Expiry>,
    /// Sessions that live on.
    pub(super) lives: HashSet<u64>,
    /// How many of their headers are here.
    pub(super) carried: u64,
    /// About how many bytes of the journal have to be written again.
    pub(super) bytes: u64,
    pub(super) seen: Seen,
}

/// What is known of a session.
#[derive(Clone, Copy, Debug)]
struct Found {
    last: i64,
    /// Headers here, those left out that were not final yet.
    messages: u64,
    /// It has a header here.
    headed: bool,
    elsewhere: bool,
}

/// Times of rows as far as they can be believed. While a clock was ahead it left times that are still to
/// come. What was written later was written later: a row is not younger than what a later segment brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct Believed {
    now: i64,
    bound: i64,
}

impl Believed {
    /// For rows of a segment.
    pub(super) fn of(files: &Set, segment: u64, now: Timestamp) -> Believed {
        let now = now.as_microsecond();
        let later = files.iter().map(|file| file.meta()).filter(|meta| {
            let first = meta.coverage.first_id;
            // Rows that were carried there are older than their segment.
            let brought = meta.headers.max >= first || meta.events.max >= first;
            meta.coverage.segment > segment && brought && meta.last_activity <= now
        });
        let bound = later.map(|meta| meta.last_activity).min().unwrap_or(i64::MAX);
        Believed { now, bound }
    }

    pub(super) fn time(self, at: i64) -> i64 {
        if at > self.now { at.min(self.bound) } else { at }
    }
}

impl Store {
    /// What is there now: everything judged afterwards holds from here on.
    pub(super) fn seen(&self) -> Seen {
        let state = self.0.shared.state();
        Seen { sequence: state.sequence, highest_id: state.highest_id, files: Arc::default() }
    }

    /// Looks at every session that has something in a segment.
    pub(super) fn judge(
        &self,
        file: &IndexFile,
        purge: Purge,
        gone: &HashSet<u64>,
        mut seen: Seen,
    ) -> Result<Verdict, PurgeError> {
        let embedded = self.0.embedded.as_ref().ok_or(PurgeError::Memory)?;
        let (number, now) = (file.meta().coverage.segment, self.clock().now());
        let believed = Believed::of(&embedded.index.files(), number, now);
        let mut sessions: HashMap<u64, Found> = HashMap::new();
        let nothing = Found { last: i64::MIN, messages: 0, headed: false, elsewhere: false };
        let mut unfinished: Vec<(u64, u64)> = Vec::new();
        file.scan_headers(|header, provisional| {
            let found = sessions.entry(header.session.0).or_insert(nothing);
            found.last = found.last.max(believed.time(activity(&header)));
            found.messages += u64::from(!provisional);
            found.headed = true;
            if provisional {
                unfinished.push((header.id.0, header.session.0));
            }
        })?;
        file.scan_events(|event| {
            if let Some(session) = event.session {
                let found = sessions.entry(session.0).or_insert(nothing);
                found.last = found.last.max(believed.time(event.at.as_microsecond()));
            }
        })?;
        {
            let state = self.0.shared.state();
            let gone = |session: &u64| gone.contains(session) || state.is_dead(*session, number);
            sessions.retain(|session, _| !gone(session));
        }
        let mut lives = self.in_memory(&mut sessions, &unfinished);
        seen.files = embedded.index.files();
        for later in seen.files.iter().filter(|later| later.meta().coverage.segment > number) {
            let believed = Believed::of(&seen.files, later.meta().coverage.segment, now);
            for (session, at) in later.foreign_sessions()? {
                if let Some(found) = sessions.get_mut(&session) {
                    found.last = found.last.max(believed.time(at));
                    found.elsewhere = true;
                }
            }
        }
        let cutoff = purge.before.as_microsecond();
        let mut expired = Vec::new();
        for (session, found) in sessions {
            if found.last >= cutoff {
                lives.insert(session);
            }
            if lives.contains(&session) {
                continue;
            }
            let mut messages = found.messages;
            if found.elsewhere || (found.headed && messages == 0) {
                // What waits beyond a window and was born in a later segment is known to that one's index only.
                let headers = self.session(SessionId(session));
                if headers.iter().any(|header| !header.status.is_final()) {
                    lives.insert(session);
                    continue;
                }
                messages = u64::try_from(headers.len()).unwrap_or(u64::MAX);
            }
            expired.push(Expiry { session, elsewhere: found.elsewhere, messages });
        }
        let (carried, bytes) = weigh(file, &lives, purge)?;
        Ok(Verdict { expired, lives, carried, bytes, seen })
    }

    /// What memory knows of sessions, and those of them that it knows to live on.
    fn in_memory(&self, sessions: &mut HashMap<u64, Found>, unfinished: &[(u64, u64)]) -> HashSet<u64> {
        let mut lives = HashSet::new();
        let ids: Vec<u64> = sessions.keys().copied().collect();
        for step in ids.chunks(STEP) {
            let known = self.0.shared.state().sessions(step);
            for (session, known) in step.iter().zip(known) {
                if known.unfinished {
                    lives.insert(*session);
                }
                if let Some(found) = sessions.get_mut(session)
                    && known.last_activity > i64::MIN
                {
                    found.last = found.last.max(known.last_activity);
                    found.elsewhere = true;
                }
            }
        }
        for step in unfinished.chunks(STEP) {
            let state = self.0.shared.state();
            lives.extend(step.iter().filter(|(id, _)| state.waits_beyond(*id)).map(|(_, session)| *session));
        }
        lives
    }
}

/// How many headers have to be written again, and about how many bytes.
fn weigh(file: &IndexFile, lives: &HashSet<u64>, purge: Purge) -> Result<(u64, u64), PurgeError> {
    let (mut carried, mut bytes) = (0, 0);
    let mut needed: HashSet<u64> = HashSet::new();
    file.scan_headers(|header, _| {
        if lives.contains(&header.session.0) {
            carried += 1;
            bytes += weight(&header);
            needed.extend(header.body_id.map(|body| body.0));
        }
    })?;
    file.scan_events(|event| {
        if outlives(&event, lives, purge) {
            bytes += 64 + event.text.len() + event.detail.as_ref().map_or(0, |detail| detail.0.len());
        }
    })?;
    let mut bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    file.scan_bodies(|body| {
        if needed.contains(&body.id.0) {
            bytes += u64::from(body.place.length) + 64;
        }
    })?;
    Ok((carried, bytes))
}

/// Whether an event is carried when its segment goes.
pub(super) fn outlives(event: &Event, lives: &HashSet<u64>, purge: Purge) -> bool {
    let audited = event.who.is_some() && event.at >= purge.audit_before;
    audited || event.session.is_some_and(|session| lives.contains(&session.0))
}

/// When something was last done about it.
fn activity(header: &Header) -> i64 {
    let finished = header.processed.map_or(i64::MIN, Timestamp::as_microsecond);
    header.created.as_microsecond().max(finished)
}

/// About how many bytes of the journal a header takes.
fn weight(header: &Header) -> usize {
    let keys: usize = header.keys.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    let error = header.error.as_ref().map_or(0, |error| error.text.len() + 32);
    128 + header.type_name.len() + header.control_id.len() + keys + error
}
