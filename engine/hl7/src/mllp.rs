//! MLLP frames in a byte stream: `<VT> message <FS> <CR>`.
//!
//! HL7 v2.5.1 appendix C and the Minimal Lower Layer Protocol's Transport Specification, with the leniency of CONTRACT
//! §2.1. Pure: the caller reads from its socket into a buffer, asks [`Scanner::next`] until it needs more, and owns the
//! timers (after FS without CR, for slow frames).
//!
//! - A frame begins at VT. Line ends before it are nothing, any other byte is junk: skipped and counted.
//! - FS CR ends it. FS followed by another byte ends it too (a finding; that byte belongs to what comes next), as does FS
//!   followed by nothing for the caller's patience ([`Scanner::flush`]); a CR that comes later is skipped like any line end.
//! - VT inside a frame is data: text may not hold it, but a message that does is one message, and restarting at it would
//!   deliver the tail of a value as a message of its own.
//! - A frame that grows past the cap is reported at once, with its beginning; what follows is dropped as it comes, up to
//!   the end of that frame. The buffer never holds more than the cap and what one read added.
//!
//! Scanning resumes where it stopped, so that a large frame in small reads costs one pass.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use memchr::memchr;

use crate::Finding;

/// Begins a frame.
pub const VT: u8 = 0x0b;
/// Ends a frame, together with a CR.
pub const FS: u8 = 0x1c;
const CR: u8 = b'\r';

/// How much of a frame that is too large is kept for the answer.
const HEAD: usize = 64 * 1024;

/// Bounds of a [`Scanner`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest message, frame marks not counted.
    pub max_message: usize,
}

/// What [`Scanner::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole frame, taken out of the buffer.
    Frame(Frame),
    /// A frame passed the cap. Its rest will be skipped; frames after it come as usual.
    TooLarge(TooLarge),
    /// Everything in the buffer has been looked at.
    NeedMore {
        /// A frame has begun and not ended (also one that is being skipped).
        in_frame: bool,
        /// The last byte so far is the FS of an unfinished frame: [`Scanner::flush`] would end it here.
        waiting_after_fs: bool,
    },
}

/// A whole frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// What stood between the frame marks, byte for byte.
    pub body: Bytes,
    /// Bytes skipped before it, line ends not counted.
    pub junk_before: usize,
    /// No CR followed the FS.
    pub without_cr: bool,
}

/// The beginning of a frame that passed the cap.
#[derive(Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// Its first 64 KiB (or as much as the cap allows): enough to read the header for the answer.
    pub head: Bytes,
    /// Bytes skipped before it, line ends not counted.
    pub junk_before: usize,
}

/// Finds frames. One per connection and direction.
#[derive(Debug, Clone)]
pub struct Scanner {
    limits: Limits,
    state: State,
    junk: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    /// VT has been taken; the buffer begins with the body, whose first `scanned` bytes hold no FS.
    Inside {
        scanned: usize,
    },
    /// Inside a frame that passed the cap.
    Skipping,
    /// As `Skipping`, and the last byte was FS.
    SkippingAfterFs,
}

