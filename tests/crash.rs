//! The obligation oracle: the real binary under load, killed with SIGKILL at random moments, over and over
//! on the same store. Afterwards every acknowledged message is in the store byte for byte and was delivered,
//! nothing is there that nobody sent, queues kept their order, counters are exact, and what was delivered
//! twice was delivered again right after a crash. Some stores are purged all the while, see `purge`.
//!
//! `SEPTET_CRASH_ROUNDS` sets the number of kills, `SEPTET_CRASH_SEED` the seed of a run that failed: it
//! makes the same choices again (what is sent, when the kill comes and in which phase); how far the process
//! got by then is up to the machine.

mod purge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::purge::Purges;
use crate::support::mllp::{Client, Receiver, msa, oru};
use crate::support::{Septet, files_below, free_port};

/// Stores at the same time.
const LANES: u64 = 3;
/// What may be sent and not yet durably completed, for each item; those are sent again after a crash.
const WINDOW: usize = 1024;
/// Sending connections, and the most that one of them sends before it reads the answers.
const SENDERS: u64 = 4;
const BURST: u64 = 16;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Kills in all: hundreds in CI, thousands on demand.
fn rounds() -> u64 {
    let usual = if std::env::var_os("CI").is_some() { 300 } else { 36 };
    number("SEPTET_CRASH_ROUNDS").unwrap_or(usual)
}

/// Choices that the seed decides.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// When a round ends, in milliseconds after its phase began.
#[derive(Clone, Copy, Debug)]
enum Kill {
    UnderLoad(u64),
    /// While it starts and recovers; nobody waits for it to be ready.
    AtStart(u64),
    /// While it replays, or purges where the store is purged, under load.
    InJob(u64),
    /// While it drains after SIGTERM.
    InShutdown(u64),
}

impl Kill {
    fn choose(choices: &mut Choices) -> Kill {
        match choices.below(10) {
            0 | 1 => Kill::AtStart(choices.below(150)),
            2 | 3 => Kill::InJob(choices.below(250)),
            4 => Kill::InShutdown(choices.below(40)),
            _ => Kill::UnderLoad(choices.below(250)),
        }
    }
}

// === What is sent: all of it follows from the control id ===

fn hash(id: &str) -> u64 {
    id.bytes().fold(7, |sum, byte| mixed(sum ^ u64::from(byte)))
}

/// PID-3.1: few, so that they meet.
fn key(id: &str) -> String {
    format!("K{}", hash(id) % 5)
}

/// Most are small; some are large enough that a segment holds only a few.
fn message(id: &str) -> String {
    let mut text = oru(id, id, &key(id));
    if hash(id).is_multiple_of(16) {
        let length = hash(id) % 120_000;
        text.extend(["OBX|3|TX|NOTE||", &"0123456789".repeat(length as usize / 10), "||||||F\r"]);
    }
    text
}

fn control_id(message: &str) -> &str {
    message.split('|').nth(9).unwrap_or("")
}

// === One store and what it owes ===

/// What the senders know.
#[derive(Default)]
struct Sent {
    acknowledged: BTreeSet<String>,
    /// Sent, and the connection broke before the answer: may be there, or not.
    perhaps: BTreeSet<String>,
}

struct Store {
    septet: Septet,
    inbound: u16,
    /// What the operation `out` delivers to, and `again`, to which everything is replayed.
    out: Receiver,
    again: Receiver,
    by_key: bool,
    purges: Purges,
    sent: Sent,
}

impl Store {
    async fn new(choices: &mut Choices) -> Store {
        let inbound = free_port();
        let (out, again) = (free_port(), free_port());
        let by_key = choices.below(2) == 1;
        let purges = Purges::choose(choices);
        let kept = purges.settings();
        let order = if by_key { "pool_size = 4\norder_by = \"PID-3.1\"" } else { "pool_size = 1" };
        let septet = Septet::write(&format!(
            r#"
[production]
name = "oracle"
shutdown_timeout = "1s"
[store]
path = "data"
{kept}
segment_size = "1MiB"
[admin]
listen = "127.0.0.1:{{admin}}"
[services.in]
type = "hl7.mllp"
listen = "127.0.0.1:{inbound}"
targets = ["router"]
[processes.router]
type = "router"
[[processes.router.rules]]
when = {{}}
send = ["out"]
[operations.out]
type = "hl7.mllp"
connect = "127.0.0.1:{out}"
retry_interval = "50ms"
{order}
[operations.again]
type = "hl7.mllp"
connect = "127.0.0.1:{again}"
retry_interval = "50ms"
"#
        ));
        let (out, again) = (Receiver::listen(out).await, Receiver::listen(again).await);
        Store { septet, inbound, out, again, by_key, purges, sent: Sent::default() }
    }

