//! Encryption at rest: secrets of records, tokens and process state are sealed with AES-256-GCM
//! (NIST SP 800-38D) before they reach the store, and opened only where they leave for a peer.
//!
//! A sealed value is `key id (4 bytes) ‖ nonce (12 bytes) ‖ ciphertext and tag`; inside JSON it is the
//! object `{ "$sealed": "<base64url>" }`. Sealing the same clear text twice gives different bytes.
//!
//! A vault seals with one key and opens with that one and the old ones it was given: what a key that was
//! replaced has sealed stays readable, and nothing has to be sealed again.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
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

/// Seals with one key, opens with that and older ones. Cheap to clone; `Debug` shows key ids only.
#[derive(Clone)]
pub struct Vault(Arc<Keys>);

struct Keys {
    current: Key,
    old: Vec<Key>,
}

struct Key {
    id: u32,
    key: LessSafeKey,
    derive: hmac::Key,
}

impl Key {
    fn new(key: &[u8; 32]) -> Result<Self, VaultError> {
        let hash = digest::digest(&digest::SHA256, key);
        let id = hash.as_ref().first_chunk::<4>().map(|b| u32::from_be_bytes(*b)).unwrap_or_default();
        let derive = hmac::Key::new(hmac::HMAC_SHA256, key);
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| VaultError::Cipher)?;
        Ok(Key { id, key: LessSafeKey::new(key), derive })
    }
}

/// A key as people write it: 64 hexadecimal digits, or base64 of 32 bytes.
pub fn parse_key(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let text = text.trim();
    let mut key = Zeroizing::new([0u8; 32]);
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        return Some(key);
    }
    let engines = [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD];
    let decoded = Zeroizing::new(engines.into_iter().find_map(|engine| engine.decode(text).ok())?);
    key.copy_from_slice(decoded.get(..).filter(|bytes| bytes.len() == 32)?);
    Some(key)
}

impl Vault {
    /// A vault over a 256-bit key. Its key id is the first four bytes of the key's SHA-256.
    pub fn new(key: &[u8; 32]) -> Result<Self, VaultError> {
        Vault::with_old(key, &[])
    }

    /// A vault that seals with `key`, and also opens what the old keys sealed.
    pub fn with_old(key: &[u8; 32], old: &[Zeroizing<[u8; 32]>]) -> Result<Self, VaultError> {
        let old = old.iter().map(|key| Key::new(key)).collect::<Result<_, _>>()?;
        Ok(Vault(Arc::new(Keys { current: Key::new(key)?, old })))
    }

    /// A vault with a fresh random key, for memory stores.
    pub fn ephemeral() -> Result<Self, VaultError> {
        let mut key = Zeroizing::new([0u8; 32]);
        rand::fill(&mut *key).map_err(|_| VaultError::Cipher)?;
        Vault::new(&key)
    }

    /// The id that values sealed now name.
    pub fn key_id(&self) -> u32 {
        self.0.current.id
    }

    /// Whether it opens what the key with this id sealed.
    pub fn holds(&self, id: u32) -> bool {
        self.key(id).is_some()
    }

    fn key(&self, id: u32) -> Option<&Key> {
        std::iter::once(&self.0.current).chain(&self.0.old).find(|key| key.id == id)
    }

    /// 128 bits for one purpose, the same for everybody who holds the key and of no use for guessing it.
    pub fn derive(&self, purpose: &str) -> [u8; 16] {
        let derived = hmac::sign(&self.0.current.derive, purpose.as_bytes());
        derived.as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// Seals `clear`.
    pub fn seal(&self, clear: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0u8; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| VaultError::Cipher)?;
        let mut out = Vec::with_capacity(4 + NONCE_LEN + clear.len() + 16);
        out.extend_from_slice(&self.key_id().to_be_bytes());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(clear);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let text = out.get_mut(4 + NONCE_LEN..).unwrap_or_default();
        let tag = self.0.current.key.seal_in_place_separate_tag(nonce, Aad::empty(), text);
        out.extend_from_slice(tag.map_err(|_| VaultError::Cipher)?.as_ref());
        Ok(out)
    }

    /// Opens what [`Vault::seal`] made.
    pub fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let (id, rest) = sealed.split_first_chunk::<4>().ok_or(VaultError::Damaged)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(VaultError::Damaged)?;
        let found = u32::from_be_bytes(*id);
        let key = self.key(found).ok_or(VaultError::WrongKey { found, expected: self.key_id() })?;
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.key.open_in_place(nonce, Aad::empty(), &mut text);
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
        write!(f, "Vault(key {:08x})", self.key_id())
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

    #[test]
    fn a_new_key_seals_and_the_old_ones_still_open() {
        let (old, new) = (Zeroizing::new([1; 32]), [2; 32]);
        let before = Vault::new(&old).unwrap();
        let after = Vault::with_old(&new, std::slice::from_ref(&old)).unwrap();
        assert!(after.holds(before.key_id()) && after.holds(after.key_id()) && !before.holds(after.key_id()));
        assert_eq!(after.open(&before.seal(b"x").unwrap()).unwrap()[..], *b"x");
        let sealed = after.seal(b"y").unwrap();
        assert_eq!(Vault::new(&new).unwrap().open(&sealed).unwrap()[..], *b"y");
        assert!(before.open(&sealed).is_err());
    }

    #[test]
    fn keys_are_hex_or_base64_of_32_bytes() {
        let hex = "00".repeat(31) + "ff";
        assert_eq!(parse_key(&hex).unwrap()[31], 0xff);
        assert_eq!(parse_key(&format!("{}=\n", "A".repeat(43))).unwrap()[..], [0; 32]);
        assert_eq!(parse_key(&"A".repeat(43)).unwrap()[..], [0; 32]);
        for bad in ["", "secret", &"0".repeat(63), &"A".repeat(44), &"zz".repeat(32)] {
            assert!(parse_key(bad).is_none(), "{bad}");
        }
    }
}
