//! The hosts and the plan of the Director's tests.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::sync::{mpsc, oneshot};

use crate::body::Body;
use crate::clock::ManualClock;
use crate::config::plan::{ItemPlan, Plan};
use crate::config::settings::{Common, ItemAlert, OnSuspend, PoolSize, Production, Store as StoreSettings};
use crate::director::{Engine, ItemState, Orphans, Parts, StartError};
use crate::event::Event;
use crate::header::{Header, Status};
use crate::host::{
    BusinessOperation, BusinessService, HostFault, Inbound, Intake, OperationContext, OperationError,
    OperationFactory, Outcome, Runtime, ServiceContext, ServiceFactory,
};
use crate::id::{ItemName, MessageId};
use crate::process::{BusinessProcess, Definition, Done, Effect, Job, Next, Outgoing};
use crate::registry::{Built, Factory, Facts, ItemKind, ProcessHost};
use crate::reply::Family;
use crate::store::{EventFilter, Store};
use crate::token::NoTokens;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

// --- operations ---

/// A message on its way to a peer.
pub(super) struct Call {
    pub(super) cx: OperationContext,
    answer: oneshot::Sender<Answer>,
}

enum Answer {
    Outcome(Result<Outcome, OperationError>),
    Panic,
}

impl Call {
    pub(super) fn id(&self) -> MessageId {
        self.cx.header.id
    }

    pub(super) fn text(&self) -> String {
        self.cx.body.as_text().unwrap().to_owned()
    }

    pub(super) fn code(self, code: &str) {
        let (code, fault) = (code.to_owned(), None);
        self.outcome(Ok(Outcome::Replied { code, body: None, fault, retry_after: None }));
    }

    pub(super) fn reply(self, code: &str, body: Body) {
        let (code, body) = (code.to_owned(), Some(body));
        self.outcome(Ok(Outcome::Replied { code, body, fault: None, retry_after: None }));
    }

    pub(super) fn panic(self) {
        let _ = self.answer.send(Answer::Panic);
    }

    pub(super) fn outcome(self, outcome: Result<Outcome, OperationError>) {
        let _ = self.answer.send(Answer::Outcome(outcome));
    }
}

/// The other end of an operation.
pub(super) struct Peer(mpsc::Receiver<Call>);

impl Peer {
    /// The next message that arrives.
    pub(super) async fn next(&mut self) -> Call {
        soon("a message at the peer", self.0.recv()).await.unwrap()
    }

    /// Nothing has arrived, however much everything else gets to run.
    pub(super) async fn hears_nothing(&mut self) {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        assert!(self.0.try_recv().is_err(), "a message arrived");
    }
}

#[derive(Clone, Debug)]
struct Sender(mpsc::Sender<Call>);

impl OperationFactory for Sender {
    fn create(&self, _runtime: &Runtime, _item: &ItemName) -> Box<dyn BusinessOperation> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl BusinessOperation for Sender {
    async fn on_message(&mut self, cx: &OperationContext) -> Result<Outcome, OperationError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.0.send(Call { cx: cx.clone(), answer }).await;
        if sent.is_err() {
            return Err(OperationError::fault("gone", "the test is over"));
        }
        match answered.await {
            Ok(Answer::Outcome(outcome)) => outcome,
            Ok(Answer::Panic) => panic!("as the test wants it"),
            Err(_) => Err(OperationError::fault("closed", "the peer closed")),
        }
    }
}

// --- services ---

/// Binds when the test lets it, and runs until it is told to stop.
#[derive(Clone, Default)]
pub(super) struct Gate {
    contexts: Arc<Mutex<Vec<ServiceContext>>>,
    pub(super) failing: Arc<Mutex<Option<HostFault>>>,
    pub(super) panics: Arc<tokio::sync::Notify>,
    /// Binding never comes to an end.
    pub(super) hangs: Arc<std::sync::atomic::AtomicBool>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    pub(super) fn intake(&self) -> Arc<dyn Intake> {
        self.contexts.lock().unwrap().last().unwrap().intake.clone()
    }

    /// Takes one message in; its first header.
    pub(super) async fn receive(&self, text: &str) -> MessageId {
        self.receive_body(Body::text("Text", text.to_owned())).await
    }

    pub(super) async fn receive_body(&self, body: Body) -> MessageId {
        let accepted = self.intake().receive(Inbound::new(body)).await.unwrap();
        accepted.pending.durable().await.unwrap();
        accepted.headers[0]
    }
}

