//! A named client with its settings understood: which grant, how it authenticates, which key signs. What the
//! settings must and must not have is checked here, once, for `septet check` and for running alike.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{HeaderName, HeaderValue};
use septet_engine::client_tls;
use septet_engine::config::settings::{OAuthClient, Secret};

use crate::keys::{SigningKey, algorithm, algorithm_names, pem_block};
use crate::net;

/// How a client gets tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    /// RFC 6749 §4.4.
    ClientCredentials,
    /// RFC 6749 §4.3.
    Password,
    /// RFC 6749 §6, from a first refresh token in the settings.
    RefreshToken,
    /// RFC 7523 §2.1.
    JwtBearer,
    /// RFC 6749 §4.1: a person signs in once, then refresh tokens.
    AuthorizationCode,
}

impl Grant {
    /// Whether an operator must act once the refresh token is gone: nothing in the settings can replace it.
    pub(crate) fn needs_a_person(self) -> bool {
        matches!(self, Grant::AuthorizationCode | Grant::RefreshToken)
    }
}

/// How a client says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAuth {
    /// RFC 6749 §2.3.1, header.
    Basic,
    /// RFC 6749 §2.3.1, body.
    Post,
    /// `client_id` alone.
    None,
    /// RFC 7523 §2.2, HMAC with the secret.
    SecretJwt,
    /// RFC 7523 §2.2, signed with the private key.
    PrivateKeyJwt,
    /// RFC 8705: the TLS certificate says it.
    Tls,
}

/// How the token request is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestBody {
    Form,
    Json,
}

/// HMAC algorithms of `client_secret_jwt`.
pub(crate) const HMAC: [(&str, jsonwebtoken::Algorithm); 3] = [
    ("HS256", jsonwebtoken::Algorithm::HS256),
    ("HS384", jsonwebtoken::Algorithm::HS384),
    ("HS512", jsonwebtoken::Algorithm::HS512),
];

/// A checked client.
pub(crate) struct Client {
    pub(crate) settings: Arc<OAuthClient>,
    pub(crate) grant: Grant,
    pub(crate) auth: ClientAuth,
    pub(crate) body: RequestBody,
    /// For assertions.
    pub(crate) key: Option<SigningKey>,
    /// Thumbprints of the certificate (RFC 7515 §4.1.7, §4.1.8), for assertions.
    pub(crate) thumbprints: Option<(String, String)>,
    /// Changes with everything that decides which token the client is given: a token of another version is
    /// never used.
    pub(crate) version: String,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({} {:?} {:?})", self.settings.name, self.grant, self.auth)
    }
}

/// Every problem of a client's settings: the key at fault, a code, and what is wrong (never a secret).
pub fn check(client: &OAuthClient) -> Vec<(&'static str, &'static str, String)> {
    Client::new(&Arc::new(client.clone())).err().unwrap_or_default()
}

type Problems = Vec<(&'static str, &'static str, String)>;

/// A setting that is missing for what was chosen.
const MISSING: &str = "S0501";
/// A value that cannot be.
const INVALID: &str = "S0502";

impl Client {
    /// Understands the settings, or says everything that is wrong with them.
    pub(crate) fn new(settings: &Arc<OAuthClient>) -> Result<Client, Problems> {
        let mut problems = Problems::new();
        let grant = grant(settings, &mut problems);
        let auth = client_auth(settings, &mut problems);
        let body = match settings.request_body.as_str() {
            "form" => Some(RequestBody::Form),
            "json" => Some(RequestBody::Json),
            other => {
                problems.push((
                    "request_body",
                    INVALID,
                    format!("request_body is form or json, not {other}"),
                ));
                None
            }
        };
        endpoints(settings, &mut problems);
        let key = signing_key(settings, grant, auth, &mut problems);
        let thumbprints = thumbprints(settings, &mut problems);
        for (key, pointer) in [("reply", &settings.reply_access_token), ("reply", &settings.reply_expires_in)]
        {
            if !pointer.starts_with('/') {
                problems.push((key, INVALID, format!("a JSON pointer starts with /: {pointer}")));
            }
        }
        for (name, value) in &settings.headers {
            let legal = HeaderName::from_bytes(name.as_bytes()).is_ok()
                && HeaderValue::from_str(value.reveal()).is_ok();
            if !legal {
                problems.push(("headers", INVALID, format!("{name} is no legal HTTP header")));
            }
        }
        match (grant, auth, body) {
            (Some(grant), Some(auth), Some(body)) if problems.is_empty() => {
                let version = version(settings);
                Ok(Client { settings: settings.clone(), grant, auth, body, key, thumbprints, version })
            }
            _ => Err(problems),
        }
    }

