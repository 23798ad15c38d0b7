//! Over real sockets: what clients send, and what they must be told.

mod access;
mod listeners;

use std::net::SocketAddr;

use reqwest::Client;
use septet_engine::body::Body as Kept;
use septet_engine::host::ServiceReply;
use septet_engine::record::{MessageType, MessageTypes, Record};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::hl7_common::testing::{Desk, free_port};

fn settings(more: Value) -> Settings {
    let mut all = json!({ "listen": "127.0.0.1:0" });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

fn types() -> MessageTypes {
    let declared = |name: &str, fields: &[(&str, &str)]| MessageType {
        name: name.into(),
        fields: fields.iter().map(|(name, kind)| ((*name).to_owned(), kind.parse().unwrap())).collect(),
    };
    MessageTypes::new([
        declared("Result", &[("accession", "string"), ("note", "string?")]),
        declared("Login", &[("user", "string"), ("password", "secret")]),
        declared("Order", &[("n", "integer"), ("urgent", "boolean"), ("tests", "list"), ("text", "string")]),
    ])
}

struct Bench {
    desk: Arc<Desk>,
    address: SocketAddr,
    cx: ServiceContext,
    run: JoinHandle<Result<(), HostFault>>,
}

/// A running service called `item` that hands its messages to `desk`.
async fn service(desk: &Arc<Desk>, item: &str, more: Value) -> Result<Bench, HostFault> {
    let settings = settings(more);
    let methods = settings.methods.0.iter().map(|name| name.parse().unwrap()).collect();
    let mut cx = desk.context();
    cx.item = item.into();
    cx.runtime.types = types();
    cx.stop = CancellationToken::new();
    let mut service = Box::new(HttpService {
        plan: Arc::new(HttpPlan { endpoint: settings.endpoint(), settings, methods }),
        place: Place::default(),
    });
    service.bind(&cx).await?;
    let address = service.place.address().unwrap();
    let run = tokio::spawn(service.run(cx.clone()));
    Ok(Bench { desk: desk.clone(), address, cx, run })
}

async fn bench(more: Value) -> Bench {
    service(&Desk::new(), "api", more).await.unwrap()
}

/// An answer: status, session in it, and its body.
struct Told {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }
}

impl Bench {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn post(&self, path: &str, media: &str, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        Client::new().post(self.url(path)).header("content-type", media).body(body)
    }

    async fn told(&self, body: &'static str) -> Told {
        told(self.post("/", "application/json", body)).await
    }

    async fn end(self) {
        self.cx.stop.cancel();
        self.run.await.unwrap().unwrap();
    }
}

async fn told(request: reqwest::RequestBuilder) -> Told {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Told { status, headers, text: response.text().await.unwrap() }
}

fn replied(body: Option<Kept>, fault: Option<Fault>) -> impl Fn(&Kept) -> ServiceReply + Send + Sync {
    move |_| ServiceReply::Reply { body: body.clone(), fault: fault.clone() }
}

fn record(fields: Value) -> Kept {
    Kept::record(Record::untyped("Json", fields))
}

// === Taking ===

#[tokio::test]
async fn a_request_is_accepted_once_it_is_on_stable_storage_and_not_before() {
    let bench = bench(json!({ "message": "Result" })).await;
    bench.desk.syncing.send_replace(false);
    let request = bench
        .post("/", "application/json", "{ \"accession\":\t\"A1\" }")
        .header("septet-session", "41")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let mut answer = tokio::spawn(told(request));
    bench.desk.until(1).await;
    tokio::select! {
        biased;
        _ = &mut answer => panic!("answered before the message was durable"),
        () = tokio::task::yield_now() => {}
    }
    bench.desk.syncing.send_replace(true);
    let told = answer.await.unwrap();
    assert_eq!((told.status, told.json()), (202, json!({ "session": 1 })));
    let taken = &bench.desk.taken()[0];
    assert_eq!(taken.body.bytes().as_ref(), b"{ \"accession\":\t\"A1\" }", "kept byte for byte");
    assert_eq!((taken.body.type_name(), taken.parent_session.as_deref()), ("Result", Some("41")));
    assert!(!taken.wants_reply);
    bench.end().await;
}

