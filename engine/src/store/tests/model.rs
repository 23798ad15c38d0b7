//! Random histories against a simple model, for both implementations: messages over several sessions and
//! segments, deliveries, resends over old bodies, events, kept values; every kind of question in between;
//! clean stops, crashes and power cuts, and an index that somebody deleted. proptest shrinks what fails.
//!
//! `SEPTET_MODEL_CASES` sets how many histories are tried, `PROPTEST_RNG_SEED` which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::sim::{Random, SimFiles};
use super::support::{header, item, manual_clock, until_complete};
use crate::body::{self, Body};
use crate::clock::{Clock as _, ManualClock};
use crate::event::{Level, NewEvent};
use crate::files::Files as _;
use crate::header::{Header, Kind, Status};
use crate::host::{Keep as _, KeepFamily};
use crate::id::{BodyId, EventId, MessageId, SessionId};
use crate::store::{
    Class, EventFilter, Guard, Lanes, Lease, MessageFilter, Op, Options, Purge, PurgeError, ReadError, Store,
    Transaction, Transition,
};

const TARGETS: [&str; 2] = ["out", "other"];
const SOURCES: [&str; 2] = ["lis", "his"];
const TYPES: [&str; 2] = ["ADT^A01", "ORU^R01"];
const ENDS: [Status; 5] =
    [Status::Completed, Status::Completed, Status::Queued, Status::Suspended, Status::Error];

/// One step of a history; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Receive {
        source: u8,
        targets: u8,
        size: u16,
    },
    Take(u8),
    /// Ends what is in flight at a target, perhaps with a response.
    Finish {
        target: u8,
        to: u8,
        respond: bool,
    },
    Resume(u16),
    Resend(u16),
    Event {
        of: u16,
        level: u8,
    },
    Keep {
        key: u8,
        value: Option<u8>,
    },
    Advance(u16),
    Search {
        filter: u16,
        limit: u8,
    },
    Look(u16),
    /// Of what is older than this share of the time that has passed.
    Purge(u8),
    Stop {
        how: u8,
        seed: u16,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (any::<u8>(), any::<u8>(), any::<u16>())
            .prop_map(|(source, targets, size)| Step::Receive { source, targets, size }),
        8 => any::<u8>().prop_map(Step::Take),
        8 => (any::<u8>(), any::<u8>(), any::<bool>())
            .prop_map(|(target, to, respond)| Step::Finish { target, to, respond }),
        2 => any::<u16>().prop_map(Step::Resume),
        2 => any::<u16>().prop_map(Step::Resend),
        2 => (any::<u16>(), any::<u8>()).prop_map(|(of, level)| Step::Event { of, level }),
        2 => (any::<u8>(), any::<Option<u8>>()).prop_map(|(key, value)| Step::Keep { key, value }),
        2 => any::<u16>().prop_map(Step::Advance),
        4 => (any::<u16>(), any::<u8>()).prop_map(|(filter, limit)| Step::Search { filter, limit }),
        3 => any::<u16>().prop_map(Step::Look),
        1 => any::<u8>().prop_map(Step::Purge),
        1 => (any::<u8>(), any::<u16>()).prop_map(|(how, seed)| Step::Stop { how, seed }),
    ]
}

/// What should be there.
#[derive(Clone, Debug, Default)]
struct Model {
    /// As they were created, with their status now.
    headers: BTreeMap<u64, Header>,
    bodies: BTreeMap<u64, Bytes>,
    events: Vec<(Option<SessionId>, Level, String)>,
    kept: BTreeMap<String, Bytes>,
    /// Completed and failed at each target, also what has been purged since.
    done: BTreeMap<&'static str, (u64, u64)>,
    /// Queued, in the order of their places; those in flight and suspended keep theirs.
    order: Vec<u64>,
}

impl Model {
    fn queue(&self, target: &str) -> impl Iterator<Item = &Header> {
        let headers = self.order.iter().map(|id| &self.headers[id]);
        headers.filter(move |header| header.target == Some(item(target)))
    }

