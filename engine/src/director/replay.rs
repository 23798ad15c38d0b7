//! Replay: sends everything again that a filter selects, oldest first, at a bounded rate, as a job of the
//! engine that outlives the request that ordered it.
//!
//! The order is checked first ([`Engine::replay`]; with `dry_run` that is all). Then `job` works the selection
//! off in batches: one transaction holds the new headers of a batch *and* how far the replay has got, so that
//! the count is exact over a crash. A replay does not go on by itself after a restart: it is shown as
//! interrupted, and an operator decides.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;
use crate::director::control::{NO_BODY, by, unusable_body};
use crate::director::core::lock;
use crate::director::selection::{Ids, Refusals, Walk};
use crate::director::{ControlError, Engine, ProductionState};
use crate::event::{Level, NewEvent};
use crate::header::{Header, Kind, Status};
use crate::host::{Keep as _, KeepFamily};
use crate::id::{BodyId, ItemName, MessageId};
use crate::store::{MessageFilter, Op, ReadError};
use crate::vault::MASK;

mod job;

/// Messages a second where the order says nothing.
const RATE: u32 = 500;
/// Replays at work at the same time.
const MOST_RUNNING: usize = 4;
/// Replays remembered.
const REMEMBERED: usize = 100;
/// Sessions looked at for earlier replays of a message before the answer leaves.
const LOOKUPS: u64 = 20_000;
/// So many bytes of bodies are read to find those that are damaged.
const READ: u64 = 4 << 30;

/// What to replay.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Which messages; of these only requests can be sent again.
    pub filter: MessageFilter,
    /// Another receiver than theirs.
    pub target: Option<String>,
    /// Messages a second, 1 to 10,000; 500 when absent.
    pub rate: Option<u32>,
    /// Only say what would be.
    pub dry_run: bool,
}

impl Order {
    /// Messages a second that can be asked for. Faster, a replay would crowd out what comes in.
    pub const RATES: RangeInclusive<u32> = 1..=10_000;
}

/// What an order selects, and whether it was started.
#[derive(Clone, Debug, Default)]
pub struct ReplayReport {
    /// How many messages the filter selects.
    pub selected: u64,
    /// How many of them can be sent again.
    pub replayable: u64,
    /// How many cannot.
    pub blocked_count: u64,
    /// The oldest of these, and why.
    pub blocked: VecDeque<(MessageId, String)>,
    /// How many of the replayable ones their receiver would get twice: it completed them, still has them in
    /// its queue, or has been sent them again before.
    pub duplicates: u64,
    /// `false`: so many had to be looked up one by one that `duplicates` is a lower bound.
    pub duplicates_complete: bool,
    /// `false`: the bodies have so many bytes that not all of them were read; some may turn out to be damaged.
    pub bodies_complete: bool,
    /// Whether it was started.
    pub started: bool,
    /// Its number, once started.
    pub id: Option<u64>,
}

/// Where a replay stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplayState {
    /// At work.
    Running,
    /// It reached its end.
    Completed,
    /// An operator ended it.
    Cancelled,
    /// The engine stopped, cleanly or not.
    Interrupted,
}

impl ReplayState {
    /// `running`, `completed`, …
    pub fn as_str(self) -> &'static str {
        match self {
            ReplayState::Running => "running",
            ReplayState::Completed => "completed",
            ReplayState::Cancelled => "cancelled",
            ReplayState::Interrupted => "interrupted",
        }
    }
}

/// A replay as it is kept in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Its number.
    pub id: u64,
    /// Where it stands.
    pub state: ReplayState,
    /// Who ordered it.
    pub who: Option<String>,
    /// Who cancelled it.
    pub cancelled_by: Option<String>,
    /// The filter as the API names it; values that are patient data as `•••`.
    pub filter: BTreeMap<String, String>,
    /// Another receiver than that of the messages.
    pub target: Option<String>,
    /// Messages a second.
    pub rate: u32,
    /// What the filter selected.
    pub selected: u64,
    /// How many of them could be sent again.
    pub replayable: u64,
    /// How many could not.
    pub blocked: u64,
    /// See [`ReplayReport::duplicates`].
    pub duplicates: u64,
    /// How many have been sent again.
    pub sent: u64,
    /// How many could not be, though they could when it was ordered.
    pub failed: u64,
    /// Why not, the last time.
    pub last_failure: Option<String>,
    /// The last message dealt with: all selected ones up to it are done, none after it.
    pub last_message: Option<MessageId>,
    /// When it was ordered.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
}

impl Replay {
    fn key(id: u64) -> String {
        // Ids stay below 2^53: sixteen digits sort as numbers do.
        format!("{id:016}")
    }

    fn keep(&self) -> Op {
        let value = serde_json::to_vec(self).expect("numbers, names and times are JSON");
        Op::Keep(KeepFamily::Replay, Replay::key(self.id), Some(value.into()))
    }

