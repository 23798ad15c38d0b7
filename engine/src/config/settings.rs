//! Settings that belong to the engine rather than to one host: `[production]`, `[store]`, `[admin]`,
//! `[oauth.*]`, `[transforms.*]`, and the keys every item has. Names and defaults are CONTRACT §2.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::config::auth::Auth;
use crate::config::hours::Hours;
use crate::id::ItemName;
use crate::reply::ReplyActions;

/// Text that must not be shown: a client secret, a private key. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub Zeroizing<String>);

impl Secret {
    /// From clear text.
    pub fn new(clear: impl Into<String>) -> Self {
        Secret(Zeroizing::new(clear.into()))
    }

    /// The clear text, for the way to a peer.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "septet-secret" })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("•••")
    }
}

/// `[production]`.
#[derive(Clone, Debug)]
pub struct Production {
    /// Its name.
    pub name: String,
    /// For {date}, {time}, hl7Date, zoneless values and schedules.
    pub timezone: TimeZone,
    /// Items that get every alert as a typed message `Alert`.
    pub alerts: Vec<ItemName>,
    /// How long SIGTERM waits for work in flight.
    pub shutdown_timeout: Duration,
}

/// `[store]`.
#[derive(Clone, Debug)]
pub struct Store {
    /// Folder of the embedded store, absolute.
    pub path: PathBuf,
    /// Age after which sessions are purged.
    pub retention: Option<Duration>,
    /// Size after which the oldest are purged.
    pub max_size: Option<u64>,
    /// Free space that ingest leaves; `None` = the smaller of 2 GiB and 5 %.
    pub min_free: Option<u64>,
    /// Size of one journal segment.
    pub segment_size: u64,
    /// Byte budget for bodies in memory.
    pub memory: u64,
    /// How long audit events are kept.
    pub audit_retention: Duration,
    /// 256-bit key as 64 hex digits or base64, from outside.
    pub key: Option<Secret>,
    /// Keys that were replaced.
    pub old_keys: Vec<Secret>,
    /// Seal bodies and search keys too.
    pub encrypt_bodies: bool,
}

/// What an account may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Also resends, replays, resumes, discards, starts and stops.
    Operator,
    /// Also reloads and purges.
    Admin,
}

/// `[admin]`.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where the API listens.
    pub listen: std::net::SocketAddr,
    /// TLS of the listener.
    pub tls: Option<ServerTls>,
    /// A proxy in front ends TLS.
    pub behind_proxy: bool,
    /// The whole list of accepted `Host` names, where set.
    pub hosts: Vec<String>,
    /// Accounts: name, password hash (argon2id PHC string), role.
    pub users: BTreeMap<String, (Secret, Role)>,
    /// API tokens: name, SHA-256 hex, role.
    pub tokens: BTreeMap<String, (Secret, Role)>,
    /// Bearer tokens of an issuer.
    pub auth: Option<Auth>,
    /// The claim that holds roles, by name or as a JSON pointer; `None` = `scope`, `scp` and `roles`.
    pub role_claim: Option<String>,
    /// What the values of that claim mean here.
    pub roles: BTreeMap<String, Role>,
}

/// The schema of a certificate (chain): the loader also looks at its dates.
fn certificate_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "septet-certificate" })
}

/// The schema of certificates of authorities.
fn authorities_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "septet-authorities" })
}

/// The schema of a private key: the loader also looks whether it belongs to `cert` beside it.
fn key_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "septet-key" })
}

/// `[log]`. `SEPTET_LOG` and `SEPTET_LOG_FORMAT` come before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// `info`, or a filter by module.
    pub level: Option<String>,
    /// How lines look.
    pub format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `tls = { cert, key, client_ca }` of a listener. Paths are absolute once loaded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// Certificate chain, PEM file.
    #[schemars(schema_with = "certificate_schema")]
    pub cert: PathBuf,
    /// Private key, PEM file.
    #[schemars(schema_with = "key_schema")]
    pub key: PathBuf,
    /// Authorities of client certificates, PEM file; set means clients must present one.
    #[serde(default)]
    #[schemars(schema_with = "authorities_schema")]
    pub client_ca: Option<PathBuf>,
}

/// `tls = { ca, cert, key, server_name, pin }` of a client. Paths are absolute once loaded.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientTls {
    /// Trusted authorities, PEM file; absent = the system's.
    #[schemars(schema_with = "authorities_schema")]
    pub ca: Option<PathBuf>,
    /// Client certificate, PEM file.
    #[schemars(schema_with = "certificate_schema")]
    pub cert: Option<PathBuf>,
    /// Its private key, PEM file.
    #[schemars(schema_with = "key_schema")]
    pub key: Option<PathBuf>,
    /// The name to verify instead of the host's.
    pub server_name: Option<String>,
    /// `sha256:…` of the only certificate accepted.
    pub pin: Option<String>,
}

