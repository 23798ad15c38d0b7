//! The files of a production as they were read, and places in them: from spans to lines and columns, from a
//! position inside a string value to the position in the file, and the excerpt shown under a diagnostic.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::node::Span;

/// One file that was read (or one variable of the environment that overrides a setting).
#[derive(Clone)]
pub struct Source {
    /// As diagnostics show it: the path as the user gave it, or relative to that.
    pub name: PathBuf,
    /// Relative paths in it are relative to this folder; absolute.
    pub folder: PathBuf,
    /// Its text.
    pub text: String,
}

/// Everything that was read. Spans index into it.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<Source>);

impl Source {
    /// Whether this stands for a variable of the environment.
    pub fn is_environment(&self) -> bool {
        self.name.to_string_lossy().starts_with("$SEPTET__")
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({}, {} bytes)", self.name.display(), self.text.len())
    }
}

impl Sources {
    /// Adds a file; gives its index.
    pub fn add(&mut self, source: Source) -> u32 {
        self.0.push(source);
        u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX)
    }

    /// The file of a span.
    pub fn get(&self, file: u32) -> Option<&Source> {
        self.0.get(file as usize)
    }

    /// All files.
    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.0.iter()
    }

    /// The folder that relative paths at this place are relative to.
    pub fn folder(&self, span: Span) -> &Path {
        self.get(span.file).map_or(Path::new(""), |source| &source.folder)
    }

    /// The text of a span.
    pub fn text(&self, span: Span) -> &str {
        let text = self.get(span.file).map(|source| source.text.as_str()).unwrap_or_default();
        text.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// Line and column of a span's start, both 1-based, the column in characters.
    pub fn position(&self, span: Span) -> (usize, usize) {
        let text = self.get(span.file).map(|source| source.text.as_str()).unwrap_or_default();
        let mut start = (span.start as usize).min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        (line, column)
    }

    /// The place of a 1-based line and column of a string *value* whose literal stands at `span`. `None` when
    /// the span is no string literal or has no such position.
    pub fn within(&self, span: Span, line: usize, column: usize) -> Option<Span> {
        let raw = self.text(span);
        let at = offset_in_literal(raw, line, column)?;
        let start = span.start + u32::try_from(at).ok()?;
        let length = raw.get(at..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
        Some(Span { file: span.file, start, end: start + u32::try_from(length).ok()? })
    }

    /// The line of a span with a caret line under it. Text that may be a secret is left out.
    pub fn excerpt(&self, span: Span) -> Option<String> {
        let source = self.get(span.file)?;
        let (number, column) = self.position(span);
        let line = source.text.lines().nth(number - 1)?;
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let line = mask_secret(&line);
        let shown = line.chars().count();
        if shown > 300 {
            return None;
        }
        let wanted = self.text(span).lines().next().unwrap_or_default().chars().count();
        let carets = wanted.clamp(1, (shown + 1).saturating_sub(column).max(1));
        let gutter = number.to_string().len();
        let (pad, indent) = (" ".repeat(gutter), " ".repeat(column - 1));
        Some(format!("{pad} |\n{number} | {line}\n{pad} | {indent}{}", "^".repeat(carets)))
    }
}

/// A line with the value of a key that sounds like a secret replaced, unless it is a reference.
fn mask_secret(line: &str) -> String {
    const SECRET: [&str; 6] = ["secret", "password", "private_key", "token", "hash", "key"];
    let lower = line.to_ascii_lowercase();
    let sounds = |key: &str| {
        let key = key.trim().trim_matches(['"', '\'']);
        SECRET.iter().any(|word| key.ends_with(word))
    };
    let mut from = 0;
    while let Some(at) = lower.get(from..).and_then(|rest| rest.find('=')).map(|at| at + from) {
        let key = lower.get(from..at).unwrap_or_default();
        let key = key.rsplit([',', '{']).next().unwrap_or_default();
        let value = lower.get(at + 1..).unwrap_or_default();
        let harmless = value.trim_start().trim_start_matches(['"', '\'']).starts_with("${");
        if sounds(key) && !harmless && !value.trim_start().starts_with(['{', '[']) {
            return format!("{}= …", line.get(..at).unwrap_or_default());
        }
        from = at + 1;
    }
    line.to_owned()
}

/// The byte offset in a TOML string literal at which line and column of its value stand.
fn offset_in_literal(raw: &str, line: usize, column: usize) -> Option<usize> {
    let (open, multi, basic) = match raw {
        _ if raw.starts_with("\"\"\"") => (3, true, true),
        _ if raw.starts_with("'''") => (3, true, false),
        _ if raw.starts_with('"') => (1, false, true),
        _ if raw.starts_with('\'') => (1, false, false),
        _ => return None,
    };
    let end = raw.len().checked_sub(open).filter(|end| *end >= open)?;
    let mut at = open;
    if multi {
        let rest = raw.get(at..end)?;
        at += if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
    }
    let (mut here_line, mut here_column) = (1, 1);
    loop {
        let rest = raw.get(at..end)?;
        if basic
            && rest.starts_with('\\')
            && let (length, None) = escape(rest)
        {
            at += length;
            continue;
        }
        if here_line > line || (here_line == line && here_column >= column) {
            return Some(at);
        }
        let Some(next) = rest.chars().next() else { return Some(at) };
        let (length, value) = match next {
            '\\' if basic => escape(rest),
            c => (c.len_utf8(), Some(c)),
        };
        at += length;
        match value {
            Some('\n') if here_line == line => return Some(at - length),
            Some('\n') => (here_line, here_column) = (here_line + 1, 1),
            Some(_) => here_column += 1,
            None => {}
        }
    }
}

/// Length and value of the escape at the start of `text`; no value for a line-ending backslash.
fn escape(text: &str) -> (usize, Option<char>) {
    let code = |from: usize, digits: usize| {
        let value = text.get(from..from + digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        (from + digits, Some(value.and_then(char::from_u32).unwrap_or('?')))
    };
    match text.chars().nth(1) {
        Some('n') => (2, Some('\n')),
        Some('x') => code(2, 2),
        Some('u') => code(2, 4),
        Some('U') => code(2, 8),
        Some(c) if c.is_whitespace() => {
            let rest = text.get(1..).unwrap_or_default();
            (1 + rest.len() - rest.trim_start().len(), None)
        }
        Some(c) => (1 + c.len_utf8(), Some('?')),
        None => (1, Some('\\')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(literal: &str, line: usize, column: usize, expect: &str) {
        let at = offset_in_literal(literal, line, column).unwrap();
        assert!(literal[at..].starts_with(expect), "{literal:?} {line}:{column} is {:?}", &literal[at..]);
    }

    #[test]
    fn positions_in_values_are_found_in_every_kind_of_literal() {
        check(r#""a b !c""#, 1, 5, "!c");
        check(r#""a\tb\u00e9 !c""#, 1, 6, "!c");
        check(r#""a\nb!c""#, 2, 2, "!c");
        check("'a b !c'", 1, 5, "!c");
        check("'''\nab\nc!d'''", 2, 2, "!d");
        check("\"\"\"\r\nab\r\nc\\\"!d\"\"\"", 2, 3, "!d");
        check("\"\"\"a \\\n   !b\"\"\"", 1, 3, "!b");
        check("'ab'", 1, 9, "'");
        check("'''\nab\ncd'''", 1, 9, "\ncd");
        assert_eq!(offset_in_literal("12", 1, 1), None);
    }

    #[test]
    fn an_excerpt_points_at_the_place_and_shows_no_secret() {
        let mut sources = Sources::default();
        let text = "a = 1\n  listenn = \"x\"\nclient_secret = \"hush\"\nv = { id = 'x', password = 'y' }\n";
        let file = sources.add(Source { name: "p.toml".into(), folder: "/".into(), text: text.into() });
        let at = |word: &str| {
            let start = text.find(word).unwrap() as u32;
            sources.excerpt(Span { file, start, end: start + word.len() as u32 }).unwrap()
        };
        assert_eq!(at("listenn"), "  |\n2 |   listenn = \"x\"\n  |   ^^^^^^^");
        assert_eq!(at("client_secret"), "  |\n3 | client_secret = …\n  | ^^^^^^^^^^^^^");
        assert!(at("id = 'x'").contains("v = { id = 'x', password = …"));
    }
}
