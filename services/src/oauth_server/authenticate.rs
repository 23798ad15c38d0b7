//! Who sends a request: client authentication (RFC 6749 §2.3.1: basic or post; RFC 7523 §2.2: private_key_jwt;
//! nothing, for public clients). Secrets are compared as hashes in constant time, a client that does not exist
//! takes as long as one that does, and too many wrong secrets from one address have to wait (RFC 6749 §2.3.1
//! asks for protection against guessing).

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;

use super::clients::{Client, Credential};
use super::grants::{hashed, same};
use super::request::{ErrorCode, Parameters, Received, TokenError};
use super::server::Server;

/// Wrong secrets of one client in a row, from one address, before they have to wait.
pub(super) const GUESSES: u32 = 20;

/// What a request shows of its sender.
enum Shown {
    /// An id and what might be its secret: as decoded by RFC 6749, and as it came, for clients that do not
    /// encode.
    Secret { id: String, secrets: Vec<String>, by_header: bool },
    /// A signed assertion, with the id where the request names one.
    Assertion { id: Option<String>, assertion: String },
    /// An id alone.
    Named { id: String, by_header: bool },
    /// Nothing.
    Nothing,
}

/// Reads who a request says it is from. More than one way at a time is refused (RFC 6749 §2.3).
fn shown(authorization: Option<&str>, parameters: &Parameters) -> Result<Shown, TokenError> {
    let id = parameters.one("client_id")?;
    let secret = parameters.one("client_secret")?;
    let assertion = parameters.one("client_assertion")?;
    let ways = [authorization.is_some(), secret.is_some(), assertion.is_some()];
    if ways.into_iter().filter(|used| *used).count() > 1 {
        return Err(TokenError::new(ErrorCode::InvalidRequest, "more than one client authentication"));
    }
    if let Some(authorization) = authorization {
        let shown = basic(authorization).ok_or_else(|| TokenError::client(true))?;
        let (Shown::Secret { id: named, .. } | Shown::Named { id: named, .. }) = &shown else {
            return Err(TokenError::client(true));
        };
        return if id.is_none_or(|id| id == named) { Ok(shown) } else { Err(TokenError::client(true)) };
    }
    if let Some(assertion) = assertion {
        let kind = parameters.one("client_assertion_type")?;
        if kind != Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer") {
            return Err(TokenError::new(ErrorCode::InvalidRequest, "unknown client_assertion_type"));
        }
        return Ok(Shown::Assertion { id: id.map(str::to_owned), assertion: assertion.to_owned() });
    }
    Ok(match (id, secret) {
        (Some(id), Some(secret)) => {
            Shown::Secret { id: id.to_owned(), secrets: vec![secret.to_owned()], by_header: false }
        }
        (Some(id), None) => Shown::Named { id: id.to_owned(), by_header: false },
        (None, _) => Shown::Nothing,
    })
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
    let id = decoded(id)?;
    if secret.is_empty() {
        return Some(Shown::Named { id, by_header: true });
    }
    let mut secrets = vec![secret.to_owned()];
    secrets.extend(decoded(secret).filter(|decoded| decoded != secret));
    Some(Shown::Secret { id, secrets, by_header: true })
}

/// Who sent a request.
pub(super) enum Sender {
    /// It proved to be this client.
    Proven(Arc<Client>),
    /// It says that it is this client, and shows nothing.
    Says(Arc<Client>),
    /// It does not say.
    Nobody,
}

impl Server {
    /// Who sent a request: a client that proved itself, or a public one that named itself.
    pub(super) async fn client(
        &self,
        received: &Received,
        now: Timestamp,
    ) -> Result<Arc<Client>, TokenError> {
        let by_header = received.authorization.is_some();
        match self.sender(received, now).await? {
            Sender::Proven(client) => Ok(client),
            Sender::Says(client) if client.is_public() => Ok(client),
            Sender::Says(_) | Sender::Nobody => Err(TokenError::client(by_header)),
        }
    }

    /// The same where a public client may not ask, for it could be anybody.
    pub(super) async fn confidential_client(
        &self,
        received: &Received,
        now: Timestamp,
    ) -> Result<Arc<Client>, TokenError> {
        match self.sender(received, now).await? {
            Sender::Proven(client) => Ok(client),
            Sender::Says(_) | Sender::Nobody => Err(TokenError::client(received.authorization.is_some())),
        }
    }

    /// Who sent a request, as far as it says so; what it shows must be right.
    pub(super) async fn sender(&self, received: &Received, now: Timestamp) -> Result<Sender, TokenError> {
        match shown(received.authorization.as_deref(), &received.parameters)? {
            Shown::Nothing => Ok(Sender::Nobody),
            Shown::Named { id, by_header } => {
                let client = self.find_client(&id).ok_or_else(|| TokenError::client(by_header))?;
                Ok(Sender::Says(client))
            }
            Shown::Secret { id, secrets, by_header } => {
                self.by_secret(&id, &secrets, received.peer, by_header, now).map(Sender::Proven)
            }
            Shown::Assertion { id, assertion } => {
                self.by_assertion(id.as_deref(), &assertion, now).await.map(Sender::Proven)
            }
        }
    }

    /// The client whose secret this is.
    fn by_secret(
        &self,
        id: &str,
        secrets: &[String],
        peer: Option<IpAddr>,
        by_header: bool,
        now: Timestamp,
    ) -> Result<Arc<Client>, TokenError> {
        let client = self.find_client(id);
        let counter = self.guesses().counter(None, (id, peer.map(network)));
        if client.is_some() && !self.guesses().may_try(counter, now.as_second()) {
            return Err(TokenError::new(ErrorCode::SlowDown, "too many wrong secrets; wait a minute"));
        }
        let nobody = String::new();
        let (wanted, possible) = match client.as_deref().map(|client| &client.credential) {
            Some(Credential::Secret(wanted)) => (wanted, true),
            _ => (&nobody, false),
        };
        let matched = secrets.iter().fold(false, |found, secret| same(&hashed(secret), wanted) | found);
        let client = client.filter(|_| possible && matched).ok_or_else(|| TokenError::client(by_header))?;
        self.guesses().right(counter);
        Ok(client)
    }
}

/// The part of an address that one sender cannot change at will: of IPv6 the first half.
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
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
        assert!(matches!(basic(&header("lab:")), Some(Shown::Named { .. })));
        assert!(basic("Bearer abc").is_none());
        assert!(basic("Basic !!!").is_none());
        assert!(basic(&header("no colon")).is_none());
    }

    #[test]
    fn addresses_of_one_network_count_together() {
        let address = |text: &str| network(text.parse().unwrap());
        assert_eq!(address("2001:db8:1:2::1"), address("2001:db8:1:2:ffff::9"));
        assert_ne!(address("2001:db8:1:2::1"), address("2001:db8:1:3::1"));
        assert_ne!(address("192.0.2.1"), address("192.0.2.2"));
    }
}
