//! Opening an embedded store: lock, key, recovery, and the first synced frame of a new segment. When
//! [`open`] returns, everything that was ever acknowledged is in the state, on stable storage.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::bodies::Bodies;
use super::checkpoint::{self, Checkpoint};
use super::disk::Disk;
use super::durable::Durable;
use super::ids::{self, Ids};
use super::index::{Index, Secret};
use super::journal::{Identity, Journal, Next, Writer};
use super::keeper::{Keeper, KeeperThread, Parts, covers};
use super::pager::Pager;
use super::permit::Share;
use super::readers::Readers;
use super::rebuild::Rebuild;
use super::record::Sealer;
use super::recovery::{self, Damage, Recovered};
use super::shared::Shared;
use super::state::State;
use super::{Embedded, Inner, Store, key};
use crate::clock::SharedClock;
use crate::config::settings;
use crate::event::{Level, NewEvent};
use crate::files::{Files, Lock, LockError};
use crate::vault::{Vault, VaultError};

/// How to open an embedded store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store's folder; made if need be.
    pub path: PathBuf,
    /// Size of one segment of the journal.
    pub segment_size: u64,
    /// Byte budget for bodies in memory: a quarter is the cache of bodies that are on disk, and a quarter
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
    let shared = Arc::new(new_shared(&options, clock, vault.clone(), identity));
    let sealer = Sealer { vault: vault.clone(), bodies: options.encrypt_bodies };
    let secret = Secret::new(vault.derive("septet index"));
    let index =
        Index::open(files.clone(), path.join("index"), secret, sealer.clone(), u64::from(identity.salt));
    let (index, refused) = index.map_err(|error| OpenError::Unreadable {
        place: path.join("index").display().to_string(),
        text: error.to_string(),
    })?;
    // Left where a crash came between dropping a segment and its index file.
    let first = segments.first().copied().unwrap_or(0);
    let orphans: Vec<_> =
        index.files().iter().filter(|file| file.meta().coverage.segment < first).cloned().collect();
    index.replace(&orphans, Vec::new());
    drop(orphans);
    for error in refused {
        tracing::warn!(%error, "an index file cannot be used and will be made again");
    }
    let readers = Arc::new(Readers::new(files.clone(), folder.clone(), identity.salt));
    let parts = |shared: &Arc<Shared>| Parts {
        shared: shared.clone(),
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
    let mut keeper = Keeper::new(parts(&shared), known, checkpoints);
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

    let last_missing = segments.iter().rposition(|segment| !covers(&index, *segment));
    if let Some(last_missing) = last_missing {
        let missing = segments.iter().filter(|segment| !covers(&index, **segment)).count();
        tracing::info!(missing, "index files are missing and will be made again");
        let scratch = Arc::new(new_shared(&options, shared.clock.clone(), vault.clone(), identity));
        let keeper_of_scratch = Keeper::new(parts(&scratch), None, Vec::new());
        keeper.rebuild(Rebuild {
            files: files.clone(),
            folder: folder.clone(),
            identity,
            shared: scratch,
            keeper: Box::new(keeper_of_scratch),
            total: last_missing + 1,
            segments: segments.iter().copied().take(last_missing + 1).collect(),
            sequence: 0,
        });
        let now = shared.clock.now().as_microsecond();
        shared.rebuilding_since.store(u64::try_from(now).unwrap_or(1), Ordering::Release);
    }
    let disk = Disk::new(files.clone(), folder.clone(), options.min_free, options.segment_size, options.pace)
        .map_err(|error| OpenError::io(&folder, error))?;
    let transactions = shared.ingest.transactions() + shared.completion.transactions();
    let line = KeeperThread::line();
    let writer = Writer::begin(
        shared.clone(),
        files.clone(),
        disk.clone(),
        folder.clone(),
        options.segment_size,
        sealer,
        identity,
        next,
        limit,
        line.0.clone(),
    );
    let lock: Arc<dyn Lock> = lock.into();
    let journal = writer.and_then(|writer| Journal::start(writer, transactions, lock.clone()));
    let journal = journal.map_err(|error| OpenError::io(&folder, error))?;
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
    for Damage { file, offset, length } in damage {
        let place = format!("{}:{offset}", file.display());
        tracing::error!(name: "store.corrupt", place, length, "store.corrupt: part of the journal cannot be read");
        let text =
            format!("{length} bytes of the journal cannot be read at {place}; everything else is there");
        store.log(NewEvent::new(Level::Error, "store.corrupt", text));
    }
    Ok(store)
}

/// What a store shares, with nothing in it.
fn new_shared(options: &Options, clock: SharedClock, vault: Vault, identity: Identity) -> Shared {
    Shared {
        clock,
        vault,
        epoch: format!("{:016x}", identity.epoch).into(),
        state: Mutex::new(State::new(options.window)),
        bodies: Bodies::new(options.memory / 4),
        ids: Ids::new(1, 1),
        durable: Durable::default(),
        ingest: Share::new(options.memory / 4),
        completion: Share::new(options.memory / 4),
        failed: OnceLock::new(),
        closed: Default::default(),
        dropped_events: Default::default(),
        reported: Mutex::default(),
        told: Mutex::default(),
        open_segment: Default::default(),
        open_since: i64::MAX.into(),
        rebuilding_since: Default::default(),
    }
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
