//! The token endpoint (RFC 6749 §3.2, §4.1.3, §4.4, §5, §6, RFC 7523 §2.1): request in, tokens or error out. What a
//! token depends on is on stable storage before it is given.

use axum::extract::{Request, State};
use axum::response::Response;
use jiff::Timestamp;
use septet_engine::event::{Level, NewEvent};
use septet_engine::store::StoreFailed;
use serde_json::Value;

use super::assertion::Asserted;
use super::authenticate::Sender;
use super::clients::{Client, Grant, OPENID, is_scope};
use super::grants::{Asked, Redeemed, Refreshed, hashed, same, tag};
use super::issue::{Token, put};
use super::kept::Place;
use super::request::{ErrorCode, Parameters, Received, TokenError, answered};
use super::server::Server;

/// Audiences in one request.
const MOST_AUDIENCES: usize = 10;
/// The longest of them.
const LONGEST_AUDIENCE: usize = 1024;

/// `POST /oauth2/token`.
pub(super) async fn answer(State(server): State<Server>, request: Request) -> Response {
    let received = match Received::read(&server, request).await {
        Ok(received) => received,
        Err(response) => return response,
    };
    let answer = server.token(&received).await;
    if let Err(error) = &answer {
        server.note_refusal(error);
    }
    answered(answer)
}

impl Server {
    /// Answers a token request: the reply's JSON, or the error.
    async fn token(&self, received: &Received) -> Result<Value, TokenError> {
        let now = self.now();
        let parameters = &received.parameters;
        // Who asks comes first: whoever cannot say that learns nothing else.
        let sender = self.sender(received, now).await?;
        let kind = parameters.one("grant_type")?;
        let grant = kind.and_then(Grant::requested);
        if grant == Some(Grant::JwtBearer) {
            return self.jwt_bearer(sender, received, now).await;
        }
        let by_header = received.authorization.is_some();
        let client = match sender {
            Sender::Proven(client) => client,
            Sender::Says(client) if client.is_public() => client,
            Sender::Says(_) | Sender::Nobody => return Err(TokenError::client(by_header)),
        };
        if kind.is_none() {
            return Err(TokenError::new(ErrorCode::InvalidRequest, "grant_type is missing"));
        }
        let unsupported =
            TokenError::new(ErrorCode::UnsupportedGrantType, "this grant_type is not supported");
        let grant = grant.ok_or(unsupported)?;
        may_use(&client, grant)?;
        let reply = match grant {
            Grant::ClientCredentials => {
                let scopes = scopes(&client, grant, parameters.one("scope")?)?;
                let audiences = self.audiences(&client, parameters)?;
                let token = Token { client: &client, subject: &client.id, scopes, audiences, grant: None };
                self.access_token(token, now)
            }
            Grant::AuthorizationCode => self.code(&client, parameters, now).await,
            _ => self.refresh(&client, parameters, now).await,
        }?;
        self.client_was_used(&client).await?;
        Ok(reply)
    }

    /// RFC 7523 §2.1. The assertion proves its client; another proof beside it must be the same client's.
    async fn jwt_bearer(
        &self,
        sender: Sender,
        received: &Received,
        now: Timestamp,
    ) -> Result<Value, TokenError> {
        let parameters = &received.parameters;
        let assertion = parameters.must("assertion", "assertion is missing")?;
        let sender = match sender {
            Sender::Proven(client) | Sender::Says(client) => Some(client),
            Sender::Nobody => None,
        };
        if let Some(sender) = &sender {
            may_use(sender, Grant::JwtBearer)?;
        }
        let Asserted { client, subject } = self.granted(sender.as_deref(), assertion, now).await?;
        let scopes = scopes(&client, Grant::JwtBearer, parameters.one("scope")?)?;
        let audiences = self.audiences(&client, parameters)?;
        let token = Token { client: &client, subject: &subject, scopes, audiences, grant: None };
        let reply = self.access_token(token, now)?;
        self.client_was_used(&client).await?;
        Ok(reply)
    }

