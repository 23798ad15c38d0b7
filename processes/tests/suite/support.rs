//! A bench for processes: loads a production, runs jobs on lanes (or inline), shows outcomes as text.
//!
//! Every job runs twice, on two lanes, and both outcomes must be the same: a job may run again after a crash.
//! A waiting instance is carried over on a *new* lane, so that nothing but its bytes survives.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use septet_engine::body::Body;
use septet_engine::config::build::Build;
use septet_engine::config::env::Env;
use septet_engine::config::load::{Loaded, load_text};
use septet_engine::fault::Fault;
use septet_engine::header::{Header, Kind, ReplyTo, Status};
use septet_engine::host::{
    BusinessOperation, OperationContext, OperationError, OperationFactory, Outcome, Runtime,
};
use septet_engine::id::{BodyId, ItemName, MessageId, SessionId};
use septet_engine::process::{Definition, Done, Effect, Input, Job, LaneServices, Next, Outgoing};
use septet_engine::record::{MessageTypes, Record, Undeclared};
use septet_engine::registry::{Built, Factory, Facts, ItemClass, ItemKind, ProcessHost, Registry};
use septet_engine::reply::Family;
use septet_engine::vault::Vault;
use septet_hl7::Message;
use septet_processes::{CLASSES, check_transform, lane_factory};
use serde::Deserialize;
use serde_json::Value as Json;

pub(crate) const ORU: &str = "MSH|^~\\&|LAB|HOSP|EHR|HOSP|20260314120000||ORU^R01|C1|P|2.5.1\r\
PID|1||4711^^^HOSP^MR||Müller^Anna||19700101|F\r\
OBR|1||A-1^LAB|718-7\r\
OBX|1|NM|718-7^Hb||13.5|g/dL\r\
OBX|2|NM|4544-3^Hct||41|%\r";

// === Registry ===

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Debug)]
struct NoHost;

#[async_trait]
impl BusinessOperation for NoHost {
    async fn on_message(&mut self, _: &OperationContext) -> Result<Outcome, OperationError> {
        Ok(Outcome::Sent)
    }
}

impl OperationFactory for NoHost {
    fn create(&self, _: &Runtime, _: &ItemName) -> Box<dyn BusinessOperation> {
        Box::new(NoHost)
    }
}

fn build_out(build: &mut Build<'_>) -> Option<Built> {
    let _: Nothing = build.settings()?;
    let facts = Facts { replies: Some(Family::Plain), ..Facts::default() };
    Some(Built { factory: Factory::Operation(Arc::new(NoHost)), facts })
}

pub(crate) fn registry() -> Registry {
    let out = ItemClass {
        type_name: "out",
        kind: ItemKind::Operation,
        summary: "For tests.",
        schema: || schemars::schema_for!(Nothing),
        build: build_out,
    };
    let items = CLASSES.iter().copied().chain([out]).collect();
    Registry { items, check_transform, lanes: lane_factory(), ..Registry::of(Vec::new()) }
}

pub(crate) fn load(text: &str) -> Loaded {
    load_text(text, Path::new("/p"), &registry(), &Env::empty())
}

/// The problems of a production, one a line: `line:column severity code text (suggestion)`.
pub(crate) fn problems(text: &str) -> String {
    let loaded = load(text);
    let mut out = String::new();
    for diagnostic in &loaded.diagnostics {
        if diagnostic.severity == septet_engine::config::diagnostic::Severity::Warning {
            continue;
        }
        let _ =
            write!(out, "{}:{} {} {}", diagnostic.line, diagnostic.column, diagnostic.code, diagnostic.text);
        if let Some(suggestion) = &diagnostic.suggestion {
            let _ = write!(out, " ({suggestion})");
        }
        out.push('\n');
    }
    out
}

// === Bench ===

/// Text around the processes of a test: operations `vendor`, `archive`, `other`.
pub(crate) const REST: &str = "
[production]
name = \"test\"
timezone = \"Europe/Berlin\"
[store]
retention = \"1d\"
[operations.vendor]
type = \"out\"
[operations.archive]
type = \"out\"
[operations.other]
type = \"out\"
";

