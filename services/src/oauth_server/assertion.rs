//! Assertions: JWTs that a client signs with its own key, to prove who it is (RFC 7523 §2.2, `private_key_jwt`) or
//! to get a token for somebody (§2.1, grant `jwt_bearer`). Each counts once: its id is on stable storage before
//! anything is given for it, so that it does not count again after a crash either.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::clients::{Client, Grant};
use super::grants::hashed;
use super::kept::Place;
use super::remembered::Noted;
use super::request::{ErrorCode, TokenError};
use super::server::Server;

/// Assertions may not be valid for longer than this (seconds), so that their ids need not be remembered for
/// longer.
const LONGEST_ASSERTION: i64 = 600;
/// Ids of assertions remembered at most.
pub(super) const SEEN: usize = 100_000;
/// Clocks differ by this much (seconds).
const LEEWAY: i64 = 60;
/// The longest id of an assertion.
const LONGEST_ID: usize = 1024;

/// What is wrong with an assertion.
enum Wrong {
    /// This.
    Because(&'static str),
    /// This, by a name of its own.
    As(ErrorCode, &'static str),
    /// It may be right, but it cannot be taken now.
    Unable,
}

/// An assertion of ours: who signed it, and about whom it is.
pub(super) struct Asserted {
    pub(super) client: Arc<Client>,
    pub(super) subject: String,
}

impl Server {
    /// The client that an assertion proves: signed by its key, about itself.
    pub(super) async fn by_assertion(
        &self,
        id: Option<&str>,
        assertion: &str,
        now: Timestamp,
    ) -> Result<Arc<Client>, TokenError> {
        let fits = |asserted: &Asserted| {
            let own = asserted.subject == asserted.client.id && id.is_none_or(|id| id == asserted.client.id);
            let text = "iss, sub and client_id of the assertion must be the client's id";
            if own { Ok(()) } else { Err(Wrong::Because(text)) }
        };
        let asserted = self
            .assertion(assertion, now, fits)
            .await
            .map_err(|wrong| wrong.told(ErrorCode::InvalidClient))?;
        Ok(asserted.client)
    }

    /// What an assertion grants: signed by a client that may use the grant, about that client or a user.
    pub(super) async fn granted(
        &self,
        sender: Option<&Client>,
        assertion: &str,
        now: Timestamp,
    ) -> Result<Asserted, TokenError> {
        let fits = |asserted: &Asserted| {
            let Asserted { client, subject } = asserted;
            if sender.is_some_and(|sender| sender.id != client.id) {
                return Err(Wrong::Because("the assertion is another client's"));
            }
            if !client.grants.contains(&Grant::JwtBearer) {
                let text = "the client may not use this grant_type";
                return Err(Wrong::As(ErrorCode::UnauthorizedClient, text));
            }
            if *subject != client.id && self.settings().user(subject).is_none() {
                return Err(Wrong::Because("sub of the assertion is neither the client nor a user"));
            }
            Ok(())
        };
        self.assertion(assertion, now, fits).await.map_err(|wrong| wrong.told(ErrorCode::InvalidGrant))
    }

    /// RFC 7523 §3: signed by the client's key, for us, not for long, and never seen before. `fits` judges the
    /// rest, before the assertion is used up.
    async fn assertion(
        &self,
        assertion: &str,
        now: Timestamp,
        fits: impl FnOnce(&Asserted) -> Result<(), Wrong>,
    ) -> Result<Asserted, Wrong> {
        let unknown = Wrong::Because("no client is known whose key signed the assertion");
        let issuer = claimed_issuer(assertion);
        let client = issuer.and_then(|issuer| self.find_client(&issuer));
        let Some(client) = client else { return Err(unknown) };
        let claims = client.keys().and_then(|keys| keys.claims(assertion)).ok_or(unknown)?;
        let ends = self.judge(&claims, now.as_second()).map_err(Wrong::Because)?;
        let id = text(&claims, "jti").filter(|id| !id.is_empty() && id.len() <= LONGEST_ID);
        let id = id.ok_or(Wrong::Because("the assertion has no jti"))?;
        let once = hashed(&format!("{} {id}", client.id));
        let subject = text(&claims, "sub").ok_or(Wrong::Because("the assertion has no sub"))?.to_owned();
        let asserted = Asserted { client, subject };
        fits(&asserted)?;
        self.use_up(&once, ends.saturating_add(LEEWAY), now.as_second()).await?;
        Ok(asserted)
    }

    /// Audience and times; when it ends (seconds).
    fn judge(&self, claims: &Map<String, Value>, now: i64) -> Result<i64, &'static str> {
        let audiences = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ => return Err("the assertion has no aud"),
        };
        if !audiences.iter().any(|audience| self.is_named(audience)) {
            return Err("aud of the assertion is neither our issuer nor our token endpoint");
        }
        let number = |name: &str| claims.get(name).and_then(Value::as_f64).map(|seconds| seconds as i64);
        let ends = number("exp").ok_or("the assertion has no exp")?;
        if ends.saturating_add(LEEWAY) <= now {
            return Err("the assertion has expired");
        }
        if ends.saturating_sub(LEEWAY) > now.saturating_add(LONGEST_ASSERTION) {
            return Err("the assertion is valid for more than ten minutes");
        }
        for name in ["nbf", "iat"] {
            if number(name).is_some_and(|moment| moment.saturating_sub(LEEWAY) > now) {
                return Err("the assertion is not valid yet");
            }
        }
        Ok(ends)
    }

    async fn use_up(&self, once: &str, ends: i64, now: i64) -> Result<(), Wrong> {
        let (noted, ended) = {
            let mut seen = self.seen();
            let ended = seen.ended(now);
            (seen.note(once, ends), ended)
        };
        match noted {
            Noted::New => {}
            Noted::Known => return Err(Wrong::Because("the assertion has been used before")),
            Noted::Full => return Err(Wrong::Unable),
        }
        for id in ended {
            self.save(Place::Seen(&id)).await.map_err(|_| Wrong::Unable)?;
        }
        self.save(Place::Seen(once)).await.map_err(|_| Wrong::Unable)
    }
}

impl Wrong {
    fn told(self, code: ErrorCode) -> TokenError {
        match self {
            Wrong::Because(text) => TokenError::new(code, text),
            Wrong::As(code, text) => TokenError::new(code, text),
            Wrong::Unable => TokenError::unable(),
        }
    }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}

/// Who an assertion says it is from, before anything of it is believed.
fn claimed_issuer(assertion: &str) -> Option<String> {
    let claims = assertion.split('.').nth(1).filter(|part| part.len() <= 16 * 1024)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims = serde_json::from_slice::<Map<String, Value>>(&claims).ok()?;
    text(&claims, "iss").map(str::to_owned)
}
