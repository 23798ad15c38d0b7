//! Purge: whole segments are dropped, strictly oldest first, once everything in them is older than a moment.
//!
//! - The unit is the session by its last activity. A session that is unfinished or younger and has something
//!   in the segment is *carried*: its headers, events and bodies there are written again through the writer,
//!   in the order of commits, so that they lie in the open segment. Queue order is a stored position and
//!   does not change.
//! - An expired session may have rows in later segments: it is entered as *expired* in the journal, and from
//!   then on none of its rows is shown. So trace and body go together.
//! - Audit events (who looked, who acted) are carried until their own time is over.
//! - Nothing is dropped before what must outlive it is durable, and before the older of the two checkpoints
//!   no longer needs the segment. The index file goes first, then the segment, off the writer's thread.
//! - A segment of which most would have to be carried waits: it is cheaper to drop it later.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::bodies::Absent;
use super::change::Change;
use super::index::{self, BodyRow, IndexFile};
use super::keeper::Task;
use super::{Class, Embedded, Permit, ReadError, Store, StoreFailed, Unavailable, recovery, segment};
use crate::event::Event;
use crate::header::Header;
use crate::id::{MessageId, SessionId};

/// Bodies carried in one transaction.
const CARRIED: u64 = 1 << 20;
/// Rows carried in one transaction.
const ROWS: usize = 512;
/// How many sessions are looked up under one lock.
const STEP: usize = 512;

/// What to purge.
#[derive(Clone, Copy, Debug)]
pub struct Purge {
    /// Sessions whose last activity is older may go.
    pub before: Timestamp,
    /// Audit events that are older may go.
    pub audit_before: Timestamp,
    /// Only count.
    pub dry_run: bool,
    /// Stop once the journal has at most this many bytes; segments go whatever has to be carried.
    pub down_to: Option<u64>,
}

/// What was purged, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Segments dropped.
    pub segments: u64,
    /// Bytes of the disk given back: segments and index files, less what was carried.
    pub bytes: u64,
    /// Headers that are gone.
    pub messages: u64,
    /// Sessions that are gone.
    pub sessions: u64,
    /// Headers that were written again because their sessions live on.
    pub carried: u64,
}

/// Why a purge ended early. What it had done holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PurgeError {
    /// The store takes nothing any more.
    #[error(transparent)]
    Failed(#[from] StoreFailed),
    /// Something that has to be carried cannot be read, or the disk refused.
    #[error("purging stopped: {0}")]
    Stopped(String),
    /// Memory stores keep everything.
    #[error("a store in memory is not purged")]
    Memory,
}

impl From<index::Error> for PurgeError {
    fn from(error: index::Error) -> Self {
        PurgeError::Stopped(error.to_string())
    }
}

impl From<ReadError> for PurgeError {
    fn from(error: ReadError) -> Self {
        PurgeError::Stopped(error.to_string())
    }
}

/// What becomes of one segment.
#[derive(Debug, Default)]
struct Verdict {
    /// Headers of sessions that live on, and whether they were unfinished at the end of the segment.
    carried: Vec<(Header, bool)>,
    events: Vec<Event>,
    bodies: Vec<BodyRow>,
    /// Expired sessions, and whether they have rows elsewhere too.
    expired: Vec<(u64, bool)>,
    messages: u64,
    /// Bytes of bodies that are carried.
    bytes: u64,
}

