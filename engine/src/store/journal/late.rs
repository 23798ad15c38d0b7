//! Starting where the disk is so full that not even a segment can be begun: reads go on, new messages are refused,
//! and what completes waits in the channel, as it does behind a writer that has no room. The writer begins as
//! soon as there is some.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::{Receiver, bounded};

use super::{Job, Journal, Writer, is_full};
use crate::files::Lock;
use crate::store::api::StoreFailed;
use crate::store::disk::Disk;
use crate::store::shared::Shared;

/// What the thread needs before there is a writer.
pub(in crate::store) struct Late {
    pub(in crate::store) shared: Arc<Shared>,
    pub(in crate::store) disk: Arc<Disk>,
}

impl Journal {
    /// Starts the thread, which begins a segment when it can.
    pub(in crate::store) fn start_late(
        late: Late,
        begin: impl Fn() -> io::Result<Writer> + Send + 'static,
        transactions: usize,
        lock: Arc<dyn Lock>,
    ) -> io::Result<Journal> {
        late.disk.begin();
        late.disk.set_stuck(true);
        let (sender, jobs) = bounded(transactions + 16);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("septet-journal".to_owned());
        let thread = thread.spawn(move || match late.wait(&begin, &stopped) {
            Some(mut writer) => {
                writer.stop = stopped;
                writer.run(&jobs, lock);
            }
            None => refuse(&late.shared, &jobs),
        })?;
        Ok(Journal { jobs: Some(sender), thread: Some(thread), stop })
    }
}

impl Late {
    /// Tries again and again; `None` when it is to stop, or something else than space is wrong.
    fn wait(&self, begin: &impl Fn() -> io::Result<Writer>, stop: &AtomicBool) -> Option<Writer> {
        while self.disk.rest(stop) {
            match begin() {
                Ok(writer) => {
                    self.disk.set_stuck(false);
                    return Some(writer);
                }
                Err(error) if is_full(&error) => {}
                Err(error) => {
                    self.shared.poison(&format!("the journal could not be begun: {error}"));
                    return None;
                }
            }
        }
        self.shared.end(&StoreFailed("the disk was full at the end".to_owned()));
        None
    }
}

/// Nothing will be written: transactions are dropped (their waiters have been told), a close is answered.
fn refuse(shared: &Shared, jobs: &Receiver<Job>) {
    for job in jobs {
        if let Job::Close(closed) = job {
            let why = shared.failure().unwrap_or_else(|| StoreFailed("the disk was full".to_owned()));
            let _ = closed.send(Err(why));
        }
    }
}
