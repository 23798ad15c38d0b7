//! What people have allowed: requests between sign-in and consent, authorization codes, and families of refresh
//! tokens. Values in, values out; the caller brings the time and makes codes and families durable.
//!
//! Whatever comes of one code is one *grant*. Its access tokens carry a tag made of its id, so that ending the
//! grant ends them too (see [`super::inspect`]). A refresh token is `grant.secret`. Each use gives a new secret;
//! an old one that comes again means that it was copied, and ends the whole family (RFC 6749 §10.4, RFC 9700
//! §4.14.2). What is between sign-in and consent lives in memory only: a person whose consent page is open
//! during a restart starts again.

use std::collections::HashMap;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::words::Language;

/// Consent pages and codes held at most; more are refused until old ones end.
const AT_MOST: usize = 10_000;
/// Of one person: consent pages that are open, and families with one client. The oldest make room.
const OF_ONE: usize = 50;
/// Ended codes and families taken out at a time.
const FORGOTTEN: usize = 10;
/// How long a person may take over each page (seconds).
pub(super) const PAGES: i64 = 600;
/// The stored form of codes and families.
const FORMAT: u32 = 1;

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

/// What access tokens carry of their grant: enough to know it again, nothing to guess it from.
pub(super) fn tag(grant: &str) -> String {
    let mut tag = hashed(grant);
    tag.truncate(22);
    tag
}

/// An authorization request that was found to be in order.
#[derive(Clone, Serialize, Deserialize)]
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
    /// Of the pages.
    pub(super) language: Language,
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

/// A request whose person has signed in; named by a secret that only the consent page holds.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) asked: Asked,
    pub(super) user: String,
    /// When the person signed in (seconds).
    pub(super) signed_in: i64,
}

impl Pending {
    fn ends(&self) -> i64 {
        self.signed_in.saturating_add(PAGES)
    }
}

/// A code, until it ends. A used one stays, so that a second use is seen.
#[derive(Serialize, Deserialize)]
struct Code {
    format: u32,
    asked: Asked,
    allowed: Allowed,
    ends: i64,
    /// The grant it gave, once used.
    used: Option<String>,
}

/// The refresh tokens that came from one code, of which one is good.
#[derive(Clone, Serialize, Deserialize)]
struct Family {
    format: u32,
    allowed: Allowed,
    /// Hash of the good one's secret.
    hash: String,
    ends: i64,
}

/// What became of a code that somebody showed.
pub(super) enum Redeemed {
    Good {
        grant: String,
        nonce: Option<String>,
        allowed: Allowed,
    },
    /// There is no such code.
    Unknown,
    /// There is, but the request does not fit it; it is used up.
    Misfit,
    /// It was used before: the grant it gave must end (RFC 6749 §4.1.2).
    Again {
        grant: String,
    },
}

