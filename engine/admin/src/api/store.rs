//! The store's files for backups: what there is to copy, and the bytes. Only what is on stable storage; the key
//! is not among them. Admin role, audited.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use septet_engine::store::backup::{CopiedFile, Manifest, Reading};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;
use utoipa::ToSchema;

use crate::api::Who;
use crate::view::time;
use crate::{Context, Problem};

/// Bytes read at once: all that a copy holds in memory.
const PIECE: usize = 256 << 10;

/// What a backup made now would hold.
#[derive(Serialize, ToSchema)]
pub(crate) struct StoreView {
    /// The version of the format of backups.
    format: u32,
    /// The store's name in idempotency keys.
    epoch: String,
    /// Which key opens what is sealed in it.
    key_id: String,
    at: String,
    segments: Vec<FileView>,
    checkpoint: Option<FileView>,
    /// Index files that are being made again.
    index: IndexView,
}

/// How far the index is behind.
#[derive(Serialize, ToSchema)]
pub(crate) struct IndexView {
    /// For how long lists have lacked something; 0 when they lack nothing.
    lag_ms: u64,
    /// Segments of the journal that are still to be read for it.
    segments_left: u64,
    /// Of so many.
    segments: u64,
}

/// One file.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileView {
    name: String,
    /// How many bytes of it can be copied.
    size: u64,
    /// It will not grow any more.
    sealed: bool,
    /// Tells it from another file of this name and size (CRC-32).
    check: u32,
}

impl From<CopiedFile> for FileView {
    fn from(file: CopiedFile) -> Self {
        FileView { name: file.name, size: file.size, sealed: file.sealed, check: file.check }
    }
}

/// The part of a file that is asked for.
#[derive(Deserialize, utoipa::IntoParams)]
pub(crate) struct Part {
    /// The first byte; default 0.
    #[serde(default)]
    from: u64,
    /// The byte behind the last one; default: all there is.
    to: Option<u64>,
}

/// What a backup made now would hold.
#[utoipa::path(get, path = "/api/v1/store", responses(
    (status = 200, body = StoreView), (status = 404, description = "the store is in memory", body = Problem)
))]
pub(crate) async fn show(State(context): State<Context>) -> Result<Json<StoreView>, Problem> {
    let store = context.parts.engine.store().clone();
    let progress = store.index_progress().unwrap_or_default();
    let index =
        IndexView { lag_ms: progress.behind_ms, segments_left: progress.left, segments: progress.total };
    let manifest = blocking(move || store.copyable()).await?;
    let manifest =
        manifest.ok_or_else(|| Problem::not_found("this store is in memory: there are no files"))?;
    let Manifest { format, epoch, key_id, at, segments, checkpoint } = manifest;
    Ok(Json(StoreView {
        format,
        epoch,
        key_id,
        at: time(at),
        segments: segments.into_iter().map(FileView::from).collect(),
        checkpoint: checkpoint.map(FileView::from),
        index,
    }))
}

/// The bytes of one file, as far as they are on stable storage.
#[utoipa::path(get, path = "/api/v1/store/files/{name}", params(("name" = String, Path), Part), responses(
    (status = 200, description = "the bytes", content_type = "application/octet-stream"),
    (status = 404, description = "there is no such file (any more)", body = Problem),
    (status = 416, description = "it is not that long", body = Problem)
))]
pub(crate) async fn file(
    State(context): State<Context>,
    Extension(who): Who,
    Path(name): Path<String>,
    Query(part): Query<Part>,
) -> Result<Response, Problem> {
    let store = context.parts.engine.store().clone();
    let asked = name.clone();
    let reading = blocking(move || store.copyable_file(&asked)).await?;
    let reading = reading.ok_or_else(|| Problem::not_found(format!("there is no file {name} (any more)")))?;
    let end = part.to.unwrap_or(reading.end);
    if part.from > end || end > reading.end {
        let text = format!("{name} has {} bytes that can be copied", reading.end);
        return Err(Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, text));
    }
    context.audit.copied(who.name.as_deref()).await;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, (end - part.from).to_string()),
    ];
    Ok((headers, stream(reading, part.from, end)).into_response())
}

/// Reads piece by piece, as fast as the other side takes them.
fn stream(mut reading: Reading, from: u64, end: u64) -> Body {
    reading.end = end;
    let reading = Arc::new(reading);
    let pieces = futures_util::stream::try_unfold(from, move |at| {
        let reading = reading.clone();
        async move {
            if at >= end {
                return Ok(None);
            }
            let piece = tokio::task::spawn_blocking(move || reading.read(at, PIECE));
            let piece = piece.await.map_err(io::Error::other)??;
            let next = at + piece.len() as u64;
            Ok::<_, io::Error>(Some((piece, next)))
        }
    });
    Body::from_stream(pieces)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let failed = |text: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, text);
    let result = tokio::task::spawn_blocking(work).await.map_err(|error| failed(error.to_string()))?;
    result.map_err(|error| failed(format!("the store's files cannot be read: {error}")))
}
