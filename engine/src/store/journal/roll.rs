//! From one segment to the next: sealing, naming durably, and having the room for the next one in time.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Identity, MOST_RESERVE, Next, PREPARED, PendingFrame, RESERVE, Segment, Stop, Writer, is_full};
use crate::files::{self, File, Files};
use crate::store::api::StoreFailed;
use crate::store::codec::Encoder;
use crate::store::disk::Disk;
use crate::store::keeper::Task;
use crate::store::segment::{self, FrameKind, HEADER, Position, SegmentHeader};

impl Writer {
    /// Seals the segment and goes on in the next one.
    pub(super) fn roll(&mut self) -> Result<(), Stop> {
        self.seal(None)?;
        let next = Next { segment: self.segment.number + 1, batch: self.batch, sequence: self.sequence };
        self.segment = self.until_room("the next segment could not be made", |writer| {
            let prepared = writer.prepared.take();
            let size = prepare_size(&writer.disk, writer.segment_size);
            let (files, folder) = (&*writer.files, &*writer.folder);
            match create_segment(files, folder, prepared, writer.identity, next, size) {
                Err(error) if is_full(&error) && writer.has_reserve => {
                    writer.has_reserve = false;
                    let reserve = take_reserve(files, folder).ok_or(error)?;
                    create_segment(files, folder, Some(reserve), writer.identity, next, 0)
                }
                segment => segment,
            }
        })?;
        self.synced = Position { segment: self.segment.number, offset: self.segment.offset };
        self.disk.set_synced(self.synced);
        self.shared.open_segment.store(self.segment.number, Ordering::Release);
        self.shared.open_since.store(i64::MAX, Ordering::Release);
        self.disk.look();
        Ok(())
    }

    /// Writes the end frame and gives back the room behind it.
    fn seal(&mut self, next_id: Option<u64>) -> Result<(), Stop> {
        self.encoder.clear();
        encode_end(next_id, &mut self.encoder);
        self.persist(FrameKind::End)?;
        // A file that stays longer than it needs to be costs room, and is as readable.
        if self.segment.file.truncate(self.segment.offset).is_ok() {
            self.sync()?;
        }
        // The line is long; a keeper that is so far behind cannot write, and the next opening does its work.
        let _ = self.keeper.try_send(Task::Sealed(self.segment.number, self.sequence));
        Ok(())
    }

    pub(super) fn close(&mut self) -> Result<(), StoreFailed> {
        let next_id = self.shared.ids.peek();
        match self.seal(Some(next_id)) {
            Ok(()) => {
                if self.prepared.take().is_some() {
                    let _ = self.files.remove(&self.folder.join(PREPARED));
                }
                Ok(())
            }
            Err(Stop::Failed(why)) => {
                self.shared.poison(&why);
                Err(self.failure())
            }
            Err(Stop::Full) => Err(StoreFailed("the disk is full".to_owned())),
        }
    }

    /// Keeps room for when the disk has none, where it can be spared now.
    pub(super) fn keep_reserve(&mut self) {
        if !self.has_reserve && self.disk.can_prepare(MOST_RESERVE.min(self.segment_size)) {
            self.make_reserve();
        }
    }

    /// A segment that was begun where there was no more room than for its beginning goes on in that of the reserve.
    pub(super) fn write_or_give_up_reserve(&mut self, frame: &PendingFrame) -> io::Result<()> {
        match self.write_frame(frame) {
            Err(error) if is_full(&error) && std::mem::take(&mut self.has_reserve) => {
                self.files.remove(&self.folder.join(RESERVE))?;
                self.write_frame(frame)
            }
            result => result,
        }
    }

    /// Makes the reserve out of what there is, be it less than it should be.
    pub(super) fn make_reserve(&mut self) {
        let (path, most) = (self.folder.join(RESERVE), MOST_RESERVE.min(self.segment_size));
        self.has_reserve = [most, most / 4, most / 16].into_iter().any(|size| {
            let made = self.files.create(&path);
            made.and_then(|file| file.allocate(size).and_then(|()| file.sync())).is_ok()
        });
        if !self.has_reserve {
            // Without it, a disk that somebody else fills stops completions too.
            let _ = self.files.remove(&path);
        }
        self.disk.look();
    }

