//! The two steps of signing in for an OAuth client with grant `authorization_code`: the person leaves for the
//! provider from `/oauth/NAME/connect` and comes back to `/oauth/NAME/callback`. Small pages without scripts; what
//! they judge is in septet-oauth.

use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use septet_oauth::{Callback, SignInError};
use serde::Deserialize;

use super::Who;
use crate::Context;
use crate::view::time;

/// Whether a path is one of the two steps.
pub(crate) fn is_step(path: &str) -> bool {
    is_callback(path) || (path.starts_with("/oauth/") && path.ends_with("/connect"))
}

/// Whether a path is where providers send people back to.
pub(crate) fn is_callback(path: &str) -> bool {
    path.starts_with("/oauth/") && path.ends_with("/callback")
}

/// Sends the person to the provider.
#[utoipa::path(get, path = "/oauth/{name}/connect", params(("name" = String, Path)), responses(
    (status = 303, description = "To the provider's sign-in"),
    (status = 404, description = "No such client"),
    (status = 409, description = "A client that nobody signs in for"),
    (status = 502, description = "The provider's endpoints cannot be found")
))]
pub(crate) async fn connect(
    State(context): State<Context>,
    Extension(who): Who,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok());
    let host = host.or_else(|| uri.authority().map(|authority| authority.as_str())).unwrap_or_default();
    let back = format!("{}://{host}/oauth/{name}/callback", context.scheme);
    match context.parts.tokens.connect(&name, &back, who.name.as_deref()).await {
        Ok(url) => match HeaderValue::from_str(&url) {
            Ok(url) => guarded((StatusCode::SEE_OTHER, [(header::LOCATION, url)]).into_response()),
            Err(_) => page(StatusCode::BAD_GATEWAY, "Not signed in", "The provider's address is not legal."),
        },
        Err(error) => failed(&name, error),
    }
}

/// What a provider sends people back with.
#[derive(Deserialize)]
pub(crate) struct Back {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
    iss: Option<String>,
}

/// Takes the person back from the provider and exchanges the code for tokens.
#[utoipa::path(get, path = "/oauth/{name}/callback", params(("name" = String, Path)), responses(
    (status = 200, description = "Signed in"),
    (status = 400, description = "Not the answer to a sign-in that was begun here"),
    (status = 404, description = "No such client"),
    (status = 502, description = "The provider gave no token")
))]
pub(crate) async fn callback(
    State(context): State<Context>,
    Extension(who): Who,
    Path(name): Path<String>,
    Query(back): Query<Back>,
) -> Response {
    let Back { state, code, error, error_description, iss } = back;
    let back = Callback { state, code, error, error_description, iss };
    match context.parts.tokens.callback(&name, back, who.name.as_deref()).await {
        Ok(client) => {
            let until = client.expires_at.map(time).unwrap_or_default();
            let refresh = match client.refresh_ends_at {
                Some(end) => format!(" The refresh token ends at {}.", time(end)),
                None => String::new(),
            };
            let text =
                format!("OAuth client {name} has a token until {until}.{refresh} You may close this page.");
            page(StatusCode::OK, "Signed in", &text)
        }
        Err(error) => failed(&name, error),
    }
}

fn failed(name: &str, error: SignInError) -> Response {
    let (status, text) = match error {
        SignInError::UnknownClient => {
            (StatusCode::NOT_FOUND, format!("There is no OAuth client named {name}."))
        }
        SignInError::NoSignIn(text) => (StatusCode::CONFLICT, format!("OAuth client {name}: {text}.")),
        SignInError::Refused(text) => (
            StatusCode::BAD_REQUEST,
            format!("This answer was refused: {text}. Begin at /oauth/{name}/connect."),
        ),
        SignInError::Failed(fault) => (StatusCode::BAD_GATEWAY, format!("{fault}.")),
    };
    page(status, "Not signed in", &text)
}

fn page(status: StatusCode, title: &str, text: &str) -> Response {
    let (title, text) = (escaped(title), escaped(text));
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title} - Septet</title>\
         <h1>{title}</h1><p>{text}</p></html>\n"
    );
    let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    guarded((status, kind, html).into_response())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Nothing of these pages is kept, framed, or told to the next site.
fn guarded(mut response: Response) -> Response {
    let own = [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in own {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
