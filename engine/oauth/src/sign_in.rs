//! A person signs in once for a client with grant `authorization_code` (RFC 6749 §4.1): the way to the provider
//! and back. What leaves with the person are a `state` of 256 random bits, which is good once, for one client, for
//! ten minutes and for the account that began; the hash of a verifier that stays here (PKCE, RFC 7636); and a
//! `nonce` where an id_token comes back. The exchange of the code is a fetch like any other ([`crate::slot`]).

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use septet_engine::config::settings::OAuthClient;
use septet_engine::event::{Level, NewEvent};
use septet_engine::fault::{Fault, Sensitive};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::client::Grant;
use crate::fetch::{CodeExchange, FetchError};
use crate::manager::{TokenManager, lock};
use crate::net;
use crate::view::ClientView;

/// A person has this long to sign in.
const PATIENCE: SignedDuration = SignedDuration::from_mins(10);
/// Sign-ins that may be under way; the oldest gives way.
const MOST: usize = 64;
/// An id_token may be past its end by this much.
const LEEWAY: i64 = 60;

/// Sign-ins that have been begun, oldest first.
#[derive(Default)]
pub(crate) struct Pending(Vec<Begun>);

struct Begun {
    state: String,
    client: String,
    who: Option<String>,
    until: Timestamp,
    verifier: Zeroizing<String>,
    nonce: Option<String>,
    redirect_uri: String,
    issuer: Option<String>,
}

/// What the provider sent the person back with (RFC 6749 §4.1.2, RFC 9207).
#[derive(Clone, Default)]
pub struct Callback {
    /// The state that we gave.
    pub state: Option<String>,
    /// The authorization code.
    pub code: Option<String>,
    /// Why there is none.
    pub error: Option<String>,
    /// The provider's words about it.
    pub error_description: Option<String>,
    /// Who the provider says it is.
    pub iss: Option<String>,
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback")
    }
}

/// Why a sign-in did not come about.
#[derive(Clone, Debug)]
pub enum SignInError {
    /// There is no such client.
    UnknownClient,
    /// Its grant has no sign-in.
    NoSignIn(String),
    /// What came back does not belong to a sign-in that was begun here.
    Refused(String),
    /// The provider said no, or gave no token.
    Failed(Fault),
}

impl TokenManager {
    /// Begins a sign-in: where to send the person. `redirect_uri` is where they come back to unless the
    /// settings say so, `who` the account that begins.
    pub async fn connect(
        &self,
        client: &str,
        redirect_uri: &str,
        who: Option<&str>,
    ) -> Result<String, SignInError> {
        let slot = self.slot(client).ok_or(SignInError::UnknownClient)?;
        let failed = |error: FetchError| SignInError::Failed(error.fault);
        let known = slot.client.as_ref().map_err(|fault| SignInError::Failed(fault.clone()))?;
        let settings = &slot.settings;
        if known.grant != Grant::AuthorizationCode {
            let text = format!("grant {} needs nobody to sign in", settings.grant);
            return Err(SignInError::NoSignIn(text));
        }
        let endpoint = slot.endpoint(known).await.map_err(failed)?;
        let mut url = endpoint.authorization_url.clone().ok_or_else(|| {
            failed(FetchError::new(
                "issuer",
                "discovery failed: the document names no authorization endpoint",
            ))
        })?;
        let scope = settings.scope.as_deref().unwrap_or_default();
        let openid = scope.split(' ').any(|scope| scope == "openid");
        let begun = Begun {
            state: random().map_err(failed)?,
            client: client.to_owned(),
            who: who.map(str::to_owned),
            until: self.shared.clock.now().saturating_add(PATIENCE).unwrap_or(Timestamp::MAX),
            verifier: Zeroizing::new(random().map_err(failed)?),
            nonce: if openid { Some(random().map_err(failed)?) } else { None },
            redirect_uri: settings.redirect_uri.as_deref().unwrap_or(redirect_uri).to_owned(),
            issuer: endpoint.issuer.or_else(|| settings.expected_issuer.clone().or(settings.issuer.clone())),
        };
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, begun.verifier.as_bytes()));
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("response_type", "code");
            query.append_pair("client_id", &settings.client_id);
            query.append_pair("redirect_uri", &begun.redirect_uri);
            query.append_pair("state", &begun.state);
            query.append_pair("code_challenge", &challenge);
            query.append_pair("code_challenge_method", "S256");
            let more = [
                ("scope", settings.scope.as_ref()),
                ("nonce", begun.nonce.as_ref()),
                ("audience", settings.audience.as_ref()),
                ("resource", settings.resource.as_ref()),
            ];
            for (name, value) in more {
                if let Some(value) = value {
                    query.append_pair(name, value);
                }
            }
            for (name, value) in &settings.authorize_params {
                match value {
                    Value::String(text) => query.append_pair(name, text),
                    other => query.append_pair(name, &other.to_string()),
                };
            }
        }
        let mut pending = lock(&self.pending);
        if pending.0.len() >= MOST {
            pending.0.remove(0);
        }
        pending.0.push(begun);
        Ok(url.into())
    }

    /// Ends a sign-in: checks what came back, exchanges the code, keeps the tokens.
    pub async fn callback(
        &self,
        client: &str,
        back: Callback,
        who: Option<&str>,
    ) -> Result<ClientView, SignInError> {
        let slot = self.slot(client).ok_or(SignInError::UnknownClient)?;
        let begun = self.take(client, back.state.as_deref(), who);
        let begun = begun.inspect_err(|text| {
            let text = format!("OAuth client {client}: a sign-in was refused: {text}");
            slot.event(NewEvent::new(Level::Warning, "oauth.failed", text), None);
        });
        let begun = begun.map_err(SignInError::Refused)?;
        if let (Some(issuer), Some(found)) = (&begun.issuer, &back.iss)
            && issuer != found
        {
            let found = shown(found);
            return Err(SignInError::Refused(format!(
                "issuer {issuer} is expected, but the answer is from {found}"
            )));
        }
        let Some(code) = back.code.filter(|_| back.error.is_none()) else {
            return Err(SignInError::Failed(refused(&slot, back.error.as_deref(), back.error_description)));
        };
        let exchange = CodeExchange {
            code: Zeroizing::new(code),
            verifier: begun.verifier,
            redirect_uri: begun.redirect_uri,
            nonce: begun.nonce,
        };
        slot.sign_in(exchange).await.map_err(|error| SignInError::Failed(error.fault))?;
        Ok(slot.view())
    }

    /// The sign-in with this state, which is good only once.
    fn take(&self, client: &str, state: Option<&str>, who: Option<&str>) -> Result<Begun, String> {
        let now = self.shared.clock.now();
        let mut pending = lock(&self.pending);
        pending.0.retain(|begun| now < begun.until);
        let at = pending.0.iter().position(|begun| Some(begun.state.as_str()) == state);
        let begun = at.map(|at| pending.0.remove(at));
        let begun = begun.filter(|begun| begun.client == client);
        let begun =
            begun.ok_or("its state was not given out here, is used up, or is older than ten minutes")?;
        if begun.who.as_deref() != who {
            return Err("another account has begun it".to_owned());
        }
        Ok(begun)
    }
}

