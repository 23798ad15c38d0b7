//! `septet items`: every item, its state and counters.

use std::process::ExitCode;

use serde_json::Value;

use super::client::{Client, Failure, print_json, table, text};

/// Shows every item with its state and counters.
#[derive(clap::Args, Debug)]
pub(crate) struct Items {
    #[command(flatten)]
    client: Client,
}

impl Items {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        match self.show().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        }
    }

    async fn show(&self) -> Result<(), Failure> {
        let answer = self.client.get("/api/v1/items", &[]).await?;
        if self.client.json {
            print_json(&answer);
            return Ok(());
        }
        let columns = [
            "name",
            "kind",
            "type",
            "state",
            "queued",
            "in_flight",
            "completed",
            "errors",
            "suspended",
            "last_error",
        ];
        let items = answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let rows: Vec<Vec<String>> = items
            .iter()
            .map(|item| columns.iter().map(|name| text(item, name).into_owned()).collect())
            .collect();
        table(
            &[
                "NAME",
                "KIND",
                "TYPE",
                "STATE",
                "QUEUED",
                "IN FLIGHT",
                "COMPLETED",
                "ERRORS",
                "SUSPENDED",
                "LAST ERROR",
            ],
            &rows,
        );
        Ok(())
    }
}
