//! `septet oauth`: what operators ask of OAuth clients and authorization servers of a running production.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, Failure, print_json, table, text};
use crate::output::{line, note};

/// OAuth clients and authorization servers of a running production.
#[derive(Args, Debug)]
pub(crate) struct Oauth {
    #[command(subcommand)]
    order: Order,
}

#[derive(Subcommand, Debug)]
enum Order {
    Test(Test),
    Rotate(Rotate),
}

/// Fetches a token now and shows its expiry, scope and claims, never the token.
#[derive(Args, Debug)]
struct Test {
    /// The OAuth client.
    name: String,
    #[command(flatten)]
    client: Client,
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
            Order::Test(test) => test.run().await,
            Order::Rotate(rotate) => rotate.run().await,
        }
    }
}

impl Test {
    async fn run(self) -> ExitCode {
        let path = format!("/api/v1/oauth/{}", self.name);
        let answer = match self.client.post(&format!("{path}/test"), &json!({})).await {
            Ok(answer) => answer,
            Err(failure) => {
                // What the server itself said helps most, where it said something.
                if let (Failure::Refused(_), Ok(entry)) = (&failure, self.client.get(&path, &[]).await) {
                    let words = text(&entry, "detail");
                    if !words.is_empty() {
                        note(format_args!("the server says: {words}"));
                    }
                }
                return failure.report();
            }
        };
        if self.client.json {
            print_json(&answer);
            return ExitCode::SUCCESS;
        }
        let seconds = text(&answer, "expires_in");
        line(format_args!("{}: a token was fetched from {}", self.name, text(&answer, "token_url")));
        line(format_args!("expires  {} (in {seconds} s)", text(&answer, "expires_at")));
        line(format_args!("scope    {}", text(&answer, "scope")));
        match answer.get("claims").and_then(Value::as_object) {
            Some(claims) => {
                for (name, value) in claims {
                    line(format_args!("claim    {name} = {value}"));
                }
            }
            None => line("claims   none: the token is opaque"),
        }
        ExitCode::SUCCESS
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
