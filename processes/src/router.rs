//! `type = "router"`: rules in order, the first that matches wins (CONTRACT §2.1 "router").
//!
//! Conditions by `when` run inline in the driver task; `if` and `transform` need the script engine, and with
//! them the whole router runs on a lane. Both ways share [`Routes::route`].
//!
//! A router that is asked for a reply either answers at once (`generated`: the service builds its
//! acknowledgement) or waits for the reply of a target and hands that on.

use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use septet_engine::body::Body;
use septet_engine::config::build::{At, Build};
use septet_engine::config::units::{ByteSize, DurationText, Ordered, Strings};
use septet_engine::event::{Level, NewEvent};
use septet_engine::fault::Fault;
use septet_engine::id::ItemName;
use septet_engine::process::{BusinessProcess, Definition, Done, Effect, Input, Job, Next, Outgoing};
use septet_engine::registry::{Built, Factory, Facts, ItemClass, ItemKind, ProcessHost};
use septet_hl7::Path;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::check::{field_path, key_problem, script_problem};
use crate::closure::{Closure, Gathered, Process, process_script};
use crate::script::ScriptKind;
use crate::script::engine::Limits;
use crate::script::raised::Raised;
use crate::transform::check::group_path;

/// The class `router`.
pub(crate) const CLASS: ItemClass = ItemClass {
    type_name: "router",
    kind: ItemKind::Process,
    summary: "Sends a message on by rules: the first rule that matches wins.",
    schema: || schemars::schema_for!(RouterSettings),
    build,
};

/// Settings of a router.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouterSettings {
    /// Tried in order; the first that matches wins.
    pub rules: Vec<RuleSettings>,
    /// What happens to a message that no rule matches: `complete` (with a trace entry) or `suspend`.
    #[serde(default)]
    pub unmatched: Unmatched,
    /// How long one script may run.
    #[serde(default = "script_time")]
    pub script_time: DurationText,
    /// How much memory scripts may use.
    #[serde(default = "script_memory")]
    pub script_memory: ByteSize,
}

/// One rule of a router.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// Shown in the trace.
    pub name: Option<String>,
    /// HL7 paths (or fields of a record) with the value each must have; a list means any of its values, `[*]`
    /// in a path any occurrence. All entries must hold; `{}` always does.
    pub when: Option<Ordered<Strings>>,
    /// A JavaScript expression that must be true.
    #[serde(rename = "if")]
    pub condition: Option<String>,
    /// Where matching messages go, in order.
    pub send: Strings,
    /// A named transform whose result is sent instead of the message.
    pub transform: Option<String>,
    /// Whose reply answers a caller that waits: one of `send`, `first` (whichever answers first) or
    /// `generated` (an acknowledgement at once). Without it: the only target's, else generated.
    pub reply_from: Option<String>,
    /// Go on to the next rule after this one.
    #[serde(default, rename = "continue")]
    pub go_on: bool,
}

/// What to do with a message that no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unmatched {
    /// Finish it, with an event `message.unmatched`.
    #[default]
    Complete,
    /// Let it wait for an operator.
    Suspend,
}

pub(crate) fn script_time() -> DurationText {
    DurationText::secs(1)
}

pub(crate) fn script_memory() -> ByteSize {
    ByteSize::mib(64)
}

// === Definition ===

/// The rules of a stored definition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rules {
    pub(crate) rules: Vec<Rule>,
    pub(crate) unmatched: Unmatched,
}

/// One rule of a stored definition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rule {
    /// For the trace: `rule "lab results"` or `rule 2`.
    label: String,
    /// Paths or fields, each with the values it may have.
    when: Vec<(String, Vec<String>)>,
    /// The script of `if`.
    condition: Option<usize>,
    send: Vec<ItemName>,
    transform: Option<String>,
    reply_from: ReplyFrom,
    go_on: bool,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ReplyFrom {
    /// Nothing is said: the only target, else generated.
    Unsaid,
    Generated,
    First,
    Item(ItemName),
}

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings = build.settings::<RouterSettings>()?;
    let before = build.problems.len();
    let mut gathered = Gathered::default();
    let script_time = Some(settings.script_time.get());
    let mut facts = Facts { answers: true, script_time, ..Facts::default() };
    let mut rules = Vec::new();
    for (index, rule) in settings.rules.iter().enumerate() {
        rules.extend(build_rule(build, index, rule, &mut gathered, &mut facts));
    }
    check_limits(build, settings.script_time, settings.script_memory);
    if settings.rules.is_empty() {
        build.error("S0320", &["rules".into()], "a router needs at least one rule", None);
    }
    if build
        .problems
        .iter()
        .skip(before)
        .any(|p| p.severity == septet_engine::config::diagnostic::Severity::Error)
    {
        return None;
    }
    let rules = Rules { rules, unmatched: settings.unmatched };
    let limits = Limits { time: settings.script_time.get(), memory: settings.script_memory.get() };
    let lane = gathered.needs_lane();
    let routes = Routes::new(&rules);
    let definition = Arc::new(gathered.finish(build.names, Process::Router(rules), limits));
    let host = if lane {
        ProcessHost::Lane(definition)
    } else {
        let host = InlineRouter { routes, hash: definition.hash.clone() };
        ProcessHost::Inline(Arc::new(host), definition)
    };
    Some(Built { factory: Factory::Process(host), facts })
}

