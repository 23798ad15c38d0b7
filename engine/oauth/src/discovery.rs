//! Finding an issuer's endpoints (OpenID Connect Discovery 1.0 §4, RFC 8414 §3). The document's `issuer` must
//! be the expected one, to the letter; a mismatch shows both values.

use std::time::Duration;

use reqwest::header::ACCEPT;
use septet_engine::config::settings::ClientTls;
use serde::Deserialize;
use url::Url;

use crate::net::{self, NetError};

/// What of the document is used.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) issuer: String,
    pub(crate) authorization_endpoint: Option<String>,
    pub(crate) token_endpoint: Option<String>,
    pub(crate) jwks_uri: Option<String>,
}

/// Why an issuer's endpoints are not known. Text is ours, detail is theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiscoveryError {
    pub(crate) code: String,
    pub(crate) text: String,
    pub(crate) detail: Option<String>,
}

impl From<NetError> for DiscoveryError {
    fn from(error: NetError) -> Self {
        DiscoveryError { code: error.code.into(), text: error.text, detail: None }
    }
}

/// Fetches the discovery document of `issuer`, wherever it publishes it.
pub(crate) async fn discover(
    issuer: &str,
    expected: &str,
    tls: &ClientTls,
    timeout: Duration,
) -> Result<Metadata, DiscoveryError> {
    let mut last = None;
    for url in places(issuer)? {
        match fetch(&url, tls, timeout).await {
            Ok(metadata) => return judged(metadata, expected),
            // Nobody there: the other places are on the same host.
            Err(error) if error.code == "connect" || error.code == "timeout" || error.code == "tls" => {
                return Err(error);
            }
            Err(error) => last = last.or(Some(error)),
        }
    }
    Err(last.unwrap_or_else(|| failure("issuer", "the issuer has no discovery document")))
}

fn failure(code: &str, text: impl Into<String>) -> DiscoveryError {
    DiscoveryError { code: code.into(), text: text.into(), detail: None }
}

/// The well-known places of an issuer's document: OpenID appends, RFC 8414 inserts, and some append both.
fn places(issuer: &str) -> Result<Vec<Url>, DiscoveryError> {
    let base = net::endpoint(issuer).map_err(|why| failure("url", format!("the issuer is {why}")))?;
    let path = base.path().trim_end_matches('/').to_owned();
    let at = |path: String| {
        let mut url = base.clone();
        url.set_path(&path);
        url.set_query(None);
        url
    };
    let mut places = vec![
        at(format!("{path}/.well-known/openid-configuration")),
        at(format!("/.well-known/oauth-authorization-server{path}")),
        at(format!("{path}/.well-known/oauth-authorization-server")),
    ];
    places.dedup();
    Ok(places)
}

async fn fetch(url: &Url, tls: &ClientTls, timeout: Duration) -> Result<Metadata, DiscoveryError> {
    let client = net::client(url, tls, timeout)?;
    let reply = net::send(client.get(url.clone()).header(ACCEPT, "application/json")).await?;
    let shown = net::shown(url);
    if reply.status != 200 {
        let text = format!("{shown} answered with status {}", reply.status);
        return Err(failure(&format!("http {}", reply.status), text));
    }
    serde_json::from_slice(&reply.body)
        .map_err(|_| failure("reply", format!("{shown} is no discovery document")))
}

fn judged(metadata: Metadata, expected: &str) -> Result<Metadata, DiscoveryError> {
    if metadata.issuer == expected {
        return Ok(metadata);
    }
    let mut found: String = metadata.issuer.chars().filter(|c| c.is_ascii_graphic()).take(200).collect();
    if Url::parse(&found).is_err() {
        found = "something that is no URL".into();
    }
    let hint = if metadata.issuer.trim_end_matches('/') == expected.trim_end_matches('/') {
        " (they differ in the slash at the end)"
    } else {
        ""
    };
    let text = format!("issuer {expected} is expected, but its discovery document says {found}{hint}");
    Err(DiscoveryError { code: "issuer".into(), text, detail: Some(metadata.issuer) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_with_a_path_is_looked_for_in_both_standard_places() {
        let places = places("https://a.example/tenant/v2/").unwrap();
        let places: Vec<&str> = places.iter().map(Url::as_str).collect();
        assert_eq!(
            places,
            [
                "https://a.example/tenant/v2/.well-known/openid-configuration",
                "https://a.example/.well-known/oauth-authorization-server/tenant/v2",
                "https://a.example/tenant/v2/.well-known/oauth-authorization-server",
            ]
        );
    }

    #[test]
    fn a_mismatch_shows_both_issuers() {
        let metadata = |issuer: &str| Metadata {
            issuer: issuer.into(),
            authorization_endpoint: None,
            token_endpoint: None,
            jwks_uri: None,
        };
        assert!(judged(metadata("https://a.example"), "https://a.example").is_ok());
        let error = judged(metadata("https://a.example/"), "https://a.example").unwrap_err();
        assert!(error.text.contains("https://a.example is expected"), "{}", error.text);
        assert!(error.text.contains("says https://a.example/ (they differ in the slash"), "{}", error.text);
    }
}
