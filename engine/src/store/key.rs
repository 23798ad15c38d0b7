//! The store's key. It comes from outside (`store.key` in the production file) or from the file `store.key`
//! beside the journal, which the first start makes. An existing store never gets a new key.

use std::path::Path;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::open::OpenError;
use crate::config::settings::Secret;
use crate::files::{self, Files};
use crate::vault::{Vault, VaultError};

/// The file's name.
const NAME: &str = "store.key";

/// The vault of a store. `existing`: there is a journal already.
pub(super) fn vault(
    files: &dyn Files,
    folder: &Path,
    given: Option<&Secret>,
    existing: bool,
) -> Result<Vault, OpenError> {
    if let Some(given) = given {
        let key = parse(given.reveal()).ok_or(OpenError::BadKey("the setting store.key"))?;
        return Ok(Vault::new(&key)?);
    }
    let path = folder.join(NAME);
    match files::read(files, &path) {
        Ok(content) => {
            let content = Zeroizing::new(content);
            let text = std::str::from_utf8(&content).ok();
            let key = text.and_then(parse).ok_or(OpenError::BadKey("the file store.key"))?;
            if !existing {
                // Whoever wrote it may have crashed before it was durable, and a journal is about to need it.
                files::write_new(files, folder, NAME, &content)
                    .map_err(|error| OpenError::io(&path, error))?;
            }
            Ok(Vault::new(&key)?)
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
            Ok(Vault::new(&key)?)
        }
    }
}

/// 32 bytes as 64 hex digits or base64.
fn parse(text: &str) -> Option<Zeroizing<[u8; 32]>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hex_or_base64_of_32_bytes() {
        let hex = "00".repeat(31) + "ff";
        assert_eq!(parse(&hex).unwrap()[31], 0xff);
        assert_eq!(parse(&format!("{}=\n", "A".repeat(43))).unwrap()[..], [0; 32]);
        assert_eq!(parse(&"A".repeat(43)).unwrap()[..], [0; 32]);
        for bad in ["", "secret", &"0".repeat(63), &"A".repeat(44), &"zz".repeat(32)] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