    fn decode(bytes: &[u8]) -> Option<Replay> {
        serde_json::from_slice(bytes).ok()
    }

    /// What is said about it in the event log.
    fn event(&self, level: Level, what: &str, who: Option<&str>) -> NewEvent {
        let Replay { id, sent, replayable, failed, .. } = self;
        let mut text = format!("replay {id} {what}: {sent} of {replayable} sent again");
        if *failed > 0 {
            text = format!("{text}, {failed} could not be");
        }
        let event = by(NewEvent::new(level, "replay", text), who);
        match &self.target {
            Some(target) => event.item(&ItemName::new(target)),
            None => event,
        }
    }
}

/// What a running replay can be told.
#[derive(Clone, Debug, Default)]
struct Handle {
    /// Ends it at the next batch.
    stop: CancellationToken,
    /// Cancelled by an operator, and by whom; otherwise the engine stops.
    cancelled: Arc<Mutex<Option<Option<String>>>>,
    /// It has ended, and its end is durable.
    over: CancellationToken,
}

/// The replays at work.
#[derive(Debug, Default)]
pub(super) struct Replays(Mutex<HashMap<u64, Handle>>);

impl Replays {
    /// Ends them all, each with the batch it is at; returns when they have ended, or after `deadline`.
    pub(super) async fn stop(&self, clock: &SharedClock, deadline: Duration) {
        let all: Vec<Handle> = lock(&self.0).values().cloned().collect();
        for handle in &all {
            handle.stop.cancel();
        }
        let ended = async {
            for handle in all {
                handle.over.cancelled().await;
            }
        };
        tokio::select! {
            () = ended => {}
            () = clock.sleep(deadline) => {}
        }
    }

    fn enter(&self, id: u64, handle: &Handle) -> Result<(), ControlError> {
        let mut all = lock(&self.0);
        if all.len() >= MOST_RUNNING {
            let text = format!("{MOST_RUNNING} replays are at work; wait for one to end, or cancel one");
            return Err(ControlError::NotAllowed(text));
        }
        all.insert(id, handle.clone());
        Ok(())
    }
}

/// What one look at a selection found.
#[derive(Default)]
struct Preflight {
    selected: u64,
    ids: Ids,
    blocked: Refusals,
    duplicates: u64,
    lookups: u64,
    /// Bytes of bodies that have been read.
    read: u64,
}

impl Preflight {
    /// Looks at a page that is older than all before.
    fn look(&mut self, engine: &Engine, page: &[Header], target: Option<&str>) {
        self.selected += page.len() as u64;
        let mut ids = Vec::with_capacity(page.len());
        let bodies = page.iter().filter_map(|header| header.body_id).collect();
        let mut room = READ.saturating_sub(self.read);
        let unusable = engine.store().unusable_bodies(&bodies, &mut room);
        self.read = READ - room;
        for header in page {
            match engine.blocked(header, target, &unusable) {
                Err(reason) => self.blocked.older(header.id, reason),
                Ok(target) => {
                    ids.push(header.id);
                    self.duplicates += u64::from(engine.has_it(header, &target, &mut self.lookups));
                }
            }
        }
        self.ids.push(&ids);
    }
}

impl Engine {
    /// Checks what an order selects and, unless it is a dry run, starts it. The start is durable when this
    /// returns; the replay goes on when the caller goes away.
    pub async fn replay(&self, order: &Order, who: Option<&str>) -> Result<ReplayReport, ControlError> {
        let rate = order.rate.unwrap_or(RATE);
        if !Order::RATES.contains(&rate) {
            return Err(ControlError::NotAllowed(format!(
                "a rate of {rate} messages a second is out of bounds"
            )));
        }
        if let Some(target) = &order.target
            && self.core().directory().get(target).is_none()
        {
            return Err(ControlError::UnknownItem(target.clone()));
        }
        let Preflight { selected, ids, blocked, duplicates, lookups, read } = self.preflight(order).await?;
        let mut report = ReplayReport {
            selected,
            replayable: ids.len(),
            blocked_count: blocked.count,
            blocked: blocked.listed,
            duplicates,
            duplicates_complete: lookups < LOOKUPS,
            bodies_complete: read < READ,
            started: false,
            id: None,
        };
        if order.dry_run || report.replayable == 0 {
            return Ok(report);
        }
        if self.state() != ProductionState::Running {
            return Err(ControlError::Unavailable(format!("the production is {}", self.state().as_str())));
        }
        let replay = Replay {
            id: self.store().next_id(),
            state: ReplayState::Running,
            who: who.map(str::to_owned),
            cancelled_by: None,
            filter: described(&order.filter),
            target: order.target.clone(),
            rate,
            selected,
            replayable: report.replayable,
            blocked: report.blocked_count,
            duplicates,
            sent: 0,
            failed: 0,
            last_failure: None,
            last_message: None,
            started: self.store().clock().now(),
            ended: None,
        };
        (report.started, report.id) = (true, Some(replay.id));
        self.begin(replay, ids).await?;
        Ok(report)
    }

