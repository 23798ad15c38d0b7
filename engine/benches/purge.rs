//! How much of their rate writers keep while a purge drops segments beside them, and how much of the disk it
//! gives back. One message in twenty is not finished: it is carried on whenever its segment goes. The rate
//! before and after each purge and during it alternate in one run; only their ratio means something on a
//! shared machine.
//!
//! `cargo bench -p septet-engine --bench purge [-- ROUNDS [MESSAGES [FOLDER]]]`

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

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const WRITERS: u64 = 64;
const SIZE: usize = 1024;
/// One message in so many is not finished.
const STRAGGLERS: u64 = 20;
const SEGMENT: u64 = 16 << 20;
/// How long the rate without a purge is measured, before and after.
const WITHOUT: Duration = Duration::from_secs(2);

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let rounds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(3);
    let messages = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(400_000);
    let folder = arguments.next().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").to_owned());
    let path = Path::new(&folder).join("purge");
    let _ = std::fs::remove_dir_all(&path);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(&path, rounds, messages));
    let _ = std::fs::remove_dir_all(&path);
    measured
}

async fn measure(path: &Path, rounds: usize, messages: u64) -> Outcome<()> {
    let options = Options { segment_size: SEGMENT, ..Options::new(path) };
    let store = Store::open(options, Arc::new(SystemClock), Arc::new(SystemFiles))?;
    let (stop, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> =
        (0..WRITERS).map(|_| tokio::spawn(write(store.clone(), stop.clone(), taken.clone()))).collect();
    println!(
        "msgs/s without  during  ratio  purge s  segments  messages gone  carried  MiB before  after  written meanwhile"
    );
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        let begun = taken.load(Ordering::Relaxed);
        while taken.load(Ordering::Relaxed) - begun < messages {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let first = rate(&taken, tokio::time::sleep(WITHOUT)).await;
        let (before, from) = (size(path)?, taken.load(Ordering::Relaxed));
        let began = Instant::now();
        let purging = store.purge(Purge::before(store.clock().now()));
        let mut purged = None;
        let during = rate(&taken, async { purged = Some(purging.await) }).await;
        let took = began.elapsed().as_secs_f64();
        let (after, until) = (size(path)?, taken.load(Ordering::Relaxed));
        let last = rate(&taken, tokio::time::sleep(WITHOUT)).await;
        let Some(purged) = purged.transpose()? else { continue };
        let without = f64::midpoint(first, last);
        ratios.push(during / without);
        println!(
            "{without:>14.0} {during:>7.0} {:>6.2} {took:>8.2} {:>9} {:>14} {:>8} {before:>11} {after:>6} {:>17}",
            during / without,
            purged.segments,
            purged.messages,
            purged.carried,
            ((until - from) * (SIZE as u64)) >> 20,
        );
    }
    println!("writers keep {:.2} of their rate", ratios.iter().sum::<f64>() / ratios.len().max(1) as f64);
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await??;
    }
    store.close().await?;
    Ok(())
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

/// One connection: a message, its receipt, and its end, unless it is a straggler.
async fn write(store: Store, stop: Arc<AtomicBool>, taken: Arc<AtomicU64>) -> Outcome<()> {
    let bytes = Bytes::from(vec![b'x'; SIZE]);
    let (source, out, slow) = (ItemName::new("lis"), ItemName::new("out"), ItemName::new("slow"));
    let (type_name, control_id): (Arc<str>, Arc<str>) = ("ADT^A01".into(), "MSG00001".into());
    while !stop.load(Ordering::Relaxed) {
        let number = taken.fetch_add(1, Ordering::Relaxed);
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
        if !straggles {
            let permit = store.reserve(Class::Completion, 0).await?;
            let done = Transition::new(id, Guard::Status(Status::Queued), Status::Completed);
            store.submit(permit, Transaction::new(vec![Op::Transition(done)]))?;
        }
    }
    Ok(())
}
