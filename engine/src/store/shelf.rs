//! The kept values of one family: a sorted map in chunks. The chunks are shared with whoever looks at all of
//! it (a checkpoint being written, a scan), so that a copy taken under the lock costs one count for each
//! chunk; changing a chunk that somebody else looks at copies that one. Small values lie beside their keys, as
//! what is different in them from one of their neighbours (see `pack`): a million answers that are kept to find
//! duplicates take about 110 MB with their keys.

mod pack;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use self::pack::Places;

/// Values in one chunk.
const ENTRIES: usize = 128;
/// Bytes of keys and small values in one chunk.
const BYTES: usize = 16 << 10;
/// Values up to this size lie beside their keys.
const SMALL: usize = pack::SAMPLE;
/// Values with which another sample is tried.
const TRIED: usize = 4;

/// Sorted keys and their values. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Shelf {
    /// None is empty; every key of one is below those of the next.
    chunks: Vec<Arc<Chunk>>,
}

#[derive(Clone, Default)]
struct Chunk {
    /// What the values are alike.
    sample: Arc<[u8]>,
    /// Each key, and behind it its value where that is small, packed with the sample.
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    start: u32,
    key: u32,
    /// Boxed: it is rare, and every entry would be as large.
    apart: Option<Box<Bytes>>,
}

// Values may be secrets.
impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shelf({})", self.chunks.iter().map(|chunk| chunk.entries.len()).sum::<usize>())
    }
}

impl Shelf {
    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<Bytes> {
        let chunk = self.chunks.get(self.chunk_of(key)?)?;
        Some(chunk.value(chunk.find(key).ok()?))
    }

    /// Sets the value of a key.
    pub(super) fn insert(&mut self, key: &str, value: &Bytes) {
        let index = self.chunk_of(key).unwrap_or(0);
        if self.chunks.is_empty() {
            self.chunks.push(Arc::default());
        }
        let Some(chunk) = self.chunks.get_mut(index) else { return };
        let chunk = Arc::make_mut(chunk);
        let ended = chunk.entries.len();
        let at = chunk.find(key).inspect(|at| chunk.remove(*at)).unwrap_or_else(|at| at);
        chunk.insert(at, key, value);
        if chunk.is_full() {
            // What comes in ascending order leaves full chunks behind.
            let mut rest = chunk.split(if at == ended { at } else { (ended / 2).max(1) });
            chunk.sample_again();
            rest.sample_again();
            self.chunks.insert(index + 1, Arc::new(rest));
        }
    }

    /// Removes a key.
    pub(super) fn remove(&mut self, key: &str) {
        let Some(index) = self.chunk_of(key) else { return };
        let Some(chunk) = self.chunks.get_mut(index) else { return };
        let Ok(at) = chunk.find(key) else { return };
        let chunk = Arc::make_mut(chunk);
        chunk.remove(at);
        if chunk.entries.is_empty() {
            self.chunks.remove(index);
        } else if chunk.is_small() {
            self.join(index);
        }
    }

    /// Keys from this one on, with their values, in order.
    pub(super) fn from<'a>(&'a self, key: &'a str) -> impl Iterator<Item = (&'a str, Bytes)> {
        let chunks = self.chunks.get(self.chunk_of(key).unwrap_or(0)..).unwrap_or_default();
        let all = chunks.iter().flat_map(|chunk| (0..chunk.entries.len()).map(move |at| (chunk, at)));
        let from = all.skip_while(move |(chunk, at)| chunk.key(*at) < key);
        from.map(|(chunk, at)| (chunk.key(at), chunk.value(at)))
    }

    /// The last chunk that begins at this key or below.
    fn chunk_of(&self, key: &str) -> Option<usize> {
        let after = |chunk: &Arc<Chunk>| {
            chunk.entries.first().is_some_and(|first| chunk.key_of(first) <= key.as_bytes())
        };
        self.chunks.partition_point(after).checked_sub(1)
    }

    /// Puts a chunk that got small together with the next, if that is small, too.
    fn join(&mut self, index: usize) {
        let Some(next) = self.chunks.get(index + 1).filter(|next| next.is_small()).cloned() else { return };
        let Some(chunk) = self.chunks.get_mut(index) else { return };
        let chunk = Arc::make_mut(chunk);
        for at in 0..next.entries.len() {
            chunk.insert(chunk.entries.len(), next.key(at), &next.value(at));
        }
        self.chunks.remove(index + 1);
    }
}

