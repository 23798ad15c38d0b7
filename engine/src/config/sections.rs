//! `[production]`, `[store]`, `[admin]` and `[log]`: as they are written, and the checks that make settings of
//! them. Names and defaults are CONTRACT §2.1 and §2.6.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use jiff::tz::TimeZone;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::config::auth::Auth;
use crate::config::node::Node;
use crate::config::report::Report;
use crate::config::settings::{Admin, Log, LogFormat, Production, Role, Secret, ServerTls, Store};
use crate::config::units::{ByteSize, DurationText, Listen, MaybeNever, Strings};
use crate::id::ItemName;
use crate::registry::Registry;
use crate::vault;

/// The schema of a path that need not exist.
pub(crate) fn path_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "septet-path" })
}

/// `[production]`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProductionKeys {
    /// The production's name.
    #[serde(default)]
    #[schemars(required)]
    name: String,
    /// For {date}, {time}, hl7Date, values without a zone and schedules; default: the system's.
    #[serde(default)]
    timezone: Option<String>,
    /// Items that get every alert as a typed message `Alert`.
    #[serde(default)]
    alerts: Strings,
    /// How long work in flight may take after SIGTERM.
    #[serde(default = "shutdown_timeout")]
    shutdown_timeout: DurationText,
}

fn shutdown_timeout() -> DurationText {
    DurationText::secs(10)
}

pub(crate) fn production(node: &Node, report: &mut Report<'_>) -> Option<Production> {
    let keys: ProductionKeys = report.read(node)?;
    if node.get("name").is_some() && keys.name.trim().is_empty() {
        report.error("S0107", report.place(node, &["name"]), "the name is empty", None);
    }
    let timezone = match &keys.timezone {
        None => TimeZone::system(),
        Some(name) => TimeZone::get(name).unwrap_or_else(|_| {
            let suggestion = Some("names are like \"Europe/Berlin\" or \"UTC\"".to_owned());
            let place = report.place(node, &["timezone"]);
            report.error("S0107", place, format!("there is no timezone named {name}"), suggestion);
            TimeZone::UTC
        }),
    };
    Some(Production {
        name: keys.name,
        timezone,
        alerts: keys.alerts.0.iter().map(ItemName::new).collect(),
        shutdown_timeout: keys.shutdown_timeout.get(),
    })
}

/// `[store]`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StoreKeys {
    /// The folder of the embedded store.
    #[schemars(schema_with = "path_schema")]
    path: Option<PathBuf>,
    /// A PostgreSQL database instead of a folder: "postgres://…".
    url: Option<String>,
    /// Sessions whose last activity is older than this are purged; absent: nothing is purged.
    retention: Option<MaybeNever>,
    /// The oldest sessions are purged when the store is larger than this.
    max_size: Option<ByteSize>,
    /// Messages are refused when less than this is free; default: the smaller of 2 GiB and 5 %.
    min_free: Option<ByteSize>,
    /// The size of one journal file, at least "1MiB"; absent, an eighth of a `max_size` below "512MiB".
    segment_size: ByteSize,
    /// The budget for message bodies in memory.
    memory: ByteSize,
    /// How long audit events are kept.
    audit_retention: DurationText,
    /// A 256-bit key, 64 hex digits or base64, normally `${file:…}`; default: a key file in the store's folder.
    key: Option<Secret>,
    /// Keys that were replaced: what they sealed stays readable, everything new is sealed with `key`.
    old_keys: Vec<Secret>,
    /// Encrypts bodies and search keys too; needs `key`.
    encrypt_bodies: bool,
}

impl Default for StoreKeys {
    fn default() -> Self {
        StoreKeys {
            path: None,
            url: None,
            retention: None,
            max_size: None,
            min_free: None,
            segment_size: ByteSize::mib(64),
            memory: ByteSize::mib(128),
            audit_retention: DurationText::secs(2190 * 86_400),
            key: None,
            old_keys: Vec::new(),
            encrypt_bodies: false,
        }
    }
}

const MIB: u64 = 1 << 20;

