//! MLLP → router → MLLP over real sockets, as a ratio to a bare ack-and-forward relay in the same run.
//!
//! Load: 32 connections, one message outstanding on each, 1 KiB ADT, 1,000 patients. Septet stores every
//! message before it acknowledges, and forwards over 8 connections (`pool_size = 8`, `order_by = "PID-3.1"`);
//! the relay stores nothing. Rates count what has been delivered to the receiver, not only acknowledged.
//!
//! `cargo bench --bench relay` runs it; `SEPTET_BENCH_SECONDS` (5) is the length of one run.

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const CONNECTIONS: usize = 32;
const PATIENTS: usize = 1000;
const POOL: usize = 8;

fn seconds() -> u64 {
    std::env::var("SEPTET_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

/// A 1 KiB ADT^A08 of one patient.
fn adt(id: &str, patient: usize) -> Vec<u8> {
    let mut text = format!(
        "MSH|^~\\&|ADT|HOSP|EHR|HOSP|20260301081530||ADT^A08^ADT_A01|{id}|P|2.5.1\rEVN|A08|20260301081530\r\
         PID|1||P{patient:05}^^^HOSP^MR||Sample^Sam||19700105|F|||1 Example Street^^Town^^12345\rPV1|1|I|WARD^1^2\r"
    );
    while text.len() < 1024 - 60 {
        text.push_str("OBX|1|ST|0000-0^Filler^LN||a value that fills a segment|||||F\r");
    }
    text.into_bytes()
}

/// The next frame's body of a connection.
async fn frame(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let mut seen = 0;
    loop {
        if let Some(end) = buffer.get(seen..).and_then(|rest| rest.iter().position(|byte| *byte == 0x1c)) {
            let end = seen + end;
            if buffer.len() > end + 1 {
                let mut body = buffer.split_to(end);
                buffer.advance(2);
                body.advance(1);
                return Ok(Some(body));
            }
        }
        seen = buffer.len().saturating_sub(1);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn control_id(body: &[u8]) -> &[u8] {
    body.split(|byte| *byte == b'|').nth(9).unwrap_or_default()
}

fn patient(body: &[u8]) -> &[u8] {
    let start = body.windows(5).position(|window| window == b"\rPID|").map_or(0, |at| at + 1);
    let field = body.get(start..).unwrap_or_default().split(|byte| *byte == b'|').nth(3).unwrap_or_default();
    field.split(|byte| *byte == b'^').next().unwrap_or_default()
}

fn ack(id: &[u8]) -> Vec<u8> {
    let id = String::from_utf8_lossy(id);
    format!("\x0bMSH|^~\\&|EHR|HOSP|ADT|HOSP|20260301||ACK^A08|A{id}|P|2.5.1\rMSA|AA|{id}\r\x1c\r")
        .into_bytes()
}

/// Counts what arrives and checks that each patient's messages come in order.
#[derive(Default)]
struct Receiver {
    count: AtomicU64,
    overtaken: AtomicU64,
    last: Mutex<HashMap<Vec<u8>, u64>>,
}

async fn receive(listener: TcpListener, receiver: Arc<Receiver>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let receiver = receiver.clone();
        stream.set_nodelay(true).expect("a socket option");
        tokio::spawn(async move {
            let mut buffer = BytesMut::with_capacity(16 * 1024);
            while let Ok(Some(body)) = frame(&mut stream, &mut buffer).await {
                let id = control_id(&body);
                // Ids are `CONNECTION-NUMBER`; a patient belongs to one connection.
                let number =
                    std::str::from_utf8(id).ok().and_then(|id| id.rsplit_once('-')?.1.parse::<u64>().ok());
                let before = receiver
                    .last
                    .lock()
                    .expect("no panic")
                    .insert(patient(&body).to_vec(), number.unwrap_or(0));
                if before.is_some_and(|before| Some(before) > number) {
                    receiver.overtaken.fetch_add(1, Ordering::Relaxed);
                }
                receiver.count.fetch_add(1, Ordering::Relaxed);
                if stream.write_all(&ack(id)).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// The relay: acknowledges at once, forwards over a pool with one message outstanding on each connection, by
/// patient.
async fn relay(listener: TcpListener, target: u16) {
    let mut pool = Vec::new();
    for _ in 0..POOL {
        let (sender, mut queue) = mpsc::channel::<BytesMut>(1024);
        let mut stream = TcpStream::connect(("127.0.0.1", target)).await.expect("the receiver listens");
        stream.set_nodelay(true).expect("a socket option");
        tokio::spawn(async move {
            let mut buffer = BytesMut::with_capacity(4096);
            while let Some(body) = queue.recv().await {
                let mut out = Vec::with_capacity(body.len() + 3);
                out.push(0x0b);
                out.extend_from_slice(&body);
                out.extend_from_slice(b"\x1c\r");
                if stream.write_all(&out).await.is_err()
                    || !matches!(frame(&mut stream, &mut buffer).await, Ok(Some(_)))
                {
                    return;
                }
            }
        });
        pool.push(sender);
    }
    while let Ok((mut stream, _)) = listener.accept().await {
        let pool = pool.clone();
        stream.set_nodelay(true).expect("a socket option");
        tokio::spawn(async move {
            let mut buffer = BytesMut::with_capacity(16 * 1024);
            while let Ok(Some(body)) = frame(&mut stream, &mut buffer).await {
                let answer = ack(control_id(&body));
                let slot =
                    patient(&body).iter().fold(0_usize, |hash, byte| hash.wrapping_mul(31) + *byte as usize)
                        % POOL;
                let Some(slot) = pool.get(slot) else { return };
                if slot.send(body).await.is_err() || stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// What one run came to.
struct Run {
    delivered: u64,
    rate: f64,
    p50: Duration,
    p99: Duration,
    overtaken: u64,
}

/// Sends for some seconds over all connections, then waits until everything has been delivered.
async fn load(port: u16, receiver: &Arc<Receiver>) -> Run {
    receiver.count.store(0, Ordering::Relaxed);
    receiver.last.lock().expect("no panic").clear();
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds());
    let senders: Vec<_> = (0..CONNECTIONS)
        .map(|connection| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the service listens");
                stream.set_nodelay(true).expect("a socket option");
                let mut buffer = BytesMut::with_capacity(4096);
                let mut times = Vec::with_capacity(1 << 16);
                for number in 0_usize.. {
                    if Instant::now() > end {
                        break;
                    }
                    let id = format!("{connection}-{number}");
                    // Every patient belongs to one connection, so that its order is known.
                    let patient = (number % (PATIENTS / CONNECTIONS)) * CONNECTIONS + connection;
                    let mut out = vec![0x0b];
                    out.extend_from_slice(&adt(&id, patient));
                    out.extend_from_slice(b"\x1c\r");
                    let sent = Instant::now();
                    stream.write_all(&out).await.expect("the service reads");
                    let answer =
                        frame(&mut stream, &mut buffer).await.expect("the service answers").expect("an ack");
                    let positive = answer.windows(7).any(|window| window == b"MSA|AA|");
                    assert!(positive, "not acknowledged");
                    times.push(sent.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for sender in senders {
        times.extend(sender.await.expect("a sender"));
    }
    let sent = times.len() as u64;
    while receiver.count.load(Ordering::Relaxed) < sent {
        assert!(start.elapsed() < Duration::from_secs(seconds() * 20 + 60), "not everything was delivered");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = start.elapsed();
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() as f64) * share) as usize).copied().unwrap_or_default();
    Run {
        delivered: sent,
        rate: sent as f64 / took.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        overtaken: receiver.overtaken.swap(0, Ordering::Relaxed),
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a free port")
        .port()
}

/// The binary with a production that routes from one port to another.
fn septet(folder: &std::path::Path, inbound: u16, outbound: u16, operation: &str) -> Child {
    let text = format!(
        "[production]\nname = \"bench\"\n[store]\npath = \"data\"\nretention = \"30d\"\n\
         [services.in]\ntype = \"hl7.mllp\"\nlisten = \"127.0.0.1:{inbound}\"\ntargets = [\"router\"]\n\
         [processes.router]\ntype = \"router\"\n[[processes.router.rules]]\nwhen = {{ \"MSH-9.1\" = \"ADT\" }}\n\
         send = [\"out\"]\n[operations.out]\ntype = \"hl7.mllp\"\nconnect = \"127.0.0.1:{outbound}\"\n{operation}\n"
    );
    std::fs::write(folder.join("production.toml"), text).expect("a temporary folder");
    Command::new(env!("CARGO_BIN_EXE_septet"))
        .arg("run")
        .arg(folder)
        .env("SEPTET_LOG", "error")
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary starts")
}

/// CPU seconds and resident memory (MiB) of a process so far.
fn usage(pid: u32) -> (f64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    let kib = line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    ((ticks(11) + ticks(12)) / 100.0, kib / 1024)
}

async fn wait_for(port: u16) {
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "nobody listens on {port}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn print(name: &str, run: &Run, relay: Option<&Run>) {
    let ratio = relay
        .map(|relay| format!("  {:5.1} % of the relay", run.rate / relay.rate * 100.0))
        .unwrap_or_default();
    println!(
        "{name:<28} {:>8} messages  {:>8.0}/s  ack p50 {:>6.2} ms  p99 {:>6.2} ms  out of order {}{ratio}",
        run.delivered,
        run.rate,
        run.p50.as_secs_f64() * 1e3,
        run.p99.as_secs_f64() * 1e3,
        run.overtaken,
    );
}

#[tokio::main]
async fn main() {
    let receiver = Arc::new(Receiver::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let outbound = listener.local_addr().expect("bound").port();
    tokio::spawn(receive(listener, receiver.clone()));

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let relayed = listener.local_addr().expect("bound").port();
    tokio::spawn(relay(listener, outbound));
    let relay = load(relayed, &receiver).await;
    print("bare ack-and-forward relay", &relay, None);

    for (name, operation) in [
        ("septet, pool 8 by patient", "pool_size = 8\norder_by = \"PID-3.1\""),
        ("septet, pool 1", "pool_size = 1"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inbound = free_port();
        let mut child = septet(folder.path(), inbound, outbound, operation);
        wait_for(inbound).await;
        let run = load(inbound, &receiver).await;
        print(name, &run, Some(&relay));
        let (cpu, memory) = usage(child.id());
        println!(
            "{:<28} {:>8.1} µs CPU a message, {memory} MiB at most, relay again: {:.0}/s",
            "",
            cpu * 1e6 / run.delivered as f64,
            load(relayed, &receiver).await.rate
        );
        child.kill().expect("the child runs");
        child.wait().expect("the child ends");
    }
}
