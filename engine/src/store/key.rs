//! The store's key. It comes from outside (`store.key` in the production file) or from the file `store.key`
//! beside the journal, which the first start makes. An existing store never gets a new key by itself.
//!
//! To replace a key: put the new one where the old one was, and name the old one in `store.old_keys`. What
//! the old key sealed is opened with it; everything new is sealed with the new one.

use std::path::Path;

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::open::OpenError;
use crate::config::settings::Secret;
use crate::files::{self, Files};
use crate::vault::{Vault, VaultError, parse_key};

/// The file's name.
pub(super) const NAME: &str = "store.key";

/// The vault of a store. `existing`: there is a journal already.
pub(super) fn vault(
    files: &dyn Files,
    folder: &Path,
    given: Option<&Secret>,
    old: &[Secret],
    existing: bool,
) -> Result<Vault, OpenError> {
    let old =
        old.iter().map(|key| parse_key(key.reveal()).ok_or(OpenError::BadKey("a key of store.old_keys")));
    let old = old.collect::<Result<Vec<_>, _>>()?;
    if let Some(given) = given {
        let key = parse_key(given.reveal()).ok_or(OpenError::BadKey("the setting store.key"))?;
        return Ok(Vault::with_old(&key, &old)?);
    }
    let path = folder.join(NAME);
    match files::read(files, &path) {
        Ok(content) => {
            let content = Zeroizing::new(content);
            let text = std::str::from_utf8(&content).ok();
            let key = text.and_then(parse_key).ok_or(OpenError::BadKey("the file store.key"))?;
            if !existing {
                // Whoever wrote it may have crashed before it was durable, and a journal is about to need it.
                files::write_new(files, folder, NAME, &content)
                    .map_err(|error| OpenError::io(&path, error))?;
            }
            Ok(Vault::with_old(&key, &old)?)
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(OpenError::io(&path, error)),
        Err(_) if existing => Err(OpenError::KeyMissing(path)),
        Err(_) => {
            let mut key = Zeroizing::new([0u8; 32]);
            rand::fill(&mut *key).map_err(|_| VaultError::Cipher)?;
            let hex: Zeroizing<String> = Zeroizing::new(
                key.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect(),
            );
            files::write_new(files, folder, NAME, hex.as_bytes())
                .map_err(|error| OpenError::io(&path, error))?;
            tracing::warn!(
                file = %path.display(),
                "made a new store key; it protects secrets, tokens and state against whoever gets a copy of the \
                 journal without this file, not against whoever can read this folder; back it up apart"
            );
            Ok(Vault::with_old(&key, &old)?)
        }
    }
}

/// A name for a store, or for a copy of one: idempotency keys begin with it.
pub(super) fn new_epoch() -> Result<u64, VaultError> {
    let mut random = [0u8; 8];
    rand::fill(&mut random).map_err(|_| VaultError::Cipher)?;
    Ok(u64::from_le_bytes(random))
}
