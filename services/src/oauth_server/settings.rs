//! Settings of `type = "oauth.server"` (CONTRACT §2.6). Their doc comments are the reference.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use septet_engine::config::settings::{Secret, ServerTls};
use septet_engine::config::units::{DurationText, Listen, Ordered, Strings};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

/// Settings of an `oauth.server` service.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address and port to listen on.
    pub listen: Listen,
    /// Its name in tokens (`iss`), and the address below which clients reach it: `/oauth2/token`,
    /// `/oauth2/jwks`. https, except on loopback.
    pub issuer: String,
    /// What tokens are signed with: RS256, RS384, RS512, PS256, PS384, PS512, ES256 or ES384. The key is made at
    /// first start and kept sealed in the store; `septet oauth rotate` makes a new one.
    #[serde(default = "rs256")]
    pub signing_alg: String,
    /// How long an access token is valid.
    #[serde(default = "hour")]
    pub access_token_lifetime: DurationText,
    /// How long an authorization code is valid.
    #[serde(default = "minute")]
    pub code_lifetime: DurationText,
    /// How long a refresh token is valid.
    #[serde(default = "day")]
    pub refresh_token_lifetime: DurationText,
    /// Scopes and what they mean to a person who is asked for consent.
    #[serde(default)]
    pub scopes: Ordered<String>,
    /// TLS of the listener. Without it the listener is on loopback, or behind a proxy that ends TLS.
    #[serde(default)]
    pub tls: Option<ServerTls>,
    /// A proxy in front ends TLS, so that the listener may be plain http off loopback.
    #[serde(default)]
    pub behind_proxy: bool,
    /// Let clients register themselves (RFC 7591) at `/oauth2/register`: `true` for anybody who reaches the
    /// server, or a table with `token` (the initial access token that they must show as bearer), `grants` (default
    /// authorization_code and refresh_token; others need `token`), `scopes` (default all of the server's) and
    /// `max_clients` (default 100). Absent or `false`: nobody, and clients that registered earlier are not accepted.
    #[serde(default)]
    pub registration: Registration,
    /// Who may ask for tokens, by client id.
    #[serde(default)]
    pub clients: Ordered<ClientSettings>,
    /// Who may sign in, by name.
    #[serde(default)]
    pub users: Ordered<UserSettings>,
}

/// `[services.X.clients.ID]`.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientSettings {
    /// What people see it as on the sign-in and consent pages; its id where absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Its secret, for authentication by header (basic) or body (post); normally `${env:…}` or `${file:…}`.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// Its public keys (RFC 7517), for authentication by signed assertion (private_key_jwt) and for grant
    /// jwt_bearer: a table with `keys`, or JSON text, normally `${file:…}`.
    #[serde(default)]
    pub jwks: Option<serde_json::Value>,
    /// The only algorithm that its assertions may be signed with, for example ES384. Absent: any that fits its
    /// keys; symmetric ones and `none` never.
    #[serde(default)]
    pub signing_alg: Option<String>,
    /// It can keep no secret (a browser or phone application): it has neither `secret` nor `jwks`, and proves
    /// itself by PKCE alone.
    #[serde(default)]
    pub public: bool,
    /// What it may use: client_credentials (the default), authorization_code, refresh_token (with codes),
    /// jwt_bearer (with `jwks`: it speaks for itself, or for any user of this server, by assertions it signs).
    #[serde(default = "client_credentials")]
    pub grants: Strings,
    /// Scopes it may have; one that asks for none gets all of these. Absent: all of the server's.
    #[serde(default)]
    pub scopes: Option<Strings>,
    /// Audiences it may ask for (parameter `audience` or `resource`); one that asks for none gets the first.
    /// Absent: any, and the issuer where it asks for none.
    #[serde(default)]
    pub audience: Option<Strings>,
    /// Where a person may be sent back to, compared as exact text.
    #[serde(default)]
    pub redirect_uris: Strings,
    /// Refuse authorization requests without an S256 challenge (RFC 7636).
    #[serde(default = "yes")]
    pub pkce: bool,
}

/// `[services.X.users.NAME]`.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserSettings {
    /// The password in clear text, normally `${env:…}`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The argon2id hash that `septet hash-password` prints.
    #[serde(default)]
    pub password_hash: Option<Secret>,
}

/// `registration = true`, or a table; `None` when off.
#[derive(Clone, Debug, Default)]
pub struct Registration(pub Option<RegistrationSettings>);

/// `registration = { … }`.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistrationSettings {
    /// The initial access token (RFC 7591 §3) that a registration must show as bearer; normally `${env:…}`.
    /// Absent: anybody may register.
    #[serde(default)]
    pub token: Option<Secret>,
    /// What registered clients may use. client_credentials and jwt_bearer need `token`.
    #[serde(default = "with_a_person")]
    pub grants: Strings,
    /// Scopes that registered clients may have. Absent: all of the server's.
    #[serde(default)]
    pub scopes: Option<Strings>,
    /// Registered clients held at most. When it is reached, those that got no token within a day make room;
    /// 0 takes no new ones.
    #[serde(default = "hundred")]
    pub max_clients: u32,
}

impl Default for RegistrationSettings {
    fn default() -> Self {
        RegistrationSettings { token: None, grants: with_a_person(), scopes: None, max_clients: hundred() }
    }
}

impl<'de> Deserialize<'de> for Registration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SwitchOrTable;
        impl<'de> Visitor<'de> for SwitchOrTable {
            type Value = Registration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or a table such as { token = \"…\" }")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Registration, E> {
                Ok(Registration(on.then(RegistrationSettings::default)))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Registration, A::Error> {
                let table = RegistrationSettings::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Registration(Some(table)))
            }
        }
        deserializer.deserialize_any(SwitchOrTable)
    }
}

impl JsonSchema for Registration {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Registration".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let table = generator.subschema_for::<RegistrationSettings>();
        json_schema!({ "anyOf": [{ "type": "boolean" }, table] })
    }
}

fn rs256() -> String {
    "RS256".to_owned()
}

fn hour() -> DurationText {
    DurationText::secs(3600)
}

fn minute() -> DurationText {
    DurationText::secs(60)
}

fn day() -> DurationText {
    DurationText::secs(24 * 3600)
}

fn client_credentials() -> Strings {
    Strings(vec!["client_credentials".to_owned()])
}

fn with_a_person() -> Strings {
    Strings(vec!["authorization_code".to_owned(), "refresh_token".to_owned()])
}

fn hundred() -> u32 {
    100
}

fn yes() -> bool {
    true
}
