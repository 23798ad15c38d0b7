//! `auth = { issuer, audience, scope, algorithms }` of a service: the settings of a resource server, and what
//! is wrong with them. [`crate::Verifier`] does the work.

use schemars::JsonSchema;
use septet_engine::config::settings::{ClientTls, Secret};
use septet_engine::config::units::Strings;
use serde::Deserialize;

use crate::keys::{Algorithm, algorithm, algorithm_names};
use crate::net;

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

impl Auth {
    /// Every problem: the key at fault, a code, and what is wrong.
    pub fn check(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut problems = Vec::new();
        if self.issuer.is_none() && self.introspection_url.is_none() {
            problems.push(("issuer", "S0501", "auth needs issuer or introspection_url".to_owned()));
        }
        for (key, value) in [("issuer", &self.issuer), ("introspection_url", &self.introspection_url)] {
            if let Some(Err(why)) = value.as_deref().map(net::endpoint) {
                problems.push((key, "S0502", format!("{key} cannot be used: {why}")));
            }
        }
        for name in self.algorithms.0.iter().filter(|name| algorithm(name).is_none()) {
            let known = algorithm_names().collect::<Vec<_>>().join(", ");
            problems.push(("algorithms", "S0502", format!("algorithms are of {known}; {name} is not")));
        }
        if self.introspection_url.is_some() && (self.client_id.is_none() || self.client_secret.is_none()) {
            let text = "introspection_url needs client_id and client_secret".to_owned();
            problems.push(("introspection_url", "S0501", text));
        }
        if self.tls.as_ref().is_some_and(|tls| tls.cert.is_some() != tls.key.is_some()) {
            let text = "a client certificate needs both tls.cert and tls.key".to_owned();
            problems.push(("tls", "S0501", text));
        }
        problems
    }

    /// The accepted algorithms. HMAC and `none` are never among them.
    pub(crate) fn accepted(&self) -> Vec<Algorithm> {
        if self.algorithms.0.is_empty() {
            return algorithm_names().filter_map(algorithm).collect();
        }
        self.algorithms.0.iter().filter_map(|name| algorithm(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(json: &str) -> Auth {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_audience_is_one_or_several() {
        let one = auth(r#"{"issuer":"https://i.example","audience":"a"}"#);
        let many = auth(r#"{"issuer":"https://i.example","audience":["a","b"]}"#);
        assert_eq!(one.audience.0, ["a"]);
        assert_eq!(many.audience.0, ["a", "b"]);
        assert!(one.check().is_empty() && many.check().is_empty());
    }

    #[test]
    fn misuse_is_named_and_symmetric_algorithms_are_refused() {
        let texts = |json: &str| {
            auth(json).check().into_iter().map(|(key, _, text)| format!("{key}: {text}")).collect::<Vec<_>>()
        };
        assert_eq!(texts("{}"), ["issuer: auth needs issuer or introspection_url"]);
        let found = texts(r#"{"issuer":"http://i.example","algorithms":["HS256","none"]}"#);
        assert!(
            found[0].contains("loopback")
                && found[1].contains("HS256 is not")
                && found[2].contains("none is not")
        );
        assert!(texts(r#"{"introspection_url":"https://i.example"}"#)[0].contains("client_id"));
    }

    #[test]
    fn secrets_do_not_show() {
        let auth =
            auth(r#"{"introspection_url":"https://i.example","client_id":"x","client_secret":"hide-me"}"#);
        assert!(!format!("{auth:?}").contains("hide-me"));
    }
}
