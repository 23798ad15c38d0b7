//! What becomes of the sessions in one segment: which expire with it, and how much of it lives on. Memory is
//! looked at first and the files after it: what leaves memory meanwhile is in a file.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Purge, PurgeError, STEP};
use crate::id::{BodyId, IdMap, SessionId};
use crate::store::Store;
use crate::store::index::{Glimpse, IndexFile, Set};

/// What the journal has around a row.
const AROUND: usize = 8;
/// What it has beside the bytes of a body.
const BESIDE: u64 = 64;

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
    /// It has something in later segments, or in memory.
    elsewhere: bool,
    in_memory: bool,
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
        let mut sessions: IdMap<u64, Found> = IdMap::default();
        let nothing =
            Found { last: i64::MIN, messages: 0, headed: false, elsewhere: false, in_memory: false };
        let mut unfinished: Vec<(u64, u64)> = Vec::new();
        file.glance_headers(|header| {
            let found = sessions.entry(header.session).or_insert(nothing);
            found.last = found.last.max(believed.time(header.activity));
            found.messages += u64::from(!header.provisional);
            found.headed = true;
            if header.provisional {
                unfinished.push((header.id, header.session));
            }
            Ok(())
        })?;
        file.glance_events(|event| {
            if event.session != 0 {
                let found = sessions.entry(event.session).or_insert(nothing);
                found.last = found.last.max(believed.time(event.activity));
            }
            Ok(())
        })?;
        if !gone.is_empty() {
            sessions.retain(|session, _| !gone.contains(session));
        }
        let mut lives = self.in_memory(&mut sessions, number, &unfinished);
        seen.files = embedded.index.files();
        let newest = sessions.keys().copied().max().unwrap_or_default();
        let may = |later: &&Arc<IndexFile>| {
            let meta = later.meta();
            meta.coverage.segment > number && meta.foreign > 0 && meta.sessions.0 <= newest
        };
        let mut there: Vec<(&Arc<IndexFile>, Vec<SessionId>)> = Vec::new();
        for later in seen.files.iter().filter(may) {
            let mut ours = Vec::new();
            let believed = Believed::of(&seen.files, later.meta().coverage.segment, now);
            for (session, at) in later.foreign_sessions()? {
                if let Some(found) = sessions.get_mut(&session) {
                    found.last = found.last.max(believed.time(at));
                    found.elsewhere = true;
                    ours.push(SessionId(session));
                }
            }
            if !ours.is_empty() {
                there.push((later, ours));
            }
        }
        // Asked after the set of files was taken: what leaves memory later is in memory when it is to expire.
        let beyond = self.0.shared.state().beyond() > 0;
        let cutoff = purge.before.as_microsecond();
        lives.extend(sessions.iter().filter(|(_, found)| found.last >= cutoff).map(|(session, _)| *session));
        sessions.retain(|session, _| !lives.contains(session));
        let unclear = count_elsewhere(&mut sessions, there, beyond)?;
        let mut expired = Vec::new();
        for (session, found) in sessions {
            let mut messages = found.messages;
            if found.in_memory || unclear.contains(&session) || (found.headed && messages == 0) {
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
        // Neighbours lie side by side in memory.
        expired.sort_unstable_by_key(|expiry| expiry.session);
        let (carried, bytes) = weigh(file, &lives, purge)?;
        Ok(Verdict { expired, lives, carried, bytes, seen })
    }

    /// What memory knows of sessions, and those of them that it knows to live on. Those that have expired as far
    /// as this segment has them are left out.
    fn in_memory(
        &self,
        sessions: &mut IdMap<u64, Found>,
        segment: u64,
        unfinished: &[(u64, u64)],
    ) -> HashSet<u64> {
        let mut lives = HashSet::new();
        let mut ids: Vec<u64> = sessions.keys().copied().collect();
        ids.sort_unstable();
        for step in ids.chunks(STEP) {
            let (known, dead) = {
                let state = self.0.shared.state();
                let dead: Vec<bool> = step.iter().map(|session| state.is_dead(*session, segment)).collect();
                (state.sessions(step), dead)
            };
            for ((session, known), dead) in step.iter().zip(known).zip(dead) {
                if dead {
                    sessions.remove(session);
                    continue;
                }
                if known.unfinished {
                    lives.insert(*session);
                }
                if let Some(found) = sessions.get_mut(session)
                    && known.last_activity > i64::MIN
                {
                    found.last = found.last.max(known.last_activity);
                    (found.elsewhere, found.in_memory) = (true, true);
                }
            }
        }
        for step in unfinished.chunks(STEP) {
            let state = self.0.shared.state();
            lives.extend(step.iter().filter(|(id, _)| state.is_absent(*id)).map(|(_, session)| *session));
        }
        lives
    }
}

/// Adds the headers that later segments have of sessions which memory does not know. Gives those that have to be looked
/// at: something there may still wait (with nothing `beyond` windows, what is unfinished is in memory), or counts twice.
fn count_elsewhere(
    sessions: &mut IdMap<u64, Found>,
    there: Vec<(&Arc<IndexFile>, Vec<SessionId>)>,
    beyond: bool,
) -> Result<HashSet<u64>, PurgeError> {
    let mut unclear = HashSet::new();
    for (file, mut ours) in there {
        ours.retain(|session| sessions.get(&session.0).is_some_and(|found| !found.in_memory));
        if ours.is_empty() {
            continue;
        }
        for (session, (settled, provisional)) in ours.iter().zip(file.count_headers(&ours)?) {
            let Some(found) = sessions.get_mut(&session.0) else { continue };
            // Of two files with settled headers one may have copies of the other's, from a purge that was cut short.
            if (beyond && provisional) || (found.messages > 0 && settled > 0) {
                unclear.insert(session.0);
            }
            found.messages += settled;
        }
    }
    Ok(unclear)
}

/// How many headers have to be written again, and about how many bytes.
fn weigh(file: &IndexFile, lives: &HashSet<u64>, purge: Purge) -> Result<(u64, u64), PurgeError> {
    let (mut carried, mut bytes) = (0, 0);
    let mut needed: HashSet<BodyId> = HashSet::new();
    if !lives.is_empty() {
        file.glance_headers(|header| {
            if lives.contains(&header.session) {
                carried += 1;
                bytes += header.length + AROUND;
                needed.extend(header.body);
            }
            Ok(())
        })?;
    }
    file.glance_events(|event| {
        if outlives(event, lives, purge) {
            bytes += event.length + AROUND;
        }
        Ok(())
    })?;
    let mut bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    if !needed.is_empty() {
        file.scan_bodies(
            |body| needed.contains(&body),
            |body| bytes += u64::from(body.place.length) + BESIDE,
        )?;
    }
    Ok((carried, bytes))
}

/// Whether an event is carried when its segment goes.
pub(super) fn outlives(event: &Glimpse<'_>, lives: &HashSet<u64>, purge: Purge) -> bool {
    let audited = event.audited && event.activity >= purge.audit_before.as_microsecond();
    audited || (event.session != 0 && lives.contains(&event.session))
}