#[tokio::test]
async fn without_a_declared_type_requests_are_json_or_text() {
    let bench = bench(json!({ "methods": ["POST", "GET"] })).await;
    let xml = "<r/>";
    for (media, body) in [("application/json", "[1]"), ("text/xml", xml), ("application/fhir+json", "{}")] {
        assert_eq!(told(bench.post("/", media, body)).await.status, 202);
    }
    assert_eq!(told(bench.post("/", "application/x-www-form-urlencoded", "a=1+2&b=x&b=y")).await.status, 202);
    assert_eq!(told(Client::new().get(bench.url("/any?mrn=47%2F11"))).await.status, 202);
    let kinds: Vec<_> = bench
        .desk
        .taken()
        .iter()
        .map(|t| (t.body.type_name().to_owned(), t.body.as_text().unwrap().to_owned()))
        .collect();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(
        kinds,
        [
            pair("Json", "[1]"),
            pair("Text", xml),
            pair("Json", "{}"),
            pair("Json", r#"{"a":"1 2","b":["x","y"]}"#),
            pair("Json", r#"{"mrn":"47/11"}"#),
        ]
    );
    bench.end().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_by_name_and_stored_as_rejected() {
    let bench = bench(json!({ "message": "Result", "reply": "wait" })).await;
    for (body, names) in [
        (r#"{"note":"Jane Doe"}"#, "Result.accession is missing"),
        (r#"{"accession":7}"#, "Result.accession must be string"),
        (r#"{"accession":"A","extra":1}"#, "Result has no field extra"),
        ("{ broken", "the body is no JSON"),
    ] {
        let told = bench.told(body).await;
        let document = told.json();
        assert_eq!((told.status, &document["status"]), (400, &json!(400)));
        assert!(document["detail"].as_str().unwrap().contains(names), "{document}");
        assert!(!told.text.contains("Jane Doe"));
        assert!(document["session"].is_u64());
        assert_eq!(told.headers["content-type"], "application/problem+json");
    }
    let taken = bench.desk.taken();
    assert!(taken.iter().all(|t| t.reject.is_some() && !t.wants_reply));
    assert_eq!(taken[0].body.as_text(), Some(r#"{"note":"Jane Doe"}"#));
    bench.end().await;
}

#[tokio::test]
async fn a_secret_is_sealed_also_in_what_is_refused() {
    let bench = bench(json!({ "message": "Login" })).await;
    for (body, status) in [
        (r#"{"user":"u","password":"s3cret-pw"}"#, 202),
        (r#"{"password":"s3cret-pw"}"#, 400),
        ("password=s3cret-pw", 400),
    ] {
        assert_eq!(bench.told(body).await.status, status);
    }
    for taken in bench.desk.taken() {
        assert!(!taken.body.as_text().unwrap().contains("s3cret-pw"));
        let clear = taken.body.as_record().unwrap().reveal(&bench.cx.runtime.vault).unwrap();
        assert!(clear.to_string().contains("s3cret-pw"));
    }
    bench.end().await;
}

#[tokio::test]
async fn the_texts_of_a_form_become_what_its_type_declares() {
    let bench = bench(json!({ "message": "Order" })).await;
    let form = |body: &'static str| told(bench.post("/", "application/x-www-form-urlencoded", body));
    assert_eq!(form("n=7&urgent=true&tests=%5B1,2%5D&text=7").await.status, 202);
    assert_eq!(form("n=7&urgent=false&tests=a&tests=b&text=").await.status, 202);
    assert_eq!(form("n=7&urgent=false&tests=a&text=x").await.status, 202);
    assert_eq!(form("n=x&urgent=true&tests=a&text=x").await.status, 400);
    let taken = bench.desk.taken();
    let fields: Vec<_> = taken.iter().take(3).map(|t| t.body.as_record().unwrap().fields.clone()).collect();
    assert_eq!(fields[0], json!({ "n": 7, "urgent": true, "tests": [1, 2], "text": "7" }));
    assert_eq!(fields[1], json!({ "n": 7, "urgent": false, "tests": ["a", "b"], "text": "" }));
    assert_eq!(fields[2]["tests"], json!(["a"]));
    bench.end().await;
}

#[tokio::test]
async fn what_cannot_be_stored_is_503_and_nothing_is_kept() {
    let bench = bench(json!({})).await;
    bench.desk.open.send_replace(false);
    let told = bench.told("{}").await;
    assert_eq!((told.status, told.headers.contains_key("retry-after")), (503, true));
    assert!(bench.desk.taken().is_empty());
    bench.end().await;
}

#[tokio::test]
async fn wrong_methods_paths_and_sizes_are_refused() {
    let bench = bench(json!({ "path": "/in", "max_message": "1KiB" })).await;
    let got = told(Client::new().get(bench.url("/in"))).await;
    assert_eq!((got.status, got.headers["allow"].to_str().unwrap()), (405, "POST"));
    assert_eq!(told(bench.post("/inner", "text/plain", "x")).await.status, 404);
    assert_eq!(told(bench.post("/", "text/plain", "x")).await.status, 404);
    assert_eq!(told(bench.post("/in/below", "text/plain", "x")).await.status, 202);
    assert_eq!(told(bench.post("/in", "text/plain", "x".repeat(1025))).await.status, 413);
    assert_eq!(told(bench.post("/in", "text/plain", "x".repeat(1 << 20))).await.status, 413);
    assert_eq!(told(bench.post("/in", "text/plain", "x".repeat(1024))).await.status, 202);
    assert_eq!(bench.desk.taken().len(), 2);
    assert!(bench.desk.events().iter().all(|event| event.starts_with("message.rejected")));
    bench.end().await;
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let auth = json!({ "issuer": "http://127.0.0.1:9" });
    let bench = bench(json!({ "path": "/in", "auth": auth })).await;
    let large = || "x".repeat(3 << 20);
    assert_eq!(told(bench.post("/other", "text/plain", large())).await.status, 404);
    assert_eq!(told(bench.post("/in", "text/plain", large())).await.status, 401);
    assert_eq!(told(Client::new().put(bench.url("/in")).body(large())).await.status, 405);
    bench.end().await;
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up() {
    let bench = bench(json!({ "request_timeout": "5s" })).await;
    let mut socket = TcpStream::connect(bench.address).await.unwrap();
    socket.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
    let mut answer = Vec::new();
    let read = socket.read_to_end(&mut answer);
    // Whenever the service begins to wait, the clock has moved past its patience soon.
    let move_on = async {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            bench.desk.clock.advance(Duration::from_secs(5));
        }
    };
    tokio::select! { read = read => { read.unwrap(); } () = move_on => {} }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("connection: close"), "{answer}");
    bench.end().await;
}

// === Replying ===

async fn wait(body: Option<Kept>, fault: Option<Fault>) -> Told {
    let bench = bench(json!({ "reply": "wait" })).await;
    bench.desk.replies(replied(body, fault));
    let told = bench.told("{}").await;
    bench.end().await;
    told
}

#[tokio::test]
async fn the_targets_reply_is_the_answer() {
    let told = wait(Some(record(json!({ "status": "ok" }))), None).await;
    assert_eq!((told.status, told.text.as_str()), (200, r#"{"status":"ok"}"#));
    assert_eq!(told.headers["content-type"], "application/json");
    assert_eq!(told.headers["septet-session"], "1");
    let told = wait(Some(Kept::text("Text", "done".into())), None).await;
    assert_eq!((told.status, told.text.as_str()), (200, "done"));
    assert_eq!(wait(None, None).await.status, 204);
}

#[tokio::test]
async fn a_reply_may_set_status_headers_and_body() {
    let reply =
        json!({ "http_status": 503, "headers": { "Retry-After": 7, "X-A": ["1", "2"] }, "body": { "e": 1 } });
    let told = wait(Some(record(reply)), None).await;
    assert_eq!((told.status, told.text.as_str()), (503, r#"{"e":1}"#));
    assert_eq!(told.headers["retry-after"], "7");
    assert_eq!(told.headers.get_all("x-a").iter().count(), 2);
    let told = wait(Some(record(json!({ "http_status": 201.0, "body": "made" }))), None).await;
    assert_eq!((told.status, told.text.as_str()), (201, "made"));
    assert_eq!(wait(Some(record(json!({ "http_status": 204 }))), None).await.status, 204);
    for broken in [
        json!({ "http_status": 99 }),
        json!({ "http_status": "200" }),
        json!({ "http_status": 200, "headers": { "X": "a\r\nSet-Cookie: b" } }),
        json!({ "http_status": 200, "headers": { "Content-Length": "1" } }),
    ] {
        let told = wait(Some(record(broken)), None).await;
        assert_eq!((told.status, told.json()["session"].as_u64()), (500, Some(1)));
        assert!(!told.headers.contains_key("set-cookie"));
    }
}

#[tokio::test]
async fn a_fault_is_500_with_the_session_and_without_foreign_words() {
    let fault = Fault::new("call", "404", "vendor answered HTTP 404").with_detail("Jane Doe unknown");
    let told = wait(None, Some(fault)).await;
    assert_eq!((told.status, told.json()["session"].as_u64()), (500, Some(1)));
    assert!(told.text.contains("vendor answered HTTP 404") && !told.text.contains("Jane Doe"));
}

#[tokio::test]
async fn no_reply_in_time_is_504_with_the_session() {
    let bench = bench(json!({ "reply": "wait", "reply_timeout": "30s" })).await;
    let answer = tokio::spawn(told(bench.post("/", "application/json", "{}")));
    bench.desk.until(1).await;
    // The wait may not have begun yet: go on until it has, and is over.
    while !answer.is_finished() {
        bench.desk.clock.advance(Duration::from_secs(9));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let told = answer.await.unwrap();
    assert_eq!((told.status, told.json()["session"].as_u64()), (504, Some(1)));
    bench.end().await;
}

// === Checks ===

/// What `check` says of a production with this service, one problem a line.
fn problems(text: &str) -> String {
    use septet_engine::config::env::Env;
    use septet_engine::config::load::load_text;
    use septet_engine::registry::Registry;
    let registry = Registry {
        items: crate::CLASSES.to_vec(),
        check_transform: |_, _, _| {},
        check_oauth: |_| Vec::new(),
        check_auth: |_| Vec::new(),
        lanes: Arc::new(|_| panic!("no lane is needed to check services")),
    };
    let head = "[production]\nname = \"t\"\n[store]\npath = \"d\"\nretention = \"1d\"\n[messages.Result]\na = \"string\"\n";
    let loaded = load_text(&format!("{head}{text}"), std::path::Path::new("/p"), &registry, &Env::empty());
    let lines = loaded.diagnostics.iter().map(|d| format!("{} {}: {}", d.severity.as_str(), d.code, d.text));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn misuse_is_found_by_check() {
    let all = problems(
        r#"
[services.one]
type = "http"
listen = "127.0.0.1:8000"
path = "in/{x}"
methods = ["post", "BREW"]
message = "Reslut"
max_message = "0B"
auth = { audience = ["x"] }
[services.two]
type = "hl7.http"
listen = "127.0.0.1:8001"
path = "/a/../b"
charset = "latin"
frame_timeout = "0s"
"#,
    );
    for expected in [
        "S0341: this path cannot be served",
        "S0342: post is not served",
        "S0342: BREW is not served",
        "S0202: message type Reslut is not declared",
        "S0343: max_message must be more than zero",
        ": auth needs issuer",
        "this is no charset known here",
        "S0343: frame_timeout must be more than zero",
    ] {
        assert!(all.contains(expected), "missing {expected} in\n{all}");
    }
    assert_eq!(all.matches("S0341").count(), 2, "{all}");
}

#[test]
fn services_may_share_an_address_but_not_a_path() {
    let service = |name: &str, path: &str| {
        format!("[services.{name}]\ntype = \"http\"\nlisten = \"127.0.0.1:8000\"\npath = \"{path}\"\n")
    };
    let apart = problems(&format!("{}{}", service("one", "/a"), service("two", "/a/b")));
    assert!(!apart.contains("S0212"), "{apart}");
    let same = problems(&format!("{}{}", service("one", "/a"), service("two", "/a")));
    assert!(same.contains("S0212"), "{same}");
}
