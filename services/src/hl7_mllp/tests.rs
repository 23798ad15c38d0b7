//! Over real sockets: what senders do, and what they must be told.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use septet_engine::fault::Fault;
use septet_engine::host::ServiceReply;
use septet_hl7::mllp::{Event, Limits, Scanner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::hl7_common::testing::{Desk, replied};

struct Bench {
    desk: Arc<Desk>,
    address: SocketAddr,
    run: JoinHandle<Result<(), HostFault>>,
}

fn settings() -> Settings {
    Settings {
        listen: "127.0.0.1:0".parse().unwrap(),
        ack: AckMode::default(),
        reply_timeout: half_a_minute(),
        duplicates: None,
        duplicate_window: a_day(),
        when_unavailable: WhenUnavailable::default(),
        validate: Validate::default(),
        batch: BatchMode::default(),
        max_message: ByteSize(4096),
        max_connections: max_connections(),
        frame_timeout: half_a_minute(),
        idle_timeout: MaybeNever::default(),
        charset: auto(),
        tls: None,
    }
}

async fn bench(change: impl FnOnce(&mut Settings)) -> Bench {
    let mut settings = settings();
    change(&mut settings);
    let policy = settings.written().policy(None);
    let desk = Desk::new();
    let cx = desk.context();
    let mut service =
        Box::new(MllpService { settings: Arc::new(settings), policy, listener: None, tls: None });
    service.bind(&cx).await.unwrap();
    let address = service.listener.as_ref().unwrap().local_addr().unwrap();
    Bench { desk, address, run: tokio::spawn(service.run(cx)) }
}

struct Sender {
    stream: TcpStream,
    buffer: BytesMut,
    scanner: Scanner,
}

impl Bench {
    async fn connect(&self) -> Sender {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Sender { stream, buffer: BytesMut::new(), scanner: Scanner::new(Limits { max_message: 1 << 20 }) }
    }
}

impl Sender {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next answer; `None` when the service has closed.
    async fn frame(&mut self) -> Option<Bytes> {
        loop {
            if let Event::Frame(frame) = self.scanner.next(&mut self.buffer) {
                return Some(frame.body);
            }
            if !matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// Code and MSA-2 of the next answer: `AA M1`.
    async fn told(&mut self) -> String {
        match self.frame().await {
            Some(body) => code_and_id(&body),
            None => String::from("closed"),
        }
    }
}

fn code_and_id(body: &Bytes) -> String {
    let ack = septet_hl7::ack::read_ack(body).unwrap();
    format!("{} {}", ack.code, ack.control_id)
}

fn message(id: &str) -> String {
    format!("MSH|^~\\&|LAB|KH|EPD|KH|20261122||ORU^R01|{id}|P|2.5\rPID|1||SECRET-MRN\r")
}

fn framed(body: &str) -> Vec<u8> {
    [b"\x0b", body.as_bytes(), b"\x1c\r"].concat()
}

fn frame(id: &str) -> Vec<u8> {
    framed(&message(id))
}

// === Framing ===

#[tokio::test]
async fn a_message_is_stored_byte_for_byte_and_acknowledged() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    sender.send(&frame("M1")).await;
    let ack = sender.frame().await.unwrap();
    let text = String::from_utf8(ack.to_vec()).unwrap();
    let number = text.split('|').nth(9).unwrap();
    assert!(number.parse::<u64>().is_ok() && number.len() <= 20, "{number}");
    assert_eq!(
        text.replace(number, "N"),
        "MSH|^~\\&|EPD|KH|LAB|KH|20261122091500+0000||ACK^R01^ACK|N|P|2.5\rMSA|AA|M1\r"
    );
    assert_eq!(bench.desk.bodies(), [message("M1")]);
}

#[tokio::test]
async fn a_frame_that_comes_byte_by_byte_is_one_message() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    for byte in frame("M1") {
        sender.send(&[byte]).await;
        sender.stream.flush().await.unwrap();
    }
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(bench.desk.bodies(), [message("M1")]);
}

#[tokio::test]
async fn pipelined_frames_are_each_answered_in_order() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    let ids: Vec<String> = (0..600).map(|n| format!("M{n}")).collect();
    let all: Vec<u8> = ids.iter().flat_map(|id| frame(id)).collect();
    let (mut read, mut write) = sender.stream.into_split();
    let writing = tokio::spawn(async move { write.write_all(&all).await.map(|()| write) });
    let mut buffer = BytesMut::new();
    for id in &ids {
        let body = loop {
            if let Event::Frame(frame) = sender.scanner.next(&mut buffer) {
                break frame.body;
            }
            assert!(read.read_buf(&mut buffer).await.unwrap() > 0, "closed before {id}");
        };
        assert_eq!(code_and_id(&body), format!("AA {id}"));
    }
    drop(writing.await.unwrap().unwrap());
    assert_eq!(bench.desk.ids(), ids);
}

