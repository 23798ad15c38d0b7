//! `septet replay`: a selection again, oldest first, with its progress; ctrl-c cancels it.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::client::{Client, Failure, print_json, text};
use super::filters;
use crate::output::{self, line};

/// How often the progress is asked for.
const LOOK: Duration = Duration::from_millis(500);
/// Blocked messages that are shown one by one.
const SHOWN: usize = 20;

/// Sends every request again that the filters select, oldest first; ctrl-c cancels.
///
/// Filters are those of `septet messages`: --status error --target vendor --from 2026-03-01T00:00:00Z …
/// --all stands for no filter at all. --new-target ITEM sends to another item, --rate N sets messages a
/// second (500), --dry-run only says what would be, --detach leaves it at work.
#[derive(clap::Args, Debug)]
pub(crate) struct Replay {
    #[command(flatten)]
    client: Client,
    /// `--NAME VALUE` pairs with the API's names; `--all`, `--dry-run`, `--detach`, `--rate N`,
    /// `--new-target ITEM`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FILTERS")]
    filters: Vec<String>,
}

/// What the command itself was told.
#[derive(Default)]
struct Own {
    all: bool,
    dry_run: bool,
    detach: bool,
    rate: Option<u64>,
    target: Option<String>,
}

impl Own {
    fn take(
        &mut self,
        name: &str,
        value: &mut dyn FnMut() -> Result<String, String>,
    ) -> Result<bool, String> {
        match name {
            "all" => self.all = true,
            "dry-run" => self.dry_run = true,
            "detach" => self.detach = true,
            "rate" => {
                let rate = value()?.parse().map_err(|_| "--rate takes a whole number".to_owned())?;
                self.rate = Some(rate);
            }
            "new-target" => self.target = Some(value()?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Replay {
    /// Runs the command.
    pub(crate) async fn run(mut self) -> ExitCode {
        let mut own = Own::default();
        let read = filters::read(&self.filters, &mut self.client, |name, value| own.take(name, value));
        let filter = match read {
            Ok(filter) if filter.is_empty() && !own.all => {
                output::error("a replay needs a filter; --all replays everything");
                return ExitCode::from(2);
            }
            Ok(filter) => filter,
            Err(text) => {
                output::error(text);
                return ExitCode::from(2);
            }
        };
        match self.order(filter, &own).await {
            Ok(code) => code,
            Err(failure) => failure.report(),
        }
    }

    async fn order(&self, filter: Map<String, Value>, own: &Own) -> Result<ExitCode, Failure> {
        let mut order = json!({ "filter": filter, "dry_run": own.dry_run });
        if let Some(fields) = order.as_object_mut() {
            fields.extend(own.rate.map(|rate| ("rate".to_owned(), rate.into())));
            fields.extend(own.target.clone().map(|target| ("target".to_owned(), target.into())));
        }
        let report = self.client.post("/api/v1/replay", &order).await?;
        let id = report.get("id").and_then(Value::as_u64);
        if !self.client.json {
            show(&report, own.dry_run);
        }
        let Some(id) = id.filter(|_| !own.detach) else {
            if self.client.json {
                print_json(&report);
            } else if let Some(id) = id {
                line(format_args!("replay {id} is at work"));
            }
            let nothing = !own.dry_run && id.is_none();
            return Ok(if nothing { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        };
        let replay = self.follow(id).await?;
        if self.client.json {
            print_json(&replay);
        } else {
            let (state, sent) = (text(&replay, "state"), text(&replay, "sent"));
            line(format_args!("replay {id} {state}: {sent} of {} sent again", text(&replay, "replayable")));
            if text(&replay, "failed") != "0" {
                line(format_args!(
                    "{} could not be, the last because: {}",
                    text(&replay, "failed"),
                    text(&replay, "last_failure")
                ));
            }
        }
        let whole = text(&replay, "state") == "completed" && text(&replay, "failed") == "0";
        Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Shows the progress until the replay ends; ctrl-c cancels it.
    async fn follow(&self, id: u64) -> Result<Value, Failure> {
        let path = format!("/api/v1/replays/{id}");
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        let terminal = std::io::stderr().is_terminal();
        loop {
            let replay = self.client.get(&path, &[]).await?;
            if terminal {
                let _ = write!(
                    std::io::stderr(),
                    "\r{} of {} ",
                    text(&replay, "sent"),
                    text(&replay, "replayable")
                );
            }
            if text(&replay, "state") != "running" {
                if terminal {
                    output::note("");
                }
                return Ok(replay);
            }
            tokio::select! {
                _ = &mut interrupted => match self.client.post(&format!("{path}/cancel"), &json!({})).await {
                    Ok(replay) => return Ok(replay),
                    // It ended meanwhile.
                    Err(Failure::Refused(_)) => return self.client.get(&path, &[]).await,
                    Err(failure) => return Err(failure),
                },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

/// What the check of the selection found.
fn show(report: &Value, dry_run: bool) {
    let count = |name: &str| report.get(name).and_then(Value::as_u64).unwrap_or(0);
    let (selected, replayable, blocked) = (count("selected"), count("replayable"), count("blocked_count"));
    line(format_args!("{selected} selected, {replayable} replayable, {blocked} blocked"));
    if count("duplicates") > 0 {
        let least =
            if report.get("duplicates_complete") == Some(&Value::Bool(true)) { "" } else { "at least " };
        output::note(format_args!(
            "warning: {least}{} of them their receiver has already, has in its queue, or was sent again before",
            count("duplicates")
        ));
    }
    if report.get("bodies_complete") == Some(&Value::Bool(false)) {
        output::note(format_args!("note: not every body was read; some may turn out to be damaged"));
    }
    let empty = Vec::new();
    let listed = report.get("blocked").and_then(Value::as_array).unwrap_or(&empty);
    for blocked in listed.iter().take(if dry_run { SHOWN } else { 0 }) {
        line(format_args!("  {}: {}", text(blocked, "id"), text(blocked, "reason")));
    }
    if dry_run && blocked > SHOWN as u64 {
        line(format_args!("  … {} more", blocked - SHOWN as u64));
    }
}
