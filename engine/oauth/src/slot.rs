//! One client's slot: its token, the one fetch that may be under way, its back-off, and what operators see.
//!
//! A slot holds a token of one credential version: never one that was given to other credentials, and never
//! keyed by a URL. A fetch runs in a task of its own, so that a caller who gives up takes nothing from the others;
//! it is bounded by the network timeout. A token is on stable storage before anybody uses it. What is fetched and
//! what with is in [`crate::fetch`], when is here, for whom in [`crate::manager`].

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use septet_engine::config::settings::OAuthClient;
use septet_engine::event::{Level, NewEvent};
use septet_engine::fault::Fault;
use septet_engine::host::KeepFamily;
use septet_engine::id::ItemName;
use septet_engine::token::{AccessToken, NoToken};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::answer::Answer;
use crate::client::{Client, ClientAuth, Grant};
use crate::fetch::{Ask, CodeExchange, Endpoint, FetchError};
use crate::kept::{Held, History, Kept, Refresh};
use crate::manager::{Shared, TokenAlert, lock};
use crate::net;
use crate::view::{ClientState, ClientView};

/// Wait after the first failing fetch; doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One client.
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) settings: Arc<OAuthClient>,
    /// What is wrong with the settings, where `check` was not asked.
    pub(crate) client: Result<Client, Fault>,
    shared: Arc<Shared>,
    /// Shared with the slots that replace this one on reload.
    fetches: Arc<AtomicU64>,
    /// Replaced by a reload: it must not write any more.
    pub(crate) retired: AtomicBool,
    pub(crate) state: Mutex<State>,
}

pub(crate) type Outcome = Result<AccessToken, NoToken>;
pub(crate) type Flight = watch::Receiver<Option<Outcome>>;

#[derive(Default)]
pub(crate) struct State {
    held: Option<Held>,
    /// The token has been given out since it was fetched: worth renewing in the background.
    used: bool,
    /// The refresh token that came with the last token (RFC 6749 §6).
    refresh: Option<Refresh>,
    /// How much has been said about its end.
    ending: Ending,
    fetched_at: Option<Timestamp>,
    last_401: Option<Timestamp>,
    flight: Option<Flight>,
    failure: Option<Failure>,
    /// It has been said that somebody must sign in.
    said: bool,
    endpoint: Option<Endpoint>,
    /// The server's clock is so much ahead of ours; known once it has refused an assertion.
    skew: SignedDuration,
    pub(crate) configured: BTreeSet<String>,
    asked: BTreeSet<String>,
}

/// What was done about the end of a refresh token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// It is far, or unknown.
    #[default]
    Far,
    /// It is near; a fetch may have brought another refresh token.
    Tried,
    /// It is near, and that has been said.
    Near,
    /// It has come, and that has been said.
    Over,
}

/// The last fetch failed.
#[derive(Clone)]
struct Failure {
    fault: Fault,
    at: Timestamp,
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

/// What a fetch brought.
struct Fetched {
    held: Held,
    refresh: Option<Refresh>,
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    now.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// Waits for a fetch.
pub(crate) async fn landed(mut flight: Flight) -> Outcome {
    match flight.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(abandoned())),
        Err(_) => Err(abandoned()),
    }
}

fn abandoned() -> NoToken {
    Fault::new("call", "oauth", "the token fetch was abandoned").into()
}

/// What a fetch is made with.
pub(crate) enum Work {
    /// What there is: the refresh token, or what the settings say.
    Renew,
    /// A person has just signed in.
    SignIn(CodeExchange),
}

// === impl Slot ===

