//! Encryption at rest: secrets of records, tokens and process state are sealed with AES-256-GCM
//! (NIST SP 800-38D) before they reach the store, and opened only where they leave for a peer.
//!
//! A sealed value is `key id (4 bytes) ‖ nonce (12 bytes) ‖ ciphertext and tag`; inside JSON it is the
//! object `{ "$sealed": "<base64url>" }`. Sealing the same clear text twice gives different bytes.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

/// The key of a sealed value in JSON.
pub const SEALED: &str = "$sealed";

/// What a sealed value is shown as.
pub const MASK: &str = "•••";

/// Why a value could not be sealed or opened.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum VaultError {
    /// Sealed with a key this vault does not hold.
    #[error("a sealed value names key {found:08x}, but the store's key is {expected:08x}")]
    WrongKey {
        /// The key id in the value.
        found: u32,
        /// The key id of this vault.
        expected: u32,
    },
    /// Not a sealed value, or altered.
    #[error("a sealed value is damaged")]
    Damaged,
    /// The system's random source or the cipher refused.
    #[error("the cipher is not available")]
    Cipher,
}

/// Seals and opens with one key. Cheap to clone; `Debug` shows the key id only.
#[derive(Clone)]
pub struct Vault(Arc<Key>);

struct Key {
    id: u32,
    key: LessSafeKey,
}

impl Vault {
    /// A vault over a 256-bit key. Its key id is the first four bytes of the key's SHA-256.
    pub fn new(key: &[u8; 32]) -> Result<Self, VaultError> {
        let hash = digest::digest(&digest::SHA256, key);
        let id = hash.as_ref().first_chunk::<4>().map(|b| u32::from_be_bytes(*b)).unwrap_or_default();
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| VaultError::Cipher)?;
        Ok(Vault(Arc::new(Key { id, key: LessSafeKey::new(key) })))
    }

    /// A vault with a fresh random key, for memory stores.
    pub fn ephemeral() -> Result<Self, VaultError> {
        let mut key = Zeroizing::new([0u8; 32]);
        rand::fill(&mut *key).map_err(|_| VaultError::Cipher)?;
        Vault::new(&key)
    }

    /// The id that sealed values name.
    pub fn key_id(&self) -> u32 {
        self.0.id
    }

    /// Seals `clear`.
    pub fn seal(&self, clear: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0u8; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| VaultError::Cipher)?;
        let mut out = Vec::with_capacity(4 + NONCE_LEN + clear.len() + 16);
        out.extend_from_slice(&self.0.id.to_be_bytes());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(clear);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let text = out.get_mut(4 + NONCE_LEN..).unwrap_or_default();
        let tag = self.0.key.seal_in_place_separate_tag(nonce, Aad::empty(), text);
        out.extend_from_slice(tag.map_err(|_| VaultError::Cipher)?.as_ref());
        Ok(out)
    }

    /// Opens what [`Vault::seal`] made.
    pub fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let (id, rest) = sealed.split_first_chunk::<4>().ok_or(VaultError::Damaged)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(VaultError::Damaged)?;
        let found = u32::from_be_bytes(*id);
        if found != self.0.id {
            return Err(VaultError::WrongKey { found, expected: self.0.id });
        }
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.0.key.open_in_place(nonce, Aad::empty(), &mut text);
        let length = opened.map_err(|_| VaultError::Damaged)?.len();
        text.truncate(length);
        Ok(text)
    }

    /// Seals a text into the JSON form of a sealed value.
    pub fn seal_json(&self, clear: &str) -> Result<serde_json::Value, VaultError> {
        Ok(serde_json::json!({ SEALED: URL_SAFE_NO_PAD.encode(self.seal(clear.as_bytes())?) }))
    }

    /// Opens a JSON sealed value; `None` when `value` is not one.
    pub fn open_json(&self, value: &serde_json::Value) -> Option<Result<Zeroizing<String>, VaultError>> {
        let sealed = sealed_text(value)?;
        let open = || {
            let raw = URL_SAFE_NO_PAD.decode(sealed).map_err(|_| VaultError::Damaged)?;
            let clear = self.open(&raw)?;
            let text = String::from_utf8(clear.to_vec()).map_err(|_| VaultError::Damaged)?;
            Ok(Zeroizing::new(text))
        };
        Some(open())
    }
}

/// The base64 text of a JSON sealed value, when `value` is one.
pub fn sealed_text(value: &serde_json::Value) -> Option<&str> {
    let object = value.as_object()?;
    if object.len() != 1 {
        return None;
    }
    object.get(SEALED)?.as_str()
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault(key {:08x})", self.0.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_again_and_is_not_readable_in_between() {
        let vault = Vault::ephemeral().unwrap();
        let value = vault.seal_json("s3cret-value").unwrap();
        assert!(!value.to_string().contains("s3cret-value"));
        assert_eq!(*vault.open_json(&value).unwrap().unwrap(), "s3cret-value");
    }

    #[test]
    fn another_key_is_named_and_an_altered_value_is_refused() {
        let vault = Vault::ephemeral().unwrap();
        let other = Vault::ephemeral().unwrap();
        let mut sealed = vault.seal(b"x").unwrap();
        assert!(matches!(other.open(&sealed), Err(VaultError::WrongKey { .. })));
        *sealed.last_mut().unwrap() ^= 1;
        assert_eq!(vault.open(&sealed), Err(VaultError::Damaged));
        assert_eq!(vault.open(b"short"), Err(VaultError::Damaged));
    }
}
