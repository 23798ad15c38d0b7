//! A flow as it is stored: operations in a row, with jumps. Loops, scopes and branches are operations that
//! push and pop, so that an instance is described by a number and a few short stacks.
//!
//! Part of the stored definition: new operations may be added, none may change its meaning.

use septet_engine::id::ItemName;
use serde::{Deserialize, Serialize};

/// The operations of a flow; an instance starts at the first and ends at an [`Act::End`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) ops: Vec<Op>,
}

/// One operation and the step it belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Op {
    /// The step, for error texts: `step 2 (call vendor)`.
    pub(crate) at: String,
    /// What it does.
    pub(crate) act: Act,
}

/// A place for a value: `context.result.values`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// `state` rather than `context`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) state: bool,
    /// Keys below it; at least one.
    pub(crate) keys: Vec<String>,
}

/// What to send: scripts by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// The message type to make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// Its fields, or the whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) with: Option<usize>,
}

/// A piece of an alert or trace text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Piece {
    Text(String),
    Script(usize),
}

/// One way out of a scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handler {
    /// The fault it takes; none for any.
    pub(crate) fault: Option<String>,
    /// Its first operation.
    pub(crate) to: usize,
}

/// An operation. Numbers called `to`, `end`, … are places in [`Program::ops`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Act {
    /// Sets a value.
    Assign { into: Place, script: usize },
    /// Goes elsewhere.
    Jump { to: usize },
    /// Goes elsewhere when a script's value is not true.
    Unless { script: usize, to: usize },
    /// Begins a loop over a list; an empty one goes to `end`.
    Foreach { script: usize, end: usize },
    /// The next round of the innermost loop, or on.
    Next { body: usize },
    /// A request; without `wait` its answer comes in on its own.
    Call {
        target: ItemName,
        /// What `sync` calls it.
        name: String,
        payload: Payload,
        into: Option<Place>,
        /// In milliseconds.
        timeout: Option<u64>,
        /// `on_timeout = "leave"`.
        leave: bool,
        wait: bool,
    },
    /// Waits for calls.
    Sync { names: Vec<String>, timeout: Option<u64>, any: bool },
    /// Begins branches and waits for all of them.
    Fork { branches: Vec<usize>, join: usize },
    /// The end of a branch.
    Joined,
    /// A named transform.
    Transform { name: String, from: Option<usize>, into: Place },
    /// Statements.
    Code { script: usize },
    /// Fire and forget.
    Send { targets: Vec<ItemName>, payload: Payload },
    /// Waits for milliseconds.
    Delay { milliseconds: u64 },
    /// Waits for a point in time.
    DelayUntil { script: usize },
    /// An alert.
    Alert { template: String, pieces: Vec<Piece> },
    /// An entry on the trace.
    Trace { template: String, pieces: Vec<Piece> },
    /// Answers the caller.
    Reply { script: usize },
    /// Raises a fault.
    Throw { script: usize },
    /// Begins a scope.
    Scope { handlers: Vec<Handler> },
    /// Its end.
    Unscope,
    /// The end of a handler.
    Caught,
    /// The step before is done: what undoes it.
    Register { compensation: usize },
    /// The end of a compensation.
    Compensated,
    /// The end of the flow.
    End,
}
