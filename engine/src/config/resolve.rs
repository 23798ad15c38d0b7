//! `${env:NAME}`, `${env:NAME:-default}` and `${file:path}` in string values, resolved in the tree, after
//! parsing: a value with quotes or newlines cannot change the file's structure. Scripts are left alone, for
//! `${…}` is JavaScript's own there.

use std::collections::BTreeMap;

use crate::config::diagnostic::Severity;
use crate::config::env::Env;
use crate::config::node::{Node, Span, Value};
use crate::config::problem::{Problem, did_you_mean};
use crate::config::source::Sources;

/// Keys of processes and transforms whose values are scripts, at any depth.
const SCRIPT_KEYS: [&str; 11] =
    ["if", "while", "with", "from", "case", "reply", "throw", "foreach", "code", "expr", "assign"];

/// Tables whose keys are data, so that a key beginning `x-` in them is no annotation.
pub(crate) const DATA_TABLES: [&str; 3] = ["headers", "params", "query"];

/// Files referred to may be as large as this.
const MAX_FILE: u64 = 1 << 20;

/// Resolves all references below the root. Gives the places of values that could not be resolved: what else is
/// wrong with them is no news.
pub(crate) fn resolve(
    root: &mut Node,
    env: &Env,
    sources: &Sources,
    problems: &mut Vec<Problem>,
) -> Vec<Span> {
    let files = BTreeMap::new();
    let mut resolver = Resolver { env, sources, files, problems, quiet: false, broken: Vec::new() };
    let Value::Table(sections) = &mut root.value else { return Vec::new() };
    for section in sections {
        let scripted = matches!(section.key.as_str(), "processes" | "transforms");
        resolver.node(&mut section.node, &section.key, scripted);
    }
    resolver.broken
}

struct Resolver<'a> {
    env: &'a Env,
    sources: &'a Sources,
    files: BTreeMap<std::path::PathBuf, Result<String, String>>,
    problems: &'a mut Vec<Problem>,
    /// Inside an annotation, where nothing is a mistake.
    quiet: bool,
    broken: Vec<Span>,
}

impl Resolver<'_> {
    fn node(&mut self, node: &mut Node, key: &str, scripted: bool) {
        match &mut node.value {
            Value::String(text) if text.contains("${") => {
                *text = self.text(text, node.span, scripted);
            }
            Value::Array(items) => {
                for item in items {
                    self.node(item, key, scripted);
                }
            }
            Value::Table(entries) => {
                for entry in entries {
                    if scripted && SCRIPT_KEYS.contains(&entry.key.as_str()) {
                        continue;
                    }
                    let outer = self.quiet;
                    self.quiet |= entry.key.starts_with("x-") && !DATA_TABLES.contains(&key);
                    self.node(&mut entry.node, &entry.key, scripted);
                    self.quiet = outer;
                }
            }
            _ => {}
        }
    }

    fn text(&mut self, text: &str, span: Span, scripted: bool) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let (before, after) = rest.split_at(at);
            out.push_str(before);
            if let Some(escaped) = after.strip_prefix("$${") {
                out.push_str("${");
                rest = escaped;
            } else if let Some(inside) = after.strip_prefix("${") {
                let Some(end) = closing(inside) else {
                    self.report("S0111", span, after, "this reference has no closing }".into(), None);
                    out.push_str(after);
                    return out;
                };
                let (reference, tail) = inside.split_at(end);
                rest = tail.strip_prefix('}').unwrap_or(tail);
                match self.reference(reference, span, scripted) {
                    Some(value) => out.push_str(&value),
                    None => {
                        out.push_str("${");
                        out.push_str(reference);
                        out.push('}');
                    }
                }
            } else {
                out.push('$');
                rest = after.strip_prefix('$').unwrap_or_default();
            }
        }
        out.push_str(rest);
        out
    }

    fn reference(&mut self, reference: &str, span: Span, scripted: bool) -> Option<String> {
        let place = format!("${{{reference}}}");
        if let Some(name) = reference.strip_prefix("env:") {
            let (name, default) = match name.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (name, None),
            };
            let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(legal) {
                let text = "a variable's name has letters, digits and _ only".into();
                self.report("S0111", span, &place, text, None);
                return None;
            }
            let set = self.env.get(name).filter(|value| default.is_none() || !value.is_empty());
            if let Some(value) = set.or(default) {
                return Some(value.to_owned());
            }
            let near = did_you_mean(name, self.env.names()).unwrap_or_else(|| "set it".into());
            let suggestion = format!("{near}, or give a default: ${{env:{name}:-…}}");
            let text = format!("the environment variable {name} is not set");
            self.report("S0101", span, &place, text, Some(suggestion));
            return None;
        }
        if let Some(path) = reference.strip_prefix("file:") {
            let full = self.sources.folder(span).join(path);
            let content = self.files.entry(full.clone()).or_insert_with(|| read_text(&full)).clone();
            return match content {
                Ok(text) => Some(text),
                Err(why) => {
                    let text = format!("{} cannot be read: {why}", full.display());
                    self.report("S0110", span, &place, text, None);
                    None
                }
            };
        }
        if !scripted {
            let suggestion = format!("write ${{env:{reference}}}, ${{file:…}}, or $${{ for the text itself");
            let text = "only ${env:NAME} and ${file:path} are references".into();
            self.report("S0111", span, &place, text, Some(suggestion));
        }
        None
    }

    /// Reports a problem with a reference, at the reference itself where the literal shows it.
    fn report(
        &mut self,
        code: &'static str,
        span: Span,
        place: &str,
        text: String,
        suggestion: Option<String>,
    ) {
        if self.quiet {
            return;
        }
        self.broken.push(span);
        let span = match self.sources.text(span).find(place) {
            Some(at) => {
                let clip = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
                let start = span.start.saturating_add(clip(at));
                Span { start, end: start.saturating_add(clip(place.len())), ..span }
            }
            None => span,
        };
        self.problems.push(Problem { severity: Severity::Error, code, span, text, suggestion });
    }
}

