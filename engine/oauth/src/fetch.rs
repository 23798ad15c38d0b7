//! One token request: finds the endpoint, writes the request as the client's settings ask, judges the reply.
//! Nothing is remembered here, and nothing is tried twice; [`crate::slot`] does both.

use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::RequestBuilder;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use septet_engine::fault::{Fault, Sensitive};
use septet_engine::vault::MASK;
use serde_json::{Map, Value, json};
use url::Url;
use zeroize::Zeroizing;

use crate::answer::{self, Answer};
use crate::client::{Client, ClientAuth, Grant, HMAC, RequestBody};
use crate::discovery::{DiscoveryError, discover};
use crate::net;

/// Assertions live this long (seconds): the contract allows five minutes.
const ASSERTION_LIFETIME: i64 = 240;
/// Clocks that differ by less are right enough: the `Date` header has whole seconds, and a reply takes its time.
const LEAST_SKEW: SignedDuration = SignedDuration::from_secs(20);
const MOST_SKEW: SignedDuration = SignedDuration::from_hours(1);
/// A `Retry-After` longer than this is taken as this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Where the token endpoint is, and who says so.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) token_url: Url,
    /// Where a person signs in, for the grant that needs it.
    pub(crate) authorization_url: Option<Url>,
    /// The issuer, where it was discovered: the audience of authentication assertions.
    pub(crate) issuer: Option<String>,
}

