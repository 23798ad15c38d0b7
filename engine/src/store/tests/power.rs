//! Random work on a disk that fails at a random moment, several lives in a row. After each the store must
//! hold exactly the transactions 1 to k, for a k that is not below anything it called durable; every body
//! byte for byte; queues in order; and no id twice. Purges run beside the work: what they take is finished and
//! goes whole, and what they said is gone stays gone. Now and then somebody deletes the index, so that it is
//! made again while all this goes on.
//!
//! `SEPTET_POWER_ROUNDS` sets how many seeds are tried, `SEPTET_POWER_FROM` with which one to begin,
//! `SEPTET_POWER_SEED` tries one.

mod effects;
mod purging;
mod suspending;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::task::JoinHandle;

use self::effects::{Effect, Model, brief};
use self::purging::Purging;
use self::suspending::order_keys;
use super::sim::{Faults, Random, SimFiles};
use super::support::{header, item, manual_clock};
use crate::body::{self, Body};
use crate::clock::{Clock as _, ManualClock};
use crate::config::settings::{OnSuspend, PoolSize, Secret};
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::files::Files as _;
use crate::header::Status;
use crate::host::{Keep as _, KeepFamily};
use crate::id::{BodyId, MessageId};
use crate::queue::Policy;
use crate::store::offline::{Keys, OfflineError, check};
use crate::store::{
    Class, EventFilter, Guard, Lanes, Lease, MessageFilter, Op, OpenError, Options, Store, Transaction,
    Transition,
};

const TARGETS: [&str; 2] = ["out", "other"];
/// Stores at the same time.
const LANES: usize = 2;

