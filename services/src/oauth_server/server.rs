//! What the server answers: its routes, key set and discovery documents (RFC 8414, OpenID Connect Discovery),
//! as an [`axum::Router`] that any listener can serve.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, PRAGMA, WWW_AUTHENTICATE,
};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use jiff::Timestamp;
use septet_engine::event::{Level, NewEvent};
use septet_engine::event_limit::EventLimit;
use septet_engine::host::{KeepFamily, ServiceContext};
use septet_engine::store::StoreFailed;
use serde_json::{Value, json};

use super::assertion::SeenAssertions;
use super::clients::{Client, Grant, OPENID};
use super::grants::Grants;
use super::keys::Keys;
use super::token::{ErrorCode, Parameters, TokenError};
use super::users::Door;
use super::{Checked, authorize};
use crate::bodies::{Unread, closing, read_body};

/// Token requests are small.
const BODY_LIMIT: u64 = 64 * 1024;
/// And quick.
const BODY_TIME: Duration = Duration::from_secs(30);

/// One running authorization server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Server(Arc<Inner>);

struct Inner {
    settings: Arc<Checked>,
    keys: Keys,
    cx: ServiceContext,
    seen: Mutex<SeenAssertions>,
    grants: Mutex<Grants>,
    door: Door,
    noted: EventLimit,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({:?})", self.0.settings)
    }
}

impl Server {
    /// A server over what is kept of earlier runs.
    pub(super) fn new(settings: Arc<Checked>, keys: Keys, cx: ServiceContext) -> Self {
        let now = cx.runtime.clock.now();
        let prefix = refresh_prefix(&cx);
        let mut grants = Grants::default();
        for (key, value) in cx.runtime.keep.scan(KeepFamily::Service, &prefix) {
            grants.restore(key.strip_prefix(&prefix).unwrap_or_default(), &value, now);
        }
        let grants = Mutex::new(grants);
        let noted = EventLimit::new(now);
        Server(Arc::new(Inner {
            settings,
            keys,
            cx,
            seen: Mutex::default(),
            grants,
            door: Door::default(),
            noted,
        }))
    }

    pub(super) fn settings(&self) -> &Checked {
        &self.0.settings
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.cx.runtime.clock.now()
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, SeenAssertions> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn grants(&self) -> MutexGuard<'_, Grants> {
        self.0.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn door(&self) -> &Door {
        &self.0.door
    }

    pub(super) fn event(&self, event: NewEvent) {
        self.0.cx.event(event);
    }

    /// Whether one more refusal may be an event this minute.
    pub(super) fn may_note(&self) -> bool {
        self.0.noted.allows(self.now())
    }

    /// Makes a family of refresh tokens durable as it is now, its end included.
    pub(super) async fn keep_family(&self, family: &str) -> Result<(), StoreFailed> {
        let value = self.grants().kept(family).map(Into::into);
        let key = format!("{}{family}", refresh_prefix(&self.0.cx));
        self.0.cx.runtime.keep.put(KeepFamily::Service, &key, value).await
    }

    /// The path of the authorization endpoint: where its forms go.
    pub(super) fn authorize_path(&self) -> String {
        format!("{}/oauth2/authorize", self.base())
    }

    /// The path of the issuer, without a slash at its end.
    fn base(&self) -> &str {
        self.settings().issuer.path().trim_end_matches('/')
    }

    /// The address of an endpoint, below the issuer.
    fn endpoint(&self, path: &str) -> String {
        format!("{}{path}", self.settings().issuer_text.trim_end_matches('/'))
    }

    /// Whether an assertion for this audience is for us.
    pub(super) fn is_named(&self, audience: &str) -> bool {
        audience == self.settings().issuer_text || audience == self.endpoint("/oauth2/token")
    }

    fn scope_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.settings().scopes.iter().map(|(name, _)| name.as_str()).collect();
        let people = |client: &Client| client.grants.contains(&Grant::AuthorizationCode);
        if self.settings().clients.iter().any(people) && !names.contains(&OPENID) {
            names.push(OPENID);
        }
        names
    }

    /// RFC 8414 §2 and OpenID Connect Discovery 1.0 §3.
    fn metadata(&self) -> Value {
        json!({
            "issuer": self.settings().issuer_text,
            "authorization_endpoint": self.endpoint("/oauth2/authorize"),
            "token_endpoint": self.endpoint("/oauth2/token"),
            "jwks_uri": self.endpoint("/oauth2/jwks"),
            "scopes_supported": self.scope_names(),
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": Grant::names().collect::<Vec<_>>(),
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": true,
            "token_endpoint_auth_methods_supported":
                ["client_secret_basic", "client_secret_post", "private_key_jwt"],
            "token_endpoint_auth_signing_alg_values_supported":
                septet_oauth::keys::algorithm_names().collect::<Vec<_>>(),
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported":
                [septet_oauth::keys::algorithm_name(self.settings().algorithm)],
        })
    }
}