impl Chunk {
    /// The place of a key, or where it would be.
    fn find(&self, key: &str) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| self.key_of(entry).cmp(key.as_bytes()))
    }

    fn key_of(&self, entry: &Entry) -> &[u8] {
        let bytes = self.bytes.get(entry.start as usize..).and_then(|bytes| bytes.get(..entry.key as usize));
        bytes.unwrap_or_default()
    }

    fn key(&self, at: usize) -> &str {
        let key = self.entries.get(at).map(|entry| self.key_of(entry)).unwrap_or_default();
        std::str::from_utf8(key).unwrap_or_default()
    }

    /// Where the next one begins.
    fn end(&self, at: usize) -> usize {
        self.entries.get(at + 1).map_or(self.bytes.len(), |next| next.start as usize)
    }

    fn value(&self, at: usize) -> Bytes {
        let Some(entry) = self.entries.get(at) else { return Bytes::new() };
        if let Some(value) = &entry.apart {
            return Bytes::clone(value);
        }
        let packed = self.bytes.get((entry.start + entry.key) as usize..self.end(at)).unwrap_or_default();
        pack::unpack(&self.sample, packed).into()
    }

    fn insert(&mut self, at: usize, key: &str, value: &Bytes) {
        let start = self.entries.get(at).map_or(self.bytes.len(), |entry| entry.start as usize);
        let small = value.len() <= SMALL;
        let mut beside = key.as_bytes().to_vec();
        if small {
            Places::of(&self.sample).pack(value, &mut beside);
        }
        let grown = beside.len();
        // To double would leave a third of the memory unused.
        make_room(&mut self.bytes, grown, BYTES / 32);
        make_room(&mut self.entries, 1, ENTRIES / 8);
        self.bytes.splice(start..start, beside);
        for later in self.entries.get_mut(at..).unwrap_or_default() {
            later.start += grown as u32;
        }
        let apart = (!small).then(|| Box::new(value.clone()));
        self.entries.insert(at, Entry { start: start as u32, key: key.len() as u32, apart });
    }

    fn remove(&mut self, at: usize) {
        let end = self.end(at);
        let start = self.entries.remove(at).start as usize;
        self.bytes.drain(start..end);
        for later in self.entries.get_mut(at..).unwrap_or_default() {
            later.start -= (end - start) as u32;
        }
    }

    /// Takes one of the values as the sample, if others take much less with it.
    fn sample_again(&mut self) {
        let small: Vec<usize> = (0..self.entries.len())
            .filter(|at| self.entries.get(*at).is_some_and(|entry| entry.apart.is_none()))
            .collect();
        let Some(middle) = small.get(small.len() / 2) else { return };
        let sample = self.value(*middle);
        let (mut now, mut then, mut out) = (0, 0, Vec::new());
        let places = Places::of(&sample);
        for at in small.iter().step_by(small.len().div_ceil(TRIED)).filter(|at| *at != middle) {
            now +=
                self.end(*at) - self.entries.get(*at).map_or(0, |entry| (entry.start + entry.key) as usize);
            out.clear();
            places.pack(&self.value(*at), &mut out);
            then += out.len();
        }
        if then + then / 4 >= now {
            return;
        }
        let mut packed = Chunk { sample: sample.as_ref().into(), ..Chunk::default() };
        for at in 0..self.entries.len() {
            packed.insert(at, self.key(at), &self.value(at));
        }
        *self = packed;
    }

    fn is_full(&self) -> bool {
        self.entries.len() > 1 && (self.entries.len() > ENTRIES || self.bytes.len() > BYTES)
    }

    fn is_small(&self) -> bool {
        self.entries.len() < ENTRIES / 4 && self.bytes.len() < BYTES / 4
    }

    /// Takes out what is behind a place. No room is left where it was.
    fn split(&mut self, at: usize) -> Chunk {
        let mut entries = self.entries.split_off(at);
        let start = entries.first().map_or(self.bytes.len(), |first| first.start as usize);
        let bytes = self.bytes.split_off(start);
        self.entries.shrink_to_fit();
        self.bytes.shrink_to_fit();
        for entry in &mut entries {
            entry.start -= start as u32;
        }
        Chunk { sample: self.sample.clone(), bytes, entries }
    }
}

