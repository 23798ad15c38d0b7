//! The authorization endpoint (RFC 6749 §4.1, RFC 7636, RFC 9207, OpenID Connect Core §3.1.2): judges the request,
//! shows the pages, and sends the person back with a code or an error. A request whose client or `redirect_uri` is
//! not known is answered with a page, never with a redirect.
//!
//! Nothing hangs on a cookie: each request signs in anew. The sign-in page carries its request signed; the consent
//! page has a secret that only it knows, so that no other site can answer it.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{ACCEPT_LANGUAGE, CACHE_CONTROL, HeaderMap, HeaderValue, LOCATION, REFERRER_POLICY};
use axum::response::Response;
use septet_engine::event::{Level, NewEvent};
use url::Url;

use super::clients::{Client, Grant, OPENID};
use super::grants::{Allowed, Asked, Pending};
use super::kept::Place;
use super::pages::{self, Form};
use super::request::{Parameters, TokenError};
use super::server::{Server, read};
use super::token::scopes;
use super::users::SignIn;
use super::words::{Language, Words};

/// Longer parameters are not taken.
const LONGEST: usize = 2048;
/// Longer requests are not looked at.
const LONGEST_REQUEST: usize = 8192;
/// A name to begin with (`login_hint`) may be this long.
const LONGEST_HINT: usize = 200;

