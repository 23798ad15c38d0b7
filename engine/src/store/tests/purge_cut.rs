//! What a purge leaves when it is cut short, and what a power cut brings back of it. Found by the power schedules
//! (seeds 1188, 1582, 10929 and 12722, once in fifty runs: the purge runs beside the work).

use std::path::Path;
use std::sync::Arc;

use super::support::{Fixture, fixtures, manual_clock, options, until_complete};
use crate::clock::Clock as _;
use crate::event::{Level, NewEvent};
use crate::files::SystemFiles;
use crate::header::Status;
use crate::store::change::{Change, Commit};
use crate::store::{EventFilter, Guard, Options, Purge, Store};

fn small(path: &Path) -> Options {
    Options { segment_size: 32 << 10, ..options(path) }
}

async fn completed(fixture: &Fixture, count: usize) {
    for number in 0..count {
        let id = fixture.receive("lis", "out", &format!("{number} {}", "x".repeat(1000))).await;
        fixture.finish(id, Guard::Status(Status::Queued), Status::Completed).await.unwrap();
    }
}

/// The transaction that expires a session may be lost in a crash: an index file that is made before it is durable
/// has the session's rows.
#[tokio::test]
async fn what_expires_is_indexed_until_that_is_durable() {
    for fixture in fixtures() {
        let id = fixture.receive("lis", "out", "text").await;
        fixture.finish(id, Guard::Status(Status::Queued), Status::Completed).await.unwrap();
        let session = fixture.store.header(id).unwrap().session;
        let event = NewEvent::new(Level::Info, "trace", "looked at").message(session, id);
        fixture.store.log(event);
        let shared = &fixture.store.0.shared;
        let (last, now) = (shared.state().sequence, fixture.clock.now());
        let mut state = shared.state();
        let changes = vec![Change::Expired(1, vec![session.0])];
        state.apply(&Commit { sequence: last + 1, at: now, changes }, &mut Vec::new());
        assert_eq!(state.header(id), None);
        let ids = |rows: Vec<crate::store::state::Stored>| rows.iter().map(|row| row.id).collect::<Vec<_>>();
        assert_eq!(ids(state.settled(last, 0, 10).rows), [id]);
        let events = |rows: Vec<Arc<crate::event::Event>>| {
            rows.into_iter().filter(|event| event.session == Some(session)).count()
        };
        assert_eq!(events(state.fresh_events(last, 0, 10).rows), 1);
        state.placed(last + 1, None, &shared.bodies);
        assert_eq!(ids(state.settled(last, 0, 10).rows), []);
        assert_eq!(events(state.fresh_events(last, 0, 10).rows), 0);
    }
}

/// What waits beyond a window has its row in the index: as it was when its segment ended.
#[tokio::test]
async fn what_happened_after_a_segment_ended_is_not_in_its_index_file() {
    for fixture in fixtures() {
        let id = fixture.receive("lis", "out", "text").await;
        let last = fixture.store.0.shared.state().sequence;
        let born = fixture.store.header(id).unwrap();
        fixture.finish(id, Guard::Status(Status::Queued), Status::Error).await.unwrap();
        let state = fixture.store.0.shared.state();
        let rows = state.unfinished(last, true, 0, 10).rows;
        assert_eq!(rows.iter().map(|row| row.header(&state.item_names())).collect::<Vec<_>>(), [born]);
        assert!(state.unfinished(last + 1, true, 0, 10).rows.is_empty());
    }
}

/// Removing an old checkpoint is not synced: a power cut may bring it back when the segment that it begins with has
/// long been purged.
#[tokio::test]
async fn a_checkpoint_that_came_back_brings_back_nothing_that_was_purged() {
    let (clock, folder) = (manual_clock(), tempfile::tempdir().unwrap());
    let open = |path: &Path| Store::open(small(path), clock.clone(), Arc::new(SystemFiles)).unwrap();
    let fixture = Fixture::on(open(folder.path()), clock.clone(), folder);
    let path = fixture.path().to_owned();
    let checkpoints = || {
        let names = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<_> =
            names.filter(|name| name.to_str().unwrap().contains("/checkpoint-")).collect();
        names.sort();
        names
    };
    completed(&fixture, 40).await;
    fixture.store.log(NewEvent::new(Level::Info, "trace", "of no session"));
    // Makes a checkpoint while the event is in the open segment, and in memory.
    let before = checkpoints();
    while checkpoints().last() == before.last() {
        let purge = Purge { roll_before: jiff::Timestamp::MIN, ..Purge::before(jiff::Timestamp::MAX) };
        fixture.store.purge(purge).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let old = checkpoints().pop().unwrap();
    let kept = std::fs::read(&old).unwrap();
    let open_then = fixture.store.0.shared.open_segment.load(std::sync::atomic::Ordering::Acquire);
    while path.join(format!("journal/{open_then:010}.seg")).exists() {
        completed(&fixture, 20).await;
        fixture.store.purge(Purge::before(jiff::Timestamp::MAX)).await.unwrap();
    }
    completed(&fixture, 60).await;
    let traces = |store: &Store| {
        let filter = EventFilter { kind: Some("trace".to_owned()), ..EventFilter::default() };
        store.events(&filter, None, 10).unwrap().entries.len()
    };
    assert_eq!(traces(&fixture.store), 0);
    fixture.store.close().await.unwrap();
    let (store, folder) = fixture.into_parts();
    drop(store);
    assert!(!old.exists());
    std::fs::write(&old, kept).unwrap();
    std::fs::remove_dir_all(path.join("index")).unwrap();
    let store = open(folder.path());
    until_complete(&store).await;
    assert_eq!(traces(&store), 0);
}