    /// RFC 6749 §4.1.3 with RFC 7636 §4.5.
    async fn code(
        &self,
        client: &Client,
        parameters: &Parameters,
        now: Timestamp,
    ) -> Result<Value, TokenError> {
        let code = parameters.must("code", "code is missing")?;
        let (redirect, verifier) = (parameters.one("redirect_uri")?, parameters.one("code_verifier")?);
        let fits = |asked: &Asked| {
            let same_place = match redirect {
                Some(redirect) => redirect == asked.redirect_uri,
                None => !asked.redirect_uri_given,
            };
            // A verifier without a challenge means that somebody took the challenge away (RFC 9700 §4.8).
            let proven = match (&asked.challenge, verifier) {
                (Some(challenge), Some(verifier)) => same(&hashed(verifier), challenge),
                (None, None) => true,
                _ => false,
            };
            asked.client == client.id && same_place && proven
        };
        let redeemed = self.grants().redeem(code, now.as_second(), fits);
        if !matches!(redeemed, Redeemed::Unknown) {
            self.save(Place::Code(&hashed(code))).await.map_err(|_| TokenError::unable())?;
        }
        let (grant, nonce, allowed) = match redeemed {
            Redeemed::Good { grant, nonce, allowed } => (grant, nonce, allowed),
            Redeemed::Unknown | Redeemed::Misfit => return Err(invalid_grant()),
            Redeemed::Again { grant } => {
                self.used_again(&grant).await?;
                return Err(invalid_grant());
            }
        };
        if self.settings().user(&allowed.user).is_none() {
            return Err(invalid_grant());
        }
        let scopes: Vec<&str> = allowed.scopes.iter().map(String::as_str).collect();
        let audiences = allowed.audiences.clone();
        let token = Token { client, subject: &allowed.user, scopes, audiences, grant: Some(&grant) };
        let mut reply = self.access_token(token, now)?;
        if client.grants.contains(&Grant::RefreshToken) {
            let lifetime = self.settings().refresh_token_lifetime();
            self.forget_ended(now).await.map_err(|_| TokenError::unable())?;
            let founded = self.grants().found_family(&grant, allowed.clone(), now.as_second(), lifetime);
            let (token, dropped) = founded.ok_or_else(TokenError::unable)?;
            if let Some(dropped) = dropped {
                self.save(Place::Family(&dropped)).await.map_err(|_| TokenError::unable())?;
            }
            self.save(Place::Family(&grant)).await.map_err(|_| TokenError::unable())?;
            put(&mut reply, "refresh_token", token);
        }
        // The code may have come a second time meanwhile: then this one gets nothing either.
        if self.revoked().knows(&tag(&grant)) {
            self.end_grant(&grant).await?;
            return Err(invalid_grant());
        }
        self.id_token(&mut reply, client, &allowed, nonce.as_deref(), now)?;
        Ok(reply)
    }

    /// RFC 6749 §6, with rotation.
    async fn refresh(
        &self,
        client: &Client,
        parameters: &Parameters,
        now: Timestamp,
    ) -> Result<Value, TokenError> {
        let token = parameters.must("refresh_token", "refresh_token is missing")?;
        let asked = parameters.one("scope")?;
        let lifetime = self.settings().refresh_token_lifetime();
        let mut within = true;
        let refreshed = self.grants().refresh(token, &client.id, now.as_second(), lifetime, |allowed| {
            let mut asked = asked.unwrap_or_default().split(' ').filter(|scope| !scope.is_empty());
            within = asked.all(|scope| allowed.scopes.iter().any(|known| known == scope));
            within && self.settings().user(&allowed.user).is_some()
        });
        let (allowed, token, grant) = match refreshed {
            Refreshed::Good { allowed, token, grant } => (allowed, token, grant),
            Refreshed::Bad if !within => {
                let text = "the scope goes beyond what was allowed";
                return Err(TokenError::new(ErrorCode::InvalidScope, text));
            }
            Refreshed::Bad => return Err(invalid_grant()),
            Refreshed::Again { grant } => {
                self.used_again(&grant).await?;
                return Err(invalid_grant());
            }
        };
        self.save(Place::Family(&grant)).await.map_err(|_| TokenError::unable())?;
        // What the client may no longer have is left out, though it was allowed once.
        let still = |scope: &&str| client.scopes.iter().any(|known| known == scope);
        let scopes: Vec<&str> = match asked {
            Some(asked) => asked.split(' ').filter(|scope| !scope.is_empty()).filter(still).collect(),
            None => allowed.scopes.iter().map(String::as_str).filter(still).collect(),
        };
        let audiences = allowed.audiences.clone();
        let access = Token { client, subject: &allowed.user, scopes, audiences, grant: Some(&grant) };
        let mut reply = self.access_token(access, now)?;
        put(&mut reply, "refresh_token", token);
        self.id_token(&mut reply, client, &allowed, None, now)?;
        Ok(reply)
    }

