//! Against peers over real sockets, one for each habit that was measured.

use std::sync::Mutex;

use bytes::BytesMut;
use jiff::Timestamp;
use septet_engine::clock::ManualClock;
use septet_engine::host::Disposition;
use septet_hl7::mllp::{Event, Limits, Scanner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::*;
use crate::testing::{Events, delivery, hl7, record, runtime};

/// What a peer does with one frame.
enum Does {
    /// Sends these bytes.
    Sends(Vec<u8>),
    /// Sends these bytes and closes.
    SendsAndCloses(Vec<u8>),
}

#[derive(Default)]
struct Seen {
    frames: Mutex<Vec<(usize, Bytes)>>,
    more: Notify,
}

struct Peer {
    address: String,
    seen: Arc<Seen>,
}

impl Peer {
    /// Answers the n-th frame (from 0) of all connections as `habit` says.
    async fn start(habit: impl Fn(usize, &Bytes) -> Does + Send + Sync + 'static) -> Peer {
        Peer::with(move |_, index, frame| habit(index, frame)).await
    }

    /// Answers each frame of the n-th connection (from 0) as `habit` says.
    async fn start_numbered(habit: impl Fn(usize, &Bytes) -> Does + Send + Sync + 'static) -> Peer {
        Peer::with(move |number, _, frame| habit(number, frame)).await
    }

    async fn with(habit: impl Fn(usize, usize, &Bytes) -> Does + Send + Sync + 'static) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Seen::default());
        let (habit, theirs) = (Arc::new(habit), seen.clone());
        tokio::spawn(async move {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(converse(stream, number, habit.clone(), theirs.clone()));
            }
        });
        Peer { address, seen }
    }

    async fn frames(&self, count: usize) -> Vec<(usize, Bytes)> {
        loop {
            let more = self.seen.more.notified();
            let frames = self.seen.frames.lock().unwrap().clone();
            if frames.len() >= count {
                return frames;
            }
            more.await;
        }
    }
}

async fn converse(
    mut stream: TcpStream,
    number: usize,
    habit: Arc<impl Fn(usize, usize, &Bytes) -> Does>,
    seen: Arc<Seen>,
) {
    let mut scanner = Scanner::new(Limits { max_message: 1 << 20 });
    let mut buffer = BytesMut::new();
    loop {
        while let Event::Frame(frame) = scanner.next(&mut buffer) {
            let index = {
                let mut frames = seen.frames.lock().unwrap();
                frames.push((number, frame.body.clone()));
                frames.len() - 1
            };
            seen.more.notify_one();
            match habit(number, index, &frame.body) {
                Does::Sends(bytes) => stream.write_all(&bytes).await.unwrap(),
                Does::SendsAndCloses(bytes) => return stream.write_all(&bytes).await.unwrap(),
            }
        }
        if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}

fn framed(body: &str) -> Vec<u8> {
    [b"\x0b", body.as_bytes(), b"\x1c\r"].concat()
}

fn ack(code: &str, control_id: &str) -> Vec<u8> {
    framed(&format!("MSH|^~\\&|P|Q|A|B|20260101||ACK|9|P|2.5\rMSA|{code}|{control_id}\r"))
}

fn id_of(frame: &Bytes) -> String {
    Message::parse(frame.clone()).unwrap().control_id().into_owned()
}

fn message(id: &str) -> Body {
    hl7(&format!("MSH|^~\\&|A|B|P|Q|20260101||ADT^A01|{id}|P|2.5\rPID|1||SECRET-MRN\r"))
}

struct Bench {
    operation: MllpOperation,
    runtime: Runtime,
    events: Arc<Events>,
    next: u64,
}

fn bench(connect: &str, change: impl FnOnce(&mut Settings)) -> Bench {
    let mut settings = Settings {
        connect: connect.parse().unwrap(),
        stay_connected: true,
        match_ack: MatchAck::default(),
        control_id: ControlId::default(),
        tls: None,
    };
    change(&mut settings);
    let events = Arc::new(Events::default());
    let runtime = runtime(events.clone());
    let operation = MllpOperation::new(Arc::new(settings), runtime.clone(), "out".into());
    Bench { operation, runtime, events, next: 1 }
}

impl Bench {
    fn with_clock(mut self, clock: Arc<ManualClock>) -> Self {
        self.runtime.clock = clock;
        self.operation.runtime = self.runtime.clone();
        self
    }

    async fn send(&mut self, body: Body) -> Result<Outcome, OperationError> {
        let cx = delivery(self.next, body, &self.runtime);
        self.next += 1;
        self.operation.on_message(&cx).await
    }

    async fn code(&mut self, id: &str) -> String {
        match self.send(message(id)).await.unwrap() {
            Outcome::Replied { code, .. } => code,
            Outcome::Sent => String::from("sent"),
        }
    }
}

fn manual() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH))
}

