//! Healing the last segment of an unclean stop: its whole frames, and an end frame behind them, are made
//! durable again, because after a failed sync the page cache may show what the disk has lost.
//!
//! Where there is room this is a copy that replaces the segment at once. On a full disk the same bytes are
//! written over themselves and synced: every sector gets what it should hold already, so that stopping
//! anywhere in between loses nothing. What is torn is kept beside the segment where there is room for it.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use super::journal::{encode_end, is_full};
use super::segment::{self, FrameHeader, FrameKind, Position};
use super::window::Window;
use crate::files::{self, Files};
use crate::store::codec::Encoder;

/// A copy on its way.
const ASIDE: &str = ".healed.part";

/// The last segment, as it was read.
#[derive(Debug)]
pub(super) struct Last<'a> {
    pub(super) number: u64,
    pub(super) content: &'a mut Window,
    /// Where its whole frames end, padding included: a multiple of 8, also where the file ends within the padding.
    pub(super) end: usize,
    /// The end frame that it lacks.
    pub(super) seal: Option<Vec<u8>>,
    /// Bytes behind the whole frames that are no preallocated room.
    pub(super) torn: Vec<u8>,
}

/// What was done.
#[derive(Debug)]
pub(super) struct Healed {
    /// The file with what was torn.
    pub(super) kept: Option<PathBuf>,
    /// The end frame was written.
    pub(super) sealed: bool,
}

/// Makes it durable, and sealed where there is room for that.
pub(super) fn heal(files: &dyn Files, folder: &Path, mut last: Last<'_>) -> io::Result<Healed> {
    let kept = if last.torn.is_empty() { None } else { keep(files, folder, &last)? };
    let sealed = match copy(files, folder, &mut last) {
        Err(error) if is_full(&error) => {
            // What there is of the copy is in the way now.
            let _ = files.remove(&folder.join(ASIDE));
            in_place(files, folder, &mut last)?
        }
        done => done.map(|()| last.seal.is_some())?,
    };
    Ok(Healed { kept, sealed })
}

/// Makes the end frame of a clean stop durable once more: if it was the sync of this frame that failed, it is
/// there for us to read but not on the disk, and the next power cut would make it look like damage.
pub(super) fn confirm(files: &dyn Files, path: &Path, seal: &[u8], offset: usize) -> io::Result<()> {
    let file = files.open(path)?;
    files::write_all(&*file, &mut [IoSlice::new(seal)], offset as u64)?;
    file.sync()
}

/// Keeps what was torn, where there is room.
fn keep(files: &dyn Files, folder: &Path, last: &Last<'_>) -> io::Result<Option<PathBuf>> {
    let name = format!("{:010}-{}.torn", last.number, last.end);
    match files::write_new(files, folder, &name, &last.torn) {
        Ok(()) => Ok(Some(folder.join(name))),
        Err(error) if is_full(&error) => {
            let _ = files.remove(&folder.join(format!(".{name}.part")));
            let bytes = last.torn.len();
            tracing::warn!(
                bytes,
                "the disk has no room to keep the incomplete last write of before the crash"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn copy(files: &dyn Files, folder: &Path, last: &mut Last<'_>) -> io::Result<()> {
    let aside = folder.join(ASIDE);
    let file = files.create(&aside)?;
    let seal = last.seal.as_deref().unwrap_or_default();
    last.content.copy(last.end.min(last.content.length()), &*file)?;
    files::write_all(&*file, &mut [IoSlice::new(seal)], last.end as u64)?;
    file.sync()?;
    files.rename(&aside, &segment::path(folder, last.number))?;
    files.sync_dir(folder)
}

/// Writes the same bytes to the same places. The room behind them is given back: it may be all there is.
/// Gives whether the end frame had room.
fn in_place(files: &dyn Files, folder: &Path, last: &mut Last<'_>) -> io::Result<bool> {
    let file = files.open(&segment::path(folder, last.number))?;
    last.content.copy(last.end.min(last.content.length()), &*file)?;
    file.sync()?;
    let (mut end, mut sealed) = (last.end as u64, false);
    if let Some(seal) = &last.seal {
        match files::write_all(&*file, &mut [IoSlice::new(seal)], end) {
            Ok(()) => (end, sealed) = (end + seal.len() as u64, true),
            // Without its end frame it is as readable: its successor says where it ended.
            Err(error) if is_full(&error) => {}
            Err(error) => return Err(error),
        }
    }
    file.truncate(end)?;
    file.sync()?;
    Ok(sealed)
}

/// The bytes of an end frame without a clean mark.
pub(super) fn end_frame(number: u64, batch: u64, sequence: u64, at: usize, salt: u32) -> Option<Vec<u8>> {
    let mut payload = Encoder::default();
    encode_end(None, &mut payload);
    let synced = Position { segment: number, offset: at as u64 };
    let header = FrameHeader { kind: FrameKind::End, segment: number, batch, sequence, synced };
    segment::encode_frame(&header, salt, &payload.buffer)
}
