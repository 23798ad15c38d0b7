//! Escape sequences in text, both ways.
//!
//! HL7 v2.5.1 §2.7 (use of escape sequences in text fields). `\F\ \S\ \T\ \R\ \E\` stand for the message's own
//! delimiters, `\P\` (v2.7) for its truncation character, `\Xhh…\` for bytes, `\.br\` for a line break. Whatever else
//! stands between escape characters (highlighting, formatting, local `\Z..\`, character set switches, a lone backslash
//! in a Windows path) is not ours to interpret: it stays as it is.
//!
//! For every text: `unescape(escape(text)) == text`.

use std::borrow::Cow;
use std::fmt::Write as _;

use memchr::memchr;
use thiserror::Error;

use crate::{Charset, Delimiters};

/// The text holds a character that needs escaping, and the message declares no escape character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the message declares no escape character")]
pub struct NoEscapeCharacter;

/// Makes `text` safe to stand in a field: delimiters become their sequences, control characters (tab excepted) `\Xhh\`,
/// a line feed `\.br\`.
pub fn escape<'t>(text: &'t str, delimiters: &Delimiters) -> Result<Cow<'t, str>, NoEscapeCharacter> {
    let needs =
        |b: u8| delimiters.contains(b) || delimiters.truncation == Some(b) || (b < 0x20 && b != b'\t');
    let Some(first) = text.bytes().position(needs) else { return Ok(Cow::Borrowed(text)) };
    let mark = char::from(delimiters.escape.ok_or(NoEscapeCharacter)?);
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(text.get(..first).unwrap_or_default());
    for c in text.get(first..).unwrap_or_default().chars() {
        let Ok(byte) = u8::try_from(c) else {
            out.push(c);
            continue;
        };
        let sequence = match byte {
            b if b == delimiters.field => "F",
            b if b == delimiters.component => "S",
            b if delimiters.subcomponent == Some(b) => "T",
            b if b == delimiters.repetition => "R",
            b if delimiters.escape == Some(b) => "E",
            b if delimiters.truncation == Some(b) => "P",
            b'\n' if !delimiters.contains(b'.') => ".br",
            b if needs(b) => {
                // Writing to a String cannot fail.
                let _ = write!(out, "{mark}X{b:02X}{mark}");
                continue;
            }
            _ => {
                out.push(c);
                continue;
            }
        };
        out.push(mark);
        out.push_str(sequence);
        out.push(mark);
    }
    Ok(Cow::Owned(out))
}

/// Replaces the sequences it knows. `charset` gives the bytes of `\Xhh…\` their meaning; neighbouring hex sequences are
/// read together, so a character may be spread over several.
pub fn unescape<'t>(text: &'t str, delimiters: &Delimiters, charset: Charset) -> Cow<'t, str> {
    let Some(mark) = delimiters.escape else { return Cow::Borrowed(text) };
    let bytes = text.as_bytes();
    let Some(first) = memchr(mark, bytes) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len());
    let mut hex = Vec::new();
    let mut at = 0;
    let mut next = Some(first);
    while let Some(open) = next {
        let body_start = open + 1;
        let Some(length) = bytes.get(body_start..).and_then(|rest| memchr(mark, rest)) else { break };
        let close = body_start + length;
        let body = text.get(body_start..close).unwrap_or_default();
        if at < open {
            flush(&mut hex, &mut out, charset);
            out.push_str(text.get(at..open).unwrap_or_default());
        }
        if push_hex(body, &mut hex) {
            at = close + 1;
        } else if let Some(meaning) = meaning(body, delimiters) {
            flush(&mut hex, &mut out, charset);
            out.push(meaning);
            at = close + 1;
        } else {
            // The closing mark may open the next sequence, so only what is before it is settled.
            flush(&mut hex, &mut out, charset);
            out.push_str(text.get(open..close).unwrap_or_default());
            at = close;
            next = Some(close);
            continue;
        }
        next = bytes.get(at..).and_then(|rest| memchr(mark, rest)).map(|found| at + found);
    }
    flush(&mut hex, &mut out, charset);
    out.push_str(text.get(at..).unwrap_or_default());
    Cow::Owned(out)
}

fn meaning(body: &str, delimiters: &Delimiters) -> Option<char> {
    let byte = match body {
        "F" => delimiters.field,
        "S" => delimiters.component,
        "R" => delimiters.repetition,
        "T" => delimiters.subcomponent?,
        "E" => delimiters.escape?,
        "P" => delimiters.truncation?,
        ".br" | ".BR" => b'\n',
        _ => return None,
    };
    Some(char::from(byte))
}

