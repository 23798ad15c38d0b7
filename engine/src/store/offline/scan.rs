//! One segment as it lies on the disk: its whole frames in order, and the gaps between them. Needs no key.

use std::io;
use std::path::Path;

use crate::files::{self, Files};
use crate::store::codec::Fields;
use crate::store::segment::{self, Frame, FrameHeader, FrameKind, HEADER, NoFrame, SegmentHeader};

/// What a segment's file holds.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) number: u64,
    pub(super) length: usize,
    /// Absent where it cannot be read, or is that of another file.
    pub(super) header: Option<SegmentHeader>,
    pub(super) first: Option<FrameHeader>,
    pub(super) last: Option<FrameHeader>,
    /// Where its whole frames end.
    pub(super) end: usize,
    /// It has its end frame.
    pub(super) sealed: bool,
    /// The end frame of a clean stop.
    pub(super) clean: bool,
    pub(super) frames: u64,
    /// Bytes that are no frames, followed by frames.
    pub(super) gaps: Vec<Gap>,
    /// Bytes behind the last frame that are no zeros.
    pub(super) tail: usize,
    /// The tail begins with a whole frame that makes no sense: no torn write.
    pub(super) senseless: Option<String>,
    /// A whole frame of a version that this code does not know.
    pub(super) newer: Option<usize>,
    /// The disk cannot give all of it.
    pub(super) unreadable: bool,
    /// Frames were missing between these two: batches before and after.
    pub(super) skips: Vec<(usize, u64, u64)>,
}

/// Bytes that should be frames.
#[derive(Clone, Debug)]
pub(super) struct Gap {
    pub(super) offset: usize,
    pub(super) length: usize,
    /// The frame before, in this segment.
    pub(super) before: Option<FrameHeader>,
    /// The frame behind.
    pub(super) after: FrameHeader,
    /// The last transaction before the frame behind, where that could be told.
    pub(super) sequence: u64,
    /// What is wrong with it.
    pub(super) why: String,
}

/// How much the disk is asked for where it cannot give all.
const BLOCK: usize = 4096;

/// A file's bytes, and whether the disk could give them all: for those that it could not there are zeros.
pub(super) fn content(files: &dyn Files, path: &Path) -> io::Result<(Vec<u8>, bool)> {
    let bad = |error: &io::Error| error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    let opened = files.open(path).and_then(|file| Ok((file.length()?, file)));
    let (length, file) = match opened {
        Err(error) if bad(&error) => return Ok((Vec::new(), false)),
        opened => opened?,
    };
    let mut content = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?];
    match files::read_exact(&*file, &mut content, 0) {
        Err(error) if bad(&error) => {}
        read => return read.map(|()| (content, true)),
    }
    for (block, offset) in content.chunks_mut(BLOCK).zip((0u64..).step_by(BLOCK)) {
        match files::read_exact(&*file, block, offset) {
            Err(error) if bad(&error) => block.fill(0),
            read => read?,
        }
    }
    Ok((content, false))
}

/// What a look into a whole frame gave: how many transactions it holds, or why it cannot be read.
pub(super) type Look<'a> = dyn FnMut(&Frame<'_>) -> Result<u64, String> + 'a;

/// Goes through a segment. `look` is called for every whole frame.
pub(super) fn scan(content: &[u8], number: u64, salt: u32, look: &mut Look<'_>) -> Scan {
    let header =
        SegmentHeader::decode(content).filter(|header| header.number == number && header.salt == salt);
    let mut scan = Scan {
        number,
        length: content.len(),
        header,
        first: None,
        last: None,
        end: HEADER.min(content.len()),
        sealed: false,
        clean: false,
        frames: 0,
        gaps: Vec::new(),
        tail: 0,
        senseless: None,
        newer: None,
        unreadable: false,
        skips: Vec::new(),
    };
    let mut at = HEADER;
    // Where the gap began that we are in, and what is wrong there.
    let mut open: Option<(usize, String)> = None;
    loop {
        let frame = match segment::frame_at(content, at, number, salt) {
            Ok(frame) => frame,
            Err(NoFrame::End) => break,
            Err(NoFrame::Newer) => {
                scan.newer = Some(at);
                break;
            }
            Err(NoFrame::Bad) => {
                open.get_or_insert_with(|| (at, "no whole frame: the checksum does not fit".to_owned()));
                match segment::next_frame(content, at + 8, number, salt) {
                    Some(later) => later,
                    None => break,
                }
            }
        };
        at = frame.end;
        let transactions = match look(&frame) {
            Ok(transactions) => transactions,
            Err(why) => {
                scan.senseless = Some(why.clone());
                open.get_or_insert((frame.offset, why));
                continue;
            }
        };
        scan.whole(&frame, transactions, open.take());
        scan.senseless = None;
        if frame.header.kind == FrameKind::End {
            scan.sealed = true;
            scan.clean = clean(&frame);
            break;
        }
    }
    let from = open.map_or(scan.end, |(from, _)| from);
    if !scan.sealed {
        scan.end = from;
        let rest = content.get(from..).unwrap_or_default();
        scan.tail = rest.len() - rest.iter().rev().take_while(|byte| **byte == 0).count();
    }
    scan
}

impl Scan {
    /// A frame that can be read, perhaps behind a gap.
    fn whole(&mut self, frame: &Frame<'_>, transactions: u64, gap: Option<(usize, String)>) {
        let header = frame.header;
        let sequence = header.sequence.saturating_sub(transactions);
        match gap {
            Some((offset, why)) => {
                let length = frame.offset - offset;
                self.gaps.push(Gap { offset, length, before: self.last, after: header, sequence, why });
            }
            None => {
                let before = self.last.map(|last| last.batch);
                if let Some(before) = before.filter(|before| before + stands_for(frame) != header.batch) {
                    self.skips.push((frame.offset, before, header.batch));
                }
            }
        }
        self.first.get_or_insert(FrameHeader { sequence, ..header });
        self.last = Some(header);
        self.end = frame.end;
        self.frames += 1;
    }
}

/// How many frames this one is: more than itself where a repair put it in place of some that were lost.
fn stands_for(frame: &Frame<'_>) -> u64 {
    let first = Fields::new(frame.payload, 0).next().and_then(Result::ok);
    let lost = first.filter(|field| frame.header.kind == FrameKind::Batch && field.tag == 3);
    lost.and_then(|field| field.number().ok()).unwrap_or(1)
}

/// Whether an end frame marks a clean stop.
fn clean(frame: &Frame<'_>) -> bool {
    Fields::new(frame.payload, 0).flatten().any(|field| field.tag == 1)
}