/// `[oauth.NAME]`: a named OAuth client. Plain data; septet-oauth gives it meaning.
#[derive(Clone)]
pub struct OAuthClient {
    /// Its name.
    pub name: String,
    /// The token endpoint; absent where `issuer` is discovered.
    pub token_url: Option<String>,
    /// Where a person signs in, for the authorization_code grant; absent where `issuer` is discovered.
    pub authorization_url: Option<String>,
    /// More parameters of the authorization request.
    pub authorize_params: BTreeMap<String, Value>,
    /// Where the provider sends the person back to; absent = the address the admin API was reached at.
    pub redirect_uri: Option<String>,
    /// How long a refresh token lives, where the server does not say.
    pub refresh_token_lifetime: Option<Duration>,
    /// Alert this long before a refresh token ends (never more than a quarter of its lifetime).
    pub refresh_alert: Duration,
    /// The issuer for discovery (RFC 8414).
    pub issuer: Option<String>,
    /// The issuer expected in the discovery document where it differs.
    pub expected_issuer: Option<String>,
    /// `client_credentials`, `password`, `refresh_token`, `jwt_bearer`, `authorization_code`.
    pub grant: String,
    /// The client id.
    pub client_id: String,
    /// The client secret.
    pub client_secret: Option<Secret>,
    /// `basic`, `post`, `none`, `client_secret_jwt`, `private_key_jwt`, `tls`.
    pub client_auth: String,
    /// `form` or `json`.
    pub request_body: String,
    /// Space-separated scopes.
    pub scope: Option<String>,
    /// The audience parameter.
    pub audience: Option<String>,
    /// The resource parameter (RFC 8707).
    pub resource: Option<String>,
    /// Extra parameters.
    pub params: BTreeMap<String, Value>,
    /// Extra headers of the token request.
    pub headers: BTreeMap<String, Secret>,
    /// For the password grant.
    pub username: Option<String>,
    /// For the password grant.
    pub password: Option<Secret>,
    /// For the refresh_token grant: the first refresh token.
    pub refresh_token: Option<Secret>,
    /// Subject of assertions.
    pub subject: Option<String>,
    /// PEM text.
    pub private_key: Option<Secret>,
    /// PEM text.
    pub certificate: Option<String>,
    /// `kid` of assertions.
    pub key_id: Option<String>,
    /// `RS256`, …
    pub signing_alg: Option<String>,
    /// JSON pointer of the access token in the reply.
    pub reply_access_token: String,
    /// JSON pointer of the lifetime in the reply.
    pub reply_expires_in: String,
    /// Fetch this long before expiry (never more than a quarter of the lifetime).
    pub refresh_before: Duration,
    /// Lifetime where `expires_in` is missing.
    pub default_lifetime: Duration,
    /// TLS to the token endpoint.
    pub tls: ClientTls,
}

impl fmt::Debug for OAuthClient {
    /// Names only: extra parameters and headers may be secrets, too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("OAuthClient");
        shown.field("name", &self.name).field("grant", &self.grant).field("client_id", &self.client_id);
        shown.finish_non_exhaustive()
    }
}

/// `[transforms.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Transform {
    /// The message type it makes; absent for HL7 to HL7 (the target starts as a copy of the source).
    pub to: Option<String>,
    /// Assignments in file order, before `code`.
    pub set: Vec<(String, SetValue)>,
    /// Statements.
    pub code: Option<String>,
}

/// The right side of a `set` entry.
#[derive(Clone, Debug, PartialEq)]
pub enum SetValue {
    /// A path in the source.
    Path(String),
    /// `{ value = … }`: a constant.
    Constant(Value),
    /// `{ expr = "…" }`: a JavaScript expression.
    Expression(String),
}

/// What happens to the messages behind a suspended one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnSuspend {
    /// They go on.
    Pass,
    /// Those that share a key wait.
    HoldKey,
    /// All wait.
    HoldItem,
}

/// How many messages of a queue are worked on at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSize {
    /// At most this many.
    Limited(u32),
    /// `"unlimited"` (processes only).
    Unlimited,
}

/// `alert = { … }` of an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemAlert {
    /// The oldest queued message is older than this.
    pub queue_age: Option<Duration>,
    /// More messages are queued than this.
    pub queue_depth: Option<u64>,
    /// No message came for this long.
    pub inactive: Option<Duration>,
    /// Only within these hours: `Mon-Fri 07:00-19:00`.
    pub during: Option<Hours>,
}

/// The keys every item has, and those that all services or all operations have.
#[derive(Clone, Debug)]
pub struct Common {
    /// `enabled`.
    pub enabled: bool,
    /// `pool_size`.
    pub pool_size: PoolSize,
    /// `order_by`: paths or fields.
    pub order_by: Vec<String>,
    /// `on_suspend`.
    pub on_suspend: OnSuspend,
    /// `alert`.
    pub alert: ItemAlert,
    /// `schedule`: when the item runs.
    pub schedule: Option<Hours>,
    /// `description`.
    pub description: Option<String>,
    /// `category`.
    pub category: Option<String>,

    // Services:
    /// `targets`.
    pub targets: Vec<ItemName>,
    /// `reply_from`.
    pub reply_from: Option<ItemName>,
    /// `search`: name and path or field, in file order.
    pub search: Vec<(String, String)>,

    // Operations:
    /// `retry_interval`: first wait, doubled up to 60 s.
    pub retry_interval: Duration,
    /// `failure_timeout`: `None` = never.
    pub failure_timeout: Option<Duration>,
    /// `suspend_limit`: consecutive suspensions of different messages before the item pauses.
    pub suspend_limit: u32,
    /// `response_timeout`.
    pub response_timeout: Duration,
    /// `reply_actions`.
    pub reply_actions: Option<ReplyActions>,
    /// `idempotency_header`: the name under which HTTP operations send the idempotency key.
    pub idempotency_header: String,
}
