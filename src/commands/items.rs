//! `septet items`.

use std::process::ExitCode;

use clap::Args;

/// Shows every item with its state and counters.
#[derive(Args, Debug)]
pub(crate) struct Items {}

impl Items {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        crate::output::error("septet items is not in this build yet");
        ExitCode::from(3)
    }
}
