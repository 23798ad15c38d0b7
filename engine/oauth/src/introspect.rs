//! Asking the issuer about a token (RFC 7662), for tokens that say nothing themselves. Answers are remembered
//! for a short while, in a bounded cache by the token's hash; only a few questions are under way at a time.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::{SignedDuration, Timestamp};
use reqwest::header::{ACCEPT, AUTHORIZATION};
use septet_engine::clock::SharedClock;
use septet_engine::config::settings::{ClientTls, Secret};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use url::Url;

use crate::auth::Auth;
use crate::net;
use crate::verify::{Check, Refusal};

/// How long "active" is believed.
const ACTIVE: SignedDuration = SignedDuration::from_secs(60);
/// How long "not active" is.
const INACTIVE: SignedDuration = SignedDuration::from_secs(10);
const CACHE: usize = 1024;
const AT_A_TIME: usize = 16;

type Hash = [u8; 32];
/// `None` = not active.
type Answer = Option<Map<String, Value>>;

/// Asks one endpoint.
pub(crate) struct Introspector {
    url: Url,
    client_id: String,
    client_secret: Secret,
    clock: SharedClock,
    timeout: Duration,
    cache: Mutex<HashMap<Hash, (Timestamp, Answer)>>,
    turns: Semaphore,
}

impl fmt::Debug for Introspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Introspector({})", net::shown(&self.url))
    }
}

impl Introspector {
    /// Where the settings ask for it.
    pub(crate) fn new(auth: &Auth, clock: &SharedClock, timeout: Duration) -> Option<Introspector> {
        Some(Introspector {
            url: net::endpoint(auth.introspection_url.as_deref()?).ok()?,
            client_id: auth.client_id.clone()?,
            client_secret: auth.client_secret.clone()?,
            clock: clock.clone(),
            timeout,
            cache: Mutex::default(),
            turns: Semaphore::new(AT_A_TIME),
        })
    }

    /// The claims of an active token.
    pub(crate) async fn ask(&self, token: &str) -> Result<Map<String, Value>, Refusal> {
        let mut hash = Hash::default();
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let known = self.known(&hash);
        let answer = match known {
            Some(answer) => answer,
            None => {
                let unavailable =
                    |why: String| Refusal::new(Check::Keys, "an answer of the introspection endpoint", why);
                let _turn = self.turns.acquire().await.map_err(|_| unavailable("closed".into()))?;
                let answer = self.question(token).await.map_err(unavailable)?;
                self.remember(hash, &answer);
                answer
            }
        };
        answer.ok_or_else(|| Refusal::new(Check::Inactive, "an active token", "active: false"))
    }

    fn known(&self, hash: &Hash) -> Option<Answer> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, answer) = cache.get(hash)?;
        (self.clock.now() < *until).then(|| answer.clone())
    }

    fn remember(&self, hash: Hash, answer: &Answer) {
        let now = self.clock.now();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE {
            cache.retain(|_, (until, _)| now < *until);
        }
        if cache.len() >= CACHE {
            cache.clear();
        }
        let lifetime = if answer.is_some() { ACTIVE } else { INACTIVE };
        cache.insert(hash, (now.saturating_add(lifetime).unwrap_or(Timestamp::MAX), answer.clone()));
    }

    async fn question(&self, token: &str) -> Result<Answer, String> {
        let client =
            net::client(&self.url, &ClientTls::default(), self.timeout).map_err(|error| error.text)?;
        let request = client
            .post(self.url.clone())
            .header(AUTHORIZATION, net::basic(&self.client_id, self.client_secret.reveal()).as_str())
            .header(ACCEPT, "application/json")
            .form(&[("token", token), ("token_type_hint", "access_token")]);
        let reply = net::send(request).await.map_err(|error| format!("{}: {}", error.code, error.text))?;
        if reply.status != 200 {
            return Err(format!("status {}", reply.status));
        }
        let claims =
            serde_json::from_slice::<Map<String, Value>>(&reply.body).map_err(|_| "no JSON object")?;
        Ok((claims.get("active") == Some(&Value::Bool(true))).then_some(claims))
    }
}
