//! Errors as RFC 9457 problem details.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use septet_engine::director::ControlError;
use septet_engine::store::{ReadError, StoreFailed};
use serde::Serialize;
use utoipa::ToSchema;

/// A problem document (`application/problem+json`).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the title says what the status means.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The status's name.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do; no patient data.
    pub detail: String,
    /// A stable word for programs, where the status does not say enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
}

impl Problem {
    /// A problem with a status and an engine-authored text.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Problem {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            code: None,
        }
    }

    /// 404.
    pub fn not_found(what: impl Into<String>) -> Self {
        Problem::new(StatusCode::NOT_FOUND, what)
    }

    /// 409.
    pub fn conflict(what: impl Into<String>) -> Self {
        Problem::new(StatusCode::CONFLICT, what)
    }

    /// 400.
    pub fn bad_request(what: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, what)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let media = header::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, media);
        response
    }
}

/// Makes a problem document of what the framework refuses by itself, in plain text: paths and queries that it
/// cannot decode, bodies that are too large.
pub(crate) async fn document(response: Response) -> Response {
    let status = response.status();
    let media = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !(status.is_client_error() || status.is_server_error())
        || media.is_some_and(|media| !media.starts_with("text/plain"))
    {
        return response;
    }
    let text = axum::body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
    Problem::new(status, String::from_utf8_lossy(&text)).into_response()
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        let status = match &error {
            ControlError::UnknownItem(_)
            | ControlError::UnknownMessage(_)
            | ControlError::UnknownReplay(_) => StatusCode::NOT_FOUND,
            ControlError::NotAllowed(_) => StatusCode::CONFLICT,
            ControlError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, error.to_string())
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        let status = match &error {
            ReadError::Gone(_) => StatusCode::GONE,
            ReadError::Behind { .. } => StatusCode::SERVICE_UNAVAILABLE,
            ReadError::Corrupt { .. } | ReadError::Io(..) | ReadError::Search(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Problem { code: body_code(&error), ..Problem::new(status, error.to_string()) }
    }
}

/// What is wrong with a body, as a word.
pub(crate) fn body_code(error: &ReadError) -> Option<&'static str> {
    match error {
        ReadError::Gone(_) => Some("body_missing"),
        ReadError::Corrupt { .. } => Some("body_damaged"),
        ReadError::Io(..) => Some("body_unreadable"),
        ReadError::Behind { .. } | ReadError::Search(_) => None,
    }
}

impl From<StoreFailed> for Problem {
    fn from(error: StoreFailed) -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}
