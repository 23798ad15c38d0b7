//! Listeners: shared by services, taken by others, full, and closing.

use tokio::net::TcpListener;

use super::*;
use crate::listeners::{Lease, Limits, lease};

#[tokio::test]
async fn services_share_a_listener_and_the_longest_path_wins() {
    let listen = format!("127.0.0.1:{}", free_port());
    let (one, two) = (Desk::new(), Desk::new());
    let first = service(&one, "first", json!({ "listen": listen, "path": "/api" })).await.unwrap();
    let second = service(&two, "second", json!({ "listen": listen, "path": "/api/results" })).await.unwrap();
    for path in ["/api", "/api/other", "/api/results", "/api/results/A1"] {
        assert_eq!(told(first.post(path, "text/plain", "x")).await.status, 202, "{path}");
    }
    assert_eq!((one.taken().len(), two.taken().len()), (2, 2));

    // Another item cannot have the same path; while one is stopped its path says so, and the other goes on.
    let taken = service(&one, "third", json!({ "listen": listen, "path": "/api" })).await;
    assert_eq!(taken.err().unwrap().code, "bind");
    let again = service(&two, "second", json!({ "listen": listen, "path": "/api/results" })).await.unwrap();
    second.end().await;
    assert_eq!(told(first.post("/api/results", "text/plain", "x")).await.status, 202, "reload leaves no gap");
    again.end().await;
    assert_eq!(told(first.post("/api", "text/plain", "x")).await.status, 202);
    let url = first.url("/api");
    first.end().await;
    let refused = Client::new().post(url).send().await.unwrap_err();
    assert!(refused.is_connect(), "the last one closes the socket");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn services_that_start_together_share_their_listener() {
    for _ in 0..50 {
        let listen = format!("127.0.0.1:{}", free_port());
        let together = Arc::new(tokio::sync::Barrier::new(8));
        let starting = (0..8).map(|n| {
            let (listen, together) = (listen.clone(), together.clone());
            tokio::spawn(async move {
                let (desk, path) = (Desk::new(), format!("/{n}"));
                together.wait().await;
                service(&desk, &format!("item{n}"), json!({ "listen": listen, "path": path })).await
            })
        });
        for started in futures_util::future::join_all(starting).await {
            started.unwrap().unwrap().end().await;
        }
    }
}

/// A service on `/a`, and a lease of `/b` on the same listener that nobody serves yet.
async fn starting() -> (Bench, Lease, ServiceContext) {
    let listen = format!("127.0.0.1:{}", free_port());
    let desk = Desk::new();
    let running = service(&desk, "running", json!({ "listen": listen, "path": "/a" })).await.unwrap();
    let mut cx = desk.context();
    cx.item = "starting".into();
    cx.stop = CancellationToken::new();
    let lease = lease(running.address, "/b", None, Limits::connections(10), &cx).unwrap();
    (running, lease, cx)
}

/// Returns once the request of `answer` waits for its service: its head has been read, and nothing is answered.
async fn waits(running: &Bench, answer: &JoinHandle<Told>) {
    // A request that is sent later and answered; on one thread the other is read by then, too.
    for _ in 0..5 {
        assert_eq!(told(running.post("/a", "text/plain", "x")).await.status, 202);
    }
    assert!(!answer.is_finished(), "answered too early");
}

#[tokio::test]
async fn a_request_waits_for_a_service_that_is_starting() {
    let (running, lease, cx) = starting().await;
    let answer = tokio::spawn(told(running.post("/b", "text/plain", "x")));
    waits(&running, &answer).await;
    let mount = axum::Router::new().fallback(|| async { "from b" });
    let serving = cx.clone();
    let served = tokio::spawn(async move { lease.serve(Arc::new(mount), &serving).await });
    let told = answer.await.unwrap();
    assert_eq!((told.status, told.text.as_str()), (200, "from b"));
    cx.stop.cancel();
    served.await.unwrap();
    running.end().await;
}

#[tokio::test]
async fn a_request_for_a_service_that_does_not_come_is_503_and_404_when_it_is_gone() {
    let (running, lease, _) = starting().await;
    let answer = tokio::spawn(told(running.post("/b", "text/plain", "x")));
    // The wait may not have begun yet: go on until it has, and is over.
    while !answer.is_finished() {
        running.desk.clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let told_late = answer.await.unwrap();
    assert_eq!((told_late.status, told_late.headers.contains_key("retry-after")), (503, true));

    let answer = tokio::spawn(told(running.post("/b", "text/plain", "x")));
    waits(&running, &answer).await;
    drop(lease);
    assert_eq!(answer.await.unwrap().status, 404, "it is told as soon as the path is given up");
    running.end().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_a_fault_of_the_environment() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = other.local_addr().unwrap().to_string();
    let fault = service(&Desk::new(), "api", json!({ "listen": listen })).await.err().unwrap();
    assert_eq!(fault.code, "bind");
    assert!(fault.text.contains("in use"), "{fault}");
}

#[tokio::test]
async fn stopping_answers_what_is_in_flight_and_takes_nothing_more() {
    let bench = bench(json!({})).await;
    bench.desk.syncing.send_replace(false);
    let answer = tokio::spawn(told(bench.post("/", "text/plain", "x")));
    bench.desk.until(1).await;
    bench.cx.stop.cancel();
    let url = bench.url("/");
    // The socket closes while the request is still being answered.
    while TcpStream::connect(bench.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(Client::new().post(url).send().await.is_err());
    bench.desk.syncing.send_replace(true);
    assert_eq!(answer.await.unwrap().status, 202);
    bench.run.await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let bench = bench(json!({ "max_connections": 1 })).await;
    let held = TcpStream::connect(bench.address).await.unwrap();
    let mut second = TcpStream::connect(bench.address).await.unwrap();
    let mut buffer = [0; 1];
    assert!(matches!(second.read(&mut buffer).await, Ok(0) | Err(_)));
    drop(held);
    assert_eq!(bench.desk.events().len(), 1);
    bench.end().await;
}
