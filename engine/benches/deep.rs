//! What a store costs when much is in it: the rate of receiving and delivering as millions gather, the memory
//! it takes, a start after a crash, searches, and a queue that nobody empties.
//!
//! `cargo bench -p septet-engine --bench deep [-- MILLIONS [FOLDER]]`

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use septet_engine::body::{self, Body};
use septet_engine::clock::SystemClock;
use septet_engine::config::settings::{OnSuspend, PoolSize};
use septet_engine::files::SystemFiles;
use septet_engine::header::{Header, Kind, ReplyTo, Status};
use septet_engine::id::{BodyId, ItemName, MessageId, SessionId};
use septet_engine::queue::Policy;
use septet_engine::store::{Class, Guard, Lanes, MessageFilter, Op, Options, Store, Transaction, Transition};

/// The binary's: what is measured is what ships.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const WRITERS: u64 = 64;
const STEP: u64 = 1_000_000;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let millions: u64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(2);
    let folder = arguments.next().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").to_owned());
    let path = Path::new(&folder).join("deep");
    let _ = std::fs::remove_dir_all(&path);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let open = || Store::open(Options::new(&path), Arc::new(SystemClock), Arc::new(SystemFiles));
    let store = open()?;
    println!(
        "1 KiB bodies, {WRITERS} writers, each message received and delivered; {} MiB at the start",
        resident()?
    );
    let mut first = 0.0;
    for million in 1..=millions {
        let began = Instant::now();
        runtime.block_on(load(&store, "target", STEP, true))?;
        let rate = STEP as f64 / began.elapsed().as_secs_f64();
        first = if million == 1 { rate } else { first };
        let share = rate / first * 100.0;
        println!(
            "{million:>3} million stored: {rate:>8.0} msgs/s, {share:>3.0} % of the first, {} MiB resident",
            resident()?
        );
    }
    // As a crash does: nobody closes it.
    drop(store);
    let began = Instant::now();
    let store = open()?;
    println!(
        "opened after a crash in {:.0} ms, {} MiB resident",
        began.elapsed().as_secs_f64() * 1e3,
        resident()?
    );
    runtime.block_on(searches(&store))?;

    let began = Instant::now();
    runtime.block_on(load(&store, "idle", STEP, false))?;
    let rate = STEP as f64 / began.elapsed().as_secs_f64();
    println!("a queue of a million: filled at {rate:.0} msgs/s, {} MiB resident", resident()?);
    drop(store);
    let began = Instant::now();
    let store = open()?;
    println!(
        "opened after a crash in {:.0} ms, {} MiB resident",
        began.elapsed().as_secs_f64() * 1e3,
        resident()?
    );
    let began = Instant::now();
    runtime.block_on(drain(&store, "idle", STEP))?;
    let rate = STEP as f64 / began.elapsed().as_secs_f64();
    println!("emptied at {rate:.0} msgs/s, {} MiB resident", resident()?);
    runtime.block_on(store.close())?;
    drop(store);
    std::fs::remove_dir_all(&path)?;
    Ok(())
}

/// Receives so many messages, and delivers them.
async fn load(store: &Store, target: &'static str, count: u64, deliver: bool) -> Outcome<()> {
    let item = ItemName::new(target);
    store.configure_queue(
        &item,
        Policy { pool: PoolSize::Limited(1), ordered: false, on_suspend: OnSuspend::Pass },
    );
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        tasks.push(tokio::spawn(receive(store.clone(), target, writer, count / WRITERS)));
    }
    if deliver {
        drain(store, target, count / WRITERS * WRITERS).await?;
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn receive(store: Store, target: &'static str, writer: u64, count: u64) -> Outcome<()> {
    let text = Bytes::from(vec![0x41; 1024]);
    for number in 0..count {
        let permit = store.reserve(Class::Ingest, 1024).await?;
        let (id, body_id) = (MessageId(store.next_id()), BodyId(store.next_id()));
        let header = Header {
            id,
            session: SessionId(id.0),
            kind: Kind::Request,
            request_id: None,
            caused_by: None,
            resent_from: None,
            source: ItemName::new("lis"),
            target: Some(ItemName::new(target)),
            type_name: "ADT^A01".into(),
            control_id: format!("C{id}").into(),
            status: Status::Queued,
            error: None,
            attempts: 0,
            created: store.clock().now(),
            processed: None,
            body_id: Some(body_id),
            size: 1024,
            keys: [("mrn".into(), format!("{}", (writer * 7919 + number) % 100_000))].into(),
            reply_to: ReplyTo::Nobody,
            position: 0,
            order_keys: Arc::default(),
            next_attempt: None,
            failing_since: None,
            unsolicited: false,
        };
        let body = Body::new("ADT^A01", body::HL7, None, text.clone());
        let ops = vec![Op::Body(body_id, body), Op::Header(Box::new(header))];
        let committed = store.submit(permit, Transaction::new(ops))?;
        store.durable(committed.sequence).await?;
    }
    Ok(())
}

/// Delivers so many messages in order, each durable before it is given out.
async fn drain(store: &Store, target: &str, count: u64) -> Outcome<()> {
    let item = ItemName::new(target);
    let ready = store.ready(&item);
    let (mut done, mut last) = (0, 0);
    while done < count {
        let Some(delivery) = store.take(&item, Lanes::Requests, 1).pop() else {
            ready.notified().await;
            continue;
        };
        let permit = store.reserve(Class::Completion, 0).await?;
        store.durable(delivery.sequence).await?;
        if let Some(body) = delivery.header.body_id {
            store.body(body).await?;
        }
        let transition = Transition::new(delivery.header.id, Guard::Lease(delivery.lease), Status::Completed);
        last = store.submit(permit, Transaction::new(vec![Op::Transition(transition)]))?.sequence;
        done += 1;
    }
    store.durable(last).await?;
    Ok(())
}

async fn searches(store: &Store) -> Outcome<()> {
    let all = MessageFilter::default();
    let newest = store.search(&all, None, 1).await?.entries.pop().map_or(1, |header| header.id.0);
    let filters: [(&str, &dyn Fn(u64) -> MessageFilter); 5] = [
        ("newest", &|_| MessageFilter::default()),
        ("key", &|n| MessageFilter {
            keys: vec![("mrn".into(), format!("{}", n % 100_000))],
            ..MessageFilter::default()
        }),
        ("control id", &|n| MessageFilter {
            control_id: Some(format!("C{}", n % newest)),
            ..MessageFilter::default()
        }),
        ("key and absent status", &|n| MessageFilter {
            keys: vec![("mrn".into(), format!("{}", n % 100_000))],
            status: vec![Status::Error],
            ..MessageFilter::default()
        }),
        ("suspended (none)", &|_| MessageFilter {
            status: vec![Status::Suspended],
            ..MessageFilter::default()
        }),
    ];
    for (name, filter) in filters {
        let mut times = Vec::new();
        for number in 0..100u64 {
            let filter = filter(number * 7_368_787);
            let began = Instant::now();
            store.search(&filter, None, 50).await?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        let at = |share: usize| {
            times.get(times.len() * share / 100).copied().unwrap_or(Duration::ZERO).as_secs_f64() * 1e3
        };
        println!("search by {name}: p50 {:.2} ms, p99 {:.2} ms", at(50), at(99));
    }
    Ok(())
}

/// Memory of this process in MiB.
fn resident() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes =
        line.and_then(|line| line.split_whitespace().next()).and_then(|text| text.parse::<u64>().ok());
    Ok(kilobytes.unwrap_or(0) / 1024)
}
