//! A message: the bytes that arrived, and where its segments are in them.
//!
//! Parsing finds the delimiters, the charset and the segments (one pass of memchr) and nothing else; fields are searched
//! when asked for ([`Segment`]). HL7 v2.5.1 §2.5 and §2.6 give the grammar. Beyond it, CR, LF and CRLF all end a segment,
//! blank lines and lines that are no segment are kept, and whatever surrounds the message stays in its bytes.
//!
//! UTF-16 and UTF-32 messages cannot be searched as they are: their text is kept beside the bytes, in UTF-8, with the
//! place of every segment in both.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use crate::charset::Unmappable;
use crate::segment::Reading;
use crate::{Charset, Delimiters, EditError, Editor, HeaderError, Index, Path, PathError, Segment};

mod index;

pub(crate) use index::{Declared, Notes, Source, Span, is_segment};
use index::{Reader, wide_form};

pub(crate) const MSH_9: Path = Path::of(*b"MSH", 9, None);
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
        self.text_at(path).into_owned()
    }

    /// As [`Message::get`], without a copy where the value stands in the message as it is meant.
    pub fn text_at(&self, path: &Path) -> Cow<'_, str> {
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

    /// The segment with this [`Segment::number`], without a search.
    pub fn segment(&self, number: usize) -> Option<Segment<'_>> {
        let range = self.0.spans.get(number.checked_sub(1)?)?.range();
        Some(Segment {
            text: self.text().get(range.clone()).unwrap_or_default(),
            scan: self.scan().get(range).unwrap_or_default(),
            reading: self.reading(),
            number,
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
    pub fn message_type(&self) -> Cow<'_, str> {
        let (code, trigger) = (self.text_at(&MSH_9_1), self.text_at(&MSH_9_2));
        if trigger.is_empty() {
            return code;
        }
        // Mostly they stand in the message just so, one behind the other.
        if let (Cow::Borrowed(code), Cow::Borrowed(trigger)) = (&code, &trigger)
            && self.0.delimiters.component == b'^'
            && let Cow::Borrowed(both) = self.reading().charset.decode(self.raw_at(&MSH_9))
            && let Some(both) = both.get(..code.len() + 1 + trigger.len())
        {
            return Cow::Borrowed(both);
        }
        Cow::Owned(format!("{code}^{trigger}"))
    }

    /// MSH-10.
    pub fn control_id(&self) -> Cow<'_, str> {
        self.text_at(&MSH_10)
    }

    /// Text as bytes that can stand in this message, not escaped.
    pub fn encode<'t>(&self, text: &'t str) -> Result<Cow<'t, [u8]>, Unmappable> {
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
        let plain = |text: Cow<'_, str>| {
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

#[cfg(test)]
mod tests;
