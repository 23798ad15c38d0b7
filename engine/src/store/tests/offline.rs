//! Check and repair: damage is found with its place, nothing readable is lost, and what could not be read is
//! kept aside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::sim::Random;
use super::support::{Fixture, commit, manual_clock, options, with_body};
use crate::clock::Clock as _;
use crate::files::SystemFiles;
use crate::host::{Keep as _, KeepFamily};
use crate::id::MessageId;
use crate::store::dropped;
use crate::store::offline::{Finding, KeyState, Keys, OfflineError, Repair, Report, check, repair};
use crate::store::{EventFilter, OpenError, Options, Store};

const SEGMENT: u64 = 16 << 10;

fn small(path: &Path) -> Options {
    Options { segment_size: SEGMENT, ..options(path) }
}

/// A closed store of several segments, and what is in it: message, its text, and the segment it was written to.
struct Closed {
    folder: tempfile::TempDir,
    epoch: Arc<str>,
    messages: Vec<(MessageId, String)>,
}

async fn closed(messages: usize, clean: bool) -> Closed {
    closed_with(messages, clean, "").await
}

/// The same, with messages that are this much longer.
async fn closed_with(messages: usize, clean: bool, more: &str) -> Closed {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(small(folder.path()), manual_clock(), Arc::new(SystemFiles)).unwrap();
    let epoch = store.epoch();
    let fixture = Fixture::on(store, manual_clock(), folder);
    let mut stored = Vec::new();
    for number in 0..messages {
        let text = format!("MSH|message {number} {}{more}", "x".repeat(700));
        let id = fixture.receive("lis", "out", &text).await;
        // One frame each.
        let now = fixture.clock.now();
        let mut header = super::support::header(&fixture.store, "lis", "other", now);
        let (ops, other) = with_body(&fixture.store, &mut header, &text);
        let committed = commit(&fixture.store, ops).await.unwrap();
        fixture.store.durable(committed.sequence).await.unwrap();
        stored.extend([(id, text.clone()), (other, text)]);
    }
    fixture.store.put(KeepFamily::Token, "vendor", Some("a token".into())).await.unwrap();
    if clean {
        fixture.store.close().await.unwrap();
    }
    let (store, folder) = fixture.into_parts();
    drop(store);
    Closed { folder, epoch, messages: stored }
}

impl Closed {
    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.path().join(format!("journal/{number:010}.seg"))
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let mut content = std::fs::read(self.segment(number)).unwrap();
        change(&mut content);
        std::fs::write(self.segment(number), content).unwrap();
    }

    fn check(&self) -> Report {
        check(&SystemFiles, self.path(), &Keys::default()).unwrap()
    }

    async fn repair(&self) -> Repair {
        repair(Arc::new(SystemFiles), manual_clock(), self.path(), &Keys::default(), true).await.unwrap()
    }

    fn open(&self) -> Result<Store, OpenError> {
        Store::open(small(self.path()), manual_clock(), Arc::new(SystemFiles))
    }

    /// Which messages are not there any more.
    async fn gone(&self, store: &Store) -> Vec<MessageId> {
        let mut gone = Vec::new();
        for (id, text) in &self.messages {
            let Some(header) = store.header(*id) else {
                gone.push(*id);
                continue;
            };
            match store.body(header.body_id.unwrap()).await {
                Ok(body) => assert_eq!(body.as_text(), Some(text.as_str())),
                // The index still has its header.
                Err(_) => gone.push(*id),
            }
        }
        gone
    }

    /// Everything in the folder.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        for folder in [self.path().to_owned(), self.path().join("journal")] {
            for entry in std::fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_file()) {
                files.insert(entry.path(), std::fs::read(entry.path()).unwrap());
            }
        }
        files
    }
}

fn brief(findings: &[Finding]) -> Vec<(&'static str, Option<u64>)> {
    findings.iter().map(|finding| (finding.kind, finding.offset)).collect()
}

