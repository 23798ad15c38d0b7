//! Opening an embedded store: lock, key, recovery, and the first synced frame of a new segment. When
//! [`open`] returns, everything that was ever acknowledged is in the state, on stable storage.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::checkpoint::{self, Checkpoint};
use super::disk::Disk;
use super::ids;
use super::index::{self, Index, Secret};
use super::journal::{Identity, Journal, Late, MOST_RESERVE, Next, PREPARED, Writer, is_full};
use super::keeper::{Keeper, KeeperThread, Tools};
use super::pager::Pager;
use super::readers::Readers;
use super::rebuild::Remaker;
use super::record::Sealer;
use super::recovery::{self, Damage, Recovered};
use super::shared::Shared;
use super::state::State;
use super::{Embedded, Inner, Store, key};
use crate::clock::SharedClock;
use crate::config::settings;
use crate::event::{Level, NewEvent};
use crate::files::{Files, Lock, LockError};
use crate::vault::VaultError;

/// How to open an embedded store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store's folder; made if need be.
    pub path: PathBuf,
    /// Size of one segment of the journal.
    pub segment_size: u64,
    /// Byte budget for bodies in memory: a sixteenth is the cache of bodies that are on disk, and a quarter
    /// each may be on its way to the disk as new messages and as completions.
    pub memory: u64,
    /// Free space that new messages leave; `None` = the smaller of 2 GiB and 5 %.
    pub min_free: Option<u64>,
    /// The key from outside; `None` = the file `store.key`.
    pub key: Option<settings::Secret>,
    /// Keys that were replaced: what they sealed stays readable.
    pub old_keys: Vec<settings::Secret>,
    /// Seal bodies, search keys and details too; needs a key from outside.
    pub encrypt_bodies: bool,
    /// How many messages of one queue are in memory and scheduled; the others wait in the journal.
    pub window: usize,
    /// How often a full disk is looked at and written to again.
    pub pace: Duration,
}

impl Options {
    /// The defaults of the production file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Options {
            path: path.into(),
            segment_size: 64 << 20,
            memory: 128 << 20,
            min_free: None,
            key: None,
            old_keys: Vec::new(),
            encrypt_bodies: false,
            window: 16 * 1024,
            pace: Duration::from_secs(1),
        }
    }
}

impl From<&settings::Store> for Options {
    fn from(settings: &settings::Store) -> Self {
        Options {
            segment_size: settings.segment_size,
            memory: settings.memory,
            min_free: settings.min_free,
            key: settings.key.clone(),
            old_keys: settings.old_keys.clone(),
            encrypt_bodies: settings.encrypt_bodies,
            ..Options::new(&settings.path)
        }
    }
}

/// Why a store could not be opened. Nothing of it has been changed, except that what was torn may have been
/// cut.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{path} is in use by process {pid}", path = .path.display())]
    InUse {
        /// The store's folder.
        path: PathBuf,
        /// Who holds the lock.
        pid: String,
    },
    /// The disk refused.
    #[error("{path}: {text}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        text: String,
    },
    /// A segment cannot be read that must be folded: what waits would be lost without it.
    #[error(
        "{path} cannot be read ({text}), and nothing else says which messages in it wait; make it readable or put it \
         back from a copy; without it: septet store repair",
        path = .path.display()
    )]
    Needed {
        /// The segment.
        path: PathBuf,
        /// Why not.
        text: String,
    },
    /// There is a journal, but no key.
    #[error(
        "{path} is missing, and the store has been written with it; put it back, or set store.key",
        path = .0.display()
    )]
    KeyMissing(PathBuf),
    /// There is a journal, written with another key.
    #[error(
        "the store's key is {found:08x}, but the store was written with key {expected:08x}; put that key back, or \
         name it in store.old_keys"
    )]
    WrongKey {
        /// The id of the key that the journal names.
        expected: u32,
        /// The id of the key that was given.
        found: u32,
    },
    /// Not 256 bits.
    #[error("{0} must be 64 hexadecimal digits or base64 of 32 bytes")]
    BadKey(&'static str),
    /// `encrypt_bodies` with the key beside the data.
    #[error("encrypt_bodies needs a key from outside: set store.key")]
    KeyNeeded,
    /// No segment has a readable header.
    #[error("no file in {path} is a readable journal segment", path = .0.display())]
    NotAJournal(PathBuf),
    /// Written by a newer version, which said that this one must not ignore it.
    #[error("{0} was written by a newer version")]
    Newer(String),
    /// A whole frame that makes no sense.
    #[error("{place} cannot be read: {text}")]
    Unreadable {
        /// File and offset.
        place: String,
        /// Why.
        text: String,
    },
    /// The cipher or the random source failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl OpenError {
    pub(super) fn io(path: &Path, error: impl std::fmt::Display) -> Self {
        OpenError::Io { path: path.to_owned(), text: error.to_string() }
    }

    pub(super) fn needed(path: &Path, error: impl std::fmt::Display) -> Self {
        OpenError::Needed { path: path.to_owned(), text: error.to_string() }
    }
}

