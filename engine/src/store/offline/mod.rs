//! Looking at a store that nobody has open, and making a damaged one openable again.
//!
//! [`check`] reads everything and changes nothing: the checksum of every frame and of every body, the numbers
//! of segments, frames and transactions without gaps, headers whose bodies are there, responses whose requests
//! are there. [`repair`] replaces what cannot be read by frames that say so ("lost", see `record`), of the same
//! length in the same place, so that every offset stays what it was. The bytes that were there go to
//! `quarantine/FILE-OFFSET.bad`; nothing is deleted.
//!
//! **What is lost with a frame.** New messages in it are gone. If it held the end of an older message, that
//! message is queued again and delivered once more; kept values go back to the ones before. A repair says so,
//! in its report and as an event of the store.
//!
//! A *torn tail* (what a crash left behind the last whole frame of the last segment) is no damage: nobody was
//! told that it was stored, and opening cuts it. `recovery` tells the two apart in the same way.
//!
//! Derived files are looked at by the entries of [`DERIVED`]; they are never needed to read the journal.

mod ids;
mod journal;
mod repair;
mod salt;
mod scan;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

pub use self::repair::{Repair, repair};
use super::open::OpenError;
use super::record::Sealer;
use super::recovery;
use super::{backup, index, key};
use crate::config::settings::Secret;
use crate::files::{Files, Lock, LockError};
use crate::vault::Vault;

/// At most so many problems are listed; all are counted.
const MOST: usize = 10_000;

/// The key of the store, as a person gives it.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// `None` = the file `store.key` in the folder.
    pub key: Option<Secret>,
    /// Keys that were replaced.
    pub old: Vec<Secret>,
}

/// Why a store could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is no such folder, or no journal in it.
    #[error("{path} is no store: {text}", path = .path.display())]
    NoStore {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        text: String,
    },
    /// A process has it open.
    #[error("{path} is in use by process {pid}; stop it first", path = .path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Who holds the lock.
        pid: String,
    },
    /// It cannot be read or written.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Something worth knowing, with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A word for programs: `header`, `frame`, `tail`, `missing`, `unreadable`, `foreign`, `sequence`, `body`, `reference`, `newer`, `derived`, `torn`, `quarantined`, `lost`.
    pub kind: &'static str,
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How many bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// What is wrong; no patient data.
    pub text: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(offset) = self.offset {
            write!(f, ":{offset}")?;
        }
        if let Some(length) = self.length {
            write!(f, " ({length} bytes)")?;
        }
        write!(f, ": {}", self.text)
    }
}

/// Whether the store's key is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// It is, and sealed values open.
    Right,
    /// It is not: only what is not sealed could be looked at.
    Missing(String),
    /// It is another one.
    Wrong(String),
}

/// What there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Files of the journal.
    pub segments: u64,
    /// Their length in bytes.
    pub bytes: u64,
    /// Whole frames.
    pub frames: u64,
    /// Transactions; these and what follows only with the key.
    pub transactions: u64,
    /// Headers of messages.
    pub headers: u64,
    /// Bodies.
    pub bodies: u64,
    /// Events.
    pub events: u64,
    /// Kept values that were written or removed.
    pub kept: u64,
}

/// The result of a check.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The store's folder.
    pub path: PathBuf,
    /// The store's name in idempotency keys.
    pub epoch: Option<String>,
    /// The key.
    pub key: KeyState,
    /// The store was closed, not left by a crash.
    pub clean: bool,
    /// What there is.
    pub counts: Counts,
    /// How many problems there are; the list below is cut after ten thousand.
    pub problem_count: u64,
    /// What is wrong.
    pub problems: Vec<Finding>,
    /// What is not, but worth knowing: what a crash left, what a repair marked as lost, and what follows from that.
    pub notes: Vec<Finding>,
}

impl Report {
    fn problem(&mut self, finding: Finding) {
        self.problem_count += 1;
        if self.problems.len() < MOST {
            self.problems.push(finding);
        }
    }

    fn note(&mut self, finding: Finding) {
        if self.notes.len() < MOST {
            self.notes.push(finding);
        }
    }

    /// Nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problem_count == 0
    }
}

/// A store's folder while nobody else has it.
#[derive(Debug)]
struct Folder<'a> {
    files: &'a dyn Files,
    shared: Arc<dyn Files>,
    path: PathBuf,
    journal: PathBuf,
    numbers: Vec<u64>,
    /// The number of the newest checkpoint that is whole: what it stands for may be gone.
    checkpoint: Option<u64>,
    /// Checkpoints that are not.
    bad_checkpoints: Vec<PathBuf>,
    _lock: Option<Box<dyn Lock>>,
}

