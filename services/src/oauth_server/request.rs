//! What the endpoints for programs have in common: how a request is read (form or JSON, one `Authorization`
//! header, the peer's address), and how RFC 6749's answers and errors are written.

use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, HeaderMap, HeaderValue, PRAGMA, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::server::{Server, read};
use crate::bodies::closing;
use crate::heads::media_type;

/// RFC 6749 §5.2 and what other RFCs add to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorCode {
    InvalidRequest,
    InvalidClient,
    UnauthorizedClient,
    UnsupportedGrantType,
    InvalidGrant,
    InvalidScope,
    /// RFC 8707 §2.
    InvalidTarget,
    /// Ours: too many wrong secrets from there.
    SlowDown,
    /// Ours: the server cannot do its work now.
    ServerError,
}

impl ErrorCode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            ErrorCode::InvalidRequest => "invalid_request",
            ErrorCode::InvalidClient => "invalid_client",
            ErrorCode::UnauthorizedClient => "unauthorized_client",
            ErrorCode::UnsupportedGrantType => "unsupported_grant_type",
            ErrorCode::InvalidGrant => "invalid_grant",
            ErrorCode::InvalidScope => "invalid_scope",
            ErrorCode::InvalidTarget => "invalid_target",
            ErrorCode::SlowDown => "slow_down",
            ErrorCode::ServerError => "server_error",
        }
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            ErrorCode::InvalidClient => StatusCode::UNAUTHORIZED,
            ErrorCode::SlowDown => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Why a request gets no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenError {
    pub(super) code: ErrorCode,
    pub(super) description: &'static str,
    /// The client used the `Authorization` header: the answer must say how (RFC 6749 §5.2).
    pub(super) challenge: bool,
}

impl TokenError {
    pub(super) fn new(code: ErrorCode, description: &'static str) -> Self {
        TokenError { code, description, challenge: false }
    }

    /// The client is not who it says it is, or does not say.
    pub(super) fn client(by_header: bool) -> Self {
        let description = "client authentication failed";
        TokenError { code: ErrorCode::InvalidClient, description, challenge: by_header }
    }

    /// What cannot be done now, for reasons of our own.
    pub(super) fn unable() -> Self {
        TokenError::new(ErrorCode::ServerError, "the server cannot do this now")
    }
}

/// The parameters of a request, each as often as it came.
#[derive(Default)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// From a form body or a query.
    pub(super) fn form(body: &[u8]) -> Self {
        Parameters(url::form_urlencoded::parse(body).into_owned().collect())
    }

    /// From a JSON object, for clients that send one; lists repeat the parameter.
    pub(super) fn json(body: &[u8]) -> Option<Self> {
        let object = serde_json::from_slice::<Map<String, Value>>(body).ok()?;
        let mut all = Vec::new();
        for (name, value) in object {
            let several = std::slice::from_ref(&value);
            for one in value.as_array().map_or(several, Vec::as_slice) {
                match one {
                    Value::Null => {}
                    Value::String(text) => all.push((name.clone(), text.clone())),
                    other => all.push((name.clone(), other.to_string())),
                }
            }
        }
        Some(Parameters(all))
    }

    /// The value of a parameter that may come once (RFC 6749 §3.2); an empty one counts as left out.
    pub(super) fn one<'a>(&'a self, name: &'a str) -> Result<Option<&'a str>, TokenError> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(TokenError::new(ErrorCode::InvalidRequest, "a parameter came twice")),
            (one, None) => Ok(one),
        }
    }

    /// The same, where it must be there.
    pub(super) fn must<'a>(&'a self, name: &'a str, missing: &'static str) -> Result<&'a str, TokenError> {
        self.one(name)?.ok_or(TokenError::new(ErrorCode::InvalidRequest, missing))
    }

    /// All values of a parameter that may repeat.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let matching = self.0.iter().filter(move |(known, value)| known == name && !value.is_empty());
        matching.map(|(_, value)| value.as_str())
    }
}

/// A request that has been read.
pub(super) struct Received {
    pub(super) parameters: Parameters,
    pub(super) authorization: Option<String>,
    /// Where it came from, for counting guesses.
    pub(super) peer: Option<IpAddr>,
}

impl Received {
    /// Reads a POST of a form (or a JSON object).
    pub(super) async fn read(server: &Server, request: Request) -> Result<Received, Response> {
        let (parts, body) = request.into_parts();
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
        let body = match read(server, &parts.headers, body).await {
            Ok(body) => body,
            Err(status) => {
                let mut response =
                    refused(&TokenError::new(ErrorCode::InvalidRequest, "the body was not taken"));
                *response.status_mut() = status;
                return Err(closing(response));
            }
        };
        let parameters = parameters(&parts.headers, &body).map_err(|error| refused(&error))?;
        let authorization = authorization(&parts.headers).map_err(|error| refused(&error))?;
        Ok(Received { parameters, authorization, peer })
    }
}

fn parameters(headers: &HeaderMap, body: &[u8]) -> Result<Parameters, TokenError> {
    let invalid = |text| TokenError::new(ErrorCode::InvalidRequest, text);
    match media_type(headers).0.as_str() {
        "application/x-www-form-urlencoded" => Ok(Parameters::form(body)),
        "application/json" => Parameters::json(body).ok_or_else(|| invalid("the body is no JSON object")),
        _ => Err(invalid("the body must be a form")),
    }
}

/// The only `Authorization` header.
pub(super) fn authorization(headers: &HeaderMap) -> Result<Option<String>, TokenError> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    match (all.next(), all.next()) {
        (_, Some(_)) => Err(TokenError::new(ErrorCode::InvalidRequest, "more than one Authorization header")),
        (None, None) => Ok(None),
        (Some(one), None) => {
            one.to_str().map(|text| Some(text.to_owned())).map_err(|_| TokenError::client(true))
        }
    }
}

/// The token of `Authorization: Bearer …`.
pub(super) fn bearer(authorization: Option<&str>) -> Option<&str> {
    let (scheme, token) = authorization?.trim().split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

/// What a request gets; tokens are not for caches (RFC 6749 §5.1).
pub(super) fn answered(answer: Result<Value, TokenError>) -> Response {
    match answer {
        Ok(reply) => uncached(Json(reply).into_response()),
        Err(error) => refused(&error),
    }
}

/// An error as RFC 6749 §5.2 writes it.
pub(super) fn refused(error: &TokenError) -> Response {
    let body = json!({ "error": error.code.as_str(), "error_description": error.description });
    let mut response = (error.code.status(), Json(body)).into_response();
    if error.challenge {
        let challenge = HeaderValue::from_static(r#"Basic realm="septet", charset="UTF-8""#);
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    if error.code == ErrorCode::SlowDown {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("60"));
    }
    uncached(response)
}

/// The answer to a method that an endpoint does not take.
pub(super) async fn by_post() -> Response {
    let mut response = refused(&TokenError::new(ErrorCode::InvalidRequest, "this endpoint takes POST"));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

/// RFC 6749 §5.1.
pub(super) fn uncached(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(PRAGMA, HeaderValue::from_static("no-cache"));
    response
}