    /// Whether a refresh token is of use: with client credentials one is refused (RFC 6749 §4.4.3) or, where
    /// a server sends it all the same, never better than the credentials.
    pub(crate) fn refreshes(&self) -> bool {
        matches!(self.grant, Grant::Password | Grant::RefreshToken | Grant::AuthorizationCode)
    }

    /// A text of the server's with every secret of this client masked: servers echo requests.
    pub(crate) fn masked(&self, text: &str) -> String {
        let settings = &self.settings;
        let secrets = [&settings.client_secret, &settings.password, &settings.refresh_token];
        let secrets = secrets.into_iter().flatten().map(Secret::reveal);
        let headers = settings.headers.values().map(Secret::reveal);
        let params = settings.params.values().filter_map(|value| value.as_str());
        let mut masked = text.to_owned();
        for secret in secrets.chain(headers).chain(params.filter(|text| text.len() >= 8)) {
            if secret.is_empty() {
                continue;
            }
            masked = masked.replace(secret, septet_engine::vault::MASK);
            let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            masked = masked.replace(&encoded, septet_engine::vault::MASK);
        }
        masked
    }
}

fn need(problems: &mut Problems, key: &'static str, present: bool, whom: &str) {
    if !present {
        problems.push((key, MISSING, format!("{whom} needs {key}")));
    }
}

fn grant(settings: &OAuthClient, problems: &mut Problems) -> Option<Grant> {
    match settings.grant.as_str() {
        "client_credentials" => Some(Grant::ClientCredentials),
        "password" => {
            need(problems, "username", settings.username.is_some(), "grant password");
            need(problems, "password", settings.password.is_some(), "grant password");
            Some(Grant::Password)
        }
        "refresh_token" => {
            need(problems, "refresh_token", settings.refresh_token.is_some(), "grant refresh_token");
            Some(Grant::RefreshToken)
        }
        "jwt_bearer" => {
            need(problems, "private_key", settings.private_key.is_some(), "grant jwt_bearer");
            Some(Grant::JwtBearer)
        }
        "authorization_code" => {
            let somewhere = settings.authorization_url.is_some() || settings.issuer.is_some();
            need(problems, "authorization_url", somewhere, "grant authorization_code without issuer");
            Some(Grant::AuthorizationCode)
        }
        other => {
            let known = "client_credentials, password, refresh_token, jwt_bearer or authorization_code";
            problems.push(("grant", INVALID, format!("grant is {known}, not {other}")));
            None
        }
    }
}

fn client_auth(settings: &OAuthClient, problems: &mut Problems) -> Option<ClientAuth> {
    if settings.client_id.is_empty() {
        problems.push(("client_id", MISSING, "client_id is empty".into()));
    }
    let secret = settings.client_secret.as_ref().is_some_and(|secret| !secret.reveal().is_empty());
    match settings.client_auth.as_str() {
        "basic" => {
            need(problems, "client_secret", secret, "client_auth basic");
            Some(ClientAuth::Basic)
        }
        "post" => {
            need(problems, "client_secret", secret, "client_auth post");
            Some(ClientAuth::Post)
        }
        "none" => Some(ClientAuth::None),
        "client_secret_jwt" => {
            need(problems, "client_secret", secret, "client_auth client_secret_jwt");
            Some(ClientAuth::SecretJwt)
        }
        "private_key_jwt" => {
            need(problems, "private_key", settings.private_key.is_some(), "client_auth private_key_jwt");
            Some(ClientAuth::PrivateKeyJwt)
        }
        "tls" => {
            let both = settings.tls.cert.is_some() && settings.tls.key.is_some();
            need(problems, "tls", both, "client_auth tls (with cert and key)");
            Some(ClientAuth::Tls)
        }
        other => {
            let known = "basic, post, none, client_secret_jwt, private_key_jwt or tls";
            problems.push(("client_auth", INVALID, format!("client_auth is {known}, not {other}")));
            None
        }
    }
}

