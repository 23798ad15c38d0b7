//! Clients that register themselves (RFC 7591), where `registration` is on: with an initial access token, or
//! anybody. What they may have is bounded by the settings, their number too. The secret is shown once and kept as
//! a hash; a client is on stable storage before it learns its id.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::http::header::{HeaderValue, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use septet_engine::config::build::{At, Build};
use septet_engine::config::problem::did_you_mean;
use septet_engine::event::{Level, NewEvent};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::clients::{Client, Credential, Grant, OPENID, is_scope, public_keys, wrong_registered_redirect};
use super::grants::{hashed, same, secret};
use super::issue::{put, random_id};
use super::kept::Place;
use super::request::{TokenError, authorization, bearer, uncached};
use super::server::{Server, read};
use super::settings::RegistrationSettings;
use crate::heads::media_type;

const FORMAT: u32 = 1;
/// A registered client that got no token within this time (seconds) makes room for others.
const UNUSED: i64 = 24 * 3600;
const MOST_REDIRECTS: usize = 10;
const LONGEST_REDIRECT: usize = 2048;
const LONGEST_NAME: usize = 100;
const LONGEST_SCOPE: usize = 2048;
const LONGEST_JWKS: usize = 16 * 1024;

/// What registered clients get.
pub(super) struct Rules {
    /// SHA-256 of the initial access token.
    token: Option<String>,
    grants: Vec<Grant>,
    scopes: Vec<String>,
    most: usize,
}

impl Rules {
    /// Checks the settings; reports every problem.
    pub(super) fn check(
        build: &mut Build<'_>,
        settings: &RegistrationSettings,
        known: &[String],
    ) -> Option<Rules> {
        let at = |key| [At::Key("registration"), At::Key(key)];
        if settings.token.as_ref().is_some_and(|token| token.reveal().is_empty()) {
            build.error("S0502", &at("token"), "the token is empty", None);
        }
        if settings.token.is_none() {
            let text = "anybody who reaches the server may register a client";
            let suggestion = Some("registration = { token = \"${env:…}\" }".to_owned());
            build.warning("S0504", &[At::Key("registration")], text, suggestion);
        }
        let mut grants = Vec::new();
        for (index, name) in settings.grants.0.iter().enumerate() {
            let place = [At::Key("registration"), At::Key("grants"), At::Index(index)];
            match Grant::configured(name) {
                None => {
                    let suggestion = did_you_mean(name, ["authorization_code", "client_credentials"]);
                    build.error("S0502", &place, format!("there is no grant {name}"), suggestion);
                }
                Some(Grant::ClientCredentials | Grant::JwtBearer) if settings.token.is_none() => {
                    let text = format!("{name} without token would give tokens to anybody");
                    build.error("S0502", &place, text, None);
                }
                Some(grant) => grants.push(grant),
            }
        }
        let mut all = known.to_vec();
        if !all.iter().any(|scope| scope == OPENID) {
            all.push(OPENID.to_owned());
        }
        let scopes = settings.scopes.as_ref().map_or(all.clone(), |scopes| scopes.0.clone());
        for (index, scope) in scopes.iter().enumerate().filter(|(_, scope)| !all.contains(scope)) {
            let place = [At::Key("registration"), At::Key("scopes"), At::Index(index)];
            build.error("S0502", &place, format!("the server has no scope {scope}"), None);
        }
        let most = usize::try_from(settings.max_clients).unwrap_or(usize::MAX);
        let token = settings.token.as_ref().map(|token| hashed(token.reveal()));
        Some(Rules { token, grants, scopes, most })
    }
}

/// A registered client as it is kept.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    format: u32,
    name: Option<String>,
    secret: Option<String>,
    jwks: Option<Value>,
    /// The only algorithm of its assertions.
    algorithm: Option<String>,
    /// As requests name them.
    grants: Vec<String>,
    scopes: Vec<String>,
    redirect_uris: Vec<String>,
    /// When it registered (seconds).
    issued: i64,
    /// It has got a token.
    used: bool,
}

impl Stored {
    /// The client, within what the settings allow today.
    fn open(&self, id: &str, rules: &Rules) -> Option<Client> {
        let credential = match (&self.secret, &self.jwks) {
            (Some(secret), _) => Credential::Secret(secret.clone()),
            (None, Some(jwks)) => Credential::Keys(public_keys(jwks, self.algorithm.as_deref())?),
            (None, None) => Credential::Public,
        };
        let grants = self.grants.iter().filter_map(|name| Grant::requested(name));
        Some(Client {
            id: id.to_owned(),
            name: self.name.clone(),
            credential,
            grants: grants.filter(|grant| rules.grants.contains(grant)).collect(),
            scopes: self.scopes.iter().filter(|scope| rules.scopes.contains(scope)).cloned().collect(),
            audiences: Vec::new(),
            redirect_uris: self.redirect_uris.clone(),
            pkce: true,
            registered: true,
        })
    }
}

