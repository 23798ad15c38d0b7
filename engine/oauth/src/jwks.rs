//! The public keys of an issuer (RFC 7517): found by discovery at first use, fetched again when a token names
//! a key that is not there, at most once in ten seconds however many such tokens come. All verifiers of one
//! issuer in the process share them.

use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::DecodingKey;
use reqwest::header::ACCEPT;
use septet_engine::clock::SharedClock;
use septet_engine::config::settings::ClientTls;
use serde_json::Value;
use tokio::sync::watch;
use url::Url;

use crate::discovery::{DiscoveryError, discover};
use crate::keys::{Algorithm, AlgorithmFamily};
use crate::net;

/// Between two fetches because of unknown keys.
const UNKNOWN_KEY_WAIT: SignedDuration = SignedDuration::from_secs(10);
/// Between two fetches while there are no keys at all.
const NO_KEYS_WAIT: SignedDuration = SignedDuration::from_secs(1);
/// Keys older than this are fetched again in the background, so that withdrawn ones go.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(1);
/// More keys than this are not looked at.
const MAX_KEYS: usize = 100;

/// What a key can verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
}

/// One public key.
pub(crate) struct Key {
    id: Option<String>,
    kind: Kind,
    /// Where the issuer ties the key to one algorithm.
    algorithm: Option<String>,
    pub(crate) key: DecodingKey,
}

impl Key {
    /// A usable signature key, or `None` for anything else that may stand in a key set.
    fn from_json(json: &Value) -> Option<Key> {
        let text = |name: &str| json.get(name).and_then(Value::as_str);
        if text("use").is_some_and(|use_| use_ != "sig") {
            return None;
        }
        if let Some(operations) = json.get("key_ops").and_then(Value::as_array)
            && !operations.iter().any(|operation| operation == "verify")
        {
            return None;
        }
        let (kind, key) = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let (n, e) = (text("n")?, text("e")?);
                let modulus = URL_SAFE_NO_PAD.decode(n).ok()?;
                // A huge modulus or exponent would make every verification expensive.
                if !(256..=1024).contains(&modulus.len()) || e.len() > 8 {
                    return None;
                }
                (Kind::Rsa, DecodingKey::from_rsa_components(n, e).ok()?)
            }
            ("EC", Some("P-256")) => {
                (Kind::P256, DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?)
            }
            ("EC", Some("P-384")) => {
                (Kind::P384, DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?)
            }
            _ => return None,
        };
        Some(Key { id: text("kid").map(str::to_owned), kind, algorithm: text("alg").map(str::to_owned), key })
    }

    /// Whether the key verifies this algorithm: kind, curve, and the issuer's own word.
    pub(crate) fn fits(&self, algorithm: Algorithm) -> bool {
        let kind = match algorithm {
            Algorithm::ES256 => Kind::P256,
            Algorithm::ES384 => Kind::P384,
            other if other.family() == AlgorithmFamily::Rsa => Kind::Rsa,
            _ => return false,
        };
        let named = crate::keys::algorithm_name(algorithm);
        self.kind == kind && self.algorithm.as_deref().is_none_or(|own| own == named)
    }
}

/// A key set.
pub(crate) struct KeySet(Vec<Arc<Key>>);

impl KeySet {
    /// The usable keys of a JWKS document.
    pub(crate) fn from_json(json: &Value) -> Option<KeySet> {
        let keys = json.get("keys")?.as_array()?;
        Some(KeySet(keys.iter().take(MAX_KEYS).filter_map(Key::from_json).map(Arc::new).collect()))
    }

    /// The keys of this id; without one all keys, for issuers that name none.
    pub(crate) fn named(&self, id: Option<&str>) -> Vec<Arc<Key>> {
        let matching = self.0.iter().filter(|key| id.is_none() || key.id.as_deref() == id);
        matching.cloned().collect()
    }
}

/// Why there is no key to verify with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoKey {
    /// The issuer publishes none of this id.
    Unknown,
    /// The issuer's keys could not be fetched.
    Unavailable(String),
}

/// The keys of one issuer.
pub(crate) struct Issuer {
    issuer: String,
    tls: ClientTls,
    clock: SharedClock,
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    fetched_at: Option<Timestamp>,
    /// The last fetch because of an unknown key, or while there were none.
    tried_at: Option<Timestamp>,
    jwks_uri: Option<Url>,
    flight: Option<watch::Receiver<bool>>,
    failure: Option<String>,
}

/// What to do about a key.
enum Look {
    /// This is all there is.
    Known(Result<Vec<Arc<Key>>, NoKey>),
    /// A fetch may help.
    Wait(watch::Receiver<bool>),
}

impl State {
    fn known(&self, id: Option<&str>) -> Result<Vec<Arc<Key>>, NoKey> {
        let Some(set) = &self.keys else {
            return Err(NoKey::Unavailable(self.failure.clone().unwrap_or_default()));
        };
        let keys = set.named(id);
        if keys.is_empty() { Err(NoKey::Unknown) } else { Ok(keys) }
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issuer({})", self.issuer)
    }
}

/// Issuers in use, so that the limit on fetches holds per issuer and not per service.
static ISSUERS: LazyLock<Mutex<Vec<Weak<Issuer>>>> = LazyLock::new(Mutex::default);

