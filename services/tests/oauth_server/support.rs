//! A server over real sockets and a clock that stands still, and the clients that ask it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::tz::TimeZone;
use reqwest::Client;
use reqwest::Response;
use reqwest::redirect::Policy;
use septet_engine::clock::ManualClock;
use septet_engine::config::diagnostic::Severity;
use septet_engine::config::env::Env;
use septet_engine::config::load::load_text;
use septet_engine::config::settings::OAuthClient;
use septet_engine::event::Event;
use septet_engine::host::{
    Accepted, HostFault, Inbound, Intake, Refused, Runtime, ServiceContext, ServiceFactory,
};
use septet_engine::id::ItemName;
use septet_engine::record::MessageTypes;
use septet_engine::registry::{Factory, Registry};
use septet_engine::store::{EventFilter, Store};
use septet_engine::token::NoTokens;
use septet_oauth::{Auth, Verifier};
use septet_services::oauth_server;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

#[path = "../../../tests/support/port.rs"]
mod port;
pub(crate) use self::port::free_port;

/// An authorization server brings nothing in.
#[derive(Debug)]
pub(crate) struct NoIntake;

#[async_trait]
impl Intake for NoIntake {
    async fn receive(&self, _: Inbound) -> Result<Accepted, Refused> {
        Err(Refused::Stopping)
    }

    fn accepting(&self) -> bool {
        true
    }

    async fn until_accepting(&self) {}
}

pub(crate) struct Running {
    pub(crate) issuer: String,
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) http: Client,
    pub(crate) stop: CancellationToken,
    pub(crate) factory: Arc<dyn ServiceFactory>,
    task: JoinHandle<Result<(), HostFault>>,
}

pub(crate) const CLIENTS: &str = r#"
scopes = { "results:write" = "Submit results", "results:read" = "Read results" }
[services.auth.clients.lab]
secret = "lab-secret"
scopes = ["results:write"]
[services.auth.clients.other]
secret = "other secret+%"
audience = ["api://results", "api://orders"]
"#;

/// A clock that stands still, and an empty store.
pub(crate) fn clock_and_store() -> (Arc<ManualClock>, Store) {
    let clock = Arc::new(ManualClock::new("2026-11-22T08:00:00Z".parse().unwrap()));
    let store = Store::memory(clock.clone());
    (clock, store)
}

pub(crate) fn production(issuer: &str, port: u16, rest: &str) -> String {
    format!(
        r#"
[production]
name = "vendor"
[store]
retention = "7d"
[services.auth]
type = "oauth.server"
listen = "127.0.0.1:{port}"
issuer = "{issuer}"
{rest}"#
    )
}

/// The errors that `check` finds in a production with this server.
pub(crate) fn problems(rest: &str) -> Vec<String> {
    problems_of("127.0.0.1", "http://127.0.0.1:8791", rest)
}

/// The same for a server that listens on another address and has another issuer.
pub(crate) fn problems_of(address: &str, issuer: &str, rest: &str) -> Vec<String> {
    let text =
        production(issuer, 8791, rest).replace("listen = \"127.0.0.1", &format!("listen = \"{address}"));
    let folder = std::path::Path::new("/p");
    let loaded = load_text(&text, folder, &Registry::of(vec![oauth_server::CLASS]), &Env::empty());
    loaded
        .diagnostics
        .iter()
        .filter(|found| found.severity == Severity::Error)
        .map(|found| format!("{}:{} {} {}", found.line, found.column, found.code, found.text))
        .collect()
}

impl Running {
    pub(crate) async fn start(rest: &str) -> Running {
        let (clock, store) = clock_and_store();
        let port = free_port();
        Running::over(store, clock, port, &format!("http://127.0.0.1:{port}"), rest).await
    }

    pub(crate) async fn over(
        store: Store,
        clock: Arc<ManualClock>,
        port: u16,
        issuer: &str,
        rest: &str,
    ) -> Running {
        let running = Running::bind(store, clock, port, issuer, rest).await;
        // It answers once it runs.
        running.get("/oauth2/jwks").await;
        running
    }

    pub(crate) async fn bind(
        store: Store,
        clock: Arc<ManualClock>,
        port: u16,
        issuer: &str,
        rest: &str,
    ) -> Running {
        let text = production(issuer, port, rest);
        let folder = std::path::Path::new("/p");
        let loaded = load_text(&text, folder, &Registry::of(vec![oauth_server::CLASS]), &Env::empty());
        let plan = loaded.plan.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
        let item = ItemName::new("auth");
        let Factory::Service(factory) = plan.item(&item).unwrap().built.factory.clone() else {
            panic!("no service")
        };
        let stop = CancellationToken::new();
        let runtime = Runtime {
            production: "vendor".into(),
            clock: clock.clone(),
            timezone: TimeZone::UTC,
            types: MessageTypes::default(),
            vault: store.vault().clone(),
            tokens: Arc::new(NoTokens),
            epoch: store.epoch(),
            keep: Arc::new(store.clone()),
        };
        let cx = ServiceContext { item, runtime, stop: stop.clone(), intake: Arc::new(NoIntake) };
        let mut service = factory.create();
        service.bind(&cx).await.unwrap();
        let task = tokio::spawn(service.run(cx));
        let http = impatient().build().unwrap();
        Running { issuer: issuer.to_owned(), store, clock, http, stop, factory, task }
    }

