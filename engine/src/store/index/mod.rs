//! The index: immutable files beside the journal that answer what memory does not hold any more. Everything
//! in them is derived; a file that is missing or damaged is made again from the journal.
//!
//! # How it is used
//! - [`Index::open`] opens what is in the folder (part files of an earlier process are removed) and says what
//!   could not be opened. [`Index::files`] is the set as it is now, oldest first.
//! - [`Index::builder`] collects rows in any order: [`Builder::header`] (settled or provisional),
//!   [`Builder::event`], [`Builder::body`]; [`Builder::write`] writes them, merged with part files whose rows
//!   are copied as they are, syncs and renames, and gives an open [`IndexFile`].
//! - [`Index::replace`] puts files into the set and takes others out at once; those are removed from the disk
//!   when the last reader lets go.
//! - [`Index::header`], [`Index::session`], [`Index::body`] look one thing up; [`Index::messages`] and
//!   [`Index::events`] give a [`Cursor`] for newest first in bounded steps; [`IndexFile::glance_headers`]
//!   and the like walk one file in order.
//! - [`Overlay`] is how memory has its say: whether a provisional row still counts, and whether a row belongs
//!   to a session that is dead in that segment.
//!
//! All of it blocks on the disk: call it off the async threads and without locks. Nothing here locks while it
//! reads or writes.
//!
//! # Which rows
//! File N has every header that became final in segment N (*settled*), every header born in N and unfinished
//! at its end as it was born (*provisional*), and every event and body born in N. So a header has exactly one
//! settled row in all files, and nothing is ever changed. One that was suspended, or carried, in N and was not finished
//! at its end is there provisionally too, as it stood: memory says which of several such rows counts.
//!
//! # Format, version 1
//! ```text
//! NNNNNNNNNN.idx            a sealed segment
//! .NNNNNNNNNN-PPPP.part     part P of the open one; not synced, removed at the next start
//!
//! file        header ‖ blocks and lists ‖ directory ‖ trailer
//! header      "SEPTETI1" ‖ version u32 ‖ CRC-32
//! row block   rows in order of their ids: id - id of the row before (varint; 0 for the first, whose id is in
//!             the fence) ‖ length × 2 + provisional (varint) ‖ bytes
//! hash block  512 × (hash u64 ‖ row u32), sorted
//! group       numbers of its rows, each as the distance to the one before (varint)
//! foreign     (session u64 ‖ last activity i64), sorted: sessions older than the first id born here
//! directory   fields as in the journal (see `codec`), with the CRC-32 of every block and list
//! trailer     directory offset u64 ‖ length u32 ‖ CRC-32 ‖ file length u64 ‖ "SPIE" ‖ CRC-32
//! ```
//! Rows of headers and events are the fields that the journal has for them, sealed as there; a body's is in
//! `body`. Rows are numbered within their table. The directory has, for each table, one *fence* a block
//! (first id, first row, offset, CRC, first and last creation), one a block of hashes, and the *groups*:
//!
//! | table | in one group are rows of one | found by hash |
//! |---|---|---|
//! | headers | provisional or settled, kind, error or not, status, source, target, type | session, control id, each search key (name and folded value) |
//! | events | level, kind, item | session |
//!
//! Every row is in one group, so any combination of these filters is a union of groups: exact, without
//! reading rows. Hashes are SipHash-2-4 under the store's secret, because keys are patient data. Types come
//! from outside, so beyond 4096 names or groups they share one group that matches any.
//!
//! Every byte is under a CRC that is checked whenever it is read: a damaged file gives [`Error::Damaged`] with
//! its name and an offset, never a wrong row. From then on it is *broken*: [`Index::take_broken`] takes it out
//! and removes it (the journal has everything in it, and what is purged must not live on in a copy).
//!
//! # Memory
//! An open file keeps its directory: at 60,000 headers with two keys each, their bodies and some events about
//! 30 KB. At most 64 files are held open; the others are opened again when they are read.

mod bench;
mod body;
mod build;
mod cursor;
mod directory;
mod environment;
mod file;
mod format;
mod hash;
mod intern;
mod lookup;
mod output;
mod query;
mod runs;
mod scan;
mod source;
#[cfg(test)]
mod tests;
mod wire;
mod write;