pub(crate) fn store(node: &Node, report: &mut Report<'_>) -> Option<Store> {
    let keys: StoreKeys = report.read(node)?;
    let at = |key: &'static str| [key];
    if keys.url.is_some() {
        let text = "a store in PostgreSQL is not available yet";
        let place = report.place(node, &at("url"));
        report.error("S0604", place, text, Some("use path = \"data\"".into()));
    }
    if keys.segment_size < ByteSize::mib(1) {
        let place = report.place(node, &at("segment_size"));
        report.error("S0105", place, "segment_size must be at least \"1MiB\"", None);
    }
    if keys.memory < ByteSize::mib(1) {
        let place = report.place(node, &at("memory"));
        report.error("S0105", place, "memory must be at least \"1MiB\"", None);
    }
    // What is there and cannot be read is an error already.
    if node.get("retention").is_none() && node.get("max_size").is_none() {
        let text = "nothing is ever purged: neither retention nor max_size is set";
        report.warning("S0605", node.span, text, Some("for example retention = \"30d\"".into()));
    }
    let named =
        keys.key.iter().map(|key| ("key", key)).chain(keys.old_keys.iter().map(|key| ("old_keys", key)));
    for (name, _) in named.filter(|(_, key)| vault::parse_key(key.reveal()).is_none()) {
        let place = report.place(node, &at(name));
        let suggestion = Some("make one with: openssl rand -hex 32".to_owned());
        report.error("S0606", place, "a store key is 64 hex digits, or 32 bytes in base64", suggestion);
    }
    if keys.encrypt_bodies && keys.key.is_none() {
        let place = report.place(node, &at("encrypt_bodies"));
        let suggestion = Some("for example key = \"${file:/etc/septet/store.key}\"".to_owned());
        report.error("S0607", place, "encrypt_bodies needs a key from outside the store", suggestion);
    }
    if node.get("path").is_some_and(|entry| entry.node.as_str() == Some("")) {
        let place = report.place(node, &at("path"));
        let suggestion = Some("for example path = \"data\"".to_owned());
        report.error("S0105", place, "the path is empty: a store needs a folder of its own", suggestion);
    }
    let segment_size = match (node.get("segment_size"), keys.max_size) {
        (None, Some(most)) => segment_size_within(most.get()),
        _ => keys.segment_size.get(),
    };
    let path = keys.path.unwrap_or_else(|| report.sources.folder(node.span).join("data"));
    Some(Store {
        path,
        retention: keys.retention.and_then(MaybeNever::get),
        max_size: keys.max_size.map(ByteSize::get),
        min_free: keys.min_free.map(ByteSize::get),
        segment_size,
        memory: keys.memory.get(),
        audit_retention: keys.audit_retention.get(),
        key: keys.key,
        old_keys: keys.old_keys,
        encrypt_bodies: keys.encrypt_bodies,
    })
}

/// Whole files are purged, and two of them are always there: a store that is to stay small has small ones.
fn segment_size_within(max_size: u64) -> u64 {
    (max_size / 8 / MIB * MIB).clamp(MIB, 64 * MIB)
}

/// `[admin]`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdminKeys {
    /// Where the admin API and the portal listen.
    listen: Listen,
    /// TLS of the listener.
    #[serde(default)]
    tls: Option<ServerTls>,
    /// A proxy in front ends TLS.
    #[serde(default)]
    behind_proxy: bool,
    /// With accounts: the whole list of names accepted as `Host`.
    #[serde(default)]
    hosts: Strings,
    /// People, by name.
    #[serde(default)]
    users: BTreeMap<String, UserKeys>,
    /// API tokens, by name.
    #[serde(default)]
    tokens: BTreeMap<String, TokenKeys>,
    /// Bearer tokens of an issuer, judged as those of services are.
    #[serde(default)]
    auth: Option<Auth>,
    /// The claim of those tokens that holds roles: a name, or a JSON pointer such as `/realm_access/roles`.
    /// Absent: `scope`, `scp` and `roles` together.
    #[serde(default)]
    role_claim: Option<String>,
    /// What the values of that claim may do here; a token with none of them may do nothing.
    #[serde(default)]
    roles: BTreeMap<String, Role>,
    /// Sign-in by an OpenID provider.
    #[serde(default)]
    oidc: Option<Json>,
}

/// `[admin.users.NAME]`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UserKeys {
    /// The argon2id hash that `septet hash-password` prints.
    password_hash: Secret,
    /// What the person may do.
    role: Role,
}

/// `[admin.tokens.NAME]`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TokenKeys {
    /// SHA-256 of a random token, in hex.
    hash: Secret,
    /// What its bearer may do.
    role: Role,
}

