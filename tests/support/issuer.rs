//! An issuer of bearer tokens in the test's own process, for what our authorization server does not say.

use axum::Router;
use axum::routing::get;
use septet_engine::clock::{Clock as _, SystemClock};
use septet_oauth::keys::{SigningKey, algorithm};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A running issuer with one key.
pub(crate) struct Issuer {
    pub(crate) url: String,
    key: SigningKey,
    served: JoinHandle<()>,
}

impl Issuer {
    pub(crate) async fn start() -> Issuer {
        let key = SigningKey::generate(algorithm("ES256").expect("a known name")).expect("a key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let discovery = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") });
        let keys = json!({ "keys": [key.public()] });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(async move || axum::Json(discovery)))
            .route("/keys", get(async move || axum::Json(keys)));
        let served = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Issuer { url, key, served }
    }

    /// A token with these claims, and issuer and expiry.
    pub(crate) fn token(&self, mut claims: Value) -> String {
        claims["iss"] = json!(self.url);
        claims["exp"] = json!(SystemClock.now().as_second() + 600);
        self.key.sign("at+jwt", &claims).expect("a signature")
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.served.abort();
    }
}
