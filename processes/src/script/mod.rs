//! Scripts of a production: JavaScript in conditions, values, code steps and transforms (CONTRACT §2.4).
//!
//! A script is a pure function of what is in scope. It runs on a lane's thread in a context without I/O,
//! whose clock is the job's and whose intrinsics are frozen, so that nothing one script does is seen by
//! another. [`compile`] checks syntax, [`engine`] runs, [`values`] and [`hl7_value`] are the bridge between
//! the engine's values and JavaScript's, [`raised`] turns what went wrong into a fault with its place.

pub(crate) mod compile;
mod deadline;
pub(crate) mod engine;
pub(crate) mod hl7_value;
pub(crate) mod raised;
pub(crate) mod values;

use serde::{Deserialize, Serialize};

pub use compile::{ScriptError, check_script};

/// What a piece of JavaScript is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScriptKind {
    /// One expression; `{…}` is an object.
    Expression,
    /// Statements of a flow's `code`.
    Statements,
    /// Statements of a transform's `code`: `target` is what comes out.
    Transform,
}

/// One script of a definition. Part of the stored definition: fields may be added, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Script {
    /// What it is.
    pub(crate) kind: ScriptKind,
    /// Whether `source` and `target` are in scope.
    pub(crate) transform: bool,
    /// Variables of the enclosing steps, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) variables: Vec<String>,
    /// As written.
    pub(crate) code: String,
    /// Where it stands, for error texts.
    pub(crate) place: String,
}

/// Names that are in scope everywhere and cannot be variables of steps.
pub(crate) const RESERVED: [&str; 10] =
    ["request", "response", "context", "state", "source", "target", "lookup", "uuid", "hl7Date", "log"];
