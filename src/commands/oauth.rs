//! `septet oauth`: what operators ask of OAuth clients and authorization servers of a running production.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, print_json, table, text};
use crate::output::line;

/// OAuth clients and authorization servers of a running production.
#[derive(Args, Debug)]
pub(crate) struct Oauth {
    #[command(subcommand)]
    order: Order,
}

#[derive(Subcommand, Debug)]
enum Order {
    Rotate(Rotate),
}

/// Lets another key sign the tokens of an authorization server; the old one stays published until its tokens have
/// ended.
#[derive(Args, Debug)]
struct Rotate {
    /// The item of type oauth.server.
    service: String,
    #[command(flatten)]
    client: Client,
}

impl Oauth {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        match self.order {
            Order::Rotate(rotate) => rotate.run().await,
        }
    }
}

impl Rotate {
    async fn run(self) -> ExitCode {
        let answer = self.client.post(&format!("/api/v1/oauth/{}/rotate", self.service), &json!({})).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return failure.report(),
        };
        if self.client.json {
            print_json(&answer);
            return ExitCode::SUCCESS;
        }
        line(format_args!(
            "key {} ({}) signs the tokens of {} from now on",
            text(&answer, "key_id"),
            text(&answer, "algorithm"),
            self.service
        ));
        let old = answer.get("old").and_then(Value::as_array).cloned().unwrap_or_default();
        let row =
            |key: &Value| ["key_id", "algorithm", "until"].map(|name| text(key, name).into_owned()).to_vec();
        table(&["STILL PUBLISHED", "ALGORITHM", "UNTIL"], &old.iter().map(row).collect::<Vec<_>>());
        ExitCode::SUCCESS
    }
}
