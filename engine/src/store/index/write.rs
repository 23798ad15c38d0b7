//! Writing a file front to back: for each table its rows in order of their ids, the hashes, the groups; then
//! the foreign sessions, the directory, the trailer. Of earlier files everything but a few numbers a row is
//! merged a piece at a time.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap};
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
use super::runs::{self, Merge};
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
        self.directory.foreign = self.foreign_sessions(parts)?;
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
        // The lowest id is first, and the source whose row of it counts: a settled one before a provisional one,
        // then the newest.
        let head = |(index, source): (usize, &Source<'_>)| {
            source.peek().map(|row| Reverse((row.id, row.provisional, usize::MAX - index)))
        };
        let mut heads: BinaryHeap<_> = sources.iter().enumerate().filter_map(head).collect();
        while let Some(Reverse((id, _, newest))) = heads.peek().copied() {
            let winner = usize::MAX - newest;
            let source = sources.get(winner);
            if let Some((source, row)) = source.and_then(|source| Some((source, source.peek()?))) {
                let bytes = match &mut renumber {
                    None => row.bytes,
                    Some(renumber) => renumber.row(winner, row.bytes, &mut scratch),
                };
                let listed = source.file().is_some_and(|file| self.lists_foreign(file));
                let number = self.row(kind, &row, bytes, listed, &mut rows)?;
                if let Some(slot) = numbers.get_mut(winner).and_then(|all| all.get_mut(row.number as usize)) {
                    *slot = number;
                }
                if let Some(members) = members.get_mut(row.group as usize) {
                    members.add(number);
                }
                span = Span { rows: span.rows + 1, min: if span.rows == 0 { id } else { span.min }, max: id };
            }
            while let Some(mut first) = heads.peek_mut().filter(|first| first.0.0 == id) {
                let index = usize::MAX - first.0.2;
                let next = match sources.get_mut(index) {
                    Some(source) => {
                        source.advance()?;
                        head((index, source))
                    }
                    None => None,
                };
                match next {
                    Some(next) => *first = next,
                    None => drop(PeekMut::pop(first)),
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
        let hash_offset = end;
        let runs = sources.iter().zip(&numbers).map(|(source, numbers)| source.hashes(numbers));
        let (hashes, hash_fences) = self.hashes(Merge::new(runs.collect())?)?;
        let group_offset = self.output.position();
        let groups = self.groups(group_offset, keys, members)?;
        let (fences, rows) = (rows.fences.into(), rows.rows);
        Ok(Table { rows, end, fences, hashes, hash_offset, hash_fences, group_offset, groups })
    }

    /// Whether an earlier file lists the sessions that are foreign in this one too.
    fn lists_foreign(&self, file: &IndexFile) -> bool {
        file.meta().coverage.first_id == self.directory.meta.coverage.first_id
    }

    /// Writes one row and counts it; `listed`: its session is listed where it comes from, if it is a foreign one.
    fn row(
        &mut self,
        kind: Kind,
        row: &Next<'_>,
        bytes: &[u8],
        listed: bool,
        rows: &mut Rows,
    ) -> Result<u32, Error> {
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
            if !listed && peeked.session < meta.coverage.first_id {
                let last = self.foreign.entry(peeked.session).or_insert(peeked.activity);
                *last = peeked.activity.max(*last);
            }
        }
        let added = rows.add(row.id, row.provisional, bytes, peeked.created, &mut self.output);
        added.map_err(|error| Error::io(&self.name, error))
    }

    /// Writes the hashes; gives how many there are.
    fn hashes(&mut self, mut hashes: Merge<'_, (u64, u32)>) -> Result<(u32, Box<[HashFence]>), Error> {
        let (mut count, mut fences) = (0, Vec::new());
        let (mut block, mut high) = (Vec::with_capacity(HASHES * format::HASH), 0);
        loop {
            let next = hashes.next()?;
            if !block.is_empty() && (next.is_none() || block.len() >= HASHES * format::HASH) {
                fences.push(HashFence { high, crc: crc32fast::hash(&block) });
                self.put(&block)?;
                block.clear();
            }
            let Some((hash, row)) = next else { return Ok((count, fences.into())) };
            if block.is_empty() {
                high = (hash >> 32) as u32;
            }
            block.extend_from_slice(&hash.to_le_bytes());
            block.extend_from_slice(&row.to_le_bytes());
            count += 1;
        }
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

    /// Writes the foreign sessions: those of rows collected in memory, and those that earlier files list.
    fn foreign_sessions(&mut self, parts: &[Arc<IndexFile>]) -> Result<Extent, Error> {
        let mut own: Vec<_> = std::mem::take(&mut self.foreign).into_iter().collect();
        own.sort_unstable();
        let mut runs = vec![runs::memory(own)];
        for part in parts.iter().filter(|part| self.lists_foreign(part)) {
            runs.push(runs::sessions(part)?);
        }
        let (offset, mut crc) = (self.output.position(), crc32fast::Hasher::new());
        let mut merge = Merge::new(runs)?;
        let mut next = merge.next()?;
        while let Some((session, mut last)) = next {
            // Of one session's activities the last comes last.
            next = merge.next()?;
            while let Some((_, later)) = next.filter(|(other, _)| *other == session) {
                last = later;
                next = merge.next()?;
            }
            self.directory.meta.foreign += 1;
            for bytes in [session.to_le_bytes(), last.to_le_bytes()] {
                crc.update(&bytes);
                self.put(&bytes)?;
            }
        }
        Ok(Extent { offset, length: self.output.position() - offset, crc: crc.finalize() })
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
