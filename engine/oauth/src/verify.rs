//! Judges the bearer token of a request (RFC 6750, RFC 7519, RFC 9068, RFC 8725): cheap checks first, then one
//! signature, then the claims. Every refusal names the check that failed, with what was expected and what was
//! there, so that nobody has to guess why a token is not accepted.
//!
//! **Invariant:** a token costs at most one parse of 16 KiB and a few signatures, and never a fetch of its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use septet_engine::clock::SharedClock;
use septet_engine::event::{Level, NewEvent};
use serde_json::{Map, Value};

use crate::auth::Auth;
use crate::introspect::Introspector;
use crate::jwks::{Issuer, Key, KeySet, NoKey};
use crate::keys::{Algorithm, algorithm, algorithm_name};
use crate::net;

/// Larger tokens are not looked at.
const TOKEN_CAP: usize = 16 * 1024;
/// For `exp` and `nbf`: clocks differ.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);
/// Signatures tried where a token names no key, or several keys share its name.
const MAX_TRIES: usize = 4;

/// Which check a token failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// There is no bearer token.
    Missing,
    /// It is no JWT.
    Malformed,
    /// Its algorithm is not accepted, or not the key's.
    Alg,
    /// Its type is not that of an access token.
    Typ,
    /// The issuer has no such key.
    Kid,
    /// Its signature does not verify.
    Sig,
    /// It is another issuer's.
    Iss,
    /// It is for somebody else.
    Aud,
    /// It has expired, or does not say when it does.
    Exp,
    /// It is not valid yet.
    Nbf,
    /// It lacks a scope.
    Scope,
    /// The issuer says that it is not active (introspection).
    Inactive,
    /// The issuer could not be asked, so nothing can be said about the token.
    Keys,
}

impl Check {
    /// The short name: `missing`, `alg`, `aud`, …
    pub fn as_str(self) -> &'static str {
        match self {
            Check::Missing => "missing",
            Check::Malformed => "malformed",
            Check::Alg => "alg",
            Check::Typ => "typ",
            Check::Kid => "kid",
            Check::Sig => "sig",
            Check::Iss => "iss",
            Check::Aud => "aud",
            Check::Exp => "exp",
            Check::Nbf => "nbf",
            Check::Scope => "scope",
            Check::Inactive => "inactive",
            Check::Keys => "keys",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Check::Missing => "a bearer token is required",
            Check::Malformed => "the token cannot be read",
            Check::Alg => "the token's algorithm is not accepted",
            Check::Typ => "the token is no access token",
            Check::Kid => "the token's key is unknown",
            Check::Sig => "the token's signature does not verify",
            Check::Iss => "the token is from another issuer",
            Check::Aud => "the token is for another audience",
            Check::Exp => "the token has expired",
            Check::Nbf => "the token is not valid yet",
            Check::Scope => "the token lacks a scope",
            Check::Inactive => "the token is not active",
            Check::Keys => "the token cannot be verified now",
        }
    }
}

/// Why a request is refused. `Debug` and `Display` show the check only: the values are the peer's.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .check.description())]
pub struct Refusal {
    /// Which check failed.
    pub check: Check,
    /// What it wanted.
    pub expected: String,
    /// What it got; foreign text.
    pub actual: String,
    /// 401; 403 for a missing scope; 503 when the issuer could not be asked.
    pub status: u16,
    /// The value of `WWW-Authenticate`; none with 503.
    pub www_authenticate: Option<String>,
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refusal({} {})", self.check.as_str(), self.status)
    }
}

