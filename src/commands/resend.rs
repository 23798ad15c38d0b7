//! `septet resend`.

use std::process::ExitCode;

use clap::Args;

/// Sends a message again.
#[derive(Args, Debug)]
pub(crate) struct Resend {
    /// The message.
    id: u64,
}

impl Resend {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        crate::output::error("septet resend is not in this build yet");
        ExitCode::from(3)
    }
}