/// Limits that no script could keep.
pub(crate) fn check_limits(build: &mut Build<'_>, time: DurationText, memory: ByteSize) {
    if time.get().as_millis() < 10 {
        build.error("S0104", &["script_time".into()], "script_time is at least 10ms", None);
    }
    if memory.get() < 1 << 20 {
        build.error("S0104", &["script_memory".into()], "script_memory is at least 1MiB", None);
    }
}

fn build_rule(
    build: &mut Build<'_>,
    index: usize,
    rule: &RuleSettings,
    gathered: &mut Gathered,
    facts: &mut Facts,
) -> Option<Rule> {
    let base = [At::Key("rules"), At::Index(index)];
    let key = |key| [At::Key("rules"), At::Index(index), At::Key(key)];
    let label = match &rule.name {
        Some(name) => format!("rule \"{name}\""),
        None => format!("rule {}", index + 1),
    };
    if rule.when.is_none() && rule.condition.is_none() {
        let suggestion = Some("when = {} always matches".to_owned());
        build.error("S0320", &base, "a rule needs when or if", suggestion);
    }
    let mut when = Vec::new();
    for (path, values) in rule.when.iter().flat_map(|when| when.iter()) {
        let at = [At::Key("rules"), At::Index(index), At::Key("when"), At::Key(path)];
        match path.parse::<Path>() {
            Ok(parsed) if !parsed.groups().is_empty() => group_path(build, &key("when"), path),
            Ok(_) => {}
            Err(_) if field_path(path) => {}
            Err(error) => key_problem(build, "S0213", &key("when"), path, error.to_string(), None),
        }
        if values.0.is_empty() {
            build.error("S0320", &at, "an empty list of values never matches", None);
        }
        when.push((path.to_owned(), values.0.clone()));
    }
    let condition = rule.condition.as_ref().map(|code| {
        script_problem(build, &key("if"), ScriptKind::Expression, code);
        gathered.script(process_script(ScriptKind::Expression, &[], code, &format!("{label}, if")))
    });
    let mut send = Vec::new();
    for (place, name) in rule.send.0.iter().enumerate() {
        let at = [At::Key("rules"), At::Index(index), At::Key("send"), At::Index(place)];
        let Some(target) = build.target(&at, name) else { continue };
        if send.contains(&target) {
            build.error("S0320", &at, format!("{name} is in this list twice"), None);
        }
        facts.sends.push(target.clone());
        send.push(target);
    }
    if let Some(name) = &rule.transform
        && build.transform(&key("transform"), name)
    {
        gathered.transform(build.names, name);
    }
    let reply_from = match rule.reply_from.as_deref() {
        None => ReplyFrom::Unsaid,
        Some("generated") => ReplyFrom::Generated,
        Some("first") => {
            facts.calls.extend(send.iter().cloned());
            ReplyFrom::First
        }
        Some(name) => match send.iter().find(|target| target.as_str() == name) {
            Some(target) => {
                facts.calls.push(target.clone());
                ReplyFrom::Item(target.clone())
            }
            None => {
                let known = ["first", "generated"].into_iter().chain(send.iter().map(ItemName::as_str));
                let suggestion = septet_engine::config::build::did_you_mean(name, known);
                let text = format!("reply_from is one of this rule's send, first or generated, not {name}");
                build.error("S0320", &key("reply_from"), text, suggestion);
                ReplyFrom::Unsaid
            }
        },
    };
    let transform = rule.transform.clone();
    Some(Rule { label, when, condition, send, transform, reply_from, go_on: rule.go_on })
}

