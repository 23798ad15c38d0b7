//! From bytes to a [`Message`]: its charset, its header, its segments.
//!
//! The order matters. Wide text (UTF-16, UTF-32) shows in the first bytes and is transcoded; the header gives the
//! delimiters and MSH-18; the charset says which bytes only look like delimiters; then one pass finds the segments.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use memchr::memchr2_iter;

use super::{Inner, Message, ParseError, Wide};
use crate::segment::{self, Reading};
use crate::{Charset, Delimiters, Segment};

/// How to settle the charset.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reader {
    pub(crate) forced: Option<Charset>,
    pub(crate) default: Option<Charset>,
}

/// One segment, without its line end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    pub(crate) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// What the indexing pass saw, for [`Message::findings`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Notes {
    /// Lines that end in LF or CRLF.
    pub(crate) line_feeds: u32,
    pub(crate) blank_lines: u32,
    pub(crate) odd_segments: u32,
    /// 1-based number of the first odd one.
    pub(crate) first_odd: u32,
    /// MSH segments.
    pub(crate) headers: u32,
    /// Bytes before the header, a byte order mark excepted.
    pub(crate) leading: bool,
    /// Control characters or blanks instead of a segment at the end.
    pub(crate) trailing: bool,
    pub(crate) declared: Declared,
    pub(crate) source: Source,
}

/// What MSH-18 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Declared {
    #[default]
    Nothing,
    Known(Charset),
    Unknown,
}

/// Why a message is read in its charset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Source {
    /// MSH-18, or the caller's default for its absence.
    Declared,
    /// The caller, whatever MSH-18 says.
    Forced,
    /// The bytes.
    #[default]
    Detected,
}

impl Reader {
    pub(crate) fn read(self, raw: Bytes) -> Result<Message, ParseError> {
        if u32::try_from(raw.len()).is_err() {
            return Err(ParseError::TooLarge);
        }
        let (wide, mark) = wide_form(&raw, self.forced);
        let transcoded = match wide {
            Some(charset) => {
                let text = charset.decode(raw.get(mark..).unwrap_or_default()).into_owned();
                // Text can be longer than its bytes: three bytes of UTF-8 for two of UTF-16.
                if u32::try_from(text.len()).is_err() {
                    return Err(ParseError::TooLarge);
                }
                Some(text)
            }
            None => None,
        };
        let text = transcoded.as_ref().map_or(&raw[..], |text| text.as_bytes());
        // The mark of wide text is no longer part of `text`.
        let mark_in_text = if wide.is_some() { 0 } else { mark };
        let start = header_start(text, mark_in_text)?;
        let line = first_line(text, start);
        let delimiters = Delimiters::of_header(line)?;
        let declared = declared(line, delimiters);
        let (charset, source) = match wide {
            Some(charset) => (charset, Source::Detected),
            None => self.settle(declared, text),
        };
        let scan = if wide.is_none() { charset.without_hidden_delimiters(text) } else { None };
        let (spans, mut notes) = index(scan.as_deref().unwrap_or(text), start, delimiters.field);
        notes.leading = start > mark_in_text;
        notes.declared = declared;
        notes.source = if self.forced.is_some() { Source::Forced } else { source };
        let wide = match (wide, transcoded) {
            (Some(charset), Some(text)) => {
                let spans = raw_places(&text, &spans, mark, charset.width(), raw.len());
                Some(Wide { text, spans })
            }
            _ => None,
        };
        Ok(Message(Arc::new(Inner { raw, wide, scan, spans, delimiters, charset, notes })))
    }

    /// The charset of text that is not wide.
    fn settle(self, declared: Declared, text: &[u8]) -> (Charset, Source) {
        if let Some(forced) = self.forced.filter(|charset| !charset.is_wide()) {
            return (forced, Source::Forced);
        }
        let named = match declared {
            Declared::Known(charset) => Some(charset),
            Declared::Nothing => self.default,
            Declared::Unknown => None,
        };
        match named.filter(|charset| !charset.is_wide()) {
            // UTF-8 bytes under the name of a single-byte set are no accident: such text has no other reading.
            Some(named) if named.is_single_byte() && !text.is_ascii() && is_utf8(text) => {
                (Charset::UTF_8, Source::Detected)
            }
            Some(Charset::ASCII) if !text.is_ascii() => (detect(text), Source::Detected),
            Some(named) => (named, Source::Declared),
            None => (detect(text), Source::Detected),
        }
    }
}

fn detect(text: &[u8]) -> Charset {
    if is_utf8(text) { Charset::UTF_8 } else { Charset::LATIN_1 }
}

fn is_utf8(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok()
}

/// The wide charset of the bytes, if any, and the length of a byte order mark (UTF-8's included).
pub(super) fn wide_form(raw: &[u8], forced: Option<Charset>) -> (Option<Charset>, usize) {
    let (seen, mark) = match raw {
        [0xef, 0xbb, 0xbf, ..] => (None, 3),
        [0xff, 0xfe, 0, 0, ..] => (Some(Charset::UTF_32LE), 4),
        [0, 0, 0xfe, 0xff, ..] => (Some(Charset::UTF_32BE), 4),
        [0xff, 0xfe, ..] => (Some(Charset::UTF_16LE), 2),
        [0xfe, 0xff, ..] => (Some(Charset::UTF_16BE), 2),
        [b'M', 0, 0, 0, b'S', 0, 0, 0, ..] => (Some(Charset::UTF_32LE), 0),
        [0, 0, 0, b'M', 0, 0, 0, b'S', ..] => (Some(Charset::UTF_32BE), 0),
        [b'M', 0, b'S', 0, b'H', 0, ..] => (Some(Charset::UTF_16LE), 0),
        [0, b'M', 0, b'S', 0, b'H', ..] => (Some(Charset::UTF_16BE), 0),
        _ => (None, 0),
    };
    // The bytes know better than anyone whether they are wide; a wish counts where they leave it open.
    (seen.or(forced.filter(|charset| charset.is_wide() && mark == 0)), mark)
}

