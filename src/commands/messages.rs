//! `septet messages`: the list of messages, newest first, with the API's filters as flags; or their export.

use std::process::ExitCode;

use serde_json::{Map, Value};

use super::client::{Client, Failure, print_json, table, text};
use super::{export, filters};
use crate::output::{line, note};

/// Lists messages, newest first, or exports them.
///
/// Filters are the API's: --status suspended,error --target vendor --type 'ORU^R01' --control-id X
/// --session N --source lis --kind request --key.mrn 12345 --from 2026-03-01T00:00:00Z --to … --q TEXT
/// --limit N --cursor N --keys true
///
/// --export DEST writes all that match (or --limit N of them) with their bodies: into a folder (there
/// already, or written with a slash at its end) one file for each, ID-CONTROLID.hl7, the bytes as they
/// arrived; into any other file, or to standard output with -, one line of JSON for each. Nothing that is
/// there is overwritten. Every message exported counts as viewed in the audit.
#[derive(clap::Args, Debug)]
pub(crate) struct Messages {
    #[command(flatten)]
    client: Client,
    /// `--NAME VALUE` pairs with the API's names; `--export DEST`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FILTERS")]
    filters: Vec<String>,
}

impl Messages {
    /// Runs the command.
    pub(crate) async fn run(mut self) -> ExitCode {
        let mut destination = None;
        let read = filters::read(&self.filters, &mut self.client, |name, value| {
            if name != "export" {
                return Ok(false);
            }
            destination = Some(value()?);
            Ok(true)
        });
        let filters = match read {
            Ok(filters) => filters,
            Err(text) => {
                crate::output::error(text);
                return ExitCode::from(2);
            }
        };
        if let Some(destination) = destination {
            return export::run(&self.client, filters, &destination).await;
        }
        match self.show(filters).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        }
    }

    async fn show(&self, filters: Map<String, Value>) -> Result<(), Failure> {
        // A search in the body keeps keys out of URLs and so out of everybody's logs.
        let answer = self.client.post("/api/v1/messages/search", &Value::Object(filters)).await?;
        if self.client.json {
            print_json(&answer);
            return Ok(());
        }
        let columns =
            ["id", "session", "created", "kind", "source", "target", "type", "control_id", "status", "error"];
        let messages = answer.get("messages").and_then(Value::as_array).cloned().unwrap_or_default();
        let rows: Vec<Vec<String>> = messages
            .iter()
            .map(|message| columns.iter().map(|name| text(message, name).into_owned()).collect())
            .collect();
        table(
            &[
                "ID",
                "SESSION",
                "CREATED",
                "KIND",
                "SOURCE",
                "TARGET",
                "TYPE",
                "CONTROL ID",
                "STATUS",
                "ERROR",
            ],
            &rows,
        );
        if let Some(next) = answer.get("next").and_then(Value::as_u64) {
            line(format_args!("more: --cursor {next}"));
        }
        if let Some(stopped) = answer.get("incomplete").and_then(Value::as_str) {
            note(format_args!("not all was searched: {stopped}"));
        }
        if is_behind(&answer) {
            note("the index is being made again: messages may be missing in this list");
        }
        Ok(())
    }
}

/// Whether a list may lack messages that are stored.
pub(super) fn is_behind(list: &Value) -> bool {
    list.get("index_lag_ms").and_then(Value::as_u64).is_some_and(|lag| lag > 0)
}