#[tokio::test]
async fn messages_go_out_unchanged_over_one_connection_and_their_acks_come_back() {
    let peer = Peer::start(|_, frame| Does::Sends(ack("AA", &id_of(frame)))).await;
    let mut bench = bench(&peer.address, |_| {});
    for id in ["M1", "M2", "M3"] {
        assert_eq!(bench.code(id).await, "AA");
    }
    let frames = peer.frames(3).await;
    assert!(frames.iter().all(|(connection, _)| *connection == 0), "reconnected");
    assert_eq!(frames[1].1, message("M2").bytes());
    let Outcome::Replied { body, fault, .. } = bench.send(message("M4")).await.unwrap() else { panic!() };
    assert_eq!(body.unwrap().as_hl7().unwrap().value("MSA-2").unwrap(), "M4");
    assert!(fault.is_none() && bench.events.kinds().is_empty());
}

#[tokio::test]
async fn an_ack_that_is_not_ours_is_counted_and_never_credited() {
    let peer = Peer::start(|index, frame| {
        let ours = ack(if index == 2 { "AE" } else { "AA" }, &id_of(frame));
        let noise = match index {
            0 => [ack("AA", "OTHER"), framed("MSH|^~\\&|\r"), framed("HELLO")].concat(),
            // The habit of node-hl7-server: all earlier acks again.
            2 => [ack("AA", "M0"), ack("AA", "M1")].concat(),
            _ => Vec::new(),
        };
        Does::Sends([b"\r\n", &noise[..], &ours].concat())
    })
    .await;
    let mut bench = bench(&peer.address, |_| {});
    assert_eq!(bench.code("M0").await, "AA");
    assert_eq!(bench.events.kinds(), ["ack.stray"]);
    assert_eq!(bench.code("M1").await, "AA");
    assert_eq!(bench.code("M2").await, "AE", "an earlier AA was credited");
    assert_eq!(bench.events.kinds(), ["ack.stray", "ack.late"]);
}

#[tokio::test]
async fn a_peer_that_repeats_all_its_acks_gets_a_new_connection_before_they_are_too_many() {
    let all = Mutex::new((usize::MAX, Vec::new()));
    let peer = Peer::start_numbered(move |connection, frame| {
        let mut all = all.lock().unwrap();
        if all.0 != connection {
            *all = (connection, Vec::new());
        }
        all.1.extend(ack("AA", &id_of(frame)));
        Does::Sends(all.1.clone())
    })
    .await;
    let mut bench = bench(&peer.address, |_| {});
    for id in 0..100 {
        assert_eq!(bench.code(&format!("M{id}")).await, "AA");
    }
    let connections = peer.frames(100).await.last().unwrap().0;
    assert!((4..8).contains(&connections), "{connections} connections");
    assert!(bench.events.kinds().iter().all(|kind| *kind == "ack.late"));
}

#[tokio::test]
async fn what_came_after_an_ack_is_taken_out_before_the_next_message() {
    let peer = Peer::start(|index, frame| {
        let ours = ack("AA", &id_of(frame));
        // A second ack for the first message, and one that claims to be for the next.
        Does::Sends(if index == 0 { [ours, ack("AE", "M0"), ack("AE", "M1")].concat() } else { ours })
    })
    .await;
    let mut bench = bench(&peer.address, |_| {});
    assert_eq!(bench.code("M0").await, "AA");
    assert_eq!(bench.code("M1").await, "AA", "an ack from before the message was credited");
    assert_eq!(bench.events.kinds(), ["ack.late", "ack.stray"]);
}

#[tokio::test]
async fn after_a_timeout_the_connection_is_dropped_and_its_late_ack_with_it() {
    let peer = Peer::start(|index, frame| {
        Does::Sends(if index == 0 { Vec::new() } else { ack("AA", &id_of(frame)) })
    })
    .await;
    let clock = manual();
    let mut bench = bench(&peer.address, |_| {}).with_clock(clock.clone());
    let first = tokio::join!(bench.send(message("M1")), async {
        peer.frames(1).await;
        clock.advance(Duration::from_secs(10));
    });
    let error = first.0.unwrap_err();
    assert_eq!((error.fault.code.as_str(), &error.disposition), ("timeout", &Disposition::ByCode("fault")));
    assert_eq!(bench.code("M1").await, "AA");
    let connections: Vec<usize> = peer.frames(2).await.iter().map(|(connection, _)| *connection).collect();
    assert_eq!(connections, [0, 1]);
}

