//! MLLP → router → MLLP over real sockets, as a ratio to a bare ack-and-forward relay in the same run.
//!
//! Load: 32 connections, one message outstanding on each, 1 KiB ADT, 1,000 patients. Septet stores every
//! message before it acknowledges, and forwards over 8 connections (`pool_size = 8`, `order_by = "PID-3.1"`),
//! then over one; the relay stores nothing and forwards over 8. Sender and receiver are this process; Septet
//! and the relay are each a process of its own, so that both pay for the same switches between processes.
//!
//! Rates count what has been delivered to the receiver, not only acknowledged. The receiver checks that every
//! acknowledged message came, and each patient's messages in order. The ratio is to the mean of the relay's
//! rates right before and right after.
//!
//! `cargo bench --bench relay` runs it. `SEPTET_BENCH_SECONDS` (5) is the length of one run,
//! `SEPTET_BENCH_POOLS` (`8,1`) says which pools, `SEPTET_BENCH_BINARY` names another Septet to compare with.

use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const CONNECTIONS: usize = 32;
const PATIENTS: usize = 1000;
const POOL: usize = 8;
/// Tells the relay's process where it listens and where it forwards to.
const RELAY: &str = "SEPTET_BENCH_RELAY";

fn seconds() -> u64 {
    std::env::var("SEPTET_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

/// The frame of a 1 KiB ADT^A08 of one connection, and where its number and its patient stand: eight and five
/// digits. Only these change from message to message, so that the load costs next to nothing.
fn template(connection: usize) -> (Vec<u8>, usize, usize) {
    let mut text = format!(
        "\x0bMSH|^~\\&|ADT|HOSP|EHR|HOSP|20260301081530||ADT^A08^ADT_A01|{connection:02}-00000000|P|2.5.1\r\
         EVN|A08|20260301081530\rPID|1||P00000^^^HOSP^MR||Sample^Sam||19700105|F|||1 Example \
         Street^^Town^^12345\rPV1|1|I|WARD^1^2\r"
    );
    while text.len() < 1024 - 60 {
        text.push_str("OBX|1|ST|0000-0^Filler^LN||a value that fills a segment|||||F\r");
    }
    text.push_str("\x1c\r");
    let number = text.find("-00000000").expect("it stands there") + 1;
    let patient = text.find("P00000").expect("it stands there") + 1;
    (text.into_bytes(), number, patient)
}

/// Overwrites so many decimal digits at a place.
fn put(frame: &mut [u8], at: usize, digits: usize, mut number: usize) {
    for place in (at..at + digits).rev() {
        if let Some(byte) = frame.get_mut(place) {
            *byte = b'0' + (number % 10) as u8;
        }
        number /= 10;
    }
}

/// The next frame's body of a connection.
async fn frame(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let mut seen = 0;
    loop {
        let end = end_of_frame(buffer.get(seen..).unwrap_or_default());
        if let Some(end) = end {
            let end = seen + end;
            if buffer.len() > end + 1 {
                let mut body = buffer.split_to(end);
                buffer.advance(2);
                body.advance(1);
                return Ok(Some(body));
            }
        }
        seen = buffer.len().saturating_sub(1);
        buffer.reserve(4096);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Where a frame ends.
fn end_of_frame(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == 0x1c)
}

fn control_id(body: &[u8]) -> &[u8] {
    body.split(|byte| *byte == b'|').nth(9).unwrap_or_default()
}

fn patient(body: &[u8]) -> &[u8] {
    let start = body.windows(5).position(|window| window == b"\rPID|").map_or(0, |at| at + 1);
    let field = body.get(start..).unwrap_or_default().split(|byte| *byte == b'|').nth(3).unwrap_or_default();
    field.split(|byte| *byte == b'^').next().unwrap_or_default()
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A positive answer, as a frame.
fn ack(id: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(b"\x0bMSH|^~\\&|EHR|HOSP|ADT|HOSP|20260301||ACK^A08|A");
    out.extend_from_slice(id);
    out.extend_from_slice(b"|P|2.5.1\rMSA|AA|");
    out.extend_from_slice(id);
    out.extend_from_slice(b"\r\x1c\r");
}

/// Counts what arrives and checks that each patient's messages come in order, none twice.
struct Receiver {
    count: AtomicU64,
    overtaken: AtomicU64,
    /// By patient: the number of the message that came last, plus one.
    last: Vec<AtomicU64>,
}

impl Receiver {
    fn new() -> Arc<Self> {
        let last = (0..PATIENTS + CONNECTIONS).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Receiver { count: AtomicU64::new(0), overtaken: AtomicU64::new(0), last })
    }

    fn reset(&self) {
        self.count.store(0, Ordering::Relaxed);
        self.overtaken.store(0, Ordering::Relaxed);
        for last in &self.last {
            last.store(0, Ordering::Relaxed);
        }
    }

    /// Ids are `CONNECTION-NUMBER`; a patient belongs to one connection.
    fn take(&self, id: &[u8], body: &[u8]) {
        let number = id.get(3..).and_then(number).map_or(0, |number| number + 1);
        let patient = patient(body).get(1..).and_then(self::number).unwrap_or(0);
        let last = usize::try_from(patient).ok().and_then(|patient| self.last.get(patient));
        if last.is_none_or(|last| last.swap(number, Ordering::Relaxed) >= number) {
            self.overtaken.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

async fn receive(listener: TcpListener, receiver: Arc<Receiver>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let receiver = receiver.clone();
        stream.set_nodelay(true).expect("a socket option");
        tokio::spawn(async move {
            let mut buffer = BytesMut::with_capacity(16 * 1024);
            let mut answer = Vec::new();
            while let Ok(Some(body)) = frame(&mut stream, &mut buffer).await {
                let id = control_id(&body);
                receiver.take(id, &body);
                ack(id, &mut answer);
                if stream.write_all(&answer).await.is_err() {
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
            let mut out = Vec::new();
            while let Some(body) = queue.recv().await {
                out.clear();
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
            let mut answer = Vec::new();
            while let Ok(Some(body)) = frame(&mut stream, &mut buffer).await {
                ack(control_id(&body), &mut answer);
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
    /// Delivered, per second.
    rate: f64,
    /// Acknowledged, per second of sending.
    acked: f64,
    p50: Duration,
    p99: Duration,
    overtaken: u64,
    /// CPU of this process, that is of the load and the receiver.
    load_cpu: f64,
}

/// Sends for some seconds over all connections, then waits until everything has been delivered.
async fn load(port: u16, receiver: &Arc<Receiver>, length: Duration) -> Run {
    receiver.reset();
    let cpu = usage(std::process::id()).0;
    let start = Instant::now();
    let end = start + length;
    let senders: Vec<_> = (0..CONNECTIONS)
        .map(|connection| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the service listens");
                stream.set_nodelay(true).expect("a socket option");
                let mut buffer = BytesMut::with_capacity(4096);
                let mut times = Vec::with_capacity(1 << 16);
                let (mut out, number_at, patient_at) = template(connection);
                let mut sent = Instant::now();
                for number in 0_usize.. {
                    if sent > end {
                        break;
                    }
                    put(&mut out, number_at, 8, number);
                    // Every patient belongs to one connection, so that its order is known.
                    put(
                        &mut out,
                        patient_at,
                        5,
                        (number % (PATIENTS / CONNECTIONS)) * CONNECTIONS + connection,
                    );
                    stream.write_all(&out).await.expect("the service reads");
                    let answer =
                        frame(&mut stream, &mut buffer).await.expect("the service answers").expect("an ack");
                    let positive = answer.windows(7).any(|window| window == b"MSA|AA|");
                    assert!(positive, "not acknowledged");
                    let now = Instant::now();
                    times.push(now - sent);
                    sent = now;
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for sender in senders {
        times.extend(sender.await.expect("a sender"));
    }
    let acked = times.len() as f64 / start.elapsed().as_secs_f64();
    let sent = times.len() as u64;
    while receiver.count.load(Ordering::Relaxed) < sent {
        assert!(start.elapsed() < length * 20 + Duration::from_secs(60), "not everything was delivered");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = start.elapsed();
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() as f64) * share) as usize).copied().unwrap_or_default();
    Run {
        delivered: receiver.count.load(Ordering::Relaxed),
        rate: sent as f64 / took.as_secs_f64(),
        acked,
        p50: at(0.5),
        p99: at(0.99),
        overtaken: receiver.overtaken.load(Ordering::Relaxed),
        load_cpu: usage(std::process::id()).0 - cpu,
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a free port")
        .port()
}

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The binary with a production that routes from one port to another.
fn septet(folder: &std::path::Path, inbound: u16, outbound: u16, operation: &str) -> Process {
    let text = format!(
        "[production]\nname = \"bench\"\n[store]\npath = \"data\"\nretention = \"30d\"\n\
         [services.in]\ntype = \"hl7.mllp\"\nlisten = \"127.0.0.1:{inbound}\"\ntargets = [\"router\"]\n\
         [processes.router]\ntype = \"router\"\n[[processes.router.rules]]\nwhen = {{ \"MSH-9.1\" = \"ADT\" }}\n\
         send = [\"out\"]\n[operations.out]\ntype = \"hl7.mllp\"\nconnect = \"127.0.0.1:{outbound}\"\n{operation}\n"
    );
    std::fs::write(folder.join("production.toml"), text).expect("a temporary folder");
    let binary = std::env::var("SEPTET_BENCH_BINARY").unwrap_or(env!("CARGO_BIN_EXE_septet").to_owned());
    let child = Command::new(binary)
        .arg("run")
        .arg(folder)
        .env("SEPTET_LOG", "error")
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary starts");
    Process(child)
}

/// This program again, as the relay.
fn relay_process(inbound: u16, outbound: u16) -> Process {
    let program = std::env::current_exe().expect("this program");
    let child = Command::new(program).env(RELAY, format!("{inbound},{outbound}")).spawn().expect("it starts");
    Process(child)
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

fn print(name: &str, run: &Run) {
    println!(
        "{name:<26} {:>7} messages delivered {:>6.0}/s, acked {:>6.0}/s, ack p50 {:.2} ms, p99 {:.2} ms, out of order {}",
        run.delivered,
        run.rate,
        run.acked,
        run.p50.as_secs_f64() * 1e3,
        run.p99.as_secs_f64() * 1e3,
        run.overtaken,
    );
}

/// Microseconds of CPU for each message.
fn each(cpu: f64, run: &Run) -> f64 {
    cpu * 1e6 / run.delivered as f64
}

/// The relay's run, with its CPU told.
async fn relay_run(port: u16, process: &Process, receiver: &Arc<Receiver>, length: Duration) -> f64 {
    let before = usage(process.0.id()).0;
    let run = load(port, receiver, length).await;
    print("bare ack-and-forward relay", &run);
    let cpu = usage(process.0.id()).0 - before;
    println!(
        "{:<26} CPU a message: relay {:.1} µs, load {:.1} µs",
        "",
        each(cpu, &run),
        each(run.load_cpu, &run)
    );
    run.rate
}

#[tokio::main]
async fn main() {
    if let Some((inbound, outbound)) =
        std::env::var(RELAY).ok().as_deref().and_then(|ports| ports.split_once(','))
    {
        let listener = TcpListener::bind(format!("127.0.0.1:{inbound}")).await.expect("a free port");
        return relay(listener, outbound.parse().expect("a port")).await;
    }
    let receiver = Receiver::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let outbound = listener.local_addr().expect("bound").port();
    tokio::spawn(receive(listener, receiver.clone()));

    let relayed = free_port();
    let process = relay_process(relayed, outbound);
    wait_for(relayed).await;
    let length = Duration::from_secs(seconds());
    // Whatever is slow at first is slow here.
    load(relayed, &receiver, Duration::from_secs(1)).await;
    let mut before = relay_run(relayed, &process, &receiver, length).await;

    let pools = std::env::var("SEPTET_BENCH_POOLS").unwrap_or("8,1".to_owned());
    for pool in pools.split(',') {
        let operation = match pool {
            "1" => "pool_size = 1".to_owned(),
            _ => format!("pool_size = {pool}\norder_by = \"PID-3.1\""),
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inbound = free_port();
        let child = septet(folder.path(), inbound, outbound, &operation);
        wait_for(inbound).await;
        let start = usage(child.0.id()).0;
        let run = load(inbound, &receiver, length).await;
        let (cpu, memory) = usage(child.0.id());
        drop(child);
        print(&format!("septet, pool {pool}"), &run);
        println!(
            "{:<26} CPU a message: septet {:.1} µs, load {:.1} µs; {memory} MiB at most",
            "",
            each(cpu - start, &run),
            each(run.load_cpu, &run),
        );
        let after = relay_run(relayed, &process, &receiver, length).await;
        println!("==> pool {pool}: {:.1} % of the relay", run.rate / ((before + after) / 2.0) * 100.0);
        before = after;
    }
}
