//! What the checks of routers, flows and transforms share, and the settings that all scripted processes have.

use septet_engine::config::build::{At, Build};
use septet_engine::config::diagnostic::Severity;
use septet_engine::config::units::{ByteSize, DurationText};

use crate::script::{ScriptKind, check_script};

/// `script_time` where nothing is said.
pub(crate) fn script_time() -> DurationText {
    DurationText::secs(1)
}

/// `script_memory` where nothing is said.
pub(crate) fn script_memory() -> ByteSize {
    ByteSize::mib(64)
}

/// Limits that no script could keep.
pub(crate) fn check_limits(build: &mut Build<'_>, time: DurationText, memory: ByteSize) {
    if time.get().as_millis() < 10 {
        build.error("S0104", &["script_time".into()], "script_time is at least 10ms", None);
    }
    if memory.get() < 1 << 20 {
        build.error("S0104", &["script_memory".into()], "script_memory is at least 1MiB", None);
    }
}

/// Reports the syntax error of a script at its exact place.
pub(crate) fn script_problem(build: &mut Build<'_>, at: &[At<'_>], kind: ScriptKind, code: &str) {
    script_problem_from(build, at, kind, code, (1, 1));
}

/// As [`script_problem`], for a script that begins at a line and column of its text.
pub(crate) fn script_problem_from(
    build: &mut Build<'_>,
    at: &[At<'_>],
    kind: ScriptKind,
    code: &str,
    (line, column): (usize, usize),
) {
    let Err(error) = check_script(kind, code) else { return };
    let first = if error.line == 1 { column - 1 } else { 0 };
    let span = build.within(at, line + error.line - 1, first + error.column);
    let text = format!("script: {} (line {}, column {} of the script)", error.text, error.line, error.column);
    build.report(Severity::Error, "S0301", span, text, None);
}

/// Reports an error at a key of the table at `at` (not at its value).
pub(crate) fn key_problem(
    build: &mut Build<'_>,
    code: &'static str,
    at: &[At<'_>],
    key: &str,
    text: impl Into<String>,
    suggestion: Option<String>,
) {
    let mut node = build.node;
    for step in at {
        let next = match step {
            At::Key(key) => node.get(key).map(|entry| &entry.node),
            At::Index(index) => node.items().get(*index),
        };
        node = next.unwrap_or(node);
    }
    let span = node.get(key).map_or(node.span, |entry| entry.key_span);
    build.report(Severity::Error, code, span, text, suggestion);
}

/// Whether `text` names a field of a record: `status`, `patient.mrn`. Text that looks like a mistaken HL7
/// path (three capitals or digits, then nothing or a place) does not.
pub(crate) fn field_path(text: &str) -> bool {
    let legal = |part: &str| {
        let mut chars = part.chars();
        chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
            && chars.all(|c| c.is_alphanumeric() || c == '_')
    };
    let segment = text.len() >= 3
        && text.bytes().take(3).all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
        && !text.as_bytes().get(3).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    !segment && text.split('.').all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_told_from_a_mistaken_path() {
        for field in ["status", "patient.mrn", "_x", "größe", "MRNX", "OBX_value"] {
            assert!(field_path(field), "{field}");
        }
        for path in ["PID", "PID.3", "PID-3", "PID3.", "a..b", "", "a-b", "1a"] {
            assert!(!field_path(path), "{path}");
        }
    }
}
