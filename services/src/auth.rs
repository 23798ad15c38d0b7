//! `auth = { … }` of HTTP services: callers must show a bearer token (CONTRACT §2.6, RFC 6750). septet-oauth
//! judges it; here are the places a token may stand in, the answer to one that is refused, and the event
//! `auth.refused`.

use std::sync::Mutex;
use std::sync::PoisonError;

use axum::response::Response;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::{SignedDuration, Timestamp};
use septet_engine::config::build::{At, Build};
use septet_engine::host::ServiceContext;
use septet_oauth::{Auth, Verifier};
use zeroize::Zeroizing;

use crate::problem::problem;

/// More refusals than this in a minute are counted, not stored: a flood of bad tokens must not fill the
/// journal.
const EVENTS_A_MINUTE: u32 = 120;

/// Reports what is wrong with the settings.
pub(crate) fn check(build: &mut Build<'_>, auth: Option<&Auth>) {
    for (key, code, text) in auth.iter().flat_map(|auth| auth.check()) {
        build.error(code, &[At::Key("auth"), At::Key(key)], text, None);
    }
}

/// Lets callers in, for one run of a service.
#[derive(Debug)]
pub(crate) struct Guard {
    verifier: Verifier,
    cx: ServiceContext,
    noted: EventLimit,
}

/// Lets a bounded number of events a minute through.
#[derive(Debug)]
pub(crate) struct EventLimit(Mutex<Noted>);

/// How many events this minute has had.
#[derive(Debug)]
struct Noted {
    since: Timestamp,
    events: u32,
}

impl EventLimit {
    /// Starts counting.
    pub(crate) fn new(now: Timestamp) -> Self {
        EventLimit(Mutex::new(Noted { since: now, events: 0 }))
    }

    /// Whether one more event may be stored.
    pub(crate) fn allows(&self, now: Timestamp) -> bool {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(noted.since) >= SignedDuration::from_mins(1) {
            *noted = Noted { since: now, events: 0 };
        }
        noted.events = noted.events.saturating_add(1);
        noted.events <= EVENTS_A_MINUTE
    }
}

impl Guard {
    /// For settings that [`check`] found nothing wrong with.
    pub(crate) fn new(auth: Auth, cx: &ServiceContext) -> Guard {
        let clock = cx.runtime.clock.clone();
        let noted = EventLimit::new(clock.now());
        Guard { verifier: Verifier::new(auth, clock), cx: cx.clone(), noted }
    }

    /// Judges the token of a request. `elsewhere` is one that came as form field or query parameter
    /// (RFC 6750 §2.2, §2.3); a request must not use two ways at once.
    pub(crate) async fn admit(
        &self,
        headers: &HeaderMap,
        elsewhere: Option<&str>,
    ) -> Result<(), Box<Response>> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (first, more) = (values.next(), values.next().is_some());
        if more || (first.is_some() && elsewhere.is_some()) {
            let text = "a request has one bearer token, in one place";
            return Err(Box::new(problem(StatusCode::BAD_REQUEST, text, None)));
        }
        let authorization = match (first, elsewhere) {
            (Some(value), _) => value.to_str().ok().map(|value| Zeroizing::new(value.to_owned())),
            (None, Some(token)) => Some(Zeroizing::new(format!("Bearer {token}"))),
            (None, None) => None,
        };
        let judged = self.verifier.verify(authorization.as_deref().map(String::as_str)).await;
        let Err(refusal) = judged else { return Ok(()) };
        if self.noted.allows(self.cx.runtime.clock.now()) {
            self.cx.event(refusal.event());
        }
        let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::UNAUTHORIZED);
        let mut response = problem(status, &refusal.to_string(), None);
        let challenge = refusal.www_authenticate.as_deref().and_then(|text| HeaderValue::from_str(text).ok());
        if let Some(challenge) = challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        Err(Box::new(response))
    }
}

/// The parameter `access_token` of a query or form, decoded.
pub(crate) fn parameter(text: &str) -> Option<Zeroizing<String>> {
    let mut pairs = url::form_urlencoded::parse(text.as_bytes());
    pairs.find(|(name, _)| name == "access_token").map(|(_, value)| Zeroizing::new(value.into_owned()))
}
