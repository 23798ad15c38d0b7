//! One session: its trace.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use septet_engine::id::SessionId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::{Who, id};
use crate::view::{EventView, HeaderView, session_status, time};
use crate::{Context, Problem};

/// The trace of a session.
#[derive(Serialize, ToSchema)]
pub(crate) struct SessionView {
    session: u64,
    started: String,
    /// When its last leg ended; null while something is active or suspended.
    ended: Option<String>,
    /// `active`, `suspended`, `error`, `completed`.
    #[schema(value_type = String)]
    status: &'static str,
    messages: Vec<HeaderView>,
    events: Vec<EventView>,
}

/// All legs of a session in order, and its events. Audited where it shows a detail.
#[utoipa::path(get, path = "/api/v1/sessions/{id}", params(("id" = u64, Path)), responses(
    (status = 200, body = SessionView), (status = 404, body = Problem)
))]
pub(crate) async fn show(
    State(context): State<Context>,
    Extension(who): Who,
    Path(text): Path<String>,
) -> Result<Json<SessionView>, Problem> {
    let session = SessionId(id(&text)?);
    let store = context.parts.engine.store();
    store.until_indexed(session.0).await?;
    let headers = store.session(session);
    let Some(first) = headers.first() else {
        return Err(Problem::not_found(format!("there is no session {session}")));
    };
    let events = store.session_events(session);
    let messages: Vec<_> =
        headers.iter().map(|header| HeaderView { keys: None, ..HeaderView::with_detail(header) }).collect();
    let events: Vec<_> = events.iter().map(|event| EventView::new(event, true)).collect();
    if messages.iter().any(|m| m.detail.is_some()) || events.iter().any(|event| event.detail.is_some()) {
        context.audit.viewed_session(who.name.as_deref(), first).await;
    }
    let status = session_status(&headers);
    let over = matches!(status, "error" | "completed");
    let ended = over.then(|| headers.iter().filter_map(|header| header.processed).max()).flatten();
    Ok(Json(SessionView {
        session: session.0,
        started: time(first.created),
        ended: ended.map(time),
        status,
        messages,
        events,
    }))
}
