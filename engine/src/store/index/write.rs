//! Writing a file front to back: for each table its rows in order of their ids, the hashes, the groups; then
//! the foreign sessions, the directory, the trailer.

use std::collections::HashMap;
use std::sync::Arc;

use super::body::Renumber;
use super::build::Builder;
use super::directory;
use super::file::IndexFile;
use super::format::{
    self, Coverage, Directory, Extent, Group, GroupKey, HASHES, HashFence, Meta, Span, TRAILER, Table,
    Trailer,
};
use super::intern::Groups;
use super::output::{Output, Rows};
use super::source::{DROPPED, Next, Peeked, Source, peek};
use super::wire::put_varint;
use super::{Error, Kind};

/// A file being written.
pub(super) struct Writer {
    pub(super) output: Output,
    name: String,
    directory: Directory,
    foreign: HashMap<u64, i64>,
    active: bool,
}

impl Writer {
    pub(super) fn new(output: Output, coverage: Coverage, name: String) -> Self {
        let none = Span::default();
        let meta = Meta {
            coverage,
            headers: none,
            provisional: 0,
            events: none,
            bodies: none,
            sessions: (0, 0),
            created: (0, 0),
            last_activity: 0,
            foreign: 0,
            length: 0,
        };
        let directory = Directory {
            meta,
            secret: 0,
            names: Box::default(),
            headers: Table::default(),
            events: Table::default(),
            bodies: Table::default(),
            descriptions: Box::default(),
            foreign: Extent::default(),
        };
        Writer { output, name, directory, foreign: HashMap::new(), active: false }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.output.put(bytes).map_err(|error| Error::io(&self.name, error))
    }

    pub(super) fn write(&mut self, builder: &mut Builder, parts: &[Arc<IndexFile>]) -> Result<(), Error> {
        self.put(&format::header())?;
        for kind in [Kind::Headers, Kind::Events, Kind::Bodies] {
            let mut none = Groups::default();
            let groups = match kind {
                Kind::Headers => &mut builder.header_groups,
                Kind::Events => &mut builder.event_groups,
                Kind::Bodies => &mut none,
            };
            let mut sources = Vec::with_capacity(parts.len() + 1);
            for part in parts {
                sources.push(Source::part(part, kind, &mut builder.names, groups)?);
            }
            let collected = match kind {
                Kind::Headers => &builder.headers,
                Kind::Events => &builder.events,
                Kind::Bodies => &builder.bodies,
            };
            sources.push(Source::collected(collected));
            let mut renumber = match kind {
                Kind::Bodies => Some(Renumber::new(parts, &mut builder.kinds)),
                _ => None,
            };
            let table = self.table(kind, &mut sources, &groups.keys, renumber.as_mut())?;
            match kind {
                Kind::Headers => self.directory.headers = table,
                Kind::Events => self.directory.events = table,
                Kind::Bodies => self.directory.bodies = table,
            }
        }
        self.directory.foreign = self.foreign_sessions()?;
        self.directory.secret = builder.environment.secret.check();
        self.directory.names = std::mem::take(&mut builder.names).into_list();
        self.directory.descriptions = std::mem::take(&mut builder.kinds).into_list();
        self.end()
    }

