//! Checks a [`Node`] tree against the JSON Schema of a settings struct, so that *all* unknown keys, missing
//! keys and wrong values are reported at once with their places; serde, which comes after, stops at the first.
//!
//! The result is the tree as serde should see it: keys beginning `x-` are gone from structs (in maps keys are
//! data and stay), what was wrong is left out, and paths (schema formats [`PATHS`]) are
//! absolute.

use serde_json::Value as Json;

use crate::clock::{Clock as _, SystemClock};
use crate::config::certificates;
use crate::config::diagnostic::Severity;
use crate::config::node::{Entry, Node, Span, Value};
use crate::config::problem::{Problem, did_you_mean};
use crate::config::resolve::DATA_TABLES;
use crate::config::source::{Source, Sources};
use crate::config::units::{check_format, format_name};

/// Checks `node` against `schema`. `more_keys` are known keys that the schema does not have (common ones),
/// for suggestions only.
pub(crate) fn check(
    node: &Node,
    schema: &Json,
    more_keys: &[&str],
    sources: &Sources,
    problems: &mut Vec<Problem>,
) -> Node {
    let walk = Walk { root: schema, sources, more_keys };
    let mut found = Vec::new();
    let pruned = walk.node(node, schema, true, &mut found);
    problems.extend(found);
    pruned.unwrap_or_else(|| Node { span: node.span, value: Value::Table(Vec::new()) })
}

struct Walk<'a> {
    root: &'a Json,
    sources: &'a Sources,
    more_keys: &'a [&'a str],
}

/// Schema formats of paths; all but the first are files that must exist.
const PATHS: [&str; 4] = ["septet-path", "septet-certificate", "septet-authorities", "septet-key"];

/// How many problems are errors.
pub(crate) fn errors(problems: &[Problem]) -> usize {
    problems.iter().filter(|problem| problem.severity == Severity::Error).count()
}

fn problem(code: &'static str, span: Span, text: String, suggestion: Option<String>) -> Problem {
    Problem { severity: Severity::Error, code, span, text, suggestion }
}

