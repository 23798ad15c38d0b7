//! Who is out of the way: suspended and stalled entries, by their positions and keys alone.

use crate::sorted::Sorted;

/// Entries that stand aside.
#[derive(Clone, Debug, Default)]
pub(super) struct Aside {
    all: Sorted<u64>,
    /// Those without keys.
    bare: Sorted<u64>,
    /// Key and position of the others.
    keyed: Sorted<(u64, u64)>,
}

impl Aside {
    pub(super) fn insert(&mut self, position: u64, keys: &[u64]) {
        self.all.insert(position);
        if keys.is_empty() {
            self.bare.insert(position);
        }
        for key in keys {
            self.keyed.insert((*key, position));
        }
    }

    pub(super) fn remove(&mut self, position: u64, keys: &[u64]) {
        self.all.remove(&position);
        self.bare.remove(&position);
        for key in keys {
            self.keyed.remove(&(*key, position));
        }
    }

    pub(super) fn any_before(&self, position: u64) -> bool {
        self.all.first().is_some_and(|first| first < position)
    }

    pub(super) fn bare_before(&self, position: u64) -> bool {
        self.bare.first().is_some_and(|first| first < position)
    }

    pub(super) fn key_before(&self, key: u64, position: u64) -> bool {
        let first = self.keyed.from((key, 0)).next();
        first.is_some_and(|(known, first)| known == key && first < position)
    }

    pub(super) fn keys_of(&self, position: u64) -> Vec<u64> {
        self.keyed.iter().filter(|(_, known)| *known == position).map(|(key, _)| key).collect()
    }

    pub(super) fn keyed(&self) -> &Sorted<(u64, u64)> {
        &self.keyed
    }

    /// Adds entries of which positions and keys were written down apart.
    pub(super) fn restore(&mut self, positions: &Sorted<u64>, keyed: &Sorted<(u64, u64)>) {
        let mut with_keys = Vec::new();
        for (key, position) in keyed.iter().filter(|(_, position)| positions.contains(position)) {
            self.keyed.insert((key, position));
            with_keys.push(position);
        }
        with_keys.sort_unstable();
        for position in positions.iter() {
            self.all.insert(position);
            if with_keys.binary_search(&position).is_err() {
                self.bare.insert(position);
            }
        }
    }
}