/// One process with its state, and at most one instance.
pub(crate) struct Bench {
    host: ProcessHost,
    types: MessageTypes,
    services: LaneServices,
    pub(crate) facts: Facts,
    pub(crate) state: Option<Bytes>,
    pub(crate) instance: Option<Bytes>,
    pub(crate) request: Option<Body>,
    pub(crate) wants_reply: bool,
    pub(crate) now: Timestamp,
    pub(crate) id: u64,
    pub(crate) item: ItemName,
}

impl Bench {
    /// The process `p` of a production.
    pub(crate) fn new(text: &str) -> Self {
        Self::of(&format!("{text}{REST}"), "p")
    }

    /// A process of a whole production.
    pub(crate) fn of(text: &str, item: &str) -> Self {
        let loaded = load(text);
        let Some(plan) = loaded.plan else { panic!("{:#?}", loaded.diagnostics) };
        let item = plan.item(&item.into()).unwrap();
        let Factory::Process(host) = &item.built.factory else { panic!("no process") };
        Bench {
            host: host.clone(),
            types: plan.types.clone(),
            services: LaneServices {
                vault: Vault::ephemeral().unwrap(),
                timezone: plan.production.timezone.clone(),
            },
            facts: item.built.facts.clone(),
            state: None,
            instance: None,
            request: None,
            wants_reply: false,
            now: "2026-03-14T12:00:00Z".parse().unwrap(),
            id: 7,
            item: item.name.clone(),
        }
    }

    pub(crate) fn is_inline(&self) -> bool {
        matches!(self.host, ProcessHost::Inline(..))
    }

    /// Whether an inline host can go on with an instance of another definition.
    pub(crate) fn knows(&self, definition: &Definition) -> bool {
        match &self.host {
            ProcessHost::Inline(process, _) => process.knows(definition),
            ProcessHost::Lane(_) => true,
        }
    }

    pub(crate) fn definition(&self) -> Arc<Definition> {
        match &self.host {
            ProcessHost::Inline(_, definition) | ProcessHost::Lane(definition) => definition.clone(),
        }
    }

    /// Takes the definition of another bench: a reload. The instance keeps its own if it waits.
    pub(crate) fn job(&self, input: Input) -> Job {
        Job {
            item: self.item.clone(),
            definition: self.definition(),
            input,
            request: header(self.id, self.request.as_ref()),
            request_body: self.request.clone(),
            instance: self.instance.clone(),
            state: self.state.clone(),
            wants_reply: self.wants_reply,
            now: self.now,
        }
    }

    /// Runs jobs as one batch.
    pub(crate) fn batch(&self, jobs: Vec<Job>) -> Vec<Done> {
        match &self.host {
            ProcessHost::Inline(process, _) => jobs.iter().map(|job| process.handle(job)).collect(),
            ProcessHost::Lane(_) => {
                let mut lane = lane_factory()(self.services.clone());
                let mut all = Vec::new();
                lane.run(jobs, &mut |done| all.push(done));
                all
            }
        }
    }

    /// Runs one job, twice, and takes its outcome over.
    pub(crate) fn step(&mut self, input: Input) -> String {
        let job = self.job(input);
        let [first, second] = [self.batch(vec![job.clone()]), self.batch(vec![job])];
        let (Some(done), Some(again)) = (first.into_iter().next(), second.into_iter().next()) else {
            panic!("no outcome")
        };
        let shown = show(&done);
        assert_eq!(shown, show(&again), "the same job gave another outcome");
        if let Some(state) = done.state {
            self.state = Some(state);
        }
        self.instance = match done.next {
            Next::Wait { instance } => Some(instance),
            _ => None,
        };
        shown
    }

    pub(crate) fn hl7(&mut self, text: &str) -> String {
        self.request = Some(Body::hl7(Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()));
        self.step(Input::Request)
    }

    pub(crate) fn json(&mut self, fields: Json) -> String {
        self.request = Some(Body::record(Record::untyped("Json", fields)));
        self.step(Input::Request)
    }

    pub(crate) fn text(&mut self, text: &str) -> String {
        self.request = Some(Body::text("Text", text.into()));
        self.step(Input::Request)
    }

    /// A record of a declared type as a peer's reply.
    pub(crate) fn reply(&mut self, call: u64, type_name: &str, fields: Json) -> String {
        let vault = &self.services.vault;
        let record = if self.types.get(type_name).is_some() {
            self.types.create(type_name, fields, Undeclared::Ignore, vault).unwrap()
        } else {
            Record::untyped(type_name, fields)
        };
        self.answer(call, Some(Body::record(record)), None)
    }