#[tokio::test]
async fn a_sound_store_has_no_problems_and_a_check_changes_nothing() {
    let closed = closed(40, true).await;
    let before = closed.files();
    let report = closed.check();
    assert_eq!((brief(&report.problems), report.key.clone(), report.clean), (vec![], KeyState::Right, true));
    assert_eq!((report.counts.headers, report.counts.bodies, report.counts.kept), (80, 80, 1));
    assert!(report.counts.segments > 3);
    assert_eq!(report.epoch.as_deref(), Some(&*closed.epoch));
    assert!(closed.repair().await.actions.is_empty());
    assert_eq!(closed.files(), before);
}

#[tokio::test]
async fn a_store_in_use_or_without_its_key_or_that_is_none_is_said_to_be_so() {
    let closed = closed(2, true).await;
    let store = closed.open().unwrap();
    let Err(OfflineError::InUse { pid, .. }) = check(&SystemFiles, closed.path(), &Keys::default()) else {
        panic!()
    };
    assert_eq!(pid, std::process::id().to_string());
    store.close().await.unwrap();
    drop(store);
    std::fs::rename(closed.path().join("store.key"), closed.path().join("elsewhere")).unwrap();
    assert!(matches!(closed.check().key, KeyState::Missing(_)));
    let no_key = repair(Arc::new(SystemFiles), manual_clock(), closed.path(), &Keys::default(), true).await;
    assert!(matches!(no_key, Err(OfflineError::Open(_))));
    let other = Keys { key: Some(crate::config::settings::Secret::new("77".repeat(32))), old: Vec::new() };
    assert!(matches!(check(&SystemFiles, closed.path(), &other).unwrap().key, KeyState::Wrong(_)));
    let nothing = tempfile::tempdir().unwrap();
    assert!(matches!(
        check(&SystemFiles, nothing.path(), &Keys::default()),
        Err(OfflineError::NoStore { .. })
    ));
}

#[tokio::test]
async fn a_flipped_byte_is_found_quarantined_and_the_rest_stays_readable() {
    let closed = closed(40, true).await;
    let text = closed.messages[21].1.clone().into_bytes();
    let number = 2;
    let mut at = 0;
    closed.change(number, |content| {
        at = content.windows(20).position(|window| window == &text[..20]).unwrap_or(5000);
        content[at] ^= 1;
    });
    let damaged = std::fs::read(closed.segment(number)).unwrap();
    let found = closed.check();
    let [problem] = &found.problems[..] else { panic!("{:#?}", found.problems) };
    let (offset, length) = (problem.offset.unwrap() as usize, problem.length.unwrap() as usize);
    assert_eq!((problem.kind, &problem.file), ("frame", &closed.segment(number)));
    assert!(offset < at && at < offset + length);

    let dry =
        repair(Arc::new(SystemFiles), manual_clock(), closed.path(), &Keys::default(), false).await.unwrap();
    assert_eq!((dry.actions.len(), dry.after.is_none()), (1, true));
    assert_eq!(std::fs::read(closed.segment(number)).unwrap(), damaged);

    let done = closed.repair().await;
    assert_eq!(brief(&done.after.unwrap().problems), []);
    let kept = closed.path().join(format!("quarantine/{number:010}.seg-{offset}.bad"));
    assert_eq!(std::fs::read(kept).unwrap(), damaged[offset..offset + length]);
    let store = closed.open().unwrap();
    // The two messages of a pair may share a frame.
    assert!((1..=2).contains(&closed.gone(&store).await.len()));
    assert!(
        store
            .events(&EventFilter::default(), None, 10)
            .unwrap()
            .entries
            .iter()
            .any(|event| event.kind == "store.repaired")
    );
}

