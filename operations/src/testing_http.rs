//! What the tests of operations over HTTP share: a vendor that remembers what it was sent, and tokens that are
//! replaced when they are refused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use septet_engine::fault::Fault;
use septet_engine::token::{AccessToken, NoToken, TokenSource};
use tokio::net::TcpListener;
use zeroize::Zeroizing;

// === The vendor ===

/// One request as the vendor saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) uri: String,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

pub(crate) type Answer = Arc<dyn Fn(&Seen) -> Response + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Vendor {
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) answer: Answer,
    pub(crate) url: String,
}

impl Vendor {
    /// A vendor that answers every request with `answer`.
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Vendor {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let vendor = Vendor { seen: Arc::default(), answer: Arc::new(answer), url };
        let router = Router::new().fallback(handle).with_state(vendor.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        vendor
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn handle(State(vendor): State<Vendor>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let seen = Seen {
        method: parts.method.to_string(),
        uri: parts.uri.to_string(),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    };
    vendor.seen.lock().unwrap().push(seen.clone());
    (vendor.answer)(&seen)
}

// === Tokens ===

/// Gives out `token-1`, and the next one after each rejection.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    pub(crate) generation: AtomicU64,
    pub(crate) fails: bool,
}

#[async_trait]
impl TokenSource for Tokens {
    async fn token(&self, client: &str, _item: &str) -> Result<AccessToken, NoToken> {
        if self.fails {
            let fault = Fault::new("call", "http 503", "the token endpoint answered with status 503");
            let not_before = Some("2200-01-01T00:00:00Z".parse().unwrap());
            return Err(NoToken { fault: fault.with_detail("words"), not_before });
        }
        let generation = self.generation.load(Ordering::SeqCst) + 1;
        let secret = Zeroizing::new(format!("token-{generation}"));
        Ok(AccessToken { client: client.to_owned(), secret, generation })
    }

    fn knows(&self, client: &str) -> bool {
        client == "vendor"
    }

    fn rejected(&self, token: &AccessToken) {
        self.generation.store(token.generation, Ordering::SeqCst);
    }
}