fn make_room<T>(list: &mut Vec<T>, wanted: usize, step: usize) {
    if list.capacity() - list.len() < wanted {
        list.reserve_exact(wanted.max(step));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn all(shelf: &Shelf) -> Vec<(String, Bytes)> {
        shelf.from("").map(|(key, value)| (key.to_owned(), value)).collect()
    }

    #[test]
    fn a_copy_stays_as_it_was_and_shares_what_did_not_change() {
        let mut shelf = Shelf::default();
        for number in 0..10_000 {
            shelf.insert(&format!("{number:05}"), &Bytes::from(format!("value {number}")));
        }
        assert!(shelf.chunks.len() <= 10_000 / ENTRIES + 1, "chunks are full: {}", shelf.chunks.len());
        let copy = shelf.clone();
        shelf.insert("00007", &Bytes::from_static(b"other"));
        shelf.remove("09999");
        assert_eq!((copy.get("00007").unwrap(), copy.get("09999").is_some()), ("value 7".into(), true));
        assert_eq!((shelf.get("00007").unwrap(), shelf.get("09999")), ("other".into(), None));
        let shared = shelf.chunks.iter().filter(|chunk| Arc::strong_count(chunk) == 2).count();
        assert_eq!((shared, shelf.chunks.len()), (copy.chunks.len() - 2, copy.chunks.len()));
        assert_eq!(format!("{shelf:?}"), "Shelf(9999)");
    }

    #[test]
    fn values_that_are_alike_take_little_more_than_their_keys() {
        let mut shelf = Shelf::default();
        let value = |number: u32| {
            let scattered = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let text = format!(
                "MSH|^~\\&|HUB|MARY|LIS|LAB|20261122||ACK^R01^ACK|{scattered:016x}|P|2.5.1|||NE|NE\rMSA|AA|{number:09}\r"
            );
            (format!("lis/{:016x}{scattered:016x}", scattered.swap_bytes()), Bytes::from(text))
        };
        for (key, value) in (0..20_000).map(value) {
            shelf.insert(&key, &value);
        }
        let room = |chunk: &Arc<Chunk>| {
            let entries = chunk.entries.capacity() * size_of::<Entry>();
            chunk.bytes.capacity() + entries + chunk.sample.len() + size_of::<Chunk>()
        };
        let each = shelf.chunks.iter().map(room).sum::<usize>() / 20_000;
        assert!(each < 120, "{each} bytes each");
        for (key, value) in (0..20_000).map(value) {
            assert_eq!(shelf.get(&key), Some(value));
        }
    }

    #[test]
    fn an_emptied_shelf_has_no_chunks_left() {
        let mut shelf = Shelf::default();
        let keys: Vec<String> = (0..5000).map(|number| format!("{:04}", number * 7919 % 5000)).collect();
        for key in &keys {
            shelf.insert(key, &Bytes::from(vec![b'x'; 100]));
        }
        let chunks = shelf.chunks.len();
        for key in keys.iter().filter(|key| !key.ends_with('0')) {
            shelf.remove(key);
        }
        assert!(shelf.chunks.len() * 3 < chunks, "{} of {chunks}", shelf.chunks.len());
        for key in &keys {
            shelf.remove(key);
        }
        assert!(shelf.chunks.is_empty());
    }

    proptest! {
        /// Against a sorted map: whatever is set, set again and removed.
        #[test]
        fn it_is_a_sorted_map(steps in prop::collection::vec((0u8..8, 0u16..600, 0usize..1200), 1..1500)) {
            let (mut shelf, mut model) = (Shelf::default(), BTreeMap::new());
            for (what, key, length) in steps {
                let key = format!("k{key}");
                if what == 0 {
                    shelf.remove(&key);
                    model.remove(&key);
                } else {
                    let length = if what == 1 { length } else { length % 40 };
                    let value = Bytes::from(vec![what; length]);
                    shelf.insert(&key, &value);
                    model.insert(key, value);
                }
            }
            for key in (0..600).map(|key| format!("k{key}")) {
                prop_assert_eq!(shelf.get(&key), model.get(&key).cloned());
            }
            let from: Vec<_> = shelf.from("k3").map(|(key, value)| (key.to_owned(), value)).collect();
            let expected: Vec<_> =
                model.range("k3".to_owned()..).map(|(key, value)| (key.clone(), value.clone())).collect();
            prop_assert_eq!(from, expected);
            prop_assert_eq!(all(&shelf), model.into_iter().collect::<Vec<_>>());
            prop_assert!(shelf.chunks.iter().all(|chunk| !chunk.entries.is_empty()));
        }
    }
}
