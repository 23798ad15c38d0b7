//! Reads the steps of a flow from the tree of the production file: every unknown verb or key, missing value,
//! unknown name and script error is reported at its exact place, and out comes the program.

use septet_engine::config::build::{At, Build};
use septet_engine::config::node::{Node, Value};
use septet_engine::config::problem::did_you_mean;
use septet_engine::config::units::DurationText;
use septet_engine::id::ItemName;
use septet_engine::registry::Facts;

use super::definition::{Act, Op, Payload, Place, Program};
use crate::check::{key_problem, script_problem_from};
use crate::closure::{Gathered, process_script};
use crate::script::ScriptKind;

/// Every verb with the keys it takes beside itself and `compensate`.
const VERBS: [(&str, &[&str]); 17] = [
    ("assign", &[]),
    ("if", &["then", "else"]),
    ("switch", &[]),
    ("foreach", &["as", "do"]),
    ("while", &["do"]),
    ("call", &["message", "with", "into", "timeout", "on_timeout", "async", "name"]),
    ("sync", &["timeout", "any"]),
    ("parallel", &[]),
    ("transform", &["from", "into"]),
    ("code", &[]),
    ("send", &["message", "with"]),
    ("delay", &[]),
    ("alert", &[]),
    ("trace", &[]),
    ("reply", &[]),
    ("throw", &[]),
    ("scope", &["catch"]),
];

/// How deep steps may stand inside each other.
const MAX_DEPTH: usize = 64;

/// What became of the steps.
pub(crate) struct Checked {
    pub(crate) program: Program,
    pub(crate) gathered: Gathered,
    pub(crate) facts: Facts,
}

/// Reads `steps` of the item being built.
pub(crate) fn steps(build: &mut Build<'_>) -> Checked {
    let node = build.node;
    let mut reader = Reader {
        build,
        at: vec![At::Key("steps")],
        step: String::new(),
        verb: String::new(),
        ops: Vec::new(),
        variables: Vec::new(),
        scopes: 0,
        calls: Vec::new(),
        syncs: Vec::new(),
        gathered: Gathered::default(),
        facts: Facts::default(),
    };
    if let Some(entry) = node.get("steps") {
        reader.list(&entry.node, "step ");
        reader.check_syncs();
    }
    reader.push(Act::End);
    Checked { program: Program { ops: reader.ops }, gathered: reader.gathered, facts: reader.facts }
}

/// Reads steps: where we are, and what has come of it.
pub(super) struct Reader<'r, 'b, 'a> {
    pub(super) build: &'r mut Build<'b>,
    /// Where we are in the item's table.
    pub(super) at: Vec<At<'a>>,
    /// The step we are in: `step 2.then.1`.
    pub(super) step: String,
    /// Its verb with what it names.
    pub(super) verb: String,
    pub(super) ops: Vec<Op>,
    pub(super) variables: Vec<String>,
    /// Scopes around us.
    pub(super) scopes: usize,
    /// Names of calls.
    pub(super) calls: Vec<String>,
    /// Names that `sync` waits for, with their places.
    pub(super) syncs: Vec<(Vec<At<'a>>, String)>,
    pub(super) gathered: Gathered,
    pub(super) facts: Facts,
}

impl<'a> Reader<'_, '_, 'a> {
    // === Places and problems ===

    pub(super) fn error(&mut self, text: impl Into<String>, suggestion: Option<String>) {
        self.build.error("S0330", &self.at, text, suggestion);
    }

    /// At a key of the table we are in.
    pub(super) fn key_error(&mut self, key: &str, text: impl Into<String>, suggestion: Option<String>) {
        key_problem(self.build, "S0330", &self.at, key, text, suggestion);
    }

    pub(super) fn within<T>(&mut self, step: impl Into<At<'a>>, work: impl FnOnce(&mut Self) -> T) -> T {
        self.at.push(step.into());
        let done = work(self);
        self.at.pop();
        done
    }

    pub(super) fn push(&mut self, act: Act) -> usize {
        let at = match self.verb.is_empty() {
            true => self.step.clone(),
            false => format!("{} ({})", self.step, self.verb),
        };
        self.ops.push(Op { at, act });
        self.ops.len() - 1
    }

