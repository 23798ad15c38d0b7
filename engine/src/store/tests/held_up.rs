//! A keeper that gets nothing done: writers wait for it, memory stays bounded, and nothing is lost or out of order.
//! And what else bounds memory: large texts, and many deep queues.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::support::{
    Fixture, commit, embedded, header, item, manual_clock, options, until_complete, with_body,
};
use crate::config::settings::{OnSuspend, PoolSize};
use crate::files::{File, Files, Lock, LockError, Space, SystemFiles};
use crate::header::{Header, Status};
use crate::id::ItemName;
use crate::queue::Policy;
use crate::store::change::{Change, Commit, Move};
use crate::store::keeper::BEHIND;
use crate::store::state::{State, Touched};
use crate::store::{Class, Guard, Lanes, MessageFilter, Op, Store, Transaction, Transition};

/// Files whose index cannot be written while the gate is closed: it takes as long as it takes.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
    /// How often somebody stood before it.
    held: AtomicU64,
    /// Nobody waits: it fails.
    fails: AtomicBool,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.changed.notify_all();
    }

    fn pass(&self, path: &Path) -> io::Result<()> {
        if !path.parent().is_some_and(|folder| folder.ends_with("index")) {
            return Ok(());
        }
        let mut closed = self.closed.lock().unwrap();
        if *closed && self.fails.load(Ordering::Acquire) {
            self.held.fetch_add(1, Ordering::AcqRel);
            return Err(io::Error::other("no index today"));
        }
        while *closed {
            self.held.fetch_add(1, Ordering::AcqRel);
            closed = self.changed.wait(closed).unwrap();
        }
        Ok(())
    }
}

#[derive(Debug)]
struct GatedFiles(Arc<Gate>);

