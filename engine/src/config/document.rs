//! What is generated from the settings' own schemas: the JSON Schema of the production file, and the
//! reference. Nothing here knows a single setting.

use std::fmt::Write as _;

use schemars::{JsonSchema, schema_for};
use serde_json::{Map, Value as Json, json};

use crate::config::check::{expects, resolve, variants};
use crate::config::{common, definitions, oauth, sections};
use crate::registry::{ItemClass, ItemKind, Registry};

/// A part of the production file that is not an item.
struct Section {
    name: &'static str,
    about: &'static str,
    /// `[name.NAME]`: a table of named tables.
    named: bool,
    schema: fn() -> Json,
}

fn of<T: JsonSchema>() -> Json {
    schema_for!(T).to_value()
}

const SECTIONS: [Section; 8] = [
    Section {
        name: "production",
        about: "The production itself.",
        named: false,
        schema: of::<sections::ProductionKeys>,
    },
    Section {
        name: "store",
        about: "Where messages are kept, and for how long.",
        named: false,
        schema: of::<sections::StoreKeys>,
    },
    Section {
        name: "admin",
        about: "The admin API and the portal; absent: none.",
        named: false,
        schema: of::<sections::AdminKeys>,
    },
    Section {
        name: "log",
        about: "The log on standard error.",
        named: false,
        schema: of::<sections::LogKeys>,
    },
    Section {
        name: "oauth",
        about: "OAuth clients; operations refer to them by name.",
        named: true,
        schema: of::<oauth::ClientKeys>,
    },
    Section {
        name: "messages",
        about: "Typed messages: fields and their types (string integer number boolean datetime object list any secret), ? = optional.",
        named: true,
        schema: message_schema,
    },
    Section {
        name: "transforms",
        about: "Named transforms; flows refer to them by name.",
        named: true,
        schema: of::<definitions::TransformKeys>,
    },
    Section {
        name: "lookups",
        about: "Lookup tables for lookup(table, key, default): an inline table of strings, or file = \"x.csv\" with two columns and no heading.",
        named: true,
        schema: lookup_schema,
    },
];

fn message_schema() -> Json {
    let pattern = "^(string|integer|number|boolean|datetime|object|list|any|secret)[?]?$";
    json!({ "type": "object", "additionalProperties": { "type": "string", "pattern": pattern } })
}

fn lookup_schema() -> Json {
    json!({ "type": "object", "additionalProperties": { "type": "string" } })
}

/// The JSON Schema of the production file.
pub fn schema(registry: &Registry) -> Json {
    let mut defs = Map::new();
    let mut properties = Map::new();
    let include = json!({
        "description": "Files of the same form, merged into this one: [\"interfaces/*.toml\"].",
        "type": "array", "items": { "type": "string" },
    });
    properties.insert("include".into(), include);
    for section in &SECTIONS {
        let inner = hoist((section.schema)(), section.name, &mut defs);
        let described = if section.named {
            json!({ "type": "object", "description": section.about, "additionalProperties": inner })
        } else {
            inner
        };
        properties.insert(section.name.into(), described);
    }
    for kind in ItemKind::ALL {
        let classes: Vec<_> = registry.items.iter().filter(|class| class.kind == kind).collect();
        let mut cases = Vec::new();
        for class in &classes {
            let name = format!("{}.{}", kind.table(), class.type_name);
            let whole = hoist(item_schema(class), &name, &mut defs);
            cases.push(json!({
                "if": { "properties": { "type": { "const": class.type_name } } },
                "then": { "$ref": format!("#/$defs/{name}") },
            }));
            defs.insert(name, whole);
        }
        let types: Vec<_> = classes.iter().map(|class| class.type_name).collect();
        let item = json!({
            "type": "object",
            "required": ["type"],
            "properties": { "type": { "enum": types } },
            "allOf": cases,
        });
        let names = json!({ "pattern": "^[A-Za-z][A-Za-z0-9_-]*$" });
        let all = json!({ "type": "object", "propertyNames": names, "additionalProperties": item });
        properties.insert(kind.table().into(), all);
    }
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Septet production file",
        "type": "object",
        "required": ["production"],
        "properties": properties,
        "additionalProperties": false,
        "$defs": defs,
    });
    allow_annotations(&mut schema);
    schema
}

/// The schema of a whole item: the keys of all items, of its kind, and its own, which come first.
fn item_schema(class: &ItemClass) -> Json {
    let mut parts = vec![(class.schema)().to_value()];
    parts.extend(common::schemas(class.kind));
    let mut whole = Map::new();
    let (mut properties, mut required, mut defs) = (Map::new(), Vec::new(), Map::new());
    for part in parts {
        let map = |key: &str| part.get(key).and_then(Json::as_object).cloned().unwrap_or_default();
        for (key, value) in map("properties") {
            if !properties.contains_key(&key) {
                properties.insert(key, value);
            }
        }
        for key in part.get("required").and_then(Json::as_array).into_iter().flatten() {
            if !required.contains(key) {
                required.push(key.clone());
            }
        }
        defs.extend(map("$defs"));
    }
    properties.insert("type".into(), json!({ "const": class.type_name, "description": class.summary }));
    whole.insert("type".into(), "object".into());
    whole.insert("description".into(), class.summary.into());
    whole.insert("properties".into(), properties.into());
    whole.insert("required".into(), required.into());
    whole.insert("additionalProperties".into(), false.into());
    whole.insert("$defs".into(), defs.into());
    whole.into()
}

