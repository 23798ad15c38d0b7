//! The environment as a production sees it: variables for `${env:NAME}`, and those beginning `SEPTET__` that
//! override settings of `[store]`, `[admin]` and `[log]` (`SEPTET__STORE__PATH`). Values are taken as they
//! stand: `0123` stays `0123` where a setting is text.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::Value as Json;

use crate::config::diagnostic::Severity;
use crate::config::node::{Entry, Node, Span, Value};
use crate::config::problem::Problem;
use crate::config::source::{Source, Sources};

/// Variables by name. `Debug` shows names only.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// This process's environment; variables that are no UTF-8 are left out.
    pub fn system() -> Env {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Env(std::env::vars_os().filter_map(text).collect())
    }

    /// No variables.
    pub fn empty() -> Env {
        Env::default()
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Names of the variables that override settings, for example `SEPTET__STORE__PATH`. They are refused when
    /// several productions run in one process, for they could only mean one of them.
    pub fn overrides(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(|name| name.starts_with(PREFIX))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Env(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

const PREFIX: &str = "SEPTET__";

/// Puts the overriding variables into the tree. `sections` are those that may be overridden, with schemas.
pub(crate) fn apply_overrides(
    root: &mut Vec<Entry>,
    env: &Env,
    sections: &[(&str, Json)],
    sources: &mut Sources,
    problems: &mut Vec<Problem>,
) {
    for name in env.overrides() {
        let value = env.get(name).unwrap_or_default();
        // The variable stands in for a file, so that problems with it have a place to point at; its value is
        // not kept there, for it may be a secret.
        let folder = std::env::current_dir().unwrap_or_default();
        let source = Source { name: PathBuf::from(format!("${name}")), folder, text: name.to_owned() };
        let file = sources.add(source);
        let span = Span { file, start: 0, end: u32::try_from(name.len()).unwrap_or(u32::MAX) };
        let path = name.strip_prefix(PREFIX).unwrap_or_default().to_ascii_lowercase();
        let mut steps = path.split("__");
        let section = steps.next().unwrap_or_default();
        let Some((_, schema)) = sections.iter().find(|(known, _)| *known == section) else {
            let text = format!("{name} overrides nothing");
            let suggestion =
                Some("only [store], [admin] and [log] are overridden from the environment".into());
            problems.push(Problem { severity: Severity::Warning, code: "S0113", span, text, suggestion });
            continue;
        };
        let keys: Vec<&str> = std::iter::once(section).chain(steps).collect();
        let value = typed(value, kind_at(schema, keys.get(1..).unwrap_or_default()));
        put(root, &keys, Node { span, value });
    }
}

/// The type of the setting at `keys` of a schema.
fn kind_at<'s>(schema: &'s Json, keys: &[&str]) -> Option<&'s str> {
    let mut at = schema;
    for key in keys {
        at = resolve(schema, at.get("properties")?.get(*key)?);
    }
    match at.get("type") {
        Some(Json::Array(kinds)) => kinds.iter().filter_map(Json::as_str).find(|kind| *kind != "null"),
        kind => kind?.as_str(),
    }
}

fn resolve<'s>(root: &'s Json, schema: &'s Json) -> &'s Json {
    let plain = |schema: &'s Json| {
        let path = schema.get("$ref").and_then(Json::as_str)?;
        root.pointer(path.trim_start_matches('#'))
    };
    let some = schema.get("anyOf").and_then(Json::as_array).and_then(|variants| variants.first());
    plain(some.unwrap_or(schema)).unwrap_or(schema)
}

fn typed(text: &str, kind: Option<&str>) -> Value {
    let whole = || text.parse().ok().map(Value::Integer);
    let flag = || text.parse().ok().map(Value::Boolean);
    let typed = match kind {
        Some("integer") => whole(),
        Some("boolean") => flag(),
        _ => None,
    };
    typed.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn put(entries: &mut Vec<Entry>, keys: &[&str], node: Node) {
    let Some((first, rest)) = keys.split_first() else { return };
    let at = entries.iter().position(|entry| entry.key == *first);
    if rest.is_empty() {
        match at.and_then(|at| entries.get_mut(at)) {
            Some(entry) => entry.node = node,
            None => entries.push(Entry { key: (*first).to_owned(), key_span: node.span, node }),
        }
        return;
    }
    if at.is_none() {
        let table = Node { span: node.span, value: Value::Table(Vec::new()) };
        entries.push(Entry { key: (*first).to_owned(), key_span: node.span, node: table });
    }
    let at = at.unwrap_or(entries.len() - 1);
    if let Some(Entry { node: Node { value: Value::Table(inner), .. }, .. }) = entries.get_mut(at) {
        put(inner, rest, node);
    }
}
