//! Problems of a production file: where, a stable code, what, and what to do.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::config::node::Span;

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
    /// The place as the loader knows it, for [`crate::config::source::Sources::excerpt`].
    #[serde(skip)]
    pub span: Span,
}

impl Severity {
    /// `error`, `warning`.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

impl fmt::Display for Diagnostic {
    /// `file:line:column: error S0123: text`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic { severity, code, file, line, column, text, .. } = self;
        write!(f, "{}:{line}:{column}: {} {code}: {text}", file.display(), severity.as_str())
    }
}