/// All registered clients, by id.
#[derive(Default)]
pub(super) struct Registered(BTreeMap<String, (Stored, Arc<Client>)>);

impl Registered {
    /// The client of this id.
    pub(super) fn client(&self, id: &str) -> Option<Arc<Client>> {
        self.0.get(id).map(|(_, client)| client.clone())
    }

    /// A client as it is kept; `None` once it is gone.
    pub(super) fn kept(&self, id: &str) -> Option<Vec<u8>> {
        serde_json::to_vec(&self.0.get(id)?.0).ok()
    }

    /// Takes a kept client in again, at start. One that cannot be read is kept on disk all the same.
    pub(super) fn restore(&mut self, id: &str, kept: &[u8], rules: &Rules) -> bool {
        let stored = serde_json::from_slice::<Stored>(kept).ok().filter(|stored| stored.format == FORMAT);
        if let Some(stored) = stored
            && let Some(client) = stored.open(id, rules)
        {
            self.0.insert(id.to_owned(), (stored, Arc::new(client)));
        }
        true
    }

    /// Takes a new client, and gives the one that had to make room; `None` where there is no room.
    fn take(&mut self, id: &str, stored: Stored, rules: &Rules) -> Option<Option<String>> {
        let client = stored.open(id, rules)?;
        let mut dropped = None;
        if self.0.len() >= rules.most {
            let idle = |(_, (old, _)): &(&String, &(Stored, Arc<Client>))| {
                !old.used && old.issued.saturating_add(UNUSED) <= stored.issued
            };
            let oldest = self.0.iter().filter(idle).min_by_key(|(_, (old, _))| old.issued);
            let oldest = oldest.map(|(id, _)| id.clone()).filter(|_| rules.most > 0)?;
            self.0.remove(&oldest);
            dropped = Some(oldest);
        }
        self.0.insert(id.to_owned(), (stored, Arc::new(client)));
        Some(dropped)
    }

    /// Notes that a client got a token; `true` the first time.
    fn used(&mut self, id: &str) -> bool {
        self.0.get_mut(id).is_some_and(|(stored, _)| !std::mem::replace(&mut stored.used, true))
    }
}

/// Why a registration is refused (RFC 7591 §3.2.2).
struct Refused {
    status: StatusCode,
    error: &'static str,
    description: &'static str,
}

impl Refused {
    fn metadata(description: &'static str) -> Self {
        Refused { status: StatusCode::BAD_REQUEST, error: "invalid_client_metadata", description }
    }

    fn redirect(description: &'static str) -> Self {
        Refused { status: StatusCode::BAD_REQUEST, error: "invalid_redirect_uri", description }
    }

    fn token(description: &'static str) -> Self {
        Refused { status: StatusCode::UNAUTHORIZED, error: "invalid_token", description }
    }

    fn unavailable(description: &'static str) -> Self {
        Refused { status: StatusCode::SERVICE_UNAVAILABLE, error: "temporarily_unavailable", description }
    }

