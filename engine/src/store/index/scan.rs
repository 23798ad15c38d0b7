//! Walking one file from front to back. Of a row only what little is asked of every one is read; whoever wants
//! the whole of it has it decoded.

use super::body::{BodyRow, read_body};
use super::file::{IndexFile, RowBlock};
use super::source::peek;
use super::{Error, Kind};
use crate::event::Event;
use crate::header::Header;
use crate::id::BodyId;

/// A row of a header or an event as it passes by. Times are microseconds since 1970.
#[derive(Debug)]
pub(in crate::store) struct Glimpse<'a> {
    /// The header or event.
    pub(in crate::store) id: u64,
    /// Its session; 0 = none.
    pub(in crate::store) session: u64,
    /// The latest moment in it.
    pub(in crate::store) activity: i64,
    /// A header's body.
    pub(in crate::store) body: Option<BodyId>,
    /// A header that was not final when the file was written.
    pub(in crate::store) provisional: bool,
    /// An event that says who looked or acted.
    pub(in crate::store) audited: bool,
    /// Its bytes, as many as in the journal.
    pub(in crate::store) length: usize,
    file: &'a IndexFile,
    block: &'a RowBlock,
    place: u32,
}

impl Glimpse<'_> {
    /// The whole header.
    pub(in crate::store) fn header(&self) -> Result<Header, Error> {
        self.file.decode(self.block, self.place)
    }

    /// The whole event.
    pub(in crate::store) fn event(&self) -> Result<Event, Error> {
        self.file.decode(self.block, self.place)
    }
}

impl IndexFile {
    /// Every header in order of the ids.
    pub(in crate::store) fn glance_headers(
        &self,
        each: impl FnMut(&Glimpse<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.glance(Kind::Headers, each)
    }

    /// Every event in order of the ids.
    pub(in crate::store) fn glance_events(
        &self,
        each: impl FnMut(&Glimpse<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.glance(Kind::Events, each)
    }

    fn glance(
        &self,
        kind: Kind,
        mut each: impl FnMut(&Glimpse<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for index in 0..self.table(kind).fences.len() {
            let block = self.rows(kind, index)?;
            for (place, row) in block.iter().enumerate() {
                let bytes = block.bytes(row);
                let peeked = peek(kind, bytes).map_err(|_| self.damaged(block.offset()))?;
                each(&Glimpse {
                    id: row.id,
                    session: peeked.session,
                    activity: peeked.activity,
                    body: peeked.body,
                    provisional: row.provisional,
                    audited: peeked.audited,
                    length: bytes.len(),
                    file: self,
                    block: &block,
                    place: place as u32,
                })?;
            }
        }
        Ok(())
    }

    /// The bodies that are wanted, in order of the ids.
    pub(in crate::store) fn scan_bodies(
        &self,
        wanted: impl Fn(BodyId) -> bool,
        mut each: impl FnMut(BodyRow),
    ) -> Result<(), Error> {
        for index in 0..self.table(Kind::Bodies).fences.len() {
            let block = self.rows(Kind::Bodies, index)?;
            for row in block.iter().filter(|row| wanted(BodyId(row.id))) {
                let body = read_body(row.id, block.bytes(row), &self.directory.descriptions);
                each(body.ok_or_else(|| self.damaged(block.offset()))?);
            }
        }
        Ok(())
    }
}
