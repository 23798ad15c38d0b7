//! The production as a whole.

use axum::extract::State;
use axum::{Extension, Json};
use septet_engine::director::Engine;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Who;
use crate::view::time;
use crate::{Context, Problem};

/// The production.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProductionView {
    name: String,
    /// `starting`, `running`, `draining`, `stopped`.
    #[schema(value_type = String)]
    state: &'static str,
    started: String,
    /// Hash of the production file that runs.
    version: String,
    /// How many items it has.
    items: usize,
}

fn view(engine: &Engine) -> ProductionView {
    let plan = engine.plan();
    ProductionView {
        name: plan.production.name.clone(),
        state: engine.state().as_str(),
        started: time(engine.started()),
        version: plan.version.clone(),
        items: plan.items.len(),
    }
}

/// Name, state, version.
#[utoipa::path(get, path = "/api/v1/production", responses((status = 200, body = ProductionView)))]
pub(crate) async fn show(State(engine): State<Engine>) -> Json<ProductionView> {
    Json(view(&engine))
}

/// Reads the production file again; switches whole or not at all.
#[utoipa::path(post, path = "/api/v1/production/reload", responses(
    (status = 200, body = ProductionView),
    (status = 409, description = "what stands in the way", body = Problem)
))]
pub(crate) async fn reload(
    State(context): State<Context>,
    Extension(who): Who,
) -> Result<Json<ProductionView>, Problem> {
    (context.parts.reload)(who.name.clone()).await?;
    Ok(Json(view(&context.parts.engine)))
}
