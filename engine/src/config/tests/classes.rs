//! Small classes that check their settings like real ones and run nothing.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use schemars::{JsonSchema, schema_for};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::config::build::{At, Build};
use crate::config::settings::{Secret, ServerTls};
use crate::config::units::{ByteSize, DurationText, Listen, MaybeNever, Ordered, Strings};
use crate::host::{
    BusinessOperation, BusinessService, HostFault, OperationContext, OperationError, OperationFactory,
    Outcome, Runtime, ServiceContext, ServiceFactory,
};
use crate::id::ItemName;
use crate::process::{BusinessProcess, Definition, Done, Job, Next};
use crate::registry::{Built, Factory, Facts, ItemClass, ItemKind, ProcessHost, Registry};
use crate::reply::Family;

/// All of them.
pub(super) fn registry() -> Registry {
    let class =
        |kind, type_name, schema, build| ItemClass { type_name, kind, summary: "For tests.", schema, build };
    Registry::of(vec![
        class(ItemKind::Service, "hl7.mllp", || schema_for!(Mllp), build_mllp),
        class(ItemKind::Service, "hl7.http", || schema_for!(Http), build_http),
        class(ItemKind::Process, "router", || schema_for!(Router), build_router),
        class(ItemKind::Process, "flow", || schema_for!(Flow), build_flow),
        class(ItemKind::Operation, "file", || schema_for!(File), build_file),
        class(ItemKind::Operation, "rest", || schema_for!(Rest), build_rest),
        class(ItemKind::Operation, "hl7.mllp", || schema_for!(Sender), build_sender),
        class(ItemKind::Operation, "hl7.http", || schema_for!(Poster), build_poster),
    ])
}

#[derive(Debug)]
struct Nothing;

#[async_trait]
impl BusinessService for Nothing {
    async fn bind(&mut self, _: &ServiceContext) -> Result<(), HostFault> {
        Ok(())
    }
    async fn run(self: Box<Self>, _: ServiceContext) -> Result<(), HostFault> {
        Ok(())
    }
}

impl ServiceFactory for Nothing {
    fn create(&self) -> Box<dyn BusinessService> {
        Box::new(Nothing)
    }
}

#[async_trait]
impl BusinessOperation for Nothing {
    async fn on_message(&mut self, _: &OperationContext) -> Result<Outcome, OperationError> {
        Ok(Outcome::Sent)
    }
}

impl OperationFactory for Nothing {
    fn create(&self, _: &Runtime, _: &ItemName) -> Box<dyn BusinessOperation> {
        Box::new(Nothing)
    }
}

impl BusinessProcess for Nothing {
    fn handle(&self, _: &Job) -> Done {
        Done { effects: Vec::new(), next: Next::Complete, state: None }
    }
}

fn service(facts: Facts) -> Option<Built> {
    Some(Built { factory: Factory::Service(Arc::new(Nothing)), facts })
}

fn operation(facts: Facts) -> Option<Built> {
    Some(Built { factory: Factory::Operation(Arc::new(Nothing)), facts })
}

fn process(facts: Facts) -> Option<Built> {
    let definition = Arc::new(Definition { hash: "".into(), bytes: Bytes::new() });
    Some(Built { factory: Factory::Process(ProcessHost::Inline(Arc::new(Nothing), definition)), facts })
}

#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum AckMode {
    /// At once.
    Immediate,
    /// After the reply.
    Application,
    /// As MSH-15 says.
    Msh,
    /// Not at all.
    Never,
}

/// An MLLP service.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only read from the file")]
struct Mllp {
    /// Where it listens.
    listen: Listen,
    /// When it acknowledges.
    #[serde(default = "immediate")]
    ack: AckMode,
    /// First byte to end of frame.
    #[serde(default = "thirty_seconds")]
    frame_timeout: DurationText,
    /// Closes idle connections.
    #[serde(default)]
    idle_timeout: MaybeNever,
    /// Larger messages are refused.
    #[serde(default = "max_message")]
    max_message: ByteSize,
    /// How many connections there may be.
    #[serde(default)]
    max_connections: Option<u16>,
    /// TLS.
    #[serde(default)]
    tls: Option<ServerTls>,
}

fn immediate() -> AckMode {
    AckMode::Immediate
}
fn thirty_seconds() -> DurationText {
    DurationText::secs(30)
}
fn max_message() -> ByteSize {
    ByteSize::mib(64)
}

fn build_mllp(build: &mut Build<'_>) -> Option<Built> {
    let settings: Mllp = build.settings()?;
    let needs_reply = settings.ack == AckMode::Application;
    service(Facts { listens: vec![(settings.listen.get(), None)], needs_reply, ..Facts::default() })
}

