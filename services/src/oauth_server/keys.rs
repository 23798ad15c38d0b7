//! The server's signing keys: made at first start, kept over restarts, sealed at rest by the engine. The first
//! signs; the others are published until the tokens they signed have ended.

use bytes::Bytes;
use septet_engine::host::{HostFault, Keep, KeepFamily};
use septet_engine::id::ItemName;
use septet_oauth::keys::{Algorithm, KeyError, SigningKey, algorithm, algorithm_name};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Keys kept, the signing one included.
const KEPT: usize = 3;
const FORMAT: u32 = 1;

/// The stored form: newest first.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    algorithm: String,
    pem: String,
}

/// At least one key.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    signing: SigningKey,
    older: Vec<SigningKey>,
}

impl Keys {
    /// The key that signs.
    pub(super) fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// The public halves, as a key set (RFC 7517 §5).
    pub(super) fn public(&self) -> Value {
        let all = std::iter::once(&self.signing).chain(&self.older);
        json!({ "keys": all.map(SigningKey::public).collect::<Vec<_>>() })
    }
}

/// The kept keys; where none of them signs with `wanted`, a new one is made and kept before anything is signed.
pub(super) async fn open(wanted: Algorithm, item: &ItemName, keep: &dyn Keep) -> Result<Keys, HostFault> {
    let kept = keep.get(KeepFamily::ServerKey, item.as_str());
    let mut keys = match &kept {
        Some(bytes) => read(bytes)?,
        None => Vec::new(),
    };
    if keys.first().is_none_or(|key| key.algorithm() != wanted) {
        let made = tokio::task::spawn_blocking(move || SigningKey::generate(wanted)).await;
        let made = made.map_err(|_| fault(&KeyError::Cipher))?.map_err(|error| fault(&error))?;
        keys.insert(0, made);
        keys.truncate(KEPT);
        let stored = write(&keys)?;
        keep.put(KeepFamily::ServerKey, item.as_str(), Some(stored)).await.map_err(|error| {
            HostFault::new("store", format!("the signing key could not be kept: {error}"))
        })?;
    }
    let mut keys = keys.into_iter();
    let signing = keys.next().ok_or_else(|| fault(&KeyError::NoKey))?;
    Ok(Keys { signing, older: keys.collect() })
}

fn fault(error: &KeyError) -> HostFault {
    HostFault::new("key", format!("the signing key: {error}"))
}

/// A kept key that cannot be read is never replaced silently: tokens out there were signed with it.
fn read(bytes: &[u8]) -> Result<Vec<SigningKey>, HostFault> {
    let damaged = || HostFault::new("key", "the kept signing keys cannot be read");
    let stored: Stored = serde_json::from_slice(bytes).map_err(|_| damaged())?;
    if stored.format != FORMAT {
        return Err(HostFault::new("key", "the kept signing keys are of a newer version of Septet"));
    }
    let open = |key: &StoredKey| SigningKey::from_pem(&key.pem, algorithm(&key.algorithm));
    stored.keys.iter().map(|key| open(key).map_err(|_| damaged())).collect()
}

fn write(keys: &[SigningKey]) -> Result<Bytes, HostFault> {
    let key = |key: &SigningKey| StoredKey {
        algorithm: algorithm_name(key.algorithm()).to_owned(),
        pem: key.pem().to_owned(),
    };
    let stored = Stored { format: FORMAT, keys: keys.iter().map(key).collect() };
    let bytes = serde_json::to_vec(&stored).map_err(|_| fault(&KeyError::Cipher))?;
    Ok(Bytes::from(bytes))
}
