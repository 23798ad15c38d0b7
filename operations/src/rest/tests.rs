//! The operation against a vendor of its own over real sockets: what the vendor gets, and what becomes of
//! what it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::response::{IntoResponse, Response};
use rustls::pki_types::pem::PemObject as _;
use septet_engine::body::Body;
use septet_engine::config::settings::ClientTls;
use septet_engine::fault::Fault;
use septet_engine::host::{
    BusinessOperation, Disposition, OperationContext, OperationError, Outcome, Runtime,
};
use septet_engine::record::{MessageType, MessageTypes, Undeclared};
use septet_engine::token::Placement;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::{BodyKind, RequestPlan, Rest};
use crate::http_client::PeerPlan;
use crate::http_operation::HttpOperation;
use crate::message_map::MessageMap;
use crate::oauth_use::OauthPlan;
use crate::template::Template;
use crate::testing::{Events, check, delivery, hl7, runtime};
use crate::testing_http::{Seen, Tokens, Vendor};

// === One operation ===

struct Setup {
    method: &'static str,
    path: &'static str,
    body: Option<BodyKind>,
    headers: &'static [(&'static str, &'static str)],
    query: &'static [(&'static str, &'static str)],
    reply: Option<&'static str>,
    placement: Option<Placement>,
    tls: Option<ClientTls>,
}

const PLAIN: Setup = Setup {
    method: "POST",
    path: "/results/{accession}",
    body: None,
    headers: &[],
    query: &[],
    reply: None,
    placement: None,
    tls: None,
};

impl Setup {
    async fn operation(&self, type_name: &str, url: &str) -> HttpOperation<Rest> {
        let templates = |entries: &[(&str, &str)]| -> Vec<(String, Template)> {
            entries.iter().map(|(name, text)| ((*name).to_owned(), Template::parse(text).unwrap())).collect()
        };
        let plan = RequestPlan {
            method: self.method.parse().unwrap(),
            url: Template::parse(&format!("{url}{}", self.path)).unwrap(),
            body: self.body,
            headers: templates(self.headers).into_iter().map(|(n, t)| (n.parse().unwrap(), t)).collect(),
            query: templates(self.query),
            reply: self.reply.map(str::to_owned),
        };
        let oauth = self.placement.map(|placement| OauthPlan::named("vendor", placement));
        let rest = Rest {
            requests: MessageMap::of("a request", [(type_name.to_owned(), plan)]),
            peer: PeerPlan {
                name: "vendor.example:443".into(),
                oauth,
                tls: self.tls.clone(),
                idempotency_header: "idempotency-key".parse().unwrap(),
            },
        };
        let mut operation = HttpOperation::new(Arc::new(rest));
        operation.start().await.unwrap();
        operation
    }
}

fn types() -> MessageTypes {
    let declared = |name: &str, fields: &[(&str, &str)]| MessageType {
        name: name.into(),
        fields: fields.iter().map(|(name, kind)| ((*name).to_owned(), kind.parse().unwrap())).collect(),
    };
    MessageTypes::new([
        declared("Submit", &[("accession", "string"), ("note", "string?"), ("token", "secret?")]),
        declared("SubmitReply", &[("status", "string"), ("count", "integer?")]),
        declared("Bearer", &[("access_token", "secret"), ("expires_in", "integer")]),
    ])
}

fn engine(tokens: Tokens) -> Runtime {
    let mut runtime = runtime(Arc::new(Events::default()));
    runtime.types = types();
    runtime.tokens = Arc::new(tokens);
    runtime
}

fn submit(runtime: &Runtime, fields: Value) -> Body {
    Body::record(runtime.types.create("Submit", fields, Undeclared::Refuse, &runtime.vault).unwrap())
}

/// What the vendor saw of one message, and what became of it.
async fn send(
    setup: Setup,
    fields: Value,
    answer: impl Fn(&Seen) -> Response + Send + Sync + 'static,
) -> Sent {
    let runtime = engine(Tokens::default());
    let body = submit(&runtime, fields);
    let vendor = Vendor::start(answer).await;
    let mut operation = setup.operation("Submit", &vendor.url).await;
    let cx = delivery(42, body, &runtime);
    let result = operation.on_message(&cx).await;
    Sent { seen: vendor.seen(), result, runtime }
}

