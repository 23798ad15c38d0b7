//! What became of a request → HTTP response. Secrets of a reply are opened here, on the way to the peer.

use axum::body::Body;
use axum::response::Response;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue, StatusCode};
use septet_engine::body::{self, Format, JSON};
use septet_engine::host::ServiceReply;
use septet_engine::id::SessionId;
use septet_engine::media;
use septet_engine::vault::Vault;
use serde_json::{Value, json};

use crate::problem::problem;

const SESSION: HeaderName = HeaderName::from_static("septet-session");

/// 202 with the session.
pub(super) fn accepted(session: SessionId) -> Response {
    of(StatusCode::ACCEPTED, JSON, json!({ "session": session.0 }).to_string().into_bytes(), session)
}

/// The target's reply.
pub(super) fn reply(reply: ServiceReply, session: SessionId, vault: &Vault) -> Response {
    let error = |status: StatusCode, text: &str| problem(status, text, Some(session));
    let response = match reply {
        ServiceReply::Timeout => {
            error(StatusCode::GATEWAY_TIMEOUT, "there was no reply in time; the work goes on")
        }
        ServiceReply::Stopping => {
            let text = "the engine stops before there was a reply; the work goes on";
            error(StatusCode::GATEWAY_TIMEOUT, text)
        }
        ServiceReply::Reply { fault: Some(fault), .. } => {
            error(StatusCode::INTERNAL_SERVER_ERROR, &format!("{}: {}", fault.code, fault.text))
        }
        ServiceReply::Reply { body: None, .. } => empty(StatusCode::NO_CONTENT),
        ServiceReply::Reply { body: Some(body), .. } => match with_body(&body, session, vault) {
            Ok(response) => response,
            Err(text) => error(StatusCode::INTERNAL_SERVER_ERROR, text),
        },
    };
    with_session(response, session)
}

fn with_body(reply: &body::Body, session: SessionId, vault: &Vault) -> Result<Response, &'static str> {
    let record = match reply.format() {
        Format::Record => reply.as_record(),
        _ => None,
    };
    let Some(record) = record else {
        return Ok(of(StatusCode::OK, &media::content_type(reply), reply.bytes().to_vec(), session));
    };
    let fields = record.reveal(vault).map_err(|_| "the reply holds a secret that cannot be opened")?;
    if fields.get("http_status").is_some() {
        return explicit(&fields);
    }
    let bytes = if record.has_secrets() { fields.to_string().into_bytes() } else { reply.bytes().to_vec() };
    Ok(of(StatusCode::OK, JSON, bytes, session))
}

/// A reply `{ http_status, headers, body }`.
fn explicit(fields: &Value) -> Result<Response, &'static str> {
    let status = fields.get("http_status").and_then(|status| {
        let number = status.as_f64().filter(|number| number.fract() == 0.0)?;
        (200.0..600.0).contains(&number).then_some(number)
    });
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "integral and within 200..600"
    )]
    let status = status.and_then(|number| StatusCode::from_u16(number as u16).ok());
    let status = status.ok_or("the reply's http_status is no status from 200 to 599")?;
    let mut response = match fields.get("body") {
        None | Some(Value::Null) => empty(status),
        Some(Value::String(text)) => content(status, "text/plain; charset=utf-8", text.clone().into_bytes()),
        Some(value) => content(status, JSON, value.to_string().into_bytes()),
    };
    let headers = match fields.get("headers") {
        None | Some(Value::Null) => return Ok(response),
        Some(Value::Object(headers)) => headers,
        Some(_) => return Err("the reply's headers are no object"),
    };
    for (name, value) in headers {
        let name =
            HeaderName::try_from(name).map_err(|_| "the reply has a header whose name cannot be sent")?;
        if matches!(name, CONTENT_LENGTH | TRANSFER_ENCODING | CONNECTION | UPGRADE) {
            return Err("the reply sets a header that belongs to the connection");
        }
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        response.headers_mut().remove(&name);
        for value in values {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => return Err("the reply has a header that is no text"),
            };
            let value = HeaderValue::try_from(text);
            let value = value.map_err(|_| "the reply has a header whose value cannot be sent")?;
            response.headers_mut().append(&name, value);
        }
    }
    Ok(response)
}

fn of(status: StatusCode, content_type: &str, bytes: Vec<u8>, session: SessionId) -> Response {
    with_session(content(status, content_type, bytes), session)
}

fn content(status: StatusCode, content_type: &str, bytes: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    let octets = HeaderValue::from_static(body::BINARY);
    let content_type = HeaderValue::from_str(content_type).unwrap_or(octets);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn with_session(mut response: Response, session: SessionId) -> Response {
    response.headers_mut().insert(SESSION, HeaderValue::from(session.0));
    response
}
