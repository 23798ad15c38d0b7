//! Keeps one token per named client: from the store when it is still good, fetched by a single request when
//! it is missing or about to expire, however many callers wait. Implements the engine's [`TokenSource`].
//!
//! A client's slot is named by the client (whose settings fix scope and audience) and holds a token of one
//! credential version: never one that was given to other credentials, and never keyed by a URL. A fetch runs
//! in a task of its own, so that a caller who gives up takes nothing from the others; it is bounded by the
//! network timeout. A token is on stable storage before anybody uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use septet_engine::clock::SharedClock;
use septet_engine::config::settings::OAuthClient;
use septet_engine::event::{Level, NewEvent};
use septet_engine::fault::Fault;
use septet_engine::host::{Keep, KeepFamily};
use septet_engine::id::ItemName;
use septet_engine::token::{AccessToken, NoToken, TokenSource};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::client::Client;
use crate::fetch::{Endpoint, FetchError};
use crate::kept::{Held, Kept};
use crate::net;
use crate::view::{ClientState, ClientView};

/// Wait after the first failing fetch; doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The token source of a production.
pub struct TokenManager {
    shared: Arc<Shared>,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
}

/// What all slots use.
struct Shared {
    keep: Arc<dyn Keep>,
    clock: SharedClock,
    timeout: Duration,
    /// Something happened that may move the next background renewal.
    changed: Notify,
}

/// One client.
struct Slot {
    name: String,
    settings: Arc<OAuthClient>,
    /// What is wrong with the settings, where `check` was not asked.
    client: Result<Client, Fault>,
    shared: Arc<Shared>,
    /// Shared with the slots that replace this one on reload.
    fetches: Arc<AtomicU64>,
    /// Replaced by a reload: it must not write any more.
    retired: AtomicBool,
    state: Mutex<State>,
}

type Outcome = Result<AccessToken, NoToken>;
type Flight = watch::Receiver<Option<Outcome>>;

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// The token has been given out since it was fetched: worth renewing in the background.
    used: bool,
    /// The refresh token that came with the last token (RFC 6749 §6).
    refresh: Option<Zeroizing<String>>,
    fetched_at: Option<Timestamp>,
    flight: Option<Flight>,
    failure: Option<Failure>,
    endpoint: Option<Endpoint>,
    configured: BTreeSet<String>,
    asked: BTreeSet<String>,
}

/// The last fetch failed.
#[derive(Clone)]
struct Failure {
    fault: Fault,
    /// In a row.
    count: u32,
    /// Not again before.
    next: Timestamp,
}

impl Failure {
    /// What a caller gets who comes while the endpoint is left alone.
    fn again(&self) -> NoToken {
        let mut fault = self.fault.clone();
        fault.text = format!("{} (not asked again before {})", fault.text, self.next);
        NoToken { fault, not_before: Some(self.next) }
    }
}

impl fmt::Debug for TokenManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(lock(&self.slots).keys()).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    now.saturating_add(by).unwrap_or(Timestamp::MAX)
}

// === impl TokenManager ===

impl TokenManager {
    /// A manager without clients; [`TokenManager::update`] gives it some.
    pub fn new(keep: Arc<dyn Keep>, clock: SharedClock) -> TokenManager {
        TokenManager::with_timeout(keep, clock, net::TIMEOUT)
    }

    /// The same with another limit for one exchange with a token endpoint (30 s otherwise).
    pub fn with_timeout(keep: Arc<dyn Keep>, clock: SharedClock, timeout: Duration) -> TokenManager {
        let shared = Arc::new(Shared { keep, clock, timeout, changed: Notify::new() });
        TokenManager { shared, slots: Mutex::default() }
    }

    /// Takes the clients of a plan, at start and at reload, each with the items configured to use it. A client
    /// whose credentials are as before keeps its token; any other starts without one.
    pub fn update(
        &self,
        clients: impl IntoIterator<Item = Arc<OAuthClient>>,
        used_by: &BTreeMap<String, Vec<String>>,
    ) {
        let mut slots = lock(&self.slots);
        let mut old = std::mem::take(&mut *slots);
        for settings in clients {
            let name = settings.name.clone();
            let slot = match old.remove(&name) {
                Some(slot) if slot.serves(&settings) => slot,
                old => Slot::open(settings, &self.shared, old),
            };
            lock(&slot.state).configured = used_by.get(&name).into_iter().flatten().cloned().collect();
            slots.insert(name, slot);
        }
        for gone in old.into_values() {
            gone.retired.store(true, Ordering::Release);
        }
        drop(slots);
        self.shared.changed.notify_one();
    }

