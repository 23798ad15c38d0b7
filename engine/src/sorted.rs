//! A sorted set for what may be millions of small things: runs of them side by side, a few bytes above what they
//! take themselves (a tree takes half as much again). The runs are shared with whoever has a copy, and only
//! those that change are copied first: to take a copy for a checkpoint is to count.

use std::sync::Arc;

/// Things in one run.
const RUN: usize = 512;
/// By so many a run grows, and so many may be empty in it, twice.
const ROOM: usize = 32;
/// Two neighbours that together have so few become one.
const FEW: usize = RUN / 4;

/// The set.
#[derive(Clone, Debug)]
pub(crate) struct Sorted<T> {
    runs: Vec<Arc<Vec<T>>>,
    length: usize,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Sorted { runs: Vec::new(), length: 0 }
    }
}

impl<T: Ord + Copy> Sorted<T> {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(crate) fn first(&self) -> Option<T> {
        self.runs.first()?.first().copied()
    }

    /// The runs, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &[T]> {
        self.runs.iter().map(|run| run.as_slice())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = T> {
        self.runs().flatten().copied()
    }

    /// Everything from a value on.
    pub(crate) fn from(&self, value: T) -> impl Iterator<Item = T> {
        let run = self.run_of(&value);
        let skipped = self.runs.get(run).map_or(0, |run| run.partition_point(|known| *known < value));
        self.runs.get(run..).unwrap_or_default().iter().flat_map(|run| run.iter().copied()).skip(skipped)
    }

    pub(crate) fn contains(&self, value: &T) -> bool {
        self.runs.get(self.run_of(value)).is_some_and(|run| run.binary_search(value).is_ok())
    }

    /// The first run that does not end before a value.
    fn run_of(&self, value: &T) -> usize {
        self.runs.partition_point(|run| run.last().is_some_and(|last| last < value))
    }

    /// Whether it was not there.
    pub(crate) fn insert(&mut self, value: T) -> bool {
        let mut at = self.run_of(&value);
        if at == self.runs.len() {
            // Behind everything, as most that come are.
            match self.runs.last_mut().filter(|last| last.len() < RUN) {
                Some(last) => roomy(last).push(value),
                None => self.runs.push(Arc::new(vec![value])),
            }
            self.length += 1;
            return true;
        }
        if self.runs.get(at).is_some_and(|run| run.len() >= RUN) {
            self.split(at);
            at = self.run_of(&value);
        }
        let Some(run) = self.runs.get_mut(at) else { return false };
        let Err(place) = run.binary_search(&value) else { return false };
        roomy(run).insert(place, value);
        self.length += 1;
        true
    }

    fn split(&mut self, at: usize) {
        let Some(run) = self.runs.get_mut(at) else { return };
        let run = Arc::make_mut(run);
        let rest = run.split_off(RUN / 2);
        run.shrink_to_fit();
        self.runs.insert(at + 1, Arc::new(rest));
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, value: &T) -> bool {
        let at = self.run_of(value);
        let Some(run) = self.runs.get_mut(at) else { return false };
        let Ok(place) = run.binary_search(value) else { return false };
        let run = Arc::make_mut(run);
        run.remove(place);
        if run.capacity() - run.len() > 2 * ROOM {
            run.shrink_to(run.len() + ROOM);
        }
        self.length -= 1;
        match run.len() {
            0 => drop(self.runs.remove(at)),
            left if left <= FEW => {
                self.join(at);
                self.join(at.saturating_sub(1));
            }
            _ => {}
        }
        true
    }

    /// Makes one of a run and the one behind it, where both have few.
    fn join(&mut self, at: usize) {
        let few = |run: Option<&Arc<Vec<T>>>| run.is_some_and(|run| run.len() <= FEW);
        if few(self.runs.get(at)) && few(self.runs.get(at + 1)) {
            let next = self.runs.remove(at + 1);
            if let Some(run) = self.runs.get_mut(at) {
                Arc::make_mut(run).extend_from_slice(&next);
            }
        }
    }
}

/// A run with room for one more, and not much more than that.
fn roomy<T: Copy>(run: &mut Arc<Vec<T>>) -> &mut Vec<T> {
    let run = Arc::make_mut(run);
    if run.len() == run.capacity() {
        run.reserve_exact(ROOM);
    }
    run
}

impl<T: Ord + Copy> FromIterator<T> for Sorted<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut sorted = Sorted::default();
        values.into_iter().for_each(|value| {
            sorted.insert(value);
        });
        sorted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a tree: whatever comes and goes, also while somebody has a copy.
        #[test]
        fn it_is_a_sorted_set(bulk in 0u32..2000, steps in prop::collection::vec((any::<bool>(), 0u32..4000), 0..3000)) {
            let mut tree: BTreeSet<u32> = (0..bulk).map(|number| number * 2).collect();
            let mut sorted: Sorted<u32> = tree.iter().copied().collect();
            let (copy, before) = (sorted.clone(), tree.clone());
            for (comes, value) in steps {
                match comes {
                    true => prop_assert_eq!(sorted.insert(value), tree.insert(value)),
                    false => prop_assert_eq!(sorted.remove(&value), tree.remove(&value)),
                }
                prop_assert_eq!(sorted.first(), tree.first().copied());
            }
            prop_assert!(sorted.iter().eq(tree.iter().copied()));
            prop_assert_eq!((sorted.len(), sorted.is_empty()), (tree.len(), tree.is_empty()));
            for value in [0, 1, 777, 2048, 5000] {
                prop_assert!(sorted.from(value).eq(tree.range(value..).copied()));
                prop_assert_eq!(sorted.contains(&value), tree.contains(&value));
            }
            prop_assert!(copy.iter().eq(before));
            prop_assert!(sorted.runs.iter().all(|run| !run.is_empty() && run.len() <= RUN));
        }
    }

    #[test]
    fn what_is_nearly_empty_is_put_together() {
        let mut sorted: Sorted<u32> = (0..100_000).collect();
        (0..100_000).filter(|number| number % 100 != 0).for_each(|number| assert!(sorted.remove(&number)));
        assert!(sorted.runs.len() <= 16, "{} runs for a thousand", sorted.runs.len());
        assert!(sorted.iter().eq((0..1000).map(|number| number * 100)));
    }
}
