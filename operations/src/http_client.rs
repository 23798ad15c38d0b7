//! What operations over HTTP share: the client and its trust, the token of a request, one exchange with the
//! peer within one time limit, and what went wrong in words of our own. reqwest's error texts hold the URL,
//! and with it tokens and patient data: they are never shown.
//!
//! No redirects, no retries, no ambient proxy: what is sent, where and how often is the engine's business.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use memchr::memmem;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Request, Response};
use septet_engine::client_tls::{self, Stamp};
use septet_engine::config::settings::ClientTls;
use septet_engine::event::{Level, NewEvent};
use septet_engine::host::{HostFault, OperationContext, OperationError};
use septet_engine::media::media_type;
use septet_engine::token::{AccessToken, NoToken, Placement};
use zeroize::Zeroizing;

use crate::oauth_use::OauthPlan;

/// The largest reply that is read.
pub(crate) const MAX_REPLY: usize = 64 << 20;

/// Shorter than the five seconds after which common servers close an idle connection: a request sent into
/// a connection that is just being closed would be one more retry.
const IDLE: Duration = Duration::from_secs(4);

// === The client ===

/// A client with the trust that `tls` describes. Fails where a file is missing or broken.
fn client(tls: Option<&ClientTls>) -> Result<Client, HostFault> {
    let builder = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .referer(false)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(1)
        .tcp_nodelay(true)
        .user_agent(concat!("septet/", env!("CARGO_PKG_VERSION")));
    let builder = match tls {
        Some(tls) if *tls != ClientTls::default() => {
            builder.tls_backend_preconfigured(client_tls::http_config(tls)?)
        }
        _ => builder,
    };
    builder
        .build()
        .map_err(|_| HostFault::new("tls", "the HTTP client cannot be set up with these TLS settings"))
}

/// One operation's way to its peer.
pub(crate) struct Peer {
    client: Client,
    /// The files that `client` was made from.
    stamp: Stamp,
    tls: Option<ClientTls>,
    /// `host:port`, for texts.
    pub(crate) name: String,
    oauth: Option<OauthPlan>,
    idempotency_header: HeaderName,
}

/// What a [`Peer`] is made from.
pub(crate) struct PeerPlan {
    /// `host:port`, for texts.
    pub(crate) name: String,
    pub(crate) oauth: Option<OauthPlan>,
    pub(crate) tls: Option<ClientTls>,
    pub(crate) idempotency_header: HeaderName,
}

/// What the peer answered.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// At most [`MAX_REPLY`]; without any secret that was sent.
    pub(crate) body: Bytes,
}

/// Clear text that left for the peer in this request and must not come back into the trace.
#[derive(Default)]
pub(crate) struct Secrets(Vec<Zeroizing<String>>);

impl Peer {
    /// Fails where a file of the TLS settings is missing or broken.
    pub(crate) fn new(plan: &PeerPlan) -> Result<Peer, HostFault> {
        Ok(Peer {
            stamp: Stamp::of(plan.tls.as_ref()),
            client: client(plan.tls.as_ref())?,
            tls: plan.tls.clone(),
            name: plan.name.clone(),
            oauth: plan.oauth.clone(),
            idempotency_header: plan.idempotency_header.clone(),
        })
    }

