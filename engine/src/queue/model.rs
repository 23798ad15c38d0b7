//! The schedule against a model that looks at everything every time: any sequence of what can happen gives
//! the same starts, the same depth, and loses nothing.

use proptest::prelude::*;

use super::tests::{at, push};
use super::*;

const POOLS: [PoolSize; 4] =
    [PoolSize::Limited(1), PoolSize::Limited(2), PoolSize::Limited(4), PoolSize::Unlimited];
const ON_SUSPEND: [OnSuspend; 3] = [OnSuspend::Pass, OnSuspend::HoldKey, OnSuspend::HoldItem];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Waiting,
    Running,
    Stalled,
    Suspended,
}

#[derive(Clone, Debug)]
struct Modelled {
    keys: Vec<u64>,
    not_before: Option<Timestamp>,
    at: At,
}

#[derive(Debug)]
struct Model {
    policy: Policy,
    entries: BTreeMap<u64, Modelled>,
}

impl Model {
    fn may_start(&self, place: u64, now: Timestamp) -> bool {
        let entry = &self.entries[&place];
        if entry.at != At::Waiting || entry.not_before.is_some_and(|due| due > now) {
            return false;
        }
        self.entries.iter().filter(|(other, _)| **other != place).all(|(other, there)| {
            let earlier = *other < place;
            let aside = matches!(there.at, At::Suspended | At::Stalled);
            let shared = there.keys.iter().any(|key| entry.keys.contains(key));
            if aside {
                return match self.policy.on_suspend {
                    OnSuspend::HoldItem => !earlier,
                    OnSuspend::HoldKey => !(earlier && shared && self.policy.ordered),
                    OnSuspend::Pass => true,
                };
            }
            if !self.policy.ordered {
                return !(earlier && there.at == At::Waiting);
            }
            let barrier = there.keys.is_empty() || entry.keys.is_empty();
            !((barrier || shared) && (earlier || there.at == At::Running))
        })
    }

    fn take(&mut self, now: Timestamp, max: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        while taken.len() < max {
            let running = self.entries.values().filter(|entry| entry.at == At::Running).count();
            let full = match self.policy.pool {
                PoolSize::Limited(pool) => running >= pool as usize,
                PoolSize::Unlimited => false,
            };
            let places: Vec<u64> = self.entries.keys().copied().collect();
            let Some(place) = places.into_iter().find(|place| self.may_start(*place, now)) else { break };
            if full {
                break;
            }
            let entry = self.entries.get_mut(&place).unwrap();
            (entry.at, entry.not_before) = (At::Running, None);
            taken.push(place);
        }
        taken
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(Vec<u64>),
    Take(usize),
    Finish(usize),
    PutBack(usize, Option<i64>),
    Suspend(usize),
    Resume(usize),
    Stall(usize, bool),
    Wait(i64),
    Policy(usize, bool, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(0u64..4, 0..3).prop_map(Step::Push),
        6 => (1usize..4).prop_map(Step::Take),
        4 => any::<usize>().prop_map(Step::Finish),
        2 => (any::<usize>(), prop::option::of(1i64..6)).prop_map(|(n, wait)| Step::PutBack(n, wait)),
        2 => any::<usize>().prop_map(Step::Suspend),
        2 => any::<usize>().prop_map(Step::Resume),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(n, stalled)| Step::Stall(n, stalled)),
        2 => (1i64..4).prop_map(Step::Wait),
        1 => (0usize..4, any::<bool>(), 0usize..3).prop_map(|(a, b, c)| Step::Policy(a, b, c)),
    ]
}

fn policy(pool: usize, ordered: bool, on_suspend: usize) -> Policy {
    Policy { pool: POOLS[pool], ordered, on_suspend: ON_SUSPEND[on_suspend] }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Order per key, the pool, and who waits for whom are exactly the model's; nothing is lost.
    #[test]
    fn it_schedules_exactly_like_the_model(
        start in (0usize..4, any::<bool>(), 0usize..3),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let first = policy(start.0, start.1, start.2);
        let (mut queue, mut model) = (Queue::new(first), Model { policy: first, entries: BTreeMap::new() });
        let (mut now, mut last) = (0, 0);
        for step in steps {
            let nth = |model: &Model, n: usize, wanted: &[At]| {
                let fitting: Vec<u64> = model.entries.iter()
                    .filter(|(_, entry)| wanted.contains(&entry.at)).map(|(place, _)| *place).collect();
                (!fitting.is_empty()).then(|| fitting[n % fitting.len()])
            };
            match step {
                Step::Push(keys) => {
                    last += 1;
                    push(&mut queue, last, &keys);
                    model.entries.insert(last, Modelled { keys, not_before: None, at: At::Waiting });
                }
                Step::Take(max) => {
                    let taken: Vec<u64> = queue.take(at(now), max).iter().map(|taken| taken.id.0).collect();
                    prop_assert_eq!(taken, model.take(at(now), max));
                }
                Step::Finish(n) => if let Some(place) = nth(&model, n, &[At::Running, At::Suspended, At::Waiting, At::Stalled]) {
                    let entry = model.entries.remove(&place).unwrap();
                    match entry.at {
                        At::Suspended => queue.take_back(place, &entry.keys),
                        _ => queue.finish(MessageId(place)),
                    }
                },
                Step::PutBack(n, wait) => if let Some(place) = nth(&model, n, &[At::Running]) {
                    let due = wait.map(|wait| at(now + wait));
                    queue.put_back(MessageId(place), due);
                    let entry = model.entries.get_mut(&place).unwrap();
                    (entry.at, entry.not_before) = (At::Waiting, due);
                },
                Step::Suspend(n) => if let Some(place) = nth(&model, n, &[At::Running, At::Waiting]) {
                    let entry = model.entries.get_mut(&place).unwrap();
                    queue.suspend(MessageId(place), place, &entry.keys);
                    entry.at = At::Suspended;
                },
                Step::Resume(n) => if let Some(place) = nth(&model, n, &[At::Suspended]) {
                    let entry = model.entries.get_mut(&place).unwrap();
                    queue.take_back(place, &entry.keys);
                    push(&mut queue, place, &entry.keys.clone());
                    (entry.at, entry.not_before) = (At::Waiting, None);
                },
                Step::Stall(n, stalled) => {
                    let (from, to) = if stalled { (At::Running, At::Stalled) } else { (At::Stalled, At::Running) };
                    if let Some(place) = nth(&model, n, &[from]) {
                        queue.stall(MessageId(place), stalled);
                        model.entries.get_mut(&place).unwrap().at = to;
                    }
                }
                Step::Wait(seconds) => now += seconds,
                Step::Policy(pool, ordered, on_suspend) => {
                    queue.set_policy(policy(pool, ordered, on_suspend));
                    model.policy = policy(pool, ordered, on_suspend);
                }
            }
            let unfinished: Vec<MessageId> = model.entries.iter()
                .filter(|(_, entry)| entry.at != At::Suspended).map(|(place, _)| MessageId(*place)).collect();
            let flying = model.entries.values().filter(|e| matches!(e.at, At::Running | At::Stalled)).count();
            prop_assert_eq!(queue.head(), unfinished.first().copied());
            prop_assert_eq!((queue.depth(), queue.in_flight()), (unfinished.len(), flying));
            prop_assert_eq!(queue.ids(), unfinished);
            // Whoever sleeps until the next due time finds something then.
            if let Some(due) = queue.next_due() {
                prop_assert!(!queue.clone().take(due.max(at(now)), 1).is_empty());
            }
        }
    }
}
