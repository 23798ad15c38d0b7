//! The running server: its state, and its routes as an [`axum::Router`] that any listener can serve.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::rand;
use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::HeaderMap;
use axum::routing::{get, post};
use bytes::Bytes;
use jiff::Timestamp;
use septet_engine::event::{Level, NewEvent};
use septet_engine::event_limit::EventLimit;
use septet_engine::host::{HostFault, ServiceContext};
use serde_json::Value;

use super::checked::Checked;
use super::clients::Client;
use super::form::Forms;
use super::grants::Grants;
use super::guesses::Guesses;
use super::keys::{KeyStore, Keys};
use super::registration::Registered;
use super::remembered::Remembered;
use super::request::by_post;
use super::users::Door;
use super::{assertion, authenticate, authorize, discovery, inspect, kept, registration, token};
use crate::bodies::{Unread, read_body};

/// Token requests are small.
const BODY_LIMIT: u64 = 64 * 1024;
/// And quick.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Revocations remembered at most.
const REVOKED: usize = 100_000;

/// One running authorization server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Server(Arc<Inner>);

struct Inner {
    settings: Arc<Checked>,
    cx: ServiceContext,
    keys: RwLock<Arc<Keys>>,
    /// One rotation at a time.
    rotating: AtomicBool,
    grants: Mutex<Grants>,
    /// Ids of access tokens and tags of grants that count no more.
    revoked: Mutex<Remembered>,
    /// Ids of assertions that have been used.
    seen: Mutex<Remembered>,
    registered: Mutex<Registered>,
    door: Door,
    guesses: Guesses,
    forms: Forms,
    noted: EventLimit,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({:?})", self.0.settings)
    }
}

impl Server {
    /// A server over what is kept of earlier runs.
    pub(super) async fn open(
        settings: Arc<Checked>,
        keys: Keys,
        cx: ServiceContext,
    ) -> Result<Self, HostFault> {
        let now = cx.runtime.clock.now();
        let (mut grants, second) = (Grants::default(), now.as_second());
        kept::restore(&cx, kept::CODE, |id, value| grants.restore_code(id, value, second)).await?;
        kept::restore(&cx, kept::FAMILY, |id, value| grants.restore_family(id, value, second)).await?;
        let mut revoked = Remembered::new(REVOKED);
        kept::restore(&cx, kept::REVOKED, |id, value| revoked.restore(id, value, second)).await?;
        let mut seen = Remembered::new(assertion::SEEN);
        kept::restore(&cx, kept::SEEN, |id, value| seen.restore(id, value, second)).await?;
        let mut registered = Registered::default();
        if let Some(rules) = &settings.registration {
            kept::restore(&cx, kept::CLIENT, |id, value| registered.restore(id, value, rules)).await?;
        }
        let random = || {
            let mut key = vec![0; 32];
            rand::fill(&mut key).ok().map(|()| key)
        };
        let forms = Forms::new(cx.item.as_str(), &kept::keep_once(&cx, "forms", random).await?);
        Ok(Server(Arc::new(Inner {
            door: Door::new(&settings.users),
            settings,
            keys: RwLock::new(Arc::new(keys)),
            rotating: AtomicBool::new(false),
            grants: Mutex::new(grants),
            revoked: Mutex::new(revoked),
            seen: Mutex::new(seen),
            registered: Mutex::new(registered),
            guesses: Guesses::new(0, authenticate::GUESSES),
            forms,
            noted: EventLimit::new(now),
            cx,
        })))
    }

    pub(super) fn settings(&self) -> &Checked {
        &self.0.settings
    }

    pub(super) fn cx(&self) -> &ServiceContext {
        &self.0.cx
    }

    pub(super) fn keys(&self) -> Arc<Keys> {
        self.0.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.cx.runtime.clock.now()
    }

    pub(super) fn grants(&self) -> MutexGuard<'_, Grants> {
        self.0.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn revoked(&self) -> MutexGuard<'_, Remembered> {
        self.0.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Remembered> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn registered(&self) -> MutexGuard<'_, Registered> {
        self.0.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn guesses(&self) -> &Guesses {
        &self.0.guesses
    }

