//! Ids that are remembered until a moment each and no longer: assertions that have been used, tokens that have
//! been revoked. Bounded: when it is full of ids that still count, nothing more is taken, and the caller refuses.

use std::collections::{BTreeSet, HashMap};

/// Ended ids taken out at a time.
const FORGOTTEN: usize = 10;

/// How remembering ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It was not known.
    New,
    /// It was known.
    Known,
    /// There is no room.
    Full,
}

/// Ids, each until a moment (seconds).
pub(super) struct Remembered {
    ends: HashMap<String, i64>,
    /// The same in the order in which they end.
    order: BTreeSet<(i64, String)>,
    most: usize,
}

impl Remembered {
    /// Room for `most` ids.
    pub(super) fn new(most: usize) -> Self {
        Remembered { ends: HashMap::new(), order: BTreeSet::new(), most }
    }

    /// Remembers an id until `ends`; one that is known keeps its moment.
    pub(super) fn note(&mut self, id: &str, ends: i64) -> Noted {
        if self.ends.contains_key(id) {
            return Noted::Known;
        }
        if self.ends.len() >= self.most {
            return Noted::Full;
        }
        self.ends.insert(id.to_owned(), ends);
        self.order.insert((ends, id.to_owned()));
        Noted::New
    }

    /// Whether an id is remembered.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.ends.contains_key(id)
    }

    /// The moment of an id, as it is kept.
    pub(super) fn kept(&self, id: &str) -> Option<Vec<u8>> {
        self.ends.get(id).map(|ends| ends.to_string().into_bytes())
    }

    /// Takes a kept id in again, at start; `false` where it has ended or cannot be read.
    pub(super) fn restore(&mut self, id: &str, kept: &[u8], now: i64) -> bool {
        let ends = std::str::from_utf8(kept).ok().and_then(|text| text.parse::<i64>().ok());
        ends.is_some_and(|ends| ends > now && self.note(id, ends) == Noted::New)
    }

    /// A few ids that have ended, taken out: more than one for each that comes in.
    pub(super) fn ended(&mut self, now: i64) -> Vec<String> {
        let ended: Vec<(i64, String)> =
            self.order.iter().take_while(|(ends, _)| *ends <= now).take(FORGOTTEN).cloned().collect();
        for entry in &ended {
            self.order.remove(entry);
            self.ends.remove(&entry.1);
        }
        ended.into_iter().map(|(_, id)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_remembered_until_its_moment_and_the_room_is_bounded() {
        let mut seen = Remembered::new(2);
        assert_eq!((seen.note("a", 10), seen.note("a", 99)), (Noted::New, Noted::Known));
        assert_eq!((seen.note("b", 20), seen.note("c", 30)), (Noted::New, Noted::Full));
        assert!(seen.ended(9).is_empty());
        assert_eq!(seen.ended(10), ["a"]);
        assert_eq!((seen.knows("a"), seen.note("c", 30)), (false, Noted::New));
        let mut again = Remembered::new(2);
        assert!(again.restore("b", &seen.kept("b").unwrap(), 19));
        assert!(!again.restore("b", &seen.kept("b").unwrap(), 20), "it has ended");
        assert!(!again.restore("x", b"nonsense", 0));
    }
}