use std::io;
use std::ops::{Deref, RangeInclusive};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use self::bench::{IndexBench, Part};
pub(in crate::store) use self::body::BodyRow;
pub(in crate::store) use self::build::Builder;
pub(in crate::store) use self::cursor::Cursor;
use self::environment::Environment;
pub(in crate::store) use self::file::IndexFile;
pub(in crate::store) use self::format::{Coverage, Description};
pub(in crate::store) use self::hash::Secret;
pub(in crate::store) use self::query::Searched;
pub(in crate::store) use self::scan::Glimpse;
use super::record::Sealer;
use super::{EventFilter, MessageFilter};
use crate::event::Event;
use crate::files::Files;
use crate::header::Header;
use crate::vault::VaultError;

/// Why something could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum Error {
    /// Bytes are not what was written: take the file out and make it again.
    #[error("index file {file} is damaged at offset {offset}")]
    Damaged {
        /// Its name.
        file: String,
        /// The block.
        offset: u64,
    },
    /// Made with another secret or for another journal: make it again.
    #[error("index file {file} belongs to another store")]
    Foreign {
        /// Its name.
        file: String,
    },
    /// Made by a newer version: make it again.
    #[error("index file {file} was written by a newer version")]
    Newer {
        /// Its name.
        file: String,
    },
    /// The disk refused.
    #[error("index file {file}: {error}")]
    Io {
        /// Its name.
        file: String,
        /// What it said.
        error: io::Error,
    },
    /// The folder itself could not be used.
    #[error("the index folder {folder} cannot be used ({error}){aside}")]
    Folder {
        /// The folder.
        folder: String,
        /// What the disk said.
        error: io::Error,
        /// What became of it.
        aside: String,
    },
    /// A row could not be sealed.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl Error {
    fn io(file: &str, error: io::Error) -> Self {
        Error::Io { file: file.to_owned(), error }
    }

    #[cfg(test)]
    fn file(&self) -> Option<&str> {
        match self {
            Error::Damaged { file, .. } | Error::Foreign { file } | Error::Newer { file } => Some(file),
            _ => None,
        }
    }

    /// Whether a file was found broken: it is, or will be, taken out, and then asking again makes sense.
    pub(in crate::store) fn is_of_a_file(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::Io { .. }) && !self.passes()
    }

    /// Whether it is no fault of the file, and passes by itself: the process has too many files open, or the
    /// machine no memory.
    pub(in crate::store) fn passes(&self) -> bool {
        match self {
            Error::Io { error, .. } | Error::Folder { error, .. } => passes(error),
            _ => false,
        }
    }
}

/// See [`Error::passes`]: EMFILE, ENFILE, ENOMEM.
fn passes(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let known = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(|errno| Some(errno.raw_os_error()));
    known.contains(&error.raw_os_error())
}

/// The tables of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Kind {
    /// Headers.
    Headers,
    /// Events.
    Events,
    /// Bodies.
    Bodies,
}

/// A row that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Candidate {
    /// The header or event.
    pub(in crate::store) id: u64,
    /// Its session; 0 = none.
    pub(in crate::store) session: u64,
    /// The segment whose file has it.
    pub(in crate::store) segment: u64,
    /// It was not final when the file was written.
    pub(in crate::store) provisional: bool,
    /// It was suspended then.
    pub(in crate::store) suspended: bool,
    /// An event that says who looked or acted: it outlives its session.
    pub(in crate::store) audited: bool,
}

/// Whether there may be headers that are not finished, nor in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::store) struct Unfinished {
    /// They are suspended.
    pub(in crate::store) suspended: bool,
    /// They are not.
    pub(in crate::store) waiting: bool,
}

impl Unfinished {
    fn any(self) -> bool {
        self.suspended || self.waiting
    }
}

/// What memory knows about rows in files. Called once a block, never with a lock of this module held.
pub(in crate::store) trait Overlay {
    /// Whether any of these ids may be a header that is unfinished and not in memory. `false` spares reading
    /// provisional rows; `true` is never wrong.
    fn any_unfinished(&mut self, ids: RangeInclusive<u64>) -> Unfinished;

