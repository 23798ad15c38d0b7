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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use septet_engine::config::codes;

    /// Every code in the sources below a folder, tests left out.
    fn used(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && !matches!(name.to_str(), Some("target" | "tests" | ".git")) {
                used(&path, found);
            } else if name.to_str().is_some_and(|name| name.ends_with(".rs") && name != "codes.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let quoted = text.split('"').filter(|word| word.len() == 5 && word.starts_with('S'));
                found
                    .extend(quoted.filter(|w| w[1..].bytes().all(|b| b.is_ascii_digit())).map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_code_that_is_used_is_explained() {
        let mut found = BTreeSet::new();
        used(Path::new(env!("CARGO_MANIFEST_DIR")), &mut found);
        assert!(found.len() > 30, "the sources were not found");
        let unexplained: Vec<_> = found.iter().filter(|code| codes::find(code).is_none()).collect();
        assert!(unexplained.is_empty(), "add to engine/src/config/codes.rs: {unexplained:?}");
    }
}
