//! `[oauth.NAME]`: named OAuth clients as they are written (CONTRACT §2.6). Whether the parts fit together is
//! for septet-oauth to say, through the registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::config::node::{Entry, Node};
use crate::config::report::Report;
use crate::config::settings::{ClientTls, OAuthClient, Secret};
use crate::config::units::DurationText;
use crate::registry::Registry;
use crate::token::Placement;

/// Writes an enum of texts whose serde names are the contract's.
macro_rules! texts {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
        enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant),+ }
        impl $name {
            fn text(self) -> String {
                match self { $($name::$variant => $text.to_owned()),+ }
            }
        }
    };
}

texts!(
    /// How a token is obtained.
    Grant {
        /// The client itself (RFC 6749 §4.4).
        ClientCredentials = "client_credentials",
        /// A user's name and password (RFC 6749 §4.3).
        Password = "password",
        /// A refresh token (RFC 6749 §6).
        RefreshToken = "refresh_token",
        /// A signed assertion (RFC 7523 §2.1).
        JwtBearer = "jwt_bearer",
        /// A person signs in once (RFC 6749 §4.1).
        AuthorizationCode = "authorization_code",
    }
);
texts!(
    /// How the client proves who it is.
    ClientAuth {
        /// HTTP basic.
        Basic = "basic",
        /// In the body.
        Post = "post",
        /// Not at all.
        None = "none",
        /// An assertion signed with the secret (RFC 7523 §2.2).
        SecretJwt = "client_secret_jwt",
        /// An assertion signed with the key (RFC 7523 §2.2).
        KeyJwt = "private_key_jwt",
        /// A client certificate (RFC 8705).
        Tls = "tls",
    }
);
texts!(
    /// The form of the token request.
    RequestBody {
        /// `application/x-www-form-urlencoded`.
        Form = "form",
        /// JSON.
        Json = "json",
    }
);

/// `[oauth.NAME]`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientKeys {
    /// The token endpoint; or give `issuer`.
    #[serde(default)]
    token_url: Option<String>,
    /// Where a person signs in, for grant authorization_code; or give `issuer`.
    #[serde(default)]
    authorization_url: Option<String>,
    /// More parameters of the request that the person is sent there with, for example `access_type`.
    #[serde(default)]
    authorize_params: BTreeMap<String, Json>,
    /// Where the provider sends the person back to, as registered there: `/oauth/NAME/callback` of the admin
    /// listener. Absent: at the address that the person reached the admin listener at.
    #[serde(default)]
    redirect_uri: Option<String>,
    /// How long a refresh token lives, where the server does not say.
    #[serde(default)]
    refresh_token_lifetime: Option<DurationText>,
    /// An alert comes this long before a refresh token ends, at most a quarter of its lifetime.
    #[serde(default = "refresh_alert")]
    refresh_alert: DurationText,
    /// The issuer whose discovery document names the token endpoint.
    #[serde(default)]
    issuer: Option<String>,
    /// The issuer expected in that document where it is another.
    #[serde(default)]
    expected_issuer: Option<String>,
    /// How a token is obtained.
    grant: Grant,
    /// The client id.
    client_id: String,
    /// The client secret, normally `${env:…}` or `${file:…}`.
    #[serde(default)]
    client_secret: Option<Secret>,
    /// How the client proves who it is.
    #[serde(default = "basic")]
    client_auth: ClientAuth,
    /// The form of the token request.
    #[serde(default = "form")]
    request_body: RequestBody,
    /// Scopes, separated by spaces.
    #[serde(default)]
    scope: Option<String>,
    /// The audience parameter.
    #[serde(default)]
    audience: Option<String>,
    /// The resource parameter (RFC 8707).
    #[serde(default)]
    resource: Option<String>,
    /// More parameters of the token request.
    #[serde(default)]
    params: BTreeMap<String, Json>,
    /// More headers of the token request.
    #[serde(default)]
    headers: BTreeMap<String, Secret>,
    /// For grant password.
    #[serde(default)]
    username: Option<String>,
    /// For grant password.
    #[serde(default)]
    password: Option<Secret>,
    /// For grant refresh_token: the first refresh token.
    #[serde(default)]
    refresh_token: Option<Secret>,
    /// The subject of the assertion, for grant jwt_bearer.
    #[serde(default)]
    subject: Option<String>,
    /// PEM text of the key that signs assertions, normally `${file:key.pem}`.
    #[serde(default)]
    private_key: Option<Secret>,
    /// PEM text of its certificate.
    #[serde(default)]
    certificate: Option<String>,
    /// The `kid` of assertions.
    #[serde(default)]
    key_id: Option<String>,
    /// RS256, RS384, RS512, PS256, PS384, PS512, ES256 or ES384.
    #[serde(default)]
    signing_alg: Option<String>,
    /// Where the token stands in the reply.
    #[serde(default)]
    reply: ReplyKeys,
    /// Where the token goes in requests, unless an operation says otherwise.
    #[serde(default)]
    placement: Placement,
    /// A new token is fetched this long before the old one expires, at most a quarter of its lifetime.
    #[serde(default = "refresh_before")]
    refresh_before: DurationText,
    /// The lifetime where the reply has no `expires_in`.
    #[serde(default = "default_lifetime")]
    default_lifetime: DurationText,
    /// TLS to the token endpoint.
    #[serde(default)]
    tls: ClientTls,
}

