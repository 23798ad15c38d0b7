//! Errors of HTTP services as problem documents (RFC 9457), and those that every service may give. Texts are
//! ours and hold no patient data; what a peer said stays in the trace.

use axum::body::Body;
use axum::response::Response;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, StatusCode};
use septet_engine::id::SessionId;
use serde_json::json;

/// A problem document: `{ type, title, status, detail, session? }`.
pub(crate) fn problem(status: StatusCode, detail: &str, session: Option<SessionId>) -> Response {
    let mut document = json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    if let (Some(session), Some(fields)) = (session, document.as_object_mut()) {
        fields.insert("session".to_owned(), json!(session.0));
    }
    let mut response = Response::new(Body::from(document.to_string()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// 405 with the methods there are.
pub(crate) fn not_allowed(methods: &[Method]) -> Response {
    let names: Vec<_> = methods.iter().map(Method::as_str).collect();
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, "this method is not served here", None);
    if let Ok(value) = HeaderValue::from_str(&names.join(", ")) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

/// 503: nothing is stored, and the client keeps its message.
pub(crate) fn unavailable(text: &str) -> Response {
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, text, None);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}