#[tokio::test]
async fn a_checkpoint_that_does_not_fit_its_checksum_is_found_and_set_aside() {
    let closed = closed(3, true).await;
    let file = closed.path().join("checkpoint-0000000001");
    std::fs::write(&file, b"SEPTETC1 and something else").unwrap();
    let kinds = brief(&closed.check().problems);
    assert!(kinds.contains(&("derived", None)), "{kinds:?}");
    assert_eq!(brief(&closed.repair().await.after.unwrap().problems), []);
    assert!(closed.path().join("quarantine/checkpoint-0000000001.bad").is_file());
    assert_eq!(closed.gone(&closed.open().unwrap()).await, []);
}

#[tokio::test]
async fn the_header_of_the_only_segment_is_made_again_from_its_frames() {
    let closed = closed(3, true).await;
    closed.change(1, |content| content[..64].fill(0xff));
    assert!(matches!(closed.open(), Err(OpenError::NotAJournal(_))));
    assert_eq!(brief(&closed.check().problems), [("header", Some(0))]);
    let done = closed.repair().await;
    assert_eq!(brief(&done.after.unwrap().problems), []);
    let store = closed.open().unwrap();
    assert_eq!(closed.gone(&store).await, []);
    assert_eq!(store.get(KeepFamily::Token, "vendor").as_deref(), Some(&b"a token"[..]));
    assert_ne!(store.epoch(), closed.epoch, "its name is lost, and another store's must not be used");
}

#[tokio::test]
async fn a_segment_that_was_cut_within_the_padding_of_a_frame_is_sealed_behind_it() {
    let mut cut = 0;
    for more in 0..8 {
        let closed = closed_with(20, true, &"y".repeat(more)).await;
        closed.change(2, |content| {
            // Without its end frame, and the zeros before it.
            let seal = content.windows(4).rposition(|window| window == b"SPB1").unwrap();
            content.truncate(seal);
            let used = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            content.truncate(used);
            cut += used % 8;
        });
        let done = closed.repair().await;
        assert_eq!(brief(&done.after.unwrap().problems), [], "{more}");
        assert_eq!(closed.gone(&closed.open().unwrap()).await, [], "{more}");
    }
    assert!(cut > 0);
}

#[tokio::test]
async fn missing_and_destroyed_segments_are_replaced_by_ones_that_say_so() {
    for clean in [true, false] {
        let closed = closed(60, clean).await;
        let last = closed.check().counts.segments;
        std::fs::remove_file(closed.segment(2)).unwrap();
        closed.change(3, |content| content.fill(0));
        closed.change(5, Vec::clear);
        closed.change(last, |content| content.truncate(30));
        let kinds: Vec<_> =
            closed.check().problems.iter().map(|problem| (problem.kind, problem.file.clone())).collect();
        for expected in [("missing", 2), ("header", 3), ("header", 5), ("header", last)] {
            assert!(kinds.contains(&(expected.0, closed.segment(expected.1))), "{expected:?} {kinds:#?}");
        }
        let done = closed.repair().await;
        assert_eq!(brief(&done.after.unwrap().problems), []);
        let store = closed.open().unwrap();
        let last = closed.messages.last().unwrap().0.0;
        assert!(store.next_id() > last + 1000, "lost records may have used ids");
        let gone = closed.gone(&store).await.len();
        assert!(gone > 40 && gone < 90, "{gone} of 120");
        assert_eq!(store.epoch(), closed.epoch);
        assert_eq!(brief(&closed_check(store, &closed).await.problems), []);
    }
}