    /// Starts, loads and kills once.
    async fn round(&mut self, round: u64, kill: Kill) {
        if let Kill::AtStart(wait) = kill {
            self.septet.spawn(&[]);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        } else {
            self.septet.run().await;
            let stop = CancellationToken::new();
            let senders: Vec<_> = (0..SENDERS)
                .map(|s| tokio::spawn(send(self.inbound, format!("R{round}S{s}"), stop.clone())))
                .collect();
            let job = matches!(kill, Kill::InJob(_)).then(|| match self.purges {
                Purges::Never => {
                    let url = self.septet.url("/api/v1/replay");
                    let order = json!({ "filter": { "target": "out" }, "target": "again", "rate": 1000 });
                    // The kill may come before the answer.
                    tokio::spawn(async move {
                        let _ = reqwest::Client::new().post(url).json(&order).send().await;
                    })
                }
                Purges::OnDemand | Purges::ByAgeAndSize => {
                    tokio::spawn(purge::until_killed(self.septet.url("/api/v1/purge")))
                }
            });
            let wait = match kill {
                Kill::UnderLoad(wait) | Kill::InJob(wait) | Kill::AtStart(wait) => wait,
                Kill::InShutdown(wait) => {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    self.septet.ask_to_stop();
                    wait
                }
            };
            tokio::time::sleep(Duration::from_millis(wait)).await;
            self.septet.kill();
            stop.cancel();
            for sender in senders {
                let sent = sender.await.expect("a sender only sees what is right");
                self.sent.acknowledged.extend(sent.acknowledged);
                self.sent.perhaps.extend(sent.perhaps);
            }
            if let Some(job) = job {
                job.await.expect("it only asks");
            }
        }
        self.septet.kill();
        if round % 4 == 3 || self.purges != Purges::Never {
            self.is_sound();
        }
        self.out.next_life().await;
        self.again.next_life().await;
    }

    /// What a kill leaves is no damage to `septet store check`. A kill may come before there is a store.
    fn is_sound(&self) {
        let path = self.septet.path("data");
        let journal = files_below(&path.join("journal"));
        if journal.iter().any(|file| file.extension().is_some_and(|kind| kind == "seg")) {
            let checked = self.septet.command(&["store", "check", path.to_str().unwrap()]);
            let said = String::from_utf8_lossy(&checked.stdout).into_owned();
            assert!(checked.status.success(), "{said}{}", String::from_utf8_lossy(&checked.stderr));
        }
    }

    /// Lets it finish, and asks for everything that is owed.
    async fn settle(&mut self) {
        self.purges.stop(&self.septet);
        self.septet.run().await;
        let idle = |all: &Value| each(&all["queues"]).all(|queue| queue["depth"] == 0);
        self.septet.until("/api/v1/queues", idle).await;
        let all = self.all_messages().await;
        let requests = |field: &'static str, item: &'static str| {
            let all = all.iter().filter(|header| header["kind"] == "request");
            all.filter(move |header| header[field] == item).collect::<Vec<_>>()
        };
        let (taken, out, again) =
            (requests("source", "in"), requests("target", "out"), requests("target", "again"));
        if self.purges != Purges::Never {
            let taken = self.what_is_left_is_whole(&all).await;
            return self.counts_are_exact(taken.len(), taken.len(), 0).await;
        }

        self.nothing_lost_or_invented(&taken).await;
        let ids =
            |headers: &[&Value]| headers.iter().map(|header| text(header, "control_id")).collect::<Vec<_>>();
        delivered_in_order(&ids(&out), &self.out.lives().await, self.by_key);
        delivered_in_order(&ids(&again), &self.again.lives().await, false);
        self.replays_are_as_they_say(&again).await;
        self.counts_are_exact(taken.len(), out.len(), again.len()).await;
    }

