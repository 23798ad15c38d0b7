//! What is there after a store was closed, or dropped as in a crash, and opened again.

use std::sync::Arc;

use bytes::Bytes;

use super::support::{Fixture, embedded, item, open, options, with_body};
use crate::config::settings::Secret;
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::files::SystemFiles;
use crate::header::{Header, Kind, ReplyTo, Status};
use crate::host::{Keep as _, KeepFamily};
use crate::id::{BodyId, MessageId, SessionId};
use crate::store::{EventFilter, Guard, Lanes, MessageFilter, Op, OpenError, Options, Store, Transition};

/// Every header, newest first.
async fn headers(store: &Store) -> Vec<Header> {
    store.search(&MessageFilter::default(), None, 10_000).await.unwrap().entries
}

/// A header with every field set.
fn full_header(fixture: &Fixture) -> Header {
    let mut header = fixture.header("lis", "flow");
    header.request_id = Some(MessageId(7));
    header.caused_by = Some(MessageId(8));
    header.resent_from = Some(MessageId(9));
    header.kind = Kind::Response;
    header.session = SessionId(1 << 40);
    header.status = Status::Completed;
    header.error = Some(Fault::new("call", "404", "not found").with_detail("a foreign word"));
    header.attempts = 3;
    header.processed = Some(header.created);
    header.body_id = Some(BodyId(5));
    header.size = 1 << 33;
    header.keys = [("mrn".into(), "Müller".to_owned()), ("visit".into(), String::new())].into();
    header.reply_to = ReplyTo::Call { instance: MessageId(3), call: 0 };
    header.order_keys = [u64::MAX, 0, 1].into();
    header.next_attempt = Some(header.created);
    header.failing_since = Some("1969-12-31T23:59:59.999999Z".parse().unwrap());
    header.unsolicited = true;
    header
}

async fn fill(fixture: &Fixture) {
    fixture.commit(vec![Op::Header(Box::new(full_header(fixture)))]).await.unwrap();
    let first = fixture.receive("lis", "out", "one").await;
    for text in ["two", "three"] {
        fixture.receive("lis", "out", text).await;
    }
    let lease = fixture.store.take(&item("out"), Lanes::Requests, 1)[0].lease;
    let mut done = Transition::new(first, Guard::Lease(lease), Status::Error);
    done.error = Some(Some(Fault::new("call", "500", "server error")));
    let event = NewEvent::new(Level::Warning, "message.warned", "look").message(first.into(), first);
    let event = Op::Event(event.item(&item("out")).who("me").detail("foreign"));
    fixture.commit(vec![Op::Transition(done), event]).await.unwrap();
    for (family, key) in
        [(KeepFamily::Token, "vendor"), (KeepFamily::Counter, "out"), (KeepFamily::Plan, "gone")]
    {
        fixture.store.put(family, key, Some(Bytes::from_static(b"kept value"))).await.unwrap();
    }
    fixture.store.put(KeepFamily::Plan, "gone", None).await.unwrap();
}

#[tokio::test]
async fn everything_is_there_again_after_a_clean_stop_and_after_a_crash() {
    for clean in [true, false] {
        let fixture = embedded();
        fill(&fixture).await;
        let before = (headers(&fixture.store).await, fixture.store.counts(&item("out")));
        let events = fixture.store.events(&EventFilter::default(), None, 100).unwrap().entries;
        let (epoch, next) = (fixture.store.epoch(), fixture.store.next_id());
        if clean {
            fixture.store.close().await.unwrap();
        }
        let fixture = fixture.reopen();
        assert_eq!(headers(&fixture.store).await, before.0);
        assert_eq!(fixture.store.counts(&item("out")), before.1);
        assert_eq!(fixture.store.events(&EventFilter::default(), None, 100).unwrap().entries, events);
        assert_eq!(fixture.store.epoch(), epoch);
        assert_eq!(fixture.store.get(KeepFamily::Token, "vendor").as_deref(), Some(&b"kept value"[..]));
        assert_eq!(fixture.store.get(KeepFamily::Plan, "gone"), None);
        let now = fixture.store.next_id();
        assert!(now > next, "{now} was given before");
        assert!(!clean || now == next + 1, "a clean stop wastes no ids");
        let delivery = &fixture.store.take(&item("out"), Lanes::Requests, 1)[0];
        assert!(delivery.recovered);
        assert_eq!(fixture.store.durable(delivery.sequence).await.unwrap().sequence(), delivery.sequence);
        let body = fixture.store.body(delivery.header.body_id.unwrap()).await.unwrap();
        assert_eq!((&body.bytes()[..], body.type_name()), (&b"two"[..], "ADT^A01"));
        let new = fixture.receive("lis", "out", "four").await;
        assert!(fixture.store.header(new).unwrap().position > delivery.header.position);
    }
}

