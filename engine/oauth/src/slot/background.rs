//! What a slot does while nobody asks: it renews a token that is in use before it ends, and says in time when a
//! person will be needed, because a refresh token ends.

use std::sync::Arc;

use jiff::Timestamp;
use septet_engine::event::Level;

use super::{Slot, State};
use crate::client::Grant;
use crate::fetch::FetchError;
use crate::manager::{TokenAlert, lock};

/// What was done about the end of a refresh token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
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

impl Slot {
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

    pub(super) fn alert(&self, level: Level, text: &str) {
        let text = format!("OAuth client {}: {text}", self.name);
        lock(&self.shared.alerts).insert(self.name.clone(), TokenAlert { level, text });
        self.shared.changed.notify_one();
    }

    /// What an operator does when the refresh token is gone.
    pub(super) fn what_to_do(&self) -> String {
        match self.connect_url() {
            Some(url) => format!("sign in at {url}"),
            None => "put a new refresh_token into the production file".to_owned(),
        }
    }

    pub(super) fn connect_url(&self) -> Option<String> {
        self.client.as_ref().ok().filter(|client| client.grant == Grant::AuthorizationCode)?;
        let registered = self.settings.redirect_uri.as_deref().and_then(|uri| uri.strip_suffix("/callback"));
        Some(match registered {
            Some(base) => format!("{base}/connect"),
            None => format!("{}/oauth/{}/connect", lock(&self.shared.base), self.name),
        })
    }

    pub(super) fn nobody_signed_in(&self) -> FetchError {
        FetchError::new("sign_in", format!("nobody has signed in yet; {}", self.what_to_do()))
    }
}
