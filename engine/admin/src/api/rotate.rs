//! Orders to authorization servers (`oauth.server`): another key signs from now on.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use septet_engine::director::Engine;
use serde_json::Value;

use crate::Problem;
use crate::api::Who;

/// Makes a new signing key for an authorization server. It is published before it signs; the old ones stay
/// published until the tokens that they signed have ended. Answers the key ids:
/// `{ key_id, algorithm, old: [ { key_id, algorithm, until } ] }`.
#[utoipa::path(post, path = "/api/v1/oauth/{name}/rotate", params(("name" = String, Path)), responses(
    (status = 200, body = Object), (status = 404, body = Problem), (status = 409, body = Problem)
))]
pub(crate) async fn rotate(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    Extension(who): Who,
) -> Result<Json<Value>, Problem> {
    Ok(Json(engine.order_item(&name, "rotate", who.name.as_deref()).await?))
}
