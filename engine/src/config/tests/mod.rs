//! The loader as its users see it: files in, diagnostics or a plan out.

mod classes;

use std::path::Path;

use crate::config::diagnostic;
use crate::config::env::Env;
use crate::config::load::{load, load_all, load_text};
use crate::config::plan::Plan;

/// The lab-results example of CONTRACT §2, whole.
const LAB_RESULTS: &str = include_str!("lab-results.toml");

/// Loads a text; gives the problems, one a line.
fn problems(text: &str) -> String {
    problems_with(text, &Env::empty())
}

fn problems_with(text: &str, env: &Env) -> String {
    let dir = tempfile::tempdir().unwrap();
    let loaded = load_text(text, dir.path(), &classes::registry(), env);
    let show = |diagnostic: &diagnostic::Diagnostic| match &diagnostic.suggestion {
        Some(suggestion) => format!("{diagnostic} ({suggestion})"),
        None => diagnostic.to_string(),
    };
    let all: Vec<_> = loaded.diagnostics.iter().map(show).collect();
    assert_eq!(loaded.plan.is_some(), loaded.errors() == 0, "{all:#?}");
    all.join("\n").replace(&dir.path().display().to_string(), "").replace("production.toml:", "")
}

fn plan(text: &str) -> Plan {
    let loaded = load_text(text, Path::new("/p"), &classes::registry(), &Env::empty());
    loaded.plan.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics))
}

#[test]
fn the_example_of_the_contract_loads_without_a_problem() {
    insta::assert_snapshot!(problems(LAB_RESULTS), @"");
}