    /// Renews tokens before they end, as long as somebody used them. Runs until `stop`.
    pub async fn renew(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
            let now = self.shared.clock.now();
            let (due, ahead): (Vec<_>, Vec<_>) = slots
                .into_iter()
                .filter_map(|slot| Some((slot.next_renewal(now)?, slot)))
                .partition(|(moment, _)| *moment <= now);
            for (_, slot) in &due {
                slot.join(&mut lock(&slot.state), None);
            }
            let next = ahead.into_iter().map(|(moment, _)| moment).min().unwrap_or(Timestamp::MAX);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.shared.changed.notified() => {}
                () = self.shared.clock.until(next) => {}
            }
        }
    }

    /// All clients, by name.
    pub fn clients(&self) -> Vec<ClientView> {
        lock(&self.slots).values().map(|slot| slot.view()).collect()
    }

    /// Fetches now, whatever is held, and answers when done; `None` for an unknown client. A failure leaves a
    /// still valid token in use.
    pub async fn refresh(&self, client: &str) -> Option<Result<ClientView, Fault>> {
        let slot = lock(&self.slots).get(client)?.clone();
        let flight = slot.join(&mut lock(&slot.state), None);
        Some(landed(flight).await.map(|_| slot.view()).map_err(|error| error.fault))
    }
}

#[async_trait]
impl TokenSource for TokenManager {
    async fn token(&self, client: &str, item: &str) -> Outcome {
        let slot = lock(&self.slots).get(client).cloned();
        match slot {
            Some(slot) => slot.token(item).await,
            None => Err(Fault::new("call", "oauth", format!("there is no OAuth client {client}")).into()),
        }
    }

    fn knows(&self, client: &str) -> bool {
        lock(&self.slots).contains_key(client)
    }

    fn rejected(&self, token: &AccessToken) {
        if let Some(slot) = lock(&self.slots).get(&token.client) {
            let mut state = lock(&slot.state);
            if state.held.as_ref().is_some_and(|held| held.generation == token.generation) {
                state.held = None;
            }
        }
    }
}

/// Waits for a fetch.
async fn landed(mut flight: Flight) -> Outcome {
    match flight.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(abandoned())),
        Err(_) => Err(abandoned()),
    }
}

fn abandoned() -> NoToken {
    Fault::new("call", "oauth", "the token fetch was abandoned").into()
}

// === impl Slot ===

impl Slot {
    /// The slot of a client: the one there was if the credentials are the same, else one that goes on
    /// counting where that one, or what is kept, left off.
    fn open(settings: Arc<OAuthClient>, shared: &Arc<Shared>, old: Option<Arc<Slot>>) -> Arc<Slot> {
        let name = settings.name.clone();
        let client = Client::new(&settings).map_err(|problems| {
            let texts: Vec<String> = problems.into_iter().map(|(_, _, text)| text).collect();
            Fault::new("call", "config", format!("OAuth client {name}: {}", texts.join("; ")))
        });
        let version = client.as_ref().map(|client| client.version.clone()).unwrap_or_default();
        let mut state = State::default();
        let fetches = match old {
            Some(old) => {
                old.retired.store(true, Ordering::Release);
                let mut before = lock(&old.state);
                let same = old.client.as_ref().is_ok_and(|client| client.version == version);
                if same {
                    state.held = before.held.clone();
                    state.used = before.used;
                    state.refresh = before.refresh.take();
                }
                state.fetched_at = before.fetched_at;
                state.asked = std::mem::take(&mut before.asked);
                old.fetches.clone()
            }
            None => {
                let kept = shared.keep.get(KeepFamily::Token, &name);
                let kept = kept.and_then(|bytes| Kept::from_bytes(&bytes));
                if let Some(kept) = &kept {
                    state.fetched_at = kept.fetched_at;
                    state.held = kept.held(&version);
                    if kept.version == version {
                        state.refresh = kept.refresh.clone().map(Zeroizing::new);
                    }
                }
                Arc::new(AtomicU64::new(kept.map_or(0, |kept| kept.fetches)))
            }
        };
        let shared = shared.clone();
        let state = Mutex::new(state);
        Arc::new(Slot { name, settings, client, shared, fetches, retired: AtomicBool::new(false), state })
    }

