//! Stores to test, and short ways to fill them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::body::Body;
use crate::clock::{Clock as _, ManualClock};
use crate::files::SystemFiles;
use crate::header::{Header, Kind, ReplyTo, Status};
use crate::id::{BodyId, ItemName, MessageId, SessionId};
use crate::store::{
    Class, Committed, Conflict, Guard, MessageFilter, Op, Options, Store, Transaction, Transition,
};

/// A store under test, with the clock it runs on.
pub(crate) struct Fixture {
    pub(crate) name: &'static str,
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    /// Removed when the test is over.
    folder: Option<tempfile::TempDir>,
}

/// One of each implementation.
pub(crate) fn fixtures() -> Vec<Fixture> {
    let clock = manual_clock();
    let memory = Fixture { name: "memory", store: Store::memory(clock.clone()), clock, folder: None };
    vec![memory, embedded()]
}

/// An embedded store in a folder of its own.
pub(crate) fn embedded() -> Fixture {
    let (clock, folder) = (manual_clock(), tempfile::tempdir().unwrap());
    let store = open(folder.path(), clock.clone());
    Fixture::on(store, clock, folder)
}

/// Small segments and little memory, so that a short test rolls, evicts and reads back.
pub(crate) fn options(path: &Path) -> Options {
    Options {
        segment_size: 1 << 20,
        memory: 4096,
        min_free: Some(0),
        pace: Duration::from_millis(5),
        ..Options::new(path)
    }
}

pub(crate) fn open(path: &Path, clock: Arc<ManualClock>) -> Store {
    Store::open(options(path), clock, Arc::new(SystemFiles)).unwrap()
}

pub(crate) fn manual_clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new("2026-11-22T08:00:00Z".parse().unwrap()))
}

impl Fixture {
    pub(crate) fn on(store: Store, clock: Arc<ManualClock>, folder: tempfile::TempDir) -> Fixture {
        Fixture { name: "embedded", store, clock, folder: Some(folder) }
    }

    /// Where an embedded store is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    /// The store and its folder.
    pub(crate) fn into_parts(self) -> (Store, tempfile::TempDir) {
        (self.store, self.folder.unwrap())
    }

    /// Drops the store, as a crash does unless it was closed before, and opens it again.
    pub(crate) fn reopen(self) -> Fixture {
        self.closed_and_changed(|_| {})
    }

    /// The same, with something done to the files in between.
    pub(crate) fn closed_and_changed(self, change: impl FnOnce(&Path)) -> Fixture {
        let Fixture { name, store, clock, folder } = self;
        drop(store);
        let folder = folder.unwrap();
        change(folder.path());
        let store = open(folder.path(), clock.clone());
        Fixture { name, store, clock, folder: Some(folder) }
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// A header from `source` to `target`, not yet stored.
    pub(crate) fn header(&self, source: &str, target: &str) -> Header {
        header(&self.store, source, target, self.clock.now())
    }

    /// Commits a message with a body of its own, as a service does.
    pub(crate) async fn receive(&self, source: &str, target: &str, text: &str) -> MessageId {
        let mut header = self.header(source, target);
        let (ops, id) = with_body(&self.store, &mut header, text);
        commit(&self.store, ops).await.unwrap();
        id
    }

    pub(crate) async fn commit(&self, ops: Vec<Op>) -> Result<Committed, Conflict> {
        commit(&self.store, ops).await
    }

    pub(crate) async fn finish(
        &self,
        id: MessageId,
        guard: Guard,
        to: Status,
    ) -> Result<Committed, Conflict> {
        self.commit(vec![Op::Transition(Transition::new(id, guard, to))]).await
    }
}

pub(crate) async fn commit(store: &Store, ops: Vec<Op>) -> Result<Committed, Conflict> {
    let permit = store.reserve(Class::Completion, 1024).await.unwrap();
    store.submit(permit, Transaction::new(ops))
}

/// The operations that store a message with this text as its body.
pub(crate) fn with_body(store: &Store, header: &mut Header, text: &str) -> (Vec<Op>, MessageId) {
    let body = Body::new("ADT^A01", crate::body::HL7, None, Bytes::copy_from_slice(text.as_bytes()));
    let body_id = BodyId(store.next_id());
    header.body_id = Some(body_id);
    header.size = u64::try_from(body.size()).unwrap();
    (vec![Op::Body(body_id, body), Op::Header(Box::new(header.clone()))], header.id)
}

pub(crate) fn header(store: &Store, source: &str, target: &str, now: jiff::Timestamp) -> Header {
    let id = MessageId(store.next_id());
    Header {
        id,
        session: SessionId::from(id),
        kind: Kind::Request,
        request_id: None,
        caused_by: None,
        resent_from: None,
        source: ItemName::new(source),
        target: Some(ItemName::new(target)),
        type_name: "ADT^A01".into(),
        control_id: format!("C{id}").into(),
        status: Status::Queued,
        error: None,
        attempts: 0,
        created: now,
        processed: None,
        body_id: None,
        size: 0,
        keys: Arc::default(),
        reply_to: ReplyTo::Nobody,
        position: 0,
        order_keys: Arc::default(),
        next_attempt: None,
        failing_since: None,
        unsolicited: false,
    }
}

pub(crate) fn item(name: &str) -> ItemName {
    ItemName::new(name)
}

/// Returns when no index file is being made again: only then is a list everything there is.
pub(crate) async fn until_complete(store: &Store) {
    while store.search(&MessageFilter::default(), None, 1).await.unwrap().lag_ms > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Segments of some dozens of messages, windows of a few.
pub(super) fn small(path: &Path) -> Options {
    Options { segment_size: 32 << 10, window: 8, ..options(path) }
}

/// A store of that kind.
pub(super) fn small_fixture() -> Fixture {
    let (clock, folder) = (manual_clock(), tempfile::tempdir().unwrap());
    let store = Store::open(small(folder.path()), clock.clone(), Arc::new(SystemFiles)).unwrap();
    Fixture::on(store, clock, folder)
}

/// That store, opened again.
pub(super) fn reopened(fixture: Fixture) -> Fixture {
    let clock = fixture.clock.clone();
    let (store, folder) = fixture.into_parts();
    drop(store);
    let store = Store::open(small(folder.path()), clock.clone(), Arc::new(SystemFiles)).unwrap();
    Fixture::on(store, clock, folder)
}
