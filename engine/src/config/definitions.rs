//! What items refer to by name: `[messages.*]`, `[transforms.*]`, `[lookups.*]` (CONTRACT §2.2, §2.4).

use std::collections::BTreeMap;
use std::path::Path;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use crate::config::node::{Entry, Node, Value};
use crate::config::problem::did_you_mean;
use crate::config::report::Report;
use crate::config::resolve::plain;
use crate::config::settings::{SetValue, Transform};
use crate::config::units::Ordered;
use crate::record::{Field, FieldType, MessageType, MessageTypes};

/// The type of the messages that items of `production.alerts` get (CONTRACT §3).
pub const ALERT: &str = "Alert";

/// Names of types that are not declared: what JSON and text become without a declaration.
const UNDECLARED: [&str; 2] = ["Json", "Text"];

fn alert_type() -> MessageType {
    let field = |name: &str, kind, optional| (name.to_owned(), Field { kind, optional });
    MessageType {
        name: ALERT.into(),
        fields: vec![
            field("id", FieldType::Integer, false),
            field("at", FieldType::Datetime, false),
            field("level", FieldType::String, false),
            field("kind", FieldType::String, false),
            field("item", FieldType::String, true),
            field("text", FieldType::String, false),
            field("session", FieldType::Integer, true),
            field("message_id", FieldType::Integer, true),
        ],
    }
}

/// Reads `[messages.*]`.
pub(crate) fn messages(section: &Node, report: &mut Report<'_>) -> MessageTypes {
    let mut types = vec![alert_type()];
    for entry in section.entries() {
        if entry.key == ALERT || UNDECLARED.contains(&entry.key.as_str()) {
            let text = format!("{} is a type of the engine's own", entry.key);
            report.error("S0207", entry.key_span, text, Some("choose another name".into()));
            continue;
        }
        let Value::Table(fields) = &entry.node.value else {
            report.error("S0104", entry.node.span, "expected a table of fields and their types", None);
            continue;
        };
        // A field whose type is wrong is there all the same: its uses are no mistakes.
        let unknown = Field { kind: FieldType::Any, optional: true };
        let field = |field: &Entry| (field.key.clone(), self::field(field, report).unwrap_or(unknown));
        let fields = fields.iter().map(field).collect();
        types.push(MessageType { name: entry.key.clone(), fields });
    }
    MessageTypes::new(types)
}

fn field(entry: &Entry, report: &mut Report<'_>) -> Option<Field> {
    let Some(text) = entry.node.as_str() else {
        let text = "a field's type is a string such as \"string\" or \"list?\"";
        report.error("S0108", entry.node.span, text, None);
        return None;
    };
    let name = text.strip_suffix('?').unwrap_or(text);
    text.parse()
        .map_err(|why: String| {
            let suggestion = did_you_mean(name, FieldType::NAMES.iter().map(|(name, _)| *name));
            report.error("S0108", entry.node.span, why, suggestion);
        })
        .ok()
}

/// `[transforms.NAME]`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransformKeys {
    /// The message type it makes; absent: HL7, and the target starts as a copy of the source.
    #[serde(default)]
    to: Option<String>,
    /// Fields or paths of the target and where they come from, in order; runs before `code`.
    #[serde(default)]
    set: Ordered<SetValue>,
    /// JavaScript statements over `source` and `target`.
    #[serde(default)]
    code: Option<String>,
}

/// Reads `[transforms.*]`; scripts and paths are for the registry's check.
pub(crate) fn transforms(
    section: &Node,
    types: &MessageTypes,
    report: &mut Report<'_>,
) -> BTreeMap<String, Transform> {
    let mut all = BTreeMap::new();
    for entry in section.entries() {
        let Some(keys) = report.read::<TransformKeys>(&entry.node) else { continue };
        let transform = Transform { to: keys.to, set: keys.set.0, code: keys.code };
        check_fields(entry, &transform, types, report);
        all.insert(entry.key.clone(), transform);
    }
    all
}

/// The target type exists, `set` names its fields, and nothing required is left unset.
fn check_fields(entry: &Entry, transform: &Transform, types: &MessageTypes, report: &mut Report<'_>) {
    let Some(to) = &transform.to else { return };
    let Some(declared) = types.get(to) else {
        let suggestion = did_you_mean(to, types.iter().map(|known| known.name.as_str()));
        let place = report.place(&entry.node, &["to"]);
        report.error("S0202", place, format!("message type {to} is not declared"), suggestion);
        return;
    };
    // What stands below a field (`patient.name`) is for the class to check.
    let top = |set: &str| set.split('.').next().unwrap_or(set).to_owned();
    let known = |name: &str| declared.fields.iter().any(|(field, _)| *field == top(name));
    for set in entry.node.get("set").map(|set| set.node.entries()).unwrap_or_default() {
        if !known(&set.key) {
            let suggestion = did_you_mean(&set.key, declared.fields.iter().map(|(field, _)| field.as_str()));
            report.error("S0216", set.key_span, format!("{to} has no field {}", set.key), suggestion);
        }
    }
    if transform.code.is_none() {
        for (field, declared) in &declared.fields {
            if !declared.optional && !transform.set.iter().any(|(set, _)| top(set) == *field) {
                let text = format!("{to}.{field} is required, and nothing sets it");
                report.warning("S0405", entry.node.span, text, None);
            }
        }
    }
}

