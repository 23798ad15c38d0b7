//! What operations need from OAuth, as a contract: the engine knows no OAuth itself. septet-oauth
//! implements it over its stored, single-flight token manager; the composition root hands it in.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::fault::Fault;

/// Where a token goes in a request (RFC 6750 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// `Authorization: Bearer …` (§2.1).
    #[default]
    Header,
    /// A form field `access_token` (§2.2).
    Body,
    /// A query parameter `access_token` (§2.3), masked wherever it is shown.
    Query,
}

/// A usable access token. `Debug` shows the client only.
#[derive(Clone)]
pub struct AccessToken {
    /// The OAuth client it belongs to.
    pub client: String,
    /// The token itself.
    pub secret: Zeroizing<String>,
    /// Distinguishes this token from its successors without showing it.
    pub generation: u64,
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessToken({} #{})", self.client, self.generation)
    }
}

/// Why there is no token.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{fault}")]
pub struct NoToken {
    /// What happened.
    pub fault: Fault,
    /// The client asks nobody before this moment: whoever comes earlier comes in vain.
    pub not_before: Option<Timestamp>,
}

impl From<Fault> for NoToken {
    fn from(fault: Fault) -> NoToken {
        NoToken { fault, not_before: None }
    }
}

/// Gives out tokens of the named OAuth clients (`[oauth.NAME]`).
#[async_trait]
pub trait TokenSource: Send + Sync + fmt::Debug {
    /// A token that is not about to expire, from the store or freshly fetched; single-flight over all
    /// callers of one client. `item` is the asking item, for the client's "used by". An error means that
    /// there is no token: the request must not be sent, and its reply code is `fault`.
    async fn token(&self, client: &str, item: &str) -> Result<AccessToken, NoToken>;

    /// Whether there is a client of this name: messages may name one that nobody configured.
    fn knows(&self, client: &str) -> bool;

    /// The peer refused this token with a 401: drop it, so that the next [`TokenSource::token`] fetches.
    /// A token that has been replaced meanwhile is left alone (its generation differs).
    fn rejected(&self, token: &AccessToken);
}

/// A token source for productions without OAuth clients: it has none to give.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoTokens;

#[async_trait]
impl TokenSource for NoTokens {
    async fn token(&self, client: &str, _item: &str) -> Result<AccessToken, NoToken> {
        Err(Fault::new("call", "oauth", format!("there is no OAuth client {client}")).into())
    }

    fn knows(&self, _client: &str) -> bool {
        false
    }

    fn rejected(&self, _token: &AccessToken) {}
}

/// A shared token source.
pub type SharedTokens = Arc<dyn TokenSource>;
