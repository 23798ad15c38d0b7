//! What the process takes, and how long its store keeps others waiting.

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
        Ok(Memory { resident: field("VmRSS:"), peak: field("VmHWM:") })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB resident, {} at most", self.resident, self.peak)
    }
}

/// The peak is counted from here on.
pub(crate) fn forget_peak() -> Outcome<()> {
    Ok(std::fs::write("/proc/self/clear_refs", "5")?)
}

/// Asks the store all the time for something that needs its lock for a moment only.
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Sampler {
    pub(crate) fn start(store: &Store) -> Sampler {
        let (stop, store) = (Arc::new(AtomicBool::new(false)), store.clone());
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let (item, mut longest) = (ItemName::new("nobody"), Vec::new());
            while !told.load(Ordering::Acquire) {
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
            longest
        });
        Sampler { stop, thread }
    }

    /// The three longest waits.
    pub(crate) fn end(self) -> String {
        self.stop.store(true, Ordering::Release);
        let waits = self.thread.join().unwrap_or_default();
        let waits: Vec<String> =
            waits.iter().take(3).map(|wait| format!("{:.1}", wait.as_secs_f64() * 1e3)).collect();
        format!("longest waits for the lock {} ms", waits.join(", "))
    }
}