    /// The peer of an operation that was started, with certificates as they are now.
    pub(crate) fn ready<'a>(
        peer: &'a mut Option<Peer>,
        cx: &OperationContext,
    ) -> Result<&'a Peer, OperationError> {
        let started = peer.as_mut();
        let peer =
            started.ok_or_else(|| OperationError::fault("start", "the operation has not been started"))?;
        peer.refresh(cx);
        Ok(peer)
    }

    /// Takes up certificates that have changed; goes on with the old ones where the new cannot be used.
    fn refresh(&mut self, cx: &OperationContext) {
        let now = Stamp::of(self.tls.as_ref());
        if now == self.stamp {
            return;
        }
        self.stamp = now;
        match client(self.tls.as_ref()) {
            Ok(client) => self.client = client,
            Err(fault) => cx.event(NewEvent::new(Level::Error, "item.error", fault.to_string())),
        }
    }

    /// Sends the request that `make` makes and reads the reply. With an OAuth client the token is put into it;
    /// only where its place is the body `make` is given it. A 401 with a token drops the token, fetches once
    /// and sends once more, all in one attempt.
    pub(crate) async fn exchange<M>(&self, cx: &OperationContext, make: M) -> Result<Reply, OperationError>
    where
        M: Fn(Option<&AccessToken>, &mut Secrets) -> Result<Request, OperationError> + Send + Sync,
    {
        let Some(oauth) = &self.oauth else {
            return self.send(cx, None, &make).await;
        };
        let token = token_of(oauth, cx).await?;
        let reply = self.send(cx, Some(&token), &make).await?;
        if reply.status != 401 {
            return Ok(reply);
        }
        cx.runtime.tokens.rejected(&token);
        let token = token_of(oauth, cx).await?;
        self.send(cx, Some(&token), &make).await
    }

    async fn send<M>(
        &self,
        cx: &OperationContext,
        token: Option<&AccessToken>,
        make: &M,
    ) -> Result<Reply, OperationError>
    where
        M: Fn(Option<&AccessToken>, &mut Secrets) -> Result<Request, OperationError> + Send + Sync,
    {
        let mut secrets = Secrets::default();
        let token_at = |place| token.filter(|_| self.oauth.as_ref().is_some_and(|o| o.placement == place));
        let mut request = make(token_at(Placement::Body), &mut secrets)?;
        if let Some(token) = token {
            secrets.add(&token.secret);
        }
        if let Some(token) = token_at(Placement::Query) {
            request.url_mut().query_pairs_mut().append_pair("access_token", &token.secret);
        }
        self.transport_headers(cx, token_at(Placement::Header), request.headers_mut())?;
        let exchange = async {
            let response = self.client.execute(request).await.map_err(|error| self.broken(&error))?;
            self.read(response).await
        };
        tokio::select! {
            reply = exchange => reply.map(|reply| secrets.scrub_reply(reply)),
            () = cx.runtime.clock.sleep(cx.response_timeout) => {
                let text = format!("{} did not answer within {:?}", self.name, cx.response_timeout);
                Err(OperationError::fault("timeout", text))
            }
        }
    }

    /// Headers that belong to the sending, not to the message: `token` where its place is a header, and what is
    /// a pure function of the header being sent (P3).
    fn transport_headers(
        &self,
        cx: &OperationContext,
        token: Option<&AccessToken>,
        headers: &mut HeaderMap,
    ) -> Result<(), OperationError> {
        if let Some(token) = token {
            let bearer = Zeroizing::new(format!("Bearer {}", token.secret.as_str()));
            let mut value = HeaderValue::from_str(&bearer).map_err(|_| {
                let text = format!("the token of OAuth client {} cannot stand in a header", token.client);
                OperationError::fault("oauth", text)
            })?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let key = HeaderValue::from_str(&cx.idempotency_key);
        let session = HeaderValue::from_str(&cx.header.session.to_string());
        let parent = HeaderValue::from_str(&trace_parent(cx));
        let own = [
            (self.idempotency_header.clone(), key),
            (HeaderName::from_static("septet-session"), session),
            (HeaderName::from_static("traceparent"), parent),
        ];
        for (name, value) in own {
            if let Ok(value) = value {
                headers.insert(name, value);
            }
        }
        Ok(())
    }

    async fn read(&self, mut response: Response) -> Result<Reply, OperationError> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(&error))? {
            if body.len() + chunk.len() > MAX_REPLY {
                let text = format!("{} answered HTTP {status} with more than 64 MiB", self.name);
                return Err(OperationError::fault("reply", text));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply { status, headers, body: body.freeze() })
    }

    /// What a failed exchange means, in our own words.
    fn broken(&self, error: &reqwest::Error) -> OperationError {
        let peer = &self.name;
        let mut kind = None;
        let mut source: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(cause) = source {
            if let Some(tls) = tls_error(cause) {
                return OperationError::fault("tls", format!("no TLS connection with {peer}: {tls}"));
            }
            kind = cause.downcast_ref::<io::Error>().map(io::Error::kind).or(kind);
            source = cause.source();
        }
        let (code, text) = if error.is_dns() {
            ("dns", format!("the name of {peer} cannot be resolved"))
        } else if error.is_connect() {
            (
                "connect",
                match kind {
                    Some(io::ErrorKind::ConnectionRefused) => format!("{peer} refused the connection"),
                    Some(kind) => format!("no connection to {peer}: {kind}"),
                    None => format!("no connection to {peer}"),
                },
            )
        } else if error.is_timeout() {
            ("timeout", format!("{peer} did not answer in time"))
        } else if error.is_builder() {
            ("request", format!("the request to {peer} cannot be built"))
        } else {
            ("closed", format!("{peer} broke off before its reply was complete"))
        };
        OperationError::fault(code, text)
    }
}

/// A token of an operation's OAuth client; without one nothing is sent.
pub(crate) async fn token_of(
    oauth: &OauthPlan,
    cx: &OperationContext,
) -> Result<AccessToken, OperationError> {
    let token = cx.runtime.tokens.token(&oauth.client(cx)?, cx.item.as_str()).await;
    token.map_err(|NoToken { fault, not_before }| {
        let text = format!("no token: {}: {}", fault.code, fault.text);
        let mut error = OperationError::fault("oauth", text);
        error.fault.detail = fault.detail;
        let now = cx.runtime.clock.now();
        error.after(not_before.and_then(|moment| Duration::try_from(moment.duration_since(now)).ok()))
    })
}

