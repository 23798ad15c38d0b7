//! The token endpoint (RFC 6749 §3.2, §4.4, §5): request in, token or error out. Pure apart from the clock and
//! the random numbers it is handed through [`Server`].

use std::collections::BTreeMap;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::clients::{Client, Grant, Shown, is_scope, shown};
use super::server::Server;

/// Assertions may not be valid for longer than this (seconds), so that their ids need not be remembered for
/// longer.
const LONGEST_ASSERTION: i64 = 600;
/// Ids of assertions remembered at most.
const SEEN: usize = 10_000;
/// Clocks differ by this much (seconds).
const LEEWAY: i64 = 60;

/// RFC 6749 §5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorCode {
    InvalidRequest,
    InvalidClient,
    UnauthorizedClient,
    UnsupportedGrantType,
    InvalidScope,
    /// RFC 8707 §2.
    InvalidTarget,
    /// Ours: the server cannot do its work now.
    ServerError,
}

impl ErrorCode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            ErrorCode::InvalidRequest => "invalid_request",
            ErrorCode::InvalidClient => "invalid_client",
            ErrorCode::UnauthorizedClient => "unauthorized_client",
            ErrorCode::UnsupportedGrantType => "unsupported_grant_type",
            ErrorCode::InvalidScope => "invalid_scope",
            ErrorCode::InvalidTarget => "invalid_target",
            ErrorCode::ServerError => "server_error",
        }
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            ErrorCode::InvalidClient => StatusCode::UNAUTHORIZED,
            ErrorCode::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Why a request gets no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenError {
    pub(super) code: ErrorCode,
    pub(super) description: &'static str,
    /// The client used the `Authorization` header: the answer must say how (RFC 6749 §5.2).
    pub(super) challenge: bool,
}

impl TokenError {
    pub(super) fn new(code: ErrorCode, description: &'static str) -> Self {
        TokenError { code, description, challenge: false }
    }

    /// The client is not who it says it is, or does not say.
    pub(super) fn client(by_header: bool) -> Self {
        let description = "client authentication failed";
        TokenError { code: ErrorCode::InvalidClient, description, challenge: by_header }
    }
}

/// The parameters of a request, each as often as it came.
#[derive(Default)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// From a form body.
    pub(super) fn form(body: &[u8]) -> Self {
        Parameters(url::form_urlencoded::parse(body).into_owned().collect())
    }

    /// From a JSON object, for clients that send one; lists repeat the parameter.
    pub(super) fn json(body: &[u8]) -> Option<Self> {
        let object = serde_json::from_slice::<Map<String, Value>>(body).ok()?;
        let mut all = Vec::new();
        for (name, value) in object {
            let several = std::slice::from_ref(&value);
            for one in value.as_array().map_or(several, Vec::as_slice) {
                match one {
                    Value::Null => {}
                    Value::String(text) => all.push((name.clone(), text.clone())),
                    other => all.push((name.clone(), other.to_string())),
                }
            }
        }
        Some(Parameters(all))
    }

    /// The value of a parameter that may come once (RFC 6749 §3.2); an empty one counts as left out.
    pub(super) fn one<'a>(&'a self, name: &'a str) -> Result<Option<&'a str>, TokenError> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(TokenError::new(ErrorCode::InvalidRequest, "a parameter came twice")),
            (one, None) => Ok(one),
        }
    }

    /// All values of a parameter that may repeat.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let matching = self.0.iter().filter(move |(known, value)| known == name && !value.is_empty());
        matching.map(|(_, value)| value.as_str())
    }
}

/// Ids of assertions that have been used, until they have ended.
#[derive(Default)]
pub(super) struct SeenAssertions(BTreeMap<String, i64>);

impl SeenAssertions {
    /// Whether the id is new; remembers it.
    fn first_use(&mut self, id: String, ends: i64, now: i64) -> bool {
        if self.0.len() >= SEEN {
            self.0.retain(|_, ends| *ends + LEEWAY > now);
        }
        self.0.len() < SEEN && self.0.insert(id, ends).is_none()
    }
}

impl Server {
    /// Answers a token request: the reply's JSON, or the error. The client is named with either, where known.
    pub(super) fn token(
        &self,
        authorization: Option<&str>,
        parameters: &Parameters,
    ) -> Result<Value, TokenError> {
        let now = self.now();
        let client = self.client(authorization, parameters, now)?;
        let grant = parameters.one("grant_type")?;
        let grant = grant.ok_or(TokenError::new(ErrorCode::InvalidRequest, "grant_type is missing"))?;
        let grant = Grant::named(grant)
            .ok_or(TokenError::new(ErrorCode::UnsupportedGrantType, "this grant_type is not supported"))?;
        if !client.grants.contains(&grant) {
            return Err(TokenError::new(
                ErrorCode::UnauthorizedClient,
                "the client may not use this grant_type",
            ));
        }
        let scopes = scopes(client, parameters.one("scope")?)?;
        let audience = self.audience(client, parameters)?;
        self.access_token(client, &client.id, &scopes, audience, now)
    }

