//! Writing into one segment: find a place, or make it by adding the separators before it.

use std::ops::Range;

use crate::segment::Segment;
use crate::{Delimiters, FieldPath, Index};

pub(super) fn splice(text: &[u8], range: Range<usize>, padding: &[u8], bytes: &[u8]) -> Vec<u8> {
    let before = text.get(..range.start).unwrap_or_default();
    let after = text.get(range.end..).unwrap_or_default();
    [before, padding, bytes, after].concat()
}

/// A repetition together with one separator beside it.
pub(super) fn with_separator(segment: &Segment<'_>, range: Range<usize>, field: u16) -> Range<usize> {
    let Some(whole) = segment.field(field) else { return range };
    if range.start > whole.start {
        range.start - 1..range.end
    } else if range.end < whole.end {
        range.start..range.end + 1
    } else {
        range
    }
}

/// The segment with `bytes` at one place. Empty bytes make no place. `None` where the place needs a separator that the
/// message does not declare.
pub(super) fn write_once(segment: &Segment<'_>, place: FieldPath, bytes: &[u8]) -> Option<Vec<u8>> {
    let Delimiters { field, repetition, .. } = segment.reading.delimiters;
    let mut at = Descent { scan: segment.scan, range: 0..segment.scan.len(), padding: Vec::new() };
    at.enter(field, usize::from(place.field) + usize::from(!segment.is_header()));
    if place.repetition != Index::All || place.component.is_some() {
        at.enter(repetition, place.repetition.number());
        at.enter_parts(segment.reading.delimiters, place)?;
    }
    if bytes.is_empty() && !at.padding.is_empty() {
        return Some(segment.text.to_vec());
    }
    Some(splice(segment.text, at.range, &at.padding, bytes))
}

/// As [`write_once`], in every repetition there is: one pass, for fields may have very many.
pub(super) fn write_everywhere(segment: &Segment<'_>, place: FieldPath, bytes: &[u8]) -> Option<Vec<u8>> {
    let whole = segment.field(place.field)?;
    let text = |range: Range<usize>| segment.text.get(range).unwrap_or_default();
    let mut out = Vec::with_capacity(segment.text.len() + 64);
    let mut start = whole.start;
    let mut done = 0;
    let scan = segment.scan.get(whole.clone()).unwrap_or_default();
    let ends = memchr::memchr_iter(segment.reading.delimiters.repetition, scan).map(|at| whole.start + at);
    for end in ends.chain([whole.end]) {
        let mut at = Descent { scan: segment.scan, range: start..end, padding: Vec::new() };
        at.enter_parts(segment.reading.delimiters, place)?;
        if !bytes.is_empty() || at.padding.is_empty() {
            out.extend_from_slice(text(done..at.range.start));
            out.extend_from_slice(&at.padding);
            out.extend_from_slice(bytes);
            done = at.range.end;
        }
        start = end + 1;
    }
    out.extend_from_slice(text(done..segment.text.len()));
    Some(out)
}

/// A place, or where it would be after the separators that are missing before it.
struct Descent<'s> {
    scan: &'s [u8],
    range: Range<usize>,
    padding: Vec<u8>,
}

impl Descent<'_> {
    /// From a repetition to the component and subcomponent of a place.
    fn enter_parts(&mut self, delimiters: Delimiters, place: FieldPath) -> Option<()> {
        if let Some(number) = place.component {
            self.enter(delimiters.component, usize::from(number));
        }
        match (place.subcomponent, delimiters.subcomponent) {
            (Some(number), Some(separator)) => self.enter(separator, usize::from(number)),
            (Some(2..), None) => return None,
            _ => {}
        }
        Some(())
    }

    /// Narrows the range to its `number`th piece, or to its end with the missing separators noted.
    fn enter(&mut self, separator: u8, number: usize) {
        let within = self.scan.get(self.range.clone()).unwrap_or_default();
        let mut start = 0;
        let mut seen = 1;
        let mut ends = memchr::memchr_iter(separator, within);
        while seen < number {
            match ends.next() {
                Some(end) => start = end + 1,
                None => {
                    self.padding.resize(self.padding.len() + number - seen, separator);
                    self.range = self.range.end..self.range.end;
                    return;
                }
            }
            seen += 1;
        }
        let end = ends.next().unwrap_or(within.len());
        self.range = self.range.start + start..self.range.start + end;
    }
}