/// Opens or makes the store in a folder.
pub(super) fn open(options: Options, clock: SharedClock, files: Arc<dyn Files>) -> Result<Store, OpenError> {
    let path = &options.path;
    files.create_dir(path).map_err(|error| OpenError::io(path, error))?;
    let lock = files.lock(&path.join("lock")).map_err(|error| match error {
        LockError::Held(pid) => OpenError::InUse { path: path.clone(), pid },
        LockError::Io(error) => OpenError::io(&path.join("lock"), error),
    })?;
    let folder = path.join("journal");
    files.create_dir(&folder).map_err(|error| OpenError::io(&folder, error))?;
    let segments = recovery::segments(&*files, &folder).map_err(|error| OpenError::io(&folder, error))?;
    if options.encrypt_bodies && options.key.is_none() {
        return Err(OpenError::KeyNeeded);
    }
    let vault = key::vault(&*files, path, options.key.as_ref(), &options.old_keys, !segments.is_empty())?;

    let identity = match segments.is_empty() {
        false => recovery::identity(&*files, &folder, &segments, &vault)?,
        true => new_identity(vault.key_id())?,
    };
    let checkpoint::Found { newest: checkpoint, unreadable } =
        checkpoint::load(&*files, path, &vault).map_err(|error| OpenError::io(path, error))?;
    if segments.is_empty() && (checkpoint.is_some() || !unreadable.is_empty()) {
        return Err(OpenError::NotAJournal(folder));
    }
    let shared = Arc::new(Shared::new(&options, clock.clone(), vault.clone(), identity));
    let sealer = Sealer { vault: vault.clone(), bodies: options.encrypt_bodies };
    let secret = Secret::new(vault.derive("septet index"));
    // Nothing that is wrong with the index stops the start: it is made again.
    let (index, refused) =
        Index::open(files.clone(), path.join("index"), secret, sealer.clone(), u64::from(identity.salt));
    refused.iter().for_each(|error| report_refused(&shared, error));
    let readers = Arc::new(Readers::new(files.clone(), folder.clone(), identity.salt));
    let tools = Tools {
        files: files.clone(),
        folder: path.clone(),
        index: index.clone(),
        readers: readers.clone(),
        sealer: sealer.clone(),
        journal: u64::from(identity.salt),
        segment_size: options.segment_size,
    };
    let checkpoints = checkpoint::list(&*files, path).map_err(|error| OpenError::io(path, error))?;
    let known = checkpoint.as_ref().map(Checkpoint::mark);
    let mut keeper = Keeper::new(tools.clone(), shared.clone(), known, checkpoints);
    if let Some(Checkpoint { snapshot, bodies, .. }) = checkpoint {
        for (id, place, kind) in bodies {
            shared.bodies.page_in(id, place, kind);
        }
        shared.durable.advance(snapshot.sequence);
        *shared.state() = State::restore(snapshot, options.window);
    }
    let recovered = recovery::recover(&*files, &folder, &segments, identity, known, &shared, &mut keeper)?;
    let Recovered { next, next_id, damage, .. } = recovered;
    let next = next.unwrap_or(Next { segment: 1, batch: 1, sequence: 0 });
    let limit = ids::reservation(next_id);
    shared.ids.start(next_id, limit);
    shared.state().opened(next_id);
    shared.open_segment.store(next.segment, Ordering::Release);

    let disk = Disk::new(files.clone(), folder.clone(), options.min_free, options.segment_size, options.pace)
        .map_err(|error| OpenError::io(&folder, error))?;
    let transactions = shared.ingest.transactions() + shared.completion.transactions();
    let line = KeeperThread::line();
    let begin = {
        let (shared, files, disk, folder, keeper) =
            (shared.clone(), files.clone(), disk.clone(), folder.clone(), line.0.clone());
        let segment_size = options.segment_size;
        move |limit| {
            Writer::begin(
                shared.clone(),
                files.clone(),
                disk.clone(),
                folder.clone(),
                segment_size,
                sealer.clone(),
                identity,
                next,
                limit,
                keeper.clone(),
            )
        }
    };
    let lock: Arc<dyn Lock> = lock.into();
    let writer = match begin(limit) {
        // Neither room nor a reserve: of what can be made again, some makes room.
        Err(error) if is_full(&error) && give_way(&index, options.segment_size) => {
            prepare(&*files, &folder, options.segment_size);
            begin(limit)
        }
        writer => writer,
    };
    let journal = match writer {
        Ok(writer) => Journal::start(writer, transactions, lock.clone()),
        Err(error) if is_full(&error) => {
            let first = late_ids(next_id, shared.clock.now());
            let limit = ids::reservation(first);
            shared.ids.start(first, limit);
            shared.state().opened(first);
            let late = Late { shared: shared.clone(), disk: disk.clone() };
            Journal::start_late(late, move || begin(limit), transactions, lock.clone())
        }
        Err(error) => Err(error),
    };
    let journal = journal.map_err(|error| OpenError::io(&folder, error))?;
    let (clock, identity) = (shared.clock.clone(), identity);
    keeper.remakes(Remaker { tools, options, identity, clock, vault, disk: disk.clone() });
    let pager =
        Pager::start(shared.clone(), readers.clone()).map_err(|error| OpenError::io(&folder, error))?;
    // A window may have been low when the last process ended.
    pager.call();
    let keeper = KeeperThread::start(keeper, line, lock).map_err(|error| OpenError::io(&folder, error))?;
    let purging = tokio::sync::Mutex::default();
    let embedded = Embedded { journal, pager, keeper, disk, readers, index, purging };
    let store = Store(Arc::new(Inner { shared, embedded: Some(embedded) }));
    if let Some(embedded) = &store.0.embedded {
        // Windows may be empty in front of what waits beyond them.
        embedded.pager.call();
    }
    for path in unreadable {
        tracing::error!(name: "store.corrupt", path = %path.display(), "store.corrupt: a checkpoint cannot be read");
        let text = format!(
            "the checkpoint {} cannot be read; an older one, or the journal, was read",
            path.display()
        );
        store.log(NewEvent::new(Level::Error, "store.corrupt", text));
    }
    for Damage { file, offset, length, why } in damage {
        let place = format!("{}:{offset}", file.display());
        if let Some(why) = why {
            tracing::error!(name: "store.corrupt", place, why, "store.corrupt: a segment cannot be read");
            let text = format!(
                "{place}: the segment cannot be read ({why}); messages that have their bodies in it cannot be shown or \
                 sent, everything else is there; `septet store repair`, while stopped, sets aside what cannot be read"
            );
            store.log(NewEvent::new(Level::Error, "store.corrupt", text));
            continue;
        }
        tracing::error!(name: "store.corrupt", place, length, "store.corrupt: part of the journal cannot be read");
        let text =
            format!("{length} bytes of the journal cannot be read at {place}; everything else is there");
        store.log(NewEvent::new(Level::Error, "store.corrupt", text));
    }
    Ok(store)
}

