//! Purge beside everything else: readers, copies, resends; stores that it cannot make smaller, clocks that were
//! wrong.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::support::{Fixture, item, manual_clock, small, small_fixture, with_body};
use crate::clock::{Clock as _, ManualClock};
use crate::event::{Level, NewEvent};
use crate::files::SystemFiles;
use crate::header::Status;
use crate::id::{MessageId, SessionId};
use crate::store::backup::{Manifest, checkpoint_name, restore};
use crate::store::offline::{Keys, check};
use crate::store::{
    Conflict, EventFilter, Guard, Lanes, MessageFilter, Op, Purge, PurgeError, Purged, Store,
};

async fn completed(fixture: &Fixture, count: usize) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for number in 0..count {
        let id = fixture.receive("lis", "out", &format!("{number} {}", "x".repeat(1000))).await;
        fixture.finish(id, Guard::Status(Status::Queued), Status::Completed).await.unwrap();
        ids.push(id);
    }
    ids
}

/// Messages that wait at `slow`, each with some that are finished behind it.
async fn stragglers(fixture: &Fixture, count: usize) -> BTreeSet<MessageId> {
    let mut waiting = BTreeSet::new();
    for number in 0..count {
        waiting.insert(fixture.receive("lis", "slow", &format!("straggler {number}")).await);
        completed(fixture, 6).await;
    }
    waiting
}

async fn listed(store: &Store, filter: &MessageFilter, limit: usize) -> Vec<MessageId> {
    let (mut all, mut before) = (Vec::new(), None);
    loop {
        let page = store.search(filter, before, limit).await.unwrap();
        all.extend(page.entries.into_iter().map(|header| header.id));
        match page.next {
            Some(next) => before = Some(next),
            None => return all,
        }
    }
}

