//! Who may do what (CONTRACT §2.6 "Access"): accounts with roles, bearer tokens of an issuer
//! ([`crate::bearer`]), the `Host` and origin checks that keep other people's web pages out.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use septet_engine::clock::SharedClock;
use septet_engine::config::settings::{Admin, Role};
use septet_engine::event::{Level, NewEvent};
use septet_engine::event_limit::EventLimit;
use septet_engine::server_tls::ClientCertificate;
use septet_oauth::{Check, Refusal};
use tokio::sync::Semaphore;

use crate::Context;
use crate::api::sign_in;
use crate::bearer::Bearer;
use crate::listen::Peer;
use crate::problem::Problem;

/// The account behind a request; without accounts everybody on loopback is admin.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name, absent where there are no accounts.
    pub name: Option<String>,
    /// What it may do.
    pub role: Role,
}

/// A verified password stays good for this long: one argon2 run costs tens of milliseconds.
const REMEMBER: Duration = Duration::from_secs(60);

/// The rules of one admin listener.
pub struct Access {
    hosts: Vec<String>,
    users: BTreeMap<String, (String, Role)>,
    tokens: BTreeMap<String, (String, Role)>,
    bearer: Option<Bearer>,
    has_accounts: bool,
    verified: Mutex<HashMap<[u8; 32], Timestamp>>,
    hashing: Semaphore,
    noted: EventLimit,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({} users, {} tokens)", self.users.len(), self.tokens.len())
    }
}

impl Access {
    /// From `[admin]` and the address that is listened on.
    pub fn new(settings: &Admin, listening: SocketAddr, clock: &SharedClock) -> Self {
        let bearer = Bearer::new(settings, clock);
        let has_accounts = bearer.is_some() || !settings.users.is_empty() || !settings.tokens.is_empty();
        let hosts = if has_accounts {
            settings.hosts.iter().map(|host| host.to_ascii_lowercase()).collect()
        } else {
            let address = listening.ip().to_string();
            vec!["localhost".into(), "127.0.0.1".into(), "[::1]".into(), address]
        };
        let accounts = |all: &BTreeMap<String, (septet_engine::config::settings::Secret, Role)>| {
            all.iter().map(|(name, (hash, role))| (name.clone(), (hash.reveal().to_owned(), *role))).collect()
        };
        Access {
            hosts,
            users: accounts(&settings.users),
            tokens: accounts(&settings.tokens),
            bearer,
            has_accounts,
            verified: Mutex::new(HashMap::new()),
            hashing: Semaphore::new(2),
            noted: EventLimit::new(clock.now()),
        }
    }

