//! A token server that knows nothing of septet-oauth, and a manager over a store in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use septet_engine::clock::ManualClock;
use septet_engine::config::settings::{ClientTls, OAuthClient, Secret};
use septet_engine::event::Event;
use septet_engine::store::{EventFilter, Store};
use septet_oauth::TokenManager;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
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

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

type Script = Box<dyn FnMut(&Seen, usize) -> Response + Send>;

#[derive(Clone)]
struct Shared {
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Arc<Mutex<Script>>,
    /// Answers wait while it is true.
    held: watch::Receiver<bool>,
    count: Arc<watch::Sender<usize>>,
}

/// Answers as its script says; the script gets the request and its 1-based number.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Shared,
    hold: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start(script: impl FnMut(&Seen, usize) -> Response + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Server::on(listener, script)
    }

    pub(crate) fn on(
        listener: TcpListener,
        script: impl FnMut(&Seen, usize) -> Response + Send + 'static,
    ) -> Server {
        let (hold, held) = watch::channel(false);
        let shared = Shared {
            seen: Arc::default(),
            script: Arc::new(Mutex::new(Box::new(script))),
            held,
            count: Arc::new(watch::channel(0).0),
        };
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Server { address, shared, hold, task }
    }

    /// A server that gives `token-1`, `token-2`, … with this lifetime in seconds.
    pub(crate) async fn counting(lifetime: u32) -> Server {
        Server::start(move |_, n| {
            json(
                200,
                &format!(r#"{{"access_token":"token-{n}","token_type":"Bearer","expires_in":{lifetime}}}"#),
            )
        })
        .await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn script(&self, script: impl FnMut(&Seen, usize) -> Response + Send + 'static) {
        *self.shared.script.lock().unwrap() = Box::new(script);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.seen().len()
    }

    /// Waits until the server has seen `n` requests.
    pub(crate) async fn until(&self, n: usize) {
        let mut count = self.shared.count.subscribe();
        let seen = count.wait_for(|count| *count >= n);
        tokio::time::timeout(PATIENCE, seen).await.expect("the request should come").unwrap();
    }

    /// Lets requests come in but holds the answers back.
    pub(crate) fn hold(&self, held: bool) {
        self.hold.send_replace(held);
    }
}

async fn answer(State(shared): State<Shared>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let body = String::from_utf8_lossy(&body).into_owned();
    let seen = Seen { path: uri.path().to_owned(), headers, body };
    let number = {
        let mut all = shared.seen.lock().unwrap();
        all.push(seen.clone());
        all.len()
    };
    let response = (shared.script.lock().unwrap())(&seen, number);
    shared.count.send_replace(number);
    let mut held = shared.held.clone();
    let _ = held.wait_for(|held| !held).await;
    response
}

/// A JSON answer.
pub(crate) fn json(status: u16, body: &str) -> Response {
    let status = axum::http::StatusCode::from_u16(status).unwrap();
    (status, [("content-type", "application/json")], body.to_owned()).into_response()
}

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Everything a test of the manager needs.
pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) manager: Arc<TokenManager>,
}

impl Bench {
    pub(crate) async fn new(lifetime: u32) -> Bench {
        Bench::over(Server::counting(lifetime).await, |_| {})
    }

    /// A manager with one client `vendor`, adjusted by `change`.
    pub(crate) fn over(server: Server, change: impl FnOnce(&mut OAuthClient)) -> Bench {
        let clock = Arc::new(ManualClock::new("2026-11-22T08:00:00Z".parse().unwrap()));
        let store = Store::memory(clock.clone());
        let mut bench = Bench { manager: Arc::new(manager(&store, &clock)), server, store, clock };
        bench.configure(change);
        bench
    }

    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut OAuthClient)) {
        let mut client = client(&self.server.url("/oauth2/token"));
        change(&mut client);
        let used_by = BTreeMap::from([("vendor".to_owned(), vec!["submit".to_owned()])]);
        self.manager.update([Arc::new(client)], &used_by);
    }

    /// A new manager over what was kept.
    pub(crate) fn restart(&mut self, change: impl FnOnce(&mut OAuthClient)) {
        self.manager = Arc::new(manager(&self.store, &self.clock));
        self.configure(change);
    }

    /// Its events, oldest first.
    pub(crate) fn events(&self) -> Vec<Event> {
        let mut events = self.store.events(&EventFilter::default(), None, 1000).unwrap().entries;
        events.reverse();
        events
    }

    pub(crate) async fn token(&self) -> Result<String, septet_engine::fault::Fault> {
        use septet_engine::token::TokenSource as _;
        let token = self.manager.token("vendor", "submit").await;
        token.map(|token| token.secret.to_string()).map_err(|error| error.fault)
    }
}

fn manager(store: &Store, clock: &Arc<ManualClock>) -> TokenManager {
    TokenManager::with_timeout(Arc::new(store.clone()), clock.clone(), PATIENCE)
}

/// The client of the contract's example.
pub(crate) fn client(token_url: &str) -> OAuthClient {
    OAuthClient {
        name: "vendor".into(),
        token_url: Some(token_url.into()),
        authorization_url: None,
        authorize_params: BTreeMap::new(),
        redirect_uri: None,
        refresh_token_lifetime: None,
        refresh_alert: Duration::from_secs(7 * 86_400),
        issuer: None,
        expected_issuer: None,
        grant: "client_credentials".into(),
        client_id: "lab".into(),
        client_secret: Some(Secret::new("lab-secret")),
        client_auth: "basic".into(),
        request_body: "form".into(),
        scope: Some("results:write".into()),
        audience: None,
        resource: None,
        params: BTreeMap::new(),
        headers: BTreeMap::new(),
        username: None,
        password: None,
        refresh_token: None,
        subject: None,
        private_key: None,
        certificate: None,
        key_id: None,
        signing_alg: None,
        reply_access_token: "/access_token".into(),
        reply_expires_in: "/expires_in".into(),
        refresh_before: Duration::from_secs(60),
        default_lifetime: Duration::from_secs(300),
        tls: ClientTls::default(),
    }
}
