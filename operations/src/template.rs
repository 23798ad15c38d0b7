//! The `{name}` templates of operations (CONTRACT §2.3): in URLs, headers and file names.
//!
//! A template is read once, when the production is checked, and filled for each message from its header
//! and body. Every value is escaped for where it stands, so that no content of a message can leave its
//! place: a slash adds no folder, a line break adds no header, `..` climbs nowhere. What a template makes
//! is a pure function of the stored header and body, so that a repeat is the same (P3).
//!
//! `{id} {session} {control_id} {date} {time}` are of the header that is sent and win over fields of the
//! same name; everything else is a path (`{PID-3.1}`) of an HL7 message or a field (`{accession}`,
//! `{patient.mrn}`) of a record. `{{` and `}}` stand for the braces themselves. Values are never part of
//! an error text.

use std::fmt;

use aws_lc_rs::digest;
use jiff::tz::TimeZone;
use septet_engine::body::Body;
use septet_engine::header::Header;
use septet_engine::host::OperationContext;
use septet_engine::vault::{Vault, sealed_text};
use septet_hl7::Path;
use serde_json::Value;
use zeroize::Zeroizing;

/// The most bytes that one value takes in a file name.
pub const MAX_FILE_VALUE: usize = 120;

/// A template: literal text and names, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Name(Name),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Id,
    Session,
    ControlId,
    Date,
    Time,
    /// A field of the message; with its path where the name reads as one.
    Field(String, Option<Path>),
}

/// Where the filled template stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the path or the query of a URL: all but RFC 3986's unreserved characters are percent-encoded. A
    /// value that leaves its path segment empty, `.` or `..` is an error.
    Url,
    /// In search parameters that decide whether a resource exists: percent-encoded, and an empty value is an
    /// error, because it would match what it should not.
    Search,
    /// In an HTTP header: control characters and everything beyond ASCII are percent-encoded.
    Header,
    /// In one line of a mail: its subject, an address, a name. Control characters become spaces, so that no
    /// value adds a header; a missing field is empty.
    Line,
    /// In the text of a mail; a missing field is empty.
    Mail,
    /// In a file's path: see [`file_value`].
    FileName,
    /// Nowhere in particular: whoever takes the text escapes it (form fields, query pairs).
    Plain,
}

/// What a template is filled from.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The header being sent.
    pub header: &'a Header,
    /// Its body.
    pub body: &'a Body,
    /// The production's timezone, for `{date}` and `{time}`.
    pub timezone: &'a TimeZone,
    /// Opens secret fields, which only URLs, headers and plain text may hold.
    pub vault: &'a Vault,
}

impl<'a> Source<'a> {
    /// The message that is being sent.
    pub fn of(cx: &'a OperationContext) -> Self {
        Source {
            header: &cx.header,
            body: &cx.body,
            timezone: &cx.runtime.timezone,
            vault: &cx.runtime.vault,
        }
    }
}

/// Why text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{` without `}`.
    #[error("a {{ at character {0} is never closed; write {{{{ for the character itself")]
    Open(usize),
    /// `}` without `{`.
    #[error("a }} at character {0} closes nothing; write }}}} for the character itself")]
    Close(usize),
    /// `{}`.
    #[error("the braces at character {0} hold no name")]
    Empty(usize),
}

/// Why a message does not fill a template. Names fields, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// The message has no such field, or it is empty where it must not be.
    #[error("the message has no {0}")]
    Missing(String),
    /// Not a path, though the message is HL7.
    #[error("{0} is no path of an HL7 message")]
    NotAPath(String),
    /// A value that is an object or a list.
    #[error("{0} is not text, a number or a boolean")]
    NotText(String),
    /// A secret where it would be kept in clear.
    #[error("{0} is a secret and cannot be part of a file name or a mail")]
    Secret(String),
    /// A secret that cannot be opened.
    #[error("{0} cannot be opened with the store's key")]
    Sealed(String),
    /// `.` or `..` as a whole segment of a URL's path.
    #[error("{0} would change the path of the URL")]
    Dots(String),
}

