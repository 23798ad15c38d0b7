//! Messages: lists and single ones.

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::header;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use septet_engine::body::Format;
use septet_engine::header::Header;
use septet_engine::id::MessageId;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::{Who, id};
use crate::problem::body_code;
use crate::query::{MessageQuery, pairs, pairs_of};
use crate::view::{BodyView, HeaderView};
use crate::{Context, Problem};

/// A page of headers, newest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct MessageList {
    messages: Vec<HeaderView>,
    /// Give it as `cursor` for the next page; null at the end.
    next: Option<u64>,
    /// How far the list may be behind; 0 means that everything committed before the request is in it.
    index_lag_ms: u64,
    /// A search for text (`q`) stopped at its bound of time or bytes: how far it came. `next` goes on, even
    /// where there are fewer messages than `limit`.
    incomplete: Option<String>,
}

/// One header with its body.
#[derive(Serialize, ToSchema)]
pub(crate) struct MessageView {
    #[serde(flatten)]
    header: HeaderView,
    body: Option<BodyView>,
    /// Why there is no body though the message has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_error: Option<BodyError>,
}

/// A body that cannot be had.
#[derive(Serialize, ToSchema)]
pub(crate) struct BodyError {
    /// `body_damaged` (the journal is damaged there), `body_missing` (purged, or lost with a part that was
    /// repaired) or `body_unreadable` (the disk refuses).
    #[schema(value_type = String)]
    code: &'static str,
    /// With file and offset.
    text: String,
}

/// Messages, newest first.
#[utoipa::path(get, path = "/api/v1/messages", params(
    ("session" = Option<u64>, Query), ("source" = Option<String>, Query), ("target" = Option<String>, Query),
    ("status" = Option<String>, Query, description = "several separated by commas"),
    ("type" = Option<String>, Query), ("control_id" = Option<String>, Query), ("kind" = Option<String>, Query),
    ("key.NAME" = Option<String>, Query, description = "equality after normalisation and case folding"),
    ("from" = Option<String>, Query, description = "inclusive"), ("to" = Option<String>, Query, description = "exclusive"),
    ("q" = Option<String>, Query, description = "text in the stored body"), ("limit" = Option<u64>, Query),
    ("cursor" = Option<u64>, Query), ("keys" = Option<bool>, Query)
), responses((status = 200, body = MessageList), (status = 400, body = Problem)))]
pub(crate) async fn list(
    State(context): State<Context>,
    Extension(who): Who,
    RawQuery(query): RawQuery,
) -> Result<Json<MessageList>, Problem> {
    find(&context, who.name.as_deref(), MessageQuery::new(pairs(query.as_deref()))?).await
}

/// The same with the filters in the body, so that keys stay out of URLs.
#[utoipa::path(post, path = "/api/v1/messages/search", request_body = Object, responses(
    (status = 200, body = MessageList), (status = 400, body = Problem)
))]
pub(crate) async fn search(
    State(context): State<Context>,
    Extension(who): Who,
    body: Bytes,
) -> Result<Json<MessageList>, Problem> {
    let body = json(&body)?;
    find(&context, who.name.as_deref(), MessageQuery::new(pairs_of(&body)?)?).await
}

async fn find(
    context: &Context,
    who: Option<&str>,
    query: MessageQuery,
) -> Result<Json<MessageList>, Problem> {
    if query.touches_keys() {
        context.audit.searched(who, &query.filter.keys).await;
    }
    let page = context.parts.engine.store().search(&query.filter, query.cursor, query.limit).await?;
    Ok(Json(MessageList {
        messages: page.entries.iter().map(|header| HeaderView::new(header, query.keys)).collect(),
        next: page.next,
        index_lag_ms: page.lag_ms,
        incomplete: page.incomplete,
    }))
}

pub(crate) async fn header(context: &Context, text: &str) -> Result<Header, Problem> {
    let id = MessageId(id(text)?);
    // One message is never behind: it waits for the index.
    let found = context.parts.engine.store().find(id).await?;
    found.ok_or_else(|| Problem::not_found(format!("there is no message {id}")))
}

/// One message with its body. A body that cannot be read leaves the header readable: `body` is null, and
/// `body_error` says why. Audited.
#[utoipa::path(get, path = "/api/v1/messages/{id}", params(("id" = u64, Path)), responses(
    (status = 200, body = MessageView), (status = 404, body = Problem)
))]
pub(crate) async fn show(
    State(context): State<Context>,
    Extension(who): Who,
    Path(id): Path<String>,
) -> Result<Json<MessageView>, Problem> {
    let header = header(&context, &id).await?;
    context.audit.viewed(who.name.as_deref(), &header).await;
    let (mut body, mut body_error) = (None, None);
    if let Some(id) = header.body_id {
        match context.parts.engine.store().body(id).await {
            Ok(found) => body = Some(BodyView::new(&found)),
            Err(error) => match body_code(&error) {
                Some(code) => body_error = Some(BodyError { code, text: error.to_string() }),
                None => return Err(error.into()),
            },
        }
    }
    Ok(Json(MessageView { header: HeaderView::with_detail(&header), body, body_error }))
}

/// The exact bytes as they arrived; a record with secrets as JSON with `•••`. Audited.
#[utoipa::path(get, path = "/api/v1/messages/{id}/raw", params(("id" = u64, Path)), responses(
    (status = 200, description = "the body"), (status = 404, body = Problem)
))]
pub(crate) async fn raw(
    State(context): State<Context>,
    Extension(who): Who,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let header = header(&context, &id).await?;
    let Some(body) = header.body_id else {
        return Err(Problem::not_found(format!("message {} has no body", header.id)));
    };
    context.audit.viewed(who.name.as_deref(), &header).await;
    let body = context.parts.engine.store().body(body).await?;
    let masked = match body.format() {
        Format::Record => body.as_record().filter(|record| record.has_secrets()),
        _ => None,
    };
    let bytes =
        masked.map_or_else(|| body.bytes().clone(), |record| Bytes::from(record.masked().to_string()));
    let headers = [
        (header::CONTENT_TYPE, body.content_type().to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::CONTENT_DISPOSITION, "attachment".to_owned()),
    ];
    Ok((headers, bytes))
}

/// A JSON body; an empty one is an empty object.
pub(crate) fn json(body: &[u8]) -> Result<Value, Problem> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        Problem::bad_request(format!("not JSON at line {} column {}", error.line(), error.column()))
    })?;
    if value.is_object() { Ok(value) } else { Err(Problem::bad_request("the body must be a JSON object")) }
}