/// Moves a schema's definitions to the document's, under names that do not clash.
fn hoist(mut schema: Json, prefix: &str, defs: &mut Map<String, Json>) -> Json {
    let inner = schema.as_object_mut().and_then(|map| {
        map.shift_remove("$schema");
        map.shift_remove("title");
        map.shift_remove("$defs")
    });
    rename_refs(&mut schema, prefix);
    if let Some(Json::Object(inner)) = inner {
        for (name, mut definition) in inner {
            rename_refs(&mut definition, prefix);
            defs.insert(format!("{prefix}.{name}"), definition);
        }
    }
    schema
}

fn rename_refs(schema: &mut Json, prefix: &str) {
    match schema {
        Json::Object(map) => {
            for (key, value) in map {
                match value.as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
                    Some(name) if key == "$ref" => *value = format!("#/$defs/{prefix}.{name}").into(),
                    _ => rename_refs(value, prefix),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| rename_refs(item, prefix)),
        _ => {}
    }
}

/// Keys beginning `x-` are allowed wherever keys are otherwise closed.
fn allow_annotations(schema: &mut Json) {
    match schema {
        Json::Object(map) => {
            if map.get("additionalProperties") == Some(&Json::Bool(false)) {
                map.insert("patternProperties".into(), json!({ "^x-": true }));
            }
            map.values_mut().for_each(allow_annotations);
        }
        Json::Array(items) => items.iter_mut().for_each(allow_annotations),
        _ => {}
    }
}

// === Reference ===

/// What [`reference_of`] knows: sections, then types.
pub fn topics(registry: &Registry) -> Vec<String> {
    let mut topics: Vec<String> = SECTIONS.iter().map(|section| section.name.to_owned()).collect();
    for class in &registry.items {
        if !topics.iter().any(|topic| topic == class.type_name) {
            topics.push(class.type_name.to_owned());
        }
    }
    topics
}

/// The whole reference, in Markdown that reads well in a terminal.
pub fn reference(registry: &Registry) -> String {
    let mut out = String::from("# Reference of the production file\n");
    for section in &SECTIONS {
        write_section(&mut out, section);
    }
    for kind in ItemKind::ALL {
        let title = kind.table();
        let _ = write!(out, "\n# {title}\n\nKeys of all {title}:\n\n");
        for part in common::schemas(kind) {
            write_keys(&mut out, &part, &part, 0, &[]);
        }
        for class in registry.items.iter().filter(|class| class.kind == kind) {
            write_class(&mut out, class);
        }
    }
    out
}

/// The reference of one section, or of all types of a name.
pub fn reference_of(registry: &Registry, topic: &str) -> Option<String> {
    let mut out = String::new();
    if let Some(section) = SECTIONS.iter().find(|section| section.name == topic) {
        write_section(&mut out, section);
    }
    for class in registry.items.iter().filter(|class| class.type_name == topic) {
        write_class(&mut out, class);
        let _ = write!(out, "\nKeys of all {}:\n\n", class.kind.table());
        for part in common::schemas(class.kind) {
            write_keys(&mut out, &part, &part, 0, &["type"]);
        }
    }
    (!out.is_empty()).then(|| out.trim_start().to_owned())
}

fn write_section(out: &mut String, section: &Section) {
    let name = if section.named { ".NAME" } else { "" };
    let _ = write!(out, "\n## [{}{name}]\n\n{}\n\n", section.name, section.about);
    let schema = (section.schema)();
    write_keys(out, &schema, &schema, 0, &[]);
}

fn write_class(out: &mut String, class: &ItemClass) {
    let kind = class.kind.as_str();
    let _ = write!(out, "\n## {} ({kind})\n\n{}\n\n", class.type_name, class.summary);
    let schema = (class.schema)().to_value();
    let common: Vec<String> = common_twice(class.kind, &schema);
    let common: Vec<&str> = common.iter().map(String::as_str).collect();
    write_keys(out, &schema, &schema, 0, &common);
}

/// Common keys that a class repeats in its own settings; they are described once.
fn common_twice(kind: ItemKind, schema: &Json) -> Vec<String> {
    let own = |key: &String| schema.get("properties").is_some_and(|all| all.get(key).is_some());
    common::keys(kind).into_iter().filter(own).collect()
}

/// One list entry a key: what it takes, its default, its description; tables below their key.
fn write_keys(out: &mut String, root: &Json, schema: &Json, depth: usize, leave_out: &[&str]) {
    let Some(properties) = schema.get("properties").and_then(Json::as_object) else { return };
    let required = schema.get("required").and_then(Json::as_array);
    let indent = "  ".repeat(depth);
    for (key, property) in properties {
        if leave_out.contains(&key.as_str()) {
            continue;
        }
        let target = resolve(root, property);
        let takes = expects(root, property);
        let is_required = required.is_some_and(|all| all.iter().any(|name| name.as_str() == Some(key)));
        let default = property.get("default").and_then(toml_text);
        let note = match (is_required, default) {
            (true, _) => ", required".to_owned(),
            (false, Some(default)) => format!(", default {default}"),
            (false, None) => String::new(),
        };
        let _ = writeln!(out, "{indent}- `{key}`: {takes}{note}");
        let about = property.get("description").or_else(|| target.get("description")).and_then(Json::as_str);
        for line in about.unwrap_or_default().lines() {
            let _ = writeln!(out, "{indent}  {line}");
        }
        if depth < 4 {
            for variant in variants(root, property) {
                let inner = variant.get("items").or_else(|| variant.get("additionalProperties"));
                let inner = inner.map_or(variant, |inner| resolve(root, inner));
                write_keys(out, root, inner, depth + 1, &[]);
            }
        }
    }
}

/// A default as it would be written; nothing for what is off unless set.
fn toml_text(value: &Json) -> Option<String> {
    match value {
        Json::Null => None,
        Json::Object(map) if map.is_empty() || map.values().all(Json::is_null) => None,
        Json::Array(items) if items.is_empty() => None,
        Json::Object(_) => None,
        other => Some(other.to_string()),
    }
}
