//! Items: what they do, and starting and stopping them.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use septet_engine::director::{Engine, ItemView};
use serde::Serialize;
use utoipa::ToSchema;

use crate::Problem;
use crate::api::Who;
use crate::view::time;

/// All items.
#[derive(Serialize, ToSchema)]
pub(crate) struct ItemList {
    items: Vec<ItemEntry>,
}

/// One item.
#[derive(Serialize, ToSchema)]
pub(crate) struct ItemEntry {
    name: String,
    /// `service`, `process`, `operation`.
    #[schema(value_type = String)]
    kind: &'static str,
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    type_name: &'static str,
    /// `starting`, `running`, `stopping`, `stopped`, `disabled`, `faulted`, `paused`.
    #[schema(value_type = String)]
    state: &'static str,
    queued: u64,
    in_flight: u64,
    completed: u64,
    errors: u64,
    suspended: u64,
    last_activity: Option<String>,
    last_error: Option<String>,
}

fn entry(item: ItemView) -> ItemEntry {
    ItemEntry {
        name: item.name.to_string(),
        kind: item.kind,
        type_name: item.type_name,
        state: item.state.as_str(),
        queued: item.counts.queued,
        in_flight: item.counts.in_flight,
        completed: item.counts.completed,
        errors: item.counts.errors,
        suspended: item.counts.suspended,
        last_activity: item.counts.last_activity.map(time),
        last_error: item.counts.last_error,
    }
}

/// All items in file order, with counters.
#[utoipa::path(get, path = "/api/v1/items", responses((status = 200, body = ItemList)))]
pub(crate) async fn list(State(engine): State<Engine>) -> Json<ItemList> {
    Json(ItemList { items: engine.items().into_iter().map(entry).collect() })
}

fn one(engine: &Engine, name: &str) -> Result<Json<ItemEntry>, Problem> {
    let found = engine.items().into_iter().find(|item| item.name.as_str() == name);
    found
        .map(|item| Json(entry(item)))
        .ok_or_else(|| Problem::not_found(format!("there is no item named {name}")))
}

/// Starts a stopped, paused or disabled item.
#[utoipa::path(post, path = "/api/v1/items/{name}/start", params(("name" = String, Path)), responses(
    (status = 200, body = ItemEntry), (status = 404, body = Problem)
))]
pub(crate) async fn start(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Extension(who): Who,
) -> Result<Json<ItemEntry>, Problem> {
    engine.start_item(&name, who.name.as_deref()).await?;
    one(&engine, &name)
}

/// Stops an item; it stays stopped over a restart of the engine.
#[utoipa::path(post, path = "/api/v1/items/{name}/stop", params(("name" = String, Path)), responses(
    (status = 200, body = ItemEntry), (status = 404, body = Problem)
))]
pub(crate) async fn stop(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Extension(who): Who,
) -> Result<Json<ItemEntry>, Problem> {
    engine.stop_item(&name, who.name.as_deref()).await?;
    one(&engine, &name)
}

/// Stops and starts an item.
#[utoipa::path(post, path = "/api/v1/items/{name}/restart", params(("name" = String, Path)), responses(
    (status = 200, body = ItemEntry), (status = 404, body = Problem)
))]
pub(crate) async fn restart(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Extension(who): Who,
) -> Result<Json<ItemEntry>, Problem> {
    engine.restart_item(&name, who.name.as_deref()).await?;
    one(&engine, &name)
}
