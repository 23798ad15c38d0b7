//! `septet store`: looking after a store: check and repair while nobody has it open, backup while it runs,
//! restore. What is done is the engine's (`store::offline`, `store::backup`); here are arguments and words.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use septet_engine::clock::SystemClock;
use septet_engine::config::settings::Secret;
use septet_engine::files::SystemFiles;
use septet_engine::store::OpenError;
use septet_engine::store::offline::{self, Counts, Finding, KeyState, Keys, OfflineError, Report};

use super::store_backup::{Backup, Restore};
use crate::output::{error, line};

/// Looks after the store of a production.
#[derive(Args, Debug)]
pub(crate) struct Store {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    Check(Check),
    Repair(Repair),
    Backup(Backup),
    Restore(Restore),
}

/// Reads everything in a store that nobody has open and says what is wrong; changes nothing.
///
/// Exit codes: 0 nothing is wrong; 1 something is; 2 there is no store; 3 it is in use, or its key is missing.
#[derive(Args, Debug)]
struct Check {
    /// The store's folder (`store.path` of the production).
    path: PathBuf,
    #[command(flatten)]
    keys: KeyFiles,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Makes a damaged store openable: what cannot be read is set aside in its folder quarantine, with file and
/// offset; the rest stays readable. Without --yes it only says what it would do.
#[derive(Args, Debug)]
struct Repair {
    /// The store's folder (`store.path` of the production).
    path: PathBuf,
    #[command(flatten)]
    keys: KeyFiles,
    /// Do it.
    #[arg(long)]
    yes: bool,
    /// Print what is done as JSON.
    #[arg(long)]
    json: bool,
}

/// Where the store's keys are.
#[derive(Args, Debug)]
struct KeyFiles {
    /// A file with the store's key; default: SEPTET__STORE__KEY, or store.key in the folder.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// A file with a key that was replaced (`store.old_keys`).
    #[arg(long, value_name = "FILE")]
    old_key_file: Vec<PathBuf>,
}

impl KeyFiles {
    fn read(&self) -> Result<Keys, ExitCode> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map(Secret::new).map_err(|problem| {
                error(format_args!("{}: {problem}", path.display()));
                ExitCode::from(2)
            })
        };
        let key = match &self.key_file {
            Some(path) => Some(read(path)?),
            None => std::env::var("SEPTET__STORE__KEY").ok().map(Secret::new),
        };
        let old = self.old_key_file.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
        Ok(Keys { key, old })
    }
}

impl Store {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        match self.action {
            Action::Check(check) => check.run().unwrap_or_else(|code| code),
            Action::Repair(repair) => repair.run().await.unwrap_or_else(|code| code),
            Action::Backup(backup) => backup.run().await,
            Action::Restore(restore) => restore.run(),
        }
    }
}

impl Check {
    fn run(self) -> Result<ExitCode, ExitCode> {
        let keys = self.keys.read()?;
        let report = offline::check(&SystemFiles, &self.path, &keys).map_err(|error| refused(&error))?;
        if self.json {
            print_json(&report);
        } else {
            print(&report);
        }
        if !report.is_sound() {
            return Ok(ExitCode::from(1));
        }
        if let KeyState::Missing(text) | KeyState::Wrong(text) = &report.key {
            error(format_args!("only what is not sealed could be checked: {text} (--key-file)"));
            return Ok(ExitCode::from(3));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Repair {
    async fn run(self) -> Result<ExitCode, ExitCode> {
        let keys = self.keys.read()?;
        let files = Arc::new(SystemFiles);
        let repair = offline::repair(files, Arc::new(SystemClock), &self.path, &keys, self.yes).await;
        let repair = repair.map_err(|error| refused(&error))?;
        if self.json {
            print_json(&repair);
        } else {
            print(&repair.before);
            for action in &repair.actions {
                let place = format!("{}:{}", action.file.display(), action.offset);
                line(format_args!(
                    "{}: {place} ({} bytes): {}",
                    if self.yes { "done" } else { "would" },
                    action.length,
                    action.text
                ));
            }
            tell(&repair, self.yes);
        }
        let sound = repair.after.as_ref().unwrap_or(&repair.before).is_sound();
        Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

/// What it means for the messages.
fn tell(repair: &offline::Repair, yes: bool) {
    if repair.actions.is_empty() {
        line(if repair.before.is_sound() {
            "nothing to repair"
        } else {
            "nothing of this can be repaired; what can be read stays readable"
        });
        return;
    }
    line(
        "messages that were first stored in a lost part are gone; messages that were finished in one are delivered \
         again; tokens and state that changed in one go back to what they were",
    );
    match &repair.after {
        None if !yes => line("nothing has been changed; --yes does it"),
        Some(after) if after.is_sound() => line("the store opens; nothing is wrong with it any more"),
        Some(after) => {
            line("the store opens; this remains:");
            list("problem", &after.problems);
        }
        None => {}
    }
}

fn refused(problem: &OfflineError) -> ExitCode {
    error(problem);
    ExitCode::from(match problem {
        OfflineError::NoStore { .. } => 2,
        OfflineError::Open(OpenError::NotAJournal(_)) => 1,
        OfflineError::InUse { .. } | OfflineError::Open(_) => 3,
    })
}

fn print(report: &Report) {
    list("problem", &report.problems);
    list("note", &report.notes);
    let Counts { segments, bytes, frames, transactions, headers, bodies, events, kept } = report.counts;
    let clean = if report.clean { "closed" } else { "left without closing" };
    line(format_args!(
        "{}: {clean}, epoch {}, {segments} segments, {bytes} bytes, {frames} frames",
        report.path.display(),
        report.epoch.as_deref().unwrap_or("unknown"),
    ));
    if report.key == KeyState::Right {
        line(format_args!(
            "{transactions} transactions: {headers} headers, {bodies} bodies, {events} events, {kept} kept values"
        ));
    }
    match report.problem_count {
        0 => line("no problems"),
        1 => line("1 problem"),
        more => line(format_args!("{more} problems")),
    }
}

fn list(what: &str, findings: &[Finding]) {
    for finding in findings {
        line(format_args!("{what}: {finding}"));
    }
}

fn print_json(value: &impl serde::Serialize) {
    line(serde_json::to_string_pretty(value).unwrap_or_default());
}
