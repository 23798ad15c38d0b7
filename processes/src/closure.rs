//! The stored definition of a process: everything its instances need, in one JSON document that is named by
//! its hash. An instance that waits goes on with the document it started with (P12), perhaps under a newer
//! Septet: fields may be added here, with defaults; none may change its meaning.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use septet_engine::config::build::Names;
use septet_engine::process::Definition;
use septet_engine::record::{MessageType, MessageTypes};
use serde::{Deserialize, Serialize};

use crate::flow::definition::Program;
use crate::router::Rules;
use crate::script::engine::Limits;
use crate::script::{Script, ScriptKind};
use crate::transform::TransformDef;

/// The version of the document's format.
const FORMAT: u32 = 1;

/// A definition as it is stored.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Closure {
    format: u32,
    /// What the process does.
    pub(crate) process: Process,
    /// All scripts; everything else refers to them by place.
    #[serde(default)]
    pub(crate) scripts: Vec<Script>,
    /// Transforms it uses.
    #[serde(default)]
    pub(crate) transforms: BTreeMap<String, TransformDef>,
    /// Message types it makes: fields in declared order, each with its type as written.
    #[serde(default)]
    types: BTreeMap<String, Vec<(String, String)>>,
    /// Lookup tables, where scripts use any.
    #[serde(default)]
    pub(crate) lookups: Rc<BTreeMap<String, BTreeMap<String, String>>>,
    /// `script_time` in milliseconds.
    script_time: u64,
    /// `script_memory` in bytes.
    script_memory: u64,
    /// Whether anything in it mentions `state`.
    pub(crate) uses_state: bool,
}

/// What kind of process it is.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Process {
    Router(Rules),
    Flow(Program),
}

impl Closure {
    /// Reads a stored definition; the error says why this Septet cannot.
    pub(crate) fn read(definition: &Definition) -> Result<Self, String> {
        let closure: Closure = serde_json::from_slice(&definition.bytes)
            .map_err(|error| format!("the stored definition cannot be read: {error}"))?;
        if closure.format != FORMAT {
            return Err(format!("the stored definition has format {}, not {FORMAT}", closure.format));
        }
        Ok(closure)
    }

    /// The declared types, as the engine knows them.
    pub(crate) fn message_types(&self) -> MessageTypes {
        MessageTypes::new(self.types.iter().map(|(name, fields)| {
            let fields = fields.iter().filter_map(|(field, kind)| Some((field.clone(), kind.parse().ok()?)));
            MessageType { name: name.clone(), fields: fields.collect() }
        }))
    }

    /// What its scripts may use.
    pub(crate) fn limits(&self) -> Limits {
        Limits { time: Duration::from_millis(self.script_time), memory: self.script_memory }
    }
}

/// Gathers a definition while the settings are read.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    scripts: Vec<Script>,
    transforms: BTreeMap<String, TransformDef>,
    types: BTreeSet<String>,
    /// Set where something other than a script touches `state`.
    pub(crate) uses_state: bool,
    /// Set where a record may be sent whose type is known only when it is there.
    pub(crate) any_type: bool,
}

impl Gathered {
    /// Adds a script; its number.
    pub(crate) fn script(&mut self, script: Script) -> usize {
        self.scripts.push(script);
        self.scripts.len() - 1
    }

    /// Adds a message type.
    pub(crate) fn message_type(&mut self, name: &str) {
        self.types.insert(name.to_owned());
    }

    /// Adds a declared transform and what it needs; a name that is not declared was reported elsewhere.
    pub(crate) fn transform(&mut self, names: &Names, name: &str) {
        let Some(transform) = names.transforms.get(name).filter(|_| !self.transforms.contains_key(name))
        else {
            return;
        };
        if let Some(to) = &transform.to {
            self.message_type(to);
        }
        let definition = TransformDef::new(name, transform, &mut |kind, code, place| {
            let script =
                Script { kind, transform: true, variables: Vec::new(), code: code.to_owned(), place };
            self.scripts.push(script);
            self.scripts.len() - 1
        });
        self.transforms.insert(name.to_owned(), definition);
    }

    /// Whether it needs the script engine.
    pub(crate) fn needs_lane(&self) -> bool {
        !self.scripts.is_empty() || !self.transforms.is_empty()
    }

    /// The definition.
    pub(crate) fn finish(self, names: &Names, process: Process, limits: Limits) -> Definition {
        let mentions = |word: &str| self.scripts.iter().any(|script| script.code.contains(word));
        let wanted =
            names.types.iter().filter(|declared| self.any_type || self.types.contains(&declared.name));
        let types = wanted.map(|declared| {
            let fields = declared.fields.iter().map(|(field, decl)| {
                let optional = if decl.optional { "?" } else { "" };
                (field.clone(), format!("{}{optional}", decl.kind.name()))
            });
            (declared.name.clone(), fields.collect())
        });
        let lookups = if mentions("lookup") { names.lookups.clone() } else { BTreeMap::new() };
        let closure = Closure {
            format: FORMAT,
            process,
            types: types.collect(),
            uses_state: self.uses_state || mentions("state"),
            lookups: Rc::new(lookups),
            script_time: u64::try_from(limits.time.as_millis()).unwrap_or(u64::MAX),
            script_memory: limits.memory,
            scripts: self.scripts,
            transforms: self.transforms,
        };
        let bytes = Bytes::from(serde_json::to_vec(&closure).unwrap_or_default());
        let mut hash = String::with_capacity(64);
        for byte in digest::digest(&digest::SHA256, &bytes).as_ref() {
            let _ = write!(hash, "{byte:02x}");
        }
        Definition { hash: hash.into(), bytes }
    }
}

/// Shorthand for a script of a process (not of a transform).
pub(crate) fn process_script(kind: ScriptKind, variables: &[String], code: &str, place: &str) -> Script {
    Script {
        kind,
        transform: false,
        variables: variables.to_vec(),
        code: code.to_owned(),
        place: place.to_owned(),
    }
}
