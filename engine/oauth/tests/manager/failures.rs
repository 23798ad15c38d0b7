//! A token endpoint that fails: what callers are told, and how long it is left alone.

use axum::response::{IntoResponse, Redirect};
use septet_engine::host::KeepFamily;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

async fn failure(server: Server) -> septet_engine::fault::Fault {
    failure_of(&Bench::over(server, |_| {})).await
}

async fn failure_of(bench: &Bench) -> septet_engine::fault::Fault {
    let fault = bench.token().await.unwrap_err();
    let events = bench.events();
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].kind.as_ref(), events[0].item.as_ref().unwrap().as_str()),
        ("oauth.failed", "submit")
    );
    assert!(events[0].text.starts_with(&fault.code), "{}", events[0].text);
    assert_eq!(events[0].detail, fault.detail);
    let view = bench.manager.clients().remove(0);
    assert_eq!((view.state, view.last_error), (ClientState::Failing, Some(fault.to_string())));
    assert!(bench.store.get(KeepFamily::Token, "vendor").is_none());
    fault
}

#[tokio::test]
async fn every_kind_of_failing_endpoint_has_its_own_code() {
    let fault = failure(
        Server::start(|_, _| (axum::http::StatusCode::INTERNAL_SERVER_ERROR, "boom").into_response()).await,
    )
    .await;
    assert_eq!((fault.code.as_str(), fault.detail.unwrap().0.as_str()), ("http 500", "boom"));
    assert!(!fault.text.contains("boom"));

    let denied = r#"{"error":"invalid_client","error_description":"no such client"}"#;
    let fault = failure(Server::start(move |_, _| json(401, denied)).await).await;
    assert_eq!((fault.code.as_str(), fault.detail.unwrap().0.as_str()), ("invalid_client", "no such client"));

    let fault = failure(Server::start(|_, _| "<html>sign in</html>".into_response()).await).await;
    assert_eq!((fault.code.as_str(), fault.detail), ("reply", None));

    let fault = failure(Server::start(|_, _| json(200, r#"{"access_token":"tok"#)).await).await;
    assert_eq!(fault.code, "reply");

    let fault = failure(Server::start(|_, _| Redirect::temporary("/elsewhere").into_response()).await).await;
    assert_eq!(fault.code, "http 307");

    let fault = failure(Server::start(|_, _| json(200, &format!("\"{}\"", "x".repeat(1 << 20)))).await).await;
    assert!(fault.text.contains("larger than 1 MiB"), "{}", fault.text);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let server = Server::start(|_, _| Redirect::temporary("/elsewhere").into_response()).await;
    let bench = Bench::over(server, |_| {});
    bench.token().await.unwrap_err();
    assert_eq!(bench.server.count(), 1);
}

#[tokio::test]
async fn a_slow_endpoint_times_out_and_a_missing_one_is_a_connection_fault() {
    let mut bench = Bench::new(60).await;
    bench.server.hold(true);
    let (store, clock) = (bench.store.clone(), bench.clock.clone());
    bench.manager = Arc::new(TokenManager::with_timeout(Arc::new(store), clock, Duration::from_millis(200)));
    bench.configure(|_| {});
    assert_eq!(failure_of(&bench).await.code, "timeout");

    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut bench = Bench::new(60).await;
    bench.configure(|client| client.token_url = Some(format!("http://{unused}/token")));
    assert_eq!(bench.token().await.unwrap_err().code, "connect");
}

#[tokio::test]
async fn a_reply_that_breaks_off_is_no_reply() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = socket.read(&mut request).await.unwrap();
        socket
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"access_token\":\"half")
            .await
            .unwrap();
        // Whatever is still to come is read: the end of the connection is no reset.
        socket.shutdown().await.unwrap();
        while socket.read(&mut request).await.is_ok_and(|read| read > 0) {}
    });
    let mut bench = Bench::new(60).await;
    bench.configure(|client| client.token_url = Some(url));
    let fault = bench.token().await.unwrap_err();
    assert_eq!(fault.code, "reply");
    assert!(!format!("{fault:?}").contains("half"));
}

#[tokio::test]
async fn a_failing_endpoint_is_left_alone_for_longer_each_time() {
    let bench = Bench::over(Server::start(|_, _| json(500, "{}")).await, |_| {});
    for (wait, requests) in [(0, 1), (999, 1), (1, 2), (1999, 2), (1, 3), (3999, 3), (1, 4)] {
        bench.clock.advance(Duration::from_millis(wait));
        bench.token().await.unwrap_err();
        assert_eq!(bench.server.count(), requests);
    }
}

#[tokio::test]
async fn retry_after_is_respected_and_success_ends_the_waiting() {
    let server = Server::start(|_, n| match n {
        1 => {
            (axum::http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "30")], "slow down").into_response()
        }
        _ => json(200, r#"{"access_token":"good","expires_in":60}"#),
    })
    .await;
    let bench = Bench::over(server, |_| {});
    assert_eq!(bench.token().await.unwrap_err().code, "http 429");
    bench.clock.advance(Duration::from_millis(29_999));
    assert_eq!(bench.token().await.unwrap_err().code, "http 429");
    assert_eq!(bench.server.count(), 1);
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(bench.token().await.unwrap(), "good");
    let view = bench.manager.clients().remove(0);
    assert_eq!((view.state, view.last_error), (ClientState::Valid, None));
}

#[tokio::test]
async fn a_token_about_to_expire_is_better_than_none() {
    let bench = Bench::new(3600).await;
    bench.token().await.unwrap();
    bench.server.script(|_, _| json(503, "{}"));
    bench.clock.advance(seconds(3550));
    assert_eq!(bench.token().await.unwrap(), "token-1");
    assert_eq!(bench.token().await.unwrap(), "token-1");
    assert_eq!(bench.server.count(), 2, "the endpoint is not asked again at once");
    bench.clock.advance(seconds(50));
    assert_eq!(bench.token().await.unwrap_err().code, "http 503");
}