    /// Which rows count, one answer each: not those of sessions that are dead in that segment, and of
    /// provisional ones only those still unfinished that memory does not have in full. One that memory has
    /// got meanwhile should be taken from there by the implementation.
    fn admit(&mut self, rows: &[Candidate]) -> Vec<bool>;
}

/// An overlay under which every row counts: files only.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Everything;

impl Overlay for Everything {
    fn any_unfinished(&mut self, _: RangeInclusive<u64>) -> Unfinished {
        Unfinished { suspended: true, waiting: true }
    }

    fn admit(&mut self, rows: &[Candidate]) -> Vec<bool> {
        vec![true; rows.len()]
    }
}

/// Files, oldest first.
#[derive(Debug, Default)]
pub(in crate::store) struct Set(Vec<Arc<IndexFile>>);

impl Deref for Set {
    type Target = [Arc<IndexFile>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// The files of a store. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::store) struct Index(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    environment: Arc<Environment>,
    set: Mutex<Arc<Set>>,
    /// Segments up to this one have been purged; changed under the set's lock.
    retired: AtomicU64,
    parts: AtomicU32,
}

/// Reads every file of a folder once and changes nothing: the names of those that are not right, and why. One
/// that was made with another key is only of no use.
pub(in crate::store) fn verify(
    files: Arc<dyn Files>,
    folder: PathBuf,
    secret: Secret,
    sealer: Sealer,
) -> Vec<(String, Error)> {
    let names = files.list(&folder).unwrap_or_default();
    let handles = environment::Handles::default();
    let environment = Arc::new(Environment { files, folder, secret, sealer, handles });
    let wrong = |name: String| {
        let whole = IndexFile::open(&environment, &name).and_then(|file| file.verify());
        whole.err().map(|error| (name, error))
    };
    names.into_iter().filter(|name| number_of(name).is_some()).filter_map(wrong).collect()
}

impl Index {
    /// Opens the files in a folder, which is made if need be; those of another `epoch`, and what cannot be
    /// opened, are left out and named. A folder that cannot be used is set aside; where even that fails, the
    /// index is empty and nothing can be written to it.
    pub(in crate::store) fn open(
        files: Arc<dyn Files>,
        folder: PathBuf,
        secret: Secret,
        sealer: Sealer,
        epoch: u64,
    ) -> (Index, Vec<Error>) {
        let handles = environment::Handles::default();
        let environment = Arc::new(Environment { files, folder, secret, sealer, handles });
        let (mut set, mut refused) = (Vec::new(), Vec::new());
        let names = environment.names().unwrap_or_else(|error| {
            refused.push(error);
            Vec::new()
        });
        for name in names {
            if name.starts_with('.') && name.ends_with(".part") {
                let removed = environment.files.remove(&environment.folder.join(&name));
                refused.extend(removed.err().map(|error| Error::io(&name, error)));
            } else if number_of(&name).is_some() {
                match IndexFile::open(&environment, &name) {
                    Ok(file) if file.meta().coverage.epoch == epoch && file.is_named(&name) => set.push(file),
                    Ok(_) => refused.push(Error::Foreign { file: name }),
                    Err(error) => refused.push(error),
                }
            }
        }
        set.sort_by_key(|file| file.order());
        let set = Mutex::new(Arc::new(Set(set)));
        (
            Index(Arc::new(Inner { environment, set, retired: AtomicU64::new(0), parts: AtomicU32::new(0) })),
            refused,
        )
    }

