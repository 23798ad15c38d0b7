//! One segment, and the search for a place inside it.
//!
//! Nothing below segments is indexed: a lookup scans its one segment (memchr), which is faster than building a tree for
//! every message and never wrong about bytes. Two slices of the same length go together: `text` holds the values, `scan`
//! is where delimiters are looked for. They differ only in charsets whose characters may contain bytes that look like
//! delimiters (see [`Charset`]); there `scan` has those bytes covered.

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr_iter, memchr2, memchr3};

use crate::escape::NoEscapeCharacter;
use crate::{Charset, Delimiters, FieldPath, Index, Path, PathError, escape};

/// One segment of a message, borrowed from it. Its line end is not part of it.
#[derive(Clone, Copy)]
pub struct Segment<'m> {
    pub(crate) text: &'m [u8],
    pub(crate) scan: &'m [u8],
    pub(crate) reading: Reading,
    pub(crate) number: usize,
}

/// What is needed to read bytes of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) delimiters: Delimiters,
    /// Of the bytes in `text`: UTF-8 where the message itself is UTF-16 or UTF-32.
    pub(crate) charset: Charset,
}

impl<'m> Segment<'m> {
    /// The segment's name: what stands before the first field separator, where that is one to four ASCII letters or
    /// digits. Empty for a line that is no segment.
    pub fn name(&self) -> &'m str {
        name_of(self.text, self.reading.delimiters.field)
    }

    /// 1-based place among all segments of the message, whatever their names.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The segment as it is encoded, without its line end. For UTF-16 and UTF-32 messages, in UTF-8.
    pub fn raw(&self) -> &'m [u8] {
        self.text
    }

    /// As [`crate::Message::get`], within this segment: the path's segment name must be this one's, its occurrence is not looked at.
    pub fn get(&self, path: &Path) -> String {
        self.text_at(path).into_owned()
    }

    /// As [`Segment::get`], without a copy where the value stands in the message as it is meant.
    pub fn text_at(&self, path: &Path) -> Cow<'m, str> {
        if self.is(path) { self.read(path.field()) } else { Cow::Borrowed("") }
    }

    /// As [`Segment::get`], for a path still to be parsed (`OBX-5`).
    pub fn value(&self, path: &str) -> Result<String, PathError> {
        Ok(self.get(&path.parse()?))
    }

    /// As [`crate::Message::raw_at`], within this segment.
    pub fn raw_at(&self, path: &Path) -> &'m [u8] {
        if self.is(path) { self.slice(path.field()) } else { &[] }
    }

    /// As [`crate::Message::raw_text`], within this segment.
    pub fn raw_text(&self, path: &Path) -> String {
        self.reading.charset.decode(self.raw_at(path)).into_owned()
    }

    /// Every value at a path within this segment: `[*]` takes all repetitions.
    pub fn all(&self, path: &Path) -> Vec<String> {
        let mut values = Vec::new();
        if self.is(path) {
            self.each(path.field(), |value| values.push(value));
        }
        values
    }

    /// How many fields the segment has. In MSH the separator and the encoding characters count as fields 1 and 2.
    pub fn fields(&self) -> usize {
        memchr_iter(self.reading.delimiters.field, self.scan).count() + usize::from(self.is_header())
    }

    /// How many repetitions a field has: 0 where the field is absent or empty.
    pub fn repetitions(&self, field: u16) -> usize {
        match self.field(field) {
            None => 0,
            Some(range) if range.is_empty() => 0,
            Some(_) if self.is_header() && field <= 2 => 1,
            Some(range) => {
                let scan = self.scan.get(range).unwrap_or_default();
                1 + memchr_iter(self.reading.delimiters.repetition, scan).count()
            }
        }
    }

    fn is(&self, path: &Path) -> bool {
        path.groups().is_empty() && self.has_name(path.segment_bytes())
    }

    pub(crate) fn has_name(&self, name: [u8; 3]) -> bool {
        has_name(self.text, name, self.reading.delimiters.field)
    }

    /// MSH, BHS and FHS: their first field is the separator itself, their second may hold any delimiter.
    pub(crate) fn is_header(&self) -> bool {
        matches!(self.text, [b'M', b'S', b'H', ..] | [b'B' | b'F', b'H', b'S', ..])
    }

    /// The value at a place: unescaped where nothing is encoded below it.
    pub(crate) fn read(&self, field: Option<FieldPath>) -> Cow<'m, str> {
        let Some(place) = field else { return self.decode(0..self.text.len()) };
        let Some(range) = self.locate(place) else { return Cow::Borrowed("") };
        self.value_in(range, place)
    }

    pub(crate) fn slice(&self, field: Option<FieldPath>) -> &'m [u8] {
        match field {
            None => self.text,
            Some(place) => self.locate(place).and_then(|range| self.text.get(range)).unwrap_or_default(),
        }
    }

    /// Calls `found` with the values that the place asks for: one, empty where there is none, or one for each repetition.
    pub(crate) fn each(&self, field: Option<FieldPath>, mut found: impl FnMut(String)) {
        let Some(place) = field else { return found(self.read(None).into_owned()) };
        if place.repetition != Index::All || (self.is_header() && place.field <= 2) {
            return found(self.read(field).into_owned());
        }
        let Some(whole) = self.field(place.field).filter(|range| !range.is_empty()) else { return };
        // One walk over the field: looking each repetition up by number would be quadratic.
        let scan = self.scan.get(whole.clone()).unwrap_or_default();
        let mut start = whole.start;
        let ends = memchr_iter(self.reading.delimiters.repetition, scan).map(|at| whole.start + at);
        for end in ends.chain([whole.end]) {
            let value = self.below_repetition(start..end, place).map(|range| self.value_in(range, place));
            found(value.unwrap_or_default().into_owned());
            start = end + 1;
        }
    }

    /// Appends the encoded text of a place as another message with these delimiters would write it.
    pub(crate) fn rewrite(
        &self,
        place: FieldPath,
        into: &Delimiters,
        out: &mut String,
    ) -> Result<(), NoEscapeCharacter> {
        let Some(range) = self.locate(place) else { return Ok(()) };
        let from = self.reading.delimiters;
        let mut start = range.start;
        for at in range.clone().chain([range.end]) {
            let separator = match self.scan.get(at) {
                _ if at == range.end => None,
                Some(&b) if b == from.component => Some(into.component),
                Some(&b) if b == from.repetition => Some(into.repetition),
                // Without such a separator there, its parts become one text.
                Some(&b) if Some(b) == from.subcomponent => into.subcomponent,
                _ => continue,
            };
            if separator.is_none() && at < range.end {
                continue;
            }
            let text = self.decode(start..at);
            out.push_str(&escape::escape(&escape::unescape(&text, &from, self.reading.charset), into)?);
            out.extend(separator.map(char::from));
            start = at + 1;
        }
        Ok(())
    }

    fn value_in(&self, range: Range<usize>, place: FieldPath) -> Cow<'m, str> {
        let text = self.decode(range.clone());
        if (self.is_header() && place.field <= 2) || self.has_parts(range) {
            return text;
        }
        match escape::unescape(&text, &self.reading.delimiters, self.reading.charset) {
            Cow::Borrowed(_) => text,
            Cow::Owned(unescaped) => Cow::Owned(unescaped),
        }
    }

    fn decode(&self, range: Range<usize>) -> Cow<'m, str> {
        self.reading.charset.decode(self.text.get(range).unwrap_or_default())
    }

    fn has_parts(&self, range: Range<usize>) -> bool {
        let scan = self.scan.get(range).unwrap_or_default();
        let Delimiters { component, repetition, subcomponent, .. } = self.reading.delimiters;
        match subcomponent {
            Some(subcomponent) => memchr3(component, repetition, subcomponent, scan).is_some(),
            None => memchr2(component, repetition, scan).is_some(),
        }
    }

    /// Where a place is in this segment. `None` where the segment ends before it.
    pub(crate) fn locate(&self, place: FieldPath) -> Option<Range<usize>> {
        let whole = self.field(place.field)?;
        if self.is_header() && place.field <= 2 {
            // Delimiters in these are values, so nothing lies below but the value itself.
            let first = place.repetition.number() == 1
                && place.component.unwrap_or(1) == 1
                && place.subcomponent.unwrap_or(1) == 1;
            return first.then_some(whole);
        }
        if place.repetition == Index::All && place.component.is_none() {
            return Some(whole);
        }
        let repetition =
            piece(self.scan, whole, Some(self.reading.delimiters.repetition), place.repetition.number())?;
        self.below_repetition(repetition, place)
    }

    fn below_repetition(&self, repetition: Range<usize>, place: FieldPath) -> Option<Range<usize>> {
        let Delimiters { component, subcomponent, .. } = self.reading.delimiters;
        let Some(number) = place.component else { return Some(repetition) };
        let found = piece(self.scan, repetition, Some(component), usize::from(number))?;
        let Some(number) = place.subcomponent else { return Some(found) };
        piece(self.scan, found, subcomponent, usize::from(number))
    }

    /// The fields of a header segment by number, in one pass; 0 and 1 are not filled in.
    pub(crate) fn first_fields<const N: usize>(&self) -> Option<[&'m [u8]; N]> {
        let mut fields = [&b""[..]; N];
        let mut start = self.scan.len().min(4);
        let ends = memchr_iter(self.reading.delimiters.field, self.scan).skip(1).chain([self.scan.len()]);
        for (slot, end) in fields.iter_mut().skip(2).zip(ends) {
            *slot = self.text.get(start..end)?;
            start = end + 1;
        }
        Some(fields)
    }

    /// Where a field is, repetitions and all.
    pub(crate) fn field(&self, number: u16) -> Option<Range<usize>> {
        let separator = self.reading.delimiters.field;
        let number = usize::from(number);
        if !self.is_header() {
            // Piece 1 is the segment's name.
            return piece(self.scan, 0..self.scan.len(), Some(separator), number.checked_add(1)?);
        }
        match number {
            1 => (self.scan.len() > 3).then_some(3..4),
            _ => piece(self.scan, 0..self.scan.len(), Some(separator), number),
        }
    }
}

