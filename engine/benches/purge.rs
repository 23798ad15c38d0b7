//! How much of their rate writers keep while a purge drops segments beside them, whether the purge keeps up with
//! them, and how fast it is alone. One message in twenty is finished much later than the others: it is carried
//! on when its segment goes.
//!
//! On a shared machine only what is near in time can be compared: seconds without and with a purge alternate,
//! and each with is compared with the two without around it. What counts is the median of these ratios. Each
//! purge is for everything that has been written before it began; one that leaves much of that is an error, so
//! that a purge which does nothing cannot look good.
//!
//! `cargo bench -p septet-engine --bench purge [-- PAIRS [FOLDER]]`

use std::collections::VecDeque;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use septet_engine::body::{self, Body};
use septet_engine::clock::SystemClock;
use septet_engine::files::SystemFiles;
use septet_engine::header::{Header, Kind, ReplyTo, Status};
use septet_engine::id::{BodyId, ItemName, MessageId, SessionId};
use septet_engine::store::{Class, Guard, Op, Options, Purge, Store, Transaction, Transition};

/// The binary's: what is measured is what ships.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const WRITERS: u64 = 64;
const SIZE: usize = 1024;
/// One message in so many is not finished at once.
const STRAGGLERS: u64 = 20;
/// So many of a writer's messages later it is.
const LATER: usize = 200;
const SEGMENT: u64 = 16 << 20;
/// How long the rate without a purge is measured each time.
const WITHOUT: Duration = Duration::from_millis(1500);
/// Messages there are before the first purge.
const FIRST: u64 = 400_000;
/// Of the segments that were there when it began, a purge drops at least this share.
const SHARE: f64 = 0.7;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let pairs = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(7);
    let folder = arguments.next().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").to_owned());
    let path = Path::new(&folder).join("purge");
    let _ = std::fs::remove_dir_all(&path);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(&path, pairs));
    let _ = std::fs::remove_dir_all(&path);
    measured
}

/// What writers share.
#[derive(Debug, Default)]
struct Load {
    stop: AtomicBool,
    /// They wait.
    hold: AtomicBool,
    taken: AtomicU64,
}

