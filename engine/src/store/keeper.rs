//! The keeper: a thread that moves what is durable and final from memory into the index, and writes
//! checkpoints. The index is derived from the journal and never needed to recover; a checkpoint only makes
//! opening quick. When neither can be written, messages flow on and memory holds what it must.
//!
//! - When much has gathered (`PART` rows), the keeper writes it to a part file of the open segment.
//! - When the writer has sealed a segment, parts and rest become the segment's one index file, durably; then
//!   comes a checkpoint, unless the last one is so large that the journal has not grown by a multiple of it.
//! - An index file that is missing or damaged is made again by folding the journal from its beginning, one
//!   segment at a time between other work.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use super::checkpoint::{self, Checkpoint, Mark};
use super::index::{Builder, Coverage, Index, IndexFile};
use super::readers::Readers;
use super::rebuild::Rebuild;
use super::record::Sealer;
use super::shared::Shared;
use crate::event::{Level, NewEvent};
use crate::files::{Files, Lock};

/// So many rows in memory make a part file.
pub(super) const PART: usize = if cfg!(test) { 48 } else { 16 * 1024 };
/// How many rows are copied or dropped under one lock.
const STEP: usize = 1024;
/// A checkpoint is due when the journal has grown by this multiple of the last one.
const GROWTH: u64 = 4;
/// When an index file that could not be made is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What the keeper is told.
#[derive(Debug)]
pub(super) enum Task {
    /// A segment has ended with this transaction.
    Sealed(u64, u64),
    /// Much has gathered.
    Relieve,
    /// Say before which segment nothing is needed to recover, also from the older of two checkpoints.
    Covered {
        /// After a checkpoint, if there is none yet at the end of what is sealed.
        checkpoint: bool,
        /// Where to say it.
        done: oneshot::Sender<u64>,
    },
    /// Finish, with a checkpoint.
    Close(oneshot::Sender<()>),
}

/// What the keeper works with.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    files: Arc<dyn Files>,
    /// The store's folder.
    folder: PathBuf,
    index: Index,
    readers: Arc<Readers>,
    sealer: Sealer,
    /// Tells index files of this journal from those of others.
    journal: u64,
    /// The last segment that ended, and its last transaction.
    sealed: (u64, u64),
    /// Segments that have ended and have no index file yet.
    waiting: VecDeque<(u64, u64)>,
    parts: Vec<Arc<IndexFile>>,
    /// The last transaction in a part.
    in_parts: u64,
    /// The first id that can have been born in the open segment.
    first_id: u64,
    /// The segments of the last two checkpoints, the length of the last, and the journal's growth since.
    checkpoints: Vec<u64>,
    checkpoint_length: u64,
    grown: u64,
    segment_size: u64,
    rebuild: Option<Rebuild>,
    /// What went wrong last: said once.
    trouble: Option<String>,
}

/// What it is made from.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) files: Arc<dyn Files>,
    pub(super) folder: PathBuf,
    pub(super) index: Index,
    pub(super) readers: Arc<Readers>,
    pub(super) sealer: Sealer,
    pub(super) journal: u64,
    pub(super) segment_size: u64,
}

impl Keeper {
    /// Before anything has been folded.
    pub(super) fn new(parts: Parts, checkpoint: Option<Mark>, checkpoints: Vec<u64>) -> Keeper {
        let Parts { shared, files, folder, index, readers, sealer, journal, segment_size } = parts;
        let sealed = checkpoint.map_or((0, 0), |checkpoint| (checkpoint.segment.saturating_sub(1), 0));
        let first_id = checkpoint.map_or(0, |checkpoint| checkpoint.highest_id + 1);
        Keeper {
            shared,
            files,
            folder,
            index,
            readers,
            sealer,
            journal,
            sealed,
            waiting: VecDeque::new(),
            parts: Vec::new(),
            in_parts: 0,
            first_id,
            checkpoints,
            checkpoint_length: checkpoint.map_or(0, |checkpoint| checkpoint.length),
            grown: 0,
            segment_size,
            rebuild: None,
            trouble: None,
        }
    }

    pub(super) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Index files of segments that are not there are made by and by.
    pub(super) fn rebuild(&mut self, rebuild: Rebuild) {
        self.rebuild = Some(rebuild);
    }

    /// A segment has ended with transaction `last`: its index file is made, unless it is there.
    pub(super) fn sealed(&mut self, segment: u64, last: u64) {
        self.grown += self.segment_size;
        self.waiting.push_back((segment, last));
        self.seal_waiting();
    }

