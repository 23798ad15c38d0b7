//! P1 on the embedded store, with a disk that syncs when the test lets it.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::support::*;
use crate::body::Body;
use crate::files::{File, Files, Lock, LockError, Space, SystemFiles};
use crate::header::Status;
use crate::host::{Inbound, ServiceReply};
use crate::store::{Options, Store};

/// Syncs wait while it is shut.
#[derive(Debug, Default)]
struct Disk {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Disk {
    fn shut(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.opened.notify_all();
    }

    fn pass(&self) {
        drop(self.opened.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }
}

#[derive(Debug)]
struct SlowFiles(Arc<Disk>);

#[derive(Debug)]
struct SlowFile(Arc<dyn File>, Arc<Disk>);

impl Files for SlowFiles {
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
        Ok(Arc::new(SlowFile(SystemFiles.open(path)?, self.0.clone())))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(SlowFile(SystemFiles.create(path)?, self.0.clone())))
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

impl File for SlowFile {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync()
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.0.allocate(length)
    }
    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.truncate(length)
    }
}

/// A bench on an embedded store; the folder goes when it is dropped.
fn on_disk() -> (Bench, Arc<Disk>, tempfile::TempDir) {
    let (mut bench, disk, folder) = (Bench::new(), Arc::new(Disk::default()), tempfile::tempdir().unwrap());
    let options = Options { segment_size: 1 << 20, min_free: Some(0), ..Options::new(folder.path()) };
    bench.store = Store::open(options, bench.clock.clone(), Arc::new(SlowFiles(disk.clone()))).unwrap();
    (bench, disk, folder)
}

/// Opens the store again after a shutdown.
async fn reopen(bench: &mut Bench, folder: &tempfile::TempDir) {
    let options = Options { segment_size: 1 << 20, min_free: Some(0), ..Options::new(folder.path()) };
    bench.store = Store::memory(bench.clock.clone());
    // The old engine's tasks may hold the store for a moment longer.
    let opened = async {
        loop {
            match Store::open(options.clone(), bench.clock.clone(), Arc::new(SystemFiles)) {
                Ok(store) => return store,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    bench.store = soon("the store to be free", opened).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_waits_is_on_disk() {
    let (mut bench, _disk, folder) = on_disk();
    let gate = bench.service("in", &["flow"]);
    bench.process("flow", super::processes::caller());
    let mut out = bench.operation("out", common());
    let mut done = bench.operation("done", common());
    let engine = bench.start().await;
    let id = gate.receive("hello").await;
    let second = gate.receive("second").await;
    drop(out.next().await);
    engine.shutdown(Duration::from_secs(1)).await;
    drop(engine);
    reopen(&mut bench, &folder).await;
    let _engine = bench.start().await;
    let again = out.next().await;
    bench.becomes(id, Status::Delivered).await;
    assert_eq!(bench.header(second).status, Status::Queued, "its slot is still taken");
    again.reply("AA", Body::text("Ack", "welcome back".into()));
    assert_eq!(done.next().await.text(), "welcome back");
    bench.becomes(id, Status::Completed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_before_it_is_durable() {
    let (mut bench, disk, _folder) = on_disk();
    let gate = bench.service("in", &["router"]);
    bench.process("router", router(&["out"]));
    let mut out = bench.operation("out", common());
    let _engine = bench.start().await;
    disk.shut(true);
    let accepted = gate.intake().receive(Inbound::new(Body::text("Text", "hello".into()))).await.unwrap();
    let id = accepted.headers[0];
    // Inside the engine it goes on at once; only the way out waits.
    bench.becomes(id, Status::Completed).await;
    let leg = bench.store.session(id.into())[1].id;
    bench.becomes(leg, Status::Delivered).await;
    out.hears_nothing().await;
    let durable = accepted.pending.durable();
    assert!(tokio::time::timeout(Duration::from_millis(20), durable).await.is_err(), "no receipt yet");
    disk.shut(false);
    assert_eq!(out.next().await.text(), "hello");
    accepted.pending.durable().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_message_does_not_wait_for_the_sync_of_a_completion() {
    let (mut bench, disk, _folder) = on_disk();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let _engine = bench.start().await;
    gate.receive("first").await;
    gate.receive("second").await;
    let first = out.next().await;
    disk.shut(true);
    first.code("AA");
    assert_eq!(out.next().await.text(), "second");
    disk.shut(false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_reaches_its_service_once_it_is_durable() {
    let (mut bench, disk, _folder) = on_disk();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let _engine = bench.start().await;
    let mut inbound = Inbound::new(Body::text("Text", "?".into()));
    inbound.wants_reply = true;
    let mut accepted = gate.intake().receive(inbound).await.unwrap();
    let call = out.next().await;
    disk.shut(true);
    call.reply("AA", Body::text("Ack", "!".into()));
    bench.becomes(accepted.headers[0], Status::Completed).await;
    let mut reply = tokio::spawn(async move { accepted.pending.reply(Duration::from_secs(30)).await });
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut reply).await.is_err(), "no reply yet");
    disk.shut(false);
    assert!(matches!(soon("the reply", reply).await.unwrap(), ServiceReply::Reply { body: Some(_), .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_retry_is_tried_at_once_after_a_restart() {
    let (mut bench, _disk, folder) = on_disk();
    let gate = bench.service("in", &["out"]);
    let mut out = bench.operation("out", common());
    let engine = bench.start().await;
    let id = gate.receive("hello").await;
    out.next().await.code("AR");
    bench.becomes(id, Status::Queued).await;
    engine.shutdown(Duration::from_secs(1)).await;
    drop(engine);

    reopen(&mut bench, &folder).await;
    let _engine = bench.start().await;
    let again = out.next().await;
    assert_eq!((again.id(), again.cx.attempt, again.cx.tried_before), (id, 2, true));
}
