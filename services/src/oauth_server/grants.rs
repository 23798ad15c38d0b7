//! What people have allowed: requests on their way through the pages, authorization codes, and families of
//! refresh tokens. Values in, values out; the caller brings the time and makes refresh tokens durable.
//!
//! A refresh token is `family.secret`. Each use gives a new secret; an old one that comes again means that it
//! was copied, and ends the whole family (RFC 6749 §10.4, RFC 9700 §4.14.2). Requests and codes live in memory
//! only: a person whose page is open during a restart starts again.

use std::collections::HashMap;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Requests and codes held at most; more are refused until old ones end.
const AT_MOST: usize = 10_000;
/// Ended families taken out at a time.
const FORGOTTEN: usize = 10;
/// How long a person may take over the pages (seconds).
const PAGES: i64 = 600;

/// Random text that cannot be guessed: 256 bits.
pub(super) fn secret() -> Option<String> {
    let mut bytes = [0u8; 32];
    rand::fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

/// SHA-256 in base64url: how secrets are kept, and what an S256 challenge is (RFC 7636 §4.2).
pub(super) fn hashed(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes()))
}

/// Whether two texts are the same, in constant time.
pub(super) fn same(one: &str, other: &str) -> bool {
    verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}

/// An authorization request that was found to be in order.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) client: String,
    pub(super) redirect_uri: String,
    /// It was in the request, so that it must be in the token request too (RFC 6749 §4.1.3).
    pub(super) redirect_uri_given: bool,
    pub(super) scopes: Vec<String>,
    pub(super) audiences: Vec<String>,
    pub(super) state: Option<String>,
    pub(super) nonce: Option<String>,
    /// The S256 challenge.
    pub(super) challenge: Option<String>,
}

/// What somebody allowed.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Allowed {
    pub(super) client: String,
    pub(super) user: String,
    pub(super) scopes: Vec<String>,
    pub(super) audiences: Vec<String>,
    /// When the person signed in (seconds).
    pub(super) signed_in: i64,
}

/// A request on its way through the pages; named by a secret that the page holds.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) asked: Asked,
    /// Who has signed in, and when (seconds).
    pub(super) user: Option<(String, i64)>,
    ends: i64,
}

/// A code, until it ends. A used one stays, so that a second use is seen.
struct Code {
    asked: Asked,
    allowed: Allowed,
    ends: i64,
    /// The family of refresh tokens it gave, once used.
    used: Option<Option<String>>,
}

/// The refresh tokens that came from one code, of which one is good.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Family {
    format: u32,
    pub(super) allowed: Allowed,
    /// Hash of the good one's secret.
    hash: String,
    ends: i64,
}

/// What became of a code that somebody showed.
pub(super) enum Redeemed {
    Good {
        nonce: Option<String>,
        allowed: Allowed,
    },
    Bad,
    /// It was used before: the family it gave must end (RFC 6749 §4.1.2).
    Again {
        family: Option<String>,
    },
}

/// What became of a refresh token that somebody showed.
pub(super) enum Refreshed {
    Good {
        allowed: Allowed,
        token: String,
        family: String,
    },
    Bad,
    /// It was used before: its family has ended.
    Again {
        family: String,
    },
}

/// Everything of one server.
#[derive(Default)]
pub(super) struct Grants {
    pending: HashMap<String, Pending>,
    codes: HashMap<String, Code>,
    families: HashMap<String, Family>,
}

impl Grants {
    /// Takes a request to the pages.
    pub(super) fn begin(&mut self, asked: Asked, user: Option<(String, i64)>, now: i64) -> Option<String> {
        if self.pending.len() >= AT_MOST {
            self.pending.retain(|_, pending| pending.ends > now);
        }
        let id = secret().filter(|_| self.pending.len() < AT_MOST)?;
        self.pending.insert(id.clone(), Pending { asked, user, ends: now.saturating_add(PAGES) });
        Some(id)
    }

    /// A request that is still on its way.
    pub(super) fn pending(&self, id: &str, now: i64) -> Option<Pending> {
        self.pending.get(id).filter(|pending| pending.ends > now).cloned()
    }

    /// Ends a request.
    pub(super) fn finish(&mut self, id: &str) {
        self.pending.remove(id);
    }