    /// Without accounts only names of this machine are accepted; with accounts the configured list, or any.
    fn accepts_host(&self, host: &str) -> bool {
        if self.has_accounts && self.hosts.is_empty() {
            return true;
        }
        let host = host.to_ascii_lowercase();
        let without_port = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
            _ => host.as_str(),
        };
        self.hosts.iter().any(|known| known == without_port || *known == host)
    }

    /// The account of the request's `Authorization`, when it is right.
    async fn account(
        &self,
        headers: &HeaderMap,
        certificate: Option<ClientCertificate>,
        now: Timestamp,
    ) -> Result<Account, Denied> {
        if !self.has_accounts {
            return Ok(Account { name: None, role: Role::Admin });
        }
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().and_then(|value| value.to_str().ok()).unwrap_or("");
        if values.next().is_some() {
            let several = Refusal::new(Check::Several, "one token in one place", "more than one");
            return Err(Denied::Token(Box::new(several)));
        }
        let (scheme, credentials) = value.split_once(' ').unwrap_or(("", ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            return match (self.by_token(credentials.trim()), &self.bearer) {
                (Some(account), _) => Ok(account),
                (None, Some(bearer)) => bearer
                    .account(value, certificate)
                    .await
                    .map_err(|refusal| Denied::Token(Box::new(refusal))),
                (None, None) => Err(Denied::Credentials(None)),
            };
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(Denied::Credentials(None));
        }
        let pair = STANDARD.decode(credentials.trim()).ok().and_then(|raw| String::from_utf8(raw).ok());
        let Some((name, password)) = pair.as_deref().and_then(|pair| pair.split_once(':')) else {
            return Err(Denied::Credentials(None));
        };
        match self.users.get(name) {
            Some((hash, role)) if self.password_is_right(hash, password, now).await => {
                Ok(Account { name: Some(name.to_owned()), role: *role })
            }
            Some(_) => Err(Denied::Credentials(Some(name.to_owned()))),
            None => Err(Denied::Credentials(None)),
        }
    }

    fn by_token(&self, token: &str) -> Option<Account> {
        let hash = hex(digest(&SHA256, token.as_bytes()).as_ref());
        let same = |known: &str| {
            aws_lc_rs::constant_time::verify_slices_are_equal(
                known.to_ascii_lowercase().as_bytes(),
                hash.as_bytes(),
            )
            .is_ok()
        };
        self.tokens
            .iter()
            .find(|(_, (known, _))| same(known))
            .map(|(name, (_, role))| Account { name: Some(name.clone()), role: *role })
    }

    async fn password_is_right(&self, hash: &str, password: &str, now: Timestamp) -> bool {
        let mut fingerprint = [0; 32];
        let joined = format!("{hash}\0{password}");
        fingerprint.copy_from_slice(digest(&SHA256, joined.as_bytes()).as_ref());
        {
            let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
            verified.retain(|_, until| *until > now);
            if verified.contains_key(&fingerprint) {
                return true;
            }
        }
        let Ok(_turn) = self.hashing.acquire().await else { return false };
        let (hash, password) = (hash.to_owned(), zeroize::Zeroizing::new(password.to_owned()));
        let right = tokio::task::spawn_blocking(move || {
            PasswordHash::new(&hash)
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        });
        let right = right.await.unwrap_or(false);
        if right {
            let until = now.saturating_add(jiff::SignedDuration::try_from(REMEMBER).unwrap_or_default());
            let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
            verified.insert(fingerprint, until.unwrap_or(now));
        }
        right
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a route asks of the account.
fn needed(method: &Method, path: &str) -> Role {
    if sign_in::is_step(path) {
        Role::Operator
    } else if path == "/api/v1/store" || path.starts_with("/api/v1/store/") {
        // Everything that is stored, whoever may look at which part of it.
        Role::Admin
    } else if method == Method::GET || method == Method::HEAD || path == "/api/v1/messages/search" {
        Role::Viewer
    } else if path == "/api/v1/production/reload"
        || path == "/api/v1/purge"
        || (path.starts_with("/api/v1/oauth/") && path.ends_with("/rotate"))
    {
        Role::Admin
    } else {
        Role::Operator
    }
}

/// Whether a browser says that another site's page made this request.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site")
        && !matches!(site, "same-origin" | "none")
    {
        return true;
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let host = text("host").unwrap_or("");
    let origin = origin.to_str().unwrap_or("");
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_none_or(|authority| !authority.eq_ignore_ascii_case(host))
}

/// Why a request has no account.
enum Denied {
    /// No credentials, or wrong ones, of this account where it exists.
    Credentials(Option<String>),
    /// A bearer token that the issuer's rules refuse.
    Token(Box<Refusal>),
}

/// The ways to sign in, for `WWW-Authenticate`.
const WAYS: &str = "Basic realm=\"septet\", Bearer realm=\"septet\"";

/// The answer to a request without an account, and its event.
fn refuse(context: &Context, headers: &HeaderMap, denied: Denied) -> Response {
    let store = context.parts.engine.store();
    let tried =
        headers.contains_key(header::AUTHORIZATION) && context.access.noted.allows(store.clock().now());
    match denied {
        Denied::Credentials(name) => {
            if tried {
                let text = "wrong credentials for the admin API";
                let event = NewEvent::new(Level::Warning, "sign_in.failed", text);
                store.log(match name {
                    Some(name) => event.who(name),
                    None => event,
                });
            }
            let problem = Problem::new(StatusCode::UNAUTHORIZED, "sign in with basic or bearer credentials");
            ([(header::WWW_AUTHENTICATE, WAYS)], problem).into_response()
        }
        Denied::Token(refusal) => {
            if tried {
                store.log(refusal.event());
            }
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::UNAUTHORIZED);
            let mut response = Problem::new(status, refusal.to_string()).into_response();
            if let Some(challenge) = &refusal.www_authenticate
                && let Ok(value) = HeaderValue::from_str(challenge)
            {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
            }
            response
        }
    }
}

/// Whether a person goes there, rather than a script or an image of some page.
fn navigates(headers: &HeaderMap) -> bool {
    let mode = headers.get("sec-fetch-mode").and_then(|value| value.to_str().ok());
    !headers.contains_key(header::ORIGIN) && mode.is_none_or(|mode| mode == "navigate")
}

/// Every request goes through here first.
pub(crate) async fn check(State(context): State<Context>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/healthz" || path == "/readyz" {
        return next.run(request).await;
    }
    let access = &context.access;
    let headers = request.headers();
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host =
        headers.get(header::HOST).and_then(|value| value.to_str().ok()).map(str::to_owned).or(authority);
    if !host.as_deref().is_some_and(|host| access.accepts_host(host)) {
        let detail = "this Host is not served here; add it to admin.hosts";
        return Problem::new(StatusCode::MISDIRECTED_REQUEST, detail).into_response();
    }
    // A provider sends people back from its own site; what they bring is judged by its state.
    let comes_back = request.method() == Method::GET && sign_in::is_callback(&path) && navigates(headers);
    if is_foreign(headers) && !comes_back {
        return Problem::new(StatusCode::FORBIDDEN, "requests from other sites are refused").into_response();
    }
    let now = context.parts.engine.store().clock().now();
    let certificate = request.extensions().get::<ConnectInfo<Peer>>().and_then(|peer| peer.0.certificate);
    let account = match access.account(headers, certificate, now).await {
        Ok(account) => account,
        Err(denied) => return refuse(&context, headers, denied),
    };
    let needed = needed(request.method(), &path);
    if account.role < needed {
        let role = match needed {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        };
        return Problem::new(StatusCode::FORBIDDEN, format!("this needs the role {role}")).into_response();
    }
    request.extensions_mut().insert(Arc::new(account));
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use septet_engine::clock::ManualClock;
    use septet_engine::config::settings::Secret;

    fn clock() -> SharedClock {
        Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH))
    }

    fn settings() -> Admin {
        Admin {
            listen: "127.0.0.1:8700".parse().unwrap(),
            tls: None,
            behind_proxy: false,
            hosts: Vec::new(),
            users: BTreeMap::new(),
            tokens: BTreeMap::new(),
            auth: None,
            role_claim: None,
            roles: BTreeMap::new(),
        }
    }

    #[test]
    fn without_accounts_only_names_of_this_machine_are_hosts() {
        let access = Access::new(&settings(), "127.0.0.1:8700".parse().unwrap(), &clock());
        for host in ["localhost", "localhost:8700", "127.0.0.1:8700", "[::1]:8700", "LOCALHOST"] {
            assert!(access.accepts_host(host), "{host}");
        }
        for host in ["evil.example", "evil.example:8700", "127.0.0.1.evil.example", ""] {
            assert!(!access.accepts_host(host), "{host}");
        }
    }

    #[test]
    fn a_request_from_another_site_is_foreign() {
        let headers = |pairs: &[(&'static str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect::<HeaderMap>()
        };
        assert!(!is_foreign(&headers(&[("host", "localhost:8700")])));
        assert!(!is_foreign(&headers(&[("host", "localhost:8700"), ("origin", "http://localhost:8700")])));
        assert!(is_foreign(&headers(&[("host", "localhost:8700"), ("origin", "https://evil.example")])));
        assert!(is_foreign(&headers(&[("host", "localhost:8700"), ("origin", "null")])));
        assert!(is_foreign(&headers(&[("host", "localhost:8700"), ("sec-fetch-site", "cross-site")])));
    }

    #[test]
    fn signing_in_for_a_client_takes_an_operator() {
        for path in ["/oauth/vendor/connect", "/oauth/vendor/callback"] {
            assert_eq!(needed(&Method::GET, path), Role::Operator, "{path}");
        }
        assert_eq!(needed(&Method::GET, "/oauth"), Role::Viewer);
        assert_eq!(needed(&Method::POST, "/api/v1/oauth/vendor/test"), Role::Operator);
    }

    #[tokio::test]
    async fn tokens_are_compared_by_hash_and_roles_are_kept() {
        let mut settings = settings();
        let hash = hex(digest(&SHA256, b"random-token").as_ref());
        settings.tokens.insert("ci".into(), (Secret::new(hash), Role::Operator));
        let access = Access::new(&settings, settings.listen, &clock());
        let account = access.by_token("random-token").unwrap();
        assert_eq!((account.name.as_deref(), account.role), (Some("ci"), Role::Operator));
        assert!(access.by_token("other").is_none());
        assert!(access.account(&HeaderMap::new(), None, Timestamp::UNIX_EPOCH).await.is_err());
    }
}
