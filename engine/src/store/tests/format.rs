//! The format on disk: a journal written by the first version must keep opening and keep its meaning.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::support::{Fixture, embedded, item, manual_clock, options, with_body};
use crate::config::settings::Secret;
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::files::SystemFiles;
use crate::header::Status;
use crate::host::{Keep as _, KeepFamily};
use crate::id::MessageId;
use crate::store::{EventFilter, Guard, Lanes, MessageFilter, Op, Options, Store, Transition};

/// A journal of version 1, as [`write`] made it. Never written again: a new version gets a new file.
const VERSION_1: &[u8] = include_bytes!("fixtures/version-1.seg");

/// A closed store of version 1: journal, index file and checkpoint, as [`a_closed_store`] made them.
const CLOSED_1: [(&str, &[u8]); 3] = [
    ("journal/0000000001.seg", include_bytes!("fixtures/closed-1.seg")),
    ("index/0000000001.idx", include_bytes!("fixtures/closed-1.idx")),
    ("checkpoint-0000000002", include_bytes!("fixtures/closed-1.checkpoint")),
];

fn keyed(path: &Path) -> Options {
    Options { key: Some(Secret::new("5e".repeat(32))), ..options(path) }
}

async fn write(fixture: &Fixture) {
    for (text, mrn) in [("MSH|^~\\&|one", "4711"), ("MSH|^~\\&|two", "Müller"), ("MSH|^~\\&|three", "4712")]
    {
        let mut header = fixture.header("lis", "out");
        header.keys = [("mrn".into(), mrn.to_owned())].into();
        header.order_keys = [42].into();
        let (ops, _) = with_body(&fixture.store, &mut header, text);
        fixture.commit(ops).await.unwrap();
        fixture.advance(1);
    }
    let delivery = fixture.store.take(&item("out"), Lanes::Requests, 1).pop().unwrap();
    let mut retry = Transition::new(delivery.header.id, Guard::Lease(delivery.lease), Status::Queued);
    retry.error = Some(Some(Fault::new("call", "connect", "connection refused").with_detail("ECONNREFUSED")));
    retry.next_attempt = Some("2026-11-22T09:00:00Z".parse().unwrap());
    let event = NewEvent::new(Level::Warning, "alert", "it does not go out").item(&item("out"));
    fixture.commit(vec![Op::Transition(retry), Op::Event(event)]).await.unwrap();
    let second = MessageId(3);
    fixture.finish(second, Guard::Status(Status::Queued), Status::Suspended).await.unwrap();
    fixture.store.put(KeepFamily::Token, "vendor", Some(Bytes::from_static(b"a token"))).await.unwrap();
}

/// What [`write`] left, as text.
async fn describe(store: &Store) -> String {
    let mut text = String::new();
    for header in store.search(&MessageFilter::default(), None, 100).await.unwrap().entries {
        let body = store.body(header.body_id.unwrap()).await.unwrap();
        text += &format!(
            "{} {} -> {:?} {} {:?} attempts {} error {:?} {:?} created {} keys {:?} {:?} body {:?} {:?}\n",
            header.id,
            header.source,
            header.target,
            header.status.as_str(),
            header.control_id,
            header.attempts,
            header.error.as_ref().map(ToString::to_string),
            header.next_attempt.map(|at| at.to_string()),
            header.created,
            header.keys,
            header.order_keys,
            body.type_name(),
            body.as_text(),
        );
    }
    for event in store.events(&EventFilter::default(), None, 100).unwrap().entries {
        text += &format!("{} {} {} {:?} {}\n", event.id, event.at, event.kind, event.item, event.text);
    }
    text + &format!("token {:?}\n", store.get(KeepFamily::Token, "vendor"))
}

#[tokio::test]
async fn a_journal_of_version_1_keeps_opening() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("journal")).unwrap();
    std::fs::write(folder.path().join("journal/0000000001.seg"), VERSION_1).unwrap();
    let store = Store::open(keyed(folder.path()), manual_clock(), Arc::new(SystemFiles)).unwrap();
    insta::assert_snapshot!(describe(&store).await);
}

#[tokio::test]
async fn what_is_written_today_means_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let store = Store::open(keyed(folder.path()), clock.clone(), Arc::new(SystemFiles)).unwrap();
    let fixture = Fixture::on(store, clock.clone(), folder);
    write(&fixture).await;
    let before = describe(&fixture.store).await;
    fixture.store.close().await.unwrap();
    if let Ok(copy) = std::env::var("SEPTET_WRITE_FIXTURE") {
        std::fs::copy(fixture.path().join("journal/0000000001.seg"), copy).unwrap();
    }
    let store = Store::open(keyed(fixture.path()), clock, Arc::new(SystemFiles)).unwrap();
    let after = describe(&store).await;
    assert_eq!(after, before);

    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("journal")).unwrap();
    std::fs::write(folder.path().join("journal/0000000001.seg"), VERSION_1).unwrap();
    let old = Store::open(keyed(folder.path()), manual_clock(), Arc::new(SystemFiles)).unwrap();
    assert_eq!(describe(&old).await, after);
}

/// What [`write`] left with one message completed, closed.
async fn a_closed_store() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let clock = manual_clock();
    let store = Store::open(keyed(folder.path()), clock.clone(), Arc::new(SystemFiles)).unwrap();
    let fixture = Fixture::on(store, clock, folder);
    write(&fixture).await;
    fixture.finish(MessageId(5), Guard::Status(Status::Queued), Status::Completed).await.unwrap();
    fixture.store.close().await.unwrap();
    fixture
}

#[tokio::test]
async fn index_and_checkpoint_of_version_1_keep_opening() {
    let today = a_closed_store().await;
    if let Ok(copies) = std::env::var("SEPTET_WRITE_CLOSED_FIXTURE") {
        for ((name, _), kind) in CLOSED_1.iter().zip(["seg", "idx", "checkpoint"]) {
            std::fs::copy(today.path().join(name), Path::new(&copies).join(format!("closed-1.{kind}")))
                .unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in CLOSED_1 {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let store = Store::open(keyed(folder.path()), manual_clock(), Arc::new(SystemFiles)).unwrap();
    let completed = MessageFilter { status: vec![Status::Completed], ..MessageFilter::default() };
    let page = store.search(&completed, None, 10).await.unwrap();
    assert_eq!((page.entries.len(), page.entries[0].id, page.lag_ms), (1, MessageId(5), 0), "from the index");
    let (today, folder) = today.into_parts();
    drop(today);
    let today = Store::open(keyed(folder.path()), manual_clock(), Arc::new(SystemFiles)).unwrap();
    assert_eq!(describe(&store).await, describe(&today).await);
    assert_eq!(store.counts(&item("out")), today.counts(&item("out")));
}

#[tokio::test]
async fn something_else_than_a_journal_is_refused() {
    let fixture = embedded();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("journal")).unwrap();
    std::fs::write(folder.path().join("journal/0000000001.seg"), b"not a segment").unwrap();
    let refused = Store::open(keyed(folder.path()), fixture.clock.clone(), Arc::new(SystemFiles));
    assert!(matches!(refused, Err(crate::store::OpenError::NotAJournal(_))));
}
