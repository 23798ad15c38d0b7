//! Writing acknowledgements. On the path of every message: one pass over the header, one allocation.

use bytes::Bytes;

use super::{AckSpec, Err0357, condition};
use crate::batch::Batch;
use crate::{Charset, Delimiters, Index, Message, Path, escape};

/// The acknowledgement of a message; of `None`, of bytes without a readable header: MSH of our own, MSA-2 empty.
pub fn build_ack(original: Option<&Message>, spec: &AckSpec<'_>) -> Bytes {
    let mut out = Writer::new(original);
    out.ack(original, spec);
    out.finish()
}

/// One frame that answers a batch: BHS, an acknowledgement for each child, BTS. A child is `None` where its header could not
/// be read. `control_id` and `timestamp` are the batch header's.
pub fn build_batch_ack(
    batch: &Batch,
    children: &[(Option<&Message>, AckSpec<'_>)],
    control_id: &str,
    timestamp: &str,
) -> Bytes {
    let mut out = Writer {
        out: Vec::with_capacity(256 * (children.len() + 1)),
        delimiters: Delimiters::default(),
        charset: Charset::UTF_8,
        wide: None,
    };
    let header = batch.header();
    let delimiters = header.map_or_else(Delimiters::default, |header| header.delimiters());
    let echo = |number: u16| header.map_or(&b""[..], |header| header.field(number));
    let sender: &[u8] = if header.is_some() { echo(5) } else { b"SEPTET" };
    out.delimiters = delimiters;
    out.raw(b"BHS");
    let characters = delimiters.encoding_characters();
    let fields: [&[u8]; 11] = [
        &characters,
        sender,
        echo(6),
        echo(3),
        echo(4),
        timestamp.as_bytes(),
        b"",
        b"",
        b"",
        control_id.as_bytes(),
        echo(11),
    ];
    for field in fields {
        out.field(field);
    }
    out.end();
    for (original, spec) in children {
        out.delimiters = original.map_or_else(Delimiters::default, Message::delimiters);
        out.charset = original.map_or(Charset::UTF_8, |message| message.reading().charset);
        out.ack(*original, spec);
    }
    out.delimiters = delimiters;
    out.raw(b"BTS");
    out.field(children.len().to_string().as_bytes());
    out.end();
    out.finish()
}

/// A message made of the header alone, from bytes whose header may stand anywhere and may be cut off: to answer what
/// cannot be parsed (or was not read to its end) with its control id.
pub fn recover_header(bytes: &[u8]) -> Option<Message> {
    const REACH: usize = 64 * 1024;
    let within = bytes.get(..bytes.len().min(REACH)).unwrap_or_default();
    if let Ok(message) = Message::parse(Bytes::copy_from_slice(within)) {
        let end = message.raw_spans().first().map_or(0, |span| span.range().end);
        return Message::parse(message.raw().slice(..end)).ok();
    }
    memchr::memmem::find_iter(within, b"MSH").find_map(|at| {
        let line = within.get(at..)?;
        let end = memchr::memchr2(b'\r', b'\n', line).unwrap_or(line.len());
        Message::parse(Bytes::copy_from_slice(line.get(..end)?)).ok()
    })
}

struct Writer {
    out: Vec<u8>,
    delimiters: Delimiters,
    /// Of what is written to `out`.
    charset: Charset,
    /// What `out` has to be turned into at the end.
    wide: Option<Charset>,
}

impl Writer {
    fn new(original: Option<&Message>) -> Self {
        let delimiters = original.map_or_else(Delimiters::default, Message::delimiters);
        let charset = original.map_or(Charset::UTF_8, |message| message.reading().charset);
        let wide = original.map(Message::charset).filter(|charset| charset.is_wide());
        Self { out: Vec::with_capacity(512), delimiters, charset, wide }
    }

    fn ack(&mut self, original: Option<&Message>, spec: &AckSpec<'_>) {
        let header = original.and_then(Message::header);
        let fields = header.and_then(|header| header.first_fields::<19>()).unwrap_or_default();
        let echo = |number: usize| fields.get(number).copied().unwrap_or_default();
        let version = Version::of(first_part(echo(12), self.delimiters));
        self.raw(b"MSH");
        let characters = self.delimiters.encoding_characters();
        self.field(&characters);
        match header {
            Some(_) => self.field(echo(5)),
            None => self.text(spec.sender),
        }
        self.field(echo(6));
        self.field(echo(3));
        self.field(echo(4));
        self.text(spec.timestamp);
        self.field(b"");
        self.message_type(echo(9), version);
        self.text(spec.control_id);
        self.field(if echo(11).is_empty() { b"P" } else { echo(11) });
        self.field(if echo(12).is_empty() { b"2.5.1" } else { echo(12) });
        if !echo(18).is_empty() {
            for _ in 13..18 {
                self.field(b"");
            }
            self.field(echo(18));
        }
        self.end();

        self.raw(b"MSA");
        self.field(spec.code.as_str().as_bytes());
        self.field(echo(10));
        if let Some(text) = spec.text {
            self.text(text);
        }
        self.end();
        if let Some(error) = &spec.error {
            self.error(error, version);
        }
    }

    /// `ACK` alone before 2.2, with the trigger since, with the structure since 2.3.1 (§2.15.9.9).
    fn message_type(&mut self, original: &[u8], version: Version) {
        let Delimiters { component, repetition, .. } = self.delimiters;
        let first = original.split(|&b| b == repetition).next().unwrap_or_default();
        let trigger = first.split(|&b| b == component).nth(1).unwrap_or_default();
        self.field(b"ACK");
        if !trigger.is_empty() && version >= Version(2, 2, 0) {
            self.out.push(component);
            self.raw(trigger);
            if version >= Version(2, 3, 1) {
                self.out.push(component);
                self.raw(b"ACK");
            }
        }
    }

    /// Up to 2.4 ERR-1 holds place and code in one field; since 2.5 each has its own (§2.15.5).
    fn error(&mut self, error: &Err0357<'_>, version: Version) {
        let Delimiters { component, subcomponent, .. } = self.delimiters;
        let meaning = condition(error.code).unwrap_or_default();
        let place = error.location.and_then(|path| Some((path, path.field()?)));
        let occurrence = |path: &Path| number(path.occurrence());
        self.raw(b"ERR");
        if version < Version(2, 5, 0) {
            let inner = subcomponent.unwrap_or(b' ');
            let (segment, sequence) =
                error.location.map_or(("", String::new()), |path| (path.segment(), occurrence(path)));
            let field = place.map_or(String::new(), |(_, field)| field.field.to_string());
            self.text(segment);
            for part in [&sequence, &field, ""] {
                self.out.push(component);
                self.plain(part);
            }
            self.parts(inner, &[error.code, error.text.unwrap_or(meaning), "HL70357"]);
            self.end();
            return;
        }
        self.field(b"");
        self.field(b"");
        if let Some((path, field)) = place {
            let part = |part: Option<u16>| part.map(|n| n.to_string()).unwrap_or_default();
            let repetition = number(field.repetition);
            self.parts(
                component,
                &[
                    path.segment(),
                    &occurrence(path),
                    &field.field.to_string(),
                    &repetition,
                    &part(field.component),
                    &part(field.subcomponent),
                ],
            );
        } else if let Some(path) = error.location {
            self.parts(component, &[path.segment(), &occurrence(path)]);
        }
        self.field(b"");
        self.parts(component, &[error.code, meaning, "HL70357"]);
        self.field(b"E");
        if let Some(text) = error.text {
            self.raw_separators(3);
            self.text(text);
        }
        self.end();
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn raw_separators(&mut self, count: usize) {
        self.out.resize(self.out.len() + count, self.delimiters.field);
    }

    /// A separator and encoded bytes.
    fn field(&mut self, bytes: &[u8]) {
        self.out.push(self.delimiters.field);
        self.out.extend_from_slice(bytes);
    }

    /// A separator and text to escape and encode.
    fn text(&mut self, text: &str) {
        self.out.push(self.delimiters.field);
        self.plain(text);
    }

    /// Escaped and encoded text joined by a separator; parts at the end that are empty are left out.
    fn parts(&mut self, separator: u8, parts: &[&str]) {
        let used = parts.iter().rposition(|part| !part.is_empty()).map_or(0, |last| last + 1);
        for (index, part) in parts.iter().take(used).enumerate() {
            if index > 0 {
                self.out.push(separator);
            }
            self.plain(part);
        }
    }

    fn plain(&mut self, text: &str) {
        match escape::escape(text, &self.delimiters) {
            Ok(escaped) => self.out.extend_from_slice(&self.charset.encode_lossy(&escaped)),
            // Without an escape character, what would need one is left out.
            Err(_) => {
                let safe = |c: &char| {
                    !c.is_control() && !u8::try_from(*c).is_ok_and(|b| self.delimiters.contains(b))
                };
                let plain: String = text.chars().filter(safe).collect();
                self.out.extend_from_slice(&self.charset.encode_lossy(&plain));
            }
        }
    }

    fn end(&mut self) {
        self.out.push(b'\r');
    }

    fn finish(self) -> Bytes {
        match self.wide {
            Some(charset) => {
                Bytes::from(charset.encode_lossy(&String::from_utf8_lossy(&self.out)).into_owned())
            }
            None => Bytes::from(self.out),
        }
    }
}

fn first_part(field: &[u8], delimiters: Delimiters) -> &[u8] {
    field.split(|&b| b == delimiters.component || b == delimiters.repetition).next().unwrap_or_default()
}

fn number(index: Index) -> String {
    match index {
        Index::At(number) => number.to_string(),
        Index::First | Index::All => String::from("1"),
    }
}

/// MSH-12 as numbers; what is unreadable counts as current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u8, u8, u8);

impl Version {
    fn of(text: &[u8]) -> Self {
        let numbers = std::str::from_utf8(text).ok().map(|text| {
            let mut numbers = text.trim().split('.').map(|part| part.parse::<u8>().ok());
            let mut next = || numbers.next().flatten();
            (next(), next(), next())
        });
        match numbers {
            Some((Some(major), minor, patch)) => Self(major, minor.unwrap_or(0), patch.unwrap_or(0)),
            _ => Self(2, 5, 1),
        }
    }
}