#[tokio::test]
async fn delivered_messages_are_queued_again_and_retries_keep_their_time() {
    let fixture = embedded();
    let first = fixture.receive("lis", "out", "one").await;
    fixture.receive("lis", "out", "two").await;
    let lease = fixture.store.take(&item("out"), Lanes::Requests, 1)[0].lease;
    let mut retry = Transition::new(first, Guard::Lease(lease), Status::Queued);
    retry.next_attempt = Some("2026-11-22T09:00:00Z".parse().unwrap());
    fixture.commit(vec![Op::Transition(retry)]).await.unwrap();
    let other = fixture.receive("lis", "other", "three").await;
    assert_eq!(fixture.store.take(&item("other"), Lanes::Requests, 1).len(), 1);

    let fixture = fixture.reopen();
    assert_eq!(fixture.store.header(other).unwrap().status, Status::Queued);
    assert!(fixture.store.take(&item("out"), Lanes::Requests, 1).is_empty());
    fixture.advance(3600);
    let again = &fixture.store.take(&item("out"), Lanes::Requests, 1)[0];
    assert_eq!((again.header.id, again.header.attempts), (first, 2));
}

#[tokio::test]
async fn a_suspended_message_keeps_its_place_over_a_restart() {
    let fixture = embedded();
    let first = fixture.receive("lis", "out", "one").await;
    let second = fixture.receive("lis", "out", "two").await;
    fixture.finish(first, Guard::Status(Status::Queued), Status::Suspended).await.unwrap();
    let fixture = fixture.reopen();
    assert_eq!(fixture.store.counts(&item("out")).suspended, 1);
    fixture.finish(first, Guard::Status(Status::Suspended), Status::Queued).await.unwrap();
    let taken: Vec<_> =
        fixture.store.take(&item("out"), Lanes::Requests, 1).iter().map(|d| d.header.id).collect();
    assert_eq!(taken, [first]);
    fixture.finish(first, Guard::Status(Status::Delivered), Status::Completed).await.unwrap();
    assert_eq!(fixture.store.take(&item("out"), Lanes::Requests, 1)[0].header.id, second);
}

#[tokio::test]
async fn segments_roll_and_bodies_of_every_size_are_read_back() {
    let fixture = embedded();
    let mut stored = Vec::new();
    for number in 0..60u32 {
        let size = [10, 9_000, 70_000, 3 << 20][usize::try_from(number % 4).unwrap()];
        let text = number.to_string().repeat(size);
        let mut header = fixture.header("lis", "out");
        let (ops, id) = with_body(&fixture.store, &mut header, &text);
        let committed = fixture.commit(ops).await.unwrap();
        stored.push((id, text));
        fixture.store.durable(committed.sequence).await.unwrap();
    }
    let segments = std::fs::read_dir(fixture.path().join("journal")).unwrap().count();
    assert!(segments > 10, "{segments} files");
    let fixture = fixture.reopen();
    for (id, text) in stored {
        let header = fixture.store.header(id).unwrap();
        let body = fixture.store.body(header.body_id.unwrap()).await.unwrap();
        assert!(body.bytes()[..] == *text.as_bytes(), "message {id}");
    }
}

#[tokio::test]
async fn one_store_is_opened_once() {
    let fixture = embedded();
    let second = Store::open(options(fixture.path()), fixture.clock.clone(), Arc::new(SystemFiles));
    let pid = std::process::id().to_string();
    match second {
        Err(OpenError::InUse { pid: held, .. }) => assert_eq!(held, pid),
        other => panic!("{other:?}"),
    }
    fixture.store.close().await.unwrap();
    drop(open(fixture.path(), fixture.clock.clone()));
}

#[tokio::test]
async fn after_closing_nothing_is_taken_and_nobody_waits_for_ever() {
    let fixture = embedded();
    fixture.receive("lis", "out", "one").await;
    fixture.store.close().await.unwrap();
    assert!(!fixture.store.accepting());
    assert!(fixture.store.reserve(crate::store::Class::Ingest, 1).await.is_err());
    fixture.store.log(NewEvent::new(Level::Info, "trace", "too late"));
    assert!(fixture.store.durable(1_000).await.is_err());
    assert_eq!(fixture.store.close().await, Ok(()));
}

#[tokio::test]
async fn an_existing_store_never_gets_another_key() {
    let fixture = embedded();
    fixture.receive("lis", "out", "one").await;
    fixture.store.put(KeepFamily::Token, "vendor", Some(Bytes::from_static(b"secret token"))).await.unwrap();
    fixture.store.close().await.unwrap();
    let path = fixture.path().to_owned();
    let key_file = path.join("store.key");
    let key = std::fs::read_to_string(&key_file).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&key_file).unwrap().permissions().mode() & 0o777, 0o600);
    let open = |options: Options| Store::open(options, fixture.clock.clone(), Arc::new(SystemFiles));

    std::fs::remove_file(&key_file).unwrap();
    assert!(matches!(open(options(&path)), Err(OpenError::KeyMissing(_))));
    assert!(!key_file.exists());
    let other = Secret::new("00".repeat(32));
    let wrong = Options { key: Some(other), ..options(&path) };
    assert!(matches!(open(wrong), Err(OpenError::WrongKey { .. })));
    let bad = Options { key: Some(Secret::new("short")), ..options(&path) };
    assert!(matches!(open(bad), Err(OpenError::BadKey(_))));
    let given = Options { key: Some(Secret::new(key)), ..options(&path) };
    let store = open(given).unwrap();
    assert_eq!(store.get(KeepFamily::Token, "vendor").as_deref(), Some(&b"secret token"[..]));
}

