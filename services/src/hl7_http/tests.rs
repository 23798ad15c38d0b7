//! Over real sockets: HL7 messages in, acknowledgements out.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Client;
use septet_engine::fault::Fault;
use septet_engine::host::ServiceReply;
use septet_hl7::Message;
use serde_json::{Value, json};
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

async fn bench(more: Value) -> Bench {
    let mut all = json!({ "listen": "127.0.0.1:0", "path": "/hl7", "max_message": "4KiB" });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let settings: Settings = serde_json::from_value(all).unwrap();
    let desk = Desk::new();
    let cx = desk.context();
    let mut service = Box::new(Hl7HttpService {
        plan: Hl7HttpFactory {
            policy: settings.written().policy(None),
            endpoint: settings.endpoint(),
            settings: Arc::new(settings),
        },
        place: Place::default(),
    });
    service.bind(&cx).await.unwrap();
    let address = service.place.address().unwrap();
    Bench { desk, address, run: tokio::spawn(service.run(cx)) }
}

/// A message of type `kind` with this control id.
fn message(kind: &str, id: &str) -> String {
    format!("MSH|^~\\&|LAB|HOSP|SEPTET|X|20261122091500||{kind}|{id}|P|2.5\rPID|1||4711^^^HOSP||DOE^JANE\r")
}

/// Status, MSA-1 and MSA-2 of an answer.
type Told = (u16, String, String);

impl Bench {
    async fn send(&self, media: Option<&str>, body: impl Into<reqwest::Body>) -> reqwest::Response {
        let mut request = Client::new().post(format!("http://{}/hl7", self.address)).body(body);
        if let Some(media) = media {
            request = request.header("content-type", media);
        }
        request.send().await.unwrap()
    }

    async fn post(&self, body: impl Into<reqwest::Body>) -> Told {
        told(self.send(Some(HL7), body).await).await
    }

    async fn end(self) {
        self.desk.stop.cancel();
        self.run.await.unwrap().unwrap();
    }
}

async fn told(response: reqwest::Response) -> Told {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], HL7);
    let ack = Message::parse(response.bytes().await.unwrap()).unwrap();
    (status, ack.value("MSA-1").unwrap(), ack.value("MSA-2").unwrap())
}

fn is(status: u16, code: &str, id: &str) -> Told {
    (status, code.to_owned(), id.to_owned())
}

#[tokio::test]
async fn a_message_is_stored_byte_for_byte_and_acknowledged() {
    let bench = bench(json!({})).await;
    let odd = message("ORU^R01", "M1") + "ZZZ|\u{e9}\n";
    for media in [Some(HL7), Some("text/plain; charset=utf-8"), Some("x-application/hl7-v2+er7"), None] {
        let answer = told(bench.send(media, odd.clone()).await).await;
        assert_eq!(answer, is(200, "AA", "M1"));
    }
    assert!(bench.desk.bodies().iter().all(|body| body == odd.as_bytes()));
    bench.end().await;
}

#[tokio::test]
async fn nothing_positive_leaves_before_the_message_is_durable() {
    let bench = bench(json!({})).await;
    bench.desk.syncing.send_replace(false);
    let url = format!("http://{}/hl7", bench.address);
    let mut answer = tokio::spawn(Client::new().post(url).body(message("ORU^R01", "M1")).send());
    bench.desk.until(1).await;
    tokio::select! {
        biased;
        _ = &mut answer => panic!("answered before the message was durable"),
        () = tokio::task::yield_now() => {}
    }
    bench.desk.syncing.send_replace(true);
    assert_eq!(told(answer.await.unwrap().unwrap()).await, is(200, "AA", "M1"));
    bench.end().await;
}

#[tokio::test]
async fn the_status_says_what_the_ack_says() {
    let bench = bench(json!({ "ack": "application", "duplicates": "accept" })).await;
    for (code, status) in [("AA", 200), ("CA", 200), ("AE", 500), ("CE", 500), ("AR", 400), ("CR", 400)] {
        let ack = format!("MSH|^~\\&|P|P|LAB|HOSP|20261122||ACK|A1|P|2.5\rMSA|{code}|M1\r");
        bench.desk.replies(move |_| replied(&ack));
        assert_eq!(bench.post(message("ORU^R01", "M1")).await, is(status, code, "M1"));
    }
    bench.desk.replies(|_| {
        let fault = Fault::new("call", "fault", "the peer is down").with_detail("DOE^JANE");
        ServiceReply::Reply { body: None, fault: Some(fault) }
    });
    let response = bench.send(Some(HL7), message("ORU^R01", "M2")).await;
    assert_eq!(response.status(), 500);
    assert!(!response.text().await.unwrap().contains("JANE"));
    bench.end().await;
}

#[tokio::test]
async fn what_is_no_message_is_answered_ae_and_stored_as_rejected() {
    let bench = bench(json!({})).await;
    assert_eq!(bench.post("PID|1||4711\r").await, is(500, "AE", ""));
    assert_eq!(bench.post("").await, is(500, "AE", ""));
    assert_eq!(bench.desk.taken().iter().filter(|taken| taken.reject.is_some()).count(), 2);
    let response = bench.send(Some("application/json"), "{}").await;
    assert_eq!(response.status(), 415);
    // The content is what counts where it is plainly HL7.
    let answer = told(bench.send(Some("application/octet-stream"), message("ORU^R01", "M1")).await).await;
    assert_eq!(answer, is(200, "AA", "M1"));
    bench.end().await;
}

