//! A process instance between two jobs: what the engine remembers of it, and how that is kept
//! ([`KeepFamily::Instance`](crate::host::KeepFamily::Instance), by request id).
//!
//! Format: one line of JSON, a line feed, then the process's own bytes as they are. The line has `v` (1),
//! `item`, `definition` (content hash), `calls` (pairs of call number and request id), `timers` (pairs of
//! timer number and RFC 3339 time) and `replied`. Unknown fields are ignored, a higher `v` is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{ItemName, MessageId};

/// An instance that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The process it belongs to.
    pub(super) item: ItemName,
    /// The definition it started with.
    pub(super) definition: Arc<str>,
    /// Opaque to the engine.
    pub(super) bytes: Bytes,
    /// Requests whose responses it waits for, by its own numbers.
    pub(super) calls: BTreeMap<u64, MessageId>,
    /// Its timers.
    pub(super) timers: BTreeMap<u64, Timestamp>,
    /// It has answered its caller.
    pub(super) replied: bool,
}

#[derive(Serialize, Deserialize)]
struct Line {
    v: u32,
    item: ItemName,
    definition: Arc<str>,
    calls: Vec<(u64, MessageId)>,
    timers: Vec<(u64, Timestamp)>,
    replied: bool,
}

impl Waiting {
    /// As it is kept.
    pub(super) fn encode(&self) -> Bytes {
        let line = Line {
            v: 1,
            item: self.item.clone(),
            definition: self.definition.clone(),
            calls: self.calls.iter().map(|(call, id)| (*call, *id)).collect(),
            timers: self.timers.iter().map(|(timer, at)| (*timer, *at)).collect(),
            replied: self.replied,
        };
        let line = serde_json::to_vec(&line).expect("numbers, names and times are always JSON");
        let mut kept = BytesMut::with_capacity(line.len() + 1 + self.bytes.len());
        kept.extend_from_slice(&line);
        kept.put_u8(b'\n');
        kept.extend_from_slice(&self.bytes);
        kept.freeze()
    }

    /// Reads what [`Waiting::encode`] wrote.
    pub(super) fn decode(kept: &Bytes) -> Option<Self> {
        let end = kept.iter().position(|byte| *byte == b'\n')?;
        let line: Line = serde_json::from_slice(kept.get(..end)?).ok().filter(|line: &Line| line.v == 1)?;
        Some(Waiting {
            item: line.item,
            definition: line.definition,
            bytes: kept.slice(end + 1..),
            calls: line.calls.into_iter().collect(),
            timers: line.timers.into_iter().collect(),
            replied: line.replied,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_reads_back_with_any_bytes() {
        let waiting = Waiting {
            item: "submit".into(),
            definition: "abc".into(),
            bytes: Bytes::from_static(b"\n{\0\xff"),
            calls: [(1, MessageId(7))].into(),
            timers: [(2, Timestamp::from_second(5).unwrap())].into(),
            replied: true,
        };
        assert_eq!(Waiting::decode(&waiting.encode()), Some(waiting));
        assert_eq!(Waiting::decode(&Bytes::from_static(b"nonsense")), None);
    }

    #[test]
    fn what_an_older_septet_kept_stays_readable() {
        let kept = br#"{"v":1,"item":"p","definition":"d","calls":[[3,9]],"timers":[[1,"2026-01-01T00:00:00Z"]],"replied":false}"#;
        let kept = Bytes::from([&kept[..], b"\nrest"].concat());
        let read = Waiting::decode(&kept).unwrap();
        assert_eq!((read.calls, &*read.bytes), ([(3, MessageId(9))].into(), &b"rest"[..]));
    }
}
