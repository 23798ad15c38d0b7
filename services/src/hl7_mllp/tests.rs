//! Over real sockets: what senders do, and what they must be told.

mod answers;
mod durability;

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use septet_hl7::mllp::{Event, Limits, Scanner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::hl7_common::testing::{Desk, free_port};

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

    /// What happens while the clock moves on step by step: whenever a wait begins, it is over soon.
    async fn as_time_passes<T>(&self, step: Duration, happens: impl Future<Output = T>) -> T {
        let passes = async {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                self.desk.clock.advance(step);
            }
        };
        tokio::select! {
            happened = happens => happened,
            () = passes => unreachable!("time does not end"),
        }
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
    assert_eq!(bench.as_time_passes(Duration::from_secs(20), sender.told()).await, "closed");
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

// === Batches ===

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
