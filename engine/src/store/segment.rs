//! One segment file: a header, then frames up to its end mark.
//!
//! ```text
//! file      header (64 bytes) ‖ frame ‖ frame ‖ … ‖ end frame        (zeros may follow: preallocated room)
//! header    "SEPTETJ1" ‖ number u64 ‖ epoch u64 ‖ salt u32 ‖ key id u32 ‖ sequence u64 ‖ batch u64
//!           ‖ 12 zero bytes ‖ CRC-32 of the 60 bytes before
//! frame     "SPB1" ‖ crc u32 ‖ length u32 ‖ kind u16 ‖ version u16 ‖ segment u64 ‖ batch u64 ‖ sequence u64
//!           ‖ synced segment u64 ‖ synced offset u64 ‖ payload ‖ zeros up to a multiple of 8
//! ```
//!
//! All numbers are little endian. `crc` covers everything behind it up to the end of the payload and starts
//! from the store's salt, a random number from the header: bytes that look like a frame inside a message
//! body are none. `sequence` is the last transaction in or before the frame, `batch` counts frames without
//! gaps over all segments, and *synced* is the position that was known to be on stable storage when the
//! frame was written: that is how recovery tells damage from a torn tail. The payload of a batch is
//! described in [`super::record`]; that of an end frame is fields: 1 clean stop, 2 the next id after a
//! clean stop, 3 the segment's summary (reserved for checkpoints).

use std::path::{Path, PathBuf};

/// Length of a segment's header.
pub(super) const HEADER: usize = 64;
/// Length of a frame's header.
pub(super) const FRAME: usize = 56;
/// The version of frames that this code writes.
const VERSION: u16 = 1;
const SEGMENT_MAGIC: &[u8; 8] = b"SEPTETJ1";
const FRAME_MAGIC: &[u8; 4] = b"SPB1";

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// Transactions.
    Batch,
    /// The end of a segment: nothing follows in this file.
    End,
}

/// A place in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// The beginning of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u64,
    pub(super) epoch: u64,
    pub(super) salt: u32,
    pub(super) key_id: u32,
    /// The last transaction before this segment.
    pub(super) sequence: u64,
    /// Its first frame has this number.
    pub(super) batch: u64,
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: FrameKind,
    pub(super) segment: u64,
    pub(super) batch: u64,
    pub(super) sequence: u64,
    pub(super) synced: Position,
}

/// A whole frame that was found in a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) header: FrameHeader,
    pub(super) offset: usize,
    /// Where the next one begins.
    pub(super) end: usize,
    pub(super) payload: &'a [u8],
}

impl Frame<'_> {
    /// The same, in a file of which the bytes before it were not looked at.
    pub(super) fn moved(self, by: usize) -> Self {
        Frame { offset: self.offset + by, end: self.end + by, ..self }
    }
}

/// Why there is no frame at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoFrame {
    /// Only zeros follow, or nothing.
    End,
    /// Other bytes.
    Bad,
    /// A whole frame of a version that this code does not know.
    Newer,
}

/// `0000000001.seg`.
pub(super) fn file_name(number: u64) -> String {
    format!("{number:010}.seg")
}

/// The path of a segment.
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(file_name(number))
}

/// The number of a segment from its file name.
pub(super) fn number_of(name: &str) -> Option<u64> {
    name.strip_suffix(".seg")?.parse().ok()
}