struct Sent {
    seen: Vec<Seen>,
    result: Result<Outcome, OperationError>,
    runtime: Runtime,
}

impl Sent {
    fn outcome(&self) -> (&str, Option<&Body>, Option<&Fault>) {
        match self.result.as_ref().unwrap() {
            Outcome::Replied { code, body, fault, .. } => (code, body.as_ref(), fault.as_ref()),
            Outcome::Sent => panic!("an HTTP request always has a reply"),
        }
    }
}

fn ok(_: &Seen) -> Response {
    axum::Json(json!({ "status": "accepted" })).into_response()
}

// === Requests ===

#[tokio::test]
async fn a_record_becomes_a_request_with_its_whole_json_and_its_own_url() {
    let setup = Setup {
        headers: &[("X-Note", "{note}"), ("X-Absent", "{token}"), ("X-Session", "s{session}")],
        query: &[("n", "{note}"), ("t", "{token}")],
        ..PLAIN
    };
    let sent = send(setup, json!({ "accession": "A/1 b", "note": "ü & co" }), ok).await;
    let seen = &sent.seen[0];
    assert_eq!((seen.method.as_str(), seen.uri.as_str()), ("POST", "/results/A%2F1%20b?n=%C3%BC+%26+co"));
    assert_eq!(seen.body, r#"{"accession":"A/1 b","note":"ü & co"}"#);
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("x-note"), Some("%C3%BC & co"));
    assert_eq!(seen.header("x-absent"), None);
    assert_eq!(seen.header("x-session"), Some("s7"));
    assert_eq!(sent.outcome().0, "200");
}

#[tokio::test]
async fn a_repeat_is_the_same_request_with_the_same_key_and_trace() {
    let runtime = engine(Tokens::default());
    let vendor = Vendor::start(ok).await;
    let mut operation = PLAIN.operation("Submit", &vendor.url).await;
    let body = submit(&runtime, json!({ "accession": "A1" }));
    let mut cx = delivery(42, body, &runtime);
    operation.on_message(&cx).await.unwrap();
    cx.attempt = 2;
    operation.on_message(&cx).await.unwrap();
    let seen = vendor.seen();
    assert_eq!(
        (&seen[0].uri, &seen[0].headers, &seen[0].body),
        (&seen[1].uri, &seen[1].headers, &seen[1].body)
    );
    assert_eq!(seen[0].header("idempotency-key"), Some("e1-42"));
    assert_eq!(seen[0].header("septet-session"), Some("7"));
    let parent: Vec<_> = seen[0].header("traceparent").unwrap().split('-').collect();
    assert_eq!(parent.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2]);
}

#[tokio::test]
async fn get_has_no_body_and_a_form_has_fields() {
    let sent = send(Setup { method: "GET", ..PLAIN }, json!({ "accession": "A1" }), ok).await;
    assert_eq!((sent.seen[0].body.as_str(), sent.seen[0].header("content-type")), ("", None));
    let form = Setup { body: Some(BodyKind::Form), ..PLAIN };
    let sent = send(form, json!({ "accession": "A 1", "token": "s3cret-token" }), ok).await;
    assert_eq!(sent.seen[0].body, "accession=A+1&token=s3cret-token");
    assert_eq!(sent.seen[0].header("content-type"), Some("application/x-www-form-urlencoded"));
}

#[tokio::test]
async fn an_hl7_message_goes_out_byte_for_byte_on_a_url_from_its_fields() {
    let raw = "MSH|^~\\&|A|B|C|D|20260101||ORU^R01|X1|P|2.5\rPID|1||4711^^^H\rZZZ|odd\n";
    let runtime = engine(Tokens::default());
    let vendor = Vendor::start(ok).await;
    let mut operation = Setup { path: "/p/{PID-3.1}", ..PLAIN }.operation("ORU^R01", &vendor.url).await;
    let body = hl7(raw);
    let body = Body::hl7(body.as_hl7().unwrap().clone());
    operation.on_message(&delivery(1, body, &runtime)).await.unwrap();
    let seen = &vendor.seen()[0];
    assert_eq!((seen.uri.as_str(), seen.body.as_str()), ("/p/4711", raw));
    assert_eq!(seen.header("content-type"), Some("application/hl7-v2"));
}

