//! Changing a message: a series of edits, then one new message.
//!
//! An editor holds the segments of its message as lines. A line that no edit touches is re-emitted as the bytes that
//! arrived, line end included; in a touched line everything outside the edited place stays as it was. Places that a
//! message does not have yet are made by adding separators up to them (bounded by the limits of [`Path`]).

use std::ops::Range;

use thiserror::Error;

use crate::charset::Unmappable;
use crate::escape::{self, NoEscapeCharacter};
use crate::message::{find, values_at};
use crate::segment::Segment;
use crate::{Delimiters, FieldPath, Index, Message, Path};

mod lines;
mod place;

use lines::path_error;
use place::{splice, with_separator, write_everywhere};

/// Edits in progress. Reads see what earlier edits wrote.
#[derive(Clone)]
pub struct Editor {
    base: Message,
    lines: Vec<Line>,
    /// Written by [`Editor::append_segment`], as the message's own line ends are.
    line_end: &'static str,
    touched: bool,
    /// Bytes that edits may have added, so that the result cannot outgrow its index.
    grown: usize,
}

#[derive(Clone)]
struct Line {
    content: Content,
    /// A line end that an edit wrote after the content.
    written_end: &'static str,
    /// What follows the content in the base message's bytes: its line end, blank lines.
    kept_end: Range<usize>,
}

#[derive(Clone)]
enum Content {
    /// The base message's segment of this index.
    Kept(usize),
    Written {
        text: Vec<u8>,
        scan: Option<Vec<u8>>,
    },
    Removed,
}

