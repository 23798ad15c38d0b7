//! `septet test`: runs `tests.toml` beside a production, on a memory store with scripted ends. The production
//! is the real one, checked and run by the real Director; only its ends are replaced: services are fed by the
//! test, operations answer what the test says and remember what they were given.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use septet_engine::body::{Body, Format, HL7};
use septet_engine::clock::{Clock as _, SystemClock};
use septet_engine::config::plan::{ItemPlan, Plan};
use septet_engine::director::{Engine, Orphans, Parts};
use septet_engine::fault::Fault;
use septet_engine::header::{Header, Status};
use septet_engine::host::{
    BusinessOperation, BusinessService, HostFault, Inbound, OperationContext, OperationError,
    OperationFactory, Outcome, Runtime, ServiceContext, ServiceFactory,
};
use septet_engine::id::{ItemName, SessionId};
use septet_engine::record::{Record, Undeclared};
use septet_engine::registry::{Built, Factory, ItemKind};
use septet_engine::reply::Family;
use septet_engine::store::{MessageFilter, Store};
use septet_engine::token::NoTokens;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;

use crate::composition;
use crate::output::{error, line};

/// How long a session may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the tests beside productions.
#[derive(clap::Args, Debug)]
pub(crate) struct Test {
    /// Folders with production.toml and tests.toml, or .toml files.
    #[arg(required = true)]
    productions: Vec<PathBuf>,
    /// Only tests whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

/// `tests.toml`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Tests {
    tests: Vec<Case>,
}

/// One test: what comes in, what the ends answer, what must go out.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    send: Vec<Send>,
    /// By operation, in order; the last one repeats. Without any: AA, 200 with no body, or done.
    #[serde(default)]
    replies: BTreeMap<String, Vec<Reply>>,
    /// What operations must have been given, in order per operation.
    #[serde(default)]
    expect: Vec<Expected>,
    /// How every session must stand at the end.
    #[serde(default = "completed")]
    status: String,
    /// Alerts that must have been raised, by text.
    #[serde(default)]
    alerts: Vec<String>,
}

fn completed() -> String {
    "completed".to_owned()
}

/// A message handed to a service.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Send {
    to: String,
    /// A file beside tests.toml.
    file: Option<PathBuf>,
    /// HL7 text; line ends become CR.
    text: Option<String>,
    /// A typed message, with `body`.
    message: Option<String>,
    body: Option<Value>,
}

/// What a scripted operation answers.
#[derive(Deserialize, Debug, Clone)]
#[serde(deny_unknown_fields)]
struct Reply {
    /// `AA`, `200`, `503`, `fault`, …
    code: Option<String>,
    /// The reply's message type, with `body`.
    message: Option<String>,
    body: Option<Value>,
}

/// What an operation must have been given.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Expected {
    item: String,
    /// Its type.
    #[serde(rename = "type")]
    type_name: Option<String>,
    /// The whole record (secrets as `•••`).
    body: Option<Value>,
    /// Values at HL7 paths, or of fields of a record.
    #[serde(default)]
    fields: BTreeMap<String, Value>,
    /// It must be the bytes of this file.
    same_as: Option<PathBuf>,
}

impl Test {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        let (mut passed, mut failed) = (0, 0);
        for production in &self.productions {
            let folder = if production.is_dir() { production.clone() } else { parent(production) };
            let file = folder.join("tests.toml");
            let text = match std::fs::read_to_string(&file) {
                Ok(text) => text,
                Err(problem) => {
                    error(format_args!("{}: {problem}", file.display()));
                    return ExitCode::from(2);
                }
            };
            let tests: Tests = match toml::from_str(&text) {
                Ok(tests) => tests,
                Err(problem) => {
                    error(format_args!("{}: {problem}", file.display()));
                    return ExitCode::from(2);
                }
            };
            let Some(plan) = composition::load_or_report(production) else {
                return ExitCode::from(1);
            };
            for case in tests.tests {
                if self.only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
                    continue;
                }
                match run_case(&plan, &folder, &case).await {
                    Ok(()) => {
                        passed += 1;
                        line(format_args!("ok    {}: {}", plan.production.name, case.name));
                    }
                    Err(why) => {
                        failed += 1;
                        line(format_args!(
                            "FAIL  {}: {}\n      {}",
                            plan.production.name,
                            case.name,
                            why.replace('\n', "\n      ")
                        ));
                    }
                }
            }
        }
        line(format_args!("{passed} passed, {failed} failed"));
        ExitCode::from(u8::from(failed > 0))
    }
}

