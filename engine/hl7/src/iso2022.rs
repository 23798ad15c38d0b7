//! ISO 2022 text as Japanese senders use it: JIS X 0201, 0208 and 0212, switched by escape sequences.
//!
//! HL7 Table 0211 names these sets ISO IR14, IR87 and IR159. Inside a two-byte run every byte from 0x21 to 0x7E is half a
//! character, so bytes that look like delimiters are none: the same walk over runs serves decoding and hiding them.
//! encoding_rs decodes JIS X 0208 in this form but not 0212; its EUC-JP knows both, so runs are decoded through that.
//! A line end returns to ASCII (HL7 v2.5.1 §2.15.9.18 wants it at the end of each field; real senders manage it by line).

use encoding_rs::{EUC_JP, SHIFT_JIS};

/// What the bytes of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    /// An escape sequence: no text.
    Switch,
    /// ASCII or JIS X 0201 Roman, where delimiters count. Bytes from 0x80 may occur.
    Single,
    /// Half-width katakana in seven bits.
    Katakana,
    /// JIS X 0208, two bytes a character.
    Double,
    /// JIS X 0212, two bytes a character.
    Supplementary,
}

const ESC: u8 = 0x1b;

/// Whether the bytes switch sets at all.
pub(crate) fn switches(bytes: &[u8]) -> bool {
    memchr::memchr(ESC, bytes).is_some()
}

/// Calls `each` with every run in turn; together the runs are `bytes`.
pub(crate) fn runs<'b>(bytes: &'b [u8], mut each: impl FnMut(Set, &'b [u8])) {
    let mut set = Set::Single;
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        if let Some((next, length)) = switch(rest) {
            let (sequence, after) = rest.split_at(length);
            each(Set::Switch, sequence);
            set = next;
            rest = after;
            continue;
        }
        if matches!(first, b'\r' | b'\n') {
            set = Set::Single;
        }
        let inside = |b: u8| (0x21..=0x7e).contains(&b);
        let length = match set {
            Set::Single | Set::Switch => {
                1 + rest.iter().skip(1).position(|&b| b == ESC).unwrap_or(rest.len() - 1)
            }
            _ if !inside(first) => {
                // A space or control character among two-byte text stands for itself.
                each(Set::Single, rest.get(..1).unwrap_or_default());
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            _ => rest.iter().position(|&b| !inside(b)).unwrap_or(rest.len()),
        };
        let (run, after) = rest.split_at(length);
        each(set, run);
        rest = after;
    }
}

/// The set that an escape sequence at the start of `bytes` switches to, and the sequence's length.
fn switch(bytes: &[u8]) -> Option<(Set, usize)> {
    match bytes {
        [ESC, b'(', b'B' | b'J' | b'H', ..] => Some((Set::Single, 3)),
        [ESC, b'(', b'I', ..] => Some((Set::Katakana, 3)),
        [ESC, b'$', b'@' | b'B', ..] => Some((Set::Double, 3)),
        [ESC, b'$', b'(', b'@' | b'B', ..] => Some((Set::Double, 4)),
        [ESC, b'$', b'(', b'D', ..] => Some((Set::Supplementary, 4)),
        _ => None,
    }
}

/// Text of `bytes`, and whether all of it could be decoded.
pub(crate) fn decode(bytes: &[u8]) -> (String, bool) {
    let mut text = String::with_capacity(bytes.len());
    let mut clean = true;
    runs(bytes, |set, run| {
        let prefix: &[u8] = match set {
            Set::Switch => return,
            Set::Single => {
                match std::str::from_utf8(run) {
                    Ok(run) => text.push_str(run),
                    // Eight-bit JIS X 0201 katakana is Shift_JIS's single-byte half.
                    Err(_) => {
                        let (run, malformed) = SHIFT_JIS.decode_without_bom_handling(run);
                        clean &= !malformed;
                        text.push_str(&run);
                    }
                }
                return;
            }
            Set::Katakana => &[0x8e],
            Set::Double => &[],
            Set::Supplementary => &[0x8f],
        };
        let width = if set == Set::Katakana { 1 } else { 2 };
        let mut euc = Vec::with_capacity(run.len() * 2);
        for character in run.chunks(width) {
            euc.extend_from_slice(prefix);
            euc.extend(character.iter().map(|b| b | 0x80));
        }
        let (run, malformed) = EUC_JP.decode_without_bom_handling(&euc);
        clean &= !malformed;
        text.push_str(&run);
    });
    (text, clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expect: &str) {
        assert_eq!(decode(bytes), (expect.to_owned(), true));
        let mut joined = Vec::new();
        runs(bytes, |_, run| joined.extend_from_slice(run));
        assert_eq!(joined, bytes, "runs cover every byte");
    }

    #[test]
    fn each_set_is_decoded() {
        check(b"ASCII ^ only", "ASCII ^ only");
        check(b"\x1b$B45<T\x1b(B^\x1b$BB@O:\x1b(B", "患者^太郎");
        check(b"\x1b$(D\x30\x21\x1b(B.", "丂.");
        check(b"\x1b(I\x31\x32\x33\x1b(J|", "ｱｲｳ|");
        check(b"\xb1\xb2\xb3", "ｱｲｳ");
    }

    #[test]
    fn a_line_end_returns_to_ascii() {
        check(b"\x1b$B45<T\rPID|", "患者\rPID|");
        check(b"\x1b$B45 <T\x1b(B", "患 者");
    }

    #[test]
    fn broken_runs_are_noticed_and_do_no_harm() {
        assert!(!decode(b"\x1b$B4").1);
        assert!(!decode(b"\x1b$B\x7e\x7e\x1b(B").1);
        check(b"\x1b", "\x1b");
        check(b"\x1bX|", "\x1bX|");
    }
}
