//! Where the crates meet: the registry of everything that can be configured, the lanes, and a production put
//! together from its plan.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use septet_engine::clock::{SharedClock, SystemClock};
use septet_engine::config::env::Env;
use septet_engine::config::load::{Loaded, load, load_sources, production_file};
use septet_engine::config::plan::Plan;
use septet_engine::config::settings::Admin;
use septet_engine::files::SystemFiles;
use septet_engine::host::{Keep as _, KeepFamily};
use septet_engine::process::LaneFactory;
use septet_engine::store::{Options, Store};
use septet_oauth::TokenManager;
use tracing::error;

use crate::registry::registry;

/// Under this key the store keeps the sources of the last plan that ran.
const LAST_GOOD: &str = "last-good";

/// Builds the lanes of scripted processes.
pub(crate) fn lanes() -> LaneFactory {
    septet_processes::lane_factory()
}

/// The machine's clock.
pub(crate) fn clock() -> SharedClock {
    Arc::new(SystemClock)
}

/// Prints every problem of a production; its plan, when there is no error.
pub(crate) fn load_or_report(path: &Path) -> Option<Plan> {
    let loaded = load(path, &registry(), &Env::system());
    report(&loaded);
    loaded.plan
}

/// Prints every problem on stderr.
pub(crate) fn report(loaded: &Loaded) {
    for diagnostic in &loaded.diagnostics {
        crate::output::note(loaded.render(diagnostic));
    }
}

/// The folder of a production.
pub(crate) fn folder(path: &Path) -> PathBuf {
    let file = production_file(path);
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Opens a store; recovery reads the journal, so it has a thread of its own.
pub(crate) async fn open_store(options: Options) -> Result<Store, String> {
    let open = move || Store::open(options, clock(), Arc::new(SystemFiles));
    match tokio::task::spawn_blocking(open).await {
        Ok(opened) => opened.map_err(|error| error.to_string()),
        Err(_) => Err("the store could not be opened".to_owned()),
    }
}

/// Remembers the sources of a plan that runs, for `--last-good`.
pub(crate) async fn remember(store: &Store, plan: &Plan) {
    let sources: Vec<_> = plan.sources.iter().cloned().collect();
    let Ok(text) = serde_json::to_vec(&sources) else { return };
    if store.get(KeepFamily::Plan, LAST_GOOD).is_some_and(|known| known == text) {
        return;
    }
    if let Err(why) = store.put(KeepFamily::Plan, LAST_GOOD, Some(text.into())).await {
        error!("the production file could not be remembered for --last-good: {why}");
    }
}

/// The last plan that ran on a store.
pub(crate) fn last_good(store: &Store, path: &Path) -> Option<Loaded> {
    let text = store.get(KeepFamily::Plan, LAST_GOOD)?;
    let sources: Vec<(String, String)> = serde_json::from_slice(&text).ok()?;
    Some(load_sources(&sources, &folder(path), &registry(), &Env::system()))
}

/// Where the store of a production is whose file cannot be read: what its `[store]` says, as far as that
/// can be made out, else `data` beside it.
pub(crate) fn guess_store(path: &Path) -> PathBuf {
    let text = std::fs::read_to_string(production_file(path)).unwrap_or_default();
    let mut in_store = false;
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            in_store = line == "[store]";
        } else if in_store && let Some((key, value)) = line.split_once('=') {
            let value = value.split('#').next().unwrap_or("").trim().trim_matches(['"', '\'']);
            if key.trim() == "path" && !value.contains("${") {
                found = Some(value.to_owned());
            }
        }
    }
    folder(path).join(found.unwrap_or_else(|| "data".to_owned()))
}

/// Where people reach the admin listener; one that listens everywhere, from this machine.
fn admin_url(admin: &Admin) -> String {
    let scheme = if admin.tls.is_some() { "https" } else { "http" };
    match admin.hosts.first() {
        Some(host) if !admin.listen.ip().is_loopback() => format!("{scheme}://{host}"),
        _ if admin.listen.ip().is_unspecified() => format!("{scheme}://localhost:{}", admin.listen.port()),
        _ => format!("{scheme}://{}", admin.listen),
    }
}

/// Gives the token manager a plan's OAuth clients, each with the items that are configured to use it.
pub(crate) fn give_clients(tokens: &TokenManager, plan: &Plan) {
    let mut used_by: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for item in &plan.items {
        for client in &item.built.facts.oauth {
            used_by.entry(client.clone()).or_default().push(item.name.to_string());
        }
    }
    if let Some(admin) = &plan.admin {
        tokens.reached_at(&admin_url(admin));
    }
    tokens.update(plan.oauth.values().cloned(), &used_by);
}
