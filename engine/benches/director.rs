//! How many messages a second go service → router → operation through the Director, without sockets:
//! 1 KiB bodies from 64 senders that each wait for durability before the next message, on the embedded
//! store, beside a bare loop of append and fdatasync on the same disk. Run alone:
//! `cargo bench -p septet-engine --bench director [-- MESSAGES]`.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::tz::TimeZone;
use septet_engine::body::{self, Body};
use septet_engine::clock::SystemClock;
use septet_engine::config::plan::{ItemPlan, Plan};
use septet_engine::config::settings::{
    Common, ItemAlert, OnSuspend, PoolSize, Production, Store as StoreSettings,
};
use septet_engine::director::{Engine, Orphans, Parts};
use septet_engine::files::SystemFiles;
use septet_engine::host::{
    BusinessOperation, BusinessService, HostFault, Inbound, Intake, OperationContext, OperationError,
    OperationFactory, Outcome, Runtime, ServiceContext, ServiceFactory,
};
use septet_engine::id::ItemName;
use septet_engine::process::{BusinessProcess, Definition, Done, Effect, Job, Next, Outgoing};
use septet_engine::registry::{Built, Factory, Facts, ItemKind, ProcessHost};
use septet_engine::store::{Options, Store};
use septet_engine::token::NoTokens;
use tokio::sync::{Notify, mpsc};

const SENDERS: usize = 64;

#[derive(Clone, Debug)]
struct Counter(Arc<AtomicU64>, Arc<Notify>, u64);