/// What is asked for a token with.
#[derive(Clone, Copy)]
pub(crate) enum Ask<'a> {
    /// What the settings say.
    Grant,
    /// This refresh token (RFC 6749 §6), whatever the grant.
    Refresh(&'a str),
    /// What a person's sign-in brought.
    Code(&'a CodeExchange),
}

/// An authorization code with what proves that it was ours to get (RFC 7636).
pub(crate) struct CodeExchange {
    pub(crate) code: Zeroizing<String>,
    pub(crate) verifier: Zeroizing<String>,
    pub(crate) redirect_uri: String,
    /// Set where an id_token was asked for.
    pub(crate) nonce: Option<String>,
}

/// Why there is no token, and how long the server asks to be left alone.
#[derive(Clone, Debug)]
pub(crate) struct FetchError {
    pub(crate) fault: Fault,
    pub(crate) retry_after: Option<Duration>,
    /// By how many seconds the server's clock is ahead of ours, where that is much.
    pub(crate) skew: Option<i32>,
}

impl FetchError {
    pub(crate) fn new(code: impl Into<String>, text: impl Into<String>) -> Self {
        Fault::new("call", code, text).into()
    }

    /// Whether the server said this OAuth error code.
    pub(crate) fn is(&self, code: &str) -> bool {
        self.fault.code == code
    }
}

impl From<Fault> for FetchError {
    fn from(fault: Fault) -> Self {
        FetchError { fault, retry_after: None, skew: None }
    }
}

impl Client {
    /// Where to ask: the configured URL, or what the issuer's discovery document says.
    pub(crate) async fn endpoint(&self, timeout: Duration) -> Result<Endpoint, FetchError> {
        let settings = &self.settings;
        let given = |url: &Option<String>| {
            let url = url.as_deref().map(net::endpoint).transpose();
            url.map_err(|why| FetchError::new("url", why))
        };
        let (token_url, authorization_url) =
            (given(&settings.token_url)?, given(&settings.authorization_url)?);
        let complete = authorization_url.is_some() || self.grant != Grant::AuthorizationCode;
        if let (Some(token_url), true) = (&token_url, complete) {
            return Ok(Endpoint { token_url: token_url.clone(), authorization_url, issuer: None });
        }
        let issuer = settings.issuer.as_deref().unwrap_or_default();
        let expected = settings.expected_issuer.as_deref().unwrap_or(issuer);
        let metadata = discover(issuer, expected, &settings.tls, timeout).await.map_err(|error| {
            let DiscoveryError { code, text, detail } = error;
            let mut error = FetchError::new(code, format!("discovery failed: {text}"));
            error.fault.detail = detail.map(Sensitive);
            error
        })?;
        let named = |url: Option<String>, what: &str| {
            let url = url.as_deref().map(net::endpoint).transpose();
            url.map_err(|why| FetchError::new("issuer", format!("the discovered {what} endpoint is {why}")))
        };
        let token_url = token_url.or(named(metadata.token_endpoint, "token")?).ok_or_else(|| {
            FetchError::new("issuer", "discovery failed: the document names no token endpoint")
        })?;
        let authorization_url =
            authorization_url.or(named(metadata.authorization_endpoint, "authorization")?);
        Ok(Endpoint { token_url, authorization_url, issuer: Some(metadata.issuer) })
    }

    /// Asks for a token. `now` is the time that assertions say, `asked` the time here.
    pub(crate) async fn ask(
        &self,
        endpoint: &Endpoint,
        ask: Ask<'_>,
        (now, asked): (Timestamp, Timestamp),
        timeout: Duration,
    ) -> Result<Answer, FetchError> {
        let (request, sent) = self.request(endpoint, &ask, now, timeout)?;
        let shown = net::shown(&endpoint.token_url);
        let reply = net::send(request)
            .await
            .map_err(|error| FetchError::new(error.code, format!("{shown}: {}", error.text)))?;
        let settings = &self.settings;
        let pointers = (&settings.reply_access_token, &settings.reply_expires_in);
        let skew = skew(&reply.headers, asked);
        let answer = answer::read(reply.status, &reply.body, pointers.0, pointers.1);
        let mut answer = answer.map_err(|refusal| {
            let code = match (refusal.error, reply.status) {
                (Some(code), _) => code,
                (None, 200..300) => "reply".into(),
                (None, status) => format!("http {status}"),
            };
            let mut error = FetchError::new(code, format!("{shown}: {}", refusal.text));
            if !refusal.detail.is_empty() {
                error.fault.detail = Some(Sensitive(masked(self.masked(&refusal.detail), &sent)));
            }
            if matches!(reply.status, 429 | 503) {
                error.retry_after = retry_after(&reply.headers, asked);
            }
            error.skew = skew.and_then(|skew| i32::try_from(skew.as_secs()).ok());
            error
        })?;
        // A date is the server's: by its clock.
        answer.ends = answer.ends.by_our_clock(skew);
        answer.refresh_ends = answer.refresh_ends.map(|ends| ends.by_our_clock(skew));
        Ok(answer)
    }

    /// The request, and everything secret in it.
    fn request(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        now: Timestamp,
        timeout: Duration,
    ) -> Result<(RequestBuilder, Vec<Zeroizing<String>>), FetchError> {
        let settings = &self.settings;
        let mut fields = Fields::default();
        self.grant_fields(&mut fields, endpoint, ask, now)?;
        // A code is for the scopes that the person agreed to (RFC 6749 §4.1.3).
        let scope = settings.scope.as_ref().filter(|_| !matches!(ask, Ask::Code(_)));
        for (name, value) in [
            ("scope", scope),
            ("audience", settings.audience.as_ref()),
            ("resource", settings.resource.as_ref()),
        ] {
            if let Some(value) = value {
                fields.text(name, value);
            }
        }
        let authorization = self.authenticate(&mut fields, endpoint, now)?;
        for (name, value) in &settings.params {
            fields.0.insert(name.clone(), value.clone());
        }
        let mut sent = fields.secrets();
        sent.extend(authorization.as_ref().and_then(|value| {
            let (_, credentials) = value.split_once(' ')?;
            Some(Zeroizing::new(credentials.to_owned()))
        }));
        let client = net::client(&endpoint.token_url, &settings.tls, timeout)
            .map_err(|error| FetchError::new(error.code, error.text))?;
        let (content_type, body) = match self.body {
            RequestBody::Form => ("application/x-www-form-urlencoded", fields.form()),
            RequestBody::Json => ("application/json", Value::Object(fields.0).to_string()),
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, secret_header(&value)?);
        }
        for (name, value) in &settings.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| FetchError::new("config", "a header of the client is not legal"))?;
            headers.insert(name, secret_header(value.reveal())?);
        }
        Ok((client.post(endpoint.token_url.clone()).headers(headers).body(body), sent))
    }

    fn grant_fields(
        &self,
        fields: &mut Fields,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        now: Timestamp,
    ) -> Result<(), FetchError> {
        let settings = &self.settings;
        match ask {
            Ask::Grant => {}
            Ask::Refresh(token) => {
                fields.text("grant_type", "refresh_token");
                fields.text("refresh_token", token);
                return Ok(());
            }
            Ask::Code(exchange) => {
                fields.text("grant_type", "authorization_code");
                fields.text("code", &exchange.code);
                fields.text("redirect_uri", &exchange.redirect_uri);
                fields.text("code_verifier", &exchange.verifier);
                return Ok(());
            }
        }
        match self.grant {
            Grant::ClientCredentials => fields.text("grant_type", "client_credentials"),
            Grant::Password => {
                fields.text("grant_type", "password");
                fields.text("username", settings.username.as_deref().unwrap_or_default());
                fields.text("password", settings.password.as_ref().map_or("", |secret| secret.reveal()));
            }
            Grant::RefreshToken => {
                fields.text("grant_type", "refresh_token");
                let first = settings.refresh_token.as_ref();
                fields.text("refresh_token", first.map_or("", |secret| secret.reveal()));
            }
            Grant::JwtBearer => {
                let subject = settings.subject.as_deref().unwrap_or(&settings.client_id);
                let assertion = self.assertion(subject, endpoint.token_url.as_str(), now)?;
                fields.text("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");
                fields.text("assertion", &assertion);
            }
            // Without a refresh token there is nothing to ask with but a person.
            Grant::AuthorizationCode => return Err(FetchError::new("sign_in", "nobody has signed in")),
        }
        Ok(())
    }

    /// Adds what says who the client is; returns the `Authorization` header for `basic`.
    fn authenticate(
        &self,
        fields: &mut Fields,
        endpoint: &Endpoint,
        now: Timestamp,
    ) -> Result<Option<Zeroizing<String>>, FetchError> {
        let settings = &self.settings;
        let secret = settings.client_secret.as_ref().map_or("", |secret| secret.reveal());
        let audience = endpoint.issuer.as_deref().unwrap_or(endpoint.token_url.as_str());
        match self.auth {
            ClientAuth::Basic => return Ok(Some(net::basic(&settings.client_id, secret))),
            ClientAuth::Post => {
                fields.text("client_id", &settings.client_id);
                fields.text("client_secret", secret);
            }
            ClientAuth::None | ClientAuth::Tls => fields.text("client_id", &settings.client_id),
            ClientAuth::SecretJwt => {
                let name = settings.signing_alg.as_deref();
                let known = HMAC.iter().find(|(known, _)| Some(*known) == name);
                let algorithm = known.map_or(Algorithm::HS256, |(_, algorithm)| *algorithm);
                let claims = claims(&settings.client_id, &settings.client_id, audience, now)?;
                let key = EncodingKey::from_secret(secret.as_bytes());
                let mut header = Header::new(algorithm);
                header.kid = settings.key_id.clone();
                let assertion = jsonwebtoken::encode(&header, &claims, &key)
                    .map_err(|_| FetchError::new("key", "the assertion cannot be signed"))?;
                fields.client_assertion(&settings.client_id, &assertion);
            }
            ClientAuth::PrivateKeyJwt => {
                let assertion = self.assertion(&settings.client_id, audience, now)?;
                fields.client_assertion(&settings.client_id, &assertion);
            }
        }
        Ok(None)
    }

    /// A JWT that says who we are (RFC 7523 §3), signed with the client's private key.
    fn assertion(
        &self,
        subject: &str,
        audience: &str,
        now: Timestamp,
    ) -> Result<Zeroizing<String>, FetchError> {
        let key = self.key.as_ref().ok_or_else(|| FetchError::new("key", "there is no private key"))?;
        let mut header = Header::new(key.algorithm());
        header.kid = self.settings.key_id.clone();
        if let Some((sha1, sha256)) = &self.thumbprints {
            header.x5t = Some(sha1.clone());
            header.x5t_s256 = Some(sha256.clone());
        }
        let claims = claims(&self.settings.client_id, subject, audience, now)?;
        let signed = key.sign_with(header, &claims);
        signed.map(Zeroizing::new).map_err(|_| FetchError::new("key", "the assertion cannot be signed"))
    }
}