    pub(crate) fn answer(&mut self, call: u64, body: Option<Body>, fault: Option<Fault>) -> String {
        let header = body.as_ref().map(|body| {
            let mut header = header(100 + call, Some(body));
            header.kind = Kind::Response;
            header
        });
        self.step(Input::Response { call, header, body, fault })
    }

    pub(crate) fn fault(&mut self, call: u64, name: &str, code: &str) -> String {
        self.answer(call, None, Some(Fault::new(name, code, "the peer refused").with_detail("foreign words")))
    }

    pub(crate) fn timer(&mut self, timer: u64) -> String {
        self.step(Input::Timer { timer })
    }

    pub(crate) fn state(&self) -> String {
        self.state.as_ref().map_or("none".into(), |state| masked(std::str::from_utf8(state).unwrap()))
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.services.vault
    }
}

pub(crate) fn header(id: u64, body: Option<&Body>) -> Header {
    Header {
        id: MessageId(id),
        session: SessionId(id),
        kind: Kind::Request,
        request_id: None,
        caused_by: None,
        resent_from: None,
        source: "lis".into(),
        target: Some("p".into()),
        type_name: body.map_or("", Body::type_name).into(),
        control_id: "C1".into(),
        status: Status::Delivered,
        error: None,
        attempts: 1,
        created: "2026-03-14T11:59:59Z".parse().unwrap(),
        processed: None,
        body_id: body.map(|_| BodyId(id)),
        size: body.map_or(0, |body| body.size() as u64),
        keys: Arc::from([]),
        reply_to: ReplyTo::Nobody,
        position: id,
        order_keys: Arc::from([]),
        next_attempt: None,
        failing_since: None,
        unsolicited: false,
    }
}

// === Showing ===

/// An outcome, one effect a line.
pub(crate) fn show(done: &Done) -> String {
    let mut out = String::new();
    for effect in &done.effects {
        let line = match effect {
            Effect::Send { target, body } => format!("send {target} {}", outgoing(body)),
            Effect::Call { call, target, body } => format!("call {call} {target} {}", outgoing(body)),
            Effect::CancelCall { call, leave } => {
                format!("cancel call {call}{}", if *leave { ", leave" } else { "" })
            }
            Effect::Timer { timer, at } => format!("timer {timer} at {at}"),
            Effect::CancelTimer { timer } => format!("cancel timer {timer}"),
            Effect::Reply { body, fault } => {
                let body = body.as_ref().map_or("nothing".into(), outgoing);
                format!(
                    "reply {body}{}",
                    fault.as_ref().map_or(String::new(), |f| format!(" with {}", fault_text(f)))
                )
            }
            Effect::Alert { template, filled } => format!("alert {template} | {filled}"),
            Effect::Event(event) => {
                let detail = event.detail.as_ref().map_or(String::new(), |detail| format!(" | {}", detail.0));
                format!("event {} {}{detail}", event.kind, event.text)
            }
        };
        out.push_str(&line);
        out.push('\n');
    }
    match &done.next {
        Next::Complete => out.push_str("complete"),
        Next::Fail(fault) => out.push_str(&format!("fail {}", fault_text(fault))),
        Next::Suspend(fault) => out.push_str(&format!("suspend {}", fault_text(fault))),
        Next::Wait { .. } => out.push_str("wait"),
    }
    out
}

fn fault_text(fault: &Fault) -> String {
    let detail = fault.detail.as_ref().map_or(String::new(), |detail| format!(" | {}", detail.0));
    format!("[{}] {fault}{detail}", fault.name)
}

fn outgoing(body: &Outgoing) -> String {
    match body {
        Outgoing::Request => "the request".into(),
        Outgoing::Stored(id) => format!("body {id}"),
        Outgoing::New(body) => match body.as_record() {
            Some(record) => format!("{} {}", body.type_name(), record.masked()),
            None => format!("{} {}", body.type_name(), body.as_text().unwrap_or("?").replace('\r', "⏎")),
        },
    }
}

/// JSON text with sealed values masked.
pub(crate) fn masked(text: &str) -> String {
    Record::untyped("Json", serde_json::from_str(text).unwrap()).masked().to_string()
}
