//! Purge: whole segments are dropped, strictly oldest first, once everything in them is older than a moment.
//!
//! - The unit is the session by its last activity. A session that is unfinished or younger and has something
//!   in the segment is *carried*: its headers, events and bodies there are written again through the writer,
//!   in the order of commits, so that they lie in the open segment. Queue order is a stored position and
//!   does not change.
//! - An expired session may have rows in later segments: it is entered as *expired* in the journal, and from
//!   then on none of its rows is shown. So trace and body go together. Expired sessions are entered before
//!   anything is carried: what comes to life until then is seen, and judged again.
//! - Audit events (who looked, who acted) are carried until their own time is over.
//! - Nothing is dropped before what must outlive it is durable, and before the older of two checkpoints
//!   no longer needs the segment. The index file goes first, then the segment, off the writer's thread.
//! - A segment of which most would have to be carried waits, unless much can be dropped behind it: otherwise
//!   it is cheaper to drop it later, and a purge never turns over what it has written itself.
//! - What is old in the open segment would stay until much more has been written: the segment is ended early.
//! - Where others are busy, a purge gives way to them, as long as it drops more than they write: it never falls
//!   behind. Where the store is larger than it may be, or the disk is full, it does not give way.
//! - Who asks for a moment (`within`) means all that is older: the segment of that moment goes as well where
//!   most of it is older.

mod carry;
mod judge;
mod reach;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use self::judge::{Expiry, Seen, Verdict};
use self::reach::Size;
use super::change::Change;
use super::index::{self, IndexFile};
use super::{
    Class, Committed, Embedded, Permit, ReadError, Store, StoreFailed, Unavailable, dropped, segment,
};

/// How many sessions are looked up under one lock.
const STEP: usize = 512;
/// How often a segment is judged whose sessions come to life again and again.
const TRIES: usize = 4;
/// From so many transactions a second on, a purge gives way.
const BUSY: u128 = 2000;
/// How much longer than it worked it then waits, at most…
const WAY: u32 = 4;
/// … and only while it drops at least so much of what is written: (3, 4) = three segments for each four.
const LEAST: (u64, u64) = (3, 4);
/// How far ahead is looked for what can be dropped behind a segment that mostly lives on.
const AHEAD: usize = 32;

/// What to purge.
#[derive(Clone, Copy, Debug)]
pub struct Purge {
    /// Sessions whose last activity is older may go.
    pub before: Timestamp,
    /// Audit events that are older may go.
    pub audit_before: Timestamp,
    /// Only count.
    pub dry_run: bool,
    /// Stop once the journal has at most this many bytes.
    pub down_to: Option<u64>,
    /// The open segment is ended where something in it is older: then that can go, too.
    pub roll_before: Timestamp,
    /// What is older goes from segments that have younger sessions, too: somebody has asked for that moment. What
    /// goes again and again by itself waits until all of a segment is older.
    pub within: bool,
}

impl Purge {
    /// What is older than a moment, as far as it can go now.
    pub fn before(before: Timestamp) -> Purge {
        let audit_before = Timestamp::MIN;
        Purge { before, audit_before, dry_run: false, down_to: None, roll_before: before, within: false }
    }

    /// The oldest, whatever its age, until the store has at most this many bytes.
    pub fn down_to(most: u64) -> Purge {
        Purge { down_to: Some(most), roll_before: Timestamp::MIN, ..Purge::before(Timestamp::MAX) }
    }
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

/// One purge on its way.
struct Run {
    purge: Purge,
    purged: Purged,
    /// Segments from here on stay: they are open, or recovery needs them, or this purge has written them.
    end: u64,
    /// Up to this segment, carrying has been found to be worth it.
    worth: u64,
    /// What the store takes on the disk.
    size: Size,
    /// The open segment when it began.
    began: u64,
    /// In a dry run: sessions that would be gone and have rows in later segments.
    gone: Arc<HashSet<u64>>,
}

impl Store {
    /// Drops what may go. Runs beside everything else; one at a time.
    pub async fn purge(&self, purge: Purge) -> Result<Purged, PurgeError> {
        self.purge_telling(purge, &mut |_| {}).await
    }

