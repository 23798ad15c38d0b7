//! What has been committed and is not in the index yet, in the order of commits. The keeper takes it from the
//! front, up to what is durable, and only then may rows leave memory.

use std::collections::VecDeque;

/// One line: the transaction that made something, and what.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(VecDeque<(u64, u64)>);

impl Line {
    pub(super) fn push(&mut self, sequence: u64, id: u64) {
        self.0.push_back((sequence, id));
    }

    pub(super) fn length(&self) -> usize {
        self.0.len()
    }

    /// What the transactions up to `last` made, at most `most` of it; `from` says how many to pass over.
    pub(super) fn peek(&self, last: u64, from: usize, most: usize) -> Vec<u64> {
        let until = self.0.iter().skip(from).take(most).take_while(|(sequence, _)| *sequence <= last);
        until.map(|(_, id)| *id).collect()
    }

    /// Takes from the front what the transactions up to `last` made, at most `most` of it.
    pub(super) fn take(&mut self, last: u64, most: usize) -> Vec<u64> {
        let taken = self.peek(last, 0, most);
        self.0.drain(..taken.len());
        taken
    }

    /// Everything, for a checkpoint.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
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
