//! A set of ids. They come from one dense sequence, so that a bit for each costs a megabyte for eight million;
//! an id that damage made up costs a page of its own, and no more.

use std::collections::BTreeMap;

/// Words of one page.
const WORDS: u64 = 1024;

/// Ids that have been seen.
#[derive(Debug, Default)]
pub(super) struct Ids(BTreeMap<u64, Box<[u64]>>);

/// Page, word, bit.
fn place(id: u64) -> (u64, usize, u64) {
    let word = id / 64;
    (word / WORDS, usize::try_from(word % WORDS).unwrap_or_default(), 1 << (id % 64))
}

impl Ids {
    pub(super) fn add(&mut self, id: u64) {
        let (page, word, bit) = place(id);
        let page = self.0.entry(page).or_insert_with(|| vec![0; 1024].into());
        if let Some(word) = page.get_mut(word) {
            *word |= bit;
        }
    }

    pub(super) fn has(&self, id: u64) -> bool {
        let (page, word, bit) = place(id);
        self.0.get(&page).and_then(|page| page.get(word)).is_some_and(|word| word & bit != 0)
    }
}
