//! How fast the embedded store takes and delivers messages, beside a bare append + fdatasync loop on the
//! same disk in the same run. Only the ratio means something on a shared machine.
//! The bodies count, and in brackets all that was written; `bare` writes what half of the writers bring at once,
//! as in a closed loop one half is being synced while the other comes back.
//!
//! `cargo bench -p septet-engine --bench store [-- SECONDS [FOLDER]]`

use std::error::Error;
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use septet_engine::body::{self, Body};
use septet_engine::clock::SystemClock;
use septet_engine::config::settings::{OnSuspend, PoolSize};
use septet_engine::files::{self, Files, Lock, LockError, Space, SystemFiles};
use septet_engine::header::{Header, Kind, ReplyTo, Status};
use septet_engine::id::{BodyId, ItemName, MessageId, SessionId};
use septet_engine::queue::Policy;
use septet_engine::store::{Class, Guard, Lanes, Op, Options, Store, Transaction, Transition};
use tokio::task::JoinHandle;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const TARGETS: usize = 8;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let time = Duration::from_secs_f64(seconds);
    let folder = arguments.next().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").to_owned());
    println!("{HEADS}");
    for (size, writers) in [(1024, 1), (1024, 8), (1024, 64), (1024, 256), (64 << 10, 64)] {
        row(Path::new(&folder), size, writers, time, Duration::ZERO)?;
    }
    sustained(Path::new(&folder), time * 8)?;
    // As on disks whose sync reaches a platter or another machine: the writer lingers for company there.
    for delay in [1, 5] {
        println!("\nwith {delay} ms more for each sync\n{HEADS}");
        for (size, writers) in [(1024, 1), (1024, 8), (1024, 64), (1024, 256)] {
            row(Path::new(&folder), size, writers, time, Duration::from_millis(delay))?;
        }
    }
    Ok(())
}

const HEADS: &str = "  body  writers   msgs/s    MiB/s  bare MiB/s (batch)  ratio (written)  µs CPU/msg  ack p50/p99 ms  bare p99 ms  p99 ratio  reopened in ms  RSS MiB";

fn row(folder: &Path, size: usize, writers: usize, time: Duration, delay: Duration) -> Outcome<()> {
    // Interleaved, because the disk's mood changes; the better of two each.
    let mut best: Option<Measured> = None;
    let mut bare = Bare { rate: 0.0, p99: f64::MAX };
    // In a closed loop half of the writers are in each batch.
    let batch = size * writers.div_ceil(2);
    for _ in 0..2 {
        let measured = store(folder, size, writers, time, delay)?;
        let other = bare_loop(folder, batch, time / 2, delay)?;
        bare = Bare { rate: bare.rate.max(other.rate), p99: bare.p99.min(other.p99) };
        best = match best {
            Some(best) if best.rate >= measured.rate => {
                Some(Measured { p99: best.p99.min(measured.p99), ..best })
            }
            Some(best) => Some(Measured { p99: best.p99.min(measured.p99), ..measured }),
            None => Some(measured),
        };
    }
    let Some(Measured { rate, written, cpu, p50, p99, reopen, resident }) = best else { return Ok(()) };
    let bytes = rate * size as f64 / 1_048_576.0;
    println!(
        "{size:>6}  {writers:>7} {rate:>8.0} {bytes:>8.1} {:>10.1} ({:>5} KiB) {:>6.2}    ({:>5.2}) {cpu:>11.1}     {p50:.2} / {p99:.2} {:>12.2} {:>10.2} {reopen:>15.0} {resident:>8}",
        bare.rate,
        batch / 1024,
        bytes / bare.rate,
        written / bare.rate,
        bare.p99,
        p99 / bare.p99,
    );
    Ok(())
}

/// What the disk does without a store.
struct Bare {
    /// MiB per second.
    rate: f64,
    /// Of one write and its sync, in milliseconds.
    p99: f64,
}

/// Appends and syncs batches.
fn bare_loop(folder: &Path, batch: usize, time: Duration, delay: Duration) -> Outcome<Bare> {
    let path = folder.join("bare");
    let mut file = File::create(&path)?;
    let bytes = vec![0x5a; batch];
    let began = Instant::now();
    let (mut written, mut each) = (0usize, Vec::new());
    while began.elapsed() < time {
        let one = Instant::now();
        file.write_all(&bytes)?;
        file.sync_data()?;
        pause(delay);
        written += batch;
        each.push(one.elapsed());
    }
    let rate = written as f64 / 1_048_576.0 / began.elapsed().as_secs_f64();
    drop(file);
    std::fs::remove_file(&path)?;
    Ok(Bare { rate, p99: percentile(&mut each, 0.99) })
}

