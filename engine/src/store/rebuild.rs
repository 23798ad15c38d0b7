//! Making missing index files again: the journal is folded from its beginning into a state of its own, one
//! segment at a time, and the files that are not there are written on the way.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::journal::Identity;
use super::keeper::Keeper;
use super::recovery;
use super::shared::Shared;
use crate::files::Files;

/// How far it is.
#[derive(Debug)]
pub(super) struct Rebuild {
    pub(super) files: Arc<dyn Files>,
    /// The folder of segments.
    pub(super) folder: PathBuf,
    pub(super) identity: Identity,
    pub(super) shared: Arc<Shared>,
    pub(super) keeper: Box<Keeper>,
    /// Segments to fold, up to the last whose file is missing.
    pub(super) segments: VecDeque<u64>,
    pub(super) total: usize,
    pub(super) sequence: u64,
}

impl Rebuild {
    /// Folds one segment; `false` when there is nothing left to do.
    pub(super) fn step(&mut self) -> Result<bool, String> {
        let Some(number) = self.segments.pop_front() else { return Ok(false) };
        let folded = recovery::refold(
            &*self.files,
            &self.folder,
            number,
            self.identity,
            &self.shared,
            &mut self.keeper,
            self.sequence,
        );
        match folded {
            Ok(sequence) => self.sequence = sequence,
            Err(error) => {
                let there = recovery::segments(&*self.files, &self.folder);
                if there.is_ok_and(|there| there.contains(&number)) {
                    return Err(error.to_string());
                }
                // Purged meanwhile.
            }
        }
        let done = self.total - self.segments.len();
        tracing::info!(done, of = self.total, "making the index again");
        metrics::gauge!("septet_store_index_rebuild_left").set(self.segments.len() as f64);
        Ok(!self.segments.is_empty())
    }
}
