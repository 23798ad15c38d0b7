//! Who may ask for tokens: what a client is, and what `check` says of the settings of one. Secrets are held as
//! hashes. How a client proves to be who it says it is: [`super::authenticate`].

use std::fmt;

use septet_engine::config::build::{At, Build};
use septet_engine::config::problem::did_you_mean;
use septet_oauth::PublicKeys;
use serde_json::Value;
use url::Url;

use super::checked::is_loopback;
use super::grants::hashed;
use super::settings::ClientSettings;

/// What a client may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    ClientCredentials,
    AuthorizationCode,
    RefreshToken,
    JwtBearer,
}

/// The scope that asks for an id token (OpenID Connect Core §3.1.2.1). Always known to the server.
pub(super) const OPENID: &str = "openid";

impl Grant {
    /// As the settings name it, and as requests do.
    const NAMES: [(&'static str, &'static str, Grant); 4] = [
        ("client_credentials", "client_credentials", Grant::ClientCredentials),
        ("authorization_code", "authorization_code", Grant::AuthorizationCode),
        ("refresh_token", "refresh_token", Grant::RefreshToken),
        ("jwt_bearer", "urn:ietf:params:oauth:grant-type:jwt-bearer", Grant::JwtBearer),
    ];

    /// The grant that settings name so.
    pub(super) fn configured(name: &str) -> Option<Grant> {
        Grant::NAMES.iter().find(|(known, ..)| *known == name).map(|(.., grant)| *grant)
    }

    /// The grant that requests name so (`grant_type`).
    pub(super) fn requested(name: &str) -> Option<Grant> {
        Grant::NAMES.iter().find(|(_, known, _)| *known == name).map(|(.., grant)| *grant)
    }

    /// Its `grant_type`.
    pub(super) fn as_requested(self) -> &'static str {
        Grant::NAMES.iter().find(|(.., known)| *known == self).map_or("", |(_, name, _)| name)
    }

    /// All grant types, for the discovery document.
    pub(super) fn requests() -> impl Iterator<Item = &'static str> {
        Grant::NAMES.iter().map(|(_, name, _)| *name)
    }
}

/// A checked client.
pub(super) struct Client {
    pub(super) id: String,
    /// What people see it as.
    pub(super) name: Option<String>,
    pub(super) credential: Credential,
    pub(super) grants: Vec<Grant>,
    /// What it may have; all of these when it asks for none.
    pub(super) scopes: Vec<String>,
    /// What it may ask for; empty means anything.
    pub(super) audiences: Vec<String>,
    /// Where people may be sent back to.
    pub(super) redirect_uris: Vec<String>,
    /// It must send an S256 challenge.
    pub(super) pkce: bool,
    /// It registered itself: nobody here vouches for it.
    pub(super) registered: bool,
}

/// What a client proves itself with.
pub(super) enum Credential {
    /// Its secret, hashed.
    Secret(String),
    /// Assertions signed with these.
    Keys(PublicKeys),
    /// Nothing: it can keep no secret.
    Public,
}

impl Client {
    /// What people see it as.
    pub(super) fn shown(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.id)
    }

    /// Its public keys, where it signs assertions.
    pub(super) fn keys(&self) -> Option<&PublicKeys> {
        match &self.credential {
            Credential::Keys(keys) => Some(keys),
            Credential::Secret(_) | Credential::Public => None,
        }
    }

    /// Whether it can keep no secret.
    pub(super) fn is_public(&self) -> bool {
        matches!(self.credential, Credential::Public)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.id)
    }
}

/// Checks the settings of one client; reports every problem.
pub(super) fn check(
    build: &mut Build<'_>,
    id: &str,
    settings: &ClientSettings,
    known: &[String],
) -> Option<Client> {
    let credential = check_credential(build, id, settings);
    let mut grants = Vec::new();
    for (index, name) in settings.grants.0.iter().enumerate() {
        let place = [At::Key("clients"), At::Key(id), At::Key("grants"), At::Index(index)];
        match Grant::configured(name) {
            Some(grant) => grants.push(grant),
            None => {
                let text = format!("there is no grant {name}");
                build.error(
                    "S0502",
                    &place,
                    text,
                    did_you_mean(name, Grant::NAMES.iter().map(|(known, ..)| *known)),
                );
            }
        }
    }
    check_grants(build, id, settings, &grants);
    check_redirects(build, id, settings);
    let mut all = known.to_vec();
    if grants.contains(&Grant::AuthorizationCode) && !all.iter().any(|scope| scope == OPENID) {
        all.push(OPENID.to_owned());
    }
    let scopes = settings.scopes.as_ref().map_or(all.as_slice(), |scopes| scopes.0.as_slice());
    for (index, scope) in scopes.iter().enumerate() {
        let place = [At::Key("clients"), At::Key(id), At::Key("scopes"), At::Index(index)];
        if !is_scope(scope) {
            build.error("S0502", &place, "a scope is one word (RFC 6749 §3.3)", None);
        } else if !known.is_empty() && !known.contains(scope) && scope != OPENID {
            let suggestion = did_you_mean(scope, known.iter().map(String::as_str));
            build.error("S0502", &place, format!("the server has no scope {scope}"), suggestion);
        }
    }
    Some(Client {
        id: id.to_owned(),
        name: settings.name.clone().filter(|name| !name.trim().is_empty()),
        credential: credential?,
        grants,
        scopes: scopes.to_vec(),
        audiences: settings.audience.clone().unwrap_or_default().0,
        redirect_uris: settings.redirect_uris.0.clone(),
        pkce: settings.pkce || settings.public,
        registered: false,
    })
}

