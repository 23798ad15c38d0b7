//! Character sets: which one a message is in, its text, and text back to bytes.
//!
//! HL7 Table 0211 (alternate character sets, MSH-18) uses names that no registry of encodings knows, so the table is our
//! own; the conversions are encoding_rs's. Two decisions, both made for what senders really do: `8859/1` is read and
//! written as windows-1252, its superset in all text; and decoding never fails: bytes that are no text of the charset are
//! read as something and reported as a finding. The bytes themselves stay as they arrived.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::str::FromStr;

use encoding_rs::{BIG5, Encoding, GB18030, GBK, SHIFT_JIS, UTF_8, WINDOWS_1252};
use thiserror::Error;

use crate::iso2022;

/// A character set that text can be read from and written to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Charset(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Ascii,
    Utf16 {
        big: bool,
    },
    Utf32 {
        big: bool,
    },
    Iso2022Jp,
    /// Everything that encoding_rs does as HL7 needs it, UTF-8 included.
    Table(&'static Encoding),
}

/// Characters that the charset cannot express. Names the charset only: text is patient data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the text has characters that {charset} cannot express")]
pub struct Unmappable {
    /// The charset that was asked for.
    pub charset: Charset,
}

/// The name of no charset that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no such character set; use a name of HL7 Table 0211 such as 8859/1 or UNICODE UTF-8")]
pub struct UnknownCharset;

impl Charset {
    /// Seven bits.
    pub const ASCII: Self = Self(Kind::Ascii);
    /// `UNICODE UTF-8`.
    pub const UTF_8: Self = Self(Kind::Table(UTF_8));
    /// `8859/1`, read and written as windows-1252.
    pub const LATIN_1: Self = Self(Kind::Table(WINDOWS_1252));
    /// UTF-16, least significant byte first.
    pub const UTF_16LE: Self = Self(Kind::Utf16 { big: false });
    /// UTF-16, most significant byte first.
    pub const UTF_16BE: Self = Self(Kind::Utf16 { big: true });
    /// UTF-32, least significant byte first.
    pub const UTF_32LE: Self = Self(Kind::Utf32 { big: false });
    /// UTF-32, most significant byte first.
    pub const UTF_32BE: Self = Self(Kind::Utf32 { big: true });
    /// JIS X 0201, 0208 and 0212 by ISO 2022 escape sequences: `ISO IR14`, `ISO IR87`, `ISO IR159`.
    pub const ISO_2022_JP: Self = Self(Kind::Iso2022Jp);

    /// The charset of a name: one of HL7 Table 0211, a common misspelling of one, or a name that browsers know.
    pub fn from_name(name: &str) -> Option<Self> {
        let mut key: String =
            name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect();
        if let Some(rest) = key.strip_prefix("ISO").filter(|rest| rest.starts_with("8859")) {
            key = rest.to_owned();
        }
        let label = match key.as_str() {
            "" => return None,
            "ASCII" | "USASCII" | "ISOIR6" | "ANSIX341968" => return Some(Self::ASCII),
            "UNICODE" | "UNICODEUTF8" | "UTF8" => return Some(Self::UTF_8),
            "UNICODEUTF16" | "UTF16" | "UTF16BE" => return Some(Self::UTF_16BE),
            "UTF16LE" => return Some(Self::UTF_16LE),
            "UNICODEUTF32" | "UTF32" | "UTF32BE" => return Some(Self::UTF_32BE),
            "UTF32LE" => return Some(Self::UTF_32LE),
            "ISOIR14" | "ISOIR87" | "ISOIR159" | "ISO2022JP" => return Some(Self::ISO_2022_JP),
            "88591" | "CP1252" | "WINDOWS1252" | "ANSI" | "LATIN1" => return Some(Self::LATIN_1),
            "88592" => "iso-8859-2",
            "88593" => "iso-8859-3",
            "88594" => "iso-8859-4",
            "88595" => "iso-8859-5",
            "88596" => "iso-8859-6",
            "88597" => "iso-8859-7",
            "88598" => "iso-8859-8",
            "88599" => "windows-1254",
            "885910" => "iso-8859-10",
            "885911" => "windows-874",
            "885913" => "iso-8859-13",
            "885914" => "iso-8859-14",
            "885915" => "iso-8859-15",
            "885916" => "iso-8859-16",
            "GB180302000" | "GB18030" => "gb18030",
            "KSX1001" => "euc-kr",
            "BIG5" => "big5",
            _ => name,
        };
        let encoding = Encoding::for_label(label.trim().as_bytes())?;
        // "replacement" and the UTF-16 labels do not encode what they decode.
        (encoding.output_encoding() == encoding).then_some(Self(Kind::Table(encoding)))
    }

