//! Batches: FHS/BHS files and streams of several messages.
//!
//! HL7 v2.5.1 §2.10.3: `[FHS] { [BHS] { message } [BTS] } [FTS]`. Real files leave headers and trailers out, so nothing is
//! required: a new part begins at every line that starts with MSH or with one of the four batch segments, and every byte
//! belongs to exactly one part.

use bytes::Bytes;
use memchr::memchr2_iter;

use crate::segment::Reading;
use crate::{Charset, Delimiters, Finding, Segment};

/// A split batch. Its parts, one after the other, are the bytes it was split from.
#[derive(Clone)]
pub struct Batch {
    parts: Vec<Part>,
}

/// One piece of a batch, line ends included.
#[derive(Clone)]
pub struct Part {
    /// What it is.
    pub kind: PartKind,
    /// Its bytes, shared with the whole.
    pub bytes: Bytes,
}

/// What a part of a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// `FHS`.
    FileHeader,
    /// `BHS`.
    BatchHeader,
    /// From one `MSH` to the next part.
    Message,
    /// `BTS`.
    BatchTrailer,
    /// `FTS`.
    FileTrailer,
    /// Lines before the first part.
    Other,
}

/// Whether `bytes` begin with FHS or BHS.
pub fn is_batch(bytes: &[u8]) -> bool {
    let start = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    matches!(kind_of(start), Some(PartKind::FileHeader | PartKind::BatchHeader))
}

/// The messages of a file, one after the other, without anything around them.
pub fn split_messages(bytes: &Bytes) -> Vec<Bytes> {
    Batch::split(bytes).messages().cloned().collect()
}

impl Batch {
    /// Splits anything; what holds no part at all becomes one [`PartKind::Other`].
    pub fn split(bytes: &Bytes) -> Self {
        let mut starts: Vec<(usize, PartKind)> = Vec::new();
        let mark = if bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let lines = memchr2_iter(b'\r', b'\n', bytes).map(|at| at + 1);
        for start in [mark].into_iter().chain(lines) {
            if let Some(kind) = bytes.get(start..).and_then(kind_of) {
                starts.push((start, kind));
            }
        }
        if starts.first().is_none_or(|&(start, _)| start > 0) && !bytes.is_empty() {
            // A byte order mark and blank lines go with what follows them.
            match starts.first_mut() {
                Some((start, _)) if bytes.get(mark..*start).is_some_and(|b| b.trim_ascii().is_empty()) => {
                    *start = 0
                }
                _ => starts.insert(0, (0, PartKind::Other)),
            }
        }
        let ends: Vec<usize> = starts.iter().skip(1).map(|&(start, _)| start).chain([bytes.len()]).collect();
        let parts = starts
            .into_iter()
            .zip(ends)
            .map(|((start, kind), end)| Part { kind, bytes: bytes.slice(start..end) });
        Self { parts: parts.collect() }
    }

    /// All parts in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The messages, line ends included.
    pub fn messages(&self) -> impl Iterator<Item = &Bytes> {
        self.of_kind(PartKind::Message)
    }

    /// The first batch header, or the file header where there is none.
    pub fn header(&self) -> Option<BatchHeader<'_>> {
        let bytes = self.of_kind(PartKind::BatchHeader).chain(self.of_kind(PartKind::FileHeader)).next()?;
        let line = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii();
        let end = memchr::memchr2(b'\r', b'\n', line).unwrap_or(line.len());
        let line = line.get(..end)?;
        let delimiters = Delimiters::of_header(line).ok()?;
        let reading = Reading { delimiters, charset: Charset::UTF_8 };
        Some(BatchHeader(Segment { text: line, scan: line, reading, number: 1 }))
    }

    /// How many messages BTS-1 announces.
    pub fn declared_count(&self) -> Option<usize> {
        let separator = self.header().map_or(b'|', |header| header.delimiters().field);
        let trailer = self.of_kind(PartKind::BatchTrailer).next()?;
        let count = trailer.split(|&b| b == separator || b == b'\r' || b == b'\n').nth(1)?;
        std::str::from_utf8(count).ok()?.trim().parse().ok()
    }

    /// What is odd about the batch.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let present = self.messages().count();
        let batches = self.of_kind(PartKind::BatchTrailer).count();
        if let Some(declared) = self.declared_count()
            && batches == 1
            && declared != present
        {
            let text = format!("BTS-1 announces {declared} messages, there are {present}");
            findings.push(Finding::new("batch.count", text));
        }
        if self.of_kind(PartKind::Other).next().is_some() {
            findings.push(Finding::new("batch.leading_lines", "there are lines before the first part"));
        }
        for (opening, closing, text) in [
            (PartKind::BatchHeader, PartKind::BatchTrailer, "BHS and BTS do not pair"),
            (PartKind::FileHeader, PartKind::FileTrailer, "FHS and FTS do not pair"),
        ] {
            if self.of_kind(opening).count() != self.of_kind(closing).count() {
                findings.push(Finding::new("batch.unpaired", text));
            }
        }
        findings
    }

    fn of_kind(&self, kind: PartKind) -> impl Iterator<Item = &Bytes> {
        self.parts.iter().filter(move |part| part.kind == kind).map(|part| &part.bytes)
    }
}

