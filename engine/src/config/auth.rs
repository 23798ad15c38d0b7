//! `auth = { issuer, audience, scope, … }` of services and `[admin.auth]`: who may call. Plain data; septet-oauth
//! gives it meaning.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::settings::{ClientTls, Secret};
use crate::config::units::Strings;

/// Who may call: the bearer tokens (RFC 6750) that are accepted.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// The authorization server that issues the tokens, exactly as tokens name it in `iss`. Its keys are found
    /// by discovery, at first use.
    pub issuer: Option<String>,
    /// Accepted audiences: a token must name one of them in `aud`. Absent: `aud` is not looked at.
    #[serde(default)]
    pub audience: Strings,
    /// Scopes that a token must have, all of them, separated by spaces; found in `scope`, `scp` or `roles`.
    pub scope: Option<String>,
    /// Accepted signature algorithms. Absent: all of RS, PS and ES with 256 and 384 bits, and RS and PS with 512.
    #[serde(default)]
    pub algorithms: Strings,
    /// Ask this endpoint about each token (RFC 7662) instead of verifying signatures: for opaque tokens.
    pub introspection_url: Option<String>,
    /// Who asks there.
    pub client_id: Option<String>,
    /// Its secret.
    pub client_secret: Option<Secret>,
    /// Of `http` services that speak FHIR: tokens need a SMART scope (`system/Observation.rs`, `user/*.read`)
    /// for the interaction that method and path below the service's `path` ask for.
    #[serde(default)]
    pub smart: bool,
    /// Only tokens that are bound to the client's TLS certificate (RFC 8705 §3); the listener needs
    /// `tls.client_ca`. Tokens that are bound are never accepted without their certificate.
    #[serde(default)]
    pub certificate_bound: bool,
    /// Trust and certificate for the connections to the issuer or the introspection endpoint.
    pub tls: Option<ClientTls>,
}
