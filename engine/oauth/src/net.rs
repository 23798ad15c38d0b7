//! The one way this crate talks HTTP: no redirects, no proxy from the environment, no reused connections,
//! a deadline over the whole exchange, and a cap on the reply. Plain http is for loopback only.

use std::error::Error;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder};
use septet_engine::client_tls;
use septet_engine::config::settings::ClientTls;
use url::form_urlencoded::byte_serialize;
use url::{Host, Url};
use zeroize::Zeroizing;

/// A reply larger than this is refused.
const REPLY_CAP: usize = 1 << 20;

/// How long one exchange may take, from connecting to the last byte.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no reply. The text is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetError {
    /// `connect`, `timeout`, `tls`, `reply`, `url`.
    pub(crate) code: &'static str,
    pub(crate) text: String,
}

impl NetError {
    fn new(code: &'static str, text: impl Into<String>) -> Self {
        NetError { code, text: text.into() }
    }
}

/// What came back.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// Whether a URL may be called: https, or http on loopback (RFC 8252 §8.3 for the exception).
pub(crate) fn allowed(url: &Url) -> bool {
    match url.scheme() {
        "https" => true,
        "http" => match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            None => false,
        },
        _ => false,
    }
}

/// Parses a URL that may be called; the error says what is wrong with it.
pub(crate) fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("not a URL: {error}"))?;
    if allowed(&url) {
        return Ok(url);
    }
    match url.scheme() {
        "http" => Err("plain http is allowed on loopback only".into()),
        other => Err(format!("{other} is not https")),
    }
}

/// A URL as it may be shown: no credentials, query or fragment.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // These fail only for URLs that cannot have credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// A client for calls to `url`. Certificates are read here, at each use, so that renewed files count.
pub(crate) fn client(url: &Url, tls: &ClientTls, timeout: Duration) -> Result<Client, NetError> {
    let mut builder = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .pool_max_idle_per_host(0)
        .timeout(timeout)
        .user_agent(concat!("septet/", env!("CARGO_PKG_VERSION")));
    if url.scheme() == "http" {
        // No trust store is needed, and a machine without one must still run the loopback examples.
        builder = builder.tls_certs_only([]);
    } else if *tls != ClientTls::default() {
        let config = client_tls::http_config(tls).map_err(|fault| NetError::new("tls", fault.text))?;
        builder = builder.tls_backend_preconfigured(config);
    }
    builder.build().map_err(|error| NetError::new("tls", format!("TLS cannot be set up: {}", cause(&error))))
}

/// The `Authorization` header of a client (RFC 6749 §2.3.1): id and secret are form-encoded before they are
/// joined.
pub(crate) fn basic(id: &str, secret: &str) -> Zeroizing<String> {
    let encode = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    let pair = Zeroizing::new(format!("{}:{}", encode(id), encode(secret)));
    Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}

/// Sends a request and reads the whole reply.
pub(crate) async fn send(request: RequestBuilder) -> Result<Reply, NetError> {
    let mut response = request.send().await.map_err(broken)?;
    let status = response.status().as_u16();
    let headers = std::mem::take(response.headers_mut());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > REPLY_CAP {
            return Err(NetError::new("reply", "the reply is larger than 1 MiB"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Reply { status, headers, body })
}

fn broken(error: reqwest::Error) -> NetError {
    let why = cause(&error);
    if error.is_timeout() {
        NetError::new("timeout", "no complete reply in time")
    } else if error.is_connect() && (why.contains("certificate") || why.contains("TLS")) {
        NetError::new("tls", why)
    } else if error.is_connect() {
        NetError::new("connect", why)
    } else if error.is_builder() {
        NetError::new("url", why)
    } else {
        NetError::new("reply", format!("the reply broke off: {why}"))
    }
}

/// The innermost reason, which is the system's or the TLS library's and holds no request data.
fn cause(error: &reqwest::Error) -> String {
    let mut inner: &dyn Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    if inner.is::<reqwest::Error>() { "the request could not be made".into() } else { inner.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_only() {
        for good in ["https://a.example/t", "http://127.0.0.1:1/t", "http://[::1]/t", "http://localhost/t"] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in [
            "http://a.example/t",
            "http://10.0.0.1/t",
            "ftp://localhost/t",
            "token",
            "http://127.0.0.1.evil.example/",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_shown_url_has_no_credentials_and_no_query() {
        let url = Url::parse("https://user:pass@a.example/token?key=secret#x").unwrap();
        assert_eq!(shown(&url), "https://a.example/token");
    }
}
