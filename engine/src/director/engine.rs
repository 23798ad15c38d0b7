//! The handle on a running production.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch as state;
use tokio_util::sync::CancellationToken;

use crate::config::plan::Plan;
use crate::director::core::Core;
use crate::director::items::{Control, Item};
use crate::director::lanes::Lanes;
use crate::director::replay::Replays;
use crate::director::{
    ControlError, ItemState, ItemView, Orphans, Parts, ProductionState, StartError, retention,
};
use crate::director::{orphans, watch};
use crate::host::{Keep, KeepFamily};
use crate::id::ItemName;
use crate::process::LaneServices;
use crate::registry::{Factory, ItemKind};
use crate::store::Store;

/// How long items that have reached the deadline may take to be dropped.
const GRACE: Duration = Duration::from_secs(2);

/// A running production. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine(pub(super) Arc<Running>);

#[derive(Debug)]
pub(super) struct Running {
    pub(super) core: Arc<Core>,
    pub(super) lanes: Arc<Lanes>,
    pub(super) items: RwLock<HashMap<ItemName, Item>>,
    pub(super) state: state::Sender<ProductionState>,
    pub(super) started: Timestamp,
    /// Ends what watches the items.
    watching: CancellationToken,
    /// One reload at a time.
    pub(super) reloading: tokio::sync::Mutex<()>,
    /// What operators ordered to be sent again.
    pub(super) replays: Replays,
}

impl Engine {
    /// Starts a plan on a recovered store: resolves orphans, configures queues, binds and runs every
    /// enabled item (one that cannot is `faulted` and tried again), resumes waiting instances.
    pub async fn start(plan: Plan, parts: Parts, orphans: Orphans) -> Result<Engine, StartError> {
        let Parts { store, lanes, tokens } = parts;
        let plan = Arc::new(plan);
        let services =
            LaneServices { vault: store.vault().clone(), timezone: plan.production.timezone.clone() };
        let lanes = Arc::new(Lanes::new(lanes, services, store.clock().clone()));
        let core = Arc::new(Core::new(plan.clone(), store.clone(), tokens));
        let running = Running {
            core,
            lanes,
            items: RwLock::default(),
            state: state::Sender::new(ProductionState::Starting),
            started: store.clock().now(),
            watching: CancellationToken::new(),
            reloading: tokio::sync::Mutex::default(),
            replays: Replays::default(),
        };
        running.core.forget_definitions().await;
        let found = orphans::find(&store, &plan);
        orphans::check(&found, &plan, &orphans)?;
        orphans::resolve(&running.core, &found, &orphans).await?;
        let engine = Engine(Arc::new(running));
        engine.find_interrupted_replays().await;
        let directory = engine.0.core.directory();
        let routed = plan.items.iter().filter_map(|item| directory.get(item.name.as_str()).cloned());
        engine.spawn(&routed.collect::<Vec<_>>(), HashMap::new()).await;
        let (core, started, stop) = (engine.0.core.clone(), engine.0.started, engine.0.watching.clone());
        tokio::spawn(async move { watch::watch(&core, started, stop).await });
        let (core, stop) = (engine.0.core.clone(), engine.0.watching.clone());
        tokio::spawn(async move { retention::keep(&core, stop).await });
        engine.0.state.send_replace(ProductionState::Running);
        Ok(engine)
    }

    /// Stops accepting, finishes work in flight (at most `deadline`), syncs. Queues stay on disk.
    pub async fn shutdown(&self, deadline: Duration) {
        if self.0.state.send_replace(ProductionState::Draining) == ProductionState::Stopped {
            self.0.state.send_replace(ProductionState::Stopped);
            return;
        }
        self.0.watching.cancel();
        let clock = self.0.core.store.clock().clone();
        let wait = SignedDuration::try_from(deadline).unwrap_or(SignedDuration::MAX);
        let end = clock.now().saturating_add(wait).unwrap_or(Timestamp::MAX);
        self.0.replays.stop(&clock, deadline).await;
        for kind in [ItemKind::Service, ItemKind::Process, ItemKind::Operation] {
            let items = self.all().into_iter().filter(|item| item.routed.plan.kind == kind);
            let left = Duration::try_from(end.duration_since(clock.now())).unwrap_or_default();
            let ends = join_all(items.map(|item| async move { item.end(left).await }));
            tokio::select! {
                _ = ends => {}
                // An item that does not even let itself be dropped is left behind.
                () = clock.sleep(left.saturating_add(GRACE)) => {}
            }
        }
        if let Err(failed) = self.0.core.store.close().await {
            tracing::error!(error = %failed, "the store could not be closed cleanly");
        }
        self.0.state.send_replace(ProductionState::Stopped);
    }

