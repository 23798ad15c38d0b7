//! `septet send`: sends messages over MLLP, matches and prints their acknowledgements; also a load generator.
//!
//! One message is outstanding on each connection. Where there are at least as many messages as connections,
//! each message (with all its repeats) stays on one connection, so that repeats arrive in order; fewer are
//! dealt out to whichever connection is free.

mod peer;
mod source;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clap::Args;
use septet_engine::config::units::{DurationText, HostPort};
use septet_hl7::mllp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::output;
use peer::{Peer, Reply};
use source::Letter;

/// Sends messages over MLLP and prints the acknowledgements; also a load generator.
///
/// Bytes go out unchanged; files are split at segments that start with MSH. With --connections, --repeat or
/// --rate it prints counts, rate and latencies instead of the acknowledgements.
#[derive(Args, Debug)]
pub(crate) struct Send {
    /// mllp://HOST:PORT
    url: String,
    /// Files, folders, or - for standard input.
    #[arg(required = true)]
    files: Vec<std::path::PathBuf>,
    /// How many connections; one message is outstanding on each. [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    connections: Option<u32>,
    /// How often everything is sent; MSH-10 gets -1, -2 … at its end.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: Option<u64>,
    /// Messages a second, at most.
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// The acknowledgement code that every message must get.
    #[arg(long, value_name = "CODE")]
    expect: Option<String>,
    /// How long to wait for an acknowledgement.
    #[arg(long, default_value = "30s")]
    timeout: String,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| String::from("a number above zero"))
}

/// The address of an `mllp://` URL.
pub(crate) fn address(url: &str) -> Option<&str> {
    let address = url.strip_prefix("mllp://")?;
    Some(address.strip_suffix('/').unwrap_or(address))
}

/// What all connections share.
struct Plan {
    peer: HostPort,
    letters: Vec<Letter>,
    rounds: u64,
    /// MSH-10 is numbered.
    numbered: bool,
    connections: u64,
    interval: Option<Duration>,
    timeout: Duration,
    expect: Option<String>,
    /// Replies are kept to be shown.
    keep: bool,
    start: Instant,
    /// The next message, where messages are dealt out.
    next: AtomicU64,
    stop: CancellationToken,
}

/// What a connection (and in the end all of them) did.
#[derive(Default)]
struct Tally {
    sent: u64,
    acknowledged: u64,
    missing: u64,
    unmatched: u64,
    unexpected: u64,
    /// Microseconds.
    latencies: Vec<u32>,
    codes: std::collections::BTreeMap<String, u64>,
    replies: Vec<(u64, Shown)>,
    /// The first few things that went wrong.
    problems: Vec<String>,
}

struct Shown {
    file: String,
    control_id: String,
    code: Option<String>,
    micros: u32,
    bytes: Bytes,
}

impl Send {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        let peer = address(&self.url).and_then(|address| address.parse::<HostPort>().ok());
        let (Some(peer), Ok(timeout)) = (peer, self.timeout.parse::<DurationText>()) else {
            output::error("write mllp://HOST:PORT, and --timeout as in 30s");
            return ExitCode::from(2);
        };
        let letters = match source::read(&self.files, self.repeat.is_some()) {
            Ok(letters) if !letters.is_empty() => letters,
            Ok(_) => {
                output::error("there is no message in these files");
                return ExitCode::from(2);
            }
            Err(problem) => {
                output::error(problem);
                return ExitCode::from(2);
            }
        };
        let load = self.connections.is_some() || self.repeat.is_some() || self.rate.is_some();
        let plan = Arc::new(Plan {
            peer,
            rounds: self.repeat.unwrap_or(1),
            numbered: self.repeat.is_some(),
            connections: u64::from(self.connections.unwrap_or(1)),
            interval: self.rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            timeout: timeout.get(),
            expect: self.expect.clone(),
            keep: !load,
            start: Instant::now(),
            next: AtomicU64::new(0),
            stop: CancellationToken::new(),
            letters,
        });
        // Whether anybody is there at all decides between "no" and "could not reach".
        let first = match Peer::connect(&plan.peer, plan.timeout).await {
            Ok(first) => first,
            Err(error) => {
                output::error(format_args!("cannot connect to {}: {error}", plan.peer));
                return ExitCode::from(3);
            }
        };
        let tally = run_all(&plan, first).await;
        let took = plan.start.elapsed();
        if self.json {
            output::line(tally.json(took, load));
        } else {
            tally.print(took, load);
        }
        let total = plan.letters.len() as u64 * plan.rounds;
        let good = tally.acknowledged == total && tally.unmatched == 0 && tally.unexpected == 0;
        ExitCode::from(u8::from(!good))
    }
}