pub(crate) fn admin(node: &Node, registry: &Registry, report: &mut Report<'_>) -> Option<Admin> {
    let keys: AdminKeys = report.read(node)?;
    let listen: SocketAddr = keys.listen.get();
    if keys.oidc.is_some() {
        let place = report.place(node, &["oidc"]);
        let suggestion =
            Some("programs use [admin.auth] with [admin.roles], people [admin.users.NAME]".to_owned());
        report.error("S0604", place, "sign-in by an OpenID provider is not available yet", suggestion);
    }
    for (name, user) in &keys.users {
        if !user.password_hash.reveal().starts_with("$argon2id$") {
            let place = report.place(node, &["users", name, "password_hash"]);
            let suggestion = Some("make one with: septet hash-password".to_owned());
            report.error("S0609", place, "this is no argon2id hash", suggestion);
        }
    }
    for (name, token) in &keys.tokens {
        let hash = token.hash.reveal();
        if hash.len() != 64 || !hash.chars().all(|c| c.is_ascii_hexdigit()) {
            let place = report.place(node, &["tokens", name, "hash"]);
            let suggestion = Some("the SHA-256 of the token in hex: printf %s TOKEN | sha256sum".to_owned());
            report.error("S0609", place, "this is no SHA-256 in hex", suggestion);
        }
    }
    admin_auth(node, &keys, registry, report);
    let accounts =
        keys.auth.is_some() || !keys.users.is_empty() || !keys.tokens.is_empty() || keys.oidc.is_some();
    let place = report.place(node, &["listen"]);
    if !listen.ip().is_loopback() {
        if !accounts {
            let text = format!("{listen} is not this machine only, and there are no accounts");
            let suggestion = Some(
                "add [admin.users.NAME], [admin.tokens.NAME] or [admin.auth], or listen on 127.0.0.1".into(),
            );
            report.error("S0602", place, text, suggestion);
        }
        if keys.tls.is_none() && !keys.behind_proxy {
            let text = format!("{listen} is not this machine only, and there is no TLS");
            let suggestion =
                Some("add tls = { cert, key }, or behind_proxy = true where a proxy ends TLS".into());
            report.error("S0603", place, text, suggestion);
        }
    }
    if !keys.hosts.0.is_empty() && !accounts {
        let place = report.place(node, &["hosts"]);
        let text = "hosts has no effect without accounts";
        report.warning(
            "S0610",
            place,
            text,
            Some("without accounts only names of this machine are accepted".into()),
        );
    }
    Some(Admin {
        listen,
        tls: keys.tls,
        behind_proxy: keys.behind_proxy,
        hosts: keys.hosts.0,
        users: keys.users.into_iter().map(|(name, user)| (name, (user.password_hash, user.role))).collect(),
        tokens: keys.tokens.into_iter().map(|(name, token)| (name, (token.hash, token.role))).collect(),
        auth: keys.auth,
        role_claim: keys.role_claim,
        roles: keys.roles,
    })
}

/// Checks `[admin.auth]` and what goes with it.
fn admin_auth(node: &Node, keys: &AdminKeys, registry: &Registry, report: &mut Report<'_>) {
    let Some(auth) = &keys.auth else {
        let without = [("roles", !keys.roles.is_empty()), ("role_claim", keys.role_claim.is_some())];
        for (key, _) in without.iter().filter(|(_, set)| *set) {
            let place = report.place(node, &[key]);
            report.error("S0501", place, format!("{key} has no meaning without auth"), None);
        }
        return;
    };
    for (key, code, text) in (registry.check_auth)(auth) {
        let place = report.place(node, &["auth", key]);
        report.error(code, place, text, None);
    }
    if auth.smart {
        let text = "smart scopes are for http services: the admin API is no FHIR server";
        report.error("S0502", report.place(node, &["auth", "smart"]), text, None);
    }
    if auth.certificate_bound && keys.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none()) {
        let text = "certificate_bound needs the certificates of clients";
        let suggestion = Some("add tls = { cert, key, client_ca }".to_owned());
        report.error("S0501", report.place(node, &["auth", "certificate_bound"]), text, suggestion);
    }
    if auth.issuer.is_some() && auth.audience.0.is_empty() {
        let text = "without audience every token of this issuer counts, also those meant for others";
        let suggestion = Some("add audience = [\"…\"], as tokens name it in aud".to_owned());
        report.warning("S0620", report.place(node, &["auth"]), text, suggestion);
    }
    if keys.roles.is_empty() {
        let text = "no value of a claim means a role: every token would be refused";
        let suggestion = Some("add [admin.roles], for example \"septet-operator\" = \"operator\"".to_owned());
        report.error("S0501", report.place(node, &["auth"]), text, suggestion);
    }
}

/// `[log]`; the variables `SEPTET_LOG` and `SEPTET_LOG_FORMAT` come before it.
#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogKeys {
    /// "error", "warn", "info", "debug" or "trace", also by module: "info,septet_engine=debug".
    level: Option<String>,
    /// How lines look.
    format: Option<LogFormat>,
}

pub(crate) fn log(node: &Node, report: &mut Report<'_>) -> Option<Log> {
    let keys: LogKeys = report.read(node)?;
    Some(Log { level: keys.level, format: keys.format })
}
