//! Random work on a disk that fails at a random moment, several lives in a row. After each the store must
//! hold exactly the transactions 1 to k, for a k that is not below anything it called durable; every body
//! byte for byte; queues in order; and no id twice. Purges run beside the work: what they take is finished and
//! goes whole, and what they said is gone stays gone. Now and then somebody deletes the index, so that it is
//! made again while all this goes on.
//!
//! `SEPTET_POWER_ROUNDS` sets how many seeds are tried, `SEPTET_POWER_SEED` tries one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::sim::{Faults, Random, SimFiles};
use super::support::{header, item, manual_clock};
use crate::body::{self, Body};
use crate::clock::ManualClock;
use crate::config::settings::Secret;
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::files::Files as _;
use crate::header::Status;
use crate::host::{Keep as _, KeepFamily};
use crate::id::{BodyId, MessageId, SessionId};
use crate::store::offline::{Keys, OfflineError, check};
use crate::store::{
    Class, EventFilter, Guard, Lanes, Lease, MessageFilter, Op, OpenError, Options, Purge, PurgeError,
    Purged, Store, Transaction, Transition,
};

/// What one transaction did, as a simple model sees it.
#[derive(Clone, Debug)]
enum Effect {
    Received {
        id: u64,
        session: SessionId,
        body: u64,
        text: Bytes,
        target: &'static str,
    },
    Moved {
        id: u64,
        to: Status,
    },
    Kept {
        key: String,
        value: Option<Bytes>,
    },
    Event {
        text: String,
    },
    /// A purge took these.
    Purged {
        messages: Vec<u64>,
        events: Vec<String>,
    },
}

/// What should be there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Model {
    messages: BTreeMap<u64, (&'static str, Status, u64, Bytes)>,
    sessions: BTreeMap<u64, SessionId>,
    kept: BTreeMap<String, Bytes>,
    events: Vec<String>,
    /// Completed and failed at each target, also what has been purged since.
    done: BTreeMap<&'static str, (u64, u64)>,
}

impl Model {
    fn of(effects: &[Vec<Effect>]) -> Model {
        let mut model = Model::default();
        for effect in effects.iter().flatten().cloned() {
            match effect {
                Effect::Received { id, session, body, text, target } => {
                    model.sessions.insert(id, session);
                    model.messages.insert(id, (target, Status::Queued, body, text));
                }
                Effect::Moved { id, to } => {
                    let message = model.messages.get_mut(&id).unwrap();
                    message.1 = to;
                    let done = model.done.entry(message.0).or_default();
                    done.0 += u64::from(to == Status::Completed);
                    done.1 += u64::from(to == Status::Error);
                }
                Effect::Kept { key, value: Some(value) } => {
                    model.kept.insert(key, value);
                }
                Effect::Kept { key, value: None } => {
                    model.kept.remove(&key);
                }
                Effect::Event { text } => model.events.push(text),
                Effect::Purged { messages, events } => {
                    messages.iter().for_each(|id| drop(model.messages.remove(id)));
                    model.events.retain(|text| !events.contains(text));
                }
            }
        }
        model
    }
}

const TARGETS: [&str; 2] = ["out", "other"];

/// A purge beside the work.
type Purging = JoinHandle<Result<Purged, PurgeError>>;

