//! Paths into a message: `PID-3.1`, `OBX[2]-5`, `PID-3[2].4.1`, `OBX[*]-5`, `OBX`.
//!
//! CONTRACT §2.4: segment occurrence, field, repetition, component, subcomponent, all 1-based; no index means the
//! first, `[*]` all. A group prefix (`OBSERVATION[2]/OBX-5`) is part of the grammar and kept; resolving it needs the
//! structure of the message type. Paths come from production files, so errors say where and what to write instead.

use std::fmt::{self, Display, Write as _};
use std::str::FromStr;

use thiserror::Error;

/// The largest segment occurrence a path may name.
const MAX_OCCURRENCE: u32 = 1_000_000;
/// The largest repetition a path may name.
const MAX_REPETITION: u32 = 10_000;
/// The largest field, component or subcomponent a path may name: keeps an edit from padding a message without bound.
const MAX_PART: u32 = 999;

/// A parsed path. `Display` gives back what was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Path {
    groups: Vec<GroupStep>,
    segment: [u8; 3],
    occurrence: Index,
    field: Option<FieldPath>,
}

/// One group of a path's prefix, `OBSERVATION[2]` in `OBSERVATION[2]/OBX-5`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupStep {
    /// The group's name in the message structure.
    pub name: String,
    /// Which occurrence of the group.
    pub occurrence: Index,
}

/// Which of several occurrences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Index {
    /// None written: the first.
    First,
    /// `[n]`, 1-based, never 0.
    At(u32),
    /// `[*]`.
    All,
}

/// The part of a path below its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FieldPath {
    /// 1-based. In MSH, field 1 is the separator itself and field 2 the encoding characters.
    pub field: u16,
    /// Which repetition.
    pub repetition: Index,
    /// 1-based; `None` for the whole repetition.
    pub component: Option<u16>,
    /// 1-based; only ever present below a component.
    pub subcomponent: Option<u16>,
}

/// What is wrong with the text of a path, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{path}\", character {position}: {message}")]
pub struct PathError {
    /// The text as it was given.
    pub path: String,
    /// 1-based character position.
    pub position: usize,
    /// What is wrong and, where that can be told, what to write instead.
    pub message: String,
}

impl Path {
    /// The segment's name, three upper-case letters or digits.
    pub fn segment(&self) -> &str {
        std::str::from_utf8(&self.segment).unwrap_or_default()
    }

    pub(crate) fn segment_bytes(&self) -> [u8; 3] {
        self.segment
    }

    /// Which occurrence of the segment.
    pub fn occurrence(&self) -> Index {
        self.occurrence
    }

    /// The field and what is below it; `None` for a bare segment.
    pub fn field(&self) -> Option<FieldPath> {
        self.field
    }

    /// The group prefix, outermost first. Not empty means that resolving needs the message's structure.
    pub fn groups(&self) -> &[GroupStep] {
        &self.groups
    }

    /// Whether `[*]` occurs anywhere.
    pub fn is_multiple(&self) -> bool {
        self.occurrence == Index::All
            || self.field.is_some_and(|f| f.repetition == Index::All)
            || self.groups.iter().any(|g| g.occurrence == Index::All)
    }

    /// The path with `[*]` at every position that it leaves open; `None` where it already has a `[*]`.
    pub(crate) fn open(&self) -> Option<Self> {
        let all = |index: Index| if index == Index::First { Index::All } else { index };
        let field = self.field.map(|f| FieldPath { repetition: all(f.repetition), ..f });
        let occurrence = all(self.occurrence);
        (!self.is_multiple()).then(|| Self {
            groups: self.groups.clone(),
            segment: self.segment,
            occurrence,
            field,
        })
    }

    /// A path to one field of the first `segment`, for paths that the engine itself needs.
    pub(crate) const fn of(segment: [u8; 3], field: u16, component: Option<u16>) -> Self {
        let field = FieldPath { field, repetition: Index::First, component, subcomponent: None };
        Self { groups: Vec::new(), segment, occurrence: Index::First, field: Some(field) }
    }
}

