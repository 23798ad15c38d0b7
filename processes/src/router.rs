//! `type = "router"`: rules in order, the first that matches wins (CONTRACT §2.1 "router").
//!
//! Conditions by `when` run inline in the driver task; `if` and `transform` need the script engine, and with
//! them the whole router runs on a lane. Both ways share [`Routes::route`].
//!
//! A router that is asked for a reply either answers at once (`generated`: the service builds its
//! acknowledgement) or waits for the reply of a target and hands that on.

mod routes;

use std::sync::Arc;

use schemars::JsonSchema;
use septet_engine::config::build::{At, Build};
use septet_engine::config::units::{ByteSize, DurationText, Ordered, Strings};
use septet_engine::fault::Fault;
use septet_engine::id::ItemName;
use septet_engine::process::{BusinessProcess, Definition, Done, Input, Job, Outgoing};
use septet_engine::registry::{Built, Factory, Facts, ItemClass, ItemKind, ProcessHost};
use septet_hl7::Path;
use serde::{Deserialize, Serialize};

use crate::check::{check_limits, field_path, key_problem, script_memory, script_problem, script_time};
use crate::closure::{Closure, Gathered, Process, process_script};
use crate::script::ScriptKind;
use crate::script::engine::Limits;
use crate::script::raised::Raised;
use crate::transform::check::group_path;
use routes::{ReplyFrom, Rule, failed};
pub(crate) use routes::{Routes, Rules, Scripts, field, resume};

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

// === Checking ===

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
                let suggestion = septet_engine::config::problem::did_you_mean(name, known);
                let text = format!("reply_from is one of this rule's send, first or generated, not {name}");
                build.error("S0320", &key("reply_from"), text, suggestion);
                ReplyFrom::Unsaid
            }
        },
    };
    let transform = rule.transform.clone();
    Some(Rule { label, when, condition, send, transform, reply_from, go_on: rule.go_on })
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
