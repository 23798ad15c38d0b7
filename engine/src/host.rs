//! The contracts of hosts: business services bring messages in, business operations send them out.
//! (Business processes are in [`crate::process`].) Hosts hold no queue, no retry loop and no logging
//! policy: the engine does that for all of them alike.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::tz::TimeZone;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::clock::SharedClock;
use crate::event::NewEvent;
use crate::fault::Fault;
use crate::header::Header;
use crate::id::{ItemName, MessageId, SessionId};
use crate::record::MessageTypes;
use crate::store::{Receipt, StoreFailed};
use crate::token::SharedTokens;
use crate::vault::Vault;

/// What every host may use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The production's name.
    pub production: Arc<str>,
    /// Time and waiting.
    pub clock: SharedClock,
    /// The production's timezone.
    pub timezone: TimeZone,
    /// Declared message types.
    pub types: MessageTypes,
    /// Seals and opens secrets.
    pub vault: Vault,
    /// OAuth tokens by client name.
    pub tokens: SharedTokens,
    /// The store's epoch: first half of every idempotency key.
    pub epoch: Arc<str>,
    /// Small durable values of items.
    pub keep: Arc<dyn Keep>,
}

/// Small durable values by key, for hosts that must remember something over a restart. Values are sealed
/// at rest by the engine.
#[async_trait]
pub trait Keep: Send + Sync + fmt::Debug {
    /// The value of `key` in `family`.
    fn get(&self, family: KeepFamily, key: &str) -> Option<Bytes>;
    /// All entries of `family` whose key starts with `prefix`.
    fn scan(&self, family: KeepFamily, prefix: &str) -> Vec<(String, Bytes)>;
    /// Sets (or with `None` removes) a value; returns once it is durable.
    async fn put(&self, family: KeepFamily, key: &str, value: Option<Bytes>) -> Result<(), StoreFailed>;
    /// Logs an event without waiting for it to be durable.
    fn event(&self, event: NewEvent);
}

/// Kinds of kept values. The numbers are the on-disk tags and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum KeepFamily {
    /// Process `state`, by item.
    ProcessState = 1,
    /// Waiting process instances, by request id.
    Instance = 2,
    /// Process definitions by content hash.
    Definition = 3,
    /// OAuth tokens and their history, by client.
    Token = 4,
    /// What operators asked of items (stopped), by item.
    ItemControl = 5,
    /// Answers to messages that may come again, by service and duplicate key.
    Duplicate = 6,
    /// The last plan that ran.
    Plan = 7,
    /// Keys of authorization servers, by service.
    ServerKey = 8,
    /// Whatever else a service remembers, by service.
    Service = 9,
    /// Counters that survive restarts, by item.
    Counter = 10,
    /// Replays under way and how the last ones ended, by number.
    Replay = 11,
}

/// Why a host cannot run now though its settings are right: port taken, DNS, missing mount, peer down.
/// The item goes to `faulted`, with back-off and one alert; the rest runs (P10).
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code}: {text}")]
pub struct HostFault {
    /// Short and stable: `bind`, `certificate`, `mount`, …
    pub code: String,
    /// What and where; no secrets, no patient data.
    pub text: String,
}

impl HostFault {
    /// A fault with a code and a text.
    pub fn new(code: impl Into<String>, text: impl Into<String>) -> Self {
        HostFault { code: code.into(), text: text.into() }
    }
}

// === Services ===

/// Makes the host of one configured service. Kept by the plan; called again after every fault or restart.
#[async_trait]
pub trait ServiceFactory: Send + Sync + fmt::Debug {
    /// A new, unbound host.
    fn create(&self) -> Box<dyn BusinessService>;

    /// Carries out what operators may ask of the running service beyond start and stop, for example `rotate`
    /// of an authorization server, on behalf of `who`, and says what came of it. Durable when it returns.
    /// `None`: the class knows no such order.
    async fn order(&self, _order: &str, _who: Option<&str>) -> Option<Result<Value, HostFault>> {
        None
    }
}

/// Brings messages in.
#[async_trait]
pub trait BusinessService: Send {
    /// Acquires what may fail for reasons of the environment (a listening socket), once, before `run`.
    /// A reload binds everything new before it switches.
    async fn bind(&mut self, cx: &ServiceContext) -> Result<(), HostFault>;

