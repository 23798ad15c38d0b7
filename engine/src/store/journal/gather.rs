//! Which transactions a batch holds, and how long it waits for them.
//!
//! - **Company**: where several senders wait at once, most of those that the last batch answered are about to
//!   come back. While the machine's cores are busy ([`Cores`]), the writer gives them up to half a millisecond,
//!   in which it sleeps rather than be woken for each: one large batch costs the machine far less than many
//!   small ones. Nobody is waited for after a batch with fewer than [`CROWD`] new messages, nor in a batch of
//!   [`LARGE`], nor while cores are idle: then senders have the disk's own latency. While a queue is only being
//!   drained nobody waits for the disk at all, and completions gather in the same way.
//! - **Linger**: when the last sync took over a millisecond and the batch before held several transactions, a
//!   fifth of that sync (at most 200 µs, for a crowd 500 µs) is spent waiting for company, whatever the cores do.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use tokio::sync::oneshot;

use super::{Job, Writer};
use crate::store::Permit;
use crate::store::api::StoreFailed;
use crate::store::change::{Change, Commit};
use crate::store::keeper::{BEHIND, Task};

/// At most this many transactions in a batch.
const MOST_TRANSACTIONS: usize = 1024;
/// At most about this many bytes of bodies in a batch.
const MOST_BYTES: usize = 8 << 20;
/// So many new messages in the last batch are worth waiting for the next of their senders.
const CROWD: usize = 4;
/// So many transactions share the cost of a batch well enough.
const LARGE: usize = 48;
/// How long company is waited for.
const COMPANY: Duration = Duration::from_micros(500);
/// How long at most after a slow sync, for fewer than a crowd.
const LINGER: Duration = Duration::from_micros(200);
/// After so many batches in a row for which nobody waited, completions wait for company.
const UNHURRIED: u32 = 4;
/// How long the writer sleeps before it looks again who has come.
const NAP: Duration = Duration::from_micros(100);

/// A batch that is being put together.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) commits: Vec<Commit>,
    pub(super) held: Vec<Permit>,
    bytes: usize,
    /// How many of them are new messages.
    pub(super) new: usize,
    pub(super) close: Option<oneshot::Sender<Result<(), StoreFailed>>>,
    /// The segment ends with it.
    pub(super) roll: Option<oneshot::Sender<()>>,
}

impl Gathered {
    fn add(&mut self, job: Job) {
        match job {
            Job::Commit(commit, permit) => {
                self.bytes += size(&commit);
                self.new += usize::from(permit.admitted.is_some());
                self.commits.push(commit);
                self.held.push(permit);
            }
            Job::Ids => {}
            Job::Roll(rolled) => self.roll = Some(rolled),
            Job::Close(closed) => self.close = Some(closed),
        }
    }

    /// Takes what has queued up.
    fn take(&mut self, jobs: &Receiver<Job>, most_bytes: usize) {
        while !self.is_full(most_bytes)
            && let Ok(job) = jobs.try_recv()
        {
            self.add(job);
        }
    }

    /// Nothing more belongs into it.
    fn is_full(&self, most_bytes: usize) -> bool {
        let ends = self.close.is_some() || self.roll.is_some();
        ends || self.commits.len() >= MOST_TRANSACTIONS || self.bytes >= most_bytes
    }
}

impl Writer {
    /// A batch that begins with `first`.
    pub(super) fn gather(&mut self, first: Job, jobs: &Receiver<Job>) -> Gathered {
        let most_bytes = MOST_BYTES.min(usize::try_from(self.segment_size).unwrap_or(MOST_BYTES));
        let mut batch = Gathered::default();
        batch.add(first);
        batch.take(jobs, most_bytes);
        if !batch.is_full(most_bytes)
            && let Some(wait) = self.company(&batch)
        {
            let until = Instant::now() + wait.limit;
            while !batch.is_full(most_bytes) && !wait.is_over(&batch) && Instant::now() < until {
                std::thread::sleep(NAP.min(wait.limit));
                batch.take(jobs, most_bytes);
            }
        }
        batch
    }

    /// Too much has gathered in memory: the keeper comes first.
    pub(super) fn wait_for_keeper(&mut self) {
        if self.gathered < BEHIND {
            return;
        }
        self.gathered = self.shared.state().fresh.weight();
        if self.gathered >= BEHIND {
            let tell = |turn| self.keeper.try_send(Task::Room(turn)).is_ok();
            self.shared.pace.wait(self.sequence, &self.stop, tell);
        }
    }

    /// How long to wait for more company, and for how much.
    fn company(&mut self, batch: &Gathered) -> Option<Wait> {
        self.unhurried = match batch.new == 0 && !self.shared.durable.is_waited_for() {
            true => self.unhurried.saturating_add(1),
            false => 0,
        };
        if self.unhurried > UNHURRIED {
            return Some(Wait { limit: COMPANY, new: 1, all: usize::MAX });
        }
        // Those who were answered last, and those who came meanwhile: not all of them come back.
        let (crowd, back) = (self.last_new >= CROWD, (self.last_new + batch.new) * 3 / 4);
        if self.last_sync > Duration::from_millis(1) && self.last_batch >= 2 {
            let (most, new) = if crowd { (COMPANY, back) } else { (LINGER, usize::MAX) };
            return Some(Wait { limit: (self.last_sync / 5).min(most), new, all: usize::MAX });
        }
        let worth = crowd && batch.commits.len() < LARGE && self.cores.are_busy();
        worth.then_some(Wait { limit: COMPANY, new: back, all: LARGE })
    }
}

/// A wait for company.
struct Wait {
    limit: Duration,
    /// It ends with so many new messages,
    new: usize,
    /// or with so many transactions.
    all: usize,
}

impl Wait {
    fn is_over(&self, batch: &Gathered) -> bool {
        batch.new >= self.new || batch.commits.len() >= self.all
    }
}

/// About how many bytes of bodies and values a transaction brings.
fn size(commit: &Commit) -> usize {
    let size = |change: &Change| match change {
        Change::Body(_, body) => body.size(),
        Change::Keep(_, _, Some(value)) => value.len(),
        _ => 0,
    };
    commit.changes.iter().map(size).sum()
}