/// Appends the bytes of an `Xhh…` body; an odd or foreign digit makes it no hex sequence.
fn push_hex(body: &str, hex: &mut Vec<u8>) -> bool {
    let Some(digits) = body.strip_prefix('X') else { return false };
    let before = hex.len();
    let mut pairs = digits.as_bytes().chunks_exact(2);
    for pair in &mut pairs {
        let value = |i: usize| pair.get(i).and_then(|&b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (value(0), value(1)) else {
            hex.truncate(before);
            return false;
        };
        hex.extend(u8::try_from(high * 16 + low));
    }
    if digits.is_empty() || !pairs.remainder().is_empty() {
        hex.truncate(before);
        return false;
    }
    true
}

fn flush(hex: &mut Vec<u8>, out: &mut String, charset: Charset) {
    if !hex.is_empty() {
        out.push_str(&charset.decode(hex));
        hex.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(encoded: &str, expect: &str) {
        assert_eq!(unescape(encoded, &Delimiters::default(), Charset::UTF_8), expect, "{encoded}");
    }

    #[test]
    fn known_sequences_are_replaced() {
        check(r"a\F\b\S\c\T\d\R\e\E\f", r"a|b^c&d~e\f");
        check(r"\T\", "&");
        check(r"line 1\.br\line 2", "line 1\nline 2");
        check(r"\X41\\X42C3A4\", "ABä");
        check(r"\XC3\\XA4\", "ä");
        check(r"\X0D\", "\r");
        check(r"\E\T\E\", r"\T\");
    }

    #[test]
    fn unknown_and_broken_sequences_stay_verbatim() {
        for text in [
            r"c:\temp\file",
            r"\H\bold\N\",
            r"lone \ backslash",
            r"trailing \",
            r"\X4\",
            r"\XZZ\",
            r"\X\",
            r"\Z42\",
            r"\C2842\",
            r"\.sp3\",
            r"\f\",
            r"\\",
            r"\P\",
        ] {
            check(text, text);
        }
    }

    #[test]
    fn a_broken_sequence_does_not_swallow_the_next() {
        check(r"50 \ 60 \T\ 70", r"50 \ 60 & 70");
        check(r"\X4\T\", r"\X4&");
    }

    #[test]
    fn text_beside_sequences_may_be_anything() {
        check("éé\\T\\x患者\\S\\", "éé&x患者^");
        check("é\\é\\é", "é\\é\\é");
    }

    #[test]
    fn hex_is_read_in_the_charset_of_the_message() {
        let latin = unescape(r"M\XFC\ller", &Delimiters::default(), Charset::LATIN_1);
        assert_eq!(latin, "Müller");
    }

    #[test]
    fn escaping_makes_text_safe() {
        let escaped = escape("a|b^c&d~e\\f\ng\rh\tä", &Delimiters::default()).unwrap();
        assert_eq!(escaped, "a\\F\\b\\S\\c\\T\\d\\R\\e\\E\\f\\.br\\g\\X0D\\h\tä");
        assert!(matches!(escape("plain", &Delimiters::default()).unwrap(), Cow::Borrowed("plain")));
    }

    #[test]
    fn a_truncation_character_is_escaped_only_where_it_is_declared() {
        let with = Delimiters { truncation: Some(b'#'), ..Delimiters::default() };
        assert_eq!(escape("a#", &with).unwrap(), r"a\P\");
        assert_eq!(unescape(r"a\P\", &with, Charset::UTF_8), "a#");
        assert_eq!(escape("a#", &Delimiters::default()).unwrap(), "a#");
    }

    #[test]
    fn without_an_escape_character_only_plain_text_passes() {
        let none = Delimiters { escape: None, ..Delimiters::default() };
        assert_eq!(escape("plain", &none).unwrap(), "plain");
        assert_eq!(escape("a|b", &none), Err(NoEscapeCharacter));
        assert_eq!(unescape(r"a\T\b", &none, Charset::UTF_8), r"a\T\b");
    }

    proptest! {
        #[test]
        fn unescape_undoes_escape(text in "[\\PC\\n\\r\\t|^~&\\\\XFSTRE.br0-9]{0,40}") {
            let d = Delimiters::default();
            let escaped = escape(&text, &d).unwrap();
            prop_assert!(!escaped.bytes().any(|b| b != b'\\' && d.contains(b) || b == b'\r' || b == b'\n'));
            prop_assert_eq!(unescape(&escaped, &d, Charset::UTF_8), text.as_str());
        }

        #[test]
        fn unescape_takes_anything(text in "[\\PC\\\\XFST.br0-9]{0,60}") {
            let _ = unescape(&text, &Delimiters::default(), Charset::LATIN_1);
        }
    }
}
