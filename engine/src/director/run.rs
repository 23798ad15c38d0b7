//! One run of an item: the tasks that do its work, from binding to the last one that ends.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::settings::PoolSize;
use crate::director::core::{Core, Routed};
use crate::director::intake::Door;
use crate::director::items::End;
use crate::director::lanes::Lanes;
use crate::director::operation::Operation;
use crate::director::process::Driver;
use crate::host::{BusinessService, HostFault, Runtime, ServiceContext, ServiceFactory};
use crate::registry::Factory;

/// Slots of an operation without a limit.
const MOST_SLOTS: u32 = 64;

/// A service that is bound and not yet running.
pub(super) struct Prepared {
    host: Box<dyn BusinessService>,
    cx: ServiceContext,
    kill: CancellationToken,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prepared({})", self.cx.item)
    }
}

impl Prepared {
    fn run(self) -> Run {
        let Prepared { host, cx, kill } = self;
        let stop = cx.stop.clone();
        let stopping = stop.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            match AssertUnwindSafe(host.run(cx)).catch_unwind().await {
                Ok(_) if stopping.is_cancelled() => End::Stopped,
                Ok(Ok(())) => End::Fault(HostFault::new("ended", "the service returned early")),
                Ok(Err(fault)) => End::Fault(fault),
                Err(_) => End::Fault(HostFault::new("panic", "the host panicked")),
            }
        });
        Run { stop, kill, tasks }
    }
}

/// Creates and binds a service.
pub(super) async fn prepare(
    core: &Arc<Core>,
    routed: &Arc<Routed>,
    runtime: Runtime,
    factory: &dyn ServiceFactory,
) -> Result<Prepared, HostFault> {
    let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
    let intake = Arc::new(Door::new(core.clone(), routed.clone(), kill.clone()));
    let item = routed.plan.name.clone();
    let cx = ServiceContext { item, runtime, stop, intake };
    let mut host = factory.create();
    match AssertUnwindSafe(host.bind(&cx)).catch_unwind().await {
        Ok(Ok(())) => Ok(Prepared { host, cx, kill }),
        Ok(Err(fault)) => Err(fault),
        Err(_) => Err(HostFault::new("panic", "the host panicked")),
    }
}

/// The tasks of one run of an item.
pub(super) struct Run {
    stop: CancellationToken,
    kill: CancellationToken,
    tasks: JoinSet<End>,
}

impl Run {
    /// How the next task ended; `Stopped` when there is none left.
    pub(super) async fn next_end(&mut self) -> Option<End> {
        match self.tasks.join_next().await {
            None => None,
            Some(Ok(end)) => Some(end),
            Some(Err(failed)) if failed.is_cancelled() => Some(End::Stopped),
            Some(Err(_)) => Some(End::Fault(HostFault::new("panic", "the host panicked"))),
        }
    }

    /// Lets work in flight finish within the time; what has not ended then is dropped.
    pub(super) async fn drain(&mut self, core: &Core, within: Duration) -> End {
        self.stop.cancel();
        let clock = core.store.clock().clone();
        let deadline = clock.sleep(within);
        tokio::pin!(deadline);
        let mut result = End::Stopped;
        let mut late = false;
        loop {
            tokio::select! {
                biased;
                end = self.next_end() => match end {
                    None => break,
                    Some(End::Stopped) => {}
                    Some(end) => result = end,
                },
                () = &mut deadline, if !late => {
                    late = true;
                    self.kill.cancel();
                }
                // Not the clock's time: this is how long a task may take to look at its token.
                () = tokio::time::sleep(Duration::from_millis(500)), if late => self.tasks.abort_all(),
            }
        }
        self.kill.cancel();
        result
    }
}

/// Starts one run of an item. Dropping it gives up what has been started.
pub(super) async fn launch(
    core: Arc<Core>,
    lanes: Arc<Lanes>,
    routed: Arc<Routed>,
    prepared: Option<Prepared>,
) -> Result<Run, HostFault> {
    let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
    match routed.plan.built.factory.clone() {
        Factory::Service(factory) => {
            let prepared = match prepared {
                Some(prepared) => prepared,
                None => prepare(&core, &routed, core.directory().runtime.clone(), &*factory).await?,
            };
            Ok(prepared.run())
        }
        Factory::Process(host) => {
            let driver = Driver::new(core, lanes, routed, host, stop.clone(), kill.clone());
            let mut run = Run { stop, kill, tasks: JoinSet::new() };
            run.tasks.spawn(driver.run());
            Ok(run)
        }
        Factory::Operation(factory) => {
            // A start tries at once, however long the next retry should have waited.
            core.store.hurry(&routed.plan.name);
            let slots = match routed.plan.common.pool_size {
                PoolSize::Limited(slots) => slots.max(1),
                PoolSize::Unlimited => MOST_SLOTS,
            };
            let operation = Operation::new(core.clone(), routed, factory, stop.clone(), kill.clone());
            let operation = Arc::new(operation);
            let mut run = Run { stop, kill, tasks: JoinSet::new() };
            let mut started = Vec::new();
            for _ in 0..slots {
                let (sender, receiver) = oneshot::channel();
                started.push(receiver);
                run.tasks.spawn(operation.clone().slot(sender));
            }
            for receiver in started {
                if receiver.await.is_err() {
                    return Err(failed_start(&mut run, &core).await);
                }
            }
            Ok(run)
        }
    }
}

/// A slot could not start: ends the others and gives the reason.
async fn failed_start(run: &mut Run, core: &Core) -> HostFault {
    let first = run.next_end().await;
    let rest = run.drain(core, Duration::ZERO).await;
    for end in [first, Some(rest)].into_iter().flatten() {
        if let End::Fault(fault) = end {
            return fault;
        }
    }
    HostFault::new("ended", "the host returned early")
}
