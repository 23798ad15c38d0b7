//! Who may ask for tokens: the settings of clients, checked, and their authentication at the token endpoint
//! (RFC 6749 §2.3.1: basic or post; RFC 7523 §2.2: private_key_jwt). Secrets are held as hashes and compared
//! in constant time; a client that does not exist takes as long as one that does.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use septet_engine::config::build::{At, Build, did_you_mean};
use septet_engine::config::settings::Secret;
use septet_oauth::PublicKeys;
use serde_json::Value;
use url::Url;

use super::token::{ErrorCode, Parameters, TokenError};
use super::{ClientSettings, is_loopback};

/// What a client may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    ClientCredentials,
    AuthorizationCode,
    RefreshToken,
}

/// The scope that asks for an id token (OpenID Connect Core §3.1.2.1). Always known to the server.
pub(super) const OPENID: &str = "openid";

impl Grant {
    const NAMES: [(&'static str, Grant); 3] = [
        ("client_credentials", Grant::ClientCredentials),
        ("authorization_code", Grant::AuthorizationCode),
        ("refresh_token", Grant::RefreshToken),
    ];

    pub(super) fn named(name: &str) -> Option<Grant> {
        Grant::NAMES.iter().find(|(known, _)| *known == name).map(|(_, grant)| *grant)
    }

    /// All names, for the discovery document.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        Grant::NAMES.iter().map(|(name, _)| *name)
    }
}

/// A checked client.
pub(super) struct Client {
    pub(super) id: String,
    credential: Credential,
    pub(super) grants: Vec<Grant>,
    /// What it may have; all of these when it asks for none.
    pub(super) scopes: Vec<String>,
    /// What it may ask for; empty means anything.
    pub(super) audiences: Vec<String>,
    /// Where people may be sent back to.
    pub(super) redirect_uris: Vec<String>,
    /// It must send an S256 challenge.
    pub(super) pkce: bool,
}

enum Credential {
    /// SHA-256 of the secret.
    Secret(Digest),
    Keys(PublicKeys),
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
    let at = |key: &'static str| [At::Key("clients"), At::Key(id), At::Key(key)];
    let here = [At::Key("clients"), At::Key(id)];
    let credential = match (&settings.secret, &settings.jwks) {
        (Some(secret), None) if secret.reveal().is_empty() => {
            build.error("S0502", &at("secret"), "the secret is empty", None);
            None
        }
        (Some(secret), None) => Some(Credential::Secret(hash(secret))),
        (None, Some(jwks)) => {
            let keys = public_keys(jwks);
            if keys.is_none() {
                build.error("S0502", &at("jwks"), "jwks holds no key that can verify a signature", None);
            }
            keys.map(Credential::Keys)
        }
        (Some(_), Some(_)) => {
            build.error("S0502", &here, format!("client {id} has secret and jwks; give one of them"), None);
            None
        }
        (None, None) => {
            build.error("S0501", &here, format!("client {id} needs secret or jwks"), None);
            None
        }
    };
    let mut grants = Vec::new();
    for (index, name) in settings.grants.0.iter().enumerate() {
        let place = [At::Key("clients"), At::Key(id), At::Key("grants"), At::Index(index)];
        match Grant::named(name) {
            Some(grant) => grants.push(grant),
            None => {
                let text = format!("there is no grant {name}");
                build.error("S0502", &place, text, did_you_mean(name, Grant::names()));
            }
        }
    }
    check_redirects(build, id, settings, &grants);
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
        credential: credential?,
        grants,
        scopes: scopes.to_vec(),
        audiences: settings.audience.clone().unwrap_or_default().0,
        redirect_uris: settings.redirect_uris.0.clone(),
        pkce: settings.pkce,
    })
}

fn check_redirects(build: &mut Build<'_>, id: &str, settings: &ClientSettings, grants: &[Grant]) {
    let here = [At::Key("clients"), At::Key(id)];
    let code = grants.contains(&Grant::AuthorizationCode);
    if code && settings.redirect_uris.0.is_empty() {
        let text = format!("client {id} needs redirect_uris for grant authorization_code");
        build.error("S0501", &here, text, None);
    }
    if grants.contains(&Grant::RefreshToken) && !code {
        let text = format!("client {id} gets refresh tokens only with grant authorization_code");
        build.error("S0502", &here, text, None);
    }
    for (index, uri) in settings.redirect_uris.0.iter().enumerate() {
        let wrong = match Url::parse(uri) {
            Err(_) => "a redirect URI is absolute, such as https://app.example/callback",
            Ok(url) if url.fragment().is_some() => "a redirect URI has no fragment (RFC 6749 §3.1.2)",
            Ok(url) if url.scheme() == "http" && !is_loopback(&url) => {
                "a redirect URI must be https; plain http is for loopback only"
            }
            Ok(url) if matches!(url.scheme(), "javascript" | "data" | "file" | "about" | "blob") => {
                "this is no address that a browser may be sent to"
            }
            Ok(_) => continue,
        };
        let place = [At::Key("clients"), At::Key(id), At::Key("redirect_uris"), At::Index(index)];
        build.error("S0502", &place, wrong, None);
    }
}

