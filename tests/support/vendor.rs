//! An independent vendor: a token endpoint and a results API, scripted by the test, sharing no code with
//! the product.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) uri: String,
    pub(crate) authorization: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) content_type: String,
    pub(crate) body: String,
}

#[derive(Default)]
struct Inner {
    tokens: Vec<Seen>,
    results: Vec<Seen>,
    valid: Option<String>,
    token_lifetime: Option<serde_json::Value>,
    token_answers: VecDeque<(u16, String)>,
    answers: VecDeque<(u16, String)>,
    down: bool,
}

/// A vendor on a port of its own.
#[derive(Clone, Default)]
pub(crate) struct Vendor {
    inner: Arc<Mutex<Inner>>,
    pub(crate) port: u16,
}

impl Vendor {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let port = listener.local_addr().expect("bound").port();
        let vendor = Vendor { inner: Arc::default(), port };
        let app = Router::new().route("/token", any(token)).fallback(any(result)).with_state(vendor.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        vendor
    }

    /// `expires_in` of the tokens to come; 3600 unless told.
    pub(crate) fn lifetime(&self, expires_in: serde_json::Value) {
        self.inner.lock().unwrap().token_lifetime = Some(expires_in);
    }

    /// The token endpoint answers this once, instead of a token.
    pub(crate) fn token_answers(&self, status: u16, body: &str) {
        self.inner.lock().unwrap().token_answers.push_back((status, body.to_owned()));
    }

    /// The API answers this once.
    pub(crate) fn answers(&self, status: u16, body: &str) {
        self.inner.lock().unwrap().answers.push_back((status, body.to_owned()));
    }

    /// From now on the current token is refused with 401.
    pub(crate) fn revoke(&self) {
        self.inner.lock().unwrap().valid = None;
    }

    /// Answers 503 to everything on the API while down.
    pub(crate) fn down(&self, down: bool) {
        self.inner.lock().unwrap().down = down;
    }

    pub(crate) fn tokens(&self) -> Vec<Seen> {
        self.inner.lock().unwrap().tokens.clone()
    }

    pub(crate) fn results(&self) -> Vec<Seen> {
        self.inner.lock().unwrap().results.clone()
    }
}

fn seen(method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Seen {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Seen {
        method: method.to_string(),
        uri: uri.to_string(),
        authorization: header("authorization"),
        key: header("idempotency-key"),
        content_type: header("content-type").unwrap_or_default(),
        body: String::from_utf8_lossy(body).into_owned(),
    }
}

fn json(status: u16, body: String) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, [("content-type", "application/json")], body).into_response()
}

async fn token(
    State(vendor): State<Vendor>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut inner = vendor.inner.lock().unwrap();
    inner.tokens.push(seen(&method, &uri, &headers, &body));
    if let Some((status, body)) = inner.token_answers.pop_front() {
        return json(status, body);
    }
    let token = format!("tok-{}-secretpart", inner.tokens.len());
    inner.valid = Some(token.clone());
    let lifetime = inner.token_lifetime.clone().unwrap_or(3600.into());
    let reply = serde_json::json!({ "access_token": token, "token_type": "Bearer", "expires_in": lifetime });
    json(200, reply.to_string())
}

async fn result(
    State(vendor): State<Vendor>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut inner = vendor.inner.lock().unwrap();
    let seen = seen(&method, &uri, &headers, &body);
    let bearer = seen.authorization.clone();
    inner.results.push(seen);
    if inner.down {
        return json(503, r#"{"error":"down"}"#.into());
    }
    if let Some((status, body)) = inner.answers.pop_front() {
        return json(status, body);
    }
    let valid = inner.valid.as_ref().map(|token| format!("Bearer {token}"));
    if valid.is_none() || bearer != valid {
        return json(401, r#"{"error":"invalid_token"}"#.into());
    }
    json(200, r#"{"status":"accepted","extra":"ignored"}"#.into())
}