#[tokio::test]
async fn what_cannot_be_sent_is_the_messages_own_fault_and_names_the_place() {
    let suspended = |result: Result<Outcome, OperationError>| {
        let error = result.unwrap_err();
        assert_eq!(error.disposition, Disposition::Suspend);
        error.fault.text
    };
    let sent = send(Setup { path: "/{note}", ..PLAIN }, json!({ "accession": "A1" }), ok).await;
    assert!(suspended(sent.result).contains("note"));
    assert!(sent.seen.is_empty());
    let sent = send(PLAIN, json!({ "accession": ".." }), ok).await;
    suspended(sent.result);

    let runtime = engine(Tokens::default());
    let mut operation = PLAIN.operation("Other", "http://127.0.0.1:9").await;
    let body = submit(&runtime, json!({ "accession": "A1" }));
    let text = suspended(operation.on_message(&delivery(1, body, &runtime)).await);
    assert_eq!(text, "no request is mapped to messages of type Submit");
}

// === Tokens ===

fn with_token(placement: Placement) -> Setup {
    Setup { placement: Some(placement), ..PLAIN }
}

#[tokio::test]
async fn the_token_goes_where_the_placement_says() {
    let message = || json!({ "accession": "A1", "note": "x" });
    let header = send(with_token(Placement::Header), message(), ok).await;
    assert_eq!(header.seen[0].header("authorization"), Some("Bearer token-1"));
    let query = send(with_token(Placement::Query), message(), ok).await;
    assert_eq!(query.seen[0].uri, "/results/A1?access_token=token-1");
    assert_eq!(query.seen[0].header("authorization"), None);
    let body = send(with_token(Placement::Body), message(), ok).await;
    assert_eq!(body.seen[0].body, "accession=A1&note=x&access_token=token-1");
    assert_eq!(body.seen[0].header("content-type"), Some("application/x-www-form-urlencoded"));
}

#[tokio::test]
async fn without_a_token_nothing_is_sent() {
    let runtime = engine(Tokens { fails: true, ..Tokens::default() });
    let vendor = Vendor::start(ok).await;
    let mut operation = with_token(Placement::Header).operation("Submit", &vendor.url).await;
    let body = submit(&runtime, json!({ "accession": "A1" }));
    let error = operation.on_message(&delivery(1, body, &runtime)).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::ByCode("fault"));
    let text = "oauth: no token: http 503: the token endpoint answered with status 503";
    assert_eq!(error.fault.to_string(), text);
    assert!(error.fault.detail.is_some());
    assert!(error.retry_after.unwrap() > 3600, "no sooner than the client asks again");
    assert!(vendor.seen().is_empty());
}

#[tokio::test]
async fn a_401_fetches_once_and_sends_once_more() {
    let accepts_second = |seen: &Seen| match seen.header("authorization") {
        Some("Bearer token-2") => ok(seen),
        _ => http::StatusCode::UNAUTHORIZED.into_response(),
    };
    let sent = send(with_token(Placement::Header), json!({ "accession": "A1" }), accepts_second).await;
    assert_eq!((sent.seen.len(), sent.outcome().0), (2, "200"));
    assert_eq!(sent.seen[0].header("idempotency-key"), sent.seen[1].header("idempotency-key"));

    let refuses = |_: &Seen| {
        (http::StatusCode::UNAUTHORIZED, [("www-authenticate", "Bearer error=\"invalid_token\"")])
            .into_response()
    };
    let sent = send(with_token(Placement::Header), json!({ "accession": "A1" }), refuses).await;
    let (code, _, fault) = sent.outcome();
    assert_eq!((sent.seen.len(), code), (2, "401"));
    assert!(fault.unwrap().detail.as_ref().unwrap().0.contains("invalid_token"));
}

