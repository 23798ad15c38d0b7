//! A message: the bytes that arrived, and where its segments are in them.
//!
//! Parsing finds the delimiters, the charset and the segments (one pass of memchr) and nothing else; fields are searched
//! when asked for ([`Segment`]). HL7 v2.5.1 §2.5 and §2.6 give the grammar. Beyond it, CR, LF and CRLF all end a segment,
//! blank lines and lines that are no segment are kept, and whatever surrounds the message stays in its bytes.
//!
//! UTF-16 and UTF-32 messages cannot be searched as they are: their text is kept beside the bytes, in UTF-8, with the
//! place of every segment in both.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use memchr::memchr2_iter;
use thiserror::Error;

use crate::charset::Unmappable;
use crate::segment::{self, Reading};
use crate::{Charset, Delimiters, EditError, Editor, HeaderError, Index, Path, PathError, Segment};

pub(crate) const MSH_9_1: Path = Path::of(*b"MSH", 9, Some(1));
pub(crate) const MSH_9_2: Path = Path::of(*b"MSH", 9, Some(2));
pub(crate) const MSH_10: Path = Path::of(*b"MSH", 10, None);

/// An HL7 v2 message. Cloning is cheap. Never changed in place: edits make a new one.
#[derive(Clone)]
pub struct Message(Arc<Inner>);

struct Inner {
    raw: Bytes,
    /// The text in UTF-8 where `raw` is UTF-16 or UTF-32; `None` where `raw` serves.
    wide: Option<Wide>,
    /// Same length as the text, without bytes that only look like delimiters; `None` where the text serves.
    scan: Option<Vec<u8>>,
    spans: Vec<Span>,
    delimiters: Delimiters,
    charset: Charset,
    notes: Notes,
}

struct Wide {
    text: String,
    /// Where each segment of `spans` is in the raw bytes.
    spans: Vec<Span>,
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

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Nothing but blanks.
    #[error("the message is empty")]
    Empty,
    /// The first segment is another one, or no segment at all.
    #[error("the message does not begin with MSH")]
    NoHeader,
    /// It begins with FHS or BHS: see [`crate::batch`].
    #[error("this is a batch, not a message")]
    Batch,
    /// MSH is there but declares no usable delimiters.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// 4 GiB and more.
    #[error("the message is larger than 4 GiB")]
    TooLarge,
}

/// How to settle the charset.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reader {
    pub(crate) forced: Option<Charset>,
    pub(crate) default: Option<Charset>,
}

// === impl Message: making ===

impl Message {
    /// Reads a message in the charset that MSH-18 names; where it is empty or unusable, UTF-8 where the bytes are valid
    /// UTF-8 and windows-1252 otherwise. Fails only without a readable MSH; whatever else is odd is a finding.
    pub fn parse(raw: Bytes) -> Result<Self, ParseError> {
        Reader::default().read(raw)
    }

    /// As [`Message::parse`], with the charset to use whatever MSH-18 says.
    pub fn parse_with(raw: Bytes, charset: Charset) -> Result<Self, ParseError> {
        Reader { forced: Some(charset), default: None }.read(raw)
    }

    /// As [`Message::parse`], with the charset to use where MSH-18 is empty.
    pub fn parse_assuming(raw: Bytes, default: Charset) -> Result<Self, ParseError> {
        Reader { forced: None, default: Some(default) }.read(raw)
    }

    /// The same bytes read in another charset.
    #[must_use]
    pub fn with_charset(self, charset: Charset) -> Self {
        if self.charset() == charset {
            return self;
        }
        // A wide charset on narrow bytes (or the reverse) finds no header: such a wish cannot be fulfilled.
        Self::parse_with(self.0.raw.clone(), charset).unwrap_or(self)
    }
}

// === impl Message: reading ===

impl Message {
    /// The bytes as they arrived, or as edits left them.
    pub fn raw(&self) -> &Bytes {
        &self.0.raw
    }

    /// As the header declares them.
    pub fn delimiters(&self) -> Delimiters {
        self.0.delimiters
    }

    /// What text is read and written in.
    pub fn charset(&self) -> Charset {
        self.0.charset
    }

    /// The value at a path, always a string: empty where there is none, `""` (two quotes) for HL7's null. A value with
    /// nothing encoded below it is unescaped; one with components or subcomponents comes as encoded text.
    pub fn get(&self, path: &Path) -> String {
        self.find(path).map(|segment| segment.read(path.field())).unwrap_or_default()
    }