    /// Counters are what they should be, also after one more kill.
    async fn counts_are_exact(&mut self, taken: usize, out: usize, again: usize) {
        let idle = |all: &Value| each(&all["queues"]).all(|queue| queue["depth"] == 0);
        let counts = self.septet.get("/api/v1/items").await;
        for (item, completed) in [("in", taken), ("router", taken), ("out", out), ("again", again)] {
            let counted = each(&counts["items"]).find(|counted| counted["name"] == item).expect("an item");
            assert_eq!(counted["completed"], completed, "{item}: {counted}");
            for none in ["errors", "queued", "in_flight", "suspended"] {
                assert_eq!(counted[none], 0, "{item} {none}");
            }
        }
        // All of this is durable (the looks at bodies were audited after it): a kill changes nothing of it.
        let before = (self.out.bodies.lock().await.len(), self.again.bodies.lock().await.len());
        self.septet.kill();
        self.septet.run().await;
        self.septet.until("/api/v1/queues", idle).await;
        let numbers = |all: &Value| {
            let of = |item: &Value| {
                ["name", "completed", "errors", "queued", "suspended"].map(|name| item[name].clone())
            };
            each(&all["items"]).map(of).collect::<Vec<_>>()
        };
        assert_eq!(
            numbers(&self.septet.get("/api/v1/items").await),
            numbers(&counts),
            "counters after a kill"
        );
        let after = (self.out.bodies.lock().await.len(), self.again.bodies.lock().await.len());
        assert_eq!(after, before, "what was durably completed was sent again");
        if self.purges != Purges::Never {
            self.room_is_given_back().await;
        }
        self.septet.kill();
        self.is_sound();
    }

    /// Every header, oldest first.
    async fn all_messages(&self) -> Vec<Value> {
        self.messages("").await
    }

    /// Headers that a filter selects, oldest first.
    async fn messages(&self, filter: &str) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/v1/messages?limit=1000{filter}{cursor}");
            // After a kill index files may still be made again.
            let page = self.septet.until(&path, |page| page["index_lag_ms"] == 0).await;
            all.extend(each(&page["messages"]).cloned());
            match page["next"].as_u64() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        all.reverse();
        assert!(all.windows(2).all(|pair| pair[0]["id"].as_u64() < pair[1]["id"].as_u64()), "ids go up");
        all
    }

    async fn nothing_lost_or_invented(&self, taken: &[&Value]) {
        let mut missing = self.sent.acknowledged.clone();
        let mut seen = BTreeSet::new();
        for header in taken {
            let id = text(header, "control_id");
            assert!(seen.insert(id.clone()), "{id} is there twice");
            assert!(missing.remove(&id) || self.sent.perhaps.contains(&id), "{id} was never sent");
            assert_eq!(header["status"], "completed", "{header}");
        }
        assert!(missing.is_empty(), "acknowledged and not in the store: {missing:?}");
        // Bytes: some of them here, all of them where they were delivered.
        for header in taken.iter().step_by(1 + taken.len() / 20) {
            let path = format!("/api/v1/messages/{}/raw", header["id"]);
            let stored = reqwest::get(self.septet.url(&path)).await.unwrap().text().await.unwrap();
            assert_eq!(stored, message(&text(header, "control_id")), "bytes differ in the store");
        }
        for receiver in [&self.out, &self.again] {
            for body in receiver.bodies.lock().await.iter() {
                assert_eq!(*body, message(control_id(body)), "bytes differ where they were delivered");
            }
        }
    }

    /// Each replay made as many headers as it says, oldest first, and none is at work after the kill.
    async fn replays_are_as_they_say(&self, again: &[&Value]) {
        let replays = self.septet.get("/api/v1/replays").await;
        let mut rest = again.iter();
        let replays: Vec<_> = each(&replays["replays"]).collect();
        for replay in replays.iter().rev() {
            assert_ne!(replay["state"], "running", "{replay}");
            let sent = usize::try_from(replay["sent"].as_u64().unwrap()).unwrap();
            let origins: Vec<_> =
                rest.by_ref().take(sent).map(|header| header["resent_from"].as_u64()).collect();
            assert_eq!(origins.len(), sent, "{replay}");
            assert!(origins.windows(2).all(|pair| pair[0] < pair[1]), "oldest first: {origins:?}");
            assert_eq!(origins.last().copied().flatten(), replay["last_message"].as_u64(), "{replay}");
        }
        assert_eq!(rest.count(), 0, "headers of no replay");
    }
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().expect("a list").iter()
}

fn text(header: &Value, name: &str) -> String {
    header[name].as_str().unwrap_or("").to_owned()
}

