//! `septet listen`.

use std::process::ExitCode;

use clap::Args;

/// Receives over MLLP, scripted: acknowledges, or does what a fault says.
#[derive(Args, Debug)]
pub(crate) struct Listen {
    /// mllp://HOST:PORT
    url: String,
    /// no-ack, late, wrong-id, nak, close or slow.
    #[arg(long, value_name = "KIND")]
    fault: Vec<String>,
}

impl Listen {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        crate::output::error("septet listen is not in this build yet");
        ExitCode::from(3)
    }
}