/// Why a request cannot go on.
enum Trouble {
    /// Tell the person: there is nobody to send them back to.
    Page(fn(&Words) -> &'static str),
    /// Tell the client (RFC 6749 §4.1.2.1).
    Back { client: String, to: Back, error: &'static str, description: &'static str },
}

/// Where an answer goes.
#[derive(Clone)]
struct Back {
    redirect_uri: String,
    state: Option<String>,
}

/// `GET /oauth2/authorize`.
pub(super) async fn begin(State(server): State<Server>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    start(&server, request.headers(), query.as_bytes())
}

/// `POST /oauth2/authorize`: an authorization request as a form (OpenID Connect Core §3.1.2.1), the sign-in form,
/// or the consent form.
pub(super) async fn go_on(State(server): State<Server>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let headers = parts.headers;
    let accepted = Language::choose(None, accepted(&headers));
    let problem =
        |status, text: fn(&Words) -> &'static str| pages::problem(status, accepted, text(accepted.words()));
    let body = match read(&server, &headers, body).await {
        Ok(body) => body,
        Err(status) => return problem(status, |words| words.not_taken),
    };
    let form = Parameters::form(&body);
    let one = |name| form.one(name).ok().flatten();
    if one("response_type").is_some() {
        return start(&server, &headers, &body);
    }
    if is_foreign(&headers) {
        return problem(StatusCode::FORBIDDEN, |words| words.other_site);
    }
    let now = server.now().as_second();
    let field = one("request").unwrap_or_default();
    if let Some(decision) = one("decision") {
        let pending = server.grants().finish(field, now);
        return match pending {
            Some(pending) => decide(&server, pending, decision == "allow").await,
            None => problem(StatusCode::BAD_REQUEST, |words| words.expired),
        };
    }
    let Some(asked) = server.forms().read(field, now) else {
        return problem(StatusCode::BAD_REQUEST, |words| words.expired);
    };
    let Some(name) = one("username") else {
        return problem(StatusCode::BAD_REQUEST, |words| words.incomplete);
    };
    let password = one("password").unwrap_or_default();
    let answer = server.door().sign_in(&server.settings().users, name, password, now).await;
    signed_in(&server, field, asked, name, answer)
}

/// Whether a browser says that another site's page sent this form.
fn is_foreign(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    site.is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

fn accepted(headers: &HeaderMap) -> Option<&str> {
    headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok())
}

/// Judges an authorization request and shows the sign-in page.
fn start(server: &Server, headers: &HeaderMap, parameters: &[u8]) -> Response {
    let long = parameters.len() > LONGEST_REQUEST;
    let parameters = Parameters::form(if long { b"" } else { parameters });
    let language = Language::choose(parameters.one("ui_locales").ok().flatten(), accepted(headers));
    match judge(server, &parameters, language) {
        Ok(asked) => {
            let now = server.now().as_second();
            let client = server.find_client(&asked.client);
            let request = server.forms().write(asked, now);
            let (Some(client), Some(request)) = (client, request) else {
                let text = language.words().busy;
                return pages::problem(StatusCode::SERVICE_UNAVAILABLE, language, text);
            };
            let hint = parameters.one("login_hint").ok().flatten().unwrap_or_default();
            let hint = if hint.len() <= LONGEST_HINT { hint } else { "" };
            let form = Form { language, action: &server.authorize_path(), request: &request };
            pages::sign_in(StatusCode::OK, &form, &client, hint, None)
        }
        Err(Trouble::Page(text)) => pages::problem(StatusCode::BAD_REQUEST, language, text(language.words())),
        Err(Trouble::Back { client, to, error, description }) => {
            let answer = [("error", error), ("error_description", description)];
            // Nobody has looked at the addresses of a client that registered itself: without a person who
            // signed in they must not make this server a way to anywhere (RFC 9700 §4.11.2).
            match server.find_client(&client).filter(|client| client.registered) {
                Some(client) => match answer_url(server, &to, &answer) {
                    Some(url) => pages::problem_with_link(language, &client, url.as_str()),
                    None => pages::problem(StatusCode::BAD_REQUEST, language, language.words().refused),
                },
                None => back(server, &to, &answer),
            }
        }
    }
}

fn signed_in(server: &Server, field: &str, asked: Asked, name: &str, answer: SignIn) -> Response {
    let (language, action, now) = (asked.language, server.authorize_path(), server.now().as_second());
    let words = language.words();
    let busy = || pages::problem(StatusCode::SERVICE_UNAVAILABLE, language, words.busy);
    // A client that is gone meanwhile.
    let Some(client) = server.find_client(&asked.client) else {
        return pages::problem(StatusCode::BAD_REQUEST, language, words.unknown_client);
    };
    if answer == SignIn::Busy {
        return busy();
    }
    if answer != SignIn::Right {
        server.note(|| {
            let text = match answer {
                SignIn::TooMany => "too many wrong passwords: not looked at",
                _ => "name or password is wrong",
            };
            let event = NewEvent::new(Level::Warning, "sign_in.failed", text);
            // Only names that exist: people type passwords into the wrong field.
            if server.settings().user(name).is_some() { event.who(name) } else { event }
        });
        let (status, text) = match answer {
            SignIn::TooMany => (StatusCode::TOO_MANY_REQUESTS, words.too_many),
            _ => (StatusCode::UNAUTHORIZED, words.wrong),
        };
        let form = Form { language, action: &action, request: field };
        let name = if name.len() <= LONGEST_HINT { name } else { "" };
        return pages::sign_in(status, &form, &client, name, Some(text));
    }
    server.event(NewEvent::new(Level::Info, "sign_in", format!("for client {}", client.id)).who(name));
    let known = &server.settings().scopes;
    let described = asked.scopes.iter().map(|scope| {
        let found = known.iter().find(|(name, _)| name == scope).map(|(_, text)| text.clone());
        let own = if scope == OPENID { words.know_who } else { scope };
        (scope.clone(), found.filter(|text| !text.is_empty()).unwrap_or_else(|| own.to_owned()))
    });
    let described: Vec<_> = described.collect();
    let home = origin(&asked.redirect_uri);
    let Some(request) = server.grants().begin(asked, name, now) else { return busy() };
    let form = Form { language, action: &action, request: &request };
    pages::consent(&form, &client, name, &home, &described)
}

/// Where a person goes, as they know it: scheme and host.
fn origin(redirect_uri: &str) -> String {
    match Url::parse(redirect_uri) {
        Ok(url) if url.origin().is_tuple() => url.origin().ascii_serialization(),
        Ok(url) => format!("{}:", url.scheme()),
        Err(_) => redirect_uri.to_owned(),
    }
}

async fn decide(server: &Server, pending: Pending, allow: bool) -> Response {
    let Pending { asked, user, signed_in } = pending;
    let to = Back { redirect_uri: asked.redirect_uri.clone(), state: asked.state.clone() };
    if !allow {
        let answer = [("error", "access_denied"), ("error_description", "the person did not allow it")];
        return back(server, &to, &answer);
    }
    let allowed = Allowed {
        client: asked.client.clone(),
        user,
        scopes: asked.scopes.clone(),
        audiences: asked.audiences.clone(),
        signed_in,
    };
    let now = server.now();
    let unavailable = [("error", "temporarily_unavailable")];
    if server.forget_ended(now).await.is_err() {
        return back(server, &to, &unavailable);
    }
    let code = server.grants().code(asked, allowed, now.as_second(), server.settings().code_lifetime());
    let Some(code) = code else { return back(server, &to, &unavailable) };
    match server.save(Place::Code(&super::grants::hashed(&code))).await {
        Ok(()) => back(server, &to, &[("code", &code)]),
        Err(_) => back(server, &to, &unavailable),
    }
}

/// Judges an authorization request.
fn judge(server: &Server, parameters: &Parameters, language: Language) -> Result<Asked, Trouble> {
    let one = |name| parameters.one(name).map_err(|_| Trouble::Page(|words| words.came_twice));
    let client = one("client_id")?.and_then(|id| server.find_client(id));
    let client = client.ok_or(Trouble::Page(|words| words.unknown_client))?;
    let given = one("redirect_uri")?;
    let redirect_uri = match (given, client.redirect_uris.as_slice()) {
        (Some(given), registered) => registered.iter().find(|known| *known == given),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    let redirect_uri = redirect_uri.ok_or(Trouble::Page(|words| words.unknown_address))?.clone();
    let state = one("state")?.filter(|state| state.len() <= LONGEST).map(str::to_owned);
    let to = Back { redirect_uri: redirect_uri.clone(), state: state.clone() };
    let back =
        |error, description| Trouble::Back { client: client.id.clone(), to: to.clone(), error, description };
    for name in ["state", "nonce", "scope", "code_challenge"] {
        if one(name)?.is_some_and(|value| value.len() > LONGEST) {
            return Err(back("invalid_request", "a parameter is too long"));
        }
    }
    if one("response_type")? != Some("code") {
        return Err(back("unsupported_response_type", "response_type must be code"));
    }
    if one("response_mode")?.is_some_and(|mode| mode != "query") {
        return Err(back("invalid_request", "response_mode must be query"));
    }
    if !client.grants.contains(&Grant::AuthorizationCode) {
        return Err(back("unauthorized_client", "the client may not use authorization codes"));
    }
    if one("request")?.is_some() {
        return Err(back("request_not_supported", "request objects are not supported"));
    }
    if one("request_uri")?.is_some() {
        return Err(back("request_uri_not_supported", "request objects are not supported"));
    }
    // Everybody signs in anew, so that there is never somebody who need not be asked.
    if one("prompt")?.is_some_and(|prompt| prompt.split(' ').any(|prompt| prompt == "none")) {
        return Err(back("login_required", "the person must sign in"));
    }
    let challenge = challenge(&client, one("code_challenge")?, one("code_challenge_method")?)
        .map_err(|text| back("invalid_request", text))?;
    let refused = |error: TokenError| back(error.code.as_str(), error.description);
    let granted = scopes(&client, Grant::AuthorizationCode, one("scope")?).map_err(refused)?;
    let audiences = server.audiences(&client, parameters).map_err(refused)?;
    Ok(Asked {
        client: client.id.clone(),
        redirect_uri_given: given.is_some(),
        scopes: granted.into_iter().map(str::to_owned).collect(),
        audiences,
        nonce: one("nonce")?.map(str::to_owned),
        challenge,
        language,
        state,
        redirect_uri,
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

/// The client's address with an answer, with the state as it came and our name (RFC 9207).
fn answer_url(server: &Server, to: &Back, answer: &[(&str, &str)]) -> Option<Url> {
    // The address was checked with the settings; what was registered is kept as it is.
    let mut url = Url::parse(&to.redirect_uri).ok()?;
    {
        let mut query = url.query_pairs_mut();
        query.extend_pairs(answer);
        if let Some(state) = &to.state {
            query.append_pair("state", state);
        }
        query.append_pair("iss", &server.settings().issuer_text);
    }
    Some(url)
}

/// Sends the person back to the client.
fn back(server: &Server, to: &Back, answer: &[(&str, &str)]) -> Response {
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    let location = answer_url(server, to, answer).and_then(|url| HeaderValue::from_str(url.as_str()).ok());
    if let Some(location) = location {
        headers.insert(LOCATION, location);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