impl Index {
    /// 1-based number to look for; `[*]` counts as the first.
    pub(crate) fn number(self) -> usize {
        match self {
            Self::First | Self::All => 1,
            Self::At(n) => n as usize,
        }
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Parser { text, at: 0 }.path()
    }
}

impl Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for group in &self.groups {
            write!(f, "{}{}/", group.name, group.occurrence)?;
        }
        write!(f, "{}{}", self.segment(), self.occurrence)?;
        let Some(field) = self.field else { return Ok(()) };
        write!(f, "-{}{}", field.field, field.repetition)?;
        for part in [field.component, field.subcomponent].into_iter().flatten() {
            write!(f, ".{part}")?;
        }
        Ok(())
    }
}

impl Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => Ok(()),
            Self::At(n) => write!(f, "[{n}]"),
            Self::All => f.write_str("[*]"),
        }
    }
}

/// A cursor over ASCII text; every error is made where the cursor stands.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn path(mut self) -> Result<Path, PathError> {
        let mut groups = Vec::new();
        loop {
            let start = self.at;
            let name = self.name();
            if name.is_empty() {
                return Err(self.error("expected a segment name like PID"));
            }
            let occurrence = self.index(MAX_OCCURRENCE)?;
            if self.take(b'/') {
                groups.push(GroupStep { name: name.to_owned(), occurrence });
                continue;
            }
            let segment = self.segment_name(start, name)?;
            let field = self.below_segment(name)?;
            return Ok(Path { groups, segment, occurrence, field });
        }
    }

    fn segment_name(&self, start: usize, name: &str) -> Result<[u8; 3], PathError> {
        let wrong =
            |message: String| Err(PathError { path: self.text.to_owned(), position: start + 1, message });
        match <[u8; 3]>::try_from(name.as_bytes()) {
            Ok(id) if id.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) => Ok(id),
            Ok(id) if id.iter().all(u8::is_ascii_alphanumeric) => {
                wrong(format!("segment names are upper case, write {}", name.to_ascii_uppercase()))
            }
            _ => wrong(String::from("a segment name has exactly three letters or digits")),
        }
    }

    fn below_segment(&mut self, segment: &str) -> Result<Option<FieldPath>, PathError> {
        match self.peek() {
            None => return Ok(None),
            Some(b'-') => self.at += 1,
            Some(b'.') => {
                return Err(self.error(&format!("a field follows the segment with -, as in {segment}-3")));
            }
            Some(b'[') => return Err(self.error("only one index may follow a name")),
            Some(_) => return Err(self.error("expected -, [ or the end")),
        }
        let field = self.part("a field number")?;
        let repetition = self.index(MAX_REPETITION)?;
        let component = if self.take(b'.') { Some(self.part("a component number")?) } else { None };
        let below = component.is_some() && self.take(b'.');
        let subcomponent = if below { Some(self.part("a subcomponent number")?) } else { None };
        match self.peek() {
            None => Ok(Some(FieldPath { field, repetition, component, subcomponent })),
            Some(b'.') => Err(self.error("nothing lies below a subcomponent")),
            Some(b'[') if component.is_some() => Err(self.error(
                "only segments and fields repeat; the repetition goes before the component, as in PID-3[2].1",
            )),
            Some(b'-') => Err(self.error("a component follows the field with ., as in PID-3.1")),
            Some(_) => Err(self.error("expected [, . or the end")),
        }
    }

    /// `[n]`, `[*]` or nothing.
    fn index(&mut self, max: u32) -> Result<Index, PathError> {
        if !self.take(b'[') {
            return Ok(Index::First);
        }
        let index = if self.take(b'*') { Index::All } else { Index::At(self.number("a number or *", max)?) };
        if self.take(b']') { Ok(index) } else { Err(self.error("expected ]")) }
    }

    fn part(&mut self, what: &str) -> Result<u16, PathError> {
        let number = self.number(what, MAX_PART)?;
        u16::try_from(number).map_err(|_| self.error("the number is too large"))
    }

    fn number(&mut self, what: &str, max: u32) -> Result<u32, PathError> {
        let start = self.at;
        let mut value = 0_u32;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            value = value.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
            self.at += 1;
        }
        let end = std::mem::replace(&mut self.at, start);
        if end == start {
            return Err(self.error(&format!("expected {what}")));
        }
        if value == 0 {
            return Err(self.error("numbers in paths begin with 1"));
        }
        if value > max {
            return Err(self.error(&format!("the number is larger than {max}")));
        }
        self.at = end;
        Ok(value)
    }

    fn name(&mut self) -> &'a str {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_') {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn error(&self, message: &str) -> PathError {
        let before = self.text.get(..self.at).map_or(self.at, |t| t.chars().count());
        let mut shown = String::new();
        for c in self.text.chars().take(80) {
            let _ = if c.is_control() { shown.write_char('?') } else { shown.write_char(c) };
        }
        PathError { path: shown, position: before + 1, message: message.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        text.parse::<Path>().unwrap_err().to_string()
    }

    #[test]
    fn every_form_is_read_and_written_back() {
        for text in [
            "PID",
            "OBX[2]",
            "OBX[*]",
            "PID-3",
            "PID-3.1",
            "PID-3[2].4.1",
            "OBX[2]-5",
            "OBX[*]-5[*].2",
            "ZX1-1[1]",
            "OBSERVATION[2]/OBX-5",
            "PATIENT_RESULT/ORDER_OBSERVATION[*]/OBX[3]-5.1",
            "PID-999.999.999",
        ] {
            assert_eq!(text.parse::<Path>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn parts_are_where_they_belong() {
        let path: Path = "OBX[12]-3[2].4.5".parse().unwrap();
        assert_eq!((path.segment(), path.occurrence()), ("OBX", Index::At(12)));
        let field = path.field().unwrap();
        assert_eq!((field.field, field.repetition), (3, Index::At(2)));
        assert_eq!((field.component, field.subcomponent), (Some(4), Some(5)));
        assert!(!path.is_multiple());
        assert!("OBX-3[*]".parse::<Path>().unwrap().is_multiple());
    }

    #[test]
    fn errors_say_where_and_what_to_write() {
        insta::assert_snapshot!([
            "", "PID-", "PID-0", "PID-3.", "PID.3", "pid-3", "PIDX-3", "PI", "PID-3.1.2.3", "PID-3.1[2]", "PID[0]",
            "PID[x]-3", "PID[1", "PID-3 ", "PID-3-1", "PID-99999999999999999999999", "OBX[*][*]", "A/", "Ä-1", "PID-3[*",
        ]
        .map(problem)
        .join("\n"), @r#"
"", character 1: expected a segment name like PID
"PID-", character 5: expected a field number
"PID-0", character 5: numbers in paths begin with 1
"PID-3.", character 7: expected a component number
"PID.3", character 4: a field follows the segment with -, as in PID-3
"pid-3", character 1: segment names are upper case, write PID
"PIDX-3", character 1: a segment name has exactly three letters or digits
"PI", character 1: a segment name has exactly three letters or digits
"PID-3.1.2.3", character 10: nothing lies below a subcomponent
"PID-3.1[2]", character 8: only segments and fields repeat; the repetition goes before the component, as in PID-3[2].1
"PID[0]", character 5: numbers in paths begin with 1
"PID[x]-3", character 5: expected a number or *
"PID[1", character 6: expected ]
"PID-3 ", character 6: expected [, . or the end
"PID-3-1", character 6: a component follows the field with ., as in PID-3.1
"PID-99999999999999999999999", character 5: the number is larger than 999
"OBX[*][*]", character 7: only one index may follow a name
"A/", character 3: expected a segment name like PID
"Ä-1", character 1: expected a segment name like PID
"PID-3[*", character 8: expected ]
"#);
    }
}
