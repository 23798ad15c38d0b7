//! The OpenAPI document, made from the handlers.

use axum::Json;
use utoipa::OpenApi;

use crate::api;

#[derive(OpenApi)]
#[openapi(
    info(title = "Septet admin API", description = "Errors are RFC 9457 problem details."),
    paths(
        document,
        api::health::healthz,
        api::health::readyz,
        api::health::metrics,
        api::production::show,
        api::production::reload,
        api::items::list,
        api::items::start,
        api::items::stop,
        api::items::restart,
        api::messages::list,
        api::messages::search,
        api::messages::show,
        api::messages::raw,
        api::control::resend,
        api::control::resume,
        api::control::discard,
        api::control::resume_many,
        api::control::discard_many,
        api::replay::start,
        api::replay::list,
        api::replay::show,
        api::replay::cancel,
        api::control::purge,
        api::sessions::show,
        api::store::show,
        api::store::file,
        api::queues::list,
        api::oauth::list,
        api::oauth::show,
        api::oauth::refresh,
        api::oauth::test,
        api::sign_in::connect,
        api::sign_in::callback,
        api::rotate::rotate,
        api::events::list,
        api::events::show,
    )
)]
struct Document;

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(crate) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_route_of_the_contract() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        for path in [
            "/healthz",
            "/readyz",
            "/metrics",
            "/api/v1/openapi.json",
            "/api/v1/production",
            "/api/v1/production/reload",
            "/api/v1/items",
            "/api/v1/items/{name}/start",
            "/api/v1/items/{name}/stop",
            "/api/v1/items/{name}/restart",
            "/api/v1/messages",
            "/api/v1/messages/search",
            "/api/v1/messages/{id}",
            "/api/v1/messages/{id}/raw",
            "/api/v1/messages/{id}/resend",
            "/api/v1/messages/{id}/resume",
            "/api/v1/messages/{id}/discard",
            "/api/v1/messages/resume",
            "/api/v1/messages/discard",
            "/api/v1/sessions/{id}",
            "/api/v1/replay",
            "/api/v1/replays",
            "/api/v1/replays/{id}",
            "/api/v1/replays/{id}/cancel",
            "/api/v1/queues",
            "/api/v1/oauth",
            "/api/v1/oauth/{name}",
            "/api/v1/oauth/{name}/refresh",
            "/api/v1/oauth/{name}/test",
            "/oauth/{name}/connect",
            "/oauth/{name}/callback",
            "/api/v1/oauth/{name}/rotate",
            "/api/v1/events",
            "/api/v1/events/{id}",
            "/api/v1/purge",
            "/api/v1/store",
            "/api/v1/store/files/{name}",
        ] {
            assert!(paths.contains_key(path), "{path} is missing");
        }
    }
}