    pub(super) fn here(&self) -> usize {
        self.ops.len()
    }

    /// Fills in a place that was not known when the operation was made.
    pub(super) fn patch(&mut self, op: usize, place: usize) {
        match self.ops.get_mut(op).map(|op| &mut op.act) {
            Some(Act::Jump { to } | Act::Unless { to, .. }) => *to = place,
            Some(Act::Foreach { end, .. }) => *end = place,
            Some(Act::Fork { join, .. }) => *join = place,
            _ => {}
        }
    }

    // === Values ===

    pub(super) fn text(&mut self, node: &'a Node) -> Option<&'a str> {
        let text = node.as_str();
        if text.is_none() {
            self.error("expected a string", None);
        }
        text
    }

    pub(super) fn flag(&mut self, node: &Node) -> bool {
        match node.value {
            Value::Boolean(flag) => flag,
            _ => {
                self.error("expected true or false", None);
                false
            }
        }
    }

    pub(super) fn array(&mut self, node: &'a Node, what: &str) -> &'a [Node] {
        if !matches!(node.value, Value::Array(_)) {
            self.error(format!("expected a list of {what}"), None);
        }
        node.items()
    }

    pub(super) fn script(&mut self, kind: ScriptKind, node: &'a Node) -> Option<usize> {
        let code = self.text(node)?;
        Some(self.script_text(kind, code, (1, 1)))
    }

    /// A script that begins at a line and column of the value we are at.
    pub(super) fn script_text(&mut self, kind: ScriptKind, code: &str, begins: (usize, usize)) -> usize {
        script_problem_from(self.build, &self.at, kind, code, begins);
        let key = match self.at.last() {
            Some(At::Key(key)) if !self.verb.starts_with(key) => format!(", {key}"),
            _ => String::new(),
        };
        let place = format!("{} ({}{key})", self.step, self.verb);
        self.gathered.script(process_script(kind, &self.variables, code, &place))
    }

    pub(super) fn expression(&mut self, node: &'a Node) -> Option<usize> {
        self.script(ScriptKind::Expression, node)
    }

    /// `context.…` or `state.…`.
    pub(super) fn place(&mut self, text: &str) -> Result<Place, String> {
        let mut parts = text.split('.');
        let state = match parts.next() {
            Some("context") => false,
            Some("state") => true,
            _ => return Err(format!("{text} is neither context.… nor state.…")),
        };
        let keys: Vec<String> = parts.map(str::to_owned).collect();
        let legal = |key: &String| {
            !key.is_empty()
                && key != "__proto__"
                && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '$'))
        };
        if keys.is_empty() || !keys.iter().all(legal) {
            return Err(format!("{text} names no place; write for example context.result"));
        }
        self.gathered.uses_state |= state;
        Ok(Place { state, keys })
    }

    pub(super) fn place_at(&mut self, key: &'static str, step: &'a Node) -> Option<Place> {
        let node = &step.get(key)?.node;
        self.within(key, |r| {
            let text = r.text(node)?;
            r.place(text).map_err(|text| r.error(text, None)).ok()
        })
    }

    pub(super) fn milliseconds(&mut self, key: &'static str, step: &'a Node) -> Option<u64> {
        let node = &step.get(key)?.node;
        self.within(key, |r| {
            let text = r.text(node)?;
            match text.parse::<DurationText>() {
                Ok(duration) => u64::try_from(duration.get().as_millis()).ok(),
                Err(error) => {
                    r.error(error.to_string(), None);
                    None
                }
            }
        })
    }

    pub(super) fn target(&mut self, node: &'a Node) -> Option<ItemName> {
        let name = self.text(node)?;
        if name == self.build.item.as_str() {
            self.error("a flow cannot send to itself", None);
            return None;
        }
        self.build.target(&self.at, name)
    }

    pub(super) fn payload(&mut self, step: &'a Node) -> Payload {
        let message = step.get("message").and_then(|entry| {
            self.within("message", |r| {
                let name = r.text(&entry.node)?;
                r.build.message_type(&r.at, name);
                r.gathered.message_type(name);
                Some(name.to_owned())
            })
        });
        let with = step.get("with").and_then(|entry| self.within("with", |r| r.expression(&entry.node)));
        self.gathered.any_type |= message.is_none() && with.is_some();
        Payload { message, with }
    }