/// The provider sent the person back without a code.
fn refused(slot: &crate::slot::Slot, error: Option<&str>, words: Option<String>) -> Fault {
    let legal = |code: &&str| {
        (1..=64).contains(&code.len())
            && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let code = error.filter(legal).unwrap_or("reply");
    let text = format!("OAuth client {}: the provider gave no code for the sign-in", slot.name);
    let mut fault = Fault::new("call", code, text);
    fault.detail = words.map(|words| Sensitive(words.chars().take(2000).collect()));
    let mut event = NewEvent::new(Level::Error, "oauth.failed", fault.to_string());
    event.detail.clone_from(&fault.detail);
    slot.event(event, None);
    fault
}

impl CodeExchange {
    /// Checks the id_token that came with the tokens (OpenID Connect Core §3.1.3.7). It came straight from the
    /// token endpoint, so that TLS stands in for its signature (there, point 6).
    pub(crate) fn judge(
        &self,
        id_token: Option<&str>,
        issuer: Option<&str>,
        settings: &OAuthClient,
        now: Timestamp,
    ) -> Result<(), FetchError> {
        let (Some(nonce), Some(id_token)) = (&self.nonce, id_token) else { return Ok(()) };
        let wrong = |text: String| Err(FetchError::new("id_token", text));
        let Some(claims) = payload(id_token) else {
            return wrong("the id_token is no JWT".into());
        };
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if text("nonce") != Some(nonce) {
            return wrong(
                "the id_token has another nonce than the sign-in: it belongs to another one".into(),
            );
        }
        if let (Some(issuer), found) = (issuer, text("iss").unwrap_or_default())
            && issuer != found
        {
            return wrong(format!("issuer {issuer} is expected, but the id_token says {}", shown(found)));
        }
        let ours = |value: &Value| value.as_str() == Some(settings.client_id.as_str());
        let audience = claims.get("aud");
        if !audience.is_some_and(|aud| ours(aud) || aud.as_array().is_some_and(|list| list.iter().any(ours)))
        {
            return wrong(format!("the id_token is not for client_id {}", settings.client_id));
        }
        if claims.get("exp").and_then(Value::as_i64).is_some_and(|exp| exp + LEEWAY < now.as_second()) {
            return wrong("the id_token has expired".into());
        }
        Ok(())
    }
}

/// The claims of a JWT; its signature is not looked at.
pub(crate) fn payload(jwt: &str) -> Option<Map<String, Value>> {
    let mut parts = jwt.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let none_left = parts.next().is_none();
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok().filter(|_| none_left)?;
    serde_json::from_slice(&payload).ok()
}

/// A foreign issuer as it may be shown.
fn shown(issuer: &str) -> String {
    match url::Url::parse(issuer) {
        Ok(url) => net::shown(&url).chars().take(200).collect(),
        Err(_) => "something that is no URL".to_owned(),
    }
}

/// 256 random bits as text.
fn random() -> Result<String, FetchError> {
    let mut bytes = [0u8; 32];
    rand::fill(&mut bytes).map_err(|_| FetchError::new("key", "the system gives no random numbers"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
