//! An intake for tests of services: it commits to a memory store as the engine does, remembers what came,
//! and can be full, slow to sync, or answer on behalf of a target.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use septet_engine::body::{self, Body};
use septet_engine::clock::ManualClock;
use septet_engine::event::NewEvent;
use septet_engine::host::{
    Accepted, Inbound, Intake, Keep, KeepFamily, Pending, Refused, Runtime, ServiceContext, ServiceReply,
};
use septet_engine::id::{MessageId, SessionId};
use septet_engine::record::MessageTypes;
use septet_engine::store::{Class, Op, Receipt, Store, StoreFailed, Transaction};
use septet_engine::token::NoTokens;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

#[path = "../../../tests/support/port.rs"]
mod port;
pub(crate) use self::port::free_port;

/// What a target replies to a message.
pub(crate) type Replies = Box<dyn Fn(&Body) -> ServiceReply + Send + Sync>;

/// See the module.
pub(crate) struct Desk {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) stop: CancellationToken,
    /// Everything that was taken.
    taken: Mutex<Vec<Inbound>>,
    pub(crate) came: Notify,
    events: Mutex<Vec<NewEvent>>,
    /// Whether messages are taken.
    pub(crate) open: watch::Sender<bool>,
    /// Whether what was taken gets on stable storage.
    pub(crate) syncing: watch::Sender<bool>,
    /// Replies wait until it is true.
    pub(crate) replying: watch::Sender<bool>,
    replies: Mutex<Option<Arc<Replies>>>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Desk")
    }
}

impl Desk {
    pub(crate) fn new() -> Arc<Self> {
        let clock = Arc::new(ManualClock::new("2026-11-22T09:15:00Z".parse::<Timestamp>().unwrap()));
        Arc::new(Desk {
            store: Store::memory(clock.clone()),
            clock,
            stop: CancellationToken::new(),
            taken: Mutex::default(),
            came: Notify::new(),
            events: Mutex::default(),
            open: watch::Sender::new(true),
            syncing: watch::Sender::new(true),
            replying: watch::Sender::new(true),
            replies: Mutex::default(),
        })
    }

    /// What targets reply from now on.
    pub(crate) fn replies(&self, replies: impl Fn(&Body) -> ServiceReply + Send + Sync + 'static) {
        *self.replies.lock().unwrap() = Some(Arc::new(Box::new(replies)));
    }

    pub(crate) fn context(self: &Arc<Self>) -> ServiceContext {
        ServiceContext {
            item: "in".into(),
            runtime: Runtime {
                production: "test".into(),
                clock: self.clock.clone(),
                timezone: TimeZone::UTC,
                types: MessageTypes::default(),
                vault: self.store.vault().clone(),
                tokens: Arc::new(NoTokens),
                epoch: "e".into(),
                keep: self.clone(),
            },
            stop: self.stop.clone(),
            intake: self.clone(),
        }
    }

    /// Control id of each message taken, `!` before rejected ones.
    pub(crate) fn ids(&self) -> Vec<String> {
        let id = |inbound: &Inbound| {
            let mark = if inbound.reject.is_some() { "!" } else { "" };
            let id = inbound.body.as_hl7().map(|message| message.control_id().into_owned());
            format!("{mark}{}", id.or(inbound.control_id.clone()).unwrap_or_default())
        };
        self.taken.lock().unwrap().iter().map(id).collect()
    }

    /// Everything that was taken, as it was handed in.
    pub(crate) fn taken(&self) -> Vec<Inbound> {
        self.taken.lock().unwrap().clone()
    }

    /// Waits until this many messages were taken.
    pub(crate) async fn until(&self, count: usize) {
        loop {
            let came = self.came.notified();
            if self.taken.lock().unwrap().len() >= count {
                return;
            }
            came.await;
        }
    }

    pub(crate) fn bodies(&self) -> Vec<Bytes> {
        self.taken.lock().unwrap().iter().map(|inbound| inbound.body.bytes().clone()).collect()
    }