/// One store over several lives.
struct World {
    random: Random,
    files: SimFiles,
    clock: Arc<ManualClock>,
    encrypt: bool,
    segment_size: u64,
    window: usize,
    policy: Policy,
    /// Most of what is delivered is refused.
    refused: bool,
    /// What each transaction did, in order: the first has sequence 1.
    effects: Vec<Vec<Effect>>,
    durable: usize,
    /// Before which transaction the first purge began whose traces may still be seen.
    purged_from: Option<usize>,
    /// What is older may be gone since then: sessions, and audit events.
    purged_before: (Timestamp, Timestamp),
    /// Every id that was given out.
    given: HashSet<u64>,
    /// What happened, for whoever has to find out why.
    story: Vec<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let encrypt = random.one_in(4);
        let segment_size = [4 << 10, 16 << 10, 64 << 10][random.below(3) as usize];
        let window = [4, 16, 1 << 14][random.below(3) as usize];
        let on_suspend = [OnSuspend::HoldKey, OnSuspend::Pass, OnSuspend::HoldItem][random.below(3) as usize];
        let policy = Policy { pool: PoolSize::Limited(4), ordered: random.one_in(2), on_suspend };
        let refused = random.one_in(2);
        World {
            random,
            window,
            policy,
            refused,
            files: SimFiles::new(),
            clock: manual_clock(),
            encrypt,
            segment_size,
            effects: Vec::new(),
            durable: 0,
            purged_from: None,
            purged_before: (Timestamp::MIN, Timestamp::MIN),
            given: HashSet::new(),
            story: Vec::new(),
        }
    }

    /// Somebody deletes the index while the store is closed: it costs its rebuild.
    fn delete_index(&mut self) {
        self.story.push("the index is deleted".to_owned());
        self.files.set_faults(Faults::default());
        let folder = Path::new("/store/index");
        for name in self.files.list(folder).unwrap() {
            self.files.remove(&folder.join(name)).unwrap();
        }
        self.files.sync_dir(folder).unwrap();
    }

    fn open(&self) -> Result<Store, OpenError> {
        let options = Options {
            segment_size: self.segment_size,
            window: self.window,
            memory: 64 << 10,
            min_free: Some(0),
            key: self.key(),
            encrypt_bodies: self.encrypt,
            pace: Duration::from_millis(1),
            ..Options::new("/store")
        };
        Store::open(options, self.clock.clone(), Arc::new(self.files.clone()))
    }

    /// What a crash leaves is no damage to whoever looks at it without opening it.
    fn is_sound(&self) {
        let keys = Keys { key: self.key(), old: Vec::new() };
        match check(&self.files, Path::new("/store"), &keys) {
            Ok(report) => {
                assert!(report.is_sound(), "{:#?} after {:#?}", report.problems, self.story);
                let there = usize::try_from(report.counts.transactions).unwrap();
                let begun = self.files.list(Path::new("/store/journal")).unwrap();
                let whole = begun.contains(&"0000000001.seg".to_owned());
                assert!(
                    !whole || there >= self.durable,
                    "{there} of {} are there: {:#?}",
                    self.durable,
                    self.story
                );
            }
            // It was cut before there was anything.
            Err(OfflineError::NoStore { .. }) => assert_eq!(self.durable, 0),
            Err(error) => panic!("{error}"),
        }
    }

    fn key(&self) -> Option<Secret> {
        self.encrypt.then(|| Secret::new("ab".repeat(32)))
    }

    /// Works until the disk fails (`true`) or enough has been done.
    async fn work(&mut self, store: &Store, steps: u64) -> bool {
        let mut purging = None;
        let mut failed = self.work_beside(store, steps, &mut purging).await;
        if let Some(purging) = purging {
            let (purge, purged) = purging.await.unwrap();
            failed |= self.purged(store, purge, purged).await;
        }
        self.keep_up(store);
        failed
    }

    async fn work_beside(&mut self, store: &Store, steps: u64, purging: &mut Option<Purging>) -> bool {
        let mut leases: Vec<Lease> = Vec::new();
        for _ in 0..steps {
            if purging.is_none() && self.random.one_in(20) {
                *purging = Some(self.purge(store));
            }
            if purging.as_ref().is_some_and(JoinHandle::is_finished)
                && let Some(purging) = purging.take()
            {
                let (purge, purged) = purging.await.unwrap();
                if self.purged(store, purge, purged).await {
                    return true;
                }
            }
            if self.random.one_in(8) {
                self.clock.advance(Duration::from_secs(self.random.below(60)));
            }
            let (ops, effects) = self.step(store, &mut leases);
            let Ok(permit) = store.reserve(Class::Completion, 0).await else { return true };
            let committed = match store.submit(permit, Transaction::new(ops)) {
                Ok(committed) => committed,
                // What is not in memory cannot be read back from a disk that is gone.
                Err(_) if self.files.has_failed() => return true,
                Err(conflict) => panic!("{conflict:?}: {:#?}", self.story),
            };
            // What is in between, the purge has written.
            self.effects.resize(usize::try_from(committed.sequence).unwrap() - 1, Vec::new());
            self.effects.push(effects);
            if self.random.one_in(3) {
                match store.durable(committed.sequence).await {
                    Ok(receipt) => self.durable = usize::try_from(receipt.sequence()).unwrap(),
                    Err(_) => return true,
                }
            }
        }
        false
    }

    fn step(&mut self, store: &Store, leases: &mut Vec<Lease>) -> (Vec<Op>, Vec<Effect>) {
        match self.random.below(12) {
            0..=4 => self.receive(store),
            10.. => self.act(store),
            5..=7 => {
                let target = TARGETS[self.random.below(2) as usize];
                leases.extend(
                    store.take(&item(target), Lanes::Requests, 3).iter().map(|delivery| delivery.lease),
                );
                if leases.is_empty() {
                    return self.receive(store);
                }
                let lease = leases.swap_remove(self.random.below(leases.len() as u64) as usize);
                let to =
                    [Status::Completed, Status::Completed, Status::Queued, Status::Suspended, Status::Error];
                let to = to[self.random.below(5) as usize];
                let refused = self.refused && !self.random.one_in(4);
                let to = if refused { Status::Suspended } else { to };
                let mut transition = Transition::new(lease.id, Guard::Lease(lease), to);
                if to != Status::Completed {
                    transition.error = Some(Some(Fault::new("call", "500", "failed").with_detail("foreign")));
                }
                (
                    vec![Op::Transition(transition)],
                    vec![Effect::Moved { id: lease.id.0, to, at: self.clock.now() }],
                )
            }
            8 => {
                let key = format!("key {}", self.random.below(4));
                let value = (!self.random.one_in(4)).then(|| self.text());
                let op = Op::Keep(KeepFamily::ProcessState, key.clone(), value.clone());
                (vec![op], vec![Effect::Kept { key, value }])
            }
            _ => {
                let number = self.effects.len();
                let (text, who) = match self.random.one_in(3) {
                    true => (format!("looked {number}"), Some("anna")),
                    false => (format!("event {number}"), None),
                };
                let mut event = NewEvent::new(Level::Info, "trace", text.clone()).detail("foreign");
                event.who = who.map(str::to_owned);
                if let Some(Effect::Received { id, session, .. }) = self.effects.iter().flatten().next_back()
                {
                    event = event.message(*session, MessageId(*id));
                }
                let (session, at) = (event.session, self.clock.now());
                (vec![Op::Event(event)], vec![Effect::Event { text, session, at }])
            }
        }
    }

    fn text(&mut self) -> Bytes {
        let size = [0, 30, 1000, 5000, 20_000][self.random.below(5) as usize];
        let byte = self.random.below(256) as u8;
        Bytes::from(vec![byte; size])
    }

    fn receive(&mut self, store: &Store) -> (Vec<Op>, Vec<Effect>) {
        let (mut ops, mut effects) = (Vec::new(), Vec::new());
        let text = self.text();
        let body = BodyId(store.next_id());
        assert!(self.given.insert(body.0), "body {body} was given before: {:#?}", self.story);
        ops.push(Op::Body(body, Body::new("ADT^A01", body::HL7, None, text.clone())));
        let mut session = None;
        for target in TARGETS.into_iter().take(1 + self.random.below(2) as usize) {
            let mut header = header(store, "lis", target, self.clock.now());
            header.session = *session.get_or_insert(header.session);
            header.body_id = Some(body);
            header.size = text.len() as u64;
            header.keys = [("mrn".into(), "4711".to_owned())].into();
            header.order_keys = order_keys(header.id.0);
            let id = header.id.0;
            assert!(self.given.insert(id), "id {id} was given before: {:#?}", self.story);
            let session = header.session;
            ops.push(Op::Header(Box::new(header)));
            let (text, at) = (text.clone(), self.clock.now());
            effects.push(Effect::Received { id, session, body: body.0, text, target, at });
        }
        (ops, effects)
    }

    /// Checks what a reopened store holds, and takes that as the truth from here on.
    async fn check(&mut self, store: &Store) {
        let k = usize::try_from(store.0.shared.durable.synced()).unwrap();
        let (durable, story) = (self.durable, &self.story);
        assert!(k >= durable, "transaction {durable} was called durable, but only {k} are there: {story:#?}");
        assert!(k <= self.effects.len(), "{k} transactions are there, {} were made", self.effects.len());
        self.effects.truncate(k);
        self.durable = k;
        // A purge that was cut short may have taken something.
        let Some((messages, events)) = self.missing(store, &Model::of(&self.effects)).await else {
            return self.keep_up(store);
        };
        if let Some(last) = self.effects.last_mut() {
            last.push(Effect::Purged { messages, events });
        }
        (self.purged_from, self.purged_before) = (None, (Timestamp::MIN, Timestamp::MIN));
        let expected = Model::of(&self.effects);
        let mut found = Model::default();
        for header in store.search(&MessageFilter::default(), None, 1_000_000).await.unwrap().entries {
            let body = header.body_id.unwrap();
            let bytes = store.body(body).await.unwrap().bytes().clone();
            assert_eq!(&*header.keys[0].1, "4711");
            let target = TARGETS.into_iter().find(|target| header.target == Some(item(target))).unwrap();
            found.messages.insert(header.id.0, (target, header.status, body.0, bytes));
        }
        found.kept = store.scan(KeepFamily::ProcessState, "").into_iter().collect();
        let events = store.events(&EventFilter::default(), None, 1_000_000).unwrap().entries;
        // Not what the store says of its index.
        let ours = events.into_iter().rev().filter(|event| event.kind == "trace");
        found.events = ours.map(|event| (event.text, event.at)).collect();
        assert!(
            expected.messages == found.messages,
            "messages differ: {:?} {:?} {:#?}",
            brief(&expected),
            brief(&found),
            self.story
        );
        assert_eq!(expected.kept, found.kept, "{:#?}", self.story);
        assert_eq!(expected.events, found.events, "{:#?}", self.story);
        let done = |target| expected.done.get(target).copied().unwrap_or_default();
        for target in TARGETS {
            let of =
                |status: Status| expected.messages.values().filter(move |m| m.0 == target && m.1 == status);
            let counts = store.counts(&item(target));
            let suspended = of(Status::Suspended).count() as u64;
            assert_eq!((counts.queued, counts.suspended), (of(Status::Queued).count() as u64, suspended));
            assert_eq!((counts.completed, counts.errors), done(target));
            let head = store
                .queues()
                .into_iter()
                .find(|queue| queue.item == item(target))
                .and_then(|queue| queue.head);
            let oldest = expected.messages.iter().find(|(_, m)| m.0 == target && m.1 == Status::Queued);
            assert_eq!(head.map(|head| head.id), oldest.map(|(id, _)| MessageId(*id)));
        }
        for target in TARGETS {
            self.schedules(store, &expected, target);
        }
        assert!(self.given.insert(store.next_id()), "{:#?}", self.story);
        self.keep_up(store);
    }

    /// What the store said of its index are transactions of its own.
    fn keep_up(&mut self, store: &Store) {
        let made = usize::try_from(store.state().sequence).unwrap();
        self.effects.resize(made.max(self.effects.len()), Vec::new());
    }
}