// === Routing ===

/// What a rule needs the script engine for.
pub(crate) trait Scripts {
    /// The truth of an `if`.
    fn holds(&mut self, script: usize) -> Result<bool, Raised>;
    /// What a transform makes of the request.
    fn transform(&mut self, name: &str) -> Result<Outgoing, Raised>;
}

/// Rules ready to run.
#[derive(Debug)]
pub(crate) struct Routes {
    rules: Vec<(Rule, Vec<Condition>)>,
    unmatched: Unmatched,
}

/// One entry of a `when`.
#[derive(Debug)]
struct Condition {
    path: Option<Path>,
    field: String,
    values: Vec<String>,
}

/// What a router keeps while it waits.
#[derive(Debug, Serialize, Deserialize)]
struct Waiting {
    /// Calls whose reply may be the answer.
    router_calls: Vec<u64>,
}

impl Routes {
    pub(crate) fn new(rules: &Rules) -> Self {
        let conditions = |rule: &Rule| {
            let condition = |(path, values): &(String, Vec<String>)| Condition {
                path: path.parse().ok(),
                field: path.clone(),
                values: values.clone(),
            };
            (rule.clone(), rule.when.iter().map(condition).collect())
        };
        Routes { rules: rules.rules.iter().map(conditions).collect(), unmatched: rules.unmatched }
    }

    /// Handles a new request.
    pub(crate) fn route(&self, job: &Job, scripts: &mut dyn Scripts) -> Done {
        let mut effects = Vec::new();
        let mut legs: Vec<(ItemName, Outgoing)> = Vec::new();
        let mut reply_from = ReplyFrom::Unsaid;
        let mut matched = false;
        for (rule, conditions) in &self.rules {
            let holds = match self.matches(job, rule, conditions, scripts) {
                Ok(holds) => holds,
                Err(raised) => return failed(raised.fault),
            };
            if !holds {
                continue;
            }
            matched = true;
            effects.push(Effect::Event(NewEvent::new(
                Level::Info,
                "rule",
                format!("{} matched", rule.label),
            )));
            let body = match &rule.transform {
                None => Outgoing::Request,
                Some(name) => match scripts.transform(name) {
                    Ok(body) => body,
                    Err(raised) => return failed(raised.fault),
                },
            };
            legs.extend(rule.send.iter().map(|target| (target.clone(), body.clone())));
            if reply_from == ReplyFrom::Unsaid {
                reply_from = rule.reply_from.clone();
            }
            if !rule.go_on {
                break;
            }
        }
        if !matched {
            return self.unmatched(job, effects);
        }
        if reply_from == ReplyFrom::Unsaid {
            reply_from = match legs.as_slice() {
                [(only, _)] => ReplyFrom::Item(only.clone()),
                _ => ReplyFrom::Generated,
            };
        }
        send(job, effects, legs, &reply_from)
    }

    fn matches(
        &self,
        job: &Job,
        rule: &Rule,
        conditions: &[Condition],
        scripts: &mut dyn Scripts,
    ) -> Result<bool, Raised> {
        let body = job.request_body.as_ref();
        if !conditions.iter().all(|condition| body.is_some_and(|body| condition.holds(body))) {
            return Ok(false);
        }
        rule.condition.map_or(Ok(true), |script| scripts.holds(script))
    }

    fn unmatched(&self, job: &Job, mut effects: Vec<Effect>) -> Done {
        let event = NewEvent::new(Level::Warning, "message.unmatched", "no rule matched");
        effects.push(Effect::Event(event));
        match self.unmatched {
            Unmatched::Complete => {
                if job.wants_reply {
                    effects.push(Effect::Reply { body: None, fault: None });
                }
                Done { effects, next: Next::Complete, state: None }
            }
            Unmatched::Suspend => {
                let fault = Fault::new("message", "unmatched", "no rule matched");
                Done { effects, next: Next::Suspend(fault), state: None }
            }
        }
    }
}

impl Condition {
    fn holds(&self, body: &Body) -> bool {
        if let Some(message) = body.as_hl7() {
            let Some(path) = &self.path else { return false };
            if !path.is_multiple() {
                let value = message.get(path);
                return self.values.contains(&value);
            }
            return message.all(path).iter().any(|value| self.values.contains(value));
        }
        let value = body.as_record().and_then(|record| field(&record.fields, &self.field));
        let text = match value {
            Some(Json::String(text)) => text.clone(),
            Some(value @ (Json::Number(_) | Json::Bool(_))) => value.to_string(),
            None | Some(Json::Null) => String::new(),
            Some(_) => return false,
        };
        self.values.contains(&text)
    }
}