fn parent(file: &Path) -> PathBuf {
    file.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// What the scripted ends share with the test.
#[derive(Debug, Default)]
struct Ends {
    services: Mutex<HashMap<ItemName, ServiceContext>>,
    bound: Notify,
    replies: Mutex<HashMap<ItemName, VecDeque<Reply>>>,
    given: Mutex<Vec<(ItemName, Body)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run_case(plan: &Plan, folder: &Path, case: &Case) -> Result<(), String> {
    let ends = Arc::new(Ends::default());
    for (item, replies) in &case.replies {
        if plan.item(&ItemName::new(item)).is_none_or(|item| item.kind != ItemKind::Operation) {
            return Err(format!("replies name {item}, which is no operation of this production"));
        }
        lock(&ends.replies).insert(ItemName::new(item), replies.iter().cloned().collect());
    }
    let clock: septet_engine::clock::SharedClock = Arc::new(SystemClock);
    let parts =
        Parts { store: Store::memory(clock), lanes: composition::lanes(), tokens: Arc::new(NoTokens) };
    let engine = Engine::start(scripted(plan, &ends), parts, Orphans::Refuse)
        .await
        .map_err(|error| error.to_string())?;
    let outcome = play(&engine, &ends, plan, folder, case).await;
    engine.shutdown(Duration::from_secs(2)).await;
    outcome
}

/// The same plan with its ends replaced.
fn scripted(plan: &Plan, ends: &Arc<Ends>) -> Plan {
    let replace = |item: &Arc<ItemPlan>| {
        let factory = match &item.built.factory {
            Factory::Service(_) => Factory::Service(Arc::new(FedService { ends: ends.clone() })),
            Factory::Operation(_) => {
                let family = item.built.facts.replies.unwrap_or(Family::Plain);
                Factory::Operation(Arc::new(ScriptedFactory { ends: ends.clone(), family }))
            }
            process => process.clone(),
        };
        Arc::new(ItemPlan { built: Built { factory, ..item.built.clone() }, ..ItemPlan::clone(item) })
    };
    Plan { items: plan.items.iter().map(replace).collect(), admin: None, ..plan.clone() }
}

async fn play(engine: &Engine, ends: &Ends, plan: &Plan, folder: &Path, case: &Case) -> Result<(), String> {
    let mut sessions = Vec::new();
    for send in &case.send {
        let body = incoming(send, plan, engine, folder)?;
        let service = ItemName::new(&send.to);
        let deadline = Instant::now() + PATIENCE;
        let context = loop {
            let bound = ends.bound.notified();
            if let Some(context) = lock(&ends.services).get(&service).cloned() {
                break context;
            }
            if tokio::time::timeout_at(deadline.into(), bound).await.is_err() {
                return Err(format!("there is no running service named {}", send.to));
            }
        };
        let accepted = context.intake.receive(Inbound::new(body)).await.map_err(|error| error.to_string())?;
        sessions.push(accepted.session);
    }
    let mut stands = Vec::new();
    for session in &sessions {
        stands.push(settled(engine, plan, *session).await?);
    }
    everything_tried(engine, plan).await?;
    let given = lock(&ends.given).clone();
    check_given(&given, folder, case)?;
    for (session, status) in sessions.iter().zip(stands) {
        if status != case.status {
            return Err(format!(
                "session {session} is {status}, not {}{}",
                case.status,
                errors(engine, *session)
            ));
        }
    }
    let events: Vec<_> =
        sessions.iter().flat_map(|session| engine.store().session_events(*session)).collect();
    for alert in &case.alerts {
        if !events.iter().any(|event| event.kind == "alert" && &event.text == alert) {
            return Err(format!("no alert {alert:?} was raised"));
        }
    }
    Ok(())
}

fn errors(engine: &Engine, session: SessionId) -> String {
    let headers = engine.store().session(session);
    let errors: Vec<_> = headers
        .iter()
        .filter_map(|header| header.error.as_ref().map(|error| (header, error)))
        .map(|(header, error)| {
            let target = header.target.as_ref().map(ToString::to_string).unwrap_or_default();
            let detail = error.detail.as_ref().map(|detail| format!(" ({})", detail.0)).unwrap_or_default();
            format!("\n{target}: {error}{detail}")
        })
        .collect();
    errors.concat()
}

/// Waits until nothing in a session is active.
async fn settled(engine: &Engine, plan: &Plan, session: SessionId) -> Result<&'static str, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let headers = engine.store().session(session);
        if let Some(status) = stand(&headers, plan) {
            return Ok(status);
        }
        if Instant::now() > deadline {
            let waited = PATIENCE.as_secs();
            return Err(format!(
                "session {session} is still active after {waited} s{}",
                errors(engine, session)
            ));
        }
        SystemClock.sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for what nobody waits for: alerts are messages in sessions of their own. One that is tried again and
/// again has been given to its operation.
async fn everything_tried(engine: &Engine, plan: &Plan) -> Result<(), String> {
    let status = vec![Status::Created, Status::Queued, Status::Delivered, Status::Deferred];
    let filter = MessageFilter { status, ..MessageFilter::default() };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = engine.store().search(&filter, None, 1000).await.map_err(|error| error.to_string())?;
        let retried = |header: &&Header| header.status == Status::Queued && header.attempts > 0;
        let untried = page.entries.iter().filter(|header| !retried(header));
        let sessions: BTreeSet<SessionId> = untried.map(|header| header.session).collect();
        let at_rest = |session: &SessionId| stand(&engine.store().session(*session), plan).is_some();
        if sessions.iter().all(at_rest) || Instant::now() > deadline {
            return Ok(());
        }
        SystemClock.sleep(Duration::from_millis(5)).await;
    }
}

/// How a session ended, `None` while something in it is active.
fn stand(headers: &[Header], plan: &Plan) -> Option<&'static str> {
    let status = septet_admin::session_status(headers);
    // A flow whose call is suspended waits on disk: for a test, that is where the session stands.
    let any = |status: Status| headers.iter().any(|header| header.status == status);
    match status {
        "active" if any(Status::Suspended) && !any(Status::Queued) && !being_sent(headers, plan) => {
            Some("suspended")
        }
        "active" => None,
        status => Some(status),
    }
}

