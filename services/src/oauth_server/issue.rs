//! Makes tokens: access tokens (RFC 9068) and id tokens (OpenID Connect Core §2), signed with the key of the moment.

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::clients::{Client, OPENID};
use super::grants::{Allowed, tag};
use super::request::TokenError;
use super::server::Server;

/// The `typ` of access tokens (RFC 9068 §2.1), which nothing else has.
pub(super) const ACCESS_TOKEN: &str = "at+jwt";

/// What an access token is to say.
pub(super) struct Token<'a> {
    pub(super) client: &'a Client,
    pub(super) subject: &'a str,
    pub(super) scopes: Vec<&'a str>,
    pub(super) audiences: Vec<String>,
    /// The grant it comes of, where a person allowed it: ending that ends the token.
    pub(super) grant: Option<&'a str>,
}

impl Server {
    /// An access token in the reply that carries it.
    pub(super) fn access_token(&self, token: Token<'_>, now: Timestamp) -> Result<Value, TokenError> {
        let lifetime = self.settings().access_token_lifetime();
        let now = now.as_second();
        let audience = match token.audiences.as_slice() {
            [one] => json!(one),
            several => json!(several),
        };
        let id = random_id().ok_or_else(TokenError::unable)?;
        let mut claims = json!({
            "iss": self.settings().issuer_text,
            "sub": token.subject,
            "aud": audience,
            "client_id": token.client.id,
            "iat": now,
            "exp": now.saturating_add(lifetime),
            "jti": token.grant.map_or(id.clone(), |grant| format!("{}.{id}", tag(grant))),
        });
        let mut reply = json!({ "access_token": "", "token_type": "Bearer", "expires_in": lifetime });
        if !token.scopes.is_empty() {
            for object in [&mut claims, &mut reply] {
                put(object, "scope", token.scopes.join(" "));
            }
        }
        let signed = self.keys().signing().sign(ACCESS_TOKEN, &claims).map_err(|_| TokenError::unable())?;
        put(&mut reply, "access_token", signed);
        Ok(reply)
    }

    /// Who signed in, for the client, where it asked for `openid`.
    pub(super) fn id_token(
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
        let token = self.keys().signing().sign("JWT", &claims).map_err(|_| TokenError::unable())?;
        put(reply, "id_token", token);
        Ok(())
    }
}

/// Sets a text of a JSON object.
pub(super) fn put(object: &mut Value, name: &str, text: String) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), Value::String(text));
    }
}

/// A random id: 128 bits.
pub(super) fn random_id() -> Option<String> {
    let mut id = [0u8; 16];
    rand::fill(&mut id).ok()?;
    Some(URL_SAFE_NO_PAD.encode(id))
}