    /// As [`Message::get`], for a path still to be parsed.
    pub fn value(&self, path: &str) -> Result<String, PathError> {
        Ok(self.get(&path.parse()?))
    }

    /// The encoded bytes at a path. `PID-3[*]` is the whole field with its repetitions. UTF-16 and UTF-32 messages give
    /// UTF-8.
    pub fn raw_at(&self, path: &Path) -> &[u8] {
        self.find(path).map(|segment| segment.slice(path.field())).unwrap_or_default()
    }

    /// As [`Message::raw_at`], as text.
    pub fn raw_text(&self, path: &Path) -> String {
        self.reading().charset.decode(self.raw_at(path)).into_owned()
    }

    /// Whether there is anything at a path. HL7's null is something.
    pub fn exists(&self, path: &Path) -> bool {
        !self.raw_at(path).is_empty()
    }

    /// Whether the value is HL7's null, `""`: "delete what you have", as against empty: "no news" (v2.5.1 §2.5.3).
    pub fn is_null(&self, path: &Path) -> bool {
        self.raw_at(path) == b"\"\""
    }

    /// Every value at a path, read to the letter: `[*]` takes all, no index the first. A bare segment name takes all
    /// segments of that name. Each segment gives one value (empty where it has none), or with `PID-3[*]` one for each
    /// repetition there is. For conditions ("`[*]`: any").
    pub fn all(&self, path: &Path) -> Vec<String> {
        values_at(self.segments(), path, path.occurrence())
    }

    /// Every value at a path, as scripts mean it: without any `[*]` in it, everything that it leaves open is all
    /// (`OBX-5`: of all OBX; `PID-3.1`: of all repetitions). With a `[*]` the same as [`Message::all`].
    pub fn every(&self, path: &Path) -> Vec<String> {
        let open = path.open();
        self.all(open.as_ref().unwrap_or(path))
    }

    /// All segments in order. Blank lines are none; other lines that are no segment have an empty name.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment<'_>> + DoubleEndedIterator + Clone {
        let (text, scan, reading) = (self.text(), self.scan(), self.reading());
        self.0.spans.iter().enumerate().map(move |(index, span)| Segment {
            text: text.get(span.range()).unwrap_or_default(),
            scan: scan.get(span.range()).unwrap_or_default(),
            reading,
            number: index + 1,
        })
    }

    /// All segments of one name.
    pub fn segments_named(&self, name: &str) -> impl Iterator<Item = Segment<'_>> {
        let name = <[u8; 3]>::try_from(name.as_bytes()).ok();
        self.segments().filter(move |segment| name.is_some_and(|name| segment.has_name(name)))
    }

    /// The names of all segments in order.
    pub fn segment_names(&self) -> impl Iterator<Item = &str> {
        self.segments().map(|segment| segment.name())
    }

    /// MSH-9.1 and MSH-9.2 as `ORU^R01`; only what is there.
    pub fn message_type(&self) -> String {
        let mut code = self.get(&MSH_9_1);
        let trigger = self.get(&MSH_9_2);
        if !trigger.is_empty() {
            code.push('^');
            code.push_str(&trigger);
        }
        code
    }

    /// MSH-10.
    pub fn control_id(&self) -> String {
        self.get(&MSH_10)
    }

    /// Text as bytes that can stand in this message, not escaped.
    pub fn encode<'t>(&self, text: &'t str) -> Result<std::borrow::Cow<'t, [u8]>, Unmappable> {
        self.reading().charset.encode(text)
    }
}

// === impl Message: editing ===

impl Message {
    /// Begins a series of edits.
    pub fn edit(&self) -> Editor {
        Editor::new(self.clone())
    }

    /// A message with `text` at a path, escaped and encoded in the message's charset. See [`Editor::set`].
    pub fn set(&self, path: &Path, text: &str) -> Result<Self, EditError> {
        let mut editor = self.edit();
        editor.set(path, text)?;
        Ok(editor.finish())
    }

    /// A message with encoded bytes at a path. See [`Editor::set_raw`].
    pub fn set_raw(&self, path: &Path, er7: &[u8]) -> Result<Self, EditError> {
        let mut editor = self.edit();
        editor.set_raw(path, er7)?;
        Ok(editor.finish())
    }