#[tokio::test]
async fn acknowledgements_are_taken_and_not_answered() {
    let bench = bench(json!({})).await;
    let response = bench.send(Some(HL7), message("ACK", "M1")).await;
    assert_eq!((response.status().as_u16(), response.text().await.unwrap().as_str()), (202, ""));
    assert_eq!(bench.desk.ids(), ["M1"]);
    bench.end().await;
}

#[tokio::test]
async fn a_batch_is_one_session_and_one_answer() {
    let bench = bench(json!({})).await;
    let batch = format!("BHS|^~\\&|A|B\r{}{}BTS|2\r", message("ORU^R01", "M1"), message("ORU^R01", "M2"));
    let response = bench.send(Some(HL7), batch).await;
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    assert_eq!(status, 200);
    assert!(text.starts_with("BHS|") && text.contains("MSA|AA|M1") && text.contains("MSA|AA|M2"), "{text}");
    assert!(bench.desk.joined()[1].is_some());
    bench.end().await;
}

#[tokio::test]
async fn what_cannot_be_taken_is_ar() {
    let bench = bench(json!({ "when_unavailable": "answer" })).await;
    let large = message("ORU^R01", "M1") + &"NTE|1||x\r".repeat(1000);
    assert_eq!(bench.post(large).await, is(413, "AR", "M1"));
    bench.desk.open.send_replace(false);
    let response = bench.send(Some(HL7), message("ORU^R01", "M2")).await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(told(response).await, is(503, "AR", "M2"));
    assert!(bench.desk.taken().is_empty());
    bench.end().await;
}

#[tokio::test]
async fn with_pause_nothing_is_read_while_the_store_takes_nothing() {
    let bench = bench(json!({})).await;
    bench.desk.open.send_replace(false);
    assert_eq!(bench.send(Some(HL7), message("ORU^R01", "M1")).await.status(), 503);
    bench.desk.open.send_replace(true);
    assert_eq!(bench.post(message("ORU^R01", "M1")).await, is(200, "AA", "M1"));
    bench.end().await;
}

#[tokio::test]
async fn a_duplicate_is_answered_again_and_not_processed_again() {
    let bench = bench(json!({ "duplicates": "answer_again" })).await;
    let first = bench.send(Some(HL7), message("ORU^R01", "M1")).await.bytes().await.unwrap();
    let again = bench.send(Some(HL7), message("ORU^R01", "M1")).await.bytes().await.unwrap();
    assert_eq!(first, again);
    assert_eq!(bench.desk.ids(), ["M1"]);
    bench.end().await;
}

#[tokio::test]
async fn a_body_that_trickles_is_stored_as_rejected_and_answered() {
    let bench = bench(json!({ "frame_timeout": "5s" })).await;
    let mut socket = TcpStream::connect(bench.address).await.unwrap();
    let head = "POST /hl7 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
    socket.write_all(format!("{head}{}", message("ORU^R01", "M1")).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let move_on = async {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            bench.desk.clock.advance(Duration::from_secs(5));
        }
    };
    tokio::select! { read = socket.read_to_end(&mut answer) => { read.unwrap(); } () = move_on => {} }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("MSA|AE|M1"), "{answer}");
    assert_eq!(bench.desk.ids(), ["!M1"]);
    bench.end().await;
}

/// Sends a message and reads until its acknowledgement is there.
async fn ask(socket: &mut TcpStream, id: &str) {
    let message = message("ADT^A01", id);
    let head = format!("POST /hl7 HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", message.len());
    socket.write_all(format!("{head}{message}").as_bytes()).await.unwrap();
    let (mut answer, wanted) = (Vec::new(), format!("MSA|AA|{id}"));
    while !String::from_utf8_lossy(&answer).contains(&wanted) {
        assert_ne!(socket.read_buf(&mut answer).await.unwrap(), 0, "the connection was closed");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_only_where_that_is_asked_for() {
    let patient = bench(json!({})).await;
    let mut socket = TcpStream::connect(patient.address).await.unwrap();
    ask(&mut socket, "M1").await;
    patient.desk.clock.advance(Duration::from_secs(86_400));
    ask(&mut socket, "M2").await;
    patient.end().await;

    let hasty = bench(json!({ "idle_timeout": "5m" })).await;
    let mut socket = TcpStream::connect(hasty.address).await.unwrap();
    ask(&mut socket, "M1").await;
    hasty.desk.clock.advance(Duration::from_secs(299));
    ask(&mut socket, "M2").await;
    hasty.desk.clock.advance(Duration::from_secs(300));
    assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
    hasty.end().await;
}

#[tokio::test]
async fn a_head_that_trickles_ends_the_connection_though_it_may_be_idle_for_ever() {
    let bench = bench(json!({})).await;
    let mut socket = TcpStream::connect(bench.address).await.unwrap();
    socket.write_all(b"POST /hl7 HTTP/1.1\r\nHo").await.unwrap();
    let mut nothing = [0];
    let move_on = async {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            bench.desk.clock.advance(Duration::from_secs(5));
        }
    };
    tokio::select! {
        read = socket.read(&mut nothing) => assert!(matches!(read, Ok(0) | Err(_))),
        () = move_on => {}
    }
    bench.end().await;
}

#[tokio::test]
async fn other_methods_and_paths_are_refused() {
    let bench = bench(json!({})).await;
    let get = Client::new().get(format!("http://{}/hl7", bench.address)).send().await.unwrap();
    assert_eq!((get.status().as_u16(), get.headers()["allow"].to_str().unwrap()), (405, "POST"));
    let other = Client::new().post(format!("http://{}/", bench.address)).send().await.unwrap();
    assert_eq!(other.status(), 404);
    bench.end().await;
}
