//! Messages by their numbers, received and delivered.
//!
//! Some values are frequent, but never together, except in the first [`OLD`] messages: type `ADT^A07`, target
//! `target3`, site 1 with ward 9, and status error. To look for two of them is the worst that a search can
//! meet: each file has many of either.

use std::sync::Arc;

use bytes::Bytes;
use septet_engine::body::{self, Body};
use septet_engine::config::settings::{OnSuspend, PoolSize};
use septet_engine::fault::Fault;
use septet_engine::header::{Header, Kind, ReplyTo, Status};
use septet_engine::host::KeepFamily;
use septet_engine::id::{BodyId, ItemName, MessageId, SessionId};
use septet_engine::queue::Policy;
use septet_engine::store::{Class, Guard, Lanes, MessageFilter, Op, Store, Transaction, Transition};
use tokio::runtime::Runtime;

use super::Outcome;

pub(crate) const WRITERS: u64 = 64;
/// The first messages, unlike all others.
pub(crate) const OLD: u64 = 2000;
/// Who suspends what it gets; its messages have an order key each.
pub(crate) const REFUSER: &str = "refuser";
const TARGETS: u64 = 8;
/// Taken at once, as an item with a pool does.
const TOGETHER: usize = 64;

/// What is different from message to message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traits {
    pub(crate) number: u64,
    pub(crate) target: u64,
    pub(crate) type_number: u64,
    pub(crate) site: u64,
    pub(crate) ward: u64,
    pub(crate) error: bool,
}

impl Traits {
    pub(crate) fn of(number: u64) -> Traits {
        if number < OLD {
            return Traits { number, target: 3, type_number: 7, site: 1, ward: 9, error: true };
        }
        let random = scattered(number);
        let mut traits = Traits {
            number,
            target: random & 7,
            type_number: random >> 8 & 15,
            site: (random >> 16) % 3,
            ward: (random >> 24) % 10,
            error: (random >> 32).is_multiple_of(50),
        };
        // Of these each message has one at most.
        let mut taken = traits.type_number == 7;
        if traits.target == 3 && std::mem::replace(&mut taken, true) {
            traits.target = 4;
        }
        taken |= traits.target == 3;
        if traits.site == 1 && std::mem::replace(&mut taken, true) {
            traits.site = 2;
        }
        if traits.site == 1 && traits.ward == 9 {
            traits.ward = 8;
        }
        traits.error &= !taken;
        traits
    }

    pub(crate) fn target(&self) -> String {
        format!("target{}", self.target)
    }

    pub(crate) fn type_name(&self) -> String {
        match self.number.is_multiple_of(1_000_003) {
            true => "ADT^A99".to_owned(),
            false => format!("ADT^A{:02}", self.type_number),
        }
    }

    /// One patient in a hundred thousand.
    pub(crate) fn mrn(&self) -> String {
        format!("{:08}", scattered(self.number) % 100_000)
    }

    pub(crate) fn control_id(&self) -> String {
        format!("MSG{:012}", self.number)
    }
}