impl Files for GatedFiles {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        SystemFiles.create_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        SystemFiles.sync_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        SystemFiles.list(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        SystemFiles.open(path)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.0.pass(path)?;
        SystemFiles.create(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemFiles.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemFiles.remove(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        SystemFiles.space(path)
    }
    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>, LockError> {
        SystemFiles.lock(path)
    }
}

/// A store with a small window behind a gate, and a message beyond the window in it.
fn gated() -> (Fixture, Arc<Gate>) {
    let (clock, folder, gate) = (manual_clock(), tempfile::tempdir().unwrap(), Arc::new(Gate::default()));
    let options = crate::store::Options { window: 8, ..options(folder.path()) };
    let store = Store::open(options, clock.clone(), Arc::new(GatedFiles(gate.clone()))).unwrap();
    (Fixture::on(store, clock, folder), gate)
}

fn gathered(store: &Store) -> usize {
    store.0.shared.state().fresh.weight()
}

async fn until(mut reached: impl FnMut() -> bool) {
    let reached = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect("it gets there");
}

/// Messages by their numbers, as fast as the store takes them; the most that gathered in memory meanwhile.
async fn fill(store: Store, count: usize) -> usize {
    let mut most = 0;
    for number in 0..count {
        let mut header = header(&store, "lis", "out", store.clock().now());
        header.control_id = format!("{number:05}").into();
        let (ops, _) = with_body(&store, &mut header, &format!("message {number}"));
        let permit = store.reserve(Class::Ingest, 1024).await.unwrap();
        store.submit(permit, Transaction::new(ops)).unwrap();
        most = most.max(gathered(&store));
    }
    most
}

#[tokio::test]
async fn writers_wait_for_a_keeper_that_is_held_up_and_memory_stays_bounded() {
    let (fixture, gate) = gated();
    let store = fixture.store.clone();
    let in_flight = store.0.shared.ingest.transactions() + store.0.shared.completion.transactions();
    gate.set(true);
    let filling = tokio::spawn(fill(store.clone(), 1500));
    until(|| gate.held.load(Ordering::Acquire) > 0 && store.0.shared.pace.waits() > 0).await;
    assert!(!filling.is_finished(), "the journal waits, and so do its senders");
    let (before, synced) = (gathered(&store), store.0.shared.durable.synced());
    assert!((BEHIND..=BEHIND + 2 * in_flight).contains(&before), "{before} of {BEHIND}");
    gate.set(false);
    let most = filling.await.unwrap();
    assert!(most <= BEHIND + 2 * in_flight, "{most} rows at most, {in_flight} on their way");
    assert!(synced < 1500);

    // All of it is there, and comes out in order.
    let name = item("out");
    let ready = store.ready(&name);
    let mut next = 0;
    while next < 1500 {
        for delivery in store.take(&name, Lanes::Requests, 64) {
            assert_eq!(*delivery.header.control_id, *format!("{next:05}"));
            next += 1;
            let body = store.body(delivery.header.body_id.unwrap()).await.unwrap();
            assert_eq!(body.bytes(), format!("message {}", next - 1).as_bytes());
            let done = Transition::new(delivery.header.id, Guard::Lease(delivery.lease), Status::Completed);
            commit(&store, vec![Op::Transition(done)]).await.unwrap();
        }
        let _ = tokio::time::timeout(Duration::from_millis(20), ready.notified()).await;
    }
    until(|| gathered(&store) < BEHIND).await;
    drop(store);
    let fixture = fixture.reopen();
    until_complete(&fixture.store).await;
    let found = fixture.store.search(&MessageFilter::default(), None, 2000).await.unwrap();
    assert_eq!(found.entries.len(), 1500);
    let completed = found.entries.iter().filter(|header| header.status == Status::Completed).count();
    // The last completions may not have been synced when it was dropped.
    assert!(completed + in_flight >= 1500, "{completed}");
}

#[tokio::test]
async fn an_index_that_cannot_be_written_does_not_stop_messages() {
    let (fixture, gate) = gated();
    let store = fixture.store.clone();
    gate.fails.store(true, Ordering::Release);
    gate.set(true);
    let filling = tokio::spawn(fill(store.clone(), 1500));
    filling.await.unwrap();
    let sequence = store.0.shared.state().sequence;
    store.durable(sequence).await.unwrap();
    assert!(gate.held.load(Ordering::Acquire) > 0, "it was tried");
    gate.set(false);
    until_complete(&store).await;
    let found = store.search(&MessageFilter::default(), None, 2000).await.unwrap();
    assert_eq!(found.entries.len(), 1500);
}

#[tokio::test]
async fn rows_with_large_texts_leave_memory_earlier() {
    let fixture = embedded();
    let id = fixture.receive("lis", "out", "text").await;
    let mut done = Transition::new(id, Guard::Status(Status::Queued), Status::Error);
    let fault = crate::fault::Fault::new("call", "500", "refused").with_detail("x".repeat(100 * 1024));
    done.error = Some(Some(fault));
    let committed = fixture.commit(vec![Op::Transition(done)]).await.unwrap();
    fixture.store.durable(committed.sequence).await.unwrap();
    // One row, as heavy as more than a part.
    let other = fixture.receive("lis", "other", "text").await;
    until(|| gathered(&fixture.store) == 0).await;
    let header = fixture.store.header(id).unwrap();
    assert_eq!(header.error.unwrap().detail.unwrap().0.len(), 100 * 1024);
    assert!(!fixture.store.0.shared.state().rows.contains_key(&id.0));
    assert!(fixture.store.0.shared.state().rows.contains_key(&other.0), "it waits in a window");
}

#[test]
fn many_deep_queues_share_the_window_and_each_is_emptied_in_order() {
    const QUEUES: usize = 12;
    const EACH: usize = 2500;
    let store = Store::memory(manual_clock());
    let now = store.clock().now();
    let mut state = State::new(4 * 1024);
    let (mut touched, mut position) = (Touched::new(), 0);
    let names: Vec<ItemName> = (0..QUEUES).map(|queue| item(&format!("out{queue}"))).collect();
    let policy = Policy { pool: PoolSize::Limited(64), ordered: false, on_suspend: OnSuspend::Pass };
    for name in &names {
        state.configure_queue(name, policy);
        for _ in 0..EACH * 2 {
            position += 1;
            let header = Header { position, ..header(&store, "lis", name.as_str(), now) };
            let changes = vec![Change::Header(Box::new(header))];
            state.apply(&Commit { sequence: position, at: now, changes }, &mut touched);
        }
    }
    let all = (QUEUES * EACH * 2) as u64;
    let windows = all - state.beyond();
    assert!(windows >= 4096 + (QUEUES as u64 - 1) * 1024, "{windows}");
    assert!(windows <= 4096 * 5, "{windows} of {all} are in windows");

    // As one after the other is emptied, those that are left get more.
    let mut last = 0;
    for name in &names {
        let mut left = EACH * 2;
        while left > 0 {
            for delivery in state.take(name, Lanes::Requests, 64, now) {
                let header = delivery.header;
                assert!(header.position > last);
                (last, left) = (header.position, left - 1);
                position += 1;
                let change = Move {
                    id: header.id,
                    to: Status::Completed,
                    error: None,
                    attempts: None,
                    next_attempt: None,
                    failing_since: None,
                };
                let changes = vec![Change::Move(change)];
                state.apply(&Commit { sequence: position, at: now, changes }, &mut touched);
            }
            while let Some(page) = state.next_page(2048) {
                assert!(state.fill(&page).0.is_empty());
            }
        }
    }
    assert_eq!(state.beyond(), 0);
}
