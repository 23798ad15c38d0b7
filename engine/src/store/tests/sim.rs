//! A disk in memory that behaves as badly as a disk may: until a sync it keeps what was written as a page
//! cache does, and when the power goes it forgets any part of it, down to single sectors and bytes. It can
//! fill up, fail a write, or fail a sync and forget what the sync was for.

use std::collections::BTreeMap;
use std::io::{self, Error, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::files::{File, Files, Lock, LockError, Space};

/// Random numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// What goes wrong next.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// The power goes after so many changes.
    pub(crate) power: Option<u64>,
    /// The sync after so many syncs fails, and what it was for is forgotten.
    pub(crate) sync: Option<u64>,
    /// The write after so many writes fails.
    pub(crate) write: Option<u64>,
    /// The disk holds so many bytes.
    pub(crate) capacity: Option<u64>,
    /// Syncs do not end as long as this is set.
    pub(crate) hold: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct SimFiles(Arc<Mutex<World>>);

#[derive(Debug, Default)]
struct World {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changes of names since their folder was synced.
    pending_names: Vec<(PathBuf, Option<usize>)>,
    faults: Faults,
    /// Whatever lies below this folder can neither be made nor opened nor listed.
    refused: Option<PathBuf>,
    /// These bytes of this file cannot be read (EIO).
    bad: Option<(usize, std::ops::Range<u64>)>,
    off: bool,
    /// The power went, or a sync failed.
    failed: bool,
    syncs: u64,
    lock: Arc<AtomicBool>,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write(offset, bytes) => {
                let end = offset + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(bytes);
            }
            Change::Resize(length) => content.resize(*length, 0),
        }
    }
}

fn no_power() -> Error {
    Error::other("the power is off")
}

impl World {
    /// One change of the disk; `false` when the power goes with it.
    fn change(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(no_power());
        }
        if let Some(left) = &mut self.faults.power {
            if *left == 0 {
                (self.off, self.failed) = (true, true);
                return Ok(false);
            }
            *left -= 1;
        }
        Ok(true)
    }

    /// Somebody may not use this.
    fn check(&self, path: &Path) -> io::Result<()> {
        match &self.refused {
            Some(refused) if path.starts_with(refused) => Err(ErrorKind::PermissionDenied.into()),
            _ => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        let named: std::collections::BTreeSet<_> = self.names.values().collect();
        named.into_iter().map(|inode| self.inodes[*inode].now.len() as u64).sum()
    }

    fn rename_entry(&mut self, path: &Path, inode: Option<usize>) {
        match inode {
            Some(inode) => self.names.insert(path.to_owned(), inode),
            None => self.names.remove(path),
        };
        self.pending_names.push((path.to_owned(), inode));
    }
}

impl SimFiles {
    pub(crate) fn new() -> Self {
        SimFiles(Arc::default())
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.world().faults = faults;
    }

