//! The authorization endpoint (RFC 6749 §4.1, RFC 7636, RFC 9207): judges the request, shows the pages, and
//! sends the person back with a code or an error. A request whose client or `redirect_uri` is not known is
//! answered with a page, never with a redirect.
//!
//! Nothing hangs on a cookie: each request signs in anew, and its pages are held together by a secret that
//! only they know, so that no other site can answer them.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, LOCATION, REFERRER_POLICY};
use axum::response::Response;
use septet_engine::event::{Level, NewEvent};
use url::Url;

use super::clients::{Client, Grant};
use super::grants::{Allowed, Asked};
use super::pages;
use super::server::{Server, read};
use super::token::{Parameters, TokenError, scopes};
use super::users::SignIn;

/// Longer parameters are not taken.
const LONGEST: usize = 2048;

/// Why a request cannot go on.
enum Trouble {
    /// Tell the person: there is nobody to send them back to.
    Page(&'static str),
    /// Tell the client (RFC 6749 §4.1.2.1).
    Back { redirect_uri: String, state: Option<String>, error: &'static str, description: &'static str },
}

/// `GET /oauth2/authorize`.
pub(super) async fn begin(State(server): State<Server>, RawQuery(query): RawQuery) -> Response {
    let parameters = Parameters::form(query.unwrap_or_default().as_bytes());
    match judge(&server, &parameters) {
        Ok(asked) => {
            let client = asked.client.clone();
            let request = server.grants().begin(asked, None, server.now().as_second());
            match request {
                Some(request) => {
                    pages::sign_in(StatusCode::OK, &server.authorize_path(), &request, &client, None)
                }
                None => pages::problem(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "Too many people are signing in. Try again later.",
                ),
            }
        }
        Err(Trouble::Page(text)) => pages::problem(StatusCode::BAD_REQUEST, text),
        Err(Trouble::Back { redirect_uri, state, error, description }) => {
            let answer = [("error", error), ("error_description", description)];
            back(&server, &redirect_uri, state.as_deref(), &answer)
        }
    }
}

/// `POST /oauth2/authorize`: the sign-in form or the consent form of a request under way.
pub(super) async fn go_on(
    State(server): State<Server>,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Response {
    let body = match read(&server, &headers, body).await {
        Ok(body) => body,
        Err(status) => return pages::problem(status, "The form was not taken."),
    };
    let form = Parameters::form(&body);
    let one = |name| form.one(name).ok().flatten();
    let now = server.now().as_second();
    let pending = one("request").and_then(|id| Some((id, server.grants().pending(id, now)?)));
    let Some((id, pending)) = pending else {
        let text = "This page has expired. Go back to the application and start again.";
        return pages::problem(StatusCode::BAD_REQUEST, text);
    };
    let asked = pending.asked;
    match (pending.user, one("decision"), one("username")) {
        (Some((user, signed_in)), Some(decision), _) => {
            server.grants().finish(id);
            decide(&server, asked, user, signed_in, decision == "allow")
        }
        (None, _, Some(name)) => {
            let name = name.to_owned();
            let password = one("password").unwrap_or_default();
            let answer = server.door().sign_in(&server.settings().users, &name, password, now).await;
            signed_in(&server, id, asked, name, answer)
        }
        _ => pages::problem(StatusCode::BAD_REQUEST, "This form is not complete."),
    }
}

fn signed_in(server: &Server, id: &str, asked: Asked, name: String, answer: SignIn) -> Response {
    let action = server.authorize_path();
    if answer != SignIn::Right {
        if server.may_note() {
            server.event(NewEvent::new(Level::Warning, "sign_in.failed", "name or password is wrong"));
        }
        let (status, text) = match answer {
            SignIn::TooMany => (StatusCode::TOO_MANY_REQUESTS, "Too many attempts. Wait a minute."),
            _ => (StatusCode::UNAUTHORIZED, "Name or password is wrong."),
        };
        return pages::sign_in(status, &action, id, &asked.client, Some(text));
    }
    server.event(NewEvent::new(Level::Info, "sign_in", format!("for client {}", asked.client)).who(&name));
    let known = &server.settings().scopes;
    let described = asked.scopes.iter().map(|scope| {
        let found = known.iter().find(|(name, _)| name == scope).map(|(_, text)| text.clone());
        let openid = if scope == "openid" { "know who you are" } else { scope };
        (scope.clone(), found.unwrap_or_else(|| openid.to_owned()))
    });
    let described: Vec<_> = described.collect();
    let client = asked.client.clone();
    let now = server.now().as_second();
    let mut grants = server.grants();
    // From here on the request has another name: whoever saw the sign-in page does not know it.
    grants.finish(id);
    match grants.begin(asked, Some((name.clone(), now)), now) {
        Some(request) => pages::consent(&action, &request, &client, &name, &described),
        None => pages::problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "Too many people are signing in. Try again later.",
        ),
    }
}

fn decide(server: &Server, asked: Asked, user: String, signed_in: i64, allow: bool) -> Response {
    let (redirect_uri, state) = (asked.redirect_uri.clone(), asked.state.clone());
    if !allow {
        let answer = [("error", "access_denied"), ("error_description", "the person did not allow it")];
        return back(server, &redirect_uri, state.as_deref(), &answer);
    }
    let allowed = Allowed {
        client: asked.client.clone(),
        user,
        scopes: asked.scopes.clone(),
        audiences: asked.audiences.clone(),
        signed_in,
    };
    let now = server.now().as_second();
    match server.grants().code(asked, allowed, now, server.settings().code_lifetime()) {
        Some(code) => back(server, &redirect_uri, state.as_deref(), &[("code", &code)]),
        None => back(server, &redirect_uri, state.as_deref(), &[("error", "temporarily_unavailable")]),
    }
}

/// Judges an authorization request.
fn judge(server: &Server, parameters: &Parameters) -> Result<Asked, Trouble> {
    let one = |name| parameters.one(name).map_err(|_| Trouble::Page("A parameter came twice."));
    let unknown = Trouble::Page("The application that sent you here is not known.");
    let id = one("client_id")?;
    let client =
        server.settings().clients.iter().find(|client| Some(client.id.as_str()) == id).ok_or(unknown)?;
    let given = one("redirect_uri")?;
    let wrong =
        Trouble::Page("The application wants you sent back to an address that is not registered for it.");
    let redirect_uri = match (given, client.redirect_uris.as_slice()) {
        (Some(given), registered) => registered.iter().find(|known| *known == given),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    let redirect_uri = redirect_uri.ok_or(wrong)?.clone();
    let state = one("state")?.map(str::to_owned);
    let back = |error, description| Trouble::Back {
        redirect_uri: redirect_uri.clone(),
        state: state.clone(),
        error,
        description,
    };
    for name in ["state", "nonce", "scope", "code_challenge"] {
        if one(name)?.is_some_and(|value| value.len() > LONGEST) {
            return Err(back("invalid_request", "a parameter is too long"));
        }
    }
    if one("response_type")? != Some("code") {
        return Err(back("unsupported_response_type", "response_type must be code"));
    }
    if !client.grants.contains(&Grant::AuthorizationCode) {
        return Err(back("unauthorized_client", "the client may not use authorization codes"));
    }
    if parameters.one("request").is_ok_and(|found| found.is_some()) {
        return Err(back("request_not_supported", "request objects are not supported"));
    }
    let challenge = challenge(client, one("code_challenge")?, one("code_challenge_method")?)
        .map_err(|text| back("invalid_request", text))?;
    let refused = |error: TokenError| back(error.code.as_str(), error.description);
    let granted = scopes(client, Grant::AuthorizationCode, one("scope")?).map_err(refused)?;
    let audiences = server.audiences(client, parameters).map_err(refused)?;
    Ok(Asked {
        client: client.id.clone(),
        redirect_uri_given: given.is_some(),
        scopes: granted.into_iter().map(str::to_owned).collect(),
        audiences,
        nonce: one("nonce")?.map(str::to_owned),
        challenge,
        state: state.clone(),
        redirect_uri: redirect_uri.clone(),
    })
}

/// RFC 7636 §4.3; `plain` protects nothing and is refused.
fn challenge(
    client: &Client,
    challenge: Option<&str>,
    method: Option<&str>,
) -> Result<Option<String>, &'static str> {
    let well_formed = |text: &&str| {
        text.len() == 43
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    match (challenge, method) {
        (None, None) if !client.pkce => Ok(None),
        (None, _) => Err("code_challenge is required"),
        (Some(_), method) if method != Some("S256") => Err("code_challenge_method must be S256"),
        (Some(text), _) if !well_formed(&text) => Err("code_challenge is no S256 challenge"),
        (Some(text), _) => Ok(Some(text.to_owned())),
    }
}

/// Sends the person back to the client, with the state as it came and our name (RFC 9207).
fn back(server: &Server, redirect_uri: &str, state: Option<&str>, answer: &[(&str, &str)]) -> Response {
    // The address was checked with the settings; what was registered is kept as it is.
    let Ok(mut url) = Url::parse(redirect_uri) else {
        return pages::problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The application's address cannot be used.",
        );
    };
    {
        let mut query = url.query_pairs_mut();
        query.extend_pairs(answer);
        if let Some(state) = state {
            query.append_pair("state", state);
        }
        query.append_pair("iss", &server.settings().issuer_text);
    }
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(url.as_str()) {
        headers.insert(LOCATION, location);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
