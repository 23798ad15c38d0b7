//! `type = "oauth.server"`: an OAuth 2.0 authorization server as an item (CONTRACT §2.6): client credentials,
//! authorization codes with sign-in and consent, refresh tokens, signed JWT access tokens (RFC 9068), id tokens,
//! key set and discovery. It brings no messages in.
//!
//! This file has the settings, their checks and the host; what it answers is in [`server`], who may ask in
//! [`clients`] (and [`assertion`]), what they get in [`token`], what people allow in [`authorize`] (with [`users`] and [`pages`]),
//! what is remembered of that in [`grants`], and what signs in [`keys`].

mod assertion;
mod authorize;
mod clients;
mod grants;
mod keys;
mod pages;
mod server;
mod token;
mod users;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use septet_engine::config::build::{At, Build, did_you_mean};
use septet_engine::config::diagnostic::Severity;
use septet_engine::config::settings::{Secret, ServerTls};
use septet_engine::config::units::{DurationText, Listen, Ordered, Strings};
use septet_engine::host::{BusinessService, HostFault, ServiceContext, ServiceFactory};
use septet_engine::registry::{Built, Factory, Facts, ItemClass, ItemKind};
use septet_oauth::keys::{Algorithm, algorithm};
use serde::Deserialize;
use url::{Host, Url};

use self::clients::{Client, Grant};
use self::server::Server;
use self::users::User;
use crate::listeners::{self, Lease};

/// The class, for the table.
pub const CLASS: ItemClass = ItemClass {
    type_name: "oauth.server",
    kind: ItemKind::Service,
    summary: "Issues OAuth 2.0 tokens: client credentials, sign-in with codes, signed JWTs, discovery.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// Connections beyond this number are closed at once.
const MAX_CONNECTIONS: u32 = 1024;

/// Settings of an `oauth.server` service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address and port to listen on.
    pub listen: Listen,
    /// Its name in tokens (`iss`), and the address below which clients reach it: `/oauth2/token`,
    /// `/oauth2/jwks`. https, except on loopback.
    pub issuer: String,
    /// What tokens are signed with: RS256, RS384, RS512, PS256, PS384, PS512, ES256 or ES384. The key is made at
    /// first start and kept sealed in the store.
    #[serde(default = "rs256")]
    pub signing_alg: String,
    /// How long an access token is valid.
    #[serde(default = "hour")]
    pub access_token_lifetime: DurationText,
    /// How long an authorization code is valid.
    #[serde(default = "minute")]
    pub code_lifetime: DurationText,
    /// How long a refresh token is valid.
    #[serde(default = "day")]
    pub refresh_token_lifetime: DurationText,
    /// Scopes and what they mean to a person who is asked for consent.
    #[serde(default)]
    pub scopes: Ordered<String>,
    /// TLS of the listener. Without it the listener is for loopback, or for a proxy that ends TLS.
    #[serde(default)]
    pub tls: Option<ServerTls>,
    /// Who may ask for tokens, by client id.
    #[serde(default)]
    pub clients: Ordered<ClientSettings>,
    /// Who may sign in, by name.
    #[serde(default)]
    pub users: Ordered<UserSettings>,
}

/// `[services.X.clients.ID]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientSettings {
    /// Its secret, for authentication by header (basic) or body (post); normally `${env:…}` or `${file:…}`.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// Its public keys (RFC 7517), for authentication by signed assertion (private_key_jwt): a table with
    /// `keys`, or JSON text, normally `${file:…}`.
    #[serde(default)]
    pub jwks: Option<serde_json::Value>,
    /// What it may use: client_credentials (the default), authorization_code, refresh_token (with codes).
    #[serde(default = "client_credentials")]
    pub grants: Strings,
    /// Scopes it may have; one that asks for none gets all of these. Absent: all of the server's.
    #[serde(default)]
    pub scopes: Option<Strings>,
    /// Audiences it may ask for (parameter `audience` or `resource`); one that asks for none gets the first.
    /// Absent: any, and the issuer where it asks for none.
    #[serde(default)]
    pub audience: Option<Strings>,
    /// Where a person may be sent back to, compared as exact text.
    #[serde(default)]
    pub redirect_uris: Strings,
    /// Refuse authorization requests without an S256 challenge (RFC 7636).
    #[serde(default = "yes")]
    pub pkce: bool,
}

/// `[services.X.users.NAME]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserSettings {
    /// The password in clear text, normally `${env:…}`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The argon2id hash that `septet hash-password` prints.
    #[serde(default)]
    pub password_hash: Option<Secret>,
}

fn rs256() -> String {
    "RS256".to_owned()
}

fn hour() -> DurationText {
    DurationText::secs(3600)
}

fn minute() -> DurationText {
    DurationText::secs(60)
}

fn day() -> DurationText {
    DurationText::secs(24 * 3600)
}

fn client_credentials() -> Strings {
    Strings(vec!["client_credentials".to_owned()])
}

fn yes() -> bool {
    true
}

/// Checked settings: what a server needs.
struct Checked {
    listen: Listen,
    tls: Option<ServerTls>,
    issuer: Url,
    /// The issuer as it is written: `iss` is exact text.
    issuer_text: String,
    algorithm: Algorithm,
    access_token_lifetime: DurationText,
    code_lifetime: DurationText,
    refresh_token_lifetime: DurationText,
    /// Names and what they mean to a person.
    scopes: Vec<(String, String)>,
    clients: Vec<Client>,
    users: Vec<User>,
}