/// The value of a dotted field.
pub(crate) fn field<'v>(value: &'v Json, path: &str) -> Option<&'v Json> {
    path.split('.').try_fold(value, |value, name| value.get(name))
}

fn failed(fault: Fault) -> Done {
    Done { effects: Vec::new(), next: Next::Fail(fault), state: None }
}

/// Sends to all targets; calls those whose reply is waited for.
fn send(
    job: &Job,
    mut effects: Vec<Effect>,
    legs: Vec<(ItemName, Outgoing)>,
    reply_from: &ReplyFrom,
) -> Done {
    let mut waiting = Waiting { router_calls: Vec::new() };
    for (target, body) in legs {
        let wanted = job.wants_reply
            && match reply_from {
                ReplyFrom::First => true,
                ReplyFrom::Item(item) => *item == target && waiting.router_calls.is_empty(),
                ReplyFrom::Generated | ReplyFrom::Unsaid => false,
            };
        if wanted {
            let call = waiting.router_calls.len() as u64 + 1;
            waiting.router_calls.push(call);
            effects.push(Effect::Call { call, target, body });
        } else {
            effects.push(Effect::Send { target, body });
        }
    }
    if waiting.router_calls.is_empty() {
        if job.wants_reply {
            effects.push(Effect::Reply { body: None, fault: None });
        }
        return Done { effects, next: Next::Complete, state: None };
    }
    let instance = Bytes::from(serde_json::to_vec(&waiting).unwrap_or_default());
    Done { effects, next: Next::Wait { instance }, state: None }
}

/// Handles the response (or a stray wake-up) of a router that waits for a reply to hand on.
pub(crate) fn resume(job: &Job) -> Done {
    let stored = job.instance.as_deref().and_then(|bytes| serde_json::from_slice::<Waiting>(bytes).ok());
    let Some(waiting) = stored else {
        return failed(Fault::new("script", "instance", "the stored instance cannot be read"));
    };
    match &job.input {
        Input::Response { call, header, body, fault } if waiting.router_calls.contains(call) => {
            let stored = header.as_ref().and_then(|header| header.body_id).map(Outgoing::Stored);
            let body = stored.or_else(|| body.clone().map(Outgoing::New));
            let mut effects = vec![Effect::Reply { body, fault: fault.clone() }];
            let others = waiting.router_calls.iter().filter(|other| *other != call);
            effects.extend(others.map(|call| Effect::CancelCall { call: *call, leave: true }));
            Done { effects, next: Next::Complete, state: None }
        }
        _ => {
            let instance = job.instance.clone().unwrap_or_default();
            Done { effects: Vec::new(), next: Next::Wait { instance }, state: None }
        }
    }
}

// === Inline ===

/// A router without scripts.
#[derive(Debug)]
struct InlineRouter {
    routes: Routes,
    hash: Arc<str>,
}

struct NoScripts;

impl Scripts for NoScripts {
    fn holds(&mut self, _: usize) -> Result<bool, Raised> {
        Err(Raised::engine("script", "script", "this definition needs the script engine"))
    }
    fn transform(&mut self, _: &str) -> Result<Outgoing, Raised> {
        Err(Raised::engine("script", "script", "this definition needs the script engine"))
    }
}

impl BusinessProcess for InlineRouter {
    fn handle(&self, job: &Job) -> Done {
        match job.input {
            Input::Request if job.definition.hash == self.hash => self.routes.route(job, &mut NoScripts),
            Input::Request => match read(&job.definition) {
                Ok(routes) => routes.route(job, &mut NoScripts),
                Err(text) => failed(Fault::new("script", "definition", text)),
            },
            Input::Response { .. } | Input::Timer { .. } => resume(job),
        }
    }

    fn knows(&self, definition: &Definition) -> bool {
        definition.hash == self.hash || read(definition).is_ok()
    }
}

fn read(definition: &Definition) -> Result<Routes, String> {
    match Closure::read(definition)?.process {
        Process::Router(rules) => Ok(Routes::new(&rules)),
        Process::Flow(_) => Err("this definition is a flow, which runs on a lane".into()),
    }
}
