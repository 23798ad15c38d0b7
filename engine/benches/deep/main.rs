//! What a store costs when much is in it: the rate of receiving and delivering as millions gather, the memory
//! it takes, a start after a crash, searches of every kind, a queue that nobody empties, a million kept
//! values, and a million suspended messages.
//!
//! `cargo bench -p septet-engine --bench deep [-- MILLIONS [FOLDER]]` does all of it. One phase after the
//! other, so that filling may share the machine and measuring need not:
//! `-- fill MILLIONS FOLDER`, `-- search FOLDER`, `-- wait FOLDER`, `-- drain FOLDER`, `-- kept FOLDER`, `-- suspended FOLDER`.
//!
//! The machine is not the same from minute to minute: after each million a new store takes a quarter of one in a
//! process of its own (`-- fresh FOLDER`), and the rate of the full one is printed as a share of that, too.

mod load;
mod process;
mod searches;

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use septet_engine::clock::SystemClock;
use septet_engine::files::SystemFiles;
use septet_engine::store::{Options, Store};
use tokio::runtime::Runtime;

use self::process::{Memory, Sampler};

/// The binary's: what is measured is what ships.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A million, in numbers that all writers can share.
const MILLION: u64 = 1_000_000 / load::WRITERS * load::WRITERS;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let temporary = env!("CARGO_TARGET_TMPDIR");
    match words.as_slice() {
        ["fill", millions, folder] => fill(&runtime, &Path::new(folder).join("deep"), millions.parse()?),
        ["fresh", folder] => fresh(&runtime, &Path::new(folder).join("fresh")),
        ["search", folder] => search(&runtime, &Path::new(folder).join("deep")),
        ["wait", folder] => wait(&runtime, &Path::new(folder).join("deep")),
        ["drain", folder] => drain(&runtime, &Path::new(folder).join("deep")),
        ["suspended", folder] => suspended(&runtime, &Path::new(folder).join("suspended")),
        ["kept", folder] => kept(&runtime, &Path::new(folder).join("kept")),
        rest => {
            let millions = rest.first().map_or(Ok(2), |text| text.parse())?;
            let folder = Path::new(rest.get(1).copied().unwrap_or(temporary));
            let path = folder.join("deep");
            let _ = std::fs::remove_dir_all(&path);
            fill(&runtime, &path, millions)?;
            search(&runtime, &path)?;
            wait(&runtime, &path)?;
            drain(&runtime, &path)?;
            std::fs::remove_dir_all(&path)?;
            kept(&runtime, &folder.join("kept"))?;
            suspended(&runtime, &folder.join("suspended"))
        }
    }
}

/// Opens a store as a crash left it, and says how long it took.
fn open(path: &Path) -> Outcome<Store> {
    process::forget_peak()?;
    let began = Instant::now();
    let store = Store::open(Options::new(path), Arc::new(SystemClock), Arc::new(SystemFiles))?;
    println!("opened in {:.0} ms, {}", began.elapsed().as_secs_f64() * 1e3, Memory::now()?);
    std::thread::sleep(Duration::from_secs(1));
    println!("a second later {}", Memory::now()?);
    Ok(store)
}