    /// Makes the index files of segments that have ended, oldest first, until one cannot be made.
    fn seal_waiting(&mut self) {
        while let Some((segment, last)) = self.waiting.front().copied() {
            let made = if covers(&self.index, segment) { Ok(()) } else { self.seal(segment, last) };
            if let Err(error) = made {
                return self.report("the index file of a segment could not be made", &error);
            }
            self.waiting.pop_front();
            self.drop_indexed(last, true);
            self.sealed = (segment, last);
            self.parts.clear();
            self.first_id = self.shared.state().highest_id + 1;
            self.trouble = None;
        }
    }

    /// Writes what has gathered to a part file.
    pub(super) fn relieve(&mut self) {
        let last = self.shared.durable.synced();
        let segment = self.sealed.0 + 1;
        // Looked at in this order: what was durable before belongs to this segment.
        if self.shared.open_segment.load(Ordering::Acquire) != segment {
            return;
        }
        let number = u32::try_from(self.parts.len() + 1).unwrap_or(u32::MAX);
        let (builder, last) = match self.gather(last, false) {
            Ok(gathered) => gathered,
            Err(error) => return self.report("what has gathered could not be put into the index", &error),
        };
        if builder.rows() == 0 {
            return;
        }
        match builder.write(self.coverage(segment, number, last), &[]) {
            Ok(part) => {
                self.index.replace(&[], vec![part.clone()]);
                self.parts.push(part);
                self.in_parts = last;
                self.drop_indexed(last, false);
                self.trouble = None;
            }
            Err(error) => {
                self.report("what has gathered could not be put into the index", &error.to_string())
            }
        }
    }

    fn coverage(&self, segment: u64, part: u32, last: u64) -> Coverage {
        let first = self.in_parts.max(self.sealed.1) + 1;
        let first_sequence = if part == 0 { self.sealed.1 + 1 } else { first };
        Coverage {
            epoch: self.journal,
            segment,
            part,
            first_sequence,
            last_sequence: last,
            first_id: self.first_id,
        }
    }

    /// Makes the index file of a segment durable.
    fn seal(&mut self, segment: u64, last: u64) -> Result<(), String> {
        let (builder, _) = self.gather(last, true)?;
        let parts = self.parts.clone();
        let file =
            builder.write(self.coverage(segment, 0, last), &parts).map_err(|error| error.to_string())?;
        self.index.replace(&parts, vec![file]);
        Ok(())
    }

    /// Copies what transactions up to `last` made and the index does not have, a step at a time: writers
    /// never wait long for the lock. Without `seal`, of the headers that are not final only those go along
    /// that may leave memory.
    fn gather(&self, last: u64, seal: bool) -> Result<(Builder, u64), String> {
        let mut builder = self.index.builder();
        let failed = |error: super::index::Error| error.to_string();
        let mut from = 0;
        loop {
            let step = self.shared.state().settled(last, from, STEP);
            from += STEP;
            for header in &step.rows {
                builder.header(header, false).map_err(failed)?;
            }
            if step.ended {
                break;
            }
        }
        from = 0;
        loop {
            let step = self.shared.state().unfinished(last, seal, from, STEP);
            from += STEP;
            for header in &step.rows {
                builder.header(header, true).map_err(failed)?;
            }
            if step.ended {
                break;
            }
        }
        from = 0;
        loop {
            let step = self.shared.state().fresh_events(last, from, STEP);
            from += STEP;
            for event in &step.rows {
                builder.event(event).map_err(failed)?;
            }
            if step.ended {
                break;
            }
        }
        from = 0;
        loop {
            let step = self.shared.state().fresh_bodies(last, from, STEP);
            from += STEP;
            for (id, place, kind) in self.shared.bodies.places(&step.rows) {
                builder.body(id, &place, &kind);
            }
            if step.ended {
                break;
            }
        }
        Ok((builder, last))
    }

    /// What the index has leaves memory.
    fn drop_indexed(&self, last: u64, sealed: bool) {
        loop {
            let (released, more) = self.shared.state().indexed(last, sealed, STEP);
            self.shared.bodies.forget(&released);
            if !more {
                return;
            }
        }
    }

    /// Whether the last checkpoint is behind by enough to be worth a new one.
    fn checkpoint_due(&self) -> bool {
        self.grown >= self.checkpoint_length.saturating_mul(GROWTH).max(self.segment_size)
    }

    /// Writes a checkpoint at the end of the last segment that the index has whole.
    fn checkpoint(&mut self) -> Result<(), String> {
        let segment = self.sealed.0 + 1;
        if self.checkpoints.last() == Some(&segment) {
            return Ok(());
        }
        // Nothing of the open segment may be in part files only: a crash forgets those.
        if self.in_parts > self.sealed.1 {
            return Err("part of the open segment has left memory".to_owned());
        }
        let snapshot = self.shared.state().snapshot();
        self.shared.durable.wait_blocking(snapshot.sequence).map_err(|error| error.to_string())?;
        let bodies = self.shared.bodies.places(&snapshot.bodies());
        let reserved = self.shared.ids.reserved();
        let checkpoint = Checkpoint { snapshot, segment, reserved, bodies, length: 0 };
        let length = checkpoint::write(&*self.files, &self.folder, &checkpoint, &self.sealer)
            .map_err(|error| error.to_string())?;
        self.checkpoint_length = length;
        self.grown = 0;
        self.checkpoints.push(segment);
        if self.checkpoints.len() > 2 {
            self.checkpoints.remove(0);
        }
        metrics::gauge!("septet_store_checkpoint_bytes").set(length as f64);
        Ok(())
    }