fn claims(issuer: &str, subject: &str, audience: &str, now: Timestamp) -> Result<Value, FetchError> {
    let mut id = [0u8; 16];
    rand::fill(&mut id).map_err(|_| FetchError::new("key", "the system gives no random numbers"))?;
    let now = now.as_second();
    Ok(json!({
        "iss": issuer,
        "sub": subject,
        "aud": audience,
        "iat": now,
        "exp": now + ASSERTION_LIFETIME,
        "jti": URL_SAFE_NO_PAD.encode(id),
    }))
}

fn secret_header(text: &str) -> Result<HeaderValue, FetchError> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| FetchError::new("config", "a header of the client is not legal"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// How far the server's clock is ahead of ours by its `Date`; nothing where that is little, or so much that
/// the header cannot be believed.
fn skew(headers: &HeaderMap, now: Timestamp) -> Option<SignedDuration> {
    let date = jiff::fmt::rfc2822::parse(headers.get(DATE)?.to_str().ok()?).ok()?.timestamp();
    let skew = date.duration_since(now);
    (LEAST_SKEW..=MOST_SKEW).contains(&skew.abs()).then_some(skew)
}

/// The text without what was sent: servers echo requests.
fn masked(text: String, sent: &[Zeroizing<String>]) -> String {
    sent.iter().fold(text, |text, secret| {
        let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        text.replace(secret.as_str(), MASK).replace(&encoded, MASK)
    })
}

/// RFC 9110 §10.2.3: seconds or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let moment = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            Duration::try_from(moment.duration_since(now)).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

/// The parameters of a token request. Extra `params` replace those of the same name.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn text(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), Value::from(value));
    }

    fn client_assertion(&mut self, client_id: &str, assertion: &str) {
        self.text("client_id", client_id);
        self.text("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
        self.text("client_assertion", assertion);
    }

    /// The values that nobody may see.
    fn secrets(&self) -> Vec<Zeroizing<String>> {
        const SECRET: [&str; 7] = [
            "client_secret",
            "password",
            "refresh_token",
            "code",
            "code_verifier",
            "assertion",
            "client_assertion",
        ];
        let text = |name: &&str| self.0.get(*name).and_then(Value::as_str).filter(|text| !text.is_empty());
        SECRET.iter().filter_map(text).map(|text| Zeroizing::new(text.to_owned())).collect()
    }

    /// Lists repeat the parameter; objects go as JSON text.
    fn form(&self) -> String {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in &self.0 {
            let several = std::slice::from_ref(value);
            for one in value.as_array().map_or(several, Vec::as_slice) {
                match one {
                    Value::Null => continue,
                    Value::String(text) => form.append_pair(name, text),
                    other => form.append_pair(name, &other.to_string()),
                };
            }
        }
        form.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_repeats_lists_and_escapes_values() {
        let mut fields = Fields::default();
        fields.text("scope", "a b&c");
        fields.0.insert("resource".into(), json!(["x", 7]));
        fields.0.insert("none".into(), Value::Null);
        assert_eq!(fields.form(), "scope=a+b%26c&resource=x&resource=7");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_has_a_limit() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let wait = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]);
            retry_after(&headers, now)
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Thu, 01 Jan 2026 00:01:00 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(wait("Wed, 31 Dec 2025 00:01:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("999999999"), Some(LONGEST_RETRY_AFTER));
        assert_eq!(wait("later"), None);
    }
}
