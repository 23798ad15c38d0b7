//! `septet schema`: the JSON Schema of the production file, for editors.

use std::process::ExitCode;

use clap::Args;
use septet_engine::config::document;

use crate::{output, registry};

/// Prints the JSON Schema of the production file.
#[derive(Args, Debug)]
pub(crate) struct Schema {}

impl Schema {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        let schema = document::schema(&registry::registry());
        output::line(serde_json::to_string_pretty(&schema).unwrap_or_default());
        ExitCode::SUCCESS
    }
}