impl Slot {
    /// The slot of a client: the one there was if the credentials are the same, else one that goes on
    /// counting where that one, or what is kept, left off.
    pub(crate) fn open(
        settings: Arc<OAuthClient>,
        shared: &Arc<Shared>,
        old: Option<Arc<Slot>>,
    ) -> Arc<Slot> {
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
                    state.ending = before.ending;
                }
                state.fetched_at = before.fetched_at;
                state.last_401 = before.last_401;
                state.asked = std::mem::take(&mut before.asked);
                old.fetches.clone()
            }
            None => {
                let kept = shared.keep.get(KeepFamily::Token, &name);
                let kept = kept.and_then(|bytes| Kept::from_bytes(&bytes));
                if let Some(kept) = &kept {
                    state.fetched_at = kept.fetched_at;
                    state.last_401 = kept.last_401;
                    state.held = kept.held(&version);
                    state.refresh = kept.refresh(&version);
                }
                Arc::new(AtomicU64::new(kept.map_or(0, |kept| kept.fetches)))
            }
        };
        let shared = shared.clone();
        let state = Mutex::new(state);
        Arc::new(Slot { name, settings, client, shared, fetches, retired: AtomicBool::new(false), state })
    }

    /// Whether these settings change nothing for this slot.
    pub(crate) fn serves(&self, settings: &Arc<OAuthClient>) -> bool {
        let ours = &self.settings;
        let versions = (self.client.as_ref().ok(), Client::new(settings).ok());
        matches!(versions, (Some(old), Some(new)) if old.version == new.version)
            && ours.refresh_before == settings.refresh_before
            && ours.default_lifetime == settings.default_lifetime
            && ours.reply_expires_in == settings.reply_expires_in
            && ours.refresh_token_lifetime == settings.refresh_token_lifetime
            && ours.refresh_alert == settings.refresh_alert
            && ours.authorize_params == settings.authorize_params
            && ours.redirect_uri == settings.redirect_uri
            && ours.tls == settings.tls
    }

    pub(crate) async fn token(self: &Arc<Self>, item: &str) -> Outcome {
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

    /// A peer refused this token.
    pub(crate) fn rejected(&self, token: &AccessToken) {
        let mut state = lock(&self.state);
        state.last_401 = Some(self.shared.clock.now());
        if state.held.as_ref().is_some_and(|held| held.generation == token.generation) {
            state.held = None;
        }
    }

    /// The token in hand, for showing what it says of itself.
    pub(crate) fn held_token(&self) -> Option<Zeroizing<String>> {
        lock(&self.state).held.as_ref().map(|held| held.token.clone())
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

    // --- in the background ---

    /// Does what is due and says when to come again.
    pub(crate) fn tick(self: &Arc<Self>, now: Timestamp) -> Option<Timestamp> {
        let mut state = lock(&self.state);
        if state.flight.is_some() {
            // The next look is when it has landed.
            return None;
        }
        let renewal = self.next_renewal(&state, now);
        if renewal.is_some_and(|moment| moment <= now) {
            self.join(&mut state, None);
            return None;
        }
        let mut ending = self.next_ending(&state);
        while let Some(moment) = ending.filter(|moment| *moment <= now) {
            if state.ending == Ending::Far {
                // A server that rotates gives a new one: then nobody need be called.
                state.ending = Ending::Tried;
                self.join(&mut state, None);
                return None;
            }
            self.say_ending(&mut state, moment, now);
            ending = self.next_ending(&state);
        }
        [renewal, ending].into_iter().flatten().min()
    }

    /// When this token should be renewed in the background, if at all: it was used and has not ended. Once it
    /// has ended, it is fetched again by whoever needs it.
    fn next_renewal(&self, state: &State, now: Timestamp) -> Option<Timestamp> {
        let held = state.held.as_ref().filter(|held| state.used && now < held.expires_at)?;
        let by_sign_in = self.client.as_ref().is_ok_and(|client| client.grant == Grant::AuthorizationCode);
        if by_sign_in && state.refresh.is_none() {
            return None;
        }
        let moment = held.renew_at(self.settings.refresh_before);
        Some(state.failure.as_ref().map_or(moment, |failure| moment.max(failure.next)))
    }

    /// When something must be done about the end of the refresh token.
    fn next_ending(&self, state: &State) -> Option<Timestamp> {
        self.client.as_ref().ok().filter(|client| client.grant.needs_a_person())?;
        let refresh = state.refresh.as_ref()?;
        match state.ending {
            Ending::Far | Ending::Tried => refresh.alert_at(self.settings.refresh_alert),
            Ending::Near => refresh.ends,
            Ending::Over => None,
        }
    }

    fn say_ending(&self, state: &mut State, moment: Timestamp, now: Timestamp) {
        let ends = state.refresh.as_ref().and_then(|refresh| refresh.ends).unwrap_or(moment);
        let what_to_do = self.what_to_do();
        let (ending, level, text) = match now < ends {
            true => (Ending::Near, Level::Warning, format!("the refresh token ends at {ends}; {what_to_do}")),
            false => (Ending::Over, Level::Error, format!("the refresh token ended at {ends}; {what_to_do}")),
        };
        state.ending = ending;
        self.alert(level, &text);
    }

    fn alert(&self, level: Level, text: &str) {
        let text = format!("OAuth client {}: {text}", self.name);
        lock(&self.shared.alerts).insert(self.name.clone(), TokenAlert { level, text });
        self.shared.changed.notify_one();
    }

    /// What an operator does when the refresh token is gone.
    fn what_to_do(&self) -> String {
        match self.connect_url() {
            Some(url) => format!("sign in at {url}"),
            None => "put a new refresh_token into the production file".to_owned(),
        }
    }

    fn connect_url(&self) -> Option<String> {
        self.client.as_ref().ok().filter(|client| client.grant == Grant::AuthorizationCode)?;
        let registered = self.settings.redirect_uri.as_deref().and_then(|uri| uri.strip_suffix("/callback"));
        Some(match registered {
            Some(base) => format!("{base}/connect"),
            None => format!("{}/oauth/{}/connect", lock(&self.shared.base), self.name),
        })
    }

    fn nobody_signed_in(&self) -> FetchError {
        FetchError::new("sign_in", format!("nobody has signed in yet; {}", self.what_to_do()))
    }

    // --- fetching ---

    /// The fetch under way, or a new one. `item` is who asked.
    pub(crate) fn join(self: &Arc<Self>, state: &mut State, item: Option<&str>) -> Flight {
        match under_way(state) {
            Some(flight) => flight,
            None => self.launch(state, item, Work::Renew),
        }
    }

    /// Exchanges the code of a sign-in for tokens, once a fetch under way is over.
    pub(crate) async fn sign_in(self: &Arc<Self>, exchange: CodeExchange) -> Outcome {
        loop {
            let other = {
                let mut state = lock(&self.state);
                match under_way(&state) {
                    Some(other) => other,
                    None => break landed(self.launch(&mut state, None, Work::SignIn(exchange))),
                }
            };
            // Its outcome is for those who waited for it.
            let _ = landed(other).await;
        }
        .await
    }

    fn launch(self: &Arc<Self>, state: &mut State, item: Option<&str>, work: Work) -> Flight {
        let (sender, flight) = watch::channel(None);
        state.flight = Some(flight.clone());
        let slot = self.clone();
        let item = item.map(ItemName::new);
        tokio::spawn(async move {
            let outcome = slot.fetch(item, &work).await;
            sender.send_replace(Some(outcome));
            slot.shared.changed.notify_one();
        });
        flight
    }

    /// Fetches, stores, and only then shows the outcome to everybody.
    async fn fetch(self: &Arc<Self>, item: Option<ItemName>, work: &Work) -> Outcome {
        let asked = self.shared.clock.now();
        let fetched = self.exchange(asked, work).await;
        let Fetched { held, refresh } = match fetched {
            Ok(fetched) => fetched,
            Err(error) => return Err(self.failed(error, item, work).await),
        };
        if self.store(Some(&held), refresh.as_ref()).await.is_err() {
            let error = FetchError::new("store", "the token was fetched but could not be stored");
            return Err(self.failed(error, item, work).await);
        }
        let token = self.give(&held);
        let text = format!("{}: token fetched, valid until {}", self.name, held.expires_at);
        self.event(NewEvent::new(Level::Info, "oauth.fetched", text), item);
        let signed_in = matches!(work, Work::SignIn(_));
        if signed_in && refresh.is_none() {
            let text = "the sign-in brought no refresh token, so that it ends with the access token at";
            let hint = "most providers give one for the scope offline_access";
            self.alert(Level::Warning, &format!("{text} {}; {hint}", held.expires_at));
        }
        let mut state = lock(&self.state);
        let near =
            |refresh: &Refresh| refresh.alert_at(self.settings.refresh_alert).is_some_and(|at| at <= asked);
        if signed_in || !refresh.as_ref().is_some_and(near) {
            state.ending = Ending::Far;
        }
        state.fetched_at = Some(held.fetched_at);
        state.held = Some(held);
        state.refresh = refresh;
        state.used = false;
        state.failure = None;
        state.said = false;
        state.flight = None;
        Ok(token)
    }

    /// Keeps what there is now, unless another slot has taken over.
    async fn store(
        &self,
        held: Option<&Held>,
        refresh: Option<&Refresh>,
    ) -> Result<(), septet_engine::store::StoreFailed> {
        if self.retired.load(Ordering::Acquire) {
            return Ok(());
        }
        let version = self.client.as_ref().map(|client| client.version.as_str()).unwrap_or_default();
        let history = {
            let state = lock(&self.state);
            let fetches = self.fetches.load(Ordering::Acquire);
            let fetched_at = held.map(|held| held.fetched_at).or(state.fetched_at);
            History { fetched_at, fetches, last_401: state.last_401 }
        };
        let kept = Kept::new(version, held, refresh, history);
        self.shared.keep.put(KeepFamily::Token, &self.name, Some(kept.to_bytes())).await
    }

    /// Asks the endpoint, with the refresh token first where there is one.
    async fn exchange(&self, asked: Timestamp, work: &Work) -> Result<Fetched, FetchError> {
        let client = self.client.as_ref().map_err(|fault| FetchError::from(fault.clone()))?;
        let before = lock(&self.state).refresh.clone().filter(|_| client.refreshes());
        let by_sign_in = client.grant == Grant::AuthorizationCode;
        if by_sign_in && before.is_none() && matches!(work, Work::Renew) {
            return Err(self.nobody_signed_in());
        }
        let endpoint = self.endpoint(client).await?;
        let answer = match (work, &before) {
            (Work::SignIn(exchange), _) => self.ask(client, &endpoint, Ask::Code(exchange), asked).await,
            (Work::Renew, None) => self.ask(client, &endpoint, Ask::Grant, asked).await,
            (Work::Renew, Some(refresh)) => {
                let answer = self.ask(client, &endpoint, Ask::Refresh(&refresh.token), asked).await;
                let first = self.settings.refresh_token.as_ref().map(|first| first.reveal());
                let nothing_else = by_sign_in || first == Some(refresh.token.as_str());
                match answer {
                    Err(error) if error.is("invalid_grant") && !nothing_else => {
                        lock(&self.state).refresh = None;
                        self.ask(client, &endpoint, Ask::Grant, asked).await
                    }
                    answer => answer,
                }
            }
        };
        let answer = answer.inspect_err(|_| {
            // The next fetch asks the issuer again: its endpoint may have moved.
            lock(&self.state).endpoint = None;
        })?;
        if let Work::SignIn(exchange) = work {
            let issuer = endpoint.issuer.as_deref().or(self.settings.issuer.as_deref());
            exchange.judge(answer.id_token.as_deref().map(String::as_str), issuer, &self.settings, asked)?;
        }
        let held = Held {
            token: answer.token,
            generation: self.fetches.fetch_add(1, Ordering::AcqRel) + 1,
            fetched_at: asked,
            expires_at: answer.ends.at(asked, self.settings.default_lifetime),
            scope: answer.scope,
        };
        let stated = answer.refresh_ends.map(|ends| ends.at(asked, Duration::ZERO));
        // A server that does not rotate sends no new refresh token: the old one goes on.
        let before = before.filter(|_| matches!(work, Work::Renew) && lock(&self.state).refresh.is_some());
        let first = || self.settings.refresh_token.as_ref().filter(|_| client.grant == Grant::RefreshToken);
        let token = answer.refresh.or_else(|| before.as_ref().map(|before| before.token.clone()));
        let token = token.or_else(|| first().map(|first| Zeroizing::new(first.reveal().to_owned())));
        let refresh = token.filter(|_| client.refreshes()).map(|token| {
            match before.filter(|before| before.token == token) {
                Some(before) => Refresh { ends: stated.or(before.ends), ..before },
                None => {
                    let configured = self.settings.refresh_token_lifetime.map(|life| later(asked, life));
                    Refresh { token, got_at: asked, ends: stated.or(configured) }
                }
            }
        });
        Ok(Fetched { held, refresh })
    }

    pub(crate) async fn endpoint(&self, client: &Client) -> Result<Endpoint, FetchError> {
        let known = lock(&self.state).endpoint.clone();
        let endpoint = match known {
            Some(endpoint) => endpoint,
            None => client.endpoint(self.shared.timeout).await?,
        };
        lock(&self.state).endpoint = Some(endpoint.clone());
        Ok(endpoint)
    }

    /// Asks once; where the server refuses an assertion and its clock differs from ours, once more with its time.
    async fn ask(
        &self,
        client: &Client,
        endpoint: &Endpoint,
        ask: Ask<'_>,
        asked: Timestamp,
    ) -> Result<Answer, FetchError> {
        let timeout = self.shared.timeout;
        let by = |skew| (asked.saturating_add(skew).unwrap_or(asked), asked);
        let skew = lock(&self.state).skew;
        let answer = client.ask(endpoint, ask, by(skew), timeout).await;
        let signs = client.grant == Grant::JwtBearer
            || matches!(client.auth, ClientAuth::SecretJwt | ClientAuth::PrivateKeyJwt);
        let found = match &answer {
            Err(error) if signs && (error.is("invalid_client") || error.is("invalid_grant")) => {
                SignedDuration::from_secs(error.skew.unwrap_or_default().into())
            }
            _ => return answer,
        };
        if (found - skew).abs() < SignedDuration::from_secs(20) {
            return answer;
        }
        lock(&self.state).skew = found;
        client.ask(endpoint, ask, by(found), timeout).await
    }

    async fn failed(&self, error: FetchError, item: Option<ItemName>, work: &Work) -> NoToken {
        let mut fault = error.fault;
        fault.text = format!("OAuth client {}: {}", self.name, fault.text);
        let needs_a_person = self.client.as_ref().is_ok_and(|client| client.grant.needs_a_person());
        let refused = fault.code == "invalid_grant" && needs_a_person && matches!(work, Work::Renew);
        if refused {
            let what_to_do = self.what_to_do();
            fault.text = format!("{}; {what_to_do}", fault.text);
            self.alert(Level::Error, &format!("the refresh token was refused (invalid_grant); {what_to_do}"));
            let held = {
                let mut state = lock(&self.state);
                state.refresh = None;
                state.held.clone()
            };
            // What could not be stored is refused again after a restart: nothing is lost.
            let _ = self.store(held.as_ref(), None).await;
        }
        let mut state = lock(&self.state);
        state.flight = None;
        // That nobody has signed in is no failure of the endpoint; it is said once.
        let nobody = fault.code == "sign_in";
        if !nobody || !std::mem::replace(&mut state.said, true) {
            let text = format!("{}: {}", fault.code, fault.text);
            let mut event = NewEvent::new(Level::Error, "oauth.failed", text);
            event.detail = fault.detail.clone();
            self.event(event, item);
        }
        if nobody {
            return fault.into();
        }
        let now = self.shared.clock.now();
        let count = state.failure.as_ref().map_or(1, |failure| failure.count.saturating_add(1));
        let wait = FIRST_WAIT.saturating_mul(1 << (count - 1).min(6)).min(LONGEST_WAIT);
        let next = later(now, wait.max(error.retry_after.unwrap_or_default()));
        state.failure = Some(Failure { fault: fault.clone(), at: now, count, next });
        NoToken { fault, not_before: Some(next) }
    }

    pub(crate) fn event(&self, mut event: NewEvent, item: Option<ItemName>) {
        event.item = item;
        self.shared.keep.event(event);
    }

    pub(crate) fn view(&self) -> ClientView {
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
        let connect_url = self.connect_url();
        let unsigned = connect_url.is_some() && state.refresh.is_none() && shown != ClientState::Valid;
        let nobody = || unsigned.then(|| self.nobody_signed_in().fault.to_string());
        let failed = state.failure.as_ref();
        ClientView {
            name: self.name.clone(),
            grant: self.settings.grant.clone(),
            token_url: configured.or(discovered).map(|url| net::shown(&url)),
            state: shown,
            expires_at: state.held.as_ref().map(|held| held.expires_at),
            fetched_at: state.fetched_at,
            fetches: self.fetches.load(Ordering::Acquire),
            refresh_ends_at: state.refresh.as_ref().and_then(|refresh| refresh.ends),
            scope: state
                .held
                .as_ref()
                .and_then(|held| held.scope.clone())
                .or_else(|| self.settings.scope.clone()),
            last_401: state.last_401,
            failed_at: failed.map(|failure| failure.at),
            connect_url,
            last_error: failed.map(|failure| failure.fault.to_string()).or_else(nobody),
            last_error_detail: failed.and_then(|failure| failure.fault.detail.clone()),
            used_by: state.configured.union(&state.asked).cloned().collect(),
        }
    }
}

/// The fetch under way. A sender that is gone without an outcome is a fetch that panicked.
fn under_way(state: &State) -> Option<Flight> {
    state.flight.clone().filter(|flight| flight.has_changed().is_ok())
}
