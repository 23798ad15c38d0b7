//! `auth = { … }` of HTTP services: callers must show a bearer token (CONTRACT §2.6, RFC 6750). septet-oauth
//! judges it; here are the places a token may stand in, the answer to one that is refused, and the event
//! `auth.refused`.

use axum::response::Response;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use septet_engine::config::build::{At, Build};
use septet_engine::config::settings::ServerTls;
use septet_engine::event_limit::EventLimit;
use septet_engine::host::ServiceContext;
use septet_engine::server_tls::ClientCertificate;
use septet_oauth::{Auth, Check, Presented, Refusal, Verifier, Wanted, check_auth};
use zeroize::Zeroizing;

use crate::problem::problem;

/// Reports what is wrong with the settings. `fhir` says whether requests may be FHIR interactions.
pub(crate) fn check(build: &mut Build<'_>, auth: &Auth, tls: Option<&ServerTls>, fhir: bool) {
    for (key, code, text) in check_auth(auth) {
        build.error(code, &[At::Key("auth"), At::Key(key)], text, None);
    }
    if auth.smart && !fhir {
        let text = "smart scopes are for http services: a message is no FHIR interaction";
        build.error("S0502", &[At::Key("auth"), At::Key("smart")], text, None);
    }
    if auth.certificate_bound && tls.is_none_or(|tls| tls.client_ca.is_none()) {
        let text = "certificate_bound needs the certificates of clients";
        let suggestion = Some("add tls = { cert, key, client_ca }".to_owned());
        build.error("S0501", &[At::Key("auth"), At::Key("certificate_bound")], text, suggestion);
    }
}

/// Lets callers in, for one run of a service.
#[derive(Debug)]
pub(crate) struct Guard {
    verifier: Verifier,
    /// The path of the service, below which the FHIR interaction is read.
    base: String,
    cx: ServiceContext,
    noted: EventLimit,
}

impl Guard {
    /// For settings that [`check`] found nothing wrong with.
    pub(crate) fn new(auth: Auth, path: &str, cx: &ServiceContext) -> Guard {
        let clock = cx.runtime.clock.clone();
        let noted = EventLimit::new(clock.now());
        let base = path.trim_end_matches('/').to_owned();
        Guard { verifier: Verifier::new(auth, clock), base, cx: cx.clone(), noted }
    }

    /// Judges the token of a request. `elsewhere` is one that came as form field or query parameter
    /// (RFC 6750 §2.2, §2.3); a request must not use two ways at once.
    pub(crate) async fn admit(&self, parts: &Parts, elsewhere: Option<&str>) -> Result<(), Box<Response>> {
        let mut values = parts.headers.get_all(AUTHORIZATION).iter();
        let (first, more) = (values.next(), values.next().is_some());
        if more || (first.is_some() && elsewhere.is_some()) {
            let several = Refusal::new(Check::Several, "one token in one place", "more than one");
            return Err(self.refuse(&several));
        }
        let authorization = match (first, elsewhere) {
            (Some(value), _) => value.to_str().ok().map(|value| Zeroizing::new(value.to_owned())),
            (None, Some(token)) => Some(Zeroizing::new(format!("Bearer {token}"))),
            (None, None) => None,
        };
        let wanted = self.verifier.is_smart().then(|| self.wanted(parts));
        let certificate = parts.extensions.get::<ClientCertificate>();
        let judged = self.verifier.judge(Presented {
            authorization: authorization.as_deref().map(String::as_str),
            certificate: certificate.map(|certificate| certificate.sha256),
            wanted: wanted.as_ref(),
        });
        judged.await.map(|_| ()).map_err(|refusal| self.refuse(&refusal))
    }

    /// The FHIR interaction of a request.
    fn wanted(&self, parts: &Parts) -> Wanted {
        let path = parts.uri.path();
        let path = path.strip_prefix(&self.base).unwrap_or(path);
        Wanted::of(parts.method.as_str(), path, parts.uri.query().unwrap_or_default())
    }

    fn refuse(&self, refusal: &Refusal) -> Box<Response> {
        if self.noted.allows(self.cx.runtime.clock.now()) {
            self.cx.event(refusal.event());
        }
        let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::UNAUTHORIZED);
        let mut response = problem(status, &refusal.to_string(), None);
        let challenge = refusal.www_authenticate.as_deref().and_then(|text| HeaderValue::from_str(text).ok());
        if let Some(challenge) = challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        Box::new(response)
    }
}

/// The parameter `access_token` of a query or form, decoded.
pub(crate) fn parameter(text: &str) -> Option<Zeroizing<String>> {
    let mut pairs = url::form_urlencoded::parse(text.as_bytes());
    pairs.find(|(name, _)| name == "access_token").map(|(_, value)| Zeroizing::new(value.into_owned()))
}