/// Sends until the connection breaks or it is told to stop: bursts of frames, then their answers.
async fn send(port: u16, name: String, stop: CancellationToken) -> Sent {
    let mut sent = Sent::default();
    let Some(mut client) = Client::try_connect(port).await else { return sent };
    let mut n = 0;
    while !stop.is_cancelled() {
        let burst = n..n + 1 + hash(&format!("{name}-{n}")) % BURST;
        let ids: Vec<_> = burst.map(|n| format!("{name}-{n}")).collect();
        n += ids.len() as u64;
        let frames = ids.iter().flat_map(|id| Client::frame(message(id).as_bytes()));
        sent.perhaps.extend(ids.iter().cloned());
        if client.write(&frames.collect::<Vec<_>>()).await.is_err() {
            return sent;
        }
        for id in ids {
            let Some(ack) = client.read().await else { return sent };
            let (code, of) = msa(&ack);
            assert_eq!(of, id, "answers come in the order of their messages");
            // It is stopping: the message stays with its sender.
            if code != "AR" {
                assert_eq!(code, "AA");
                sent.acknowledged.insert(id.clone());
            }
            sent.perhaps.remove(&id);
        }
    }
    sent
}

/// Each life of the process delivers the queue on from where the last one stopped, or from a little before:
/// what it repeats is at most the window, at its beginning, in order. With `by_key` that holds for each key.
fn delivered_in_order(queue: &[String], lives: &[Vec<String>], by_key: bool) {
    let keys: BTreeSet<String> =
        if by_key { queue.iter().map(|id| key(id)).collect() } else { [String::new()].into() };
    for of in keys {
        let ours = |id: &&String| !by_key || key(id) == of;
        let queue: Vec<&String> = queue.iter().filter(ours).collect();
        let mut reached = 0_usize;
        for life in lives {
            let life: Vec<&String> = life.iter().filter(ours).collect();
            let Some(first) = life.first() else { continue };
            let mut starts = (reached.saturating_sub(WINDOW)..=reached).rev();
            let fits = |start: &usize| queue.get(*start) == Some(first) && queue[*start..].starts_with(&life);
            let start = starts.find(fits).unwrap_or_else(|| {
                panic!("after {reached} of {} came {life:?}; the queue was {queue:?}", queue.len())
            });
            reached = reached.max(start + life.len());
        }
        assert_eq!(reached, queue.len(), "delivered of the queue {of}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_is_never_lost_over_kill_9() {
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = number("SEPTET_CRASH_SEED").unwrap_or(clock % 1_000_000_000);
    println!("SEPTET_CRASH_SEED={seed} SEPTET_CRASH_ROUNDS={}", rounds());
    let totals = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let lanes = (0..LANES).map(|lane| {
        let totals = totals.clone();
        tokio::spawn(async move {
            let mut choices = Choices(mixed(seed ^ lane));
            let mut left = rounds().div_ceil(LANES);
            while left > 0 {
                let mut store = Store::new(&mut choices).await;
                let lives = (4 + choices.below(16)).min(left);
                for round in 0..lives {
                    store.round(round, Kill::choose(&mut choices)).await;
                }
                store.settle().await;
                left -= lives;
                totals.0.fetch_add(lives, Ordering::Relaxed);
                totals.1.fetch_add(store.sent.acknowledged.len() as u64, Ordering::Relaxed);
            }
        })
    });
    for lane in futures_util::future::join_all(lanes).await {
        if let Err(failed) = lane {
            panic!("SEPTET_CRASH_SEED={seed}: {failed}");
        }
    }
    let (kills, acknowledged) = (totals.0.load(Ordering::Relaxed), totals.1.load(Ordering::Relaxed));
    println!("{kills} kills, {acknowledged} acknowledged");
    assert!(acknowledged > kills, "the load was real: {acknowledged} acknowledged over {kills} kills");
}

#[test]
fn the_oracle_sees_a_gap_a_swap_and_a_repeat_in_the_middle() {
    let ids = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let holds = |queue: &str, lives: &[&str]| {
        let lives: Vec<_> = lives.iter().map(|life| ids(life)).collect();
        std::panic::catch_unwind(|| delivered_in_order(&ids(queue), &lives, false)).is_ok()
    };
    assert!(holds("a b c d", &["a b c d"]));
    assert!(holds("a b c d", &["a b", "b c", "", "c d"]), "repeats after a crash");
    for (queue, lives) in [
        ("a b c d", &["a b", "d"][..]),
        ("a b c d", &["a c b d"]),
        ("a b c d", &["a b b c d"]),
        ("a b c d", &["a b c"]),
        ("a b c", &["a b c x"]),
    ] {
        assert!(!holds(queue, lives), "{lives:?}");
    }
}

#[test]
fn the_load_has_small_and_large_messages_of_few_patients() {
    let ids: Vec<_> = (0..200).map(|n| format!("R1S2-{n}")).collect();
    let keys: BTreeMap<_, usize> = ids.iter().map(|id| (key(id), message(id).len())).collect();
    assert_eq!(keys.len(), 5);
    assert!(ids.iter().any(|id| message(id).len() > 50_000));
}
