//! What is derived from the journal may break, or be removed, while the store runs or while it does not: nothing is
//! lost, no list is wrong without saying so, and it is made again.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::sim::{Faults, SimFiles};
use super::support::{Fixture, commit, embedded, header, item, until_complete, with_body};
use crate::clock::{Clock as _, SystemClock};
use crate::header::{Header, Status};
use crate::host::{Keep as _, KeepFamily};
use crate::id::SessionId;
use crate::store::{EventFilter, Guard, MessageFilter, Op, Options, Page, Store, Transition};

async fn all(store: &Store) -> Page<Header> {
    store.search(&MessageFilter::default(), None, 10_000).await.unwrap()
}

fn told(store: &Store, kind: &str) -> Vec<String> {
    let filter = EventFilter { kind: Some(kind.into()), ..EventFilter::default() };
    store.events(&filter, None, 100).unwrap().entries.into_iter().map(|event| event.text).collect()
}

/// Returns when an event about the index says this: it comes from a thread of its own.
async fn until_told(store: &Store, words: &str) {
    while !told(store, "store.index").iter().any(|text| text.contains(words)) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn files_ending(path: &Path, folder: &str, end: &str) -> Vec<PathBuf> {
    let names = std::fs::read_dir(path.join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = names.filter(|name| name.to_str().unwrap().ends_with(end)).collect();
    names.sort();
    names
}

fn index_files(fixture: &Fixture) -> Vec<PathBuf> {
    files_ending(fixture.path(), "index", ".idx")
}

async fn message(fixture: &Fixture, number: usize, size: usize, status: Option<Status>) {
    let id = fixture.receive("lis", "out", &format!("{number}|{}", "x".repeat(size))).await;
    if let Some(status) = status {
        fixture.finish(id, Guard::Status(Status::Queued), status).await.unwrap();
    }
}

/// Returns when everything submitted so far is durable, and what was sealed is in the index.
async fn settled(fixture: &Fixture) {
    let sequence = fixture.store.0.shared.state().sequence;
    fixture.store.durable(sequence).await.unwrap();
    let shared = &fixture.store.0.shared;
    let open = || shared.open_segment.load(std::sync::atomic::Ordering::Acquire);
    while index_files(fixture).len() as u64 + 1 < open() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Several sealed segments with finished, waiting and suspended messages, and an open one.
async fn filled() -> (Fixture, Vec<Header>) {
    let fixture = embedded();
    for number in 0..160 {
        let status = [None, Some(Status::Discarded), Some(Status::Discarded), Some(Status::Suspended)];
        message(&fixture, number, 20_000, status[number % 4]).await;
    }
    settled(&fixture).await;
    let before = all(&fixture.store).await;
    assert_eq!((before.entries.len(), before.lag_ms), (160, 0));
    assert!(index_files(&fixture).len() > 2);
    (fixture, before.entries)
}

/// Every way to ask gives what was there before.
async fn whole(fixture: &Fixture, before: &[Header]) {
    until_complete(&fixture.store).await;
    let store = &fixture.store;
    assert_eq!(all(store).await.entries, before);
    for header in before {
        assert_eq!(store.header(header.id).as_ref(), Some(header));
        assert_eq!(store.session(header.session), std::slice::from_ref(header));
        let body = store.body(header.body_id.unwrap()).await.unwrap();
        assert_eq!(body.size() as u64, header.size);
    }
    let filter = MessageFilter { status: vec![Status::Discarded], ..MessageFilter::default() };
    let discarded = before.iter().filter(|header| header.status == Status::Discarded).count();
    assert_eq!(store.search(&filter, None, 1000).await.unwrap().entries.len(), discarded);
}

fn change(file: &Path, change: impl FnOnce(&std::fs::File)) {
    change(&std::fs::OpenOptions::new().write(true).open(file).unwrap());
}

/// Overwrites the first rows in place, as a bad disk does.
fn damage(file: &Path) {
    change(file, |file| file.write_all_at(&[0xff; 64], 40).unwrap());
}

#[tokio::test]
async fn a_damaged_index_file_is_found_and_made_again_without_a_restart() {
    let (fixture, before) = filled().await;
    let damaged = index_files(&fixture)[0].clone();
    damage(&damaged);
    let page = all(&fixture.store).await;
    assert!(page.lag_ms > 0, "a list that may lack something says so");
    assert!(page.entries.iter().all(|header| before.contains(header)), "no row is wrong");
    whole(&fixture, &before).await;
    let corrupt = told(&fixture.store, "store.corrupt");
    assert_eq!(corrupt.len(), 1, "{corrupt:?}");
    assert!(corrupt[0].contains("index/0000000001.idx") && corrupt[0].contains("offset 16"), "{corrupt:?}");
    let news = told(&fixture.store, "store.index");
    assert_eq!(news[0], "the index is complete again");
    assert!(damaged.exists());
    whole(&fixture.reopen(), &before).await;
}

#[tokio::test]
async fn a_truncated_index_file_is_found_and_made_again_without_a_restart() {
    let (fixture, before) = filled().await;
    for (number, length) in [(0, 0), (1, 100)] {
        change(&index_files(&fixture)[number], |file| file.set_len(length).unwrap());
        let page = all(&fixture.store).await;
        assert!(page.entries.iter().all(|header| before.contains(header)), "no row is wrong");
        whole(&fixture, &before).await;
    }
    assert_eq!(told(&fixture.store, "store.corrupt").len(), 2);
}

#[tokio::test]
async fn an_index_file_that_somebody_removed_is_made_again_without_a_restart() {
    let (fixture, before) = filled().await;
    let removed = index_files(&fixture)[1].clone();
    std::fs::remove_file(&removed).unwrap();
    while !removed.exists() {
        let page = all(&fixture.store).await;
        assert!(page.entries == before || page.lag_ms > 0);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    whole(&fixture, &before).await;
    assert!(!told(&fixture.store, "store.index").is_empty());
}

#[tokio::test]
async fn the_whole_index_folder_may_be_removed_while_the_store_runs() {
    let (fixture, mut before) = filled().await;
    let files = index_files(&fixture).len();
    std::fs::remove_dir_all(fixture.path().join("index")).unwrap();
    // Messages flow on, and so do segments.
    for number in 0..120 {
        message(&fixture, number, 20_000, Some(Status::Discarded)).await;
        let page = all(&fixture.store).await;
        assert!(page.lag_ms > 0 || page.entries.len() == before.len() + number + 1);
    }
    while !fixture.path().join("index").exists() || index_files(&fixture).len() <= files {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    until_complete(&fixture.store).await;
    let mut now = all(&fixture.store).await.entries;
    let new = now.split_off(120);
    assert_eq!(new, before);
    before.splice(0..0, now);
    whole(&fixture, &before).await;
    whole(&fixture.reopen(), &before).await;
}

/// A store whose open segment has parts, and the names of these.
async fn with_parts() -> (Fixture, Vec<Header>) {
    let (fixture, _) = filled().await;
    for number in 0..110 {
        message(&fixture, number, 10, Some(Status::Discarded)).await;
    }
    while fixture.store.0.shared.state().fresh.waiting() >= 48 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let before = all(&fixture.store).await.entries;
    assert!(!parts(&fixture).is_empty());
    (fixture, before)
}

fn parts(fixture: &Fixture) -> Vec<PathBuf> {
    files_ending(fixture.path(), "index", ".part")
}

#[tokio::test]
async fn a_damaged_part_of_the_open_segment_is_made_again_from_it() {
    for removed in [false, true] {
        let (fixture, before) = with_parts().await;
        let there = parts(&fixture);
        match removed {
            false => damage(&there[0]),
            true => std::fs::remove_file(&there[0]).unwrap(),
        }
        while there[0].exists() || parts(&fixture).iter().all(|part| there.contains(part)) {
            let page = all(&fixture.store).await;
            assert!(page.entries == before || page.lag_ms > 0);
            assert!(page.entries.iter().all(|header| before.contains(header)), "no row is wrong");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        whole(&fixture, &before).await;
        fixture.store.close().await.unwrap();
        let fixture = fixture.reopen();
        assert_eq!(all(&fixture.store).await.lag_ms, 0, "its index file was made when it ended");
        whole(&fixture, &before).await;
    }
}

#[tokio::test]
async fn a_part_found_damaged_when_its_segment_ends_costs_nothing_but_time() {
    let (fixture, mut before) = with_parts().await;
    let damaged = parts(&fixture)[0].clone();
    damage(&damaged);
    // Nobody has read it when the segment ends.
    for number in 0..100 {
        message(&fixture, number, 20_000, Some(Status::Discarded)).await;
    }
    while damaged.exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    until_complete(&fixture.store).await;
    let mut now = all(&fixture.store).await.entries;
    assert_eq!(now.split_off(100), before);
    before.splice(0..0, now);
    whole(&fixture, &before).await;
}

#[tokio::test]
async fn an_index_file_of_another_version_or_damaged_at_the_start_is_made_again_while_messages_flow() {
    let (fixture, before) = filled().await;
    fixture.store.close().await.unwrap();
    let files = index_files(&fixture);
    let fixture = fixture.closed_and_changed(|_| {
        let mut newer = std::fs::read(&files[0]).unwrap();
        newer[8] = 99;
        let crc = crc32fast::hash(&newer[..12]).to_le_bytes();
        newer[12..16].copy_from_slice(&crc);
        std::fs::write(&files[0], newer).unwrap();
        std::fs::write(&files[1], b"something else").unwrap();
    });
    let page = all(&fixture.store).await;
    assert!(page.lag_ms > 0 || page.entries == before);
    whole(&fixture, &before).await;
    assert!(told(&fixture.store, "store.corrupt")[0].contains("0000000002.idx is damaged at offset 0"));
    assert!(told(&fixture.store, "store.index").iter().any(|text| text.contains("a newer version")));
}

#[tokio::test]
async fn deleting_the_index_of_a_store_that_is_closed_costs_nothing_but_time() {
    for clean in [true, false] {
        let (fixture, before) = filled().await;
        if clean {
            fixture.store.close().await.unwrap();
        }
        let fixture = fixture.closed_and_changed(|path| std::fs::remove_dir_all(path.join("index")).unwrap());
        let progress = fixture.store.index_progress().unwrap();
        assert!(progress.behind_ms > 0 || index_files(&fixture).len() > 2);
        whole(&fixture, &before).await;
        assert_eq!(fixture.store.index_progress().unwrap(), Default::default());
        assert!(told(&fixture.store, "store.index").iter().any(|text| text.contains("made again")));
    }
}

#[tokio::test]
async fn a_file_where_the_index_folder_should_be_is_set_aside_and_the_store_opens() {
    let (fixture, before) = filled().await;
    fixture.store.close().await.unwrap();
    let fixture = fixture.closed_and_changed(|path| {
        std::fs::remove_dir_all(path.join("index")).unwrap();
        std::fs::write(path.join("index"), b"not a folder").unwrap();
    });
    whole(&fixture, &before).await;
    assert_eq!(std::fs::read(fixture.path().join("index.bad-1")).unwrap(), b"not a folder");
    let corrupt = told(&fixture.store, "store.corrupt");
    assert!(corrupt[0].contains("index.bad-1"), "{corrupt:?}");
}

#[tokio::test]
async fn a_file_put_where_the_index_folder_was_while_the_store_runs_is_set_aside_too() {
    let (fixture, before) = filled().await;
    std::fs::remove_dir_all(fixture.path().join("index")).unwrap();
    std::fs::write(fixture.path().join("index"), b"not a folder").unwrap();
    while !fixture.path().join("index").is_dir() || index_files(&fixture).len() < 3 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    whole(&fixture, &before).await;
}

#[tokio::test]
async fn of_two_checkpoints_the_older_or_the_journal_does_as_well() {
    for broken in [1, 2] {
        let fixture = embedded();
        for number in 0..160 {
            let status = [None, Some(Status::Discarded), Some(Status::Suspended)];
            message(&fixture, number, 20_000, status[number % 3]).await;
        }
        fixture.store.put(KeepFamily::Token, "vendor", Some("a token".into())).await.unwrap();
        settled(&fixture).await;
        fixture.store.close().await.unwrap();
        let before = all(&fixture.store).await.entries;
        let counts = fixture.store.counts(&item("out"));
        let checkpoints = files_ending(fixture.path(), "", "");
        let checkpoints: Vec<_> = checkpoints
            .into_iter()
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("checkpoint-"))
            .collect();
        assert_eq!(checkpoints.len(), 2, "{checkpoints:?}");
        let fixture = fixture.closed_and_changed(|_| {
            for path in checkpoints.iter().rev().take(broken) {
                let length = std::fs::metadata(path).unwrap().len();
                change(path, |file| file.write_all_at(&[0xff; 8], length / 2).unwrap());
            }
        });
        whole(&fixture, &before).await;
        assert_eq!(fixture.store.counts(&item("out")), counts);
        assert_eq!(fixture.store.get(KeepFamily::Token, "vendor").as_deref(), Some(&b"a token"[..]));
        let corrupt = told(&fixture.store, "store.corrupt");
        assert_eq!(corrupt.len(), broken);
        assert!(corrupt.iter().all(|text| text.contains("checkpoint-")), "{corrupt:?}");
        // And with none at all.
        let fixture = fixture.closed_and_changed(|path| {
            for path in files_ending(path, "", "") {
                if path.file_name().unwrap().to_str().unwrap().starts_with("checkpoint-") {
                    std::fs::remove_file(path).unwrap();
                }
            }
        });
        whole(&fixture, &before).await;
        assert_eq!(fixture.store.counts(&item("out")), counts);
    }
}

fn simulated(files: &SimFiles) -> Store {
    let options = Options {
        segment_size: 32 << 10,
        memory: 4 << 20,
        min_free: Some(0),
        pace: Duration::from_millis(2),
        ..Options::new("/store")
    };
    Store::open(options, Arc::new(SystemClock), Arc::new(files.clone())).unwrap()
}

/// Finished messages; gives their sessions.
async fn fill(store: &Store, messages: usize) -> Vec<SessionId> {
    let (mut sessions, mut last) = (Vec::new(), 0);
    for _ in 0..messages {
        let mut header = header(store, "lis", "out", SystemClock.now());
        let (ops, id) = with_body(store, &mut header, &"x".repeat(300));
        commit(store, ops).await.unwrap();
        let done = Transition::new(id, Guard::Status(Status::Queued), Status::Discarded);
        last = commit(store, vec![Op::Transition(done)]).await.unwrap().sequence;
        sessions.push(header.session);
    }
    store.durable(last).await.unwrap();
    sessions
}

#[tokio::test]
async fn an_index_that_cannot_be_written_costs_a_bounded_amount_of_memory() {
    let files = SimFiles::new();
    let store = simulated(&files);
    files.refuse("/store/index", true);
    let mut sessions = fill(&store, 2000).await;
    // Eight times what one part has, and what gathers until the next.
    while store.0.shared.state().rows.len() > 10 * 48 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let page = all(&store).await;
    assert!(page.lag_ms > 0);
    until_told(&store, "messages flow on").await;
    files.refuse("/store/index", false);
    until_complete(&store).await;
    sessions.extend(fill(&store, 200).await);
    until_complete(&store).await;
    let found: Vec<SessionId> = all(&store).await.entries.iter().rev().map(|header| header.session).collect();
    assert_eq!(found, sessions);
    drop(store);
    let store = simulated(&files.restart());
    until_complete(&store).await;
    assert_eq!(all(&store).await.entries.len(), 2200);
}

#[tokio::test]
async fn an_index_that_cannot_even_be_looked_at_does_not_stop_the_start() {
    let files = SimFiles::new();
    let store = simulated(&files);
    let mut sessions = fill(&store, 1000).await;
    store.close().await.unwrap();
    drop(store);
    let files = files.restart();
    files.refuse("/store/index", true);
    let store = simulated(&files);
    assert!(all(&store).await.lag_ms > 0);
    assert!(told(&store, "store.corrupt")[0].contains("cannot be used"));
    sessions.extend(fill(&store, 100).await);
    files.refuse("/store/index", false);
    until_complete(&store).await;
    let found: Vec<SessionId> = all(&store).await.entries.iter().rev().map(|header| header.session).collect();
    assert_eq!(found, sessions);
}

#[tokio::test]
async fn one_message_waits_for_its_index_rather_than_not_be_there() {
    let (fixture, before) = filled().await;
    fixture.store.close().await.unwrap();
    let fixture = fixture.closed_and_changed(|path| std::fs::remove_dir_all(path.join("index")).unwrap());
    let store = &fixture.store;
    // What is new waits for nothing.
    let new = fixture.receive("lis", "out", "new").await;
    store.until_indexed(new.0).await.unwrap();
    for header in before.iter().rev() {
        assert_eq!(store.find(header.id).await.unwrap().as_ref(), Some(header));
        let body = store.body(header.body_id.unwrap()).await.unwrap();
        assert_eq!(body.size() as u64, header.size);
    }
}

#[tokio::test]
async fn a_rebuild_waits_until_a_full_disk_has_room() {
    let files = SimFiles::new();
    let store = simulated(&files);
    fill(&store, 500).await;
    store.close().await.unwrap();
    drop(store);
    let files = files.restart();
    files.remove_under("/store/index");
    files.set_faults(Faults { capacity: Some(files.used() + (8 << 10)), ..Faults::default() });
    let store = simulated(&files);
    for _ in 0..20 {
        assert!(all(&store).await.lag_ms > 0);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until_told(&store, "the disk is full").await;
    assert!(all(&store).await.lag_ms > 0);
    files.set_faults(Faults::default());
    until_complete(&store).await;
    assert_eq!(all(&store).await.entries.len(), 500);
}
