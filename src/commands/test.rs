//! `septet test`.

use std::process::ExitCode;

use clap::Args;

/// Runs the tests.toml beside productions, on a memory store with scripted ends.
#[derive(Args, Debug)]
pub(crate) struct Test {
    /// A folder with production.toml, or a .toml file.
    #[arg(required = true)]
    productions: Vec<std::path::PathBuf>,
}

impl Test {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        crate::output::error("septet test is not in this build yet");
        ExitCode::from(3)
    }
}
