//! Checkpoints: the state as of a transaction, so that opening a store reads the end of the journal only.
//!
//! `checkpoint-NUMBER` in the store's folder, NUMBER being the segment where reading goes on; the last two
//! are kept, and no segment is dropped that the older of them needs. A checkpoint is written aside, synced
//! and renamed, once everything in it is durable in the journal.
//!
//! ```text
//! "SEPTETC1" ‖ length of the payload u64 ‖ CRC-32 of the payload u32 ‖ key id u32 ‖ payload
//! ```
//!
//! | in | tags |
//! |---|---|
//! | payload | 1 transaction, 2 segment, 3 next position, 4 highest id, 5 first id not reserved, 16 item, 17 header, 18 event, 19 kept value, 20 body, 21 line of what the index does not have, 22 expired session, 23 references of the item before (see `spine::Chunk`), 24 suspended messages of it that need not be in memory, 25 keys of its suspended messages |
//! | item | 1 name, 2 receives, 3 taken in, 4 rejected, 5 completed, 6 errors, 7 last activity, 8 last error, 9 reference (read only: until 23 came), 10 message that came back beyond the window |
//! | header | 1 transaction, 2 the header as in the journal |
//! | body | 1 id, 2 type, 3 content type, 4 charset, 5 place |
//! | reference | 1 id, 2 position, 3 frame (segment, offset), 4 type, 5 content type, 6 charset, 7 place |
//! | place | segment u64 ‖ offset u64 ‖ length u32 ‖ CRC-32 u32 ‖ sealed u8 |
//! | suspended | 1 id u64 ‖ position u64 ‖ frame (segment, offset) u64, again and again |
//! | keys | 1 order key u64 ‖ position u64, again and again |
//! | came back | 1 id, 2 position |
//! | line | 1 number, 2 pairs of transaction u64 and id u64 |
//! | expired session | 1 session, 2 last segment that may have a row of it |
//!
//! It is written and read a field at a time: a checkpoint may be much larger than the memory that Septet is to
//! have, and all of it is never there at once as bytes. Its CRC is checked before anything of it is believed.
//!
//! Sealed as in the journal. A required field that is not known makes the checkpoint unusable: a newer
//! version wrote it, and the journal is read instead as far as it goes.

mod decode;
mod encode;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bodies::{Description, Place};
use super::record::Sealer;
use super::state::Snapshot;
use crate::files::Files;
use crate::id::BodyId;
use crate::vault::Vault;

const MAGIC: &[u8; 8] = b"SEPTETC1";
const HEADER: usize = 24;
/// How much of it is in memory as bytes, but for a field that is larger.
const BUFFER: usize = 256 << 10;

/// A checkpoint.
#[derive(Debug, Default)]
pub(super) struct Checkpoint {
    pub(super) snapshot: Snapshot,
    /// The segment where reading goes on; the index has everything before it.
    pub(super) segment: u64,
    /// The first id that no reservation covered.
    pub(super) reserved: u64,
    /// Bodies that are on stable storage.
    pub(super) bodies: Vec<(BodyId, Place, Arc<Description>)>,
    /// Its length in bytes, once it was written or read.
    pub(super) length: u64,
}

/// What has to be known of a checkpoint after its content has become the state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// The last transaction in it.
    pub(super) sequence: u64,
    pub(super) segment: u64,
    pub(super) reserved: u64,
    pub(super) highest_id: u64,
    pub(super) length: u64,
}

impl Checkpoint {
    pub(super) fn mark(&self) -> Mark {
        let Checkpoint { snapshot, segment, reserved, length, .. } = self;
        let (sequence, highest_id) = (snapshot.sequence, snapshot.highest_id);
        Mark { sequence, segment: *segment, reserved: *reserved, highest_id, length: *length }
    }
}

/// `checkpoint-0000000007`.
fn file_name(segment: u64) -> String {
    format!("checkpoint-{segment:010}")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("checkpoint-")?.parse().ok()
}

/// The segments at which there are checkpoints, in order.
pub(super) fn list(files: &dyn Files, folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = files.list(folder)?.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Writes a checkpoint durably and removes all but the newest one before it. Gives its length in bytes.
pub(super) fn write(
    files: &dyn Files,
    folder: &Path,
    checkpoint: &Checkpoint,
    sealer: &Sealer,
) -> io::Result<u64> {
    let name = file_name(checkpoint.segment);
    let aside = folder.join(format!(".{name}.part"));
    let file = files.create(&aside)?;
    let length = encode::write(&*file, checkpoint, sealer)?;
    file.sync()?;
    files.rename(&aside, &folder.join(&name))?;
    files.sync_dir(folder)?;
    let older: Vec<u64> =
        list(files, folder)?.into_iter().filter(|number| *number < checkpoint.segment).collect();
    for number in older.iter().rev().skip(1) {
        files.remove(&folder.join(file_name(*number)))?;
    }
    Ok(length)
}

/// Reads the newest checkpoint that can be read and lies at this segment or before it.
pub(super) fn load_at_most(
    files: &dyn Files,
    folder: &Path,
    vault: &Vault,
    segment: u64,
) -> io::Result<Option<Checkpoint>> {
    for number in list(files, folder)?.into_iter().rev().filter(|number| *number <= segment) {
        let file = files.open(&folder.join(file_name(number)))?;
        let found = decode::read(&*file, vault)?.filter(|checkpoint| checkpoint.segment == number);
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What was found of checkpoints.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The newest that can be read.
    pub(super) newest: Option<Checkpoint>,
    /// Newer ones that could not.
    pub(super) unreadable: Vec<PathBuf>,
}

/// Reads the newest checkpoint that can be read.
pub(super) fn load(files: &dyn Files, folder: &Path, vault: &Vault) -> io::Result<Found> {
    let mut found = Found::default();
    for number in list(files, folder)?.into_iter().rev() {
        let path = folder.join(file_name(number));
        let file = files.open(&path)?;
        match decode::read(&*file, vault)? {
            Some(checkpoint) if checkpoint.segment == number => {
                found.newest = Some(checkpoint);
                break;
            }
            _ => found.unreadable.push(path),
        }
    }
    Ok(found)
}
