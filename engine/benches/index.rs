//! How fast the index is made and searched.
//!
//! `cargo bench -p septet-engine --bench index [-- FILES [ROWS [FOLDER]]]`: so many files of so many rows.
//! 200 files of 50,000 rows are the ten million messages that must be searchable in 20 ms (about 3 GB).

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use septet_engine::fault::Fault;
use septet_engine::header::{Header, Kind, ReplyTo, Status};
use septet_engine::id::{BodyId, ItemName, MessageId, SessionId};
use septet_engine::store::{IndexBench, MessageFilter};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Microseconds between two rows: a thousand rows a second.
const STEP: u64 = 1000;
const START: i64 = 1_790_000_000_000_000;
/// Parts that a segment is made of, as the keeper does it.
const PARTS: u64 = 4;
/// Searches of each kind.
const SEARCHES: u64 = 200;
const PAGE: usize = 50;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let mut number = |other: u64| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(other);
    let (files, rows) = (number(40), number(50_000));
    let folder = arguments.next().unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").to_owned());
    let folder = Path::new(&folder).join("index");
    let _ = std::fs::remove_dir_all(&folder);
    let outcome = measure(&folder, files, rows);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

fn measure(folder: &Path, files: u64, rows: u64) -> Outcome<()> {
    let index = IndexBench::open(folder, false)?;
    let (mut direct, mut parts, mut merged) = (0.0, 0.0, 0.0);
    for file in 0..files {
        let all: Vec<Header> = (0..rows).map(|row| header(file * rows + row + 1)).collect();
        // Every eighth file is written at once, the others through parts.
        if file % 8 == 0 {
            direct += cpu(|| index.write(file + 1, 0, &all, &[]))?.1;
            continue;
        }
        let mut written = Vec::new();
        for (number, some) in all.chunks(rows.div_ceil(PARTS) as usize).enumerate() {
            let (part, time) = cpu(|| index.write(file + 1, number as u32 + 1, some, &[]))?;
            parts += time;
            written.push(part);
        }
        merged += cpu(|| index.write(file + 1, 0, &[], &written))?.1;
    }
    let at_once = files.div_ceil(8);
    let (bytes, memory) = index.size();
    let total = files * rows;
    let share = |time: f64, files: u64| time * 1e6 / (files * rows).max(1) as f64;
    println!("{total} rows in {files} files, two keys and a body each");
    println!(
        "µs CPU a row: {:.2} written at once; {:.2} into parts + {:.2} merging them",
        share(direct, at_once),
        share(parts, files - at_once),
        share(merged, files - at_once)
    );
    println!(
        "{:.0} bytes a row on the disk, {} KiB of memory a file",
        bytes as f64 / total as f64,
        memory as u64 / files / 1024
    );
    let began = Instant::now();
    drop(index);
    let index = IndexBench::open(folder, false)?;
    println!("opened in {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
    println!(
        "{:<40} {:>6} {:>8} {:>8} {:>8}   | {:>8} {:>8}   | {:>8} {:>8}",
        format!("ms for a page of {PAGE}"),
        "found",
        "p50",
        "p99",
        "max",
        "CPU p50",
        "p99",
        "cold p50",
        "max"
    );
    let searches = searches(total);
    // What was just written is in the page cache; what is read after `forget` is not.
    let warm: Vec<_> =
        searches.iter().map(|(_, search)| times(&index, folder, search, false)).collect::<Outcome<_>>()?;
    for ((name, search), warm) in searches.iter().zip(&warm) {
        let cold = times(&index, folder, search, true)?;
        let at = |times: &[f64], share: f64| {
            times.get(((times.len() - 1) as f64 * share) as usize).copied().unwrap_or_default()
        };
        println!(
            "{name:<40} {:>6.1} {:>8.2} {:>8.2} {:>8.2}   | {:>8.2} {:>8.2}   | {:>8.1} {:>8.1}",
            warm.found,
            at(&warm.wall, 0.5),
            at(&warm.wall, 0.99),
            at(&warm.wall, 1.0),
            at(&warm.busy, 0.5),
            at(&warm.busy, 0.99),
            at(&cold.wall, 0.5),
            at(&cold.wall, 1.0)
        );
    }
    Ok(())
}

type Search = Box<dyn Fn(&IndexBench, u64) -> Outcome<usize>>;

fn searches(total: u64) -> Vec<(String, Search)> {
    let mut all: Vec<(String, Search)> = Vec::new();
    let mut page = |name: &str, filter: Box<dyn Fn(u64) -> (MessageFilter, Option<u64>)>| {
        let search: Search = Box::new(move |index, seed| {
            let (filter, before) = filter(seed);
            Ok(index.messages(&filter, before, PAGE)?.len())
        });
        all.push((name.to_owned(), search));
    };
    let any = MessageFilter::default;
    let key = |name: &str, value: String| vec![(name.to_owned(), value)];
    let at = move |seed: u64, after: u64| time((seed % total + after) * STEP);
    page("newest", Box::new(move |_| (any(), None)));
    page("anywhere", Box::new(move |seed| (any(), Some(seed % total))));
    page("key", Box::new(move |seed| (MessageFilter { keys: key("mrn", mrn(seed % total)), ..any() }, None)));
    page(
        "key of one row",
        Box::new(move |seed| (MessageFilter { keys: key("order", order(seed % total + 1)), ..any() }, None)),
    );
    page(
        "key that is in every third row",
        Box::new(move |_| (MessageFilter { keys: key("site", "2".to_owned()), ..any() }, None)),
    );
    page(
        "key, absent",
        Box::new(move |seed| (MessageFilter { keys: key("mrn", format!("none{seed}")), ..any() }, None)),
    );
    page(
        "two keys, one rare",
        Box::new(move |seed| {
            let keys = [key("site", "2".to_owned()), key("mrn", mrn(seed % total))].concat();
            (MessageFilter { keys, ..any() }, None)
        }),
    );
    page(
        "control id",
        Box::new(move |seed| (MessageFilter { control_id: Some(control_id(seed % total)), ..any() }, None)),
    );
    page(
        "control id, absent",
        Box::new(move |seed| (MessageFilter { control_id: Some(format!("x{seed}")), ..any() }, None)),
    );
    page(
        "session",
        Box::new(move |seed| (MessageFilter { session: Some(session(seed % total + 1)), ..any() }, None)),
    );
    page(
        "status",
        Box::new(move |seed| (MessageFilter { status: vec![Status::Error], ..any() }, Some(seed % total))),
    );
    page(
        "status, unfinished",
        Box::new(move |_| (MessageFilter { status: vec![Status::Queued], ..any() }, None)),
    );
    page(
        "status, absent",
        Box::new(move |_| (MessageFilter { status: vec![Status::Aborted], ..any() }, None)),
    );
    page(
        "target and kind",
        Box::new(move |seed| {
            (
                MessageFilter { target: Some("target3".to_owned()), kind: Some(Kind::Response), ..any() },
                Some(seed % total),
            )
        }),
    );
    page(
        "status, target, type",
        Box::new(move |seed| {
            let (target, type_name) = (Some(format!("target{}", seed % 8)), Some("ADT^A03".to_owned()));
            (MessageFilter { status: vec![Status::Error], target, type_name, ..any() }, None)
        }),
    );
    page(
        "type of one row in a million",
        Box::new(move |_| (MessageFilter { type_name: Some("ADT^A99".to_owned()), ..any() }, None)),
    );
    page(
        "item, absent",
        Box::new(move |_| (MessageFilter { source: Some("nowhere".to_owned()), ..any() }, None)),
    );
    page(
        "an hour",
        Box::new(move |seed| {
            (MessageFilter { from: Some(at(seed, 0)), to: Some(at(seed, 3_600_000)), ..any() }, None)
        }),
    );
    page(
        "an hour, status, source",
        Box::new(move |seed| {
            let source = Some("source1".to_owned());
            let (from, to) = (Some(at(seed, 0)), Some(at(seed, 3_600_000)));
            (MessageFilter { status: vec![Status::Error], source, from, to, ..any() }, None)
        }),
    );
    page(
        "key and status",
        Box::new(move |seed| {
            (
                MessageFilter { keys: key("mrn", mrn(seed % total)), status: vec![Status::Error], ..any() },
                None,
            )
        }),
    );
    page(
        "key and time, absent",
        Box::new(move |seed| {
            let (from, to) = (Some(at(seed, 0)), Some(at(seed, 1000)));
            (MessageFilter { keys: key("mrn", mrn(seed / 7 % total)), from, to, ..any() }, None)
        }),
    );
    page(
        "key of every third row, absent status",
        Box::new(move |_| {
            (
                MessageFilter { keys: key("site", "2".to_owned()), status: vec![Status::Aborted], ..any() },
                None,
            )
        }),
    );
    all.push((
        "a session's headers and events".to_owned(),
        Box::new(move |index, seed| Ok(index.session(session(seed % total + 1))?)),
    ));
    all.push((
        "one header".to_owned(),
        Box::new(move |index, seed| Ok(usize::from(index.header(MessageId(seed % total + 1))?))),
    ));
    all.push((
        "one body".to_owned(),
        Box::new(move |index, seed| Ok(usize::from(index.body(BodyId(seed % total + 1))?))),
    ));
    all
}

/// Milliseconds of searches, sorted.
struct Times {
    wall: Vec<f64>,
    /// With a CPU.
    busy: Vec<f64>,
    /// Rows found by each.
    found: f64,
}

fn times(index: &IndexBench, folder: &Path, search: &Search, cold: bool) -> Outcome<Times> {
    let count = if cold { SEARCHES / 10 } else { SEARCHES };
    let (mut wall, mut busy, mut found) = (Vec::new(), Vec::new(), 0);
    for round in 0..count {
        if cold {
            forget(folder)?;
        }
        let (cpu, began) = (cpu_time()?, Instant::now());
        found += search(index, scattered(round))?;
        wall.push(began.elapsed().as_secs_f64() * 1e3);
        busy.push((cpu_time()? - cpu) * 1e3);
    }
    wall.sort_by(f64::total_cmp);
    busy.sort_by(f64::total_cmp);
    Ok(Times { wall, busy, found: found as f64 / count as f64 })
}

/// Takes the files out of the page cache.
fn forget(folder: &Path) -> Outcome<()> {
    let names: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    for name in names {
        let file = std::fs::File::open(name)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

// === Messages ===

fn scattered(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

fn time(after: u64) -> Timestamp {
    Timestamp::from_microsecond(START + after as i64).unwrap_or_default()
}

fn session(id: u64) -> SessionId {
    SessionId((id - 1) / 4 * 4 + 1)
}

/// One patient in about ten messages.
fn mrn(id: u64) -> String {
    format!("{:08}", scattered(id / 4) % 300_000)
}

fn order(id: u64) -> String {
    format!("ORD{id:010}")
}

fn control_id(id: u64) -> String {
    format!("MSG{:012}", id / 4)
}

/// Four legs of a session, as the lab-results example has them.
fn header(id: u64) -> Header {
    let random = scattered(id);
    let leg = (id - 1) % 4;
    let error = random.is_multiple_of(50) || random.is_multiple_of(777);
    let status = match random % 1000 {
        1 if random.is_multiple_of(13) => Status::Queued,
        2 => Status::Discarded,
        _ if error => Status::Error,
        _ => Status::Completed,
    };
    let target = random >> 8 & 7;
    let type_name = if random.is_multiple_of(1_000_003) { 99 } else { random >> 16 & 15 };
    let (source, target) = match leg {
        0 => (format!("source{}", random >> 32 & 3), "router".to_owned()),
        1 => ("router".to_owned(), format!("process{}", target & 3)),
        2 => (format!("process{}", target & 3), format!("target{target}")),
        _ => (format!("target{target}"), format!("process{}", target & 3)),
    };
    let mut keys: Vec<(Arc<str>, String)> = vec![("mrn".into(), mrn(id)), ("order".into(), order(id))];
    if id.is_multiple_of(3) {
        keys.push(("site".into(), "2".to_owned()));
    }
    let fault = Fault {
        name: "transport".into(),
        code: "S0104".into(),
        text: "connection refused by peer".into(),
        detail: None,
    };
    let created = time(id * STEP + random % 3000);
    Header {
        id: MessageId(id),
        session: session(id),
        kind: if leg == 3 { Kind::Response } else { Kind::Request },
        request_id: (leg == 3).then(|| MessageId(id - 1)),
        caused_by: (leg > 0).then(|| MessageId(id - 1)),
        resent_from: None,
        source: ItemName::new(source),
        target: Some(ItemName::new(target)),
        type_name: format!("ADT^A{type_name:02}").into(),
        control_id: control_id(id).into(),
        status,
        error: (status == Status::Error).then_some(fault),
        attempts: 1,
        created,
        processed: status.is_final().then_some(created),
        body_id: Some(BodyId(id)),
        size: 1024,
        keys: keys.into(),
        reply_to: ReplyTo::Nobody,
        position: id,
        order_keys: Arc::default(),
        next_attempt: None,
        failing_since: None,
        unsolicited: false,
    }
}

/// What it gave, and the CPU seconds it took.
fn cpu<T>(work: impl FnOnce() -> Result<T, String>) -> Outcome<(T, f64)> {
    let began = cpu_time()?;
    let done = work()?;
    Ok((done, cpu_time()? - began))
}

/// Seconds that this thread has had a CPU.
fn cpu_time() -> Outcome<f64> {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(told.split_whitespace().next().unwrap_or_default().parse::<f64>()? / 1e9)
}
