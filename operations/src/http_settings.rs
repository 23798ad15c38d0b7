//! Settings that all operations over HTTP share, and what `check` says of them: the URL, TLS, the idempotency
//! header, and that no token crosses a network in clear. The OAuth client is in [`crate::oauth_use`].

use reqwest::header::HeaderName;
use septet_engine::client_tls;
use septet_engine::config::build::{At, Build};
use septet_engine::config::settings::ClientTls;
use url::{Host, Url};

use crate::http_client::PeerPlan;
use crate::oauth_use::OauthUse;

/// Checks what all operations over HTTP have: `url`, `oauth`, `tls`, `idempotency_header`. Everything that is
/// wrong is reported.
pub(crate) fn check_peer(
    build: &mut Build<'_>,
    url: &str,
    oauth: Option<&OauthUse>,
    tls: Option<&ClientTls>,
) -> Option<(Url, PeerPlan)> {
    let url = check_url(build, url);
    check_tls(build, tls);
    let (wanted, oauth) = (oauth.is_some(), oauth.and_then(|oauth| oauth.plan(build)));
    let idempotency_header = check_idempotency_header(build);
    let (url, idempotency_header) = (url?, idempotency_header?);
    let known = oauth.is_some() == wanted;
    let plan = PeerPlan { name: peer_name(&url), oauth, tls: tls.cloned(), idempotency_header };
    known.then_some((url, plan))
}

/// Checks `url`: http or https, a host, no credentials, no fragment. Reports what is wrong with it.
fn check_url(build: &mut Build<'_>, text: &str) -> Option<Url> {
    let at = &[At::Key("url")];
    let authority = text.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or(""));
    if authority.is_some_and(|authority| authority.contains('{')) {
        build.error("S0331", at, "the host of a URL cannot come from the message", None);
        return None;
    }
    // Places in the path are no part of URL syntax: they are filled in later.
    let plain = text.replace(['{', '}'], "_");
    let url = match Url::parse(&plain) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => url,
        _ => {
            let example = Some("write it as https://host/path".to_owned());
            build.error("S0331", at, "this is no http or https URL", example);
            return None;
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        let use_header = Some("send them in headers = { Authorization = \"…\" }".to_owned());
        build.error("S0331", at, "a URL cannot hold user name and password", use_header);
        return None;
    }
    if url.fragment().is_some() {
        build.error("S0331", at, "a URL that is sent has no fragment (#)", None);
        return None;
    }
    Some(url)
}

/// Reports a token, or other secrets of the requests, that would cross a network in clear (CONTRACT §2.3).
pub(crate) fn check_clear_text(
    build: &mut Build<'_>,
    url: &Url,
    oauth: Option<&OauthUse>,
    secret: bool,
    allowed: bool,
) {
    let what = match (oauth, secret) {
        (Some(_), _) => "an OAuth token",
        (None, true) => "a secret",
        (None, false) => return,
    };
    if url.scheme() != "http" || is_loopback(url) {
        return;
    }
    let text = format!("{what} would be sent over plain http");
    if allowed {
        build.warning("S0332", &[At::Key("url")], text, Some("use https".to_owned()));
    } else {
        let suggestion = "use https, or say allow_plain_http = true where the network is trusted";
        build.error("S0332", &[At::Key("url")], text, Some(suggestion.to_owned()));
    }
}

/// Checks the parts of `tls` that need no file.
pub(crate) fn check_tls(build: &mut Build<'_>, tls: Option<&ClientTls>) {
    let Some(tls) = tls else { return };
    if tls.cert.is_some() != tls.key.is_some() {
        build.error("S0333", &[At::Key("tls")], "cert and key belong together", None);
    }
    if let Some(pin) = &tls.pin
        && client_tls::pin_digest(pin).is_none()
    {
        let form = Some("sha256: and 64 hex digits, colons allowed".to_owned());
        build.error("S0333", &[At::Key("tls"), At::Key("pin")], "this pin names no certificate", form);
    }
}

/// Checks the common key `idempotency_header`.
fn check_idempotency_header(build: &mut Build<'_>) -> Option<HeaderName> {
    let header = HeaderName::try_from(build.common.idempotency_header.as_str()).ok();
    if header.is_none() {
        build.error("S0336", &[At::Key("idempotency_header")], "this is no name of an HTTP header", None);
    }
    header
}

/// Whether a URL's host is this machine.
fn is_loopback(url: &Url) -> bool {
    is_this_machine(url.host())
}

/// Whether a host is this machine.
pub(crate) fn is_this_machine(host: Option<Host<&str>>) -> bool {
    match host {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// `host:port` of a URL.
fn peer_name(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        let is = |text| is_loopback(&Url::parse(text).unwrap());
        for here in ["http://localhost:1/", "http://127.0.0.9/", "http://[::1]:80/x"] {
            assert!(is(here), "{here}");
        }
        for away in ["http://localhost.example/", "http://10.0.0.1/", "http://127.0.0.1.example/"] {
            assert!(!is(away), "{away}");
        }
    }
}
