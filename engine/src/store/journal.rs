//! The journal's writer: one thread that takes whatever has queued up, writes it as one frame, syncs once,
//! and then wakes everybody whose transaction was in it (group commit).
//!
//! Order of a batch: encode (with the reservation of ids, when one is due) → roll to the next segment when
//! it does not fit → write → fdatasync → bodies located, ids raised, waiters woken, permits given back.
//!
//! - **A failed sync poisons** and so does a failed write: what the kernel still holds of the file cannot be
//!   trusted (it may call pages clean that never reached the disk). Only a restart, which copies what it
//!   reads, goes on.
//! - **No space is no failure**: nothing of the batch has been synced or promised, so the writer cuts the
//!   file back to the last whole frame and writes the same bytes again, once per `pace`, until they fit.
//! - **Company** is waited for where it is worth it: see `gather`.
//! - **The keeper** is waited for when too much gathers in memory: see `keeper::pace`.

mod cores;
mod gather;
mod late;
mod roll;

use std::io::{self, ErrorKind, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use self::cores::Cores;
use self::gather::Gathered;
pub(super) use self::late::Late;
pub(super) use self::roll::encode_end;
use self::roll::{create_segment, left_over, prepare_size, take_reserve};
use super::Permit;
use super::api::StoreFailed;
use super::bodies::Place;
use super::change::Commit;
use super::codec::Encoder;
use super::disk::Disk;
use super::keeper::Task;
use super::permit::Held;
use super::record::{self, Located, Sealer};
use super::segment::{self, FRAME, FrameHeader, FrameKind, HEADER, Position};
use super::shared::Shared;
use super::spine::Spot;
use crate::files::{self, File, Files, Lock};
use crate::id::BodyId;

/// A preallocated file that will be the next segment.
pub(super) const PREPARED: &str = "prepared";
/// Room that is kept for a segment which the disk has no room for: for completions, and for a start on a full disk.
const RESERVE: &str = "reserve";
/// How much that is, or a segment if that is less.
pub(super) const MOST_RESERVE: u64 = 1 << 20;

/// What the writer is told.
pub(super) enum Job {
    /// Write this.
    Commit(Commit, Permit),
    /// Write all that came before, mark a clean stop, end.
    Close(oneshot::Sender<Result<(), StoreFailed>>),
    /// Ids are used up: reserve more.
    Ids,
    /// Write all that came before, and go on in the next segment.
    Roll(oneshot::Sender<()>),
}

/// The sending end.
#[derive(Debug)]
pub(super) struct Journal {
    jobs: Option<Sender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Journal {
    /// Starts the thread over a segment that has been begun.
    pub(super) fn start(writer: Writer, transactions: usize, lock: Arc<dyn Lock>) -> io::Result<Journal> {
        // Permits for transactions, and room for the few jobs that need none.
        let (sender, jobs) = bounded(transactions + 16);
        let stop = writer.stop.clone();
        let thread = std::thread::Builder::new().name("septet-journal".to_owned());
        let thread = thread.spawn(move || writer.run(&jobs, lock))?;
        Ok(Journal { jobs: Some(sender), thread: Some(thread), stop })
    }

    /// Hands over; never blocks, because permits never exceed the channel. After the writer ended the
    /// transaction goes nowhere, and its waiters have been told.
    pub(super) fn send(&self, job: Job) {
        match self.jobs.as_ref().map(|jobs| jobs.try_send(job)) {
            Some(Err(TrySendError::Full(job))) => {
                // Only the jobs without a permit can bring this about; they may wait or be asked for again.
                if let (Job::Commit(..) | Job::Close(_), Some(jobs)) = (&job, &self.jobs) {
                    let _ = jobs.send(job);
                }
            }
            Some(Ok(()) | Err(TrySendError::Disconnected(_))) | None => {}
        }
    }

    /// How many transactions have not been taken up by the writer.
    pub(super) fn waiting(&self) -> u64 {
        self.jobs.as_ref().map_or(0, |jobs| u64::try_from(jobs.len()).unwrap_or(u64::MAX))
    }

    /// The writer stops trying to write to a full disk.
    pub(super) fn stop_retrying(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

impl Drop for Journal {
    /// Lets the writer finish what it was given, without a mark: as after a crash.
    fn drop(&mut self) {
        self.stop_retrying();
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where the writer writes.
#[derive(Debug)]
pub(super) struct Segment {
    number: u64,
    file: Arc<dyn File>,
    /// Where the next frame goes.
    offset: u64,
    /// Up to here the file has its place on the disk.
    allocated: u64,
}

/// The writer, run by its thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) files: Arc<dyn Files>,
    pub(super) disk: Arc<Disk>,
    /// The folder of segments.
    pub(super) folder: PathBuf,
    pub(super) segment_size: u64,
    pub(super) sealer: Sealer,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) identity: Identity,
    pub(super) segment: Segment,
    prepared: Option<(Arc<dyn File>, u64)>,
    /// There is room kept for when there is none.
    has_reserve: bool,
    /// The next frame's number.
    batch: u64,
    /// The last transaction written.
    sequence: u64,
    /// Everything before is on stable storage.
    synced: Position,
    encoder: Encoder,
    located: Vec<Located>,
    last_sync: Duration,
    last_batch: usize,
    /// How many new messages were in the last batch.
    last_new: usize,
    /// How many batches in a row nobody has waited for.
    unhurried: u32,
    cores: Cores,
    unseen: u64,
    /// Is told of segments that have ended.
    keeper: Sender<Task>,
    /// What was in memory for the index after the last batch.
    gathered: usize,
}

/// What every segment's header repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) epoch: u64,
    pub(super) salt: u32,
    pub(super) key_id: u32,
}

/// Where the journal goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) segment: u64,
    pub(super) batch: u64,
    pub(super) sequence: u64,
}

/// Why the writer ends.
enum Stop {
    /// Poisoned.
    Failed(String),
    /// The disk was full until the end.
    Full,
}

impl Stop {
    fn failed(what: &str, error: &io::Error) -> Stop {
        Stop::Failed(format!("{what}: {error}"))
    }
}

impl Writer {
    /// Begins a segment and reserves ids up to `limit` in it; all of that is on stable storage when this
    /// returns.
    #[expect(clippy::too_many_arguments, reason = "called in one place, with what it owns from then on")]
    pub(super) fn begin(
        shared: Arc<Shared>,
        files: Arc<dyn Files>,
        disk: Arc<Disk>,
        folder: PathBuf,
        segment_size: u64,
        sealer: Sealer,
        identity: Identity,
        next: Next,
        limit: u64,
        keeper: Sender<Task>,
    ) -> io::Result<Writer> {
        let size = prepare_size(&disk, segment_size);
        let prepared = left_over(&*files, &folder.join(PREPARED), size);
        let segment = match create_segment(&*files, &folder, prepared, identity, next, size) {
            Err(error) if is_full(&error) => {
                let reserve = take_reserve(&*files, &folder).ok_or(error)?;
                create_segment(&*files, &folder, Some(reserve), identity, next, 0)?
            }
            segment => segment?,
        };
        let has_reserve = left_over(&*files, &folder.join(RESERVE), 0).is_some();
        let mut writer = Writer {
            shared,
            files,
            disk,
            folder,
            segment_size,
            sealer,
            stop: Arc::default(),
            identity,
            synced: Position { segment: segment.number, offset: segment.offset },
            segment,
            prepared: None,
            has_reserve,
            batch: next.batch,
            sequence: next.sequence,
            encoder: Encoder::default(),
            located: Vec::new(),
            last_sync: Duration::ZERO,
            last_batch: 0,
            last_new: 0,
            unhurried: 0,
            cores: Cores::new(),
            unseen: 0,
            keeper,
            gathered: 0,
        };
        record::encode_reservation(limit, &mut writer.encoder);
        let frame = writer.frame(FrameKind::Batch)?;
        writer.write_frame(&frame)?;
        writer.segment.file.sync()?;
        writer.wrote(frame.length);
        if !writer.has_reserve {
            writer.make_reserve();
        }
        writer.note_room();
        writer.disk.begin();
        Ok(writer)
    }

    fn run(mut self, jobs: &Receiver<Job>, lock: Arc<dyn Lock>) {
        while let Ok(first) = jobs.recv() {
            self.wait_for_keeper();
            match self.batch(first, jobs) {
                Ok(None) => {}
                Ok(Some(closed)) => {
                    let result = self.close();
                    self.shared.closed.store(result.is_ok(), Ordering::Release);
                    self.shared.end(&StoreFailed("it was closed".to_owned()));
                    // Whoever hears that it is closed may open it at once.
                    drop(lock);
                    let _ = closed.send(result);
                    return self.refuse_rest(jobs);
                }
                Err(stop) => {
                    match stop {
                        Stop::Failed(why) => self.shared.poison(&why),
                        Stop::Full => {
                            self.shared.end(&StoreFailed("the disk was full at the end".to_owned()))
                        }
                    }
                    return self.refuse_rest(jobs);
                }
            }
        }
        // Every handle is gone, and nobody closed: that is how a crash looks, and recovery treats it so.
        self.shared.end(&StoreFailed("it was dropped".to_owned()));
    }

    /// After the end: transactions are dropped (their waiters have been told), a close is answered. What is
    /// sent while nobody receives would lie in the channel, and who waits for it would wait for ever.
    fn refuse_rest(&self, jobs: &Receiver<Job>) {
        for job in jobs {
            if let Job::Close(closed) = job {
                let clean = self.shared.closed.load(Ordering::Acquire);
                let _ = closed.send(if clean { Ok(()) } else { Err(self.failure()) });
            }
        }
    }

    fn failure(&self) -> StoreFailed {
        self.shared.failure().unwrap_or_else(|| StoreFailed("it was closed".to_owned()))
    }

    /// Writes and syncs a batch that begins with `first`. Gives back a close that ended it.
    fn batch(
        &mut self,
        first: Job,
        jobs: &Receiver<Job>,
    ) -> Result<Option<oneshot::Sender<Result<(), StoreFailed>>>, Stop> {
        let Gathered { commits, held, new, close, roll, .. } = self.gather(first, jobs);
        self.last_batch = commits.len();
        self.last_new = new;
        self.write(&commits)?;
        drop(commits);
        give_back(held);
        if let Some(rolled) = roll {
            self.roll()?;
            let _ = rolled.send(());
        }
        self.prepare();
        Ok(close)
    }

    fn write(&mut self, commits: &[Commit]) -> Result<(), Stop> {
        self.encoder.clear();
        self.located.clear();
        let reserved = self.shared.ids.wanted();
        if let Some(limit) = reserved {
            record::encode_reservation(limit, &mut self.encoder);
        }
        for commit in commits {
            record::encode(commit, &self.sealer, &mut self.encoder, &mut self.located)
                .map_err(|error| Stop::Failed(error.to_string()))?;
        }
        if self.encoder.length() == 0 {
            return Ok(());
        }
        let length = segment::frame_length(self.encoder.length()) as u64;
        let begun = self.segment.offset > HEADER as u64;
        if begun && self.segment.offset + length + segment::frame_length(64) as u64 > self.segment_size {
            let encoder = std::mem::take(&mut self.encoder);
            self.roll()?;
            self.encoder = encoder;
        }
        let (frame, start) = (self.segment.offset, self.segment.offset + FRAME as u64);
        // Not before the roll: what it writes speaks of the transactions before this batch.
        self.sequence = commits.last().map_or(self.sequence, |last| last.sequence);
        self.persist(FrameKind::Batch)?;

        let segment = self.segment.number;
        self.shared.bodies.locate(self.located.iter().map(|located| place(located, segment, start)));
        if let Some(limit) = reserved {
            self.shared.ids.raise(limit);
        }
        if let (Some(first), Some(last)) = (commits.first(), commits.last()) {
            self.shared.open_since.fetch_min(first.at.as_microsecond(), Ordering::AcqRel);
            let spot = Spot::new(segment, frame);
            self.gathered = {
                let mut state = self.shared.state();
                state.placed(last.sequence, spot, &self.shared.bodies);
                state.fresh.weight()
            };
            self.shared.durable.advance(last.sequence);
        }
        metrics::counter!("septet_store_transactions_total").increment(commits.len() as u64);
        metrics::counter!("septet_store_batches_total").increment(1);
        metrics::counter!("septet_store_written_bytes_total").increment(length);
        self.note_room();
        Ok(())
    }

    /// Writes what the encoder holds as one frame and makes it durable. On a full disk this takes as long
    /// as it takes.
    fn persist(&mut self, kind: FrameKind) -> Result<(), Stop> {
        let frame = self.frame(kind).map_err(|error| Stop::failed("a transaction is too large", &error))?;
        self.until_room("the journal could not be written", |writer| {
            let result = writer.write_or_give_up_reserve(&frame);
            if result.is_err() {
                // Back to the last whole frame. If even that fails, the same bytes go to the same place.
                let _ = writer.segment.file.truncate(writer.segment.offset);
                writer.segment.allocated = writer.segment.offset;
            }
            result
        })?;
        self.sync()?;
        self.wrote(frame.length);
        Ok(())
    }

    /// Does something again and again while it fails for want of space.
    fn until_room<T>(
        &mut self,
        what: &str,
        mut attempt: impl FnMut(&mut Self) -> io::Result<T>,
    ) -> Result<T, Stop> {
        loop {
            match attempt(self) {
                Ok(done) => {
                    self.disk.set_stuck(false);
                    return Ok(done);
                }
                Err(error) if is_full(&error) => {
                    self.disk.set_stuck(true);
                    if !self.disk.rest(&self.stop) {
                        return Err(Stop::Full);
                    }
                }
                Err(error) => return Err(Stop::failed(what, &error)),
            }
        }
    }

    fn sync(&mut self) -> Result<(), Stop> {
        let began = Instant::now();
        self.segment.file.sync().map_err(|error| Stop::failed("the journal could not be synced", &error))?;
        self.last_sync = began.elapsed();
        metrics::histogram!("septet_store_sync_seconds").record(self.last_sync.as_secs_f64());
        Ok(())
    }

    fn frame(&self, kind: FrameKind) -> io::Result<PendingFrame> {
        let header = FrameHeader {
            kind,
            segment: self.segment.number,
            batch: self.batch,
            sequence: self.sequence,
            synced: self.synced,
        };
        let payload = self.encoder.length();
        let slices = self.encoder.slices();
        let header = header.encode(self.identity.salt, slices.into_iter(), payload);
        let header = header.ok_or(ErrorKind::FileTooLarge)?;
        let length = segment::frame_length(payload);
        Ok(PendingFrame { header, padding: length - FRAME - payload, length: length as u64 })
    }

    fn write_frame(&self, frame: &PendingFrame) -> io::Result<()> {
        const ZEROS: [u8; 8] = [0; 8];
        let payload = self.encoder.slices();
        let mut slices = Vec::with_capacity(payload.len() + 2);
        slices.push(IoSlice::new(&frame.header));
        slices.extend(payload.into_iter().filter(|slice| !slice.is_empty()).map(IoSlice::new));
        slices.push(IoSlice::new(ZEROS.get(..frame.padding).unwrap_or_default()));
        files::write_all(&*self.segment.file, &mut slices, self.segment.offset)
    }

    /// A frame is on stable storage.
    fn wrote(&mut self, length: u64) {
        self.segment.offset += length;
        self.disk.grew(self.segment.offset.saturating_sub(self.segment.allocated));
        self.segment.allocated = self.segment.allocated.max(self.segment.offset);
        self.synced = Position { segment: self.segment.number, offset: self.segment.offset };
        self.disk.set_synced(self.synced);
        self.batch += 1;
        self.unseen += length;
    }
}

/// A frame's own bytes around the encoder's.
struct PendingFrame {
    header: [u8; FRAME],
    padding: usize,
    length: u64,
}

fn place(located: &Located, segment: u64, start: u64) -> (BodyId, Place) {
    let place = Place {
        segment,
        offset: start + located.offset as u64,
        length: u32::try_from(located.length).unwrap_or(u32::MAX),
        crc: located.crc,
        sealed: located.sealed,
    };
    (located.id, place)
}

/// Gives the permits of a batch back, each share's at once.
fn give_back(permits: Vec<Permit>) {
    let mut sums: Vec<Held> = Vec::with_capacity(2);
    for held in permits.into_iter().filter_map(|permit| permit.held) {
        let rest = sums.iter_mut().try_fold(held, |held, sum| match sum.merge(held) {
            Some(other) => Ok(other),
            None => Err(()),
        });
        sums.extend(rest.ok());
    }
}

/// The disk, or what this user may have of it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