/// Whether an operation is at work on a leg of the session.
fn being_sent(headers: &[Header], plan: &Plan) -> bool {
    let by_operation = |header: &Header| {
        let target = header.target.as_ref().and_then(|target| plan.item(target));
        target.is_some_and(|item| item.kind == ItemKind::Operation)
    };
    headers.iter().any(|header| header.status == Status::Delivered && by_operation(header))
}

fn incoming(send: &Send, plan: &Plan, engine: &Engine, folder: &Path) -> Result<Body, String> {
    match (&send.file, &send.text, &send.message, &send.body) {
        (Some(file), None, None, None) => {
            let path = folder.join(file);
            let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(hl7(Bytes::from(bytes)))
        }
        (None, Some(text), None, None) => {
            Ok(hl7(Bytes::from(text.trim().replace("\r\n", "\r").replace('\n', "\r"))))
        }
        (None, None, Some(name), Some(body)) => {
            let vault = engine.store().vault();
            let record = plan.types.create(name, body.clone(), Undeclared::Refuse, vault);
            record.map(Body::record).map_err(|error| error.to_string())
        }
        (None, None, None, Some(body)) => Ok(Body::record(Record::untyped("Json", body.clone()))),
        _ => Err(format!("send to {} takes file, text, or message and body", send.to)),
    }
}

fn hl7(bytes: Bytes) -> Body {
    match septet_hl7::Message::parse(bytes.clone()) {
        Ok(message) => Body::hl7(message),
        Err(_) => Body::new("", HL7, None, bytes),
    }
}

fn check_given(given: &[(ItemName, Body)], folder: &Path, case: &Case) -> Result<(), String> {
    let mut by_item: BTreeMap<&str, VecDeque<&Body>> = BTreeMap::new();
    for (item, body) in given {
        by_item.entry(item.as_str()).or_default().push_back(body);
    }
    for expected in &case.expect {
        let Some(body) = by_item.get_mut(expected.item.as_str()).and_then(VecDeque::pop_front) else {
            return Err(format!("{} was given less than expected", expected.item));
        };
        check_body(expected, body, folder).map_err(|why| format!("{}: {why}", expected.item))?;
    }
    match by_item.iter().find(|(_, rest)| !rest.is_empty()) {
        Some((item, rest)) => Err(format!("{item} was given {} more than expected", rest.len())),
        None => Ok(()),
    }
}