    /// A stable name, which [`Charset::from_name`] reads back.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Ascii => "ASCII",
            Kind::Utf16 { big: true } => "UTF-16BE",
            Kind::Utf16 { big: false } => "UTF-16LE",
            Kind::Utf32 { big: true } => "UTF-32BE",
            Kind::Utf32 { big: false } => "UTF-32LE",
            Kind::Iso2022Jp => "ISO-2022-JP",
            Kind::Table(encoding) => encoding.name(),
        }
    }

    /// Text of `bytes`; what cannot be decoded is read as something.
    pub fn decode(self, bytes: &[u8]) -> Cow<'_, str> {
        self.decode_checked(bytes).0
    }

    /// Text of `bytes`, and whether all of it was text of this charset.
    pub fn decode_checked(self, bytes: &[u8]) -> (Cow<'_, str>, bool) {
        match self.0 {
            Kind::Ascii => match std::str::from_utf8(bytes) {
                Ok(text) => (Cow::Borrowed(text), bytes.is_ascii()),
                Err(_) => (WINDOWS_1252.decode_without_bom_handling(bytes).0, false),
            },
            Kind::Utf16 { big } => {
                let units = bytes.chunks(2).map(|pair| match *pair {
                    [a, b] if big => u16::from_be_bytes([a, b]),
                    [a, b] => u16::from_le_bytes([a, b]),
                    _ => 0xfffd,
                });
                let mut clean = bytes.len().is_multiple_of(2);
                let text = char::decode_utf16(units)
                    .map(|unit| {
                        clean &= unit.is_ok();
                        unit.unwrap_or(char::REPLACEMENT_CHARACTER)
                    })
                    .collect();
                (Cow::Owned(text), clean)
            }
            Kind::Utf32 { big } => {
                let mut clean = true;
                let text = bytes
                    .chunks(4)
                    .map(|unit| {
                        let value = <[u8; 4]>::try_from(unit).map(|unit| {
                            if big { u32::from_be_bytes(unit) } else { u32::from_le_bytes(unit) }
                        });
                        let char = value.ok().and_then(char::from_u32);
                        clean &= char.is_some();
                        char.unwrap_or(char::REPLACEMENT_CHARACTER)
                    })
                    .collect();
                (Cow::Owned(text), clean)
            }
            Kind::Iso2022Jp => {
                if bytes.is_ascii() && !iso2022::switches(bytes) {
                    return (std::str::from_utf8(bytes).map_or(Cow::Borrowed(""), Cow::Borrowed), true);
                }
                let (text, clean) = iso2022::decode(bytes);
                (Cow::Owned(text), clean)
            }
            Kind::Table(encoding) if encoding == UTF_8 => match std::str::from_utf8(bytes) {
                Ok(text) => (Cow::Borrowed(text), true),
                // One Latin-1 value among UTF-8 is commoner than a torn character, and readable this way.
                Err(_) => (WINDOWS_1252.decode_without_bom_handling(bytes).0, false),
            },
            Kind::Table(encoding) => {
                let (text, malformed) = encoding.decode_without_bom_handling(bytes);
                (text, !malformed)
            }
        }
    }

    /// Bytes of `text`.
    pub fn encode(self, text: &str) -> Result<Cow<'_, [u8]>, Unmappable> {
        let unmappable = Unmappable { charset: self };
        let encoding = match self.0 {
            Kind::Ascii if text.is_ascii() => return Ok(Cow::Borrowed(text.as_bytes())),
            Kind::Ascii => return Err(unmappable),
            Kind::Utf16 { big } => {
                let bytes =
                    text.encode_utf16().flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() });
                return Ok(Cow::Owned(bytes.collect()));
            }
            Kind::Utf32 { big } => {
                let bytes = text
                    .chars()
                    .map(u32::from)
                    .flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() });
                return Ok(Cow::Owned(bytes.collect()));
            }
            Kind::Iso2022Jp => encoding_rs::ISO_2022_JP,
            Kind::Table(encoding) => encoding,
        };
        let (bytes, _, lost) = encoding.encode(text);
        if lost { Err(unmappable) } else { Ok(bytes) }
    }

    /// As [`Charset::encode`], with `?` for what the charset cannot express. For texts of our own in acknowledgements.
    pub fn encode_lossy(self, text: &str) -> Cow<'_, [u8]> {
        if let Ok(bytes) = self.encode(text) {
            return bytes;
        }
        let mut single = [0_u8; 4];
        text.chars()
            .flat_map(|c| self.encode(c.encode_utf8(&mut single)).map_or(vec![b'?'], Cow::into_owned))
            .collect()
    }

    /// Two or four bytes a character: nothing can be searched before it is decoded.
    pub fn is_wide(self) -> bool {
        self.width() > 1
    }

    /// Bytes of one code unit.
    pub(crate) fn width(self) -> usize {
        match self.0 {
            Kind::Utf16 { .. } => 2,
            Kind::Utf32 { .. } => 4,
            _ => 1,
        }
    }

    /// One byte a character with an upper half, so that valid UTF-8 in it is no accident.
    pub(crate) fn is_single_byte(self) -> bool {
        match self.0 {
            Kind::Table(encoding) => encoding.is_single_byte(),
            _ => false,
        }
    }

    /// Whether a byte that looks like a delimiter may be part of a character.
    pub(crate) fn hides_delimiters(self) -> bool {
        match self.0 {
            Kind::Iso2022Jp => true,
            Kind::Table(encoding) => [GB18030, GBK, BIG5, SHIFT_JIS].contains(&encoding),
            _ => false,
        }
    }

    /// A copy of `bytes`, same length, in which the bytes that only look like delimiters are replaced by 0xFF.
    /// `None` where there are none.
    pub(crate) fn without_hidden_delimiters(self, bytes: &[u8]) -> Option<Vec<u8>> {
        const HIDDEN: u8 = 0xff;
        if !self.hides_delimiters() {
            return None;
        }
        let mut out = Vec::with_capacity(bytes.len());
        match self.0 {
            Kind::Iso2022Jp if iso2022::switches(bytes) => iso2022::runs(bytes, |set, run| match set {
                iso2022::Set::Single => out.extend_from_slice(run),
                _ => out.resize(out.len() + run.len(), HIDDEN),
            }),
            Kind::Table(encoding) if !bytes.is_ascii() => {
                let is_lead: fn(u8) -> bool = if encoding == SHIFT_JIS {
                    |b| matches!(b, 0x81..=0x9f | 0xe0..=0xfc)
                } else {
                    |b| matches!(b, 0x81..=0xfe)
                };
                let mut rest = bytes;
                while let [byte, after @ ..] = rest {
                    let (length, hidden) = match after {
                        [0x40..=0x7e | 0x80..=0xfe, ..] if is_lead(*byte) => (2, 1),
                        // GB18030's four-byte form: lead, digit, lead, digit.
                        [b'0'..=b'9', 0x81..=0xfe, b'0'..=b'9', ..] if is_lead(*byte) && encoding != BIG5 => {
                            (4, 3)
                        }
                        _ => (1, 0),
                    };
                    out.push(*byte);
                    out.resize(out.len() + hidden, HIDDEN);
                    rest = rest.get(length..).unwrap_or_default();
                }
            }
            _ => return None,
        }
        Some(out)
    }
}

