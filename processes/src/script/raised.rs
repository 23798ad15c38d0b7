//! What went wrong while a process ran, as a fault that a flow can catch: the fault itself, and the engine
//! names it also answers to (a script's own error type inside a transform is caught by that name, by
//! `script` and by `transform`).
//!
//! Texts are ours: place, kind of error, line and column. What a script or a peer said is detail.

use septet_engine::fault::Fault;
use septet_engine::record::RecordError;

/// The error types of the language: they say nothing about the production's own faults.
const BUILTIN: [&str; 10] = [
    "Error",
    "EvalError",
    "RangeError",
    "ReferenceError",
    "SyntaxError",
    "TypeError",
    "URIError",
    "InternalError",
    "AggregateError",
    "DOMException",
];

/// The longest name of a fault that is kept.
const MAX_NAME: usize = 200;

/// A fault on its way to a `catch`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Raised {
    /// What is stored and shown.
    pub(crate) fault: Fault,
    /// Other names it is caught by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) also: Vec<String>,
}

impl Raised {
    /// A fault of the engine: `timeout`, `call`, `script`, `transform`, `message`.
    pub(crate) fn engine(name: &str, code: &str, text: impl Into<String>) -> Self {
        Raised { fault: Fault::new(name, code, text), also: Vec::new() }
    }

    /// Whether a `catch` for `name` takes it.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.fault.name == name || self.also.iter().any(|also| also == name)
    }

    /// The same fault, also caught as `name`.
    pub(crate) fn also(mut self, name: &str) -> Self {
        if !self.is(name) {
            self.also.push(name.to_owned());
        }
        self
    }

    /// A script's failure inside a transform: `transform` comes first.
    pub(crate) fn in_transform(self) -> Self {
        if self.fault.name != "script" {
            return self.also("transform");
        }
        let fault = Fault { name: "transform".into(), code: "transform".into(), ..self.fault };
        Raised { fault, also: self.also }.also("script")
    }

    /// Values that make no message.
    pub(crate) fn message(place: &str, error: &RecordError) -> Self {
        Raised::engine("message", "message", format!("{place}: {error}"))
    }

    /// What the caller of an item sees of the fault that the item answered with: a call that failed. A
    /// thrown name and `message` keep theirs; the callee's own script, transform or timeout is not ours.
    pub(crate) fn of_call(fault: Fault) -> Self {
        let name = match fault.name.as_str() {
            "script" | "transform" | "timeout" | "" => "call".to_owned(),
            name => name.to_owned(),
        };
        let also = if name == "message" || name == "call" { Vec::new() } else { vec!["call".to_owned()] };
        Raised { fault: Fault { name, ..fault }, also }
    }
}

/// What a script threw, read out of JavaScript.
#[derive(Clone, Default)]
pub(crate) struct Thrown {
    /// A thrown string, or the `name` of a thrown object.
    pub(crate) name: Option<String>,
    /// Its message, or what there is.
    pub(crate) detail: String,
    /// In the script's own text.
    pub(crate) at: Option<(usize, usize)>,
}

/// Why a script gave no value.
#[derive(Clone)]
pub(crate) enum Stopped {
    /// It threw.
    Thrown(Thrown),
    /// It ran longer than allowed.
    Time(std::time::Duration),
    /// It used more memory than allowed.
    Memory(u64),
    /// The engine could not do what it was asked; not the script's fault.
    Engine(&'static str),
}

impl Stopped {
    /// As a fault, for the script at `place`.
    pub(crate) fn raise(self, place: &str) -> Raised {
        match self {
            Stopped::Thrown(thrown) => thrown.raise(place),
            Stopped::Time(limit) => {
                Raised::engine("script", "script", format!("{place}: the script ran longer than {limit:?}"))
            }
            Stopped::Memory(limit) => {
                let text = format!("{place}: the script needs more memory than {} MiB", limit >> 20);
                Raised::engine("script", "script", text)
            }
            Stopped::Engine(what) => Raised::engine("script", "script", format!("{place}: {what}")),
        }
    }
}

impl Thrown {
    fn raise(self, place: &str) -> Raised {
        let builtin = self.name.as_deref().filter(|name| BUILTIN.contains(name));
        let what = match builtin {
            Some("Error") | None => "the script threw".to_owned(),
            Some(kind) => kind.to_owned(),
        };
        let at = self.at.map_or(String::new(), |(line, column)| format!(", line {line}, column {column}"));
        let own = if builtin.is_none() { self.name } else { None };
        let raised = Raised::engine("script", "script", format!("{place}{at}: {what}"));
        let mut raised = Raised { fault: raised.fault.with_detail(self.detail), ..raised };
        if let Some(name) = own.filter(|name| !name.is_empty()) {
            raised.fault.name = name.chars().take(MAX_NAME).collect();
            raised = raised.also("script");
        }
        raised
    }

    /// The fault of a `throw` step: the thrown string, or the object's `name`, is the fault's name.
    pub(crate) fn thrown_by_step(self, place: &str) -> Raised {
        let fault = Fault::new("", "throw", format!("{place}: thrown")).with_detail(self.detail);
        let name = self.name.filter(|name| !name.is_empty()).unwrap_or_else(|| "thrown".into());
        let fault = Fault { name: name.chars().take(MAX_NAME).collect(), ..fault };
        Raised { fault, also: Vec::new() }
    }
}
