//! What becomes of the vendor's answer, and of none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use septet_engine::host::OperationContext;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::*;

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
    let long = Duration::from_secs(120);
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
