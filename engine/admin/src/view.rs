//! What the API shows: the engine's types in the contract's shapes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use septet_engine::body::{Body, Format};
pub(crate) use septet_engine::clock::rfc3339 as time;
use septet_engine::event::Event;
use septet_engine::header::{Header, Status};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// One leg of a session.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct HeaderView {
    /// Its id.
    pub(crate) id: u64,
    /// The session it belongs to.
    pub(crate) session: u64,
    /// `request` or `response`.
    #[schema(value_type = String)]
    pub(crate) kind: &'static str,
    /// For a response: its request.
    pub(crate) request_id: Option<u64>,
    /// The header being handled when this one was created.
    pub(crate) caused_by: Option<u64>,
    /// The header that this one resends.
    pub(crate) resent_from: Option<u64>,
    /// The item that sends or answers.
    pub(crate) source: String,
    /// The item that receives or asked; null for a rejected frame.
    pub(crate) target: Option<String>,
    /// `ORU^R01` for HL7, the record type otherwise.
    #[serde(rename = "type")]
    pub(crate) type_name: String,
    /// MSH-10; of records that of the session's first message.
    pub(crate) control_id: String,
    /// `queued`, `delivered`, `completed`, …
    #[schema(value_type = String)]
    pub(crate) status: &'static str,
    /// Status error, or a response that carries a fault.
    pub(crate) is_error: bool,
    /// Code and text of what went wrong.
    pub(crate) error: Option<String>,
    /// How often the target has been given it.
    pub(crate) attempts: u32,
    /// When it was created.
    pub(crate) created: String,
    /// When it reached a final status.
    pub(crate) processed: Option<String>,
    /// Its body.
    pub(crate) body_id: Option<u64>,
    /// Length of the body in bytes.
    pub(crate) size: u64,
    /// Search keys; null in lists unless asked for.
    #[schema(value_type = Option<Object>)]
    pub(crate) keys: Option<Map<String, Value>>,
    /// The peer's or a script's own words about the error; only where one message or session is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
}

impl HeaderView {
    /// A header as lists show it; keys only on request.
    pub(crate) fn new(header: &Header, keys: bool) -> Self {
        let keys = keys.then(|| {
            header.keys.iter().map(|(name, value)| (name.to_string(), Value::from(value.as_str()))).collect()
        });
        HeaderView {
            id: header.id.0,
            session: header.session.0,
            kind: match header.kind {
                septet_engine::header::Kind::Request => "request",
                septet_engine::header::Kind::Response => "response",
            },
            request_id: header.request_id.map(|id| id.0),
            caused_by: header.caused_by.map(|id| id.0),
            resent_from: header.resent_from.map(|id| id.0),
            source: header.source.to_string(),
            target: header.target.as_ref().map(ToString::to_string),
            type_name: header.type_name.to_string(),
            control_id: header.control_id.to_string(),
            status: header.status.as_str(),
            is_error: header.is_error(),
            error: header.error.as_ref().map(ToString::to_string),
            attempts: header.attempts,
            created: time(header.created),
            processed: header.processed.map(time),
            body_id: header.body_id.map(|id| id.0),
            size: header.size,
            keys,
            detail: None,
        }
    }

    /// A header as the trace shows it: with the foreign words of its error.
    pub(crate) fn with_detail(header: &Header) -> Self {
        let mut view = HeaderView::new(header, true);
        view.detail = detail(header);
        view
    }
}

/// The foreign words of a header's error.
pub(crate) fn detail(header: &Header) -> Option<String> {
    header.error.as_ref()?.detail.as_ref().map(|detail| detail.0.clone())
}

/// One entry of the event log.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct EventView {
    pub(crate) id: u64,
    pub(crate) at: String,
    #[schema(value_type = String)]
    pub(crate) level: &'static str,
    pub(crate) kind: String,
    pub(crate) item: Option<String>,
    pub(crate) session: Option<u64>,
    pub(crate) message_id: Option<u64>,
    pub(crate) who: Option<String>,
    pub(crate) text: String,
    pub(crate) detail: Option<String>,
}

impl EventView {
    /// An event; its detail only within a trace.
    pub(crate) fn new(event: &Event, with_detail: bool) -> Self {
        EventView {
            id: event.id.0,
            at: time(event.at),
            level: event.level.as_str(),
            kind: event.kind.clone().into_owned(),
            item: event.item.as_ref().map(ToString::to_string),
            session: event.session.map(|id| id.0),
            message_id: event.message_id.map(|id| id.0),
            who: event.who.clone(),
            text: event.text.clone(),
            detail: event.detail.as_ref().filter(|_| with_detail).map(|detail| detail.0.clone()),
        }
    }
}

/// A body for people: text where it is text, base64 otherwise; secrets as `•••`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct BodyView {
    #[serde(rename = "type")]
    pub(crate) type_name: String,
    pub(crate) content_type: String,
    pub(crate) size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) base64: Option<String>,
}

impl BodyView {
    pub(crate) fn new(body: &Body) -> Self {
        let text = match body.format() {
            Format::Record => body.as_record().map(|record| record.masked().to_string()),
            Format::Hl7 => decoded(body),
            _ => None,
        };
        let text = text.or_else(|| body.as_text().map(str::to_owned));
        let base64 = text.is_none().then(|| STANDARD.encode(body.bytes()));
        BodyView {
            type_name: body.type_name().to_owned(),
            content_type: body.content_type().to_owned(),
            size: body.size(),
            text,
            base64,
        }
    }
}

/// An HL7 body in its charset, as text: also where its bytes happen to be UTF-8 too, as those of ISO-2022-JP are.
fn decoded(body: &Body) -> Option<String> {
    let message = body.as_hl7()?;
    Some(message.charset().decode(message.raw()).into_owned())
}

/// Where a session stands: the first that applies. A caught fault, or one that a completing reply action
/// took as done, is no error of the session: it shows at its leg.
pub fn session_status(headers: &[Header]) -> &'static str {
    let any = |test: fn(Status) -> bool| headers.iter().any(|header| test(header.status));
    if any(Status::is_active) {
        "active"
    } else if any(|status| status == Status::Suspended) {
        "suspended"
    } else if any(|status| status == Status::Error) {
        "error"
    } else {
        "completed"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use septet_hl7::Message;

    #[test]
    fn an_hl7_body_is_shown_in_its_charset() {
        let text = |charset: &str, name: &[u8]| {
            let head = format!("MSH|^~\\&|A|B|C|D|2026||ADT^A01|1|P|2.5||||||{charset}\rPID|1||1||");
            let bytes = Bytes::from([head.as_bytes(), name, b"\r"].concat());
            let size = bytes.len();
            let view = BodyView::new(&Body::hl7(Message::parse(bytes).unwrap()));
            assert_eq!((view.size, view.base64), (size, None));
            view.text.unwrap().split("||").last().unwrap().trim_end().to_owned()
        };
        assert_eq!(text("ISO IR87", b"\x1b$B45<T\x1b(B"), "患者");
        assert_eq!(text("8859/1", b"M\xfcller"), "Müller");
        assert_eq!(text("8859/1", "Müller".as_bytes()), "Müller");
        assert_eq!(text("", "Müller".as_bytes()), "Müller");
    }
}
