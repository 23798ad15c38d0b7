//! One connection of `septet send`.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use septet_engine::config::units::HostPort;
use septet_hl7::ack::read_ack;
use septet_hl7::mllp::{Event, Limits, Scanner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// A connection; a message is outstanding on it only within [`Peer::ask`].
pub(super) struct Peer {
    stream: TcpStream,
    buffer: BytesMut,
    scanner: Scanner,
    answers: u64,
}

/// An answer.
pub(super) struct Reply {
    /// MSA-1.
    pub(super) code: Option<String>,
    pub(super) bytes: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The peer had closed a connection after an earlier answer: it may be tried again on another.
    #[error("the peer closed the connection")]
    Closed,
    /// No answer came.
    #[error("{0}")]
    Missing(String),
}

impl Peer {
    pub(super) async fn connect(address: &HostPort, timeout: Duration) -> io::Result<Self> {
        let connect = TcpStream::connect((address.host.as_str(), address.port));
        let stream = tokio::time::timeout(timeout, connect).await.map_err(|_| io::ErrorKind::TimedOut)??;
        stream.set_nodelay(true)?;
        let scanner = Scanner::new(Limits { max_message: MAX_ANSWER });
        Ok(Peer { stream, buffer: BytesMut::new(), scanner, answers: 0 })
    }

    /// Sends a frame and waits for the answer whose MSA-2 is `control_id` (any, where that is unknown).
    pub(super) async fn ask(
        &mut self,
        frame: &[u8],
        control_id: Option<&str>,
        timeout: Duration,
        unmatched: &mut u64,
    ) -> Result<Reply, Failed> {
        let waited = tokio::time::timeout(timeout, self.exchange(frame, control_id, unmatched)).await;
        waited.unwrap_or_else(|_| Err(Failed::Missing("no acknowledgement in time".into())))
    }

    async fn exchange(
        &mut self,
        frame: &[u8],
        control_id: Option<&str>,
        unmatched: &mut u64,
    ) -> Result<Reply, Failed> {
        let reused = self.answers > 0;
        let mut silent = true;
        let gone = |error: io::Error, silent: bool| match reused && silent {
            true => Failed::Closed,
            false => Failed::Missing(format!("the connection failed: {error}")),
        };
        self.stream.write_all(frame).await.map_err(|error| gone(error, true))?;
        loop {
            match self.scanner.next(&mut self.buffer) {
                Event::Frame(frame) => {
                    silent = false;
                    let ack = read_ack(&frame.body).ok();
                    let id = ack.as_ref().map(|ack| ack.control_id.trim());
                    if control_id.is_none_or(|wanted| id == Some(wanted.trim())) {
                        self.answers += 1;
                        return Ok(Reply { code: ack.map(|ack| ack.code), bytes: frame.body });
                    }
                    *unmatched += 1;
                }
                Event::TooLarge(_) => return Err(Failed::Missing("the answer is too large".into())),
                Event::NeedMore { .. } => {
                    self.buffer.reserve(4096);
                    match self.stream.read_buf(&mut self.buffer).await {
                        Ok(0) if reused && silent => return Err(Failed::Closed),
                        Ok(0) => {
                            return Err(Failed::Missing("the peer closed without an acknowledgement".into()));
                        }
                        Ok(_) => {}
                        Err(error) => return Err(gone(error, silent)),
                    }
                }
            }
        }
    }
}
