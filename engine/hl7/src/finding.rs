//! What is odd about a message that is accepted all the same.
//!
//! Findings go on the trace and into events, so they hold codes and places, never content.

use std::fmt::{self, Display};

use crate::message::{Declared, MSH_9_1, MSH_10, Source};
use crate::{Charset, Message};

/// One oddity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Finding {
    /// Stable and short, `header.no_control_id`, for filters and tests.
    pub code: &'static str,
    /// The code in words, with the place.
    pub text: String,
}

impl Finding {
    pub(crate) fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Message {
    /// What is odd about this message. Empty for one that follows the standard.
    pub fn findings(&self) -> Vec<Finding> {
        let notes = self.notes();
        let mut findings = Vec::new();
        let mut add = |code, text: String| findings.push(Finding::new(code, text));
        if notes.leading {
            add("message.leading_bytes", String::from("there are blanks or frame marks before MSH"));
        }
        if notes.trailing {
            add(
                "message.trailing_bytes",
                String::from("there are control characters or blanks after the last segment"),
            );
        }
        if notes.blank_lines > 0 {
            add("message.blank_lines", format!("blank lines: {}", notes.blank_lines));
        }
        if notes.line_feeds > 0 {
            add(
                "message.line_ends",
                format!("segments that end in LF or CRLF instead of CR: {}", notes.line_feeds),
            );
        }
        if notes.odd_segments > 0 {
            let (count, first) = (notes.odd_segments, notes.first_odd);
            add(
                "message.odd_segments",
                format!("lines that are no segment: {count}, the first is number {first} in the message"),
            );
        }
        if notes.headers > 1 {
            add("message.several_headers", format!("MSH segments in one message: {}", notes.headers));
        }
        let understood = self.delimiters().encoding_characters();
        if self.header().is_some_and(|msh| msh.slice(MSH_2) != &*understood || understood.len() < 3) {
            add(
                "header.encoding_characters",
                String::from("MSH-2 should have four or five different characters"),
            );
        }
        if !self.exists(&MSH_9_1) {
            add("header.no_message_type", String::from("MSH-9 is empty"));
        }
        if !self.exists(&MSH_10) {
            add("header.no_control_id", String::from("MSH-10 is empty"));
        }
        findings.extend(self.charset_finding());
        findings
    }

    fn charset_finding(&self) -> Option<Finding> {
        let notes = self.notes();
        let charset = self.charset();
        let forced = notes.source == Source::Forced;
        let (code, text) = match notes.declared {
            // Only what the bytes show counts for the wide ones: their labels do not say which end comes first.
            Declared::Known(named) if charset.is_wide() => (!named.is_wide())
                .then(|| ("charset.mismatch", format!("MSH-18 names {named}, the bytes are {charset}"))),
            _ if self.text().is_ascii() => match notes.declared {
                Declared::Unknown => {
                    Some(("charset.unknown", String::from("MSH-18 names no charset known here")))
                }
                Declared::Known(named) if named.is_wide() => {
                    Some(("charset.mismatch", format!("MSH-18 names {named}, the bytes are ASCII")))
                }
                _ => None,
            },
            Declared::Unknown => {
                Some(("charset.unknown", format!("MSH-18 names no charset known here, read as {charset}")))
            }
            Declared::Known(named) if named != charset => {
                Some(("charset.mismatch", format!("MSH-18 names {named}, read as {charset}")))
            }
            Declared::Nothing if !forced && notes.source == Source::Detected && !charset.is_wide() => {
                Some(("charset.undeclared", format!("MSH-18 is empty, read as {charset}")))
            }
            _ => None,
        }
        .or_else(|| {
            self.undecodable().then(|| ("charset.invalid", format!("some bytes are no text of {charset}")))
        })?;
        Some(Finding::new(code, text))
    }

    fn undecodable(&self) -> bool {
        let charset = self.charset();
        let plain = charset == Charset::UTF_8 || charset == Charset::ASCII;
        if plain && self.raw().is_ascii() {
            return false;
        }
        !charset.decode_checked(self.raw()).1
    }
}

const MSH_2: Option<crate::FieldPath> =
    Some(crate::FieldPath { field: 2, repetition: crate::Index::First, component: None, subcomponent: None });

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn check(bytes: &[u8], expect: &[&str]) {
        let message = Message::parse(Bytes::copy_from_slice(bytes)).unwrap();
        let codes: Vec<&str> = message.findings().iter().map(|finding| finding.code).collect();
        assert_eq!(codes, expect, "{:?}", message.findings());
    }

    #[test]
    fn a_regular_message_has_none() {
        check(b"MSH|^~\\&|A|B|||1||ADT^A01|1|P|2.5\rPID|1\rZX1|\r", &[]);
        check(b"MSH|^~\\&#|A|B|||1||ADT|1|P|2.7\rPID|1", &[]);
        check("MSH|^~\\&|A|B|||1||ADT|1|P|2.7||||||UNICODE UTF-8\rPID|é".as_bytes(), &[]);
    }

    #[test]
    fn each_oddity_has_its_code() {
        check(b"MSH|^~\\&|A\r", &["header.no_message_type", "header.no_control_id"]);
        let with = |lines: &str| [b"MSH|^~\\&|||||||ADT|1\r", lines.as_bytes()].concat();
        check(&with("PID|1\nPV1|1\r\n"), &["message.line_ends"]);
        check(&with("\r\rPID|1\r\r"), &["message.blank_lines"]);
        check(&with("PID|1\r\x1c"), &["message.trailing_bytes"]);
        check(&with("pid|1\rsome text\r"), &["message.odd_segments"]);
        check(&with("MSH|^~\\&|\r"), &["message.several_headers"]);
        check(&with("PID|é"), &["charset.undeclared"]);
        check(b"\rMSH|^~\\&|||||||ADT|1\r", &["message.leading_bytes"]);
        check(b"MSH|^~|||||||ADT|1\r", &["header.encoding_characters"]);
        check(b"MSH|&&&&|||||||ADT|1\r", &["header.encoding_characters"]);
    }

    #[test]
    fn charset_trouble_is_told() {
        let with = |name: &str, text: &[u8]| {
            [format!("MSH|^~\\&|||||||ADT|1||||||||{name}\rPID|").as_bytes(), text].concat()
        };
        check(&with("KLINGON", b"x"), &["charset.unknown"]);
        check(&with("KLINGON", b"\xe9"), &["charset.unknown"]);
        check(&with("8859/1", b"\xe9"), &[]);
        check(&with("8859/1", "é".as_bytes()), &["charset.mismatch"]);
        check(&with("UNICODE UTF-8", b"\xe9"), &["charset.invalid"]);
        check(&with("ASCII", b"\xe9"), &["charset.mismatch"]);
        check(&with("UNICODE UTF-16", b"x"), &["charset.mismatch"]);
        check(&with("GB 18030-2000", b"\xff\xff"), &["charset.invalid"]);
    }
}