    fn report(&mut self, what: &str, error: &str) {
        if self.trouble.as_deref() == Some(error) {
            return;
        }
        self.trouble = Some(error.to_owned());
        tracing::warn!(error, "{what}; messages flow on, searches read memory");
        let text = format!("{what}: {error}; messages flow on");
        self.shared.tell(NewEvent::new(Level::Warning, "store.index", text));
    }

    // --- the thread ---

    fn run(mut self, tasks: &Receiver<Task>, lock: Arc<dyn Lock>) {
        let mut closing = None;
        loop {
            let task = match (&self.rebuild, self.waiting.is_empty()) {
                (Some(_), true) => tasks.recv_timeout(Duration::ZERO),
                (_, false) => tasks.recv_timeout(AGAIN),
                (None, true) => tasks.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match task {
                Ok(Task::Sealed(segment, last)) => {
                    self.sealed(segment, last);
                    if self.sealed.0 == segment && self.checkpoint_due() {
                        self.try_checkpoint();
                    }
                }
                Ok(Task::Relieve) => {
                    let waiting = {
                        let mut state = self.shared.state();
                        state.called = false;
                        state.fresh.waiting()
                    };
                    if waiting >= PART {
                        self.relieve();
                    }
                }
                Ok(Task::Covered { checkpoint, done }) => {
                    if checkpoint && self.waiting.is_empty() {
                        self.try_checkpoint();
                    }
                    let older = self.checkpoints.iter().rev().nth(1);
                    let _ = done.send(older.copied().unwrap_or(0));
                }
                Ok(Task::Close(done)) => {
                    // Whatever was sealed before this has been told before it.
                    self.try_checkpoint();
                    closing = Some(done);
                    break;
                }
                Err(RecvTimeoutError::Timeout) if self.waiting.is_empty() => self.rebuild_some(),
                Err(RecvTimeoutError::Timeout) => self.seal_waiting(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        drop(self);
        // Whoever hears that it is closed may open it at once.
        drop(lock);
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    fn try_checkpoint(&mut self) {
        if let Err(error) = self.checkpoint() {
            self.report("no checkpoint could be written", &error);
        }
    }

    /// Makes the next index file that is missing.
    fn rebuild_some(&mut self) {
        let Some(mut rebuild) = self.rebuild.take() else { return };
        match rebuild.step() {
            Ok(true) => self.rebuild = Some(rebuild),
            Ok(false) => {
                self.shared.rebuilding_since.store(0, Ordering::Release);
                tracing::info!("the index is complete again");
            }
            Err(error) => self.report("the index could not be completed", &error),
        }
    }
}

/// Whether the index has the whole of a segment.
pub(super) fn covers(index: &Index, segment: u64) -> bool {
    index.files().iter().any(|file| {
        let coverage = file.meta().coverage;
        coverage.segment == segment && coverage.part == 0
    })
}

/// The thread.
#[derive(Debug)]
pub(super) struct KeeperThread {
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
    closed: AtomicBool,
}

impl KeeperThread {
    /// A line to a keeper that will be started.
    pub(super) fn line() -> (Sender<Task>, Receiver<Task>) {
        bounded(4096)
    }

    /// Starts it.
    pub(super) fn start(
        keeper: Keeper,
        (sender, tasks): (Sender<Task>, Receiver<Task>),
        lock: Arc<dyn Lock>,
    ) -> io::Result<KeeperThread> {
        let thread = std::thread::Builder::new().name("septet-keeper".to_owned());
        let thread = thread.spawn(move || keeper.run(&tasks, lock))?;
        Ok(KeeperThread { tasks: Some(sender), thread: Some(thread), closed: AtomicBool::new(false) })
    }

    /// Tells it something; `false` when it has too much to do and the task is of no use later.
    pub(super) fn tell(&self, task: Task) -> bool {
        let Some(tasks) = &self.tasks else { return false };
        let closes = matches!(task, Task::Close(_));
        // What is sent behind a close would be heard by nobody.
        if self.closed.load(Ordering::Acquire) || (closes && self.closed.swap(true, Ordering::AcqRel)) {
            return false;
        }
        match tasks.try_send(task) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

impl Drop for KeeperThread {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