/// Where the refresh tokens of a service are kept.
fn refresh_prefix(cx: &ServiceContext) -> String {
    format!("{}/refresh/", cx.item)
}

/// Reads the body of a request, or says with which status it was not taken.
pub(super) async fn read(server: &Server, headers: &HeaderMap, body: Body) -> Result<Bytes, StatusCode> {
    let clock = &server.0.cx.runtime.clock;
    read_body(headers, body, BODY_LIMIT, BODY_TIME, clock).await.map_err(|unread| match unread {
        Unread::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        Unread::Timeout(_) => StatusCode::REQUEST_TIMEOUT,
        Unread::Broken => StatusCode::BAD_REQUEST,
    })
}

/// All routes. The discovery documents stand at the root, below the issuer's path, and where RFC 8414 inserts
/// that path.
pub(super) fn router(server: Server) -> Router {
    let base = server.base().to_owned();
    let mut documents = Vec::new();
    for name in ["openid-configuration", "oauth-authorization-server"] {
        documents.push(format!("/.well-known/{name}"));
        documents.push(format!("{base}/.well-known/{name}"));
        documents.push(format!("/.well-known/{name}{base}"));
    }
    documents.sort();
    documents.dedup();
    let mut router = Router::new()
        .route(&server.authorize_path(), get(authorize::begin).post(authorize::go_on))
        .route(&format!("{base}/oauth2/token"), post(token).fallback(token_by_post))
        .route(&format!("{base}/oauth2/jwks"), get(key_set));
    for path in documents {
        router = router.route(&path, get(metadata));
    }
    router.with_state(server)
}

async fn metadata(State(server): State<Server>) -> Response {
    published(server.metadata())
}

async fn key_set(State(server): State<Server>) -> Response {
    published(server.keys().public())
}

/// Public and the same for everybody for a while.
fn published(document: Value) -> Response {
    ([(CACHE_CONTROL, "public, max-age=60")], Json(document)).into_response()
}

async fn token_by_post() -> Response {
    let error = TokenError::new(ErrorCode::InvalidRequest, "the token endpoint takes POST");
    let mut response = refused(&error);
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

async fn token(State(server): State<Server>, headers: HeaderMap, body: Body) -> Response {
    let body = match read(&server, &headers, body).await {
        Ok(body) => body,
        Err(status) => {
            let mut response = refused(&TokenError::new(ErrorCode::InvalidRequest, "the body was not taken"));
            *response.status_mut() = status;
            return closing(response);
        }
    };
    match answer(&server, &headers, &body).await {
        Ok(reply) => uncached(Json(reply).into_response()),
        Err(error) => {
            if error.code == ErrorCode::InvalidClient && server.may_note() {
                let event = NewEvent::new(Level::Warning, "auth.refused", error.code.as_str());
                server
                    .0
                    .cx
                    .event(event.detail("a token request whose client is unknown or shows a wrong secret"));
            }
            refused(&error)
        }
    }
}

async fn answer(server: &Server, headers: &HeaderMap, body: &[u8]) -> Result<Value, TokenError> {
    let invalid = |text| TokenError::new(ErrorCode::InvalidRequest, text);
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let parameters = match essence.as_str() {
        "application/x-www-form-urlencoded" => Parameters::form(body),
        "application/json" => Parameters::json(body).ok_or_else(|| invalid("the body is no JSON object"))?,
        _ => return Err(invalid("the body must be a form")),
    };
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let authorization = match (all.next(), all.next()) {
        (_, Some(_)) => return Err(invalid("more than one Authorization header")),
        (one, None) => one.map(|value| value.to_str().map_err(|_| TokenError::client(true))).transpose()?,
    };
    server.token(authorization, &parameters).await
}

fn refused(error: &TokenError) -> Response {
    let body = json!({ "error": error.code.as_str(), "error_description": error.description });
    let mut response = (error.code.status(), Json(body)).into_response();
    if error.challenge {
        let challenge = HeaderValue::from_static(r#"Basic realm="septet", charset="UTF-8""#);
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    uncached(response)
}

/// RFC 6749 §5.1: tokens are not for caches.
fn uncached(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(PRAGMA, HeaderValue::from_static("no-cache"));
    response
}
