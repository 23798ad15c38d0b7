//! HTTP request → message. JSON stays byte for byte what it was; a form, or the query of a request without a
//! body, becomes a record. What does not fit the declared type is kept, too, for the rejected message: with
//! its secrets sealed.

use bytes::Bytes;
use http::request::Parts;
use septet_engine::body::{Body, HL7, JSON, TEXT};
use septet_engine::media::untyped;
use septet_engine::record::{FieldType, MessageType, MessageTypes, Record, RecordError, Undeclared};
use septet_engine::vault::Vault;
use septet_hl7::Message;
use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::heads::media_type;

/// A request that does not fit the declared type.
#[derive(Debug)]
pub(super) struct Misfit {
    /// What is stored as the rejected message.
    pub(super) kept: Body,
    /// Names type and field, never a value.
    pub(super) text: String,
}

/// The message of a request; `declared` is the setting `message`.
pub(super) fn body(
    parts: &Parts,
    bytes: Bytes,
    declared: Option<&str>,
    types: &MessageTypes,
    vault: &Vault,
) -> Result<Body, Misfit> {
    let (media, charset) = media_type(&parts.headers);
    let fields = if bytes.is_empty() {
        Some(form(parts.uri.query().unwrap_or_default().as_bytes()))
    } else {
        (media == "application/x-www-form-urlencoded").then(|| form(&bytes))
    };
    if let Some(declared) = declared.and_then(|name| types.get(name)) {
        return match fields {
            Some(fields) => typed(read_texts(fields, declared), None, declared, types, vault),
            None => match serde_json::from_slice::<Value>(without_mark(&bytes)) {
                Ok(value) => typed(value, Some(bytes), declared, types, vault),
                Err(_) => Err(Misfit {
                    kept: if declared.has_secrets() {
                        sealed(&bytes, vault)
                    } else {
                        untyped(TEXT, None, &bytes)
                    },
                    text: format!("the body is no JSON, and a {} is expected", declared.name),
                }),
            },
        };
    }
    if declared == Some("Text") {
        return Ok(untyped(if media.is_empty() { TEXT } else { &media }, charset.as_deref(), &bytes));
    }
    if let Some(fields) = fields {
        return Ok(Body::record(Record::untyped("Json", fields)));
    }
    let says_json =
        media == JSON || media == "text/json" || media.ends_with("+json") || declared == Some("Json");
    if says_json || media.is_empty() {
        match serde_json::from_slice::<serde::de::IgnoredAny>(without_mark(&bytes)) {
            Ok(_) => {
                let media = if media.ends_with("+json") { &media } else { JSON };
                return Ok(Body::new("Json", media, None, bytes));
            }
            Err(_) if says_json => {
                let kept = untyped(TEXT, None, &bytes);
                return Err(Misfit { kept, text: "the body is no JSON".to_owned() });
            }
            Err(_) => {}
        }
    }
    if matches!(media.as_str(), HL7 | "x-application/hl7-v2+er7")
        && let Ok(message) = Message::parse(bytes.clone())
    {
        return Ok(Body::hl7(message));
    }
    Ok(untyped(if media.is_empty() { TEXT } else { &media }, charset.as_deref(), &bytes))
}

/// A record of the declared type; `raw` are its bytes where it came as JSON.
fn typed(
    value: Value,
    raw: Option<Bytes>,
    declared: &MessageType,
    types: &MessageTypes,
    vault: &Vault,
) -> Result<Body, Misfit> {
    match types.create(&declared.name, value.clone(), Undeclared::Refuse, vault) {
        Ok(record) => Ok(match raw.filter(|_| !declared.has_secrets()) {
            Some(raw) => Body::new(&declared.name, JSON, None, raw),
            None => Body::record(record),
        }),
        Err(error) => Err(Misfit { kept: misfit(value, raw, declared, vault), text: describe(&error) }),
    }
}

fn describe(error: &RecordError) -> String {
    format!("the request does not fit its type: {error}")
}

/// What is kept of JSON that does not fit.
fn misfit(mut value: Value, raw: Option<Bytes>, declared: &MessageType, vault: &Vault) -> Body {
    match (declared.seal(&mut value, vault), raw) {
        (Ok(false), Some(raw)) => Body::new("Json", JSON, None, raw),
        (Ok(_), _) => Body::record(Record::untyped("Json", value)),
        (Err(_), _) => Body::record(Record::untyped("Json", Value::Null)),
    }
}

/// Bytes that may hold a secret we cannot find.
fn sealed(bytes: &Bytes, vault: &Vault) -> Body {
    let text = String::from_utf8_lossy(bytes);
    Body::record(Record::untyped("Text", vault.seal_json(&text).unwrap_or(Value::Null)))
}

/// Form fields as an object; a name that comes twice is a list. The token of the request is no part of it.
fn form(text: &[u8]) -> Value {
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(text).filter(|(name, _)| name != "access_token") {
        let value = Value::String(value.into_owned());
        match fields.get_mut(&*name) {
            None => {
                fields.insert(name.into_owned(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    Value::Object(fields)
}

/// A form has only texts: those of fields that are declared something else are read as such, as far as they
/// can be.
fn read_texts(mut fields: Value, declared: &MessageType) -> Value {
    use FieldType::{Any, Boolean, Integer, List, Number, Object};
    for (name, field) in &declared.fields {
        let Some(value) = fields.get_mut(name) else { continue };
        let read = match (field.kind, &*value) {
            (Integer | Number | Boolean | List | Object | Any, Value::String(text)) => {
                serde_json::from_str(text).ok()
            }
            _ => None,
        };
        // A list may be written as one field that comes once.
        let alone = field.kind == List && !read.as_ref().is_some_and(Value::is_array) && value.is_string();
        match read {
            _ if alone => *value = Value::Array(vec![value.take()]),
            Some(read) => *value = read,
            None => {}
        }
    }
    fields
}

/// Without a byte order mark.
fn without_mark(bytes: &Bytes) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}
