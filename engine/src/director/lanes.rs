//! The OS threads that run scripts. A lane takes a batch of jobs and gives one outcome per job, in order;
//! it knows nothing of the store. Whoever waits for it also watches it: a job that takes too long costs the
//! lane its thread (a script engine cannot be interrupted in native code), which is left behind, and its
//! late results reach nobody because nobody holds the other end any more.

use std::fmt;
use std::num::NonZero;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::clock::SharedClock;
use crate::director::core::lock;
use crate::process::{Done, Job, LaneFactory, LaneServices};

/// Jobs of one batch.
pub(super) const BATCH: usize = 64;
/// After so many lost threads no scripted item runs until the process is restarted.
const MAX_LOST: u32 = 2;
/// Script engines are recursive.
const STACK: usize = 8 << 20;

/// All lanes of a production.
pub(super) struct Lanes {
    factory: LaneFactory,
    services: LaneServices,
    clock: SharedClock,
    room: Arc<Semaphore>,
    idle: Mutex<Vec<Thread>>,
    lost: AtomicU32,
    started: AtomicUsize,
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// One living thread; dropping it lets the thread end once it is idle.
struct Thread(SyncSender<Work>);

struct Work {
    jobs: Vec<Job>,
    results: mpsc::Sender<Done>,
}

/// What became of the next job of a batch.
#[derive(Debug)]
pub(super) enum Step {
    Done(Done),
    /// It took too long; its thread is lost.
    Hung,
    /// The lane panicked, or could not be built.
    Broken,
}

/// A batch on its way.
pub(super) struct Batch {
    lanes: Arc<Lanes>,
    thread: Option<Thread>,
    results: mpsc::Receiver<Done>,
    left: usize,
    limit: Duration,
    _room: OwnedSemaphorePermit,
}

impl Lanes {
    /// As many lanes as there are cores; threads start when they are needed.
    pub(super) fn new(factory: LaneFactory, services: LaneServices, clock: SharedClock) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, NonZero::get);
        Lanes {
            factory,
            services,
            clock,
            room: Arc::new(Semaphore::new(cores)),
            idle: Mutex::default(),
            lost: AtomicU32::new(0),
            started: AtomicUsize::new(0),
        }
    }

    /// Too many threads are lost: a restart is needed.
    pub(super) fn exhausted(&self) -> bool {
        self.lost.load(Ordering::Relaxed) >= MAX_LOST
    }

    /// Hands a batch to a lane. Each job may take `limit`. `None` when no thread can be started.
    pub(super) async fn start(self: &Arc<Self>, jobs: Vec<Job>, limit: Duration) -> Option<Batch> {
        let room = self.room.clone().acquire_owned().await.ok()?;
        let left = jobs.len();
        let (results, receiver) = mpsc::channel(left.max(1));
        let mut work = Work { jobs, results };
        let thread = loop {
            let idle = lock(&self.idle).pop();
            let thread = match idle {
                Some(thread) => thread,
                None => self.spawn()?,
            };
            // A thread that has died while idle gives the work back.
            match thread.0.send(work) {
                Ok(()) => break thread,
                Err(returned) => work = returned.0,
            }
        };
        let lanes = self.clone();
        Some(Batch { lanes, thread: Some(thread), results: receiver, left, limit, _room: room })
    }

    fn spawn(&self) -> Option<Thread> {
        let (sender, receiver) = sync_channel(1);
        let (factory, services) = (self.factory.clone(), self.services.clone());
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let builder = std::thread::Builder::new().name(format!("lane-{number}")).stack_size(STACK);
        let spawned = builder.spawn(move || serve(&factory, services, &receiver));
        spawned.ok().map(|_| Thread(sender))
    }
}

fn serve(factory: &LaneFactory, services: LaneServices, work: &Receiver<Work>) {
    let mut lane = factory(services);
    while let Ok(Work { jobs, results }) = work.recv() {
        // There is room for one outcome per job; when the batch was abandoned nobody wants them.
        lane.run(jobs, &mut |done| {
            let _ = results.try_send(done);
        });
    }
}

impl Batch {
    /// The outcome of the next job; `None` after the last. After `Hung` or `Broken` the rest of the batch
    /// has not been run.
    pub(super) async fn next(&mut self) -> Option<Step> {
        if self.left == 0 {
            return None;
        }
        let step = tokio::select! {
            biased;
            done = self.results.recv() => done.map_or(Step::Broken, Step::Done),
            () = self.lanes.clock.sleep(self.limit) => Step::Hung,
        };
        match step {
            Step::Done(_) => self.left -= 1,
            Step::Hung | Step::Broken => {
                self.left = 0;
                self.thread = None;
            }
        }
        if matches!(step, Step::Hung) {
            self.lanes.lost.fetch_add(1, Ordering::Relaxed);
        }
        Some(step)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // A batch that is dropped in the middle leaves its thread behind; it ends when it is done.
        if self.left == 0
            && let Some(thread) = self.thread.take()
        {
            lock(&self.lanes.idle).push(thread);
        }
    }
}