/// What became of a refresh token that somebody showed.
pub(super) enum Refreshed {
    Good {
        allowed: Allowed,
        token: String,
        grant: String,
    },
    Bad,
    /// It was used before: its grant must end.
    Again {
        grant: String,
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
    /// Takes a request to the consent page, under a name that only that page knows.
    pub(super) fn begin(&mut self, asked: Asked, user: &str, now: i64) -> Option<String> {
        self.pending.retain(|_, pending| pending.ends() > now);
        let own = self.pending.iter().filter(|(_, pending)| pending.user == user);
        let own: Vec<(&String, i64)> = own.map(|(id, pending)| (id, pending.signed_in)).collect();
        if own.len() >= OF_ONE
            && let Some((oldest, _)) = own.into_iter().min_by_key(|(_, signed_in)| *signed_in)
        {
            let oldest = oldest.clone();
            self.pending.remove(&oldest);
        }
        let id = secret().filter(|_| self.pending.len() < AT_MOST)?;
        self.pending.insert(id.clone(), Pending { asked, user: user.to_owned(), signed_in: now });
        Some(id)
    }

    /// Ends the wait for consent: the request, once.
    pub(super) fn finish(&mut self, id: &str, now: i64) -> Option<Pending> {
        self.pending.remove(id).filter(|pending| pending.ends() > now)
    }

    /// A code for what was allowed.
    pub(super) fn code(&mut self, asked: Asked, allowed: Allowed, now: i64, lifetime: i64) -> Option<String> {
        let code = secret().filter(|_| self.codes.len() < AT_MOST)?;
        let ends = now.saturating_add(lifetime);
        self.codes.insert(hashed(&code), Code { format: FORMAT, asked, allowed, ends, used: None });
        Some(code)
    }

    /// Takes a code, once. `fits` judges what the token request shows beside it; a request that does not fit
    /// uses the code up, for somebody who should not have it did have it.
    pub(super) fn redeem(&mut self, code: &str, now: i64, fits: impl Fn(&Asked) -> bool) -> Redeemed {
        let Some(found) = self.codes.get_mut(&hashed(code)).filter(|code| code.ends > now) else {
            return Redeemed::Unknown;
        };
        if let Some(grant) = found.used.clone() {
            return Redeemed::Again { grant };
        }
        let Some(grant) = secret() else { return Redeemed::Unknown };
        found.used = Some(grant.clone());
        if !fits(&found.asked) {
            return Redeemed::Misfit;
        }
        Redeemed::Good { grant, nonce: found.asked.nonce.clone(), allowed: found.allowed.clone() }
    }

    /// The first refresh token of a grant, and the family that had to make room for it.
    pub(super) fn found_family(
        &mut self,
        grant: &str,
        allowed: Allowed,
        now: i64,
        lifetime: i64,
    ) -> Option<(String, Option<String>)> {
        let secret = secret()?;
        let same =
            |family: &Family| family.allowed.user == allowed.user && family.allowed.client == allowed.client;
        let own: Vec<_> = self.families.iter().filter(|(_, family)| same(family)).collect();
        let crowded = own.len() >= OF_ONE;
        let oldest = own.into_iter().min_by_key(|(_, family)| family.ends).map(|(id, _)| id.clone());
        let dropped = oldest.filter(|_| crowded);
        if let Some(dropped) = &dropped {
            self.families.remove(dropped);
        }
        let ends = now.saturating_add(lifetime);
        let new = Family { format: FORMAT, allowed, hash: hashed(&secret), ends };
        self.families.insert(grant.to_owned(), new);
        Some((format!("{grant}.{secret}"), dropped))
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
        let Some((grant, shown)) = token.split_once('.') else { return Refreshed::Bad };
        let family = self.families.get_mut(grant);
        let Some(family) = family.filter(|family| family.ends > now && family.allowed.client == client)
        else {
            return Refreshed::Bad;
        };
        if !same(&hashed(shown), &family.hash) {
            return Refreshed::Again { grant: grant.to_owned() };
        }
        let Some(next) = fits(&family.allowed).then(secret).flatten() else { return Refreshed::Bad };
        family.hash = hashed(&next);
        family.ends = now.saturating_add(lifetime);
        let allowed = family.allowed.clone();
        Refreshed::Good { allowed, token: format!("{grant}.{next}"), grant: grant.to_owned() }
    }

    /// The grant of a refresh token, with what was allowed and when it ends, where the family is alive; and
    /// whether the token is the good one of it.
    pub(super) fn family_of(&self, token: &str, now: i64) -> Option<(&str, &Allowed, i64, bool)> {
        let (grant, shown) = token.split_once('.')?;
        let (grant, family) = self.families.get_key_value(grant)?;
        let good = same(&hashed(shown), &family.hash);
        (family.ends > now).then_some((grant.as_str(), &family.allowed, family.ends, good))
    }

    /// Ends the family of a grant.
    pub(super) fn revoke(&mut self, grant: &str) {
        self.families.remove(grant);
    }

    /// A few codes and families that have ended, taken out.
    pub(super) fn ended(&mut self, now: i64) -> (Vec<String>, Vec<String>) {
        let codes = self.codes.iter().filter(|(_, code)| code.ends <= now);
        let codes: Vec<String> = codes.map(|(id, _)| id.clone()).take(FORGOTTEN).collect();
        let families = self.families.iter().filter(|(_, family)| family.ends <= now);
        let families: Vec<String> = families.map(|(id, _)| id.clone()).take(FORGOTTEN).collect();
        self.codes.retain(|id, _| !codes.contains(id));
        self.families.retain(|id, _| !families.contains(id));
        (codes, families)
    }

    /// A code (by its hash) as it is kept; `None` once it is gone.
    pub(super) fn kept_code(&self, hash: &str) -> Option<Vec<u8>> {
        serde_json::to_vec(self.codes.get(hash)?).ok()
    }

    /// A family as it is kept; `None` once it is gone.
    pub(super) fn kept_family(&self, grant: &str) -> Option<Vec<u8>> {
        serde_json::to_vec(self.families.get(grant)?).ok()
    }

    /// Takes a kept code in again, at start; `false` where it has ended or cannot be read.
    pub(super) fn restore_code(&mut self, hash: &str, bytes: &[u8], now: i64) -> bool {
        let code = serde_json::from_slice::<Code>(bytes).ok();
        let code = code.filter(|code| code.format == FORMAT && code.ends > now);
        code.is_some_and(|code| self.codes.insert(hash.to_owned(), code).is_none())
    }

    /// Takes a kept family in again, at start; `false` where it has ended or cannot be read.
    pub(super) fn restore_family(&mut self, grant: &str, bytes: &[u8], now: i64) -> bool {
        let family = serde_json::from_slice::<Family>(bytes).ok();
        let family = family.filter(|family| family.format == FORMAT && family.ends > now);
        family.is_some_and(|family| self.families.insert(grant.to_owned(), family).is_none())
    }
}
