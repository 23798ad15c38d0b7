//! Sorted runs of hashes and of sessions, in files written before and in memory, merged a piece at a time: making
//! a file takes no more memory for them in a large segment than in a small one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::file::IndexFile;
use super::source::DROPPED;
use super::{Error, Kind};

/// Blocks of hashes, each of 512, that one run has in memory.
const BLOCKS: usize = 2;
/// Sessions that one run has in memory.
const SESSIONS: u64 = 1024;

/// Gives one after the other, in order.
pub(super) type Run<'a, T> = Box<dyn FnMut() -> Result<Option<T>, Error> + 'a>;

/// A run of what is in memory, and sorted.
pub(super) fn memory<'a, T: 'a>(sorted: Vec<T>) -> Run<'a, T> {
    let mut sorted = sorted.into_iter();
    Box::new(move || Ok(sorted.next()))
}

/// The hashes of a file with the numbers that its rows get; those of rows that were dropped are left out.
pub(super) fn hashes<'a>(file: &'a IndexFile, kind: Kind, numbers: &'a [u32]) -> Run<'a, (u64, u32)> {
    let blocks = file.table(kind).hash_fences.len();
    let (mut from, mut entries) = (0, Vec::new().into_iter());
    Box::new(move || {
        loop {
            for (hash, row) in entries.by_ref() {
                if let Some(number) = numbers.get(row as usize).filter(|number| **number != DROPPED) {
                    return Ok(Some((hash, *number)));
                }
            }
            if from >= blocks {
                return Ok(None);
            }
            let to = blocks.min(from + BLOCKS);
            entries = file.hash_entries(kind, from..to)?.into_iter();
            from = to;
        }
    })
}

/// The foreign sessions of a file, with the last activity of each.
pub(super) fn sessions(file: &IndexFile) -> Result<Run<'_, (u64, i64)>, Error> {
    file.check_foreign()?;
    let (mut from, mut entries) = (0, Vec::new().into_iter());
    Ok(Box::new(move || {
        if entries.len() == 0 {
            entries = file.some_foreign(from, SESSIONS)?.into_iter();
            from += SESSIONS;
        }
        Ok(entries.next())
    }))
}

/// Runs become one.
pub(super) struct Merge<'a, T> {
    runs: Vec<Run<'a, T>>,
    heads: BinaryHeap<Reverse<(T, usize)>>,
}

impl<'a, T: Ord + Copy> Merge<'a, T> {
    pub(super) fn new(mut runs: Vec<Run<'a, T>>) -> Result<Self, Error> {
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (index, run) in runs.iter_mut().enumerate() {
            heads.extend(run()?.map(|first| Reverse((first, index))));
        }
        Ok(Merge { runs, heads })
    }

    /// The lowest that is left.
    pub(super) fn next(&mut self) -> Result<Option<T>, Error> {
        let Some(mut head) = self.heads.peek_mut() else { return Ok(None) };
        let Reverse((lowest, index)) = *head;
        match self.runs.get_mut(index).map_or(Ok(None), |run| run())? {
            Some(next) => *head = Reverse((next, index)),
            None => drop(PeekMut::pop(head)),
        }
        Ok(Some(lowest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the numbers are spread, they come out as if all had been sorted.
        #[test]
        fn runs_become_one(mut runs in prop::collection::vec(prop::collection::vec(0u64..50, 0..20), 0..8)) {
            runs.iter_mut().for_each(|run| run.sort_unstable());
            let mut expected: Vec<u64> = runs.iter().flatten().copied().collect();
            expected.sort_unstable();
            let mut merge = Merge::new(runs.into_iter().map(memory).collect()).unwrap();
            let merged: Vec<u64> = std::iter::from_fn(|| merge.next().unwrap()).collect();
            prop_assert_eq!(merged, expected);
        }
    }

    #[test]
    fn a_run_that_cannot_be_read_ends_the_merge() {
        let broken = || Err(Error::Foreign { file: "part".to_owned() });
        let runs: Vec<Run<'_, u64>> = vec![memory(vec![1, 2]), Box::new(broken)];
        assert!(Merge::new(runs).is_err());
        let mut left = 1;
        let breaks = move || {
            left -= 1;
            if left < 0 { Err(Error::Foreign { file: "part".to_owned() }) } else { Ok(Some(3)) }
        };
        let mut merge = Merge::new(vec![memory(vec![1, 4]), Box::new(breaks)]).unwrap();
        assert_eq!((merge.next().unwrap(), merge.next().is_err()), (Some(1), true));
    }
}
