//! `septet messages`.

use std::process::ExitCode;

use clap::Args;

/// Lists messages, newest first; filters are --NAME VALUE with the API's names.
#[derive(Args, Debug)]
pub(crate) struct Messages {
    /// Filters.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    filters: Vec<String>,
}

impl Messages {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        crate::output::error("septet messages is not in this build yet");
        ExitCode::from(3)
    }
}