    /// Whether these settings change nothing for this slot.
    fn serves(&self, settings: &Arc<OAuthClient>) -> bool {
        let ours = &self.settings;
        let versions = (self.client.as_ref().ok(), Client::new(settings).ok());
        matches!(versions, (Some(old), Some(new)) if old.version == new.version)
            && ours.refresh_before == settings.refresh_before
            && ours.default_lifetime == settings.default_lifetime
            && ours.reply_expires_in == settings.reply_expires_in
            && ours.tls == settings.tls
    }

    async fn token(self: &Arc<Self>, item: &str) -> Outcome {
        let flight = {
            let mut state = lock(&self.state);
            if !state.asked.contains(item) {
                state.asked.insert(item.to_owned());
            }
            let now = self.shared.clock.now();
            if let Some(held) = &state.held
                && now < held.renew_at(self.settings.refresh_before)
            {
                let token = self.give(held);
                self.mark_used(&mut state);
                return Ok(token);
            }
            let waiting = state.failure.as_ref().filter(|failure| now < failure.next);
            if let (Some(failure), None) = (waiting, &state.flight) {
                let still_valid = state.held.as_ref().filter(|held| now < held.expires_at);
                return still_valid.map(|held| self.give(held)).ok_or_else(|| failure.again());
            }
            self.join(&mut state, Some(item))
        };
        let outcome = landed(flight).await;
        let mut state = lock(&self.state);
        let now = self.shared.clock.now();
        match outcome {
            Ok(token) => {
                if state.held.as_ref().is_some_and(|held| held.generation == token.generation) {
                    self.mark_used(&mut state);
                }
                Ok(token)
            }
            // About to expire is not expired: better the old token than none.
            Err(error) => {
                let still_valid = state.held.as_ref().filter(|held| now < held.expires_at);
                still_valid.map(|held| self.give(held)).ok_or(error)
            }
        }
    }

    fn give(&self, held: &Held) -> AccessToken {
        let client = self.name.clone();
        AccessToken { client, secret: held.token.clone(), generation: held.generation }
    }

    fn mark_used(&self, state: &mut State) {
        if !state.used {
            state.used = true;
            self.shared.changed.notify_one();
        }
    }

    /// When this token should be renewed in the background, if at all: it was used, has not ended, and no
    /// fetch is under way. Once it has ended, it is fetched again by whoever needs it.
    fn next_renewal(&self, now: Timestamp) -> Option<Timestamp> {
        let state = lock(&self.state);
        let held = state.held.as_ref().filter(|held| state.used && now < held.expires_at)?;
        if state.flight.is_some() {
            return None;
        }
        let moment = held.renew_at(self.settings.refresh_before);
        Some(state.failure.as_ref().map_or(moment, |failure| moment.max(failure.next)))
    }

    /// The fetch under way, or a new one. `item` is who asked.
    fn join(self: &Arc<Self>, state: &mut State, item: Option<&str>) -> Flight {
        // A sender that is gone without an outcome is a fetch that panicked.
        if let Some(flight) = state.flight.as_ref().filter(|flight| flight.has_changed().is_ok()) {
            return flight.clone();
        }
        let (sender, flight) = watch::channel(None);
        state.flight = Some(flight.clone());
        let slot = self.clone();
        let item = item.map(ItemName::new);
        tokio::spawn(async move {
            let outcome = slot.fetch(item).await;
            sender.send_replace(Some(outcome));
            slot.shared.changed.notify_one();
        });
        flight
    }

    /// Fetches, stores, and only then shows the outcome to everybody.
    async fn fetch(self: &Arc<Self>, item: Option<ItemName>) -> Outcome {
        let asked = self.shared.clock.now();
        let fetched = self.exchange(asked).await;
        let (held, refresh) = match fetched {
            Ok(fetched) => fetched,
            Err(error) => return Err(self.failed(error, item)),
        };
        if !self.retired.load(Ordering::Acquire) {
            let version = self.client.as_ref().map(|client| client.version.as_str()).unwrap_or_default();
            let kept = Kept::new(version, &held, refresh.as_ref().map(|text| text.as_str()));
            let stored = self.shared.keep.put(KeepFamily::Token, &self.name, Some(kept.to_bytes())).await;
            if stored.is_err() {
                let error = FetchError::new("store", "the token was fetched but could not be stored");
                return Err(self.failed(error, item));
            }
        }
        let token = self.give(&held);
        let text = format!("{}: token fetched, valid until {}", self.name, held.expires_at);
        self.event(NewEvent::new(Level::Info, "oauth.fetched", text), item);
        let mut state = lock(&self.state);
        state.fetched_at = Some(held.fetched_at);
        state.held = Some(held);
        state.refresh = refresh;
        state.used = false;
        state.failure = None;
        state.flight = None;
        Ok(token)
    }