impl<'de> Deserialize<'de> for SetValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathOrTable;
        impl<'de> Visitor<'de> for PathOrTable {
            type Value = SetValue;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a path, { value = … } or { expr = \"…\" }")
            }
            fn visit_str<E: de::Error>(self, path: &str) -> Result<SetValue, E> {
                Ok(SetValue::Path(path.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SetValue, A::Error> {
                let value = match map.next_key::<String>()?.as_deref() {
                    Some("value") => SetValue::Constant(map.next_value()?),
                    Some("expr") => SetValue::Expression(map.next_value()?),
                    _ => return Err(de::Error::custom("expected { value = … } or { expr = \"…\" }")),
                };
                match map.next_key::<String>()? {
                    None => Ok(value),
                    Some(_) => Err(de::Error::custom("expected either value or expr, and nothing else")),
                }
            }
        }
        deserializer.deserialize_any(PathOrTable)
    }
}

impl JsonSchema for SetValue {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SetValue".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string", "description": "A path in the source." },
            { "type": "object", "properties": { "value": { "description": "A constant." } },
              "required": ["value"], "additionalProperties": false },
            { "type": "object", "properties": { "expr": { "type": "string", "description": "A JavaScript expression." } },
              "required": ["expr"], "additionalProperties": false },
        ] })
    }
}

/// Lookup tables by name.
pub(crate) type Lookups = BTreeMap<String, BTreeMap<String, String>>;

/// Reads `[lookups.*]`: an inline table of strings, or `file = "x.csv"` with two columns and no heading.
pub(crate) fn lookups(section: &Node, report: &mut Report<'_>) -> Lookups {
    let mut all = Lookups::new();
    for entry in section.entries() {
        let table = match (entry.node.entries(), entry.node.get("file").and_then(|file| file.node.as_str())) {
            ([file], Some(path)) => {
                let path = report.sources.folder(file.node.span).join(path);
                match read_csv(&path) {
                    Ok(table) => table,
                    Err(why) => {
                        let text = format!("{} cannot be read: {why}", path.display());
                        report.error("S0106", file.node.span, text, None);
                        BTreeMap::new()
                    }
                }
            }
            _ => inline(&entry.node, report),
        };
        all.insert(entry.key.clone(), table);
    }
    all
}

fn inline(node: &Node, report: &mut Report<'_>) -> BTreeMap<String, String> {
    let Value::Table(entries) = &node.value else {
        report.error("S0104", node.span, "expected a table of strings, or file = \"x.csv\"", None);
        return BTreeMap::new();
    };
    let mut table = BTreeMap::new();
    for entry in entries {
        match entry.node.as_str() {
            Some(text) => drop(table.insert(entry.key.clone(), text.to_owned())),
            None => report.error("S0104", entry.node.span, "expected a string", None),
        }
    }
    table
}

fn read_csv(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| plain(&error))?;
    let mut table = BTreeMap::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match columns(line).as_deref() {
            Some([key, value]) => drop(table.insert(key.clone(), value.clone())),
            _ => return Err(format!("line {} has not two columns", number + 1)),
        }
    }
    Ok(table)
}

/// The columns of one line (RFC 4180, without line breaks in values).
fn columns(line: &str) -> Option<Vec<String>> {
    let mut all = Vec::new();
    let mut rest = line;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut value = String::new();
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next()? {
                    (_, '"') if chars.peek().is_some_and(|(_, c)| *c == '"') => {
                        chars.next();
                        value.push('"');
                    }
                    (at, '"') => break at + 1,
                    (_, c) => value.push(c),
                }
            };
            all.push(value);
            rest = quoted.get(end..)?;
            if rest.is_empty() {
                return Some(all);
            }
            rest = rest.strip_prefix(',')?;
        } else {
            match rest.split_once(',') {
                Some((value, after)) => {
                    all.push(value.trim().to_owned());
                    rest = after;
                }
                None => {
                    all.push(rest.trim().to_owned());
                    return Some(all);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_lines_have_columns_quoted_or_not() {
        assert_eq!(columns("M,male").unwrap(), ["M", "male"]);
        assert_eq!(columns("\"a \"\"b\"\", c\",d").unwrap(), ["a \"b\", c", "d"]);
        assert_eq!(columns("a,").unwrap(), ["a", ""]);
        assert_eq!(columns("\"open"), None);
    }
}