    /// The plan that runs.
    pub fn plan(&self) -> Arc<Plan> {
        self.0.core.directory().plan.clone()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.0.core.store
    }

    /// When it was started.
    pub fn started(&self) -> Timestamp {
        self.0.started
    }

    /// The production's state.
    pub fn state(&self) -> ProductionState {
        *self.0.state.borrow()
    }

    /// Recovery is done, all enabled services listen, the store takes writes; else why not. A service that
    /// an operator or its schedule stopped is meant not to listen.
    pub fn ready(&self) -> Result<(), String> {
        let state = self.state();
        if state != ProductionState::Running {
            return Err(format!("the production is {}", state.as_str()));
        }
        if !self.0.core.store.accepting() {
            return Err("the store takes no messages".to_owned());
        }
        for item in self.all().into_iter().filter(|item| item.routed.plan.kind == ItemKind::Service) {
            match item.state() {
                ItemState::Running | ItemState::Stopped | ItemState::Stopping | ItemState::Disabled => {}
                state => return Err(format!("service {} is {}", item.name(), state.as_str())),
            }
        }
        Ok(())
    }

    /// All items in file order.
    pub fn items(&self) -> Vec<ItemView> {
        let plan = self.plan();
        let items = self.0.items.read().unwrap_or_else(PoisonError::into_inner);
        let view = |name: &ItemName| {
            let item = items.get(name)?;
            let mut counts = self.0.core.store.counts(name);
            if let Some(fault) = item.fault() {
                counts.last_error = Some(fault);
            }
            let plan = &item.routed.plan;
            Some(ItemView {
                name: name.clone(),
                kind: plan.kind.as_str(),
                type_name: plan.type_name,
                state: item.state(),
                counts,
            })
        };
        plan.items.iter().filter_map(|item| view(&item.name)).collect()
    }

    pub(super) fn all(&self) -> Vec<Item> {
        self.0.items.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn find(&self, name: &str) -> Result<Item, ControlError> {
        let items = self.0.items.read().unwrap_or_else(PoisonError::into_inner);
        items.get(name).cloned().ok_or_else(|| ControlError::UnknownItem(name.to_owned()))
    }

    /// Starts a stopped, paused or disabled item. `who` is for the event.
    pub async fn start_item(&self, item: &str, who: Option<&str>) -> Result<(), ControlError> {
        let item = self.find(item)?;
        if !item.routed.plan.common.enabled {
            let text = format!("{} is disabled in the production file", item.name());
            return Err(ControlError::NotAllowed(text));
        }
        self.remember(&item, Control::Run).await?;
        item.start(who).await;
        Ok(())
    }

    /// Stops an item; remembered over restarts.
    pub async fn stop_item(&self, item: &str, who: Option<&str>) -> Result<(), ControlError> {
        let item = self.find(item)?;
        if !item.routed.plan.common.enabled {
            let text = format!("{} is disabled in the production file", item.name());
            return Err(ControlError::NotAllowed(text));
        }
        self.remember(&item, Control::Stopped).await?;
        item.stop(who, self.plan().production.shutdown_timeout).await;
        Ok(())
    }

    /// Stops and starts an item.
    pub async fn restart_item(&self, item: &str, who: Option<&str>) -> Result<(), ControlError> {
        let found = self.find(item)?;
        if !found.routed.plan.common.enabled {
            let text = format!("{item} is disabled in the production file");
            return Err(ControlError::NotAllowed(text));
        }
        self.remember(&found, Control::Run).await?;
        found.stop(who, self.plan().production.shutdown_timeout).await;
        found.start(who).await;
        Ok(())
    }

    /// Asks a running service for what only its class can do ([`crate::host::ServiceFactory::order`]).
    pub async fn order_item(
        &self,
        item: &str,
        order: &str,
        who: Option<&str>,
    ) -> Result<serde_json::Value, ControlError> {
        let found = self.find(item)?;
        let unknown = || ControlError::NotAllowed(format!("{item} is no item that can {order}"));
        let Factory::Service(factory) = &found.routed.plan.built.factory else { return Err(unknown()) };
        let done = factory.order(order, who).await.ok_or_else(unknown)?;
        done.map_err(|fault| match fault.code.as_str() {
            "store" => ControlError::Unavailable(fault.text),
            _ => ControlError::NotAllowed(fault.text),
        })
    }

    async fn remember(&self, item: &Item, control: Control) -> Result<(), ControlError> {
        let (store, name, value) = (&self.0.core.store, item.name().as_str(), control.value());
        if store.get(KeepFamily::ItemControl, name) == value {
            return Ok(());
        }
        let kept = store.put(KeepFamily::ItemControl, name, value).await;
        kept.map_err(|failed| ControlError::Unavailable(failed.to_string()))
    }
}