    /// Preallocates the next segment when the current one is half full and the disk has room to spare.
    pub(super) fn prepare(&mut self) {
        // Asking the file system costs little, but not nothing.
        if self.unseen > 256 << 10 {
            self.unseen = 0;
            self.disk.look();
        }
        self.keep_reserve();
        if self.prepared.is_some() || self.segment.offset < self.segment_size / 2 {
            return;
        }
        let size = prepare_size(&self.disk, self.segment_size);
        if size == 0 {
            return;
        }
        let path = self.folder.join(PREPARED);
        let made = self.files.create(&path).and_then(|file| file.allocate(size).map(|()| file));
        match made {
            Ok(file) => self.prepared = Some((file, size)),
            Err(_) => {
                // It was an attempt to have room early; the roll tries again and waits if it must.
                let _ = self.files.remove(&path);
            }
        }
        self.disk.look();
        self.note_room();
    }

    pub(super) fn note_room(&self) {
        let current = self.segment.allocated.saturating_sub(self.segment.offset);
        self.disk.set_room(current + self.prepared.as_ref().map_or(0, |(_, size)| *size));
    }
}

/// The payload of an end frame.
pub(in crate::store) fn encode_end(next_id: Option<u64>, out: &mut Encoder) {
    if let Some(next_id) = next_id {
        out.flag(1, true);
        out.number(2, next_id);
    }
}

/// How much to preallocate: a segment, if the disk has it to spare.
pub(super) fn prepare_size(disk: &Disk, segment_size: u64) -> u64 {
    if disk.can_prepare(segment_size) { segment_size } else { 0 }
}

/// Room that an earlier process left, lengthened to `size` where the disk has it. Only what has never been
/// written: after a crash in a rename, a file may be a segment under its other name too.
pub(super) fn left_over(files: &dyn Files, path: &Path, size: u64) -> Option<(Arc<dyn File>, u64)> {
    let file = files.open(path).ok()?;
    let length = file.length().ok()?;
    let mut beginning = [0; HEADER];
    files::read_exact(&*file, &mut beginning, 0).ok()?;
    if beginning != [0; HEADER] {
        return None;
    }
    let longer = size > length && file.allocate(size).is_ok();
    Some((file, if longer { size } else { length }))
}

/// The reserve, as room for the next segment.
pub(super) fn take_reserve(files: &dyn Files, folder: &Path) -> Option<(Arc<dyn File>, u64)> {
    let reserve = left_over(files, &folder.join(RESERVE), 0)?;
    files.rename(&folder.join(RESERVE), &folder.join(PREPARED)).ok()?;
    Some(reserve)
}

/// Makes a segment durable under its name, with nothing but its header in it.
pub(super) fn create_segment(
    files: &dyn Files,
    folder: &Path,
    prepared: Option<(Arc<dyn File>, u64)>,
    identity: Identity,
    next: Next,
    allocate: u64,
) -> io::Result<Segment> {
    let aside = folder.join(PREPARED);
    let (file, allocated) = match prepared {
        Some(prepared) => prepared,
        None => {
            let file = files.create(&aside)?;
            // Without room for all of it, it grows as it is written.
            let allocated = if allocate > 0 && file.allocate(allocate).is_ok() { allocate } else { 0 };
            (file, allocated)
        }
    };
    let Identity { epoch, salt, key_id } = identity;
    let Next { segment: number, batch, sequence } = next;
    let header = SegmentHeader { number, epoch, salt, key_id, sequence, batch }.encode();
    files::write_all(&*file, &mut [IoSlice::new(&header)], 0)?;
    file.sync()?;
    files.rename(&aside, &segment::path(folder, number))?;
    files.sync_dir(folder)?;
    Ok(Segment { number, file, offset: HEADER as u64, allocated })
}
