//! The token endpoint (RFC 6749 §3.2, §4.1.3, §4.4, §5, §6): request in, tokens or error out. A refresh token is on
//! stable storage before it is given.

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use jiff::Timestamp;
use septet_engine::event::{Level, NewEvent};
use serde_json::{Map, Value, json};

use super::clients::{Client, Grant, OPENID, Shown, is_scope, shown};
use super::grants::{Allowed, Asked, Redeemed, Refreshed, hashed, same};
use super::server::Server;

/// RFC 6749 §5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorCode {
    InvalidRequest,
    InvalidClient,
    UnauthorizedClient,
    UnsupportedGrantType,
    InvalidGrant,
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
            ErrorCode::InvalidGrant => "invalid_grant",
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

impl Server {
    /// Answers a token request: the reply's JSON, or the error.
    pub(super) async fn token(
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
        match grant {
            Grant::ClientCredentials => {
                let scopes = scopes(client, grant, parameters.one("scope")?)?;
                let audiences = self.audiences(client, parameters)?;
                self.access_token(client, &client.id, &scopes, &audiences, now)
            }
            Grant::AuthorizationCode => self.code(client, parameters, now).await,
            Grant::RefreshToken => self.refresh(client, parameters, now).await,
        }
    }

    /// RFC 6749 §4.1.3 with RFC 7636 §4.5.
    async fn code(
        &self,
        client: &Client,
        parameters: &Parameters,
        now: Timestamp,
    ) -> Result<Value, TokenError> {
        let missing = TokenError::new(ErrorCode::InvalidRequest, "code is missing");
        let code = parameters.one("code")?.ok_or(missing)?;
        let (redirect, verifier) = (parameters.one("redirect_uri")?, parameters.one("code_verifier")?);
        let fits = |asked: &Asked| {
            let same_place = match redirect {
                Some(redirect) => redirect == asked.redirect_uri,
                None => !asked.redirect_uri_given,
            };
            let proven = match (&asked.challenge, verifier) {
                (Some(challenge), Some(verifier)) => same(&hashed(verifier), challenge),
                (None, None) => true,
                _ => false,
            };
            asked.client == client.id && same_place && proven
        };
        let redeemed = self.grants().redeem(code, now.as_second(), fits);
        let (nonce, allowed) = match redeemed {
            Redeemed::Good { nonce, allowed } => (nonce, allowed),
            Redeemed::Bad => return Err(invalid_grant()),
            Redeemed::Again { family } => {
                if let Some(family) = family {
                    self.revoke(&family).await?;
                }
                return Err(invalid_grant());
            }
        };
        let granted: Vec<&str> = allowed.scopes.iter().map(String::as_str).collect();
        let mut reply = self.access_token(client, &allowed.user, &granted, &allowed.audiences, now)?;
        if client.grants.contains(&Grant::RefreshToken) {
            let lifetime = self.settings().refresh_token_lifetime();
            let founded = self.grants().found_family(allowed.clone(), now.as_second(), lifetime);
            let (token, family) = founded.ok_or_else(unable)?;
            self.grants().gave(code, &family);
            self.keep_family(&family).await.map_err(|_| unable())?;
            self.forget_ended(now).await?;
            put(&mut reply, "refresh_token", token);
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
        let missing = TokenError::new(ErrorCode::InvalidRequest, "refresh_token is missing");
        let token = parameters.one("refresh_token")?.ok_or(missing)?;
        let asked = parameters.one("scope")?;
        let lifetime = self.settings().refresh_token_lifetime();
        let mut within = true;
        let refreshed = self.grants().refresh(token, &client.id, now.as_second(), lifetime, |allowed| {
            let mut asked = asked.unwrap_or_default().split(' ').filter(|scope| !scope.is_empty());
            within = asked.all(|scope| allowed.scopes.iter().any(|known| known == scope));
            within && self.settings().users.iter().any(|user| user.name == allowed.user)
        });
        let (allowed, token, family) = match refreshed {
            Refreshed::Good { allowed, token, family } => (allowed, token, family),
            Refreshed::Bad if !within => {
                return Err(TokenError::new(
                    ErrorCode::InvalidScope,
                    "the scope goes beyond what was allowed",
                ));
            }
            Refreshed::Bad => return Err(invalid_grant()),
            Refreshed::Again { family } => {
                self.revoke(&family).await?;
                return Err(invalid_grant());
            }
        };
        self.keep_family(&family).await.map_err(|_| unable())?;
        // What the client may no longer have is left out, though it was allowed once.
        let still = |scope: &&str| client.scopes.iter().any(|known| known == scope);
        let granted: Vec<&str> = match asked {
            Some(asked) => asked.split(' ').filter(|scope| !scope.is_empty()).filter(still).collect(),
            None => allowed.scopes.iter().map(String::as_str).filter(still).collect(),
        };
        let mut reply = self.access_token(client, &allowed.user, &granted, &allowed.audiences, now)?;
        put(&mut reply, "refresh_token", token);
        self.id_token(&mut reply, client, &allowed, None, now)?;
        Ok(reply)
    }

    /// A token was used twice: somebody copied it.
    async fn revoke(&self, family: &str) -> Result<(), TokenError> {
        self.grants().revoke(family);
        self.keep_family(family).await.map_err(|_| unable())?;
        if self.may_note() {
            let event = NewEvent::new(Level::Warning, "auth.refused", "invalid_grant");
            self.event(
                event.detail("a code or refresh token was used a second time; what came of it is revoked"),
            );
        }
        Ok(())
    }

    /// Takes a few families that have ended off the disk.
    async fn forget_ended(&self, now: Timestamp) -> Result<(), TokenError> {
        let ended = self.grants().ended(now.as_second());
        for family in ended {
            self.keep_family(&family).await.map_err(|_| unable())?;
        }
        Ok(())
    }

    /// OpenID Connect Core §2: who signed in, for the client, where it asked for `openid`.
    fn id_token(
        &self,
        reply: &mut Value,
        client: &Client,
        allowed: &Allowed,
        nonce: Option<&str>,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        if !allowed.scopes.iter().any(|scope| scope == OPENID) {
            return Ok(());
        }
        let now = now.as_second();
        let mut claims = json!({
            "iss": self.settings().issuer_text,
            "sub": allowed.user,
            "aud": client.id,
            "iat": now,
            "exp": now.saturating_add(self.settings().access_token_lifetime()),
            "auth_time": allowed.signed_in,
        });
        if let Some(nonce) = nonce {
            put(&mut claims, "nonce", nonce.to_owned());
        }
        let token = self.keys().signing().sign("JWT", &claims).map_err(|_| unable())?;
        put(reply, "id_token", token);
        Ok(())
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

    /// The audiences that a request asks for, where the client may have them; else its default.
    pub(super) fn audiences(
        &self,
        client: &Client,
        parameters: &Parameters,
    ) -> Result<Vec<String>, TokenError> {
        let asked: Vec<String> =
            parameters.all("audience").chain(parameters.all("resource")).map(str::to_owned).collect();
        if !client.audiences.is_empty() && asked.iter().any(|asked| !client.audiences.contains(asked)) {
            return Err(TokenError::new(
                ErrorCode::InvalidTarget,
                "the client may not ask for this audience",
            ));
        }
        if asked.is_empty() {
            return Ok(vec![client.audiences.first().unwrap_or(&self.settings().issuer_text).clone()]);
        }
        Ok(asked)
    }

    /// RFC 9068 §2.
    fn access_token(
        &self,
        client: &Client,
        subject: &str,
        scopes: &[&str],
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Value, TokenError> {
        let lifetime = self.settings().access_token_lifetime();
        let now = now.as_second();
        let audience = match audiences {
            [one] => json!(one),
            several => json!(several),
        };
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
                put(object, "scope", scopes.join(" "));
            }
        }
        let token = self.keys().signing().sign("at+jwt", &claims).map_err(|_| unable())?;
        put(&mut reply, "access_token", token);
        Ok(reply)
    }
}

/// What is granted: what was asked for if the client may have all of it, or all that it may have. An id token
/// must be asked for.
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
        let may = own().any(|own| own == scope) && !(scope == OPENID && grant == Grant::ClientCredentials);
        if !is_scope(scope) || !may {
            return Err(TokenError::new(ErrorCode::InvalidScope, "the client may not have this scope"));
        }
        if !granted.contains(&scope) {
            granted.push(scope);
        }
    }
    Ok(granted)
}

fn put(object: &mut Value, name: &str, text: String) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), Value::String(text));
    }
}

fn unable() -> TokenError {
    TokenError::new(ErrorCode::ServerError, "the token could not be made")
}

fn invalid_grant() -> TokenError {
    TokenError::new(ErrorCode::InvalidGrant, "the code or refresh token is not valid for this request")
}

fn random_id() -> Option<String> {
    let mut id = [0u8; 16];
    rand::fill(&mut id).ok()?;
    Some(URL_SAFE_NO_PAD.encode(id))
}