    /// Asks the endpoint, with the refresh token first where there is one.
    async fn exchange(&self, asked: Timestamp) -> Result<(Held, Option<Zeroizing<String>>), FetchError> {
        let client =
            self.client.as_ref().map_err(|fault| FetchError { fault: fault.clone(), retry_after: None })?;
        let timeout = self.shared.timeout;
        let (known, refresh) = {
            let state = lock(&self.state);
            (state.endpoint.clone(), state.refresh.clone().filter(|_| client.refreshes()))
        };
        let endpoint = match known {
            Some(endpoint) => endpoint,
            None => client.endpoint(timeout).await?,
        };
        lock(&self.state).endpoint = Some(endpoint.clone());
        let mut answer =
            client.ask(&endpoint, refresh.as_ref().map(|text| text.as_str()), asked, timeout).await;
        let spent = refresh.is_some() && answer.as_ref().is_err_and(|error| error.is("invalid_grant"));
        if spent {
            lock(&self.state).refresh = None;
            answer = client.ask(&endpoint, None, asked, timeout).await;
        }
        let answer = answer.inspect_err(|_| {
            // The next fetch asks the issuer again: its endpoint may have moved.
            lock(&self.state).endpoint = None;
        })?;
        let held = Held {
            token: answer.token,
            generation: self.fetches.fetch_add(1, Ordering::AcqRel) + 1,
            fetched_at: asked,
            expires_at: answer.ends.at(asked, self.settings.default_lifetime),
        };
        // A server that does not rotate sends no new refresh token: the old one goes on.
        let refresh = answer.refresh.or(refresh.filter(|_| !spent)).filter(|_| client.refreshes());
        Ok((held, refresh))
    }

    fn failed(&self, error: FetchError, item: Option<ItemName>) -> NoToken {
        let mut fault = error.fault;
        fault.text = format!("OAuth client {}: {}", self.name, fault.text);
        let mut event =
            NewEvent::new(Level::Error, "oauth.failed", format!("{}: {}", fault.code, fault.text));
        event.detail = fault.detail.clone();
        self.event(event, item);
        let now = self.shared.clock.now();
        let mut state = lock(&self.state);
        let count = state.failure.as_ref().map_or(1, |failure| failure.count.saturating_add(1));
        let wait = FIRST_WAIT.saturating_mul(1 << (count - 1).min(6)).min(LONGEST_WAIT);
        let next = later(now, wait.max(error.retry_after.unwrap_or_default()));
        state.failure = Some(Failure { fault: fault.clone(), count, next });
        state.flight = None;
        NoToken { fault, not_before: Some(next) }
    }

    fn event(&self, mut event: NewEvent, item: Option<ItemName>) {
        event.item = item;
        self.shared.keep.event(event);
    }

    fn view(&self) -> ClientView {
        let state = lock(&self.state);
        let now = self.shared.clock.now();
        let shown = match (&state.held, &state.failure) {
            (Some(held), _) if now < held.expires_at => ClientState::Valid,
            (_, Some(_)) => ClientState::Failing,
            (Some(_), None) => ClientState::Expired,
            (None, None) => ClientState::None,
        };
        let configured = self.settings.token_url.as_deref().and_then(|text| url::Url::parse(text).ok());
        let discovered = state.endpoint.as_ref().map(|endpoint| endpoint.token_url.clone());
        ClientView {
            name: self.name.clone(),
            grant: self.settings.grant.clone(),
            token_url: configured.or(discovered).map(|url| net::shown(&url)),
            state: shown,
            expires_at: state.held.as_ref().map(|held| held.expires_at),
            fetched_at: state.fetched_at,
            fetches: self.fetches.load(Ordering::Acquire),
            last_error: state.failure.as_ref().map(|failure| failure.fault.to_string()),
            last_error_detail: state.failure.as_ref().and_then(|failure| failure.fault.detail.clone()),
            used_by: state.configured.union(&state.asked).cloned().collect(),
        }
    }
}