impl Refusal {
    pub(crate) fn new(check: Check, expected: impl Into<String>, actual: impl Into<String>) -> Self {
        let description = check.description();
        let (status, www_authenticate) = match check {
            Check::Missing => (401, Some(r#"Bearer realm="septet""#.to_owned())),
            Check::Keys => (503, None),
            Check::Scope => (403, None),
            _ => {
                let error = r#"Bearer realm="septet", error="invalid_token", error_description="#;
                (401, Some(format!("{error}\"{description}\"")))
            }
        };
        let actual = actual.into().chars().take(500).collect();
        Refusal { check, expected: expected.into(), actual, status, www_authenticate }
    }

    fn scope(needed: &str, actual: String) -> Self {
        // Only characters that RFC 6749 §3.3 allows in a scope may stand in the header.
        let legal = |c: &char| matches!(c, ' ' | '\x21' | '\x23'..='\x5b' | '\x5d'..='\x7e');
        let shown: String = needed.chars().filter(legal).collect();
        let error = r#"Bearer realm="septet", error="insufficient_scope", scope="#;
        let mut refusal = Refusal::new(Check::Scope, needed, actual);
        refusal.www_authenticate = Some(format!("{error}\"{shown}\""));
        refusal
    }

    /// The event `auth.refused`: the check's short name as text, expected and actual value as detail.
    pub fn event(&self) -> NewEvent {
        NewEvent::new(Level::Warning, "auth.refused", self.check.as_str())
            .detail(format!("expected {}, got {}", self.expected, self.actual))
    }
}

/// What an accepted token says. `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Claims {
    /// All claims.
    pub all: Map<String, Value>,
    /// `scope`, `scp` and `roles` together.
    pub scopes: Vec<String>,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claims({} entries)", self.all.len())
    }
}

impl Claims {
    /// `sub`.
    pub fn subject(&self) -> Option<&str> {
        self.all.get("sub")?.as_str()
    }

    /// `client_id` (RFC 9068), or what other issuers call it.
    pub fn client(&self) -> Option<&str> {
        ["client_id", "azp", "cid", "appid"].iter().find_map(|name| self.all.get(*name)?.as_str())
    }
}

/// Judges tokens for one service.
#[derive(Debug)]
pub struct Verifier {
    auth: Auth,
    algorithms: Vec<Algorithm>,
    issuer: Option<Arc<Issuer>>,
    introspector: Option<Introspector>,
    clock: SharedClock,
}

impl Verifier {
    /// A verifier for settings that [`Auth::check`] has no problem with. Fetches nothing yet.
    pub fn new(auth: Auth, clock: SharedClock) -> Verifier {
        Verifier::with_timeout(auth, clock, net::TIMEOUT)
    }

    /// The same with another limit for one exchange with the issuer (30 s otherwise).
    pub fn with_timeout(auth: Auth, clock: SharedClock, timeout: Duration) -> Verifier {
        let introspector = Introspector::new(&auth, &clock, timeout);
        let issuer = match introspector {
            Some(_) => None,
            None => auth.issuer.as_deref().map(|issuer| Issuer::shared(issuer, &clock, timeout)),
        };
        Verifier { algorithms: auth.accepted(), auth, issuer, introspector, clock }
    }

    /// Judges the value of a request's `Authorization` header. Requests with several such headers are to be
    /// refused by the caller as malformed.
    pub async fn verify(&self, authorization: Option<&str>) -> Result<Claims, Refusal> {
        let token = authorization.and_then(bearer);
        let token = token.ok_or_else(|| Refusal::new(Check::Missing, "a bearer token", "none"))?;
        if token.len() > TOKEN_CAP {
            let size = format!("{} bytes", token.len());
            return Err(Refusal::new(Check::Malformed, "at most 16384 bytes", size));
        }
        let claims = match (&self.introspector, &self.issuer) {
            (Some(introspector), _) => introspector.ask(token).await?,
            (None, Some(issuer)) => self.signed(token, issuer).await?,
            (None, None) => return Err(Refusal::new(Check::Keys, "an issuer", "none configured")),
        };
        self.judge(claims)
    }

