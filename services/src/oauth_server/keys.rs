//! The server's signing keys: made at first start, kept over restarts, sealed at rest by the engine. One signs.
//! When another takes over (`septet oauth rotate`, or a new `signing_alg`), it is on stable storage and in the
//! key set before it signs anything; of the old one only the public half is kept, and published until the last
//! token that it signed has ended.
//!
//! How long that is comes from the longest lifetime that was ever configured while the key signed: a shorter
//! `access_token_lifetime` after a restart must not cut older tokens off.

use bytes::Bytes;
use jiff::Timestamp;
use septet_engine::host::{HostFault, Keep, KeepFamily};
use septet_engine::id::ItemName;
use septet_oauth::PublicKeys;
use septet_oauth::keys::{Algorithm, KeyError, SigningKey, algorithm, algorithm_name};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Old keys published at most: a key set must stay small enough to be fetched again and again.
const MOST_RETIRED: usize = 20;
/// An old key is published this much longer than its last token is valid (seconds): clocks differ.
const LEEWAY: i64 = 120;
const FORMAT: u32 = 2;

/// The stored form: the key that signs first.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    keys: Vec<StoredKey>,
}

#[derive(Default, Serialize, Deserialize)]
struct StoredKey {
    algorithm: String,
    /// The private key. Format 1 had it of old keys too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pem: Option<String>,
    /// The public half of an old key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public: Option<Value>,
    /// The longest lifetime of tokens that it signed (seconds).
    #[serde(default)]
    lifetime: i64,
    /// When an old key goes (seconds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ends: Option<i64>,
}

/// A key that signs no more.
#[derive(Clone, Debug)]
struct Retired {
    algorithm: String,
    public: Value,
    ends: i64,
}

/// One key that signs, and those whose tokens are still out there.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    signing: SigningKey,
    lifetime: i64,
    retired: Vec<Retired>,
}

impl Keys {
    /// The key that signs.
    pub(super) fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// The longest lifetime of tokens that may be out there (seconds).
    pub(super) fn lifetime(&self) -> i64 {
        self.lifetime
    }

    /// The public halves as a key set (RFC 7517 §5), the signing key first.
    pub(super) fn public(&self, now: Timestamp) -> Value {
        let retired = self.published(now).map(|key| key.public.clone());
        json!({ "keys": std::iter::once(self.signing.public()).chain(retired).collect::<Vec<_>>() })
    }

    /// What a rotation answers: ids and ends of all published keys, nothing secret.
    pub(super) fn summary(&self, now: Timestamp) -> Value {
        let retired = self.published(now).map(|key| {
            let ends = Timestamp::from_second(key.ends).unwrap_or(Timestamp::MAX);
            json!({ "key_id": key.public.get("kid"), "algorithm": key.algorithm, "until": ends.to_string() })
        });
        json!({
            "key_id": self.signing.key_id(),
            "algorithm": algorithm_name(self.signing.algorithm()),
            "old": retired.collect::<Vec<_>>(),
        })
    }

    /// The claims of a JWT that one of the published keys signed, with its `typ`.
    pub(super) fn claims(&self, token: &str, now: Timestamp) -> Option<Map<String, Value>> {
        PublicKeys::from_json(&self.public(now))?.claims(token)
    }

    fn published(&self, now: Timestamp) -> impl Iterator<Item = &Retired> {
        self.retired.iter().filter(move |key| key.ends > now.as_second())
    }

    /// The same with another key that signs; refused while too many old ones are still needed.
    fn succeeded_by(&self, signing: SigningKey, lifetime: i64, now: Timestamp) -> Result<Keys, HostFault> {
        let old = Retired {
            algorithm: algorithm_name(self.signing.algorithm()).to_owned(),
            public: self.signing.public(),
            ends: now.as_second().saturating_add(self.lifetime).saturating_add(LEEWAY),
        };
        let retired: Vec<Retired> = std::iter::once(old).chain(self.published(now).cloned()).collect();
        if retired.len() > MOST_RETIRED {
            let text = format!("{MOST_RETIRED} old keys are still needed by tokens; wait until they end");
            return Err(HostFault::new("key", text));
        }
        Ok(Keys { signing, lifetime, retired })
    }
}

/// Where the keys of one server are kept.
pub(super) struct KeyStore<'a> {
    pub(super) item: &'a ItemName,
    pub(super) keep: &'a dyn Keep,
    pub(super) now: Timestamp,
}