impl Walk<'_> {
    fn resolve<'s>(&'s self, schema: &'s Json) -> &'s Json {
        resolve(self.root, schema)
    }

    /// The node as serde should see it; `None` when it is no value of the schema (a problem was reported).
    fn node(&self, node: &Node, schema: &Json, top: bool, problems: &mut Vec<Problem>) -> Option<Node> {
        let schema = self.resolve(schema);
        if let Some(inner) = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Json::as_array) {
            return self.variant(node, inner, problems);
        }
        if let Some([only]) = schema.get("allOf").and_then(Json::as_array).map(Vec::as_slice) {
            return self.node(node, only, top, problems);
        }
        if !self.fits(node, schema) {
            problems.push(self.wrong_type(node, &[schema]));
            return None;
        }
        match &node.value {
            Value::Table(entries) => self.table(node, entries, schema, top, problems),
            Value::Array(items) => {
                let Some(item_schema) = schema.get("items") else { return Some(node.clone()) };
                let checked: Vec<_> =
                    items.iter().map(|item| self.node(item, item_schema, false, problems)).collect();
                // What comes after a wrong item is left out too: classes count positions.
                let value = Value::Array(checked.into_iter().map_while(|item| item).collect());
                Some(Node { span: node.span, value })
            }
            Value::String(text) => self.string(node, text, schema, problems),
            Value::Integer(number) => self.number(node, *number as f64, schema, problems),
            Value::Float(number) => self.number(node, *number, schema, problems),
            _ => Some(node.clone()),
        }
    }

    fn string(&self, node: &Node, text: &str, schema: &Json, problems: &mut Vec<Problem>) -> Option<Node> {
        if let Some(allowed) = allowed_texts(&[schema]) {
            if !allowed.contains(&text) {
                problems.push(unknown_value(node.span, text, &allowed));
                return None;
            }
            return Some(node.clone());
        }
        let format = schema.get("format").and_then(Json::as_str).unwrap_or_default();
        if let Err(error) = check_format(format, text) {
            problems.push(problem("S0105", node.span, error.to_string(), None));
            return None;
        }
        if !PATHS.contains(&format) {
            return Some(node.clone());
        }
        let path = self.sources.folder(node.span).join(text);
        if format != "septet-path" && !path.is_file() {
            let text = format!("there is no file {}", path.display());
            problems.push(problem("S0106", node.span, text, None));
            return None;
        }
        if let Some((severity, code, text)) = certificates::look(format, &path, SystemClock.now()) {
            let wrong = severity == Severity::Error;
            problems.push(Problem { severity, code, span: node.span, text, suggestion: None });
            if wrong {
                return None;
            }
        }
        Some(Node { span: node.span, value: Value::String(path.to_string_lossy().into_owned()) })
    }

    fn number(&self, node: &Node, number: f64, schema: &Json, problems: &mut Vec<Problem>) -> Option<Node> {
        let limit = |key| schema.get(key).and_then(Json::as_f64);
        let text = match (limit("minimum"), limit("maximum")) {
            (Some(least), _) if number < least => format!("this must be at least {least}"),
            (_, Some(most)) if number > most => format!("this must be at most {most}"),
            _ => return Some(node.clone()),
        };
        problems.push(problem("S0104", node.span, text, None));
        None
    }

    fn table(
        &self,
        node: &Node,
        entries: &[Entry],
        schema: &Json,
        top: bool,
        problems: &mut Vec<Problem>,
    ) -> Option<Node> {
        let empty = serde_json::Map::new();
        let properties = schema.get("properties").and_then(Json::as_object).unwrap_or(&empty);
        let others = schema.get("additionalProperties").filter(|others| others.is_object());
        let open = others.is_some() || schema.get("additionalProperties") == Some(&Json::Bool(true));
        let closed = !open && (!properties.is_empty() || schema.get("additionalProperties").is_some());
        let mut kept = Vec::new();
        for entry in entries {
            let found = properties.get(&entry.key).or(others);
            if found.is_none() && closed {
                if !entry.key.starts_with("x-") {
                    let more: &[&str] = if top { self.more_keys } else { &[] };
                    problems.push(unknown_key(entry, properties.keys().map(String::as_str), more));
                }
                continue;
            }
            if let Some(property) = properties.get(&entry.key) {
                self.inline_secret(entry, schema, problems);
                self.named_x(entry, property, problems);
            }
            let pruned = match found {
                // In a table whose keys are data a note of the user's own is told by its value, which does not fit.
                Some(found) if entry.key.starts_with("x-") => {
                    self.node(&entry.node, found, false, &mut Vec::new())
                }
                Some(found) => self.node(&entry.node, found, false, problems),
                None => Some(entry.node.clone()),
            };
            kept.extend(pruned.map(|node| Entry { node, ..entry.clone() }));
        }
        for key in schema.get("required").and_then(Json::as_array).into_iter().flatten() {
            let Some(key) = key.as_str() else { continue };
            if !entries.iter().any(|entry| entry.key == key) {
                let about = properties.get(key).map(|schema| self.about(schema));
                problems.push(problem("S0103", node.span, format!("{key} is missing"), about));
            }
        }
        self.strangers(&kept, properties, problems);
        Some(Node { span: node.span, value: Value::Table(kept) })
    }

    /// Reports a key that belongs to another certificate than the one beside it.
    fn strangers(
        &self,
        kept: &[Entry],
        properties: &serde_json::Map<String, Json>,
        problems: &mut Vec<Problem>,
    ) {
        let path = |name: &str, format: &str| {
            let is = |variant: &&Json| variant.get("format").and_then(Json::as_str) == Some(format);
            let entry = kept.iter().find(|entry| entry.key == name)?;
            let declared = properties.get(name)?;
            variants(self.root, declared).iter().any(is).then_some((entry.node.as_str()?, entry.node.span))
        };
        let pair = path("cert", "septet-certificate").zip(path("key", "septet-key"));
        if let Some(((cert, _), (key, span))) = pair
            && certificates::strangers(cert.as_ref(), key.as_ref())
        {
            let text = format!("{key} is not the key of {cert}");
            problems.push(problem("S0621", span, text, None));
        }
    }

    /// Warns where a secret stands in the file in clear text. Hashes are no secrets, and keys of maps (headers)
    /// hold many things that are none.
    fn inline_secret(&self, entry: &Entry, schema: &Json, problems: &mut Vec<Problem>) {
        let Some(property) = schema.get("properties").and_then(|all| all.get(&entry.key)) else { return };
        let secret = |variant: &&Json| variant.get("format").and_then(Json::as_str) == Some("septet-secret");
        let all = variants(self.root, property);
        // One secret, or a list of them.
        let items = all.iter().filter_map(|variant| variant.get("items"));
        let listed = items.flat_map(|items| variants(self.root, items)).any(|variant| secret(&variant));
        let declared = listed || all.iter().any(secret);
        let literal = |node: &Node| {
            node.as_str().is_some_and(|text| !text.is_empty())
                && !self.sources.text(node.span).contains("${")
                && !self.sources.get(node.span.file).is_some_and(Source::is_environment)
        };
        let clear = literal(&entry.node) || entry.node.items().iter().any(literal);
        if declared && clear && !entry.key.ends_with("hash") {
            let text = format!("{} stands in the file in clear text", entry.key);
            let suggestion = Some("write ${env:NAME} or ${file:path}".to_owned());
            let severity = Severity::Warning;
            problems.push(Problem { severity, code: "S0601", span: entry.key_span, text, suggestion });
        }
    }

    /// Headers and parameters often begin with `x-`: there a wrong value is a mistake, not a note.
    fn named_x(&self, entry: &Entry, property: &Json, problems: &mut Vec<Problem>) {
        if !DATA_TABLES.contains(&entry.key.as_str()) {
            return;
        }
        for variant in variants(self.root, property) {
            let Some(values) = variant.get("additionalProperties").filter(|values| values.is_object()) else {
                continue;
            };
            for inner in entry.node.entries().iter().filter(|inner| inner.key.starts_with("x-")) {
                self.node(&inner.node, values, false, problems);
            }
        }
    }

    /// Several alternatives: the one that fits without problems, else the best guess at what was meant.
    fn variant(&self, node: &Node, alternatives: &[Json], problems: &mut Vec<Problem>) -> Option<Node> {
        let all: Vec<&Json> = alternatives.iter().flat_map(|inner| variants(self.root, inner)).collect();
        let fitting: Vec<_> = all.iter().copied().filter(|variant| self.fits(node, variant)).collect();
        if fitting.is_empty() {
            problems.push(self.wrong_type(node, &all));
            return None;
        }
        if let Value::String(text) = &node.value
            && let Some(allowed) = allowed_texts(&fitting)
            && !allowed.contains(&text.as_str())
        {
            problems.push(unknown_value(node.span, text, &allowed));
            return None;
        }
        let mut best: Option<Vec<Problem>> = None;
        for variant in fitting {
            let mut found = Vec::new();
            let pruned = self.node(node, variant, false, &mut found);
            if errors(&found) == 0 {
                problems.extend(found);
                return pruned;
            }
            if best.as_ref().is_none_or(|best| found.len() < best.len()) {
                best = Some(found);
            }
        }
        problems.extend(best.unwrap_or_default());
        None
    }

    /// Whether the node is of the kind the schema wants; says nothing about what is inside.
    fn fits(&self, node: &Node, schema: &Json) -> bool {
        if schema == &Json::Bool(false) {
            return false;
        }
        if schema.get("anyOf").or_else(|| schema.get("oneOf")).is_some() {
            return true;
        }
        let kinds: &[&str] = match &node.value {
            Value::String(_) => &["string"],
            Value::Integer(_) => &["integer", "number"],
            Value::Float(_) => &["number"],
            Value::Boolean(_) => &["boolean"],
            Value::Datetime(_) => &["string"],
            Value::Array(_) => &["array"],
            Value::Table(_) => &["object"],
        };
        let wanted = wanted_kinds(schema);
        wanted.is_empty() || wanted.iter().any(|wanted| kinds.contains(wanted))
    }

    fn wrong_type(&self, node: &Node, schemas: &[&Json]) -> Problem {
        let mut expected: Vec<String> = Vec::new();
        match allowed_texts(schemas) {
            Some(allowed) => expected.push(quoted(&allowed)),
            None => expected.extend(schemas.iter().map(|schema| expects(self.root, schema))),
        }
        expected.dedup();
        let found = match &node.value {
            Value::String(_) => "a string",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::Datetime(_) => "a date or time",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        };
        let text = format!("expected {}, found {found}", expected.join(" or "));
        problem("S0104", node.span, text, None)
    }

    /// A missing key's own description, and what it takes.
    fn about(&self, schema: &Json) -> String {
        let describe = |schema: &Json| {
            let text = schema.get("description").and_then(Json::as_str)?;
            Some(text.lines().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" "))
        };
        let resolved = self.resolve(schema);
        let expects = expects(self.root, resolved);
        match describe(schema).or_else(|| describe(resolved)) {
            Some(text) => format!("{expects}: {text}"),
            None => format!("it takes {expects}"),
        }
    }
}

