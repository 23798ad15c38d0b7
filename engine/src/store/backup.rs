//! Copies of a running store. What can be copied is a prefix of the journal that is on stable storage, and the
//! checkpoint that stands for the segments that were purged before it. A sealed segment never changes; of the
//! open one, the bytes below the synced position never do, and they end with a whole frame. So a copy is made
//! piece by piece, gone on with where it stopped, and kept up by copying what is new.
//!
//! A backup is a folder:
//!
//! | file | what it is |
//! |---|---|
//! | `backup.json` | the [`Manifest`]: what belongs together; written last, aside, and renamed |
//! | `journal/NUMBER.seg` | segments, perhaps longer than the manifest says: then a copy was cut short |
//! | `checkpoint-NUMBER-CHECK` | the checkpoint that goes with them |
//! | `.backup.begun` | there until the first manifest is: what is in the folder is ours, though nothing says so yet |
//!
//! It never holds the key. [`restore`] makes a store of it, under a new name (epoch): the copy's idempotency
//! keys must not be those of the original, which may live on.

use std::io::{self, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::open::OpenError;
use super::segment::{self, HEADER, NoFrame, SegmentHeader};
use super::{Store, key, recovery};
use crate::files::{self, File, Files};

/// The manifest's name.
pub const MANIFEST: &str = "backup.json";
/// Says in a folder without a manifest that a backup has been begun there.
const BEGUN: &str = ".backup.begun";
/// What names of checkpoints begin with; the number of the segment where reading goes on follows.
pub const CHECKPOINT: &str = "checkpoint-";
/// Length of a checkpoint's header, which holds the checksum of the rest.
const CHECKPOINT_HEADER: usize = 24;
/// The version of backups that this code makes and reads.
const FORMAT: u32 = 1;

/// One file of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedFile {
    /// Its name: of a segment in the journal's folder, of a checkpoint in the store's.
    pub name: String,
    /// How many of its bytes belong to the copy.
    pub size: u64,
    /// It will not grow any more.
    pub sealed: bool,
    /// Tells it from another file of this name and size: CRC-32 of its header, and where it is a sealed segment, of
    /// its last 64 bytes too.
    pub check: u32,
}

/// What belongs together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this format.
    pub format: u32,
    /// The store's name in idempotency keys.
    pub epoch: String,
    /// Which key opens what is sealed in it.
    pub key_id: String,
    /// When this was so.
    pub at: Timestamp,
    /// Segments in order.
    pub segments: Vec<CopiedFile>,
    /// The checkpoint, where there is one.
    pub checkpoint: Option<CopiedFile>,
}

impl Manifest {
    /// All bytes of it.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().chain(&self.checkpoint).map(|file| file.size).sum()
    }

    /// Reads the manifest of a backup; `None` where there is none yet.
    pub fn read(files: &dyn Files, folder: &Path) -> Result<Option<Manifest>, BackupError> {
        let path = folder.join(MANIFEST);
        let content = match files::read(files, &path) {
            Ok(content) => content,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(BackupError::io(&path, error)),
        };
        let manifest: Manifest = serde_json::from_slice(&content)
            .map_err(|error| BackupError::NoBackup(folder.to_owned(), error.to_string()))?;
        if manifest.format != FORMAT {
            let text = format!("its format is {}, this version reads {FORMAT}", manifest.format);
            return Err(BackupError::NoBackup(folder.to_owned(), text));
        }
        Ok(Some(manifest))
    }

    /// Writes it, replacing the one before at once.
    pub fn write(&self, files: &dyn Files, folder: &Path) -> Result<(), BackupError> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        let written = text.and_then(|text| files::write_new(files, folder, MANIFEST, &text));
        written.map_err(|error| BackupError::io(&folder.join(MANIFEST), error))?;
        let _ = files.remove(&folder.join(BEGUN));
        Ok(())
    }
}

/// Makes a folder ready for a backup. One that holds anything else is refused and left as it is: copies would take
/// the place of what is there, and of another store's journal all that this one does not have would be removed.
pub fn begin(files: &dyn Files, folder: &Path) -> Result<(), BackupError> {
    let failed = |error| BackupError::io(folder, error);
    let there = match files.list(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        there => there.map_err(failed)?,
    };
    if there.iter().any(|name| name == MANIFEST || name == BEGUN) {
        return Ok(());
    }
    // A lock tells nothing, and a file system may have been made for the backup.
    if let Some(other) = there.into_iter().find(|name| name != "lock" && name != "lost+found") {
        return Err(BackupError::Occupied(folder.to_owned(), other));
    }
    files.create_dir(folder).map_err(failed)?;
    files::write_new(files, folder, BEGUN, &[]).map_err(failed)
}