    /// Runs until `cx.stopping()`; then stops accepting, lets work in flight be answered, and returns.
    /// The engine drops it at the stop deadline. Returning early or with an error makes the item faulted.
    async fn run(self: Box<Self>, cx: ServiceContext) -> Result<(), HostFault>;
}

/// What the engine gives a running service. Cheap to clone: connection tasks hold one each.
#[derive(Clone, Debug)]
pub struct ServiceContext {
    /// The service.
    pub item: ItemName,
    /// Shared facilities.
    pub runtime: Runtime,
    /// Cancelled when the service must stop.
    pub stop: CancellationToken,
    /// Takes messages.
    pub intake: Arc<dyn Intake>,
}

impl ServiceContext {
    /// Logs an event about this service.
    pub fn event(&self, event: NewEvent) {
        self.runtime.keep.event(NewEvent { item: Some(self.item.clone()), ..event });
    }
}

/// A message as a service hands it in.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// The body, byte for byte.
    pub body: Body,
    /// The control id where the service knows it; the engine takes MSH-10 of HL7 bodies otherwise.
    pub control_id: Option<String>,
    /// What is odd about it: each becomes an event `message.finding` on its trace.
    pub findings: Vec<NewEvent>,
    /// Store it as a rejected message (status error, no target) for this reason.
    pub reject: Option<Fault>,
    /// The service waits for a reply ([`Accepted::reply`]).
    pub wants_reply: bool,
    /// Values committed in the same transaction, for example the answer to a duplicate.
    pub keep: Vec<(KeepFamily, String, Option<Bytes>)>,
    /// The session of another production that this message continues (`Septet-Session`).
    pub parent_session: Option<String>,
    /// A message of a batch joins the session of its first message.
    pub session: Option<SessionId>,
}

impl Inbound {
    /// A plain message.
    pub fn new(body: Body) -> Self {
        Inbound {
            body,
            control_id: None,
            findings: Vec::new(),
            reject: None,
            wants_reply: false,
            keep: Vec::new(),
            parent_session: None,
            session: None,
        }
    }
}

/// Why a message could not be taken. Nothing of it is stored; the sender keeps it (AR / 503).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The store does not take writes now (full disk); see [`Intake::accepting`].
    #[error("the store is not accepting messages: {0}")]
    Unavailable(String),
    /// The item is stopping.
    #[error("the service is stopping")]
    Stopping,
}

/// Takes messages for one service.
#[async_trait]
pub trait Intake: Send + Sync + fmt::Debug {
    /// Reserves room, then commits the message with its queue entries and search keys in memory, in one
    /// transaction: one request per target over one body. It is not durable yet: await
    /// [`Accepted::durable`] before any positive answer leaves (P1). Waits while the store is busy.
    async fn receive(&self, inbound: Inbound) -> Result<Accepted, Refused>;

    /// Whether the store takes messages now (`readyz`).
    fn accepting(&self) -> bool;

    /// Returns when the store takes messages (again).
    async fn until_accepting(&self);
}

/// A message that has been committed in memory.
#[derive(Debug)]
pub struct Accepted {
    /// The session: the id of the first header.
    pub session: SessionId,
    /// The headers created, in the order of the targets.
    pub headers: Vec<MessageId>,
    /// Durability and reply.
    pub pending: Box<dyn Pending>,
}

/// What may still be awaited of a committed message.
#[async_trait]
pub trait Pending: Send + Sync + fmt::Debug {
    /// Returns when the message is on stable storage. Later messages of the same service imply earlier ones.
    async fn durable(&self) -> Result<Receipt, StoreFailed>;

    /// Waits for the reply of the target (or of `reply_from`), until `timeout`. The reply is durable when
    /// this returns. On timeout the work goes on and a late reply is discarded.
    async fn reply(&mut self, timeout: Duration) -> ServiceReply;
}

/// How waiting for a reply ended.
#[derive(Clone, Debug)]
pub enum ServiceReply {
    /// A reply (perhaps without a body), perhaps with a fault.
    Reply {
        /// Its body.
        body: Option<Body>,
        /// Its fault.
        fault: Option<Fault>,
    },
    /// None came in time.
    Timeout,
    /// The engine is stopping.
    Stopping,
}

// === Operations ===

