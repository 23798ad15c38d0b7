//! One connection of a listener: the TLS handshake, one request after the other, and how long it may take over
//! what comes before each of them. Where a request goes is in [`super`].

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use septet_engine::clock::SharedClock;
use septet_engine::event::{Level, NewEvent};
use septet_engine::server_tls::ClientCertificate;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{Served, Shared};
use crate::bodies::discard;
use crate::problem::problem;

/// How long the head of a request may take, from its first byte on.
pub(super) const HEAD: Duration = Duration::from_secs(30);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The longest request head.
const HEAD_SIZE: usize = 64 << 10;

/// Serves one connection to its end.
pub(super) async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    shared: Arc<Shared>,
) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return requests(stream, peer, None, &shared).await;
    };
    let shaken = tokio::select! {
        shaken = acceptor.accept(stream) => shaken,
        () = shared.clock.sleep(HANDSHAKE) => return,
        () = shared.closing.cancelled() => return,
    };
    if let Ok(stream) = shaken {
        let certificate = ClientCertificate::of(stream.get_ref().1);
        requests(stream, peer, certificate, &shared).await;
    }
}

async fn requests<S: AsyncRead + AsyncWrite + Unpin + Send>(
    stream: S,
    peer: SocketAddr,
    certificate: Option<ClientCertificate>,
    shared: &Arc<Shared>,
) {
    let pace = Arc::new(Pace::new(shared.clock.clone()));
    let service = service_fn(|mut request: Request<Incoming>| {
        if let Some(certificate) = certificate {
            request.extensions_mut().insert(certificate);
        }
        let (pace, shared) = (pace.clone(), shared.clone());
        async move {
            pace.enter(Phase::Request);
            let response = dispatch(shared, peer, request).await;
            pace.enter(Phase::Idle);
            response
        }
    });
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_header_size(HEAD_SIZE).half_close(true);
    let stream = Paced { stream, pace: pace.clone() };
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // How a connection ends is the client's affair: every request was answered or given up by then.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shared.closing.cancelled() => connection.as_mut().graceful_shutdown(),
        phase = pace.overdue(shared.idle()) => {
            if phase != Phase::Idle {
                return;
            }
            // A client that takes its time over the last answer gets the rest of it.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                _ = connection => {}
                () = shared.clock.sleep(HEAD) => {}
            }
            return;
        }
    }
    let _ = connection.await;
}

async fn dispatch(
    shared: Arc<Shared>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    let Some(route) = shared.served(request.uri().path()).await else {
        discard_request(request, &shared.clock).await;
        return Ok(problem(StatusCode::NOT_FOUND, "nothing is served at this path", None));
    };
    let Some(Served { mount, requests, cx, .. }) = route else {
        discard_request(request, &shared.clock).await;
        let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, "the service is not running", None);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
        return Ok(response);
    };
    let answer = requests.spawn(async move { mount.handle(request).await });
    Ok(answer.await.unwrap_or_else(|_| {
        cx.event(NewEvent::new(Level::Error, "item.error", "a request ended in a panic"));
        problem(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be handled", None)
    }))
}

async fn discard_request(request: Request<Body>, clock: &SharedClock) {
    let (parts, body) = request.into_parts();
    discard(&parts.headers, body, clock).await;
}

// === How long it may take ===

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has come yet.
    Fresh,
    /// It is between two requests.
    Idle,
    /// A request has begun to come.
    Head,
    /// A request is worked on; its body has a time limit of its own.
    Request,
}

/// What a connection is doing since when.
struct Pace {
    now: Mutex<(Phase, Timestamp)>,
    clock: SharedClock,
}

impl Pace {
    fn new(clock: SharedClock) -> Self {
        Pace { now: Mutex::new((Phase::Fresh, clock.now())), clock }
    }

    fn enter(&self, phase: Phase) {
        *self.lock() = (phase, self.clock.now());
    }

    /// Bytes have come.
    fn came(&self) {
        let mut now = self.lock();
        if matches!(now.0, Phase::Fresh | Phase::Idle) {
            *now = (Phase::Head, self.clock.now());
        }
    }

    /// Returns once the connection has been in one phase for too long. There is one timer, which is looked at
    /// when it goes off, so that a request costs none.
    async fn overdue(&self, idle: Option<Duration>) -> Phase {
        let shortest = idle.map_or(HEAD, |idle| idle.min(HEAD));
        let after = |moment: Timestamp, limit| {
            let limit = SignedDuration::try_from(limit).unwrap_or(SignedDuration::MAX);
            moment.saturating_add(limit).unwrap_or(Timestamp::MAX)
        };
        loop {
            let now = self.clock.now();
            let (phase, since) = *self.lock();
            let limit = match phase {
                Phase::Fresh | Phase::Idle => idle,
                Phase::Head => Some(HEAD),
                Phase::Request => None,
            };
            let end = limit.map(|limit| after(since, limit));
            if end.is_some_and(|end| end <= now) {
                return phase;
            }
            // What begins from now on is not over before the shortest limit.
            let look = after(now, shortest);
            self.clock.until(end.map_or(look, |end| end.min(look))).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Phase, Timestamp)> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that tells its pace what comes.
struct Paced<S> {
    stream: S,
    pace: Arc<Pace>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.pace.came();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
