//! What has been committed and is not in the index yet, in the order of commits. The keeper takes it from the
//! front, up to what is durable, and only then may rows leave memory.

use std::collections::VecDeque;

/// What counts as much as a row.
const HEAVY: usize = 1024;

/// One of a line.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The transaction that made it.
    sequence: u64,
    id: u64,
    /// As how many rows it counts.
    weight: u32,
}

/// One line: the transaction that made something, and what.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    entries: VecDeque<Entry>,
    /// As how many rows everything in it counts.
    weight: usize,
}

impl Line {
    pub(super) fn push(&mut self, sequence: u64, id: u64) {
        self.push_heavy(sequence, id, 0);
    }

    /// One that has so many bytes of text: a kibibyte of it counts as a row.
    pub(super) fn push_heavy(&mut self, sequence: u64, id: u64, bytes: usize) {
        let weight = 1 + u32::try_from(bytes / HEAVY).unwrap_or(u32::MAX - 1).min(u32::MAX - 1);
        self.weight += weight as usize;
        self.entries.push_back(Entry { sequence, id, weight });
    }

    pub(super) fn length(&self) -> usize {
        self.entries.len()
    }

    fn until(&self, last: u64, from: usize, most: usize) -> impl Iterator<Item = &Entry> {
        self.entries
            .range(from.min(self.entries.len())..)
            .take(most)
            .take_while(move |entry| entry.sequence <= last)
    }

    /// What the transactions up to `last` made, at most `most` of it; `from` says how many to pass over.
    pub(super) fn peek(&self, last: u64, from: usize, most: usize) -> Vec<u64> {
        self.until(last, from, most).map(|entry| entry.id).collect()
    }

    /// Takes from the front what the transactions up to `last` made, at most `most` of it.
    pub(super) fn take(&mut self, last: u64, most: usize) -> Vec<u64> {
        let count = self.until(last, 0, most).count();
        let mut weight = 0;
        let taken = self.entries.drain(..count).map(|entry| {
            weight += entry.weight as usize;
            entry.id
        });
        let taken = taken.collect();
        self.weight -= weight;
        taken
    }

    /// Everything, for a checkpoint.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, u64)> {
        self.entries.iter().map(|entry| (entry.sequence, entry.id))
    }
}

/// Everything that the index does not have yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Fresh {
    /// Headers that have become final.
    pub(super) settled: Line,
    /// Headers that were born unfinished.
    pub(super) born: Line,
    /// Those of them that were born beyond a queue's window: they may leave memory before they are final.
    pub(super) spilled: Line,
    pub(super) events: Line,
    pub(super) bodies: Line,
}

impl Fresh {
    /// How many rows wait for the index and could leave memory.
    pub(super) fn waiting(&self) -> usize {
        self.settled.length() + self.spilled.length() + self.events.length()
    }

    /// What waits for the index and could leave memory, in rows: one with large texts counts as several.
    pub(super) fn weight(&self) -> usize {
        self.settled.weight + self.spilled.weight + self.events.weight
    }

    /// The lines by their numbers in a checkpoint.
    pub(super) fn lines(&self) -> [(u64, &Line); 5] {
        [(1, &self.settled), (2, &self.born), (3, &self.spilled), (4, &self.events), (5, &self.bodies)]
    }

    /// The line of a number.
    pub(super) fn line_mut(&mut self, number: u64) -> Option<&mut Line> {
        match number {
            1 => Some(&mut self.settled),
            2 => Some(&mut self.born),
            3 => Some(&mut self.spilled),
            4 => Some(&mut self.events),
            5 => Some(&mut self.bodies),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_with_large_texts_counts_as_several_until_it_is_taken() {
        let mut fresh = Fresh::default();
        fresh.settled.push_heavy(1, 10, 200);
        fresh.spilled.push_heavy(2, 11, 5000);
        fresh.events.push_heavy(3, 12, usize::MAX / 8);
        fresh.born.push(3, 13);
        assert_eq!((fresh.waiting(), fresh.settled.weight, fresh.spilled.weight), (3, 1, 5));
        assert!(fresh.weight() > 1 << 30);
        assert!(fresh.events.take(2, 8).is_empty());
        assert_eq!(fresh.events.take(3, 8), [12]);
        assert_eq!(fresh.weight(), 6);
        assert_eq!((fresh.settled.take(9, 8), fresh.spilled.take(9, 8)), (vec![10], vec![11]));
        assert_eq!((fresh.weight(), fresh.waiting()), (0, 0));
    }
}
