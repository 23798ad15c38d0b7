//! Reads bodies and frames back from the journal, checking each against its CRC. A few segments are kept
//! open.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::bodies::Place;
use super::segment;
use super::spine::Spot;
use crate::files::{self, File, Files};

/// How many segments are kept open.
const OPEN: usize = 32;
/// Bodies up to this size are copied and checked where they are asked for.
const AT_ONCE: usize = 64 * 1024;

/// Open segments, the last used at the back.
#[derive(Debug)]
pub(super) struct Readers {
    files: Arc<dyn Files>,
    folder: PathBuf,
    salt: u32,
    open: Mutex<VecDeque<(u64, Arc<dyn File>)>>,
    /// Segments up to this one have been dropped.
    dropped: AtomicU64,
}

/// Why bytes could not be read.
#[derive(Debug)]
pub(super) enum ReadFailure {
    /// They are not what was written.
    Damaged,
    /// The disk did not answer.
    Io(std::io::Error),
}

impl Readers {
    /// Over a folder of segments that begin their CRCs with this salt.
    pub(super) fn new(files: Arc<dyn Files>, folder: PathBuf, salt: u32) -> Self {
        Readers { files, folder, salt, open: Mutex::default(), dropped: AtomicU64::new(0) }
    }

    /// The file system.
    pub(super) fn files(&self) -> &dyn Files {
        &*self.files
    }

    /// The folder of segments.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The length of a segment's file.
    pub(super) fn length(&self, segment: u64) -> std::io::Result<u64> {
        self.file(segment)?.length()
    }

    /// A segment has been dropped: it is read no more.
    pub(super) fn close(&self, segment: u64) {
        self.dropped.fetch_max(segment, Ordering::AcqRel);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(known, _)| *known != segment);
    }

    /// Whether a segment has been dropped since the store was opened.
    pub(super) fn is_dropped(&self, segment: u64) -> bool {
        segment <= self.dropped.load(Ordering::Acquire)
    }

    /// `FILE:OFFSET` of a frame, for people.
    pub(super) fn frame_name(&self, spot: Spot) -> String {
        format!("{}:{}", segment::path(&self.folder, u64::from(spot.segment)).display(), spot.offset)
    }

    /// The bytes of a whole frame.
    pub(super) fn frame(&self, spot: Spot) -> Result<Vec<u8>, ReadFailure> {
        let number = u64::from(spot.segment);
        let file = self.file(number).map_err(ReadFailure::Io)?;
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => ReadFailure::Damaged,
            _ => ReadFailure::Io(error),
        };
        let mut bytes = vec![0; segment::FRAME];
        files::read_exact(&*file, &mut bytes, u64::from(spot.offset)).map_err(failed)?;
        let length = segment::payload_length(&bytes).ok_or(ReadFailure::Damaged)?;
        let there = file.length().map_err(ReadFailure::Io)?;
        if u64::try_from(length).unwrap_or(u64::MAX) > there {
            return Err(ReadFailure::Damaged);
        }
        bytes.resize(segment::FRAME + length, 0);
        let payload = bytes.get_mut(segment::FRAME..).unwrap_or_default();
        let from = u64::from(spot.offset) + u64::try_from(segment::FRAME).unwrap_or_default();
        files::read_exact(&*file, payload, from).map_err(failed)?;
        match segment::frame_at(&bytes, 0, number, self.salt) {
            Ok(_) => Ok(bytes),
            Err(_) => Err(ReadFailure::Damaged),
        }
    }

    /// `FILE:OFFSET`, for people.
    pub(super) fn name(&self, place: &Place) -> String {
        format!("{}:{}", segment::path(&self.folder, place.segment).display(), place.offset)
    }

    /// The bytes at a place, if the system has them in memory: a hop to a thread that may wait would cost several
    /// times the read. Whatever is odd about them is left to [`Readers::read`].
    pub(super) fn read_cached(&self, place: &Place) -> Option<Vec<u8>> {
        let length = usize::try_from(place.length).ok().filter(|length| *length <= AT_ONCE)?;
        let file = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.iter().find(|(number, _)| *number == place.segment)?.1.clone()
        };
        let mut bytes = vec![0; length];
        let whole = file.read_cached(&mut bytes, place.offset) && crc32fast::hash(&bytes) == place.crc;
        whole.then_some(bytes)
    }

    /// The bytes at a place.
    pub(super) fn read(&self, place: &Place) -> Result<Vec<u8>, ReadFailure> {
        let bytes = self.bytes(place.segment, place.offset, u64::from(place.length))?;
        if crc32fast::hash(&bytes) == place.crc { Ok(bytes) } else { Err(ReadFailure::Damaged) }
    }

    /// Bytes of a segment as they are; the caller knows their CRCs.
    pub(super) fn bytes(&self, segment: u64, offset: u64, length: u64) -> Result<Vec<u8>, ReadFailure> {
        let file = self.file(segment).map_err(ReadFailure::Io)?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        match files::read_exact(&*file, &mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(ReadFailure::Damaged),
            Err(error) => Err(ReadFailure::Io(error)),
        }
    }

    fn file(&self, number: u64) -> std::io::Result<Arc<dyn File>> {
        let open = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut open = open();
            if let Some(index) = open.iter().position(|(known, _)| *known == number)
                && let Some(found) = open.remove(index)
            {
                open.push_back(found.clone());
                return Ok(found.1);
            }
        }
        // Opened outside of the lock; two at once do no harm.
        let file = self.files.open(&segment::path(&self.folder, number))?;
        let mut open = open();
        // One that is held open keeps its room on the disk.
        if self.is_dropped(number) {
            return Ok(file);
        }
        open.push_back((number, file.clone()));
        if open.len() > OPEN {
            open.pop_front();
        }
        Ok(file)
    }
}
