//! OAuth clients: their health, never a token.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use septet_oauth::ClientView;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::Who;
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
    /// Those the server gave, else those asked for.
    scope: Option<String>,
    /// `code: text`, with the server's OAuth error code where it gave one.
    last_error: Option<String>,
    /// When that was.
    failed_at: Option<String>,
    /// When a peer last refused its token with a 401.
    last_401: Option<String>,
    /// When its refresh token ends, where that is known.
    refresh_expires_at: Option<String>,
    /// Where a person signs in, for grant `authorization_code`.
    connect_url: Option<String>,
    /// Items that have asked for its token, or are configured to.
    used_by: Vec<String>,
}

/// One client, with the server's words.
#[derive(Serialize, ToSchema)]
pub(crate) struct ClientDetail {
    #[serde(flatten)]
    client: ClientEntry,
    /// The server's own words about the last error; reading them counts as viewing a message.
    detail: Option<String>,
}

/// What a fetch on demand brought. Never the token.
#[derive(Serialize, ToSchema)]
pub(crate) struct ClientTest {
    #[serde(flatten)]
    client: ClientEntry,
    /// Seconds until the token ends.
    expires_in: Option<i64>,
    /// What the token says of itself, where it is a JWT; else null.
    #[schema(value_type = Option<Object>)]
    claims: Option<Map<String, Value>>,
}

pub(super) fn entry(client: ClientView) -> ClientEntry {
    ClientEntry {
        name: client.name,
        grant: client.grant,
        token_url: client.token_url,
        state: client.state.as_str(),
        expires_at: client.expires_at.map(time),
        fetched_at: client.fetched_at.map(time),
        fetches: client.fetches,
        scope: client.scope,
        last_error: client.last_error,
        failed_at: client.failed_at.map(time),
        last_401: client.last_401.map(time),
        refresh_expires_at: client.refresh_ends_at.map(time),
        connect_url: client.connect_url,
        used_by: client.used_by,
    }
}

fn unknown(name: &str) -> Problem {
    Problem::not_found(format!("there is no OAuth client named {name}"))
}

/// Every OAuth client and how its token stands.
#[utoipa::path(get, path = "/api/v1/oauth", responses((status = 200, body = ClientList)))]
pub(crate) async fn list(State(context): State<Context>) -> Json<ClientList> {
    Json(ClientList { clients: context.parts.tokens.clients().into_iter().map(entry).collect() })
}

/// One OAuth client, with the server's words about its last error.
#[utoipa::path(get, path = "/api/v1/oauth/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = ClientDetail), (status = 404, body = Problem)
))]
pub(crate) async fn show(
    State(context): State<Context>,
    Extension(who): Who,
    Path(name): Path<String>,
) -> Result<Json<ClientDetail>, Problem> {
    let mut client = context.parts.tokens.client(&name).ok_or_else(|| unknown(&name))?;
    let detail = client.last_error_detail.take().map(|words| words.0);
    if detail.is_some() {
        context.audit.viewed_client(who.name.as_deref(), &name).await;
    }
    Ok(Json(ClientDetail { client: entry(client), detail }))
}

async fn fetched(context: &Context, name: &str) -> Result<ClientView, Problem> {
    let fetched = context.parts.tokens.refresh(name).await.ok_or_else(|| unknown(name))?;
    fetched.map_err(|fault| Problem::new(StatusCode::BAD_GATEWAY, fault.to_string()))
}

/// Fetches a token now; a failed fetch keeps a still valid token.
#[utoipa::path(post, path = "/api/v1/oauth/{name}/refresh", params(("name" = String, Path)), responses(
    (status = 200, body = ClientEntry), (status = 404, body = Problem), (status = 502, body = Problem)
))]
pub(crate) async fn refresh(
    State(context): State<Context>,
    Path(name): Path<String>,
) -> Result<Json<ClientEntry>, Problem> {
    fetched(&context, &name).await.map(|client| Json(entry(client)))
}

/// Fetches a token now and shows what it is: expiry, scope and claims, never the token.
#[utoipa::path(post, path = "/api/v1/oauth/{name}/test", params(("name" = String, Path)), responses(
    (status = 200, body = ClientTest), (status = 404, body = Problem), (status = 502, body = Problem)
))]
pub(crate) async fn test(
    State(context): State<Context>,
    Path(name): Path<String>,
) -> Result<Json<ClientTest>, Problem> {
    let client = fetched(&context, &name).await?;
    let now = context.parts.engine.store().clock().now();
    let expires_in = client.expires_at.map(|end| end.duration_since(now).as_secs());
    let claims = context.parts.tokens.claims(&name);
    Ok(Json(ClientTest { client: entry(client), expires_in, claims }))
}
