//! Problems of a production file: where, a stable code, what, and what to do.

use std::path::PathBuf;

use serde::Serialize;

/// How bad a problem is. Only errors make `check` fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The production cannot start.
    Error,
    /// It can, but somebody should look.
    Warning,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Stable, `S0123`.
    pub code: &'static str,
    /// The file it is in.
    pub file: PathBuf,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// What is wrong; never the value of a secret.
    pub text: String,
    /// What to do, or "did you mean".
    pub suggestion: Option<String>,
}