impl Issuer {
    /// The issuer of this name and trust, shared with everybody who uses it now.
    pub(crate) fn shared(
        issuer: &str,
        tls: &ClientTls,
        clock: &SharedClock,
        timeout: Duration,
    ) -> Arc<Issuer> {
        let mut issuers = ISSUERS.lock().unwrap_or_else(PoisonError::into_inner);
        issuers.retain(|known| known.strong_count() > 0);
        let same = |known: &Arc<Issuer>| known.issuer == issuer && known.tls == *tls;
        if let Some(known) = issuers.iter().filter_map(Weak::upgrade).find(same) {
            return known;
        }
        let (issuer, tls, clock) = (issuer.to_owned(), tls.clone(), clock.clone());
        let new = Arc::new(Issuer { issuer, tls, clock, timeout, state: Mutex::default() });
        issuers.push(Arc::downgrade(&new));
        new
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys that a token names. `ours` says whether a fetch for an unknown key is worth it: a token that
    /// names another issuer causes none.
    pub(crate) async fn keys(self: &Arc<Self>, id: Option<&str>, ours: bool) -> Result<Vec<Arc<Key>>, NoKey> {
        match self.look(id, ours) {
            Look::Known(known) => known,
            Look::Wait(mut flight) => {
                // An error means that the fetching task is gone; what it left decides.
                let _ = flight.wait_for(|done| *done).await;
                self.state().known(id)
            }
        }
    }

    /// What is known now, and the fetch to wait for where that may help.
    fn look(self: &Arc<Self>, id: Option<&str>, ours: bool) -> Look {
        let now = self.clock.now();
        let mut state = self.state();
        let known = state.known(id);
        let since =
            |moment: Option<Timestamp>| moment.map_or(SignedDuration::MAX, |then| now.duration_since(then));
        if known.is_ok() {
            if since(state.fetched_at) >= MAX_AGE && since(state.tried_at) >= UNKNOWN_KEY_WAIT {
                state.tried_at = Some(now);
                self.fetch(&mut state);
            }
            return Look::Known(known);
        }
        if let Some(flight) = state.flight.as_ref().filter(|flight| flight.has_changed().is_ok()) {
            return Look::Wait(flight.clone());
        }
        let wait = if state.keys.is_some() { UNKNOWN_KEY_WAIT } else { NO_KEYS_WAIT };
        if !ours || since(state.tried_at) < wait {
            return Look::Known(known);
        }
        state.tried_at = state.keys.is_some().then_some(now);
        Look::Wait(self.fetch(&mut state))
    }

    /// Starts a fetch in a task of its own, for everybody who waits.
    fn fetch(self: &Arc<Self>, state: &mut State) -> watch::Receiver<bool> {
        let (done, flight) = watch::channel(false);
        state.flight = Some(flight.clone());
        let (issuer, place) = (self.clone(), state.jwks_uri.clone());
        tokio::spawn(async move {
            let outcome = issuer.download(place).await;
            let mut state = issuer.state();
            state.flight = None;
            match outcome {
                Ok((keys, place)) => {
                    state.keys = Some(Arc::new(keys));
                    state.fetched_at = Some(issuer.clock.now());
                    state.jwks_uri = Some(place);
                    state.failure = None;
                }
                Err(error) => {
                    state.tried_at = Some(issuer.clock.now());
                    state.jwks_uri = None;
                    state.failure = Some(format!("{}: {}", error.code, error.text));
                }
            }
            drop(state);
            done.send_replace(true);
        });
        flight
    }

    async fn download(&self, place: Option<Url>) -> Result<(KeySet, Url), DiscoveryError> {
        let tls = &self.tls;
        let failure = |text: String| DiscoveryError { code: "issuer".into(), text, detail: None };
        let place = match place {
            Some(place) => place,
            None => {
                let metadata = discover(&self.issuer, &self.issuer, tls, self.timeout).await?;
                let uri = metadata.jwks_uri.ok_or_else(|| failure("the issuer names no keys".into()))?;
                net::endpoint(&uri).map_err(|why| failure(format!("the issuer's jwks_uri is {why}")))?
            }
        };
        let client = net::client(&place, tls, self.timeout)?;
        let reply = net::send(client.get(place.clone()).header(ACCEPT, "application/json")).await?;
        if reply.status != 200 {
            return Err(failure(format!("{} answered with status {}", net::shown(&place), reply.status)));
        }
        let json = serde_json::from_slice::<Value>(&reply.body).ok();
        let keys = json.as_ref().and_then(KeySet::from_json);
        let keys = keys.ok_or_else(|| failure(format!("{} is no key set", net::shown(&place))))?;
        Ok((keys, place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;
    use serde_json::json;

    #[test]
    fn a_key_set_keeps_what_can_verify_and_skips_the_rest() {
        let rsa = SigningKey::generate(Algorithm::RS256).unwrap();
        let ec = SigningKey::generate(Algorithm::ES384).unwrap();
        let mut encryption = ec.public();
        encryption["use"] = "enc".into();
        let set = json!({ "keys": [
            rsa.public(), ec.public(), encryption,
            { "kty": "oct", "k": "c2VjcmV0", "kid": "hmac" },
            { "kty": "OKP", "crv": "Ed448", "x": "AA" },
            { "kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "tiny" },
            "nonsense", 7,
        ]});
        let set = KeySet::from_json(&set).unwrap();
        assert_eq!(set.named(None).len(), 2);
        let key = &set.named(Some(rsa.key_id()))[0];
        assert!(key.fits(Algorithm::RS256));
        for other in [Algorithm::RS512, Algorithm::PS256, Algorithm::ES256, Algorithm::HS256] {
            assert!(!key.fits(other), "{other:?} is not what the issuer ties the key to");
        }
        assert!(set.named(Some("hmac")).is_empty());
        assert!(KeySet::from_json(&json!({})).is_none());
    }
}
