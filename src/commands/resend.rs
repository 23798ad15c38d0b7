//! `septet resend`: one request again, as a new header of the same session.

use std::process::ExitCode;

use serde_json::json;

use super::client::{Client, print_json, text};
use crate::output::line;

/// Sends a stored request again: same session, same source, a new id.
#[derive(clap::Args, Debug)]
pub(crate) struct Resend {
    /// The message to send again.
    id: u64,
    /// Another receiver than the first time.
    #[arg(long)]
    target: Option<String>,
    #[command(flatten)]
    client: Client,
}

impl Resend {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        let body = match &self.target {
            Some(target) => json!({ "target": target }),
            None => json!({}),
        };
        match self.client.post(&format!("/api/v1/messages/{}/resend", self.id), &body).await {
            Ok(answer) if self.client.json => print_json(&answer),
            Ok(answer) => line(format_args!(
                "message {} of session {} resends {}; see: septet trace {}",
                text(&answer, "id"),
                text(&answer, "session"),
                text(&answer, "resent_from"),
                text(&answer, "session")
            )),
            Err(failure) => return failure.report(),
        }
        ExitCode::SUCCESS
    }
}
