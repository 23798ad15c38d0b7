//! HTTP reply → outcome, for operations whose replies are records (CONTRACT §2.2, §2.3). The status alone is
//! the code; what the body is decides only what is kept and whether the caller gets the fault `message`.

use bytes::Bytes;
use reqwest::StatusCode;
use septet_engine::body::{Body, JSON};
use septet_engine::fault::Fault;
use septet_engine::host::{OperationContext, Outcome};
use septet_engine::media;
use septet_engine::record::{MessageType, Record, RecordError, Undeclared};
use septet_engine::vault::VaultError;
use serde_json::Value;

use crate::http_client::Reply;

/// What the reply means for the message; `declared` is the type that a successful reply should have.
pub(crate) fn outcome(reply: Reply, declared: Option<&str>, cx: &OperationContext, peer: &str) -> Outcome {
    let retry_after = reply.retry_after(cx.runtime.clock.now());
    let declared = declared.and_then(|name| cx.runtime.types.get(name));
    let (body, misfit) = read(&reply, declared, cx);
    let fault = if reply.is_success() { misfit } else { Some(refusal(&reply, peer)) };
    Outcome::Replied { code: format!("{:03}", reply.status), body, fault, retry_after }
}

/// The fault of a reply that is no success.
pub(crate) fn refusal(reply: &Reply, peer: &str) -> Fault {
    let redirect = if (300..400).contains(&reply.status) { " (redirects are not followed)" } else { "" };
    let text = format!("{}{redirect}", answered(reply.status, peer));
    with_words(Fault::new("call", format!("{:03}", reply.status), text), reply)
}

/// That the peer answered with this status, for texts.
pub(crate) fn answered(status: u16, peer: &str) -> String {
    let known = StatusCode::from_u16(status).ok();
    let reason = known.and_then(|status| status.canonical_reason()).unwrap_or("an unknown status");
    format!("{peer} answered HTTP {status} {reason}")
}

/// The fault with the peer's own words as its detail.
pub(crate) fn with_words(fault: Fault, reply: &Reply) -> Fault {
    match reply.words() {
        Some(words) => fault.with_detail(words),
        None => fault,
    }
}

/// The body worth keeping, and what is wrong with it.
pub(crate) fn read(
    reply: &Reply,
    declared: Option<&MessageType>,
    cx: &OperationContext,
) -> (Option<Body>, Option<Fault>) {
    let (media, charset) = reply.content_type();
    let parsed = json(&media, &reply.body, declared.is_some());
    // A refusal is not the declared reply: it is kept whole.
    let typed = declared.filter(|_| reply.is_success());
    let Some(typed) = typed else {
        let body = match parsed {
            Some(value) => Some(untyped(value, &media, &reply.body, declared, cx)),
            None => plain(&media, charset, &reply.body),
        };
        return (body, None);
    };
    let misfit = |error: &RecordError| {
        Some(Fault::new("message", "message", format!("the reply does not fit its type: {error}")))
    };
    let given = parsed.clone().or_else(|| reply.body.is_empty().then(|| Value::Object(Default::default())));
    let Some(given) = given else {
        let body = if typed.has_secrets() {
            // It may well be the secret in some other form: sealed whole.
            sealed_whole(&reply.body, cx)
        } else {
            plain(&media, charset, &reply.body)
        };
        return (body, misfit(&RecordError::Json));
    };
    let created = cx.runtime.types.create(&typed.name, given, Undeclared::Ignore, &cx.runtime.vault);
    match created {
        Ok(record) => {
            let unchanged = parsed.as_ref() == Some(&record.fields);
            let body = match unchanged {
                true => Body::new(&typed.name, JSON, None, without_mark(&reply.body)),
                false => Body::record(record),
            };
            (Some(body), None)
        }
        Err(error) => {
            let body = parsed.map(|value| untyped(value, &media, &reply.body, Some(typed), cx));
            (body, misfit(&error))
        }
    }
}

/// The body as JSON: where it says so, says nothing, or JSON is expected.
fn json(media: &str, body: &Bytes, expected: bool) -> Option<Value> {
    let says_so = media == JSON || media == "text/json" || media.ends_with("+json");
    if !(says_so || media.is_empty() || expected) {
        return None;
    }
    serde_json::from_slice(&without_mark(body)).ok()
}

/// A JSON reply that has no declared type or does not fit it. Fields that the type would seal are sealed
/// all the same, so that a token in an odd reply is not kept in clear (P9).
fn untyped(
    mut value: Value,
    media: &str,
    body: &Bytes,
    declared: Option<&MessageType>,
    cx: &OperationContext,
) -> Body {
    let sealed = declared.map(|declared| declared.seal(&mut value, &cx.runtime.vault));
    if let Some(Err(_)) = sealed {
        value = Value::Null;
    }
    if sealed.is_some_and(|sealed| sealed != Ok(false)) {
        return Body::record(Record::untyped("Json", value));
    }
    let media = if media.ends_with("+json") { media } else { JSON };
    Body::new("Json", media, None, without_mark(body))
}

/// A reply that is no JSON, as it came.
fn plain(media: &str, charset: Option<String>, body: &Bytes) -> Option<Body> {
    (!body.is_empty()).then(|| media::untyped(media, charset.as_deref(), body))
}

fn sealed_whole(body: &Bytes, cx: &OperationContext) -> Option<Body> {
    let text = std::str::from_utf8(body).map_err(|_| VaultError::Damaged);
    let sealed = text.and_then(|text| cx.runtime.vault.seal_json(text)).ok()?;
    Some(Body::record(Record::untyped("Text", sealed)))
}

/// Without a byte order mark.
fn without_mark(body: &Bytes) -> Bytes {
    if body.starts_with(b"\xef\xbb\xbf") { body.slice(3..) } else { body.clone() }
}