#[tokio::test]
async fn a_journal_that_lacks_its_first_segments_is_told_from_one_that_was_purged() {
    for purged in [0, 2] {
        let closed = closed(60, true).await;
        let store = closed.open().unwrap();
        for number in 1..=purged {
            // As a purge does before it removes the file.
            let kept = Some(dropped::encode(number));
            store.put(KeepFamily::Counter, dropped::KEY, kept).await.unwrap();
            std::fs::remove_file(closed.segment(number)).unwrap();
        }
        assert_eq!(brief(&closed_check(store, &closed).await.problems), []);
        std::fs::remove_file(closed.segment(purged + 1)).unwrap();
        let found = closed.check();
        assert_eq!(brief(&found.problems), [("missing", None)]);
        assert_eq!(found.problems[0].file, closed.segment(purged + 1));

        // It opens and says so, and lists have what was in it.
        let store = closed.open().unwrap();
        let filter = EventFilter { kind: Some("store.corrupt".to_owned()), ..EventFilter::default() };
        let said = store.events(&filter, None, 10).unwrap().entries;
        let [said] = &said[..] else { panic!("{said:?}") };
        assert!(said.text.contains(&format!("{:010}.seg", purged + 1)), "{}", said.text);
        let headers = closed.messages.iter().filter(|(id, _)| store.header(*id).is_some()).count();
        assert_eq!(headers, closed.messages.len());
        store.close().await.unwrap();
        drop(store);
        let done = closed.repair().await;
        assert_eq!(done.actions.len(), 1, "{:?}", done.actions);
        assert_eq!(brief(&done.after.unwrap().problems), []);
        let store = closed.open().unwrap();
        let told = store.events(&filter, None, 10).unwrap().entries.len();
        assert_eq!(told, 2, "by both openings before: it is not told again");
    }
}

async fn closed_check(store: Store, closed: &Closed) -> Report {
    store.close().await.unwrap();
    drop(store);
    closed.check()
}

/// Damage of any kind anywhere: the repaired store opens, is sound, and has every message of the segments that
/// were left alone.
#[tokio::test]
async fn whatever_is_damaged_the_rest_stays() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let closed = closed(20 + random.below(30) as usize, random.one_in(2)).await;
        let segments = closed.check().counts.segments;
        let mut story = Vec::new();
        let mut hurt = Vec::new();
        for _ in 0..1 + random.below(3) {
            let number = 1 + random.below(segments);
            if !closed.segment(number).exists() {
                continue;
            }
            let mut kind = 0;
            closed.change(number, |content| {
                let at = random.below(content.len().max(1) as u64) as usize;
                let end = content.len().min(at + 1 + random.below(3000) as usize);
                kind = random.below(5);
                match kind {
                    0 if at < content.len() => content[at] ^= 1 << random.below(8),
                    1 => content[at..end].fill(0),
                    2 => content[at..end].iter_mut().for_each(|byte| *byte = random.next() as u8),
                    3 => content.truncate(at),
                    _ => content.extend((0..500).map(|_| random.next() as u8)),
                }
                story.push((number, kind, at, end));
            });
            if kind == 4 && random.one_in(3) {
                std::fs::remove_file(closed.segment(number)).unwrap();
            }
            hurt.push(number);
        }
        // What each segment holds, by the texts in it; those that were left alone.
        let whole: Vec<Vec<u8>> = (1..=segments)
            .filter(|number| !hurt.contains(number))
            .filter_map(|number| std::fs::read(closed.segment(number)).ok())
            .collect();
        let found =
            repair(Arc::new(SystemFiles), manual_clock(), closed.path(), &Keys::default(), true).await;
        let repaired = match found {
            Err(OfflineError::Open(OpenError::NotAJournal(_))) => {
                assert!(whole.is_empty(), "seed {seed} {story:?}");
                continue;
            }
            found => found.unwrap_or_else(|error| panic!("seed {seed} {story:?}: {error}")),
        };
        if let Some(after) = &repaired.after {
            assert_eq!(brief(&after.problems), [], "seed {seed} {story:?} {:#?}", repaired.actions);
        }
        let store = closed.open().unwrap_or_else(|error| panic!("seed {seed} {story:?}: {error}"));
        let gone = closed.gone(&store).await;
        for (id, text) in &closed.messages {
            let text = &text.as_bytes()[..18];
            let inside =
                |content: &Vec<u8>| content.windows(text.len()).filter(|window| window == &text).count();
            // Both messages with this text are in whole segments.
            if whole.iter().map(inside).sum::<usize>() == 2 {
                assert!(!gone.contains(id), "seed {seed} {story:?}: message {id} is gone");
            }
        }
    }
}