    /// The same server after a restart over the same store, with these settings.
    pub(crate) async fn again(self, rest: &str) -> Running {
        let issuer = self.issuer.clone();
        let port = Url::parse(&issuer).unwrap().port().unwrap();
        let (store, clock) = self.stop().await;
        Running::over(store, clock, port, &issuer, rest).await
    }

    /// `septet oauth rotate`, as the admin API asks for it.
    pub(crate) async fn rotate(&self) -> Result<Value, HostFault> {
        self.factory.order("rotate", Some("root")).await.unwrap()
    }

    /// All events of a kind.
    pub(crate) fn events(&self, kind: &str) -> Vec<Event> {
        let events = self.store.events(&EventFilter::default(), None, 1000).unwrap().entries;
        events.into_iter().filter(|event| event.kind == kind).collect()
    }

    /// A form to an endpoint with basic authentication, where there is a client.
    pub(crate) async fn send(
        &self,
        path: &str,
        client: Option<(&str, &str)>,
        form: &[(&str, &str)],
    ) -> (u16, Value) {
        let mut request = self.http.post(self.url(path)).form(form);
        if let Some((id, secret)) = client {
            request = request.basic_auth(id, Some(secret));
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// What introspection says of a token to this client.
    pub(crate) async fn introspect(&self, client: (&str, &str), token: &str) -> Value {
        let (status, reply) = self.send("/oauth2/introspect", Some(client), &[("token", token)]).await;
        assert_eq!(status, 200, "{reply}");
        reply
    }

    pub(crate) async fn stop(self) -> (Store, Arc<ManualClock>) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        (self.store, self.clock)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.issuer)
    }

    /// A token request with basic authentication.
    pub(crate) async fn ask(&self, id: &str, secret: &str, form: &[(&str, &str)]) -> (u16, Value) {
        let request = self.http.post(self.url("/oauth2/token")).basic_auth(id, Some(secret)).form(form);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub(crate) async fn post(&self, form: &[(&str, &str)]) -> (u16, Value) {
        let response = self.http.post(self.url("/oauth2/token")).form(form).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.http.get(self.url(path)).send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
    }

    pub(crate) fn verifier(&self, change: impl FnOnce(&mut Auth)) -> Verifier {
        let mut auth = Auth { issuer: Some(self.issuer.clone()), ..Auth::default() };
        change(&mut auth);
        Verifier::new(auth, self.clock.clone())
    }
}

pub(crate) fn parts(token: &str) -> (Value, Value) {
    let mut parts = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap());
    let mut part = || serde_json::from_slice(&parts.next().unwrap()).unwrap();
    (part(), part())
}

pub(crate) const GRANT: (&str, &str) = ("grant_type", "client_credentials");

/// A client that keeps no connection: a test that moves the clock ends those that are idle.
fn impatient() -> reqwest::ClientBuilder {
    Client::builder().no_proxy().pool_max_idle_per_host(0)
}

pub(crate) fn client(change: impl FnOnce(&mut OAuthClient)) -> OAuthClient {
    let text = r#"
[production]
name = "lab"
[oauth.vendor]
issuer = "http://127.0.0.1:1"
grant = "client_credentials"
client_id = "lab"
client_secret = "lab-secret"
scope = "results:write"
"#;
    let loaded = load_text(text, std::path::Path::new("/p"), &Registry::of(Vec::new()), &Env::empty());
    let plan = loaded.plan.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
    let mut client = plan.oauth.get("vendor").unwrap().as_ref().clone();
    change(&mut client);
    client
}

pub(crate) const BACK: &str = "https://app.example/callback?keep=1";
pub(crate) const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
/// Of the verifier (RFC 7636 appendix B).
pub(crate) const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

pub(crate) fn settings() -> String {
    // The hash of "letmein"; argon2id with little memory, so that the test is quick.
    use argon2::password_hash::PasswordHasher;
    let params = argon2::Params::new(64, 1, 1, None).unwrap();
    let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let hash = argon.hash_password(b"letmein").unwrap();
    format!(
        r#"
scopes = {{ "results:write" = "Submit <your> results", "results:read" = "Read results" }}
[services.auth.clients.app]
secret = "app-secret"
grants = ["authorization_code", "refresh_token"]
redirect_uris = ["{BACK}", "http://127.0.0.1:9/cb"]
[services.auth.clients.old]
secret = "old-secret"
grants = ["authorization_code"]
scopes = ["results:read"]
redirect_uris = ["https://old.example/"]
pkce = false
[services.auth.users.ada]
password = "pa55 word"
[services.auth.users.bob]
password_hash = "{hash}"
"#
    )
}