#[tokio::test]
async fn an_echoed_token_or_secret_does_not_reach_the_trace() {
    let echo = |seen: &Seen| {
        let text = format!("{:?} {}", seen.header("authorization"), seen.body);
        (http::StatusCode::BAD_REQUEST, text).into_response()
    };
    let message = json!({ "accession": "A1", "token": "s3cret-token" });
    let sent = send(with_token(Placement::Header), message, echo).await;
    assert!(sent.seen[0].body.contains("s3cret-token"), "the peer gets it in clear");
    let (_, body, fault) = sent.outcome();
    for text in [body.unwrap().as_text().unwrap(), &fault.unwrap().detail.as_ref().unwrap().0] {
        assert!(!text.contains("s3cret-token") && !text.contains("token-1"), "{text}");
    }
}

// === Replies ===

#[tokio::test]
async fn a_reply_becomes_a_record_of_its_declared_type_without_undeclared_fields() {
    let answer = |_: &Seen| axum::Json(json!({ "status": "ok", "count": 2.0, "extra": 1 })).into_response();
    let sent =
        send(Setup { reply: Some("SubmitReply"), ..PLAIN }, json!({ "accession": "A1" }), answer).await;
    let (code, body, fault) = sent.outcome();
    let record = body.unwrap().as_record().unwrap();
    assert_eq!((code, fault), ("200", None));
    assert_eq!(
        (record.type_name.as_str(), &record.fields),
        ("SubmitReply", &json!({ "status": "ok", "count": 2 }))
    );
}

#[tokio::test]
async fn a_reply_that_does_not_fit_is_kept_as_it_came_and_the_status_decides() {
    let answer = |_: &Seen| ([("content-type", "application/json")], r#"{ "state": "ok" }"#).into_response();
    let sent =
        send(Setup { reply: Some("SubmitReply"), ..PLAIN }, json!({ "accession": "A1" }), answer).await;
    let (code, body, fault) = sent.outcome();
    assert_eq!(code, "200");
    assert_eq!(body.unwrap().bytes().as_ref(), br#"{ "state": "ok" }"#);
    assert_eq!(body.unwrap().type_name(), "Json");
    assert_eq!(fault.unwrap().name, "message");
    assert!(fault.unwrap().text.contains("SubmitReply.status is missing"));

    let sent = send(Setup { reply: Some("SubmitReply"), ..PLAIN }, json!({ "accession": "A1" }), |_| {
        "fine".into_response()
    })
    .await;
    let (_, body, fault) = sent.outcome();
    assert_eq!((body.unwrap().type_name(), fault.unwrap().name.as_str()), ("Text", "message"));
}

#[tokio::test]
async fn a_token_in_a_reply_that_does_not_fit_is_sealed_all_the_same() {
    let odd = |_: &Seen| {
        axum::Json(json!({ "access_token": "tok-in-clear", "expires_in": "soon" })).into_response()
    };
    for answer in [odd as fn(&Seen) -> Response, |_: &Seen| "access_token=tok-in-clear".into_response()] {
        let sent = send(Setup { reply: Some("Bearer"), ..PLAIN }, json!({ "accession": "A1" }), answer).await;
        let (_, body, fault) = sent.outcome();
        let kept = body.unwrap();
        assert!(!kept.as_text().unwrap().contains("tok-in-clear"));
        assert!(
            kept.as_record()
                .unwrap()
                .reveal(&sent.runtime.vault)
                .unwrap()
                .to_string()
                .contains("tok-in-clear")
        );
        assert_eq!(fault.unwrap().name, "message");
    }
}

#[tokio::test]
async fn replies_without_a_declared_type_are_json_text_binary_or_nothing() {
    async fn kind(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Option<(String, String)> {
        let sent = send(PLAIN, json!({ "accession": "A1" }), answer).await;
        let (_, body, fault) = sent.outcome();
        assert_eq!(fault, None);
        body.map(|body| (body.type_name().to_owned(), body.content_type().to_owned()))
    }
    let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
    assert_eq!(kind(ok).await, pair("Json", "application/json"));
    assert_eq!(kind(|_| "thanks".into_response()).await, pair("Text", "text/plain"));
    let broken = |_: &Seen| ([("content-type", "application/json")], "{ broken").into_response();
    assert_eq!(kind(broken).await, pair("Text", "text/plain"));
    let binary =
        |_: &Seen| ([("content-type", "image/png")], Bytes::from_static(b"\xff\xfe")).into_response();
    assert_eq!(kind(binary).await, pair("Binary", "image/png"));
    assert_eq!(kind(|_| http::StatusCode::NO_CONTENT.into_response()).await, None);
}

#[tokio::test]
async fn a_refusal_carries_code_text_and_the_peers_words_apart() {
    let answer = |_: &Seen| {
        (http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "9")], "Jane Doe is blocked").into_response()
    };
    let sent = send(PLAIN, json!({ "accession": "A1" }), answer).await;
    let (code, _, fault) = sent.outcome();
    let fault = fault.unwrap();
    assert_eq!((code, fault.code.as_str()), ("429", "429"));
    assert_eq!(fault.text, "vendor.example:443 answered HTTP 429 Too Many Requests");
    assert_eq!(fault.detail.as_ref().unwrap().0, "Jane Doe is blocked");
    let Ok(Outcome::Replied { retry_after, .. }) = sent.result else { panic!() };
    assert_eq!(retry_after, Some(Duration::from_secs(9)));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let answer = |_: &Seen| (http::StatusCode::FOUND, [("location", "/elsewhere")]).into_response();
    let sent = send(PLAIN, json!({ "accession": "A1" }), answer).await;
    assert_eq!((sent.seen.len(), sent.outcome().0), (1, "302"));
}

// === No reply ===

async fn fault_from(url: &str, timeout: Duration) -> OperationError {
    let runtime = engine(Tokens::default());
    let setup = Setup { placement: Some(Placement::Query), ..PLAIN };
    let mut operation = setup.operation("Submit", url).await;
    let body = submit(&runtime, json!({ "accession": "PATIENT-1" }));
    let cx = OperationContext { response_timeout: timeout, ..delivery(1, body, &runtime) };
    let error = operation.on_message(&cx).await.unwrap_err();
    assert_eq!(error.disposition, Disposition::ByCode("fault"));
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("PATIENT-1") && !shown.contains("token-1"), "{shown}");
    error
}

