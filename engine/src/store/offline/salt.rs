//! The salt of a store when no segment's header tells it any more. Every frame's CRC-32 starts from the salt,
//! and a CRC can be run backwards: from a frame's bytes and its CRC follows what it started from. Two frames
//! of a segment that give the same salt are no accident.

use std::collections::HashMap;

use crate::store::segment::{FRAME, HEADER, likely_frames};

/// The salt that the frames of a segment were written with.
pub(super) fn of_segment(content: &[u8], number: u64) -> Option<u32> {
    /// More than enough to outvote bytes of a body that look like a frame.
    const FRAMES: usize = 64;
    let mut votes: HashMap<u32, usize> = HashMap::new();
    let mut first = None;
    for (offset, crc, covered) in likely_frames(content, HEADER, number).take(FRAMES) {
        let salt = start(crc, covered);
        *votes.entry(salt).or_default() += 1;
        if offset == HEADER {
            first = Some(salt);
        }
    }
    let (salt, count) = votes.into_iter().max_by_key(|(_, count)| *count)?;
    // A segment with one frame only: it must be where the first one belongs.
    (count > 1 || (first == Some(salt) && content.len() > HEADER + FRAME)).then_some(salt)
}

/// What a CRC-32 started from that gave `crc` over these bytes.
fn start(crc: u32, bytes: &[u8]) -> u32 {
    let by_top = table_by_top();
    let back = |crc: u32, byte: &u8| {
        let (index, entry) = by_top.get((crc >> 24) as usize).copied().unwrap_or_default();
        ((crc ^ entry) << 8) | (index ^ u32::from(*byte))
    };
    !bytes.iter().rev().fold(!crc, back)
}

/// The table of the reflected polynomial 0xEDB88320, index and entry, by the highest byte of the entry: no two
/// entries have the same.
fn table_by_top() -> Vec<(u32, u32)> {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    let mut table: Vec<(u32, u32)> = (0..256).map(|index| (index, (0..8).fold(index, step))).collect();
    table.sort_unstable_by_key(|(_, entry)| entry >> 24);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_crc_is_found_from_its_end() {
        for (salt, bytes) in [(0, &b""[..]), (0xdead_beef, b"abc"), (7, &[0; 1000]), (u32::MAX, b"MSH|^~\\&")]
        {
            let mut crc = crc32fast::Hasher::new_with_initial(salt);
            crc.update(bytes);
            assert_eq!(start(crc.finalize(), bytes), salt);
        }
    }
}