/// A browser that follows nothing by itself.
pub(crate) struct Browser {
    pub(crate) server: Running,
    pub(crate) http: Client,
}

/// A form of a page: where it goes and its hidden fields.
pub(crate) struct Form {
    pub(crate) html: String,
    pub(crate) action: String,
    pub(crate) fields: Vec<(String, String)>,
}

impl Form {
    pub(crate) fn read(html: String) -> Form {
        let between = |text: &str, start: &str| {
            let (_, rest) = text.split_once(start).unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        let action = between(&html, "action=\"");
        let hidden = html.lines().filter(|line| line.contains("type=\"hidden\""));
        let fields = hidden.map(|line| (between(line, "name=\""), between(line, "value=\""))).collect();
        Form { action, fields, html }
    }
}

impl Browser {
    pub(crate) async fn new() -> Browser {
        Browser::of(Running::start(&settings()).await)
    }

    pub(crate) fn of(server: Running) -> Browser {
        let http = impatient().redirect(Policy::none()).build().unwrap();
        Browser { server, http }
    }

    /// The usual request of `app`, with some parameters changed; an empty value takes one away.
    pub(crate) fn request(changes: &[(&str, &str)]) -> Vec<(String, String)> {
        let usual = [
            ("response_type", "code"),
            ("client_id", "app"),
            ("redirect_uri", BACK),
            ("scope", "openid results:write"),
            ("state", "st&te=ü"),
            ("nonce", "n-1"),
            ("code_challenge", CHALLENGE),
            ("code_challenge_method", "S256"),
        ];
        let mut all: BTreeMap<&str, &str> = usual.into_iter().collect();
        all.extend(changes.iter().copied());
        all.into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect()
    }

    pub(crate) async fn authorize(&self, changes: &[(&str, &str)]) -> Response {
        let url = self.server.url("/oauth2/authorize");
        self.http.get(url).query(&Browser::request(changes)).send().await.unwrap()
    }

    pub(crate) async fn submit(&self, form: &Form, more: &[(&str, &str)]) -> Response {
        let mut fields = form.fields.clone();
        fields.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.http.post(self.server.url(&form.action)).form(&fields).send().await.unwrap()
    }

    /// From the request to the answer that goes back to the client.
    pub(crate) async fn answer(
        &self,
        changes: &[(&str, &str)],
        user: (&str, &str),
        decision: &str,
    ) -> BTreeMap<String, String> {
        let page = self.authorize(changes).await;
        assert_eq!(page.status(), 200);
        let form = Form::read(page.text().await.unwrap());
        let page = self.submit(&form, &[("username", user.0), ("password", user.1)]).await;
        assert_eq!(page.status(), 200);
        let form = Form::read(page.text().await.unwrap());
        returned(&self.submit(&form, &[("decision", decision)]).await)
    }

    pub(crate) async fn code(&self, changes: &[(&str, &str)]) -> String {
        self.answer(changes, ("ada", "pa55 word"), "allow").await.remove("code").unwrap()
    }

    /// The tokens of a code, all the way.
    pub(crate) async fn tokens(&self, changes: &[(&str, &str)]) -> Value {
        let (status, reply) = self.redeem(&self.code(changes).await, &[]).await;
        assert_eq!(status, 200, "{reply}");
        reply
    }

    pub(crate) async fn redeem(&self, code: &str, changes: &[(&str, &str)]) -> (u16, Value) {
        let mut form = BTreeMap::from([
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", BACK),
            ("code_verifier", VERIFIER),
        ]);
        form.extend(changes.iter().copied());
        let form: Vec<_> = form.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        self.server.ask("app", "app-secret", &form).await
    }

    pub(crate) async fn refresh(&self, token: &str, more: &[(&str, &str)]) -> (u16, Value) {
        let mut form = vec![("grant_type", "refresh_token"), ("refresh_token", token)];
        form.extend_from_slice(more);
        self.server.ask("app", "app-secret", &form).await
    }
}

/// What a redirect back to the client says.
pub(crate) fn returned(response: &Response) -> BTreeMap<String, String> {
    assert_eq!(response.status(), 303);
    let url = Url::parse(response.headers().get("location").unwrap().to_str().unwrap()).unwrap();
    url.query_pairs().into_owned().collect()
}

pub(crate) fn text<'a>(reply: &'a Value, name: &str) -> &'a str {
    reply.get(name).and_then(Value::as_str).unwrap_or_else(|| panic!("no {name} in {reply}"))
}
