//! Health, readiness and metrics.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use septet_engine::director::Engine;

use crate::{Context, Problem};

/// The process lives.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "the process lives")))]
pub(crate) async fn healthz() -> impl IntoResponse {
    "ok\n"
}

/// Recovery is done, all enabled services listen and the store takes writes.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, description = "ready"),
    (status = 503, description = "not ready, and why", body = Problem)
))]
pub(crate) async fn readyz(State(engine): State<Engine>) -> Response {
    match engine.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

/// Prometheus text.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "Prometheus text format")))]
pub(crate) async fn metrics(State(context): State<Context>) -> impl IntoResponse {
    let engine = &context.parts.engine;
    let production = engine.plan().production.name.clone();
    for item in engine.items() {
        let labels = [("production", production.clone()), ("item", item.name.to_string())];
        #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
        {
            metrics::gauge!("septet_queue_depth", &labels).set(item.counts.queued as f64);
            metrics::gauge!("septet_in_flight", &labels).set(item.counts.in_flight as f64);
            metrics::gauge!("septet_suspended", &labels).set(item.counts.suspended as f64);
            metrics::gauge!("septet_completed", &labels).set(item.counts.completed as f64);
            metrics::gauge!("septet_errors", &labels).set(item.counts.errors as f64);
        }
        let running = item.state == septet_engine::director::ItemState::Running;
        metrics::gauge!("septet_item_running", &labels).set(if running { 1.0 } else { 0.0 });
    }
    let store = engine.store().clone();
    if let Ok(Ok(Some(vitals))) = tokio::task::spawn_blocking(move || store.vitals()).await {
        let labels = [("production", production)];
        #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
        {
            metrics::gauge!("septet_store_segments", &labels).set(vitals.segments as f64);
            metrics::gauge!("septet_store_bytes", &labels).set(vitals.bytes as f64);
            metrics::gauge!("septet_store_unindexed_rows", &labels).set(vitals.unindexed as f64);
            metrics::gauge!("septet_store_free_bytes", &labels).set(vitals.free as f64);
            metrics::gauge!("septet_store_min_free_bytes", &labels).set(vitals.floor as f64);
            metrics::gauge!("septet_store_waiting", &labels).set(vitals.waiting as f64);
            metrics::gauge!("septet_store_index_lag_seconds", &labels)
                .set(vitals.index.behind_ms as f64 / 1000.0);
        }
        metrics::gauge!("septet_store_accepting", &labels).set(if vitals.accepting { 1.0 } else { 0.0 });
    }
    let text = context.parts.metrics.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
