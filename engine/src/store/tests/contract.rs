//! What every store does with transactions, queues and leases.

use std::time::Duration;

use super::support::{Fixture, fixtures, item};
use crate::config::settings::{OnSuspend, PoolSize};
use crate::fault::Fault;
use crate::header::{Kind, Status};
use crate::id::MessageId;
use crate::queue::Policy;
use crate::store::{Conflict, Delivery, Guard, Lanes, Lease, Op, Transition};

fn take(fixture: &Fixture, name: &str) -> Vec<Delivery> {
    fixture.store.take(&item(name), Lanes::Requests, 100)
}

fn take_one(fixture: &Fixture, name: &str) -> Delivery {
    take(fixture, name).pop().expect("something is ready")
}

fn retry(lease: Lease, at: jiff::Timestamp) -> Transition {
    let mut transition = Transition::new(lease.id, Guard::Lease(lease), Status::Queued);
    transition.error = Some(Some(Fault::new("call", "connect", "connection refused")));
    transition.next_attempt = Some(at);
    transition.failing_since = Some(at);
    transition
}

#[tokio::test]
async fn a_message_is_taken_in_order_and_finished_once() {
    for fixture in fixtures() {
        let first = fixture.receive("lis", "out", "one").await;
        let second = fixture.receive("lis", "out", "two").await;
        let taken = take(&fixture, "out");
        assert_eq!(taken.len(), 1, "{}: one slot, one message", fixture.name);
        let delivery = &taken[0];
        assert_eq!((delivery.header.id, delivery.header.attempts, delivery.recovered), (first, 1, false));
        assert_eq!(fixture.store.header(first).unwrap().status, Status::Delivered);
        let body = fixture.store.body(delivery.header.body_id.unwrap()).await.unwrap();
        assert_eq!(&body.bytes()[..], b"one");

        let done = fixture.finish(first, Guard::Lease(delivery.lease), Status::Completed).await.unwrap();
        assert_eq!(fixture.store.durable(done.sequence).await.unwrap().sequence(), done.sequence);
        let again = fixture.finish(first, Guard::Lease(delivery.lease), Status::Completed).await;
        assert_eq!(again, Err(Conflict::Lease(first)));
        let finished = fixture.store.header(first).unwrap();
        assert_eq!((finished.status, finished.attempts), (Status::Completed, 1));
        assert!(finished.processed.is_some());
        assert_eq!(take_one(&fixture, "out").header.id, second);
    }
}

#[tokio::test]
async fn a_conflict_applies_nothing() {
    for fixture in fixtures() {
        let id = fixture.receive("lis", "out", "one").await;
        let other = fixture.header("lis", "out");
        let wrong = Transition::new(id, Guard::Status(Status::Suspended), Status::Discarded);
        let result = fixture.commit(vec![Op::Header(Box::new(other.clone())), Op::Transition(wrong)]).await;
        assert_eq!(result, Err(Conflict::Status { id, status: Status::Queued }));
        assert!(fixture.store.header(other.id).is_none());
        let nobody = MessageId(u64::MAX);
        let unknown = fixture.finish(nobody, Guard::Status(Status::Queued), Status::Discarded).await;
        assert_eq!(unknown, Err(Conflict::Unknown(nobody)));
        let impossible = fixture.finish(id, Guard::Status(Status::Queued), Status::Deferred).await;
        assert_eq!(impossible, Err(Conflict::Status { id, status: Status::Queued }));
    }
}

#[tokio::test]
async fn a_retry_keeps_later_messages_behind_until_it_is_due() {
    for fixture in fixtures() {
        let first = fixture.receive("lis", "out", "one").await;
        fixture.receive("lis", "out", "two").await;
        let lease = take_one(&fixture, "out").lease;
        let at = crate::clock::Clock::now(&*fixture.clock) + Duration::from_secs(5);
        fixture.commit(vec![Op::Transition(retry(lease, at))]).await.unwrap();
        assert!(take(&fixture, "out").is_empty());
        assert_eq!(fixture.store.next_due(&item("out")), Some(at));
        let counts = fixture.store.counts(&item("out"));
        assert_eq!((counts.queued, counts.in_flight), (2, 0));
        assert_eq!(counts.last_error.as_deref(), Some("connect: connection refused"));
        fixture.advance(5);
        let again = take_one(&fixture, "out");
        assert_eq!((again.header.id, again.header.attempts), (first, 2));
        assert_eq!(again.header.failing_since, Some(at));
    }
}

#[tokio::test]
async fn fencing_ends_a_lease_and_releasing_gives_the_message_back() {
    for fixture in fixtures() {
        let id = fixture.receive("lis", "out", "one").await;
        let old = take_one(&fixture, "out").lease;
        let new = fixture.store.fence(id).unwrap();
        let late = fixture.finish(id, Guard::Lease(old), Status::Completed).await;
        assert_eq!(late, Err(Conflict::Lease(id)));
        assert!(!fixture.store.release(old));
        assert!(fixture.store.release(new));
        assert_eq!(fixture.store.header(id).unwrap().status, Status::Queued);
        assert_eq!(fixture.store.fence(id), None);
        assert_eq!(take_one(&fixture, "out").header.attempts, 2);
    }
}