    /// The client that sent a request.
    fn client(
        &self,
        authorization: Option<&str>,
        parameters: &Parameters,
        now: Timestamp,
    ) -> Result<&Client, TokenError> {
        let clients = &self.settings().clients;
        match shown(authorization, parameters)? {
            Shown::Secret { id, secrets, by_header } => {
                let named = parameters.one("client_id")?.is_none_or(|named| named == id);
                let found = Client::by_secret(clients, &id, &secrets).filter(|_| named);
                found.ok_or_else(|| TokenError::client(by_header))
            }
            Shown::Assertion { id, assertion } => {
                self.by_assertion(clients, id.as_deref(), &assertion, now).ok_or(TokenError::client(false))
            }
        }
    }

    /// RFC 7523 §3: signed by the client's key, about itself, for us, not for long, and never seen before.
    fn by_assertion<'a>(
        &self,
        clients: &'a [Client],
        id: Option<&str>,
        assertion: &str,
        now: Timestamp,
    ) -> Option<&'a Client> {
        let says = PublicClaims::read(assertion)?;
        let client = clients.iter().find(|client| client.id == says.issuer)?;
        let claims = client.keys()?.claims(assertion)?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let about_itself = text("iss") == Some(&client.id) && text("sub") == Some(&client.id);
        let audiences = match claims.get("aud")? {
            Value::String(one) => vec![one.as_str()],
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            _ => return None,
        };
        let for_us = audiences.iter().any(|audience| self.is_named(audience));
        let now = now.as_second();
        let number = |name: &str| claims.get(name).and_then(Value::as_f64);
        let ends = number("exp")? as i64;
        let in_time = ends + LEEWAY > now
            && ends - LEEWAY <= now + LONGEST_ASSERTION
            && number("nbf").is_none_or(|nbf| nbf as i64 - LEEWAY <= now);
        let fits = id.is_none_or(|id| id == client.id);
        if !(about_itself && for_us && in_time && fits) {
            return None;
        }
        let once = format!("{} {}", client.id, text("jti")?);
        self.seen().first_use(once, ends, now).then_some(client)
    }

    fn audience(&self, client: &Client, parameters: &Parameters) -> Result<Value, TokenError> {
        let asked: Vec<&str> = parameters.all("audience").chain(parameters.all("resource")).collect();
        let refused =
            |asked: &&str| !client.audiences.is_empty() && !client.audiences.iter().any(|a| a == asked);
        if asked.iter().any(refused) {
            return Err(TokenError::new(
                ErrorCode::InvalidTarget,
                "the client may not ask for this audience",
            ));
        }
        Ok(match asked.as_slice() {
            [] => json!(client.audiences.first().unwrap_or(&self.settings().issuer_text)),
            [one] => json!(one),
            several => json!(several),
        })
    }

    /// RFC 9068 §2.
    fn access_token(
        &self,
        client: &Client,
        subject: &str,
        scopes: &[&str],
        audience: Value,
        now: Timestamp,
    ) -> Result<Value, TokenError> {
        let unable = || TokenError::new(ErrorCode::ServerError, "the token could not be made");
        let lifetime =
            i64::try_from(self.settings().access_token_lifetime.get().as_secs()).unwrap_or(i64::MAX);
        let now = now.as_second();
        let mut claims = json!({
            "iss": self.settings().issuer_text,
            "sub": subject,
            "aud": audience,
            "client_id": client.id,
            "iat": now,
            "exp": now.saturating_add(lifetime),
            "jti": random_id().ok_or_else(unable)?,
        });
        let mut reply = json!({ "access_token": "", "token_type": "Bearer", "expires_in": lifetime });
        if !scopes.is_empty() {
            for object in [&mut claims, &mut reply] {
                object.as_object_mut().map(|object| object.insert("scope".into(), json!(scopes.join(" "))));
            }
        }
        let token = self.keys().signing().sign("at+jwt", &claims).map_err(|_| unable())?;
        reply.as_object_mut().map(|object| object.insert("access_token".into(), Value::String(token)));
        Ok(reply)
    }
}

/// What an assertion says before anything of it is believed.
struct PublicClaims {
    issuer: String,
}

impl PublicClaims {
    fn read(assertion: &str) -> Option<PublicClaims> {
        let claims = assertion.split('.').nth(1).filter(|part| part.len() <= 16 * 1024)?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let claims = serde_json::from_slice::<Map<String, Value>>(&claims).ok()?;
        Some(PublicClaims { issuer: claims.get("iss")?.as_str()?.to_owned() })
    }
}

/// What is granted: what was asked for if the client may have all of it, or all that it may have.
fn scopes<'a>(client: &'a Client, asked: Option<&'a str>) -> Result<Vec<&'a str>, TokenError> {
    let Some(asked) = asked else {
        return Ok(client.scopes.iter().map(String::as_str).collect());
    };
    let mut granted = Vec::new();
    for scope in asked.split(' ').filter(|scope| !scope.is_empty()) {
        if !is_scope(scope) || !client.scopes.iter().any(|own| own == scope) {
            return Err(TokenError::new(ErrorCode::InvalidScope, "the client may not have this scope"));
        }
        if !granted.contains(&scope) {
            granted.push(scope);
        }
    }
    Ok(granted)
}

fn random_id() -> Option<String> {
    let mut id = [0u8; 16];
    rand::fill(&mut id).ok()?;
    Some(URL_SAFE_NO_PAD.encode(id))
}