/// Receives and delivers so many millions more. Nobody closes the store afterwards, as in a crash.
fn fill(runtime: &Runtime, path: &Path, millions: u64) -> Outcome<()> {
    println!("1 KiB bodies, {} writers, each message received and delivered", load::WRITERS);
    let store = open(path)?;
    let (mut first, mut shares) = (None, Vec::new());
    for _ in 0..millions {
        let stored = load::next_number(&store, runtime)?;
        let sampler = Sampler::start(&store);
        let began = Instant::now();
        runtime.block_on(load::deliver(&store, stored, MILLION))?;
        let rate = MILLION as f64 / began.elapsed().as_secs_f64();
        let share = rate / *first.get_or_insert(rate) * 100.0;
        println!(
            "{:>9} stored: {rate:>8.0} msgs/s, {share:>3.0} % of the first, {}, {}",
            stored + MILLION,
            Memory::now()?,
            sampler.end()
        );
        let fresh = fresh_beside(path)?;
        let share = rate / fresh * 100.0;
        println!("{:>17} a new store now: {fresh:>8.0} msgs/s, the full one had {share:.0} % of that", "");
        shares.push(share);
    }
    let latest: Vec<f64> = shares.iter().rev().take(5).copied().collect();
    println!("the last five millions: {:.0} % of a new store's rate, the median", median(latest));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The rate of a new store on the disk of this one, in a process of its own.
fn fresh_beside(path: &Path) -> Outcome<f64> {
    let folder = path.parent().ok_or("no folder")?;
    let output = Command::new(std::env::current_exe()?).arg("fresh").arg(folder).output()?;
    let rate = String::from_utf8_lossy(&output.stdout).trim().parse();
    Ok(rate.map_err(|_| format!("fresh: {}", String::from_utf8_lossy(&output.stderr)))?)
}

/// Prints the rate at which a new store takes the first quarter of a million, and removes it.
fn fresh(runtime: &Runtime, path: &Path) -> Outcome<()> {
    let _ = std::fs::remove_dir_all(path);
    let store = Store::open(Options::new(path), Arc::new(SystemClock), Arc::new(SystemFiles))?;
    let sampler = Sampler::start(&store);
    let began = Instant::now();
    runtime.block_on(load::deliver(&store, 0, MILLION / 4))?;
    println!("{}", (MILLION / 4) as f64 / began.elapsed().as_secs_f64());
    sampler.end();
    drop(store);
    Ok(std::fs::remove_dir_all(path)?)
}

fn search(runtime: &Runtime, path: &Path) -> Outcome<()> {
    let store = open(path)?;
    let stored = load::next_number(&store, runtime)?;
    println!("{stored} messages stored");
    let worst = runtime.block_on(searches::all(&store, stored))?;
    println!("the worst p99 is {worst:.2} ms, {}", Memory::now()?);
    Ok(())
}

/// A million that nobody takes.
fn wait(runtime: &Runtime, path: &Path) -> Outcome<()> {
    let store = open(path)?;
    let stored = load::next_number(&store, runtime)?;
    let sampler = Sampler::start(&store);
    let began = Instant::now();
    runtime.block_on(load::receive(&store, Some("idle"), stored, MILLION))?;
    let rate = MILLION as f64 / began.elapsed().as_secs_f64();
    println!("a queue of a million: filled at {rate:.0} msgs/s, {}, {}", Memory::now()?, sampler.end());
    Ok(())
}

/// That queue after a crash: searched, and emptied.
fn drain(runtime: &Runtime, path: &Path) -> Outcome<()> {
    let store = open(path)?;
    runtime.block_on(searches::waiting(&store))?;
    println!("searched, {}", Memory::now()?);
    let sampler = Sampler::start(&store);
    let began = Instant::now();
    runtime.block_on(load::drain(&store, "idle", MILLION))?;
    let rate = MILLION as f64 / began.elapsed().as_secs_f64();
    println!("emptied at {rate:.0} msgs/s, {}, {}", Memory::now()?, sampler.end());
    runtime.block_on(store.close())?;
    println!("closed, with the index of the last segment: {}", Memory::now()?);
    Ok(())
}

/// A million that a broken receiver refuses, each of another patient; half of them are discarded in the end, the other
/// half goes back to its places and is delivered.
fn suspended(runtime: &Runtime, path: &Path) -> Outcome<()> {
    const EACH: u64 = 100_000;
    let _ = std::fs::remove_dir_all(path);
    let store = open(path)?;
    let began = Instant::now();
    for first in (0..MILLION).step_by(EACH as usize) {
        let count = EACH.min(MILLION - first);
        runtime.block_on(load::receive(&store, Some(load::REFUSER), first, count))?;
        runtime.block_on(load::suspend(&store, count))?;
        if (first / EACH) % 3 == 2 {
            println!("{:>9} suspended: {}", first + count, Memory::now()?);
        }
    }
    let rate = MILLION as f64 / began.elapsed().as_secs_f64();
    println!("received and suspended at {rate:.0} msgs/s, {}", Memory::now()?);
    drop(store);
    let store = open(path)?;
    runtime.block_on(searches::aside(&store))?;
    for (resume, what) in [(false, "discarded"), (true, "resumed and delivered")] {
        process::forget_peak()?;
        let began = Instant::now();
        let count = runtime.block_on(load::settle(&store, MILLION / 2, resume))?;
        let rate = count as f64 / began.elapsed().as_secs_f64();
        println!("{count} {what} at {rate:.0} msgs/s, {}", Memory::now()?);
    }
    runtime.block_on(store.close())?;
    drop(store);
    drop(open(path)?);
    Ok(std::fs::remove_dir_all(path)?)
}

/// A million values as duplicate detection keeps them, while messages flow and checkpoints are written.
fn kept(runtime: &Runtime, path: &Path) -> Outcome<()> {
    let _ = std::fs::remove_dir_all(path);
    let store = open(path)?;
    let began = Instant::now();
    runtime.block_on(load::keep(&store, 1_000_000))?;
    let took = began.elapsed().as_secs_f64();
    println!("a million kept answers of 160 bytes in {took:.1} s: {}", Memory::now()?);
    let sampler = Sampler::start(&store);
    runtime.block_on(load::deliver(&store, 0, MILLION))?;
    println!("a million messages beside them: {}, {}", Memory::now()?, sampler.end());
    let sampler = Sampler::start(&store);
    runtime.block_on(store.close())?;
    println!("closed, with a checkpoint: {}, {}", Memory::now()?, sampler.end());
    drop(store);
    drop(open(path)?);
    std::fs::remove_dir_all(path)?;
    Ok(())
}