    pub(super) fn forms(&self) -> &Forms {
        &self.0.forms
    }

    pub(super) fn door(&self) -> &Door {
        &self.0.door
    }

    /// The client of this id: one of the settings, or one that registered itself.
    pub(super) fn find_client(&self, id: &str) -> Option<Arc<Client>> {
        let configured = self.settings().clients.iter().find(|client| client.id == id).cloned();
        configured.or_else(|| self.registered().client(id))
    }

    pub(super) fn event(&self, event: NewEvent) {
        self.0.cx.event(event);
    }

    /// Notes a refusal, unless there were many this minute.
    pub(super) fn note(&self, event: impl FnOnce() -> NewEvent) {
        if self.0.noted.allows(self.now()) {
            self.event(event());
        }
    }

    /// Another key signs from now on; it is kept and published before it does.
    pub(super) async fn rotate(&self, who: Option<&str>) -> Result<Value, HostFault> {
        if self.0.rotating.swap(true, Ordering::AcqRel) {
            return Err(HostFault::new("busy", "a rotation is under way"));
        }
        let rotated = self.rotate_alone(who).await;
        self.0.rotating.store(false, Ordering::Release);
        rotated
    }

    async fn rotate_alone(&self, who: Option<&str>) -> Result<Value, HostFault> {
        let (cx, now, old) = (self.cx(), self.now(), self.keys());
        let store = KeyStore { item: &cx.item, keep: cx.runtime.keep.as_ref(), now };
        let tell = |keys: &Keys| {
            let (key, before) = (keys.signing().key_id(), old.signing().key_id());
            let text =
                format!("key {key} signs from now on; {before} is published until its tokens have ended");
            let event = NewEvent::new(Level::Info, "oauth.rotated", text);
            self.event(match who {
                Some(who) => event.who(who),
                None => event,
            });
        };
        let keys = store.rotate(&old, self.settings().access_token_lifetime(), tell).await?;
        let summary = keys.summary(now);
        *self.0.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(summary)
    }

    /// The path of the authorization endpoint: where its forms go.
    pub(super) fn authorize_path(&self) -> String {
        format!("{}/oauth2/authorize", self.base())
    }

    /// The path of the issuer, without a slash at its end.
    pub(super) fn base(&self) -> &str {
        self.settings().issuer.path().trim_end_matches('/')
    }

    /// The address of an endpoint, below the issuer.
    pub(super) fn endpoint(&self, path: &str) -> String {
        format!("{}{path}", self.settings().issuer_text.trim_end_matches('/'))
    }

    /// Whether an assertion for this audience is for us.
    pub(super) fn is_named(&self, audience: &str) -> bool {
        audience == self.settings().issuer_text || audience == self.endpoint("/oauth2/token")
    }
}

/// Reads the body of a request, or says with which status it was not taken.
pub(super) async fn read(server: &Server, headers: &HeaderMap, body: Body) -> Result<Bytes, StatusCode> {
    let clock = &server.0.cx.runtime.clock;
    read_body(headers, body, BODY_LIMIT, BODY_TIME, clock).await.map_err(|unread| match unread {
        Unread::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
        Unread::Timeout(_) => StatusCode::REQUEST_TIMEOUT,
        Unread::Broken => StatusCode::BAD_REQUEST,
    })
}

/// All routes, below the issuer's path.
pub(super) fn router(server: Server) -> Router {
    let at = |path: &str| format!("{}/oauth2/{path}", server.base());
    let mut router = Router::new()
        .route(&at("authorize"), get(authorize::begin).post(authorize::go_on))
        .route(&at("token"), post(token::answer).fallback(by_post))
        .route(&at("introspect"), post(inspect::introspect).fallback(by_post))
        .route(&at("revoke"), post(inspect::revoke).fallback(by_post))
        .route(&at("userinfo"), get(inspect::userinfo).post(inspect::userinfo))
        .route(&at("jwks"), get(discovery::key_set));
    if server.settings().registration.is_some() {
        router = router.route(&at("register"), post(registration::register).fallback(by_post));
    }
    for path in discovery::paths(server.base()) {
        router = router.route(&path, get(discovery::metadata));
    }
    router.with_state(server)
}