fn endpoints(settings: &OAuthClient, problems: &mut Problems) {
    if settings.token_url.is_none() && settings.issuer.is_none() {
        problems.push(("token_url", MISSING, "an OAuth client needs token_url or issuer".into()));
    }
    let urls = [
        ("token_url", &settings.token_url),
        ("authorization_url", &settings.authorization_url),
        ("issuer", &settings.issuer),
        ("redirect_uri", &settings.redirect_uri),
    ];
    for (key, value) in urls {
        if let Some(Err(why)) = value.as_deref().map(net::endpoint) {
            problems.push((key, INVALID, format!("{key} cannot be used: {why}")));
        }
    }
    let tls = &settings.tls;
    if tls.pin.as_deref().is_some_and(|pin| client_tls::pin_digest(pin).is_none()) {
        let text = "tls.pin is sha256: and 64 hex digits, colons allowed";
        problems.push(("tls", INVALID, text.into()));
    }
    if tls.cert.is_some() != tls.key.is_some() {
        problems.push(("tls", MISSING, "a client certificate needs both tls.cert and tls.key".into()));
    }
}

fn signing_key(
    settings: &OAuthClient,
    grant: Option<Grant>,
    auth: Option<ClientAuth>,
    problems: &mut Problems,
) -> Option<SigningKey> {
    let name = settings.signing_alg.as_deref();
    let signs = grant == Some(Grant::JwtBearer) || auth == Some(ClientAuth::PrivateKeyJwt);
    if auth == Some(ClientAuth::SecretJwt) && !signs {
        if name.is_some_and(|name| !HMAC.iter().any(|(known, _)| *known == name)) {
            let text = "with client_secret_jwt signing_alg is HS256, HS384 or HS512".into();
            problems.push(("signing_alg", INVALID, text));
        }
        return None;
    }
    let wanted = name.and_then(algorithm);
    if let (Some(name), None) = (name, wanted) {
        let known = algorithm_names().collect::<Vec<_>>().join(", ");
        problems.push(("signing_alg", INVALID, format!("signing_alg is one of {known}, not {name}")));
        return None;
    }
    let pem = settings.private_key.as_ref()?;
    match SigningKey::from_pem(pem.reveal(), wanted) {
        Ok(key) => Some(key),
        Err(why) => {
            problems.push(("private_key", INVALID, format!("private_key cannot be used: {why}")));
            None
        }
    }
}

fn thumbprints(settings: &OAuthClient, problems: &mut Problems) -> Option<(String, String)> {
    let text = settings.certificate.as_deref()?;
    match pem_block(text, |label| label == "CERTIFICATE") {
        Some((_, der)) => Some((
            URL_SAFE_NO_PAD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &der)),
            URL_SAFE_NO_PAD.encode(digest(&SHA256, &der)),
        )),
        None => {
            problems.push(("certificate", INVALID, "certificate holds no PEM certificate".into()));
            None
        }
    }
}

/// A hash over everything that decides which token the client gets. It is kept sealed with the token.
fn version(settings: &OAuthClient) -> String {
    let mut context = Context::new(&SHA256);
    let mut add = |part: Option<&str>| {
        let text = part.unwrap_or_default();
        let length = if part.is_some() { text.len() as u64 } else { u64::MAX };
        context.update(&length.to_be_bytes());
        context.update(text.as_bytes());
    };
    let secret = |secret: &'_ Option<Secret>| secret.as_ref().map(|secret| secret.reveal().to_owned());
    let params = serde_json::to_string(&settings.params).unwrap_or_default();
    // A token may be bound to the certificate that fetched it (RFC 8705 §3).
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    for text in [
        Some(settings.name.as_str()),
        settings.token_url.as_deref(),
        settings.issuer.as_deref(),
        settings.expected_issuer.as_deref(),
        Some(&settings.grant),
        Some(&settings.client_id),
        secret(&settings.client_secret).as_deref(),
        Some(&settings.client_auth),
        Some(&settings.request_body),
        settings.scope.as_deref(),
        settings.audience.as_deref(),
        settings.resource.as_deref(),
        Some(&params),
        settings.username.as_deref(),
        secret(&settings.password).as_deref(),
        secret(&settings.refresh_token).as_deref(),
        settings.subject.as_deref(),
        secret(&settings.private_key).as_deref(),
        settings.certificate.as_deref(),
        settings.key_id.as_deref(),
        settings.signing_alg.as_deref(),
        Some(&settings.reply_access_token),
        settings.authorization_url.as_deref(),
        path(&settings.tls.cert).as_deref(),
    ] {
        add(text);
    }
    for (name, value) in &settings.headers {
        add(Some(name));
        add(Some(value.reveal()));
    }
    URL_SAFE_NO_PAD.encode(context.finish())
}
