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

/// Reads the production file again and switches to it; the problem says what stands in the way. Takes who
/// ordered it.
pub type Reload =
    Arc<dyn Fn(Option<String>) -> Pin<Box<dyn Future<Output = Result<(), Problem>> + Send>> + Send + Sync>;

/// Renders the metrics of the whole process.
pub type Metrics = PrometheusHandle;

/// Collects the metrics of the whole process from here on; once per process.
pub fn install_metrics() -> Result<Metrics, String> {
    let handle = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| format!("metrics cannot be collected: {error}"))?;
    describe();
    Ok(handle)
}

/// What the metrics of the store mean, for the `# HELP` lines.
fn describe() {
    for (name, text) in [
        ("septet_store_transactions_total", "transactions that are on stable storage"),
        (
            "septet_store_batches_total",
            "writes with one sync each; transactions by batches is the group commit",
        ),
        ("septet_store_written_bytes_total", "bytes written to the journal"),
        ("septet_store_events_dropped_total", "events that found no room on their way to the disk"),
    ] {
        metrics::describe_counter!(name, text);
    }
    metrics::describe_histogram!("septet_store_sync_seconds", "how long a sync of the journal took");
    metrics::describe_histogram!(
        "septet_store_index_wait_seconds",
        "how long the journal waited for the index because too much had gathered in memory"
    );
    for (name, text) in [
        ("septet_store_segments", "files of the journal"),
        ("septet_store_bytes", "bytes of the journal's files"),
        ("septet_store_unindexed_rows", "rows in memory that are not in the index yet"),
        ("septet_store_free_bytes", "what the disk below the store has free"),
        ("septet_store_min_free_bytes", "new messages are refused when less than this is free"),
        ("septet_store_waiting", "transactions on their way to the disk"),
        ("septet_store_accepting", "1 when new messages are taken"),
        (
            "septet_store_index_lag_seconds",
            "for how long lists have lacked something; 0 when they lack nothing",
        ),
        ("septet_store_index_rebuild_left", "segments whose index is still to be made again"),
        ("septet_queue_depth", "messages waiting for an item, in flight or retrying included"),
        ("septet_in_flight", "messages that an item is working on"),
        ("septet_suspended", "messages that wait for an operator"),
        ("septet_item_running", "1 when the item runs"),
    ] {
        metrics::describe_gauge!(name, text);
    }
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