fn check_body(expected: &Expected, body: &Body, folder: &Path) -> Result<(), String> {
    if let Some(type_name) = &expected.type_name
        && body.type_name() != type_name
    {
        return Err(format!("was given a {}, not a {type_name}", body.type_name()));
    }
    let record = body.as_record().map(Record::masked);
    if let Some(whole) = &expected.body {
        let record = record.as_ref().ok_or("was given no record")?;
        if record != whole {
            return Err(format!("was given\n{record:#}\nnot\n{whole:#}"));
        }
    }
    for (path, value) in &expected.fields {
        let found = match (body.format(), &record) {
            (Format::Hl7, _) => {
                let message = body.as_hl7().ok_or("was given HL7 without a header")?;
                Value::from(message.value(path).map_err(|error| format!("{path}: {error}"))?)
            }
            (_, Some(record)) => {
                let pointer = format!("/{}", path.replace('.', "/"));
                record.pointer(&pointer).cloned().unwrap_or(Value::Null)
            }
            _ => return Err("has no fields".to_owned()),
        };
        if &found != value {
            return Err(format!("{path} is {found}, not {value}"));
        }
    }
    if let Some(file) = &expected.same_as {
        let path = folder.join(file);
        let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if body.bytes() != &bytes {
            return Err(format!("differs from {}", file.display()));
        }
    }
    Ok(())
}

// === the scripted ends ===

#[derive(Debug)]
struct FedService {
    ends: Arc<Ends>,
}

impl ServiceFactory for FedService {
    fn create(&self) -> Box<dyn BusinessService> {
        Box::new(FedService { ends: self.ends.clone() })
    }
}

#[async_trait]
impl BusinessService for FedService {
    async fn bind(&mut self, _cx: &ServiceContext) -> Result<(), HostFault> {
        Ok(())
    }

    async fn run(self: Box<Self>, cx: ServiceContext) -> Result<(), HostFault> {
        lock(&self.ends.services).insert(cx.item.clone(), cx.clone());
        self.ends.bound.notify_waiters();
        cx.stop.cancelled().await;
        Ok(())
    }
}

#[derive(Debug)]
struct ScriptedFactory {
    ends: Arc<Ends>,
    family: Family,
}

impl OperationFactory for ScriptedFactory {
    fn create(&self, _runtime: &Runtime, _item: &ItemName) -> Box<dyn BusinessOperation> {
        Box::new(Scripted { ends: self.ends.clone(), family: self.family })
    }
}

struct Scripted {
    ends: Arc<Ends>,
    family: Family,
}

#[async_trait]
impl BusinessOperation for Scripted {
    async fn on_message(&mut self, cx: &OperationContext) -> Result<Outcome, OperationError> {
        lock(&self.ends.given).push((cx.item.clone(), cx.body.clone()));
        let reply = {
            let mut replies = lock(&self.ends.replies);
            replies
                .get_mut(&cx.item)
                .and_then(|queue| if queue.len() > 1 { queue.pop_front() } else { queue.front().cloned() })
        };
        let code = match (reply.as_ref().and_then(|reply| reply.code.clone()), self.family) {
            (Some(code), _) => code,
            (None, Family::Hl7 | Family::Hl7OverHttp) => "AA".to_owned(),
            (None, Family::Http) => "200".to_owned(),
            (None, Family::Smtp) => "250".to_owned(),
            (None, Family::Plain) => return Ok(Outcome::Sent),
        };
        if code == "fault" {
            return Err(OperationError::fault("connect", "the test says that nobody answers"));
        }
        let body = match reply {
            Some(Reply { message: Some(name), body: Some(fields), .. }) => {
                let record = cx.runtime.types.create(&name, fields, Undeclared::Ignore, &cx.runtime.vault);
                let record = record.map_err(|error| OperationError::message("message", error.to_string()))?;
                Some(Body::record(record))
            }
            Some(Reply { body: Some(Value::String(text)), .. }) => {
                Some(hl7(Bytes::from(text.replace('\n', "\r"))))
            }
            Some(Reply { body: Some(fields), .. }) => Some(Body::record(Record::untyped("Json", fields))),
            _ => None,
        };
        let good = matches!(code.as_str(), "AA" | "CA") || code.starts_with('2');
        let fault = (!good).then(|| Fault::new("call", code.clone(), format!("the test answers {code}")));
        Ok(Outcome::Replied { code, body, fault, retry_after: None })
    }
}
