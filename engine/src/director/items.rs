//! The life of one item: a supervisor task per item starts it, notices how it ends, tries again with
//! back-off what the environment does not let run, and takes orders from operators. A panic or an early
//! return of one host ends here and touches nothing else.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::settings::PoolSize;
use crate::director::ItemState;
use crate::director::alerts::Alert;
use crate::director::core::{Core, Routed, lock};
use crate::director::lanes::Lanes;
use crate::director::run::{self, Prepared, Run};
use crate::event::{Level, NewEvent};
use crate::host::{HostFault, Keep, KeepFamily};
use crate::id::ItemName;
use crate::queue::Policy;
use crate::registry::ItemKind;
use crate::store::{Op, StoreFailed};

/// First and longest wait of an item that is faulted.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often a schedule is looked at.
const SCHEDULE_TICK: Duration = Duration::from_secs(20);

/// How a run of an item ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to.
    Stopped,
    /// Too many suspensions in a row, or lost script threads.
    Paused,
    /// Reply action `disable`.
    Disabled,
    /// The environment, or a bug of the host.
    Fault(HostFault),
    /// Nothing can be made durable any more.
    Store(StoreFailed),
}

/// What was asked of an item and is remembered over restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Run.
    Run,
    /// An operator stopped it.
    Stopped,
    /// The reply action `disable` switched it off.
    Disabled,
}

impl Control {
    pub(super) fn value(self) -> Option<Bytes> {
        match self {
            Control::Run => None,
            Control::Stopped => Some(Bytes::from_static(b"stopped")),
            Control::Disabled => Some(Bytes::from_static(b"disabled")),
        }
    }

    pub(super) fn keep(self, item: &ItemName) -> Op {
        Op::Keep(KeepFamily::ItemControl, item.as_str().to_owned(), self.value())
    }

    pub(super) fn read(keep: &dyn Keep, item: &ItemName) -> Control {
        match keep.get(KeepFamily::ItemControl, item.as_str()).as_deref() {
            Some(b"stopped") => Control::Stopped,
            Some(b"disabled") => Control::Disabled,
            _ => Control::Run,
        }
    }
}

/// An order to a supervisor; answered when it has been carried out.
#[derive(Debug)]
pub(super) enum Order {
    /// Run, whatever stopped it.
    Start(By, oneshot::Sender<()>),
    /// Finish work in flight within the time, then rest.
    Stop(By, Duration, oneshot::Sender<()>),
    /// Finish work in flight within the time, then end the supervisor.
    End(Duration, oneshot::Sender<()>),
}

/// The account that gave an order.
type By = Option<String>;

/// A handle on one item. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) routed: Arc<Routed>,
    state: watch::Receiver<ItemState>,
    orders: mpsc::Sender<Order>,
    /// Why it is faulted.
    fault: Arc<Mutex<Option<String>>>,
}

impl Item {
    /// Starts the item's supervisor. `prepared` is a service that a reload has bound already.
    pub(super) fn spawn(
        core: &Arc<Core>,
        lanes: &Arc<Lanes>,
        routed: &Arc<Routed>,
        prepared: Option<Prepared>,
    ) -> Item {
        let plan = &routed.plan;
        let resting = match Control::read(&core.store, &plan.name) {
            _ if !plan.common.enabled => Some(ItemState::Disabled),
            Control::Stopped => Some(ItemState::Stopped),
            Control::Disabled => Some(ItemState::Disabled),
            Control::Run => None,
        };
        if plan.kind != ItemKind::Service {
            core.store.configure_queue(&plan.name, policy(routed));
        }
        let (sender, state) = watch::channel(resting.unwrap_or(ItemState::Starting));
        let (orders, receiver) = mpsc::channel(8);
        let fault = Arc::new(Mutex::new(None));
        let supervisor = Supervisor {
            core: core.clone(),
            lanes: lanes.clone(),
            routed: routed.clone(),
            state: sender,
            fault: fault.clone(),
            orders: receiver,
            prepared,
            started_by: None,
        };
        tokio::spawn(supervisor.run(resting));
        Item { routed: routed.clone(), state, orders, fault }
    }

    pub(super) fn name(&self) -> &ItemName {
        &self.routed.plan.name
    }

    pub(super) fn state(&self) -> ItemState {
        *self.state.borrow()
    }

    pub(super) fn fault(&self) -> Option<String> {
        lock(&self.fault).clone()
    }