/// A BHS or FHS segment; both have the same first fields (v2.5.1 §2.15.2, §2.15.4).
#[derive(Clone, Copy)]
pub struct BatchHeader<'b>(Segment<'b>);

impl<'b> BatchHeader<'b> {
    /// As the header declares them.
    pub fn delimiters(&self) -> Delimiters {
        self.0.reading.delimiters
    }

    /// One field as encoded bytes: 3 and 4 sender, 5 and 6 receiver, 7 time, 11 control id.
    pub fn field(&self, number: u16) -> &'b [u8] {
        self.0.field(number).and_then(|range| self.0.raw().get(range)).unwrap_or_default()
    }
}

fn kind_of(line: &[u8]) -> Option<PartKind> {
    let [a, b, c, rest @ ..] = line else { return None };
    let ended = rest.first().is_none_or(|b| !b.is_ascii_alphanumeric() && *b != b' ');
    match [*a, *b, *c] {
        _ if !ended => None,
        [b'M', b'S', b'H'] => Some(PartKind::Message),
        [b'F', b'H', b'S'] => Some(PartKind::FileHeader),
        [b'B', b'H', b'S'] => Some(PartKind::BatchHeader),
        [b'B', b'T', b'S'] => Some(PartKind::BatchTrailer),
        [b'F', b'T', b'S'] => Some(PartKind::FileTrailer),
        _ => None,
    }
}

/// Kinds and sizes only.
impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.parts).finish()
    }
}

/// Kind and size only.
impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}({} bytes)", self.kind, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &'static str, expect: &[(PartKind, &str)]) -> Batch {
        let bytes = Bytes::from_static(text.as_bytes());
        let batch = Batch::split(&bytes);
        let parts: Vec<(PartKind, &str)> =
            batch.parts().iter().map(|part| (part.kind, std::str::from_utf8(&part.bytes).unwrap())).collect();
        assert_eq!(parts, expect);
        assert_eq!(parts.iter().map(|(_, text)| *text).collect::<String>(), text);
        batch
    }

    use PartKind::{BatchHeader, BatchTrailer, FileHeader, FileTrailer, Message, Other};

    #[test]
    fn a_whole_file_is_split() {
        let batch = check(
            "FHS|^~\\&|A|B|C|D\rBHS|^~\\&|A|B|C|D|1||||77\rMSH|^~\\&|1\rPID|1\rMSH|^~\\&|2\rBTS|2\rFTS|1\r",
            &[
                (FileHeader, "FHS|^~\\&|A|B|C|D\r"),
                (BatchHeader, "BHS|^~\\&|A|B|C|D|1||||77\r"),
                (Message, "MSH|^~\\&|1\rPID|1\r"),
                (Message, "MSH|^~\\&|2\r"),
                (BatchTrailer, "BTS|2\r"),
                (FileTrailer, "FTS|1\r"),
            ],
        );
        assert_eq!(batch.declared_count(), Some(2));
        assert_eq!(batch.header().unwrap().field(3), b"A");
        assert_eq!(batch.header().unwrap().field(11), b"77");
        assert!(batch.findings().is_empty());
    }

    #[test]
    fn incomplete_batches_are_split_and_noticed() {
        let batch = check(
            "BHS|^~\\&|A\r\nMSH|^~\\&|1\r\n\r\nMSHX|no header\r\nBTS|5\r\n",
            &[
                (BatchHeader, "BHS|^~\\&|A\r\n"),
                (Message, "MSH|^~\\&|1\r\n\r\nMSHX|no header\r\n"),
                (BatchTrailer, "BTS|5\r\n"),
            ],
        );
        assert_eq!(batch.findings().iter().map(|f| f.code).collect::<Vec<_>>(), ["batch.count"]);
        let codes = |batch: Batch| batch.findings().iter().map(|f| f.code).collect::<Vec<_>>();
        assert_eq!(codes(check("BHS|^~\\&|A", &[(BatchHeader, "BHS|^~\\&|A")])), ["batch.unpaired"]);
    }

    #[test]
    fn streams_of_messages_need_no_headers() {
        check("MSH|1\nPID|1\nMSH|2\n", &[(Message, "MSH|1\nPID|1\n"), (Message, "MSH|2\n")]);
        check("\n\nMSH|1", &[(Message, "\n\nMSH|1")]);
        check("junk\rMSH|1", &[(Other, "junk\r"), (Message, "MSH|1")]);
        check("\u{feff}MSH|1", &[(Message, "\u{feff}MSH|1")]);
        check("no part at all", &[(Other, "no part at all")]);
        check("", &[]);
    }

    #[test]
    fn batches_are_told_from_messages() {
        assert!(is_batch(b"FHS|^~\\&|"));
        assert!(is_batch(b"\r\nBHS|^~\\&|"));
        assert!(!is_batch(b"MSH|^~\\&|\rBHS|"));
        assert!(!is_batch(b"BHSX"));
        assert!(!is_batch(b""));
    }
}
