//! What is live in a flow between two operations, and its form on disk.
//!
//! Stacks are generic over what a value is: a JavaScript value while the flow runs, its place in one list
//! of kept values on disk. The form on disk may get more fields, with defaults; none changes its meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::definition::Place;
use crate::script::raised::Raised;
use crate::script::values::StoredMessage;

/// One line of execution: the flow itself, or a branch of a `parallel`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Thread<V> {
    /// The thread that forked it.
    pub(crate) parent: Option<u32>,
    /// The next operation.
    pub(crate) at: usize,
    /// Variables of the steps around, outermost first.
    pub(crate) variables: Vec<V>,
    /// Items still to come of each loop, the next one last.
    pub(crate) loops: Vec<Vec<V>>,
    /// Open scopes.
    pub(crate) scopes: Vec<Scope<V>>,
    /// Faults whose compensations are running.
    pub(crate) unwinding: Vec<Unwinding<V>>,
    /// What it waits for.
    pub(crate) wait: Option<Wait>,
}

/// An open scope.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Scope<V> {
    /// Its operation, which has the handlers.
    pub(crate) op: usize,
    /// How many variables there were when it began.
    pub(crate) variables: usize,
    /// How many loops.
    pub(crate) loops: usize,
    /// Compensations of completed steps, oldest first.
    pub(crate) registered: Vec<Registered<V>>,
}

/// A compensation and the variables it sees.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Registered<V> {
    pub(crate) to: usize,
    pub(crate) variables: Vec<V>,
}

/// A fault between its scope and that scope's handlers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Unwinding<V> {
    pub(crate) raised: Raised,
    /// The operation of the scope that was left.
    pub(crate) op: usize,
    /// How many scopes and loops are outside of it.
    pub(crate) scopes: usize,
    pub(crate) loops: usize,
    /// The variables outside of it.
    pub(crate) variables: Vec<V>,
    /// Compensations still to run, the next one last.
    pub(crate) left: Vec<Registered<V>>,
}

/// What a thread waits for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wait {
    /// The response of a call.
    Call(u64),
    /// Asynchronous calls by name.
    Sync { names: Vec<String>, any: bool, timer: Option<u64> },
    /// A delay.
    Timer(u64),
    /// Its branches.
    Branches,
}

/// A call whose response has not been taken yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    /// What `sync` calls it.
    pub(crate) name: String,
    /// The step, for error texts.
    pub(crate) step: String,
    pub(crate) into: Option<Place>,
    pub(crate) timer: Option<u64>,
    pub(crate) leave: bool,
    /// A thread waits for it; otherwise it is asynchronous.
    pub(crate) waited: bool,
    /// How it ended, once it has.
    pub(crate) done: Option<Answer>,
}

/// How a call ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    Well,
    Fault(Raised),
}

/// An instance on disk.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Always 1.
    pub(crate) format: u32,
    /// How many uuids and random numbers it has taken.
    pub(crate) taken: u64,
    /// Numbers given to calls and timers so far.
    pub(crate) calls_made: u64,
    pub(crate) timers_made: u64,
    /// The caller has its reply.
    pub(crate) replied: bool,
    pub(crate) calls: BTreeMap<u64, Call>,
    /// By number; 0 is the flow itself.
    pub(crate) threads: BTreeMap<u32, Thread<usize>>,
    /// `context`, `response`, then the values that threads refer to by place.
    pub(crate) kept: Json,
    /// HL7 messages that kept values refer to.
    pub(crate) messages: Vec<StoredMessage>,
}

impl<V> Thread<V> {
    /// A thread that begins at an operation.
    pub(crate) fn new(parent: Option<u32>, at: usize, variables: Vec<V>) -> Self {
        Thread {
            parent,
            at,
            variables,
            loops: Vec::new(),
            scopes: Vec::new(),
            unwinding: Vec::new(),
            wait: None,
        }
    }

    /// The same thread with other values.
    pub(crate) fn map<U>(&self, change: &mut dyn FnMut(&V) -> U) -> Thread<U> {
        Thread {
            parent: self.parent,
            at: self.at,
            variables: self.variables.iter().map(&mut *change).collect(),
            loops: self.loops.iter().map(|items| items.iter().map(&mut *change).collect()).collect(),
            scopes: self
                .scopes
                .iter()
                .map(|scope| Scope {
                    op: scope.op,
                    variables: scope.variables,
                    loops: scope.loops,
                    registered: scope.registered.iter().map(|one| one.map(change)).collect(),
                })
                .collect(),
            unwinding: self
                .unwinding
                .iter()
                .map(|one| Unwinding {
                    raised: one.raised.clone(),
                    op: one.op,
                    scopes: one.scopes,
                    loops: one.loops,
                    variables: one.variables.iter().map(&mut *change).collect(),
                    left: one.left.iter().map(|one| one.map(change)).collect(),
                })
                .collect(),
            wait: self.wait.clone(),
        }
    }
}

impl<V> Registered<V> {
    fn map<U>(&self, change: &mut dyn FnMut(&V) -> U) -> Registered<U> {
        Registered { to: self.to, variables: self.variables.iter().map(change).collect() }
    }
}
