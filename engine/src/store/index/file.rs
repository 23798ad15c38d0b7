//! An open index file: its directory in memory, its blocks on the disk, each checked against its CRC
//! whenever it is read.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::directory::decode;
use super::environment::Environment;
use super::format::{Directory, Group, HASH, HASHES, HEADER, Meta, TRAILER, Table, Trailer, VERSION, header};
use super::wire::Wire;
use super::{Error, Kind};
use crate::files::{self, File};
use crate::store::codec::DecodeError;

/// Blocks of hashes that are read at once.
const TOGETHER: usize = 64;
/// Bytes that are read at once only to be checked.
const PIECE: u64 = 64 * 1024;
/// Bytes of a foreign session.
const SESSION: u64 = 16;

/// An index file. Whoever holds it can read it, also after it left the set; the last one to let go of a
/// dropped file removes it from the disk.
#[derive(Debug)]
pub(in crate::store) struct IndexFile {
    pub(super) environment: Arc<Environment>,
    pub(super) name: String,
    /// Tells its handle from that of an earlier file of the same name.
    pub(super) key: u64,
    pub(super) directory: Directory,
    doomed: AtomicBool,
    /// Why it cannot be read any more: set by whoever found that out.
    broken: OnceLock<String>,
}

impl IndexFile {
    /// Opens a file of the index's folder.
    pub(super) fn open(environment: &Arc<Environment>, name: &str) -> Result<Arc<IndexFile>, Error> {
        let path = environment.folder.join(name);
        let file = environment.files.open(&path).map_err(|error| Error::io(name, error))?;
        let directory = read_directory(&*file, name)?;
        if directory.secret != environment.secret.check() {
            return Err(Error::Foreign { file: name.to_owned() });
        }
        let key = environment.handles.key();
        environment.handles.keep(key, file);
        let (environment, name) = (environment.clone(), name.to_owned());
        let (doomed, broken) = (AtomicBool::new(false), OnceLock::new());
        Ok(Arc::new(IndexFile { environment, name, key, directory, doomed, broken }))
    }

    /// What is known of it without reading.
    pub(in crate::store) fn meta(&self) -> &Meta {
        &self.directory.meta
    }

    /// Its name in the index's folder.
    pub(in crate::store) fn name(&self) -> &str {
        &self.name
    }

    /// About how many bytes of memory it takes.
    pub(in crate::store) fn memory(&self) -> usize {
        self.directory.memory() + self.name.len()
    }

    fn path(&self) -> PathBuf {
        self.environment.folder.join(&self.name)
    }

    /// Removes it from the disk once nobody reads it any more.
    pub(super) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// Bytes are not what was written: from now on it is broken.
    pub(super) fn damaged(&self, offset: u64) -> Error {
        self.breaks(Error::Damaged { file: self.name.clone(), offset })
    }

    /// The disk refused to give it. That breaks the file too, unless it is this process that wants too much.
    fn refused(&self, error: io::Error) -> Error {
        self.breaks(Error::io(&self.name, error))
    }

    fn breaks(&self, error: Error) -> Error {
        if !error.passes() {
            let _ = self.broken.set(error.to_string());
        }
        error
    }

    /// All ids in it are lower.
    pub(in crate::store) fn below(&self) -> u64 {
        let Meta { headers, events, bodies, .. } = self.meta();
        [headers, events, bodies].map(|span| span.max + 1).into_iter().max().unwrap_or_default()
    }

    /// Why it cannot be read any more.
    pub(in crate::store) fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// Removes it from the disk now, whoever still reads it.
    pub(super) fn unlink(&self) {
        self.environment.handles.forget(self.key);
        self.removed(self.environment.files.remove(&self.path()));
    }

    fn removed(&self, removed: io::Result<()>) {
        if let Err(error) = removed
            && !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        {
            tracing::warn!(file = self.name, %error, "an index file that is not needed stays on the disk");
        }
    }

    fn handle(&self) -> Result<Arc<dyn File>, Error> {
        if let Some(file) = self.environment.handles.get(self.key) {
            return Ok(file);
        }
        let file = self.environment.files.open(&self.path()).map_err(|error| self.refused(error))?;
        self.environment.handles.keep(self.key, file.clone());
        Ok(file)
    }

