//! Reads bodies back from the journal, checking each against its CRC. A few segments are kept open.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::bodies::Place;
use super::segment;
use crate::files::{self, File, Files};

/// How many segments are kept open.
const OPEN: usize = 32;

/// Open segments, the last used at the back.
#[derive(Debug)]
pub(super) struct Readers {
    files: Arc<dyn Files>,
    folder: PathBuf,
    open: Mutex<VecDeque<(u64, Arc<dyn File>)>>,
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
    pub(super) fn new(files: Arc<dyn Files>, folder: PathBuf) -> Self {
        Readers { files, folder, open: Mutex::default() }
    }

    /// `FILE:OFFSET`, for people.
    pub(super) fn name(&self, place: &Place) -> String {
        format!("{}:{}", segment::path(&self.folder, place.segment).display(), place.offset)
    }

    /// The bytes at a place.
    pub(super) fn read(&self, place: &Place) -> Result<Vec<u8>, ReadFailure> {
        let file = self.file(place.segment).map_err(ReadFailure::Io)?;
        let mut bytes = vec![0; usize::try_from(place.length).unwrap_or(usize::MAX)];
        match files::read_exact(&*file, &mut bytes, place.offset) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(ReadFailure::Damaged);
            }
            Err(error) => return Err(ReadFailure::Io(error)),
        }
        if crc32fast::hash(&bytes) != place.crc {
            return Err(ReadFailure::Damaged);
        }
        Ok(bytes)
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
        open.push_back((number, file.clone()));
        if open.len() > OPEN {
            open.pop_front();
        }
        Ok(file)
    }
}
