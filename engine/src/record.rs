//! Typed messages: their declarations (`[messages.NAME]`, CONTRACT §2.2) and records that fit them.
//!
//! Invariants: a [`Record`] never holds a secret in clear: fields declared `secret` are sealed when the
//! record is created (`MessageTypes::create`) and opened only by [`Record::reveal`], which operations
//! call on the way to a peer. Shown to people, a sealed value is `•••` ([`Record::masked`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::vault::{MASK, Vault, VaultError, sealed_text};

/// The type of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Text.
    String,
    /// An integral number; integral JavaScript numbers count.
    Integer,
    /// Any number.
    Number,
    /// True or false.
    Boolean,
    /// A point in time as RFC 3339 text.
    Datetime,
    /// A JSON object.
    Object,
    /// A JSON array.
    List,
    /// Anything.
    Any,
    /// Text that is sealed at rest and shown as `•••`.
    Secret,
}

impl FieldType {
    /// All names, for diagnostics and docs.
    pub const NAMES: [(&'static str, FieldType); 9] = [
        ("string", FieldType::String),
        ("integer", FieldType::Integer),
        ("number", FieldType::Number),
        ("boolean", FieldType::Boolean),
        ("datetime", FieldType::Datetime),
        ("object", FieldType::Object),
        ("list", FieldType::List),
        ("any", FieldType::Any),
        ("secret", FieldType::Secret),
    ];

    /// `string`, `integer`, …
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, t)| *t == self).map_or("any", |(name, _)| name)
    }
}

/// A declared field: its type, and whether it may be absent (`?`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// What values it takes.
    pub kind: FieldType,
    /// Declared with `?`.
    pub optional: bool,
}

impl std::str::FromStr for Field {
    type Err = String;

    /// Reads `"string"`, `"list?"`, …; the error text lists what there is.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, optional) = match text.strip_suffix('?') {
            Some(name) => (name, true),
            None => (text, false),
        };
        let known = FieldType::NAMES.iter().find(|(known, _)| *known == name);
        let kind = known.map(|(_, kind)| *kind).ok_or_else(|| {
            let names: Vec<_> = FieldType::NAMES.iter().map(|(name, _)| *name).collect();
            format!("unknown field type; there are {}, each with ? when optional", names.join(", "))
        })?;
        Ok(Field { kind, optional })
    }
}

/// One declared message type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageType {
    /// Its name, for example `SubmitResult`.
    pub name: String,
    /// Its fields in declared order.
    pub fields: Vec<(String, Field)>,
}

impl MessageType {
    /// Whether any of its fields is a secret.
    pub fn has_secrets(&self) -> bool {
        self.fields.iter().any(|(_, field)| field.kind == FieldType::Secret)
    }

    /// Seals what this type declares secret in a value that does not fit it otherwise, so that it can be kept
    /// as it came without keeping the secret in clear. Says whether anything was sealed.
    pub fn seal(&self, value: &mut Value, vault: &Vault) -> Result<bool, VaultError> {
        let Some(given) = value.as_object_mut() else { return Ok(false) };
        let mut sealed = false;
        for (name, field) in &self.fields {
            if field.kind == FieldType::Secret
                && let Some(Value::String(clear)) = given.get(name)
            {
                let hidden = vault.seal_json(clear)?;
                given.insert(name.clone(), hidden);
                sealed = true;
            }
        }
        Ok(sealed)
    }
}

/// All declared message types of a production. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct MessageTypes(Arc<BTreeMap<String, MessageType>>);

/// Why values do not make a record of a type. Names fields, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No such type.
    #[error("message type {0} is not declared")]
    UnknownType(String),
    /// The value is no object.
    #[error("a {0} must be an object")]
    NotAnObject(String),
    /// Fields the type does not declare.
    #[error("{type_name} has no field {field}")]
    Undeclared {
        /// The type.
        type_name: String,
        /// The field.
        field: String,
    },
    /// A required field is absent or null.
    #[error("{type_name}.{field} is missing")]
    Missing {
        /// The type.
        type_name: String,
        /// The field.
        field: String,
    },
    /// A field has a value of another type.
    #[error("{type_name}.{field} must be {expected}")]
    WrongType {
        /// The type.
        type_name: String,
        /// The field.
        field: String,
        /// What it should be.
        expected: &'static str,
    },
    /// JSON that cannot be read.
    #[error("not a JSON object")]
    Json,
    /// Sealing failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// How strictly fields are compared with the declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undeclared {
    /// In `with` and transforms an undeclared field is an error.
    Refuse,
    /// Fields of a reply that its type does not declare are dropped.
    Ignore,
}

