//! Purge and windows: what goes goes whole, what lives on stays whole, and a queue that is deeper than its
//! window keeps its order.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::support::{Fixture, item, reopened, small, small_fixture, until_complete};
use crate::clock::Clock as _;
use crate::event::{Level, NewEvent};
use crate::files::SystemFiles;
use crate::header::Status;
use crate::id::{MessageId, SessionId};
use crate::store::offline::{Keys, check};
use crate::store::{EventFilter, Guard, Lanes, MessageFilter, Purge, Purged, Store};

const DAY: u64 = 86_400;

async fn complete(fixture: &Fixture, id: MessageId) {
    fixture.finish(id, Guard::Status(Status::Queued), Status::Completed).await.unwrap();
}

/// So many messages that are completed at once.
async fn completed(fixture: &Fixture, count: usize) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for number in 0..count {
        let id = fixture.receive("lis", "out", &format!("{number} {}", "x".repeat(1000))).await;
        complete(fixture, id).await;
        ids.push(id);
    }
    let last = fixture.finish(ids[0], Guard::Status(Status::Queued), Status::Completed).await;
    assert!(last.is_err(), "it is completed");
    ids
}

/// Purges until something goes: index files and checkpoints are made by a thread of their own.
async fn purge(fixture: &Fixture, before: Timestamp, segments: u64) -> Purged {
    let purge = Purge { audit_before: before, ..Purge::before(before) };
    let mut all = Purged::default();
    for _ in 0..10_000 {
        let purged = fixture.store.purge(purge).await.unwrap();
        all.segments += purged.segments;
        all.messages += purged.messages;
        all.sessions += purged.sessions;
        all.bytes += purged.bytes;
        all.carried += purged.carried;
        if all.segments >= segments {
            return all;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("only {all:?}");
}

fn segments(path: &Path) -> u64 {
    std::fs::read_dir(path.join("journal"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".seg"))
        .count() as u64
}

async fn listed(store: &Store) -> Vec<MessageId> {
    let page = store.search(&MessageFilter::default(), None, 1000).await.unwrap();
    page.entries.into_iter().map(|header| header.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_purged_is_not_missing_and_what_was_removed_is() {
    let mut fixture = small_fixture();
    completed(&fixture, 100).await;
    fixture.advance(10 * DAY);
    completed(&fixture, 60).await;
    let cutoff = fixture.clock.now() - Duration::from_secs(5 * DAY);
    purge(&fixture, cutoff, 3).await;
    let corrupt = |store: &Store| {
        let filter = EventFilter { kind: Some("store.corrupt".to_owned()), ..EventFilter::default() };
        store.events(&filter, None, 10).unwrap().entries.len()
    };
    for removed in [0, 1] {
        fixture.store.close().await.unwrap();
        if removed > 0 {
            let numbers = crate::store::recovery::segments(&SystemFiles, &fixture.path().join("journal"));
            let first = numbers.unwrap()[0];
            std::fs::remove_file(fixture.path().join(format!("journal/{first:010}.seg"))).unwrap();
        }
        let (clock, (store, folder)) = (fixture.clock.clone(), fixture.into_parts());
        drop(store);
        let report = check(&SystemFiles, folder.path(), &Keys::default()).unwrap();
        assert_eq!(report.problem_count, removed, "{:?}", report.problems);
        let store = Store::open(small(folder.path()), clock.clone(), Arc::new(SystemFiles)).unwrap();
        assert_eq!(corrupt(&store) as u64, removed);
        fixture = Fixture::on(store, clock, folder);
    }
    // The next purge goes on, and then nothing is missing any more.
    fixture.advance(10 * DAY);
    purge(&fixture, fixture.clock.now() - Duration::from_secs(5 * DAY), 2).await;
    assert_eq!(listed(&fixture.store).await, []);
    fixture.store.close().await.unwrap();
    let (store, folder) = fixture.into_parts();
    drop(store);
    assert!(check(&SystemFiles, folder.path(), &Keys::default()).unwrap().is_sound());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_goes_whole_and_what_is_unfinished_or_young_stays_whole() {
    let fixture = small_fixture();
    let old = completed(&fixture, 100).await;
    let waiting = fixture.receive("lis", "out", "waits since long").await;
    let audited = NewEvent::new(Level::Info, "message.viewed", "looked").who("anna");
    fixture.store.log(audited.message(SessionId(old[0].0), old[0]));
    // The session of the last old message goes on later.
    let lively = *old.last().unwrap();
    let more = completed(&fixture, 60).await;
    fixture.advance(10 * DAY);
    let mut header = fixture.header("router", "other");
    header.session = SessionId(lively.0);
    header.caused_by = Some(lively);
    header.body_id = fixture.store.header(lively).unwrap().body_id;
    fixture.commit(vec![crate::store::Op::Header(Box::new(header))]).await.unwrap();
    let young = completed(&fixture, 60).await;
    let before = segments(fixture.path());
    assert!(before > 6, "{before}");

    let cutoff = fixture.clock.now() - Duration::from_secs(5 * DAY);
    let dry = Purge { dry_run: true, ..Purge::before(cutoff) };
    let dry = fixture.store.purge(dry).await.unwrap();
    assert_eq!(segments(fixture.path()), before, "{dry:?}");
    let purged = purge(&fixture, cutoff, 4).await;
    assert!(purged.bytes > 4 * (24 << 10), "{purged:?}");
    assert!(segments(fixture.path()) < before);

    let check = async |fixture: &Fixture| {
        let gone = fixture.store.header(old[0]);
        assert!(gone.is_none() && fixture.store.session(SessionId(old[0].0)).is_empty());
        let there = listed(&fixture.store).await;
        for id in &there {
            let header = fixture.store.header(*id).unwrap();
            let body = fixture.store.body(header.body_id.unwrap()).await;
            assert!(body.is_ok(), "no header without its body: {id} {body:?}");
        }
        assert!(there.contains(&waiting) && there.contains(&lively), "{there:?}");
        assert!(young.iter().all(|id| there.contains(id)));
        assert_eq!(fixture.store.session(SessionId(lively.0)).len(), 2);
        let mut unique = there.clone();
        unique.dedup();
        assert_eq!(unique.len(), there.len());
        there
    };
    let there = check(&fixture).await;
    // More old ones may have stayed in a segment that is not yet old as a whole.
    assert!(there.len() < old.len() + more.len() + young.len());
    let counts = fixture.store.counts(&item("out"));
    assert_eq!((counts.completed, counts.queued), (220, 1));

    let fixture = reopened(fixture);
    assert_eq!(check(&fixture).await, there);
    let path = fixture.path().to_owned();
    let fixture = fixture.closed_and_changed(|_| std::fs::remove_dir_all(path.join("index")).unwrap());
    until_complete(&fixture.store).await;
    assert_eq!(check(&fixture).await, there, "the index made again");
    let taken = fixture.store.take(&item("out"), Lanes::Requests, 10);
    assert_eq!(taken.iter().map(|one| one.header.id).collect::<Vec<_>>(), [waiting]);
    assert_eq!(fixture.store.counts(&item("out")).completed, 220);
}

/// Old ones and young ones in one segment that is not full, purged once at a moment between them.
async fn purged_between(old: usize, young: usize) -> Purged {
    let fixture = small_fixture();
    let old = completed(&fixture, old).await;
    fixture.advance(10 * DAY);
    let cutoff = fixture.clock.now() - Duration::from_secs(5 * DAY);
    let mut young = completed(&fixture, young).await;
    let dry = Purge { within: true, dry_run: true, ..Purge::before(cutoff) };
    let dry = fixture.store.purge(dry).await.unwrap();
    assert!(fixture.store.header(old[0]).is_some());
    let purge = Purge { within: true, ..Purge::before(cutoff) };
    let purged = fixture.store.purge(purge).await.unwrap();
    assert_eq!((purged.messages, purged.sessions), (old.len() as u64, old.len() as u64));
    assert_eq!((dry.messages, dry.carried), (purged.messages, purged.carried));
    young.reverse();
    let check = async |fixture: &Fixture| {
        assert_eq!(listed(&fixture.store).await, young);
        for id in &old {
            assert!(fixture.store.header(*id).is_none() && fixture.store.session(SessionId(id.0)).is_empty());
        }
        for id in &young {
            let body = fixture.store.header(*id).unwrap().body_id.unwrap();
            assert!(fixture.store.body(body).await.is_ok());
        }
        let again = fixture.store.purge(purge).await.unwrap();
        assert_eq!(again.messages, 0, "what has gone is not counted again");
    };
    check(&fixture).await;
    let fixture = reopened(fixture);
    until_complete(&fixture.store).await;
    check(&fixture).await;
    purged
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mostly_older_than_the_moment_asked_for_goes_and_what_is_younger_is_carried() {
    let purged = purged_between(12, 3).await;
    assert!(purged.segments >= 1 && purged.carried == 3, "{purged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_events_outlive_the_messages_they_are_about() {
    let fixture = small_fixture();
    let old = completed(&fixture, 5).await;
    let audited = NewEvent::new(Level::Info, "message.viewed", "looked").who("anna");
    fixture.store.log(audited.message(SessionId(old[0].0), old[0]));
    fixture.store.log(NewEvent::new(Level::Info, "item.started", "long ago"));
    completed(&fixture, 100).await;
    fixture.advance(10 * DAY);
    completed(&fixture, 60).await;
    let before = fixture.clock.now() - Duration::from_secs(5 * DAY);
    let purge = Purge::before(before);
    for _ in 0..10_000 {
        if fixture.store.purge(purge).await.unwrap().segments > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let kind = |kind: &str| {
        let filter = EventFilter { kind: Some(kind.to_owned()), ..EventFilter::default() };
        fixture.store.events(&filter, None, 10).unwrap().entries.len()
    };
    assert_eq!((kind("message.viewed"), kind("item.started")), (1, 0));
    assert!(fixture.store.header(old[0]).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn by_size_the_oldest_go_until_the_store_is_small_enough() {
    let fixture = small_fixture();
    completed(&fixture, 200).await;
    let most = 100 << 10;
    let purge = |before| Purge { audit_before: before, ..Purge::down_to(most) };
    fixture.advance(1);
    for _ in 0..10_000 {
        fixture.store.purge(purge(fixture.clock.now())).await.unwrap();
        if segments(fixture.path()) <= 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(segments(fixture.path()) <= 4, "{}", segments(fixture.path()));
    let there = listed(&fixture.store).await;
    assert!(!there.is_empty() && there.len() < 200, "{}", there.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deeper_than_its_window_is_delivered_in_order_over_restarts() {
    let mut fixture = small_fixture();
    let mut ids = Vec::new();
    for number in 0..300 {
        ids.push(fixture.receive("lis", "out", &format!("{number} {}", "y".repeat(300))).await);
    }
    assert_eq!(fixture.store.counts(&item("out")).queued, 300);
    // One in the middle is taken away by an operator, wherever it waits.
    let discarded = ids.remove(150);
    fixture.finish(discarded, Guard::Status(Status::Queued), Status::Discarded).await.unwrap();
    let mut delivered = Vec::new();
    while delivered.len() < ids.len() {
        if [40, 120, 200].contains(&delivered.len()) {
            fixture = reopened(fixture);
            assert_eq!(fixture.store.counts(&item("out")).queued as usize, ids.len() - delivered.len());
        }
        let ready = fixture.store.ready(&item("out"));
        let taken = fixture.store.take(&item("out"), Lanes::Requests, 1);
        let Some(delivery) = taken.into_iter().next() else {
            ready.notified().await;
            continue;
        };
        let body = fixture.store.body(delivery.header.body_id.unwrap()).await.unwrap();
        assert!(body.bytes().ends_with(b"yyy"));
        let done = fixture.finish(delivery.header.id, Guard::Lease(delivery.lease), Status::Completed).await;
        if [39, 119, 199].contains(&delivered.len()) {
            fixture.store.durable(done.unwrap().sequence).await.unwrap();
        }
        delivered.push(delivery.header.id);
    }
    assert_eq!(delivered, ids);
    assert_eq!(fixture.store.counts(&item("out")).queued, 0);
    assert_eq!(fixture.store.header(discarded).unwrap().status, Status::Discarded);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_beyond_a_window_is_found_by_everything() {
    let fixture = small_fixture();
    let mut ids = Vec::new();
    for number in 0..200 {
        ids.push(fixture.receive("lis", "out", &format!("{number} {}", "z".repeat(500))).await);
    }
    let fixture = reopened(fixture);
    let mut expected = ids.clone();
    expected.reverse();
    assert_eq!(listed(&fixture.store).await, expected);
    let queued = MessageFilter { status: vec![Status::Queued], ..MessageFilter::default() };
    assert_eq!(fixture.store.search(&queued, None, 1000).await.unwrap().entries.len(), 200);
    for id in &ids {
        let header = fixture.store.header(*id).unwrap();
        assert_eq!(header.status, Status::Queued);
        assert_eq!(fixture.store.session(header.session).len(), 1);
        assert!(fixture.store.body(header.body_id.unwrap()).await.is_ok());
    }
}
