//! `rest`: messages as HTTP requests, by a map from message type to request (CONTRACT §2.3). The reply's
//! status is the code that the reply actions judge; its body becomes a record where the request declares
//! the type of its reply.
//!
//! [`request`] makes the request, [`crate::http_reply`] reads the answer; both are pure.

mod request;
#[cfg(test)]
mod tests;

use reqwest::header::HeaderName;
use reqwest::{Method, Request};
use schemars::JsonSchema;
use septet_engine::config::build::{At, Build};
use septet_engine::config::settings::ClientTls;
use septet_engine::config::units::Ordered;
use septet_engine::host::{OperationContext, OperationError, Outcome};
use septet_engine::registry::{Built, ItemClass, ItemKind};
use septet_engine::reply::Family;
use septet_engine::token::{AccessToken, Placement};
use serde::Deserialize;

use crate::http_client::{PeerPlan, Reply, Secrets};
use crate::http_operation::{Dialogue, built};
use crate::http_reply;
use crate::http_settings::{check_clear_text, check_peer};
use crate::http_template::{Known, check_headers, check_template, has_credential, has_secret};
use crate::message_map::{MessageMap, check_reply};
use crate::oauth_use::OauthUse;
use crate::template::Template;

/// The class.
pub const CLASS: ItemClass = ItemClass {
    type_name: "rest",
    kind: ItemKind::Operation,
    summary: "Sends messages as HTTP requests to a REST API, with OAuth tokens where the API wants them.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// Messages as HTTP requests.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The URL before every request's `path`; the two are concatenated.
    url: String,
    /// The OAuth client whose token goes with every request: its name, or `{ client, placement }` with
    /// placement `header` (the default), `body` (a form field `access_token`) or `query`. `{field}` in the name
    /// takes it from the message: a token for each tenant.
    oauth: Option<OauthUse>,
    /// Message type → HTTP request. Message types of HL7 messages are written `"ORU^R01"`.
    requests: Ordered<RequestSettings>,
    /// Lets tokens and secrets go over plain http to other machines: for networks that are trusted.
    #[serde(default)]
    allow_plain_http: bool,
    /// Trust and client certificate.
    tls: Option<ClientTls>,
}

/// The HTTP request of one message type.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RequestSettings {
    /// `GET POST PUT PATCH DELETE HEAD`.
    #[serde(default = "post")]
    method: String,
    /// What follows `url`. `{name}` takes a field of the message, `{PID-3.1}` of an HL7 message, and
    /// `{id} {session} {control_id} {date} {time}` of its header.
    #[serde(default)]
    path: String,
    /// The message type of the reply; without it JSON replies have type `Json`.
    reply: Option<String>,
    /// `json` (the default of records), `form`, `raw` (the bytes as they are: the default of everything
    /// else) or `none` (the default of GET, HEAD and DELETE).
    body: Option<BodyKind>,
    /// Headers; templates like `path`. One that is a single absent field is left out.
    #[serde(default)]
    headers: Ordered<String>,
    /// Query parameters; templates like `path`. One that is a single absent field is left out.
    #[serde(default)]
    query: Ordered<String>,
}

fn post() -> String {
    "POST".to_owned()
}

/// What the request's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum BodyKind {
    /// The whole record as JSON.
    Json,
    /// The record's fields as `application/x-www-form-urlencoded`.
    Form,
    /// The bytes as they are.
    Raw,
    /// Nothing.
    None,
}

/// One entry of the message map, checked.
pub(crate) struct RequestPlan {
    method: Method,
    url: Template,
    body: Option<BodyKind>,
    headers: Vec<(HeaderName, Template)>,
    query: Vec<(String, Template)>,
    reply: Option<String>,
}

// === Checking ===

const METHODS: [Method; 6] =
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD];

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    let oauth = settings.oauth.as_ref();
    let peer = check_peer(build, &settings.url, oauth, settings.tls.as_ref());
    let mut secret = false;
    let requests = MessageMap::check(build, "a request", &settings.requests, |build, name, request| {
        secret |= has_secret(build, name) || has_credential(&request.headers);
        request_plan(build, &settings, name, request)
    });
    let (url, peer) = peer?;
    check_clear_text(build, &url, oauth, secret, settings.allow_plain_http);
    Some(built(build, oauth, Family::Http, Rest { requests: requests?, peer }))
}