async fn lives(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..4 {
        let rebuilds = world.random.one_in(4);
        if rebuilds {
            world.delete_index();
        }
        let power = Some(world.random.below(400));
        let sync = world.random.one_in(4).then(|| world.random.below(60));
        // Now and then somebody else has filled the disk while the store was closed.
        let full =
            (!rebuilds && world.random.one_in(4)).then(|| world.files.used() + world.random.below(2048));
        world.files.set_faults(Faults { power, sync, capacity: full, ..Faults::default() });
        world.story.push(format!("power {power:?}, sync {sync:?}, capacity {full:?}"));
        let steps = 1 + world.random.below(200);
        if let Ok(store) = world.open() {
            world.check(&store).await;
            world.story.push(format!("opened with {}", world.durable));
            if full.is_some() {
                let power = Some(world.random.below(400));
                world.files.set_faults(Faults { power, sync, ..Faults::default() });
            }
            let failed = world.work(&store, steps).await;
            world.story.push(format!(
                "failed {failed}, durable {} of {}",
                world.durable,
                world.effects.len()
            ));
            if !failed && world.random.one_in(2) {
                match store.close().await {
                    // All of it is durable, unless the power went before.
                    Ok(()) => world.durable = world.effects.len(),
                    Err(_) => world.story.push("not closed".to_owned()),
                }
                world.story.push("closed".to_owned());
            }
            // What was on its way is finished or fails, as the disk has it.
            drop(store);
        }
        // That takes time: ids that were given out while nothing could be written depend on it.
        world.clock.advance(Duration::from_secs(60));
        // Either the process was restarted and the page cache is still there, or the power went.
        world.files = match world.random.one_in(4) {
            true => world.files.restart(),
            false => world.files.cut(&mut world.random),
        };
        world.story.push("restarted or cut".to_owned());
        world.is_sound();
        let store = world.open().unwrap();
        world.check(&store).await;
        drop(store);
        world.story.push(format!("opened again with {}", world.durable));
        world.clock.advance(Duration::from_secs(60));
        // What a restart has shown must survive the next power cut: nothing else made it durable.
        world.files = world.files.cut(&mut world.random);
        let store = world.open().unwrap();
        world.check(&store).await;
        drop(store);
        world.clock.advance(Duration::from_secs(60));
    }
}