/// Why a backup could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is none, or not one that this version reads.
    #[error("{path} is no backup: {1}", path = .0.display())]
    NoBackup(PathBuf, String),
    /// Something is there already.
    #[error("{path} is not empty: {1} is there; a restore overwrites nothing", path = .0.display())]
    NotEmpty(PathBuf, String),
    /// The folder for a backup holds something else.
    #[error("{path} is no backup, and not empty: {1} is there; a backup needs a folder of its own", path = .0.display())]
    Occupied(PathBuf, String),
    /// A file of the backup is not what it should be.
    #[error("{path}:{offset}: {text}", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        text: String,
    },
    /// The disk refused.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl BackupError {
    fn io(path: &Path, error: io::Error) -> Self {
        BackupError::Open(OpenError::io(path, error))
    }
}

/// A file of a running store that is being read; it stays readable when it is purged meanwhile.
#[derive(Debug)]
pub struct Reading {
    file: Arc<dyn File>,
    /// Bytes from here on do not belong to it yet.
    pub end: u64,
}

impl Reading {
    /// Up to `most` bytes from `offset` on; none at the end. Blocks.
    pub fn read(&self, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX).min(most);
        let mut bytes = vec![0; length];
        files::read_exact(&*self.file, &mut bytes, offset)?;
        Ok(bytes)
    }
}

impl Store {
    /// What a backup made now would hold; `None` for a store in memory. Blocks.
    pub fn copyable(&self) -> io::Result<Option<Manifest>> {
        let Some(embedded) = &self.0.embedded else { return Ok(None) };
        let disk = &embedded.disk;
        let root = disk.folder().parent().unwrap_or(disk.folder());
        let mut checkpoint = newest_checkpoint(disk.files(), root)?;
        let mut tries = 0;
        let segments = loop {
            let begins = recovery::segments(disk.files(), disk.folder())?.first().copied();
            // What says that segments were dropped is synced before they go: with those that were gone before the list
            // was made, it is in the list. A purge does not drop them as fast as this for long.
            let segments = synced_segments(disk)?;
            let first = segments.first().and_then(|first| segment::number_of(&first.name));
            tries += 1;
            if first != begins && tries < 10 {
                continue;
            }
            // A checkpoint holds nothing that was not synced before, and no segment goes that it does not cover: one
            // that was the newest all the while fits the list. A newer one may hold more than the list, and where
            // one came in between, segments may be gone that only it covers.
            let newest = newest_checkpoint(disk.files(), root)?;
            if newest == checkpoint {
                break segments;
            }
            checkpoint = newest;
        };
        Ok(Some(Manifest {
            format: FORMAT,
            epoch: self.epoch().to_string(),
            key_id: format!("{:08x}", self.vault().key_id()),
            at: self.clock().now(),
            segments,
            checkpoint,
        }))
    }

