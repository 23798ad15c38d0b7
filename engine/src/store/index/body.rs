//! The row of a body: the number of what it is (see [`Kinds`]; 0 = written out at the end), segment, offset,
//! length × 2 + sealed (varints), CRC-32.

use std::collections::HashMap;
use std::sync::Arc;

use super::file::IndexFile;
use super::format::Description;
use super::wire::{Wire, put_varint};
use crate::id::BodyId;
use crate::store::bodies::Place;

/// How many kinds of body are written once; further ones are written into their rows, because types come
/// from outside.
const MOST: usize = 4096;

/// Where a body is and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct BodyRow {
    /// Its id.
    pub(in crate::store) id: BodyId,
    /// Where its bytes are in the journal.
    pub(in crate::store) place: Place,
    /// What it is.
    pub(in crate::store) kind: Description,
}

/// What the bodies of a file that is being made are; numbers from 1.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    numbers: HashMap<Description, u32>,
    list: Vec<Description>,
}

impl Kinds {
    pub(super) fn number(&mut self, kind: &Description) -> Option<u32> {
        if let Some(number) = self.numbers.get(kind) {
            return Some(*number);
        }
        if self.list.len() >= MOST {
            return None;
        }
        self.list.push(kind.clone());
        let number = self.list.len() as u32;
        self.numbers.insert(kind.clone(), number);
        Some(number)
    }

    pub(super) fn into_list(self) -> Box<[Description]> {
        self.list.into()
    }
}

pub(super) fn put_body(place: &Place, kind: Result<u32, &Description>, row: &mut Vec<u8>) {
    put_varint(row, u64::from(kind.unwrap_or(0)));
    put_varint(row, place.segment);
    put_varint(row, place.offset);
    put_varint(row, u64::from(place.length) << 1 | u64::from(place.sealed));
    row.extend_from_slice(&place.crc.to_le_bytes());
    if let Err(kind) = kind {
        put_kind(kind, row);
    }
}

fn put_kind(kind: &Description, row: &mut Vec<u8>) {
    for text in [Some(&kind.type_name), Some(&kind.content_type), kind.charset.as_ref()].into_iter().flatten()
    {
        put_varint(row, text.len() as u64);
        row.extend_from_slice(text.as_bytes());
    }
}

/// Reads a row; `None` where it is none.
pub(super) fn read_body(id: u64, row: &[u8], kinds: &[Description]) -> Option<BodyRow> {
    let mut wire = Wire::new(row);
    let number = wire.varint()?;
    let (segment, offset, length) = (wire.varint()?, wire.varint()?, wire.varint()?);
    let crc = wire.u32()?;
    let place =
        Place { segment, offset, length: u32::try_from(length >> 1).ok()?, crc, sealed: length & 1 == 1 };
    let kind = match number.checked_sub(1) {
        Some(index) => kinds.get(usize::try_from(index).ok()?)?.clone(),
        None => {
            let mut text = || -> Option<Arc<str>> {
                let length = usize::try_from(wire.varint()?).ok()?;
                std::str::from_utf8(wire.take(length)?).ok().map(Into::into)
            };
            Description { type_name: text()?, content_type: text()?, charset: text() }
        }
    };
    Some(BodyRow { id: BodyId(id), place, kind })
}

/// Gives rows of earlier files the numbers of the new one.
#[derive(Debug)]
pub(super) struct Renumber<'a> {
    parts: &'a [Arc<IndexFile>],
    /// For each part the new number of each of its own.
    numbers: Vec<Vec<Option<u32>>>,
}

impl<'a> Renumber<'a> {
    pub(super) fn new(parts: &'a [Arc<IndexFile>], kinds: &mut Kinds) -> Self {
        let all = parts.iter().map(|part| part.directory.descriptions.iter());
        let numbers = all.map(|part| part.map(|kind| kinds.number(kind)).collect()).collect();
        Renumber { parts, numbers }
    }

    /// A row of the part of this number, as it is to be written; rows that come from elsewhere stay.
    pub(super) fn row<'row>(&self, part: usize, row: &'row [u8], scratch: &'row mut Vec<u8>) -> &'row [u8] {
        let (Some(part), Some(numbers)) = (self.parts.get(part), self.numbers.get(part)) else { return row };
        let mut wire = Wire::new(row);
        let Some(index) = wire.varint().and_then(|number| usize::try_from(number.checked_sub(1)?).ok())
        else {
            return row;
        };
        scratch.clear();
        let number = numbers.get(index).copied().flatten();
        put_varint(scratch, u64::from(number.unwrap_or(0)));
        scratch.extend_from_slice(wire.rest());
        if number.is_none()
            && let Some(kind) = part.directory.descriptions.get(index)
        {
            put_kind(kind, scratch);
        }
        scratch
    }
}
