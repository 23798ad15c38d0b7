//! The contract of business processes. They are synchronous and pure: a [`Job`] goes in, a [`Done`] comes
//! out, and its effects commit in one transaction with the job's completion. Who runs the job (inline in
//! the driver, or a lane's own OS thread) makes no difference to what it means.
//!
//! An *instance* is the handling of one request from start to end, waits included; its id is the
//! request's header id. Between jobs it lives on disk as opaque bytes ([`Next::Wait`]), together with the
//! content hash of the definition it started with, and it goes on with that definition (P12).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::body::Body;
use crate::event::NewEvent;
use crate::fault::Fault;
use crate::header::Header;
use crate::id::{BodyId, ItemName};
use crate::vault::Vault;

/// What a process is made of, content-addressed: flow or rules, transforms, scripts, message types,
/// lookup tables. The engine stores and compares it; only the process crate reads it.
#[derive(Clone, PartialEq, Eq)]
pub struct Definition {
    /// SHA-256 of `bytes`, hex.
    pub hash: Arc<str>,
    /// The closure, serialised by the process crate.
    pub bytes: Bytes,
}

impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Definition({}, {} bytes)", self.hash, self.bytes.len())
    }
}

/// One step of a process: everything it may look at.
#[derive(Clone, Debug)]
pub struct Job {
    /// The process.
    pub item: ItemName,
    /// The definition to run: for a waiting instance the one it started with.
    pub definition: Arc<Definition>,
    /// What happened.
    pub input: Input,
    /// The request whose handling this is; for [`Input::Request`] the same header.
    pub request: Header,
    /// The request's body, if it has one.
    pub request_body: Option<Body>,
    /// What the instance left when it last waited.
    pub instance: Option<Bytes>,
    /// The process state shared by all instances (`state`), clear JSON; absent when never set.
    pub state: Option<Bytes>,
    /// Whether somebody waits for a reply.
    pub wants_reply: bool,
    /// The time of this step; scripts see no other clock.
    pub now: Timestamp,
}

/// What makes a process run.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is made for each job and moved once; a box would cost more"
)]
pub enum Input {
    /// A new request.
    Request,
    /// The response to one of the instance's calls. `fault` says why there is none, or what is wrong with it.
    Response {
        /// The call, as numbered by the instance in [`Effect::Call`].
        call: u64,
        /// The response header, absent where the request ended without one (discarded, failed).
        header: Option<Header>,
        /// The response's body.
        body: Option<Body>,
        /// Why the call failed.
        fault: Option<Fault>,
    },
    /// A timer of the instance came due.
    Timer {
        /// The timer, as numbered by the instance in [`Effect::Timer`].
        timer: u64,
    },
}

/// What a process step wants done, in order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Fire and forget.
    Send {
        /// The receiver.
        target: ItemName,
        /// What to send.
        body: Outgoing,
    },
    /// A request whose response comes back as [`Input::Response`].
    Call {
        /// A number unique within the instance.
        call: u64,
        /// The receiver.
        target: ItemName,
        /// What to send.
        body: Outgoing,
    },
    /// The instance no longer wants the response of this call: a request not yet in flight becomes
    /// discarded and is never sent (unless `leave`); a later response is discarded.
    CancelCall {
        /// The call.
        call: u64,
        /// Keep the request in its queue (`on_timeout = "leave"`).
        leave: bool,
    },
    /// Wake the instance at a moment, on disk while it waits.
    Timer {
        /// A number unique within the instance.
        timer: u64,
        /// When.
        at: Timestamp,
    },
    /// Forget a timer.
    CancelTimer {
        /// The timer.
        timer: u64,
    },
    /// Answer the caller; the first reply counts, execution may go on.
    Reply {
        /// The answer; none for an empty one.
        body: Option<Outgoing>,
        /// A fault instead of, or along with, a body.
        fault: Option<Fault>,
    },
    /// Raise an alert; `template` is the text with `{…}` unfilled, `filled` is script-authored detail.
    Alert {
        /// Engine-safe text.
        template: String,
        /// Filled-in text: detail.
        filled: String,
    },
    /// An event on the trace (kinds `trace`, `rule`, `message.unmatched`, `message.finding`, …); the engine adds item, session and message.
    Event(NewEvent),
}

/// A body to send.
#[derive(Clone, Debug)]
pub enum Outgoing {
    /// The very body of the request being handled: no copy is stored.
    Request,
    /// A body that is in the store already.
    Stored(BodyId),
    /// A new body.
    New(Body),
}

/// How a step ended.
#[derive(Clone, Debug)]
pub enum Next {
    /// The instance is finished.
    Complete,
    /// The instance ends with status error; a caller who waits gets the fault.
    Fail(Fault),
    /// The request waits for an operator (router `unmatched = "suspend"`); resuming starts it anew.
    Suspend(Fault),
    /// It waits for calls or timers; these bytes come back with the next job.
    Wait {
        /// Opaque to the engine; at most 1 MiB of `context`.
        instance: Bytes,
    },
}

/// The outcome of a [`Job`].
#[derive(Clone, Debug)]
pub struct Done {
    /// What to do, in order.
    pub effects: Vec<Effect>,
    /// How the step ended.
    pub next: Next,
    /// New process state, when the step changed it.
    pub state: Option<Bytes>,
}

/// A process without scripts: runs inline in its driver task, so it must take microseconds.
pub trait BusinessProcess: Send + Sync + fmt::Debug {
    /// Handles one step. Pure: the same job gives the same outcome. The engine calls it once per input,
    /// in queue order, and again with the same job after a crash before the commit.
    fn handle(&self, job: &Job) -> Done;

    /// Whether it can go on with an instance of another definition; where not, a lane does.
    fn knows(&self, definition: &Definition) -> bool {
        let _ = definition;
        true
    }
}

/// Runs jobs of scripted processes on its own OS thread. Built by a [`LaneFactory`] on that thread.
/// A lane never commits; a result that comes after the watchdog gave up is refused by generation.
pub trait Lane {
    /// Runs jobs in order. `emit` is called once per job, in order, as soon as it is done: jobs of a batch
    /// that touch `state` see what their predecessor in the batch left.
    fn run(&mut self, jobs: Vec<Job>, emit: &mut dyn FnMut(Done));
}

/// What lanes are built with.
#[derive(Clone, Debug)]
pub struct LaneServices {
    /// Seals secrets of new records.
    pub vault: Vault,
    /// The production's timezone.
    pub timezone: TimeZone,
}

/// Builds lanes; called on the lane's own thread.
pub type LaneFactory = Arc<dyn Fn(LaneServices) -> Box<dyn Lane> + Send + Sync>;