/// An HTTP service.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Http {
    /// Where it listens.
    listen: Listen,
    /// The path.
    #[serde(default)]
    path: String,
}

fn build_http(build: &mut Build<'_>) -> Option<Built> {
    let settings: Http = build.settings()?;
    service(Facts { listens: vec![(settings.listen.get(), Some(settings.path))], ..Facts::default() })
}

/// A router.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Router {
    /// Tried in order.
    #[serde(default)]
    rules: Vec<Rule>,
}

/// One rule.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only read from the file")]
struct Rule {
    /// For people.
    #[serde(default)]
    name: Option<String>,
    /// Values that must be there.
    #[serde(default)]
    when: Option<Ordered<Strings>>,
    /// A script.
    #[serde(default, rename = "if")]
    condition: Option<String>,
    /// Where to.
    send: Strings,
}

fn build_router(build: &mut Build<'_>) -> Option<Built> {
    let settings: Router = build.settings()?;
    let mut sends = Vec::new();
    for (rule, settings) in settings.rules.iter().enumerate() {
        for (at, target) in settings.send.0.iter().enumerate() {
            let at: [At<'_>; 4] = ["rules".into(), rule.into(), "send".into(), at.into()];
            sends.extend(build.target(&at, target));
        }
    }
    process(Facts { sends, ..Facts::default() })
}

/// A flow.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Flow {
    /// Steps.
    steps: Vec<Json>,
}

fn build_flow(build: &mut Build<'_>) -> Option<Built> {
    let settings: Flow = build.settings()?;
    let mut calls = Vec::new();
    for (index, step) in settings.steps.iter().enumerate() {
        if let Some(target) = step.get("call").and_then(Json::as_str) {
            calls.extend(build.target(&["steps".into(), index.into(), "call".into()], target));
        }
        // A script engine that knows only one mistake.
        let key = "if";
        if let Some(at) = step.get(key).and_then(Json::as_str).and_then(|code| code.find("=====")) {
            let span = build.within(&["steps".into(), index.into(), key.into()], 1, at + 1);
            let severity = crate::config::diagnostic::Severity::Error;
            build.report(severity, "S0220", span, "unexpected token", None);
        }
    }
    let waits = settings.steps.iter().any(|step| step.get("delay").is_some());
    process(Facts { calls, waits, ..Facts::default() })
}

/// Writes files.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only read from the file")]
struct File {
    /// Where.
    path: String,
}

fn build_file(build: &mut Build<'_>) -> Option<Built> {
    build.settings::<File>()?;
    operation(Facts { replies: Some(Family::Plain), ..Facts::default() })
}

/// Calls an API.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only read from the file")]
struct Rest {
    /// Base URL.
    url: String,
    /// The client, or `{ client, placement }`.
    #[serde(default)]
    oauth: Option<Json>,
    /// Headers.
    #[serde(default)]
    headers: std::collections::BTreeMap<String, Secret>,
    /// Message map.
    #[serde(default)]
    requests: Ordered<Request>,
}

/// One request.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only read from the file")]
struct Request {
    /// HTTP method.
    method: Method,
    /// Below the URL.
    path: String,
    /// The reply's type.
    #[serde(default)]
    reply: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Method {
    Get,
    Post,
    Put,
}

fn build_rest(build: &mut Build<'_>) -> Option<Built> {
    let settings: Rest = build.settings()?;
    for (name, request) in settings.requests.iter() {
        build.message_type(&["requests".into(), name.into()], name);
        if let Some(reply) = &request.reply {
            build.message_type(&["requests".into(), name.into(), "reply".into()], reply);
        }
    }
    let oauth: Vec<String> = settings.oauth.iter().filter_map(Json::as_str).map(str::to_owned).collect();
    for client in &oauth {
        build.oauth_client(&["oauth".into()], client);
    }
    operation(Facts { replies: Some(Family::Http), oauth, ..Facts::default() })
}

/// Sends over MLLP.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only read from the file")]
struct Sender {
    /// The peer.
    connect: crate::config::units::HostPort,
}

fn build_sender(build: &mut Build<'_>) -> Option<Built> {
    build.settings::<Sender>()?;
    operation(Facts { replies: Some(Family::Hl7), ..Facts::default() })
}

/// Posts HL7.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only read from the file")]
struct Poster {
    /// The peer.
    url: String,
    /// The client.
    #[serde(default)]
    oauth: Option<String>,
}

fn build_poster(build: &mut Build<'_>) -> Option<Built> {
    let settings: Poster = build.settings()?;
    operation(Facts {
        oauth: settings.oauth.into_iter().collect(),
        replies: Some(Family::Hl7),
        ..Facts::default()
    })
}