    /// Whether the power has gone or a sync has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.world().failed
    }

    /// The disk is as large as need be from now on.
    pub(crate) fn make_room(&self) {
        self.world().faults.capacity = None;
    }

    /// Refuses a folder, or no longer.
    pub(crate) fn refuse(&self, folder: &str, refuse: bool) {
        self.world().refused = refuse.then(|| folder.into());
    }

    /// Bytes of a file that cannot be read any more.
    pub(crate) fn go_bad(&self, path: &str, bytes: std::ops::Range<u64>) {
        let mut world = self.world();
        let inode = world.names[Path::new(path)];
        world.bad = Some((inode, bytes));
    }

    /// The disk is as good as new.
    pub(crate) fn get_well(&self) {
        self.world().bad = None;
    }

    /// Removes everything in a folder.
    pub(crate) fn remove_under(&self, folder: &str) {
        let mut world = self.world();
        world.names.retain(|name, _| name.parent() != Some(Path::new(folder)));
        world.durable_names.retain(|name, _| name.parent() != Some(Path::new(folder)));
        world.pending_names.retain(|(name, _)| name.parent() != Some(Path::new(folder)));
    }

    /// How many files have been synced so far, or are being synced.
    pub(crate) fn syncs(&self) -> u64 {
        self.world().syncs
    }

    /// Bytes of all files.
    pub(crate) fn used(&self) -> u64 {
        self.world().used()
    }

    /// The same disk for a new process: what is in the page cache is still there.
    pub(crate) fn restart(&self) -> SimFiles {
        let old = self.world();
        SimFiles(Arc::new(Mutex::new(World {
            inodes: old.inodes.clone(),
            names: old.names.clone(),
            durable_names: old.durable_names.clone(),
            pending_names: old.pending_names.clone(),
            ..World::default()
        })))
    }

    /// The disk as it may be found after a power cut now.
    pub(crate) fn cut(&self, random: &mut Random) -> SimFiles {
        let old = self.world();
        let mut names = old.durable_names.clone();
        let kept = random.below(old.pending_names.len() as u64 + 1) as usize;
        for (path, inode) in &old.pending_names[..kept] {
            match inode {
                Some(inode) => names.insert(path.clone(), *inode),
                None => names.remove(path),
            };
        }
        let inodes = old.inodes.iter().map(|inode| after_cut(inode, random)).collect();
        SimFiles(Arc::new(Mutex::new(World {
            inodes,
            names: names.clone(),
            durable_names: names,
            ..World::default()
        })))
    }
}

/// A file after a power cut: what was synced, and any part of what was not.
fn after_cut(inode: &Inode, random: &mut Random) -> Inode {
    let mut content = inode.durable.clone();
    match random.below(3) {
        0 => {}
        1 => {
            // The first changes, the last of them torn.
            let whole = random.below(inode.pending.len() as u64 + 1) as usize;
            for change in &inode.pending[..whole] {
                change.apply(&mut content);
            }
            if let Some(Change::Write(offset, bytes)) = inode.pending.get(whole) {
                let torn = random.below(bytes.len() as u64 + 1) as usize;
                Change::Write(*offset, bytes[..torn].to_vec()).apply(&mut content);
            }
        }
        _ => {
            // Any sectors of any changes.
            for change in &inode.pending {
                match change {
                    Change::Resize(_) if random.one_in(2) => change.apply(&mut content),
                    Change::Resize(_) => {}
                    Change::Write(offset, bytes) => {
                        for (index, sector) in bytes.chunks(512).enumerate() {
                            if random.one_in(2) {
                                Change::Write(offset + index * 512, sector.to_vec()).apply(&mut content);
                            }
                        }
                    }
                }
            }
        }
    }
    Inode { now: content.clone(), durable: content, pending: Vec::new() }
}

#[derive(Debug)]
struct SimFile {
    world: Arc<Mutex<World>>,
    inode: usize,
}

