//! What the schedule promises, one case each; `model` has all of them at once.

use super::*;

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn queue(pool: u32, ordered: bool, on_suspend: OnSuspend) -> Queue {
    Queue::new(Policy { pool: PoolSize::Limited(pool), ordered, on_suspend })
}

pub(super) fn push(queue: &mut Queue, id: u64, keys: &[u64]) {
    queue.push(Entry { id: MessageId(id), position: id, keys: keys.into(), not_before: None });
}

fn take(queue: &mut Queue, second: i64) -> Vec<u64> {
    queue.take(at(second), 100).into_iter().map(|taken| taken.id.0).collect()
}

#[test]
fn a_pool_of_one_is_strictly_first_in_first_out() {
    let mut queue = queue(1, false, OnSuspend::Pass);
    (1..=3).for_each(|id| push(&mut queue, id, &[]));
    for id in 1..=3 {
        assert_eq!(take(&mut queue, 0), [id]);
        assert_eq!(take(&mut queue, 0), [0; 0]);
        queue.finish(MessageId(id));
    }
    assert_eq!((queue.depth(), queue.in_flight(), queue.head()), (0, 0, None));
}

#[test]
fn a_waiting_retry_holds_back_everything_behind_it() {
    let mut queue = queue(2, false, OnSuspend::Pass);
    (1..=3).for_each(|id| push(&mut queue, id, &[]));
    assert_eq!(take(&mut queue, 0), [1, 2]);
    queue.put_back(MessageId(1), Some(at(5)));
    assert_eq!(queue.next_due(), Some(at(5)));
    queue.finish(MessageId(2));
    assert_eq!(take(&mut queue, 4), [0; 0]);
    assert_eq!(take(&mut queue, 5), [1, 3]);
}

#[test]
fn a_waiting_retry_holds_back_only_its_keys_with_order_by() {
    let mut queue = queue(4, true, OnSuspend::HoldKey);
    push(&mut queue, 1, &[10]);
    push(&mut queue, 2, &[20]);
    push(&mut queue, 3, &[10]);
    assert_eq!(take(&mut queue, 0), [1, 2]);
    queue.put_back(MessageId(1), Some(at(5)));
    push(&mut queue, 4, &[20]);
    queue.finish(MessageId(2));
    assert_eq!(take(&mut queue, 1), [4]);
    assert_eq!(queue.next_due(), Some(at(5)));
    assert_eq!(take(&mut queue, 5), [1]);
    queue.finish(MessageId(1));
    assert_eq!(take(&mut queue, 5), [3]);
}

#[test]
fn hurrying_lets_every_retry_run_at_once() {
    for ordered in [false, true] {
        let mut queue = queue(4, ordered, OnSuspend::HoldKey);
        push(&mut queue, 1, &[10]);
        push(&mut queue, 2, &[20]);
        assert_eq!(take(&mut queue, 0), [1, 2]);
        queue.put_back(MessageId(2), Some(at(60)));
        queue.put_back(MessageId(1), Some(at(60)));
        assert_eq!(take(&mut queue, 1), [0; 0]);
        assert_eq!(queue.hurry(), [MessageId(1), MessageId(2)]);
        assert_eq!(take(&mut queue, 1), [1, 2]);
        assert!(queue.hurry().is_empty());
    }
}

#[test]
fn an_entry_with_several_keys_waits_for_each_of_them() {
    let mut queue = queue(8, true, OnSuspend::HoldKey);
    push(&mut queue, 1, &[10]);
    push(&mut queue, 2, &[20]);
    push(&mut queue, 3, &[10, 20]);
    push(&mut queue, 4, &[20, 30]);
    push(&mut queue, 5, &[40]);
    assert_eq!(take(&mut queue, 0), [1, 2, 5]);
    queue.finish(MessageId(1));
    assert_eq!(take(&mut queue, 0), [0; 0]);
    queue.finish(MessageId(2));
    assert_eq!(take(&mut queue, 0), [3]);
    queue.finish(MessageId(3));
    assert_eq!(take(&mut queue, 0), [4]);
}