    async fn preflight(&self, order: &Order) -> Result<Preflight, ControlError> {
        let (mut found, mut walk) = (Preflight::default(), Walk::default());
        while let Some(page) = walk.next(self.core(), &order.filter).await? {
            let (engine, target) = (self.clone(), order.target.clone());
            // Sessions that are not in memory are read from the disk.
            let looked = tokio::task::spawn_blocking(move || {
                found.look(&engine, &page, target.as_deref());
                found
            });
            found = looked.await.map_err(|failed| ControlError::Unavailable(failed.to_string()))?;
        }
        Ok(found)
    }

    /// Where a message would go, or why it cannot be replayed.
    fn blocked(
        &self,
        header: &Header,
        target: Option<&str>,
        unusable: &HashMap<BodyId, ReadError>,
    ) -> Result<ItemName, String> {
        let target = self.taker(header, target)?;
        match header.body_id {
            None => Err(NO_BODY.to_owned()),
            Some(body) => unusable.get(&body).map_or(Ok(target), |error| Err(unusable_body(error))),
        }
    }

    /// Where a message would go, if that takes messages.
    fn taker(&self, header: &Header, target: Option<&str>) -> Result<ItemName, String> {
        let target = self.target_of(header, target).map_err(|error| error.to_string())?;
        let directory = self.core().directory();
        match directory.get(target.as_str()).is_some_and(|routed| !routed.plan.common.enabled) {
            true => Err(format!("{target} is disabled")),
            false => Ok(target),
        }
    }

    /// Whether a receiver has a message already, or will get it without a replay.
    fn has_it(&self, header: &Header, target: &ItemName, lookups: &mut u64) -> bool {
        if header.target.as_ref() == Some(target)
            && (header.status == Status::Completed || header.status.is_active())
        {
            return true;
        }
        if *lookups == LOOKUPS {
            return false;
        }
        *lookups += 1;
        let again = |other: &Header| {
            other.resent_from == Some(header.id)
                && other.target.as_ref() == Some(target)
                && !matches!(other.status, Status::Discarded | Status::Aborted)
        };
        self.store().session(header.session).iter().any(again)
    }

    /// All replays the store remembers, newest first.
    pub fn replays(&self) -> Vec<Replay> {
        let kept = self.store().scan(KeepFamily::Replay, "");
        kept.iter().rev().filter_map(|(_, value)| Replay::decode(value)).collect()
    }

    /// One replay.
    pub fn replay_of(&self, id: u64) -> Option<Replay> {
        Replay::decode(&self.store().get(KeepFamily::Replay, &Replay::key(id))?)
    }

    /// Ends a replay after the batch it is at. What has been sent again by then stays.
    pub async fn cancel_replay(&self, id: u64, who: Option<&str>) -> Result<Replay, ControlError> {
        let unknown = || ControlError::UnknownReplay(id);
        let handle = lock(&self.0.replays.0).get(&id).cloned();
        let Some(handle) = handle else {
            let state = self.replay_of(id).ok_or_else(unknown)?.state.as_str();
            return Err(ControlError::NotAllowed(format!("replay {id} is {state}")));
        };
        lock(&handle.cancelled).get_or_insert_with(|| who.map(str::to_owned));
        handle.stop.cancel();
        handle.over.cancelled().await;
        self.replay_of(id).ok_or_else(unknown)
    }
}

/// A filter in the API's names, without what may be patient data.
fn described(filter: &MessageFilter) -> BTreeMap<String, String> {
    let mut words = BTreeMap::new();
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            words.insert(name.to_owned(), value);
        }
    };
    say("session", filter.session.map(|session| session.to_string()));
    say("source", filter.source.clone());
    say("target", filter.target.clone());
    let status: Vec<_> = filter.status.iter().map(|status| status.as_str()).collect();
    say("status", Some(status.join(",")).filter(|names| !names.is_empty()));
    say("type", filter.type_name.clone());
    say("control_id", filter.control_id.clone());
    let kind = |kind| if kind == Kind::Request { "request" } else { "response" };
    say("kind", filter.kind.map(|named| kind(named).to_owned()));
    say("from", filter.from.map(|at| at.to_string()));
    say("to", filter.to.map(|at| at.to_string()));
    say("q", filter.text.as_ref().map(|_| MASK.to_owned()));
    for (name, _) in &filter.keys {
        say(&format!("key.{name}"), Some(MASK.to_owned()));
    }
    words
}
