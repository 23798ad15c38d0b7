//! One fetch of a slot, from the first who wants it to everybody who waits for it: with the refresh token where
//! there is one, stored before it is shown, and after a failure the wait before the next.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use septet_engine::clock::rfc3339;
use septet_engine::event::{Level, NewEvent};
use septet_engine::fault::Fault;
use septet_engine::host::KeepFamily;
use septet_engine::id::ItemName;
use septet_engine::store::StoreFailed;
use septet_engine::token::NoToken;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::background::Ending;
use super::{Failure, Flight, Outcome, Slot, State};
use crate::answer::Answer;
use crate::client::{Client, ClientAuth, Grant};
use crate::fetch::{Ask, CodeExchange, Endpoint, FetchError};
use crate::kept::{Held, History, Kept, Refresh};
use crate::manager::lock;

/// Wait after the first failing fetch; doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What a fetch is made with.
pub(crate) enum Work {
    /// What there is: the refresh token, or what the settings say.
    Renew,
    /// A person has just signed in.
    SignIn(CodeExchange),
}

/// What a fetch brought.
struct Fetched {
    held: Held,
    refresh: Option<Refresh>,
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

impl Slot {
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
        let text = format!("{}: token fetched, valid until {}", self.name, rfc3339(held.expires_at));
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
    async fn store(&self, held: Option<&Held>, refresh: Option<&Refresh>) -> Result<(), StoreFailed> {
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
}

/// The fetch under way. A sender that is gone without an outcome is a fetch that panicked.
fn under_way(state: &State) -> Option<Flight> {
    state.flight.clone().filter(|flight| flight.has_changed().is_ok())
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    now.saturating_add(by).unwrap_or(Timestamp::MAX)
}
