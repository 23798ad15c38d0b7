//! What is derived from the journal may break: nothing is lost, and it is made again.

use std::path::PathBuf;
use std::time::Duration;

use super::support::{Fixture, embedded};
use crate::header::{Header, Status};
use crate::store::{EventFilter, Guard, MessageFilter, Page};

async fn all(fixture: &Fixture) -> Page<Header> {
    fixture.store.search(&MessageFilter::default(), None, 1000).await.unwrap()
}

fn index_files(fixture: &Fixture) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(fixture.path().join("index")).unwrap();
    let names = folder.map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = names.filter(|name| name.extension().is_some_and(|end| end == "idx")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_damaged_index_file_is_left_out_and_made_again_at_the_next_start() {
    let fixture = embedded();
    for number in 0..120 {
        let id = fixture.receive("lis", "out", &format!("{number}|{}", "x".repeat(20_000))).await;
        fixture.finish(id, Guard::Status(Status::Queued), Status::Discarded).await.unwrap();
    }
    let before = all(&fixture).await.entries;
    assert_eq!(before.len(), 120);
    fixture.store.close().await.unwrap();
    let files = index_files(&fixture);
    assert!(files.len() > 1, "{files:?}");

    let damaged = files[0].clone();
    let fixture = fixture.closed_and_changed(|_| {
        let mut content = std::fs::read(&damaged).unwrap();
        // In the first row, which its directory does not show.
        content[40] ^= 1;
        std::fs::write(&damaged, content).unwrap();
    });
    let page = all(&fixture).await;
    assert!(page.entries.len() < 120 && page.entries.iter().all(|header| before.contains(header)));
    assert_eq!(all(&fixture).await.entries, page.entries);
    assert!(all(&fixture).await.lag_ms > 0);
    assert!(fixture.store.header(before[119].id).is_none());
    assert!(!damaged.exists());
    let corrupt = EventFilter { kind: Some("store.corrupt".into()), ..EventFilter::default() };
    let told = fixture.store.events(&corrupt, None, 10).unwrap().entries;
    assert_eq!(told.len(), 1);
    assert!(told[0].text.contains("index/0000000001.idx"), "{}", told[0].text);
    fixture.store.close().await.unwrap();

    let fixture = fixture.reopen();
    for _ in 0..1000 {
        if all(&fixture).await.lag_ms == 0 {
            break;
        }
        // The rebuild has no event to wait for.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let page = all(&fixture).await;
    assert_eq!((page.entries, page.lag_ms), (before, 0));
    assert!(damaged.exists());
}