// === impl Template ===

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut chars = text.chars().enumerate().map(|(index, c)| (index + 1, c)).peekable();
        while let Some((at, c)) = chars.next() {
            match c {
                '{' | '}' if chars.next_if(|(_, next)| *next == c).is_some() => literal.push(c),
                '}' => return Err(TemplateError::Close(at)),
                '{' => {
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            None | Some((_, '{')) => return Err(TemplateError::Open(at)),
                            Some((_, '}')) => break,
                            Some((_, c)) => name.push(c),
                        }
                    }
                    if name.trim().is_empty() {
                        return Err(TemplateError::Empty(at));
                    }
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Name(Name::of(name.trim())));
                }
                c => literal.push(c),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Template { source: text.to_owned(), parts })
    }

    /// The text it was read from; the only thing of a filled template that may be shown.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether there is nothing to fill in.
    pub fn is_literal(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// The text before the first name.
    pub fn literal_start(&self) -> &str {
        match self.parts.first() {
            Some(Part::Text(text)) => text,
            _ => "",
        }
    }

    /// The names that are fields of the message, for checks against a declared type.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Name(Name::Field(name, _)) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The text for one message, every value escaped for `place`.
    pub fn fill(&self, place: Place, source: &Source<'_>) -> Result<Zeroizing<String>, FillError> {
        let mut out = Zeroizing::new(String::new());
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Name(name) => {
                    let value = name.value(place, source)?;
                    match place {
                        Place::Search if value.is_empty() => {
                            return Err(FillError::Missing(name.shown().to_owned()));
                        }
                        Place::Url | Place::Search => percent(&value, is_unreserved, &mut out),
                        Place::Header => percent(&value, |b| (0x20..0x7F).contains(&b), &mut out),
                        Place::FileName => out.push_str(&file_value(&value)),
                        Place::Line => out.extend(value.chars().map(|c| if is_break(c) { ' ' } else { c })),
                        Place::Plain | Place::Mail => out.push_str(&value),
                    }
                }
            }
        }
        if place == Place::Url {
            self.check_segments(&out)?;
        }
        Ok(out)
    }

    /// A URL's parser removes `.` and `..` (RFC 3986 §5.2.4), percent-encoded ones too, and servers treat an
    /// empty segment as they like: where a value makes one, the request would go somewhere else.
    fn check_segments(&self, filled: &str) -> Result<(), FillError> {
        let path = filled.split(['?', '#']).next().unwrap_or_default();
        let own = self.source.split(['?', '#']).next().unwrap_or_default();
        // Values hold no slash any more, so segments of template and text correspond.
        for (segment, template) in path.split('/').zip(own.split('/')) {
            if !template.contains('{') {
                continue;
            }
            match segment {
                "" => return Err(FillError::Missing(template.to_owned())),
                "." | ".." => return Err(FillError::Dots(template.to_owned())),
                _ => {}
            }
        }
        Ok(())
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

// === impl Name ===

impl Name {
    fn of(name: &str) -> Self {
        match name {
            "id" => Name::Id,
            "session" => Name::Session,
            "control_id" => Name::ControlId,
            "date" => Name::Date,
            "time" => Name::Time,
            field => Name::Field(field.to_owned(), field.parse().ok()),
        }
    }

    fn shown(&self) -> &str {
        match self {
            Name::Id => "id",
            Name::Session => "session",
            Name::ControlId => "control_id",
            Name::Date => "date",
            Name::Time => "time",
            Name::Field(name, _) => name,
        }
    }

    fn value(&self, place: Place, source: &Source<'_>) -> Result<Zeroizing<String>, FillError> {
        let created = || source.header.created.to_zoned(source.timezone.clone());
        let text = match self {
            Name::Id => source.header.id.to_string(),
            Name::Session => source.header.session.to_string(),
            Name::ControlId => source.header.control_id.to_string(),
            Name::Date => created().strftime("%Y%m%d").to_string(),
            Name::Time => created().strftime("%H%M%S").to_string(),
            Name::Field(name, path) => return field(name, path.as_ref(), place, source),
        };
        Ok(Zeroizing::new(text))
    }
}

fn field(
    name: &str,
    path: Option<&Path>,
    place: Place,
    source: &Source<'_>,
) -> Result<Zeroizing<String>, FillError> {
    if let Some(message) = source.body.as_hl7() {
        let path = path.ok_or_else(|| FillError::NotAPath(name.to_owned()))?;
        return Ok(Zeroizing::new(message.get(path)));
    }
    let record = source.body.as_record().ok_or_else(|| FillError::Missing(name.to_owned()))?;
    let whole = record.fields.get(name);
    let value = whole.or_else(|| name.split('.').try_fold(&record.fields, |value, key| value.get(key)));
    match value {
        // File names say `_` for nothing, mails leave a gap; elsewhere a missing field is a mistake.
        None | Some(Value::Null) if matches!(place, Place::FileName | Place::Line | Place::Mail) => {
            Ok(Zeroizing::default())
        }
        None | Some(Value::Null) => Err(FillError::Missing(name.to_owned())),
        Some(Value::String(text)) => Ok(Zeroizing::new(text.clone())),
        Some(Value::Number(number)) => Ok(Zeroizing::new(number.to_string())),
        Some(Value::Bool(truth)) => Ok(Zeroizing::new(truth.to_string())),
        Some(value) if sealed_text(value).is_some() => match place {
            Place::FileName | Place::Line | Place::Mail => Err(FillError::Secret(name.to_owned())),
            _ => match source.vault.open_json(value) {
                Some(Ok(clear)) => Ok(Zeroizing::new(clear.to_string())),
                _ => Err(FillError::Sealed(name.to_owned())),
            },
        },
        Some(_) => Err(FillError::NotText(name.to_owned())),
    }
}

// === Escaping ===

/// A value as part of a file name: bytes outside `[A-Za-z0-9._-]` become `%XX`, empty becomes `_`, a leading
/// `.` is escaped, and what takes more than [`MAX_FILE_VALUE`] bytes is cut and ends in `~` and 8 hex digits
/// of its SHA-256, so that different values keep different names.
pub fn file_value(value: &str) -> String {
    if value.is_empty() {
        return String::from("_");
    }
    let mut out = String::with_capacity(value.len());
    let rest = match value.strip_prefix('.') {
        Some(rest) => {
            out.push_str("%2E");
            rest
        }
        None => value,
    };
    percent(rest, |b| b.is_ascii_alphanumeric() || b"._-".contains(&b), &mut out);
    if out.len() > MAX_FILE_VALUE {
        let hash = digest::digest(&digest::SHA256, value.as_bytes());
        let mut cut = MAX_FILE_VALUE - 9;
        // Not through the middle of a `%XX`.
        if let Some(escape) = out.get(cut - 2..cut).and_then(|tail| tail.find('%')) {
            cut = cut - 2 + escape;
        }
        out.truncate(cut);
        out.push('~');
        for byte in hash.as_ref().iter().take(4) {
            out.push_str(&format!("{byte:02x}"));
        }
    }
    out
}

fn percent(value: &str, keep: impl Fn(u8) -> bool, out: &mut String) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or('0');
    for byte in value.bytes() {
        if keep(byte) {
            out.push(char::from(byte));
        } else {
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

/// What ends a line, and all other control characters.
fn is_break(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{header, hl7, record};

    fn fill(template: &str, place: Place, body: &Body) -> Result<String, FillError> {
        let vault = Vault::ephemeral().unwrap();
        let header = header(42, body);
        let timezone = TimeZone::get("Europe/Berlin").unwrap();
        let source = Source { header: &header, body, timezone: &timezone, vault: &vault };
        Template::parse(template).unwrap().fill(place, &source).map(|text| text.to_string())
    }

    #[test]
    fn the_header_being_sent_and_the_fields_of_the_message_fill_a_template() {
        let body = hl7("MSH|^~\\&|A|B|C|D|20260101||ORU^R01|M 1|P|2.5\rPID|1||123^^^X\r");
        assert_eq!(fill("out/{control_id}-{id}.hl7", Place::FileName, &body).unwrap(), "out/M%201-42.hl7");
        assert_eq!(fill("{session}/{PID-3.1}", Place::Url, &body).unwrap(), "7/123");
        // 2026-03-01T23:30:05Z is past midnight in Berlin.
        assert_eq!(fill("{date}_{time}", Place::FileName, &body).unwrap(), "20260302_003005");
        let record = record(serde_json::json!({ "accession": "A/1", "n": 5, "p": { "mrn": "9" } }));
        assert_eq!(fill("/results/{accession}?n={n}", Place::Url, &record).unwrap(), "/results/A%2F1?n=5");
        assert_eq!(fill("{p.mrn}", Place::Plain, &record).unwrap(), "9");
    }

    #[test]
    fn no_value_leaves_its_place() {
        let evil = |text: &str| record(serde_json::json!({ "x": text }));
        assert_eq!(fill("out/{x}.txt", Place::FileName, &evil("../../a")).unwrap(), "out/%2E.%2F..%2Fa.txt");
        assert_eq!(fill("{x}", Place::Header, &evil("a\r\nX: 1")).unwrap(), "a%0D%0AX: 1");
        assert_eq!(fill("{x}|{y}", Place::Line, &evil("a\r\nBcc: ü\0\u{85}")).unwrap(), "a  Bcc: ü  |");
        assert_eq!(fill("/a/{x}", Place::Url, &evil("b?c#d&e=ü")).unwrap(), "/a/b%3Fc%23d%26e%3D%C3%BC");
        for dots in [".", ".."] {
            assert_eq!(fill("/a/{x}/b", Place::Url, &evil(dots)), Err(FillError::Dots("{x}".into())));
        }
        assert_eq!(fill("/a/{x}", Place::Url, &evil("")), Err(FillError::Missing("{x}".into())));
        assert_eq!(fill("/a?q={x}", Place::Url, &evil("")).unwrap(), "/a?q=");
        assert_eq!(fill("/a/{x}", Place::Url, &evil("..b")).unwrap(), "/a/..b");
    }

    #[test]
    fn a_missing_field_is_named_except_in_file_names() {
        let body = record(serde_json::json!({ "a": 1, "o": {} }));
        assert_eq!(fill("{b}", Place::Url, &body), Err(FillError::Missing("b".into())));
        assert_eq!(fill("{b}.json", Place::FileName, &body).unwrap(), "_.json");
        assert_eq!(fill("{o}", Place::Header, &body), Err(FillError::NotText("o".into())));
        let message = hl7("MSH|^~\\&|A\r");
        assert_eq!(
            fill("{accession}", Place::FileName, &message),
            Err(FillError::NotAPath("accession".into()))
        );
        assert_eq!(fill("{PID-3}.hl7", Place::FileName, &message).unwrap(), "_.hl7");
    }

    #[test]
    fn a_secret_goes_to_the_peer_and_never_into_a_file_name() {
        let vault = Vault::ephemeral().unwrap();
        let body = record(serde_json::json!({ "token": vault.seal_json("s3cret").unwrap() }));
        let header = header(1, &body);
        let source = Source { header: &header, body: &body, timezone: &TimeZone::UTC, vault: &vault };
        let template = Template::parse("Bearer {token}").unwrap();
        assert_eq!(template.fill(Place::Header, &source).unwrap().as_str(), "Bearer s3cret");
        assert_eq!(template.fill(Place::FileName, &source), Err(FillError::Secret("token".into())));
    }

    #[test]
    fn a_long_value_is_cut_between_escapes_and_stays_distinct() {
        for len in 100..130 {
            let text = "ä".repeat(len);
            let name = file_value(&text);
            assert!(name.len() <= MAX_FILE_VALUE, "{} bytes", name.len());
            let (start, hash) = name.split_once('~').unwrap();
            assert_eq!(hash.len(), 8);
            assert_eq!(start.len() % 3, 0, "cut inside an escape");
            assert_ne!(name, file_value(&format!("{text}!")));
        }
        assert_eq!(file_value(&"a".repeat(120)), "a".repeat(120));
        assert_eq!(file_value(&"a".repeat(121)).len(), 120);
        assert_eq!(file_value(""), "_");
    }

    #[test]
    fn braces_are_doubled_to_stand_for_themselves() {
        let body = record(serde_json::json!({}));
        assert_eq!(fill("{{{id}}}", Place::Plain, &body).unwrap(), "{42}");
        assert_eq!(Template::parse("a{b").unwrap_err(), TemplateError::Open(2));
        assert_eq!(Template::parse("a}b").unwrap_err(), TemplateError::Close(2));
        assert_eq!(Template::parse("{ }").unwrap_err(), TemplateError::Empty(1));
        let fields: Vec<_> = Template::parse("{id}/{x}").unwrap().fields().map(str::to_owned).collect();
        assert_eq!(fields, ["x"]);
    }
}