#[tokio::test]
async fn line_ends_between_frames_are_nothing_and_junk_is_a_finding() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    sender.send(&[b"\r\n", &frame("M1")[..], b"\n\x1c\rGARBAGE", &frame("M2")].concat()).await;
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(sender.told().await, "AA M2");
    assert_eq!(bench.desk.findings(), ["bytes between frames, skipped: 8"]);
}

#[tokio::test]
async fn fs_without_cr_ends_a_frame_when_something_else_or_nothing_follows() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    let mut first = frame("M1");
    first.pop();
    sender.send(&[&first[..], &frame("M2")].concat()).await;
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(sender.told().await, "AA M2");
    let mut third = frame("M3");
    third.pop();
    sender.send(&third).await;
    while bench.desk.ids().len() < 3 {
        bench.desk.clock.advance(Duration::from_millis(250));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(sender.told().await, "AA M3");
    // The CR that comes late belongs to nothing.
    sender.send(&[b"\r", &frame("M4")[..]].concat()).await;
    assert_eq!(sender.told().await, "AA M4");
    assert_eq!(bench.desk.findings(), ["the frame ended in FS without CR"; 2]);
}

#[tokio::test]
async fn a_frame_without_a_readable_header_is_answered_and_stored_as_rejected() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    sender.send(&[framed("HELLO"), framed(""), framed("MSH"), framed("PID|1\r"), frame("M1")].concat()).await;
    let first = sender.frame().await.unwrap();
    let text = String::from_utf8(first.to_vec()).unwrap();
    assert!(text.starts_with("MSH|^~\\&|SEPTET||||"), "{text}");
    assert!(text.contains("\rMSA|AE||") && text.contains("\rERR|"), "{text}");
    for _ in 0..3 {
        assert_eq!(sender.told().await, "AE ");
    }
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(bench.desk.ids(), ["!", "!", "!", "!", "M1"]);
    assert_eq!(bench.desk.bodies()[0], "HELLO");
}

#[tokio::test]
async fn a_message_larger_than_the_limit_is_refused_and_the_connection_lives_on() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    let large = format!("{}OBX|1|TX|||{}\r", message("BIG"), "x".repeat(10_000));
    sender.send(&[framed(&large), frame("M1")].concat()).await;
    assert_eq!(sender.told().await, "AR BIG");
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(bench.desk.ids(), ["M1"]);
    assert_eq!(bench.desk.events(), ["message.rejected: the message is larger than 4096 bytes"]);
}

#[tokio::test]
async fn charset_trouble_is_a_finding_and_the_bytes_stay() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    let body = [message("M1").as_bytes(), b"NTE|1||M\xfcller\r"].concat();
    sender.send(&[b"\x0b", &body[..], b"\x1c\r"].concat()).await;
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(bench.desk.bodies()[0], body);
    assert_eq!(bench.desk.findings(), ["MSH-18 is empty, read as windows-1252"]);
}

// === Time and ends ===