impl OperationFactory for Counter {
    fn create(&self, _runtime: &Runtime, _item: &ItemName) -> Box<dyn BusinessOperation> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl BusinessOperation for Counter {
    async fn on_message(&mut self, _cx: &OperationContext) -> Result<Outcome, OperationError> {
        if self.0.fetch_add(1, Ordering::Relaxed) + 1 == self.2 {
            self.1.notify_one();
        }
        Ok(Outcome::Sent)
    }
}

#[derive(Clone, Debug)]
struct Door(mpsc::Sender<Arc<dyn Intake>>);

impl ServiceFactory for Door {
    fn create(&self) -> Box<dyn BusinessService> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl BusinessService for Door {
    async fn bind(&mut self, _cx: &ServiceContext) -> Result<(), HostFault> {
        Ok(())
    }

    async fn run(self: Box<Self>, cx: ServiceContext) -> Result<(), HostFault> {
        // The benchmark waits for it.
        let _ = self.0.send(cx.intake.clone()).await;
        cx.stop.cancelled().await;
        Ok(())
    }
}

#[derive(Debug)]
struct Router(ItemName);

impl BusinessProcess for Router {
    fn handle(&self, _job: &Job) -> Done {
        let send = Effect::Send { target: self.0.clone(), body: Outgoing::Request };
        Done { effects: vec![send], next: Next::Complete, state: None }
    }
}

fn item(name: &str, kind: ItemKind, factory: Factory, pool: u32, targets: &[&str]) -> Arc<ItemPlan> {
    let ordered = kind == ItemKind::Operation && pool > 1;
    let common = Common {
        enabled: true,
        pool_size: PoolSize::Limited(pool),
        order_by: if ordered { vec!["PID-3.1".to_owned()] } else { Vec::new() },
        on_suspend: if ordered { OnSuspend::HoldKey } else { OnSuspend::Pass },
        alert: ItemAlert::default(),
        schedule: None,
        description: None,
        category: None,
        targets: targets.iter().map(ItemName::new).collect(),
        reply_from: None,
        search: Vec::new(),
        retry_interval: Duration::from_secs(5),
        failure_timeout: None,
        suspend_limit: 5,
        response_timeout: Duration::from_secs(30),
        idempotency_header: "Idempotency-Key".into(),
        reply_actions: None,
    };
    let built = Built { factory, facts: Facts::default() };
    let (name, fingerprint) = (ItemName::new(name), name.to_owned());
    Arc::new(ItemPlan { name, kind, type_name: "bench", common, built, fingerprint })
}

fn plan(items: Vec<Arc<ItemPlan>>) -> Plan {
    Plan {
        production: Production {
            name: "bench".into(),
            timezone: TimeZone::UTC,
            alerts: Vec::new(),
            shutdown_timeout: Duration::from_secs(10),
        },
        store: StoreSettings {
            path: "unused".into(),
            retention: None,
            max_size: None,
            min_free: None,
            segment_size: 64 << 20,
            memory: 128 << 20,
            audit_retention: Duration::from_secs(1),
            key: None,
            old_keys: Vec::new(),
            encrypt_bodies: false,
        },
        admin: None,
        log: Default::default(),
        oauth: Default::default(),
        types: Default::default(),
        items,
        version: "1".into(),
        sources: Arc::default(),
    }
}

/// An ADT of about 1 KiB for one of a thousand patients.
fn message(number: u64) -> Body {
    let mut text =
        format!("MSH|^~\\&|A|B|C|D|20260101||ADT^A08|{number}|P|2.5\rPID|||{}\rNTE|||", number % 1000);
    text.push_str(&"x".repeat(1024_usize.saturating_sub(text.len())));
    Body::new("ADT^A08", body::HL7, None, text.into())
}

/// Messages a second through the whole Director.
async fn through(messages: u64, pool: u32) -> f64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(Options::new(folder.path()), Arc::new(SystemClock), Arc::new(SystemFiles))
        .expect("a new store");
    let (doors, mut door) = mpsc::channel(1);
    let (counted, all) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let definition = Arc::new(Definition { hash: "1".into(), bytes: "1".into() });
    let router = ProcessHost::Inline(Arc::new(Router("out".into())), definition);
    let out = Counter(counted.clone(), all.clone(), messages);
    let plan = plan(vec![
        item("in", ItemKind::Service, Factory::Service(Arc::new(Door(doors))), 1, &["router"]),
        item("router", ItemKind::Process, Factory::Process(router), 1, &[]),
        item("out", ItemKind::Operation, Factory::Operation(Arc::new(out)), pool, &[]),
    ]);
    let lanes: septet_engine::process::LaneFactory = Arc::new(|_| unreachable!("nothing is scripted"));
    let parts = Parts { store, lanes, tokens: Arc::new(NoTokens) };
    let engine = Engine::start(plan, parts, Orphans::Refuse).await.expect("the plan runs");
    let intake = door.recv().await.expect("the service runs");

    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let senders = (0..SENDERS).map(|_| {
        let (intake, next) = (intake.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= messages {
                    return;
                }
                let accepted = intake.receive(Inbound::new(message(number))).await.expect("there is room");
                accepted.pending.durable().await.expect("the disk works");
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.expect("senders do not panic");
    }
    let taken = began.elapsed();
    all.notified().await;
    let delivered = began.elapsed();
    engine.shutdown(Duration::from_secs(10)).await;
    println!("  taken in {taken:?}, delivered in {delivered:?}");
    per_second(messages, delivered)
}

/// Bytes a second of appending 1 KiB records 64 at a time and syncing.
fn bare(messages: u64) -> f64 {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let block = vec![b'x'; 1024 * SENDERS];
    let began = Instant::now();
    for _ in 0..messages.div_ceil(SENDERS as u64) {
        file.write_all(&block).and_then(|()| file.sync_data()).expect("the disk works");
    }
    per_second(messages, began.elapsed())
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(messages: u64, time: Duration) -> f64 {
    messages as f64 / time.as_secs_f64()
}

fn main() {
    let messages = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(50_000);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let bare = bare(messages);
    println!("append and fdatasync, {SENDERS} records of 1 KiB at a time: {bare:.0} records/s");
    for pool in [1, 8] {
        let rate = runtime.block_on(through(messages, pool));
        println!(
            "service → router → operation (pool {pool}): {rate:.0} messages/s, {:.0} % of that",
            100.0 * rate / bare
        );
    }
}