/// rustls' own words for a failed handshake; they name no data. The error may be wrapped in I/O errors, which
/// leave themselves out of the chain of sources.
fn tls_error(cause: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
        return Some(tls.to_string());
    }
    let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref)?;
    tls_error(inner)
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({})", self.name)
    }
}

/// W3C Trace Context: the trace is the session, the span is the header being sent.
fn trace_parent(cx: &OperationContext) -> String {
    let hex = |text: &str, bytes: usize| -> String {
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        hash.as_ref().iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
    };
    let trace = hex(&format!("{}-session-{}", cx.runtime.epoch, cx.header.session), 16);
    format!("00-{trace}-{}-01", hex(&cx.idempotency_key, 8))
}

// === impl Reply ===

impl Reply {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
    }

    /// The media type in lower case, and its charset.
    pub(crate) fn content_type(&self) -> (String, Option<String>) {
        media_type(self.header(header::CONTENT_TYPE).unwrap_or_default())
    }

    /// `Retry-After`, in seconds or as a date.
    pub(crate) fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        let text = self.header(header::RETRY_AFTER)?.trim();
        if let Ok(seconds) = text.parse::<u64>() {
            return Some(Duration::from_secs(seconds));
        }
        let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
    }

    /// The peer's own words about a refusal: its challenge and its body, where that is text; cut.
    pub(crate) fn words(&self) -> Option<String> {
        let challenge = self.header(header::WWW_AUTHENTICATE).map(|text| format!("WWW-Authenticate: {text}"));
        let body = std::str::from_utf8(&self.body).ok().map(str::trim).filter(|text| !text.is_empty());
        let mut words = [challenge.as_deref(), body].into_iter().flatten().collect::<Vec<_>>().join("\n");
        cut(&mut words);
        (!words.is_empty()).then_some(words)
    }
}

/// Leaves at most 4 KiB of foreign text.
pub(crate) fn cut(text: &mut String) {
    const LONGEST: usize = 4096;
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

// === impl Secrets ===

impl Secrets {
    /// Remembers clear text that is being sent. Very short texts are not worth hiding: they would be found
    /// everywhere.
    pub(crate) fn add(&mut self, clear: &str) {
        if clear.len() >= 6 {
            self.0.push(Zeroizing::new(clear.to_owned()));
        }
    }

    /// The reply without them: its body, and the header that is shown with a refusal.
    fn scrub_reply(&self, mut reply: Reply) -> Reply {
        reply.body = self.scrub(reply.body);
        if let Some(challenge) = reply.headers.remove(header::WWW_AUTHENTICATE) {
            let scrubbed = self.scrub(Bytes::copy_from_slice(challenge.as_bytes()));
            if let Ok(scrubbed) = HeaderValue::from_maybe_shared(scrubbed) {
                reply.headers.insert(header::WWW_AUTHENTICATE, scrubbed);
            }
        }
        reply
    }

    /// `bytes` with every secret in it masked: a peer that echoes what it was sent puts no token into the
    /// trace (P9).
    pub(crate) fn scrub(&self, bytes: Bytes) -> Bytes {
        let mut bytes = bytes;
        for secret in &self.0 {
            let finder = memmem::Finder::new(secret.as_bytes());
            if finder.find(&bytes).is_none() {
                continue;
            }
            let mut out = BytesMut::with_capacity(bytes.len());
            let mut end = 0;
            for at in finder.find_iter(&bytes) {
                out.extend_from_slice(bytes.get(end..at).unwrap_or_default());
                out.extend_from_slice("•••".as_bytes());
                end = at + secret.len();
            }
            out.extend_from_slice(bytes.get(end..).unwrap_or_default());
            bytes = out.freeze();
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(headers: &[(HeaderName, &'static str)], body: &'static [u8]) -> Reply {
        let headers = headers.iter().map(|(n, v)| (n.clone(), HeaderValue::from_static(v))).collect();
        Reply { status: 200, headers, body: Bytes::from_static(body) }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let after = |text| reply(&[(header::RETRY_AFTER, text)], b"").retry_after(now);
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 22 Nov 2026 10:01:00 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(after("Sun, 22 Nov 2026 09:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
    }

    #[test]
    fn an_echoed_secret_is_masked_everywhere_in_the_reply() {
        let mut secrets = Secrets::default();
        secrets.add("tok-12345");
        secrets.add("abc");
        let scrubbed = secrets.scrub(Bytes::from_static(b"abc tok-12345,tok-12345!"));
        assert_eq!(scrubbed, "abc •••,•••!".as_bytes());
    }
}
