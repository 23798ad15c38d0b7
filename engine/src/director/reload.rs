//! Switching to a new plan while the old one runs. Everything new is bound first; then the items that
//! changed are stopped and started, and nothing else is touched. What cannot be bound undoes the whole
//! reload.
//!
//! One case cannot be bound first: a service that takes over the address of one that goes. It is bound
//! between stop and start, and where that fails the old items are started again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;

use crate::config::plan::{ItemPlan, Plan};
use crate::director::core::{Directory, Routed};
use crate::director::engine::Engine;
use crate::director::items::{Control, Item};
use crate::director::run::{self, Prepared};
use crate::director::{Orphans, StartError, orphans};
use crate::event::{Level, NewEvent};
use crate::id::ItemName;
use crate::registry::{Factory, ItemKind};

/// A start waits this long for items to bind; one that takes longer (a mount that hangs) goes on alone.
const START_PATIENCE: Duration = Duration::from_secs(10);

const OUT_ORDER: [ItemKind; 3] = [ItemKind::Service, ItemKind::Process, ItemKind::Operation];
const IN_ORDER: [ItemKind; 3] = [ItemKind::Operation, ItemKind::Process, ItemKind::Service];

impl Engine {
    /// Switches to a new plan: builds and binds everything new first, then switches what changed, or
    /// changes nothing. `who` ordered it, where that is known.
    pub async fn reload(&self, plan: Plan, orphans: Orphans, who: Option<&str>) -> Result<(), StartError> {
        let _one = self.0.reloading.lock().await;
        let core = &self.0.core;
        let old = core.directory();
        restart_needed(&old.plan, &plan)?;
        let plan = Arc::new(plan);
        let new = Arc::new(Directory::new(plan.clone(), &core.store, &core.tokens));

        let same = |item: &ItemPlan| {
            plan.item(&item.name)
                .is_some_and(|new| new.fingerprint == item.fingerprint && new.kind == item.kind)
        };
        let going: Vec<Arc<ItemPlan>> = old.plan.items.iter().filter(|item| !same(item)).cloned().collect();
        let changed = |item: &ItemPlan| match old.plan.item(&item.name) {
            Some(old) => old.fingerprint != item.fingerprint || old.kind != item.kind,
            None => true,
        };
        let coming: Vec<Arc<Routed>> = plan
            .items
            .iter()
            .filter(|item| changed(item))
            .filter_map(|item| new.get(item.name.as_str()).cloned())
            .collect();
        orphans::check(&orphans::find(&core.store, &plan), &plan, &orphans)?;

        let (later, first): (Vec<_>, Vec<_>) = coming
            .iter()
            .filter(|routed| self.binds(routed))
            .cloned()
            .partition(|routed| takes_over(routed, &going));
        let mut prepared = HashMap::new();
        self.bind(&first, &new, &mut prepared).await?;

        let within = old.plan.production.shutdown_timeout;
        for kind in OUT_ORDER {
            let items = going
                .iter()
                .filter(|item| item.kind == kind)
                .filter_map(|item| self.find(item.name.as_str()).ok());
            join_all(items.map(|item| async move { item.end(within).await })).await;
        }
        core.replace_directory(new.clone());
        if let Err(error) = self.bind(&later, &new, &mut prepared).await {
            drop(prepared);
            core.replace_directory(old.clone());
            let back = going.iter().filter_map(|item| old.get(item.name.as_str()).cloned());
            self.spawn(&back.collect::<Vec<_>>(), HashMap::new()).await;
            return Err(error);
        }
        self.forget(&going);
        // What the items that went have left behind meanwhile is resolved like what they had before.
        let found = orphans::find(&core.store, &plan);
        orphans::resolve(core, &found, &orphans).await?;
        self.spawn(&coming, prepared).await;
        let text = format!("reloaded: {} items stopped, {} started", going.len(), coming.len());
        let event = NewEvent::new(Level::Info, "production.reloaded", text);
        core.store.log(match who {
            Some(who) => event.who(who),
            None => event,
        });
        Ok(())
    }

