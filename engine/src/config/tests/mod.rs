//! The loader as its users see it: files in, diagnostics or a plan out.

mod classes;
mod files;
mod mistakes;
mod plans;
mod reference;
mod sections;

use std::path::Path;

use crate::config::diagnostic;
use crate::config::env::Env;
use crate::config::load::load_text;
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

/// A production around `more` that is right by itself.
fn around(more: &str) -> String {
    format!(
        "[production]\nname = 'p'\n[store]\npath = 'data'\nretention = '30d'\n[services.in]\ntype = 'hl7.mllp'\nlisten = '127.0.0.1:2575'\ntargets = ['out']\n[operations.out]\ntype = 'file'\npath = 'out/x'\n{more}"
    )
}
