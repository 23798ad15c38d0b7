//! One client's slot: its token, the one fetch that may be under way, its back-off, and what operators see.
//!
//! A slot holds a token of one credential version: never one that was given to other credentials, and never
//! keyed by a URL. A fetch runs in a task of its own, so that a caller who gives up takes nothing from the others;
//! it is bounded by the network timeout. A token is on stable storage before anybody uses it. Who is given what is
//! here, a fetch in `fetching`, what is done without being asked in `background`; what is fetched and what with is in
//! [`crate::fetch`], for whom in [`crate::manager`].

mod background;
mod fetching;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use septet_engine::config::settings::OAuthClient;
use septet_engine::event::NewEvent;
use septet_engine::fault::Fault;
use septet_engine::host::KeepFamily;
use septet_engine::id::ItemName;
use septet_engine::token::{AccessToken, NoToken};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::client::Client;
use crate::fetch::Endpoint;
use crate::kept::{Held, Kept, Refresh};
use crate::manager::{Shared, lock};
use crate::net;
use crate::view::{ClientState, ClientView};
use background::Ending;
pub(crate) use fetching::landed;

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

    pub(super) fn give(&self, held: &Held) -> AccessToken {
        let client = self.name.clone();
        AccessToken { client, secret: held.token.clone(), generation: held.generation }
    }

    fn mark_used(&self, state: &mut State) {
        if !state.used {
            state.used = true;
            self.shared.changed.notify_one();
        }
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