    /// Returns once it is no longer starting.
    pub(super) async fn settled(&self) -> ItemState {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| *state != ItemState::Starting).await;
        settled.map_or(ItemState::Stopped, |state| *state)
    }

    pub(super) async fn start(&self, who: Option<&str>) {
        self.order(|done| Order::Start(who.map(str::to_owned), done)).await;
        self.settled().await;
    }

    pub(super) async fn stop(&self, who: Option<&str>, within: Duration) {
        self.order(|done| Order::Stop(who.map(str::to_owned), within, done)).await;
    }

    pub(super) async fn end(&self, within: Duration) {
        self.order(|done| Order::End(within, done)).await;
    }

    async fn order(&self, order: impl FnOnce(oneshot::Sender<()>) -> Order) {
        let (done, carried_out) = oneshot::channel();
        // A supervisor that has ended carries nothing out, and there is nothing left to do.
        if self.orders.send(order(done)).await.is_ok() {
            let _ = carried_out.await;
        }
    }
}

/// How an item's queue schedules. A process counts its instances itself, so that it can take the ready
/// prefix as one batch.
fn policy(routed: &Routed) -> Policy {
    let common = &routed.plan.common;
    let pool = match routed.plan.kind {
        ItemKind::Process => PoolSize::Unlimited,
        ItemKind::Operation | ItemKind::Service => common.pool_size,
    };
    Policy { pool, ordered: !common.order_by.is_empty(), on_suspend: common.on_suspend }
}

struct Supervisor {
    core: Arc<Core>,
    lanes: Arc<Lanes>,
    routed: Arc<Routed>,
    state: watch::Sender<ItemState>,
    fault: Arc<Mutex<Option<String>>>,
    orders: mpsc::Receiver<Order>,
    prepared: Option<Prepared>,
    /// Who asked for the start that is under way.
    started_by: By,
}

/// What a supervisor does next.
enum Next {
    Run,
    Rest(ItemState),
    Retry(HostFault),
    End,
}

impl Supervisor {
    fn name(&self) -> &ItemName {
        &self.routed.plan.name
    }

    fn set(&self, state: ItemState) {
        self.state.send_replace(state);
    }

    fn log(&self, kind: &'static str, text: &str, who: By) {
        tracing::info!(item = %self.name(), "{text}");
        let event = NewEvent::new(Level::Info, kind, text).item(self.name());
        self.core.store.log(NewEvent { who, ..event });
    }

    async fn run(mut self, resting: Option<ItemState>) {
        let mut next = resting.map_or(Next::Run, Next::Rest);
        let mut wait = BACKOFF.0;
        loop {
            next = match next {
                Next::Run if !self.on_schedule() => self.off_schedule().await,
                Next::Run => {
                    let began = self.core.store.clock().now();
                    let next = self.run_once().await;
                    let lasted = self.core.store.clock().now().duration_since(began);
                    if lasted.unsigned_abs() > BACKOFF.1 {
                        wait = BACKOFF.0;
                    }
                    next
                }
                Next::Rest(state) => {
                    self.set(state);
                    wait = BACKOFF.0;
                    self.rest().await
                }
                Next::Retry(fault) => {
                    self.faulted(&fault).await;
                    let clock = self.core.store.clock().clone();
                    let next = tokio::select! {
                        biased;
                        order = self.orders.recv() => self.obey_idle(order),
                        () = clock.sleep(wait) => Next::Run,
                    };
                    wait = (wait * 2).min(BACKOFF.1);
                    next
                }
                Next::End => break,
            };
        }
        self.set(ItemState::Stopped);
    }

    /// Enters state faulted: one event and one alert per change of state.
    async fn faulted(&mut self, fault: &HostFault) {
        *lock(&self.fault) = Some(fault.to_string());
        if *self.state.borrow() == ItemState::Faulted {
            return;
        }
        self.set(ItemState::Faulted);
        let text = format!("cannot run: {fault}");
        let event = NewEvent::new(Level::Error, "item.faulted", text.clone()).item(self.name());
        self.core.raise(Alert::item(Level::Error, "item.faulted", self.name(), text), vec![event]).await;
    }

    /// Waits for an order.
    async fn rest(&mut self) -> Next {
        let order = self.orders.recv().await;
        self.obey_idle(order)
    }

