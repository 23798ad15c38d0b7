//! Suspended messages by the hundred: they leave memory, and everything finds them, counts them and puts them back
//! to their places as if they had not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::support::{Fixture, item, reopened, small, small_fixture, until_complete};
use crate::clock::Clock as _;
use crate::config::settings::{OnSuspend, PoolSize};
use crate::fault::Fault;
use crate::files::SystemFiles;
use crate::header::{Header, Status};
use crate::id::MessageId;
use crate::queue::Policy;
use crate::store::overlay::Memory;
use crate::store::{Guard, Lanes, MessageFilter, Op, Purge, Store, Transition};

const COUNT: usize = 300;

/// What the message of this number was refused with.
fn refusal(number: usize) -> Fault {
    Fault { name: "reject".into(), code: format!("AR{number}"), text: "refused".into(), detail: None }
}

fn suspend(id: MessageId, number: usize) -> Op {
    let error = Some(Some(refusal(number)));
    Op::Transition(Transition {
        error,
        attempts: Some(2),
        ..Transition::new(id, Guard::Status(Status::Queued), Status::Suspended)
    })
}

async fn suspend_all(fixture: &Fixture, ids: &[MessageId]) {
    let mut last = 0;
    for (number, id) in ids.iter().enumerate() {
        last = fixture.commit(vec![suspend(*id, number)]).await.unwrap().sequence;
    }
    fixture.store.durable(last).await.unwrap();
}

/// Messages that are all suspended.
async fn suspended(fixture: &Fixture) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for number in 0..COUNT {
        ids.push(fixture.receive("lis", "out", &format!("{number} {}", "z".repeat(300))).await);
    }
    suspend_all(fixture, &ids).await;
    ids
}

fn in_memory(store: &Store, ids: &[MessageId]) -> usize {
    let state = store.0.shared.state();
    ids.iter().filter(|id| state.rows.contains_key(&id.0)).count()
}

fn in_memory_ids(store: &Store) -> BTreeSet<u64> {
    let state = store.0.shared.state();
    let suspended = state.rows.iter().filter(|(_, row)| row.status == Status::Suspended);
    suspended.map(|(id, _)| *id).collect()
}