/// Makes the hosts of one configured operation, one per pool slot.
pub trait OperationFactory: Send + Sync + fmt::Debug {
    /// A new host for one slot; called again after a fault or restart.
    fn create(&self, runtime: &Runtime, item: &ItemName) -> Box<dyn BusinessOperation>;
}

/// Sends messages out. One instance per pool slot, driven by one task: no call overlaps another.
#[async_trait]
pub trait BusinessOperation: Send {
    /// Acquires what may fail for reasons of the environment. Called once before the first message and
    /// again after the item was faulted. Peers that are down are no such fault: messages are retried.
    async fn start(&mut self) -> Result<(), HostFault> {
        Ok(())
    }

    /// Sends one message and reads the answer. No retry inside: the outcome's code decides through the
    /// operation's reply actions. What is sent is a pure function of header and body, tokens excepted (P3).
    /// Dropped at the stop deadline: that means "outcome unknown", and the message is sent again later
    /// with the same key. The engine has made the message durable before it calls.
    async fn on_message(&mut self, cx: &OperationContext) -> Result<Outcome, OperationError>;

    /// Called between messages, while nothing is queued; returns only when there is something to do
    /// (a closed socket, a stray ack), which it has then done. Cancel-safe.
    async fn idle(&mut self) {
        std::future::pending::<()>().await;
    }

    /// Called once when the slot ends; bounded by the stop deadline.
    async fn stop(&mut self) {}
}

/// One delivery.
#[derive(Clone, Debug)]
pub struct OperationContext {
    /// The operation.
    pub item: ItemName,
    /// The header being delivered.
    pub header: Header,
    /// Its body.
    pub body: Body,
    /// 1 for the first delivery.
    pub attempt: u32,
    /// It may have been sent before: `attempt > 1`, or it was in the queue when the store was opened.
    pub tried_before: bool,
    /// `{epoch}-{header id}`: the same over retries and crashes.
    pub idempotency_key: String,
    /// How long to wait for the peer's answer.
    pub response_timeout: Duration,
    /// Shared facilities.
    pub runtime: Runtime,
}

impl OperationContext {
    /// Logs an event about this message (`ack.late`, `ack.stray`, …).
    pub fn event(&self, event: NewEvent) {
        let event = NewEvent { item: Some(self.item.clone()), ..event };
        self.runtime.keep.event(event.message(self.header.session, self.header.id));
    }
}

/// What became of a message that was sent.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is out, and there is no answer to judge.
    Sent,
    /// The peer answered.
    Replied {
        /// `AA`, `404`, …: looked up in the reply actions.
        code: String,
        /// The answer worth keeping. Its header is created when the action ends the message.
        body: Option<Body>,
        /// What is wrong with the answer. For an action that is not complete it becomes the header's
        /// error; for one that completes, the waiting caller gets it as a fault (`message`: the reply is
        /// not what its type declares).
        fault: Option<Fault>,
        /// The peer's `Retry-After`, when it gave one.
        retry_after: Option<Duration>,
    },
}

/// Why a message did not get an answer, and what that means for it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{fault}")]
pub struct OperationError {
    /// What to do.
    pub disposition: Disposition,
    /// What happened.
    pub fault: Fault,
    /// Trying again within so many seconds is in vain: an OAuth client waits.
    pub retry_after: Option<u32>,
}

/// What an operation's error means for the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Look the code up in the reply actions: `fault` (no usable reply) or `none` (no reply).
    ByCode(&'static str),
    /// The message itself is wrong (a template field is missing, it cannot be encoded): suspend it.
    Suspend,
}

impl OperationError {
    /// No usable reply: connect, TLS, timeout, broken response, no token.
    pub fn fault(code: impl Into<String>, text: impl Into<String>) -> Self {
        let fault = Fault::new("call", code, text);
        OperationError { disposition: Disposition::ByCode("fault"), fault, retry_after: None }
    }

    /// The same, with a wait before which trying again is in vain.
    pub fn after(mut self, wait: Option<Duration>) -> Self {
        let seconds = |wait: Duration| wait.as_millis().div_ceil(1000).try_into().unwrap_or(u32::MAX);
        self.retry_after = wait.map(seconds);
        self
    }

    /// The message cannot be sent as it is.
    pub fn message(code: impl Into<String>, text: impl Into<String>) -> Self {
        let fault = Fault::new("message", code, text);
        OperationError { disposition: Disposition::Suspend, fault, retry_after: None }
    }
}
