//! What every store answers: counters, lists, search, events, kept values.

use bytes::Bytes;

use super::support::{Fixture, fixtures, item, with_body};
use crate::clock::Clock as _;
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::header::Status;
use crate::host::{Keep as _, KeepFamily};
use crate::id::{BodyId, MessageId, SessionId};
use crate::store::{EventFilter, Guard, Lanes, MessageFilter, Op, ReadError};

async fn found(fixture: &Fixture, filter: MessageFilter) -> Vec<u64> {
    let page = fixture.store.search(&filter, None, 100).await.unwrap();
    assert_eq!(page.lag_ms, 0);
    page.entries.iter().map(|header| header.id.0).collect()
}

#[tokio::test]
async fn counters_tell_services_from_targets() {
    for fixture in fixtures() {
        // One message for two targets over one body is taken in once.
        let mut first = fixture.header("lis", "router");
        let (mut ops, session) = with_body(&fixture.store, &mut first, "one");
        let mut second = fixture.header("lis", "archive");
        second.session = SessionId::from(session);
        second.body_id = first.body_id;
        ops.push(Op::Header(Box::new(second)));
        fixture.commit(ops).await.unwrap();
        // A rejected frame.
        let mut rejected = fixture.header("lis", "nobody");
        rejected.target = None;
        rejected.status = Status::Error;
        rejected.error = Some(Fault::new("message", "207", "no readable MSH"));
        fixture.commit(vec![Op::Header(Box::new(rejected))]).await.unwrap();

        let service = fixture.store.counts(&item("lis"));
        assert_eq!((service.completed, service.errors, service.queued), (1, 1, 0), "{}", fixture.name);
        assert_eq!(service.last_error.as_deref(), Some("207: no readable MSH"));
        assert_eq!(service.last_activity, Some(fixture.clock.now()));

        let lease = fixture.store.take(&item("router"), Lanes::Requests, 1)[0].lease;
        fixture.finish(session, Guard::Lease(lease), Status::Error).await.unwrap();
        let router = fixture.store.counts(&item("router"));
        assert_eq!((router.completed, router.errors, router.queued), (0, 1, 0));
        let queues = fixture.store.queues();
        let depths: Vec<_> = queues.iter().map(|queue| (queue.item.to_string(), queue.depth)).collect();
        assert_eq!(depths, [("router".to_owned(), 0), ("archive".to_owned(), 1)]);
        assert!(queues[0].head.is_none() && queues[1].head.is_some() && queues[1].oldest.is_some());
        assert_eq!(fixture.store.queued_items(), [(item("router"), 0), (item("archive"), 1)]);
        assert_eq!(fixture.store.counts(&item("unheard")), Default::default());
    }
}