impl MessageTypes {
    /// From declarations.
    pub fn new(types: impl IntoIterator<Item = MessageType>) -> Self {
        MessageTypes(Arc::new(types.into_iter().map(|t| (t.name.clone(), t)).collect()))
    }

    /// The declaration of `name`.
    pub fn get(&self, name: &str) -> Option<&MessageType> {
        self.0.get(name)
    }

    /// All declarations by name.
    pub fn iter(&self) -> impl Iterator<Item = &MessageType> {
        self.0.values()
    }

    /// Checks `value` against the declaration of `name` and seals its secrets. Integral numbers written
    /// as floats become integers, optional fields that are null are dropped. A secret field takes clear
    /// text, an already sealed value, or nothing.
    pub fn create(
        &self,
        name: &str,
        value: Value,
        undeclared: Undeclared,
        vault: &Vault,
    ) -> Result<Record, RecordError> {
        let declared = self.get(name).ok_or_else(|| RecordError::UnknownType(name.to_owned()))?;
        let Value::Object(mut given) = value else {
            return Err(RecordError::NotAnObject(name.to_owned()));
        };
        let mut fields = Map::new();
        for (field, decl) in &declared.fields {
            let type_name = || name.to_owned();
            match given.shift_remove(field) {
                None | Some(Value::Null) if decl.optional => {}
                Some(Value::Null) if decl.kind == FieldType::Any => {
                    fields.insert(field.clone(), Value::Null);
                }
                None | Some(Value::Null) => {
                    return Err(RecordError::Missing { type_name: type_name(), field: field.clone() });
                }
                Some(value) => {
                    let value = fit(decl.kind, value, vault)?.ok_or_else(|| RecordError::WrongType {
                        type_name: type_name(),
                        field: field.clone(),
                        expected: decl.kind.name(),
                    })?;
                    fields.insert(field.clone(), value);
                }
            }
        }
        if undeclared == Undeclared::Refuse
            && let Some((field, _)) = given.iter().next()
        {
            return Err(RecordError::Undeclared { type_name: name.to_owned(), field: field.clone() });
        }
        Ok(Record { type_name: name.to_owned(), fields: Value::Object(fields) })
    }
}

/// `value` as a value of `kind`, or `None` when it is of another kind.
fn fit(kind: FieldType, value: Value, vault: &Vault) -> Result<Option<Value>, RecordError> {
    Ok(match (kind, value) {
        (FieldType::String, value @ Value::String(_)) => Some(value),
        (FieldType::Integer, Value::Number(number)) => integral(&number).map(Value::from),
        (FieldType::Number, value @ Value::Number(_)) => Some(value),
        (FieldType::Boolean, value @ Value::Bool(_)) => Some(value),
        (FieldType::Datetime, Value::String(text)) => {
            text.parse::<jiff::Timestamp>().is_ok().then_some(Value::String(text))
        }
        (FieldType::Object, value @ Value::Object(_)) => Some(value),
        (FieldType::List, value @ Value::Array(_)) => Some(value),
        (FieldType::Any, value) => Some(value),
        (FieldType::Secret, Value::String(clear)) => Some(vault.seal_json(&clear)?),
        (FieldType::Secret, value) if sealed_text(&value).is_some() => Some(value),
        _ => None,
    })
}

fn integral(number: &serde_json::Number) -> Option<i64> {
    if let Some(whole) = number.as_i64() {
        return Some(whole);
    }
    let float = number.as_f64()?;
    let exact = float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "checked to be integral and below 2^53")]
    exact.then_some(float as i64)
}

/// A typed message: JSON whose secrets are sealed. Records of type `Json` may hold any JSON value.
#[derive(Clone, PartialEq)]
pub struct Record {
    /// The message type.
    pub type_name: String,
    /// Its fields; an object, except for type `Json`.
    pub fields: Value,
}

