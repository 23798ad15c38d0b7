//! Opening an embedded store: lock, key, recovery, and the first synced frame of a new segment. When
//! [`open`] returns, everything that was ever acknowledged is in the state, on stable storage.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::bodies::Bodies;
use super::disk::Disk;
use super::durable::Durable;
use super::ids::{self, Ids};
use super::journal::{Identity, Journal, Next, Writer};
use super::permit::Share;
use super::readers::Readers;
use super::record::Sealer;
use super::recovery::{self, Damage, Recovered};
use super::shared::Shared;
use super::{Embedded, Inner, Store, key};
use crate::clock::SharedClock;
use crate::config::settings::{self, Secret};
use crate::event::{Level, NewEvent};
use crate::files::{Files, LockError};
use crate::vault::VaultError;

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
    pub key: Option<Secret>,
    /// Keys that were replaced: what they sealed stays readable.
    pub old_keys: Vec<Secret>,
    /// Seal bodies, search keys and details too; needs a key from outside.
    pub encrypt_bodies: bool,
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

    let bodies = Bodies::new(options.memory / 4);
    let recovered = recovery::recover(&*files, &folder, &segments, &vault, &bodies)?;
    let Recovered { mut state, identity, next, next_id, damage, .. } = recovered;
    let identity = match identity {
        Some(identity) => identity,
        None => new_identity(vault.key_id())?,
    };
    let next = next.unwrap_or(Next { segment: 1, batch: 1, sequence: 0 });
    state.opened(next_id);
    let limit = ids::reservation(next_id);
    let durable = Durable::default();
    durable.advance(state.sequence);
    let shared = Arc::new(Shared {
        clock,
        vault: vault.clone(),
        epoch: format!("{:016x}", identity.epoch).into(),
        state: Mutex::new(state),
        bodies,
        ids: Ids::new(next_id, limit),
        durable,
        ingest: Share::new(options.memory / 4),
        completion: Share::new(options.memory / 4),
        failed: OnceLock::new(),
        closed: Default::default(),
        dropped_events: Default::default(),
        reported: Mutex::default(),
    });
    let disk = Disk::new(files.clone(), folder.clone(), options.min_free, options.segment_size, options.pace)
        .map_err(|error| OpenError::io(&folder, error))?;
    let sealer = Sealer { vault, bodies: options.encrypt_bodies };
    let transactions = shared.ingest.transactions() + shared.completion.transactions();
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
    );
    let journal = writer.and_then(|writer| Journal::start(writer, transactions, lock));
    let journal = journal.map_err(|error| OpenError::io(&folder, error))?;
    let embedded = Embedded { journal, disk, readers: Readers::new(files, folder) };
    let store = Store(Arc::new(Inner { shared, embedded: Some(embedded) }));
    for Damage { file, offset, length } in damage {
        let place = format!("{}:{offset}", file.display());
        tracing::error!(name: "store.corrupt", place, length, "store.corrupt: part of the journal cannot be read");
        let text =
            format!("{length} bytes of the journal cannot be read at {place}; everything else is there");
        store.log(NewEvent::new(Level::Error, "store.corrupt", text));
    }
    Ok(store)
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
