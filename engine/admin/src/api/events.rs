//! The event log.

use axum::extract::{Path, RawQuery, State};
use axum::{Extension, Json};
use septet_engine::director::Engine;
use septet_engine::event::{Event, Level};
use septet_engine::id::{EventId, SessionId};
use septet_engine::store::{EventFilter, Page, ReadError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Who;
use crate::query::{limit, number, pairs, unknown_parameter};
use crate::view::EventView;
use crate::{Context, Problem};

/// A page of events, newest first. `detail` is null here; the trace shows it.
#[derive(Serialize, ToSchema)]
pub(crate) struct EventList {
    events: Vec<EventView>,
    next: Option<u64>,
}

/// Events, newest first.
#[utoipa::path(get, path = "/api/v1/events", params(
    ("item" = Option<String>, Query), ("level" = Option<String>, Query), ("kind" = Option<String>, Query),
    ("session" = Option<u64>, Query), ("limit" = Option<u64>, Query), ("cursor" = Option<u64>, Query)
), responses((status = 200, body = EventList), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(engine): State<Engine>,
    RawQuery(query): RawQuery,
) -> Result<Json<EventList>, Problem> {
    let mut filter = EventFilter::default();
    let mut most = 100;
    let mut cursor = None;
    for (name, value) in pairs(query.as_deref()) {
        match name.as_str() {
            "item" => filter.item = Some(value),
            "level" => {
                filter.level = Some(match value.as_str() {
                    "info" => Level::Info,
                    "warning" => Level::Warning,
                    "error" => Level::Error,
                    _ => return Err(Problem::bad_request("level takes info, warning, error")),
                });
            }
            "kind" => filter.kind = Some(value),
            "session" => filter.session = Some(SessionId(number(&name, &value)?)),
            "limit" => most = limit(&name, &value)?,
            "cursor" => cursor = Some(EventId(number(&name, &value)?)),
            other => {
                return Err(unknown_parameter(
                    other,
                    &["item", "level", "kind", "session", "limit", "cursor"],
                ));
            }
        }
    }
    let page = events(&engine, filter, cursor, most).await?;
    Ok(Json(EventList {
        events: page.entries.iter().map(|event| EventView::new(event, false)).collect(),
        next: page.next,
    }))
}

/// Reads events off the async threads: older ones are on the disk.
async fn events(
    engine: &Engine,
    filter: EventFilter,
    before: Option<EventId>,
    most: usize,
) -> Result<Page<Event>, ReadError> {
    let store = engine.store().clone();
    let found = tokio::task::spawn_blocking(move || store.events(&filter, before, most)).await;
    found.map_err(|error| ReadError::Search(error.to_string()))?
}

/// One event with its detail, which counts as viewing: events without a session are in no trace.
#[utoipa::path(get, path = "/api/v1/events/{id}", params(("id" = u64, Path)), responses(
    (status = 200, body = EventView), (status = 404, body = Problem)
))]
pub(crate) async fn show(
    State(context): State<Context>,
    Extension(account): Who,
    Path(id): Path<u64>,
) -> Result<Json<EventView>, Problem> {
    let before = id.checked_add(1).map(EventId);
    let page = events(&context.parts.engine, EventFilter::default(), before, 1).await?;
    let event = page.entries.first().filter(|event| event.id.0 == id);
    let event = event.ok_or_else(|| Problem::not_found(format!("there is no event {id}")))?;
    if event.detail.is_some() {
        context.audit.viewed_event(account.name.as_deref(), id).await;
    }
    Ok(Json(EventView::new(event, true)))
}
