//! `septet run`.

use std::process::ExitCode;

use clap::Args;

/// Runs productions in one process until SIGTERM or ctrl-c.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// A folder with production.toml, or a .toml file.
    #[arg(required = true)]
    productions: Vec<std::path::PathBuf>,
    /// Run the last production that ran where the file has errors.
    #[arg(long)]
    last_good: bool,
    /// What to do with queues whose item is gone.
    #[arg(long, value_name = "hold|discard|OLD=NEW")]
    orphans: Vec<String>,
}

impl Run {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        crate::output::error("septet run is not in this build yet");
        ExitCode::from(3)
    }
}
