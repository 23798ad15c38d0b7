//! `septet run`: one or more productions in one process, until SIGTERM or ctrl-c drains them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use septet_admin::Problem;
use septet_engine::config::env::Env;
use septet_engine::config::load::load_all;
use septet_engine::config::plan::Plan;
use septet_engine::director::{Engine, Orphans, Parts, StartError};
use septet_engine::host::Keep;
use septet_engine::id::ItemName;
use septet_engine::store::{Options, Store};
use septet_oauth::{TokenAlert, TokenManager};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::composition;
use crate::registry::registry;

/// Runs one or more productions in one process.
///
/// SIGTERM and ctrl-c stop accepting, finish work in flight and leave queues on disk; SIGHUP reads the
/// production files again and switches to them, or changes nothing.
#[derive(clap::Args, Debug)]
pub(crate) struct Run {
    /// Folders with production.toml, or .toml files.
    #[arg(required = true)]
    productions: Vec<PathBuf>,
    /// Where a production file has errors, run the last one that ran.
    #[arg(long)]
    last_good: bool,
    /// What to do with queued messages whose item is gone: `hold`, `discard`, or `OLD=NEW` (may be repeated).
    #[arg(long, value_name = "hold|discard|OLD=NEW", value_delimiter = ',')]
    orphans: Vec<String>,
}

/// Could not start.
const COULD_NOT_START: u8 = 3;

/// A production that runs.
struct Running {
    path: PathBuf,
    engine: Engine,
    tokens: Arc<TokenManager>,
    /// Ends the admin API and the renewal of tokens, after the engine has stopped.
    over: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Run {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        let orphans = match orphans(&self.orphans) {
            Ok(orphans) => orphans,
            Err(text) => {
                crate::output::error(text);
                return ExitCode::from(2);
            }
        };
        for path in &self.productions {
            if !path.exists() {
                crate::output::error(format_args!("there is no {}", path.display()));
                return ExitCode::from(2);
            }
        }
        // Signals count from here on, also while recovery is under way.
        let signals =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
        let (Ok(terminate), Ok(interrupt), Ok(hang_up)) = signals else {
            crate::output::error("signals cannot be received here");
            return ExitCode::from(COULD_NOT_START);
        };
        let metrics = match septet_admin::install_metrics() {
            Ok(metrics) => metrics,
            Err(text) => {
                crate::output::error(text);
                return ExitCode::from(COULD_NOT_START);
            }
        };
        let mut running: Vec<Running> = Vec::new();
        let loaded = load_all(&self.productions, &registry(), &Env::system());
        let log = loaded.iter().find_map(|loaded| loaded.plan.as_ref()).map(|plan| plan.log.clone());
        crate::logging::start(&log.unwrap_or_default());
        for (path, loaded) in self.productions.iter().zip(loaded) {
            composition::report(&loaded);
            let started = match loaded.plan {
                Some(plan) => start(path, plan, None, orphans.clone(), &metrics).await,
                None if self.last_good => start_last_good(path, orphans.clone(), &metrics).await,
                None => Err(format!("{} has errors; --last-good runs the last one that ran", path.display())),
            };
            match started {
                Ok(production) => running.push(production),
                Err(text) => {
                    crate::output::error(text);
                    stop_all(running).await;
                    return ExitCode::from(COULD_NOT_START);
                }
            }
        }
        wait(&running, terminate, interrupt, hang_up).await;
        info!("stopping: finishing work in flight");
        stop_all(running).await;
        ExitCode::SUCCESS
    }
}

/// Returns when the process is asked to stop; reloads on the way.
async fn wait(running: &[Running], mut terminate: Signal, mut interrupt: Signal, mut hang_up: Signal) {
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt.recv() => return,
            _ = hang_up.recv() => {
                for production in running {
                    if let Err(problem) = reload(&production.path, &production.engine, &production.tokens, None).await {
                        error!("{}: not reloaded: {}", production.path.display(), problem.detail);
                    }
                }
            }
        }
    }
}

async fn stop_all(running: Vec<Running>) {
    let stops = running.into_iter().map(|production| async move {
        let deadline = production.engine.plan().production.shutdown_timeout;
        production.engine.shutdown(deadline).await;
        production.over.cancel();
        for task in production.tasks {
            // Keep-alive connections of the admin API must not hold up the end.
            if tokio::time::timeout(std::time::Duration::from_millis(500), task).await.is_err() {
                warn!("the admin API still had connections");
            }
        }
    });
    futures_util::future::join_all(stops).await;
}