impl Checked {
    fn access_token_lifetime(&self) -> i64 {
        seconds(self.access_token_lifetime)
    }

    fn code_lifetime(&self) -> i64 {
        seconds(self.code_lifetime)
    }

    fn refresh_token_lifetime(&self) -> i64 {
        seconds(self.refresh_token_lifetime)
    }
}

fn seconds(duration: DurationText) -> i64 {
    i64::try_from(duration.get().as_secs()).unwrap_or(i64::MAX)
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checked({}, {} clients)", self.issuer_text, self.clients.len())
    }
}

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    let checked = check(build, &settings)?;
    let facts = Facts {
        listens: vec![(settings.listen.get(), Some("/".to_owned()))],
        no_messages: true,
        urls: vec![format!("{}/oauth2/token", checked.issuer_text.trim_end_matches('/'))],
        ..Facts::default()
    };
    Some(Built { factory: Factory::Service(Arc::new(ServerFactory(Arc::new(checked)))), facts })
}

fn check(build: &mut Build<'_>, settings: &Settings) -> Option<Checked> {
    let before = build.problems.len();
    let issuer = issuer(build, &settings.issuer);
    let algorithm = algorithm(&settings.signing_alg);
    if algorithm.is_none() {
        let names: Vec<_> = septet_oauth::keys::algorithm_names().collect();
        let suggestion = did_you_mean(&settings.signing_alg, names.iter().copied());
        let text = format!("signing_alg is one of {}", names.join(", "));
        build.error("S0502", &["signing_alg".into()], text, suggestion);
    }
    for (key, lifetime) in [
        ("access_token_lifetime", settings.access_token_lifetime),
        ("code_lifetime", settings.code_lifetime),
        ("refresh_token_lifetime", settings.refresh_token_lifetime),
    ] {
        if lifetime.get().as_secs() == 0 {
            build.error("S0502", &[key.into()], format!("{key} must be at least one second"), None);
        }
    }
    if settings.clients.is_empty() {
        let text = "an authorization server without clients gives nobody a token";
        build.warning("S0504", &[At::Key("clients")], text, None);
    }
    let known: Vec<String> = settings.scopes.iter().map(|(name, _)| name.to_owned()).collect();
    let clients: Vec<Client> = settings
        .clients
        .iter()
        .filter_map(|(id, client)| clients::check(build, id, client, &known))
        .collect();
    let users: Vec<User> =
        settings.users.iter().filter_map(|(name, user)| users::check(build, name, user)).collect();
    if settings.users.is_empty()
        && clients.iter().any(|client| client.grants.contains(&Grant::AuthorizationCode))
    {
        let text = "clients use authorization codes, but there are no users who could sign in";
        build.warning("S0504", &[At::Key("clients")], text, None);
    }
    if build.problems.iter().skip(before).any(|problem| problem.severity == Severity::Error) {
        return None;
    }
    Some(Checked {
        listen: settings.listen,
        tls: settings.tls.clone(),
        issuer: issuer?,
        issuer_text: settings.issuer.clone(),
        algorithm: algorithm?,
        access_token_lifetime: settings.access_token_lifetime,
        code_lifetime: settings.code_lifetime,
        refresh_token_lifetime: settings.refresh_token_lifetime,
        scopes: settings.scopes.iter().map(|(name, text)| (name.to_owned(), text.clone())).collect(),
        clients,
        users,
    })
}

fn issuer(build: &mut Build<'_>, text: &str) -> Option<Url> {
    let mut wrong = |text: &str| build.error("S0502", &["issuer".into()], text, None);
    let Ok(url) = Url::parse(text) else {
        wrong("the issuer is a URL such as https://auth.example");
        return None;
    };
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => wrong("the issuer must be https; plain http is for loopback only"),
        _ => wrong("the issuer is a URL such as https://auth.example"),
    }
    if url.query().is_some() || url.fragment().is_some() {
        wrong("the issuer has no query and no fragment (RFC 8414 §2)");
    }
    Some(url)
}

/// Whether plain http may be used there.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

#[derive(Debug)]
struct ServerFactory(Arc<Checked>);

impl ServiceFactory for ServerFactory {
    fn create(&self) -> Box<dyn BusinessService> {
        Box::new(AuthorizationServer { settings: self.0.clone(), bound: None })
    }
}

/// The running item.
struct AuthorizationServer {
    settings: Arc<Checked>,
    bound: Option<(Lease, Server)>,
}

#[async_trait]
impl BusinessService for AuthorizationServer {
    async fn bind(&mut self, cx: &ServiceContext) -> Result<(), HostFault> {
        let Checked { listen, tls, .. } = self.settings.as_ref();
        let lease = listeners::lease(listen.get(), "/", tls.as_ref(), MAX_CONNECTIONS, cx)?;
        let keys = keys::open(self.settings.algorithm, &cx.item, cx.runtime.keep.as_ref()).await?;
        self.bound = Some((lease, Server::new(self.settings.clone(), keys, cx.clone())));
        Ok(())
    }

    async fn run(mut self: Box<Self>, cx: ServiceContext) -> Result<(), HostFault> {
        if self.bound.is_none() {
            self.bind(&cx).await?;
        }
        if let Some((lease, server)) = self.bound.take() {
            lease.serve(Arc::new(server::router(server)), &cx).await;
        }
        Ok(())
    }
}
