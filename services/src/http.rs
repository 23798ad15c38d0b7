//! `type = "http"`: receives HTTP requests as messages (CONTRACT §2.1). A request is a record of `message`,
//! else of type `Json` or `Text`; the answer is 202 once the message is on stable storage, or with
//! `reply = "wait"` what the target replies.
//!
//! `inbound` makes the message, `respond` the answer; both are pure. The listener is in
//! [`crate::listeners`], bearer tokens in `auth`.

mod inbound;
mod respond;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode};
use schemars::JsonSchema;
use septet_engine::config::build::{At, Build};
use septet_engine::config::settings::ServerTls;
use septet_engine::config::units::{ByteSize, DurationText, Listen, Strings};
use septet_engine::fault::Fault;
use septet_engine::host::{BusinessService, HostFault, Inbound, ServiceContext, ServiceFactory};
use septet_engine::registry::{Built, Factory, ItemClass, ItemKind};
use septet_oauth::Auth;
use serde::Deserialize;

use crate::auth::{self, Guard};
use crate::bodies::{discard, read_body, unreadable};
use crate::defaults::{half_a_minute, max_connections, max_message, root};
use crate::endpoint::{Endpoint, Place};
use crate::heads::{media_type, parent_session};
use crate::listeners::{Limits, Mount};
use crate::problem::{not_allowed, problem, unavailable};

/// The class, for the table.
pub const CLASS: ItemClass = ItemClass {
    type_name: "http",
    kind: ItemKind::Service,
    summary: "Receives HTTP requests as messages and answers at once or with the target's reply.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// How long an answer may wait for the store; then the client must ask again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Settings of an `http` service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Address and port to listen on. Services with the same `listen` share one listener where their paths
    /// differ.
    listen: Listen,
    /// The path that is served, with everything below it; the longest path wins.
    #[serde(default = "root")]
    path: String,
    /// The methods that are served: `GET POST PUT PATCH DELETE`.
    #[serde(default = "post")]
    methods: Strings,
    /// The message type of requests; what does not fit it is answered 400 and stored as rejected. Without it
    /// requests have type `Json` or `Text`.
    message: Option<String>,
    /// `accepted` answers 202 with the session once the message is on stable storage, `wait` answers with
    /// the target's reply.
    #[serde(default)]
    reply: ReplyMode,
    /// How long `wait` waits; then the answer is 504 with the session, and the work goes on.
    #[serde(default = "half_a_minute")]
    reply_timeout: DurationText,
    /// How long the body of a request may take.
    #[serde(default = "half_a_minute")]
    request_timeout: DurationText,
    /// Larger requests are answered 413.
    #[serde(default = "max_message")]
    max_message: ByteSize,
    /// Connections beyond this number are closed at once.
    #[serde(default = "max_connections")]
    max_connections: u32,
    /// The bearer tokens that callers must show.
    auth: Option<Auth>,
    /// Certificate and key of the listener.
    tls: Option<ServerTls>,
}

/// When a request is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ReplyMode {
    /// Once it is on stable storage.
    #[default]
    Accepted,
    /// With the target's reply.
    Wait,
}

fn post() -> Strings {
    Strings(vec!["POST".to_owned()])
}

impl Settings {
    fn endpoint(&self) -> Endpoint {
        Endpoint {
            listen: self.listen,
            path: self.path.clone(),
            max_message: self.max_message,
            limits: Limits::connections(self.max_connections),
            patience: self.request_timeout.get(),
            auth: self.auth.clone(),
            tls: self.tls.clone(),
        }
    }
}

// === Checking ===

const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    let endpoint = settings.endpoint();
    let mut right = endpoint.check(build, "request_timeout", true);
    let mut methods = Vec::new();
    for name in &settings.methods.0 {
        match METHODS.into_iter().find(|method| method.as_str() == name) {
            Some(method) => methods.push(method),
            None => {
                let upper = name.to_ascii_uppercase();
                let meant = METHODS.iter().find(|method| method.as_str() == upper);
                let suggestion = meant.map(|method| format!("did you mean {method}?"));
                build.error("S0342", &[At::Key("methods")], format!("{name} is not served"), suggestion);
                right = false;
            }
        }
    }
    if settings.methods.0.is_empty() {
        build.error("S0342", &[At::Key("methods")], "no method is served", None);
        right = false;
    }
    if let Some(message) = settings.message.as_deref().filter(|name| !matches!(*name, "Json" | "Text")) {
        right &= build.message_type(&[At::Key("message")], message);
    }
    if !right {
        return None;
    }
    let facts = endpoint.facts(settings.reply == ReplyMode::Wait);
    let plan = HttpPlan { settings, endpoint, methods };
    Some(Built { factory: Factory::Service(Arc::new(HttpFactory(Arc::new(plan)))), facts })
}

// === Running ===

#[derive(Debug)]
pub(crate) struct HttpPlan {
    settings: Settings,
    endpoint: Endpoint,
    methods: Vec<Method>,
}