/// The schema behind a `$ref`.
pub(crate) fn resolve<'s>(root: &'s Json, schema: &'s Json) -> &'s Json {
    let mut schema = schema;
    // A chain of references longer than this is a loop.
    for _ in 0..16 {
        let Some(path) = schema.get("$ref").and_then(Json::as_str) else { break };
        match root.pointer(path.trim_start_matches('#')) {
            Some(found) => schema = found,
            None => break,
        }
    }
    schema
}

/// The alternatives of a schema, nothing (`null`) left out; itself where it has none.
pub(crate) fn variants<'s>(root: &'s Json, schema: &'s Json) -> Vec<&'s Json> {
    let schema = resolve(root, schema);
    let Some(inner) = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Json::as_array) else {
        return vec![schema];
    };
    let all = inner.iter().flat_map(|inner| variants(root, inner));
    all.filter(|variant| variant.get("type").and_then(Json::as_str) != Some("null")).collect()
}

/// What a schema wants, in words.
pub(crate) fn expects(root: &Json, schema: &Json) -> String {
    let all = variants(root, schema);
    if let Some(allowed) = allowed_texts(&all) {
        return quoted(&allowed);
    }
    let mut names: Vec<String> = Vec::new();
    for schema in all {
        let name = if let Some(allowed) = allowed_texts(&[schema]) {
            quoted(&allowed)
        } else if let Some(name) = schema.get("format").and_then(Json::as_str).and_then(format_name) {
            name.to_owned()
        } else {
            let kinds: Vec<_> = wanted_kinds(schema).into_iter().map(kind_name).collect();
            if kinds.is_empty() { "any value".into() } else { kinds.join(" or ") }
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(" or ")
}

fn wanted_kinds(schema: &Json) -> Vec<&str> {
    match schema.get("type") {
        Some(Json::String(kind)) => vec![kind],
        Some(Json::Array(kinds)) => kinds.iter().filter_map(Json::as_str).filter(|k| *k != "null").collect(),
        _ if schema.get("const").is_some_and(Json::is_string) || schema.get("enum").is_some() => {
            vec!["string"]
        }
        _ if schema.get("properties").is_some() => vec!["object"],
        _ => Vec::new(),
    }
}

fn kind_name(kind: &str) -> &str {
    match kind {
        "string" => "a string",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "a table",
        other => other,
    }
}

/// The texts that string schemas allow, where every one of them is a list of texts.
fn allowed_texts<'s>(schemas: &[&'s Json]) -> Option<Vec<&'s str>> {
    let mut all = Vec::new();
    for schema in schemas {
        match (schema.get("const").and_then(Json::as_str), schema.get("enum").and_then(Json::as_array)) {
            (Some(text), _) => all.push(text),
            (None, Some(texts)) => all.extend(texts.iter().filter_map(Json::as_str)),
            (None, None) => return None,
        }
    }
    Some(all)
}

fn quoted(texts: &[&str]) -> String {
    let all: Vec<_> = texts.iter().map(|text| format!("\"{text}\"")).collect();
    match all.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => all.join(""),
    }
}

fn unknown_value(span: Span, text: &str, allowed: &[&str]) -> Problem {
    let suggestion = did_you_mean(text, allowed.iter().copied());
    problem("S0104", span, format!("expected {}", quoted(allowed)), suggestion)
}

/// The diagnostic of a key that is not known where it stands.
pub(crate) fn unknown_key<'k>(
    entry: &Entry,
    known: impl Iterator<Item = &'k str> + Clone,
    more: &[&'k str],
) -> Problem {
    let all = known.chain(more.iter().copied());
    let suggestion = did_you_mean(&entry.key, all.clone()).or_else(|| {
        let all: Vec<_> = all.collect();
        (!all.is_empty() && all.len() <= 30).then(|| format!("there are {}", all.join(", ")))
    });
    problem("S0102", entry.key_span, format!("unknown key {}", entry.key), suggestion)
}