/// Each seed is four lives of one store, each with up to two cuts: some thousand schedules in all.
#[test]
fn every_life_ends_with_a_prefix_that_holds_all_that_was_durable() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SEPTET_POWER_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = number("SEPTET_POWER_FROM").unwrap_or(0);
            from..from + number("SEPTET_POWER_ROUNDS").unwrap_or(300)
        }
    };
    let next = AtomicU64::new(seeds.start);
    let lane = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let run = std::panic::AssertUnwindSafe(|| runtime.block_on(lives(seed)));
            if let Err(panic) = std::panic::catch_unwind(run) {
                eprintln!("failed with SEPTET_POWER_SEED={seed}");
                next.store(seeds.end, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(lane);
        }
    });
}

#[tokio::test]
async fn random_work_on_a_memory_store_agrees_with_the_model() {
    for seed in 0..30 {
        let mut world = World::new(seed);
        let store = Store::memory(world.clock.clone());
        world.work(&store, 300).await;
        // A memory store still shows what is delivered.
        for header in store.search(&MessageFilter::default(), None, 10_000).await.unwrap().entries {
            if let Some(lease) = store.fence(header.id) {
                assert!(store.release(lease));
            }
        }
        world.check(&store).await;
        assert_eq!(world.durable, world.effects.len());
    }
}
