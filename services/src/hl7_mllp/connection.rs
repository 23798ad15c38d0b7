//! The life of one connection: frames in, answers out, in order.
//!
//! Everything that one read brought is taken before anything is answered, the durability of the last
//! message is awaited for all, and their answers leave in one write: a sender that pipelines costs one sync
//! a read, not one a message. An idle connection holds 4 KiB.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::{SignedDuration, Timestamp};
use septet_engine::clock::{Patience, SharedClock};
use septet_engine::event::{Level, NewEvent};
use septet_engine::store::Receipt;
use septet_hl7::mllp::{self, Event, Frame, Limits, Scanner, TooLarge};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Shared;
use crate::hl7_common::{Arrival, Taken, WhenUnavailable};

/// How long a CR may come after its FS.
const AFTER_FS: Duration = Duration::from_secs(1);
/// How old an answer may become before it is not given at all, and how long a peer may take to read it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a frame that has begun may go on once the service stops.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How long a peer may take to notice that we have closed, so that it can read our last answer.
const LINGER: Duration = Duration::from_millis(500);
/// Frames that are taken before any of them is answered.
const AT_ONCE: usize = 256;
/// Smaller messages get memory of their own; larger ones keep the buffer they came in.
const SMALL: usize = 16 * 1024;
/// One read: at least, and at most (the step in which a frame grows).
const READ: (usize, usize) = (4 * 1024, 64 * 1024);

/// Serves a connection until either side ends it.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(stream: S, shared: Arc<Shared>) {
    let limits = Limits { max_message: shared.settings.max_message.as_usize() };
    let clock = shared.receiver.context().runtime.clock.clone();
    let mut connection = Connection {
        stream,
        shared,
        clock,
        buffer: BytesMut::new(),
        scanner: Scanner::new(limits),
        frame_began: None,
        room: READ.0,
        storing: Patience::default(),
        reading: Patience::default(),
    };
    let end = connection.run().await;
    let junk = connection.scanner.junk();
    if junk > 0 {
        let text = format!("bytes outside of frames on a connection that ended, skipped: {junk}");
        let event = NewEvent::new(Level::Warning, "message.finding", text);
        connection.shared.receiver.context().event(event);
    }
    if end == End::Politely {
        connection.close().await;
    }
}

struct Connection<S> {
    stream: S,
    shared: Arc<Shared>,
    clock: SharedClock,
    buffer: BytesMut,
    scanner: Scanner,
    /// When the first byte of the unfinished frame came.
    frame_began: Option<Timestamp>,
    /// How much the next read may bring.
    room: usize,
    /// How long the store has for what was read last.
    storing: Patience,
    /// How long the peer has for its next bytes.
    reading: Patience,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// We close it: the peer should still read what we sent.
    Politely,
    /// It is of no more use.
    AtOnce,
}

/// Why the scanner stopped.
enum Pause {
    /// It needs more bytes.
    Dry { in_frame: bool, after_fs: bool },
    /// A frame passed the cap.
    TooLarge(TooLarge),
    /// Enough for one write of answers.
    Enough,
}