#[tokio::test]
async fn every_filter_selects_and_the_newest_come_first() {
    for fixture in fixtures() {
        let start = fixture.clock.now();
        let mut ids = Vec::new();
        for (mrn, text) in [("Müller", "alpha"), ("X", "beta"), ("Y", "gamma")] {
            let mut header = fixture.header("lis", "out");
            header.keys = [("mrn".into(), mrn.to_owned())].into();
            header.control_id = text.into();
            let (ops, id) = with_body(&fixture.store, &mut header, text);
            fixture.commit(ops).await.unwrap();
            ids.push(id.0);
            fixture.advance(60);
        }
        fixture.finish(MessageId(ids[0]), Guard::Status(Status::Queued), Status::Discarded).await.unwrap();
        let newest: Vec<u64> = ids.iter().rev().copied().collect();
        let all = MessageFilter::default();
        assert_eq!(found(&fixture, all.clone()).await, newest);
        let minute = |n: i64| Some(start + jiff::SignedDuration::from_secs(60 * n));
        let cases: Vec<(MessageFilter, &[usize])> = vec![
            (MessageFilter { status: vec![Status::Discarded, Status::Error], ..all.clone() }, &[0]),
            (MessageFilter { target: Some("out".into()), ..all.clone() }, &[2, 1, 0]),
            (MessageFilter { target: Some("lis".into()), ..all.clone() }, &[]),
            (MessageFilter { source: Some("lis".into()), ..all.clone() }, &[2, 1, 0]),
            (MessageFilter { source: Some("unheard".into()), ..all.clone() }, &[]),
            (MessageFilter { target: Some("unheard".into()), ..all.clone() }, &[]),
            (MessageFilter { session: Some(SessionId(ids[1])), ..all.clone() }, &[1]),
            (MessageFilter { control_id: Some("beta".into()), ..all.clone() }, &[1]),
            (MessageFilter { type_name: Some("ORU^R01".into()), ..all.clone() }, &[]),
            (MessageFilter { keys: vec![("mrn".into(), "MU\u{308}LLER".into())], ..all.clone() }, &[0]),
            (MessageFilter { keys: vec![("other".into(), "X".into())], ..all.clone() }, &[]),
            (MessageFilter { from: minute(1), to: minute(2), ..all.clone() }, &[1]),
            (MessageFilter { text: Some("GAMMA".into()), ..all.clone() }, &[2]),
        ];
        for (filter, expected) in cases {
            let expected: Vec<u64> = expected.iter().map(|index| ids[*index]).collect();
            assert_eq!(found(&fixture, filter.clone()).await, expected, "{}: {filter:?}", fixture.name);
        }
    }
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_overlap() {
    for fixture in fixtures() {
        for _ in 0..7 {
            fixture.receive("lis", "out", "text").await;
        }
        for text in [None, Some("text".to_owned())] {
            let filter = MessageFilter { text, ..MessageFilter::default() };
            let (mut seen, mut before) = (Vec::new(), None);
            loop {
                let page = fixture.store.search(&filter, before, 3).await.unwrap();
                assert!(page.entries.len() <= 3);
                seen.extend(page.entries.iter().map(|header| header.id.0));
                before = page.next;
                if before.is_none() {
                    break;
                }
            }
            assert_eq!(seen, found(&fixture, filter).await);
            assert_eq!(seen.len(), 7);
        }
    }
}

#[tokio::test]
async fn a_session_shows_its_headers_and_events_in_order() {
    for fixture in fixtures() {
        let first = fixture.receive("lis", "router", "one").await;
        let session = SessionId::from(first);
        let mut second = fixture.header("router", "out");
        second.session = session;
        second.caused_by = Some(first);
        let second_id = second.id;
        let event = NewEvent::new(Level::Info, "rule", "rule 1 matched")
            .message(session, first)
            .item(&item("router"));
        fixture.commit(vec![Op::Header(Box::new(second)), Op::Event(event.detail("foreign"))]).await.unwrap();
        fixture.receive("lis", "router", "another session").await;
        let headers: Vec<_> = fixture.store.session(session).iter().map(|header| header.id).collect();
        assert_eq!(headers, [first, second_id]);
        let events = fixture.store.session_events(session);
        assert_eq!((events.len(), events[0].kind.as_ref(), events[0].at), (1, "rule", fixture.clock.now()));
        assert!(events[0].detail.is_some());
    }
}

#[tokio::test]
async fn events_are_listed_newest_first_by_filter_and_page() {
    for fixture in fixtures() {
        for number in 0..5u32 {
            let level = if number == 2 { Level::Error } else { Level::Info };
            fixture.store.log(NewEvent::new(level, "alert", format!("event {number}")).item(&item("out")));
        }
        let all = EventFilter::default();
        let page = fixture.store.events(&all, None, 3).unwrap();
        let texts: Vec<_> = page.entries.iter().map(|event| event.text.as_str()).collect();
        assert_eq!(texts, ["event 4", "event 3", "event 2"]);
        let rest = fixture.store.events(&all, page.next.map(crate::id::EventId), 3).unwrap();
        assert_eq!((rest.entries.len(), rest.next), (2, None));
        for (filter, expected) in [
            (EventFilter { level: Some(Level::Error), ..all.clone() }, 1),
            (EventFilter { kind: Some("alert".into()), ..all.clone() }, 5),
            (EventFilter { kind: Some("rule".into()), ..all.clone() }, 0),
            (EventFilter { item: Some("out".into()), ..all.clone() }, 5),
            (EventFilter { session: Some(SessionId(1)), ..all.clone() }, 0),
        ] {
            assert_eq!(
                fixture.store.events(&filter, None, 10).unwrap().entries.len(),
                expected,
                "{filter:?}"
            );
        }
    }
}

#[tokio::test]
async fn kept_values_are_set_scanned_and_removed() {
    for fixture in fixtures() {
        let store = &fixture.store;
        for key in ["a/1", "a/2", "b/1"] {
            store.put(KeepFamily::Duplicate, key, Some(Bytes::from_static(b"value"))).await.unwrap();
        }
        assert_eq!(store.get(KeepFamily::Duplicate, "a/1").as_deref(), Some(&b"value"[..]));
        assert_eq!(store.get(KeepFamily::Token, "a/1"), None);
        let keys: Vec<_> = store.scan(KeepFamily::Duplicate, "a/").into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["a/1", "a/2"]);
        store.put(KeepFamily::Duplicate, "a/1", None).await.unwrap();
        assert_eq!(store.get(KeepFamily::Duplicate, "a/1"), None);
    }
}

#[tokio::test]
async fn what_never_was_is_not_found() {
    for fixture in fixtures() {
        assert!(fixture.store.header(MessageId(999)).is_none());
        assert!(fixture.store.session(SessionId(999)).is_empty());
        let missing = fixture.store.body(BodyId(999)).await;
        assert_eq!(missing.unwrap_err(), ReadError::Gone(BodyId(999)));
    }
}

#[tokio::test]
async fn ids_grow_and_are_exact_in_javascript() {
    for fixture in fixtures() {
        let first = fixture.store.next_id();
        let second = fixture.store.next_id();
        assert!(0 < first && first < second && second < 1 << 53);
    }
}
