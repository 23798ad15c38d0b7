//! Looking one thing up.

use std::collections::{BTreeMap, HashSet};

use super::body::{BodyRow, read_body};
use super::cursor::counting;
use super::file::{IndexFile, RowBlock};
use super::format::PROVISIONAL;
use super::query::Searched;
use super::{Error, Index, Kind, Overlay};
use crate::event::Event;
use crate::header::Header;
use crate::id::{BodyId, MessageId, SessionId};

impl Index {
    /// One header: its settled row, or a provisional one that counts.
    pub(in crate::store) fn header(
        &self,
        id: MessageId,
        overlay: &mut dyn Overlay,
    ) -> Result<Option<Header>, Error> {
        let set = self.files();
        for file in set.iter().rev().filter(|file| file.meta().headers.contains(id.0)) {
            if let Some(header) = file.header(id, overlay)? {
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// The headers and the events of a session, in order of their ids.
    pub(in crate::store) fn session(
        &self,
        session: SessionId,
        overlay: &mut dyn Overlay,
    ) -> Result<(Vec<Header>, Vec<Event>), Error> {
        let (mut headers, mut events) = (BTreeMap::new(), BTreeMap::new());
        let set = self.files();
        let hash = self.environment().secret.session(session);
        let may = |file: &&std::sync::Arc<IndexFile>| {
            let (min, max) = file.meta().sessions;
            (min..=max).contains(&session.0)
        };
        for file in set.iter().rev().filter(may) {
            file.with_session(hash, session, |header: &Header| Some(header.session), overlay, &mut headers)?;
            file.with_session(hash, session, |event: &Event| event.session, overlay, &mut events)?;
        }
        Ok((headers.into_values().collect(), events.into_values().collect()))
    }

    /// Where a body is and what it is.
    pub(in crate::store) fn body(&self, id: BodyId) -> Result<Option<BodyRow>, Error> {
        let set = self.files();
        for file in set.iter().rev().filter(|file| file.meta().bodies.contains(id.0)) {
            if let Some(body) = file.body(id)? {
                return Ok(Some(body));
            }
        }
        Ok(None)
    }

    /// Where many bodies are: ids ascending, each block is read once for all of its own.
    pub(in crate::store) fn bodies(&self, ids: &[BodyId]) -> Result<Vec<BodyRow>, Error> {
        let set = self.files();
        let mut left = ids.to_vec();
        let mut found = Vec::with_capacity(ids.len());
        for file in set.iter().rev().filter(|file| file.meta().bodies.rows > 0) {
            if left.is_empty() {
                break;
            }
            let mut absent = Vec::new();
            file.bodies(&left, &mut found, &mut absent)?;
            left = absent;
        }
        Ok(found)
    }
}

impl IndexFile {
    /// Newer files have more; the whole of a segment stands before its parts.
    pub(super) fn order(&self) -> (u64, u32) {
        (self.meta().coverage.segment, self.meta().coverage.part)
    }

    /// Whether its name says what it is.
    pub(super) fn is_named(&self, name: &str) -> bool {
        super::file_name(self.meta().coverage.segment, self.meta().coverage.part) == name
    }

    fn block_of(&self, kind: Kind, id: u64) -> Result<Option<RowBlock>, Error> {
        self.table(kind).block_of(id).map(|index| self.rows(kind, index)).transpose()
    }

    pub(super) fn decode<T: Searched>(&self, block: &RowBlock, place: u32) -> Result<T, Error> {
        let damaged = || self.damaged(block.offset());
        let row = block.at(place as usize).ok_or_else(damaged)?;
        let found = T::decode(block.bytes(row), &self.environment.sealer.vault).map_err(|_| damaged())?;
        if found.id() == row.id { Ok(found) } else { Err(damaged()) }
    }

    fn header(&self, id: MessageId, overlay: &mut dyn Overlay) -> Result<Option<Header>, Error> {
        let Some(block) = self.block_of(Kind::Headers, id.0)? else { return Ok(None) };
        let Some(place) = block.find(id.0) else { return Ok(None) };
        let counts = counting(self, Kind::Headers, &block, vec![place], u64::MAX, overlay)?;
        counts.first().map(|place| self.decode(&block, *place)).transpose()
    }

    /// The body of an id.
    pub(in crate::store) fn body(&self, id: BodyId) -> Result<Option<BodyRow>, Error> {
        let Some(block) = self.block_of(Kind::Bodies, id.0)? else { return Ok(None) };
        let Some(row) = block.find(id.0).and_then(|place| block.at(place as usize)) else { return Ok(None) };
        let body = read_body(id.0, block.bytes(row), &self.directory.descriptions);
        body.map(Some).ok_or_else(|| self.damaged(block.offset()))
    }

    /// The bodies of these ids, ascending; ids that the file does not have go to `absent`.
    fn bodies(
        &self,
        ids: &[BodyId],
        found: &mut Vec<BodyRow>,
        absent: &mut Vec<BodyId>,
    ) -> Result<(), Error> {
        let (table, span) = (self.table(Kind::Bodies), self.meta().bodies);
        let mut current: Option<(usize, RowBlock)> = None;
        for id in ids {
            let Some(index) = table.block_of(id.0).filter(|_| span.contains(id.0)) else {
                absent.push(*id);
                continue;
            };
            let block = match current.take() {
                Some((known, block)) if known == index => block,
                _ => self.rows(Kind::Bodies, index)?,
            };
            match block.find(id.0).and_then(|place| block.at(place as usize)) {
                None => absent.push(*id),
                Some(row) => {
                    let body = read_body(id.0, block.bytes(row), &self.directory.descriptions);
                    found.push(body.ok_or_else(|| self.damaged(block.offset()))?);
                }
            }
            current = Some((index, block));
        }
        Ok(())
    }

    /// For each of these sessions how many settled headers the file has, and whether provisional ones. Only hashes are
    /// looked at.
    pub(in crate::store) fn count_headers(&self, sessions: &[SessionId]) -> Result<Vec<(u64, bool)>, Error> {
        let groups = self.table(Kind::Headers).groups.iter();
        let mut provisional = HashSet::new();
        self.members(Kind::Headers, groups.filter(|group| group.key.flags & PROVISIONAL != 0), |_, row| {
            provisional.insert(row);
        })?;
        let mut rows = Vec::new();
        let mut count = |session: &SessionId| {
            rows.clear();
            self.with_hash(Kind::Headers, self.environment.secret.session(*session), &mut rows)?;
            let all = rows.len();
            rows.retain(|row| !provisional.contains(row));
            Ok((rows.len() as u64, rows.len() < all))
        };
        sessions.iter().map(&mut count).collect()
    }

    /// Adds the rows of a session that are not there yet.
    fn with_session<T: Searched>(
        &self,
        hash: u64,
        wanted: SessionId,
        session: impl Fn(&T) -> Option<SessionId>,
        overlay: &mut dyn Overlay,
        found: &mut BTreeMap<u64, T>,
    ) -> Result<(), Error> {
        let table = self.table(T::KIND);
        let mut rows = Vec::new();
        self.with_hash(T::KIND, hash, &mut rows)?;
        let mut rows = rows.as_slice();
        while let Some(first) = rows.first() {
            let block = self.rows(T::KIND, table.block_with(*first).unwrap_or_default())?;
            let end = block.first_row() + block.len() as u32;
            let (here, rest) = rows.split_at(rows.partition_point(|row| *row < end));
            if here.is_empty() {
                return Err(self.damaged(table.hash_offset));
            }
            rows = rest;
            let places = here.iter().map(|row| row.saturating_sub(block.first_row())).collect();
            for place in counting(self, T::KIND, &block, places, u64::MAX, overlay)? {
                let row: T = self.decode(&block, place)?;
                if session(&row) == Some(wanted) {
                    found.entry(row.id()).or_insert(row);
                }
            }
        }
        Ok(())
    }
}
