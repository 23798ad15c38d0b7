//! Searches of every kind over all that is stored: each filter alone and with others, rare and frequent
//! values, what is nowhere, what is only among the oldest, first and deep pages.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use septet_engine::header::{Kind, Status};
use septet_engine::id::SessionId;
use septet_engine::store::{MessageFilter, Store};

use super::Outcome;
use super::load::{Traits, scattered};

const PAGE: usize = 50;
const ROUNDS: u64 = 100;

/// A filter and where it begins.
type Search = (MessageFilter, Option<u64>);

/// What filters are made of.
struct World {
    stored: u64,
    /// The newest id.
    newest: u64,
    oldest: Timestamp,
    youngest: Timestamp,
}

impl World {
    fn message(&self, seed: u64) -> Traits {
        Traits::of(scattered(seed) % self.stored)
    }

    /// A second at random.
    fn moment(&self, seed: u64) -> (Timestamp, Timestamp) {
        let span = self.youngest.duration_since(self.oldest).as_micros().max(1);
        let after = i64::try_from(u128::from(scattered(seed)) % span.unsigned_abs()).unwrap_or(0);
        let from = self.oldest.saturating_add(SignedDuration::from_micros(after)).unwrap_or(self.oldest);
        (from, from.saturating_add(SignedDuration::from_secs(1)).unwrap_or(from))
    }
}

/// What a filter can be made narrower by; `seed` chooses among its values.
type Narrow = fn(&World, u64, MessageFilter) -> MessageFilter;

fn with_key(mut filter: MessageFilter, name: &str, value: String) -> MessageFilter {
    filter.keys.push((name.to_owned(), value));
    filter
}

/// Values that are frequent, each in every file, and together only in the oldest messages.
const FREQUENT: [(&str, Narrow); 5] = [
    ("type", |_, _, filter| MessageFilter { type_name: Some("ADT^A07".to_owned()), ..filter }),
    ("target", |_, _, filter| MessageFilter { target: Some("target3".to_owned()), ..filter }),
    ("status", |_, _, filter| MessageFilter { status: vec![Status::Error], ..filter }),
    ("key of a third", |_, _, filter| with_key(filter, "site", "1".to_owned())),
    ("key of a tenth", |_, _, filter| with_key(filter, "ward", "9".to_owned())),
];

/// Values that few messages have.
const RARE: [(&str, Narrow); 6] = [
    ("rare key", |world, seed, filter| with_key(filter, "mrn", world.message(seed).mrn())),
    ("control id", |world, seed, filter| {
        let control_id = Some(world.message(seed).control_id());
        MessageFilter { control_id, ..filter }
    }),
    ("session", |world, seed, filter| {
        let session = Some(SessionId(scattered(seed) % world.newest));
        MessageFilter { session, ..filter }
    }),
    ("rare type", |_, _, filter| MessageFilter { type_name: Some("ADT^A99".to_owned()), ..filter }),
    ("second", |world, seed, filter| {
        let (from, to) = world.moment(seed);
        MessageFilter { from: Some(from), to: Some(to), ..filter }
    }),
    ("first second", |world, _, filter| {
        let to = world.oldest.saturating_add(SignedDuration::from_secs(1)).ok();
        MessageFilter { to, ..filter }
    }),
];

/// Values that nothing has.
const NOWHERE: [(&str, Narrow); 6] = [
    ("absent key", |_, seed, filter| with_key(filter, "mrn", format!("none{seed}"))),
    ("absent control id", |_, seed, filter| MessageFilter {
        control_id: Some(format!("no{seed}")),
        ..filter
    }),
    ("absent status", |_, _, filter| MessageFilter { status: vec![Status::Aborted], ..filter }),
    ("unfinished", |_, _, filter| MessageFilter { status: vec![Status::Queued], ..filter }),
    ("absent item", |_, _, filter| MessageFilter { source: Some("nobody".to_owned()), ..filter }),
    ("absent kind", |_, _, filter| MessageFilter { kind: Some(Kind::Response), ..filter }),
];

/// Values that most messages have.
const USUAL: [(&str, Narrow); 3] = [
    ("usual status", |_, _, filter| MessageFilter { status: vec![Status::Completed], ..filter }),
    ("usual source", |_, _, filter| MessageFilter { source: Some("lis".to_owned()), ..filter }),
    ("since the middle", |world, _, filter| {
        let half = world.youngest.duration_since(world.oldest) / 2;
        MessageFilter { from: world.oldest.saturating_add(half).ok(), ..filter }
    }),
];

