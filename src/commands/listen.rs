//! `septet listen`: a receiver for tests. It acknowledges, or does what a script of faults says, prints what
//! came (type and control id only, unless asked), and counts.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::Args;
use septet_engine::clock::{Clock as _, SystemClock};
use septet_engine::config::units::DurationText;
use septet_hl7::Message;
use septet_hl7::ack::{AckCode, AckSpec, build_ack};
use septet_hl7::mllp::{self, Event, Limits, Scanner};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::send::address;
use super::stop::asked_to_stop;
use crate::output;

/// The largest message.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Answers that wait for the writer of one connection.
const OUTSTANDING: usize = 1024;

/// Receives over MLLP, scripted: acknowledges, or does what a fault says.
///
/// Several faults take turns, message by message over all connections; `ack` stands for a plain
/// acknowledgement among them. Ends with ctrl-c, SIGTERM or --count, and prints counts.
#[derive(Args, Debug)]
pub(crate) struct Listen {
    /// mllp://HOST:PORT
    url: String,
    /// no-ack, late[=5s] (the answer comes that much later), wrong-id, nak[=AE] (a negative answer), close
    /// (without an answer), slow[=1s] (the answer comes byte by byte over that time).
    #[arg(long, value_name = "KIND")]
    fault: Vec<Fault>,
    /// Only so many messages meet a fault; the later ones are acknowledged.
    #[arg(long, value_name = "N")]
    times: Option<u64>,
    /// End after so many messages.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print whole messages.
    #[arg(long)]
    bodies: bool,
    /// Print nothing but the counts.
    #[arg(long)]
    quiet: bool,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

/// What happens instead of a plain acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Ack,
    NoAck,
    Late(Duration),
    WrongId,
    Nak(AckCode),
    Close,
    Slow(Duration),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, parameter) = match text.split_once('=') {
            Some((kind, parameter)) => (kind, Some(parameter)),
            None => (text, None),
        };
        let duration = |default: u64| match parameter {
            None => Ok(Duration::from_secs(default)),
            Some(text) => text.parse::<DurationText>().map(Duration::from).map_err(|error| error.to_string()),
        };
        let fault = match kind {
            "late" => return duration(5).map(Fault::Late),
            "slow" => return duration(1).map(Fault::Slow),
            "nak" => {
                let code = parameter.unwrap_or("AE").parse().map_err(|_| "there are AE, AR, CE and CR")?;
                return Ok(Fault::Nak(code));
            }
            "ack" => Fault::Ack,
            "no-ack" => Fault::NoAck,
            "wrong-id" => Fault::WrongId,
            "close" => Fault::Close,
            _ => return Err("there are no-ack, late, wrong-id, nak, close, slow and ack".into()),
        };
        if parameter.is_some() {
            return Err(format!("{kind} takes no parameter"));
        }
        Ok(fault)
    }
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Ack => "ack",
            Fault::NoAck => "no-ack",
            Fault::Late(_) => "late",
            Fault::WrongId => "wrong-id",
            Fault::Nak(_) => "nak",
            Fault::Close => "close",
            Fault::Slow(_) => "slow",
        }
    }
}

/// What all connections share.
struct Shared {
    options: Listen,
    clock: SystemClock,
    connections: AtomicU64,
    received: AtomicU64,
    /// Positive answers.
    acknowledged: AtomicU64,
    faults: AtomicU64,
    unreadable: AtomicU64,
    /// Hashes of type, control id and bytes.
    seen: Mutex<HashSet<u64>>,
    hasher: RandomState,
    repeated: AtomicU64,
    /// `--count` has been reached.
    enough: CancellationToken,
}

/// What the writer of a connection does.
enum Answer {
    Send(Bytes),
    /// Byte by byte over this time.
    Trickle(Bytes, Duration),
}

