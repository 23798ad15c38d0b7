//! The lines of an editor: which of them a path means, and how one is read, written, replaced or taken away. How
//! bytes get into one segment is in [`super::place`].

use super::place::{write_everywhere, write_once};
use super::{Content, EditError, Editor, Line};
use crate::message::is_segment;
use crate::segment::Segment;
use crate::{Charset, Delimiters, Index, Path};
impl Editor {
    pub(super) fn view<'e>(&'e self, line: &'e Line) -> Option<Segment<'e>> {
        let (text, scan) = match &line.content {
            Content::Kept(index) => {
                let range = self.base.spans().get(*index)?.range();
                (self.base.text().get(range.clone())?, self.base.scan().get(range)?)
            }
            Content::Written { text, scan } => (text.as_slice(), scan.as_deref().unwrap_or(text)),
            Content::Removed => return None,
        };
        Some(Segment { text, scan, reading: self.base.reading(), number: 0 })
    }

    /// How many of the kept bytes after a line are the line's own end: one of CR, LF, CRLF. None where an edit wrote it.
    pub(super) fn own_end(&self, line: &Line) -> usize {
        if !line.written_end.is_empty() {
            return 0;
        }
        let charset = self.base.charset();
        let reach = line.kept_end.len().min(2 * charset.width());
        let start = line.kept_end.start;
        let end = charset.decode(self.base.raw().get(start..start + reach).unwrap_or_default());
        let units = match end.as_bytes() {
            [b'\r', b'\n', ..] => 2,
            [b'\r' | b'\n', ..] => 1,
            _ => 0,
        };
        units * charset.width()
    }

    /// `bytes` without what only looks like delimiters, where the message's charset has such.
    pub(super) fn covered(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let charset: Charset = self.base.reading().charset;
        charset.without_hidden_delimiters(bytes)
    }

    pub(super) fn check(&self, path: &Path) -> Result<(), EditError> {
        if !path.groups().is_empty() {
            return Err(path_error(path, "groups cannot be resolved without the message's structure"));
        }
        let header = matches!(path.segment(), "MSH" | "BHS" | "FHS");
        if header && path.field().is_some_and(|place| place.field <= 2) {
            return Err(EditError::Header { path: path.to_string() });
        }
        Ok(())
    }

    /// The lines that a path means.
    pub(super) fn targets(&self, path: &Path) -> Vec<usize> {
        let name = path.segment_bytes();
        let named = self.lines.iter().enumerate().filter_map(|(index, line)| {
            self.view(line).filter(|segment| segment.has_name(name)).map(|_| index)
        });
        match path.occurrence() {
            Index::All => named.collect(),
            one => named.skip(one.number() - 1).take(1).collect(),
        }
    }

    pub(super) fn write(&mut self, path: &Path, bytes: &[u8]) -> Result<(), EditError> {
        self.check(path)?;
        let Some(place) = path.field() else { return Ok(()) };
        let mut targets = self.targets(path);
        if targets.is_empty() {
            if bytes.is_empty() {
                return Ok(());
            }
            targets.push(self.make_segment(path)?);
        }
        for index in targets {
            let Some(segment) = self.lines.get(index).and_then(|line| self.view(line)) else { continue };
            let everywhere = place.repetition == Index::All && place.component.is_some();
            let text = if everywhere && segment.repetitions(place.field) > 0 {
                write_everywhere(&segment, place, bytes)
            } else {
                write_once(&segment, place, bytes)
            };
            let Some(text) = text else {
                return Err(EditError::NoSubcomponents { path: path.to_string() });
            };
            if text != segment.text {
                self.grow(text.len().saturating_sub(segment.text.len()))?;
                let before = self.lines.get(index).cloned();
                self.replace(index, text);
                let written = self.lines.get(index).and_then(|line| self.view(line));
                if written.is_none_or(|segment| segment.slice(Some(place)) != bytes) {
                    self.lines.splice(index..=index, before);
                    return Err(EditError::Entangled { path: path.to_string() });
                }
            }
        }
        Ok(())
    }

    /// A new segment at the end, where the path asks for the one after the last of its name.
    fn make_segment(&mut self, path: &Path) -> Result<usize, EditError> {
        let name = path.segment_bytes();
        let present = self.segments().filter(|segment| segment.has_name(name)).count();
        let wanted = match path.occurrence() {
            Index::First => 1,
            Index::At(number) => number as usize,
            Index::All => 0,
        };
        if wanted != present + 1 || !name.first().is_some_and(u8::is_ascii_uppercase) {
            return Err(EditError::NoSuchSegment { path: path.to_string() });
        }
        self.append_segment(&name)?;
        Ok(self.lines.len() - 1)
    }

    pub(super) fn replace_segment(&mut self, path: &Path, er7: &[u8], scan: &[u8]) -> Result<(), EditError> {
        self.check(path)?;
        self.check_segment(er7, scan)?;
        let targets = self.targets(path);
        if targets.is_empty() {
            return Err(EditError::NoSuchSegment { path: path.to_string() });
        }
        let first_header = targets.first() == Some(&0);
        if first_header
            && (er7.get(..3) != Some(b"MSH") || Delimiters::of_header(er7) != Ok(self.base.delimiters()))
        {
            return Err(EditError::Header { path: path.to_string() });
        }
        for index in targets {
            self.grow(er7.len())?;
            self.replace(index, er7.to_vec());
        }
        Ok(())
    }

    pub(super) fn remove_segments(&mut self, path: &Path) -> Result<(), EditError> {
        let targets = self.targets(path);
        if targets.contains(&0) {
            return Err(EditError::Header { path: path.to_string() });
        }
        for index in targets {
            let own = self.lines.get(index).map_or(0, |line| self.own_end(line));
            let Some(line) = self.lines.get_mut(index) else { continue };
            line.content = Content::Removed;
            line.written_end = "";
            // Blank lines after the segment stay.
            line.kept_end.start += own;
            self.touched = true;
        }
        Ok(())
    }

    pub(super) fn check_segment(&self, er7: &[u8], scan: &[u8]) -> Result<(), EditError> {
        if !is_segment(er7, self.base.delimiters().field) {
            return Err(EditError::NotASegment);
        }
        if scan.iter().any(|b| matches!(b, b'\r' | b'\n')) {
            let name = er7.get(..3).unwrap_or_default();
            return Err(EditError::Breaks { path: String::from_utf8_lossy(name).into_owned() });
        }
        Ok(())
    }

    pub(super) fn replace(&mut self, index: usize, text: Vec<u8>) {
        let scan = self.covered(&text);
        if let Some(line) = self.lines.get_mut(index) {
            line.content = Content::Written { text, scan };
            self.touched = true;
        }
    }

    pub(super) fn grow(&mut self, by: usize) -> Result<(), EditError> {
        let width = self.base.charset().width();
        self.grown = self.grown.saturating_add(by.saturating_mul(width));
        // The text of a UTF-16 message may be longer in UTF-8, half as much again at most.
        let size = self.base.raw().len().saturating_add(self.grown);
        let fits = u32::try_from(size.saturating_add(if width > 1 { size } else { 0 })).is_ok();
        if fits { Ok(()) } else { Err(EditError::TooLarge) }
    }
}

pub(super) fn path_error(path: &Path, reason: &'static str) -> EditError {
    EditError::Path { path: path.to_string(), reason }
}