async fn run_all(plan: &Arc<Plan>, first: Peer) -> Tally {
    let mut workers = tokio::task::JoinSet::new();
    let mut first = Some(first);
    for number in 0..plan.connections {
        let (plan, open) = (plan.clone(), first.take());
        workers.spawn(async move { plan.connection(number, open).await });
    }
    let stop = plan.stop.clone();
    let interrupt = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    let mut all = Tally::default();
    while let Some(done) = workers.join_next().await {
        match done {
            Ok(tally) => all.add(tally),
            Err(error) => all.problem(format!("a connection failed: {error}")),
        }
    }
    interrupt.abort();
    all.missing = (plan.letters.len() as u64 * plan.rounds).saturating_sub(all.acknowledged);
    all.replies.sort_by_key(|(index, _)| *index);
    all.latencies.sort_unstable();
    all
}

impl Plan {
    /// The messages of one connection, as round and letter.
    fn next(&self, number: u64, turn: &mut u64) -> Option<u64> {
        let (letters, connections) = (self.letters.len() as u64, self.connections);
        let index = if letters >= connections {
            let mine = (letters - number).div_ceil(connections);
            let (round, place) = (*turn / mine, *turn % mine);
            *turn += 1;
            round * letters + number + place * connections
        } else {
            self.next.fetch_add(1, Ordering::Relaxed)
        };
        (index < letters * self.rounds).then_some(index)
    }

    async fn connection(&self, number: u64, mut peer: Option<Peer>) -> Tally {
        let mut tally = Tally::default();
        let mut frame = BytesMut::new();
        let mut body = Vec::new();
        let mut turn = 0;
        while let Some(index) = self.next(number, &mut turn) {
            if self.stop.is_cancelled() {
                break;
            }
            if let Some(interval) = self.interval {
                let due = self.start + interval.mul_f64(index as f64);
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => {}
                    () = self.stop.cancelled() => break,
                }
            }
            let letters = self.letters.len() as u64;
            let Some(letter) = self.letters.get(usize::try_from(index % letters).unwrap_or(0)) else { break };
            let suffix = self.numbered.then_some(index / letters + 1);
            let control_id = letter.write(suffix, &mut body);
            frame.clear();
            mllp::encode(&body, &mut frame);
            let began = Instant::now();
            let exchange = self.exchange(&mut peer, &frame, control_id.as_deref(), &mut tally);
            let outcome = tokio::select! {
                outcome = exchange => outcome,
                () = self.stop.cancelled() => break,
            };
            tally.sent += 1;
            let micros = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
            let label = || control_id.clone().unwrap_or_else(|| letter.name.clone());
            match outcome {
                Ok(reply) => self.acknowledged(&mut tally, index, letter, label(), reply, micros),
                Err(problem) => {
                    peer = None;
                    tally.problem(format!("{}: {problem}", label()));
                    // Without a peer the rest would only fail the same way.
                    if problem.starts_with("cannot connect") {
                        break;
                    }
                }
            }
        }
        tally
    }

    fn acknowledged(
        &self,
        tally: &mut Tally,
        index: u64,
        letter: &Letter,
        control_id: String,
        reply: Reply,
        micros: u32,
    ) {
        tally.acknowledged += 1;
        tally.latencies.push(micros);
        let code = reply.code;
        *tally.codes.entry(code.clone().unwrap_or_else(|| "none".into())).or_default() += 1;
        if self.expect.is_some() && code != self.expect {
            tally.unexpected += 1;
            tally.problem(format!(
                "{control_id}: the answer is {}",
                code.as_deref().unwrap_or("no acknowledgement")
            ));
        }
        if self.keep {
            let file = letter.name.clone();
            tally.replies.push((index, Shown { file, control_id, code, micros, bytes: reply.bytes }));
        }
    }

    /// Sends one message and waits for its answer. A connection that the peer closed after an earlier answer
    /// is replaced once.
    async fn exchange(
        &self,
        peer: &mut Option<Peer>,
        frame: &[u8],
        control_id: Option<&str>,
        tally: &mut Tally,
    ) -> Result<Reply, String> {
        if let Some(open) = peer {
            match open.ask(frame, control_id, self.timeout, &mut tally.unmatched).await {
                Err(peer::Failed::Closed) => *peer = None,
                other => return other.map_err(|failed| failed.to_string()),
            }
        }
        let connected = Peer::connect(&self.peer, self.timeout).await;
        let open =
            peer.insert(connected.map_err(|error| format!("cannot connect to {}: {error}", self.peer))?);
        let reply = open.ask(frame, control_id, self.timeout, &mut tally.unmatched).await;
        reply.map_err(|failed| failed.to_string())
    }
}

impl Tally {
    fn problem(&mut self, text: String) {
        if self.problems.len() < 10 {
            self.problems.push(text);
        }
    }

