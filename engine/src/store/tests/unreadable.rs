//! Segments that cannot be read when a store is opened: it opens without those that a checkpoint covers, and says so;
//! it does not open without those that say what waits.

use std::path::Path;
use std::sync::Arc;

use super::sim::SimFiles;
use super::support::{Fixture, commit, header, item, manual_clock, options, until_complete, with_body};
use crate::files::{Files, SystemFiles};
use crate::header::Status;
use crate::id::MessageId;
use crate::store::offline::{Keys, check, repair};
use crate::store::{
    EventFilter, Guard, Lanes, MessageFilter, Op, OpenError, Options, ReadError, Store, Transition,
};

const FIRST: &str = "/store/journal/0000000001.seg";

fn small(path: &Path) -> Options {
    Options { segment_size: 16 << 10, window: 4, ..options(path) }
}

fn open_on(files: &(impl Files + Clone + 'static), path: &Path) -> Result<Store, OpenError> {
    Store::open(small(path), manual_clock(), Arc::new(files.clone()))
}

fn simulated(files: &SimFiles) -> Result<Store, OpenError> {
    open_on(files, Path::new("/store"))
}

/// Messages of 1 KiB, the first `done` of them finished.
async fn fill(store: &Store, count: usize, done: usize) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for number in 0..count {
        let mut header = header(store, "lis", "out", store.clock().now());
        let (mut ops, id) = with_body(store, &mut header, &format!("{number} {}", "x".repeat(1000)));
        if number < done {
            ops.push(Op::Transition(Transition::new(id, Guard::Status(Status::Queued), Status::Completed)));
        }
        let committed = commit(store, ops).await.unwrap();
        store.durable(committed.sequence).await.unwrap();
        ids.push(id);
    }
    ids
}

fn corrupt(store: &Store) -> Vec<String> {
    let filter = EventFilter { kind: Some("store.corrupt".to_owned()), ..EventFilter::default() };
    store.events(&filter, None, 100).unwrap().entries.into_iter().map(|event| event.text).collect()
}

async fn listed(store: &Store) -> usize {
    until_complete(store).await;
    store.search(&MessageFilter::default(), None, 1000).await.unwrap().entries.len()
}

