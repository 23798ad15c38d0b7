//! Whether the machine's cores have anything left to do. Waiting for company makes a batch larger and so
//! cheaper; where cores are idle, cheaper is worth nothing and the wait is only latency.
//!
//! Linux tells the time that all cores have been idle since the machine started in the first line of
//! `/proc/stat` (proc(5)), in hundredths of a second: user, nice, system, idle, iowait and others. Where it
//! does not, cores count as idle.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::time::{Duration, Instant};

/// For how long an answer holds.
const PERIOD: Duration = Duration::from_millis(100);
/// What lies further back says nothing of now.
const STALE: Duration = Duration::from_secs(1);
/// Cores that are idle for less than this share of the time are busy.
const IDLE: f64 = 0.28;

/// Looks at the cores, at most once a period.
#[derive(Debug)]
pub(super) struct Cores {
    source: Option<File>,
    looked: Instant,
    last: Times,
    busy: bool,
}

/// Since the machine started, of all cores together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    idle: u64,
    all: u64,
}

impl Cores {
    pub(super) fn new() -> Cores {
        let mut source = File::open("/proc/stat").ok();
        let last = source.as_mut().and_then(read).unwrap_or_default();
        Cores { source, looked: Instant::now(), last, busy: false }
    }

    /// Whether next to none of their time has been idle lately.
    pub(super) fn are_busy(&mut self) -> bool {
        let since = self.looked.elapsed();
        if since >= PERIOD {
            let times = self.source.as_mut().and_then(read).unwrap_or_default();
            self.busy = since < STALE && times.idle_since(self.last) < IDLE;
            (self.looked, self.last) = (Instant::now(), times);
        }
        self.busy
    }
}

impl Times {
    /// The first line of `/proc/stat`. Who waits for a disk leaves the core idle.
    fn parse(text: &str) -> Option<Times> {
        let numbers = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map(str::parse::<u64>);
        // What guests took is in the first two already.
        let numbers: Vec<u64> = numbers.take(8).collect::<Result<_, _>>().ok()?;
        let idle = numbers.get(3..5)?.iter().sum();
        Some(Times { idle, all: numbers.iter().sum() })
    }

    /// The share of the time since `earlier` that cores were idle; 1 if that cannot be told.
    fn idle_since(self, earlier: Times) -> f64 {
        let all = self.all.saturating_sub(earlier.all);
        if all == 0 || earlier.all == 0 {
            return 1.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a few ticks")]
        let share = self.idle.saturating_sub(earlier.idle) as f64 / all as f64;
        share
    }
}

fn read(source: &mut File) -> Option<Times> {
    // The first line of a machine that has run for a hundred years is shorter.
    let mut bytes = [0; 256];
    source.seek(SeekFrom::Start(0)).ok()?;
    let length = source.read(&mut bytes).ok()?;
    Times::parse(&String::from_utf8_lossy(bytes.get(..length)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_what_all_cores_spent_on_nothing_or_on_waiting_for_disks() {
        let text = "cpu  100 20 30 500 50 0 10 5 7 0\ncpu0 50 10 15 250 25 0 5 2 3 0\nintr 1 2 3\n";
        let times = Times::parse(text).expect("the kernel's line");
        assert_eq!(times, Times { idle: 550, all: 715 });
        let later = Times { idle: 560, all: 815 };
        assert!((later.idle_since(times) - 0.1).abs() < 1e-9, "{}", later.idle_since(times));
    }

    #[test]
    fn what_cannot_be_read_counts_as_idle() {
        assert_eq!(Times::parse("cpu0 1 2 3 4 5\n"), None);
        assert_eq!(Times::parse("cpu  1 2 three 4 5\n"), None);
        assert_eq!(Times::parse(""), None);
        let known = Times { idle: 550, all: 715 };
        assert!((Times::default().idle_since(known) - 1.0).abs() < 1e-9);
        assert!((known.idle_since(Times::default()) - 1.0).abs() < 1e-9);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_tells_how_its_cores_have_spent_their_time() {
        let mut cores = Cores::new();
        assert!(cores.last.all > cores.last.idle, "{:?}", cores.last);
        assert_eq!(cores.source.as_mut().and_then(read).map(|times| times.all >= cores.last.all), Some(true));
    }
}