/// Where MSH begins: after a byte order mark, blank lines and stray frame marks.
fn header_start(text: &[u8], mark: usize) -> Result<usize, ParseError> {
    let rest = text.get(mark..).unwrap_or_default();
    let blank = rest.iter().position(|&b| !is_blank(b)).ok_or(ParseError::Empty)?;
    match rest.get(blank..) {
        Some([b'M', b'S', b'H', ..]) => Ok(mark + blank),
        Some([b'F' | b'B', b'H', b'S', after, ..]) if !after.is_ascii_alphanumeric() => {
            Err(ParseError::Batch)
        }
        _ => Err(ParseError::NoHeader),
    }
}

/// Line ends, blanks, and marks that framing left behind.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n' | b' ' | b'\t' | 0 | 0x0b | 0x1a | 0x1c)
}

fn first_line(text: &[u8], start: usize) -> &[u8] {
    let rest = text.get(start..).unwrap_or_default();
    let end = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default()
}

/// What MSH-18 says: its first repetition that is not empty, or ISO 2022 where any repetition asks for it
/// (`~ISO IR87`: ASCII first, then switched by escape sequences).
fn declared(line: &[u8], delimiters: Delimiters) -> Declared {
    let read = |scan: &[u8]| {
        let reading = Reading { delimiters, charset: Charset::LATIN_1 };
        let msh = Segment { text: line, scan, reading, number: 1 };
        let field = msh.field(18).and_then(|range| line.get(range)).unwrap_or_default();
        let names =
            field.split(|&b| b == delimiters.repetition).filter_map(|name| std::str::from_utf8(name).ok());
        let mut names = names.map(str::trim).filter(|name| !name.is_empty()).peekable();
        let Some(first) = names.peek().copied() else { return Declared::Nothing };
        let mut known = names.filter_map(Charset::from_name);
        match Charset::from_name(first) {
            Some(first) => Declared::Known(known.find(|c| *c == Charset::ISO_2022_JP).unwrap_or(first)),
            None => Declared::Unknown,
        }
    };
    if !line.is_ascii() || crate::iso2022::switches(line) {
        // A header whose own text hides delimiters is read right only in the charset that it then turns out to name.
        for name in ["ISO IR87", "GB 18030-2000", "BIG-5", "Shift_JIS"] {
            let Some(charset) = Charset::from_name(name) else { continue };
            let Some(scan) = charset.without_hidden_delimiters(line) else { continue };
            let found = read(&scan);
            if found == Declared::Known(charset) {
                return found;
            }
        }
    }
    read(line)
}

fn index(scan: &[u8], start: usize, separator: u8) -> (Vec<Span>, Notes) {
    let mut notes = Notes::default();
    let mut spans = Vec::with_capacity((scan.len() / 96).clamp(8, 1024));
    let mut from = start;
    let mut after_return = false;
    let mut pending_blank = 0;
    let rest = scan.get(start..).unwrap_or_default();
    let ends = memchr2_iter(b'\r', b'\n', rest).map(|at| start + at).chain([scan.len()]);
    for end in ends {
        let line = scan.get(from..end).unwrap_or_default();
        let is_feed = scan.get(end) == Some(&b'\n');
        if line.is_empty() && after_return && is_feed {
            // The second half of CRLF.
            notes.line_feeds += 1;
            after_return = false;
            from = end + 1;
            continue;
        }
        after_return = scan.get(end) == Some(&b'\r');
        if line.first().is_none_or(|&b| is_blank(b)) && line.iter().all(|&b| is_blank(b)) {
            pending_blank += u32::from(end < scan.len());
            notes.trailing |= !line.is_empty();
        } else {
            notes.line_feeds += u32::from(is_feed);
            notes.blank_lines += std::mem::take(&mut pending_blank);
            notes.trailing = false;
            // Lengths fit: `read` refuses longer texts.
            spans.push(Span { start: from as u32, end: end as u32 });
            if segment::has_name(line, *b"MSH", separator) {
                notes.headers += 1;
            }
            if !is_segment(line, separator) {
                notes.odd_segments += 1;
                if notes.odd_segments == 1 {
                    notes.first_odd = spans.len() as u32;
                }
            }
        }
        from = end + 1;
    }
    notes.blank_lines += pending_blank;
    (spans, notes)
}

/// Three upper-case letters or digits, the first a letter, and then the separator or the end (v2.5.1 §2.5.2).
pub(crate) fn is_segment(line: &[u8], separator: u8) -> bool {
    let id = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit();
    match line {
        [a, b, c] => a.is_ascii_uppercase() && id(b) && id(c),
        [a, b, c, after, ..] => a.is_ascii_uppercase() && id(b) && id(c) && *after == separator,
        _ => false,
    }
}

/// Where the segments of transcoded text are in the raw bytes: characters are counted, two units for those beyond the BMP.
fn raw_places(text: &str, spans: &[Span], mark: usize, width: usize, raw_length: usize) -> Vec<Span> {
    let mut at_text = 0;
    let mut at_raw = mark;
    let mut place = |to: usize| {
        for c in text.get(at_text..to).unwrap_or_default().chars() {
            at_raw += if width == 2 { 2 * c.len_utf16() } else { width };
        }
        at_text = to;
        // A torn last character counts as a whole one.
        at_raw.min(raw_length) as u32
    };
    spans
        .iter()
        .map(|span| {
            let range = span.range();
            Span { start: place(range.start), end: place(range.end) }
        })
        .collect()
}