/// `reply = { access_token, expires_in }`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct ReplyKeys {
    /// JSON pointer of the token.
    access_token: String,
    /// JSON pointer of the lifetime.
    expires_in: String,
}

impl Default for ReplyKeys {
    fn default() -> Self {
        ReplyKeys { access_token: "/access_token".into(), expires_in: "/expires_in".into() }
    }
}

fn basic() -> ClientAuth {
    ClientAuth::Basic
}
fn form() -> RequestBody {
    RequestBody::Form
}
fn refresh_before() -> DurationText {
    DurationText::secs(60)
}
fn refresh_alert() -> DurationText {
    DurationText::secs(7 * 86_400)
}
fn default_lifetime() -> DurationText {
    DurationText::secs(300)
}

/// A checked client, and where its tokens go by default.
pub(crate) type Clients = BTreeMap<String, (Arc<OAuthClient>, Placement)>;

/// Reads all clients.
///
/// `signs_in` says whether there is an admin listener, where a person could sign in.
pub(crate) fn clients(
    section: &Node,
    signs_in: bool,
    registry: &Registry,
    report: &mut Report<'_>,
) -> Clients {
    let mut clients = BTreeMap::new();
    for entry in section.entries() {
        if let Some((client, placement)) = client(entry, report) {
            if client.grant == Grant::AuthorizationCode.text() && !signs_in {
                let text = "grant authorization_code needs [admin]: that is where a person signs in";
                report.error("S0501", report.place(&entry.node, &["grant"]), text, None);
            }
            for (key, code, text) in (registry.check_oauth)(&client) {
                let place = report.place(&entry.node, &[key]);
                report.error(code, place, text, None);
            }
            clients.insert(entry.key.clone(), (Arc::new(client), placement));
        }
    }
    clients
}

fn client(entry: &Entry, report: &mut Report<'_>) -> Option<(OAuthClient, Placement)> {
    let node = &entry.node;
    let keys: ClientKeys = report.read(node)?;
    let client = OAuthClient {
        name: entry.key.clone(),
        token_url: keys.token_url,
        authorization_url: keys.authorization_url,
        authorize_params: keys.authorize_params,
        redirect_uri: keys.redirect_uri,
        refresh_token_lifetime: keys.refresh_token_lifetime.map(DurationText::get),
        refresh_alert: keys.refresh_alert.get(),
        issuer: keys.issuer,
        expected_issuer: keys.expected_issuer,
        grant: keys.grant.text(),
        client_id: keys.client_id,
        client_secret: keys.client_secret,
        client_auth: keys.client_auth.text(),
        request_body: keys.request_body.text(),
        scope: keys.scope,
        audience: keys.audience,
        resource: keys.resource,
        params: keys.params,
        headers: keys.headers,
        username: keys.username,
        password: keys.password,
        refresh_token: keys.refresh_token,
        subject: keys.subject,
        private_key: keys.private_key,
        certificate: keys.certificate,
        key_id: keys.key_id,
        signing_alg: keys.signing_alg,
        reply_access_token: keys.reply.access_token,
        reply_expires_in: keys.reply.expires_in,
        refresh_before: keys.refresh_before.get(),
        default_lifetime: keys.default_lifetime.get(),
        tls: keys.tls,
    };
    Some((client, keys.placement))
}
