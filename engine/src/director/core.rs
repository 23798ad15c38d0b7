//! What every part of the Director shares: the store, the directory of items (the plan with its paths
//! compiled), and the services that wait for a reply in memory.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use metrics::Counter;
use tokio::sync::oneshot;

use crate::body::Body;
use crate::config::plan::{ItemPlan, Plan};
use crate::director::extract::Extract;
use crate::director::instance::Waiting;
use crate::fault::Fault;
use crate::header::{Header, ReplyTo, Status};
use crate::host::{Keep, KeepFamily, Runtime};
use crate::id::{ItemName, MessageId};
use crate::store::Store;
use crate::token::SharedTokens;

/// Locks in spite of a panic elsewhere: everything behind these locks is valid after each statement.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The counters of one item that leave through `/metrics`.
pub(super) struct Meters {
    pub(super) received: Counter,
    pub(super) completed: Counter,
    pub(super) errors: Counter,
    pub(super) retries: Counter,
    pub(super) suspended: Counter,
    pub(super) unordered: Counter,
    pub(super) unmatched: Counter,
}

impl Meters {
    fn new(production: &str, item: &ItemName) -> Self {
        let counter = |name: &'static str| metrics::counter!(name, "production" => production.to_owned(), "item" => item.as_str().to_owned());
        Meters {
            received: counter("septet_messages_received_total"),
            completed: counter("septet_messages_completed_total"),
            errors: counter("septet_messages_errors_total"),
            retries: counter("septet_messages_retried_total"),
            suspended: counter("septet_messages_suspended_total"),
            unordered: counter("septet_messages_without_order_key_total"),
            unmatched: counter("septet_messages_unmatched_total"),
        }
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meters")
    }
}

/// An item of the plan with what the hot path needs of it.
#[derive(Debug)]
pub(super) struct Routed {
    pub(super) plan: Arc<ItemPlan>,
    pub(super) order_by: Vec<Extract>,
    pub(super) search: Vec<(Arc<str>, Extract)>,
    pub(super) meters: Meters,
}

impl Routed {
    /// The `search` keys of what this service receives.
    pub(super) fn search_keys(&self, body: &Body) -> Arc<[(Arc<str>, String)]> {
        if self.search.is_empty() {
            return Arc::default();
        }
        let keys = self
            .search
            .iter()
            .flat_map(|(name, extract)| extract.values(body).into_iter().map(|value| (name.clone(), value)));
        keys.collect()
    }
}

/// The plan that runs, by name. A reload replaces it whole.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) plan: Arc<Plan>,
    pub(super) runtime: Runtime,
    items: HashMap<ItemName, Arc<Routed>>,
}

impl Directory {
    pub(super) fn new(plan: Arc<Plan>, store: &Store, tokens: &SharedTokens) -> Self {
        let runtime = Runtime {
            production: plan.production.name.as_str().into(),
            clock: store.clock().clone(),
            timezone: plan.production.timezone.clone(),
            types: plan.types.clone(),
            vault: store.vault().clone(),
            tokens: tokens.clone(),
            epoch: store.epoch(),
            keep: Arc::new(store.clone()),
        };
        let routed = |item: &Arc<ItemPlan>| {
            let common = &item.common;
            let search = common.search.iter().map(|(name, path)| (name.as_str().into(), Extract::new(path)));
            Arc::new(Routed {
                plan: item.clone(),
                order_by: common.order_by.iter().map(|path| Extract::new(path)).collect(),
                search: search.collect(),
                meters: Meters::new(&plan.production.name, &item.name),
            })
        };
        let items = plan.items.iter().map(|item| (item.name.clone(), routed(item))).collect();
        Directory { plan, runtime, items }
    }

    pub(super) fn get(&self, item: &str) -> Option<&Arc<Routed>> {
        self.items.get(item)
    }
}

/// The answer to a request of a service.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Option<Body>,
    pub(super) fault: Option<Fault>,
    /// It must be durable before anything of it leaves.
    pub(super) sequence: u64,
}

/// Shared by all tasks of one production.
pub(super) struct Core {
    pub(super) store: Store,
    pub(super) tokens: SharedTokens,
    directory: RwLock<Arc<Directory>>,
    /// Requests of services that wait for their reply.
    waiters: Mutex<HashMap<MessageId, oneshot::Sender<Answer>>>,
    /// Instances whose called messages are suspended, with those messages.
    stalled: Mutex<HashMap<MessageId, HashSet<MessageId>>>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Core")
    }
}

impl Core {
    pub(super) fn new(plan: Arc<Plan>, store: Store, tokens: SharedTokens) -> Self {
        let directory = Directory::new(plan, &store, &tokens);
        let directory = RwLock::new(Arc::new(directory));
        Core { store, tokens, directory, waiters: Mutex::default(), stalled: Mutex::default() }
    }

    pub(super) fn directory(&self) -> Arc<Directory> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn replace_directory(&self, directory: Arc<Directory>) {
        *self.directory.write().unwrap_or_else(PoisonError::into_inner) = directory;
    }

    /// Removes definitions that no waiting instance runs any more. Called before anything runs.
    pub(super) async fn forget_definitions(&self) {
        let instances = self.store.scan(KeepFamily::Instance, "");
        let running = instances.iter().filter_map(|(_, kept)| Some(Waiting::decode(kept)?.definition));
        let running: HashSet<Arc<str>> = running.collect();
        for (hash, _) in self.store.scan(KeepFamily::Definition, "") {
            if !running.contains(hash.as_str())
                && let Err(failed) = self.store.put(KeepFamily::Definition, &hash, None).await
            {
                tracing::warn!(error = %failed, "an unused definition could not be removed");
                return;
            }
        }
    }

    // --- services that wait ---

    pub(super) fn wait_for(&self, request: MessageId) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiters).insert(request, sender);
        receiver
    }

    pub(super) fn is_waited_for(&self, request: MessageId) -> bool {
        lock(&self.waiters).contains_key(&request)
    }

    pub(super) fn stop_waiting(&self, request: MessageId) {
        lock(&self.waiters).remove(&request);
    }

    pub(super) fn answer(&self, request: MessageId, answer: Answer) {
        let waiter = lock(&self.waiters).remove(&request);
        if let Some(waiter) = waiter {
            // Whoever has stopped waiting meanwhile does not want it any more.
            let _ = waiter.send(answer);
        }
    }

    // --- instances whose call is suspended give up their slot ---

    /// A request has been suspended, resumed, discarded or finished: its caller gives up its pool slot or
    /// takes it back.
    pub(super) fn call_changed(&self, request: &Header) {
        let ReplyTo::Call { instance, .. } = request.reply_to else { return };
        let mut stalled = lock(&self.stalled);
        // Read under the lock, so that of two changes the later one is seen last.
        let suspended = self.store.header(request.id).is_some_and(|now| now.status == Status::Suspended);
        if suspended {
            let calls = stalled.entry(instance).or_default();
            if calls.insert(request.id) && calls.len() == 1 {
                self.store.stall(instance, true);
            }
        } else if let Some(calls) = stalled.get_mut(&instance)
            && calls.remove(&request.id)
            && calls.is_empty()
        {
            stalled.remove(&instance);
            self.store.stall(instance, false);
        }
    }

    /// How many of these instances have given up their slot.
    pub(super) fn stalled_of<T>(&self, instances: &HashMap<MessageId, T>) -> usize {
        lock(&self.stalled).keys().filter(|instance| instances.contains_key(instance)).count()
    }

    /// An instance has ended.
    pub(super) fn forget_calls(&self, instance: MessageId) {
        lock(&self.stalled).remove(&instance);
    }
}