#[test]
fn an_entry_without_keys_is_a_barrier_both_ways() {
    let mut queue = queue(8, true, OnSuspend::HoldKey);
    push(&mut queue, 1, &[10]);
    push(&mut queue, 2, &[]);
    push(&mut queue, 3, &[30]);
    assert_eq!(take(&mut queue, 0), [1]);
    queue.finish(MessageId(1));
    assert_eq!(take(&mut queue, 0), [2]);
    assert_eq!(take(&mut queue, 0), [0; 0]);
    queue.finish(MessageId(2));
    assert_eq!(take(&mut queue, 0), [3]);
}

#[test]
fn a_suspended_entry_holds_its_key_and_comes_back_to_its_place() {
    let mut queue = queue(4, true, OnSuspend::HoldKey);
    for (id, key) in [(1, 10), (2, 10), (3, 20), (4, 10)] {
        push(&mut queue, id, &[key]);
    }
    assert_eq!(take(&mut queue, 0), [1, 3]);
    queue.suspend(MessageId(1), 1, &[10]);
    assert_eq!((queue.depth(), queue.head()), (3, Some(MessageId(2))));
    assert_eq!(take(&mut queue, 0), [0; 0]);
    queue.take_back(1, &[10]);
    push(&mut queue, 1, &[10]);
    assert_eq!(queue.head(), Some(MessageId(1)));
    assert_eq!(take(&mut queue, 0), [1]);
    queue.suspend(MessageId(1), 1, &[10]);
    queue.take_back_lost(1);
    assert_eq!(take(&mut queue, 0), [2]);
}

#[test]
fn passing_a_suspended_entry_is_marked() {
    let mut unordered = queue(1, false, OnSuspend::Pass);
    (1..=2).for_each(|id| push(&mut unordered, id, &[]));
    assert!(!unordered.take(at(0), 1).iter().any(|taken| taken.overtakes));
    unordered.suspend(MessageId(1), 1, &[]);
    assert!(unordered.take(at(0), 1).iter().all(|taken| taken.overtakes));

    let mut ordered = queue(4, true, OnSuspend::Pass);
    for (id, key) in [(1, 10), (2, 20), (3, 10)] {
        push(&mut ordered, id, &[key]);
    }
    assert_eq!(take(&mut ordered, 0), [1, 2]);
    ordered.suspend(MessageId(1), 1, &[10]);
    let taken = ordered.take(at(0), 4);
    assert_eq!(taken, [Taken { id: MessageId(3), overtakes: true }]);
}

#[test]
fn a_held_item_starts_nothing_behind_the_suspended_entry() {
    let mut queue = queue(4, false, OnSuspend::HoldItem);
    (1..=3).for_each(|id| push(&mut queue, id, &[]));
    assert_eq!(queue.take(at(0), 2).len(), 2);
    queue.suspend(MessageId(2), 2, &[]);
    queue.put_back(MessageId(1), None);
    assert_eq!(take(&mut queue, 0), [1]);
    queue.take_back(2, &[]);
    assert_eq!(take(&mut queue, 0), [3]);
}

#[test]
fn a_stalled_instance_gives_up_its_slot_and_keeps_its_key() {
    let mut queue = queue(1, true, OnSuspend::HoldKey);
    for (id, key) in [(1, 10), (2, 10), (3, 20)] {
        push(&mut queue, id, &[key]);
    }
    assert_eq!(take(&mut queue, 0), [1]);
    queue.stall(MessageId(1), true);
    assert_eq!(take(&mut queue, 0), [3]);
    queue.stall(MessageId(1), false);
    queue.finish(MessageId(3));
    assert_eq!(take(&mut queue, 0), [0; 0]);
    queue.finish(MessageId(1));
    assert_eq!(take(&mut queue, 0), [2]);
}
