//! Copies of a running store: a prefix that is whole, stores made of it, and names of their own.

use std::path::Path;
use std::sync::Arc;

use super::support::{Fixture, commit, manual_clock, options, with_body};
use crate::clock::Clock as _;
use crate::files::SystemFiles;
use crate::host::{Keep as _, KeepFamily};
use crate::id::MessageId;
use crate::store::backup::{
    BackupError, MANIFEST, Manifest, begin, check_of, checkpoint_name, damage, restore,
};
use crate::store::offline::{Keys, check};
use crate::store::{Options, Store};

fn open(path: &Path) -> Store {
    let options = Options { segment_size: 16 << 10, ..options(path) };
    Store::open(options, manual_clock(), Arc::new(SystemFiles)).unwrap()
}

async fn fill(fixture: &Fixture, count: usize) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for number in 0..count {
        let mut header = super::support::header(&fixture.store, "lis", "out", fixture.clock.now());
        let (ops, id) = with_body(&fixture.store, &mut header, &format!("{number} {}", "x".repeat(800)));
        let committed = commit(&fixture.store, ops).await.unwrap();
        fixture.store.durable(committed.sequence).await.unwrap();
        ids.push(id);
    }
    ids
}

/// What the client does: everything that the store lists, as far as it says.
fn copy(store: &Store, to: &Path) -> Manifest {
    let manifest = store.copyable().unwrap().unwrap();
    std::fs::create_dir_all(to.join("journal")).unwrap();
    let pairs = manifest.segments.iter().map(|file| (file, to.join("journal").join(&file.name)));
    for (file, path) in
        pairs.chain(manifest.checkpoint.iter().map(|file| (file, to.join(checkpoint_name(file)))))
    {
        let reading = store.copyable_file(&file.name).unwrap().unwrap();
        let (mut bytes, mut at) = (Vec::new(), 0);
        while at < file.size {
            let piece = reading.read(at, 1000).unwrap();
            at += piece.len() as u64;
            bytes.extend(piece);
        }
        bytes.truncate(usize::try_from(file.size).unwrap());
        std::fs::write(path, bytes).unwrap();
    }
    manifest.write(&SystemFiles, to).unwrap();
    manifest
}

#[tokio::test]
async fn a_restored_copy_holds_what_was_durable_under_a_name_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::on(open(folder.path()), manual_clock(), folder);
    fixture.store.put(KeepFamily::Token, "vendor", Some("a token".into())).await.unwrap();
    let first = fill(&fixture, 50).await;
    let backup = tempfile::tempdir().unwrap();
    let before = copy(&fixture.store, backup.path());
    let later = fill(&fixture, 50).await;
    let after = copy(&fixture.store, backup.path());
    // What was sealed has not changed; what was not has grown.
    let last = before.segments.len() - 1;
    assert!(last > 1 && after.segments.len() > before.segments.len());
    assert_eq!(before.segments[..last], after.segments[..last]);
    assert!(before.segments[last].size <= after.segments[last].size);
    for file in &after.segments {
        let copied =
            crate::files::Files::open(&SystemFiles, &backup.path().join("journal").join(&file.name)).unwrap();
        assert_eq!(check_of(&*copied, file.size, file.sealed).unwrap(), file.check);
        let number = file.name.trim_end_matches(".seg").parse().unwrap();
        assert_eq!(damage(&*copied, number, 0, file.size).unwrap(), None);
    }

    let made = tempfile::tempdir().unwrap();
    let path = made.path().join("restored");
    let restored = restore(&SystemFiles, backup.path(), &path).unwrap();
    assert_eq!(restored.damaged, Vec::<String>::new());
    assert!(!path.join("store.key").exists());
    assert!(matches!(restore(&SystemFiles, backup.path(), &path), Err(BackupError::NotEmpty(..))));
    std::fs::copy(fixture.path().join("store.key"), path.join("store.key")).unwrap();
    let report = check(&SystemFiles, &path, &Keys::default()).unwrap();
    assert_eq!((report.problem_count, report.epoch.as_deref()), (0, Some(restored.epoch.as_str())));
    let store = open(&path);
    assert_eq!(*store.epoch(), *restored.epoch);
    assert_ne!(store.epoch(), fixture.store.epoch());
    for id in first.iter().chain(&later) {
        let body = store.header(*id).unwrap().body_id.unwrap();
        assert_eq!(store.body(body).await.unwrap().size(), fixture.store.body(body).await.unwrap().size());
    }
    assert_eq!(store.get(KeepFamily::Token, "vendor").as_deref(), Some(&b"a token"[..]));
}

#[tokio::test]
async fn an_earlier_manifest_restores_what_it_names_from_longer_files() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::on(open(folder.path()), manual_clock(), folder);
    let first = fill(&fixture, 10).await;
    let backup = tempfile::tempdir().unwrap();
    copy(&fixture.store, backup.path());
    let manifest = std::fs::read(backup.path().join(MANIFEST)).unwrap();
    let later = fill(&fixture, 3).await;
    copy(&fixture.store, backup.path());
    // The second copy was cut short before its manifest was written.
    std::fs::write(backup.path().join(MANIFEST), manifest).unwrap();
    let made = tempfile::tempdir().unwrap();
    let path = made.path().join("restored");
    restore(&SystemFiles, backup.path(), &path).unwrap();
    std::fs::copy(fixture.path().join("store.key"), path.join("store.key")).unwrap();
    let store = open(&path);
    assert!(first.iter().all(|id| store.header(*id).is_some()));
    assert!(later.iter().all(|id| store.header(*id).is_none()));
}

#[tokio::test]
async fn what_is_no_backup_or_lacks_bytes_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let made = tempfile::tempdir().unwrap();
    let path = made.path().join("restored");
    assert!(matches!(restore(&SystemFiles, folder.path(), &path), Err(BackupError::NoBackup(..))));
    let fixture = Fixture::on(open(folder.path()), manual_clock(), folder);
    fill(&fixture, 20).await;
    let backup = tempfile::tempdir().unwrap();
    copy(&fixture.store, backup.path());
    let segment = backup.path().join("journal/0000000001.seg");
    let content = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, &content[..5000]).unwrap();
    let refused = restore(&SystemFiles, backup.path(), &path).unwrap_err();
    assert!(matches!(&refused, BackupError::Damaged { path, .. } if *path == segment), "{refused}");
    // It is told, and restored as it is: the rest is worth having.
    let mut flipped = content;
    flipped[6000] ^= 1;
    std::fs::write(&segment, flipped).unwrap();
    assert_eq!(restore(&SystemFiles, backup.path(), &path).unwrap().damaged.len(), 1);
}

#[tokio::test]
async fn a_first_backup_that_was_cut_short_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::on(open(folder.path()), manual_clock(), folder);
    fill(&fixture, 3).await;
    let backup = tempfile::tempdir().unwrap();
    begin(&SystemFiles, backup.path()).unwrap();
    std::fs::create_dir(backup.path().join("journal")).unwrap();
    begin(&SystemFiles, backup.path()).unwrap();
    copy(&fixture.store, backup.path());
    begin(&SystemFiles, backup.path()).unwrap();
    // Without its manifest it could be anybody's journal.
    std::fs::remove_file(backup.path().join(MANIFEST)).unwrap();
    let refused = begin(&SystemFiles, backup.path()).unwrap_err();
    assert!(matches!(refused, BackupError::Occupied(..)), "{refused}");
}