#[tokio::test]
async fn a_frame_that_does_not_end_in_time_is_rejected_answered_and_closed() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    let mut unfinished = frame("SLOW");
    unfinished.truncate(unfinished.len() - 2);
    sender.send(&unfinished).await;
    while bench.desk.ids().is_empty() {
        bench.desk.clock.advance(Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(sender.told().await, "AE SLOW");
    assert_eq!(sender.told().await, "closed");
    assert_eq!(bench.desk.ids(), ["!SLOW"]);
    assert_eq!(bench.desk.bodies()[0], message("SLOW"));
}

#[tokio::test]
async fn a_connection_that_ends_inside_a_frame_leaves_a_rejected_message() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    sender.send(b"\x0bMSH|^~\\&|A|B|C|D||").await;
    drop(sender);
    bench.desk.until(1).await;
    assert_eq!(bench.desk.ids(), ["!"]);
    // One that only looked in leaves nothing.
    drop(bench.connect().await);
    let mut other = bench.connect().await;
    other.send(&frame("M1")).await;
    assert_eq!(other.told().await, "AA M1");
    assert_eq!(bench.desk.ids(), ["!", "M1"]);
}

#[tokio::test]
async fn a_sender_that_has_closed_its_side_still_gets_its_answers() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    let mut bytes = [frame("M1"), frame("M2")].concat();
    bytes.pop();
    sender.send(&bytes).await;
    sender.stream.shutdown().await.unwrap();
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(sender.told().await, "AA M2");
    assert_eq!(sender.told().await, "closed");
}

#[tokio::test]
async fn an_idle_connection_is_closed_only_where_that_is_asked_for() {
    let bench = bench(|settings| settings.idle_timeout = MaybeNever::secs(60)).await;
    let mut sender = bench.connect().await;
    sender.send(&frame("M1")).await;
    assert_eq!(sender.told().await, "AA M1");
    let (told, ()) = tokio::join!(sender.told(), async {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            bench.desk.clock.advance(Duration::from_secs(20));
        }
    });
    assert_eq!(told, "closed");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let bench = bench(|settings| settings.max_connections = 1).await;
    let mut first = bench.connect().await;
    first.send(&frame("M1")).await;
    assert_eq!(first.told().await, "AA M1");
    assert_eq!(bench.connect().await.told().await, "closed");
    first.send(&frame("M2")).await;
    assert_eq!(first.told().await, "AA M2");
}

#[tokio::test]
async fn a_stop_answers_what_has_come_and_closes() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    bench.desk.syncing.send_replace(false);
    sender.send(&frame("M1")).await;
    bench.desk.until(1).await;
    bench.desk.stop.cancel();
    bench.desk.syncing.send_replace(true);
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(sender.told().await, "closed");
    bench.run.await.unwrap().unwrap();
    assert!(TcpStream::connect(bench.address).await.is_err(), "still listening");
}

#[tokio::test]
async fn a_taken_address_is_a_fault_of_the_environment() {
    let first = bench(|_| {}).await;
    let fault = listen(first.address.to_string().parse().unwrap()).unwrap_err();
    assert_eq!(fault.code, "bind");
    assert!(fault.text.contains("in use"), "{}", fault.text);
}

// === Durability ===

#[tokio::test]
async fn no_ack_leaves_before_the_message_is_on_stable_storage() {
    let bench = bench(|_| {}).await;
    bench.desk.syncing.send_replace(false);
    let mut sender = bench.connect().await;
    sender.send(&frame("M1")).await;
    bench.desk.until(1).await;
    assert!(sender.stream.try_read(&mut [0; 16]).is_err(), "answered before it was durable");
    bench.desk.syncing.send_replace(true);
    assert_eq!(sender.told().await, "AA M1");
}

#[tokio::test]
async fn an_answer_that_gets_too_old_is_not_given() {
    let bench = bench(|_| {}).await;
    bench.desk.syncing.send_replace(false);
    let mut sender = bench.connect().await;
    sender.send(&frame("M1")).await;
    bench.desk.until(1).await;
    let (told, ()) = tokio::join!(sender.told(), async {
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            bench.desk.clock.advance(Duration::from_secs(1));
        }
    });
    assert_eq!(told, "closed");
}

