//! Ports for listeners of tests, also of other crates' tests, which include this file.

use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The ports that the system gives to outgoing connections and to listeners that leave the choice to it.
static GIVEN_OUT: LazyLock<RangeInclusive<u16>> = LazyLock::new(|| {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = range.split_whitespace().filter_map(|bound| bound.parse().ok());
    bounds.next().unwrap_or(32_768)..=bounds.next().unwrap_or(60_999)
});

/// A port that was free a moment ago, and that nobody else is given: it must still be free when somebody listens
/// on it, be it again after a kill.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const PORTS: u32 = 22_000;
    for tried in 0.. {
        let n = std::process::id().wrapping_mul(7919).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + (n % PORTS) as u16;
        // Where the system gives out all of them, one of those must do.
        let may_be_taken = GIVEN_OUT.contains(&port) && tried < PORTS;
        if !may_be_taken && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    unreachable!("it goes on until there is one")
}