#[tokio::test]
async fn what_gives_no_usable_reply_is_a_fault_in_our_own_words() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let long = Duration::from_secs(20);
    let refused = fault_from(&format!("http://{free}"), long).await;
    assert_eq!(
        (refused.fault.code.as_str(), refused.fault.text.as_str()),
        ("connect", "vendor.example:443 refused the connection")
    );
    assert_eq!(fault_from("http://no-such-host.invalid", long).await.fault.code, "dns");

    // A server that hangs up in the middle of its reply, and one that never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        let _ = socket.read(&mut buffer).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
        drop(socket);
        listener
    });
    assert_eq!(fault_from(&url, long).await.fault.code, "closed");
    let listener = server.await.unwrap();
    assert_eq!(fault_from(&url, Duration::from_millis(50)).await.fault.code, "timeout");
    drop(listener);

    let vendor = Vendor::start(ok).await;
    let tls = fault_from(&vendor.url.replace("http:", "https:"), long).await;
    assert_eq!(tls.fault.code, "tls", "{}", tls.fault);
}

#[tokio::test]
async fn dropping_a_delivery_leaves_the_operation_usable() {
    let reached = Arc::new(Notify::new());
    let signal = reached.clone();
    let first = AtomicU64::new(0);
    let vendor = Vendor::start(move |seen| {
        signal.notify_one();
        if first.fetch_add(1, Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(200));
        }
        ok(seen)
    })
    .await;
    let runtime = engine(Tokens::default());
    let mut operation = PLAIN.operation("Submit", &vendor.url).await;
    let cx = delivery(1, submit(&runtime, json!({ "accession": "A1" })), &runtime);
    tokio::select! {
        biased;
        () = reached.notified() => {}
        _ = operation.on_message(&cx) => panic!("answered too early"),
    }
    assert!(operation.on_message(&cx).await.is_ok());
}

