//! The request that a sign-in page carries: signed, so that the page can hold it and the server need not. Anybody
//! may open sign-in pages; they cost no memory, and survive a restart.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::grants::{Asked, PAGES};

/// Longer ones are none of ours.
const LONGEST: usize = 48 * 1024;

/// What is signed. The item's name keeps the forms of two servers apart.
#[derive(Serialize, Deserialize)]
struct Carried {
    item: String,
    ends: i64,
    asked: Asked,
}

/// Signs and reads the forms of one server.
pub(super) struct Forms {
    item: String,
    key: hmac::Key,
}

impl Forms {
    /// Over a kept random key.
    pub(super) fn new(item: &str, key: &[u8]) -> Self {
        Forms { item: item.to_owned(), key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// A request as text for a hidden field.
    pub(super) fn write(&self, asked: Asked, now: i64) -> Option<String> {
        let carried = Carried { item: self.item.clone(), ends: now.saturating_add(PAGES), asked };
        let text = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&carried).ok()?);
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&self.key, text.as_bytes()));
        Some(format!("{text}.{signature}"))
    }

    /// The request of a hidden field, where it is ours and has not ended.
    pub(super) fn read(&self, field: &str, now: i64) -> Option<Asked> {
        let (text, signature) = field.split_once('.').filter(|_| field.len() <= LONGEST)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        hmac::verify(&self.key, text.as_bytes(), &signature).ok()?;
        let carried: Carried = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        (carried.item == self.item && carried.ends > now).then_some(carried.asked)
    }
}