impl Store {
    /// Drops what may go. Runs beside everything else; one at a time.
    pub async fn purge(&self, purge: Purge) -> Result<Purged, PurgeError> {
        let embedded = self.0.embedded.as_ref().ok_or(PurgeError::Memory)?;
        let _one = embedded.purging.lock().await;
        let mut purged = Purged::default();
        // For a dry run: segments that would be gone.
        let mut passed = 0;
        loop {
            let Some(file) = self.oldest(embedded, passed).await? else { break };
            let number = file.meta().coverage.segment;
            if file.meta().last_activity >= purge.before.as_microsecond() {
                break;
            }
            if let Some(most) = purge.down_to
                && self.journal_size(embedded).await? <= most
            {
                break;
            }
            let (store, judged) = (self.clone(), file.clone());
            let verdict = tokio::task::spawn_blocking(move || store.judge(&judged, purge)).await;
            let mut verdict = verdict.map_err(|error| PurgeError::Stopped(error.to_string()))??;
            let length = embedded.readers.length(number).unwrap_or(0);
            if verdict.bytes > length / 4 && purge.down_to.is_none() {
                break;
            }
            if verdict.bytes > length / 10 * 9 {
                break;
            }
            purged.segments += 1;
            purged.bytes += (length + file.meta().length).saturating_sub(verdict.bytes);
            purged.messages += verdict.messages;
            purged.sessions += u64::try_from(verdict.expired.len()).unwrap_or(u64::MAX);
            purged.carried += u64::try_from(verdict.carried.len()).unwrap_or(u64::MAX);
            passed = number;
            if purge.dry_run {
                continue;
            }
            let expired = std::mem::take(&mut verdict.expired);
            self.carry(verdict).await?;
            if !self.expire(number, &expired, purge).await? {
                break;
            }
            self.drop_segment(embedded, file, number).await?;
        }
        Ok(purged)
    }

    /// The index file of the oldest segment behind `passed`, if it may be dropped.
    async fn oldest(&self, embedded: &Embedded, passed: u64) -> Result<Option<Arc<IndexFile>>, PurgeError> {
        let io = |error: std::io::Error| PurgeError::Stopped(error.to_string());
        let segments = recovery::segments(embedded.readers.files(), embedded.readers.folder()).map_err(io)?;
        let Some(oldest) = segments.into_iter().find(|number| *number > passed) else { return Ok(None) };
        let files = embedded.index.files();
        let found = files.iter().find(|file| {
            let coverage = file.meta().coverage;
            coverage.segment == oldest && coverage.part == 0
        });
        let Some(file) = found.cloned() else { return Ok(None) };
        // Recovery must not need it.
        let (sender, covered) = oneshot::channel();
        if !embedded.keeper.tell(Task::Covered(sender)) {
            return Ok(None);
        }
        let covered = covered.await.unwrap_or(0);
        Ok((oldest < covered).then_some(file))
    }

    async fn journal_size(&self, embedded: &Embedded) -> Result<u64, PurgeError> {
        let io = |error: std::io::Error| PurgeError::Stopped(error.to_string());
        let segments = recovery::segments(embedded.readers.files(), embedded.readers.folder()).map_err(io)?;
        let index: u64 = embedded.index.files().iter().map(|file| file.meta().length).sum();
        let journal: u64 =
            segments.into_iter().filter_map(|number| embedded.readers.length(number).ok()).sum();
        Ok(journal + index)
    }

    /// Looks at everything in a segment: what goes, what is carried.
    fn judge(&self, file: &IndexFile, purge: Purge) -> Result<Verdict, PurgeError> {
        let embedded = self.0.embedded.as_ref().ok_or(PurgeError::Memory)?;
        let cutoff = purge.before.as_microsecond();
        let activity = |header: &Header| {
            let finished = header.processed.map_or(i64::MIN, Timestamp::as_microsecond);
            header.created.as_microsecond().max(finished)
        };
        // Every session here, with its last activity here.
        let mut sessions: HashMap<u64, i64> = HashMap::new();
        let mut saw = |session: u64, at: i64| {
            let last = sessions.entry(session).or_insert(i64::MIN);
            *last = (*last).max(at);
        };
        let mut beyond: Vec<(u64, u64)> = Vec::new();
        file.scan_headers(|header, provisional| {
            saw(header.session.0, activity(&header));
            if provisional {
                beyond.push((header.id.0, header.session.0));
            }
        })?;
        file.scan_events(|event| {
            if let Some(session) = event.session {
                saw(session.0, event.at.as_microsecond());
            }
        })?;
        // What later segments know of them.
        let mut elsewhere: HashSet<u64> = HashSet::new();
        for later in embedded.index.files().iter() {
            if later.meta().coverage.segment > file.meta().coverage.segment {
                for (session, at) in later.foreign_sessions()? {
                    if let Some(last) = sessions.get_mut(&session) {
                        *last = (*last).max(at);
                        elsewhere.insert(session);
                    }
                }
            }
        }
        // What memory knows of them.
        let mut lives: HashSet<u64> = HashSet::new();
        let ids: Vec<u64> = sessions.keys().copied().collect();
        for step in ids.chunks(STEP) {
            let known = self.0.shared.state().sessions(step);
            for (session, (unfinished, at)) in step.iter().zip(known) {
                if unfinished {
                    lives.insert(*session);
                }
                if at > i64::MIN {
                    elsewhere.insert(*session);
                }
                if let Some(last) = sessions.get_mut(session) {
                    *last = (*last).max(at);
                }
            }
        }
        for step in beyond.chunks(STEP) {
            let state = self.0.shared.state();
            lives.extend(step.iter().filter(|(id, _)| state.waits_beyond(*id)).map(|(_, session)| *session));
        }
        lives.extend(sessions.iter().filter(|(_, last)| **last >= cutoff).map(|(session, _)| *session));
        // What waits beyond a window and was born in a later segment is known to that segment's index only.
        for session in
            elsewhere.iter().filter(|session| !lives.contains(*session)).copied().collect::<Vec<_>>()
        {
            if self.session(SessionId(session)).iter().any(|header| !header.status.is_final()) {
                lives.insert(session);
            }
        }
        let dead: HashSet<u64> = {
            let state = self.0.shared.state();
            let segment = file.meta().coverage.segment;
            let gone = |session: &u64| state.dead.get(session).is_some_and(|last| segment <= *last);
            sessions.keys().copied().filter(gone).collect()
        };
        self.sort(file, purge, &sessions, &lives, &elsewhere, &dead)
    }