/// Name, place and size; no content.
impl std::fmt::Debug for Segment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Segment({} {}, {} bytes)", self.number, self.name(), self.text.len())
    }
}

pub(crate) fn name_of(text: &[u8], separator: u8) -> &str {
    let end = text.iter().take(5).position(|&b| b == separator).unwrap_or(text.len());
    match text.get(..end) {
        Some(name @ [_, ..]) if name.len() <= 4 && name.iter().all(u8::is_ascii_alphanumeric) => {
            std::str::from_utf8(name).unwrap_or_default()
        }
        _ => "",
    }
}

pub(crate) fn has_name(text: &[u8], name: [u8; 3], separator: u8) -> bool {
    match text {
        [a, b, c] => [*a, *b, *c] == name,
        [a, b, c, after, ..] => [*a, *b, *c] == name && *after == separator,
        _ => false,
    }
}

/// The `number`th of the pieces that `delimiter` splits `range` into. Without a delimiter there is only the first.
fn piece(scan: &[u8], range: Range<usize>, delimiter: Option<u8>, number: usize) -> Option<Range<usize>> {
    let within = scan.get(range.clone())?;
    let Some(delimiter) = delimiter else { return (number == 1).then_some(range) };
    let mut ends = memchr_iter(delimiter, within);
    let start = match number.checked_sub(2) {
        None => 0,
        Some(skipped) => ends.nth(skipped)? + 1,
    };
    let end = ends.next().unwrap_or(within.len());
    Some(range.start + start..range.start + end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(text: &'static str) -> Segment<'static> {
        let reading = Reading { delimiters: Delimiters::default(), charset: Charset::UTF_8 };
        Segment { text: text.as_bytes(), scan: text.as_bytes(), reading, number: 1 }
    }

    fn check(text: &'static str, path: &str, expect: &str) {
        assert_eq!(segment(text).value(path).unwrap(), expect, "{path} of {text}");
    }

    #[test]
    fn every_level_is_found() {
        let pid = "PID|1||123^^^HOSP&1.2.3&ISO^MR~456^^^LAB||Doe\\T\\Co^Jane";
        check(pid, "PID-1", "1");
        check(pid, "PID-2", "");
        check(pid, "PID-3", "123^^^HOSP&1.2.3&ISO^MR");
        check(pid, "PID-3.1", "123");
        check(pid, "PID-3.4", "HOSP&1.2.3&ISO");
        check(pid, "PID-3.4.2", "1.2.3");
        check(pid, "PID-3[2].1", "456");
        check(pid, "PID-3[2].4.1", "LAB");
        check(pid, "PID-5.1", "Doe&Co");
        check(pid, "PID-5", "Doe\\T\\Co^Jane");
        check(pid, "PID-1.1.1", "1");
        check(pid, "PID", pid);
    }

    #[test]
    fn what_is_not_there_is_empty() {
        let pid = "PID|1|A";
        for path in ["PID-3", "PID-2.2", "PID-2.1.2", "PID-2[2]", "PID-999.999.999", "PV1-1", "G/PID-1"] {
            check(pid, path, "");
        }
        check("PID", "PID-1", "");
        check("PIDX|1", "PID-1", "");
    }

    #[test]
    fn header_fields_count_the_separator() {
        let msh = "MSH|^~\\&|APP|FAC||X~Y";
        check(msh, "MSH-1", "|");
        check(msh, "MSH-2", "^~\\&");
        check(msh, "MSH-2.1", "^~\\&");
        check(msh, "MSH-2.2", "");
        check(msh, "MSH-2[2]", "");
        check(msh, "MSH-3", "APP");
        check(msh, "MSH-6[2]", "Y");
        check("MSH", "MSH-1", "");
        assert_eq!(segment(msh).fields(), 6);
        assert_eq!(segment("PID|1|2").fields(), 2);
    }

    #[test]
    fn a_star_takes_all_repetitions() {
        let all = |path: &str| segment("PID|||A^1~~C^3|X").all(&path.parse().unwrap());
        assert_eq!(all("PID-3[*].1"), ["A", "", "C"]);
        assert_eq!(all("PID-3[*]"), ["A^1", "", "C^3"]);
        assert_eq!(all("PID-3[*].2"), ["1", "", "3"]);
        assert_eq!(all("PID-3"), ["A^1"]);
        assert_eq!(all("PID-3[3]"), ["C^3"]);
        assert_eq!(all("PID-3[4]"), [""]);
        assert_eq!(all("PID-9"), [""]);
        assert!(all("PID-9[*]").is_empty());
        assert!(all("PID-1[*]").is_empty());
    }

    #[test]
    fn debug_shows_no_content() {
        assert_eq!(format!("{:?}", segment("PID|SECRET")), "Segment(1 PID, 10 bytes)");
    }
}
