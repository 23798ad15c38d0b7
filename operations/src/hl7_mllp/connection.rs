//! One connection to an MLLP peer: frames out, frames in, and what was sent on it.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use septet_engine::clock::SharedClock;
use septet_engine::config::units::HostPort;
use septet_engine::host::OperationError;
use septet_hl7::mllp::{self, Event, Limits, Scanner};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::stream_tls::Tls;

/// The largest reply that is read.
const MAX_REPLY: usize = 16 * 1024 * 1024;
/// How long a CR may come after its FS.
const PATIENCE: Duration = Duration::from_secs(1);
/// Smaller replies get memory of their own; larger ones keep the buffer they came in.
const SMALL: usize = 16 * 1024;
/// What an idle connection may hold.
const IDLE: usize = 4 * 1024;
/// How many control ids are remembered, to tell late acknowledgements from stray ones.
const REMEMBERED: usize = 256;
/// Silence after which the system asks whether the peer is still there, and how often.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15));

/// Why a connection is of no more use.
#[derive(Debug)]
pub(super) enum Lost {
    /// The peer closed it.
    Closed {
        /// In the middle of a frame.
        inside: bool,
    },
    /// It failed.
    Failed(io::ErrorKind),
    /// The peer sends a reply without end.
    TooLarge,
}

impl From<Lost> for OperationError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Closed { inside: false } => {
                OperationError::fault("closed", "the peer closed the connection without an answer")
            }
            Lost::Closed { inside: true } => {
                OperationError::fault("closed", "the peer closed the connection in the middle of its answer")
            }
            Lost::Failed(kind) => {
                OperationError::fault("connection", format!("the connection failed: {kind}"))
            }
            Lost::TooLarge => {
                OperationError::fault("reply", format!("the reply is larger than {MAX_REPLY} bytes"))
            }
        }
    }
}

/// TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Stream for S {}

pub(super) struct Connection {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    scanner: Scanner,
    sent: VecDeque<String>,
    answers: u64,
    last_answer: Option<Timestamp>,
}

impl Connection {
    pub(super) async fn open(peer: &HostPort, tls: Option<&mut Tls>) -> Result<Self, OperationError> {
        let fault =
            |error: io::Error| OperationError::fault("connect", format!("cannot connect to {peer}: {error}"));
        let stream = TcpStream::connect((peer.host.as_str(), peer.port)).await.map_err(fault)?;
        stream.set_nodelay(true).map_err(fault)?;
        let (time, interval) = KEEPALIVE;
        let keepalive = socket2::TcpKeepalive::new().with_time(time).with_interval(interval);
        // A system that cannot do it has only the timeouts.
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connect(peer, stream).await?),
        };
        let scanner = Scanner::new(Limits { max_message: MAX_REPLY });
        let buffer = BytesMut::new();
        Ok(Connection { stream, buffer, scanner, sent: VecDeque::new(), answers: 0, last_answer: None })
    }

    /// Sends a message as one frame.
    pub(super) async fn send(&mut self, body: &Bytes, control_id: &str) -> Result<(), Lost> {
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back(control_id.trim().to_owned());
        let mut frame = Buf::chain(&[mllp::VT][..], body.clone()).chain(&[mllp::FS, b'\r'][..]);
        self.stream.write_all_buf(&mut frame).await.map_err(Lost::of)?;
        self.stream.flush().await.map_err(Lost::of)
    }

    /// The body of the next frame. Cancel-safe.
    pub(super) async fn next_frame(&mut self, clock: &SharedClock) -> Result<Bytes, Lost> {
        loop {
            let (inside, after_fs) = match self.scanner.next(&mut self.buffer) {
                Event::Frame(frame) => return Ok(own(frame.body)),
                Event::TooLarge(_) => return Err(Lost::TooLarge),
                Event::NeedMore { in_frame, waiting_after_fs } => (in_frame, waiting_after_fs),
            };
            self.buffer.reserve(if inside { 16 * 1024 } else { 1024 });
            let read = self.stream.read_buf(&mut self.buffer);
            let read = if after_fs {
                tokio::select! {
                    read = read => Some(read),
                    () = clock.sleep(PATIENCE) => None,
                }
            } else {
                Some(read.await)
            };
            match read {
                Some(Ok(1..)) => continue,
                // Nothing follows the FS: it has ended the frame.
                None | Some(Ok(0)) if after_fs => {
                    if let Some(frame) = self.scanner.flush(&mut self.buffer) {
                        return Ok(own(frame.body));
                    }
                }
                Some(Err(error)) => return Err(Lost::of(error)),
                _ => return Err(Lost::Closed { inside }),
            }
        }
    }

    /// A frame that has come already.
    pub(super) fn frame_now(&mut self) -> Result<Option<Bytes>, Lost> {
        loop {
            let inside = match self.scanner.next(&mut self.buffer) {
                Event::Frame(frame) => return Ok(Some(frame.body)),
                Event::TooLarge(_) => return Err(Lost::TooLarge),
                Event::NeedMore { in_frame, .. } => in_frame,
            };
            self.buffer.reserve(1024);
            match self.stream.read_buf(&mut self.buffer).now_or_never() {
                None => return Ok(None),
                Some(Ok(0)) => return Err(Lost::Closed { inside }),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Lost::of(error)),
            }
        }
    }

    /// Whether a message with this control id was sent on this connection, as far as it remembers.
    pub(super) fn has_sent(&self, control_id: &str) -> bool {
        self.sent.iter().any(|sent| sent == control_id.trim())
    }

    pub(super) fn answered(&mut self, clock: &SharedClock) {
        self.answers += 1;
        self.last_answer = Some(clock.now());
        if self.buffer.is_empty() && self.buffer.capacity() > IDLE {
            self.buffer = BytesMut::new();
        }
    }

    /// How many messages were answered on it.
    pub(super) fn answers(&self) -> u64 {
        self.answers
    }

    /// How long ago the last answer came.
    pub(super) fn since_answer(&self, clock: &SharedClock) -> Duration {
        let since = |last| Duration::try_from(clock.now().duration_since(last)).unwrap_or_default();
        self.last_answer.map_or(Duration::MAX, since)
    }

    pub(super) async fn close(mut self) {
        // The peer may have gone first.
        let _ = self.stream.shutdown().await;
    }
}

/// What is stored for long must not keep the buffer that it came in.
fn own(body: Bytes) -> Bytes {
    if body.len() <= SMALL { Bytes::copy_from_slice(&body) } else { body }
}

impl Lost {
    fn of(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => {
                Lost::Closed { inside: false }
            }
            kind => Lost::Failed(kind),
        }
    }
}