pub(crate) fn scattered(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// How many messages there are: numbers are given in turn.
pub(crate) fn next_number(store: &Store, runtime: &Runtime) -> Outcome<u64> {
    let newest = runtime.block_on(store.search(&MessageFilter::default(), None, WRITERS as usize))?;
    let numbers = newest.entries.iter().filter_map(|header| header.control_id.get(3..)?.parse::<u64>().ok());
    Ok(numbers.max().map_or(0, |last| (last / WRITERS + 1) * WRITERS))
}

/// Receives so many messages, and delivers them.
pub(crate) async fn deliver(store: &Store, first: u64, count: u64) -> Outcome<()> {
    let mut each = [0; TARGETS as usize];
    for number in first..first + count {
        if let Some(count) = each.get_mut(Traits::of(number).target as usize) {
            *count += 1;
        }
    }
    let mut drains = Vec::new();
    for (target, count) in each.into_iter().enumerate() {
        let store = store.clone();
        drains.push(tokio::spawn(async move { drain(&store, &format!("target{target}"), count).await }));
    }
    receive(store, None, first, count).await?;
    for drain in drains {
        drain.await??;
    }
    Ok(())
}

/// Receives so many messages, all for one target, or each for its own.
pub(crate) async fn receive(
    store: &Store,
    target: Option<&'static str>,
    first: u64,
    count: u64,
) -> Outcome<()> {
    if let Some(target) = target {
        configure(store, &ItemName::new(target));
    }
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let text = Bytes::from(vec![0x41; 1024]);
            for number in (first + writer..first + count).step_by(WRITERS as usize) {
                receive_one(&store, target, Traits::of(number), &text).await?;
            }
            Outcome::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn receive_one(store: &Store, target: Option<&str>, traits: Traits, text: &Bytes) -> Outcome<()> {
    let permit = store.reserve(Class::Ingest, 1024).await?;
    let (id, body_id) = (MessageId(store.next_id()), BodyId(store.next_id()));
    let keys: [(Arc<str>, String); 4] = [
        ("mrn".into(), traits.mrn()),
        ("order".into(), format!("ORD{}", traits.number)),
        ("site".into(), traits.site.to_string()),
        ("ward".into(), traits.ward.to_string()),
    ];
    let header = Header {
        id,
        session: SessionId(id.0),
        kind: Kind::Request,
        request_id: None,
        caused_by: None,
        resent_from: None,
        source: ItemName::new(if traits.number.is_multiple_of(4) { "lab" } else { "lis" }),
        target: Some(ItemName::new(target.map_or_else(|| traits.target(), str::to_owned))),
        type_name: traits.type_name().into(),
        control_id: traits.control_id().into(),
        status: Status::Queued,
        error: None,
        attempts: 0,
        created: store.clock().now(),
        processed: None,
        body_id: Some(body_id),
        size: 1024,
        keys: keys.into(),
        reply_to: ReplyTo::Nobody,
        position: 0,
        order_keys: if target == Some(REFUSER) { [scattered(traits.number)].into() } else { Arc::default() },
        next_attempt: None,
        failing_since: None,
        unsolicited: false,
    };
    let body = Body::new(&traits.type_name(), body::HL7, None, text.clone());
    let ops = vec![Op::Body(body_id, body), Op::Header(Box::new(header))];
    let committed = store.submit(permit, Transaction::new(ops))?;
    store.durable(committed.sequence).await?;
    Ok(())
}

fn configure(store: &Store, item: &ItemName) {
    let pool = PoolSize::Limited(TOGETHER as u32);
    store.configure_queue(item, Policy { pool, ordered: false, on_suspend: OnSuspend::Pass });
}

/// Delivers so many messages, each durable before it is given out.
pub(crate) async fn drain(store: &Store, target: &str, count: u64) -> Outcome<()> {
    let item = ItemName::new(target);
    configure(store, &item);
    let ready = store.ready(&item);
    let (mut done, mut last) = (0, 0);
    while done < count {
        let taken = store.take(&item, Lanes::Requests, TOGETHER);
        if taken.is_empty() {
            ready.notified().await;
            continue;
        }
        for delivery in taken {
            let permit = store.reserve(Class::Completion, 0).await?;
            store.durable(delivery.sequence).await?;
            if let Some(body) = delivery.header.body_id {
                store.body(body).await?;
            }
            let number = delivery.header.control_id.get(3..).and_then(|text| text.parse().ok());
            let error = Traits::of(number.unwrap_or_default()).error;
            let status = if error { Status::Error } else { Status::Completed };
            let mut transition = Transition::new(delivery.header.id, Guard::Lease(delivery.lease), status);
            if error {
                let (code, text) = ("S0104".into(), "refused".into());
                transition.error = Some(Some(Fault { name: "transport".into(), code, text, detail: None }));
            }
            last = store.submit(permit, Transaction::new(vec![Op::Transition(transition)]))?.sequence;
            done += 1;
        }
    }
    store.durable(last).await?;
    Ok(())
}

/// Suspends so many messages, each refused as a receiver does.
pub(crate) async fn suspend(store: &Store, count: u64) -> Outcome<()> {
    let item = ItemName::new(REFUSER);
    configure(store, &item);
    let ready = store.ready(&item);
    let (mut done, mut last) = (0, 0);
    while done < count {
        let taken = store.take(&item, Lanes::Requests, TOGETHER);
        if taken.is_empty() {
            ready.notified().await;
            continue;
        }
        for delivery in taken {
            let permit = store.reserve(Class::Completion, 0).await?;
            let guard = Guard::Lease(delivery.lease);
            let mut transition = Transition::new(delivery.header.id, guard, Status::Suspended);
            let (code, text) = ("AR".into(), "the receiver refused it: unknown patient".into());
            transition.error = Some(Some(Fault { name: "reject".into(), code, text, detail: None }));
            last = store.submit(permit, Transaction::new(vec![Op::Transition(transition)]))?.sequence;
            done += 1;
        }
    }
    store.durable(last).await?;
    Ok(())
}

/// Discards so many suspended messages, oldest first; or resumes them, while they are delivered.
pub(crate) async fn settle(store: &Store, most: u64, resume: bool) -> Outcome<u64> {
    const PAGE: usize = 500;
    let filter = MessageFilter { status: vec![Status::Suspended], ..MessageFilter::default() };
    let (mut ids, mut before) = (Vec::new(), None);
    loop {
        let page = store.search(&filter, before, PAGE).await?;
        ids.extend(page.entries.iter().map(|header| header.id));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    let count = ids.len().min(most as usize);
    let to = if resume { Status::Queued } else { Status::Discarded };
    let drains = resume.then(|| {
        let store = store.clone();
        tokio::spawn(async move { drain(&store, REFUSER, count as u64).await })
    });
    let mut last = 0;
    let item = ItemName::new(REFUSER);
    for id in ids.into_iter().rev().take(count) {
        while resume && !store.has_room(&item) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let permit = store.reserve(Class::Completion, 0).await?;
        let transition = Transition::new(id, Guard::Status(Status::Suspended), to);
        last = store.submit(permit, Transaction::new(vec![Op::Transition(transition)]))?.sequence;
    }
    store.durable(last).await?;
    if let Some(drains) = drains {
        drains.await??;
    }
    Ok(count as u64)
}

/// Keeps so many values, as duplicate detection does: the answer to a message, under a hash of it.
pub(crate) async fn keep(store: &Store, count: u64) -> Outcome<()> {
    let mut last = 0;
    for first in (0..count).step_by(100) {
        let permit = store.reserve(Class::Completion, 16_000).await?;
        let name = |number| format!("lis/{:016x}{:016x}", scattered(number), scattered(!number));
        let one = |number| Op::Keep(KeepFamily::Duplicate, name(number), Some(answer(number)));
        let ops = (first..first + 100).map(one).collect();
        last = store.submit(permit, Transaction::new(ops))?.sequence;
    }
    store.durable(last).await?;
    Ok(())
}

/// About 160 bytes, of which times, an id and a control id are new.
fn answer(number: u64) -> Bytes {
    let at = 1_790_000_000_000_000 + number * 1_234;
    let seconds = at / 1_000_000 % 86_400;
    let time = format!("20261122{:02}{:02}{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let text = format!(
        "MSH|^~\\&|SEPTET|ST_MARY|LIS_SENDER|CENTRAL_LAB|{time}.{:03}+0100||ACK^R01^ACK|{:x}|P|2.5.1|||NE|NE||UNICODE UTF-8\rMSA|AA|{:012}|\r",
        at / 1000 % 1000,
        scattered(number) >> 16,
        number + 100_000_000
    );
    let mut entry = vec![1, 1];
    entry.extend_from_slice(&at.to_be_bytes());
    entry.extend_from_slice(&(text.len() as u32).to_be_bytes());
    entry.extend_from_slice(text.as_bytes());
    entry.into()
}