/// Returns when hardly any of them is in memory: others come and go until the keeper has got that far.
async fn until_gone(fixture: &Fixture, ids: &[MessageId]) {
    while in_memory(&fixture.store, ids) > 60 {
        let id = fixture.receive("lis", "other", "x").await;
        let done = fixture.finish(id, Guard::Status(Status::Queued), Status::Completed).await.unwrap();
        fixture.store.durable(done.sequence).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn listed(store: &Store, status: Status, target: &str) -> Vec<Header> {
    until_complete(store).await;
    let filter =
        MessageFilter { status: vec![status], target: Some(target.to_owned()), ..Default::default() };
    let mut headers = store.search(&filter, None, 2 * COUNT).await.unwrap().entries;
    headers.reverse();
    headers
}

/// Everything says that these are suspended, and as what.
async fn are_suspended(fixture: &Fixture, ids: &[MessageId], number: impl Fn(MessageId) -> usize) {
    let store = &fixture.store;
    assert_eq!(
        (store.counts(&item("out")).suspended, store.counts(&item("out")).queued),
        (ids.len() as u64, 0)
    );
    let found = listed(store, Status::Suspended, "out").await;
    assert_eq!(found.iter().map(|header| header.id).collect::<Vec<_>>(), ids);
    assert_eq!(listed(store, Status::Queued, "out").await, []);
    for header in found {
        assert_eq!((header.error.as_ref(), header.attempts), (Some(&refusal(number(header.id))), 2));
        assert_eq!(store.header(header.id).as_ref(), Some(&header));
        assert_eq!(store.session(header.session), std::slice::from_ref(&header));
        assert!(store.body(header.body_id.unwrap()).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_messages_leave_memory_and_everything_still_finds_them() {
    let fixture = small_fixture();
    let ids = suspended(&fixture).await;
    let number = |id| ids.iter().position(|known| *known == id).unwrap();
    until_gone(&fixture, &ids).await;
    are_suspended(&fixture, &ids, number).await;
    // As a crash leaves it: from a checkpoint and the journal behind it.
    let fixture = reopened(fixture);
    until_gone(&fixture, &ids).await;
    are_suspended(&fixture, &ids, number).await;
    // And after a clean stop, from the checkpoint alone.
    fixture.store.close().await.unwrap();
    let fixture = reopened(fixture);
    assert!(in_memory(&fixture.store, &ids) <= 60);
    are_suspended(&fixture, &ids, number).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_left_memory_are_resumed_to_their_places_and_discarded() {
    let fixture = small_fixture();
    let ids = suspended(&fixture).await;
    until_gone(&fixture, &ids).await;
    let (mut resumed, mut left) = (Vec::new(), Vec::new());
    for (number, id) in ids.iter().enumerate().rev() {
        let to = match number % 3 {
            0 => Status::Queued,
            1 => Status::Discarded,
            _ => {
                left.push(*id);
                continue;
            }
        };
        let wrong = fixture.finish(*id, Guard::Status(Status::Queued), Status::Discarded).await;
        assert!(wrong.is_err(), "it is suspended");
        fixture.finish(*id, Guard::Status(Status::Suspended), to).await.unwrap();
        if to == Status::Queued {
            resumed.push(*id);
        }
    }
    left.reverse();
    resumed.reverse();
    // A new one is behind all of them.
    resumed.push(fixture.receive("lis", "out", "new").await);
    let counts = fixture.store.counts(&item("out"));
    assert_eq!((counts.suspended, counts.queued), (left.len() as u64, resumed.len() as u64));
    let fixture = reopened(fixture);
    let mut taken = Vec::new();
    while taken.len() < resumed.len() {
        for delivery in fixture.store.take(&item("out"), Lanes::Requests, 8) {
            let header = delivery.header;
            assert_eq!(header.attempts, if header.error.is_some() { 3 } else { 1 });
            assert!(fixture.store.body(header.body_id.unwrap()).await.is_ok());
            fixture.finish(header.id, Guard::Lease(delivery.lease), Status::Completed).await.unwrap();
            taken.push(header.id);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(taken, resumed);
    let discarded = listed(&fixture.store, Status::Discarded, "out").await;
    assert_eq!(discarded.len(), COUNT / 3);
    are_suspended(&fixture, &left, |id| ids.iter().position(|known| *known == id).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_is_full_twice_over_has_no_room_until_something_is_taken() {
    let fixture = small_fixture();
    let ids = suspended(&fixture).await;
    until_gone(&fixture, &ids).await;
    let out = item("out");
    let mut resumed = 0;
    for id in ids.iter().take_while(|_| fixture.store.has_room(&out)) {
        fixture.finish(*id, Guard::Status(Status::Suspended), Status::Queued).await.unwrap();
        resumed += 1;
    }
    assert_eq!(resumed, 16, "windows of eight");
    assert!(fixture.store.has_room(&item("nobody")));
    let delivery = fixture.store.take(&out, Lanes::Requests, 1).remove(0);
    fixture.finish(delivery.header.id, Guard::Lease(delivery.lease), Status::Completed).await.unwrap();
    assert!(fixture.store.has_room(&out));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_suspended_again_is_found_as_it_was_suspended_last() {
    let fixture = small_fixture();
    let ids = suspended(&fixture).await;
    until_gone(&fixture, &ids).await;
    for id in &ids {
        fixture.finish(*id, Guard::Status(Status::Suspended), Status::Queued).await.unwrap();
    }
    assert_eq!(listed(&fixture.store, Status::Suspended, "out").await, []);
    let last = ids.len();
    for (number, id) in ids.iter().enumerate() {
        fixture.commit(vec![suspend(*id, last - number)]).await.unwrap();
    }
    until_gone(&fixture, &ids).await;
    let number = |id| last - ids.iter().position(|known| *known == id).unwrap();
    are_suspended(&fixture, &ids, number).await;
    are_suspended(&reopened(fixture), &ids, number).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_left_memory_hold_and_are_passed_as_before() {
    for on_suspend in [OnSuspend::HoldKey, OnSuspend::Pass, OnSuspend::HoldItem] {
        let mut fixture = small_fixture();
        let policy = Policy { pool: PoolSize::Limited(4), ordered: true, on_suspend };
        let keyed = |fixture: &Fixture, key: u64| {
            let header = Header { order_keys: [key].into(), ..fixture.header("lis", "out") };
            (header.id, Op::Header(Box::new(header)))
        };
        let mut ids = Vec::new();
        for key in 0..COUNT as u64 {
            let (id, op) = keyed(&fixture, key);
            fixture.commit(vec![op]).await.unwrap();
            ids.push(id);
        }
        suspend_all(&fixture, &ids).await;
        until_gone(&fixture, &ids).await;
        for clean in [true, false, true] {
            if clean {
                fixture.store.close().await.unwrap();
            }
            fixture = reopened(fixture);
            fixture.store.configure_queue(&item("out"), policy);
            let (behind, op) = keyed(&fixture, 7);
            let (other, second) = keyed(&fixture, 1 << 40);
            fixture.commit(vec![op, second]).await.unwrap();
            let taken = fixture.store.take(&item("out"), Lanes::Requests, 8);
            let taken: Vec<_> =
                taken.into_iter().map(|one| (one.header.id, one.overtakes, one.lease)).collect();
            let seen: Vec<_> = taken.iter().map(|(id, overtakes, _)| (*id, *overtakes)).collect();
            match on_suspend {
                OnSuspend::HoldKey => assert_eq!(seen, [(other, false)]),
                OnSuspend::Pass => assert_eq!(seen, [(behind, true), (other, false)]),
                OnSuspend::HoldItem => assert_eq!(seen, []),
            }
            for (id, _, lease) in taken {
                fixture.finish(id, Guard::Lease(lease), Status::Completed).await.unwrap();
            }
            if fixture.store.header(behind).unwrap().status == Status::Queued {
                fixture.finish(behind, Guard::Status(Status::Queued), Status::Discarded).await.unwrap();
            }
            if fixture.store.header(other).unwrap().status == Status::Queued {
                fixture.finish(other, Guard::Status(Status::Queued), Status::Discarded).await.unwrap();
            }
        }
        if on_suspend == OnSuspend::HoldKey {
            let (behind, op) = keyed(&fixture, 7);
            fixture.commit(vec![op]).await.unwrap();
            assert!(fixture.store.take(&item("out"), Lanes::Requests, 8).is_empty());
            fixture.finish(ids[7], Guard::Status(Status::Suspended), Status::Discarded).await.unwrap();
            let taken = fixture.store.take(&item("out"), Lanes::Requests, 8);
            assert_eq!(taken.iter().map(|one| one.header.id).collect::<Vec<_>>(), [behind]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_carries_those_that_left_memory_as_they_stand() {
    const DAY: u64 = 86_400;
    let fixture = small_fixture();
    let ids = suspended(&fixture).await;
    until_gone(&fixture, &ids).await;
    let (mut dropped, mut number) = (0, 0);
    for _ in 0..200 {
        // Much that goes around what stays, so that it is worth it.
        for _ in 0..40 {
            number += 1;
            let id = fixture.receive("lis", "other", &format!("{number} {}", "x".repeat(1000))).await;
            fixture.finish(id, Guard::Status(Status::Queued), Status::Completed).await.unwrap();
        }
        fixture.advance(DAY);
        let before = fixture.clock.now();
        let purge = Purge { audit_before: before, ..Purge::before(before) };
        let purged = fixture.store.purge(purge).await.unwrap();
        dropped += purged.segments;
        if purged.carried > 0 && dropped > 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(dropped > 20, "{dropped}");
    let here = |id| ids.iter().position(|known| *known == id).unwrap();
    are_suspended(&fixture, &ids, here).await;
    let fixture = reopened(fixture);
    are_suspended(&fixture, &ids, here).await;
    for id in &ids {
        fixture.finish(*id, Guard::Status(Status::Suspended), Status::Discarded).await.unwrap();
    }
    assert_eq!(fixture.store.counts(&item("out")).suspended, 0);
    assert_eq!(listed(&fixture.store, Status::Discarded, "out").await.len(), COUNT);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_made_again_has_those_that_left_memory() {
    let fixture = small_fixture();
    let ids = suspended(&fixture).await;
    until_gone(&fixture, &ids).await;
    fixture.store.close().await.unwrap();
    let clock = fixture.clock.clone();
    let (store, folder) = fixture.into_parts();
    drop(store);
    std::fs::remove_dir_all(folder.path().join("index")).unwrap();
    let store = Store::open(small(folder.path()), clock.clone(), Arc::new(SystemFiles)).unwrap();
    let fixture = Fixture::on(store, clock, folder);
    are_suspended(&fixture, &ids, |id| ids.iter().position(|known| *known == id).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_index_is_lacking_each_is_found_resumed_and_discarded_all_the_same() {
    let fixture = small_fixture();
    let ids = suspended(&fixture).await;
    until_gone(&fixture, &ids).await;
    // As if all of it had yet to be made again.
    fixture.store.0.embedded.as_ref().unwrap().index.retire(u64::MAX);
    for (number, id) in ids.iter().enumerate() {
        let header = fixture.store.header(*id).unwrap();
        assert_eq!((header.id, header.status, header.attempts), (*id, Status::Suspended, 2));
        assert_eq!(header.error, Some(refusal(number)));
        let to = if number % 2 == 0 { Status::Queued } else { Status::Discarded };
        fixture.finish(*id, Guard::Status(Status::Suspended), to).await.unwrap();
    }
    let counts = fixture.store.counts(&item("out"));
    assert_eq!((counts.suspended, counts.queued), (0, COUNT as u64 / 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_transaction_may_change_several_that_are_far_apart() {
    let fixture = small_fixture();
    let mut ids = Vec::new();
    for number in 0..COUNT {
        ids.push(fixture.receive("lis", "out", &number.to_string()).await);
    }
    // Many in one frame: who reads one back reads its neighbours, too.
    for half in ids.chunks(COUNT / 2) {
        fixture.commit(half.iter().map(|id| suspend(*id, 1)).collect()).await.unwrap();
    }
    until_gone(&fixture, &ids).await;
    let back = |id: &MessageId| {
        Op::Transition(Transition::new(*id, Guard::Status(Status::Suspended), Status::Queued))
    };
    let some = [ids[0], ids[COUNT / 3], ids[COUNT / 2 + 1], ids[COUNT - 1]];
    let done = tokio::time::timeout(Duration::from_secs(60), async {
        let store = fixture.store.clone();
        let permit = store.reserve(crate::store::Class::Completion, 0).await.unwrap();
        let ops = some.iter().map(back).collect();
        tokio::task::spawn_blocking(move || store.submit(permit, crate::store::Transaction::new(ops)))
            .await
            .unwrap()
    });
    done.await.expect("they come back all at once").unwrap();
    let counts = fixture.store.counts(&item("out"));
    assert_eq!((counts.suspended, counts.queued), (COUNT as u64 - 4, 4));
    // From the journal they come back all at once, too.
    let sequence = fixture.store.state().sequence;
    fixture.store.durable(sequence).await.unwrap();
    let counts = reopened(fixture).store.counts(&item("out"));
    assert_eq!((counts.suspended, counts.queued), (COUNT as u64 - 4, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_being_read_has_those_that_are_suspended_again_and_leave_memory_meanwhile() {
    let fixture = small_fixture();
    let ids = suspended(&fixture).await;
    until_gone(&fixture, &ids).await;
    let filter = MessageFilter { status: vec![Status::Suspended], ..Default::default() };
    let before: Vec<u64> = fixture
        .store
        .search(&filter, None, 2 * COUNT)
        .await
        .unwrap()
        .entries
        .iter()
        .map(|h| h.id.0)
        .collect();
    assert_eq!(before.len(), COUNT);
    // It knows the files that there are now.
    let inner = &fixture.store.0;
    let mut cursor = inner.embedded.as_ref().unwrap().index.messages(&filter, None);
    let in_memory = in_memory_ids(&fixture.store);
    for id in &ids {
        fixture.finish(*id, Guard::Status(Status::Suspended), Status::Queued).await.unwrap();
        fixture.commit(vec![suspend(*id, 7)]).await.unwrap();
    }
    until_gone(&fixture, &ids).await;
    let mut found = in_memory;
    found.extend(in_memory_ids(&fixture.store));
    loop {
        let step = cursor.step(&mut Memory(&inner.shared), COUNT).unwrap();
        found.extend(step.rows.iter().map(|header| header.id.0));
        if step.reached == 0 {
            break;
        }
    }
    let missing: Vec<&u64> = before.iter().filter(|id| !found.contains(id)).collect();
    assert!(missing.is_empty(), "{} are missing", missing.len());
}
