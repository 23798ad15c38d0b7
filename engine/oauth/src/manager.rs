//! The token source of a production: a slot for each named client ([`crate::slot`]), and what concerns all of
//! them: taking a plan's clients at start and reload, renewing in the background, handing alerts on.
//! Implements the engine's [`TokenSource`].

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use septet_engine::clock::SharedClock;
use septet_engine::config::settings::OAuthClient;
use septet_engine::event::Level;
use septet_engine::fault::Fault;
use septet_engine::host::Keep;
use septet_engine::token::{AccessToken, NoToken, TokenSource};
use serde_json::{Map, Value};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::net;
use crate::sign_in::Pending;
use crate::slot::{Slot, landed};
use crate::view::ClientView;

/// The token source of a production.
pub struct TokenManager {
    pub(crate) shared: Arc<Shared>,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    /// Sign-ins that have been begun.
    pub(crate) pending: Mutex<Pending>,
}

/// What all slots use.
pub(crate) struct Shared {
    pub(crate) keep: Arc<dyn Keep>,
    pub(crate) clock: SharedClock,
    pub(crate) timeout: Duration,
    /// Something happened that may move the next background renewal.
    pub(crate) changed: Notify,
    /// Alerts to be raised, at most one for each client.
    pub(crate) alerts: Mutex<BTreeMap<String, TokenAlert>>,
    /// Where the admin listener is, for texts.
    pub(crate) base: Mutex<String>,
}

/// Something about a client that a person should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAlert {
    /// How loud.
    pub level: Level,
    /// What, and what to do.
    pub text: String,
}

impl fmt::Debug for TokenManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(lock(&self.slots).keys()).finish()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl TokenManager ===

impl TokenManager {
    /// A manager without clients; [`TokenManager::update`] gives it some.
    pub fn new(keep: Arc<dyn Keep>, clock: SharedClock) -> TokenManager {
        TokenManager::with_timeout(keep, clock, net::TIMEOUT)
    }

    /// The same with another limit for one exchange with a token endpoint (30 s otherwise).
    pub fn with_timeout(keep: Arc<dyn Keep>, clock: SharedClock, timeout: Duration) -> TokenManager {
        let changed = Notify::new();
        let (alerts, base) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { keep, clock, timeout, changed, alerts, base });
        TokenManager { shared, slots: Mutex::default(), pending: Mutex::default() }
    }

    /// Where people reach the admin listener, for the texts that send them there: `http://127.0.0.1:8700`.
    pub fn reached_at(&self, base: &str) {
        base.clone_into(&mut lock(&self.shared.base));
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

    /// Renews tokens before they end, as long as somebody used them, and hands alerts to `raise`. Runs until
    /// `stop`.
    pub async fn renew<F>(self: Arc<Self>, raise: impl Fn(TokenAlert) -> F, stop: CancellationToken)
    where
        F: Future<Output = ()>,
    {
        loop {
            let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
            let now = self.shared.clock.now();
            let next = slots.iter().filter_map(|slot| slot.tick(now)).min().unwrap_or(Timestamp::MAX);
            let alerts = std::mem::take(&mut *lock(&self.shared.alerts));
            for alert in alerts.into_values() {
                raise(alert).await;
            }
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

    /// One client.
    pub fn client(&self, name: &str) -> Option<ClientView> {
        self.slot(name).map(|slot| slot.view())
    }

    pub(crate) fn slot(&self, name: &str) -> Option<Arc<Slot>> {
        lock(&self.slots).get(name).cloned()
    }

    /// Fetches now, whatever is held, and answers when done; `None` for an unknown client. A failure leaves a
    /// still valid token in use.
    pub async fn refresh(&self, client: &str) -> Option<Result<ClientView, Fault>> {
        let slot = self.slot(client)?;
        let flight = slot.join(&mut lock(&slot.state), None);
        Some(landed(flight).await.map(|_| slot.view()).map_err(|error| error.fault))
    }

    /// What the token of a client says of itself, where it is a JWT: its claims. Never the token.
    pub fn claims(&self, client: &str) -> Option<Map<String, Value>> {
        crate::sign_in::payload(&self.slot(client)?.held_token()?)
    }
}

#[async_trait]
impl TokenSource for TokenManager {
    async fn token(&self, client: &str, item: &str) -> Result<AccessToken, NoToken> {
        match self.slot(client) {
            Some(slot) => slot.token(item).await,
            None => Err(Fault::new("call", "oauth", format!("there is no OAuth client {client}")).into()),
        }
    }

    fn knows(&self, client: &str) -> bool {
        lock(&self.slots).contains_key(client)
    }

    fn rejected(&self, token: &AccessToken) {
        if let Some(slot) = self.slot(&token.client) {
            slot.rejected(token);
        }
    }
}