#[tokio::test]
async fn a_full_store_is_told_once_and_the_listener_closes_until_it_accepts() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    bench.desk.open.send_replace(false);
    sender.send(&[frame("M1"), frame("M2")].concat()).await;
    assert_eq!(sender.told().await, "AR M1");
    assert_eq!(sender.told().await, "closed");
    while TcpStream::connect(bench.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    bench.desk.open.send_replace(true);
    while TcpStream::connect(bench.address).await.is_err() {
        tokio::task::yield_now().await;
    }
    let mut again = bench.connect().await;
    again.send(&frame("M1")).await;
    assert_eq!(again.told().await, "AA M1");
    assert_eq!(bench.desk.ids(), ["M1"]);
}

#[tokio::test]
async fn when_unavailable_answer_says_ar_each_time() {
    let bench = bench(|settings| settings.when_unavailable = WhenUnavailable::Answer).await;
    bench.desk.open.send_replace(false);
    let mut sender = bench.connect().await;
    for id in ["M1", "M2"] {
        sender.send(&frame(id)).await;
        assert_eq!(sender.told().await, format!("AR {id}"));
    }
    bench.desk.open.send_replace(true);
    sender.send(&frame("M1")).await;
    assert_eq!(sender.told().await, "AA M1");
}

// === Who is answered, when, with what ===

#[tokio::test]
async fn acknowledgements_are_stored_and_never_answered() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    let ack = "MSH|^~\\&|LAB|KH|EPD|KH|20261122||ACK^R01|A1|P|2.5\rMSA|AA|M0\r";
    sender.send(&[framed(ack), framed(&ack.replace("ACK^R01", "MCF")), frame("M1")].concat()).await;
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(bench.desk.ids(), ["A1", "A1", "M1"]);
}

#[tokio::test]
async fn never_answers_nothing() {
    let bench = bench(|settings| settings.ack = AckMode::Never).await;
    let mut sender = bench.connect().await;
    sender.send(&[framed("HELLO"), frame("M1")].concat()).await;
    sender.stream.shutdown().await.unwrap();
    assert_eq!(sender.told().await, "closed");
    assert_eq!(bench.desk.ids(), ["!", "M1"]);
}

#[tokio::test]
async fn validate_header_refuses_what_lacks_a_control_id() {
    let bench = bench(|settings| settings.validate = Validate::Header).await;
    let mut sender = bench.connect().await;
    sender.send(&frame("")).await;
    let text = String::from_utf8(sender.frame().await.unwrap().to_vec()).unwrap();
    assert!(
        text.contains("MSA|AE||MSH-10 is empty\rERR||MSH^1^10^1|101^Required field missing^HL70357|E"),
        "{text}"
    );
    assert_eq!(bench.desk.ids(), ["!"]);
    // By default it is only a finding.
    let lenient = self::bench(|_| {}).await;
    let mut sender = lenient.connect().await;
    sender.send(&frame("")).await;
    assert_eq!(sender.told().await, "AA ");
    assert_eq!(lenient.desk.findings(), ["MSH-10 is empty"]);
}

#[tokio::test]
async fn msh_gives_a_commit_answer_and_an_application_answer_as_asked() {
    let bench = bench(|settings| settings.ack = AckMode::Msh).await;
    bench.desk.replies(|_| ServiceReply::Reply { body: None, fault: None });
    let mut sender = bench.connect().await;
    let asking = |id: &str, commit: &str, application: &str| {
        framed(&format!("MSH|^~\\&|A|B|C|D|||ADT^A01|{id}|P|2.5|||{commit}|{application}\rPID|1\r"))
    };
    sender.send(&asking("M1", "AL", "AL")).await;
    assert_eq!(sender.told().await, "CA M1");
    assert_eq!(sender.told().await, "AA M1");
    sender.send(&[asking("M2", "NE", "NE"), asking("M3", "ER", ""), asking("M4", "", "")].concat()).await;
    assert_eq!(sender.told().await, "AA M4");
    sender.send(&asking("M5", "AL", "ER")).await;
    assert_eq!(sender.told().await, "CA M5");
    bench.desk.open.send_replace(false);
    sender.send(&asking("M6", "ER", "")).await;
    assert_eq!(sender.told().await, "CR M6");
}

