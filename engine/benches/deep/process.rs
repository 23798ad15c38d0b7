//! What the process takes, how long its store keeps others waiting, and how much waits for the index.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use septet_engine::id::ItemName;
use septet_engine::store::Store;

use super::Outcome;

/// Memory of this process in MiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    resident: u64,
    /// Of that, what is no file.
    anonymous: u64,
    peak: u64,
}

impl Memory {
    pub(crate) fn now() -> Outcome<Memory> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            number.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) / 1024
        };
        Ok(Memory { resident: field("VmRSS:"), anonymous: field("RssAnon:"), peak: field("VmHWM:") })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memory { resident, anonymous, peak } = self;
        write!(f, "{resident} MiB resident ({anonymous} anonymous), {peak} at most")
    }
}

/// The peak is counted from here on.
pub(crate) fn forget_peak() -> Outcome<()> {
    Ok(std::fs::write("/proc/self/clear_refs", "5")?)
}

/// Asks the store all the time for something that needs its lock for a moment only, and now and then how many
/// rows wait for the index.
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<Duration>, u64)>,
}

/// How often it looks what waits for the index.
const LOOK: usize = 100;

impl Sampler {
    pub(crate) fn start(store: &Store) -> Sampler {
        let (stop, store) = (Arc::new(AtomicBool::new(false)), store.clone());
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let (item, mut longest) = (ItemName::new("nobody"), Vec::new());
            let (mut turn, mut unindexed) = (0, 0);
            while !told.load(Ordering::Acquire) {
                turn += 1;
                if turn % LOOK == 0
                    && let Ok(Some(vitals)) = store.vitals()
                {
                    unindexed = unindexed.max(vitals.unindexed);
                }
                let began = Instant::now();
                store.counts(&item);
                longest.push(began.elapsed());
                if longest.len() > 1 << 16 {
                    longest.sort_unstable_by(|one, other| other.cmp(one));
                    longest.truncate(1 << 8);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            longest.sort_unstable_by(|one, other| other.cmp(one));
            (longest, unindexed)
        });
        Sampler { stop, thread }
    }

    /// The three longest waits, and the most that waited for the index.
    pub(crate) fn end(self) -> String {
        self.stop.store(true, Ordering::Release);
        let (waits, unindexed) = self.thread.join().unwrap_or_default();
        let waits: Vec<String> =
            waits.iter().take(3).map(|wait| format!("{:.1}", wait.as_secs_f64() * 1e3)).collect();
        format!("longest waits for the lock {} ms, {unindexed} rows unindexed at most", waits.join(", "))
    }
}
