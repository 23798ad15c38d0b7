//! Where the checks of sections and items report to, and how they read a table of settings.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::config::diagnostic::Severity;
use crate::config::node::{Node, Span};
use crate::config::problem::Problem;
use crate::config::read::read;
use crate::config::source::Sources;

/// Where checks report to.
pub(crate) struct Report<'a> {
    pub(crate) sources: &'a Sources,
    pub(crate) problems: &'a mut Vec<Problem>,
}

impl Report<'_> {
    /// Reads a table of settings.
    pub(crate) fn read<T: DeserializeOwned + JsonSchema>(&mut self, node: &Node) -> Option<T> {
        read(node, &[], self.sources, self.problems)
    }

    pub(crate) fn error(
        &mut self,
        code: &'static str,
        span: Span,
        text: impl Into<String>,
        suggestion: Option<String>,
    ) {
        let text = text.into();
        self.problems.push(Problem { severity: Severity::Error, code, span, text, suggestion });
    }

    pub(crate) fn warning(
        &mut self,
        code: &'static str,
        span: Span,
        text: impl Into<String>,
        suggestion: Option<String>,
    ) {
        let text = text.into();
        self.problems.push(Problem { severity: Severity::Warning, code, span, text, suggestion });
    }

    /// The place of a value below `node`; the nearest enclosing one that exists.
    pub(crate) fn place(&self, node: &Node, keys: &[&str]) -> Span {
        let mut at = node;
        for key in keys {
            match at.get(key) {
                Some(entry) => at = &entry.node,
                None => break,
            }
        }
        at.span
    }
}
