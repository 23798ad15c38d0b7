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
use serde_json::{Map, Value};

use crate::auth::{Auth, accepted};
use crate::check::{Check, Refusal};
use crate::introspect::Introspector;
use crate::jwks::{Issuer, KeySet, NoKey};
use crate::jws::{Parsed, TOKEN_CAP};
use crate::keys::{Algorithm, algorithm, algorithm_name};
use crate::net;
use crate::smart::Wanted;

/// For `exp` and `nbf`: clocks differ.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);
/// Signatures tried where a token names no key, or several keys share its name.
const MAX_TRIES: usize = 4;

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

/// What a caller shows, and what for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Presented<'a> {
    /// The value of the `Authorization` header. Requests with several are to be refused by the caller.
    pub authorization: Option<&'a str>,
    /// The SHA-256 of the client's TLS certificate.
    pub certificate: Option<[u8; 32]>,
    /// The FHIR interaction, where SMART scopes are asked for.
    pub wanted: Option<&'a Wanted>,
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
            None => {
                let tls = auth.tls.clone().unwrap_or_default();
                auth.issuer.as_deref().map(|issuer| Issuer::shared(issuer, &tls, &clock, timeout))
            }
        };
        Verifier { algorithms: accepted(&auth), auth, issuer, introspector, clock }
    }

    /// Whether requests are judged by the FHIR interaction they ask for.
    pub fn is_smart(&self) -> bool {
        self.auth.smart
    }

    /// Judges the value of a request's `Authorization` header, for a request without a certificate.
    pub async fn verify(&self, authorization: Option<&str>) -> Result<Claims, Refusal> {
        self.judge(Presented { authorization, ..Presented::default() }).await
    }

    /// Judges what a caller shows.
    pub async fn judge(&self, shown: Presented<'_>) -> Result<Claims, Refusal> {
        let token = shown.authorization.and_then(bearer);
        let token = token.ok_or_else(|| Refusal::new(Check::Missing, "a bearer token", "none"))?;
        if token.len() > TOKEN_CAP {
            let size = format!("{} bytes", token.len());
            return Err(Refusal::new(Check::Malformed, format!("at most {TOKEN_CAP} bytes"), size));
        }
        if !token.bytes().all(is_token_byte) {
            let what = "characters that no token has";
            return Err(Refusal::new(Check::Malformed, "letters, digits and -._~+/=", what));
        }
        let claims = match (&self.introspector, &self.issuer) {
            (Some(introspector), _) => introspector.ask(token).await?,
            (None, Some(issuer)) => self.signed(token, issuer).await?,
            (None, None) => return Err(Refusal::new(Check::Keys, "an issuer", "none configured")),
        };
        self.claims(claims, &shown)
    }

    /// The claims of a token whose signature is the issuer's.
    async fn signed(&self, token: &str, issuer: &Arc<Issuer>) -> Result<Map<String, Value>, Refusal> {
        let parsed = Parsed::new(token)?;
        let algorithm = self.accepted_algorithm(&parsed.header)?;
        access_token(&parsed.header)?;
        let name = parsed.claims.get("iss").and_then(Value::as_str);
        let ours = name == self.auth.issuer.as_deref();
        let id = match parsed.header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.as_str()),
            Some(_) => return Err(Refusal::new(Check::Kid, "a text", "another kind of value")),
        };
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

    /// The claims: issuer, audience, time, the key they are bound to, scope.
    fn claims(&self, all: Map<String, Value>, shown: &Presented<'_>) -> Result<Claims, Refusal> {
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
        self.time(&all)?;
        self.bound(all.get("cnf"), shown.certificate)?;
        let scopes: Vec<String> =
            ["scope", "scp", "roles"].iter().flat_map(|name| words(all.get(*name), true)).collect();
        let needed = self.auth.scope.as_deref().unwrap_or_default();
        if !needed.split_whitespace().all(|scope| scopes.iter().any(|found| found == scope)) {
            return Err(Refusal::scope(needed, or_none(&scopes)));
        }
        if self.auth.smart {
            let everything = Wanted::of("", "", "");
            let granted = shown.wanted.unwrap_or(&everything).granted(&scopes, &all);
            granted.map_err(|missing| Refusal::scope(&missing, or_none(&scopes)))?;
        }
        Ok(Claims { all, scopes })
    }

    fn time(&self, all: &Map<String, Value>) -> Result<(), Refusal> {
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
        Ok(())
    }

    /// A token that is bound to a certificate is good with that certificate only (RFC 8705 §3); one that is
    /// bound to anything else is no bearer token.
    fn bound(&self, cnf: Option<&Value>, certificate: Option<[u8; 32]>) -> Result<(), Refusal> {
        let shown = certificate.map(|digest| URL_SAFE_NO_PAD.encode(digest));
        let Some(cnf) = cnf else {
            let expected = "a token bound to the client's certificate";
            return match self.auth.certificate_bound {
                true => Err(Refusal::new(Check::Cnf, expected, "no cnf")),
                false => Ok(()),
            };
        };
        let bound = cnf.as_object().filter(|cnf| cnf.len() == 1).and_then(|cnf| cnf.get("x5t#S256"));
        let Some(bound) = bound.and_then(Value::as_str) else {
            return Err(Refusal::new(Check::Cnf, "x5t#S256 alone", "a binding of another kind"));
        };
        if shown.as_deref() == Some(bound) {
            return Ok(());
        }
        let shown = shown.unwrap_or_else(|| "no client certificate".to_owned());
        Err(Refusal::new(Check::Cnf, format!("the certificate {bound}"), shown))
    }
}

/// What RFC 6750 §2.1 allows in a token.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=')
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
