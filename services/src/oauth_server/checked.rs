//! Checked settings: what a server needs, and every problem that `check` finds in them.

use std::fmt;
use std::sync::Arc;

use septet_engine::config::build::{At, Build};
use septet_engine::config::diagnostic::Severity;
use septet_engine::config::problem::did_you_mean;
use septet_engine::config::settings::ServerTls;
use septet_engine::config::units::{DurationText, Listen};
use septet_oauth::keys::{Algorithm, algorithm};
use url::{Host, Url};

use super::clients::{self, Client, Grant};
use super::registration::Rules;
use super::settings::Settings;
use super::users::{self, User};

/// Checked settings: what a server needs.
pub(super) struct Checked {
    pub(super) listen: Listen,
    pub(super) tls: Option<ServerTls>,
    pub(super) issuer: Url,
    /// The issuer as it is written: `iss` is exact text.
    pub(super) issuer_text: String,
    pub(super) algorithm: Algorithm,
    pub(super) access_token_lifetime: DurationText,
    pub(super) code_lifetime: DurationText,
    pub(super) refresh_token_lifetime: DurationText,
    /// Names and what they mean to a person.
    pub(super) scopes: Vec<(String, String)>,
    pub(super) clients: Vec<Arc<Client>>,
    /// What clients that register themselves get; `None` where none may.
    pub(super) registration: Option<Rules>,
    pub(super) users: Vec<User>,
}

impl Checked {
    /// The user of this name.
    pub(super) fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    pub(super) fn access_token_lifetime(&self) -> i64 {
        seconds(self.access_token_lifetime)
    }

    pub(super) fn code_lifetime(&self) -> i64 {
        seconds(self.code_lifetime)
    }

    pub(super) fn refresh_token_lifetime(&self) -> i64 {
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

/// Checks all settings; reports every problem.
pub(super) fn check(build: &mut Build<'_>, settings: &Settings) -> Option<Checked> {
    let before = build.problems.len();
    check_listener(build, settings);
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
    if settings.clients.is_empty() && settings.registration.0.is_none() {
        let text = "an authorization server without clients gives nobody a token";
        build.warning("S0504", &[At::Key("clients")], text, None);
    }
    let known: Vec<String> = settings.scopes.iter().map(|(name, _)| name.to_owned()).collect();
    let clients =
        settings.clients.iter().filter_map(|(id, client)| clients::check(build, id, client, &known));
    let clients: Vec<Arc<Client>> = clients.map(Arc::new).collect();
    let registration = settings.registration.0.as_ref();
    let registration = registration.and_then(|settings| Rules::check(build, settings, &known));
    let users: Vec<User> =
        settings.users.iter().filter_map(|(name, user)| users::check(build, name, user)).collect();
    for user in users.iter().filter(|user| clients.iter().any(|client| client.id == user.name)) {
        let text = format!("{0} is a user and a client: their tokens have the same sub", user.name);
        build.warning("S0504", &[At::Key("users"), At::Key(&user.name)], text, None);
    }
    let people = clients.iter().any(|client| client.grants.contains(&Grant::AuthorizationCode));
    if settings.users.is_empty() && people {
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
        registration,
        users,
    })
}

/// Passwords and tokens must not cross a network in clear.
fn check_listener(build: &mut Build<'_>, settings: &Settings) {
    let local = settings.listen.get().ip().is_loopback();
    if !local && settings.tls.is_none() && !settings.behind_proxy {
        let text = "off loopback the listener needs tls, or behind_proxy = true where a proxy ends TLS";
        build.error("S0502", &[At::Key("listen")], text, None);
    }
    if settings.tls.is_some() && settings.issuer.starts_with("http:") {
        let text = "the listener speaks TLS, so that nobody reaches an issuer with plain http";
        build.warning("S0504", &[At::Key("issuer")], text, None);
    }
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
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}