impl KeyStore<'_> {
    /// The kept keys; where none of them signs with `wanted`, a new one is made. What has changed is on stable
    /// storage before anything is signed. `lifetime`: of tokens, in seconds.
    pub(super) async fn open(&self, wanted: Algorithm, lifetime: i64) -> Result<Keys, HostFault> {
        let kept = self.keep.get(KeepFamily::ServerKey, self.item.as_str());
        let keys = match kept.map(|bytes| read(&bytes, lifetime, self.now)).transpose()? {
            None => Keys { signing: generate(wanted).await?, lifetime, retired: Vec::new() },
            Some(keys) if keys.signing.algorithm() != wanted => {
                keys.succeeded_by(generate(wanted).await?, lifetime, self.now)?
            }
            Some(keys) if keys.lifetime < lifetime => Keys { lifetime, ..keys },
            Some(keys) => return Ok(keys),
        };
        self.put(&keys).await?;
        Ok(keys)
    }

    /// Another key of the same kind, kept; the caller publishes and uses it from here on. `tell` logs it: before
    /// it is kept, so that no crash leaves a new key of which no event tells.
    pub(super) async fn rotate(
        &self,
        keys: &Keys,
        lifetime: i64,
        tell: impl FnOnce(&Keys),
    ) -> Result<Keys, HostFault> {
        let next = generate(keys.signing.algorithm()).await?;
        let keys = keys.succeeded_by(next, lifetime, self.now)?;
        tell(&keys);
        self.put(&keys).await?;
        Ok(keys)
    }

    async fn put(&self, keys: &Keys) -> Result<(), HostFault> {
        let stored = self.keep.put(KeepFamily::ServerKey, self.item.as_str(), Some(write(keys)?)).await;
        stored.map_err(|error| HostFault::new("store", format!("the signing key could not be kept: {error}")))
    }
}

async fn generate(wanted: Algorithm) -> Result<SigningKey, HostFault> {
    let made = tokio::task::spawn_blocking(move || SigningKey::generate(wanted)).await;
    made.map_err(|_| fault(&KeyError::Cipher))?.map_err(|error| fault(&error))
}

fn fault(error: &KeyError) -> HostFault {
    HostFault::new("key", format!("the signing key: {error}"))
}

/// A kept key that cannot be read is never replaced silently: tokens out there were signed with it.
fn read(bytes: &[u8], lifetime: i64, now: Timestamp) -> Result<Keys, HostFault> {
    let damaged = || HostFault::new("key", "the kept signing keys cannot be read");
    let stored: Stored = serde_json::from_slice(bytes).map_err(|_| damaged())?;
    if stored.format > FORMAT {
        return Err(HostFault::new("key", "the kept signing keys are of a newer version of Septet"));
    }
    let open = |key: &StoredKey| {
        let pem = key.pem.as_deref().ok_or_else(damaged)?;
        SigningKey::from_pem(pem, algorithm(&key.algorithm)).map_err(|_| damaged())
    };
    let mut keys = stored.keys.into_iter();
    let first = keys.next().ok_or_else(damaged)?;
    let mut retired = Vec::new();
    for key in keys {
        let public = match &key.public {
            Some(public) => public.clone(),
            None => open(&key)?.public(),
        };
        // Format 1 did not say when; the longest that it can be needed is counted from now.
        let ends = key.ends.unwrap_or(now.as_second().saturating_add(lifetime).saturating_add(LEEWAY));
        retired.push(Retired { algorithm: key.algorithm, public, ends });
    }
    // Format 1 did not note the lifetime: there was no other than the configured one.
    let longest = if first.lifetime > 0 { first.lifetime } else { lifetime };
    Ok(Keys { signing: open(&first)?, lifetime: longest, retired })
}

fn write(keys: &Keys) -> Result<Bytes, HostFault> {
    let signing = StoredKey {
        algorithm: algorithm_name(keys.signing.algorithm()).to_owned(),
        pem: Some(keys.signing.pem().to_owned()),
        lifetime: keys.lifetime,
        ..StoredKey::default()
    };
    let retired = keys.retired.iter().map(|key| StoredKey {
        algorithm: key.algorithm.clone(),
        public: Some(key.public.clone()),
        ends: Some(key.ends),
        ..StoredKey::default()
    });
    let stored = Stored { format: FORMAT, keys: std::iter::once(signing).chain(retired).collect() };
    let bytes = serde_json::to_vec(&stored).map_err(|_| fault(&KeyError::Cipher))?;
    Ok(Bytes::from(bytes))
}