    fn add(&mut self, other: Tally) {
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        self.unmatched += other.unmatched;
        self.unexpected += other.unexpected;
        self.latencies.extend(other.latencies);
        self.replies.extend(other.replies);
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        for problem in other.problems {
            self.problem(problem);
        }
    }

    /// Milliseconds that this share of the answers took at most. `latencies` are sorted.
    fn percentile(&self, share: f64) -> Option<f64> {
        let last = self.latencies.len().checked_sub(1)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index within the list"
        )]
        let index = (share * self.latencies.len() as f64).ceil() as usize;
        let micros = self.latencies.get(index.saturating_sub(1).min(last))?;
        Some(f64::from(*micros) / 1000.0)
    }

    fn rate(&self, took: Duration) -> f64 {
        self.acknowledged as f64 / took.as_secs_f64().max(1e-6)
    }

    fn json(&self, took: Duration, load: bool) -> serde_json::Value {
        let mut all = json!({
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "missing": self.missing,
            "unmatched": self.unmatched,
            "unexpected": self.unexpected,
            "codes": self.codes,
            "seconds": took.as_secs_f64(),
            "rate": self.rate(took),
            "latency_ms": {
                "p50": self.percentile(0.5),
                "p90": self.percentile(0.9),
                "p99": self.percentile(0.99),
                "p99.9": self.percentile(0.999),
                "max": self.percentile(1.0),
            },
            "problems": self.problems,
        });
        if !load && let Some(object) = all.as_object_mut() {
            let acks = self.replies.iter().map(|(_, shown)| {
                json!({
                    "file": shown.file,
                    "control_id": shown.control_id,
                    "code": shown.code,
                    "ms": f64::from(shown.micros) / 1000.0,
                    "ack": String::from_utf8_lossy(&shown.bytes),
                })
            });
            object.insert("acks".into(), acks.collect());
        }
        all
    }

    fn print(&self, took: Duration, load: bool) {
        for (_, shown) in &self.replies {
            let text = String::from_utf8_lossy(&shown.bytes);
            output::line(format_args!("{}\n", text.trim_end().replace("\r\n", "\r").replace('\r', "\n")));
        }
        for problem in &self.problems {
            output::error(problem);
        }
        let codes: Vec<String> = self.codes.iter().map(|(code, count)| format!("{code} {count}")).collect();
        let codes = if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(", ")) };
        let mut line = format!("{} sent, {} acknowledged{codes}", self.sent, self.acknowledged);
        for (count, what) in
            [(self.missing, "missing"), (self.unmatched, "unmatched"), (self.unexpected, "not as expected")]
        {
            if count > 0 {
                line.push_str(&format!(", {count} {what}"));
            }
        }
        output::line(line);
        if load {
            let show = |share| self.percentile(share).map_or("-".into(), |ms| format!("{ms:.2}"));
            output::line(format_args!("{:.0} a second over {:.2} s", self.rate(took), took.as_secs_f64()));
            output::line(format_args!(
                "latency in ms: p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
                show(0.5),
                show(0.9),
                show(0.99),
                show(0.999),
                show(1.0)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(letters: usize, connections: u64, rounds: u64) -> Plan {
        let text = Bytes::from_static(b"MSH|^~\\&|||||||ADT|1\r");
        Plan {
            peer: "localhost:1".parse().unwrap(),
            letters: (0..letters).map(|_| Letter::of("x".into(), &text, false)).collect(),
            rounds,
            numbered: false,
            connections,
            interval: None,
            timeout: Duration::from_secs(1),
            expect: None,
            keep: false,
            start: Instant::now(),
            next: AtomicU64::new(0),
            stop: CancellationToken::new(),
        }
    }

    #[test]
    fn every_message_of_every_round_goes_out_once_and_its_repeats_in_order() {
        for (letters, connections, rounds) in [(5, 2, 3), (3, 3, 2), (1, 4, 10), (7, 1, 1), (4, 3, 5)] {
            let plan = plan(letters, connections, rounds);
            let mut all = Vec::new();
            for number in 0..connections {
                let mut turn = 0;
                let mine: Vec<u64> = std::iter::from_fn(|| plan.next(number, &mut turn)).collect();
                assert!(mine.is_sorted(), "{mine:?}");
                all.extend(mine);
            }
            all.sort_unstable();
            assert_eq!(all, (0..letters as u64 * rounds).collect::<Vec<_>>());
        }
    }

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let tally = Tally { latencies: (1..=1000).map(|ms| ms * 1000).collect(), ..Tally::default() };
        assert_eq!(tally.percentile(0.5), Some(500.0));
        assert_eq!(tally.percentile(0.99), Some(990.0));
        assert_eq!(tally.percentile(0.999), Some(999.0));
        assert_eq!(tally.percentile(1.0), Some(1000.0));
        assert_eq!(Tally::default().percentile(0.5), None);
    }
}
