//! `septet check`: all problems of production files at once, each with its place. Opens no socket and no store.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use septet_engine::config::codes;
use septet_engine::config::diagnostic::Severity;
use septet_engine::config::env::Env;
use septet_engine::config::load::{Loaded, load_all, production_file};

use crate::{output, registry};

/// Checks production files: all problems at once, each with file:line:column, code, text and suggestion.
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// A folder with production.toml, or a .toml file.
    #[arg(required_unless_present = "explain")]
    productions: Vec<PathBuf>,
    /// Print the problems as a JSON list.
    #[arg(long)]
    json: bool,
    /// Explain a code, for example S0102.
    #[arg(long, value_name = "CODE", conflicts_with = "productions")]
    explain: Option<String>,
}

impl Check {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        if let Some(code) = &self.explain {
            return explain(code);
        }
        let missing: Vec<_> = self
            .productions
            .iter()
            .map(|path| production_file(path))
            .filter(|file| !file.is_file())
            .collect();
        for file in &missing {
            output::error(format_args!("there is no file {}", file.display()));
        }
        if !missing.is_empty() {
            return ExitCode::from(2);
        }
        let all = load_all(&self.productions, &registry::registry(), &Env::system());
        if self.json {
            print_json(&all);
        } else {
            print_text(&all);
        }
        if all.iter().all(|loaded| loaded.errors() == 0) { ExitCode::SUCCESS } else { ExitCode::from(1) }
    }
}

fn print_json(all: &[Loaded]) {
    let diagnostics: Vec<_> = all.iter().flat_map(|loaded| &loaded.diagnostics).collect();
    output::line(serde_json::to_string_pretty(&diagnostics).unwrap_or_default());
}

fn print_text(all: &[Loaded]) {
    let (mut errors, mut warnings) = (0, 0);
    for loaded in all {
        for diagnostic in &loaded.diagnostics {
            output::line(format_args!("{}\n", loaded.render(diagnostic)));
        }
        errors += loaded.errors();
        warnings += loaded.diagnostics.iter().filter(|found| found.severity == Severity::Warning).count();
    }
    let count = |number: usize, what: &str| match number {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        more => format!("{more} {what}s"),
    };
    output::line(format_args!("{}, {}", count(errors, "error"), count(warnings, "warning")));
}

fn explain(code: &str) -> ExitCode {
    match codes::find(code) {
        Some(found) => {
            output::line(format_args!(
                "{}: {}\n\n{}\n\n{}",
                found.code, found.title, found.explanation, found.fix
            ));
            ExitCode::SUCCESS
        }
        None => {
            output::error(format_args!("there is no code {code}"));
            ExitCode::from(2)
        }
    }
}