    async fn bind(
        &self,
        services: &[Arc<Routed>],
        directory: &Arc<Directory>,
        prepared: &mut HashMap<ItemName, Prepared>,
    ) -> Result<(), StartError> {
        for routed in services {
            let Factory::Service(factory) = &routed.plan.built.factory else { continue };
            let name = routed.plan.name.clone();
            let bound = run::prepare(&self.0.core, routed, directory.runtime.clone(), &**factory).await;
            match bound {
                Ok(bound) => prepared.insert(name, bound),
                Err(fault) => return Err(StartError::Item { item: name, text: fault.to_string() }),
            };
        }
        Ok(())
    }

    /// Starts items, queues before what fills them.
    pub(super) async fn spawn(&self, items: &[Arc<Routed>], mut prepared: HashMap<ItemName, Prepared>) {
        for kind in IN_ORDER {
            let of_kind = items.iter().filter(|routed| routed.plan.kind == kind);
            let spawned: Vec<Item> = of_kind
                .map(|routed| {
                    let prepared = prepared.remove(&routed.plan.name);
                    Item::spawn(&self.0.core, &self.0.lanes, routed, prepared)
                })
                .collect();
            let clock = self.0.core.store.clock();
            let settled = async |item: &Item| {
                tokio::select! {
                    _ = item.settled() => {}
                    () = clock.sleep(START_PATIENCE) => {}
                }
            };
            join_all(spawned.iter().map(settled)).await;
            let mut known = self.0.items.write().unwrap_or_else(PoisonError::into_inner);
            known.extend(spawned.into_iter().map(|item| (item.name().clone(), item)));
        }
    }

    /// Whether a service will be bound when it starts: not one that an operator or its schedule keeps away.
    fn binds(&self, routed: &Routed) -> bool {
        let plan = &routed.plan;
        plan.kind == ItemKind::Service
            && plan.common.enabled
            && plan.common.schedule.is_none()
            && Control::read(&self.0.core.store, &plan.name) == Control::Run
    }

    fn forget(&self, going: &[Arc<ItemPlan>]) {
        let names: HashSet<&ItemName> = going.iter().map(|item| &item.name).collect();
        let mut known = self.0.items.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name, _| !names.contains(name));
    }
}

/// Whether an item listens where one that goes listens now. Listeners with different paths share an address.
fn takes_over(routed: &Routed, going: &[Arc<ItemPlan>]) -> bool {
    let listens = &routed.plan.built.facts.listens;
    let held = going.iter().flat_map(|item| &item.built.facts.listens);
    held.into_iter().any(|(address, path)| {
        listens
            .iter()
            .any(|(wanted, other)| wanted == address && (path.is_none() || other.is_none() || path == other))
    })
}

/// What a reload cannot change.
fn restart_needed(old: &Plan, new: &Plan) -> Result<(), StartError> {
    let needs = |what: &str| Err(StartError::NeedsRestart(what.to_owned()));
    if old.production.name != new.production.name {
        return needs("the production's name");
    }
    if !same_store(&old.store, &new.store) {
        return needs("[store]");
    }
    if old.admin.as_ref().map(|admin| admin.listen) != new.admin.as_ref().map(|admin| admin.listen) {
        return needs("the address in [admin]");
    }
    Ok(())
}

fn same_store(old: &crate::config::settings::Store, new: &crate::config::settings::Store) -> bool {
    old.path == new.path
        && old.retention == new.retention
        && old.max_size == new.max_size
        && old.min_free == new.min_free
        && old.segment_size == new.segment_size
        && old.memory == new.memory
        && old.audit_retention == new.audit_retention
        && old.key == new.key
        && old.old_keys == new.old_keys
        && old.encrypt_bodies == new.encrypt_bodies
}
