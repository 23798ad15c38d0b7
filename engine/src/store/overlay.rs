//! What memory knows about rows of the index: which of them count.

use std::ops::RangeInclusive;

use super::index::{Candidate, Overlay, Unfinished};
use super::shared::Shared;

/// The state's say, asked once for a block of rows.
#[derive(Debug)]
pub(super) struct Memory<'a>(pub(super) &'a Shared);

impl Overlay for Memory<'_> {
    fn any_unfinished(&mut self, ids: RangeInclusive<u64>) -> Unfinished {
        self.0.state().any_beyond(&ids)
    }

    fn admit(&mut self, rows: &[Candidate]) -> Vec<bool> {
        let state = self.0.state();
        let counts = |row: &Candidate| {
            let dead = !row.audited && state.is_dead(row.session, row.segment);
            // A message that waits beyond its window and is in memory is found there.
            let elsewhere = row.provisional
                && (state.rows.contains_key(&row.id) || !state.may_count(row.id, row.segment, row.suspended));
            !dead && !elsewhere
        };
        rows.iter().map(counts).collect()
    }
}