impl ServiceFactory for Gate {
    fn create(&self) -> Box<dyn BusinessService> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl BusinessService for Gate {
    async fn bind(&mut self, cx: &ServiceContext) -> Result<(), HostFault> {
        if self.hangs.load(std::sync::atomic::Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if let Some(fault) = self.failing.lock().unwrap().clone() {
            return Err(fault);
        }
        self.contexts.lock().unwrap().push(cx.clone());
        Ok(())
    }

    async fn run(self: Box<Self>, cx: ServiceContext) -> Result<(), HostFault> {
        tokio::select! {
            () = cx.stop.cancelled() => Ok(()),
            () = self.panics.notified() => panic!("as the test wants it"),
        }
    }
}

// --- processes ---

type Handler = dyn Fn(&Job) -> Done + Send + Sync;

#[derive(Clone)]
struct Closure(Arc<Handler>);

impl fmt::Debug for Closure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closure")
    }
}

impl BusinessProcess for Closure {
    fn handle(&self, job: &Job) -> Done {
        (self.0)(job)
    }
}

pub(super) fn definition() -> Arc<Definition> {
    Arc::new(Definition { hash: "d1".into(), bytes: "definition".into() })
}

pub(super) fn inline(handler: impl Fn(&Job) -> Done + Send + Sync + 'static) -> Factory {
    inline_as(&definition(), handler)
}

/// A process with a definition of its own.
pub(super) fn inline_as(
    definition: &Arc<Definition>,
    handler: impl Fn(&Job) -> Done + Send + Sync + 'static,
) -> Factory {
    Factory::Process(ProcessHost::Inline(Arc::new(Closure(Arc::new(handler))), definition.clone()))
}

/// Passes every request on.
pub(super) fn router(targets: &[&str]) -> Factory {
    let targets: Vec<ItemName> = targets.iter().map(ItemName::new).collect();
    inline(move |_| {
        let send = |target: &ItemName| Effect::Send { target: target.clone(), body: Outgoing::Request };
        Done { effects: targets.iter().map(send).collect(), next: Next::Complete, state: None }
    })
}

// --- the production ---

pub(in crate::director) fn common() -> Common {
    Common {
        enabled: true,
        pool_size: PoolSize::Limited(1),
        order_by: Vec::new(),
        on_suspend: OnSuspend::Pass,
        alert: ItemAlert::default(),
        schedule: None,
        description: None,
        category: None,
        targets: Vec::new(),
        reply_from: None,
        search: Vec::new(),
        retry_interval: Duration::from_secs(5),
        failure_timeout: None,
        suspend_limit: 5,
        response_timeout: Duration::from_secs(30),
        idempotency_header: "Idempotency-Key".into(),
        reply_actions: None,
    }
}

/// A queued header of nothing in particular.
pub(in crate::director) fn header() -> Header {
    Header {
        id: MessageId(1),
        session: MessageId(1).into(),
        kind: crate::header::Kind::Request,
        request_id: None,
        caused_by: None,
        resent_from: None,
        source: "in".into(),
        target: Some("out".into()),
        type_name: "Text".into(),
        control_id: "".into(),
        status: Status::Queued,
        error: None,
        attempts: 0,
        created: Timestamp::UNIX_EPOCH,
        processed: None,
        body_id: None,
        size: 0,
        keys: Arc::default(),
        reply_to: crate::header::ReplyTo::Nobody,
        position: 1,
        order_keys: Arc::default(),
        next_attempt: None,
        failing_since: None,
        unsolicited: false,
    }
}

/// A production being written.
pub(super) struct Bench {
    pub(super) clock: Arc<ManualClock>,
    pub(super) store: Store,
    pub(super) items: Vec<Arc<ItemPlan>>,
    pub(super) alerts: Vec<ItemName>,
    pub(super) lanes: crate::process::LaneFactory,
}

