//! A problem of a production file as checks find it, with its place as a span of bytes; [`crate::config::load`]
//! makes a [`crate::config::diagnostic::Diagnostic`] of it. And what helps with one: the name that was meant.

use crate::config::diagnostic::Severity;
use crate::config::node::Span;

/// A problem found while checking.
#[derive(Clone, Debug)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Stable code.
    pub code: &'static str,
    /// Where.
    pub span: Span,
    /// What.
    pub text: String,
    /// What to do.
    pub suggestion: Option<String>,
}

/// "did you mean X?" for the nearest known name, when one is near.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let near = |other: &str| {
        let distance = strsim::damerau_levenshtein(name, other);
        (distance <= 2 && distance < name.chars().count()) || strsim::jaro_winkler(name, other) > 0.88
    };
    known
        .into_iter()
        .filter(|other| near(other))
        .min_by_key(|other| strsim::damerau_levenshtein(name, other))
        .map(|other| format!("did you mean {other}?"))
}
