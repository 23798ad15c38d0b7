//! The routes, one file per resource.

pub(crate) mod control;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod items;
pub(crate) mod messages;
pub(crate) mod oauth;
pub(crate) mod production;
pub(crate) mod queues;
pub(crate) mod replay;
pub(crate) mod rotate;
pub(crate) mod sessions;
pub(crate) mod sign_in;
pub(crate) mod store;

use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Extension, Router};
use std::sync::Arc;

use crate::access::{self, Account};
use crate::{Context, Problem, openapi, problem};

/// The account of a request, put there by [`access::check`].
pub(crate) type Who = Extension<Arc<Account>>;

/// An edited body may be as large as a message.
const MAX_BODY: usize = 96 * 1024 * 1024;

pub(crate) fn router(context: Context) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .route("/api/v1/openapi.json", get(openapi::document))
        .route("/api/v1/production", get(production::show))
        .route("/api/v1/production/reload", post(production::reload))
        .route("/api/v1/items", get(items::list))
        .route("/api/v1/items/{name}/start", post(items::start))
        .route("/api/v1/items/{name}/stop", post(items::stop))
        .route("/api/v1/items/{name}/restart", post(items::restart))
        .route("/api/v1/messages", get(messages::list))
        .route("/api/v1/messages/search", post(messages::search))
        .route("/api/v1/messages/resume", post(control::resume_many))
        .route("/api/v1/messages/discard", post(control::discard_many))
        .route("/api/v1/messages/{id}", get(messages::show))
        .route("/api/v1/messages/{id}/raw", get(messages::raw))
        .route("/api/v1/messages/{id}/resend", post(control::resend))
        .route("/api/v1/messages/{id}/resume", post(control::resume))
        .route("/api/v1/messages/{id}/discard", post(control::discard))
        .route("/api/v1/sessions/{id}", get(sessions::show))
        .route("/api/v1/replay", post(replay::start))
        .route("/api/v1/replays", get(replay::list))
        .route("/api/v1/replays/{id}", get(replay::show))
        .route("/api/v1/replays/{id}/cancel", post(replay::cancel))
        .route("/api/v1/queues", get(queues::list))
        .route("/api/v1/oauth", get(oauth::list))
        .route("/api/v1/oauth/{name}", get(oauth::show))
        .route("/api/v1/oauth/{name}/refresh", post(oauth::refresh))
        .route("/api/v1/oauth/{name}/test", post(oauth::test))
        .route("/oauth/{name}/connect", get(sign_in::connect))
        .route("/oauth/{name}/callback", get(sign_in::callback))
        .route("/api/v1/oauth/{name}/rotate", post(rotate::rotate))
        .route("/api/v1/events", get(events::list))
        .route("/api/v1/events/{id}", get(events::show))
        .route("/api/v1/purge", post(control::purge))
        .route("/api/v1/store", get(store::show))
        .route("/api/v1/store/files/{name}", get(store::file))
        .fallback(no_such_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(context.clone(), access::check))
        .layer(middleware::map_response(problem::document))
        .with_state(context)
}

async fn no_such_route(request: Request) -> impl IntoResponse {
    Problem::not_found(format!("there is no {}; see /api/v1/openapi.json", request.uri().path()))
}

async fn wrong_method(request: Request) -> impl IntoResponse {
    let text = format!("{} does not take {}", request.uri().path(), request.method());
    Problem::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, text)
}

/// An id of a path, or a problem that is a 404: what is no number names no message.
pub(crate) fn id(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| Problem::not_found(format!("{text} is no id; ids are whole numbers")))
}