    pub(crate) fn findings(&self) -> Vec<String> {
        let taken = self.taken.lock().unwrap();
        taken.iter().flat_map(|inbound| inbound.findings.iter().map(|event| event.text.clone())).collect()
    }

    /// Sessions that messages were asked to join.
    pub(crate) fn joined(&self) -> Vec<Option<SessionId>> {
        self.taken.lock().unwrap().iter().map(|inbound| inbound.session).collect()
    }

    /// The events that belong to no message.
    pub(crate) fn events(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        events.iter().map(|event| format!("{}: {}", event.kind, event.text)).collect()
    }
}

#[async_trait]
impl Intake for Desk {
    async fn receive(&self, inbound: Inbound) -> Result<Accepted, Refused> {
        if !self.accepting() {
            return Err(Refused::Unavailable(String::from("full")));
        }
        let permit = self.store.reserve(Class::Ingest, inbound.body.size() as u64).await.unwrap();
        let id = self.store.next_id();
        let keeps = inbound.keep.iter().cloned().map(|(family, key, value)| Op::Keep(family, key, value));
        let committed = self.store.submit(permit, Transaction::new(keeps.collect())).unwrap();
        let replies = self.replies.lock().unwrap().clone();
        let reply = match &replies {
            Some(replies) if inbound.wants_reply => Some(replies(&inbound.body)),
            _ => None,
        };
        let pending = Waiting {
            store: self.store.clone(),
            sequence: committed.sequence,
            clock: self.clock.clone(),
            syncing: self.syncing.subscribe(),
            replying: self.replying.subscribe(),
            reply,
        };
        let session = inbound.session.unwrap_or(SessionId(id));
        self.taken.lock().unwrap().push(inbound);
        self.came.notify_one();
        Ok(Accepted { session, headers: vec![MessageId(id)], pending: Box::new(pending) })
    }

    fn accepting(&self) -> bool {
        *self.open.borrow()
    }

    async fn until_accepting(&self) {
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

#[async_trait]
impl Keep for Desk {
    fn get(&self, family: KeepFamily, key: &str) -> Option<Bytes> {
        self.store.get(family, key)
    }

    fn scan(&self, family: KeepFamily, prefix: &str) -> Vec<(String, Bytes)> {
        self.store.scan(family, prefix)
    }

    async fn put(&self, family: KeepFamily, key: &str, value: Option<Bytes>) -> Result<(), StoreFailed> {
        let _ = self.syncing.subscribe().wait_for(|syncing| *syncing).await;
        self.store.put(family, key, value).await
    }

    fn event(&self, event: NewEvent) {
        self.events.lock().unwrap().push(event);
    }
}

#[derive(Debug)]
struct Waiting {
    store: Store,
    sequence: u64,
    clock: Arc<ManualClock>,
    syncing: watch::Receiver<bool>,
    replying: watch::Receiver<bool>,
    reply: Option<ServiceReply>,
}

#[async_trait]
impl Pending for Waiting {
    async fn durable(&self) -> Result<Receipt, StoreFailed> {
        let _ = self.syncing.clone().wait_for(|syncing| *syncing).await;
        self.store.durable(self.sequence).await
    }

    async fn reply(&mut self, timeout: Duration) -> ServiceReply {
        use septet_engine::clock::Clock as _;
        let Some(reply) = self.reply.take() else {
            self.clock.sleep(timeout).await;
            return ServiceReply::Timeout;
        };
        tokio::select! {
            _ = self.replying.wait_for(|replying| *replying) => reply,
            () = self.clock.sleep(timeout) => ServiceReply::Timeout,
        }
    }
}

/// The reply that an HL7 body makes.
pub(crate) fn replied(text: &str) -> ServiceReply {
    let body = Body::new("ACK", body::HL7, None, Bytes::copy_from_slice(text.as_bytes()));
    ServiceReply::Reply { body: Some(body), fault: None }
}