    /// Parts what lives on from what goes.
    fn sort(
        &self,
        file: &IndexFile,
        purge: Purge,
        sessions: &HashMap<u64, i64>,
        lives: &HashSet<u64>,
        elsewhere: &HashSet<u64>,
        dead: &HashSet<u64>,
    ) -> Result<Verdict, PurgeError> {
        let mut verdict = Verdict::default();
        let live = |session: u64| lives.contains(&session) && !dead.contains(&session);
        let mut needed: HashSet<u64> = HashSet::new();
        file.scan_headers(|header, provisional| {
            if !live(header.session.0) {
                verdict.messages += u64::from(!provisional && !dead.contains(&header.session.0));
                return;
            }
            needed.extend(header.body_id.map(|body| body.0));
            verdict.carried.push((header, provisional));
        })?;
        let audit = purge.audit_before.as_microsecond();
        file.scan_events(|event| {
            let audited = event.who.is_some() && event.at.as_microsecond() >= audit;
            if audited || event.session.is_some_and(|session| live(session.0)) {
                verdict.events.push(event);
            }
        })?;
        file.scan_bodies(|body| {
            if needed.contains(&body.id.0) {
                verdict.bytes += u64::from(body.place.length);
                verdict.bodies.push(body);
            }
        })?;
        let expired = sessions.keys().filter(|session| !live(**session) && !dead.contains(session));
        verdict.expired = expired.map(|session| (*session, elsewhere.contains(session))).collect();
        Ok(verdict)
    }

