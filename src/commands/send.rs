//! `septet send`.

use std::process::ExitCode;

use clap::Args;

/// Sends messages over MLLP and prints the acknowledgements; also a load generator.
#[derive(Args, Debug)]
pub(crate) struct Send {
    /// mllp://HOST:PORT
    url: String,
    /// Files, folders, or - for standard input.
    #[arg(required = true)]
    files: Vec<std::path::PathBuf>,
    /// How many connections; one message is outstanding on each.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// How often everything is sent.
    #[arg(long, default_value_t = 1)]
    repeat: u64,
    /// Messages a second, at most.
    #[arg(long)]
    rate: Option<f64>,
    /// The acknowledgement code that counts as success.
    #[arg(long)]
    expect: Option<String>,
}

impl Send {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        crate::output::error("septet send is not in this build yet");
        ExitCode::from(3)
    }
}