    /// Carries out an order while nothing runs.
    fn obey_idle(&mut self, order: Option<Order>) -> Next {
        let (next, done) = match order {
            None => return Next::End,
            Some(Order::Start(who, done)) => {
                self.started_by = who;
                // Whoever waits for the start sees that it has begun.
                self.set(ItemState::Starting);
                (Next::Run, done)
            }
            Some(Order::Stop(who, _, done)) => {
                self.set(ItemState::Stopped);
                self.log("item.stopped", "stopped", who);
                (Next::Rest(ItemState::Stopped), done)
            }
            Some(Order::End(_, done)) => {
                self.set(ItemState::Stopped);
                (Next::End, done)
            }
        };
        let _ = done.send(());
        next
    }

    /// Starts the item and stays with it until it ends.
    async fn run_once(&mut self) -> Next {
        let mut run = match self.launch().await {
            Ok(Ok(run)) => run,
            Ok(Err(fault)) => return Next::Retry(fault),
            Err(next) => return next,
        };
        *lock(&self.fault) = None;
        let before = self.state.send_replace(ItemState::Running);
        match before {
            ItemState::Faulted => self.log("item.resumed", "runs again", None),
            _ => {
                let who = self.started_by.take();
                self.log("item.started", "started", who);
            }
        }
        let clock = self.core.store.clock().clone();
        let shutdown_timeout = self.core.directory().plan.production.shutdown_timeout;
        loop {
            let scheduled = self.routed.plan.common.schedule.is_some();
            let first = tokio::select! {
                biased;
                order = self.orders.recv() => {
                    let (within, next, who, done) = match order {
                        Some(Order::Start(_, done)) => {
                            let _ = done.send(());
                            continue;
                        }
                        Some(Order::Stop(who, within, done)) => {
                            (within, Next::Rest(ItemState::Stopped), who, Some(done))
                        }
                        Some(Order::End(within, done)) => (within, Next::End, None, Some(done)),
                        None => (Duration::ZERO, Next::End, None, None),
                    };
                    self.set(ItemState::Stopping);
                    run.drain(&self.core, within).await;
                    self.log("item.stopped", "stopped", who);
                    self.set(ItemState::Stopped);
                    if let Some(done) = done {
                        let _ = done.send(());
                    }
                    return next;
                }
                end = run.next_end() => end,
                () = clock.sleep(SCHEDULE_TICK), if scheduled => {
                    if self.on_schedule() {
                        continue;
                    }
                    self.set(ItemState::Stopping);
                    run.drain(&self.core, shutdown_timeout).await;
                    self.log("item.stopped", "stopped by its schedule", None);
                    return Next::Run;
                }
            };
            // One task has ended: the others end too, and the first reason counts.
            let rest = run.drain(&self.core, shutdown_timeout).await;
            let end = match first {
                None | Some(End::Stopped) => rest,
                Some(end) => end,
            };
            return match end {
                End::Stopped => Next::Retry(HostFault::new("ended", "the host returned early")),
                End::Paused => Next::Rest(ItemState::Paused),
                End::Disabled => Next::Rest(ItemState::Disabled),
                End::Fault(fault) => Next::Retry(fault),
                End::Store(failed) => Next::Retry(HostFault::new("store", failed.to_string())),
            };
        }
    }

    /// Launches the item; an order to stop ends that too, however long the environment takes.
    async fn launch(&mut self) -> Result<Result<Run, HostFault>, Next> {
        let prepared = self.prepared.take();
        let launching = run::launch(self.core.clone(), self.lanes.clone(), self.routed.clone(), prepared);
        tokio::pin!(launching);
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(Order::Start(_, done)) => {
                        let _ = done.send(());
                    }
                    order => return Err(self.obey_idle(order)),
                },
                launched = &mut launching => return Ok(launched),
            }
        }
    }

    fn on_schedule(&self) -> bool {
        let Some(hours) = &self.routed.plan.common.schedule else { return true };
        let directory = self.core.directory();
        let local = self.core.store.clock().now().to_zoned(directory.runtime.timezone.clone());
        hours.contains(local.datetime())
    }

    /// Outside its hours an item rests, and looks again from time to time.
    async fn off_schedule(&mut self) -> Next {
        self.set(ItemState::Stopped);
        let clock = self.core.store.clock().clone();
        tokio::select! {
            biased;
            order = self.orders.recv() => self.obey_idle(order),
            () = clock.sleep(SCHEDULE_TICK) => Next::Run,
        }
    }
}