#[derive(Debug)]
struct SimLock(Arc<AtomicBool>);

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Files for SimFiles {
    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        if !world.change()? {
            return Err(no_power());
        }
        let pending = std::mem::take(&mut world.pending_names);
        let (here, rest): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|(name, _)| name.parent() == Some(path));
        for (name, inode) in here {
            match inode {
                Some(inode) => world.durable_names.insert(name, inode),
                None => world.durable_names.remove(&name),
            };
        }
        world.pending_names = rest;
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let world = self.world();
        world.check(path)?;
        let here = world.names.keys().filter(|name| name.parent() == Some(path));
        Ok(here.map(|name| name.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let world = self.world();
        world.check(path)?;
        let inode = *world.names.get(path).ok_or(ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { world: self.0.clone(), inode }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut world = self.world();
        world.check(path)?;
        if !world.change()? {
            return Err(no_power());
        }
        if world.names.contains_key(path) {
            world.rename_entry(path, None);
        }
        world.inodes.push(Inode::default());
        let inode = world.inodes.len() - 1;
        world.rename_entry(path, Some(inode));
        Ok(Arc::new(SimFile { world: self.0.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        if !world.change()? {
            return Err(no_power());
        }
        world.check(from)?;
        let inode = *world.names.get(from).ok_or(ErrorKind::NotFound)?;
        world.names.remove(from);
        world.names.insert(to.to_owned(), inode);
        // After a cut in between, the file has both names.
        world.pending_names.push((to.to_owned(), Some(inode)));
        world.pending_names.push((from.to_owned(), None));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        if !world.change()? {
            return Err(no_power());
        }
        world.rename_entry(path, None);
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let world = self.world();
        let total = world.faults.capacity.unwrap_or(1 << 40);
        Ok(Space { free: total.saturating_sub(world.used()), total })
    }

    fn lock(&self, _path: &Path) -> Result<Box<dyn Lock>, LockError> {
        let lock = self.world().lock.clone();
        if lock.swap(true, Ordering::SeqCst) {
            return Err(LockError::Held("1".to_owned()));
        }
        Ok(Box::new(SimLock(lock)))
    }
}

impl SimFile {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// How many of `bytes` more bytes the disk has room for.
    fn room(&self, world: &World, end: usize) -> usize {
        let Some(capacity) = world.faults.capacity else { return end };
        let here = world.inodes[self.inode].now.len();
        let free = capacity.saturating_sub(world.used()) as usize;
        end.min(here.max(end.min(here + free)))
    }
}

impl File for SimFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.world().inodes[self.inode].now.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = self.world();
        let touches =
            |bytes: &std::ops::Range<u64>| offset < bytes.end && bytes.start < offset + buffer.len() as u64;
        if world.bad.as_ref().is_some_and(|(inode, bytes)| *inode == self.inode && touches(bytes)) {
            return Err(Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        let content = world.inodes[self.inode].now.get(offset as usize..).unwrap_or_default();
        let length = content.len().min(buffer.len());
        buffer[..length].copy_from_slice(&content[..length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut world = self.world();
        let on = world.change()?;
        let slices: Vec<&[u8]> = bytes.iter().map(|slice| &**slice).collect();
        let mut bytes = slices.concat();
        if let Some(left) = &mut world.faults.write {
            if *left == 0 {
                return Err(Error::other("the write failed"));
            }
            *left -= 1;
        }
        let offset = offset as usize;
        let end = self.room(&world, offset + bytes.len());
        bytes.truncate(end.saturating_sub(offset));
        if bytes.is_empty() {
            return Err(ErrorKind::StorageFull.into());
        }
        let change = Change::Write(offset, bytes.clone());
        let inode = &mut world.inodes[self.inode];
        change.apply(&mut inode.now);
        inode.pending.push(change);
        if on { Ok(bytes.len()) } else { Err(no_power()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.world().syncs += 1;
        while self.world().faults.hold {
            std::thread::yield_now();
        }
        let mut world = self.world();
        if !world.change()? {
            return Err(no_power());
        }
        let fails = match &mut world.faults.sync {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        world.failed |= fails;
        let inode = &mut world.inodes[self.inode];
        let pending = std::mem::take(&mut inode.pending);
        if fails {
            // The kernel calls the pages clean, and will not write them again.
            return Err(Error::other("the sync failed"));
        }
        for change in pending {
            change.apply(&mut inode.durable);
        }
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let length = length as usize;
        let mut world = self.world();
        if !world.change()? {
            return Err(no_power());
        }
        if self.room(&world, length) < length {
            return Err(ErrorKind::StorageFull.into());
        }
        let inode = &mut world.inodes[self.inode];
        if inode.now.len() < length {
            inode.now.resize(length, 0);
            inode.pending.push(Change::Resize(length));
        }
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut world = self.world();
        if !world.change()? {
            return Err(no_power());
        }
        let inode = &mut world.inodes[self.inode];
        inode.now.resize(length as usize, 0);
        inode.pending.push(Change::Resize(length as usize));
        Ok(())
    }
}