impl Record {
    /// Reads what [`Record::to_json`] wrote.
    pub fn from_json(type_name: &str, bytes: &[u8]) -> Result<Self, RecordError> {
        let fields = serde_json::from_slice(bytes).map_err(|_| RecordError::Json)?;
        Ok(Record { type_name: type_name.to_owned(), fields })
    }

    /// A record of a type nobody declared, for example `Json`.
    pub fn untyped(type_name: &str, fields: Value) -> Self {
        Record { type_name: type_name.to_owned(), fields }
    }

    /// Compact JSON, secrets sealed: what the store keeps.
    pub fn to_json(&self) -> Vec<u8> {
        self.fields.to_string().into_bytes()
    }

    /// The fields with every sealed value opened: only for the way to a peer.
    pub fn reveal(&self, vault: &Vault) -> Result<Value, VaultError> {
        map_sealed(&self.fields, &mut |value| match vault.open_json(value) {
            Some(opened) => opened.map(|text| Value::String(text.to_string())),
            None => Err(VaultError::Damaged),
        })
    }

    /// The fields with every sealed value as `•••`: for people.
    pub fn masked(&self) -> Value {
        map_sealed(&self.fields, &mut |_| Ok::<_, std::convert::Infallible>(Value::from(MASK)))
            .unwrap_or_else(|never| match never {})
    }

    /// Whether it holds a sealed value anywhere.
    pub fn has_secrets(&self) -> bool {
        let mut found = false;
        let _ = map_sealed(&self.fields, &mut |value| {
            found = true;
            Ok::<_, std::convert::Infallible>(value.clone())
        });
        found
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({})", self.type_name)
    }
}

/// A copy of `value` with every sealed value inside replaced.
pub fn map_sealed<E>(value: &Value, replace: &mut dyn FnMut(&Value) -> Result<Value, E>) -> Result<Value, E> {
    if sealed_text(value).is_some() {
        return replace(value);
    }
    Ok(match value {
        Value::Object(fields) => {
            let mut out = Map::new();
            for (name, field) in fields {
                out.insert(name.clone(), map_sealed(field, replace)?);
            }
            Value::Object(out)
        }
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| map_sealed(item, replace)).collect::<Result<_, _>>()?)
        }
        other => other.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn types() -> MessageTypes {
        let field = |text: &str| text.parse::<Field>().unwrap();
        MessageTypes::new([MessageType {
            name: "Token".into(),
            fields: vec![
                ("token".into(), field("secret")),
                ("ttl".into(), field("integer")),
                ("note".into(), field("string?")),
            ],
        }])
    }

    #[test]
    fn a_record_seals_its_secrets_and_reveals_them_only_on_request() {
        let vault = Vault::ephemeral().unwrap();
        let given = json!({ "token": "abc123", "ttl": 60.0, "note": null });
        let record = types().create("Token", given, Undeclared::Refuse, &vault).unwrap();
        let stored = String::from_utf8(record.to_json()).unwrap();
        assert!(!stored.contains("abc123"), "stored in clear");
        assert_eq!(record.masked(), json!({ "token": "•••", "ttl": 60 }));
        assert_eq!(record.reveal(&vault).unwrap(), json!({ "token": "abc123", "ttl": 60 }));
        assert!(record.has_secrets());
    }

    #[test]
    fn what_does_not_fit_the_declaration_is_named_without_its_value() {
        let vault = Vault::ephemeral().unwrap();
        let create =
            |value, undeclared| types().create("Token", value, undeclared, &vault).map_err(|e| e.to_string());
        assert_eq!(create(json!({ "token": "a" }), Undeclared::Refuse).unwrap_err(), "Token.ttl is missing");
        let wrong = create(json!({ "token": "a", "ttl": "60" }), Undeclared::Refuse);
        assert_eq!(wrong.unwrap_err(), "Token.ttl must be integer");
        let more = json!({ "token": "a", "ttl": 60, "extra": 1 });
        assert_eq!(create(more.clone(), Undeclared::Refuse).unwrap_err(), "Token has no field extra");
        assert!(create(more, Undeclared::Ignore).is_ok());
    }
}