/// RFC 6749 §3.3.
pub(super) fn is_scope(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

fn public_keys(jwks: &Value) -> Option<PublicKeys> {
    match jwks {
        Value::String(text) => PublicKeys::from_json(&serde_json::from_str(text).ok()?),
        other => PublicKeys::from_json(other),
    }
}

fn hash(secret: &Secret) -> Digest {
    digest(&SHA256, secret.reveal().as_bytes())
}

/// What a request shows of its sender.
pub(super) enum Shown {
    /// An id and what might be its secret: as decoded by RFC 6749, and as it came, for clients that do not
    /// encode.
    Secret { id: String, secrets: Vec<String>, by_header: bool },
    /// A signed assertion, with the id where the request names one.
    Assertion { id: Option<String>, assertion: String },
}

/// Reads who a token request says it is from. More than one way at a time is refused (RFC 6749 §2.3).
pub(super) fn shown(authorization: Option<&str>, parameters: &Parameters) -> Result<Shown, TokenError> {
    let id = parameters.one("client_id")?;
    let secret = parameters.one("client_secret")?;
    let assertion = parameters.one("client_assertion")?;
    let ways = [authorization.is_some(), secret.is_some(), assertion.is_some()];
    if ways.into_iter().filter(|used| *used).count() > 1 {
        return Err(TokenError::new(ErrorCode::InvalidRequest, "more than one client authentication"));
    }
    if let Some(authorization) = authorization {
        return basic(authorization).ok_or_else(|| TokenError::client(true));
    }
    if let Some(assertion) = assertion {
        let kind = parameters.one("client_assertion_type")?;
        if kind != Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer") {
            return Err(TokenError::new(ErrorCode::InvalidRequest, "unknown client_assertion_type"));
        }
        return Ok(Shown::Assertion { id: id.map(str::to_owned), assertion: assertion.to_owned() });
    }
    match (id, secret) {
        (Some(id), Some(secret)) => {
            Ok(Shown::Secret { id: id.to_owned(), secrets: vec![secret.to_owned()], by_header: false })
        }
        _ => Err(TokenError::client(false)),
    }
}

fn basic(authorization: &str) -> Option<Shown> {
    let (scheme, encoded) = authorization.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = pair.split_once(':')?;
    let decoded = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8().map(|text| text.into_owned()).ok()
    };
    let mut secrets = vec![secret.to_owned()];
    secrets.extend(decoded(secret).filter(|decoded| decoded != secret));
    Some(Shown::Secret { id: decoded(id)?, secrets, by_header: true })
}

impl Client {
    /// The client that proved to be who it says it is by its secret.
    pub(super) fn by_secret<'a>(clients: &'a [Client], id: &str, secrets: &[String]) -> Option<&'a Client> {
        let client = clients.iter().find(|client| client.id == id);
        let nobody = digest(&SHA256, b"nobody");
        let (wanted, possible) = match client.map(|client| &client.credential) {
            Some(Credential::Secret(wanted)) => (wanted, true),
            _ => (&nobody, false),
        };
        let matches = |secret: &String| {
            let given = digest(&SHA256, secret.as_bytes());
            verify_slices_are_equal(given.as_ref(), wanted.as_ref()).is_ok()
        };
        let matched = secrets.iter().fold(false, |found, secret| matches(secret) | found);
        client.filter(|_| possible && matched)
    }

    /// Its public keys, where it authenticates with signed assertions.
    pub(super) fn keys(&self) -> Option<&PublicKeys> {
        match &self.credential {
            Credential::Keys(keys) => Some(keys),
            Credential::Secret(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_are_read_encoded_and_as_they_came() {
        let header = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        let Some(Shown::Secret { id, secrets, .. }) = basic(&header("lab%3A1:s%2B+x")) else { panic!() };
        assert_eq!((id.as_str(), secrets), ("lab:1", vec!["s%2B+x".to_owned(), "s+ x".to_owned()]));
        assert!(basic("Bearer abc").is_none());
        assert!(basic("Basic !!!").is_none());
        assert!(basic(&header("no colon")).is_none());
    }
}
