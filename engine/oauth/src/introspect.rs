//! Asking the issuer about a token (RFC 7662), for tokens that say nothing themselves. Answers are remembered
//! for a short while, in bounded caches by the token's hash.
//!
//! A token nobody has seen must be asked about; what strangers can cause by that is bounded: one question for
//! all who show the same token, a few questions under way, and after many tokens that turned out not to be
//! active a pause, in which known tokens go on. Inactive tokens never push active ones out of the cache.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::{SignedDuration, Timestamp};
use reqwest::header::{ACCEPT, AUTHORIZATION};
use septet_engine::clock::SharedClock;
use septet_engine::config::settings::{ClientTls, Secret};
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, watch};
use url::Url;
use zeroize::Zeroizing;

use crate::auth::Auth;
use crate::check::{Check, Refusal};
use crate::net;

/// How long "active" is believed.
const ACTIVE: SignedDuration = SignedDuration::from_secs(60);
/// How long "not active" is.
const INACTIVE: SignedDuration = SignedDuration::from_secs(10);
/// Answers of each kind that are remembered.
const CACHE: usize = 1024;
/// A longer answer is none.
const ANSWER_CAP: usize = 64 << 10;
/// Questions on their way.
const AT_A_TIME: usize = 16;
/// Questions on their way or waiting for their turn; more tokens are refused for now.
const WAITING: usize = 128;
/// After so many tokens that are not active within [`INACTIVE`], no new ones are asked about for the rest of it.
const PATIENCE: u32 = 200;

type Hash = [u8; 32];
/// `None` = not active.
type Answer = Option<Map<String, Value>>;
/// What those wait for who show a token that is being asked about.
type Flight = watch::Receiver<Option<Result<Answer, String>>>;

/// Asks one endpoint.
pub(crate) struct Introspector(Arc<Inner>);

struct Inner {
    url: Url,
    client_id: String,
    client_secret: Secret,
    tls: ClientTls,
    clock: SharedClock,
    timeout: Duration,
    state: Mutex<State>,
    turns: Semaphore,
}

struct State {
    active: HashMap<Hash, (Timestamp, Map<String, Value>)>,
    inactive: HashMap<Hash, Timestamp>,
    flights: HashMap<Hash, Flight>,
    /// Since when, and how many tokens were not active.
    failed: (Timestamp, u32),
}

impl fmt::Debug for Introspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Introspector({})", net::shown(&self.0.url))
    }
}

impl Introspector {
    /// Where the settings ask for it.
    pub(crate) fn new(auth: &Auth, clock: &SharedClock, timeout: Duration) -> Option<Introspector> {
        let state = State {
            active: HashMap::new(),
            inactive: HashMap::new(),
            flights: HashMap::new(),
            failed: (clock.now(), 0),
        };
        Some(Introspector(Arc::new(Inner {
            url: net::endpoint(auth.introspection_url.as_deref()?).ok()?,
            client_id: auth.client_id.clone()?,
            client_secret: auth.client_secret.clone()?,
            tls: auth.tls.clone().unwrap_or_default(),
            clock: clock.clone(),
            timeout,
            state: Mutex::new(state),
            turns: Semaphore::new(AT_A_TIME),
        })))
    }

    /// The claims of an active token.
    pub(crate) async fn ask(&self, token: &str) -> Result<Map<String, Value>, Refusal> {
        let unavailable =
            |why: String| Refusal::new(Check::Keys, "an answer of the introspection endpoint", why);
        let answer = match self.look(token).map_err(|why| unavailable(why.to_owned()))? {
            Look::Known(answer) => answer,
            Look::Wait(mut flight) => {
                let done = flight.wait_for(Option::is_some).await;
                let done = done.ok().and_then(|answer| answer.clone());
                let answer = done.unwrap_or_else(|| Err("the question was given up".to_owned()));
                answer.map_err(unavailable)?
            }
        };
        answer.ok_or_else(|| Refusal::new(Check::Inactive, "an active token", "active: false"))
    }

    /// What is known of a token, or the question to wait for; the error says why it is not asked.
    fn look(&self, token: &str) -> Result<Look, &'static str> {
        let mut hash = Hash::default();
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let now = self.0.clock.now();
        let mut state = self.0.state();
        if let Some((_, claims)) = state.active.get(&hash).filter(|(until, _)| now < *until) {
            return Ok(Look::Known(Some(claims.clone())));
        }
        if state.inactive.get(&hash).is_some_and(|until| now < *until) {
            return Ok(Look::Known(None));
        }
        if let Some(flight) = state.flights.get(&hash).filter(|flight| flight.has_changed().is_ok()) {
            return Ok(Look::Wait(flight.clone()));
        }
        if now.duration_since(state.failed.0) >= INACTIVE {
            state.failed = (now, 0);
        }
        if state.failed.1 >= PATIENCE {
            return Err("too many tokens that are not active were asked about");
        }
        if state.flights.len() >= WAITING {
            return Err("too many tokens are being asked about");
        }
        let (done, flight) = watch::channel(None);
        state.flights.insert(hash, flight.clone());
        let (inner, token) = (self.0.clone(), Zeroizing::new(token.to_owned()));
        // A task of its own: a caller that hangs up must not make the others ask again.
        tokio::spawn(async move {
            let answer = match inner.turns.acquire().await {
                Ok(_turn) => inner.question(&token).await,
                Err(_) => Err("the service ends".to_owned()),
            };
            inner.remember(hash, &answer);
            done.send_replace(Some(answer));
        });
        Ok(Look::Wait(flight))
    }
}

enum Look {
    Known(Answer),
    Wait(Flight),
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, hash: Hash, answer: &Result<Answer, String>) {
        let now = self.clock.now();
        let until = |lifetime| now.saturating_add(lifetime).unwrap_or(Timestamp::MAX);
        let mut state = self.state();
        state.flights.remove(&hash);
        match answer {
            Ok(Some(claims)) => {
                make_room(&mut state.active, |(until, _)| now < *until);
                state.active.insert(hash, (until(ACTIVE), claims.clone()));
            }
            Ok(None) => {
                state.failed.1 = state.failed.1.saturating_add(1);
                make_room(&mut state.inactive, |until| now < *until);
                state.inactive.insert(hash, until(INACTIVE));
            }
            Err(_) => {}
        }
    }

    async fn question(&self, token: &str) -> Result<Answer, String> {
        let client = net::client(&self.url, &self.tls, self.timeout).map_err(|error| error.text)?;
        let request = client
            .post(self.url.clone())
            .header(AUTHORIZATION, net::basic(&self.client_id, self.client_secret.reveal()).as_str())
            .header(ACCEPT, "application/json")
            .form(&[("token", token), ("token_type_hint", "access_token")]);
        let reply = net::send(request).await.map_err(|error| format!("{}: {}", error.code, error.text))?;
        if reply.status != 200 {
            return Err(format!("status {}", reply.status));
        }
        if reply.body.len() > ANSWER_CAP {
            return Err(format!("more than {ANSWER_CAP} bytes"));
        }
        let claims =
            serde_json::from_slice::<Map<String, Value>>(&reply.body).map_err(|_| "no JSON object")?;
        Ok((claims.get("active") == Some(&Value::Bool(true))).then_some(claims))
    }
}

/// Room for one more: what is over goes, and where that is not enough, everything.
fn make_room<V>(cache: &mut HashMap<Hash, V>, is_good: impl Fn(&V) -> bool) {
    if cache.len() >= CACHE {
        cache.retain(|_, entry| is_good(entry));
    }
    if cache.len() >= CACHE {
        cache.clear();
    }
}
