//! OAuth clients: their health, never a token.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use septet_oauth::ClientView;
use serde::Serialize;
use utoipa::ToSchema;

use crate::view::time;
use crate::{Context, Problem};

/// All clients.
#[derive(Serialize, ToSchema)]
pub(crate) struct ClientList {
    clients: Vec<ClientEntry>,
}

/// One client.
#[derive(Serialize, ToSchema)]
pub(crate) struct ClientEntry {
    name: String,
    grant: String,
    token_url: Option<String>,
    /// `none`, `valid`, `expired`, `failing`.
    #[schema(value_type = String)]
    state: &'static str,
    expires_at: Option<String>,
    fetched_at: Option<String>,
    fetches: u64,
    last_error: Option<String>,
    /// Items that have asked for its token.
    used_by: Vec<String>,
}

fn entry(client: ClientView) -> ClientEntry {
    ClientEntry {
        name: client.name,
        grant: client.grant,
        token_url: client.token_url,
        state: client.state.as_str(),
        expires_at: client.expires_at.map(time),
        fetched_at: client.fetched_at.map(time),
        fetches: client.fetches,
        last_error: client.last_error,
        used_by: client.used_by,
    }
}

/// Every OAuth client and how its token stands.
#[utoipa::path(get, path = "/api/v1/oauth", responses((status = 200, body = ClientList)))]
pub(crate) async fn list(State(context): State<Context>) -> Json<ClientList> {
    Json(ClientList { clients: context.parts.tokens.clients().into_iter().map(entry).collect() })
}

/// Fetches a token now; a failed fetch keeps a still valid token.
#[utoipa::path(post, path = "/api/v1/oauth/{name}/refresh", params(("name" = String, Path)), responses(
    (status = 200, body = ClientEntry), (status = 404, body = Problem), (status = 502, body = Problem)
))]
pub(crate) async fn refresh(
    State(context): State<Context>,
    Path(name): Path<String>,
) -> Result<Json<ClientEntry>, Problem> {
    match context.parts.tokens.refresh(&name).await {
        None => Err(Problem::not_found(format!("there is no OAuth client named {name}"))),
        Some(Ok(client)) => Ok(Json(entry(client))),
        Some(Err(fault)) => Err(Problem::new(StatusCode::BAD_GATEWAY, fault.to_string())),
    }
}
