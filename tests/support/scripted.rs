//! A server that answers as a closure says, in clear or over TLS: token endpoints and APIs that misbehave on
//! purpose.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use septet_engine::config::settings::{Admin, ServerTls};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as a form.
    pub(crate) fn form(&self) -> BTreeMap<String, String> {
        url::form_urlencoded::parse(self.body.as_bytes()).into_owned().collect()
    }
}

type Script = Arc<dyn Fn(&Seen) -> Response + Send + Sync>;

/// A server on a port of its own.
#[derive(Clone)]
pub(crate) struct Scripted {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Script,
}

impl Scripted {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Scripted {
        Scripted::listen(None, script).await
    }

    /// Over TLS, with these files: certificate, key, and the authority of the clients it admits.
    pub(crate) async fn tls(
        files: [PathBuf; 3],
        script: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) -> Scripted {
        let [cert, key, client_ca] = files;
        Scripted::listen(Some(ServerTls { cert, key, client_ca: Some(client_ca) }), script).await
    }

    async fn listen(
        tls: Option<ServerTls>,
        script: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) -> Scripted {
        let port = super::free_port();
        let admin = Admin {
            listen: ([127, 0, 0, 1], port).into(),
            tls,
            behind_proxy: false,
            hosts: Vec::new(),
            users: BTreeMap::new(),
            tokens: BTreeMap::new(),
            auth: None,
            role_claim: None,
            roles: BTreeMap::new(),
        };
        let listener = septet_admin::bind(&admin).await.expect("loopback has free ports");
        let scripted = Scripted { port, seen: Arc::default(), script: Arc::new(script) };
        let app = Router::new().fallback(answer).with_state(scripted.clone());
        tokio::spawn(septet_admin::serve(listener, app, tokio_util::sync::CancellationToken::new()));
        scripted
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// What came to this path.
    pub(crate) fn at(&self, path: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.uri.path() == path).collect()
    }
}

async fn answer(State(scripted): State<Scripted>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let seen = Seen { uri, headers, body: String::from_utf8_lossy(&body).into_owned() };
    scripted.seen.lock().unwrap().push(seen.clone());
    (scripted.script)(&seen)
}

/// A JSON answer.
pub(crate) fn json(status: u16, body: serde_json::Value) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, [("content-type", "application/json")], body.to_string()).into_response()
}
