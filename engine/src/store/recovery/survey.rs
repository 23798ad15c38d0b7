//! A look at the segments that recovery does not read, because a checkpoint has what they did. One that cannot be
//! read does not stop the start: finished messages in it cannot be shown or sent again, and what waits lacks its
//! body when its turn comes, which is said then. It is told from the start on, so that somebody can repair it.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Damage, SegmentHeader};
use crate::files::{self, Files};
use crate::store::dropped;
use crate::store::open::OpenError;
use crate::store::segment::{self, FRAME, HEADER};
use crate::store::shared::Shared;

/// Those of these segments, which are in order, that are missing or cannot be read at all.
pub(super) fn survey(files: &dyn Files, folder: &Path, covered: &[u64]) -> Vec<Damage> {
    let (first, last) = (covered.first().copied(), covered.last().copied());
    let there: BTreeSet<u64> = covered.iter().copied().collect();
    let all = first.unwrap_or(1)..=last.unwrap_or(0);
    let damage = |number: u64| {
        let file = segment::path(folder, number);
        let why = match there.contains(&number) {
            true => header(files, &file, number).err()?,
            false => "it is missing".to_owned(),
        };
        Some(Damage { file, offset: 0, length: 0, why: Some(why) })
    };
    all.filter_map(damage).collect()
}

/// All damage, with the segments that are missing before the first that is there, though no purge has dropped them:
/// what purges have dropped is known when everything has been folded, unless part of that is damaged.
pub(super) fn with_beginning(
    folded: Vec<Damage>,
    surveyed: Vec<Damage>,
    shared: &Shared,
    folder: &Path,
    numbers: &[u64],
) -> Result<Vec<Damage>, OpenError> {
    let mut all = folded;
    let dropped = shared.state().dropped();
    if let (Some(first), Some(dropped), true) = (numbers.first(), dropped, all.is_empty()) {
        let missing = |number| {
            let why = Some("it is missing".to_owned());
            Damage { file: segment::path(folder, number), offset: 0, length: 0, why }
        };
        all.extend(dropped::missing(dropped, *first).map(missing));
        needs_none_of(shared, &all)?;
    }
    all.extend(surveyed);
    Ok(all)
}

fn header(files: &dyn Files, path: &Path, number: u64) -> Result<SegmentHeader, String> {
    let mut header = [0; HEADER];
    let read = files.open(path).and_then(|file| files::read_exact(&*file, &mut header, 0));
    read.map_err(|error| error.to_string())?;
    let header = SegmentHeader::decode(&header).filter(|header| header.number == number);
    header.ok_or_else(|| "its header is damaged".to_owned())
}

/// What waits beyond windows is read back from its segment: none of it may be in one of these.
pub(super) fn needs_none_of(shared: &Shared, unreadable: &[Damage]) -> Result<(), OpenError> {
    for Damage { file, why, .. } in unreadable {
        let number = file.file_name().and_then(|name| segment::number_of(name.to_str()?));
        if number.is_some_and(|number| shared.state().waits_in(number)) {
            return Err(OpenError::needed(file, why.as_deref().unwrap_or_default()));
        }
    }
    Ok(())
}

/// A number for the next frame that is behind those of all segments, where the last cannot be read.
pub(super) fn batch_behind(files: &dyn Files, folder: &Path, numbers: &[u64]) -> u64 {
    // No frame is shorter.
    let most = |number: u64| {
        let length = files.open(&segment::path(folder, number)).and_then(|file| file.length());
        length.map_or(1 << 32, |length| length / FRAME as u64 + 1)
    };
    let mut behind = 0;
    for number in numbers.iter().rev().copied() {
        behind += most(number);
        if let Ok(header) = header(files, &segment::path(folder, number), number) {
            return header.batch + behind;
        }
    }
    behind
}
