//! `type = "hl7.http"`: receives HL7 messages as HTTP requests and answers with the acknowledgement
//! (CONTRACT §2.1, §2.3): 200 for AA and CA, 400 for AR and CR, 500 for AE and CE, 503 when nothing can be
//! stored, always with the ack as body; 202 without a body for messages that are not answered.
//!
//! What is true for every HL7 service is in [`crate::hl7_common`], the listener in [`crate::listeners`].

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use schemars::JsonSchema;
use septet_engine::body::HL7;
use septet_engine::config::build::Build;
use septet_engine::config::settings::ServerTls;
use septet_engine::config::units::{ByteSize, DurationText, Listen, MaybeNever};
use septet_engine::host::{BusinessService, HostFault, ServiceContext, ServiceFactory};
use septet_engine::registry::{Built, Factory, ItemClass, ItemKind};
use septet_hl7::ack::{AckCode, recover_header};
use septet_oauth::Auth;
use serde::Deserialize;

use crate::auth::{self, Guard};
use crate::bodies::{Unread, closing, discard, read_body, unreadable};
use crate::defaults::{a_day, auto, half_a_minute, max_connections, max_message, root};
use crate::endpoint::{Endpoint, Place};
use crate::heads::{media_type, parent_session};
use crate::hl7_common::{
    AckMode, Answer, Arrival, BatchMode, DuplicatePolicy, Handled, Policy, Receiver, Validate,
    WhenUnavailable, Written,
};
use crate::listeners::{Limits, Mount};
use crate::problem::{not_allowed, problem, unavailable};

/// The class, for the table.
pub const CLASS: ItemClass = ItemClass {
    type_name: "hl7.http",
    kind: ItemKind::Service,
    summary: "Receives HL7 messages over HTTP and answers each with its acknowledgement.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// Settings of an `hl7.http` service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Address and port to listen on. Services with the same `listen` share one listener where their paths
    /// differ.
    listen: Listen,
    /// The path that is served, with everything below it; the longest path wins.
    #[serde(default = "root")]
    path: String,
    /// When a message is answered: once stored (`immediate`), after the target's reply (`application`), as
    /// MSH-15 and MSH-16 ask (`msh`), or not at all (`never`). Messages whose MSH-9.1 is ACK or MCF are stored
    /// and routed, never answered. Not answered means 202 without a body.
    #[serde(default)]
    ack: AckMode,
    /// How long `application` waits for the reply; then the answer is AE, and the message goes on.
    #[serde(default = "half_a_minute")]
    reply_timeout: DurationText,
    /// What happens to a message that has been here before: `accept` it as a new one, `answer_again` without
    /// processing it again (the default for `application`), or `refuse` it.
    #[serde(default)]
    duplicates: Option<DuplicatePolicy>,
    /// How long a message is remembered; at most the newest 1,000,000 are.
    #[serde(default = "a_day")]
    duplicate_window: DurationText,
    /// While the store takes no messages: answer 503 without reading what comes (`pause`), or read each message
    /// and answer it with AR and 503 (`answer`).
    #[serde(default)]
    when_unavailable: WhenUnavailable,
    /// What a message must have: a readable MSH (`none`), or also MSH-9 and MSH-10 (`header`).
    #[serde(default)]
    validate: Validate,
    /// How the messages of a batch belong together; a batch is answered by one body.
    #[serde(default)]
    batch: BatchMode,
    /// Larger messages are answered AR with 413.
    #[serde(default = "max_message")]
    max_message: ByteSize,
    /// Connections beyond this number are closed at once.
    #[serde(default = "max_connections")]
    max_connections: u32,
    /// The longest time that the body of a request may take; then it is stored as rejected, answered AE where
    /// its header is readable, and the connection is closed.
    #[serde(default = "half_a_minute")]
    frame_timeout: DurationText,
    /// Connections on which no request comes for this long are closed. Of services that share a listener the
    /// longest time counts; that of `http` is 30 seconds.
    #[serde(default)]
    idle_timeout: MaybeNever,
    /// The charset of messages whose MSH-18 is empty: a name of HL7 Table 0211, or `auto`: UTF-8 where the bytes
    /// are, else windows-1252.
    #[serde(default = "auto")]
    charset: String,
    /// The bearer tokens that callers must show.
    auth: Option<Auth>,
    /// Certificate and key of the listener.
    tls: Option<ServerTls>,
}

impl Settings {
    fn endpoint(&self) -> Endpoint {
        Endpoint {
            listen: self.listen,
            path: self.path.clone(),
            max_message: self.max_message,
            limits: Limits { max_connections: self.max_connections, idle: self.idle_timeout.get() },
            patience: self.frame_timeout.get(),
            auth: self.auth.clone(),
            tls: self.tls.clone(),
        }
    }

    fn written(&self) -> Written<'_> {
        Written {
            ack: self.ack,
            reply_timeout: self.reply_timeout,
            duplicates: self.duplicates,
            duplicate_window: self.duplicate_window,
            validate: self.validate,
            batch: self.batch,
            charset: &self.charset,
            max_message: self.max_message,
        }
    }
}

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    let policy = settings.written().check(build);
    let endpoint = settings.endpoint();
    if !endpoint.check(build, "frame_timeout", false) {
        return None;
    }
    let facts = endpoint.facts(settings.ack == AckMode::Application);
    let factory = Hl7HttpFactory { policy: policy?, endpoint, settings: Arc::new(settings) };
    Some(Built { factory: Factory::Service(Arc::new(factory)), facts })
}

// === Running ===

