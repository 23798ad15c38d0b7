//! How far purges have dropped segments: kept in the journal before one goes, so that a segment that somebody has
//! removed, or that a disk has lost, from the beginning of the journal is told from one that was purged.

use std::ops::Range;

use bytes::Bytes;

use super::change::Change;
use crate::host::KeepFamily;

/// Where it is kept; no item has such a name.
pub(super) const KEY: &str = ".dropped";

/// The last segment that was dropped, as it is kept.
pub(super) fn encode(segment: u64) -> Bytes {
    Bytes::copy_from_slice(&segment.to_le_bytes())
}

pub(super) fn decode(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}

/// This segment, and those before it, are about to be dropped.
pub(super) fn change(segment: u64) -> Change {
    Change::Keep(KeepFamily::Counter, KEY.to_owned(), Some(encode(segment)))
}

/// What a change says about it.
pub(super) fn said_by(change: &Change) -> Option<u64> {
    match change {
        Change::Keep(KeepFamily::Counter, key, Some(value)) if key == KEY => decode(value),
        _ => None,
    }
}

/// The segments that are missing in a journal that begins with `first`; not more than are worth naming.
pub(super) fn missing(dropped: u64, first: u64) -> Range<u64> {
    const MOST: u64 = 100;
    (dropped + 1).max(first.saturating_sub(MOST))..first
}