    fn response(&self) -> Response {
        let body = json!({ "error": self.error, "error_description": self.description });
        let mut response = uncached((self.status, Json(body)).into_response());
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static(r#"Bearer realm="septet", error="invalid_token""#);
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// `POST /oauth2/register`.
pub(super) async fn register(State(server): State<Server>, request: Request) -> Response {
    match server.register(request).await {
        Ok(reply) => uncached((StatusCode::CREATED, Json(reply)).into_response()),
        Err(refused) => {
            if refused.status == StatusCode::UNAUTHORIZED {
                server.note(|| {
                    let event = NewEvent::new(Level::Warning, "auth.refused", "invalid_token");
                    event.detail("a registration without the initial access token")
                });
            }
            refused.response()
        }
    }
}

impl Server {
    async fn register(&self, request: Request) -> Result<Value, Refused> {
        let Some(rules) = &self.settings().registration else {
            return Err(Refused::metadata("clients cannot register here"));
        };
        let (parts, body) = request.into_parts();
        let now = self.now();
        if let Some(wanted) = &rules.token {
            let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
            let counter = self.guesses().counter(None, ("registration", peer));
            if !self.guesses().may_try(counter, now.as_second()) {
                return Err(Refused::unavailable("too many wrong tokens; wait a minute"));
            }
            let shown = authorization(&parts.headers).ok().flatten();
            let right = bearer(shown.as_deref()).is_some_and(|shown| same(&hashed(shown), wanted));
            if !right {
                return Err(Refused::token("the initial access token is missing or wrong"));
            }
            self.guesses().right(counter);
        }
        if media_type(&parts.headers).0 != "application/json" {
            return Err(Refused::metadata("the body must be JSON"));
        }
        let body = read(self, &parts.headers, body).await;
        let body =
            body.map_err(|status| Refused { status, ..Refused::metadata("the body was not taken") })?;
        let asked = serde_json::from_slice::<Map<String, Value>>(&body);
        let asked = asked.map_err(|_| Refused::metadata("the body is no JSON object"))?;
        let (mut stored, method) = judge(&asked, rules, now)?;
        let unable = || Refused::unavailable("the client cannot be registered now");
        let shown_once = match method {
            "client_secret_basic" | "client_secret_post" => Some(secret().ok_or_else(unable)?),
            _ => None,
        };
        stored.secret = shown_once.as_deref().map(hashed);
        let id = format!("dyn-{}", random_id().ok_or_else(unable)?);
        let reply = reply(&id, &stored, method, shown_once);
        let full = Refused::unavailable("no more clients can be registered");
        let dropped = self.registered().take(&id, stored, rules).ok_or(full)?;
        if let Some(dropped) = dropped {
            self.save(Place::Client(&dropped)).await.map_err(|_| unable())?;
        }
        self.save(Place::Client(&id)).await.map_err(|_| unable())?;
        self.event(NewEvent::new(Level::Info, "oauth.registered", format!("client {id} registered itself")));
        Ok(reply)
    }

    /// Notes that a client that registered itself is in use, so that it makes no room for others.
    pub(super) async fn client_was_used(&self, client: &Client) -> Result<(), TokenError> {
        if client.registered && self.registered().used(&client.id) {
            self.save(Place::Client(&client.id)).await.map_err(|_| TokenError::unable())?;
        }
        Ok(())
    }
}

/// Judges the metadata (RFC 7591 §2): the client without its secret, and how it authenticates. What we do not
/// know is left out, as §3.2.1 has it; what we know and cannot give is refused.
fn judge(
    asked: &Map<String, Value>,
    rules: &Rules,
    now: Timestamp,
) -> Result<(Stored, &'static str), Refused> {
    let text = |name: &str| match asked.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(Refused::metadata("a text field is no text")),
    };
    let texts = |name: &str| match asked.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) => {
            let items: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            items.map(Some).ok_or_else(|| Refused::metadata("a list holds what is no text"))
        }
        Some(_) => Err(Refused::metadata("a list field is no list")),
    };
    let method = match text("token_endpoint_auth_method")? {
        None | Some("client_secret_basic") => "client_secret_basic",
        Some("client_secret_post") => "client_secret_post",
        Some("private_key_jwt") => "private_key_jwt",
        Some("none") => "none",
        Some(_) => return Err(Refused::metadata("this token_endpoint_auth_method is not supported")),
    };
    let mut grants = Vec::new();
    for name in texts("grant_types")?.unwrap_or_else(|| vec![Grant::AuthorizationCode.as_requested()]) {
        let grant = Grant::requested(name).filter(|grant| rules.grants.contains(grant));
        let grant = grant.ok_or_else(|| Refused::metadata("a grant type may not be used here"))?;
        if !grants.contains(&grant) {
            grants.push(grant);
        }
    }
    let has = |grant| grants.contains(&grant);
    if has(Grant::RefreshToken) && !has(Grant::AuthorizationCode) {
        return Err(Refused::metadata("refresh_token needs authorization_code"));
    }
    if method == "none" && (has(Grant::ClientCredentials) || has(Grant::JwtBearer)) {
        return Err(Refused::metadata("these grant types need client authentication"));
    }
    if has(Grant::JwtBearer) && method != "private_key_jwt" {
        return Err(Refused::metadata("the JWT bearer grant needs private_key_jwt"));
    }
    if texts("response_types")?.is_some_and(|types| types.iter().any(|name| *name != "code")) {
        return Err(Refused::metadata("the only response type is code"));
    }
    let redirect_uris = texts("redirect_uris")?.unwrap_or_default();
    check_redirects(&redirect_uris, has(Grant::AuthorizationCode))?;
    let name = text("client_name")?.map(str::trim).filter(|name| !name.is_empty());
    // What a person reads on the consent page must be what is there: no control or direction marks.
    let odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    if name.is_some_and(|name| name.chars().count() > LONGEST_NAME || name.chars().any(odd)) {
        return Err(Refused::metadata("client_name is too long or holds characters that cannot be seen"));
    }
    let (jwks, algorithm) = keys(asked, method, text("token_endpoint_auth_signing_alg")?)?;
    let scopes = match text("scope")? {
        None => rules.scopes.clone(),
        Some(scope) if scope.len() > LONGEST_SCOPE => return Err(Refused::metadata("scope is too long")),
        Some(scope) => scope.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect(),
    };
    if scopes.iter().any(|scope| !is_scope(scope) || !rules.scopes.contains(scope)) {
        return Err(Refused::metadata("a scope may not be asked for here"));
    }
    let stored = Stored {
        format: FORMAT,
        name: name.map(str::to_owned),
        secret: None,
        jwks,
        algorithm,
        grants: grants.into_iter().map(|grant| grant.as_requested().to_owned()).collect(),
        scopes,
        redirect_uris: redirect_uris.into_iter().map(str::to_owned).collect(),
        issued: now.as_second(),
        used: false,
    };
    Ok((stored, method))
}