#[tokio::test]
async fn application_passes_the_targets_ack_on_under_our_control_id() {
    let bench = bench(|settings| settings.ack = AckMode::Application).await;
    bench.desk.replies(|body| match body.as_hl7().unwrap().control_id().as_str() {
        "M1" => replied("MSH|^~\\&|PEER||||||ACK|7|P|2.5\rMSA|AE|S99|not here\rZZZ|x\r"),
        "M2" => ServiceReply::Reply { body: None, fault: None },
        "M3" => replied("MSH|^~\\&|PEER||||||ORU|7|P|2.5\rPID|1\r"),
        "M4" => {
            ServiceReply::Reply { body: None, fault: Some(Fault::new("call", "connect", "the peer is down")) }
        }
        _ => ServiceReply::Timeout,
    });
    let mut sender = bench.connect().await;
    let all: Vec<u8> = ["M1", "M2", "M3", "M4", "M5"].iter().flat_map(|id| frame(id)).collect();
    sender.send(&all).await;
    let forwarded = sender.frame().await.unwrap();
    assert_eq!(forwarded, "MSH|^~\\&|PEER||||||ACK|7|P|2.5\rMSA|AE|M1|not here\rZZZ|x\r");
    assert_eq!(sender.told().await, "AA M2");
    assert_eq!(sender.told().await, "AA M3");
    let failed = sender.frame().await.unwrap();
    assert_eq!(code_and_id(&failed), "AE M4");
    assert!(String::from_utf8_lossy(&failed).contains("the peer is down"));
    assert_eq!(sender.told().await, "AE M5");
}

// === Duplicates ===

#[tokio::test]
async fn a_duplicate_is_accepted_by_default_and_answered_again_where_asked() {
    let accepting = bench(|_| {}).await;
    let mut sender = accepting.connect().await;
    sender.send(&[frame("M1"), frame("M1")].concat()).await;
    assert_eq!((sender.told().await, sender.told().await), ("AA M1".into(), "AA M1".into()));
    assert_eq!(accepting.desk.ids(), ["M1", "M1"]);

    let again = bench(|settings| settings.duplicates = Some(DuplicatePolicy::AnswerAgain)).await;
    let mut sender = again.connect().await;
    sender.send(&frame("M1")).await;
    let first = sender.frame().await.unwrap();
    let mut other = again.connect().await;
    other.send(&frame("M1")).await;
    assert_eq!(other.frame().await.unwrap(), first, "another answer");
    // Same control id, other content: another message.
    other.send(&framed(&format!("{}NTE|1\r", message("M1")))).await;
    assert_eq!(other.told().await, "AA M1");
    assert_eq!(again.desk.ids(), ["M1", "M1"]);
    // Forgotten after a day.
    again.desk.clock.advance(Duration::from_secs(24 * 3600 + 1));
    sender.send(&frame("M1")).await;
    assert_ne!(sender.frame().await.unwrap(), first);
    assert_eq!(again.desk.ids().len(), 3);
}

#[tokio::test]
async fn a_duplicate_of_a_message_that_is_not_durable_yet_is_not_answered_either() {
    let bench = bench(|settings| settings.duplicates = Some(DuplicatePolicy::AnswerAgain)).await;
    bench.desk.syncing.send_replace(false);
    let mut first = bench.connect().await;
    first.send(&frame("M1")).await;
    bench.desk.until(1).await;
    let (told, ()) = tokio::join!(first.told(), async {
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            bench.desk.clock.advance(Duration::from_secs(1));
        }
    });
    assert_eq!(told, "closed");
    let mut second = bench.connect().await;
    second.send(&frame("M1")).await;
    while bench.desk.events().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(second.stream.try_read(&mut [0; 16]).is_err(), "answered before it was durable");
    bench.desk.syncing.send_replace(true);
    assert_eq!(second.told().await, "AA M1");
    assert_eq!(bench.desk.ids(), ["M1"]);
}