    /// Reads bytes that have this CRC.
    pub(super) fn read(&self, offset: u64, length: u64, crc: u32) -> Result<Vec<u8>, Error> {
        let bytes = self.bytes(offset, length)?;
        if crc32fast::hash(&bytes) == crc { Ok(bytes) } else { Err(self.damaged(offset)) }
    }

    fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| self.damaged(offset))?];
        match files::read_exact(&*self.handle()?, &mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(self.damaged(offset)),
            Err(error) => Err(self.refused(error)),
        }
    }

    pub(super) fn table(&self, kind: Kind) -> &Table {
        match kind {
            Kind::Headers => &self.directory.headers,
            Kind::Events => &self.directory.events,
            Kind::Bodies => &self.directory.bodies,
        }
    }

    /// Reads a block of rows.
    pub(super) fn rows(&self, kind: Kind, index: usize) -> Result<RowBlock, Error> {
        let block = self.table(kind).block(index).ok_or_else(|| self.damaged(0))?;
        let fence = block.fence;
        let bytes = self.read(fence.offset, block.length, fence.crc)?;
        let count = block.end_row.checked_sub(fence.first_row).ok_or_else(|| self.damaged(fence.offset))?;
        let rows =
            RowBlock::split(&bytes, fence.first_id, count).ok_or_else(|| self.damaged(fence.offset))?;
        Ok(RowBlock { bytes, rows, first_row: fence.first_row, offset: fence.offset })
    }

    /// The rows with a hash, lowest first, added to `rows`.
    pub(super) fn with_hash(&self, kind: Kind, hash: u64, rows: &mut Vec<u32>) -> Result<(), Error> {
        let table = self.table(kind);
        let high = (hash >> 32) as u32;
        let first = table.hash_fences.partition_point(|fence| fence.high < high).saturating_sub(1);
        let end = table.hash_fences.partition_point(|fence| fence.high <= high);
        // Blocks of a frequent value lie side by side: many are read at once.
        for from in (first..end).step_by(TOGETHER) {
            let bytes = self.hash_blocks(table, from..end.min(from + TOGETHER))?;
            let (entries, _) = bytes.as_chunks::<HASH>();
            let lower = entries.partition_point(|entry| entry_of(entry).0 < hash);
            let entries = entries.get(lower..).unwrap_or_default();
            let upper = entries.partition_point(|entry| entry_of(entry).0 == hash);
            let (equal, others) = entries.split_at(upper);
            rows.extend(equal.iter().map(|entry| entry_of(entry).1));
            if !others.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Blocks of hashes that lie side by side, each as it was written.
    fn hash_blocks(&self, table: &Table, blocks: Range<usize>) -> Result<Vec<u8>, Error> {
        let first = blocks.start * HASHES;
        let entries = (table.hashes as usize).min(blocks.end * HASHES).saturating_sub(first);
        let offset = table.hash_offset + (first * HASH) as u64;
        let bytes = self.bytes(offset, (entries * HASH) as u64)?;
        let fences = table.hash_fences.get(blocks).unwrap_or_default();
        let mut pieces = bytes.chunks(HASHES * HASH).zip(fences);
        match pieces.find(|(piece, fence)| crc32fast::hash(piece) != fence.crc) {
            None => Ok(bytes),
            Some(_) => Err(self.damaged(offset)),
        }
    }

    /// The hashes in some blocks, each with its row.
    pub(super) fn hash_entries(&self, kind: Kind, blocks: Range<usize>) -> Result<Vec<(u64, u32)>, Error> {
        let bytes = self.hash_blocks(self.table(kind), blocks)?;
        Ok(bytes.as_chunks::<HASH>().0.iter().map(entry_of).collect())
    }

    /// The rows of groups, lowest first within each, with the place of the group among these.
    pub(super) fn members<'a>(
        &self,
        kind: Kind,
        groups: impl Iterator<Item = &'a Group> + Clone,
        mut each: impl FnMut(usize, u32),
    ) -> Result<(), Error> {
        let Table { rows, group_offset, .. } = *self.table(kind);
        let end = |group: &Group| u64::from(group.offset) + u64::from(group.length);
        let from = groups.clone().map(|group| u64::from(group.offset)).min().unwrap_or_default();
        let to = groups.clone().map(end).max().unwrap_or_default();
        // Lists lie close together: all are read at once, and each has its CRC.
        let start = group_offset + from;
        let lists = self.bytes(start, to.saturating_sub(from))?;
        for (index, group) in groups.enumerate() {
            let damaged = || self.damaged(group_offset + u64::from(group.offset));
            let first = usize::try_from(u64::from(group.offset).saturating_sub(from)).unwrap_or(usize::MAX);
            let list = lists.get(first..).and_then(|rest| rest.get(..group.length as usize));
            let list = list.filter(|list| crc32fast::hash(list) == group.crc).ok_or_else(damaged)?;
            let mut wire = Wire::new(list);
            let mut row = 0u64;
            for _ in 0..group.rows {
                row = wire.varint().and_then(|step| row.checked_add(step)).unwrap_or(u64::MAX);
                match u32::try_from(row) {
                    Ok(row) if row < rows => each(index, row),
                    _ => return Err(damaged()),
                }
            }
        }
        Ok(())
    }

    /// Sessions older than the first id born here, lowest first, each with its last activity in this file
    /// (microseconds since 1970).
    pub(in crate::store) fn foreign_sessions(&self) -> Result<Vec<(u64, i64)>, Error> {
        let extent = self.directory.foreign;
        Ok(sessions_of(&self.read(extent.offset, extent.length, extent.crc)?))
    }

    /// Reads them once, a piece at a time: whether they are what was written.
    pub(super) fn check_foreign(&self) -> Result<(), Error> {
        let extent = self.directory.foreign;
        let mut hasher = crc32fast::Hasher::new();
        for from in (0..extent.length).step_by(PIECE as usize) {
            hasher.update(&self.bytes(extent.offset + from, PIECE.min(extent.length - from))?);
        }
        if hasher.finalize() == extent.crc { Ok(()) } else { Err(self.damaged(extent.offset)) }
    }

    /// Some of them, which have been checked.
    pub(super) fn some_foreign(&self, first: u64, most: u64) -> Result<Vec<(u64, i64)>, Error> {
        let extent = self.directory.foreign;
        let from = (first * SESSION).min(extent.length);
        let length = (most * SESSION).min(extent.length - from);
        Ok(sessions_of(&self.bytes(extent.offset + from, length)?))
    }

    /// Reads everything once: whether every byte is what was written.
    pub(in crate::store) fn verify(&self) -> Result<(), Error> {
        let mut head = [0; HEADER];
        let handle = self.handle()?;
        files::read_exact(&*handle, &mut head, 0).map_err(|error| Error::io(&self.name, error))?;
        if head != header() {
            return Err(self.damaged(0));
        }
        if read_directory(&*handle, &self.name)? != self.directory {
            return Err(self.damaged(0));
        }
        for kind in [Kind::Headers, Kind::Events, Kind::Bodies] {
            let table = self.table(kind);
            for index in 0..table.fences.len() {
                self.rows(kind, index)?;
            }
            let blocks = table.hash_fences.len();
            for from in (0..blocks).step_by(TOGETHER) {
                self.hash_blocks(table, from..blocks.min(from + TOGETHER))?;
            }
            self.members(kind, table.groups.iter(), |_, _| {})?;
        }
        self.foreign_sessions().map(|_| ())
    }
}