fn check_redirects(uris: &[&str], needed: bool) -> Result<(), Refused> {
    if needed && uris.is_empty() {
        return Err(Refused::redirect("redirect_uris is missing"));
    }
    if uris.len() > MOST_REDIRECTS || uris.iter().any(|uri| uri.len() > LONGEST_REDIRECT) {
        return Err(Refused::redirect("too many redirect_uris, or one that is too long"));
    }
    uris.iter()
        .find_map(|uri| wrong_registered_redirect(uri))
        .map_or(Ok(()), |wrong| Err(Refused::redirect(wrong)))
}

/// The keys of a client that signs assertions; others need none.
fn keys(
    asked: &Map<String, Value>,
    method: &str,
    algorithm: Option<&str>,
) -> Result<(Option<Value>, Option<String>), Refused> {
    if asked.contains_key("jwks_uri") {
        return Err(Refused::metadata("jwks_uri is not supported; send jwks"));
    }
    if method != "private_key_jwt" {
        return Ok((None, None));
    }
    if algorithm.is_some_and(|name| septet_oauth::keys::algorithm(name).is_none()) {
        return Err(Refused::metadata("this token_endpoint_auth_signing_alg is not supported"));
    }
    let jwks = asked.get("jwks").filter(|jwks| jwks.is_object());
    let jwks = jwks.ok_or_else(|| Refused::metadata("private_key_jwt needs jwks"))?;
    let listed = jwks.get("keys").and_then(Value::as_array);
    if listed.into_iter().flatten().any(|key| key.get("d").is_some() || key.get("k").is_some()) {
        return Err(Refused::metadata("jwks holds a private key; take it for known to others"));
    }
    if jwks.to_string().len() > LONGEST_JWKS || public_keys(jwks, algorithm).is_none() {
        return Err(Refused::metadata("jwks holds no key that can verify a signature, or is too long"));
    }
    Ok((Some(jwks.clone()), algorithm.map(str::to_owned)))
}

/// What the client learns (RFC 7591 §3.2.1), the secret this once.
fn reply(id: &str, stored: &Stored, method: &str, secret: Option<String>) -> Value {
    let mut reply = json!({
        "client_id": id,
        "client_id_issued_at": stored.issued,
        "token_endpoint_auth_method": method,
        "grant_types": stored.grants,
        "response_types": if stored.redirect_uris.is_empty() { json!([]) } else { json!(["code"]) },
        "redirect_uris": stored.redirect_uris,
        "scope": stored.scopes.join(" "),
    });
    for (name, value) in
        [("client_name", &stored.name), ("token_endpoint_auth_signing_alg", &stored.algorithm)]
    {
        if let Some(value) = value {
            put(&mut reply, name, value.clone());
        }
    }
    if let Some(object) = reply.as_object_mut() {
        if let Some(jwks) = &stored.jwks {
            object.insert("jwks".to_owned(), jwks.clone());
        }
        if let Some(secret) = secret {
            object.insert("client_secret".to_owned(), Value::from(secret));
            object.insert("client_secret_expires_at".to_owned(), json!(0));
        }
    }
    reply
}
