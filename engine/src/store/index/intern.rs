//! Names and groups of a file that is being made. Types come from outside, so their number is bounded: what
//! is beyond goes under [`VARIOUS`], which matches everything and leaves the decision to the row itself.

use std::collections::HashMap;

use super::format::{GroupKey, NOBODY, VARIOUS};

/// How many different names, and groups, get their own.
const MOST: usize = 4096;

/// The names of a file.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: HashMap<Box<str>, u16>,
    list: Vec<Box<str>>,
}

impl Names {
    pub(super) fn number(&mut self, name: &str) -> u16 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        if self.list.len() >= MOST {
            return VARIOUS;
        }
        let number = self.list.len() as u16;
        self.numbers.insert(name.into(), number);
        self.list.push(name.into());
        number
    }

    pub(super) fn optional(&mut self, name: Option<&str>) -> u16 {
        name.map_or(NOBODY, |name| self.number(name))
    }

    pub(super) fn into_list(self) -> Box<[Box<str>]> {
        self.list.into()
    }
}

/// The groups of a table.
#[derive(Debug, Default)]
pub(super) struct Groups {
    numbers: HashMap<GroupKey, u32>,
    pub(super) keys: Vec<GroupKey>,
}

impl Groups {
    pub(super) fn number(&mut self, mut key: GroupKey) -> u32 {
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        if self.keys.len() >= MOST * 2 {
            key.names = [VARIOUS; 3];
        } else if self.keys.len() >= MOST {
            let [one, two, _] = key.names;
            key.names = [one, two, VARIOUS];
        }
        *self.numbers.entry(key).or_insert_with(|| {
            self.keys.push(key);
            (self.keys.len() - 1) as u32
        })
    }
}