/// In milliseconds.
fn percentile(all: &mut [Duration], share: f64) -> f64 {
    all.sort_unstable();
    all.get((all.len() as f64 * share) as usize).map_or(0.0, |one| one.as_secs_f64() * 1e3)
}

fn pause(delay: Duration) {
    if !delay.is_zero() {
        std::thread::sleep(delay);
    }
}

/// The machine's files, with syncs that take longer.
#[derive(Debug)]
struct SlowFiles(Duration);

#[derive(Debug)]
struct SlowFile(Arc<dyn files::File>, Duration);

impl Files for SlowFiles {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        SystemFiles.create_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        pause(self.0);
        SystemFiles.sync_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        SystemFiles.list(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn files::File>> {
        Ok(Arc::new(SlowFile(SystemFiles.open(path)?, self.0)))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn files::File>> {
        Ok(Arc::new(SlowFile(SystemFiles.create(path)?, self.0)))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemFiles.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemFiles.remove(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        SystemFiles.space(path)
    }
    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>, LockError> {
        SystemFiles.lock(path)
    }
}

impl files::File for SlowFile {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        pause(self.1);
        self.0.sync()
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.0.allocate(length)
    }
    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.truncate(length)
    }
}

struct Measured {
    rate: f64,
    /// MiB per second of all that the journal holds then: bodies, headers, deliveries.
    written: f64,
    cpu: f64,
    p50: f64,
    p99: f64,
    /// Milliseconds to recover all of it.
    reopen: f64,
    resident: u64,
}

fn store(folder: &Path, size: usize, writers: usize, time: Duration, delay: Duration) -> Outcome<Measured> {
    let files = || -> Arc<dyn Files> {
        if delay.is_zero() { Arc::new(SystemFiles) } else { Arc::new(SlowFiles(delay)) }
    };
    let path = folder.join("store");
    let _ = std::fs::remove_dir_all(&path);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(async {
        let store = Store::open(Options::new(&path), Arc::new(SystemClock), files())?;
        let drivers = Drivers::start(&store);
        let (cpu, began) = (cpu_time()?, Instant::now());
        let mut acks = Vec::new();
        for task in start_writers(&store, size, writers, time) {
            acks.extend(task.await??);
        }
        let taken = acks.len() as u64;
        while drivers.delivered() < taken {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let elapsed = began.elapsed().as_secs_f64();
        let cpu = (cpu_time()? - cpu) * 1e6 / taken as f64;
        let resident = resident()?;
        store.close().await?;
        drivers.stop().await;
        drop(store);
        let written = written(&path)? as f64 / 1_048_576.0 / elapsed;
        let began = Instant::now();
        let again = Store::open(Options::new(&path), Arc::new(SystemClock), files())?;
        let reopen = began.elapsed().as_secs_f64() * 1e3;
        drop(again);
        let (p50, p99) = (percentile(&mut acks, 0.5), percentile(&mut acks, 0.99));
        Ok(Measured { rate: taken as f64 / elapsed, written, cpu, p50, p99, reopen, resident })
    });
    let _ = std::fs::remove_dir_all(&path);
    measured
}

/// Bytes of a closed journal.
fn written(store: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(store.join("journal"))? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "seg") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

/// How long a stretch is looked at for the best rate.
const LOOK: Duration = Duration::from_millis(500);

/// 64 writers for longer, while the index is written beside them: the best half second, the whole, and how many
/// rows the index was behind.
fn sustained(folder: &Path, time: Duration) -> Outcome<()> {
    let path = folder.join("store");
    let _ = std::fs::remove_dir_all(&path);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let store = Store::open(Options::new(&path), Arc::new(SystemClock), Arc::new(SystemFiles))?;
        let drivers = Drivers::start(&store);
        let (cpu, began) = (cpu_time()?, Instant::now());
        let writers = start_writers(&store, 1024, 64, time);
        let (mut burst, mut behind, mut last) = (0.0_f64, 0, (began, 0));
        while writers.iter().any(|writer| !writer.is_finished()) {
            tokio::time::sleep(LOOK).await;
            let (now, delivered) = (Instant::now(), drivers.delivered());
            burst = burst.max((delivered - last.1) as f64 / (now - last.0).as_secs_f64());
            behind = behind.max(store.vitals()?.map_or(0, |vitals| vitals.unindexed));
            last = (now, delivered);
        }
        let mut taken = 0;
        for writer in writers {
            taken += writer.await??.len() as u64;
        }
        while drivers.delivered() < taken {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let elapsed = began.elapsed().as_secs_f64();
        let (rate, cpu) = (taken as f64 / elapsed, (cpu_time()? - cpu) * 1e6 / taken as f64);
        println!(
            "\n1024 B, 64 writers, {elapsed:.0} s beside the index: burst {burst:.0} msgs/s, sustained {rate:.0} msgs/s, {cpu:.1} µs CPU/msg, \
             index behind by at most {behind} rows = {:.0} ms, {} MiB resident",
            behind as f64 / rate * 1e3,
            resident()?,
        );
        store.close().await?;
        drivers.stop().await;
        Ok(())
    });
    let _ = std::fs::remove_dir_all(&path);
    result
}

/// Deliver what is received, one slot for each target.
struct Drivers {
    stop: Arc<AtomicBool>,
    delivered: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Outcome<()>>>,
}

impl Drivers {
    fn start(store: &Store) -> Drivers {
        let (stop, delivered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..TARGETS).map(|target| {
            let item = ItemName::new(format!("target{target}"));
            let policy = Policy { pool: PoolSize::Limited(1), ordered: false, on_suspend: OnSuspend::Pass };
            store.configure_queue(&item, policy);
            tokio::spawn(deliver(store.clone(), item, stop.clone(), delivered.clone()))
        });
        let tasks = tasks.collect();
        Drivers { stop, delivered, tasks }
    }

    fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Until they have given their handles of the store back.
    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

fn start_writers(
    store: &Store,
    size: usize,
    writers: usize,
    time: Duration,
) -> Vec<JoinHandle<Outcome<Vec<Duration>>>> {
    (0..writers).map(|writer| tokio::spawn(ingest(store.clone(), writer, size, time))).collect()
}

/// One connection: a message, its receipt, the next message.
async fn ingest(store: Store, writer: usize, size: usize, time: Duration) -> Outcome<Vec<Duration>> {
    let bytes = Bytes::from(vec![b'x'; size]);
    let source = ItemName::new("lis");
    let target = ItemName::new(format!("target{}", writer % TARGETS));
    let (type_name, control_id): (Arc<str>, Arc<str>) = ("ADT^A01".into(), "MSG00001".into());
    let mut acks = Vec::new();
    let began = Instant::now();
    while began.elapsed() < time {
        let sent = Instant::now();
        let body = BodyId(store.next_id());
        let id = MessageId(store.next_id());
        let header = Header {
            id,
            session: SessionId::from(id),
            kind: Kind::Request,
            request_id: None,
            caused_by: None,
            resent_from: None,
            source: source.clone(),
            target: Some(target.clone()),
            type_name: type_name.clone(),
            control_id: control_id.clone(),
            status: Status::Queued,
            error: None,
            attempts: 0,
            created: store.clock().now(),
            processed: None,
            body_id: Some(body),
            size: size as u64,
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
        let permit = store.reserve(Class::Ingest, size as u64).await?;
        let committed = store.submit(permit, Transaction::new(ops))?;
        store.durable(committed.sequence).await?;
        acks.push(sent.elapsed());
    }
    Ok(acks)
}

/// One operation slot: takes, waits until it is durable, reads the body, completes without waiting.
async fn deliver(
    store: Store,
    item: ItemName,
    stop: Arc<AtomicBool>,
    delivered: Arc<AtomicU64>,
) -> Outcome<()> {
    let ready = store.ready(&item);
    while !stop.load(Ordering::Relaxed) {
        let mut taken = store.take(&item, Lanes::Requests, 1);
        let Some(delivery) = taken.pop() else {
            ready.notified().await;
            continue;
        };
        let permit = store.reserve(Class::Completion, 0).await?;
        store.durable(delivery.sequence).await?;
        if let Some(body) = delivery.header.body_id {
            store.body(body).await?;
        }
        let done = Transition::new(delivery.header.id, Guard::Lease(delivery.lease), Status::Completed);
        store.submit(permit, Transaction::new(vec![Op::Transition(done)]))?;
        delivered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Seconds of processor time that this process has used.
fn cpu_time() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    // User and system time, in hundredths of a second.
    Ok((ticks(11) + ticks(12)) / 100.0)
}

/// MiB of memory that this process uses.
fn resident() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024)
}
