//! `septet messages`: the list of messages, newest first, with the API's filters as flags.

use std::process::ExitCode;

use serde_json::{Map, Value};

use super::client::{Client, Failure, print_json, table, text};
use crate::output::line;

/// Lists messages, newest first.
///
/// Filters are the API's: --status suspended,error --target vendor --type 'ORU^R01' --control-id X
/// --session N --source lis --kind request --key.mrn 12345 --from 2026-03-01T00:00:00Z --to … --q TEXT
/// --limit N --cursor N --keys true
#[derive(clap::Args, Debug)]
pub(crate) struct Messages {
    #[command(flatten)]
    client: Client,
    /// `--NAME VALUE` pairs with the API's names.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FILTERS")]
    filters: Vec<String>,
}

impl Messages {
    /// Runs the command.
    pub(crate) async fn run(mut self) -> ExitCode {
        let filters = match self.read_filters() {
            Ok(filters) => filters,
            Err(text) => {
                eprintln!("error: {text}");
                return ExitCode::from(2);
            }
        };
        match self.show(filters).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        }
    }

    /// The pairs; flags of the client may stand among them.
    fn read_filters(&mut self) -> Result<Map<String, Value>, String> {
        let mut filters = Map::new();
        let mut words = self.filters.iter();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("{word}: filters are --NAME VALUE"))?;
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            if name == "json" && value.is_none() {
                self.client.json = true;
                continue;
            }
            let value = match value.or_else(|| words.next().cloned()) {
                Some(value) => value,
                None => return Err(format!("--{name} needs a value")),
            };
            match name {
                "url" => self.client.set_url(value),
                "token" => self.client.set_token(value),
                name if name.starts_with("key.") => {
                    filters.insert(name.to_owned(), Value::from(value));
                }
                name => {
                    filters.insert(name.replace('-', "_"), Value::from(value));
                }
            }
        }
        Ok(filters)
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
        Ok(())
    }
}
