//! Queues.

use axum::Json;
use axum::extract::State;
use septet_engine::director::Engine;
use septet_engine::store::QueueView;
use serde::Serialize;
use utoipa::ToSchema;

use crate::view::time;

/// All queues.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueList {
    queues: Vec<QueueEntry>,
}

/// One queue.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueEntry {
    item: String,
    /// Unfinished messages, the head in flight or retrying included.
    depth: u64,
    /// Age of the oldest of them.
    oldest_age_ms: Option<i64>,
    head: Option<QueueHead>,
}

/// The oldest message of a queue.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueHead {
    id: u64,
    attempts: u32,
    next_attempt: Option<String>,
    last_error: Option<String>,
}

/// Every item that has a queue.
#[utoipa::path(get, path = "/api/v1/queues", responses((status = 200, body = QueueList)))]
pub(crate) async fn list(State(engine): State<Engine>) -> Json<QueueList> {
    let now = engine.store().clock().now();
    // In file order. The store remembers items that are in the production no more: they matter only where
    // something still waits for them.
    let items = engine.items();
    let place = |queue: &QueueView| items.iter().position(|item| item.name == queue.item);
    let mut queues = engine.store().queues();
    queues.retain(|queue| queue.depth > 0 || place(queue).is_some());
    queues.sort_by_key(|queue| place(queue).unwrap_or(usize::MAX));
    let queues = queues.into_iter().map(|queue| QueueEntry {
        item: queue.item.to_string(),
        depth: queue.depth,
        oldest_age_ms: queue
            .oldest
            .map(|oldest| now.as_millisecond().saturating_sub(oldest.as_millisecond()).max(0)),
        head: queue.head.map(|head| QueueHead {
            id: head.id.0,
            attempts: head.attempts,
            next_attempt: head.next_attempt.map(time),
            last_error: head.error.as_ref().map(ToString::to_string),
        }),
    });
    Json(QueueList { queues: queues.collect() })
}