    /// A code or refresh token came a second time: somebody copied it, and all that came of it must end.
    async fn used_again(&self, grant: &str) -> Result<(), TokenError> {
        self.end_grant(grant).await?;
        self.note(|| {
            let event = NewEvent::new(Level::Warning, "auth.refused", "invalid_grant");
            event.detail("a code or refresh token was used a second time; what came of it is revoked")
        });
        Ok(())
    }

    /// Takes a few codes and families that have ended off the disk.
    pub(super) async fn forget_ended(&self, now: Timestamp) -> Result<(), StoreFailed> {
        let (codes, families) = self.grants().ended(now.as_second());
        for hash in &codes {
            self.save(Place::Code(hash)).await?;
        }
        for grant in &families {
            self.save(Place::Family(grant)).await?;
        }
        Ok(())
    }

    /// Notes a client that could not prove itself.
    pub(super) fn note_refusal(&self, error: &TokenError) {
        if matches!(error.code, ErrorCode::InvalidClient | ErrorCode::SlowDown) {
            self.note(|| {
                let event = NewEvent::new(Level::Warning, "auth.refused", "invalid_client");
                event
                    .detail(format!("a client that is unknown or cannot prove itself: {}", error.description))
            });
        }
    }

    /// The audiences that a request asks for, where the client may have them; else its default.
    pub(super) fn audiences(
        &self,
        client: &Client,
        parameters: &Parameters,
    ) -> Result<Vec<String>, TokenError> {
        let asked = parameters.all("audience").chain(parameters.all("resource"));
        let asked: Vec<String> = asked.take(MOST_AUDIENCES + 1).map(str::to_owned).collect();
        let refused = |text| Err(TokenError::new(ErrorCode::InvalidTarget, text));
        if asked.len() > MOST_AUDIENCES || asked.iter().any(|asked| asked.len() > LONGEST_AUDIENCE) {
            return refused("too many audiences, or one that is too long");
        }
        if !client.audiences.is_empty() && asked.iter().any(|asked| !client.audiences.contains(asked)) {
            return refused("the client may not ask for this audience");
        }
        if asked.is_empty() {
            return Ok(vec![client.audiences.first().unwrap_or(&self.settings().issuer_text).clone()]);
        }
        Ok(asked)
    }
}

fn may_use(client: &Client, grant: Grant) -> Result<(), TokenError> {
    if client.grants.contains(&grant) {
        return Ok(());
    }
    Err(TokenError::new(ErrorCode::UnauthorizedClient, "the client may not use this grant_type"))
}

/// What is granted: what was asked for if the client may have all of it, or all that it may have. An id token
/// must be asked for, and a person must be there.
pub(super) fn scopes<'a>(
    client: &'a Client,
    grant: Grant,
    asked: Option<&'a str>,
) -> Result<Vec<&'a str>, TokenError> {
    let own = || client.scopes.iter().map(String::as_str);
    let Some(asked) = asked else {
        return Ok(own().filter(|scope| *scope != OPENID).collect());
    };
    let mut granted = Vec::new();
    for scope in asked.split(' ').filter(|scope| !scope.is_empty()) {
        let may = own().any(|own| own == scope) && (scope != OPENID || grant == Grant::AuthorizationCode);
        if !is_scope(scope) || !may {
            return Err(TokenError::new(ErrorCode::InvalidScope, "the client may not have this scope"));
        }
        if !granted.contains(&scope) {
            granted.push(scope);
        }
    }
    Ok(granted)
}

fn invalid_grant() -> TokenError {
    TokenError::new(ErrorCode::InvalidGrant, "the code or refresh token is not valid for this request")
}
