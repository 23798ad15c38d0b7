//! `septet doc`: the reference of every section and item type, generated from the settings' own schemas.

use std::process::ExitCode;

use clap::Args;
use septet_engine::config::document;
use septet_engine::config::problem::did_you_mean;

use crate::{output, registry};

/// Prints the reference of every item type and its settings, or of one.
#[derive(Args, Debug)]
pub(crate) struct Doc {
    /// A type such as hl7.mllp, or a section such as store.
    #[arg(value_name = "TYPE")]
    topic: Option<String>,
}

impl Doc {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        let registry = registry::registry();
        let Some(topic) = &self.topic else {
            output::line(document::reference(&registry).trim_end());
            return ExitCode::SUCCESS;
        };
        match document::reference_of(&registry, topic) {
            Some(text) => {
                output::line(text.trim_end());
                ExitCode::SUCCESS
            }
            None => {
                let topics = document::topics(&registry);
                let known = topics.iter().map(String::as_str);
                let hint =
                    did_you_mean(topic, known).unwrap_or_else(|| format!("there are {}", topics.join(", ")));
                output::error(format_args!("there is nothing named {topic}; {hint}"));
                ExitCode::from(2)
            }
        }
    }
}