impl Listen {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        let Some(address) = address(&self.url) else {
            output::error("write mllp://HOST:PORT");
            return ExitCode::from(2);
        };
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => {
                output::error(format_args!("cannot listen on {address}: {error}"));
                return ExitCode::from(3);
            }
        };
        if let Ok(bound) = listener.local_addr() {
            eprintln!("listening on mllp://{bound}");
        }
        let shared = Arc::new(Shared {
            options: self,
            clock: SystemClock,
            connections: AtomicU64::new(0),
            received: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
            seen: Mutex::default(),
            hasher: RandomState::new(),
            repeated: AtomicU64::new(0),
            enough: CancellationToken::new(),
        });
        let mut connections = tokio::task::JoinSet::new();
        let interrupt = asked_to_stop();
        tokio::pin!(interrupt);
        loop {
            tokio::select! {
                () = &mut interrupt => break,
                () = shared.enough.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        let number = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
                        connections.spawn(serve(stream, number, shared.clone()));
                    }
                }
            }
        }
        drop(listener);
        // The answers to the last messages are on their way; nobody closes for us.
        if shared.enough.is_cancelled() {
            let finish = async { while connections.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(Duration::from_secs(5), finish).await;
        }
        shared.report();
        ExitCode::SUCCESS
    }
}

async fn serve(stream: TcpStream, number: u64, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    // Late answers overtake nothing: while they wait, others are read and answered.
    let (answers, queue) = mpsc::channel(OUTSTANDING);
    tokio::join!(receive(reader, number, answers, &shared), write(writer, queue));
}

async fn write(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Answer>) {
    let mut out = BytesMut::new();
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some(answer) = next.take() {
            match answer {
                Answer::Send(frame) => out.extend_from_slice(&frame),
                Answer::Trickle(frame, over) => {
                    if !out.is_empty() && writer.write_all_buf(&mut out).await.is_err() {
                        return;
                    }
                    let pause = over / u32::try_from(frame.len()).unwrap_or(u32::MAX).max(1);
                    for byte in frame {
                        tokio::time::sleep(pause).await;
                        if writer.write_all(&[byte]).await.is_err() {
                            return;
                        }
                    }
                }
            }
            next = queue.try_recv().ok();
        }
        if !out.is_empty() && writer.write_all_buf(&mut out).await.is_err() {
            return;
        }
    }
}

async fn receive(
    mut reader: OwnedReadHalf,
    number: u64,
    answers: mpsc::Sender<Answer>,
    shared: &Arc<Shared>,
) {
    let mut scanner = Scanner::new(Limits { max_message: MAX_MESSAGE });
    let mut buffer = BytesMut::new();
    let mut lines = String::new();
    // Late answers outlive the reading, not the connection.
    let mut late = tokio::task::JoinSet::new();
    'reading: loop {
        let more = loop {
            match scanner.next(&mut buffer) {
                Event::Frame(frame) => {
                    if !shared.take(&frame.body, number, &answers, &mut late, &mut lines).await {
                        shared.print(&mut lines);
                        return;
                    }
                }
                Event::TooLarge(_) => {}
                Event::NeedMore { .. } => break true,
            }
        };
        shared.print(&mut lines);
        buffer.reserve(8 * 1024);
        tokio::select! {
            read = reader.read_buf(&mut buffer) => {
                if !more || !matches!(read, Ok(1..)) {
                    break 'reading;
                }
            }
            () = shared.enough.cancelled() => break 'reading,
        }
    }
    drop(answers);
}

