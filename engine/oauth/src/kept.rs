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
    pub(crate) refresh: Option<String>,
    pub(crate) fetched_at: Option<Timestamp>,
    pub(crate) expires_at: Option<Timestamp>,
    /// Tokens fetched in all, over all versions. The last one's generation.
    pub(crate) fetches: u64,
}

/// A token in hand.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) token: Zeroizing<String>,
    pub(crate) generation: u64,
    pub(crate) fetched_at: Timestamp,
    pub(crate) expires_at: Timestamp,
}

impl Held {
    /// From here on it is about to expire: `refresh_before` its end, but never more than a quarter of its
    /// lifetime before.
    pub(crate) fn renew_at(&self, refresh_before: Duration) -> Timestamp {
        let lifetime =
            Duration::try_from(self.expires_at.duration_since(self.fetched_at)).unwrap_or_default();
        let before = refresh_before.min(lifetime / 4);
        self.expires_at.checked_sub(before).unwrap_or(self.expires_at)
    }
}

impl Kept {
    pub(crate) fn new(version: &str, held: &Held, refresh: Option<&str>) -> Kept {
        Kept {
            format: FORMAT,
            version: version.to_owned(),
            token: Some(held.token.to_string()),
            refresh: refresh.map(str::to_owned),
            fetched_at: Some(held.fetched_at),
            expires_at: Some(held.expires_at),
            fetches: held.generation,
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
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(lifetime: i64) -> Held {
        let fetched_at = Timestamp::from_second(1_000_000).unwrap();
        let expires_at = Timestamp::from_second(1_000_000 + lifetime).unwrap();
        Held { token: Zeroizing::new("t".into()), generation: 3, fetched_at, expires_at }
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
        let kept = Kept::from_bytes(&Kept::new("v1", &held(60), None).to_bytes()).unwrap();
        assert_eq!(kept.held("v1").unwrap().generation, 3);
        assert!(kept.held("v2").is_none());
        assert!(Kept::from_bytes(b"{}").is_none());
    }
}