async fn measure(path: &Path, pairs: usize) -> Outcome<()> {
    let options = Options { segment_size: SEGMENT, ..Options::new(path) };
    let store = Store::open(options, Arc::new(SystemClock), Arc::new(SystemFiles))?;
    let load = Arc::new(Load::default());
    let writers: Vec<_> = (0..WRITERS).map(|_| tokio::spawn(write(store.clone(), load.clone()))).collect();
    fill(&load, FIRST).await;
    alone(&store, &load, path).await?;
    fill(&load, FIRST).await;
    println!(
        "writers: msgs/s without  with  ratio | purge: s  segments  MiB/s  messages  carried  left MiB | written MiB"
    );
    let (mut ratios, mut purged_bytes, mut written_bytes) = (Vec::new(), 0, 0);
    let mut before = rate(&load.taken, tokio::time::sleep(WITHOUT)).await;
    for _ in 0..pairs {
        let (there, from) = (segments(path)?, load.taken.load(Ordering::Relaxed));
        let began = Instant::now();
        let purging = store.purge(Purge::before(store.clock().now()));
        let mut purged = None;
        let during = rate(&load.taken, async { purged = Some(purging.await) }).await;
        let took = began.elapsed().as_secs_f64();
        let written = ((load.taken.load(Ordering::Relaxed) - from) * (SIZE as u64)) >> 20;
        let (left, after) = (size(path)?, rate(&load.taken, tokio::time::sleep(WITHOUT)).await);
        let Some(purged) = purged.transpose()? else { continue };
        if (purged.segments as f64) < there as f64 * SHARE {
            return Err(
                format!("of {there} segments only {} went: this compares nothing", purged.segments).into()
            );
        }
        let without = f64::midpoint(before, after);
        let ratio = during / without;
        before = after;
        ratios.push(ratio);
        purged_bytes += purged.bytes >> 20;
        written_bytes += written;
        println!(
            "{without:>23.0} {during:>5.0} {ratio:>6.2} | {took:>8.2} {:>9} {:>6.0} {:>9} {:>8} {left:>9} | {written:>11}",
            purged.segments,
            (purged.bytes >> 20) as f64 / took,
            purged.messages,
            purged.carried,
        );
    }
    ratios.sort_by(f64::total_cmp);
    let at =
        |share: f64| ratios.get(((ratios.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0.0);
    println!(
        "writers keep {:.2} of their rate (median of {}, from {:.2} to {:.2}); purges drop {:.1} MiB for each MiB written meanwhile",
        at(0.5),
        ratios.len(),
        at(0.0),
        at(1.0),
        purged_bytes as f64 / written_bytes.max(1) as f64,
    );
    load.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await??;
    }
    store.close().await?;
    Ok(())
}

/// Waits until so many messages more are there.
async fn fill(load: &Load, messages: u64) {
    let begun = load.taken.load(Ordering::Relaxed);
    while load.taken.load(Ordering::Relaxed) - begun < messages {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A purge while nobody writes: its speed, and what it costs.
async fn alone(store: &Store, load: &Load, path: &Path) -> Outcome<()> {
    load.hold.store(true, Ordering::Relaxed);
    // The index catches up.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (there, cpu, began) = (segments(path)?, cpu()?, Instant::now());
    let purged = store.purge(Purge::before(store.clock().now())).await?;
    let (took, cpu) = (began.elapsed().as_secs_f64(), self::cpu()? - cpu);
    if (purged.segments as f64) < there as f64 * SHARE {
        return Err(format!("of {there} segments only {} went", purged.segments).into());
    }
    println!(
        "alone: {} segments, {:.0} MiB/s, {:.0} messages/s, {} carried; {:.1} µs CPU a message",
        purged.segments,
        (purged.bytes >> 20) as f64 / took,
        purged.messages as f64 / took,
        purged.carried,
        cpu * 1e6 / purged.messages.max(1) as f64,
    );
    load.hold.store(false, Ordering::Relaxed);
    Ok(())
}

/// Seconds of CPU that this process has used.
fn cpu() -> Outcome<f64> {
    let mut sum = 0.0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let told = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        sum += told.split_whitespace().next().unwrap_or_default().parse::<f64>().unwrap_or(0.0) / 1e9;
    }
    Ok(sum)
}

fn segments(path: &Path) -> Outcome<usize> {
    Ok(std::fs::read_dir(path.join("journal"))?.count())
}

/// Messages a second that are taken until something is done.
async fn rate(taken: &AtomicU64, until: impl Future<Output = ()>) -> f64 {
    let (began, from) = (Instant::now(), taken.load(Ordering::Relaxed));
    until.await;
    (taken.load(Ordering::Relaxed) - from) as f64 / began.elapsed().as_secs_f64()
}

/// MiB that the store takes on the disk.
fn size(path: &Path) -> Outcome<u64> {
    let mut sum = 0;
    for folder in [path.to_owned(), path.join("journal"), path.join("index")] {
        for entry in std::fs::read_dir(folder)? {
            // What is purged in between counts no more.
            sum += entry?.metadata().map_or(0, |file| if file.is_file() { file.len() } else { 0 });
        }
    }
    Ok(sum >> 20)
}

/// One connection: a message, its receipt, and its end, or that of an earlier straggler.
async fn write(store: Store, load: Arc<Load>) -> Outcome<()> {
    let bytes = Bytes::from(vec![b'x'; SIZE]);
    let (source, out, slow) = (ItemName::new("lis"), ItemName::new("out"), ItemName::new("slow"));
    let (type_name, control_id): (Arc<str>, Arc<str>) = ("ADT^A01".into(), "MSG00001".into());
    let mut later = VecDeque::new();
    while !load.stop.load(Ordering::Relaxed) {
        if load.hold.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let number = load.taken.fetch_add(1, Ordering::Relaxed);
        let straggles = number.is_multiple_of(STRAGGLERS);
        let (body, id) = (BodyId(store.next_id()), MessageId(store.next_id()));
        let header = Header {
            id,
            session: SessionId::from(id),
            kind: Kind::Request,
            request_id: None,
            caused_by: None,
            resent_from: None,
            source: source.clone(),
            target: Some(if straggles { slow.clone() } else { out.clone() }),
            type_name: type_name.clone(),
            control_id: control_id.clone(),
            status: Status::Queued,
            error: None,
            attempts: 0,
            created: store.clock().now(),
            processed: None,
            body_id: Some(body),
            size: SIZE as u64,
            keys: [("mrn".into(), "4711".to_owned())].into(),
            reply_to: ReplyTo::Nobody,
            position: 0,
            order_keys: Arc::default(),
            next_attempt: None,
            failing_since: None,
            unsolicited: false,
        };
        let ops = vec![
            Op::Body(body, Body::new("ADT^A01", body::HL7, None, bytes.clone())),
            Op::Header(Box::new(header)),
        ];
        let permit = store.reserve(Class::Ingest, SIZE as u64).await?;
        let committed = store.submit(permit, Transaction::new(ops))?;
        store.durable(committed.sequence).await?;
        let due = match straggles {
            false => Some(id),
            true => {
                later.push_back(id);
                if later.len() > LATER { later.pop_front() } else { None }
            }
        };
        if let Some(id) = due {
            let permit = store.reserve(Class::Completion, 0).await?;
            let done = Transition::new(id, Guard::Status(Status::Queued), Status::Completed);
            store.submit(permit, Transaction::new(vec![Op::Transition(done)]))?;
        }
    }
    Ok(())
}