/// An index file, or the folder of them, cannot be used.
fn report_refused(shared: &Shared, error: &index::Error) {
    let text = format!("{error}; what it had is made again from the journal, and nothing is lost");
    let (level, kind) = match error {
        index::Error::Foreign { .. } | index::Error::Newer { .. } => (Level::Warning, "store.index"),
        _ => (Level::Error, "store.corrupt"),
    };
    match level {
        Level::Error => {
            tracing::error!(name: "store.corrupt", %error, "store.corrupt: the index is made again")
        }
        _ => tracing::warn!(%error, "an index file cannot be used and is made again"),
    }
    shared.tell(NewEvent::new(level, kind, text));
}

/// Removes the oldest index files until there is room for a reserve and for the journal to begin; whether there
/// was anything to remove. They are made again when the disk has room.
fn give_way(index: &Index, segment_size: u64) -> bool {
    let wanted = 2 * MOST_RESERVE.min(segment_size);
    let (mut room, mut given) = (0, Vec::new());
    for file in index.files().iter() {
        if room >= wanted {
            break;
        }
        room += file.meta().length;
        given.push(file.clone());
    }
    if given.is_empty() {
        return false;
    }
    tracing::warn!(
        files = given.len(),
        bytes = room,
        "the disk is full; index files make room for completions and are made again when there is some"
    );
    index.replace(&given, Vec::new());
    true
}

/// Takes the room for the next segment before somebody else does, be it less than it should be.
fn prepare(files: &dyn Files, folder: &Path, segment_size: u64) {
    let (path, most) = (folder.join(PREPARED), MOST_RESERVE.min(segment_size));
    let made = [most, most / 4, most / 16].into_iter().any(|size| {
        let made = files.create(&path);
        made.and_then(|file| file.allocate(size).and_then(|()| file.sync())).is_ok()
    });
    if !made {
        let _ = files.remove(&path);
    }
}

/// The first id of a store that cannot write yet. Such ids may be seen before anything is durable, and after
/// another such start they must not come again: time has passed, and nobody uses so many in a second.
fn late_ids(next_id: u64, now: jiff::Timestamp) -> u64 {
    const A_SECOND: u64 = 64;
    let since_2026 = u64::try_from(now.as_second() - 1_767_225_600).unwrap_or(0);
    next_id + since_2026 * A_SECOND
}

/// A name and a salt for a new store.
fn new_identity(key_id: u32) -> Result<Identity, VaultError> {
    let mut random = [0u8; 12];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| VaultError::Cipher)?;
    let (epoch, salt) = random.split_at(8);
    let epoch = epoch.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or_default();
    let salt = salt.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).unwrap_or_default();
    Ok(Identity { epoch, salt, key_id })
}
