//! Reading the files of a production and merging what they include into one tree.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::diagnostic::Severity;
use crate::config::node::{Entry, Node, Span, Value};
use crate::config::parse::{MAX_FILE, parse};
use crate::config::problem::Problem;
use crate::config::resolve::plain;
use crate::config::source::{Source, Sources};

/// Where files come from.
pub(crate) struct Files {
    /// The production file, as diagnostics show it.
    main: PathBuf,
    /// Its folder, absolute.
    folder: PathBuf,
    /// Texts kept from an earlier run instead of the disk: name relative to the folder, text. The first is
    /// the production file.
    kept: Option<Vec<(String, String)>>,
}

impl Files {
    pub(crate) fn disk(main: &Path) -> Files {
        let parent = main.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        Files { main: main.to_owned(), folder: absolute(parent), kept: None }
    }

    pub(crate) fn kept(sources: &[(String, String)], folder: &Path) -> Files {
        let main = sources.first().map(|(name, _)| PathBuf::from(name)).unwrap_or_default();
        Files { main, folder: absolute(folder), kept: Some(sources.to_vec()) }
    }

    /// What was read, in the form that [`Files::kept`] takes.
    pub(crate) fn kept_form(&self, sources: &Sources) -> Arc<[(String, String)]> {
        let files = sources.iter().filter(|source| !source.is_environment());
        let relative = |source: &Source| {
            let path = source.folder.join(source.name.file_name().unwrap_or_default());
            let relative = path.strip_prefix(&self.folder).map(Path::to_owned).unwrap_or(path);
            relative.to_string_lossy().into_owned()
        };
        files.map(|source| (relative(source), source.text.clone())).collect()
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn error(code: &'static str, span: Span, text: String, suggestion: Option<String>) -> Problem {
    Problem { severity: Severity::Error, code, span, text, suggestion }
}

/// Reads the production file and what it includes, as one tree. `None` where what was read is not worth
/// looking at further.
pub(crate) fn read_all(files: &Files, sources: &mut Sources, problems: &mut Vec<Problem>) -> Option<Node> {
    if let Some(kept) = &files.kept {
        return read_kept(files, kept, sources, problems);
    }
    let mut queue = VecDeque::from([(files.main.clone(), files.folder.clone(), Span::default())]);
    let mut seen = BTreeSet::new();
    let mut root: Option<Node> = None;
    let mut trusted = true;
    while let Some((name, folder, included_at)) = queue.pop_front() {
        let path = folder.join(name.file_name().unwrap_or_default());
        if !seen.insert(std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone())) {
            continue;
        }
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(why) => {
                let text = format!("{} cannot be read: {why}", name.display());
                let span = if root.is_some() {
                    included_at
                } else {
                    let file = sources.add(Source { name: name.clone(), folder, text: String::new() });
                    Span { file, start: 0, end: 0 }
                };
                problems.push(error("S0001", span, text, None));
                trusted = false;
                continue;
            }
        };
        let file = sources.add(Source { name: name.clone(), folder: folder.clone(), text: text.clone() });
        let parsed = parse(&text, file);
        trusted &= parsed.trusted;
        problems.extend(parsed.errors.into_iter().map(|(span, text)| error("S0002", span, text, None)));
        let mut table = parsed.root;
        for (pattern, span) in take_includes(&mut table, problems) {
            match expand(&folder, &pattern) {
                Ok(found) => queue.extend(found.into_iter().map(|found| {
                    let shown = name.parent().unwrap_or(Path::new("")).join(&found);
                    let full = folder.join(&found);
                    (shown, full.parent().unwrap_or(&folder).to_owned(), span)
                })),
                Err(problem) => problems.push(Problem { span, ..problem }),
            }
        }
        match &mut root {
            None => root = Some(table),
            Some(root) => merge(root, table, 0, sources, problems),
        }
    }
    root.filter(|_| trusted)
}

fn read_kept(
    files: &Files,
    kept: &[(String, String)],
    sources: &mut Sources,
    problems: &mut Vec<Problem>,
) -> Option<Node> {
    let mut root: Option<Node> = None;
    let mut trusted = true;
    for (name, text) in kept {
        let path = files.folder.join(name);
        let folder = path.parent().unwrap_or(&files.folder).to_owned();
        let file = sources.add(Source { name: name.into(), folder, text: text.clone() });
        let parsed = parse(text, file);
        trusted &= parsed.trusted;
        problems.extend(parsed.errors.into_iter().map(|(span, text)| error("S0002", span, text, None)));
        let mut table = parsed.root;
        take_includes(&mut table, problems);
        match &mut root {
            None => root = Some(table),
            Some(root) => merge(root, table, 0, sources, problems),
        }
    }
    root.filter(|_| trusted)
}

