//! TOML text → [`Node`] tree with a span on every key and value, in file order. Syntax errors do not stop it:
//! all of them are reported, and what could be read is given for further checks.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::node::{Entry, Node, Span, Value};

/// Larger files are no production files.
pub(crate) const MAX_FILE: usize = 16 << 20;

/// What a text was read as.
pub(crate) struct Parsed {
    /// The document's table; best effort where there are errors.
    pub(crate) root: Node,
    /// Syntax errors.
    pub(crate) errors: Vec<(Span, String)>,
    /// The errors are such that what was read is likely what was meant (a bad value, a duplicate key): it is
    /// worth looking for further problems.
    pub(crate) trusted: bool,
}

/// Reads one file.
pub(crate) fn parse(text: &str, file: u32) -> Parsed {
    let (root, errors) = DeTable::parse_recoverable(text);
    let reader = Reader { file };
    let span = reader.span(root.span());
    let mut trusted = true;
    let errors = errors
        .into_iter()
        .map(|error| {
            let range = error.span().unwrap_or(0..0);
            trusted &= error.message().contains("duplicate") || in_a_value(text, range.start);
            (reader.span(range), error.message().trim_end().to_owned())
        })
        .collect();
    let mut bad_numbers = Vec::new();
    let root = Node { span, value: reader.table(root.into_inner(), &mut bad_numbers) };
    let mut parsed = Parsed { root, errors, trusted };
    parsed.errors.extend(bad_numbers);
    parsed
}

/// Whether an error is in the value of a `key = value` line that starts and ends there.
fn in_a_value(text: &str, at: usize) -> bool {
    let line_start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
    let line = text.get(line_start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let Some((key, value)) = line.split_once('=') else { return false };
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ' | '\t' | '"');
    let open = ["\"\"\"", "'''"].iter().any(|quote| value.matches(quote).count() % 2 == 1);
    let depth = |open, close| value.matches(open).count() == value.matches(close).count();
    at > line_start + key.len() && key.chars().all(bare) && !open && depth('[', ']') && depth('{', '}')
}

struct Reader {
    file: u32,
}

type Errors = Vec<(Span, String)>;

impl Reader {
    fn span(&self, range: std::ops::Range<usize>) -> Span {
        let clip = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Span { file: self.file, start: clip(range.start), end: clip(range.end) }
    }

    fn table(&self, table: DeTable<'_>, errors: &mut Errors) -> Value {
        let entry = |(key, value): (Spanned<_>, Spanned<DeValue<'_>>)| {
            let key_span = self.span(key.span());
            let key: std::borrow::Cow<'_, str> = key.into_inner();
            Entry { key: key.into_owned(), key_span, node: self.node(value, errors) }
        };
        Value::Table(table.into_iter().map(entry).collect())
    }

    fn node(&self, value: Spanned<DeValue<'_>>, errors: &mut Errors) -> Node {
        let span = self.span(value.span());
        let value = match value.into_inner() {
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => {
                    errors.push((span, "this number is too large".into()));
                    Value::Integer(0)
                }
            },
            DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(value) => Value::Boolean(value),
            DeValue::Datetime(at) => Value::Datetime(at.to_string()),
            DeValue::Array(items) => {
                Value::Array(items.into_iter().map(|item| self.node(item, errors)).collect())
            }
            DeValue::Table(table) => self.table(table, errors),
        };
        Node { span, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_order_and_their_places() {
        let text = "z = 1\na = { y = -0x1F, b = 'c' }\n[t.u]\nk = [1.5, true, 2026-11-22]\n";
        let text = &text.replace("-0x1F", "-31");
        let parsed = parse(text, 7);
        assert!(parsed.errors.is_empty());
        let keys: Vec<_> = parsed.root.entries().iter().map(|e| e.key.as_str()).collect();
        assert_eq!(keys, ["z", "a", "t"]);
        let y = &parsed.root.get("a").unwrap().node.get("y").unwrap();
        assert_eq!(y.node.value, Value::Integer(-31));
        assert_eq!(&text[y.key_span.start as usize..y.key_span.end as usize], "y");
        assert_eq!(y.key_span.file, 7);
        let u = &parsed.root.get("t").unwrap().node.get("u").unwrap().node;
        assert_eq!(&text[u.span.start as usize..u.span.end as usize], "[t.u]");
        let k = &u.get("k").unwrap().node;
        assert_eq!(k.items()[2].value, Value::Datetime("2026-11-22".into()));
    }

    #[test]
    fn every_syntax_error_is_reported_and_the_rest_is_read() {
        let parsed = parse("a = \nb = 1\nb = 2\nc = 99999999999999999999\nd = 'x'\n", 0);
        assert_eq!(parsed.errors.len(), 3, "{:?}", parsed.errors);
        assert!(parsed.trusted);
        assert!(parsed.root.get("d").is_some());
        assert!(!parse("[a\nb = 1\n", 0).trusted);
        assert!(!parse("a = [\n1,\nb = 1\n", 0).trusted);
    }
}
