//! What tokens are worth, and their early end: introspection (RFC 7662), revocation (RFC 7009) and userinfo (OpenID
//! Connect Core §5.3).
//!
//! Resource servers that only verify signatures take a revoked access token until it expires; those that ask here
//! do not. What is revoked is one token (by its `jti`), or a grant: its refresh tokens and, by the tag in their
//! `jti`, all its access tokens.

use axum::extract::{Request, State};
use axum::http::header::{HeaderValue, WWW_AUTHENTICATE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use septet_engine::event::{Level, NewEvent};
use serde_json::{Map, Value, json};

use super::clients::OPENID;
use super::grants::tag;
use super::issue::{ACCESS_TOKEN, put};
use super::kept::Place;
use super::remembered::Noted;
use super::request::{ErrorCode, Received, TokenError, answered, authorization, bearer, refused, uncached};
use super::server::Server;

/// `POST /oauth2/introspect`: for resource servers, which are clients too.
pub(super) async fn introspect(State(server): State<Server>, request: Request) -> Response {
    let received = match Received::read(&server, request).await {
        Ok(received) => received,
        Err(response) => return response,
    };
    let answer = async {
        let now = server.now();
        let client = server.confidential_client(&received, now).await?;
        let token = received.parameters.must("token", "token is missing")?;
        let found = server.access_claims(token, now).map(described);
        // Refresh tokens are nobody's business but their client's.
        let found = found.or_else(|| server.refresh_claims(token, &client.id, now));
        Ok(found.unwrap_or_else(|| json!({ "active": false })))
    };
    let answer = answer.await;
    if let Err(error) = &answer {
        server.note_refusal(error);
    }
    answered(answer)
}

/// What introspection says of an access token (RFC 7662 §2.2).
fn described(claims: Map<String, Value>) -> Value {
    let user = claims.get("sub") != claims.get("client_id");
    let mut reply = json!({ "active": true, "token_type": "Bearer" });
    if let Some(object) = reply.as_object_mut() {
        if user && let Some(name) = claims.get("sub") {
            object.insert("username".to_owned(), name.clone());
        }
        object.extend(claims);
    }
    reply
}

/// `POST /oauth2/revoke`: a client gives up what it was given.
pub(super) async fn revoke(State(server): State<Server>, request: Request) -> Response {
    let received = match Received::read(&server, request).await {
        Ok(received) => received,
        Err(response) => return response,
    };
    match server.revoke_for(&received).await {
        Ok(()) => uncached(StatusCode::OK.into_response()),
        Err(error) => {
            server.note_refusal(&error);
            let mut response = refused(&error);
            if error.code == ErrorCode::ServerError {
                // RFC 7009 §2.2.1: the token is to be taken as valid still.
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
    }
}

/// `GET` or `POST /oauth2/userinfo`, with an access token that a person allowed `openid` for.
pub(super) async fn userinfo(State(server): State<Server>, request: Request) -> Response {
    let in_header = authorization(request.headers());
    let by_post = request.method() == Method::POST && matches!(in_header, Ok(None));
    let token = if by_post {
        // RFC 6750 §2.2: as a form field.
        let received = match Received::read(&server, request).await {
            Ok(received) => received,
            Err(response) => return response,
        };
        received.parameters.one("access_token").ok().flatten().map(str::to_owned)
    } else {
        in_header.ok().flatten().as_deref().and_then(|text| bearer(Some(text))).map(str::to_owned)
    };
    let Some(token) = token else {
        return challenged(StatusCode::UNAUTHORIZED, r#"Bearer realm="septet""#);
    };
    let Some(claims) = server.access_claims(&token, server.now()) else {
        server.note(|| {
            NewEvent::new(Level::Warning, "auth.refused", "inactive")
                .detail("userinfo: the token is not valid")
        });
        return challenged(StatusCode::UNAUTHORIZED, r#"Bearer realm="septet", error="invalid_token""#);
    };
    let scopes = claims.get("scope").and_then(Value::as_str).unwrap_or_default();
    let has = |wanted: &str| scopes.split(' ').any(|scope| scope == wanted);
    if !has(OPENID) {
        let text = r#"Bearer realm="septet", error="insufficient_scope", scope="openid""#;
        return challenged(StatusCode::FORBIDDEN, text);
    }
    let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
    let mut reply = json!({ "sub": subject });
    if has("profile") {
        put(&mut reply, "preferred_username", subject.to_owned());
    }
    answered(Ok(reply))
}

fn challenged(status: StatusCode, challenge: &'static str) -> Response {
    let mut response = uncached(status.into_response());
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

impl Server {
    /// The claims of an access token of ours that counts: signed by a published key, not expired, not revoked,
    /// and its client and user still there.
    fn access_claims(&self, token: &str, now: Timestamp) -> Option<Map<String, Value>> {
        let header =
            URL_SAFE_NO_PAD.decode(token.split('.').next().filter(|part| part.len() < 4096)?).ok()?;
        let header: Map<String, Value> = serde_json::from_slice(&header).ok()?;
        if header.get("typ")?.as_str()? != ACCESS_TOKEN {
            return None;
        }
        let claims = self.keys().claims(token, now)?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let ours = text("iss")? == self.settings().issuer_text;
        let lives = claims.get("exp")?.as_i64()? > now.as_second();
        let client = self.find_client(text("client_id")?)?;
        let subject = text("sub")?;
        let known = subject == client.id || self.settings().user(subject).is_some();
        let id = text("jti")?;
        let revoked = {
            let revoked = self.revoked();
            let grant = id.split_once('.').map(|(tag, _)| tag);
            revoked.knows(id) || grant.is_some_and(|tag| revoked.knows(tag))
        };
        (ours && lives && known && !revoked).then_some(claims)
    }

    fn refresh_claims(&self, token: &str, client: &str, now: Timestamp) -> Option<Value> {
        let grants = self.grants();
        let (_, allowed, ends, good) = grants.family_of(token, now.as_second())?;
        let user = self.settings().user(&allowed.user).is_some();
        (good && user && allowed.client == client).then(|| {
            json!({
                "active": true,
                "client_id": allowed.client,
                "sub": allowed.user,
                "username": allowed.user,
                "scope": allowed.scopes.join(" "),
                "exp": ends,
                "iss": self.settings().issuer_text,
            })
        })
    }

    /// RFC 7009 §2. A token that is not known, or not good any more, is no error.
    async fn revoke_for(&self, received: &Received) -> Result<(), TokenError> {
        let now = self.now();
        let client = self.client(received, now).await?;
        let token = received.parameters.must("token", "token is missing")?;
        let other = TokenError::new(ErrorCode::UnauthorizedClient, "the token is another client's");
        // An old refresh token of a family ends it as well: whoever gives one up wants none of them.
        let family = {
            let grants = self.grants();
            let found = grants.family_of(token, now.as_second());
            found.map(|(grant, allowed, ..)| (grant.to_owned(), allowed.client == client.id))
        };
        if let Some((grant, own)) = family {
            if !own {
                return Err(other);
            }
            self.end_grant(&grant).await?;
            self.event(revoked_event(&client.id, "its refresh tokens and what came of them"));
            return Ok(());
        }
        let Some(claims) = self.access_claims(token, now) else { return Ok(()) };
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if text("client_id") != Some(&client.id) {
            return Err(other);
        }
        let ends = claims.get("exp").and_then(Value::as_i64).unwrap_or_default();
        self.no_longer_counts(text("jti").unwrap_or_default(), ends, now).await?;
        self.event(revoked_event(&client.id, "an access token"));
        Ok(())
    }

    /// Ends a grant: its refresh tokens, and its access tokens where somebody asks.
    pub(super) async fn end_grant(&self, grant: &str) -> Result<(), TokenError> {
        let now = self.now();
        self.grants().revoke(grant);
        self.save(Place::Family(grant)).await.map_err(|_| TokenError::unable())?;
        let ends = now.as_second().saturating_add(self.keys().lifetime());
        self.no_longer_counts(&tag(grant), ends, now).await
    }

    async fn no_longer_counts(&self, id: &str, ends: i64, now: Timestamp) -> Result<(), TokenError> {
        let (noted, ended) = {
            let mut revoked = self.revoked();
            let ended = revoked.ended(now.as_second());
            (revoked.note(id, ends), ended)
        };
        for id in ended {
            self.save(Place::Revoked(&id)).await.map_err(|_| TokenError::unable())?;
        }
        match noted {
            Noted::Full => Err(TokenError::unable()),
            Noted::New | Noted::Known => {
                self.save(Place::Revoked(id)).await.map_err(|_| TokenError::unable())
            }
        }
    }
}

fn revoked_event(client: &str, what: &str) -> NewEvent {
    NewEvent::new(Level::Info, "oauth.revoked", format!("client {client} gave up {what}"))
}