    /// A message with one more segment at the end. See [`Editor::append_segment`].
    pub fn append_segment(&self, er7: &[u8]) -> Result<Self, EditError> {
        let mut editor = self.edit();
        editor.append_segment(er7)?;
        Ok(editor.finish())
    }

    /// A message without what is at a path. See [`Editor::remove`].
    pub fn remove(&self, path: &Path) -> Result<Self, EditError> {
        let mut editor = self.edit();
        editor.remove(path)?;
        Ok(editor.finish())
    }
}

// === impl Message: inside ===

impl Message {
    pub(crate) fn header(&self) -> Option<Segment<'_>> {
        self.segments().next()
    }

    pub(crate) fn notes(&self) -> Notes {
        self.0.notes
    }

    pub(crate) fn text(&self) -> &[u8] {
        self.0.wide.as_ref().map_or(&self.0.raw[..], |wide| wide.text.as_bytes())
    }

    pub(crate) fn scan(&self) -> &[u8] {
        self.0.scan.as_deref().unwrap_or_else(|| self.text())
    }

    pub(crate) fn spans(&self) -> &[Span] {
        &self.0.spans
    }

    /// Where the segments are in [`Message::raw`].
    pub(crate) fn raw_spans(&self) -> &[Span] {
        self.0.wide.as_ref().map_or(&self.0.spans, |wide| &wide.spans)
    }

    /// Whether the bytes end in the middle of a code unit.
    pub(crate) fn is_torn(&self) -> bool {
        let raw = &self.0.raw;
        let mark = wide_form(raw, Some(self.charset())).1;
        !(raw.len() - mark).is_multiple_of(self.charset().width())
    }

    pub(crate) fn reading(&self) -> Reading {
        let charset = if self.0.wide.is_some() { Charset::UTF_8 } else { self.0.charset };
        Reading { delimiters: self.0.delimiters, charset }
    }

    fn find(&self, path: &Path) -> Option<Segment<'_>> {
        find(self.segments(), path)
    }

    /// The message that an edit has made of this one: same delimiters, same charset whatever MSH-18 now says.
    pub(crate) fn edited(&self, raw: Vec<u8>) -> Self {
        let reader = Reader { forced: Some(self.charset()), default: None };
        let mut edited =
            reader.read(Bytes::from(raw)).expect("edits keep the header's delimiters and the size in bounds");
        if let Some(inner) = Arc::get_mut(&mut edited.0) {
            inner.notes.source = self.0.notes.source;
        }
        edited
    }
}

/// Type, control id and size. No patient data.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |text: String| {
            let clean = |c: char| c.is_ascii_alphanumeric() || "^_-.".contains(c);
            text.chars().take(64).map(|c| if clean(c) { c } else { '?' }).collect::<String>()
        };
        let (kind, id) = (plain(self.message_type()), plain(self.control_id()));
        write!(f, "Message({kind} {id}, {} bytes)", self.0.raw.len())
    }
}

/// The segment that a path means. `[*]` means the first, and a group prefix cannot be resolved here.
pub(crate) fn find<'m>(mut segments: impl Iterator<Item = Segment<'m>>, path: &Path) -> Option<Segment<'m>> {
    if !path.groups().is_empty() {
        return None;
    }
    let name = path.segment_bytes();
    let mut left = path.occurrence().number();
    segments.find(|segment| {
        left -= usize::from(segment.has_name(name));
        left == 0
    })
}

pub(crate) fn values_at<'m>(
    segments: impl Iterator<Item = Segment<'m>>,
    path: &Path,
    occurrence: Index,
) -> Vec<String> {
    let mut values = Vec::new();
    let everywhere = occurrence == Index::All || (occurrence == Index::First && path.field().is_none());
    if everywhere && path.groups().is_empty() {
        let name = path.segment_bytes();
        for segment in segments.filter(|segment| segment.has_name(name)) {
            segment.each(path.field(), |value| values.push(value));
        }
    } else if let Some(segment) = find(segments, path) {
        segment.each(path.field(), |value| values.push(value));
    }
    values
}

// === Reading bytes ===

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
fn wide_form(raw: &[u8], forced: Option<Charset>) -> (Option<Charset>, usize) {
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

#[cfg(test)]
mod tests;