    /// The claims of a token whose signature is the issuer's.
    async fn signed(&self, token: &str, issuer: &Arc<Issuer>) -> Result<Map<String, Value>, Refusal> {
        let parsed = Parsed::new(token)?;
        let algorithm = self.accepted_algorithm(&parsed.header)?;
        access_token(&parsed.header)?;
        let name = parsed.claims.get("iss").and_then(Value::as_str);
        let ours = name == self.auth.issuer.as_deref();
        let id = parsed.header.get("kid").and_then(Value::as_str);
        let keys = issuer.keys(id, ours).await.map_err(|missing| match missing {
            // There is no key for it because it is somebody else's: say that instead.
            _ if !ours => self.wrong_issuer(name),
            NoKey::Unavailable(why) => Refusal::new(Check::Keys, "the issuer's keys", why),
            NoKey::Unknown => Refusal::new(Check::Kid, "a key of the issuer", id.unwrap_or("none named")),
        })?;
        let mut fitting = keys.iter().filter(|key| key.fits(algorithm)).peekable();
        if fitting.peek().is_none() {
            return Err(Refusal::new(Check::Alg, "the algorithm of its key", algorithm_name(algorithm)));
        }
        if fitting.take(MAX_TRIES).any(|key| parsed.is_signed_by(key, algorithm)) {
            Ok(parsed.claims)
        } else {
            Err(Refusal::new(Check::Sig, "a signature by the issuer's key", "one that does not verify"))
        }
    }

    fn accepted_algorithm(&self, header: &Map<String, Value>) -> Result<Algorithm, Refusal> {
        let name = header.get("alg").and_then(Value::as_str).unwrap_or("none named");
        let accepted = algorithm(name).filter(|algorithm| self.algorithms.contains(algorithm));
        accepted.ok_or_else(|| {
            let names: Vec<_> = self.algorithms.iter().map(|algorithm| algorithm_name(*algorithm)).collect();
            Refusal::new(Check::Alg, names.join(" "), name)
        })
    }

    fn wrong_issuer(&self, found: Option<&str>) -> Refusal {
        Refusal::new(Check::Iss, self.auth.issuer.as_deref().unwrap_or_default(), found.unwrap_or("none"))
    }

    /// The claims: issuer, audience, time, scope.
    fn judge(&self, all: Map<String, Value>) -> Result<Claims, Refusal> {
        let found = all.get("iss").and_then(Value::as_str);
        // An introspection endpoint may leave `iss` out; a JWT may not.
        let must = self.introspector.is_none() || found.is_some();
        if must && self.auth.issuer.is_some() && found != self.auth.issuer.as_deref() {
            return Err(self.wrong_issuer(found));
        }
        let audiences = words(all.get("aud"), false);
        if !self.auth.audience.0.is_empty()
            && !self.auth.audience.0.iter().any(|ours| audiences.iter().any(|theirs| theirs == ours))
        {
            return Err(Refusal::new(Check::Aud, self.auth.audience.0.join(" or "), or_none(&audiences)));
        }
        let now = self.clock.now();
        match moment(all.get("exp")) {
            Some(exp) if exp.saturating_add(LEEWAY).unwrap_or(Timestamp::MAX) > now => {}
            Some(exp) => return Err(Refusal::new(Check::Exp, format!("later than {now}"), exp.to_string())),
            None if all.get("exp").is_none() && self.introspector.is_some() => {}
            None => return Err(Refusal::new(Check::Exp, format!("later than {now}"), "none")),
        }
        if let Some(value) = all.get("nbf") {
            let valid = |nbf: &Timestamp| nbf.saturating_sub(LEEWAY).unwrap_or(Timestamp::MIN) <= now;
            match moment(Some(value)) {
                Some(nbf) if valid(&nbf) => {}
                nbf => {
                    let found = nbf.map_or("not a time".to_owned(), |nbf| nbf.to_string());
                    return Err(Refusal::new(Check::Nbf, format!("not later than {now}"), found));
                }
            }
        }
        let scopes: Vec<String> =
            ["scope", "scp", "roles"].iter().flat_map(|name| words(all.get(*name), true)).collect();
        let needed = self.auth.scope.as_deref().unwrap_or_default();
        if !needed.split_whitespace().all(|scope| scopes.iter().any(|found| found == scope)) {
            return Err(Refusal::scope(needed, or_none(&scopes)));
        }
        Ok(Claims { all, scopes })
    }
}

/// The token of `Bearer …`.
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.trim().split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