/// Starts a plan, on a store that is open already or on its own.
async fn start(
    path: &Path,
    plan: Plan,
    store: Option<Store>,
    orphans: Orphans,
    metrics: &septet_admin::Metrics,
) -> Result<Running, String> {
    let name = plan.production.name.clone();
    // The store first: who starts a production twice is told which process has it, not that a port is taken.
    let store = match store {
        Some(store) => store,
        None => composition::open_store(Options::from(&plan.store))
            .await
            .map_err(|error| format!("{name}: {error}"))?,
    };
    let listener = match &plan.admin {
        Some(admin) => {
            Some(septet_admin::bind(admin).await.map_err(|error| format!("{name}: [admin] {error}"))?)
        }
        None => None,
    };
    let keep: Arc<dyn Keep> = Arc::new(store.clone());
    let tokens = Arc::new(TokenManager::new(keep, store.clock().clone()));
    composition::give_clients(&tokens, &plan);
    let admin = plan.admin.clone();
    let banner = banner(&plan);
    let parts = Parts { store: store.clone(), lanes: composition::lanes(), tokens: tokens.clone() };
    let engine = Engine::start(plan.clone(), parts, orphans).await.map_err(|error| match error {
        StartError::Orphans(_) => {
            format!("{name}: {error}; say what to do with --orphans hold|discard|OLD=NEW")
        }
        error => format!("{name}: {error}"),
    })?;
    composition::remember(&store, &plan).await;

    let over = CancellationToken::new();
    let alerting = engine.clone();
    let raise = move |alert: TokenAlert| {
        let engine = alerting.clone();
        async move { engine.alert(alert.level, "oauth.refresh_token", alert.text).await }
    };
    let mut tasks = vec![tokio::spawn(tokens.clone().renew(raise, over.clone()))];
    if let (Some(listener), Some(admin)) = (listener, admin) {
        let (reload_path, reload_engine, reload_tokens) = (path.to_owned(), engine.clone(), tokens.clone());
        let parts = septet_admin::Parts {
            engine: engine.clone(),
            tokens: tokens.clone(),
            reload: Arc::new(move |who| {
                let (path, engine, tokens) =
                    (reload_path.clone(), reload_engine.clone(), reload_tokens.clone());
                Box::pin(async move { reload(&path, &engine, &tokens, who.as_deref()).await })
            }),
            metrics: metrics.clone(),
        };
        let router = septet_admin::router(parts, &admin, admin.listen);
        let stop = over.clone();
        tasks.push(tokio::spawn(async move {
            if let Err(error) = septet_admin::serve(listener, router, stop).await {
                error!("the admin API ended: {error}");
            }
        }));
    }
    crate::output::line(banner);
    Ok(Running { path: path.to_owned(), engine, tokens, over, tasks })
}

/// Runs the last plan that ran, on the store beside a production file that has errors.
async fn start_last_good(
    path: &Path,
    orphans: Orphans,
    metrics: &septet_admin::Metrics,
) -> Result<Running, String> {
    let folder = composition::guess_store(path);
    if !folder.exists() {
        return Err(format!("{}: no production has run here yet", path.display()));
    }
    let store = composition::open_store(Options::new(&folder)).await?;
    let loaded = composition::last_good(&store, path)
        .ok_or_else(|| format!("{}: no production has run here yet", path.display()))?;
    let plan = loaded.plan.clone().ok_or_else(|| {
        composition::report(&loaded);
        format!("{}: the last production that ran has errors here, too", path.display())
    })?;
    warn!("{}: running the last production that ran, version {}", path.display(), plan.version);
    start(path, plan, Some(store), orphans, metrics).await
}

/// Reads the file again and switches to it.
async fn reload(
    path: &Path,
    engine: &Engine,
    tokens: &Arc<TokenManager>,
    who: Option<&str>,
) -> Result<(), Problem> {
    let conflict = Problem::conflict;
    let loaded = septet_engine::config::load::load(path, &registry(), &Env::system());
    composition::report(&loaded);
    let errors: Vec<_> = loaded
        .diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == septet_engine::config::diagnostic::Severity::Error)
        .map(ToString::to_string)
        .collect();
    let Some(plan) = loaded.plan else {
        return Err(conflict(format!(
            "the production file has errors; nothing was changed: {}",
            errors.join("; ")
        )));
    };
    let before = engine.plan();
    // New clients must be there before the items that use them; put back if the switch fails.
    composition::give_clients(tokens, &plan);
    if let Err(error) = engine.reload(plan.clone(), Orphans::Refuse, who).await {
        composition::give_clients(tokens, &before);
        return Err(conflict(format!("nothing was changed: {error}")));
    }
    composition::remember(engine.store(), &plan).await;
    info!("{}: reloaded, version {}", path.display(), plan.version);
    Ok(())
}

/// What `--orphans` says.
fn orphans(words: &[String]) -> Result<Orphans, String> {
    let mut renames = Vec::new();
    for word in words {
        match (word.as_str(), word.split_once('=')) {
            ("hold", _) if words.len() == 1 => return Ok(Orphans::Hold),
            ("discard", _) if words.len() == 1 => return Ok(Orphans::Discard),
            (_, Some((old, new))) if ItemName::is_legal(old) && ItemName::is_legal(new) => {
                renames.push((ItemName::new(old), ItemName::new(new)));
            }
            _ => return Err(format!("--orphans {word}: takes hold, discard, or OLD=NEW")),
        }
    }
    Ok(if renames.is_empty() { Orphans::Refuse } else { Orphans::Rename(renames) })
}

/// What a newcomer wants to know: where it listens and where the API is.
fn banner(plan: &Plan) -> String {
    let mut lines = vec![format!("{}: {} items", plan.production.name, plan.items.len())];
    let width = plan.items.iter().map(|item| item.name.as_str().len()).max().unwrap_or(0).max(5);
    for item in &plan.items {
        for url in &item.built.facts.urls {
            lines.push(format!("  {:<width$}  {url}", item.name.as_str()));
        }
    }
    if let Some(admin) = &plan.admin {
        let scheme = if admin.tls.is_some() { "https" } else { "http" };
        lines.push(format!("  {:<width$}  {scheme}://{}", "admin", admin.listen));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_held_discarded_or_renamed() {
        let read = |words: &[&str]| orphans(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(read(&[]), Ok(Orphans::Refuse));
        assert_eq!(read(&["hold"]), Ok(Orphans::Hold));
        let renamed = Orphans::Rename(vec![("a".into(), "b".into()), ("c".into(), "d".into())]);
        assert_eq!(read(&["a=b", "c=d"]), Ok(renamed));
        assert!(read(&["keep"]).is_err());
        assert!(read(&["hold", "a=b"]).is_err());
    }
}