/// Where the reference that has been opened ends; braces in a default are counted.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// A file's text without one trailing newline.
fn read_text(path: &std::path::Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| plain(&error))?.len();
    if size > MAX_FILE {
        return Err("it is larger than 1 MiB".into());
    }
    let bytes = std::fs::read(path).map_err(|error| plain(&error))?;
    let mut text = String::from_utf8(bytes).map_err(|_| "it is no UTF-8 text".to_owned())?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// An I/O error in words, without the platform's number.
pub(crate) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text.get(..at).unwrap_or_default().to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse::parse;
    use crate::config::source::Source;

    /// Resolves one TOML value; gives its text, or the problems.
    fn check(toml: &str) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key.pem"), "line 1\nline \"2\"\n\n").unwrap();
        let mut sources = Sources::default();
        let source = Source { name: "p".into(), folder: dir.path().into(), text: toml.into() };
        let mut root = parse(toml, sources.add(source)).root;
        let env: Env = [("NAME", "0123"), ("EMPTY", "")].into_iter().collect();
        let mut problems = Vec::new();
        resolve(&mut root, &env, &sources, &mut problems);
        if !problems.is_empty() {
            let show = |p: &Problem| format!("{} at {}: {}", p.code, sources.text(p.span), p.text);
            let all = problems.iter().map(show).collect::<Vec<_>>().join("; ");
            return Err(all.replace(&dir.path().display().to_string(), ""));
        }
        let section = &root.entries()[0].node;
        let mut node = section;
        while let Some(entry) = node.entries().first() {
            node = &entry.node;
        }
        Ok(node.as_str().unwrap().to_owned())
    }

    #[test]
    fn references_are_resolved_and_values_are_taken_as_they_stand() {
        assert_eq!(check("a.b = 'x${env:NAME}y'").unwrap(), "x0123y");
        assert_eq!(check("a.b = '${env:NONE:-d{e}f}'").unwrap(), "d{e}f");
        assert_eq!(check("a.b = '${env:EMPTY}|'").unwrap(), "|");
        assert_eq!(check("a.b = '${env:EMPTY:-d}'").unwrap(), "d");
        assert_eq!(check("a.b = '${file:key.pem}'").unwrap(), "line 1\nline \"2\"\n");
        assert_eq!(check("a.b = '$${env:NAME} $ $$ 5$'").unwrap(), "${env:NAME} $ $$ 5$");
    }

    #[test]
    fn scripts_and_annotations_are_left_alone() {
        assert_eq!(check("processes.p.code = '`${x}`'").unwrap(), "`${x}`");
        assert_eq!(check("processes.p.assign.\"context.a\" = '`${env:NAME}`'").unwrap(), "`${env:NAME}`");
        assert_eq!(check("processes.p.alert = 'costs ${x}'").unwrap(), "costs ${x}");
        assert_eq!(
            check("services.s.x-note = '${whatever} ${env:NONE}'").unwrap(),
            "${whatever} ${env:NONE}"
        );
        assert_eq!(check("services.s.code = '${env:NAME}'").unwrap(), "0123");
    }

    #[test]
    fn what_cannot_be_resolved_is_named_at_its_place() {
        assert_eq!(
            check("a.b = 'x ${env:NONE}'").unwrap_err(),
            "S0101 at ${env:NONE}: the environment variable NONE is not set"
        );
        assert_eq!(
            check("a.headers.x-key = '${env:NONE}'").unwrap_err(),
            "S0101 at ${env:NONE}: the environment variable NONE is not set"
        );
        assert_eq!(
            check("a.b = '${file:none.pem}'").unwrap_err(),
            "S0110 at ${file:none.pem}: /none.pem cannot be read: no such file or directory"
        );
        assert!(check("a.b = '${NAME}'").unwrap_err().starts_with("S0111 at ${NAME}"));
        assert!(check("a.b = '${env:NAME'").unwrap_err().starts_with("S0111"));
    }
}
