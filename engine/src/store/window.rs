//! Reads a segment from front to back with a window of it in memory: opening a store takes no more memory
//! for large segments than for small ones.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use super::segment::{self, FRAME, Frame, NoFrame};
use crate::files::{self, File, Files};

/// What is read at once, but for a frame that is larger.
const WINDOW: usize = if cfg!(test) { 4 << 10 } else { 4 << 20 };

/// One segment's file.
#[derive(Debug)]
pub(super) struct Window {
    file: Arc<dyn File>,
    length: usize,
    /// Where the bytes in memory begin.
    start: usize,
    bytes: Vec<u8>,
}

impl Window {
    pub(super) fn open(files: &dyn Files, path: &Path) -> io::Result<Window> {
        let file = files.open(path)?;
        let length = usize::try_from(file.length()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
        Ok(Window { file, length, start: 0, bytes: Vec::new() })
    }

    /// The length of the file.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The bytes between two offsets, as far as the file has them.
    pub(super) fn between(&mut self, from: usize, to: usize) -> io::Result<&[u8]> {
        let to = to.min(self.length);
        let from = from.min(to);
        if from < self.start || to > self.start + self.bytes.len() {
            let end = to.max(from.saturating_add(WINDOW)).min(self.length);
            self.bytes.resize(end - from, 0);
            self.start = from;
            files::read_exact(&*self.file, &mut self.bytes, from as u64)?;
        }
        Ok(self.bytes.get(from - self.start..to - self.start).unwrap_or_default())
    }

    /// Copies what lies before an offset into another file, or into itself.
    pub(super) fn copy(&mut self, end: usize, to: &dyn File) -> io::Result<()> {
        let mut from = 0;
        while from < end {
            let bytes = self.between(from, end.min(from + WINDOW))?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            files::write_all(to, &mut [IoSlice::new(bytes)], from as u64)?;
            from += bytes.len();
        }
        Ok(())
    }

    /// Everything from an offset on.
    pub(super) fn rest(&mut self, from: usize) -> io::Result<&[u8]> {
        self.between(from, self.length)
    }

    /// The frame at an offset; see [`segment::frame_at`].
    pub(super) fn frame(
        &mut self,
        offset: usize,
        number: u64,
        salt: u32,
    ) -> io::Result<Result<Frame<'_>, NoFrame>> {
        let header = self.between(offset, offset.saturating_add(FRAME))?;
        let Some(payload) = segment::payload_length(header) else {
            let zeros = self.is_zero_from(offset)?;
            return Ok(Err(if zeros { NoFrame::End } else { NoFrame::Bad }));
        };
        // What is no frame may promise more than there is.
        let length = segment::frame_length(payload.min(self.length));
        let bytes = self.between(offset, offset.saturating_add(length))?;
        Ok(segment::frame_at(bytes, 0, number, salt).map(|frame| frame.moved(offset)))
    }

    fn is_zero_from(&mut self, mut offset: usize) -> io::Result<bool> {
        while offset < self.length {
            let bytes = self.between(offset, offset.saturating_add(WINDOW))?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            offset += bytes.len();
        }
        Ok(true)
    }

    /// The first whole frame behind an offset, which is a multiple of 8; see [`segment::next_frame`]. Only where
    /// something is damaged or torn: it reads all that is left.
    pub(super) fn next_frame(
        &mut self,
        from: usize,
        number: u64,
        salt: u32,
    ) -> io::Result<Option<Frame<'_>>> {
        let found = segment::next_frame(self.rest(from)?, 0, number, salt);
        Ok(found.map(|frame| frame.moved(from)))
    }
}