/// The length of a frame with such a payload, padding included.
pub(super) fn frame_length(payload: usize) -> usize {
    (FRAME + payload).next_multiple_of(8)
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER);
        out.extend_from_slice(SEGMENT_MAGIC);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.key_id.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.batch.to_le_bytes());
        out.resize(HEADER - 4, 0);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` where it is not whole.
    pub(super) fn decode(file: &[u8]) -> Option<SegmentHeader> {
        let header = file.get(..HEADER)?;
        let (covered, crc) = header.split_last_chunk::<4>()?;
        let whole = header.starts_with(SEGMENT_MAGIC) && crc32fast::hash(covered) == u32::from_le_bytes(*crc);
        whole.then_some(())?;
        Some(SegmentHeader {
            number: u64_at(header, 8)?,
            epoch: u64_at(header, 16)?,
            salt: u32_at(header, 24)?,
            key_id: u32_at(header, 28)?,
            sequence: u64_at(header, 32)?,
            batch: u64_at(header, 40)?,
        })
    }
}

impl FrameHeader {
    /// The bytes of the frame's header over a payload in pieces of this total length.
    pub(super) fn encode<'a>(
        &self,
        salt: u32,
        payload: impl Iterator<Item = &'a [u8]>,
        length: usize,
    ) -> Option<[u8; FRAME]> {
        let kind: u16 = match self.kind {
            FrameKind::Batch => 1,
            FrameKind::End => 2,
        };
        let mut covered = Vec::with_capacity(FRAME);
        covered.extend_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
        covered.extend_from_slice(&kind.to_le_bytes());
        covered.extend_from_slice(&VERSION.to_le_bytes());
        for number in [self.segment, self.batch, self.sequence, self.synced.segment, self.synced.offset] {
            covered.extend_from_slice(&number.to_le_bytes());
        }
        let mut crc = crc32fast::Hasher::new_with_initial(salt);
        crc.update(&covered);
        for piece in payload {
            crc.update(piece);
        }
        let mut header = [0; FRAME];
        let (magic, rest) = header.split_at_mut(4);
        magic.copy_from_slice(FRAME_MAGIC);
        let (sum, rest) = rest.split_at_mut(4);
        sum.copy_from_slice(&crc.finalize().to_le_bytes());
        rest.copy_from_slice(&covered);
        Some(header)
    }
}

/// A whole frame around a small payload, padding included.
pub(super) fn encode_frame(header: &FrameHeader, salt: u32, payload: &[u8]) -> Option<Vec<u8>> {
    let mut frame = header.encode(salt, std::iter::once(payload), payload.len())?.to_vec();
    frame.extend_from_slice(payload);
    frame.resize(frame_length(payload.len()), 0);
    Some(frame)
}

/// The length of the payload of the frame that begins with these bytes.
pub(super) fn payload_length(header: &[u8]) -> Option<usize> {
    header
        .starts_with(FRAME_MAGIC)
        .then(|| u32_at(header, 8))?
        .and_then(|length| usize::try_from(length).ok())
}

/// The frame at an offset of a segment's file.
pub(super) fn frame_at(file: &[u8], offset: usize, segment: u64, salt: u32) -> Result<Frame<'_>, NoFrame> {
    let rest = file.get(offset..).unwrap_or_default();
    let Some(frame) = whole_frame(rest, segment, salt) else {
        return Err(if rest.iter().all(|byte| *byte == 0) { NoFrame::End } else { NoFrame::Bad });
    };
    let (kind, version) = (u16_at(rest, 12), u16_at(rest, 14));
    let kind = match (kind, version) {
        (Some(1), Some(VERSION)) => FrameKind::Batch,
        (Some(2), Some(VERSION)) => FrameKind::End,
        _ => return Err(NoFrame::Newer),
    };
    let header = FrameHeader { kind, ..frame.header };
    let end = offset + frame.end;
    Ok(Frame { header, offset, end: end.min(file.len()).max(offset + FRAME + frame.payload.len()), ..frame })
}

/// The frame that `bytes` begin with, if its magic, segment and CRC are right.
fn whole_frame(bytes: &[u8], segment: u64, salt: u32) -> Option<Frame<'_>> {
    if !bytes.starts_with(FRAME_MAGIC) || u64_at(bytes, 16)? != segment {
        return None;
    }
    let length = usize::try_from(u32_at(bytes, 8)?).ok()?;
    let payload = bytes.get(FRAME..FRAME.checked_add(length)?)?;
    let mut crc = crc32fast::Hasher::new_with_initial(salt);
    crc.update(bytes.get(8..FRAME + length)?);
    if crc.finalize() != u32_at(bytes, 4)? {
        return None;
    }
    let header = FrameHeader {
        kind: FrameKind::Batch,
        segment,
        batch: u64_at(bytes, 24)?,
        sequence: u64_at(bytes, 32)?,
        synced: Position { segment: u64_at(bytes, 40)?, offset: u64_at(bytes, 48)? },
    };
    Some(Frame { header, offset: 0, end: frame_length(length), payload })
}

/// The first whole frame at or behind an offset; frames begin at multiples of 8.
pub(super) fn next_frame(file: &[u8], from: usize, segment: u64, salt: u32) -> Option<Frame<'_>> {
    let starts = (from.next_multiple_of(8)..file.len()).step_by(8);
    let mut likely =
        starts.filter(|start| file.get(*start..).is_some_and(|rest| rest.starts_with(FRAME_MAGIC)));
    likely.find_map(|start| frame_at(file, start, segment, salt).ok())
}

/// What may be frames of a segment whose salt is not known: offset, CRC, and the bytes that it covers.
pub(super) fn likely_frames(
    file: &[u8],
    from: usize,
    segment: u64,
) -> impl Iterator<Item = (usize, u32, &[u8])> {
    let starts = (from.next_multiple_of(8)..file.len()).step_by(8);
    starts.filter_map(move |start| {
        let bytes = file.get(start..)?;
        if !bytes.starts_with(FRAME_MAGIC) || u64_at(bytes, 16)? != segment {
            return None;
        }
        let length = usize::try_from(u32_at(bytes, 8)?).ok()?;
        Some((start, u32_at(bytes, 4)?, bytes.get(8..FRAME.checked_add(length)?)?))
    })
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