impl Scanner {
    /// Stands between frames.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: State::Between, junk: 0 }
    }

    /// Takes the next frame from the front of `buf`. Call until it answers [`Event::NeedMore`]; then append to `buf` and
    /// call again. Nobody else may take bytes from `buf` meanwhile.
    pub fn next(&mut self, buf: &mut BytesMut) -> Event {
        loop {
            match self.state {
                State::Between => {
                    if !self.begin(buf) {
                        return Event::NeedMore { in_frame: false, waiting_after_fs: false };
                    }
                }
                State::Inside { scanned } => return self.inside(buf, scanned),
                State::Skipping => match memchr(FS, buf) {
                    Some(at) => {
                        buf.advance(at + 1);
                        self.state = State::SkippingAfterFs;
                    }
                    None => {
                        buf.clear();
                        return Event::NeedMore { in_frame: true, waiting_after_fs: false };
                    }
                },
                State::SkippingAfterFs => {
                    if buf.is_empty() {
                        return Event::NeedMore { in_frame: true, waiting_after_fs: true };
                    }
                    // The CR, if it is one, is skipped as a line end between frames.
                    self.state = State::Between;
                }
            }
        }
    }

    /// Ends a frame that waits after its FS. For the caller's timer; `None` where nothing waits.
    pub fn flush(&mut self, buf: &mut BytesMut) -> Option<Frame> {
        match self.state {
            State::SkippingAfterFs => {
                self.state = State::Between;
                None
            }
            State::Inside { scanned } if buf.get(scanned) == Some(&FS) && buf.len() == scanned + 1 => {
                Some(self.frame(buf, scanned, true))
            }
            _ => None,
        }
    }

    /// Takes what there is of an unfinished frame, for a caller that gives it up. Stands between frames afterwards.
    pub fn abandon(&mut self, buf: &mut BytesMut) -> Option<Bytes> {
        let inside = matches!(self.state, State::Inside { .. });
        self.state = State::Between;
        self.junk = 0;
        inside.then(|| buf.split().freeze())
    }

    /// Junk seen since the last frame. At the end of a stream it belongs to no frame.
    pub fn junk(&self) -> usize {
        self.junk
    }

    /// Goes to the next VT. False where there is none yet.
    fn begin(&mut self, buf: &mut BytesMut) -> bool {
        let start = memchr(VT, buf);
        let before = buf.get(..start.unwrap_or(buf.len())).unwrap_or_default();
        self.junk = self.junk.saturating_add(before.iter().filter(|b| !matches!(b, b'\r' | b'\n')).count());
        match start {
            Some(at) => {
                buf.advance(at + 1);
                self.state = State::Inside { scanned: 0 };
                true
            }
            None => {
                buf.clear();
                false
            }
        }
    }

    fn inside(&mut self, buf: &mut BytesMut, scanned: usize) -> Event {
        let fresh = buf.get(scanned..).unwrap_or_default();
        let end = memchr(FS, fresh).map(|at| scanned + at);
        let length = end.unwrap_or(buf.len());
        if length > self.limits.max_message {
            return self.too_large(buf, end);
        }
        let Some(end) = end else {
            self.state = State::Inside { scanned: buf.len() };
            return Event::NeedMore { in_frame: true, waiting_after_fs: false };
        };
        match buf.get(end + 1) {
            Some(&next) => Event::Frame(self.frame(buf, end, next != CR)),
            None => {
                self.state = State::Inside { scanned: end };
                Event::NeedMore { in_frame: true, waiting_after_fs: true }
            }
        }
    }

    fn frame(&mut self, buf: &mut BytesMut, end: usize, without_cr: bool) -> Frame {
        let body = buf.split_to(end).freeze();
        buf.advance(if without_cr { 1 } else { 2 });
        self.state = State::Between;
        Frame { body, junk_before: std::mem::take(&mut self.junk), without_cr }
    }

    fn too_large(&mut self, buf: &mut BytesMut, end: Option<usize>) -> Event {
        let head = Bytes::copy_from_slice(
            buf.get(..HEAD.min(self.limits.max_message).min(buf.len())).unwrap_or_default(),
        );
        match end {
            Some(end) => {
                buf.advance(end + 1);
                self.state = State::SkippingAfterFs;
            }
            None => {
                // Gives the memory back, too: the buffer has grown to the cap.
                *buf = BytesMut::new();
                self.state = State::Skipping;
            }
        }
        Event::TooLarge(TooLarge { head, junk_before: std::mem::take(&mut self.junk) })
    }
}

impl Frame {
    /// What is odd about the framing.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.junk_before > 0 {
            let text = format!("bytes between frames, skipped: {}", self.junk_before);
            findings.push(Finding::new("frame.junk_before", text));
        }
        if self.without_cr {
            findings.push(Finding::new("frame.without_cr", "the frame ended in FS without CR"));
        }
        findings
    }
}

/// Sizes only.
impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { body, junk_before, without_cr } = self;
        write!(f, "Frame({} bytes, junk before: {junk_before}, without CR: {without_cr})", body.len())
    }
}