/// Runs all searches; the worst p99 in milliseconds.
pub(crate) async fn all(store: &Store, stored: u64) -> Outcome<f64> {
    let newest = store.search(&MessageFilter::default(), None, 1).await?.entries.pop();
    let (newest, youngest) = newest.map_or((1, Timestamp::MAX), |header| (header.id.0, header.created));
    let oldest = store.search(&MessageFilter::default(), Some(newest.min(300)), 1).await?.entries.pop();
    let oldest = oldest.map_or(Timestamp::MIN, |header| header.created);
    let world = World { stored, newest, oldest, youngest };
    let singles = || FREQUENT.iter().chain(&RARE).chain(&NOWHERE).chain(&USUAL);
    let any = || ("newest", (|_, _, filter| filter) as Narrow);
    let mut filters: Vec<Vec<(&str, Narrow)>> = vec![vec![any()]];
    filters.extend(singles().map(|one| vec![*one]));
    for (index, one) in singles().enumerate() {
        filters.extend(singles().skip(index + 1).map(|other| vec![*one, *other]));
    }
    for (index, one) in FREQUENT.iter().enumerate() {
        for (next, other) in FREQUENT.iter().enumerate().skip(index + 1) {
            let rest = FREQUENT.iter().skip(next + 1).chain(&RARE).chain(&USUAL);
            filters.extend(rest.map(|third| vec![*one, *other, *third]));
        }
    }
    let mut worst: Vec<(f64, String)> = Vec::new();
    for (index, parts) in filters.iter().enumerate() {
        let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
        let alone = parts.len() == 1;
        for deep in [false, true] {
            let name = format!("{}{}", names.join(" + "), if deep { ", from anywhere" } else { "" });
            let search = |seed: u64| -> Search {
                let filter = parts
                    .iter()
                    .fold(MessageFilter::default(), |filter, (_, narrow)| narrow(&world, seed, filter));
                (filter, deep.then(|| scattered(!seed) % world.newest))
            };
            let rounds = if alone { ROUNDS } else { ROUNDS / 4 };
            let times = measure(store, rounds, &search).await?;
            if alone {
                println!("{}", times.line(&name));
            }
            worst.push((times.at(0.99), times.line(&name)));
        }
        if index > 0 && index % 100 == 0 {
            println!("… {index} of {} filters", filters.len());
        }
    }
    worst.sort_by(|one, other| other.0.total_cmp(&one.0));
    println!("the slowest of {} searches:", worst.len());
    worst.iter().take(40).for_each(|(_, line)| println!("{line}"));
    let slow = worst.iter().filter(|(p99, _)| *p99 >= 20.0).count();
    println!("{slow} have a p99 of 20 ms or more");
    Ok(worst.first().map_or(0.0, |(p99, _)| *p99))
}

/// Searches for what waits in a queue.
pub(crate) async fn waiting(store: &Store) -> Outcome<()> {
    let queued = || MessageFilter { status: vec![Status::Queued], ..MessageFilter::default() };
    let newest = store.search(&queued(), None, 1).await?.entries.pop().map_or(1, |header| header.id.0);
    let filters: [(&str, &dyn Fn(u64) -> Search); 5] = [
        ("queued", &|_| (queued(), None)),
        ("queued, from anywhere", &|seed| (queued(), Some(scattered(seed) % newest))),
        ("queued, of an item", &|_| (MessageFilter { target: Some("idle".to_owned()), ..queued() }, None)),
        ("queued + rare key", &|seed| {
            (with_key(queued(), "mrn", format!("{:08}", scattered(seed) % 100_000)), None)
        }),
        ("queued + absent type", &|_| {
            (MessageFilter { type_name: Some("nothing".to_owned()), ..queued() }, None)
        }),
    ];
    for (name, search) in filters {
        println!("{}", measure(store, ROUNDS, search).await?.line(name));
    }
    Ok(())
}

/// Searches for what is suspended.
pub(crate) async fn aside(store: &Store) -> Outcome<()> {
    let filter = |status| MessageFilter { status: vec![status], ..MessageFilter::default() };
    let newest = store.search(&filter(Status::Suspended), None, 1).await?.entries.pop();
    let newest = newest.map_or(1, |header| header.id.0);
    let filters: [(&str, &dyn Fn(u64) -> Search); 4] = [
        ("suspended", &|_| (filter(Status::Suspended), None)),
        ("suspended, from anywhere", &|seed| (filter(Status::Suspended), Some(scattered(seed) % newest))),
        ("suspended + rare key", &|seed| {
            (with_key(filter(Status::Suspended), "mrn", format!("{:08}", scattered(seed) % 100_000)), None)
        }),
        ("queued", &|_| (filter(Status::Queued), None)),
    ];
    for (name, search) in filters {
        println!("{}", measure(store, ROUNDS, search).await?.line(name));
    }
    Ok(())
}

/// Milliseconds, sorted, and how many messages were found.
struct Times(Vec<f64>, usize);

impl Times {
    fn at(&self, share: f64) -> f64 {
        self.0.get(((self.0.len() - 1) as f64 * share).ceil() as usize).copied().unwrap_or_default()
    }

    fn line(&self, name: &str) -> String {
        let found = self.1 as f64 / self.0.len() as f64;
        format!("{name:<50} {found:>5.1} found, p50 {:>6.2} ms, p99 {:>6.2} ms", self.at(0.5), self.at(0.99))
    }
}

async fn measure(store: &Store, rounds: u64, search: &dyn Fn(u64) -> Search) -> Outcome<Times> {
    let (mut times, mut found) = (Vec::new(), 0);
    for round in 0..rounds {
        let (filter, before) = search(round);
        let began = Instant::now();
        found += store.search(&filter, before, PAGE).await?.entries.len();
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(Times(times, found))
}