fn segments(path: &Path) -> usize {
    let names = std::fs::read_dir(path.join("journal")).unwrap();
    names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().ends_with(".seg")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn answers_stay_right_while_segments_go() {
    let fixture = small_fixture();
    let waiting = stragglers(&fixture, 60).await;
    let over = Arc::new(AtomicBool::new(false));
    let reader = {
        let (store, waiting, over) = (fixture.store.clone(), waiting.clone(), over.clone());
        tokio::spawn(async move {
            let (status, target) = (vec![Status::Queued], Some("slow".to_owned()));
            let queued = MessageFilter { status, target, ..MessageFilter::default() };
            let found = MessageFilter { text: Some("STRAGGLER".to_owned()), ..MessageFilter::default() };
            let mut looks = 0;
            while !over.load(Ordering::SeqCst) || looks < 2 {
                for filter in [&queued, &found] {
                    let all = listed(&store, filter, 7).await;
                    assert!(all.windows(2).all(|pair| pair[0] > pair[1]), "newest first: {all:?}");
                    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), waiting, "{filter:?}");
                }
                for id in &waiting {
                    let header = store.header(*id).unwrap();
                    assert_eq!(store.session(header.session).len(), 1);
                    assert!(
                        store.body(header.body_id.unwrap()).await.unwrap().bytes().starts_with(b"straggler")
                    );
                }
                looks += 1;
            }
        })
    };
    let mut purged = Purged::default();
    // What is carried lies in the newest segments; those behind it are dropped with it again and again.
    for _ in 0..4 {
        completed(&fixture, 40).await;
        let more = fixture.store.purge(Purge::before(jiff::Timestamp::MAX)).await.unwrap();
        purged.segments += more.segments;
        purged.carried += more.carried;
    }
    over.store(true, Ordering::SeqCst);
    reader.await.unwrap();
    assert!(purged.segments > 10 && purged.carried >= 60, "{purged:?}");
    let mut delivered = Vec::new();
    let ready = fixture.store.ready(&item("slow"));
    while delivered.len() < waiting.len() {
        match fixture.store.take(&item("slow"), Lanes::Requests, 1).pop() {
            None => ready.notified().await,
            Some(taken) => {
                delivered.push(taken.header.id);
                let done = Guard::Lease(taken.lease);
                fixture.finish(taken.header.id, done, Status::Completed).await.unwrap();
            }
        }
    }
    assert_eq!(delivered, waiting.into_iter().collect::<Vec<_>>(), "in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_counts_what_goes_and_nothing_counts_twice() {
    let fixture = small_fixture();
    let first = completed(&fixture, 30).await;
    let audited = NewEvent::new(Level::Info, "message.viewed", "looked").who("anna");
    fixture.commit(vec![Op::Event(audited.message(SessionId(first[0].0), first[0]))]).await.unwrap();
    // Sessions that go on in later segments.
    for original in &first[..10] {
        let mut again = fixture.store.header(*original).unwrap();
        again.id = MessageId(fixture.store.next_id());
        (again.status, again.processed, again.resent_from) = (Status::Queued, None, Some(*original));
        let id = again.id;
        fixture.commit(vec![Op::Header(Box::new(again))]).await.unwrap();
        fixture.finish(id, Guard::Status(Status::Queued), Status::Completed).await.unwrap();
        completed(&fixture, 4).await;
    }
    let messages = listed(&fixture.store, &MessageFilter::default(), 100).await.len() as u64;
    let purge = Purge::before(jiff::Timestamp::MAX);
    let counted = fixture.store.purge(Purge { dry_run: true, ..purge }).await.unwrap();
    assert_eq!(listed(&fixture.store, &MessageFilter::default(), 100).await.len() as u64, messages);
    let purged = fixture.store.purge(purge).await.unwrap();
    assert_eq!(counted, purged);
    assert_eq!((purged.messages, purged.sessions), (messages, messages - 10));
    assert!(listed(&fixture.store, &MessageFilter::default(), 100).await.is_empty());
    let looked = EventFilter { kind: Some("message.viewed".to_owned()), ..EventFilter::default() };
    // What says who looked is there all the time, and its session is not counted again for it.
    for _ in 0..3 {
        assert_eq!(fixture.store.events(&looked, None, 10).unwrap().entries.len(), 1);
        fixture.store.log(NewEvent::new(Level::Info, "item.started", "started"));
        let again = fixture.store.purge(purge).await.unwrap();
        assert_eq!((again.messages, again.sessions), (0, 0), "{again:?}");
    }
    assert!(segments(fixture.path()) <= 3, "the open one, and what the checkpoints need");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_everywhere_is_kept_however_small_the_store_should_be() {
    let fixture = small_fixture();
    let mut waiting = BTreeSet::new();
    for number in 0..150 {
        waiting.insert(fixture.receive("lis", "slow", &format!("{number} {}", "w".repeat(1000))).await);
    }
    fixture.store.durable(150).await.unwrap();
    let before = segments(fixture.path());
    let purged = fixture.store.purge(Purge::down_to(1)).await.unwrap();
    assert_eq!((purged, segments(fixture.path())), (Purged::default(), before));
    // A queue that fills every second place keeps nothing else: one pass, whatever it carries.
    completed(&fixture, 300).await;
    for _ in 0..3 {
        fixture.store.purge(Purge::down_to(1)).await.unwrap();
        completed(&fixture, 40).await;
    }
    let there: BTreeSet<_> =
        listed(&fixture.store, &MessageFilter::default(), 100).await.into_iter().collect();
    assert!(waiting.is_subset(&there), "{:?}", waiting.difference(&there));
    assert!(there.len() < 300, "{}", there.len());
    for id in &waiting {
        let body = fixture.store.header(*id).unwrap().body_id.unwrap();
        assert!(fixture.store.body(body).await.is_ok());
    }
}

fn size(path: &Path) -> u64 {
    let length =
        |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().metadata().map_or(0, |file| file.len());
    let folders =
        ["journal", "index"].map(|name| std::fs::read_dir(path.join(name)).unwrap().map(length).sum::<u64>());
    folders.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_by_size_counts_what_is_written_meanwhile() {
    let fixture = small_fixture();
    completed(&fixture, 900).await;
    let before = size(fixture.path());
    let (most, mut written) = (before / 10 * 7, 0);
    let mut write = |_: &Purged| {
        // Half of what a segment holds.
        let more = completed(&fixture, 12);
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(more));
        written += 12;
    };
    let purged = fixture.store.purge_telling(Purge::down_to(most), &mut write).await.unwrap();
    let after = size(fixture.path());
    assert!(written * 1000 > before / 10, "much was written meanwhile: {written} messages, {before} bytes");
    assert!(after <= most + 3 * (32 << 10), "{before} -> {after}, not more than {most}: {purged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_in_the_open_segment_goes_too() {
    let fixture = small_fixture();
    completed(&fixture, 3).await;
    fixture.advance(3600);
    let young = completed(&fixture, 1).await;
    let before = fixture.clock.now() - Duration::from_secs(60);
    // All of them are in one segment, which ends now; it goes when all of it is old.
    assert_eq!(fixture.store.purge(Purge::before(before)).await.unwrap().messages, 0);
    fixture.advance(120);
    let purged =
        fixture.store.purge(Purge::before(fixture.clock.now() - Duration::from_secs(60))).await.unwrap();
    assert_eq!((purged.messages, purged.sessions), (4, 4), "{purged:?}");
    assert!(fixture.store.header(young[0]).is_none());
    assert_eq!(fixture.store.counts(&item("out")).completed, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_of_a_clock_that_was_ahead_hold_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let ahead = Arc::new(ManualClock::new("2099-01-01T00:00:00Z".parse().unwrap()));
    let open = |clock: &Arc<ManualClock>| {
        Store::open(small(folder.path()), clock.clone(), Arc::new(SystemFiles)).unwrap()
    };
    let bodies = |store: Store, clock: Arc<ManualClock>, count: usize| async move {
        for number in 0..count {
            let mut header = super::support::header(&store, "lis", "out", clock.now());
            let (ops, id) = with_body(&store, &mut header, &format!("{number} {}", "x".repeat(1000)));
            super::support::commit(&store, ops).await.unwrap();
            let done = crate::store::Transition::new(id, Guard::Status(Status::Queued), Status::Completed);
            super::support::commit(&store, vec![Op::Transition(done)]).await.unwrap();
        }
        store.close().await.unwrap();
    };
    bodies(open(&ahead), ahead.clone(), 60).await;
    let now = manual_clock();
    bodies(open(&now), now.clone(), 60).await;
    let store = open(&now);
    now.advance(Duration::from_secs(3600));
    let purge = Purge::before(now.now() - Duration::from_secs(7200));
    assert_eq!(store.purge(purge).await.unwrap().messages, 0, "it is not that old");
    now.advance(Duration::from_secs(3 * 3600));
    let purge = Purge::before(now.now() - Duration::from_secs(7200));
    assert_eq!(store.purge(purge).await.unwrap().messages, 120);
}

#[tokio::test]
async fn what_was_purged_while_somebody_looked_at_it_is_not_sent_again() {
    let fixture = small_fixture();
    let old = completed(&fixture, 20).await;
    let mut again = fixture.store.header(old[0]).unwrap();
    assert!(fixture.store.body(again.body_id.unwrap()).await.is_ok());
    again.id = MessageId(fixture.store.next_id());
    (again.status, again.resent_from) = (Status::Queued, Some(old[0]));
    fixture.store.purge(Purge::before(jiff::Timestamp::MAX)).await.unwrap();
    let refused = fixture.commit(vec![Op::Header(Box::new(again))]).await;
    assert_eq!(refused.unwrap_err(), Conflict::Unknown(old[0]));
}

#[tokio::test]
async fn a_store_in_memory_keeps_everything_and_says_so() {
    let store = Store::memory(manual_clock());
    for purge in [Purge::before(jiff::Timestamp::MAX), Purge::down_to(0)] {
        assert_eq!(store.purge(purge).await, Err(PurgeError::Memory));
    }
}

/// One pass of a client that copies: what the store lists, as long as it is there.
fn copy(store: &Store, to: &Path) -> Option<Manifest> {
    let manifest = store.copyable().unwrap().unwrap();
    let numbers: Vec<u64> =
        manifest.segments.iter().map(|file| file.name.trim_end_matches(".seg").parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a hole: {numbers:?}");
    std::fs::create_dir_all(to.join("journal")).unwrap();
    let pairs = manifest.segments.iter().map(|file| (file, to.join("journal").join(&file.name)));
    let checkpoints = manifest.checkpoint.iter().map(|file| (file, to.join(checkpoint_name(file))));
    for (file, path) in checkpoints.chain(pairs) {
        let reading = store.copyable_file(&file.name).unwrap()?;
        let mut bytes = reading.read(0, usize::MAX).unwrap();
        if (bytes.len() as u64) < file.size {
            return None;
        }
        bytes.truncate(usize::try_from(file.size).unwrap());
        std::fs::write(path, bytes).unwrap();
    }
    manifest.write(&SystemFiles, to).unwrap();
    Some(manifest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_made_while_segments_go_is_a_whole_store() {
    let fixture = small_fixture();
    let waiting = stragglers(&fixture, 40).await;
    // What is not durable yet need not be in a copy.
    let last = fixture.store.0.shared.state().sequence;
    fixture.store.durable(last).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let copies = {
        let (store, over) = (fixture.store.clone(), over.clone());
        tokio::task::spawn_blocking(move || {
            let mut made = Vec::new();
            loop {
                let last = over.load(Ordering::SeqCst);
                let folder = tempfile::tempdir().unwrap();
                if copy(&store, folder.path()).is_some() {
                    made.push(folder);
                }
                if last && !made.is_empty() {
                    return made;
                }
            }
        })
    };
    for _ in 0..3 {
        completed(&fixture, 40).await;
        fixture.store.purge(Purge::before(jiff::Timestamp::MAX)).await.unwrap();
    }
    over.store(true, Ordering::SeqCst);
    let made = copies.await.unwrap();
    for backup in [made.first().unwrap(), &made[made.len() / 2], made.last().unwrap()] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("restored");
        assert_eq!(restore(&SystemFiles, backup.path(), &path).unwrap().damaged, Vec::<String>::new());
        std::fs::copy(fixture.path().join("store.key"), path.join("store.key")).unwrap();
        let report = check(&SystemFiles, &path, &Keys::default()).unwrap();
        assert!(report.is_sound(), "{:?}", report.problems);
        let store = Store::open(small(&path), fixture.clock.clone(), Arc::new(SystemFiles)).unwrap();
        super::support::until_complete(&store).await;
        let queued = MessageFilter { status: vec![Status::Queued], ..MessageFilter::default() };
        let there: BTreeSet<_> = listed(&store, &queued, 100).await.into_iter().collect();
        // A copy from before their completion has more that waits.
        assert!(waiting.is_subset(&there), "{:?}", waiting.difference(&there));
        for id in listed(&store, &MessageFilter::default(), 100).await {
            let body = store.header(id).unwrap().body_id.unwrap();
            assert!(store.body(body).await.is_ok(), "the body of {id}");
        }
    }
}