    /// The same, and tells after each segment how far it is.
    pub async fn purge_telling(
        &self,
        purge: Purge,
        progress: &mut (dyn FnMut(&Purged) + Send),
    ) -> Result<Purged, PurgeError> {
        let embedded = self.0.embedded.as_ref().ok_or(PurgeError::Memory)?;
        let _one = embedded.purging.lock().await;
        if let Some(most) = purge.down_to
            && self.size(embedded)?.total() <= most
        {
            return Ok(Purged::default());
        }
        let (purged, gone) = (Purged::default(), Arc::default());
        let end = self.reach(embedded, &purge).await?;
        let (size, began) = (self.size(embedded)?, self.open_segment());
        let mut run = Run { purge, purged, end, worth: 0, size, began, gone };
        let mut passed = 0;
        while purge.down_to.is_none_or(|most| run.size.total() > most)
            && let Some(file) = self.next_old(embedded, passed, &run)?
        {
            let (began, sequence) = (Instant::now(), self.0.shared.state().sequence);
            if !self.pass(embedded, &mut run, &file).await? {
                break;
            }
            passed = file.meta().coverage.segment;
            progress(&run.purged);
            if !purge.dry_run {
                // What others have written meanwhile counts, too.
                self.grown(embedded, &mut run.size);
            }
            if let Some(pause) = self.pause(embedded, &run, began.elapsed(), sequence) {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(run.purged)
    }

    /// How long the machine is left to others, where they have much to do, nothing is urgent, and the purge does not
    /// fall far behind what they write.
    fn pause(&self, embedded: &Embedded, run: &Run, worked: Duration, sequence: u64) -> Option<Duration> {
        let done = self.0.shared.state().sequence.saturating_sub(sequence);
        let too_large = run.purge.down_to.is_some_and(|most| run.size.total() > most / 10 * 11);
        let urgent = too_large || !embedded.disk.accepts();
        let written = self.open_segment().saturating_sub(run.began);
        (!urgent).then(|| way(worked, done, run.purged.segments, written))?
    }

    fn open_segment(&self) -> u64 {
        self.0.shared.open_segment.load(Ordering::Acquire)
    }

    /// Drops one segment, or counts what would go with it; `false` when it stays.
    async fn pass(
        &self,
        embedded: &Embedded,
        run: &mut Run,
        file: &Arc<IndexFile>,
    ) -> Result<bool, PurgeError> {
        let number = file.meta().coverage.segment;
        let mut verdict = self.judged(file, run).await?;
        let length = self.length(embedded, number)?;
        if !self.is_worth_it(embedded, run, &verdict, number, length).await? {
            return Ok(false);
        }
        let mut tries = 1;
        if run.purge.dry_run {
            run.purged.count(&verdict.expired);
            let elsewhere = verdict.expired.iter().filter(|expiry| expiry.elsewhere);
            Arc::make_mut(&mut run.gone).extend(elsewhere.map(|expiry| expiry.session));
        } else {
            while !self.expire(embedded, run, number, &verdict).await? {
                if tries == TRIES {
                    return Ok(false);
                }
                tries += 1;
                verdict = self.judged(file, run).await?;
            }
            self.carry(file, &verdict, run.purge).await?;
            self.drop_segment(embedded, file.clone(), number).await?;
        }
        // What a dry run would carry is not written: it counts as if that had stayed.
        let stays = if run.purge.dry_run { verdict.bytes } else { 0 };
        run.size.dropped(length.saturating_sub(stays), file.meta().length);
        let returned = (length + file.meta().length).saturating_sub(verdict.bytes);
        run.purged.segments += 1;
        run.purged.bytes += returned;
        run.purged.carried += verdict.carried;
        Ok(true)
    }

    /// Looks at everything in a segment, off the async threads.
    async fn judged(&self, file: &Arc<IndexFile>, run: &Run) -> Result<Verdict, PurgeError> {
        let seen = self.seen();
        if !run.purge.dry_run {
            // From here on, whatever of an expired session is in the journal lies before the open segment's end.
            self.durable(seen.sequence).await?;
        }
        let (store, file, purge, gone) = (self.clone(), file.clone(), run.purge, run.gone.clone());
        let verdict = blocking(move || store.judge(&file, purge, &gone, seen)).await;
        if let (Err(_), Some(embedded)) = (&verdict, &self.0.embedded) {
            // An index file that is broken is made again, and the purge can go on another time.
            self.leave_out_broken(embedded);
        }
        verdict
    }

    /// Enters what expired: from here on it is not shown, and nobody resends it. `false` when one of the
    /// sessions has come to life meanwhile: then the segment is to be judged again.
    async fn expire(
        &self,
        embedded: &Embedded,
        run: &mut Run,
        segment: u64,
        verdict: &Verdict,
    ) -> Result<bool, PurgeError> {
        let (mut all, mut last) = (true, 0);
        for step in verdict.expired.chunks(STEP) {
            let permit = self.permit(0).await?;
            let (committed, expired) = self.expire_step(embedded, segment, step, &verdict.seen, permit)?;
            all &= expired.len() == step.len();
            run.purged.count(&expired);
            last = committed.sequence;
        }
        // Once it is gone, it must be known that it was dropped and not lost.
        let permit = self.permit(0).await?;
        let (state, now) = (self.0.shared.state(), self.clock().now());
        last = last.max(self.commit(state, permit, now, vec![dropped::change(segment)]).sequence);
        self.durable(last).await?;
        Ok(all)
    }

    /// Gives those that did expire.
    fn expire_step(
        &self,
        embedded: &Embedded,
        segment: u64,
        step: &[Expiry],
        seen: &Seen,
        permit: Permit,
    ) -> Result<(Committed, Vec<Expiry>), PurgeError> {
        let ids: Vec<u64> = step.iter().map(|expiry| expiry.session).collect();
        let mut files = seen.files.clone();
        let mut alive: HashSet<u64> = HashSet::new();
        let state = loop {
            // What has left memory since it was looked for there is in files that have joined since.
            let now = embedded.index.files();
            let same = Arc::ptr_eq(&now, &files);
            let joined = |file: &&Arc<IndexFile>| {
                !same
                    && file.meta().coverage.segment > segment
                    && !files.iter().any(|old| Arc::ptr_eq(old, file))
            };
            for file in now.iter().filter(joined) {
                alive.extend(file.foreign_sessions()?.into_iter().map(|(session, _)| session));
            }
            let state = self.0.shared.state();
            if Arc::ptr_eq(&now, &embedded.index.files()) {
                break state;
            }
            drop(state);
            files = now;
        };
        let known = state.sessions(&ids);
        let quiet = step.iter().zip(known).filter(|(expiry, known)| {
            let stirred = known.unfinished || known.sequence > seen.sequence || known.event > seen.highest_id;
            !stirred && !alive.contains(&expiry.session)
        });
        let expired: Vec<Expiry> = quiet.map(|(expiry, _)| *expiry).collect();
        let of = |elsewhere| {
            let some = expired.iter().filter(move |expiry| expiry.elsewhere == elsewhere);
            some.map(|expiry| expiry.session).collect()
        };
        // What memory still has of them may go to the open segment, or to the one after it.
        let open = self.open_segment() + 1;
        let changes = vec![Change::Expired(segment, of(false)), Change::Expired(open, of(true))];
        Ok((self.commit(state, permit, self.clock().now(), changes), expired))
    }

    async fn permit(&self, bytes: u64) -> Result<Permit, PurgeError> {
        self.reserve(Class::Completion, bytes).await.map_err(|error| match error {
            Unavailable::Full => PurgeError::Stopped("the disk is full".to_owned()),
            Unavailable::Failed(failed) => PurgeError::Failed(failed),
        })
    }

    /// Removes a segment and its index file from the disk.
    async fn drop_segment(
        &self,
        embedded: &Embedded,
        file: Arc<IndexFile>,
        number: u64,
    ) -> Result<(), PurgeError> {
        embedded.index.replace(std::slice::from_ref(&file), Vec::new());
        let readers = embedded.readers.clone();
        blocking(move || {
            drop(file);
            let (files, folder) = (readers.files(), readers.folder());
            files.remove(&segment::path(folder, number)).map_err(stopped)?;
            // Nobody opens it from here on; who has it open would keep its room on the disk.
            readers.close(number);
            files.sync_dir(folder).map_err(stopped)
        })
        .await?;
        // The keeper may have missed the file meanwhile, and made it again.
        embedded.index.retire(number);
        // What expired with this one is known until the next one goes: somebody may be about to resend it.
        self.0.shared.state().dropped_before(number);
        embedded.disk.look();
        Ok(())
    }
}

impl Purged {
    /// A session of which only audit events were left has been counted before.
    fn count(&mut self, expired: &[Expiry]) {
        for expiry in expired.iter().filter(|expiry| expiry.messages > 0) {
            self.sessions += 1;
            self.messages += expiry.messages;
        }
    }
}

/// How long to wait after having worked for a while, in which so many transactions were made; so many segments
/// were dropped since the purge began, and so many written.
fn way(worked: Duration, transactions: u64, dropped: u64, written: u64) -> Option<Duration> {
    let busy = u128::from(transactions) * 1000 > BUSY * worked.as_millis().max(1);
    let ahead = written.saturating_mul(LEAST.0) <= dropped.saturating_mul(LEAST.1);
    (busy && ahead).then(|| worked * WAY)
}

fn stopped(error: impl std::fmt::Display) -> PurgeError {
    PurgeError::Stopped(error.to_string())
}

/// Does something off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PurgeError> + Send + 'static,
) -> Result<T, PurgeError> {
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purge_gives_way_to_many_as_long_as_it_drops_much_of_what_they_write() {
        let worked = Duration::from_millis(20);
        let busy = 20 * u64::try_from(BUSY).unwrap() / 1000 + 1;
        assert_eq!(way(worked, busy, 1, 0), Some(worked * WAY));
        assert_eq!(way(worked, busy - 1, 1, 0), None, "hardly anybody is there");
        assert_eq!(way(worked, busy, 6, 8), Some(worked * WAY));
        assert_eq!(way(worked, busy, 5, 8), None, "it would fall far behind");
    }
}