#[tokio::test]
async fn a_duplicate_is_refused_where_asked() {
    let bench = bench(|settings| settings.duplicates = Some(DuplicatePolicy::Refuse)).await;
    let mut sender = bench.connect().await;
    sender.send(&[frame("M1"), frame("M1")].concat()).await;
    assert_eq!(sender.told().await, "AA M1");
    let text = String::from_utf8(sender.frame().await.unwrap().to_vec()).unwrap();
    assert!(text.contains("MSA|AE|M1|") && text.contains("205^Duplicate key identifier"), "{text}");
    assert_eq!(bench.desk.ids(), ["M1", "!M1"]);
}

#[tokio::test]
async fn a_copy_of_a_message_still_worked_on_waits_for_its_answer() {
    let bench = bench(|settings| settings.ack = AckMode::Application).await;
    bench.desk.replies(|_| replied("MSH|^~\\&|PEER||||||ACK|7|P|2.5\rMSA|AA|M1\r"));
    bench.desk.replying.send_replace(false);
    let (mut first, mut second) = (bench.connect().await, bench.connect().await);
    first.send(&frame("M1")).await;
    bench.desk.until(1).await;
    second.send(&frame("M1")).await;
    while bench.desk.events().is_empty() {
        tokio::task::yield_now().await;
    }
    bench.desk.replying.send_replace(true);
    let answer = first.frame().await.unwrap();
    assert_eq!(second.frame().await.unwrap(), answer);
    second.send(&frame("M1")).await;
    assert_eq!(second.frame().await.unwrap(), answer);
    assert_eq!(bench.desk.ids(), ["M1"], "processed again");
}

// === Batches ===

#[tokio::test]
async fn a_batch_is_one_session_and_gets_one_answer() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    let ack = message("A1").replace("ORU^R01", "ACK^R01");
    let batch = format!(
        "BHS|^~\\&|LAB|KH|EPD|KH|20261122||||B7\r{}{}{ack}MSH\r{}BTS|5\r",
        message("M1"),
        message("M2"),
        message("M3")
    );
    sender.send(&[framed(&batch), frame("M4")].concat()).await;
    let text = String::from_utf8(sender.frame().await.unwrap().to_vec()).unwrap();
    let segments: Vec<&str> = text.split_terminator('\r').map(|segment| &segment[..3]).collect();
    assert_eq!(segments, ["BHS", "MSH", "MSA", "MSH", "MSA", "MSH", "MSA", "ERR", "MSH", "MSA", "BTS"]);
    let told: Vec<&str> = text.split('\r').filter(|segment| segment.starts_with("MSA")).collect();
    assert_eq!(told[..2], ["MSA|AA|M1", "MSA|AA|M2"]);
    assert!(told[2].starts_with("MSA|AE||") && told[3] == "MSA|AA|M3", "{told:?}");
    assert_eq!(sender.told().await, "AA M4");
    assert_eq!(bench.desk.ids(), ["M1", "M2", "A1", "!", "M3", "M4"]);
    let joined = bench.desk.joined();
    assert!(joined[0].is_none() && joined[1].is_some() && joined[1..5].iter().all(|one| *one == joined[1]));
    assert!(joined[5].is_none());
}

