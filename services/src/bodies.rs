//! Bodies of HTTP requests, read with a limit and within a time: slow and large ones cost a bounded amount,
//! and a client that is refused while it is still sending sees the refusal.

use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, EXPECT};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt as _;
use septet_engine::clock::SharedClock;
use septet_engine::event::{Level, NewEvent};
use septet_engine::host::ServiceContext;

use crate::problem::problem;

/// How much of a refused request's body is taken off the wire, and how long that may take.
const REFUSED_BODY: usize = 4 << 20;
/// See [`REFUSED_BODY`].
const REFUSED_TIME: Duration = Duration::from_secs(2);

/// Why a body was not read, with what there was of it. `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Unread {
    /// Larger than the limit; its beginning.
    TooLarge(Bytes),
    /// It did not come in time; what had come.
    Timeout(Bytes),
    /// The client hung up, or broke the transfer coding.
    Broken,
}

impl fmt::Debug for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unread::TooLarge(_) => "TooLarge",
            Unread::Timeout(_) => "Timeout",
            Unread::Broken => "Broken",
        })
    }
}

/// How much of a body that is too large is kept: enough for the header of a message.
const BEGINNING: usize = 4 << 10;

/// Reads a body of at most `limit` bytes within `timeout`. The rest of a larger one is taken off the wire
/// and dropped (as far as time and twice the limit allow), because a client that is still sending would see
/// a broken connection instead of the answer; one that asked first (`Expect`) is answered at once.
pub(crate) async fn read_body(
    headers: &HeaderMap,
    body: Body,
    limit: u64,
    timeout: Duration,
    clock: &SharedClock,
) -> Result<Bytes, Unread> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let announced =
        headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let announced: usize = announced.unwrap_or(0);
    if announced > limit && headers.contains_key(EXPECT) {
        return Err(Unread::TooLarge(Bytes::new()));
    }
    let mut bytes = BytesMut::new();
    let read = async {
        let mut body = body;
        let mut size = 0usize;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Err(Unread::Broken) };
            let Ok(data) = frame.into_data() else { continue };
            size = size.saturating_add(data.len());
            if size <= limit {
                bytes.extend_from_slice(&data);
            } else if size > limit.saturating_mul(2).max(16 << 20) {
                break;
            } else if bytes.len() > BEGINNING {
                bytes = BytesMut::from(bytes.get(..BEGINNING).unwrap_or_default());
            } else {
                let room = BEGINNING - bytes.len();
                bytes.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
            }
        }
        Ok(size > limit)
    };
    let read = tokio::select! {
        read = read => read.map(Some),
        () = clock.sleep(timeout) => Ok(None),
    };
    match read {
        Ok(Some(false)) => Ok(bytes.freeze()),
        Ok(Some(true)) => Err(Unread::TooLarge(bytes.freeze())),
        Ok(None) if announced > limit => Err(Unread::TooLarge(bytes.freeze())),
        Ok(None) => Err(Unread::Timeout(bytes.freeze())),
        Err(unread) => Err(unread),
    }
}

/// Takes the body of a request that is refused unread off the wire, as far as little time and size allow: a
/// client that is still sending would see a broken connection instead of the refusal. One that asked first
/// (`Expect`) has sent nothing yet.
pub(crate) async fn discard(headers: &HeaderMap, body: Body, clock: &SharedClock) {
    if headers.contains_key(EXPECT) {
        return;
    }
    let mut body = body;
    let drain = async {
        let mut left = REFUSED_BODY;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(size) else { return };
            left = rest;
        }
    };
    tokio::select! {
        () = drain => {}
        () = clock.sleep(REFUSED_TIME) => {}
    }
}

/// Marks a response as the connection's last.
pub(crate) fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The answer to a body that was not read.
pub(crate) fn unreadable(unread: Unread, limit: u64, cx: &ServiceContext) -> Response {
    let (status, text) = match unread {
        Unread::TooLarge(_) => {
            let text = format!("the message is larger than {limit} bytes");
            cx.event(NewEvent::new(Level::Warning, "message.rejected", text.clone()));
            (StatusCode::PAYLOAD_TOO_LARGE, text)
        }
        Unread::Timeout(_) => (StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned()),
        Unread::Broken => (StatusCode::BAD_REQUEST, "the body cannot be read".to_owned()),
    };
    closing(problem(status, &text, None))
}