    /// Writes the rows of all sources in order, then their hashes and groups.
    fn table(
        &mut self,
        kind: Kind,
        sources: &mut [Source<'_>],
        keys: &[GroupKey],
        mut renumber: Option<&mut Renumber>,
    ) -> Result<Table, Error> {
        let mut rows = Rows::new();
        let mut numbers: Vec<Vec<u32>> = sources.iter().map(|source| vec![DROPPED; source.rows()]).collect();
        let mut members: Vec<Members> = keys.iter().map(|_| Members::default()).collect();
        let mut span = Span::default();
        let mut scratch = Vec::new();
        while let Some((id, winner)) = next(sources) {
            let source = sources.get(winner);
            if let Some(row) = source.and_then(Source::peek) {
                let bytes = match &mut renumber {
                    None => row.bytes,
                    Some(renumber) => renumber.row(winner, row.bytes, &mut scratch),
                };
                let number = self.row(kind, &row, bytes, &mut rows)?;
                if let Some(slot) = numbers.get_mut(winner).and_then(|all| all.get_mut(row.number as usize)) {
                    *slot = number;
                }
                if let Some(members) = members.get_mut(row.group as usize) {
                    members.add(number);
                }
                span = Span { rows: span.rows + 1, min: if span.rows == 0 { id } else { span.min }, max: id };
            }
            for source in sources.iter_mut() {
                if source.peek().is_some_and(|row| row.id == id) {
                    source.advance()?;
                }
            }
        }
        rows.end_block(&mut self.output).map_err(|error| Error::io(&self.name, error))?;
        let end = self.output.position();
        match kind {
            Kind::Headers => self.directory.meta.headers = span,
            Kind::Events => self.directory.meta.events = span,
            Kind::Bodies => self.directory.meta.bodies = span,
        }
        let mut hashes = Vec::new();
        for (source, numbers) in sources.iter().zip(&numbers) {
            source.hashes(|hash, row| match numbers.get(row as usize) {
                None | Some(&DROPPED) => {}
                Some(number) => hashes.push((hash, *number)),
            })?;
        }
        let hash_offset = end;
        let hash_fences = self.hashes(&mut hashes)?;
        let group_offset = self.output.position();
        let groups = self.groups(group_offset, keys, members)?;
        let (fences, rows) = (rows.fences.into(), rows.rows);
        Ok(Table {
            rows,
            end,
            fences,
            hashes: hashes.len() as u32,
            hash_offset,
            hash_fences,
            group_offset,
            groups,
        })
    }

    /// Writes one row and counts it.
    fn row(&mut self, kind: Kind, row: &Next<'_>, bytes: &[u8], rows: &mut Rows) -> Result<u32, Error> {
        let peeked = match kind {
            Kind::Bodies => Peeked::default(),
            // What we encoded ourselves, or copied from where its CRC was right.
            _ => peek(kind, bytes).map_err(|_| Error::Damaged { file: self.name.clone(), offset: 0 })?,
        };
        let meta = &mut self.directory.meta;
        if kind == Kind::Headers {
            meta.provisional += u32::from(row.provisional);
            let (first, last) = if rows.rows == 0 { (peeked.created, peeked.created) } else { meta.created };
            meta.created = (first.min(peeked.created), last.max(peeked.created));
        }
        if kind != Kind::Bodies {
            meta.last_activity =
                if self.active { meta.last_activity.max(peeked.activity) } else { peeked.activity };
            self.active = true;
        }
        if peeked.session != 0 {
            let (min, max) = meta.sessions;
            meta.sessions =
                (if min == 0 { peeked.session } else { min.min(peeked.session) }, max.max(peeked.session));
            if peeked.session < meta.coverage.first_id {
                let last = self.foreign.entry(peeked.session).or_insert(peeked.activity);
                *last = peeked.activity.max(*last);
            }
        }
        let added = rows.add(row.id, row.provisional, bytes, peeked.created, &mut self.output);
        added.map_err(|error| Error::io(&self.name, error))
    }

    fn hashes(&mut self, hashes: &mut [(u64, u32)]) -> Result<Box<[HashFence]>, Error> {
        hashes.sort_unstable();
        let mut block = Vec::with_capacity(HASHES * format::HASH);
        let mut fences = Vec::with_capacity(hashes.len().div_ceil(HASHES));
        for chunk in hashes.chunks(HASHES) {
            block.clear();
            for (hash, row) in chunk {
                block.extend_from_slice(&hash.to_le_bytes());
                block.extend_from_slice(&row.to_le_bytes());
            }
            let high = chunk.first().map_or(0, |(hash, _)| (hash >> 32) as u32);
            fences.push(HashFence { high, crc: crc32fast::hash(&block) });
            self.put(&block)?;
        }
        Ok(fences.into())
    }

    fn groups(
        &mut self,
        start: u64,
        keys: &[GroupKey],
        members: Vec<Members>,
    ) -> Result<Box<[Group]>, Error> {
        let mut groups = Vec::with_capacity(keys.len());
        for (key, members) in keys.iter().zip(members) {
            // A group all of whose rows were dropped.
            if members.rows == 0 {
                continue;
            }
            let (offset, length) = ((self.output.position() - start) as u32, members.list.len() as u32);
            let crc = crc32fast::hash(&members.list);
            self.put(&members.list)?;
            groups.push(Group { key: *key, rows: members.rows, offset, length, crc });
        }
        Ok(groups.into())
    }

    fn foreign_sessions(&mut self) -> Result<Extent, Error> {
        let mut sessions: Vec<_> = std::mem::take(&mut self.foreign).into_iter().collect();
        sessions.sort_unstable();
        self.directory.meta.foreign = sessions.len() as u32;
        let mut bytes = Vec::with_capacity(sessions.len() * 16);
        for (session, last) in sessions {
            bytes.extend_from_slice(&session.to_le_bytes());
            bytes.extend_from_slice(&last.to_le_bytes());
        }
        let extent = Extent {
            offset: self.output.position(),
            length: bytes.len() as u64,
            crc: crc32fast::hash(&bytes),
        };
        self.put(&bytes)?;
        Ok(extent)
    }

    fn end(&mut self) -> Result<(), Error> {
        let directory = directory::encode(&self.directory);
        let offset = self.output.position();
        let (length, crc) = (directory.len() as u32, crc32fast::hash(&directory));
        self.put(&directory)?;
        let file = self.output.position() + TRAILER as u64;
        self.put(&Trailer { offset, length, crc, file }.encode())
    }
}

/// The lowest id that is next anywhere, and the source whose row of it counts: a settled one before a
/// provisional one, then the newest.
fn next(sources: &[Source<'_>]) -> Option<(u64, usize)> {
    let heads = sources.iter().enumerate().filter_map(|(index, source)| Some((source.peek()?, index)));
    let (row, index) = heads.min_by_key(|(row, index)| (row.id, row.provisional, usize::MAX - index))?;
    Some((row.id, index))
}

/// The rows of a group on their way to the disk: the distances between them.
#[derive(Debug, Default)]
struct Members {
    list: Vec<u8>,
    rows: u32,
    last: u32,
}

impl Members {
    fn add(&mut self, row: u32) {
        put_varint(&mut self.list, u64::from(row - self.last));
        (self.last, self.rows) = (row, self.rows + 1);
    }
}