/// Sizes only.
impl std::fmt::Debug for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TooLarge({} bytes kept, junk before: {})", self.head.len(), self.junk_before)
    }
}

/// Appends `body` as a frame.
pub fn encode(body: &[u8], dst: &mut BytesMut) {
    dst.reserve(body.len() + 3);
    dst.put_u8(VT);
    dst.put_slice(body);
    dst.put_slice(&[FS, CR]);
}

/// Whether `body` can be sent as a frame: an FS inside it would end the frame there.
pub fn fits_in_frame(body: &[u8]) -> bool {
    memchr(FS, body).is_none()
}

/// The body of `bytes`, whether they are framed or not: without a VT before it and an FS (and CR) after it. For replies
/// over HTTP, which come either way.
pub fn unframed(bytes: &[u8]) -> &[u8] {
    let Some(start) = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n' | b' ')) else { return bytes };
    let Some([VT, body @ ..]) = bytes.get(start..) else { return bytes };
    body.get(..memchr(FS, body).unwrap_or(body.len())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAP: usize = 100;

    /// Feeds the pieces one after the other; frames as text, `!` for too large, `…` where the scanner waits in a frame.
    fn scan(pieces: &[&[u8]]) -> Vec<String> {
        let mut scanner = Scanner::new(Limits { max_message: CAP });
        let mut buf = BytesMut::new();
        let mut seen = Vec::new();
        let show = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        for piece in pieces {
            buf.extend_from_slice(piece);
            loop {
                match scanner.next(&mut buf) {
                    Event::Frame(frame) => {
                        let junk = if frame.junk_before > 0 {
                            format!(" +{}", frame.junk_before)
                        } else {
                            String::new()
                        };
                        let end = if frame.without_cr { " no CR" } else { "" };
                        seen.push(format!("{}{junk}{end}", show(&frame.body)));
                    }
                    Event::TooLarge(large) => seen.push(format!("!{}", large.head.len())),
                    Event::NeedMore { .. } => break,
                }
            }
            assert!(buf.len() <= CAP + piece.len());
        }
        match scanner.next(&mut buf) {
            Event::NeedMore { in_frame: true, waiting_after_fs } => {
                seen.push(String::from(if waiting_after_fs { "…FS" } else { "…" }));
                if let Some(frame) = scanner.flush(&mut buf) {
                    seen.push(format!("{} flushed", show(&frame.body)));
                }
            }
            Event::NeedMore { .. } => {}
            other => panic!("{other:?}"),
        }
        seen
    }

    fn check(stream: &[u8], expect: &[&str]) {
        assert_eq!(scan(&[stream]), expect, "in one read");
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(scan(&bytes), expect, "byte by byte");
        for at in 0..stream.len() {
            let (first, second) = stream.split_at(at);
            assert_eq!(scan(&[first, second]), expect, "split at {at}");
        }
    }

    #[test]
    fn whole_pipelined_and_split_frames_are_found() {
        check(b"\x0bA\x1c\r", &["A"]);
        check(b"\x0bA\x1c\r\x0bB\x1c\r\x0bC\x1c\r", &["A", "B", "C"]);
        check(b"\x0b\x1c\r", &[""]);
        check(b"", &[]);
        check(b"\x0bA\rB", &["…"]);
    }

    #[test]
    fn junk_is_counted_and_line_ends_are_not() {
        check(b"\r\n\x0bA\x1c\r\r\n\x0bB\x1c\r", &["A", "B"]);
        check(b"HELLO\r\n\x0bA\x1c\r", &["A +5"]);
        check(b"HELLO\r\n", &[]);
        check(b"\x1c\r\x0bA\x1c\r", &["A +1"]);
    }

    #[test]
    fn fs_without_cr_ends_a_frame() {
        check(b"\x0bA\x1c\x0bB\x1c\r", &["A no CR", "B"]);
        check(b"\x0bA\x1cxyz\x0bB\x1c\r", &["A no CR", "B +3"]);
        check(b"\x0bA\x1c\n\x0bB\x1c\r", &["A no CR", "B"]);
        check(b"\x0bA\x1c", &["…FS", "A flushed"]);
    }

    #[test]
    fn a_cr_after_a_flush_is_skipped() {
        let mut scanner = Scanner::new(Limits { max_message: CAP });
        let mut buf = BytesMut::from(&b"\x0bA\x1c"[..]);
        assert_eq!(scanner.next(&mut buf), Event::NeedMore { in_frame: true, waiting_after_fs: true });
        let frame = scanner.flush(&mut buf).unwrap();
        assert!(frame.without_cr && frame.body == "A");
        assert!(scanner.flush(&mut buf).is_none());
        buf.extend_from_slice(b"\r\x0bB\x1c\r");
        let Event::Frame(frame) = scanner.next(&mut buf) else { panic!("no frame") };
        assert_eq!((frame.body, frame.junk_before), (Bytes::from("B"), 0));
    }

    #[test]
    fn vt_inside_a_frame_is_data() {
        check(b"\x0bA\x0bB\x1c\r", &["A\x0bB"]);
    }

    #[test]
    fn the_cap_is_exact_and_the_next_frame_survives() {
        let framed = |n: usize| [b"\x0b".as_slice(), &vec![b'x'; n], b"\x1c\r"].concat();
        let fits = "x".repeat(CAP);
        check(&[framed(CAP), framed(1)].concat(), &[&fits, "x"]);
        check(&[framed(CAP + 1), framed(1)].concat(), &["!100", "x"]);
        check(&[framed(5 * CAP), framed(1)].concat(), &["!100", "x"]);
        check(&[b"\x0b".as_slice(), &[b'x'; 3 * CAP]].concat(), &["!100", "…"]);
        let without_cr = [framed(2 * CAP).strip_suffix(b"\r").unwrap(), &framed(1)].concat();
        check(&without_cr, &["!100", "x"]);
    }

    #[test]
    fn an_unfinished_frame_can_be_given_up() {
        let mut scanner = Scanner::new(Limits { max_message: CAP });
        let mut buf = BytesMut::from(&b"\x0bMSH|half"[..]);
        scanner.next(&mut buf);
        assert_eq!(scanner.abandon(&mut buf).unwrap(), "MSH|half");
        assert!(scanner.abandon(&mut buf).is_none());
    }

    #[test]
    fn a_large_frame_in_small_reads_is_scanned_once() {
        let mut scanner = Scanner::new(Limits { max_message: 1 << 20 });
        let mut buf = BytesMut::from(&b"\x0b"[..]);
        for _ in 0..1000 {
            buf.extend_from_slice(&[b'x'; 100]);
            scanner.next(&mut buf);
            assert_eq!(scanner.state, State::Inside { scanned: buf.len() });
        }
    }

    #[test]
    fn framing_is_taken_off_only_where_it_is() {
        assert_eq!(unframed(b"\x0bMSA\x1c\r"), b"MSA");
        assert_eq!(unframed(b"\r\n\x0bMSA"), b"MSA");
        assert_eq!(unframed(b"MSA\r"), b"MSA\r");
        assert_eq!(unframed(b""), b"");
    }

    proptest! {
        #[test]
        fn encoded_frames_come_back(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>().prop_filter("FS", |b| *b != FS), 0..CAP), 0..6),
            cuts in prop::collection::vec(0_usize..400, 0..8),
        ) {
            let mut stream = BytesMut::new();
            for body in &bodies {
                encode(body, &mut stream);
            }
            let mut scanner = Scanner::new(Limits { max_message: CAP });
            let mut buf = BytesMut::new();
            let mut found = Vec::new();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            for cut in cuts.windows(2) {
                buf.extend_from_slice(&stream[cut[0]..cut[1]]);
                while let Event::Frame(frame) = scanner.next(&mut buf) {
                    found.push(frame.body.to_vec());
                }
            }
            prop_assert_eq!(found, bodies);
            prop_assert!(buf.is_empty());
        }
    }
}
