//! What clients find out by themselves: the discovery documents (RFC 8414 §2, OpenID Connect Discovery 1.0 §3) and
//! the key set.

use axum::Json;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::clients::{Client, Grant, OPENID};
use super::server::Server;
use super::words::Language;

/// Where the documents stand: at the root, below the issuer's path, and where RFC 8414 inserts that path.
pub(super) fn paths(base: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for name in ["openid-configuration", "oauth-authorization-server"] {
        paths.push(format!("/.well-known/{name}"));
        paths.push(format!("{base}/.well-known/{name}"));
        paths.push(format!("/.well-known/{name}{base}"));
    }
    paths.sort();
    paths.dedup();
    paths
}

pub(super) async fn metadata(State(server): State<Server>) -> Response {
    published(server.metadata())
}

pub(super) async fn key_set(State(server): State<Server>) -> Response {
    published(server.keys().public(server.now()))
}

/// Public and the same for everybody for a while.
fn published(document: Value) -> Response {
    ([(CACHE_CONTROL, "public, max-age=60")], Json(document)).into_response()
}

impl Server {
    fn scope_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.settings().scopes.iter().map(|(name, _)| name.as_str()).collect();
        let people = |client: &Client| client.grants.contains(&Grant::AuthorizationCode);
        let people = self.settings().clients.iter().any(|client| people(client))
            || self.settings().registration.is_some();
        if people && !names.contains(&OPENID) {
            names.push(OPENID);
        }
        names
    }

    fn metadata(&self) -> Value {
        let confidential = ["client_secret_basic", "client_secret_post", "private_key_jwt"];
        let mut all = confidential.to_vec();
        if self.settings().clients.iter().any(|client| client.is_public())
            || self.settings().registration.is_some()
        {
            all.push("none");
        }
        let algorithms: Vec<_> = septet_oauth::keys::algorithm_names().collect();
        let signs = [septet_oauth::keys::algorithm_name(self.settings().algorithm)];
        let mut document = json!({
            "issuer": self.settings().issuer_text,
            "authorization_endpoint": self.endpoint("/oauth2/authorize"),
            "token_endpoint": self.endpoint("/oauth2/token"),
            "userinfo_endpoint": self.endpoint("/oauth2/userinfo"),
            "introspection_endpoint": self.endpoint("/oauth2/introspect"),
            "revocation_endpoint": self.endpoint("/oauth2/revoke"),
            "jwks_uri": self.endpoint("/oauth2/jwks"),
            "scopes_supported": self.scope_names(),
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": Grant::requests().collect::<Vec<_>>(),
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": true,
            "token_endpoint_auth_methods_supported": all,
            "token_endpoint_auth_signing_alg_values_supported": algorithms,
            "introspection_endpoint_auth_methods_supported": confidential,
            "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
            "revocation_endpoint_auth_methods_supported": all,
            "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": signs,
            "claims_supported":
                ["iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "preferred_username"],
            "request_parameter_supported": false,
            "request_uri_parameter_supported": false,
            "ui_locales_supported": Language::ALL.map(Language::tag),
        });
        if let Some(object) = document.as_object_mut()
            && self.settings().registration.is_some()
        {
            object.insert("registration_endpoint".to_owned(), self.endpoint("/oauth2/register").into());
        }
        document
    }
}