#[derive(Clone, Debug)]
struct Hl7HttpFactory {
    settings: Arc<Settings>,
    endpoint: Endpoint,
    policy: Policy,
}

impl ServiceFactory for Hl7HttpFactory {
    fn create(&self) -> Box<dyn BusinessService> {
        Box::new(Hl7HttpService { plan: self.clone(), place: Place::default() })
    }
}

struct Hl7HttpService {
    plan: Hl7HttpFactory,
    place: Place,
}

#[async_trait]
impl BusinessService for Hl7HttpService {
    async fn bind(&mut self, cx: &ServiceContext) -> Result<(), HostFault> {
        self.place.bind(&self.plan.endpoint, cx)
    }

    async fn run(mut self: Box<Self>, cx: ServiceContext) -> Result<(), HostFault> {
        let Hl7HttpFactory { settings, endpoint, policy } = self.plan;
        let receiver = Receiver::new(cx.clone(), policy);
        let mount = Hl7Mount { settings, receiver, guard: endpoint.guard(&cx) };
        self.place.serve(&endpoint, Arc::new(mount), &cx).await
    }
}

struct Hl7Mount {
    settings: Arc<Settings>,
    receiver: Receiver,
    guard: Option<Guard>,
}

#[async_trait]
impl Mount for Hl7Mount {
    async fn handle(&self, request: Request<Body>) -> Response {
        match self.answer(request).await {
            Ok(response) => response,
            Err(refusal) => *refusal,
        }
    }
}

impl Hl7Mount {
    /// The answer; the error is an answer, too.
    async fn answer(&self, request: Request<Body>) -> Result<Response, Box<Response>> {
        let (settings, cx) = (&*self.settings, self.receiver.context());
        let (parts, body) = request.into_parts();
        if let Err(refusal) = self.admit(&parts).await {
            discard(&parts.headers, body, &cx.runtime.clock).await;
            return Err(refusal);
        }
        let (limit, timeout) = (settings.max_message.get(), settings.frame_timeout.get());
        let bytes = match read_body(&parts.headers, body, limit, timeout, &cx.runtime.clock).await {
            Ok(bytes) => bytes,
            Err(Unread::TooLarge(head)) => {
                let answer = self.receiver.too_large(&head);
                let refused = || problem(StatusCode::PAYLOAD_TOO_LARGE, "the message is too large", None);
                let response = answer.map(|answer| with_status(StatusCode::PAYLOAD_TOO_LARGE, answer));
                return Err(Box::new(closing(response.unwrap_or_else(refused))));
            }
            Err(Unread::Timeout(bytes)) if !bytes.is_empty() => {
                return Ok(closing(self.unfinished(bytes).await));
            }
            Err(unread) => return Err(Box::new(unreadable(unread, limit, cx))),
        };
        if !is_hl7(&parts.headers) && recover_header(&bytes).is_none() {
            let text = "the content type is none of HL7 messages: send application/hl7-v2";
            return Err(Box::new(problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, text, None)));
        }
        let mut arrival = Arrival::new(bytes);
        arrival.parent_session = parent_session(&parts.headers);
        Ok(match self.receiver.handle(arrival).await {
            Handled::Answer(answer) => with_status(status(answer.code), answer),
            Handled::Silent => silent(),
            Handled::Unavailable(answer) => {
                let mut response = match answer {
                    Some(answer) => with_status(StatusCode::SERVICE_UNAVAILABLE, answer),
                    None => unavailable("messages cannot be stored now"),
                };
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
                response
            }
            Handled::Unknown => unavailable("the message is not on stable storage yet: send it again"),
        })
    }

    /// What is decided before the body is read.
    async fn admit(&self, parts: &Parts) -> Result<(), Box<Response>> {
        if parts.method != Method::POST {
            return Err(Box::new(not_allowed(&[Method::POST])));
        }
        if let Some(guard) = &self.guard {
            let token = parts.uri.query().and_then(auth::parameter);
            guard.admit(parts, token.as_ref().map(|token| token.as_str())).await?;
        }
        let pause = self.settings.when_unavailable == WhenUnavailable::Pause;
        if pause && !self.receiver.context().intake.accepting() {
            return Err(Box::new(closing(unavailable("messages cannot be stored now"))));
        }
        Ok(())
    }

    /// A body that did not come in time is stored as a rejected message.
    async fn unfinished(&self, bytes: Bytes) -> Response {
        let mut taken = self.receiver.take_unfinished(bytes, "the body did not come in time").await;
        let receipt = match taken.pending() {
            Some(pending) => pending.durable().await.ok(),
            None => None,
        };
        match taken.first(receipt.as_ref()) {
            Some(answer) => with_status(status(answer.code), answer),
            None => problem(StatusCode::REQUEST_TIMEOUT, "the body did not come in time", None),
        }
    }
}

/// The content types that HL7 messages come with; none at all is as good.
fn is_hl7(headers: &HeaderMap) -> bool {
    let (media, _) = media_type(headers);
    matches!(media.as_str(), "" | HL7 | "x-application/hl7-v2+er7" | "text/plain")
}

fn status(code: AckCode) -> StatusCode {
    match code {
        AckCode::AA | AckCode::CA => StatusCode::OK,
        AckCode::AR | AckCode::CR => StatusCode::BAD_REQUEST,
        AckCode::AE | AckCode::CE => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn with_status(status: StatusCode, answer: Answer) -> Response {
    let mut response = Response::new(Body::from(answer.bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(HL7));
    response
}

/// It was taken and asks for no acknowledgement.
fn silent() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}