impl Drop for IndexFile {
    fn drop(&mut self) {
        self.environment.handles.forget(self.key);
        if self.doomed.load(Ordering::Acquire) {
            self.removed(self.environment.files.remove(&self.path()));
        }
    }
}

fn entry_of(entry: &[u8; HASH]) -> (u64, u32) {
    let mut wire = Wire::new(entry);
    (wire.u64().unwrap_or_default(), wire.u32().unwrap_or_default())
}

fn sessions_of(bytes: &[u8]) -> Vec<(u64, i64)> {
    let entry = |entry: &[u8; SESSION as usize]| {
        let mut wire = Wire::new(entry);
        (wire.u64().unwrap_or_default(), wire.u64().unwrap_or_default().cast_signed())
    };
    bytes.as_chunks().0.iter().map(entry).collect()
}

fn read_directory(file: &dyn File, name: &str) -> Result<Directory, Error> {
    let damaged = |offset: u64| Error::Damaged { file: name.to_owned(), offset };
    let io = |error| Error::io(name, error);
    let length = file.length().map_err(io)?;
    let mut head = [0; HEADER];
    if length < (HEADER + TRAILER) as u64 {
        return Err(damaged(0));
    }
    files::read_exact(file, &mut head, 0).map_err(io)?;
    if head != header() {
        return Err(not_ours(&head, name));
    }
    let at = length - TRAILER as u64;
    let mut trailer = [0; TRAILER];
    files::read_exact(file, &mut trailer, at).map_err(io)?;
    let trailer = Trailer::decode(&trailer).ok_or_else(|| damaged(at))?;
    if trailer.file != length || trailer.offset.checked_add(u64::from(trailer.length)) != Some(at) {
        return Err(damaged(at));
    }
    let mut bytes = vec![0; trailer.length as usize];
    files::read_exact(file, &mut bytes, trailer.offset).map_err(io)?;
    if crc32fast::hash(&bytes) != trailer.crc {
        return Err(damaged(trailer.offset));
    }
    decode(&bytes, length).map_err(|error| match error {
        DecodeError::Unknown(_) => Error::Newer { file: name.to_owned() },
        DecodeError::Malformed => damaged(trailer.offset),
    })
}