#[tokio::test]
async fn a_peer_that_closes_after_each_ack_loses_nothing_and_is_no_error() {
    let peer = Peer::start(|_, frame| Does::SendsAndCloses(ack("AA", &id_of(frame)))).await;
    let mut bench = bench(&peer.address, |_| {});
    for id in 0..30 {
        assert_eq!(bench.code(&format!("M{id}")).await, "AA");
    }
    let mut ids: Vec<String> = peer.frames(30).await.iter().map(|(_, frame)| id_of(frame)).collect();
    ids.dedup();
    assert_eq!(ids.len(), 30);
    assert!(bench.events.kinds().is_empty());
}

#[tokio::test]
async fn a_close_without_an_answer_is_a_fault() {
    let peer = Peer::start(|_, _| Does::SendsAndCloses(Vec::new())).await;
    let error = bench(&peer.address, |_| {}).send(message("M1")).await.unwrap_err();
    assert_eq!((error.fault.code.as_str(), &error.disposition), ("closed", &Disposition::ByCode("fault")));
    let half = Peer::start(|_, _| Does::SendsAndCloses(b"\x0bMSH|^~".to_vec())).await;
    let error = bench(&half.address, |_| {}).send(message("M1")).await.unwrap_err();
    assert!(error.fault.text.ends_with("in the middle of its answer"), "{}", error.fault.text);
}

#[tokio::test]
async fn a_closed_connection_is_noticed_while_idle() {
    let peer = Peer::start(|index, frame| {
        let ours = ack("AA", &id_of(frame));
        if index == 0 { Does::SendsAndCloses([ours, ack("AA", "X")].concat()) } else { Does::Sends(ours) }
    })
    .await;
    let mut bench = bench(&peer.address, |_| {});
    assert_eq!(bench.code("M1").await, "AA");
    while bench.operation.connection.is_some() {
        bench.operation.idle().await;
    }
    assert_eq!(bench.events.kinds(), ["ack.stray"]);
    assert_eq!(bench.code("M2").await, "AA");
}

#[tokio::test]
async fn a_negative_ack_keeps_the_peers_words_apart() {
    let peer = Peer::start(|_, frame| {
        let id = id_of(frame);
        let text = format!("MSH|^~\\&|P\rMSA|AE|{id}|no patient SECRET-MRN\rERR||PID^1^3|204^x^HL70357|E\r");
        Does::Sends(framed(&text))
    })
    .await;
    let outcome = bench(&peer.address, |_| {}).send(message("M1")).await.unwrap();
    assert!(!format!("{outcome:?}").contains("SECRET"));
    let Outcome::Replied { code, fault: Some(fault), .. } = outcome else { panic!() };
    assert_eq!(code, "AE");
    assert_eq!(fault.text, "the peer answered AE, 204 Unknown key identifier");
    assert_eq!(fault.detail.unwrap().0, "no patient SECRET-MRN");
}

#[tokio::test]
async fn a_new_control_id_is_the_same_in_every_repeat() {
    let peer = Peer::start(|_, frame| Does::Sends(ack("CA", &id_of(frame)))).await;
    let mut bench = bench(&peer.address, |settings| settings.control_id = ControlId::New);
    for _ in 0..2 {
        bench.next = 77;
        assert_eq!(bench.code("M1").await, "CA");
    }
    let frames = peer.frames(2).await;
    assert_eq!(id_of(&frames[0].1), "S77");
    assert_eq!(frames[0].1, frames[1].1);
}

#[tokio::test]
async fn any_takes_the_next_reply_whatever_it_is() {
    let peer = Peer::start(|index, _| {
        Does::Sends(if index == 0 { ack("AA", "") } else { framed("MSH|^~\\&|P\rPID|1\r") })
    })
    .await;
    let mut bench = bench(&peer.address, |settings| settings.match_ack = MatchAck::Any);
    assert_eq!(bench.code("M1").await, "AA");
    assert_eq!(bench.code("M2").await, "none");
}

