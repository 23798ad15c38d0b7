//! Everything that the store does with the file system, so that tests can put a disk below it that tears
//! writes, forgets what was not synced, fills up, or fails.
//!
//! What the store relies on: bytes of a file are on stable storage after [`File::sync`]; names (a created,
//! renamed or removed file) after [`Files::sync_dir`] of their folder; a rename replaces at once.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, IoSlice, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

/// A file system.
pub trait Files: Send + Sync + fmt::Debug {
    /// Creates a folder and those above it, durably; it may be there already. Only the owner may enter
    /// folders made here.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Opens a file for reading and writing; for reading only where writing is not allowed.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Creates an empty file for reading and writing (mode 0600). A file that has the name loses it; its
    /// content is not touched, because after a crash it may have another name too (a rename half done).
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Renames a file, replacing what has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Room on the disk that holds a folder.
    fn space(&self, path: &Path) -> io::Result<Space>;
    /// Takes a lock file for this process, writing its id into it; held until dropped.
    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>, LockError>;
}

/// An open file. Writes go where they are told to; there is no position.
pub trait File: Send + Sync + fmt::Debug {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Reads up to `buffer.len()` bytes.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Fills `buffer` if the system has these bytes in memory, without ever waiting for the disk; `false` where it
    /// has not, or cannot tell.
    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> bool {
        let _ = (buffer, offset);
        false
    }
    /// Writes some of these bytes and says how many.
    fn write_at(&self, bytes: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;
    /// Makes what was written, and the length, durable.
    fn sync(&self) -> io::Result<()>;
    /// Makes it at least this long, with zeros that have their place on the disk.
    fn allocate(&self, length: u64) -> io::Result<()>;
    /// Cuts it, or lengthens it with zeros.
    fn truncate(&self, length: u64) -> io::Result<()>;
}

/// Room on a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What this process may still use.
    pub free: u64,
    /// The size of the disk.
    pub total: u64,
}

/// A lock that is held.
pub trait Lock: Send + Sync + fmt::Debug {}

/// Why a lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("process {0} is using it")]
    Held(String),
    /// The lock file could not be made.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a whole file.
pub fn read(files: &dyn Files, path: &Path) -> io::Result<Vec<u8>> {
    let file = files.open(path)?;
    let length = usize::try_from(file.length()?).map_err(|_| ErrorKind::FileTooLarge)?;
    let mut content = vec![0; length];
    read_exact(&*file, &mut content, 0)?;
    Ok(content)
}

/// Reads exactly `buffer.len()` bytes.
pub fn read_exact(file: &dyn File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let got = match file.read_at(buffer, offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        buffer = buffer.get_mut(got..).unwrap_or_default();
        offset = offset.saturating_add(u64::try_from(got).unwrap_or(u64::MAX));
    }
    Ok(())
}

/// Writes all of these slices, however many calls it takes.
pub fn write_all(file: &dyn File, mut bytes: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    // How many slices one call takes (IOV_MAX).
    const MOST: usize = 1024;
    IoSlice::advance_slices(&mut bytes, 0);
    while !bytes.is_empty() {
        let some = bytes.get(..MOST).unwrap_or(bytes);
        let written = match file.write_at(some, offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        IoSlice::advance_slices(&mut bytes, written);
        offset = offset.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
    }
    Ok(())
}

/// Writes a new file with this content, durably, its name included.
pub fn write_new(files: &dyn Files, folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let aside = folder.join(format!(".{name}.part"));
    let file = files.create(&aside)?;
    write_all(&*file, &mut [IoSlice::new(content)], 0)?;
    file.sync()?;
    files.rename(&aside, &folder.join(name))?;
    files.sync_dir(folder)
}

// === the machine's files ===

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemFiles;

#[derive(Debug)]
struct SystemFile(fs::File);

#[derive(Debug)]
struct SystemLock {
    _file: fs::File,
}

impl Lock for SystemLock {}

impl Files for SystemFiles {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Ok(()),
        };
        if path.is_dir() {
            // Whoever made it may have crashed before its name was durable. Where we may not read the folder
            // above, somebody else made it.
            let _ = self.sync_dir(parent);
            return Ok(());
        }
        self.create_dir(parent)?;
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => self.sync_dir(parent),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = match fs::OpenOptions::new().read(true).write(true).open(path) {
            // Looking at a store on a disk that cannot be written to.
            Err(error)
                if matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) =>
            {
                fs::File::open(path)?
            }
            file => file?,
        };
        Ok(Arc::new(SystemFile(file)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Arc::new(SystemFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>, LockError> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                return Err(LockError::Held(holder.trim().to_owned()));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        // Over what is there, and cut behind: a full disk has no room for a second block, and may have none for
        // a first one; then others will not learn our id.
        let id = format!("{}\n", std::process::id());
        let written = file.write_all_at(id.as_bytes(), 0).and_then(|()| file.set_len(id.len() as u64));
        match written {
            Err(error) if error.kind() != ErrorKind::StorageFull => Err(error.into()),
            _ => Ok(Box::new(SystemLock { _file: file })),
        }
    }
}

impl File for SystemFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    #[cfg(target_os = "linux")]
    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> bool {
        use rustix::io::{ReadWriteFlags, preadv2};
        let length = buffer.len();
        let read = preadv2(&self.0, &mut [io::IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT);
        read == Ok(length)
    }

    fn write_at(&self, bytes: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(&self.0, bytes, offset)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, length) {
            // Not every file system can: then the file grows as it is written.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            result => Ok(result?),
        }
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
}