/// What a wait for bytes brought.
enum Read {
    Bytes,
    Closed,
    /// `frame_timeout`.
    FrameTimeout,
    /// Nothing came after the FS.
    AfterFs,
    /// `idle_timeout`.
    Idle,
    Stop,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    async fn run(&mut self) -> End {
        loop {
            let (in_frame, after_fs) = match self.work().await {
                Ok(Pause::Dry { in_frame, after_fs }) => (in_frame, after_fs),
                Ok(Pause::TooLarge(frame)) => {
                    // The rest of the frame is still to come, and its time runs.
                    self.frame_began.get_or_insert(self.clock.now());
                    if let Some(answer) = self.shared.receiver.too_large(&frame.head)
                        && let Err(end) = self.write_one(&answer.bytes).await
                    {
                        return end;
                    }
                    continue;
                }
                Ok(Pause::Enough) => continue,
                Err(end) => return end,
            };
            if !in_frame {
                self.frame_began = None;
            }
            let done = match self.read(in_frame, after_fs).await {
                Read::Bytes => continue,
                Read::AfterFs => match self.scanner.flush(&mut self.buffer) {
                    Some(frame) => self.settle(vec![frame]).await,
                    None => Ok(()),
                },
                Read::Closed => {
                    let last = match self.scanner.flush(&mut self.buffer) {
                        Some(frame) => self.settle(vec![frame]).await,
                        None => self.give_up("the connection ended inside a frame").await,
                    };
                    return last.map_or_else(|end| end, |()| End::AtOnce);
                }
                Read::FrameTimeout => {
                    let given_up = self.give_up("the frame did not end within frame_timeout").await;
                    return given_up.map_or_else(|end| end, |()| End::Politely);
                }
                Read::Idle | Read::Stop => return End::Politely,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// Takes the frames in the buffer and answers them.
    async fn work(&mut self) -> Result<Pause, End> {
        let mut frames = Vec::new();
        let pause = loop {
            match self.scanner.next(&mut self.buffer) {
                Event::Frame(frame) => {
                    frames.push(frame);
                    if frames.len() == AT_ONCE {
                        break Pause::Enough;
                    }
                }
                Event::TooLarge(frame) => break Pause::TooLarge(frame),
                Event::NeedMore { in_frame, waiting_after_fs } => {
                    break Pause::Dry { in_frame, after_fs: waiting_after_fs };
                }
            }
        };
        if !frames.is_empty() {
            self.frame_began = None;
            self.settle(frames).await?;
        }
        Ok(pause)
    }

    async fn settle(&mut self, frames: Vec<Frame>) -> Result<(), End> {
        let receiver = self.shared.receiver.clone();
        let take = async move {
            let mut taken = Vec::with_capacity(frames.len());
            for frame in frames {
                let findings = frame.findings();
                let bytes =
                    if frame.body.len() <= SMALL { Bytes::copy_from_slice(&frame.body) } else { frame.body };
                let one = receiver.take(Arrival { findings, ..Arrival::new(bytes) }).await;
                let enough = one.is_unavailable();
                taken.push(one);
                if enough {
                    break;
                }
            }
            taken
        };
        let (taken, receipt) = self.store(take).await?;
        self.answer(taken, receipt).await
    }

    /// Stores an unfinished frame as a rejected message.
    async fn give_up(&mut self, why: &'static str) -> Result<(), End> {
        let Some(bytes) = self.scanner.abandon(&mut self.buffer) else { return Ok(()) };
        let receiver = self.shared.receiver.clone();
        let take = async move { vec![receiver.take_unfinished(bytes, why).await] };
        let (taken, receipt) = self.store(take).await?;
        self.answer(taken, receipt).await
    }

    /// Takes messages and awaits the durability of the last, which implies the others. Without it in time
    /// there is no answer, and the sender asks again.
    async fn store(
        &mut self,
        take: impl Future<Output = Vec<Taken>>,
    ) -> Result<(Vec<Taken>, Option<Receipt>), End> {
        let stored = async {
            let taken = take.await;
            let receipt = match taken.iter().rev().find_map(Taken::pending) {
                Some(pending) => Some(pending.durable().await.map_err(|_| End::AtOnce)?),
                None => None,
            };
            Ok((taken, receipt))
        };
        tokio::select! {
            biased;
            stored = stored => stored,
            () = self.storing.run_out(&self.clock, PATIENCE) => Err(End::AtOnce),
        }
    }

    async fn answer(&mut self, taken: Vec<Taken>, receipt: Option<Receipt>) -> Result<(), End> {
        let mut out = BytesMut::new();
        let mut unavailable = false;
        for mut taken in taken {
            unavailable |= taken.is_unavailable();
            if let Some(answer) = taken.first(receipt.as_ref()) {
                mllp::encode(&answer.bytes, &mut out);
            }
            if taken.waits() {
                self.write(&mut out).await?;
                if let Some(answer) = taken.later().await {
                    mllp::encode(&answer.bytes, &mut out);
                }
            }
        }
        self.write(&mut out).await?;
        if unavailable && self.shared.settings.when_unavailable == WhenUnavailable::Pause {
            self.shared.pause.notify_one();
            return Err(End::Politely);
        }
        Ok(())
    }

    async fn write_one(&mut self, body: &Bytes) -> Result<(), End> {
        let mut out = BytesMut::new();
        mllp::encode(body, &mut out);
        self.write(&mut out).await
    }

    async fn write(&mut self, out: &mut BytesMut) -> Result<(), End> {
        if out.is_empty() {
            return Ok(());
        }
        let written = tokio::select! {
            biased;
            written = async { self.stream.write_all_buf(out).await?; self.stream.flush().await } => written,
            // Made when first polled: an answer that leaves at once needs no timer.
            () = async { self.clock.sleep(PATIENCE).await } => return Err(End::AtOnce),
        };
        written.map_err(|_| End::AtOnce)
    }

    async fn read(&mut self, in_frame: bool, after_fs: bool) -> Read {
        let settings = &self.shared.settings;
        let now = self.clock.now();
        let (deadline, late) = if in_frame {
            let began = *self.frame_began.get_or_insert(now);
            let end = after(began, settings.frame_timeout.get());
            if end <= now {
                return Read::FrameTimeout;
            }
            match after_fs {
                true => (Some(after(now, AFTER_FS).min(end)), Read::AfterFs),
                false => (Some(end), Read::FrameTimeout),
            }
        } else {
            (settings.idle_timeout.get().map(|idle| after(now, idle)), Read::Idle)
        };
        if self.buffer.is_empty() && self.buffer.capacity() > READ.0 {
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(self.room);
        let room = self.buffer.capacity() - self.buffer.len();
        let stop = &self.shared.receiver.context().stop;
        let read = tokio::select! {
            biased;
            read = self.stream.read_buf(&mut self.buffer) => read,
            () = until(&mut self.reading, &self.clock, deadline) => return late,
            () = async {
                stop.cancelled().await;
                if in_frame {
                    self.clock.sleep(STOP_GRACE).await;
                }
            } => return Read::Stop,
        };
        match read {
            Ok(0) | Err(_) => Read::Closed,
            // A read that filled its room promises more.
            Ok(read) => {
                self.room = if read == room { (self.room * 2).min(READ.1) } else { READ.0 };
                Read::Bytes
            }
        }
    }

    /// Closes our side and waits a little for the peer's: bytes of its that were never read would make the
    /// system take back our last answer.
    async fn close(mut self) {
        let farewell = async {
            self.stream.shutdown().await?;
            let mut rest = [0; 1024];
            while self.stream.read(&mut rest).await? > 0 {}
            std::io::Result::Ok(())
        };
        // However it ends, the connection is dropped.
        let _ = tokio::time::timeout(LINGER, farewell).await;
    }
}

fn after(moment: Timestamp, duration: Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    moment.saturating_add(duration).unwrap_or(Timestamp::MAX)
}

async fn until(patience: &mut Patience, clock: &SharedClock, deadline: Option<Timestamp>) {
    match deadline {
        Some(deadline) => patience.until(clock, deadline).await,
        None => std::future::pending().await,
    }
}