/// Why an edit cannot be made. Names the place, never content.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EditError {
    /// A path with a group prefix, or one to a whole segment where a field is needed.
    #[error("{path}: {reason}")]
    Path {
        /// The path as written.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The message has no such segment, nor one less.
    #[error("{path}: the message has no such segment")]
    NoSuchSegment {
        /// The path as written.
        path: String,
    },
    /// MSH-1 and MSH-2 (and the MSH segment itself) hold the message together.
    #[error("{path}: delimiters and the header itself cannot be changed")]
    Header {
        /// The path as written.
        path: String,
    },
    /// The message declares no subcomponent separator.
    #[error("{path}: the message declares no subcomponent separator")]
    NoSubcomponents {
        /// The path as written.
        path: String,
    },
    /// Encoded text with a separator of a higher level than its place, or with a line end.
    #[error("{path}: the encoded text holds a separator that would break its surroundings")]
    Breaks {
        /// The path as written, or the name of the segment to append.
        path: String,
    },
    /// A broken character before the place would swallow part of what is written, so that it could not be read back.
    #[error("{path}: a broken character before the place makes it unreachable")]
    Entangled {
        /// The path as written.
        path: String,
    },
    /// Text to append that is no segment.
    #[error("a segment begins with three upper-case letters or digits and the field separator")]
    NotASegment,
    /// See [`NoEscapeCharacter`].
    #[error(transparent)]
    Escape(#[from] NoEscapeCharacter),
    /// See [`Unmappable`].
    #[error(transparent)]
    Charset(#[from] Unmappable),
    /// The result would be 4 GiB or more.
    #[error("the message would be larger than 4 GiB")]
    TooLarge,
}

impl Editor {
    pub(crate) fn new(base: Message) -> Self {
        let spans = base.raw_spans();
        let length = base.raw().len();
        let starts = spans.iter().skip(1).map(|span| span.range().start).chain([length]);
        let lines: Vec<Line> = spans
            .iter()
            .zip(starts)
            .enumerate()
            .map(|(index, (span, next))| Line {
                content: Content::Kept(index),
                written_end: "",
                kept_end: span.range().end..next,
            })
            .collect();
        let line_end =
            base.spans().first().and_then(|span| base.text().get(span.range().end..)).map_or("\r", |rest| {
                match rest {
                    [b'\r', b'\n', ..] => "\r\n",
                    [b'\n', ..] => "\n",
                    _ => "\r",
                }
            });
        Self { base, lines, line_end, touched: false, grown: 0 }
    }

    /// See [`Message::get`].
    pub fn get(&self, path: &Path) -> String {
        find(self.segments(), path).map(|segment| segment.read(path.field()).into_owned()).unwrap_or_default()
    }

    /// See [`Message::raw_at`].
    pub fn raw_at(&self, path: &Path) -> &[u8] {
        find(self.segments(), path).map(|segment| segment.slice(path.field())).unwrap_or_default()
    }

    /// See [`Message::raw_text`].
    pub fn raw_text(&self, path: &Path) -> String {
        self.base.reading().charset.decode(self.raw_at(path)).into_owned()
    }

    /// See [`Message::all`].
    pub fn all(&self, path: &Path) -> Vec<String> {
        values_at(self.segments(), path, path.occurrence())
    }

    /// See [`Message::every`].
    pub fn every(&self, path: &Path) -> Vec<String> {
        let open = path.open();
        self.all(open.as_ref().unwrap_or(path))
    }

    /// See [`Message::segments`].
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let lines = self.lines.iter().filter_map(|line| self.view(line));
        lines.zip(1..).map(|(segment, number)| Segment { number, ..segment })
    }

    /// Writes `text` at a path, escaped and in the message's charset. Whatever is below the path is replaced. No index
    /// means the first; `OBX[*]-5` writes to all OBX, `PID-3[*]` replaces all repetitions by one, `PID-3[*].4` writes to
    /// each. The segment after the last of its name is made at the end of the message. Empty text never makes a place.
    pub fn set(&mut self, path: &Path, text: &str) -> Result<(), EditError> {
        if path.field().is_none() {
            return Err(path_error(
                path,
                "a field is needed, as in PID-3; a whole segment is written as encoded text",
            ));
        }
        let reading = self.base.reading();
        let escaped = escape::escape(text, &reading.delimiters)?;
        let bytes = reading.charset.encode(&escaped)?;
        self.write(path, &bytes)
    }

    /// Writes encoded bytes at a path: as [`Editor::set`], but they are taken as they are. They may hold separators of
    /// their own level and below, no higher ones. A path without a field replaces the whole segment.
    pub fn set_raw(&mut self, path: &Path, er7: &[u8]) -> Result<(), EditError> {
        let Delimiters { field, component, repetition, subcomponent, .. } = self.base.delimiters();
        let covered = self.covered(er7);
        let scan = covered.as_deref().unwrap_or(er7);
        let Some(place) = path.field() else { return self.replace_segment(path, er7, scan) };
        let breaks = scan.iter().any(|&b| {
            matches!(b, b'\r' | b'\n')
                || b == field
                || (b == repetition && place.component.is_some())
                || (b == component && place.component.is_some())
                || (Some(b) == subcomponent && place.subcomponent.is_some())
        });
        if breaks {
            return Err(EditError::Breaks { path: path.to_string() });
        }
        self.write(path, er7)
    }

    /// As [`Editor::set_raw`], for encoded text still to be put into the message's charset.
    pub fn set_raw_text(&mut self, path: &Path, er7: &str) -> Result<(), EditError> {
        let bytes = self.base.reading().charset.encode(er7)?;
        self.set_raw(path, &bytes)
    }

    /// Copies what is at `from` in `source`, components and repetitions (`PID-3[*]`) and all, to a place in this message.
    /// Where the two differ in delimiters or charset it is rewritten. What is absent there is emptied here.
    pub fn copy(&mut self, to: &Path, source: &Message, from: &Path) -> Result<(), EditError> {
        let Some(place) = from.field() else {
            return Err(path_error(from, "a field is needed, as in PID-3"));
        };
        let (theirs, ours) = (source.reading(), self.base.reading());
        let Some(segment) = find(source.segments(), from) else { return self.write(to, &[]) };
        if theirs == ours {
            return self.set_raw(to, segment.slice(Some(place)));
        }
        let mut er7 = String::new();
        segment.rewrite(place, &ours.delimiters, &mut er7)?;
        self.set_raw_text(to, &er7)
    }

    /// Adds a segment after the last one, with the message's own line end. A line end at the end of `er7` is ignored.
    pub fn append_segment(&mut self, er7: &[u8]) -> Result<(), EditError> {
        let er7 = er7.trim_ascii_end();
        let covered = self.covered(er7);
        self.check_segment(er7, covered.as_deref().unwrap_or(er7))?;
        self.grow(er7.len() + 4)?;
        if self.base.is_torn() {
            return Err(EditError::Entangled {
                path: String::from_utf8_lossy(er7.get(..3).unwrap_or_default()).into_owned(),
            });
        }
        let mut line = Line {
            content: Content::Written { text: er7.to_vec(), scan: covered },
            written_end: "",
            kept_end: 0..0,
        };
        // The last segment keeps its own line end, where it has one; what follows that (blank lines) stays last.
        // A removed segment took its line end along: the one before it counts.
        let at = self.lines.iter().rposition(|line| !matches!(line.content, Content::Removed));
        let at = at.unwrap_or_default();
        let own = self.lines.get(at).map_or(0, |last| self.own_end(last));
        if let Some(last) = self.lines.get_mut(at) {
            let split = last.kept_end.start + own;
            line.kept_end = split..last.kept_end.end;
            last.kept_end.end = split;
            match (own, last.written_end) {
                (0, "") => last.written_end = self.line_end,
                _ => line.written_end = self.line_end,
            }
        }
        self.lines.insert((at + 1).min(self.lines.len()), line);
        self.touched = true;
        Ok(())
    }

    /// As [`Editor::append_segment`], for encoded text still to be put into the message's charset.
    pub fn append_segment_text(&mut self, er7: &str) -> Result<(), EditError> {
        let bytes = self.base.reading().charset.encode(er7)?;
        self.append_segment(&bytes)
    }

    /// Removes what is at a path, if anything is. A segment goes with its line end (`OBX` the first, `OBX[*]` all). A
    /// field without an index is emptied, repetitions and all; `PID-3[2]` takes out the second repetition; components and
    /// subcomponents are emptied. Following fields and components keep their places.
    pub fn remove(&mut self, path: &Path) -> Result<(), EditError> {
        self.check(path)?;
        let Some(place) = path.field() else { return self.remove_segments(path) };
        for index in self.targets(path) {
            let Some(segment) = self.lines.get(index).and_then(|line| self.view(line)) else { continue };
            let text = match (place.component, place.repetition) {
                (Some(_), Index::All) => write_everywhere(&segment, place, &[]),
                (None, Index::First) => {
                    let whole = segment.locate(FieldPath { repetition: Index::All, ..place });
                    whole.map(|range| splice(segment.text, range, &[], &[]))
                }
                (None, Index::At(_)) => segment.locate(place).map(|range| {
                    splice(segment.text, with_separator(&segment, range, place.field), &[], &[])
                }),
                _ => segment.locate(place).map(|range| splice(segment.text, range, &[], &[])),
            };
            if let Some(text) = text.filter(|text| text.len() < segment.text.len()) {
                self.replace(index, text);
            }
        }
        Ok(())
    }

    /// The edited message; without edits the same bytes.
    pub fn finish(self) -> Message {
        if !self.touched {
            return self.base;
        }
        let raw = self.base.raw();
        let charset = self.base.charset();
        let spans = self.base.raw_spans();
        let kept = |range: Range<usize>| raw.get(range).unwrap_or_default();
        let mut out = Vec::with_capacity(raw.len() + self.grown);
        out.extend_from_slice(kept(0..spans.first().map_or(0, |span| span.range().start)));
        for line in &self.lines {
            match &line.content {
                Content::Kept(index) => {
                    out.extend_from_slice(
                        spans.get(*index).map(|span| kept(span.range())).unwrap_or_default(),
                    );
                }
                Content::Written { text, .. } if charset.is_wide() => {
                    out.extend_from_slice(&charset.encode_lossy(&String::from_utf8_lossy(text)));
                }
                Content::Written { text, .. } => out.extend_from_slice(text),
                Content::Removed => {}
            }
            out.extend_from_slice(&charset.encode_lossy(line.written_end));
            out.extend_from_slice(kept(line.kept_end.clone()));
        }
        self.base.edited(out)
    }
}

#[cfg(test)]
mod tests;
