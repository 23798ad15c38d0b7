//! Disks that fail, fill up, or give back something else than was written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::sim::{Faults, Random, SimFiles};
use super::support::{Fixture, commit, embedded, header, item, with_body};
use crate::clock::{Clock as _, SystemClock};
use crate::event::{Level, NewEvent};
use crate::files::Files as _;
use crate::header::Status;
use crate::id::MessageId;
use crate::store::{
    Class, EventFilter, Guard, Op, Options, ReadError, Store, Transaction, Transition, Unavailable,
};

fn events_of(store: &Store, kind: &str) -> Vec<String> {
    let filter = EventFilter { kind: Some(kind.to_owned()), ..EventFilter::default() };
    store.events(&filter, None, 100).unwrap().entries.into_iter().map(|event| event.text).collect()
}

/// The segments of a store, oldest first.
fn segments(path: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(path.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> =
        names.filter(|path| path.extension().is_some_and(|ext| ext == "seg")).collect();
    segments.sort();
    segments
}

fn find(content: &[u8], text: &[u8]) -> usize {
    content.windows(text.len()).position(|window| window == text).unwrap()
}

/// Where the frames of a segment end.
fn end_of_frames(content: &[u8]) -> usize {
    content.iter().rposition(|byte| *byte != 0).map_or(0, |last| (last + 1).next_multiple_of(8))
}

async fn texts(fixture: &Fixture, ids: &[MessageId]) -> Vec<Option<String>> {
    let mut texts = Vec::new();
    for id in ids {
        let Some(header) = fixture.store.header(*id) else {
            texts.push(None);
            continue;
        };
        let body = fixture.store.body(header.body_id.unwrap()).await.unwrap();
        texts.push(body.as_text().map(str::to_owned));
    }
    texts
}

async fn durable(fixture: &Fixture, text: &str) -> MessageId {
    let id = fixture.receive("lis", "out", text).await;
    let sequence = fixture.store.0.shared.state().sequence;
    fixture.store.durable(sequence).await.unwrap();
    id
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_kept_beside_the_segment() {
    let fixture = embedded();
    let ids = [durable(&fixture, "one").await, durable(&fixture, "two").await];
    let Fixture { store, clock, .. } = &fixture;
    let (clock, path) = (clock.clone(), fixture.path().to_owned());
    let _ = store;
    // A copy of the disk as a crash leaves it, with half a frame behind the last one.
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("journal")).unwrap();
    std::fs::copy(path.join("store.key"), copy.path().join("store.key")).unwrap();
    let segment = segments(&path).pop().unwrap();
    let mut content = std::fs::read(&segment).unwrap();
    let end = end_of_frames(&content);
    content[end..end + 20].copy_from_slice(b"SPB1 half of a frame");
    std::fs::write(copy.path().join("journal/0000000001.seg"), &content).unwrap();

    let store = super::support::open(copy.path(), clock.clone());
    let again = Fixture::on(store, clock, copy);
    assert_eq!(texts(&again, &ids).await, [Some("one".to_owned()), Some("two".to_owned())]);
    let torn = again.path().join(format!("journal/0000000001-{end}.torn"));
    assert_eq!(std::fs::read(torn).unwrap(), b"SPB1 half of a frame");
    assert!(events_of(&again.store, "store.corrupt").is_empty());
    durable(&again, "three").await;
    let again = again.reopen();
    assert_eq!(texts(&again, &ids).await.len(), 2);
}

#[tokio::test]
async fn a_write_torn_within_its_padding_leaves_a_sealed_segment_that_is_whole() {
    for text in ["1", "12", "123", "1234", "12345", "123456", "1234567", "12345678"] {
        let fixture = embedded();
        let id = durable(&fixture, text).await;
        let again = fixture.closed_and_changed(|path| {
            let segment = segments(path).pop().unwrap();
            let content = std::fs::read(&segment).unwrap();
            let used = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            std::fs::write(&segment, &content[..used]).unwrap();
        });
        assert_eq!(texts(&again, &[id]).await, [Some(text.to_owned())]);
        let (store, folder) = again.into_parts();
        drop(store);
        let keys = crate::store::offline::Keys { key: None, old: Vec::new() };
        let report = crate::store::offline::check(&crate::files::SystemFiles, folder.path(), &keys).unwrap();
        assert!(report.is_sound(), "{text}: {:?}", report.problems);
    }
}

#[tokio::test]
async fn damage_is_reported_and_skipped_and_nothing_is_cut() {
    // Where the journal is folded: after a crash, and where the checkpoint of a clean stop is gone.
    for clean in [false, true] {
        let fixture = embedded();
        let mut ids = Vec::new();
        for text in ["first text", "second text", "third text"] {
            ids.push(durable(&fixture, text).await);
        }
        if clean {
            fixture.store.close().await.unwrap();
        }
        let fixture = fixture.closed_and_changed(|path| {
            let segment = segments(path).remove(0);
            let mut content = std::fs::read(&segment).unwrap();
            let place = find(&content, b"second text");
            content[place] ^= 0x20;
            std::fs::write(&segment, &content).unwrap();
            remove_checkpoints(path);
        });
        assert!(fixture.store.header(ids[1]).is_none(), "clean: {clean}");
        let rest = [ids[0], ids[2]];
        let expected = [Some("first text".to_owned()), Some("third text".to_owned())];
        assert_eq!(texts(&fixture, &rest).await, expected);
        let reports = events_of(&fixture.store, "store.corrupt");
        assert_eq!(reports.len(), 1);
        assert!(reports[0].contains("0000000001.seg:"), "{reports:?}");
        let content = std::fs::read(&segments(fixture.path())[0]).unwrap();
        find(&content, b"Second text");
        find(&content, b"third text");
        // No id of what was lost is given again.
        assert!(fixture.store.next_id() > ids[2].0 + 100_000);
        assert_eq!(texts(&fixture.reopen(), &rest).await, expected);
    }
}

/// As if there never was a checkpoint, or an index.
fn remove_checkpoints(path: &std::path::Path) {
    for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
        if entry.file_name().to_str().unwrap().starts_with("checkpoint-") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let _ = std::fs::remove_dir_all(path.join("index"));
}

#[tokio::test]
async fn damage_in_what_a_checkpoint_covers_costs_only_what_is_damaged() {
    let fixture = embedded();
    let mut ids = Vec::new();
    for text in ["first text", "second text", "third text"] {
        ids.push(durable(&fixture, text).await);
    }
    fixture.store.close().await.unwrap();
    let fixture = fixture.closed_and_changed(|path| {
        let segment = segments(path).remove(0);
        let mut content = std::fs::read(&segment).unwrap();
        let place = find(&content, b"second text");
        content[place] ^= 0x20;
        std::fs::write(&segment, &content).unwrap();
    });
    let body = fixture.store.header(ids[1]).unwrap().body_id.unwrap();
    let error = fixture.store.body(body).await.unwrap_err();
    assert!(error.to_string().contains("0000000001.seg:"), "{error}");
    // Once when the end of the journal was read, once for the body.
    let reports = events_of(&fixture.store, "store.corrupt");
    assert!(reports.iter().all(|report| report.contains("0000000001.seg:")), "{reports:?}");
    assert_eq!(reports.len(), 2);
    let rest = [ids[0], ids[2]];
    let expected = [Some("first text".to_owned()), Some("third text".to_owned())];
    assert_eq!(texts(&fixture, &rest).await, expected);
}

#[tokio::test]
async fn a_body_that_was_damaged_while_the_store_is_open_is_not_given_out() {
    let fixture = embedded();
    let id = durable(&fixture, "body text to be damaged").await;
    // Push it out of the cache.
    for _ in 0..8 {
        durable(&fixture, &"x".repeat(1000)).await;
    }
    let segment = segments(fixture.path()).remove(0);
    let place = find(&std::fs::read(&segment).unwrap(), b"body text");
    let file = std::fs::OpenOptions::new().write(true).open(&segment).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"B", place as u64).unwrap();
    let body = fixture.store.header(id).unwrap().body_id.unwrap();
    for _ in 0..2 {
        match fixture.store.body(body).await {
            Err(ReadError::Corrupt { id, place }) => assert!(id == body && place.contains(".seg:")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(events_of(&fixture.store, "store.corrupt").len(), 1);
}

#[tokio::test]
async fn a_missing_segment_is_reported() {
    let fixture = embedded();
    let first = durable(&fixture, "one").await;
    let fixture = fixture.reopen();
    let second = durable(&fixture, "two").await;
    let fixture = fixture.closed_and_changed(|path| std::fs::remove_file(&segments(path)[0]).unwrap());
    assert!(fixture.store.header(first).is_none() && fixture.store.header(second).is_some());
    assert_eq!(events_of(&fixture.store, "store.corrupt").len(), 1);
}

fn simulated(files: &SimFiles) -> Store {
    simulated_leaving(files, 20 << 10)
}

fn simulated_leaving(files: &SimFiles, min_free: u64) -> Store {
    let options = Options {
        segment_size: 16 << 10,
        memory: 4 << 20,
        min_free: Some(min_free),
        pace: Duration::from_millis(2),
        ..Options::new("/store")
    };
    Store::open(options, Arc::new(SystemClock), Arc::new(files.clone())).unwrap()
}

fn message(store: &Store, text: &str) -> (Vec<Op>, MessageId) {
    let mut header = header(store, "lis", "out", SystemClock.now());
    with_body(store, &mut header, text)
}

#[tokio::test]
async fn a_failed_sync_or_write_poisons_the_store() {
    for (sync, write) in [(Some(0), None), (None, Some(0))] {
        let files = SimFiles::new();
        let store = simulated(&files);
        let (ops, kept) = message(&store, "durable");
        let committed = commit(&store, ops).await.unwrap();
        store.durable(committed.sequence).await.unwrap();

        files.set_faults(Faults { sync, write, ..Faults::default() });
        let (ops, lost) = message(&store, "never durable");
        let waiting = commit(&store, ops).await.unwrap();
        assert!(store.durable(waiting.sequence).await.is_err());
        assert!(!store.accepting());
        files.set_faults(Faults::default());
        assert!(matches!(store.reserve(Class::Completion, 1).await, Err(Unavailable::Failed(_))));
        assert!(store.durable(waiting.sequence).await.is_err(), "it is not tried again");
        assert!(store.durable(committed.sequence).await.is_ok());
        assert_eq!(events_of(&store, "store.failed").len(), 1);
        assert!(store.close().await.is_err());
        drop(store);

        let store = simulated(&files.restart());
        assert!(store.accepting());
        assert!(store.header(kept).is_some());
        let (ops, next) = message(&store, "after the restart");
        assert!(next > lost);
        let committed = commit(&store, ops).await.unwrap();
        store.durable(committed.sequence).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_new_messages_serves_completions_and_resumes_by_itself() {
    let files = SimFiles::new();
    files.set_faults(Faults { capacity: Some(400 << 10), ..Faults::default() });
    let store = simulated(&files);
    let mut ids = Vec::new();
    let refused = loop {
        let (ops, id) = message(&store, &"x".repeat(3000));
        match store.reserve(Class::Ingest, 3000).await {
            Ok(permit) => {
                let committed = store.submit(permit, Transaction::new(ops)).unwrap();
                store.durable(committed.sequence).await.unwrap();
                ids.push(id);
            }
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Unavailable::Full);
    assert!(ids.len() > 50, "{} messages fit", ids.len());
    assert!(!store.accepting());
    for id in &ids {
        let discard = Transition::new(*id, Guard::Status(Status::Queued), Status::Discarded);
        let committed = commit(&store, vec![Op::Transition(discard)]).await.unwrap();
        store.durable(committed.sequence).await.unwrap();
    }
    assert_eq!(events_of(&store, "store.full"), ["the disk is full; new messages are refused"]);

    files.set_faults(Faults { capacity: Some(4 << 20), ..Faults::default() });
    store.until_accepting().await;
    assert!(store.accepting());
    store.reserve(Class::Ingest, 3000).await.unwrap();
    let news = events_of(&store, "store.full");
    assert_eq!(
        news,
        ["the disk has room again; new messages are taken", "the disk is full; new messages are refused"]
    );
    let store = {
        store.close().await.unwrap();
        drop(store);
        simulated(&files.restart())
    };
    assert_eq!(store.counts(&item("out")).queued, 0);
    assert!(ids.iter().all(|id| store.header(*id).unwrap().status == Status::Discarded));
}

#[tokio::test]
async fn without_any_space_the_writer_waits_and_loses_nothing() {
    let files = SimFiles::new();
    let store = simulated(&files);
    let (ops, first) = message(&store, "first");
    commit(&store, ops).await.unwrap();
    // Somebody else fills the disk to the last byte.
    files.set_faults(Faults { capacity: Some(1), ..Faults::default() });
    let mut ids = vec![first];
    let mut last = None;
    for _ in 0..30 {
        let (ops, id) = message(&store, &"x".repeat(2000));
        last = Some(commit(&store, ops).await.unwrap());
        ids.push(id);
    }
    let sequence = last.unwrap().sequence;
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.durable(sequence).await })
    };
    while store.accepting() {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    assert_eq!(events_of(&store, "store.full").len(), 1);
    files.set_faults(Faults::default());
    assert!(waiting.await.unwrap().is_ok());
    store.until_accepting().await;
    drop(store);
    let store = simulated(&files.restart());
    assert!(ids.iter().all(|id| store.header(*id).is_some()));
}

#[tokio::test]
async fn closing_on_a_full_disk_does_not_wait_for_ever() {
    let files = SimFiles::new();
    let store = simulated(&files);
    files.set_faults(Faults { capacity: Some(1), ..Faults::default() });
    for _ in 0..30 {
        let (ops, _) = message(&store, &"x".repeat(2000));
        commit(&store, ops).await.unwrap();
    }
    assert!(store.close().await.is_err());
    files.set_faults(Faults::default());
    drop(store);
    simulated(&files.restart());
}

/// Opens where nothing is free: reads and completions work, new messages wait for room.
async fn opens_without_room(files: &SimFiles, closed: bool, reserve: bool) {
    let store = simulated(files);
    let mut ids = Vec::new();
    // Without a reserve it is index files that make room: there must be some.
    let others = if reserve { 0 } else { 200 };
    for _ in 0..others + 20 {
        let (ops, id) = message(&store, &"x".repeat(1000));
        let committed = commit(&store, ops).await.unwrap();
        store.durable(committed.sequence).await.unwrap();
        ids.push(id);
    }
    let ids = ids.split_off(others);
    if closed {
        store.close().await.unwrap();
    }
    drop(store);
    let files = files.restart();
    if !reserve {
        files.remove(Path::new("/store/journal/reserve")).unwrap();
    }
    files.set_faults(Faults { capacity: Some(files.used()), ..Faults::default() });
    // What a crash left preallocated is given back: less than this is free then.
    let store = simulated_leaving(&files, 64 << 10);
    assert!(!store.accepting(), "closed {closed}, reserve {reserve}");
    for id in &ids {
        let header = store.header(*id).unwrap();
        assert_eq!(store.body(header.body_id.unwrap()).await.unwrap().size(), 1000);
        let discard = Transition::new(*id, Guard::Status(Status::Queued), Status::Discarded);
        let committed = commit(&store, vec![Op::Transition(discard)]).await.unwrap();
        store.durable(committed.sequence).await.unwrap();
    }
    assert_eq!(events_of(&store, "store.full"), ["the disk is full; new messages are refused"]);
    files.set_faults(Faults::default());
    store.until_accepting().await;
    drop(store);
    let store = simulated(&files.cut(&mut Random(1)));
    assert!(ids.iter().all(|id| store.header(*id).unwrap().status == Status::Discarded));
}

#[tokio::test]
async fn a_store_that_filled_the_disk_and_crashed_opens_and_finishes_its_work() {
    let mut files = SimFiles::new();
    files.set_faults(Faults { capacity: Some(300 << 10), ..Faults::default() });
    let store = simulated(&files);
    let mut ids = Vec::new();
    while let Ok(permit) = store.reserve(Class::Ingest, 3000).await {
        let (ops, id) = message(&store, &"x".repeat(3000));
        let committed = store.submit(permit, Transaction::new(ops)).unwrap();
        store.durable(committed.sequence).await.unwrap();
        ids.push(id);
    }
    drop(store);
    // And whatever is given back by it somebody else takes, again and again.
    for _ in 0..3 {
        files = files.restart();
        files.set_faults(Faults { capacity: Some(files.used()), ..Faults::default() });
        // What it gives back while it opens is less than this.
        let store = simulated_leaving(&files, 64 << 10);
        assert!(!store.accepting());
        for id in ids.split_off(ids.len().saturating_sub(10)) {
            let discard = Transition::new(id, Guard::Status(Status::Queued), Status::Discarded);
            let committed = commit(&store, vec![Op::Transition(discard)]).await.unwrap();
            store.durable(committed.sequence).await.unwrap();
        }
        drop(store);
    }
}

#[tokio::test]
async fn a_store_opens_where_nothing_is_free_after_a_clean_stop_and_after_a_crash() {
    for closed in [true, false] {
        opens_without_room(&SimFiles::new(), closed, true).await;
    }
}

/// It was used up, or the store is older than reserves: index files make room.
#[tokio::test]
async fn a_store_opens_and_finishes_its_work_where_nothing_is_free_and_no_reserve_is_there() {
    for closed in [true, false] {
        opens_without_room(&SimFiles::new(), closed, false).await;
    }
}

#[tokio::test]
async fn a_store_opens_where_there_is_no_room_even_for_a_segment_and_goes_on_when_there_is() {
    for stops in [false, true] {
        let files = SimFiles::new();
        let store = simulated(&files);
        let (ops, id) = message(&store, "text");
        let committed = commit(&store, ops).await.unwrap();
        store.durable(committed.sequence).await.unwrap();
        store.close().await.unwrap();
        drop(store);
        let files = files.restart();
        files.remove(Path::new("/store/journal/reserve")).unwrap();
        files.remove_under("/store/index");
        files.set_faults(Faults { capacity: Some(files.used()), ..Faults::default() });

        let store = simulated_leaving(&files, 64 << 10);
        assert!(!store.accepting());
        assert!(matches!(store.reserve(Class::Ingest, 1).await, Err(Unavailable::Full)));
        let header = store.header(id).unwrap();
        assert_eq!(store.body(header.body_id.unwrap()).await.unwrap().as_text(), Some("text"));
        assert_eq!(events_of(&store, "store.full"), ["the disk is full; new messages are refused"]);
        let discard = Transition::new(id, Guard::Status(Status::Queued), Status::Discarded);
        let done = commit(&store, vec![Op::Transition(discard)]).await.unwrap();
        let early = store.next_id();
        if stops {
            assert!(store.close().await.is_err(), "what could not be written is not called stored");
            assert!(store.durable(done.sequence).await.is_err());
        } else {
            files.set_faults(Faults::default());
            store.durable(done.sequence).await.unwrap();
            store.until_accepting().await;
            let (ops, next) = message(&store, "after");
            assert!(next.0 > early);
            let committed = commit(&store, ops).await.unwrap();
            store.durable(committed.sequence).await.unwrap();
        }
        drop(store);
        let files = files.restart();
        let store = simulated(&files);
        let status = if stops { Status::Queued } else { Status::Discarded };
        assert_eq!(store.header(id).unwrap().status, status);
        assert!(stops || store.next_id() > early);
    }
}

#[tokio::test]
async fn a_transaction_larger_than_a_segment_has_one_of_its_own() {
    let files = SimFiles::new();
    let store = simulated(&files);
    let text = "y".repeat(100_000);
    let (ops, id) = message(&store, &text);
    let committed = commit(&store, ops).await.unwrap();
    store.durable(committed.sequence).await.unwrap();
    store.log(NewEvent::new(Level::Info, "trace", "goes on"));
    drop(store);
    let store = simulated(&files.cut(&mut super::sim::Random(1)));
    let body = store.header(id).unwrap().body_id.unwrap();
    assert_eq!(store.body(body).await.unwrap().bytes().len(), 100_000);
}

#[tokio::test]
async fn what_queues_up_during_a_sync_shares_the_next_one() {
    let files = SimFiles::new();
    let store = simulated(&files);
    let before = files.syncs();
    files.set_faults(Faults { hold: true, ..Faults::default() });
    let (ops, _) = message(&store, "first");
    let first = commit(&store, ops).await.unwrap();
    while files.syncs() == before {
        tokio::task::yield_now().await;
    }
    let mut last = first;
    for _ in 0..20 {
        let (ops, _) = message(&store, "next");
        last = commit(&store, ops).await.unwrap();
    }
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.durable(last.sequence).await })
    };
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "nothing is durable before its sync");
    files.set_faults(Faults::default());
    assert!(waiting.await.unwrap().is_ok());
    assert_eq!(files.syncs() - before, 2);
}

#[tokio::test]
async fn new_messages_wait_for_room_and_completions_have_their_own() {
    let files = SimFiles::new();
    let store = simulated(&files);
    let before = files.syncs();
    files.set_faults(Faults { hold: true, ..Faults::default() });
    let (ops, _) = message(&store, "first");
    commit(&store, ops).await.unwrap();
    while files.syncs() == before {
        tokio::task::yield_now().await;
    }
    // As much as may be on its way: a larger body waits until nothing else is.
    let permit = store.reserve(Class::Ingest, 1 << 30).await.unwrap();
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.reserve(Class::Ingest, 1).await.map(drop) })
    };
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(store.reserve(Class::Completion, 1).await.unwrap());
    drop(permit);
    waiting.await.unwrap().unwrap();
    files.set_faults(Faults::default());
}
