//! The admin API (CONTRACT §3): JSON over HTTP, errors as RFC 9457 problem details, an OpenAPI document
//! made from the handlers themselves. It holds no state of its own but the audit's memory of the last
//! minute: everything it shows comes from the engine, everything it does goes through it.

pub mod access;
mod api;
mod audit;
mod bearer;
mod listen;
mod openapi;
mod problem;
mod query;
mod view;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::FromRef;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use septet_engine::config::settings::Admin;
use septet_engine::director::Engine;
use septet_oauth::TokenManager;
use tokio_util::sync::CancellationToken;

pub use listen::{Listener, bind};
pub use problem::Problem;
pub use view::session_status;

/// Reads the production file again and switches to it; the problem says what stands in the way.
pub type Reload = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), Problem>> + Send>> + Send + Sync>;

/// Renders the metrics of the whole process.
pub type Metrics = PrometheusHandle;

/// Collects the metrics of the whole process from here on; once per process.
pub fn install_metrics() -> Result<Metrics, String> {
    PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| format!("metrics cannot be collected: {error}"))
}

/// What the API works on.
#[derive(Clone)]
pub struct Parts {
    /// The running production.
    pub engine: Engine,
    /// Its OAuth clients.
    pub tokens: Arc<TokenManager>,
    /// What `POST /production/reload` does.
    pub reload: Reload,
    /// Renders `/metrics`.
    pub metrics: Metrics,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// What every handler may use.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) parts: Parts,
    pub(crate) access: Arc<access::Access>,
    pub(crate) audit: Arc<audit::Audit>,
    /// How browsers reach it: `https` with TLS or behind a proxy.
    pub(crate) scheme: &'static str,
}

impl FromRef<Context> for Engine {
    fn from_ref(context: &Context) -> Engine {
        context.parts.engine.clone()
    }
}

/// The whole API as a router. `listening` is the address it is served on.
pub fn router(parts: Parts, settings: &Admin, listening: SocketAddr) -> Router {
    let access = Arc::new(access::Access::new(settings, listening, parts.engine.store().clock()));
    let audit = Arc::new(audit::Audit::new(parts.engine.clone()));
    let scheme = if settings.tls.is_some() || settings.behind_proxy { "https" } else { "http" };
    api::router(Context { parts, access, audit, scheme })
}

/// Serves the API until `stop`, then finishes the requests under way.
pub async fn serve(listener: Listener, router: Router, stop: CancellationToken) -> std::io::Result<()> {
    match listener {
        Listener::Plain(tcp) => axum::serve(tcp, router).with_graceful_shutdown(stop.cancelled_owned()).await,
        Listener::Tls(tls) => {
            let service = router.into_make_service_with_connect_info::<listen::Peer>();
            axum::serve(tls, service).with_graceful_shutdown(stop.cancelled_owned()).await
        }
    }
}