    /// One file of it; `None` where there is none of this name (any more). Blocks.
    pub fn copyable_file(&self, name: &str) -> io::Result<Option<Reading>> {
        let Some(embedded) = &self.0.embedded else { return Ok(None) };
        let disk = &embedded.disk;
        let synced = disk.synced();
        let (path, open_end) = match segment::number_of(name) {
            Some(number) if segment::file_name(number) == name && number <= synced.segment => {
                (disk.folder().join(name), (number == synced.segment).then_some(synced.offset))
            }
            None if checkpoint_number(name).is_some() => (disk.folder().with_file_name(name), None),
            _ => return Ok(None),
        };
        match disk.files().open(&path) {
            Ok(file) => {
                let end = open_end.map_or_else(|| file.length(), Ok)?;
                Ok(Some(Reading { file, end }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The segments there are, each as far as it is synced.
fn synced_segments(disk: &Disk) -> io::Result<Vec<CopiedFile>> {
    let (files, folder, synced) = (disk.files(), disk.folder(), disk.synced());
    let mut segments = Vec::new();
    for number in recovery::segments(files, folder)?.into_iter().filter(|number| *number <= synced.segment) {
        let file = match files.open(&segment::path(folder, number)) {
            Ok(file) => file,
            // Purged since it was listed, and with it everything before it.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                segments.clear();
                continue;
            }
            Err(error) => return Err(error),
        };
        let sealed = number < synced.segment;
        let size = if sealed { file.length()? } else { synced.offset };
        let check = check_of(&*file, size, sealed)?;
        segments.push(CopiedFile { name: segment::file_name(number), size, sealed, check });
    }
    Ok(segments)
}

/// The number in the name of a checkpoint.
pub(super) fn checkpoint_number(name: &str) -> Option<u64> {
    name.strip_prefix(CHECKPOINT)?.parse().ok()
}

/// The same of one in a store or in a backup.
pub(super) fn copied_checkpoint_number(name: &str) -> Option<u64> {
    checkpoint_number(name).or_else(|| checkpoint_number(name.rsplit_once('-')?.0))
}

/// The newest checkpoint of a store.
fn newest_checkpoint(files: &dyn Files, folder: &Path) -> io::Result<Option<CopiedFile>> {
    loop {
        let newest = files.list(folder)?.into_iter().filter(|name| checkpoint_number(name).is_some());
        let Some(name) = newest.max_by_key(|name| checkpoint_number(name)) else { return Ok(None) };
        let file = match files.open(&folder.join(&name)) {
            Ok(file) => file,
            // Another has taken its place since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let size = file.length()?;
        return Ok(Some(CopiedFile { name, size, sealed: true, check: checkpoint_check(&*file)? }));
    }
}

/// The CRC-32 of a checkpoint's header.
pub fn checkpoint_check(file: &dyn File) -> io::Result<u32> {
    let mut header = [0; CHECKPOINT_HEADER];
    files::read_exact(file, &mut header, 0)?;
    Ok(crc32fast::hash(&header))
}

/// Whether a checkpoint is as long as it says and fits its checksum; which store's or state's it is, is not asked.
pub fn checkpoint_is_whole(file: &dyn File) -> io::Result<bool> {
    const PIECE: u64 = 1 << 20;
    let (mut header, length) = ([0; CHECKPOINT_HEADER], file.length()?);
    if length < CHECKPOINT_HEADER as u64 {
        return Ok(false);
    }
    files::read_exact(file, &mut header, 0)?;
    let number =
        |at: usize| header.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u32::from_le_bytes(*b));
    let payload = header.get(8..).and_then(|rest| rest.first_chunk()).map(|bytes| u64::from_le_bytes(*bytes));
    if !header.starts_with(b"SEPTETC") || payload != Some(length - CHECKPOINT_HEADER as u64) {
        return Ok(false);
    }
    let (mut crc, mut at) = (crc32fast::Hasher::new(), CHECKPOINT_HEADER as u64);
    while at < length {
        let mut piece = vec![0; usize::try_from(PIECE.min(length - at)).unwrap_or_default()];
        files::read_exact(file, &mut piece, at)?;
        crc.update(&piece);
        at += piece.len() as u64;
    }
    Ok(number(16) == Some(crc.finalize()))
}

/// See [`CopiedFile::check`].
pub fn check_of(file: &dyn File, size: u64, sealed: bool) -> io::Result<u32> {
    let mut crc = crc32fast::Hasher::new();
    let mut bytes = [0; HEADER];
    for offset in [Some(0), sealed.then_some(size.saturating_sub(HEADER as u64))].into_iter().flatten() {
        let length = usize::try_from(size - offset.min(size)).unwrap_or(HEADER).min(HEADER);
        let part = bytes.get_mut(..length).unwrap_or_default();
        files::read_exact(file, part, offset)?;
        crc.update(part);
    }
    Ok(crc.finalize())
}

/// Checks the frames of a copied segment between two positions that are ends of frames: nothing but whole
/// frames may lie there. Gives where the first one begins that is not.
pub fn damage(file: &dyn File, number: u64, from: u64, to: u64) -> io::Result<Option<u64>> {
    let mut header = [0; HEADER];
    files::read_exact(file, &mut header, 0)?;
    let Some(header) = SegmentHeader::decode(&header).filter(|header| header.number == number) else {
        return Ok(Some(0));
    };
    // Offsets count from the beginning of the file: the part in front of `from` is left out.
    let begin = from.max(HEADER as u64);
    let mut content = vec![0; usize::try_from(to.saturating_sub(begin)).unwrap_or(usize::MAX)];
    files::read_exact(file, &mut content, begin)?;
    let mut at = 0;
    while at < content.len() {
        match segment::frame_at(&content, at, number, header.salt) {
            Ok(frame) => at = frame.end,
            // Preallocated room behind a segment's end.
            Err(NoFrame::End) => break,
            Err(NoFrame::Bad | NoFrame::Newer) => return Ok(Some(begin + at as u64)),
        }
    }
    Ok(None)
}

/// A store that was made of a backup.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What it was made of.
    pub manifest: Manifest,
    /// Its own name.
    pub epoch: String,
    /// Parts of it that cannot be read, as they came from the backup.
    pub damaged: Vec<String>,
}

/// Makes a store of a backup, in a folder in which there is nothing, or nothing but `store.key`.
pub fn restore(files: &dyn Files, backup: &Path, path: &Path) -> Result<Restored, BackupError> {
    let manifest = Manifest::read(files, backup)?
        .ok_or_else(|| BackupError::NoBackup(backup.to_owned(), format!("there is no {MANIFEST} in it")))?;
    // What an interrupted restore left is made again.
    let aside = path.join(".journal.part");
    let ours = |name: &str| {
        let part = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part"));
        name == key::NAME || part == Some("journal") || checkpoint_number(part.unwrap_or(name)).is_some()
    };
    let there = files.list(path).unwrap_or_default();
    let journal = path.join("journal");
    if let Some(other) = there.iter().find(|name| !ours(name)) {
        return Err(BackupError::NotEmpty(path.to_owned(), other.clone()));
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| BackupError::io(&path, error)
    };
    files.create_dir(&aside).map_err(failed(&aside))?;
    let epoch = key::new_epoch().map_err(OpenError::from)?;
    let mut damaged = Vec::new();
    for copied in &manifest.segments {
        let from = backup.join("journal").join(&copied.name);
        let file = files.open(&from).map_err(failed(&from))?;
        let number = segment::number_of(&copied.name).unwrap_or_default();
        let size = usize::try_from(copied.size).unwrap_or(usize::MAX);
        if file.length().map_err(failed(&from))? < copied.size {
            let text = "it is shorter than the backup says".to_owned();
            return Err(BackupError::Damaged { path: from, offset: copied.size, text });
        }
        if let Some(offset) = damage(&*file, number, 0, copied.size).map_err(failed(&from))? {
            damaged.push(format!("{}:{offset}", from.display()));
        }
        let mut content = vec![0; size];
        files::read_exact(&*file, &mut content, 0).map_err(failed(&from))?;
        if let Some(header) = SegmentHeader::decode(&content)
            && let Some(place) = content.get_mut(..HEADER)
        {
            place.copy_from_slice(&SegmentHeader { epoch, ..header }.encode());
        }
        let to = aside.join(&copied.name);
        let written = files.create(&to).and_then(|file| {
            files::write_all(&*file, &mut [IoSlice::new(&content)], 0)?;
            file.sync()
        });
        written.map_err(failed(&to))?;
    }
    files.sync_dir(&aside).map_err(failed(&aside))?;
    if let Some(copied) = &manifest.checkpoint {
        let from = backup.join(checkpoint_name(copied));
        let file = files.open(&from).map_err(failed(&from))?;
        if !checkpoint_is_whole(&*file).map_err(failed(&from))? {
            let text = "the checkpoint does not fit its checksum".to_owned();
            return Err(BackupError::Damaged { path: from, offset: 0, text });
        }
        let content = files::read(files, &from).map_err(failed(&from))?;
        files::write_new(files, path, &copied.name, &content).map_err(failed(path))?;
    }
    files.rename(&aside, &journal).map_err(failed(&journal))?;
    files.sync_dir(path).map_err(failed(path))?;
    Ok(Restored { manifest, epoch: format!("{epoch:016x}"), damaged })
}

/// What a checkpoint is called in a backup: several are there while one replaces another.
pub fn checkpoint_name(file: &CopiedFile) -> String {
    format!("{}-{:08x}", file.name, file.check)
}