#[tokio::test]
async fn a_reply_that_ends_in_fs_alone_is_read() {
    let clock = manual();
    let reading = Arc::new(Notify::new());
    let wrote = reading.clone();
    let peer = Peer::start(move |_, frame| {
        let mut reply = ack("AA", &id_of(frame));
        reply.pop();
        wrote.notify_one();
        Does::Sends(reply)
    })
    .await;
    let mut bench = bench(&peer.address, |_| {}).with_clock(clock.clone());
    let hours = Duration::from_secs(36_000);
    let cx = OperationContext { response_timeout: hours, ..delivery(1, message("M1"), &bench.runtime) };
    // Short of response_timeout, however long it takes until the reply has been read.
    let passes = async {
        reading.notified().await;
        for _ in 0..30_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            clock.advance(Duration::from_secs(1));
        }
        panic!("the reply was not read");
    };
    let outcome = tokio::select! {
        outcome = bench.operation.on_message(&cx) => outcome,
        () = passes => unreachable!("it panics"),
    };
    assert!(matches!(outcome.unwrap(), Outcome::Replied { code, .. } if code == "AA"));
}

#[tokio::test]
async fn what_cannot_be_sent_over_mllp_is_the_messages_fault() {
    let mut bench = bench("127.0.0.1:1", |_| {});
    for body in [record(serde_json::json!({ "a": 1 })), hl7("MSH|^~\\&|A\rOBX|\x1c|\r")] {
        let error = bench.send(body).await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Suspend);
    }
}

#[tokio::test]
async fn a_peer_that_is_down_is_a_fault_to_retry() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = bench(&address, |_| {}).send(message("M1")).await.unwrap_err();
    assert_eq!((error.fault.code.as_str(), &error.disposition), ("connect", &Disposition::ByCode("fault")));
}

// === TLS ===

fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/tls").join(name)
}

/// A peer that speaks TLS with this certificate, asks for a client's, and answers AA.
async fn tls_peer(certificate: &str) -> String {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificates =
        |name| CertificateDer::pem_file_iter(fixture(name)).unwrap().map(Result::unwrap).collect::<Vec<_>>();
    let key = PrivateKeyDer::from_pem_file(fixture(&certificate.replace(".pem", ".key"))).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificates("ca.pem").remove(0)).unwrap();
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap())
        .with_single_cert(certificates(certificate), key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let code = if stream.get_ref().1.peer_certificates().is_some() { "CA" } else { "AA" };
                let mut scanner = Scanner::new(Limits { max_message: 1 << 20 });
                let mut buffer = BytesMut::new();
                while matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
                    while let Event::Frame(frame) = scanner.next(&mut buffer) {
                        stream.write_all(&ack(code, &id_of(&frame.body))).await.unwrap();
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn tls_verifies_the_peer_and_shows_our_certificate() {
    let address = tls_peer("server.pem").await;
    let trust = ClientTls { ca: Some(fixture("ca.pem")), ..ClientTls::default() };
    let with = |tls: ClientTls| bench(&address, |settings| settings.tls = Some(tls));
    assert_eq!(with(trust.clone()).code("M1").await, "AA");
    let ours =
        ClientTls { cert: Some(fixture("client.pem")), key: Some(fixture("client.key")), ..trust.clone() };
    assert_eq!(with(ours).code("M1").await, "CA");

    let unknown = with(ClientTls { ca: Some(fixture("client.pem")), ..ClientTls::default() });
    let elsewhere = with(ClientTls { server_name: Some("elsewhere.example".into()), ..trust.clone() });
    for mut refused in [unknown, elsewhere] {
        let error = refused.send(message("M1")).await.unwrap_err();
        assert_eq!((error.fault.code.as_str(), &error.disposition), ("tls", &Disposition::ByCode("fault")));
    }
    let missing =
        with(ClientTls { ca: Some(fixture("none.pem")), ..ClientTls::default() }).operation.start().await;
    assert_eq!(missing.unwrap_err().code, "certificate");
}

#[tokio::test]
async fn tls_takes_another_name_or_exactly_one_certificate() {
    let address = tls_peer("other.pem").await;
    let with = |tls: ClientTls| bench(&address, |settings| settings.tls = Some(tls));
    let trust = ClientTls { ca: Some(fixture("ca.pem")), ..ClientTls::default() };
    assert!(
        with(trust.clone()).send(message("M1")).await.is_err(),
        "another host's certificate was accepted"
    );
    let renamed = ClientTls { server_name: Some("elsewhere.example".into()), ..trust };
    assert_eq!(with(renamed).code("M1").await, "AA");
    let pin = |name: &str| {
        use rustls::pki_types::pem::PemObject as _;
        let certificate = rustls::pki_types::CertificateDer::from_pem_file(fixture(name)).unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &certificate);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        ClientTls { pin: Some(format!("sha256:{hex}")), ..ClientTls::default() }
    };
    assert_eq!(with(pin("other.pem")).code("M1").await, "AA");
    assert!(with(pin("server.pem")).send(message("M1")).await.is_err(), "another certificate was accepted");
}