    /// A code for what was allowed.
    pub(super) fn code(&mut self, asked: Asked, allowed: Allowed, now: i64, lifetime: i64) -> Option<String> {
        if self.codes.len() >= AT_MOST {
            self.codes.retain(|_, code| code.ends > now);
        }
        let code = secret().filter(|_| self.codes.len() < AT_MOST)?;
        let ends = now.saturating_add(lifetime);
        self.codes.insert(hashed(&code), Code { asked, allowed, ends, used: None });
        Some(code)
    }

    /// Takes a code, once. `fits` judges what the token request shows beside it; a request that does not fit
    /// uses the code up, for somebody who should not have it did have it.
    pub(super) fn redeem(&mut self, code: &str, now: i64, fits: impl Fn(&Asked) -> bool) -> Redeemed {
        let Some(found) = self.codes.get_mut(&hashed(code)).filter(|code| code.ends > now) else {
            return Redeemed::Bad;
        };
        if let Some(family) = found.used.clone() {
            return Redeemed::Again { family };
        }
        found.used = Some(None);
        if !fits(&found.asked) {
            return Redeemed::Bad;
        }
        Redeemed::Good { nonce: found.asked.nonce.clone(), allowed: found.allowed.clone() }
    }

    /// Notes which family a code gave.
    pub(super) fn gave(&mut self, code: &str, family: &str) {
        if let Some(found) = self.codes.get_mut(&hashed(code)) {
            found.used = Some(Some(family.to_owned()));
        }
    }

    /// A first refresh token: the token and its family.
    pub(super) fn found_family(
        &mut self,
        allowed: Allowed,
        now: i64,
        lifetime: i64,
    ) -> Option<(String, String)> {
        let (family, secret) = (secret()?, secret()?);
        let ends = now.saturating_add(lifetime);
        let new = Family { format: 1, allowed, hash: hashed(&secret), ends };
        self.families.insert(family.clone(), new);
        Some((format!("{family}.{secret}"), family))
    }

    /// Takes a refresh token and gives the next one, in the same family.
    /// `fits` judges the request first: one that does not fit leaves the token as it is.
    pub(super) fn refresh(
        &mut self,
        token: &str,
        client: &str,
        now: i64,
        lifetime: i64,
        fits: impl FnOnce(&Allowed) -> bool,
    ) -> Refreshed {
        let Some((id, shown)) = token.split_once('.') else { return Refreshed::Bad };
        let family = self.families.get_mut(id);
        let Some(family) = family.filter(|family| family.ends > now && family.allowed.client == client)
        else {
            return Refreshed::Bad;
        };
        if !same(&hashed(shown), &family.hash) {
            self.families.remove(id);
            return Refreshed::Again { family: id.to_owned() };
        }
        let Some(next) = fits(&family.allowed).then(secret).flatten() else { return Refreshed::Bad };
        family.hash = hashed(&next);
        family.ends = now.saturating_add(lifetime);
        let allowed = family.allowed.clone();
        Refreshed::Good { allowed, token: format!("{id}.{next}"), family: id.to_owned() }
    }

    /// Ends a family.
    pub(super) fn revoke(&mut self, family: &str) {
        self.families.remove(family);
    }

    /// A few families that have ended, taken out.
    pub(super) fn ended(&mut self, now: i64) -> Vec<String> {
        let ended = self.families.iter().filter(|(_, family)| family.ends <= now);
        let ended: Vec<String> = ended.map(|(id, _)| id.clone()).take(FORGOTTEN).collect();
        for id in &ended {
            self.families.remove(id);
        }
        ended
    }

    /// A family as it is kept; `None` once it has ended.
    pub(super) fn kept(&self, family: &str) -> Option<Vec<u8>> {
        serde_json::to_vec(self.families.get(family)?).ok()
    }

    /// Takes a kept family in again, at start.
    pub(super) fn restore(&mut self, id: &str, bytes: &[u8], now: Timestamp) {
        let family = serde_json::from_slice::<Family>(bytes).ok();
        if let Some(family) = family.filter(|family| family.format == 1 && family.ends > now.as_second()) {
            self.families.insert(id.to_owned(), family);
        }
    }
}