/// A header other than ours: of a newer version, or none.
fn not_ours(head: &[u8; HEADER], name: &str) -> Error {
    let ours = header();
    let version =
        head.get(8..12).map(|bytes| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
    let whole = head.first_chunk::<12>().map(|head| crc32fast::hash(head).to_le_bytes());
    let same = head.first_chunk::<8>() == ours.first_chunk::<8>() && whole.as_ref() == head.last_chunk::<4>();
    match version {
        Some(version) if same && version > VERSION => Error::Newer { file: name.to_owned() },
        _ => Error::Damaged { file: name.to_owned(), offset: 0 },
    }
}

/// A block of rows that was read.
#[derive(Debug, Default)]
pub(super) struct RowBlock {
    bytes: Vec<u8>,
    rows: Vec<Row>,
    first_row: u32,
    offset: u64,
}

/// One row of a block.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) provisional: bool,
    range: Range<usize>,
}

impl RowBlock {
    fn split(bytes: &[u8], first_id: u64, count: u32) -> Option<Vec<Row>> {
        let mut wire = Wire::new(bytes);
        let mut id = first_id;
        let mut rows = Vec::with_capacity((count as usize).min(bytes.len()));
        for index in 0..count {
            let step = wire.varint()?;
            id = id.checked_add(step)?;
            if (index == 0) != (step == 0) {
                return None;
            }
            let length = wire.varint()?;
            let start = bytes.len() - wire.left();
            wire.take(usize::try_from(length >> 1).ok()?)?;
            let range = start..bytes.len() - wire.left();
            rows.push(Row { id, provisional: length & 1 == 1, range });
        }
        wire.is_empty().then_some(rows)
    }

    /// Its rows in order of their ids.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Row> {
        self.rows.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn first_row(&self) -> u32 {
        self.first_row
    }

    /// Where it is in its file.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// A row by its place within the block.
    pub(super) fn at(&self, index: usize) -> Option<&Row> {
        self.rows.get(index)
    }

    /// The place of an id.
    pub(super) fn find(&self, id: u64) -> Option<u32> {
        self.rows.binary_search_by_key(&id, |row| row.id).ok().map(|index| index as u32)
    }

    pub(super) fn bytes(&self, row: &Row) -> &[u8] {
        self.bytes.get(row.range.clone()).unwrap_or_default()
    }
}
