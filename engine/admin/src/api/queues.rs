//! Queues.

use axum::Json;
use axum::extract::State;
use septet_engine::director::Engine;
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
    let queues = engine.store().queues().into_iter().map(|queue| QueueEntry {
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