    // === Steps ===

    /// A list of steps; `prefix` begins their names in error texts.
    pub(super) fn list(&mut self, node: &'a Node, prefix: &str) {
        let items = self.array(node, "steps");
        if self.at.len() > MAX_DEPTH {
            self.error("steps are nested too deep", None);
            return;
        }
        for (index, item) in items.iter().enumerate() {
            let outer = std::mem::replace(&mut self.step, format!("{prefix}{}", index + 1));
            let verb = std::mem::take(&mut self.verb);
            self.within(index, |r| r.step(item));
            self.step = outer;
            self.verb = verb;
        }
    }

    pub(super) fn inner(&mut self, key: &'static str, step: &'a Node) {
        if let Some(entry) = step.get(key) {
            let prefix = format!("{}.{key}.", self.step);
            self.within(key, |r| r.list(&entry.node, &prefix));
        }
    }

    pub(super) fn required(&mut self, key: &'static str, step: &'a Node, verb: &str) -> bool {
        let found = step.get(key).is_some();
        if !found {
            self.error(format!("{verb} needs {key}"), None);
        }
        found
    }

    pub(super) fn step(&mut self, step: &'a Node) {
        if !matches!(step.value, Value::Table(_)) {
            self.error("a step is a table with one verb, for example { call = \"vendor\" }", None);
            return;
        }
        let keys =
            || step.entries().iter().map(|entry| entry.key.as_str()).filter(|key| !key.starts_with("x-"));
        let verbs: Vec<&'a str> = keys().filter(|key| VERBS.iter().any(|(verb, _)| verb == key)).collect();
        let (verb, allowed) = match verbs.as_slice() {
            [one] => match VERBS.iter().find(|(verb, _)| verb == one) {
                Some(found) => *found,
                None => return,
            },
            [] => return self.no_verb(step),
            [first, second, ..] => {
                let text = format!("a step has one verb, this one has both {first} and {second}");
                self.error(text, Some("make two steps of it".into()));
                return;
            }
        };
        for key in keys() {
            if key != verb && key != "compensate" && !allowed.contains(&key) {
                let known = allowed.iter().copied().chain(["compensate"]);
                let suggestion = did_you_mean(key, known).or_else(|| keys_of(verb, allowed));
                self.key_error(key, format!("{verb} has no key {key}"), suggestion);
            }
        }
        let Some(value) = step.get(verb).map(|entry| &entry.node) else { return };
        self.verb = match value.as_str() {
            Some(name) if matches!(verb, "call" | "send" | "transform") => format!("{verb} {name}"),
            _ => verb.to_owned(),
        };
        self.verb(verb, step, value);
        if let Some(entry) = step.get("compensate") {
            if self.scopes == 0 {
                self.key_error("compensate", "compensate has a meaning only inside a scope", None);
            }
            self.compensation(&entry.node);
        }
    }

    pub(super) fn no_verb(&mut self, step: &'a Node) {
        let verbs = || VERBS.iter().map(|(verb, _)| *verb);
        let near = step.entries().iter().find_map(|entry| {
            let key = entry.key.as_str();
            did_you_mean(key, verbs()).map(|suggestion| (key, suggestion))
        });
        match near {
            Some((key, suggestion)) => {
                self.key_error(key, format!("there is no step {key}"), Some(suggestion))
            }
            None => {
                let all = verbs().collect::<Vec<_>>().join(", ");
                match step.entries().first() {
                    Some(entry) => self.within(entry.key.as_str(), |r| {
                        r.error(
                            format!("there is no step {}", entry.key),
                            Some(format!("the verbs are {all}")),
                        );
                    }),
                    None => self.error("an empty step", Some(format!("the verbs are {all}"))),
                }
            }
        }
    }
}

fn keys_of(verb: &str, allowed: &[&str]) -> Option<String> {
    match allowed {
        [] => None,
        keys => Some(format!("{verb} takes {}", keys.join(", "))),
    }
}