    fn next(&self, target: &str) -> Option<MessageId> {
        self.queue(target).find(|header| header.status == Status::Queued).map(|header| header.id)
    }

    fn nth(&self, n: u16) -> Option<&Header> {
        let n = usize::from(n) % self.headers.len().max(1);
        self.headers.values().nth(n)
    }
}

struct World {
    /// `None`: it is in memory.
    files: Option<SimFiles>,
    store: Store,
    clock: Arc<ManualClock>,
    model: Model,
    /// The model after each transaction; the first is the empty one.
    history: Vec<Model>,
    in_flight: BTreeMap<&'static str, Lease>,
}

fn open(files: &SimFiles, clock: &Arc<ManualClock>) -> Store {
    let options = Options {
        segment_size: 8 << 10,
        window: 4,
        memory: 16 << 10,
        min_free: Some(0),
        pace: Duration::from_millis(1),
        ..Options::new("/store")
    };
    Store::open(options, clock.clone(), Arc::new(files.clone())).unwrap()
}

impl World {
    fn new(embedded: bool) -> World {
        let clock = manual_clock();
        let files = embedded.then(SimFiles::new);
        let store = match &files {
            Some(files) => open(files, &clock),
            None => Store::memory(clock.clone()),
        };
        let history = vec![Model::default()];
        World { files, store, clock, model: Model::default(), history, in_flight: BTreeMap::new() }
    }