fn check_credential(build: &mut Build<'_>, id: &str, settings: &ClientSettings) -> Option<Credential> {
    let at = |key: &'static str| [At::Key("clients"), At::Key(id), At::Key(key)];
    let here = [At::Key("clients"), At::Key(id)];
    let algorithm = settings.signing_alg.as_deref();
    if let Some(name) = algorithm.filter(|name| septet_oauth::keys::algorithm(name).is_none()) {
        let suggestion = did_you_mean(name, septet_oauth::keys::algorithm_names());
        build.error("S0502", &at("signing_alg"), "this is no asymmetric algorithm", suggestion);
    }
    match (&settings.secret, &settings.jwks, settings.public) {
        (Some(secret), None, false) if secret.reveal().is_empty() => {
            build.error("S0502", &at("secret"), "the secret is empty", None);
            None
        }
        (Some(secret), None, false) => Some(Credential::Secret(hashed(secret.reveal()))),
        (None, Some(jwks), false) => {
            let keys = public_keys(jwks, algorithm);
            if keys.is_none() {
                let text = match algorithm {
                    Some(name) => format!("jwks holds no key that can verify a signature by {name}"),
                    None => "jwks holds no key that can verify a signature".to_owned(),
                };
                build.error("S0502", &at("jwks"), text, None);
            }
            keys.map(Credential::Keys)
        }
        (None, None, true) => Some(Credential::Public),
        (Some(_), Some(_), _) => {
            build.error("S0502", &here, format!("client {id} has secret and jwks; give one of them"), None);
            None
        }
        (.., true) => {
            let text = format!("client {id} is public: it can keep neither secret nor key");
            build.error("S0502", &at("public"), text, None);
            None
        }
        (None, None, false) => {
            build.error("S0501", &here, format!("client {id} needs secret or jwks"), None);
            None
        }
    }
}

/// Whether the grants fit each other and what the client proves itself with.
fn check_grants(build: &mut Build<'_>, id: &str, settings: &ClientSettings, grants: &[Grant]) {
    let here = [At::Key("clients"), At::Key(id)];
    let has = |grant| grants.contains(&grant);
    if has(Grant::AuthorizationCode) && settings.redirect_uris.0.is_empty() {
        let text = format!("client {id} needs redirect_uris for grant authorization_code");
        build.error("S0501", &here, text, None);
    }
    if has(Grant::RefreshToken) && !has(Grant::AuthorizationCode) {
        let text = format!("client {id} gets refresh tokens only with grant authorization_code");
        build.error("S0502", &here, text, None);
    }
    if has(Grant::JwtBearer) && settings.jwks.is_none() {
        let text = format!("client {id} needs jwks for grant jwt_bearer: its assertions are signed");
        build.error("S0501", &here, text, None);
    }
    if settings.public && (has(Grant::ClientCredentials) || has(Grant::JwtBearer)) {
        let text = format!("client {id} is public: it may use authorization_code and refresh_token only");
        build.error("S0502", &here, text, Some("grants = [\"authorization_code\"]".to_owned()));
    }
    if settings.public && !settings.pkce {
        let text = format!("client {id} is public: nothing but PKCE protects its codes");
        build.error("S0502", &[At::Key("clients"), At::Key(id), At::Key("pkce")], text, None);
    }
}

fn check_redirects(build: &mut Build<'_>, id: &str, settings: &ClientSettings) {
    for (index, uri) in settings.redirect_uris.0.iter().enumerate() {
        if let Some(wrong) = wrong_redirect(uri) {
            let place = [At::Key("clients"), At::Key(id), At::Key("redirect_uris"), At::Index(index)];
            build.error("S0502", &place, wrong, None);
        }
    }
}

/// What is wrong with an address that people may be sent back to.
fn wrong_redirect(uri: &str) -> Option<&'static str> {
    match Url::parse(uri) {
        Err(_) => Some("a redirect URI is absolute, such as https://app.example/callback"),
        Ok(url) if url.fragment().is_some() => Some("a redirect URI has no fragment (RFC 6749 §3.1.2)"),
        Ok(url) if url.scheme() == "http" && !is_loopback(&url) => {
            Some("a redirect URI must be https; plain http is for loopback only")
        }
        Ok(url) if matches!(url.scheme(), "javascript" | "data" | "file" | "about" | "blob" | "vbscript") => {
            Some("this is no address that a browser may be sent to")
        }
        Ok(_) => None,
    }
}

/// The same for clients that nobody here has looked at: a web address, without what could mislead a reader.
pub(super) fn wrong_registered_redirect(uri: &str) -> Option<&'static str> {
    if let Some(wrong) = wrong_redirect(uri) {
        return Some(wrong);
    }
    match Url::parse(uri) {
        Ok(url) if !matches!(url.scheme(), "https" | "http") => Some("a redirect URI must be https"),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            Some("a redirect URI holds no user name and no password")
        }
        _ if !uri.bytes().all(|byte| matches!(byte, 0x21..=0x7e)) => {
            Some("a redirect URI is plain ASCII without spaces")
        }
        _ => None,
    }
}

/// RFC 6749 §3.3.
pub(super) fn is_scope(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

/// The keys of a JWKS, given as table or text, that verify signatures; by one algorithm, where it is named.
pub(super) fn public_keys(jwks: &Value, algorithm: Option<&str>) -> Option<PublicKeys> {
    let mut jwks = match jwks {
        Value::String(text) => serde_json::from_str(text).ok()?,
        other => other.clone(),
    };
    if let Some(name) = algorithm {
        let keys = jwks.get_mut("keys")?.as_array_mut()?;
        keys.retain(|key| key.get("alg").is_none_or(|own| own == name));
        let objects = keys.iter_mut().filter_map(Value::as_object_mut);
        objects.for_each(|key| drop(key.insert("alg".to_owned(), Value::from(name))));
    }
    PublicKeys::from_json(&jwks)
}
