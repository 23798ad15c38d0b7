//! Acknowledgements: building them and reading them.
//!
//! HL7 v2.5.1 §2.9.2 (message processing rules), §2.14.1 (general acknowledgement), §2.15.5 (ERR), §2.15.8 (MSA), tables
//! 0008 (codes) and 0357 (error conditions). What an acknowledgement echoes (control id, applications, processing id,
//! version) is copied as encoded bytes, in the delimiters and the charset of the message it answers, so it can be matched
//! byte for byte. Time and control id come from the caller: this crate has no clock.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use thiserror::Error;

use crate::batch::{self, Batch};
use crate::segment::Segment;
use crate::{Charset, Delimiters, Index, Message, Path, escape, mllp};

/// HL7 Table 0008: the first letter says which mode, the second what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AckCode {
    /// Application accept.
    AA,
    /// Application error: there is something wrong with the content.
    AE,
    /// Application reject: cannot be taken (now).
    AR,
    /// Commit accept.
    CA,
    /// Commit error.
    CE,
    /// Commit reject.
    CR,
}

/// Everything of an acknowledgement that the answered message does not give.
#[derive(Debug, Clone, Copy)]
pub struct AckSpec<'a> {
    /// MSA-1.
    pub code: AckCode,
    /// MSA-3.
    pub text: Option<&'a str>,
    /// An ERR segment.
    pub error: Option<Err0357<'a>>,
    /// MSH-10 of the acknowledgement itself.
    pub control_id: &'a str,
    /// MSH-7, as HL7 writes times: `20261122101500+0100`.
    pub timestamp: &'a str,
    /// MSH-3 where there is no message to answer.
    pub sender: &'a str,
}

/// One error condition of HL7 Table 0357.
#[derive(Debug, Clone, Copy)]
pub struct Err0357<'a> {
    /// `207`.
    pub code: &'a str,
    /// What happened, in words; the table's own text stands beside the code whatever this says.
    pub text: Option<&'a str>,
    /// Where.
    pub location: Option<&'a Path>,
}

impl<'a> AckSpec<'a> {
    /// Without text and error; the sender is `SEPTET`.
    pub const fn new(code: AckCode, control_id: &'a str, timestamp: &'a str) -> Self {
        Self { code, text: None, error: None, control_id, timestamp, sender: "SEPTET" }
    }
}

impl<'a> Err0357<'a> {
    /// A condition without a place.
    pub const fn new(code: &'a str) -> Self {
        Self { code, text: None, location: None }
    }
}

impl AckCode {
    /// As MSA-1 writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AA => "AA",
            Self::AE => "AE",
            Self::AR => "AR",
            Self::CA => "CA",
            Self::CE => "CE",
            Self::CR => "CR",
        }
    }

    /// AA and CA.
    pub const fn is_positive(self) -> bool {
        matches!(self, Self::AA | Self::CA)
    }

    /// The same outcome in the commit codes of enhanced mode.
    #[must_use]
    pub const fn commit(self) -> Self {
        match self {
            Self::AA | Self::CA => Self::CA,
            Self::AE | Self::CE => Self::CE,
            Self::AR | Self::CR => Self::CR,
        }
    }
}

impl fmt::Display for AckCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A code that Table 0008 does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no acknowledgement code; there are AA, AE, AR, CA, CE and CR")]
pub struct UnknownAckCode;

impl FromStr for AckCode {
    type Err = UnknownAckCode;

    fn from_str(code: &str) -> Result<Self, UnknownAckCode> {
        [Self::AA, Self::AE, Self::AR, Self::CA, Self::CE, Self::CR]
            .into_iter()
            .find(|known| known.as_str() == code)
            .ok_or(UnknownAckCode)
    }
}

// === Building ===

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
            Some(charset) => Bytes::from(charset.encode_lossy(&String::from_utf8_lossy(&self.out))),
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

/// HL7 Table 0357.
pub fn condition(code: &str) -> Option<&'static str> {
    Some(match code {
        "0" => "Message accepted",
        "100" => "Segment sequence error",
        "101" => "Required field missing",
        "102" => "Data type error",
        "103" => "Table value not found",
        "104" => "Value too long",
        "200" => "Unsupported message type",
        "201" => "Unsupported event code",
        "202" => "Unsupported processing id",
        "203" => "Unsupported version id",
        "204" => "Unknown key identifier",
        "205" => "Duplicate key identifier",
        "206" => "Application record locked",
        "207" => "Application internal error",
        _ => return None,
    })
}

// === Reading ===

/// What an acknowledgement says.
#[derive(Clone, PartialEq, Eq)]
pub struct Ack {
    /// MSA-1 as it came; see [`Ack::known_code`].
    pub code: String,
    /// MSA-2: the MSH-10 of the message it answers.
    pub control_id: String,
    /// MSA-3, or ERR-8 where that is empty. Foreign text: may hold patient data.
    pub text: String,
    /// The condition codes of its ERR segments.
    pub errors: Vec<String>,
}

/// Why bytes are no acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotAnAck {
    /// No message at all.
    #[error("the reply is no HL7 message")]
    NotHl7,
    /// A message without MSA.
    #[error("the reply has no MSA segment")]
    NoMsa,
}

impl Ack {
    /// MSA-1, where it is a code of Table 0008.
    pub fn known_code(&self) -> Option<AckCode> {
        self.code.trim().parse().ok()
    }
}

/// Code and control id only.
impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, control_id, text, errors } = self;
        write!(f, "Ack({code:?} for {control_id:?}, {} errors, {} bytes of text)", errors.len(), text.len())
    }
}

/// Reads an acknowledgement, framed or not. Of a batch of them, the first.
pub fn read_ack(bytes: &[u8]) -> Result<Ack, NotAnAck> {
    let body = mllp::unframed(bytes);
    let first = if batch::is_batch(body) {
        Batch::split(&Bytes::copy_from_slice(body)).messages().next().cloned().ok_or(NotAnAck::NoMsa)?
    } else {
        Bytes::copy_from_slice(body)
    };
    ack_of(&Message::parse(first).map_err(|_| NotAnAck::NotHl7)?)
}

/// What an acknowledgement that is already a message says.
pub fn ack_of(message: &Message) -> Result<Ack, NotAnAck> {
    let msa = message.segments().find(|segment| segment.has_name(*b"MSA")).ok_or(NotAnAck::NoMsa)?;
    let get = |segment: &Segment<'_>, name: [u8; 3], field: u16, component: Option<u16>| {
        segment.get(&Path::of(name, field, component))
    };
    let mut errors = Vec::new();
    let mut text = get(&msa, *b"MSA", 3, None);
    for err in message.segments().filter(|segment| segment.has_name(*b"ERR")) {
        let new_form = get(&err, *b"ERR", 3, Some(1));
        let old_form = || err.value("ERR-1.4.1").unwrap_or_default();
        let code = if new_form.is_empty() { old_form() } else { new_form };
        if !code.is_empty() {
            errors.push(code);
        }
        if text.is_empty() {
            text = get(&err, *b"ERR", 8, None);
        }
    }
    Ok(Ack { code: get(&msa, *b"MSA", 1, None), control_id: get(&msa, *b"MSA", 2, None), text, errors })
}

#[cfg(test)]
mod tests;
