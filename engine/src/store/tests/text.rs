//! Searching for text in bodies: in memory, in the journal, sealed or not, and no further than allowed.

use std::sync::Arc;
use std::time::Duration;

use super::support::{Fixture, fixtures, item, manual_clock, options, with_body};
use crate::config::settings::Secret;
use crate::files::SystemFiles;
use crate::header::Status;
use crate::store::text::{BOUND, Bound};
use crate::store::{Guard, MessageFilter, Op, Options, Store};

/// An embedded store that seals its bodies.
fn sealed() -> Fixture {
    let (clock, folder) = (manual_clock(), tempfile::tempdir().unwrap());
    let key = Some(Secret::new("12".repeat(32)));
    let options = Options { key, encrypt_bodies: true, ..options(folder.path()) };
    let store = Store::open(options, clock.clone(), Arc::new(SystemFiles)).unwrap();
    Fixture::on(store, clock, folder)
}

/// Messages of very different lengths, some finished; every seventh says so. Gives these, newest first.
async fn fill(fixture: &Fixture, count: usize) -> Vec<u64> {
    let mut wanted = Vec::new();
    let mut last = 0;
    for number in 0..count {
        let length = [10, 500, 3_000, 20_000][number % 4];
        let mark = if number % 7 == 0 { "Seventh MÜLLER" } else { "other" };
        let text = format!("PID|{number}|{}|{mark}|{}", "x".repeat(length), "y".repeat(length / 2));
        let id = fixture.receive("lis", "out", &text).await;
        if number % 7 == 0 {
            wanted.insert(0, id.0);
        }
        if number % 3 == 0 {
            let end = fixture.finish(id, Guard::Status(Status::Queued), Status::Discarded).await;
            last = end.unwrap().sequence;
        }
        fixture.advance(1);
    }
    fixture.store.durable(last).await.unwrap();
    wanted
}

async fn search(fixture: &Fixture, text: &str, limit: usize, bound: Bound) -> (Vec<u64>, usize) {
    let filter = MessageFilter { target: Some(item("out").to_string()), ..MessageFilter::default() };
    let (mut found, mut before, mut stops) = (Vec::new(), None, 0);
    loop {
        let page = fixture.store.search_text(&filter, text, before, limit, bound).await.unwrap();
        assert!(page.entries.len() <= limit);
        found.extend(page.entries.iter().map(|header| header.id.0));
        if page.incomplete.is_some() {
            stops += 1;
            assert!(page.next.is_some());
        }
        match page.next {
            None => return (found, stops),
            next => before = next,
        }
    }
}

#[tokio::test]
async fn text_is_found_in_bodies_wherever_they_are() {
    for fixture in fixtures().into_iter().chain([sealed()]) {
        let wanted = fill(&fixture, 300).await;
        for text in ["seventh", "müller", "SEVENTH M", "|othe"] {
            let expected = match text {
                "|othe" => 300 - wanted.len(),
                _ => wanted.len(),
            };
            let (found, stops) = search(&fixture, text, 20, BOUND).await;
            assert_eq!((found.len(), stops), (expected, 0), "{} {text}", fixture.name);
            if text == "seventh" {
                assert_eq!(found, wanted);
            }
        }
        let filter = MessageFilter { text: Some("Seventh MÜLLER".into()), ..MessageFilter::default() };
        let filter = MessageFilter { status: vec![Status::Discarded], ..filter };
        let page = fixture.store.search(&filter, None, 100).await.unwrap();
        assert_eq!(page.entries.len(), 300_usize.div_ceil(21), "{}", fixture.name);
        assert_eq!((page.next, page.incomplete), (None, None));
    }
}

/// What users meet: a GiB of bodies. They share one, so that it need not be written.
#[tokio::test]
async fn a_search_stops_at_a_gib_says_how_far_it_came_and_goes_on() {
    const SIZE: usize = 20 << 20;
    let (clock, folder) = (manual_clock(), tempfile::tempdir().unwrap());
    let options = Options { memory: 256 << 20, ..options(folder.path()) };
    let store = Store::open(options, clock.clone(), Arc::new(SystemFiles)).unwrap();
    let fixture = Fixture::on(store, clock, folder);
    let mut first = fixture.header("lis", "out");
    let (ops, _) = with_body(&fixture.store, &mut first, &format!("{} needle", "x".repeat(SIZE)));
    fixture.commit(ops).await.unwrap();
    for _ in 1..60 {
        let mut header = fixture.header("lis", "out");
        (header.body_id, header.size) = (first.body_id, first.size);
        fixture.commit(vec![Op::Header(Box::new(header))]).await.unwrap();
    }
    let filter = MessageFilter { text: Some("needle".into()), ..MessageFilter::default() };
    let page = fixture.store.search(&filter, None, 1000).await.unwrap();
    let said = page.incomplete.unwrap();
    let bytes: u64 = said.split(['(', ' ']).find_map(|word| word.parse().ok()).unwrap();
    assert!((1 << 30..(1 << 30) + 4 * SIZE as u64).contains(&bytes), "{said}");
    assert!(said.contains("back to 2026-11-22T08:00:00Z") && said.contains("go on at next"), "{said}");
    let rest = fixture.store.search(&filter, page.next, 1000).await.unwrap();
    assert_eq!(page.entries.len() + rest.entries.len(), 60);
    assert_eq!((rest.next, rest.incomplete), (None, None));
}

#[tokio::test]
async fn a_search_that_takes_too_long_says_so_and_goes_on_where_it_stopped() {
    for fixture in fixtures() {
        let wanted = fill(&fixture, 200).await;
        let short = Bound { time: Duration::ZERO, bytes: u64::MAX };
        let little = Bound { time: Duration::from_secs(60), bytes: 1 };
        for bound in [short, little] {
            let (found, stops) = search(&fixture, "seventh", 1000, bound).await;
            assert_eq!(found, wanted, "{}", fixture.name);
            // The first batch of each request has 64 messages.
            assert_eq!(stops, 3, "{}", fixture.name);
            // What is absent is not said to be absent before all was searched.
            assert_eq!(search(&fixture, "absent", 1000, bound).await, (Vec::new(), 3));
        }
    }
}