impl Bench {
    pub(super) fn new() -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_second(1_767_225_600).unwrap()));
        let store = Store::memory(clock.clone());
        let lanes: crate::process::LaneFactory = Arc::new(|_| unreachable!("no lanes in this test"));
        Bench { clock, store, items: Vec::new(), alerts: Vec::new(), lanes }
    }

    pub(super) fn item(&mut self, name: &str, kind: ItemKind, factory: Factory, common: Common) {
        let facts = Facts { replies: Some(Family::Hl7), ..Facts::default() };
        let fingerprint = format!("{name} {common:?}");
        let name = ItemName::new(name);
        let built = Built { factory, facts };
        self.items.retain(|item| item.name != name);
        self.items.push(Arc::new(ItemPlan { name, kind, type_name: "test", common, built, fingerprint }));
    }

    pub(super) fn service(&mut self, name: &str, targets: &[&str]) -> Gate {
        let targets = targets.iter().map(ItemName::new).collect();
        self.service_with(name, Common { targets, ..common() })
    }

    pub(super) fn service_with(&mut self, name: &str, common: Common) -> Gate {
        let gate = Gate::default();
        self.item(name, ItemKind::Service, Factory::Service(Arc::new(gate.clone())), common);
        gate
    }

    pub(super) fn process(&mut self, name: &str, factory: Factory) {
        self.item(name, ItemKind::Process, factory, common());
    }

    pub(super) fn operation(&mut self, name: &str, common: Common) -> Peer {
        let (sender, receiver) = mpsc::channel(64);
        self.item(name, ItemKind::Operation, Factory::Operation(Arc::new(Sender(sender))), common);
        Peer(receiver)
    }

    pub(super) fn plan(&self) -> Plan {
        Plan {
            production: Production {
                name: "test".into(),
                timezone: TimeZone::UTC,
                alerts: self.alerts.clone(),
                shutdown_timeout: Duration::from_secs(10),
            },
            store: StoreSettings {
                path: "unused".into(),
                retention: None,
                max_size: None,
                min_free: None,
                segment_size: 1 << 26,
                memory: 1 << 27,
                audit_retention: Duration::from_secs(1),
                key: None,
                old_keys: Vec::new(),
                encrypt_bodies: false,
            },
            admin: None,
            log: Default::default(),
            oauth: Default::default(),
            types: Default::default(),
            items: self.items.clone(),
            version: "1".into(),
            sources: Arc::default(),
        }
    }

    pub(super) async fn start(&self) -> Engine {
        self.try_start(Orphans::Refuse).await.unwrap()
    }

    pub(super) async fn try_start(&self, orphans: Orphans) -> Result<Engine, StartError> {
        let parts =
            Parts { store: self.store.clone(), lanes: self.lanes.clone(), tokens: Arc::new(NoTokens) };
        soon("the start", Engine::start(self.plan(), parts, orphans)).await
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.items.retain(|item| item.name.as_str() != name);
    }

    pub(super) fn script_time(&mut self, name: &str, time: Duration) {
        let item = self.items.iter_mut().find(|item| item.name.as_str() == name).unwrap();
        Arc::make_mut(item).built.facts.script_time = Some(time);
    }

    pub(super) fn listens(&mut self, name: &str, address: &str) {
        let item = self.items.iter_mut().find(|item| item.name.as_str() == name).unwrap();
        Arc::make_mut(item).built.facts.listens = vec![(address.parse().unwrap(), None)];
    }

    pub(super) fn header(&self, id: MessageId) -> Header {
        self.store.header(id).unwrap()
    }

    /// Waits until a message has a status.
    pub(super) async fn becomes(&self, id: MessageId, status: Status) -> Header {
        let seen = async {
            loop {
                let header = self.header(id);
                if header.status == status {
                    return header;
                }
                tokio::task::yield_now().await;
            }
        };
        soon(&format!("message {id} {}", status.as_str()), seen).await
    }

    /// Waits until an item has a state.
    pub(super) async fn item_is(&self, engine: &Engine, item: &str, state: ItemState) {
        let item = engine.find(item).unwrap();
        let seen = async {
            while item.state() != state {
                tokio::task::yield_now().await;
            }
        };
        soon(&format!("{} {}", item.name(), state.as_str()), seen).await;
    }

    /// Lets everything run that can.
    pub(super) async fn settle(&self) {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }

    /// All events of a kind, oldest first.
    pub(super) fn events(&self, kind: &str) -> Vec<Event> {
        let filter = EventFilter { kind: Some(kind.to_owned()), ..EventFilter::default() };
        let mut events = self.store.events(&filter, None, 1000).unwrap().entries;
        events.reverse();
        events
    }

    /// The legs of a session as `source>target status`.
    pub(super) fn trace(&self, id: MessageId) -> Vec<String> {
        let leg = |header: Header| {
            let target = header.target.as_ref().map_or("-", |target| target.as_str());
            let kind = if header.kind == crate::header::Kind::Response { "~" } else { "" };
            format!("{kind}{}>{target} {}", header.source, header.status.as_str())
        };
        self.store.session(self.header(id).session).into_iter().map(leg).collect()
    }
}
