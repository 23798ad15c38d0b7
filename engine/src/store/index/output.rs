//! Bytes on their way into a new file, in order, and the blocks of rows among them.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::format::Fence;
use super::wire::put_varint;
use crate::files::{self, File};

/// How much is written at once.
const CHUNK: usize = 256 * 1024;
/// A block of rows ends with this many bytes…
const BLOCK: usize = 24 * 1024;
/// … or rows.
const ROWS: u32 = 256;

/// A file that is written from front to back.
#[derive(Debug)]
pub(super) struct Output {
    file: Arc<dyn File>,
    buffer: Vec<u8>,
    written: u64,
}

impl Output {
    pub(super) fn new(file: Arc<dyn File>) -> Self {
        Output { file, buffer: Vec::with_capacity(CHUNK + BLOCK), written: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        files::write_all(&*self.file, &mut [IoSlice::new(&self.buffer)], self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Everything is written; on stable storage, too, if asked for.
    pub(super) fn finish(mut self, sync: bool) -> io::Result<Arc<dyn File>> {
        self.flush()?;
        if sync {
            self.file.sync()?;
        }
        Ok(self.file)
    }
}

/// Rows in order of their ids, becoming blocks.
#[derive(Debug)]
pub(super) struct Rows {
    block: Vec<u8>,
    /// The block that is being filled; its offset and CRC come at its end.
    open: Option<Fence>,
    previous: u64,
    pub(super) fences: Vec<Fence>,
    pub(super) rows: u32,
}

impl Rows {
    pub(super) fn new() -> Self {
        Rows { block: Vec::with_capacity(BLOCK * 2), open: None, previous: 0, fences: Vec::new(), rows: 0 }
    }

    /// Adds a row and gives it its number.
    pub(super) fn add(
        &mut self,
        id: u64,
        provisional: bool,
        row: &[u8],
        created: i64,
        out: &mut Output,
    ) -> io::Result<u32> {
        let number = self.rows;
        let open = self.open.get_or_insert_with(|| {
            self.previous = id;
            Fence { first_id: id, offset: 0, created: (created, created), first_row: number, crc: 0 }
        });
        open.created = (open.created.0.min(created), open.created.1.max(created));
        put_varint(&mut self.block, id - self.previous);
        put_varint(&mut self.block, (row.len() as u64) << 1 | u64::from(provisional));
        self.block.extend_from_slice(row);
        self.previous = id;
        self.rows += 1;
        if self.block.len() >= BLOCK || self.rows - open.first_row >= ROWS {
            self.end_block(out)?;
        }
        Ok(number)
    }

    /// Ends the last block.
    pub(super) fn end_block(&mut self, out: &mut Output) -> io::Result<()> {
        let Some(mut fence) = self.open.take() else { return Ok(()) };
        fence.offset = out.position();
        fence.crc = crc32fast::hash(&self.block);
        self.fences.push(fence);
        out.put(&self.block)?;
        self.block.clear();
        Ok(())
    }
}