fn read_text(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| plain(&error))?.len();
    if size > MAX_FILE as u64 {
        return Err("it is too large for a production file".into());
    }
    let bytes = std::fs::read(path).map_err(|error| plain(&error))?;
    String::from_utf8(bytes).map_err(|_| "it is no UTF-8 text".to_owned())
}

/// Takes `include` out of a file's table: patterns with their places.
fn take_includes(table: &mut Node, problems: &mut Vec<Problem>) -> Vec<(String, Span)> {
    let Value::Table(entries) = &mut table.value else { return Vec::new() };
    let Some(at) = entries.iter().position(|entry| entry.key == "include") else { return Vec::new() };
    let entry = entries.remove(at);
    let one = std::slice::from_ref(&entry.node);
    let patterns = if entry.node.as_str().is_some() { one } else { entry.node.items() };
    let mut found = Vec::new();
    let wrong = "expected a list of files such as [\"interfaces/*.toml\"]";
    if patterns.is_empty() && !matches!(entry.node.value, Value::Array(_)) {
        problems.push(error("S0104", entry.node.span, wrong.into(), None));
    }
    for pattern in patterns {
        match pattern.as_str() {
            Some(text) => found.push((text.to_owned(), pattern.span)),
            None => problems.push(error("S0104", pattern.span, wrong.into(), None)),
        }
    }
    found
}

/// The files that a pattern means, relative to `folder`, sorted by name.
fn expand(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, Problem> {
    let wild = |text: &str| text.contains(['*', '?']);
    if !wild(pattern) {
        if folder.join(pattern).is_file() {
            return Ok(vec![pattern.into()]);
        }
        let text = format!("there is no file {pattern}");
        return Err(error("S0003", Span::default(), text, None));
    }
    let mut found = vec![PathBuf::from(if pattern.starts_with('/') { "/" } else { "" })];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for base in found {
            if !wild(part) {
                next.push(base.join(part));
                continue;
            }
            let Ok(names) = std::fs::read_dir(folder.join(&base)) else { continue };
            let names = names.filter_map(|name| name.ok()?.file_name().into_string().ok());
            next.extend(names.filter(|name| matches(part, name)).map(|name| base.join(name)));
        }
        found = next;
    }
    found.retain(|path| folder.join(path).is_file());
    found.sort();
    if found.is_empty() {
        let text = format!("no file matches {pattern}");
        let problem = error("S0003", Span::default(), text, None);
        return Err(Problem { severity: Severity::Warning, ..problem });
    }
    Ok(found)
}

/// Whether a file name matches a pattern with `*` and `?`; hidden files only where the pattern says so.
fn matches(pattern: &str, name: &str) -> bool {
    fn rest(mut pattern: std::str::Chars<'_>, mut name: std::str::Chars<'_>) -> bool {
        match pattern.next() {
            None => name.next().is_none(),
            Some('*') => loop {
                if rest(pattern.clone(), name.clone()) {
                    return true;
                }
                if name.next().is_none() {
                    return false;
                }
            },
            Some('?') => name.next().is_some() && rest(pattern, name),
            Some(c) => name.next() == Some(c) && rest(pattern, name),
        }
    }
    name.starts_with('.') == pattern.starts_with('.') && rest(pattern.chars(), name.chars())
}

/// Merges a file into the tree: sections are united, and within `[admin]` users and tokens; anything else
/// that is there twice is a mistake.
fn merge(into: &mut Node, from: Node, depth: usize, sources: &Sources, problems: &mut Vec<Problem>) {
    let (Value::Table(entries), Value::Table(more)) = (&mut into.value, from.value) else { return };
    for entry in more {
        let Some(known) = entries.iter_mut().find(|known| known.key == entry.key) else {
            entries.push(entry);
            continue;
        };
        let accounts = depth == 1 && matches!(entry.key.as_str(), "users" | "tokens");
        let tables = matches!((&known.node.value, &entry.node.value), (Value::Table(_), Value::Table(_)));
        if tables && (depth == 0 || accounts) {
            merge(&mut known.node, entry.node, depth + 1, sources, problems);
        } else if !entry.key.starts_with("x-") {
            problems.push(defined_twice(&entry, known.key_span, sources));
        }
    }
}

/// The diagnostic of something that is there twice; names both places.
pub(crate) fn defined_twice(entry: &Entry, first: Span, sources: &Sources) -> Problem {
    let (line, column) = sources.position(first);
    let file = sources.get(first.file).map(|source| source.name.display().to_string()).unwrap_or_default();
    let text = format!("{} is defined twice: first at {file}:{line}:{column}", entry.key);
    error("S0004", entry.key_span, text, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names() {
        assert!(matches("*.toml", "a.toml"));
        assert!(matches("a?c*.toml", "abc-d.toml"));
        assert!(!matches("*.toml", "a.toml.bak"));
        assert!(!matches("*.toml", ".a.toml"));
        assert!(matches("*", "x"));
    }
}