impl<'a> Folder<'a> {
    /// Takes the lock, where there is one to take: what was never opened here, or lies on a disk that cannot be
    /// written to, nobody has open.
    fn open(shared: &'a Arc<dyn Files>, path: &Path) -> Result<Self, OfflineError> {
        let files = &**shared;
        let no_store = |text: &str| OfflineError::NoStore { path: path.to_owned(), text: text.to_owned() };
        let names = files.list(path).map_err(|error| no_store(&error.to_string()))?;
        let journal = path.join("journal");
        let numbers =
            recovery::segments(files, &journal).map_err(|_| no_store("there is no folder journal in it"))?;
        if numbers.is_empty() {
            return Err(no_store("there is no segment in its journal"));
        }
        let mut lock = None;
        if names.iter().any(|name| name == "lock") {
            lock = match files.lock(&path.join("lock")) {
                Ok(lock) => Some(lock),
                Err(LockError::Held(pid)) => return Err(OfflineError::InUse { path: path.to_owned(), pid }),
                Err(LockError::Io(error)) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => None,
                Err(LockError::Io(error)) => return Err(OpenError::io(&path.join("lock"), error).into()),
            };
        }
        let (mut checkpoint, mut bad_checkpoints) = (None, Vec::new());
        for name in names {
            let Some(number) = backup::copied_checkpoint_number(&name) else { continue };
            let file = path.join(name);
            match files.open(&file).and_then(|file| backup::checkpoint_is_whole(&*file)) {
                Ok(true) => checkpoint = checkpoint.max(Some(number)),
                _ => bad_checkpoints.push(file),
            }
        }
        Ok(Folder {
            checkpoint,
            bad_checkpoints,
            files,
            shared: shared.clone(),
            path: path.to_owned(),
            journal,
            numbers,
            _lock: lock,
        })
    }

    /// The vault, or why there is none.
    fn vault(&self, keys: &Keys) -> Result<Vault, KeyState> {
        key::vault(self.files, &self.path, keys.key.as_ref(), &keys.old, true)
            .map_err(|error| KeyState::Missing(error.to_string()))
    }
}

/// A look at files that are derived from the journal.
type Derived = fn(&Folder<'_>, Option<&Vault>, &mut Report);

/// Checkpoint and index: each says what is wrong with its own files.
const DERIVED: &[Derived] = &[checkpoints, index_files];

/// Checkpoints that opening will pass over.
fn checkpoints(folder: &Folder<'_>, _: Option<&Vault>, report: &mut Report) {
    for file in &folder.bad_checkpoints {
        let text = "a checkpoint that does not fit its checksum; opening passes over it";
        let file = file.clone();
        report.problem(Finding { kind: "derived", file, offset: None, length: None, text: text.to_owned() });
    }
}

/// Index files that opening will make again, or that would be found out when they are read.
fn index_files(folder: &Folder<'_>, vault: Option<&Vault>, report: &mut Report) {
    let Some(vault) = vault else { return };
    let (path, sealer) = (folder.path.join("index"), Sealer { vault: vault.clone(), bodies: false });
    let secret = index::Secret::new(vault.derive("septet index"));
    for (name, error) in index::verify(folder.shared.clone(), path.clone(), secret, sealer) {
        let foreign = matches!(error, index::Error::Foreign { .. });
        let (file, text) = (path.join(name), format!("{error}; it will be made again"));
        let finding = Finding { kind: "derived", file, offset: None, length: None, text };
        if foreign { report.note(finding) } else { report.problem(finding) }
    }
}

/// Looks at a store that nobody has open; changes nothing.
pub fn check(
    files: &(impl Files + Clone + 'static),
    path: &Path,
    keys: &Keys,
) -> Result<Report, OfflineError> {
    check_with(&(Arc::new(files.clone()) as Arc<dyn Files>), path, keys)
}

fn check_with(files: &Arc<dyn Files>, path: &Path, keys: &Keys) -> Result<Report, OfflineError> {
    let folder = Folder::open(files, path)?;
    let (report, _) = look(&folder, keys)?;
    Ok(report)
}

/// The check, and what a repair needs to know beyond its report.
fn look(folder: &Folder<'_>, keys: &Keys) -> Result<(Report, journal::Seen), OfflineError> {
    let (vault, key) = match folder.vault(keys) {
        Ok(vault) => (Some(vault), KeyState::Right),
        Err(state) => (None, state),
    };
    let mut report = Report {
        path: folder.path.clone(),
        epoch: None,
        key,
        clean: false,
        counts: Counts::default(),
        problem_count: 0,
        problems: Vec::new(),
        notes: Vec::new(),
    };
    let seen = journal::look(folder, vault.clone(), &mut report)?;
    let vault = vault.filter(|_| report.key == KeyState::Right);
    for derived in DERIVED {
        derived(folder, vault.as_ref(), &mut report);
    }
    quarantined(folder, &mut report);
    Ok((report, seen))
}

/// What earlier repairs and crashes set aside.
fn quarantined(folder: &Folder<'_>, report: &mut Report) {
    for (path, suffix, text) in [
        (folder.journal.clone(), ".torn", "what a crash left incomplete; nobody was told that it was stored"),
        (folder.path.join(repair::QUARANTINE), ".bad", "what an earlier repair could not read"),
    ] {
        let mut names = folder.files.list(&path).unwrap_or_default();
        names.retain(|name| name.ends_with(suffix));
        names.sort_unstable();
        for name in names {
            let file = path.join(name);
            let length = folder.files.open(&file).and_then(|file| file.length()).ok();
            report.notes.push(Finding {
                kind: "quarantined",
                file,
                offset: None,
                length,
                text: text.to_owned(),
            });
        }
    }
}