    /// A number for a part file that none had in this process: readers may still hold an earlier one.
    pub(in crate::store) fn next_part(&self) -> u32 {
        self.0.parts.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The names on the disk. The folder is made again if it is gone, and set aside where it cannot be read.
    pub(in crate::store) fn names(&self) -> Result<Vec<String>, Error> {
        self.environment().names()
    }

    /// Whether files can be written: tries it.
    pub(in crate::store) fn try_write(&self) -> Result<(), Error> {
        let environment = self.environment();
        environment.names()?;
        let probe = environment.folder.join(".probe.part");
        let made = environment.files.create(&probe);
        made.map(drop).and_then(|()| environment.files.remove(&probe)).map_err(|error| Error::io("", error))
    }

    /// Below which id rows are in a file that was found broken and is still in the set.
    pub(in crate::store) fn broken_below(&self) -> Option<u64> {
        self.files().iter().filter(|file| file.broken().is_some()).map(|file| file.below()).max()
    }

    /// Takes files that were found broken out of the set and removes them. Whoever finds a file here is the
    /// only one who does.
    pub(in crate::store) fn take_broken(&self) -> Vec<Arc<IndexFile>> {
        let (broken, before) = {
            let mut set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
            let parted = set.iter().cloned().partition(|file| file.broken().is_some());
            let (broken, sound): (Vec<_>, Vec<_>) = parted;
            if broken.is_empty() {
                return broken;
            }
            (broken, std::mem::replace(&mut *set, Arc::new(Set(sound))))
        };
        drop(before);
        // At once: a file with its name may be made again while somebody still holds this one.
        broken.iter().for_each(|file| file.unlink());
        broken
    }

    fn environment(&self) -> &Arc<Environment> {
        &self.0.environment
    }

    /// The set as it is now.
    pub(in crate::store) fn files(&self) -> Arc<Set> {
        self.0.set.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Collects rows for a new file.
    pub(in crate::store) fn builder(&self) -> Builder {
        Builder::new(self.environment().clone())
    }

    /// Takes `old` out of the set and puts `new` in, at once. Files taken out are removed from the disk when
    /// nobody reads them any more, unless a new one has their name.
    pub(in crate::store) fn replace(&self, old: &[Arc<IndexFile>], new: Vec<Arc<IndexFile>>) {
        for file in old {
            if !new.iter().any(|new| new.name() == file.name()) {
                file.doom();
            }
        }
        let replaced = {
            let mut set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
            let retired = self.0.retired.load(Ordering::Acquire);
            let (late, new): (Vec<_>, Vec<_>) =
                new.into_iter().partition(|file| file.meta().coverage.segment <= retired);
            late.iter().for_each(|file| file.doom());
            let stays = |file: &&Arc<IndexFile>| {
                let replaced = old.iter().chain(&new).any(|other| other.name() == file.name());
                !replaced
            };
            let mut files: Vec<_> = set.iter().filter(stays).cloned().collect();
            files.extend(new);
            files.sort_by_key(|file| file.order());
            (late, std::mem::replace(&mut *set, Arc::new(Set(files))))
        };
        // The last reader may be us: files are removed outside of the lock.
        drop(replaced);
    }

    /// The segments up to this one have been dropped: what a rebuild still makes of them does not come in, and
    /// what it made meanwhile goes.
    pub(in crate::store) fn retire(&self, segment: u64) {
        let late: Vec<_> = {
            let set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.retired.fetch_max(segment, Ordering::AcqRel);
            set.iter().filter(|file| file.meta().coverage.segment <= segment).cloned().collect()
        };
        if !late.is_empty() {
            self.replace(&late, Vec::new());
        }
    }

    /// Messages that match, newest first, below `before`.
    pub(in crate::store) fn messages(&self, filter: &MessageFilter, before: Option<u64>) -> Cursor<Header> {
        Cursor::new(self, filter, before)
    }

    /// Events that match, newest first, below `before`.
    pub(in crate::store) fn events(&self, filter: &EventFilter, before: Option<u64>) -> Cursor<Event> {
        Cursor::new(self, filter, before)
    }

    /// About how many bytes of memory the files take.
    pub(in crate::store) fn memory(&self) -> usize {
        self.files().iter().map(|file| file.memory()).sum()
    }
}

/// The name of the file of a segment, or of a part of it.
pub(in crate::store) fn file_name(segment: u64, part: u32) -> String {
    match part {
        0 => format!("{segment:010}.idx"),
        part => format!(".{segment:010}-{part:04}.part"),
    }
}

/// The segment that a file of this name belongs to; not for part files.
pub(in crate::store) fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(".idx")?.parse().ok()
}