impl FromStr for Charset {
    type Err = UnknownCharset;

    fn from_str(name: &str) -> Result<Self, UnknownCharset> {
        Self::from_name(name).ok_or(UnknownCharset)
    }
}

impl Display for Charset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Charset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Charset({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Charset {
        Charset::from_name(name).unwrap_or_else(|| panic!("{name} is unknown"))
    }

    #[test]
    fn every_name_of_table_0211_that_can_be_supported_is_known() {
        for (name, expect) in [
            ("ASCII", "ASCII"),
            ("8859/1", "windows-1252"),
            ("8859/2", "ISO-8859-2"),
            ("8859/3", "ISO-8859-3"),
            ("8859/4", "ISO-8859-4"),
            ("8859/5", "ISO-8859-5"),
            ("8859/6", "ISO-8859-6"),
            ("8859/7", "ISO-8859-7"),
            ("8859/8", "ISO-8859-8"),
            ("8859/9", "windows-1254"),
            ("8859/15", "ISO-8859-15"),
            ("ISO IR6", "ASCII"),
            ("ISO IR14", "ISO-2022-JP"),
            ("ISO IR87", "ISO-2022-JP"),
            ("ISO IR159", "ISO-2022-JP"),
            ("GB 18030-2000", "gb18030"),
            ("KS X 1001", "EUC-KR"),
            ("BIG-5", "Big5"),
            ("UNICODE", "UTF-8"),
            ("UNICODE UTF-8", "UTF-8"),
            ("UNICODE UTF-16", "UTF-16BE"),
            ("UNICODE UTF-32", "UTF-32BE"),
        ] {
            assert_eq!(named(name).name(), expect);
            assert_eq!(named(expect), named(name), "names are read back");
        }
    }

    #[test]
    fn common_misspellings_are_known_and_others_are_not() {
        for name in ["ISO-8859-1", "iso8859-1", "8859-1", "ISO_8859-1:1987", "Windows-1252", "cp1252"] {
            assert_eq!(named(name), Charset::LATIN_1, "{name}");
        }
        assert_eq!(named("utf8"), Charset::UTF_8);
        assert_eq!(named("Shift_JIS").name(), "Shift_JIS");
        assert_eq!(named("windows-1251").name(), "windows-1251");
        for name in ["", "  ", "CNS 11643-1992", "KLINGON", "ISO-2022-KR", "replacement", "8859", "8859/12"] {
            assert_eq!(Charset::from_name(name), None, "{name}");
        }
        assert_eq!("KLINGON".parse::<Charset>(), Err(UnknownCharset));
    }

    #[test]
    fn text_comes_back_from_every_charset_that_can_express_it() {
        for (name, text) in [
            ("ASCII", "Mueller"),
            ("8859/1", "Müller “€”"),
            ("8859/2", "Dvořák Łukasz"),
            ("8859/5", "Иванов"),
            ("8859/7", "Γιώργος"),
            ("8859/9", "Şahin Işık"),
            ("8859/15", "Lebœuf €"),
            ("ISO IR87", "患者 taro 太郎"),
            ("GB 18030-2000", "王小明 𠀋"),
            ("KS X 1001", "홍길동"),
            ("BIG-5", "陳大文"),
            ("UNICODE UTF-8", "Müller 患者 𠀋"),
            ("UNICODE UTF-16", "Müller 患者 𠀋"),
            ("UTF-16LE", "Müller 患者 𠀋"),
            ("UNICODE UTF-32", "Müller 患者 𠀋"),
            ("UTF-32LE", "Müller 患者 𠀋"),
        ] {
            let bytes = named(name).encode(text).unwrap_or_else(|problem| panic!("{name}: {problem}"));
            assert_eq!(named(name).decode_checked(&bytes), (Cow::Borrowed(text), true), "{name}");
        }
    }

    #[test]
    fn what_a_charset_cannot_express_is_reported() {
        for (name, text) in
            [("ASCII", "é"), ("8859/1", "患"), ("ISO IR87", "홍"), ("BIG-5", "é"), ("KS X 1001", "𠀋")]
        {
            let problem = named(name).encode(text).unwrap_err();
            assert_eq!(problem, Unmappable { charset: named(name) });
            assert!(!problem.to_string().contains(text));
            assert_eq!(*named(name).encode_lossy(&format!("a{text}b")), *b"a?b", "{name}");
        }
    }

    #[test]
    fn decoding_never_fails_but_tells() {
        let check = |name: &str, bytes: &[u8], expect: &str| {
            assert_eq!(named(name).decode_checked(bytes), (Cow::Borrowed(expect), false), "{name}");
        };
        check("ASCII", b"\xe9", "é");
        check("ASCII", "é".as_bytes(), "é");
        check("UNICODE UTF-8", b"caf\xe9", "café");
        check("GB 18030-2000", b"\xff", "\u{fffd}");
        check("UTF-16LE", b"a\0\x00\xd8b\0", "a\u{fffd}b");
        check("UTF-16LE", b"a\0b", "a\u{fffd}");
        check("UTF-32LE", b"a\0\0\0\xff\xff\xff\xff", "a\u{fffd}");
    }

    #[test]
    fn only_bytes_inside_characters_are_covered() {
        let covered = |name: &str, bytes: &[u8]| named(name).without_hidden_delimiters(bytes);
        assert_eq!(covered("BIG-5", b"|\xa4\x7c|\xa5\x5c^"), Some(b"|\xa4\xff|\xa5\xff^".to_vec()));
        assert_eq!(
            covered("GB 18030-2000", b"\x81\x30\x81\x30|\x81\x7c|"),
            Some(b"\x81\xff\xff\xff|\x81\xff|".to_vec())
        );
        assert_eq!(covered("Shift_JIS", b"\x83\x5c|\xb1|"), Some(b"\x83\xff|\xb1|".to_vec()));
        assert_eq!(
            covered("ISO IR87", b"A|\x1b$B|^\x1b(B|"),
            Some(b"A|\xff\xff\xff\xff\xff\xff\xff\xff|".to_vec())
        );
        assert_eq!(covered("BIG-5", b"plain|^"), None);
        assert_eq!(covered("8859/1", b"\xe9|"), None);
        assert_eq!(covered("BIG-5", b"\xa4"), Some(b"\xa4".to_vec()));
    }
}