// === TLS ===

/// A file of the tests' own certificates.
fn pem(name: &str) -> std::path::PathBuf {
    format!("{}/../tests/tls/{name}", env!("CARGO_MANIFEST_DIR")).into()
}

/// Accepts TLS connections for axum; what fails its handshake is dropped.
struct Secure(TcpListener, tokio_rustls::TlsAcceptor);

impl axum::serve::Listener for Secure {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, peer) = self.0.accept().await.unwrap();
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// A vendor with the certificate `name`; with `ask`, clients must have one, too.
async fn secure_vendor(name: &str, ask: bool) -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_file(pem(&format!("{name}.pem"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pem(&format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pem("ca.pem")).unwrap()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build();
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = match ask {
        true => config.unwrap().with_client_cert_verifier(verifier.unwrap()),
        false => config.unwrap().with_no_client_auth(),
    };
    let config = config.with_single_cert(chain, key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let router = Router::new().fallback(|| async { "thanks" });
    let secure = Secure(listener, tokio_rustls::TlsAcceptor::from(Arc::new(config)));
    tokio::spawn(async move { axum::serve(secure, router).await });
    url
}

/// The reply code, or the code of the fault.
async fn over_tls(url: &str, tls: ClientTls) -> String {
    let runtime = engine(Tokens::default());
    let mut operation = Setup { tls: Some(tls), ..PLAIN }.operation("Submit", url).await;
    let cx = delivery(1, submit(&runtime, json!({ "accession": "A1" })), &runtime);
    match operation.on_message(&cx).await {
        Ok(Outcome::Replied { code, .. }) => code,
        Ok(Outcome::Sent) => "sent".to_owned(),
        Err(error) => error.fault.code,
    }
}

#[tokio::test]
async fn a_peer_must_be_signed_by_a_trusted_authority_and_have_the_right_name() {
    let ca = || ClientTls { ca: Some(pem("ca.pem")), ..ClientTls::default() };
    let server = secure_vendor("server", false).await;
    assert_eq!(over_tls(&server, ca()).await, "200");
    assert_eq!(over_tls(&server, ClientTls::default()).await, "tls");
    let renamed = secure_vendor("renamed", false).await;
    assert_eq!(over_tls(&renamed, ca()).await, "tls");
    let named = ClientTls { server_name: Some("vendor.example".into()), ..ca() };
    assert_eq!(over_tls(&renamed, named.clone()).await, "200");
    assert_eq!(over_tls(&server, named).await, "tls");
}

#[tokio::test]
async fn a_pin_accepts_exactly_one_certificate() {
    let der = rustls::pki_types::CertificateDer::from_pem_file(pem("renamed.pem")).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let pin = || ClientTls { pin: Some(format!("sha256:{hex}")), ..ClientTls::default() };
    assert_eq!(over_tls(&secure_vendor("renamed", false).await, pin()).await, "200");
    assert_eq!(over_tls(&secure_vendor("server", false).await, pin()).await, "tls");
}

#[tokio::test]
async fn trust_that_changes_on_disk_is_taken_up_between_messages() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::copy(pem("client.pem"), &ca).unwrap();
    let url = secure_vendor("server", false).await;
    let runtime = engine(Tokens::default());
    let tls = Some(ClientTls { ca: Some(ca.clone()), ..ClientTls::default() });
    let mut operation = Setup { tls, ..PLAIN }.operation("Submit", &url).await;
    let cx = delivery(1, submit(&runtime, json!({ "accession": "A1" })), &runtime);
    assert_eq!(operation.on_message(&cx).await.unwrap_err().fault.code, "tls");
    std::fs::copy(pem("ca.pem"), &ca).unwrap();
    let taken_up = operation.on_message(&cx).await;
    assert!(taken_up.is_ok(), "{taken_up:?}");
    std::fs::write(&ca, "broken").unwrap();
    assert!(operation.on_message(&cx).await.is_ok(), "what cannot be used changes nothing");
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let url = secure_vendor("server", true).await;
    let ca = || ClientTls { ca: Some(pem("ca.pem")), ..ClientTls::default() };
    assert_ne!(over_tls(&url, ca()).await, "200");
    let client = || ClientTls { cert: Some(pem("client.pem")), key: Some(pem("client.key")), ..ca() };
    assert_eq!(over_tls(&url, client()).await, "200");
    let named = ClientTls { server_name: Some("localhost".into()), ..client() };
    assert_eq!(over_tls(&url, named).await, "200");
}

// === Checks ===

const TABLES: &str = r#"
[oauth.vendor]
token_url = "https://a.example/token"
grant = "client_credentials"
client_id = "${env:ID:-x}"
[messages.Submit]
accession = "string"
[messages.Login]
password = "secret"
"#;

fn problems(operation: &str) -> String {
    check(&format!("{TABLES}[operations.out]\ntype = \"rest\"\n{operation}"))
}

#[test]
fn a_right_operation_has_no_problem() {
    let text = r#"
url = "https://vendor.example/api"
oauth = { client = "vendor", placement = "query" }
idempotency_header = "X-Request-Id"
requests.Submit = { method = "PUT", path = "/r/{accession}?s={session}", query = { a = "{accession}" } }
requests."ADT^A01" = { path = "/p/{PID-3.1}" }
requests.Json = { path = "/{anything}" }
requests.Login = { body = "form", reply = "Submit", headers = { Accept = "application/json" } }
"#;
    assert_eq!(problems(text), "");
}

#[test]
fn tokens_and_secrets_stay_off_plain_http() {
    let requests = "requests.Submit = { path = \"/r\" }\n";
    let out = problems(&format!("url = \"http://vendor.example\"\noauth = \"vendor\"\n{requests}"));
    assert!(out.starts_with("error S0332: an OAuth token would be sent over plain http"), "{out}");
    let out = problems(&format!(
        "url = \"http://vendor.example\"\noauth = \"vendor\"\nallow_plain_http = true\n{requests}"
    ));
    assert_eq!(out, "warning S0332: an OAuth token would be sent over plain http (use https)");
    let out = problems("url = \"http://10.0.0.1\"\nrequests.Login = {}\n");
    assert!(out.starts_with("error S0332: a secret would be sent"), "{out}");
    assert_eq!(problems(&format!("url = \"http://127.0.0.1:1\"\noauth = \"vendor\"\n{requests}")), "");
    assert_eq!(problems(&format!("url = \"http://vendor.example\"\n{requests}")), "");
}

#[test]
fn every_mistake_is_named_at_once() {
    let out = problems(
        r#"
url = "https://user:pw@vendor.example/api"
oauth = "vender"
requests.Submit = { method = "get", path = "/{accesion}", reply = "Nothing", headers = { "a b" = "c" } }
requests.Sumbit = {}
requests."ADT^A01" = { path = "/{PID-}", body = "json" }
requests.Login = { method = "GET", body = "form", path = "/{x", headers = { Authorization = "y" } }
"#,
    );
    let expected = [
        "S0331: a URL cannot hold user name and password",
        "S0204: there is no OAuth client named vender (did you mean vendor?)",
        "S0335: a method is one of GET, POST, PUT, PATCH, DELETE, HEAD (did you mean GET?)",
        "S0337: Submit has no field accesion (did you mean accession?)",
        "S0202: message type Nothing is not declared",
        "S0336: this is no name of an HTTP header",
        "S0202: message type Sumbit is not declared (did you mean Submit?)",
        "S0335: an HL7 message is sent as raw bytes",
        "S0337: this is no HL7 path",
        "S0335: GET has no body",
        "S0337: a { at character",
        "S0336: Authorization is set by oauth",
    ];
    for line in expected {
        assert!(out.contains(line), "missing {line} in\n{out}");
    }
}

#[test]
fn an_operation_without_requests_sends_nothing() {
    let out = problems("url = \"https://a.example\"\nrequests = {}\n");
    assert!(out.contains("S0334"), "{out}");
}