#[tokio::test]
async fn a_batch_waits_for_all_its_replies() {
    let bench = bench(|settings| settings.ack = AckMode::Application).await;
    bench.desk.replies(|body| match body.as_hl7().unwrap().control_id().as_str() {
        "M2" => replied("MSH|^~\\&|PEER||||||ACK|7|P|2.5\rMSA|AR|M2\r"),
        _ => ServiceReply::Reply { body: None, fault: None },
    });
    let mut sender = bench.connect().await;
    sender.send(&framed(&format!("BHS|^~\\&|LAB\r{}{}BTS|2\r", message("M1"), message("M2")))).await;
    let text = String::from_utf8(sender.frame().await.unwrap().to_vec()).unwrap();
    assert!(text.contains("\rMSA|AA|M1\r") && text.contains("\rMSA|AR|M2\r"), "{text}");
    // Sent again, it is told the same without being processed again.
    sender.send(&framed(&format!("BHS|^~\\&|LAB\r{}{}BTS|2\r", message("M1"), message("M2")))).await;
    let text = String::from_utf8(sender.frame().await.unwrap().to_vec()).unwrap();
    assert!(text.contains("\rMSA|AA|M1\r") && text.contains("\rMSA|AR|M2\r"), "{text}");
    assert_eq!(bench.desk.ids(), ["M1", "M2"]);
}

#[tokio::test]
async fn many_connections_are_served_beside_each_other() {
    let bench = bench(|_| {}).await;
    let mut senders = Vec::new();
    for _ in 0..200 {
        senders.push(bench.connect().await);
    }
    for (index, sender) in senders.iter_mut().enumerate() {
        sender.send(&frame(&format!("M{index}"))).await;
        assert_eq!(sender.told().await, format!("AA M{index}"));
    }
    assert_eq!(bench.desk.ids().len(), 200);
}

#[tokio::test]
async fn nothing_printable_shows_what_a_message_says() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    sender.send(&[frame("M1"), framed("HELLO SECRET-MRN")].concat()).await;
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(sender.told().await, "AE ");
    let printed = format!("{:?} {:?}", bench.desk.events(), bench.desk.findings());
    assert!(!printed.contains("SECRET"));
}

// === TLS ===

#[tokio::test]
async fn tls_serves_clients_with_a_certificate_and_follows_its_files() {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/tls");
    let folder = tempfile::tempdir().unwrap();
    let install = |name: &str| {
        for kind in ["pem", "key"] {
            let from = fixtures.join(format!("{name}.{kind}"));
            std::fs::copy(from, folder.path().join(format!("tls.{kind}"))).unwrap();
        }
    };
    install("server");
    let tls = ServerTls {
        cert: folder.path().join("tls.pem"),
        key: folder.path().join("tls.key"),
        client_ca: Some(fixtures.join("ca.pem")),
    };
    let bench = bench(|settings| settings.tls = Some(tls)).await;

    let certificates = |name: &str| {
        let all = CertificateDer::pem_file_iter(fixtures.join(name)).unwrap();
        all.map(Result::unwrap).collect::<Vec<_>>()
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificates("ca.pem").remove(0)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let key = PrivateKeyDer::from_pem_file(fixtures.join("client.key")).unwrap();
    let known = Arc::new(config.clone().with_client_auth_cert(certificates("client.pem"), key).unwrap());
    let unknown = Arc::new(config.with_no_client_auth());
    let exchange = async |config: &Arc<rustls::ClientConfig>, name: &'static str| {
        let stream = TcpStream::connect(bench.address).await?;
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        let mut stream = connector.connect(ServerName::try_from(name).unwrap(), stream).await?;
        stream.write_all(&frame("M1")).await?;
        let mut buffer = BytesMut::new();
        let mut scanner = Scanner::new(Limits { max_message: 1 << 20 });
        loop {
            if let Event::Frame(frame) = scanner.next(&mut buffer) {
                return Ok::<_, io::Error>(code_and_id(&frame.body));
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(String::from("closed"));
            }
        }
    };
    assert_eq!(exchange(&known, "localhost").await.unwrap(), "AA M1");
    assert!(exchange(&unknown, "localhost").await.is_err(), "served without a client certificate");
    assert_eq!(bench.desk.ids(), ["M1"]);
    // The certificate is renewed: the next connection sees the new one.
    install("other");
    assert_eq!(exchange(&known, "elsewhere.example").await.unwrap(), "AA M1");
    assert!(exchange(&known, "localhost").await.is_err());
}