    /// Writes again what lives on, and waits until that is durable. A body goes with the headers that have it
    /// in one transaction: so every segment that has a body has a header of it too.
    async fn carry(&self, verdict: Verdict) -> Result<(), PurgeError> {
        let mut by_body: HashMap<u64, Vec<Header>> = HashMap::new();
        for (header, provisional) in verdict.carried {
            // What it was at the end of the segment is not what it is now.
            let now = if provisional { self.current(header.id).await? } else { Some(header) };
            if let Some(header) = now {
                by_body.entry(header.body_id.map_or(0, |body| body.0)).or_default().push(header);
            }
        }
        let (mut changes, mut bytes, mut last) = (Vec::new(), 0, 0);
        let carried = |header: Header| Change::Carried(Box::new(header));
        for row in verdict.bodies {
            let store = self.clone();
            let read = tokio::task::spawn_blocking(move || {
                let absent = Absent { place: row.place, kind: Arc::new(row.kind) };
                store.read_body(row.id, &absent).map(|body| (row.id, body))
            });
            match read.await.map_err(|error| PurgeError::Stopped(error.to_string()))? {
                Ok((id, body)) => {
                    bytes += u64::try_from(body.size()).unwrap_or(u64::MAX);
                    changes.push(Change::Body(id, body));
                    changes.extend(by_body.remove(&id.0).into_iter().flatten().map(carried));
                }
                // It cannot be read now and will not be readable later: it has been reported.
                Err(ReadError::Corrupt { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            if bytes >= CARRIED || changes.len() >= ROWS {
                last = self.write(std::mem::take(&mut changes), std::mem::take(&mut bytes)).await?;
            }
        }
        let rest = by_body.into_values().flatten().map(carried);
        for change in rest.chain(verdict.events.into_iter().map(|event| Change::Event(Box::new(event)))) {
            changes.push(change);
            if changes.len() >= ROWS {
                last = self.write(std::mem::take(&mut changes), std::mem::take(&mut bytes)).await?;
            }
        }
        if !changes.is_empty() {
            last = self.write(changes, bytes).await?;
        }
        self.durable(last).await?;
        Ok(())
    }

    /// A header as it is now.
    async fn current(&self, id: MessageId) -> Result<Option<Header>, PurgeError> {
        let store = self.clone();
        let read = tokio::task::spawn_blocking(move || store.header(id)).await;
        read.map_err(|error| PurgeError::Stopped(error.to_string()))
    }

    /// Enters what expired: from here on it is not shown, and nobody resends it. `false` when one of the
    /// sessions has come to life meanwhile: then the segment stays for now.
    async fn expire(&self, segment: u64, expired: &[(u64, bool)], purge: Purge) -> Result<bool, PurgeError> {
        let cutoff = purge.before.as_microsecond();
        let (mut all, mut last) = (true, 0);
        for step in expired.chunks(STEP) {
            let permit = self.permit(0).await?;
            let ids: Vec<u64> = step.iter().map(|(session, _)| *session).collect();
            let state = self.0.shared.state();
            let known = state.sessions(&ids);
            let (mut here, mut later) = (Vec::new(), Vec::new());
            for ((session, elsewhere), (unfinished, at)) in step.iter().zip(known) {
                match (unfinished || at >= cutoff, elsewhere) {
                    (true, _) => all = false,
                    (false, true) => later.push(*session),
                    (false, false) => here.push(*session),
                }
            }
            // What memory still has of them may go to the open segment, or to the one after it.
            let open = self.0.shared.open_segment.load(Ordering::Acquire) + 1;
            let changes = vec![Change::Expired(segment, here), Change::Expired(open, later)];
            last = self.commit(state, permit, self.clock().now(), changes).sequence;
        }
        self.durable(last).await?;
        Ok(all)
    }

    async fn permit(&self, bytes: u64) -> Result<Permit, PurgeError> {
        self.reserve(Class::Completion, bytes).await.map_err(|error| match error {
            Unavailable::Full => PurgeError::Stopped("the disk is full".to_owned()),
            Unavailable::Failed(failed) => PurgeError::Failed(failed),
        })
    }

    async fn write(&self, mut changes: Vec<Change>, bytes: u64) -> Result<u64, PurgeError> {
        let permit = self.permit(bytes).await?;
        let state = self.0.shared.state();
        // One that was unfinished a moment ago, and has been finished and indexed since, is where it should be.
        changes.retain(|change| match change {
            Change::Carried(header) if !header.status.is_final() => state.knows(header.id.0),
            _ => true,
        });
        Ok(self.commit(state, permit, self.clock().now(), changes).sequence)
    }

    /// Removes a segment and its index file from the disk.
    async fn drop_segment(
        &self,
        embedded: &Embedded,
        file: Arc<IndexFile>,
        number: u64,
    ) -> Result<(), PurgeError> {
        embedded.index.replace(std::slice::from_ref(&file), Vec::new());
        embedded.readers.close(number);
        let readers = embedded.readers.clone();
        let removed = tokio::task::spawn_blocking(move || {
            drop(file);
            let (files, folder) = (readers.files(), readers.folder());
            files.remove(&segment::path(folder, number))?;
            files.sync_dir(folder)
        });
        let removed = removed.await.map_err(|error| PurgeError::Stopped(error.to_string()))?;
        removed.map_err(|error| PurgeError::Stopped(error.to_string()))?;
        self.0.shared.state().dropped_before(number + 1);
        embedded.disk.look();
        Ok(())
    }
}
