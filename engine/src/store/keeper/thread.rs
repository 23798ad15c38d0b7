//! The keeper's thread: what it is told, and what it does when it is told nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use super::{BEHIND, Keeper, PART};
use crate::files::Lock;

/// When an index file that could not be made is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it looks whether index files are still there.
const LOOK: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(5) };

/// What the keeper is told.
#[derive(Debug)]
pub(in crate::store) enum Task {
    /// A segment has ended with this transaction.
    Sealed(u64, u64),
    /// Much has gathered.
    Relieve,
    /// So much has gathered that the journal waits; which time that is.
    Room(u64),
    /// An index file was taken out of the set because it could not be read.
    Missing,
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

impl Keeper {
    fn run(mut self, tasks: &Receiver<Task>, lock: Arc<dyn Lock>) {
        let (mut closing, mut looked) = (None, Instant::now());
        loop {
            if looked.elapsed() >= LOOK {
                self.look(false);
                looked = Instant::now();
            }
            let wait = match (self.waiting.is_empty(), self.rebuilds()) {
                (false, _) => AGAIN,
                (true, true) => Duration::ZERO,
                (true, false) => LOOK,
            };
            match tasks.recv_timeout(wait) {
                Ok(Task::Sealed(segment, last)) => {
                    self.sealed(segment, last);
                    if self.sealed.0 == segment && self.checkpoint_due() {
                        self.try_checkpoint();
                    }
                }
                Ok(Task::Relieve) => self.relieve_some(),
                Ok(Task::Room(turn)) => {
                    self.relieve_some();
                    self.shared.pace.answer(turn, self.shared.state().fresh.weight() < BEHIND);
                }
                Ok(Task::Missing) => self.look(true),
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
}

impl Keeper {
    fn relieve_some(&mut self) {
        let gathered = {
            let mut state = self.shared.state();
            state.called = false;
            state.fresh.weight()
        };
        if gathered >= PART {
            self.relieve(self.shared.durable.synced());
        }
    }
}

/// The thread.
#[derive(Debug)]
pub(in crate::store) struct KeeperThread {
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
    closed: AtomicBool,
}

impl KeeperThread {
    /// A line to a keeper that will be started.
    pub(in crate::store) fn line() -> (Sender<Task>, Receiver<Task>) {
        bounded(4096)
    }

    /// Starts it.
    pub(in crate::store) fn start(
        keeper: Keeper,
        (sender, tasks): (Sender<Task>, Receiver<Task>),
        lock: Arc<dyn Lock>,
    ) -> io::Result<KeeperThread> {
        let thread = std::thread::Builder::new().name("septet-keeper".to_owned());
        let thread = thread.spawn(move || keeper.run(&tasks, lock))?;
        Ok(KeeperThread { tasks: Some(sender), thread: Some(thread), closed: AtomicBool::new(false) })
    }

    /// Tells it something; `false` when it has too much to do and the task is of no use later.
    pub(in crate::store) fn tell(&self, task: Task) -> bool {
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
