//! Message bodies. The store knows only bytes and names, so that FHIR, XML or X12 are no format
//! change; views (HL7, record, text) are parsed when somebody asks and shared by all who hold the body.

use std::fmt;
use std::sync::{Arc, LazyLock, OnceLock};

use bytes::Bytes;
use septet_hl7::{Charset, Message as Hl7};

use crate::record::Record;

/// What kind of content a body has, decided by its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// HL7 v2 in ER7 encoding (`application/hl7-v2`).
    Hl7,
    /// A typed message: a JSON object (`application/json`).
    Record,
    /// Text of any other kind.
    Text,
    /// Anything else.
    Binary,
}

/// Content type of HL7 v2 bodies.
pub const HL7: &str = "application/hl7-v2";
/// Content type of records.
pub const JSON: &str = "application/json";
/// Content type of plain text.
pub const TEXT: &str = "text/plain";
/// Content type of anything else.
pub const BINARY: &str = "application/octet-stream";

/// An immutable body, cheap to clone. `Debug` prints type and size only.
#[derive(Clone)]
pub struct Body(Arc<Inner>);

struct Inner {
    type_name: Arc<str>,
    content_type: Arc<str>,
    charset: Option<Arc<str>>,
    bytes: Bytes,
    hl7: OnceLock<Option<Hl7>>,
    record: OnceLock<Option<Record>>,
}

impl Body {
    /// A body of any kind from what the store keeps: names and bytes.
    pub fn new(type_name: &str, content_type: &str, charset: Option<&str>, bytes: Bytes) -> Self {
        Body::shared(type_name.into(), shared_type(content_type), charset.map(Into::into), bytes)
    }

    /// As [`Body::new`], from names that others have too.
    pub(crate) fn shared(
        type_name: Arc<str>,
        content_type: Arc<str>,
        charset: Option<Arc<str>>,
        bytes: Bytes,
    ) -> Self {
        Body(Arc::new(Inner {
            type_name,
            content_type,
            charset,
            bytes,
            hl7: OnceLock::new(),
            record: OnceLock::new(),
        }))
    }

    /// An HL7 body from a parsed message; its bytes are the message's raw bytes.
    pub fn hl7(message: Hl7) -> Self {
        let body = Body::new(&message.message_type(), HL7, None, message.raw().clone());
        // A fresh lock is always empty.
        let _ = body.0.hl7.set(Some(message));
        body
    }

    /// An HL7 body that was read in `charset` because its MSH-18 is empty: read the same way ever after.
    pub fn hl7_assuming(message: Hl7, charset: Charset) -> Self {
        let body = Body::new(&message.message_type(), HL7, Some(charset.name()), message.raw().clone());
        let _ = body.0.hl7.set(Some(message));
        body
    }

    /// A typed message. Secrets in it are sealed already (see [`crate::record`]).
    pub fn record(record: Record) -> Self {
        let bytes = Bytes::from(record.to_json());
        let body = Body::new(&record.type_name, JSON, None, bytes);
        let _ = body.0.record.set(Some(record));
        body
    }

    /// Plain text.
    pub fn text(type_name: &str, text: String) -> Self {
        Body::new(type_name, TEXT, Some("utf-8"), Bytes::from(text))
    }

    /// `ORU^R01` for HL7, the record type otherwise.
    pub fn type_name(&self) -> &str {
        &self.0.type_name
    }

    /// As [`Body::type_name`], to be kept without a copy.
    pub fn shared_type_name(&self) -> Arc<str> {
        self.0.type_name.clone()
    }

    /// The media type it was received or made with.
    pub fn content_type(&self) -> &str {
        &self.0.content_type
    }

    /// The charset the transport declared, if any.
    pub fn charset(&self) -> Option<&str> {
        self.0.charset.as_deref()
    }

    /// Type, content type and charset, to be kept without a copy.
    pub(crate) fn shared_names(&self) -> (Arc<str>, Arc<str>, Option<Arc<str>>) {
        (self.0.type_name.clone(), self.0.content_type.clone(), self.0.charset.clone())
    }

    /// The exact bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// Length in bytes.
    pub fn size(&self) -> usize {
        self.0.bytes.len()
    }

    /// The kind of content.
    pub fn format(&self) -> Format {
        match self.content_type().split(';').next().unwrap_or("").trim() {
            HL7 | "x-application/hl7-v2+er7" => Format::Hl7,
            JSON => Format::Record,
            other if other.ends_with("+json") => Format::Record,
            other if other.starts_with("text/") || other.ends_with("xml") => Format::Text,
            _ => Format::Binary,
        }
    }

    /// The body as an HL7 message, when it is one and has a readable header.
    pub fn as_hl7(&self) -> Option<&Hl7> {
        let view = || match self.format() {
            Format::Hl7 => match self.charset().and_then(Charset::from_name) {
                Some(charset) => Hl7::parse_assuming(self.0.bytes.clone(), charset).ok(),
                None => Hl7::parse(self.0.bytes.clone()).ok(),
            },
            _ => None,
        };
        self.0.hl7.get_or_init(view).as_ref()
    }

    /// The body as a record, when it is JSON. Secrets stay sealed.
    pub fn as_record(&self) -> Option<&Record> {
        let view = || match self.format() {
            Format::Record => Record::from_json(self.type_name(), &self.0.bytes).ok(),
            _ => None,
        };
        self.0.record.get_or_init(view).as_ref()
    }

    /// The body as text, when its bytes are UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0.bytes).ok()
    }
}

/// The one copy of a content type that most bodies have.
fn shared_type(content_type: &str) -> Arc<str> {
    static KNOWN: LazyLock<[Arc<str>; 4]> = LazyLock::new(|| [HL7, JSON, TEXT, BINARY].map(Into::into));
    let known = KNOWN.iter().find(|known| ***known == *content_type);
    known.map_or_else(|| content_type.into(), Clone::clone)
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({}, {} bytes)", self.type_name(), self.size())
    }
}
