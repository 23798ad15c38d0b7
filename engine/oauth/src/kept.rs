//! What is kept of a client over restarts: its token and its history, one JSON value per client name, sealed
//! by the engine. Format 1; unknown fields are ignored, an unknown format is treated as nothing kept.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const FORMAT: u32 = 1;

/// The stored form.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    format: u32,
    /// The credential version that the token and the refresh token were given to.
    pub(crate) version: String,
    pub(crate) token: Option<String>,
    refresh: Option<String>,
    pub(crate) fetched_at: Option<Timestamp>,
    pub(crate) expires_at: Option<Timestamp>,
    /// When the refresh token came.
    refresh_at: Option<Timestamp>,
    /// When it ends, where that is known.
    refresh_ends: Option<Timestamp>,
    /// The scopes that the server gave.
    scope: Option<String>,
    /// When a peer last refused a token of this client.
    pub(crate) last_401: Option<Timestamp>,
    /// Tokens fetched in all, over all versions. The last one's generation.
    pub(crate) fetches: u64,
}

/// What is known of a client beside its tokens.
#[derive(Clone, Copy, Default)]
pub(crate) struct History {
    /// When its last token was fetched.
    pub(crate) fetched_at: Option<Timestamp>,
    pub(crate) fetches: u64,
    pub(crate) last_401: Option<Timestamp>,
}

/// A token in hand.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) token: Zeroizing<String>,
    pub(crate) generation: u64,
    pub(crate) fetched_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    /// The scopes that the server gave, where it said so.
    pub(crate) scope: Option<String>,
}

/// A refresh token in hand.
#[derive(Clone)]
pub(crate) struct Refresh {
    pub(crate) token: Zeroizing<String>,
    pub(crate) got_at: Timestamp,
    pub(crate) ends: Option<Timestamp>,
}

/// `before` the end of something that began then, but never more than a quarter of its lifetime before.
fn ahead(from: Timestamp, to: Timestamp, before: Duration) -> Timestamp {
    let lifetime = Duration::try_from(to.duration_since(from)).unwrap_or_default();
    to.checked_sub(before.min(lifetime / 4)).unwrap_or(to)
}

impl Refresh {
    /// From here on its end is worth an alert.
    pub(crate) fn alert_at(&self, before: Duration) -> Option<Timestamp> {
        Some(ahead(self.got_at, self.ends?, before))
    }
}

impl Held {
    /// From here on it is about to expire: `refresh_before` its end, but never more than a quarter of its
    /// lifetime before.
    pub(crate) fn renew_at(&self, refresh_before: Duration) -> Timestamp {
        ahead(self.fetched_at, self.expires_at, refresh_before)
    }
}

impl Kept {
    pub(crate) fn new(
        version: &str,
        held: Option<&Held>,
        refresh: Option<&Refresh>,
        history: History,
    ) -> Kept {
        let History { fetched_at, fetches, last_401 } = history;
        Kept {
            format: FORMAT,
            version: version.to_owned(),
            token: held.map(|held| held.token.to_string()),
            refresh: refresh.map(|refresh| refresh.token.to_string()),
            fetched_at,
            expires_at: held.map(|held| held.expires_at),
            refresh_at: refresh.map(|refresh| refresh.got_at),
            refresh_ends: refresh.and_then(|refresh| refresh.ends),
            scope: held.and_then(|held| held.scope.clone()),
            last_401,
            fetches,
        }
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).unwrap_or_default())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Kept> {
        serde_json::from_slice::<Kept>(bytes).ok().filter(|kept| kept.format == FORMAT)
    }

    /// The token, when it was given to these credentials.
    pub(crate) fn held(&self, version: &str) -> Option<Held> {
        if self.version != version {
            return None;
        }
        Some(Held {
            token: Zeroizing::new(self.token.clone()?),
            generation: self.fetches,
            fetched_at: self.fetched_at?,
            expires_at: self.expires_at?,
            scope: self.scope.clone(),
        })
    }

    /// The refresh token, when it was given to these credentials.
    pub(crate) fn refresh(&self, version: &str) -> Option<Refresh> {
        let token = self.refresh.as_ref().filter(|_| self.version == version)?;
        // Kept values of an earlier version of Septet do not say when it came.
        let got_at = self.refresh_at.or(self.fetched_at)?;
        Some(Refresh { token: Zeroizing::new(token.clone()), got_at, ends: self.refresh_ends })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(lifetime: i64) -> Held {
        let fetched_at = Timestamp::from_second(1_000_000).unwrap();
        let expires_at = Timestamp::from_second(1_000_000 + lifetime).unwrap();
        Held { token: Zeroizing::new("t".into()), generation: 3, fetched_at, expires_at, scope: None }
    }

    #[test]
    fn a_token_is_renewed_a_minute_before_its_end_but_never_before_three_quarters_of_its_life() {
        let renew = |lifetime| held(lifetime).renew_at(Duration::from_secs(60)).as_second() - 1_000_000;
        assert_eq!(renew(3600), 3540);
        assert_eq!(renew(100), 75);
        assert_eq!(renew(4), 3);
        assert_eq!(renew(0), 0);
    }

    #[test]
    fn a_kept_token_is_given_to_the_same_credentials_only() {
        let at = Some(held(60).fetched_at);
        let history = History { fetched_at: at, fetches: 3, last_401: None };
        let kept = Kept::from_bytes(&Kept::new("v1", Some(&held(60)), None, history).to_bytes()).unwrap();
        assert_eq!(kept.held("v1").unwrap().generation, 3);
        assert!(kept.held("v2").is_none());
        assert!(Kept::from_bytes(b"{}").is_none());
    }
}