impl Shared {
    /// Counts, prints and answers a message; false when the connection is to be closed.
    async fn take(
        &self,
        body: &Bytes,
        connection: u64,
        answers: &mpsc::Sender<Answer>,
        late: &mut tokio::task::JoinSet<()>,
        lines: &mut String,
    ) -> bool {
        let index = self.received.fetch_add(1, Ordering::Relaxed);
        let message = Message::parse(body.clone()).ok();
        if message.is_none() {
            self.unreadable.fetch_add(1, Ordering::Relaxed);
        }
        let hash = self.hasher.hash_one(body);
        if !self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(hash) {
            self.repeated.fetch_add(1, Ordering::Relaxed);
        }
        let fault = self.fault(index);
        if fault != Fault::Ack {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        self.describe(body, message.as_ref(), connection, fault, lines);
        let answer = self.answer(message.as_ref(), fault, index);
        let positive = message.is_some() && !matches!(fault, Fault::NoAck | Fault::Close | Fault::Nak(_));
        self.acknowledged.fetch_add(u64::from(positive), Ordering::Relaxed);
        let stays = match fault {
            Fault::Close => false,
            Fault::NoAck => true,
            Fault::Late(by) => {
                let answers = answers.clone();
                late.spawn(async move {
                    tokio::time::sleep(by).await;
                    // The sender may have gone.
                    let _ = answers.send(Answer::Send(answer)).await;
                });
                true
            }
            Fault::Slow(over) => answers.send(Answer::Trickle(answer, over)).await.is_ok(),
            Fault::Ack | Fault::WrongId | Fault::Nak(_) => answers.send(Answer::Send(answer)).await.is_ok(),
        };
        if self.options.count == Some(index + 1) {
            self.enough.cancel();
        }
        stays
    }

    fn fault(&self, index: u64) -> Fault {
        let script = &self.options.fault;
        if script.is_empty() || self.options.times.is_some_and(|times| index >= times) {
            return Fault::Ack;
        }
        let turn = usize::try_from(index % script.len() as u64).unwrap_or(0);
        script.get(turn).copied().unwrap_or(Fault::Ack)
    }

    fn answer(&self, message: Option<&Message>, fault: Fault, index: u64) -> Bytes {
        let number = (index + 1).to_string();
        let timestamp = self.clock.now().strftime("%Y%m%d%H%M%S+0000").to_string();
        let code = match fault {
            Fault::Nak(code) => code,
            _ if message.is_none() => AckCode::AE,
            _ => AckCode::AA,
        };
        let ack = build_ack(message, &AckSpec::new(code, &number, &timestamp));
        let other = || {
            let ack = Message::parse(ack.clone()).ok()?;
            let path = "MSA-2".parse().ok()?;
            let other = [b"X", ack.raw_at(&path)].concat();
            Some(ack.set_raw(&path, &other).ok()?.raw().clone())
        };
        let ack = if fault == Fault::WrongId { other().unwrap_or(ack.clone()) } else { ack };
        let mut frame = BytesMut::new();
        mllp::encode(&ack, &mut frame);
        frame.freeze()
    }

    fn describe(
        &self,
        body: &Bytes,
        message: Option<&Message>,
        connection: u64,
        fault: Fault,
        lines: &mut String,
    ) {
        if self.options.quiet {
            return;
        }
        let kind = message.map_or_else(|| "unreadable".into(), Message::message_type);
        let control_id = message.map(Message::control_id).unwrap_or_default();
        let text = self.options.bodies.then(|| String::from_utf8_lossy(body));
        let fault = (fault != Fault::Ack).then(|| fault.name());
        if self.options.json {
            let mut line = json!({
                "connection": connection, "type": kind, "control_id": control_id,
                "size": body.len(), "fault": fault,
            });
            if let (Some(text), Some(object)) = (text, line.as_object_mut()) {
                object.insert("body".into(), text.into());
            }
            let _ = writeln!(lines, "{line}");
        } else {
            let fault = fault.map(|fault| format!("  {fault}")).unwrap_or_default();
            let _ = writeln!(lines, "{kind} {control_id}{fault}");
            if let Some(text) = text {
                let _ = writeln!(lines, "{}\n", text.trim_end().replace("\r\n", "\r").replace('\r', "\n"));
            }
        }
    }

    fn print(&self, lines: &mut String) {
        if !lines.is_empty() {
            output::line(lines.trim_end_matches('\n'));
            lines.clear();
        }
    }

    fn report(&self) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (received, acknowledged, faults) =
            (get(&self.received), get(&self.acknowledged), get(&self.faults));
        let (repeated, unreadable, connections) =
            (get(&self.repeated), get(&self.unreadable), get(&self.connections));
        if self.options.json {
            output::line(json!({
                "received": received, "acknowledged": acknowledged, "faults": faults,
                "repeated": repeated, "unreadable": unreadable, "connections": connections,
            }));
        } else {
            output::line(format_args!(
                "{received} received, {acknowledged} acknowledged, {faults} faults, {repeated} repeated, \
                 {unreadable} unreadable, {connections} connections"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_a_kind_and_perhaps_a_parameter() {
        assert_eq!("late".parse(), Ok(Fault::Late(Duration::from_secs(5))));
        assert_eq!("slow=250ms".parse(), Ok(Fault::Slow(Duration::from_millis(250))));
        assert_eq!("nak=AR".parse(), Ok(Fault::Nak(AckCode::AR)));
        assert_eq!("nak".parse(), Ok(Fault::Nak(AckCode::AE)));
        for wrong in ["nack", "late=soon", "nak=XX", "close=1"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
    }
}