#[derive(Debug)]
struct HttpFactory(Arc<HttpPlan>);

impl ServiceFactory for HttpFactory {
    fn create(&self) -> Box<dyn BusinessService> {
        Box::new(HttpService { plan: self.0.clone(), place: Place::default() })
    }
}

struct HttpService {
    plan: Arc<HttpPlan>,
    place: Place,
}

#[async_trait]
impl BusinessService for HttpService {
    async fn bind(&mut self, cx: &ServiceContext) -> Result<(), HostFault> {
        self.place.bind(&self.plan.endpoint, cx)
    }

    async fn run(mut self: Box<Self>, cx: ServiceContext) -> Result<(), HostFault> {
        let endpoint = &self.plan.endpoint;
        let mount = HttpMount { plan: self.plan.clone(), guard: endpoint.guard(&cx), cx: cx.clone() };
        self.place.serve(endpoint, Arc::new(mount), &cx).await
    }
}

struct HttpMount {
    plan: Arc<HttpPlan>,
    guard: Option<Guard>,
    cx: ServiceContext,
}

#[async_trait]
impl Mount for HttpMount {
    async fn handle(&self, request: Request<Body>) -> Response {
        match self.answer(request).await {
            Ok(response) => response,
            Err(refusal) => *refusal,
        }
    }
}

impl HttpMount {
    /// The answer; the error is an answer, too.
    async fn answer(&self, request: Request<Body>) -> Result<Response, Box<Response>> {
        let settings = &self.plan.settings;
        let clock = &self.cx.runtime.clock;
        let (parts, body) = request.into_parts();
        if !self.plan.methods.contains(&parts.method) {
            discard(&parts.headers, body, clock).await;
            return Err(Box::new(not_allowed(&self.plan.methods)));
        }
        let query_token = parts.uri.query().and_then(auth::parameter);
        let header_token = parts.headers.contains_key(AUTHORIZATION);
        // A form may hold the token: only then is the body of a stranger read.
        let token_in_body = is_form(&parts.headers) && query_token.is_none() && !header_token;
        if let Some(guard) = self.guard.as_ref().filter(|_| !token_in_body) {
            let token = query_token.as_ref().map(|token| token.as_str());
            if let Err(refusal) = guard.admit(&parts, token).await {
                discard(&parts.headers, body, clock).await;
                return Err(refusal);
            }
        }
        let (limit, timeout) = (settings.max_message.get(), self.plan.endpoint.patience);
        let bytes = read_body(&parts.headers, body, limit, timeout, clock).await;
        let bytes = bytes.map_err(|unread| Box::new(unreadable(unread, limit, &self.cx)))?;
        if let Some(guard) = self.guard.as_ref().filter(|_| token_in_body) {
            let token = std::str::from_utf8(&bytes).ok().and_then(auth::parameter);
            guard.admit(&parts, token.as_ref().map(|token| token.as_str())).await?;
        }
        self.take(&parts, bytes).await
    }

    async fn take(&self, parts: &Parts, bytes: Bytes) -> Result<Response, Box<Response>> {
        let settings = &self.plan.settings;
        let runtime = &self.cx.runtime;
        let made = inbound::body(parts, bytes, settings.message.as_deref(), &runtime.types, &runtime.vault);
        let (body, misfit) = match made {
            Ok(body) => (body, None),
            Err(misfit) => (misfit.kept, Some(misfit.text)),
        };
        let mut inbound = Inbound::new(body);
        inbound.parent_session = parent_session(&parts.headers);
        inbound.wants_reply = misfit.is_none() && settings.reply == ReplyMode::Wait;
        inbound.reject = misfit.as_deref().map(|text| Fault::new("message", "400", text));
        let stored = async {
            let accepted = self.cx.intake.receive(inbound).await;
            let accepted = accepted.map_err(|refused| Box::new(unavailable(&refused.to_string())))?;
            let durable = accepted.pending.durable().await;
            durable.map_err(|_| Box::new(unavailable("the message cannot be stored now")))?;
            Ok::<_, Box<Response>>(accepted)
        };
        let mut accepted = tokio::select! {
            stored = stored => stored?,
            () = runtime.clock.sleep(PATIENCE) => {
                return Err(Box::new(unavailable("the message is not on stable storage yet: send it again")));
            }
        };
        let session = accepted.session;
        if let Some(text) = misfit {
            return Err(Box::new(problem(StatusCode::BAD_REQUEST, &text, Some(session))));
        }
        Ok(match settings.reply {
            ReplyMode::Accepted => respond::accepted(session),
            ReplyMode::Wait => {
                let reply = accepted.pending.reply(settings.reply_timeout.get()).await;
                respond::reply(reply, session, &runtime.vault)
            }
        })
    }
}

fn is_form(headers: &HeaderMap) -> bool {
    media_type(headers).0 == "application/x-www-form-urlencoded"
}
