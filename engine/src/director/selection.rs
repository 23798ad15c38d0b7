//! What a filter selects, for actions on many messages. A selection is walked page by page, newest first as
//! the store gives it, and kept as ids of one or two bytes each, so that it can be worked off oldest first:
//! a million messages take about 2 MB, never their headers.

use crate::director::ControlError;
use crate::director::core::Core;
use crate::header::Header;
use crate::id::MessageId;
use crate::store::{MessageFilter, ReadError};

/// Headers in memory at once.
const PAGE: usize = 500;

/// Messages that could not be dealt with are listed up to here, the oldest; beyond it they are counted.
const LISTED: usize = 1000;

/// Walks everything that a filter selects, newest first, a page in memory at a time. What is created after
/// the beginning is not part of it.
#[derive(Debug, Default)]
pub(super) struct Walk {
    before: Option<u64>,
    ended: bool,
}

impl Walk {
    /// The next page; `None` at the end. Refused where not everything that the filter selects may be known yet.
    pub(super) async fn next(
        &mut self,
        core: &Core,
        filter: &MessageFilter,
    ) -> Result<Option<Vec<Header>>, ControlError> {
        if self.ended {
            return Ok(None);
        }
        let page = core.store.search(filter, self.before, PAGE).await;
        let page = page.map_err(|error: ReadError| ControlError::Unavailable(error.to_string()))?;
        if page.lag_ms > 0 {
            let text = "the index is being made again: not everything that the filter selects is known yet";
            return Err(ControlError::Unavailable(text.to_owned()));
        }
        (self.before, self.ended) = (page.next, page.next.is_none());
        Ok(Some(page.entries))
    }
}

/// Ids that were collected newest first and are taken oldest first.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// One for each page: the distances between its ids from the oldest up, seven bits a byte.
    pages: Vec<Box<[u8]>>,
    len: u64,
}

impl Ids {
    /// Adds ids that are older than all before, newest first among themselves.
    pub(super) fn push(&mut self, newest_first: &[MessageId]) {
        if newest_first.is_empty() {
            return;
        }
        self.len += newest_first.len() as u64;
        let mut bytes = Vec::with_capacity(newest_first.len() * 2);
        let mut before = 0;
        for id in newest_first.iter().rev() {
            let mut distance = id.0.saturating_sub(before);
            while distance > 0x7f {
                bytes.push((distance & 0x7f) as u8 | 0x80);
                distance >>= 7;
            }
            bytes.push(distance as u8);
            before = id.0;
        }
        self.pages.push(bytes.into());
    }

    /// Takes the oldest page, oldest first.
    pub(super) fn pop(&mut self) -> Option<Vec<MessageId>> {
        let bytes = self.pages.pop()?;
        let (mut ids, mut before, mut distance, mut shift) = (Vec::new(), 0, 0, 0);
        for byte in bytes {
            distance |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                before += distance;
                ids.push(MessageId(before));
                (distance, shift) = (0, 0);
            }
        }
        Some(ids)
    }

    /// How many were added.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

/// Messages that could not be dealt with, and why: counted all, listed the oldest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusals {
    pub(super) count: u64,
    pub(super) listed: std::collections::VecDeque<(MessageId, String)>,
}

impl Refusals {
    /// One older than all before.
    pub(super) fn older(&mut self, id: MessageId, reason: String) {
        self.count += 1;
        self.listed.push_front((id, reason));
        self.listed.truncate(LISTED);
    }

    /// One younger than all before.
    pub(super) fn younger(&mut self, id: MessageId, reason: impl FnOnce() -> String) {
        self.count += 1;
        if self.listed.len() < LISTED {
            self.listed.push_back((id, reason()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_oldest_first_and_take_two_bytes_at_most() {
        let all: Vec<MessageId> = (1..=100_000).map(|n| MessageId(n * 97)).collect();
        let mut ids = Ids::default();
        for page in all.chunks(500).rev() {
            ids.push(&page.iter().rev().copied().collect::<Vec<_>>());
        }
        assert_eq!(ids.len(), 100_000);
        assert!(ids.pages.iter().map(|page| page.len()).sum::<usize>() < 200_000);
        let mut back = Vec::new();
        while let Some(page) = ids.pop() {
            back.extend(page);
        }
        assert_eq!(back, all);
    }

    #[test]
    fn a_large_number_of_refusals_is_counted_and_its_oldest_are_listed() {
        let (mut down, mut up) = (Refusals::default(), Refusals::default());
        for n in 1..=3000 {
            down.older(MessageId(3001 - n), "no".to_owned());
            up.younger(MessageId(n), || "no".to_owned());
        }
        assert_eq!(down, up);
        assert_eq!((up.count, up.listed.len(), up.listed[0].0), (3000, LISTED, MessageId(1)));
    }
}
