//! What all files of an index share: where they are, how they are sealed, and the handles that are open.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::hash::Secret;
use super::{Error, passes};
use crate::files::{File, Files};
use crate::store::record::Sealer;

/// How many files are open at once; the others are opened again when they are read.
const OPEN: usize = 64;

/// Folder, secret, sealer, handles.
#[derive(Debug)]
pub(super) struct Environment {
    pub(super) files: Arc<dyn Files>,
    pub(super) folder: PathBuf,
    pub(super) secret: Secret,
    pub(super) sealer: Sealer,
    pub(super) handles: Handles,
}

impl Environment {
    /// The names in the folder, which is made if it is not there. What cannot be read as a folder is set
    /// aside, where somebody can look at it, and a new one made in its place.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let list = || self.files.create_dir(&self.folder).and_then(|()| self.files.list(&self.folder));
        list().or_else(|error| {
            let folder = self.folder.display().to_string();
            let fail = |error, aside| Err(Error::Folder { folder: folder.clone(), error, aside });
            if passes(&error) {
                return fail(error, String::new());
            }
            match self.set_aside() {
                Err(refused) => fail(error, format!(", nor set aside ({refused})")),
                Ok(aside) => match list() {
                    Ok(_) => fail(error, format!("; it was set aside as {aside} and can be removed")),
                    Err(again) => fail(again, format!("; it was set aside as {aside}")),
                },
            }
        })
    }

    /// Gives the folder a name that nothing has.
    fn set_aside(&self) -> io::Result<String> {
        let parent = self.folder.parent().ok_or(ErrorKind::InvalidInput)?;
        let name = self.folder.file_name().ok_or(ErrorKind::InvalidInput)?.to_string_lossy();
        let taken = self.files.list(parent)?;
        let free = |number: &u32| !taken.contains(&format!("{name}.bad-{number}"));
        let number = (1..u32::MAX).find(free).ok_or(ErrorKind::AlreadyExists)?;
        let aside = parent.join(format!("{name}.bad-{number}"));
        self.files.rename(&self.folder, &aside)?;
        Ok(aside.display().to_string())
    }
}

/// Open files, the most recently used last.
#[derive(Debug, Default)]
pub(super) struct Handles {
    keys: AtomicU64,
    open: Mutex<VecDeque<(u64, Arc<dyn File>)>>,
}

impl Handles {
    /// A number for a file.
    pub(super) fn key(&self) -> u64 {
        self.keys.fetch_add(1, Ordering::Relaxed)
    }

    fn open(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, Arc<dyn File>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: u64) -> Option<Arc<dyn File>> {
        let mut open = self.open();
        let index = open.iter().rposition(|(known, _)| *known == key)?;
        let found = open.remove(index)?;
        let file = found.1.clone();
        open.push_back(found);
        Some(file)
    }

    /// Keeps a handle that was opened.
    pub(super) fn keep(&self, key: u64, file: Arc<dyn File>) {
        let mut open = self.open();
        open.push_back((key, file));
        // Closed outside of the lock.
        let closed = if open.len() > OPEN { open.pop_front() } else { None };
        drop(open);
        drop(closed);
    }

    pub(super) fn forget(&self, key: u64) {
        let closed: VecDeque<_> = {
            let mut open = self.open();
            let (closed, kept) = open.drain(..).partition(|(known, _)| *known == key);
            *open = kept;
            closed
        };
        drop(closed);
    }
}
