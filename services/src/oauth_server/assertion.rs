//! Clients that authenticate with signed assertions (RFC 7523 §2.2, `private_key_jwt`): each assertion counts
//! once, and its id is remembered until it has ended.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::clients::Client;
use super::server::Server;

/// Assertions may not be valid for longer than this (seconds), so that their ids need not be remembered for
/// longer.
const LONGEST_ASSERTION: i64 = 600;
/// Ids of assertions remembered at most.
const SEEN: usize = 10_000;
/// Clocks differ by this much (seconds).
const LEEWAY: i64 = 60;

/// Ids of assertions that have been used, until they have ended.
#[derive(Default)]
pub(super) struct SeenAssertions(BTreeMap<String, i64>);

impl SeenAssertions {
    /// Whether the id is new; remembers it.
    fn first_use(&mut self, id: String, ends: i64, now: i64) -> bool {
        if self.0.len() >= SEEN {
            self.0.retain(|_, ends| *ends + LEEWAY > now);
        }
        self.0.len() < SEEN && self.0.insert(id, ends).is_none()
    }
}

impl Server {
    /// RFC 7523 §3: signed by the client's key, about itself, for us, not for long, and never seen before.
    pub(super) fn by_assertion<'a>(
        &self,
        clients: &'a [Client],
        id: Option<&str>,
        assertion: &str,
        now: Timestamp,
    ) -> Option<&'a Client> {
        let says = PublicClaims::read(assertion)?;
        let client = clients.iter().find(|client| client.id == says.issuer)?;
        let claims = client.keys()?.claims(assertion)?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let about_itself = text("iss") == Some(&client.id) && text("sub") == Some(&client.id);
        let audiences = match claims.get("aud")? {
            Value::String(one) => vec![one.as_str()],
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            _ => return None,
        };
        let for_us = audiences.iter().any(|audience| self.is_named(audience));
        let now = now.as_second();
        let number = |name: &str| claims.get(name).and_then(Value::as_f64);
        let ends = number("exp")? as i64;
        let in_time = ends + LEEWAY > now
            && ends - LEEWAY <= now + LONGEST_ASSERTION
            && number("nbf").is_none_or(|nbf| nbf as i64 - LEEWAY <= now);
        let fits = id.is_none_or(|id| id == client.id);
        if !(about_itself && for_us && in_time && fits) {
            return None;
        }
        let once = format!("{} {}", client.id, text("jti")?);
        self.seen().first_use(once, ends, now).then_some(client)
    }
}

/// What an assertion says before anything of it is believed.
struct PublicClaims {
    issuer: String,
}

impl PublicClaims {
    fn read(assertion: &str) -> Option<PublicClaims> {
        let claims = assertion.split('.').nth(1).filter(|part| part.len() <= 16 * 1024)?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let claims = serde_json::from_slice::<Map<String, Value>>(&claims).ok()?;
        Some(PublicClaims { issuer: claims.get("iss")?.as_str()?.to_owned() })
    }
}
