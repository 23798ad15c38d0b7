//! `septet trace`.

use std::process::ExitCode;

use clap::Args;

/// Shows all messages of a session.
#[derive(Args, Debug)]
pub(crate) struct Trace {
    /// The session.
    session: u64,
}

impl Trace {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        crate::output::error("septet trace is not in this build yet");
        ExitCode::from(3)
    }
}