/// One store over several lives.
struct World {
    random: Random,
    files: SimFiles,
    clock: Arc<ManualClock>,
    encrypt: bool,
    segment_size: u64,
    window: usize,
    /// What each transaction did, in order: the first has sequence 1.
    effects: Vec<Vec<Effect>>,
    durable: usize,
    /// Before which transaction the first purge began whose traces may still be seen.
    purged_from: Option<usize>,
    highest_id: u64,
    /// What happened, for whoever has to find out why.
    story: Vec<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let encrypt = random.one_in(4);
        let segment_size = [4 << 10, 16 << 10, 64 << 10][random.below(3) as usize];
        let window = [4, 16, 1 << 14][random.below(3) as usize];
        World {
            random,
            window,
            files: SimFiles::new(),
            clock: manual_clock(),
            encrypt,
            segment_size,
            effects: Vec::new(),
            durable: 0,
            purged_from: None,
            highest_id: 0,
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
            let purged = purging.await.unwrap();
            failed |= self.purged(store, purged).await;
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
                && self.purged(store, purging.await.unwrap()).await
            {
                return true;
            }
            let (ops, effects) = self.step(store, &mut leases);
            let Ok(permit) = store.reserve(Class::Completion, 0).await else { return true };
            let committed = store.submit(permit, Transaction::new(ops)).unwrap();
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

    /// Begins to purge everything that is finished, beside the work.
    fn purge(&mut self, store: &Store) -> Purging {
        self.purged_from.get_or_insert(self.effects.len());
        let purge = match self.random.below(4) {
            0 => Purge::down_to(self.segment_size * 3),
            1 => Purge { roll_before: Timestamp::MIN, ..Purge::before(Timestamp::MAX) },
            _ => Purge::before(Timestamp::MAX),
        };
        self.story.push(format!("purge at {}: {purge:?}", self.effects.len()));
        let store = store.clone();
        tokio::spawn(async move { store.purge(purge).await })
    }

    /// What a purge took before it ended well is gone for good. `true` when the disk has failed.
    async fn purged(&mut self, store: &Store, purged: Result<Purged, PurgeError>) -> bool {
        self.story.push(format!("{purged:?} at {}", self.effects.len()));
        let purged = match purged {
            Ok(purged) => purged,
            Err(error) => return error != PurgeError::Memory,
        };
        if purged.messages == 0 && purged.segments == 0 {
            return false;
        }
        self.durable = self.durable.max(usize::try_from(store.0.shared.durable.synced()).unwrap());
        self.effects.resize(self.effects.len().max(self.durable), Vec::new());
        let Some((messages, events)) = self.missing(store, &Model::of(&self.effects)).await else {
            return true;
        };
        assert!(messages.len() as u64 >= purged.messages, "{purged:?} and {messages:?} are gone");
        if let Some(last) = self.durable.checked_sub(1) {
            self.effects[last].push(Effect::Purged { messages, events });
        }
        false
    }

    /// What a purge has taken of what there was; `None` when the disk has failed while the index was made again.
    async fn missing(&self, store: &Store, expected: &Model) -> Option<(Vec<u64>, Vec<String>)> {
        while store.search(&MessageFilter::default(), None, 1).await.unwrap().lag_ms > 0 {
            if self.files.has_failed() {
                return None;
            }
            // On a full disk it waits until somebody makes room.
            self.files.make_room();
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        if self.files.has_failed() {
            return None;
        }
        let there = store.search(&MessageFilter::default(), None, 1_000_000).await.unwrap().entries;
        let there: BTreeSet<u64> = there.iter().map(|header| header.id.0).collect();
        let messages = expected.messages.iter().filter(|(id, _)| !there.contains(id));
        let messages: Vec<u64> = messages
            .map(|(id, message)| {
                assert!(message.1.is_final(), "{id} was {:?} and is gone: {:#?}", message.1, self.story);
                *id
            })
            .collect();
        let there = store.events(&EventFilter::default(), None, 1_000_000).unwrap().entries;
        let there: BTreeSet<String> = there.into_iter().map(|event| event.text).collect();
        let events = expected.events.iter().filter(|text| !there.contains(*text));
        let events: Vec<String> = events
            .map(|text| {
                assert!(!text.contains("looked"), "{text} is an audit event and gone: {:#?}", self.story);
                text.clone()
            })
            .collect();
        let may = self.purged_from.is_some_and(|from| from < self.effects.len());
        assert!(may || (messages.is_empty() && events.is_empty()), "nothing was purged: {:#?}", self.story);
        for id in &messages {
            assert_eq!(store.header(MessageId(*id)), None);
            let session = expected.sessions[id];
            assert!(store.session(session).is_empty(), "half of {session:?} is gone: {:#?}", self.story);
            assert!(store.session_events(session).iter().all(|event| event.who.is_some()));
        }
        Some((messages, events))
    }

    fn step(&mut self, store: &Store, leases: &mut Vec<Lease>) -> (Vec<Op>, Vec<Effect>) {
        match self.random.below(10) {
            0..=4 => self.receive(store),
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
                let mut transition = Transition::new(lease.id, Guard::Lease(lease), to);
                if to != Status::Completed {
                    transition.error = Some(Some(Fault::new("call", "500", "failed").with_detail("foreign")));
                }
                (vec![Op::Transition(transition)], vec![Effect::Moved { id: lease.id.0, to }])
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
                (vec![Op::Event(event)], vec![Effect::Event { text }])
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
        ops.push(Op::Body(body, Body::new("ADT^A01", body::HL7, None, text.clone())));
        let mut session = None;
        for target in TARGETS.into_iter().take(1 + self.random.below(2) as usize) {
            let mut header = header(store, "lis", target, jiff::Timestamp::UNIX_EPOCH);
            header.session = *session.get_or_insert(header.session);
            header.body_id = Some(body);
            header.size = text.len() as u64;
            header.keys = [("mrn".into(), "4711".to_owned())].into();
            let id = header.id.0;
            assert!(id > self.highest_id, "id {id} was given before");
            self.highest_id = id;
            let session = header.session;
            ops.push(Op::Header(Box::new(header)));
            effects.push(Effect::Received { id, session, body: body.0, text: text.clone(), target });
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
        self.purged_from = None;
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
        found.events = ours.map(|event| event.text).collect();
        assert!(
            expected.messages == found.messages,
            "messages differ: {:?} {:?}",
            brief(&expected),
            brief(&found)
        );
        assert_eq!(expected.kept, found.kept);
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
        self.highest_id = self.highest_id.max(store.next_id());
        self.keep_up(store);
    }

    /// What the store said of its index are transactions of its own.
    fn keep_up(&mut self, store: &Store) {
        let made = usize::try_from(store.state().sequence).unwrap();
        self.effects.resize(made.max(self.effects.len()), Vec::new());
    }
}

fn brief(model: &Model) -> Vec<(u64, &'static str, Status, usize)> {
    model.messages.iter().map(|(id, m)| (*id, m.0, m.1, m.3.len())).collect()
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
        // What a restart has shown must survive the next power cut: nothing else made it durable.
        world.files = world.files.cut(&mut world.random);
        let store = world.open().unwrap();
        world.check(&store).await;
    }
}

#[test]
fn every_life_ends_with_a_prefix_that_holds_all_that_was_durable() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SEPTET_POWER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEPTET_POWER_ROUNDS").unwrap_or(200),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| runtime.block_on(lives(seed)));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("failed with SEPTET_POWER_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
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