#[tokio::test]
async fn a_segment_that_a_checkpoint_covers_costs_only_its_bodies() {
    for bytes in [0..1 << 20, 5000..6000] {
        let files = SimFiles::new();
        let store = simulated(&files).unwrap();
        let ids = fill(&store, 60, 60).await;
        store.close().await.unwrap();
        drop(store);
        let files = files.restart();
        files.go_bad(FIRST, bytes.clone());
        for _ in 0..2 {
            let store = simulated(&files).unwrap();
            if bytes.start == 0 {
                let said = corrupt(&store);
                assert!(said[0].contains("0000000001.seg:0") && said[0].contains("store repair"), "{said:?}");
            }
            assert!(listed(&store).await >= 60);
            let mut unread = 0;
            for id in &ids {
                match store.body(store.header(*id).unwrap().body_id.unwrap()).await {
                    Ok(body) => assert_eq!(body.size(), store.header(*id).unwrap().size as usize),
                    Err(ReadError::Io(_, text)) => {
                        assert!(text.contains("0000000001.seg:"), "{text}");
                        unread += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert!((1..20).contains(&unread), "{unread}");
            fill(&store, 3, 0).await;
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_last_segment_of_a_clean_stop_may_be_unreadable_too() {
    let files = SimFiles::new();
    let store = simulated(&files).unwrap();
    fill(&store, 60, 58).await;
    let last = store.0.shared.open_segment.load(std::sync::atomic::Ordering::Acquire);
    store.close().await.unwrap();
    drop(store);
    let files = files.restart();
    files.go_bad(&format!("/store/journal/{last:010}.seg"), 0..1 << 20);
    for waiting in [2, 3] {
        let store = simulated(&files).unwrap();
        assert_eq!(store.counts(&item("out")).queued, waiting);
        assert!(corrupt(&store)[0].contains(&format!("{last:010}.seg")));
        fill(&store, 1, 0).await;
        store.close().await.unwrap();
    }
    files.get_well();
    assert_eq!(listed(&simulated(&files).unwrap()).await, 62);
}

#[tokio::test]
async fn a_segment_that_says_what_waits_is_needed() {
    for bytes in [0..64, 5000..6000, 0..1 << 20] {
        let files = SimFiles::new();
        let store = simulated(&files).unwrap();
        fill(&store, 40, 0).await;
        drop(store);
        // As if there had never been a checkpoint.
        for name in files.list(Path::new("/store")).unwrap() {
            if name.starts_with("checkpoint-") {
                files.remove(&Path::new("/store").join(name)).unwrap();
            }
        }
        let files = files.restart();
        files.go_bad(FIRST, bytes.clone());
        match simulated(&files) {
            Err(error @ OpenError::Needed { .. }) => {
                let text = error.to_string();
                assert!(text.contains(FIRST) && text.contains("septet store repair"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        // It was only the cable.
        let well = files.restart();
        let store = simulated(&well).unwrap();
        assert_eq!(store.counts(&item("out")).queued, 40);
        drop(store);
        // It was not: what can be read is kept.
        let keys = Keys::default();
        let shared: Arc<dyn Files> = Arc::new(files.clone());
        assert!(!check(&files, Path::new("/store"), &keys).unwrap().is_sound());
        let done = repair(shared, manual_clock(), Path::new("/store"), &keys, true).await.unwrap();
        assert!(done.after.unwrap().is_sound());
        assert!(
            files.list(Path::new("/store/quarantine")).unwrap().contains(&"0000000001.seg.bad".to_owned())
        );
        let store = simulated(&files).unwrap();
        let queued = store.counts(&item("out")).queued;
        assert!((20..=40).contains(&queued), "{queued}");
    }
}

#[tokio::test]
async fn what_waits_beyond_a_window_is_needed_too() {
    let files = SimFiles::new();
    let store = simulated(&files).unwrap();
    fill(&store, 60, 0).await;
    store.close().await.unwrap();
    drop(store);
    let files = files.restart();
    files.go_bad(FIRST, 0..1 << 20);
    assert!(matches!(simulated(&files), Err(OpenError::Needed { .. })));
    files.get_well();
    let store = simulated(&files).unwrap();
    let mut taken = 0;
    while taken < 60 {
        for delivery in store.take(&item("out"), Lanes::Requests, 4) {
            let done = Transition::new(delivery.header.id, Guard::Lease(delivery.lease), Status::Completed);
            commit(&store, vec![Op::Transition(done)]).await.unwrap();
            taken += 1;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_cannot_be_read_now_stays_in_its_queue_and_nothing_overtakes_it() {
    let files = SimFiles::new();
    let store = simulated(&files).unwrap();
    let ids = fill(&store, 60, 0).await;
    store.close().await.unwrap();
    drop(store);
    let files = files.restart();
    let store = simulated(&files).unwrap();
    let mut taken = Vec::new();
    let mut refuse = Some(3);
    while taken.len() < 60 {
        if refuse.is_some_and(|at| taken.len() >= at) {
            refuse = None;
            files.go_bad(FIRST, 0..1 << 20);
        }
        for delivery in store.take(&item("out"), Lanes::Requests, 4) {
            taken.push(delivery.header.id);
            let done = Transition::new(delivery.header.id, Guard::Lease(delivery.lease), Status::Completed);
            commit(&store, vec![Op::Transition(done)]).await.unwrap();
        }
        if !corrupt(&store).is_empty() {
            files.get_well();
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(taken, ids);
    assert_eq!(corrupt(&store).len(), 1, "{:?}", corrupt(&store));
}

/// The same on a real disk, with what happens to files there.
#[tokio::test]
async fn files_that_are_gone_or_overwritten() {
    type Harm = fn(&Path);
    let harms: [Harm; 4] = [
        |path| std::fs::remove_file(path).unwrap(),
        |path| std::fs::write(path, b"").unwrap(),
        |path| std::fs::write(path, vec![0; 16 << 10]).unwrap(),
        |path| std::fs::write(path, vec![0xa5; 16 << 10]).unwrap(),
    ];
    for covered in [true, false] {
        for harm in harms {
            let folder = tempfile::tempdir().unwrap();
            let store = open_on(&SystemFiles, folder.path()).unwrap();
            let fixture = Fixture::on(store, manual_clock(), folder);
            let done = if covered { 60 } else { 0 };
            fill(&fixture.store, 60, done).await;
            if covered {
                fixture.store.close().await.unwrap();
            }
            let (store, folder) = fixture.into_parts();
            drop(store);
            if !covered {
                for entry in std::fs::read_dir(folder.path()).unwrap().flatten() {
                    if entry.file_name().to_str().unwrap().starts_with("checkpoint-") {
                        std::fs::remove_file(entry.path()).unwrap();
                    }
                }
            }
            harm(&folder.path().join("journal/0000000002.seg"));
            let opened = open_on(&SystemFiles, folder.path());
            if covered {
                let store = opened.unwrap();
                assert!(corrupt(&store)[0].contains("0000000002.seg"), "{:?}", corrupt(&store));
                assert!(listed(&store).await >= 60);
                store.close().await.unwrap();
            } else {
                let refused = opened.unwrap_err();
                assert!(refused.to_string().contains("0000000002.seg"), "{refused}");
            }
            let files: Arc<dyn Files> = Arc::new(SystemFiles);
            let done = repair(files, manual_clock(), folder.path(), &Keys::default(), true).await.unwrap();
            assert!(done.after.unwrap().is_sound());
            let store = open_on(&SystemFiles, folder.path()).unwrap();
            assert!(covered || (20..60).contains(&store.counts(&item("out")).queued));
        }
    }
}
