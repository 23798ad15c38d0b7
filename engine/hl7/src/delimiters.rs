//! The characters that separate the parts of a message, as its own header declares them.
//!
//! HL7 v2.5.1 §2.5.4 (message delimiters) and §2.15.9.1–2 (MSH-1, MSH-2). The recommended set is `|^~\&`; v2.7 added a
//! truncation character as a fifth of MSH-2. Real headers also come with one or two characters missing (a shell ate
//! the backslash) or doubled (`^~\\&` from a JSON dump); those are read as what they were meant to be.

use thiserror::Error;

/// Delimiters of one message. All are ASCII; none is a letter, a digit, a space or a line end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Delimiters {
    /// Between fields: MSH-1, `|`.
    pub field: u8,
    /// Between components: `^`.
    pub component: u8,
    /// Between repetitions: `~`.
    pub repetition: u8,
    /// Around escape sequences: `\`. `None` when the header declares none: nothing can be escaped then.
    pub escape: Option<u8>,
    /// Between subcomponents: `&`. `None` when the header declares none.
    pub subcomponent: Option<u8>,
    /// Marks truncated values since v2.7: `#`.
    pub truncation: Option<u8>,
}

impl Default for Delimiters {
    fn default() -> Self {
        Self {
            field: b'|',
            component: b'^',
            repetition: b'~',
            escape: Some(b'\\'),
            subcomponent: Some(b'&'),
            truncation: None,
        }
    }
}

impl Delimiters {
    /// Reads the delimiters from a header line (`MSH`, `BHS` or `FHS`), which must start with the segment's name.
    /// Unused extra characters in MSH-2 are ignored.
    pub fn of_header(line: &[u8]) -> Result<Self, HeaderError> {
        let field = *line.get(3).ok_or(HeaderError::Truncated)?;
        if !can_delimit(field) {
            return Err(HeaderError::FieldSeparator);
        }
        // No more is ever looked at: a candidate for a header may be the beginning of anything.
        let rest = line.get(4..line.len().min(20)).unwrap_or_default();
        let declared = rest.split(|&b| b == field).next().unwrap_or_default();
        let mut distinct = [0_u8; 5];
        let mut count = 0;
        for &byte in declared.iter().take_while(|&&b| can_delimit(b)) {
            let (seen, free) = distinct.split_at_mut(count);
            if !seen.contains(&byte)
                && let Some(slot) = free.first_mut()
            {
                *slot = byte;
                count += 1;
            }
        }
        match distinct.get(..count).unwrap_or_default() {
            [] => Err(HeaderError::EncodingCharacters),
            // `MSH|&&&&|` declares nothing that could be used; its sender means the usual ones.
            [_] => {
                let usual = Self { field, ..Self::default() };
                if b"^~\\&".contains(&field) { Err(HeaderError::EncodingCharacters) } else { Ok(usual) }
            }
            // With fewer than four, well-known characters keep their well-known roles: `^~&` has lost its backslash.
            few @ ([_, _] | [_, _, _]) if few.iter().all(|b| b"^~\\&".contains(b)) && few.contains(&b'^') => {
                let declares = |b: u8| few.contains(&b).then_some(b);
                Ok(Self {
                    field,
                    component: b'^',
                    repetition: b'~',
                    escape: declares(b'\\'),
                    subcomponent: declares(b'&'),
                    truncation: None,
                })
            }
            [component, repetition, rest @ ..] => Ok(Self {
                field,
                component: *component,
                repetition: *repetition,
                escape: rest.first().copied(),
                subcomponent: rest.get(1).copied(),
                truncation: rest.get(2).copied(),
            }),
        }
    }

    /// Whether `byte` is one of these delimiters, the escape character included.
    pub fn contains(&self, byte: u8) -> bool {
        byte == self.field
            || byte == self.component
            || byte == self.repetition
            || self.escape == Some(byte)
            || self.subcomponent == Some(byte)
    }