/// Whether any file of the journal contains these bytes.
fn on_disk(fixture: &Fixture, bytes: &[u8]) -> bool {
    let files = std::fs::read_dir(fixture.path().join("journal")).unwrap();
    let contents = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
    contents.into_iter().any(|content| content.windows(bytes.len()).any(|window| window == bytes))
}

#[tokio::test]
async fn secrets_are_sealed_at_rest_and_bodies_where_asked_for() {
    let fixture = embedded();
    fill(&fixture).await;
    fixture.store.put(KeepFamily::Token, "vendor", Some(Bytes::from_static(b"secret token"))).await.unwrap();
    assert!(!on_disk(&fixture, b"secret token"));
    assert!(on_disk(&fixture, "Müller".as_bytes()));

    let folder = tempfile::tempdir().unwrap();
    let key = Secret::new("12".repeat(32));
    let sealed = || Options { key: Some(key.clone()), encrypt_bodies: true, ..options(folder.path()) };
    let refused =
        Store::open(Options { key: None, ..sealed() }, fixture.clock.clone(), Arc::new(SystemFiles));
    assert!(matches!(refused, Err(OpenError::KeyNeeded)));
    let store = Store::open(sealed(), fixture.clock.clone(), Arc::new(SystemFiles)).unwrap();
    let fixture = Fixture::on(store, fixture.clock.clone(), folder);
    fill(&fixture).await;
    let big = "body in clear ".repeat(2000);
    let id = fixture.receive("lis", "out", &big).await;
    let before = headers(&fixture.store).await;
    fixture.store.close().await.unwrap();
    for clear in ["body in clear", "Müller", "foreign", "three"] {
        assert!(!on_disk(&fixture, clear.as_bytes()), "{clear}");
    }
    let store = Store::open(
        Options { key: Some(key), encrypt_bodies: true, ..options(fixture.path()) },
        fixture.clock.clone(),
        Arc::new(SystemFiles),
    )
    .unwrap();
    assert_eq!(headers(&store).await, before);
    let body = store.body(store.header(id).unwrap().body_id.unwrap()).await.unwrap();
    assert_eq!(&body.bytes()[..], big.as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_and_takers_at_once_lose_and_invent_nothing() {
    const WRITERS: u64 = 32;
    const EACH: u64 = 40;
    let fixture = embedded();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let store = fixture.store.clone();
        let now = crate::clock::Clock::now(&*fixture.clock);
        writers.push(tokio::spawn(async move {
            let target = format!("out{}", writer % 4);
            let mut ids = Vec::new();
            for number in 0..EACH {
                let text = format!("{writer}/{number} ").repeat(100);
                let mut header = super::support::header(&store, "lis", &target, now);
                let (ops, id) = with_body(&store, &mut header, &text);
                let committed = super::support::commit(&store, ops).await.unwrap();
                store.durable(committed.sequence).await.unwrap();
                ids.push((id, text));
            }
            ids
        }));
    }
    let mut takers = Vec::new();
    for number in 0..4 {
        let (store, item) = (fixture.store.clone(), item(&format!("out{number}")));
        takers.push(tokio::spawn(async move {
            let (ready, mut order, mut last) = (store.ready(&item), Vec::new(), None);
            while order.len() < usize::try_from(WRITERS * EACH / 4).unwrap() {
                for delivery in store.take(&item, Lanes::Requests, 1) {
                    store.durable(delivery.sequence).await.unwrap();
                    let done =
                        Transition::new(delivery.header.id, Guard::Lease(delivery.lease), Status::Completed);
                    last = Some(super::support::commit(&store, vec![Op::Transition(done)]).await.unwrap());
                    order.push(delivery.header.position);
                }
                if order.len() < usize::try_from(WRITERS * EACH / 4).unwrap()
                    && store.counts(&item).queued == 0
                {
                    ready.notified().await;
                }
            }
            store.durable(last.unwrap().sequence).await.unwrap();
            assert!(order.is_sorted(), "first in, first out");
        }));
    }
    let mut all = Vec::new();
    for writer in writers {
        all.extend(writer.await.unwrap());
    }
    for taker in takers {
        taker.await.unwrap();
    }
    let fixture = fixture.reopen();
    assert_eq!(headers(&fixture.store).await.len(), all.len());
    for (id, text) in all {
        let header = fixture.store.header(id).unwrap();
        assert_eq!(header.status, Status::Completed);
        let body = fixture.store.body(header.body_id.unwrap()).await.unwrap();
        assert!(body.bytes()[..] == *text.as_bytes());
    }
    let counts = fixture.store.counts(&item("out0"));
    assert_eq!((counts.queued, counts.completed), (0, WRITERS * EACH / 4));
}