#[tokio::test]
async fn a_suspended_message_is_overtaken_and_comes_back_to_its_place() {
    for fixture in fixtures() {
        let first = fixture.receive("lis", "out", "one").await;
        let second = fixture.receive("lis", "out", "two").await;
        let lease = take_one(&fixture, "out").lease;
        fixture.finish(first, Guard::Lease(lease), Status::Suspended).await.unwrap();
        assert_eq!(fixture.store.counts(&item("out")).suspended, 1);
        let overtaking = take_one(&fixture, "out");
        assert!(overtaking.overtakes && overtaking.header.id == second);
        assert!(fixture.store.release(overtaking.lease));
        fixture.finish(first, Guard::Status(Status::Suspended), Status::Queued).await.unwrap();
        assert_eq!(fixture.store.counts(&item("out")).suspended, 0);
        assert_eq!(take_one(&fixture, "out").header.id, first);
    }
}

#[tokio::test]
async fn responses_have_a_queue_of_their_own() {
    for fixture in fixtures() {
        fixture.store.configure_queue(&item("router"), Policy::default());
        let request = fixture.receive("router", "vendor", "ask").await;
        for _ in 0..2 {
            let mut response = fixture.header("vendor", "router");
            response.kind = Kind::Response;
            response.request_id = Some(request);
            response.caused_by = Some(request);
            fixture.commit(vec![Op::Header(Box::new(response))]).await.unwrap();
        }
        let mut kept = fixture.header("vendor", "router");
        kept.kind = Kind::Response;
        kept.status = Status::Completed;
        fixture.commit(vec![Op::Header(Box::new(kept))]).await.unwrap();
        assert!(take(&fixture, "router").is_empty());
        let responses = fixture.store.take(&item("router"), Lanes::Responses, 10);
        assert_eq!(responses.len(), 2, "{}", fixture.name);
        assert!(responses[0].header.id < responses[1].header.id);
        assert!(fixture.store.release(responses[0].lease));
        assert_eq!(
            fixture.store.take(&item("router"), Lanes::Responses, 10)[0].header.id,
            responses[0].header.id
        );
        let id = responses[1].header.id;
        fixture.finish(id, Guard::Lease(responses[1].lease), Status::Completed).await.unwrap();
        assert_eq!(fixture.store.counts(&item("router")).completed, 0);
    }
}

#[tokio::test]
async fn whoever_waits_for_an_item_is_notified_of_every_change() {
    for fixture in fixtures() {
        let ready = fixture.store.ready(&item("out"));
        let id = fixture.receive("lis", "out", "one").await;
        ready.notified().await;
        let lease = take_one(&fixture, "out").lease;
        fixture.store.release(lease);
        ready.notified().await;
        let lease = take_one(&fixture, "out").lease;
        fixture.finish(id, Guard::Lease(lease), Status::Completed).await.unwrap();
        ready.notified().await;
        fixture.store.configure_queue(&item("out"), Policy::default());
        ready.notified().await;
    }
}

#[tokio::test]
async fn a_pool_takes_several_and_keys_keep_their_order() {
    for fixture in fixtures() {
        let policy = Policy { pool: PoolSize::Limited(4), ordered: true, on_suspend: OnSuspend::HoldKey };
        fixture.store.configure_queue(&item("out"), policy);
        let mut ids = Vec::new();
        for key in [1, 2, 1, 3] {
            let mut header = fixture.header("lis", "out");
            header.order_keys = [key].into();
            ids.push(header.id);
            fixture.commit(vec![Op::Header(Box::new(header))]).await.unwrap();
        }
        let taken: Vec<_> = take(&fixture, "out").iter().map(|delivery| delivery.header.id).collect();
        assert_eq!(taken, [ids[0], ids[1], ids[3]]);
        assert_eq!(fixture.store.counts(&item("out")).in_flight, 3);
    }
}

#[tokio::test]
async fn an_adopted_instance_keeps_its_slot() {
    for fixture in fixtures() {
        let id = fixture.receive("lis", "flow", "one").await;
        fixture.receive("lis", "flow", "two").await;
        let waiting = fixture.store.adopt(id).expect("as after recovery: it was never taken");
        assert!(take(&fixture, "flow").is_empty());
        let again = fixture.store.adopt(id).unwrap();
        assert_eq!(
            fixture.finish(id, Guard::Lease(waiting), Status::Completed).await,
            Err(Conflict::Lease(id))
        );
        fixture.store.stall(id, true);
        assert_eq!(take(&fixture, "flow").len(), 1);
        fixture.finish(id, Guard::Lease(again), Status::Completed).await.unwrap();
        assert_eq!(fixture.store.adopt(id), None);
    }
}

#[tokio::test]
async fn guards_see_what_the_same_transaction_did_before() {
    for fixture in fixtures() {
        let header = fixture.header("lis", "out");
        let id = header.id;
        let discard = Transition::new(id, Guard::Status(Status::Queued), Status::Discarded);
        let ops = vec![Op::Header(Box::new(header)), Op::Transition(discard)];
        fixture.commit(ops).await.unwrap();
        assert_eq!(fixture.store.header(id).unwrap().status, Status::Discarded);
        assert_eq!(fixture.store.counts(&item("out")).queued, 0);
    }
}