    /// MSH-2 in the standard's order, for a header that we write ourselves.
    pub fn encoding_characters(&self) -> EncodingCharacters {
        let declared =
            [Some(self.component), Some(self.repetition), self.escape, self.subcomponent, self.truncation];
        let mut out = EncodingCharacters { bytes: [0; 5], count: 0 };
        for (slot, byte) in out.bytes.iter_mut().zip(declared.into_iter().flatten()) {
            *slot = byte;
            out.count += 1;
        }
        out
    }
}

/// The value of MSH-2: two to five characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodingCharacters {
    bytes: [u8; 5],
    count: usize,
}

impl std::ops::Deref for EncodingCharacters {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.count).unwrap_or_default()
    }
}

/// What may delimit: ASCII without letters, digits, spaces, line ends and the frame marks of MLLP.
fn can_delimit(byte: u8) -> bool {
    byte.is_ascii()
        && !byte.is_ascii_alphanumeric()
        && !matches!(byte, b'\r' | b'\n' | b' ' | b'\t' | 0 | 0x0b | 0x1c | 0x1b)
}

/// Why a header line declares no usable delimiters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The line ends after the segment's name.
    #[error("the header ends before its field separator")]
    Truncated,
    /// A letter, digit, space or control character stands where the separator should.
    #[error("the header has no usable field separator")]
    FieldSeparator,
    /// MSH-2 is empty, or declares no character that can delimit.
    #[error("the header has no usable encoding characters")]
    EncodingCharacters,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(msh2: &str) -> Result<String, HeaderError> {
        let line = format!("MSH|{msh2}|APP|FAC");
        Delimiters::of_header(line.as_bytes()).map(|d| {
            let show = |b: Option<u8>| b.map_or('-', char::from);
            [
                char::from(d.component),
                char::from(d.repetition),
                show(d.escape),
                show(d.subcomponent),
                show(d.truncation),
            ]
            .iter()
            .collect()
        })
    }

    #[test]
    fn three_to_five_characters_are_read_in_order() {
        assert_eq!(declared("^~\\&").unwrap(), "^~\\&-");
        assert_eq!(declared("^~\\&#").unwrap(), "^~\\&#");
        assert_eq!(declared("^~\\").unwrap(), "^~\\--");
        assert_eq!(declared("$%@!").unwrap(), "$%@!-");
        assert_eq!(declared("$%@").unwrap(), "$%@--");
    }

    #[test]
    fn mangled_but_recognisable_sets_keep_their_roles() {
        assert_eq!(declared("^~&").unwrap(), "^~-&-");
        assert_eq!(declared("^\\&").unwrap(), "^~\\&-");
        assert_eq!(declared("^~\\\\&").unwrap(), "^~\\&-");
        assert_eq!(declared("^~").unwrap(), "^~---");
        assert_eq!(declared("&&&&").unwrap(), "^~\\&-");
    }

    #[test]
    fn unusable_sets_are_refused() {
        assert_eq!(declared(""), Err(HeaderError::EncodingCharacters));
        assert_eq!(Delimiters::of_header(b"MSH^&^A"), Err(HeaderError::EncodingCharacters));
        assert_eq!(declared("ABCD"), Err(HeaderError::EncodingCharacters));
        assert_eq!(Delimiters::of_header(b"MSH"), Err(HeaderError::Truncated));
        assert_eq!(Delimiters::of_header(b"MSHA^~\\&"), Err(HeaderError::FieldSeparator));
        assert_eq!(Delimiters::of_header(b"MSH ^~\\&"), Err(HeaderError::FieldSeparator));
    }

    #[test]
    fn the_field_separator_need_not_be_a_pipe() {
        let d = Delimiters::of_header(b"MSH@~&#\\@APP").unwrap();
        assert_eq!((d.field, d.component, d.repetition), (b'@', b'~', b'&'));
        assert_eq!((d.escape, d.subcomponent), (Some(b'#'), Some(b'\\')));
    }
}