/// `typ` absent, `JWT` or `at+jwt` (RFC 9068 §4), so that an id token's or a logout token's signature is not
/// mistaken where they are typed; and no extension that must be understood (RFC 7515 §4.1.11).
fn access_token(header: &Map<String, Value>) -> Result<(), Refusal> {
    let expected = "JWT or at+jwt";
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) => {
            let short = typ.to_ascii_lowercase();
            let short = short.strip_prefix("application/").unwrap_or(&short);
            if !matches!(short, "jwt" | "at+jwt") {
                return Err(Refusal::new(Check::Typ, expected, typ.as_str()));
            }
        }
        Some(_) => return Err(Refusal::new(Check::Typ, expected, "not a text")),
    }
    if header.contains_key("crit") {
        return Err(Refusal::new(Check::Malformed, "no critical extensions", "crit"));
    }
    Ok(())
}

/// A string or an array of strings; a string may hold several words.
fn words(value: Option<&Value>, split: bool) -> Vec<String> {
    match value {
        Some(Value::String(text)) if split => text.split_whitespace().map(str::to_owned).collect(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn or_none(words: &[String]) -> String {
    if words.is_empty() { "none".into() } else { words.join(" ") }
}

/// A NumericDate (RFC 7519 §2), whole or not.
fn moment(value: Option<&Value>) -> Option<Timestamp> {
    let seconds = value?.as_f64().filter(|seconds| seconds.is_finite())?;
    let duration = SignedDuration::try_from_secs_f64(seconds).ok()?;
    Some(Timestamp::from_duration(duration).unwrap_or(if seconds > 0.0 {
        Timestamp::MAX
    } else {
        Timestamp::MIN
    }))
}

/// A JWT in compact form, split and decoded, nothing verified.
struct Parsed<'a> {
    message: &'a str,
    signature: &'a str,
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl<'a> Parsed<'a> {
    fn new(token: &'a str) -> Result<Self, Refusal> {
        let malformed = |what: &str| Refusal::new(Check::Malformed, "a signed JWT", what);
        let (message, signature) = token.rsplit_once('.').ok_or_else(|| malformed("an opaque token"))?;
        let (header, claims) = message.split_once('.').ok_or_else(|| malformed("two parts"))?;
        if claims.contains('.') {
            return Err(malformed("more than three parts"));
        }
        let object = |part: &str, what: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed(what))?;
            serde_json::from_slice::<Map<String, Value>>(&bytes).map_err(|_| malformed(what))
        };
        Ok(Parsed {
            header: object(header, "a header that is no JSON object")?,
            claims: object(claims, "claims that are no JSON object")?,
            message,
            signature,
        })
    }

    fn is_signed_by(&self, key: &Key, algorithm: Algorithm) -> bool {
        let verified =
            jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), &key.key, algorithm);
        verified.unwrap_or(false)
    }
}

/// The public keys of a client that authenticates with signed assertions (RFC 7523 §2.2).
pub struct PublicKeys(KeySet);

impl fmt::Debug for PublicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKeys")
    }
}

impl PublicKeys {
    /// The keys of a JWKS document (RFC 7517 §5) that can verify signatures; `None` where there are none.
    pub fn from_json(json: &Value) -> Option<PublicKeys> {
        KeySet::from_json(json).filter(|keys| !keys.named(None).is_empty()).map(PublicKeys)
    }

    /// The claims of a JWT that one of these keys signed. Who says what for how long is for the caller to judge.
    pub fn claims(&self, token: &str) -> Option<Map<String, Value>> {
        let parsed = (token.len() <= TOKEN_CAP).then(|| Parsed::new(token).ok()).flatten()?;
        let algorithm = algorithm(parsed.header.get("alg")?.as_str()?)?;
        if parsed.header.contains_key("crit") {
            return None;
        }
        let keys = self.0.named(parsed.header.get("kid").and_then(Value::as_str));
        let mut fitting = keys.iter().filter(|key| key.fits(algorithm)).take(MAX_TRIES);
        fitting.any(|key| parsed.is_signed_by(key, algorithm)).then_some(parsed.claims)
    }
}