fn request_plan(
    build: &mut Build<'_>,
    settings: &Settings,
    name: &str,
    request: &RequestSettings,
) -> Option<RequestPlan> {
    let at = [At::Key("requests"), At::Key(name)];
    let types = build.names.types.clone();
    let known = Known::of(build, &types, &at, name)?;
    let place = |key| [At::Key("requests"), At::Key(name), At::Key(key)];
    let mut whole = true;

    let method = METHODS.into_iter().find(|known| known.as_str() == request.method);
    if method.is_none() {
        let upper = request.method.to_ascii_uppercase();
        let meant = METHODS.iter().find(|known| known.as_str() == upper);
        let suggestion = meant.map(|known| format!("did you mean {known}?"));
        let text = "a method is one of GET, POST, PUT, PATCH, DELETE, HEAD";
        build.error("S0335", &place("method"), text, suggestion);
        whole = false;
    }
    let bodiless = matches!(method, Some(Method::GET | Method::HEAD | Method::DELETE));
    if bodiless && !matches!(request.body, None | Some(BodyKind::None)) {
        build.error("S0335", &place("body"), format!("{} has no body", request.method), None);
        whole = false;
    }
    let wrong_body = match (known, request.body) {
        (Known::Hl7, Some(BodyKind::Json | BodyKind::Form)) => Some("an HL7 message is sent as raw bytes"),
        (Known::Declared(_), Some(BodyKind::Raw)) => Some("a record is sent as json or form"),
        _ => None,
    };
    if let Some(text) = wrong_body {
        build.error("S0335", &place("body"), text, None);
        whole = false;
    }
    whole &= settings.oauth.as_ref().is_none_or(|oauth| oauth.fits(build, known));
    let placement = settings.oauth.as_ref().map(|oauth| oauth.placement(build.names));
    if placement == Some(Placement::Body) {
        let possible = !bodiless && !matches!(known, Known::Hl7) && request.body != Some(BodyKind::None);
        if !possible || matches!(request.body, Some(BodyKind::Json | BodyKind::Raw)) {
            let text = "placement = \"body\" sends a form, which this request cannot be";
            let suggestion = Some("use placement = \"header\"".to_owned());
            build.error("S0335", &place("body"), text, suggestion);
            whole = false;
        }
    }
    let reply = check_reply(build, name, request.reply.as_ref());

    let url = check_template(build, &place("path"), known, &format!("{}{}", settings.url, request.path));
    let at = [At::Key("requests"), At::Key(name), At::Key("headers")];
    let headers = check_headers(build, &at, known, placement, &request.headers);
    whole &= headers.is_some();
    let mut query = Vec::new();
    for (parameter, text) in request.query.iter() {
        let at = [At::Key("requests"), At::Key(name), At::Key("query"), At::Key(parameter)];
        match check_template(build, &at, known, text) {
            Some(template) => query.push((parameter.to_owned(), template)),
            None => whole = false,
        }
    }
    let (method, url, headers, reply) = (method?, url?, headers?, reply?);
    whole.then_some(RequestPlan { method, url, body: request.body, headers, query, reply })
}

// === Running ===

struct Rest {
    requests: MessageMap<RequestPlan>,
    peer: PeerPlan,
}

impl Dialogue for Rest {
    fn peer(&self) -> &PeerPlan {
        &self.peer
    }

    fn request(
        &self,
        cx: &OperationContext,
        form_token: Option<&AccessToken>,
        secrets: &mut Secrets,
    ) -> Result<Request, OperationError> {
        request::make(self.requests.plan(cx)?, cx, form_token, secrets)
    }

    fn outcome(&self, reply: Reply, cx: &OperationContext, peer: &str) -> Result<Outcome, OperationError> {
        Ok(http_reply::outcome(reply, self.requests.plan(cx)?.reply.as_deref(), cx, peer))
    }
}
