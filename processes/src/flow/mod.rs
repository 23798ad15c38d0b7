//! `type = "flow"`: a process as steps (CONTRACT §2.5).
//!
//! [`check`] reads the steps and reports what is wrong with them, at its exact place; out comes a
//! [`definition::Program`], a list of operations with jumps, so that where an instance stands is a number.
//! [`run`] executes it until everything waits, `kept` takes what is live ([`instance`]) to disk and back.

pub(crate) mod check;
pub(crate) mod definition;
mod faults;
mod inputs;
pub(crate) mod instance;
mod kept;
pub(crate) mod run;
mod schema;
mod template;
mod timers;
mod verbs;

use std::sync::Arc;

use schemars::JsonSchema;
use septet_engine::config::build::Build;
use septet_engine::config::diagnostic::Severity;
use septet_engine::config::units::{ByteSize, DurationText};
use septet_engine::registry::{Built, Factory, Facts, ItemClass, ItemKind, ProcessHost};
use serde::Deserialize;

use crate::check::{check_limits, script_memory, script_time};
use crate::closure::Process;
use crate::script::engine::Limits;

/// The class `flow`.
pub(crate) const CLASS: ItemClass = ItemClass {
    type_name: "flow",
    kind: ItemKind::Process,
    summary: "Works through steps: transforms, calls that wait on disk, conditions, loops, alerts, replies.",
    schema: || schemars::schema_for!(FlowSettings),
    build,
};

/// Settings of a flow.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowSettings {
    /// What is done, in order. A step is a table with one verb and its keys: `assign = { "context.x" = "expr" }`;
    /// `if`, `then`, `else`; `switch = [ { case, do }, { default = true, do } ]`; `foreach`, `as`, `do`; `while`,
    /// `do`; `call`, `message`, `with`, `into`, `timeout`, `on_timeout` ("discard" or "leave"), `async`, `name`;
    /// `sync = [names]`, `timeout`, `any`; `parallel = [ [steps], [steps] ]`; `transform`, `from`, `into`; `code`;
    /// `send`, `message`, `with`; `delay` (a duration, or an expression of a time); `alert`, `trace` (text with
    /// {expr}); `reply`; `throw`; `scope`, `catch = [ { fault = "name", do }, { any = true, do } ]`. Inside a
    /// scope a step may have `compensate = [steps]`. In a `catch`, `fault` has name, code, text and detail.
    pub steps: schema::Steps,
    /// How long one script may run.
    #[serde(default = "script_time")]
    pub script_time: DurationText,
    /// How much memory scripts may use.
    #[serde(default = "script_memory")]
    pub script_memory: ByteSize,
}

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings = build.settings::<FlowSettings>();
    let before = build.problems.len();
    let checked = check::steps(build);
    let settings = settings?;
    check_limits(build, settings.script_time, settings.script_memory);
    if build.problems.iter().skip(before).any(|problem| problem.severity == Severity::Error) {
        return None;
    }
    let limits = Limits { time: settings.script_time.get(), memory: settings.script_memory.get() };
    let definition = checked.gathered.finish(build.names, Process::Flow(checked.program), limits);
    let factory = Factory::Process(ProcessHost::Lane(Arc::new(definition)));
    Some(Built { factory, facts: Facts { script_time: Some(limits.time), ..checked.facts } })
}