    async fn commit(&mut self, ops: Vec<Op>) {
        let permit = self.store.reserve(Class::Completion, 0).await.unwrap();
        self.store.submit(permit, Transaction::new(ops)).unwrap();
        self.history.push(self.model.clone());
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Receive { source, targets, size } => self.receive(source, targets, size).await,
            Step::Take(target) => self.take(TARGETS[usize::from(target) % 2]).await,
            Step::Finish { target, to, respond } => {
                self.finish(TARGETS[usize::from(target) % 2], ENDS[usize::from(to) % 5], respond).await;
            }
            Step::Resume(n) => self.resume(n).await,
            Step::Resend(n) => self.resend(n).await,
            Step::Event { of, level } => self.event(of, level).await,
            Step::Keep { key, value } => {
                let key = format!("key {}", key % 4);
                let value = value.map(|byte| Bytes::from(vec![byte; 100]));
                match value.clone() {
                    Some(value) => self.model.kept.insert(key.clone(), value),
                    None => self.model.kept.remove(&key),
                };
                self.commit(vec![Op::Keep(KeepFamily::ProcessState, key, value)]).await;
            }
            Step::Advance(seconds) => self.clock.advance(Duration::from_secs(seconds.into())),
            Step::Search { filter, limit } => self.search(filter, usize::from(limit % 16) + 1).await,
            Step::Look(n) => self.look(n).await,
            Step::Purge(share) => self.purge(share).await,
            Step::Stop { how, seed } => self.stop(how, seed).await,
        }
    }

    async fn receive(&mut self, source: u8, targets: u8, size: u16) {
        let body = BodyId(self.store.next_id());
        let bytes = Bytes::from(vec![size as u8; usize::from(size % 3000)]);
        let type_name = TYPES[usize::from(size) % 2];
        let mut ops = vec![Op::Body(body, Body::new(type_name, body::HL7, None, bytes.clone()))];
        self.model.bodies.insert(body.0, bytes.clone());
        let mut session = None;
        for target in TARGETS.into_iter().take(1 + usize::from(targets % 2)) {
            let source = SOURCES[usize::from(source) % 2];
            let mut header = header(&self.store, source, target, self.clock.now());
            header.session = *session.get_or_insert(header.session);
            header.type_name = type_name.into();
            header.body_id = Some(body);
            header.size = bytes.len() as u64;
            header.keys = [("mrn".into(), format!("M{}", size % 5))].into();
            ops.push(self.add(header));
        }
        self.commit(ops).await;
    }

    fn add(&mut self, header: Header) -> Op {
        if header.kind == Kind::Request {
            self.model.order.push(header.id.0);
        }
        self.model.headers.insert(header.id.0, header.clone());
        Op::Header(Box::new(header))
    }

    async fn take(&mut self, target: &'static str) {
        let expected = match self.in_flight.contains_key(target) {
            true => None,
            false => self.model.next(target),
        };
        let ready = self.store.ready(&item(target));
        let mut taken = self.store.take(&item(target), Lanes::Requests, 2);
        while taken.is_empty() && expected.is_some() {
            // It waits beyond the window, and is on its way.
            let notified = tokio::time::timeout(Duration::from_secs(60), ready.notified()).await;
            notified.unwrap_or_else(|_| panic!("{expected:?} never came into the window of {target}"));
            taken = self.store.take(&item(target), Lanes::Requests, 2);
        }
        assert_eq!(taken.iter().map(|taken| taken.header.id).next(), expected, "the next of {target}");
        assert!(taken.len() < 2);
        if let Some(delivery) = taken.first() {
            self.in_flight.insert(target, delivery.lease);
            let header = self.model.headers.get_mut(&delivery.lease.id.0).unwrap();
            header.status = Status::Delivered;
        }
    }

    async fn finish(&mut self, target: &'static str, to: Status, respond: bool) {
        let Some(lease) = self.in_flight.remove(target) else { return };
        let request = self.model.headers.get_mut(&lease.id.0).unwrap();
        request.status = to;
        let request = request.clone();
        let done = self.model.done.entry(target).or_default();
        done.0 += u64::from(to == Status::Completed);
        done.1 += u64::from(to == Status::Error);
        if to.is_final() {
            self.model.order.retain(|id| *id != request.id.0);
        }
        let mut ops = vec![Op::Transition(Transition::new(lease.id, Guard::Lease(lease), to))];
        if respond && to == Status::Completed {
            let mut response = header(&self.store, target, request.source.as_str(), self.clock.now());
            response.kind = Kind::Response;
            (response.session, response.request_id) = (request.session, Some(request.id));
            (response.status, response.processed) = (Status::Completed, Some(self.clock.now()));
            (response.unsolicited, response.body_id) = (true, request.body_id);
            ops.push(self.add(response));
        }
        self.commit(ops).await;
    }

    async fn resume(&mut self, n: u16) {
        let suspended = self.model.headers.values().filter(|header| header.status == Status::Suspended);
        let ids: Vec<_> = suspended.map(|header| header.id).collect();
        let Some(id) = ids.get(usize::from(n) % ids.len().max(1)) else { return };
        self.model.headers.get_mut(&id.0).unwrap().status = Status::Queued;
        let back = Transition::new(*id, Guard::Status(Status::Suspended), Status::Queued);
        self.commit(vec![Op::Transition(back)]).await;
    }

    async fn resend(&mut self, n: u16) {
        let Some(original) = self.model.nth(n).filter(|header| header.kind == Kind::Request).cloned() else {
            return;
        };
        let mut again = original.clone();
        again.id = MessageId(self.store.next_id());
        again.resent_from = Some(original.id);
        (again.status, again.created) = (Status::Queued, self.clock.now());
        let op = self.add(again);
        self.commit(vec![op]).await;
    }

    async fn event(&mut self, of: u16, level: u8) {
        let level = [Level::Info, Level::Warning, Level::Error][usize::from(level) % 3];
        // Audit events are never purged here.
        let who = of.is_multiple_of(3);
        let text = format!("{} {}", if who { "looked" } else { "event" }, self.history.len());
        let mut event = NewEvent::new(level, "trace", text.clone());
        event.who = who.then(|| "anna".to_owned());
        if let Some(header) = self.model.nth(of).filter(|_| !of.is_multiple_of(4)) {
            event = event.message(header.session, header.id);
        }
        self.model.events.push((event.session, level, text));
        self.commit(vec![Op::Event(event)]).await;
    }

    // --- questions ---

    fn filter(&self, n: u16) -> MessageFilter {
        let mut filter = MessageFilter::default();
        let some = usize::from(n >> 8);
        let header = self.model.nth(n);
        let moment = header.map(|header| header.created);
        match n % 11 {
            0 => filter.status = vec![Status::Completed, Status::Error],
            1 => filter.status = vec![Status::Queued],
            2 => filter.target = Some(TARGETS[some % 2].to_owned()),
            3 => filter.source = Some(SOURCES[some % 2].to_owned()),
            4 => filter.type_name = Some(TYPES[some % 2].to_owned()),
            5 => filter.kind = Some(if some % 2 == 0 { Kind::Request } else { Kind::Response }),
            6 => filter.session = header.map(|header| header.session),
            7 => filter.control_id = header.map(|header| header.control_id.to_string()),
            8 => filter.keys = vec![("mrn".to_owned(), format!("m{}", some % 5))],
            9 => (filter.from, filter.status) = (moment, vec![Status::Suspended, Status::Completed]),
            _ => (filter.to, filter.target) = (moment, Some(TARGETS[some % 2].to_owned())),
        }
        filter
    }

    /// All pages of a search are what the model has.
    async fn search(&self, n: u16, limit: usize) {
        let filter = self.filter(n);
        let matches = |header: &&Header| {
            (filter.status.is_empty() || filter.status.contains(&header.status))
                && filter.target.as_ref().is_none_or(|name| header.target == Some(item(name)))
                && filter.source.as_ref().is_none_or(|name| header.source == item(name))
                && filter.type_name.as_ref().is_none_or(|name| **name == *header.type_name)
                && filter.kind.is_none_or(|kind| kind == header.kind)
                && filter.session.is_none_or(|session| session == header.session)
                && filter.control_id.as_ref().is_none_or(|id| **id == *header.control_id)
                && filter
                    .keys
                    .iter()
                    .all(|(_, value)| header.keys.iter().any(|(_, key)| key.eq_ignore_ascii_case(value)))
                && filter.from.is_none_or(|from| header.created >= from)
                && filter.to.is_none_or(|to| header.created < to)
        };
        let expected: Vec<_> =
            self.model.headers.values().rev().filter(matches).map(|h| (h.id, h.status)).collect();
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let page = self.store.search(&filter, before, limit).await.unwrap();
            assert!(page.entries.len() <= limit);
            found.extend(page.entries.iter().map(|header| (header.id, header.status)));
            match page.next {
                Some(next) => before = Some(next),
                None => break,
            }
        }
        assert_eq!(found, expected, "{filter:?}");
    }

    /// One message, its body and its session.
    async fn look(&self, n: u16) {
        assert_eq!(self.store.header(MessageId(u64::MAX >> 12)), None);
        let Some(expected) = self.model.nth(n) else { return };
        let found = self.store.header(expected.id).unwrap();
        assert_eq!(
            (found.session, found.kind, found.status, found.resent_from, found.request_id),
            (expected.session, expected.kind, expected.status, expected.resent_from, expected.request_id)
        );
        assert_eq!(
            (&found.source, &found.target, &found.control_id, &found.keys, found.created, found.body_id),
            (
                &expected.source,
                &expected.target,
                &expected.control_id,
                &expected.keys,
                expected.created,
                expected.body_id
            )
        );
        assert_eq!(found.processed.is_some(), found.status.is_final());
        let body = expected.body_id.unwrap();
        assert!(self.store.unusable_bodies(&[body].into(), &mut u64::MAX.clone()).is_empty());
        assert_eq!(self.store.body(body).await.unwrap().bytes(), &self.model.bodies[&body.0]);
        let nothing = BodyId(expected.id.0);
        assert_eq!(self.store.body(nothing).await.unwrap_err(), ReadError::Gone(nothing));
        let session = self.store.session(expected.session);
        let members = self.model.headers.values().filter(|header| header.session == expected.session);
        assert_eq!(
            session.iter().map(|header| (header.id, header.status)).collect::<Vec<_>>(),
            members.map(|header| (header.id, header.status)).collect::<Vec<_>>()
        );
        let events = self.model.events.iter().filter(|event| event.0 == Some(expected.session));
        assert_eq!(
            self.store.session_events(expected.session).iter().map(|e| &e.text).collect::<Vec<_>>(),
            events.map(|event| &event.2).collect::<Vec<_>>()
        );
    }

    /// Everything that can be asked without choosing.
    async fn agree(&mut self) {
        for n in 0..11 {
            self.search(n + 256 * 3, 7).await;
        }
        for n in 0..self.model.headers.len() {
            self.look(n as u16).await;
        }
        let kept: BTreeMap<_, _> = self.store.scan(KeepFamily::ProcessState, "").into_iter().collect();
        assert_eq!(kept, self.model.kept);
        for level in [None, Some(Level::Warning)] {
            let filter = EventFilter { level, ..EventFilter::default() };
            let (mut texts, mut before) = (Vec::new(), None);
            loop {
                let page = self.store.events(&filter, before, 5).unwrap();
                // Not that an index which was removed is made again.
                let ours = page.entries.into_iter().filter(|event| event.kind != "store.index");
                texts.extend(ours.map(|event| event.text));
                match page.next {
                    Some(next) => before = Some(EventId(next)),
                    None => break,
                }
            }
            let all = self.model.events.iter().rev();
            let expected = all.filter(|event| level.is_none_or(|level| level == event.1));
            assert_eq!(texts, expected.map(|event| event.2.clone()).collect::<Vec<_>>());
        }
        self.keep_up();
        for target in TARGETS {
            let requests = self
                .model
                .headers
                .values()
                .filter(|header| header.kind == Kind::Request && header.target == Some(item(target)));
            let of = |status| requests.clone().filter(|header| header.status == status).count() as u64;
            let counts = self.store.counts(&item(target));
            assert_eq!(counts.queued, of(Status::Queued) + of(Status::Delivered), "queued at {target}");
            assert_eq!(counts.in_flight, of(Status::Delivered));
            assert_eq!(counts.suspended, of(Status::Suspended));
            let done = self.model.done.get(target).copied().unwrap_or_default();
            assert_eq!((counts.completed, counts.errors), done);
            let queue = self.store.queues().into_iter().find(|queue| queue.item == item(target));
            let mut waiting =
                self.model.queue(target).filter(|header| header.status != Status::Suspended).peekable();
            let head = waiting.peek().map(|header| header.id);
            let depth = waiting.count() as u64;
            assert_eq!(queue.as_ref().map_or(0, |queue| queue.depth), depth, "depth of {target}");
            assert_eq!(queue.and_then(|queue| queue.head).map(|header| header.id), head);
        }
    }

    // --- ends ---

    /// Sessions may go, whole, that are finished and older than the cutoff; nothing else, and nothing by
    /// halves. Which of them do depends on the segments: the model learns it from the store.
    async fn purge(&mut self, share: u8) {
        if self.files.is_none() {
            let purged = self.store.purge(Purge::before(self.clock.now())).await;
            return assert_eq!(purged, Err(PurgeError::Memory));
        }
        let (start, now) = (manual_clock().now(), self.clock.now());
        let before = start + now.duration_since(start) * i32::from(share) / 255;
        let by_size = share.is_multiple_of(4);
        let purge = match by_size {
            true => Purge::down_to(u64::from(share) << 9),
            false => Purge::before(before),
        };
        let counted = self.store.purge(Purge { dry_run: true, ..purge }).await.unwrap();
        let purged = self.store.purge(purge).await.unwrap();
        // By size what is carried counts, which a dry run can only estimate.
        assert!(by_size || counted == purged, "what a dry run says is what goes: {counted:?} {purged:?}");
        let gone: BTreeSet<SessionId> = self.model.headers.values().map(|header| header.session).collect();
        let gone: BTreeSet<SessionId> =
            gone.into_iter().filter(|session| self.store.session(*session).is_empty()).collect();
        assert_eq!(purged.sessions as usize, gone.len(), "{purged:?} of {gone:?}");
        let messages = self.model.headers.values().filter(|header| gone.contains(&header.session));
        assert_eq!(purged.messages as usize, messages.count(), "{purged:?} of {gone:?}");
        for header in self.model.headers.values().filter(|header| gone.contains(&header.session)) {
            assert!(header.status.is_final(), "{} was {:?} and is purged", header.id, header.status);
            assert!(by_size || header.created < before, "{} is younger than {before}", header.id);
            assert_eq!(self.store.header(header.id), None);
        }
        for session in &gone {
            let left = self.store.session_events(*session);
            assert!(left.iter().all(|event| event.who.is_some()), "events of {session:?} without it");
        }
        let events = self.store.events(&EventFilter::default(), None, 10_000).unwrap().entries;
        let events: BTreeSet<String> = events.into_iter().map(|event| event.text).collect();
        for (session, _, text) in &self.model.events {
            let may_go = session.is_none_or(|session| gone.contains(&session));
            let may_go = may_go && !text.contains("looked");
            assert!(events.contains(text) || may_go, "{text} of {session:?} is gone");
        }
        for model in self.history.iter_mut().chain([&mut self.model]) {
            model.headers.retain(|_, header| !gone.contains(&header.session));
            model.events.retain(|(_, _, text)| events.contains(text));
        }
        self.keep_up();
        self.agree().await;
    }

    /// What a purge writes, and what the store says of its index, are transactions of its own.
    fn keep_up(&mut self) {
        while self.history.len() <= usize::try_from(self.store.state().sequence).unwrap() {
            self.history.push(self.model.clone());
        }
    }

    async fn stop(&mut self, how: u8, seed: u16) {
        let Some(files) = &self.files else { return };
        let mut random = Random(seed.into());
        let clean = how.is_multiple_of(4);
        if clean {
            self.store.close().await.unwrap();
        }
        let durable = match clean {
            true => self.history.len() - 1,
            false => usize::try_from(self.store.0.shared.durable.synced()).unwrap(),
        };
        // The old store is gone before the new one opens; what was on its way is finished or forgotten.
        self.store = Store::memory(self.clock.clone());
        let files = match how % 4 {
            0 | 1 => files.restart(),
            _ => files.cut(&mut random),
        };
        if how % 8 >= 6 {
            // Somebody deleted the index: it is derived, and costs only its rebuild.
            let index = Path::new("/store/index");
            for name in files.list(index).unwrap_or_default() {
                files.remove(&index.join(name)).unwrap();
            }
        }
        self.store = open(&files, &self.clock);
        self.files = Some(files);
        until_complete(&self.store).await;
        let there = usize::try_from(self.store.0.shared.durable.synced()).unwrap();
        assert!(
            (durable..self.history.len()).contains(&there),
            "{there} of {durable}..{}",
            self.history.len()
        );
        self.history.truncate(there + 1);
        self.model = self.history[there].clone();
        self.in_flight.clear();
        for model in self.history.iter_mut().chain([&mut self.model]) {
            for header in model.headers.values_mut() {
                if header.status == Status::Delivered {
                    header.status = Status::Queued;
                }
            }
        }
        self.agree().await;
    }
}

async fn live(steps: &[Step], embedded: bool) {
    let mut world = World::new(embedded);
    for step in steps {
        world.step(step).await;
    }
    world.agree().await;
    world.stop(0, 0).await;
}

#[test]
fn any_history_reads_as_the_model_has_it() {
    let cases = std::env::var("SEPTET_MODEL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    proptest!(config, |(steps in vec(step(), 1..200), embedded in prop::bool::weighted(0.8))| {
        runtime.block_on(live(&steps, embedded));
    });
}
