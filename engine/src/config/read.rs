//! From a [`Node`] to a settings struct: the schema check, then serde.

use schemars::{JsonSchema, schema_for};
use serde::de::DeserializeOwned;

use crate::config::check;
use crate::config::de::{Error, NodeDeserializer};
use crate::config::diagnostic::Severity;
use crate::config::node::{Node, Span, Value};
use crate::config::problem::Problem;
use crate::config::source::Sources;

/// Reads a `T` and reports every problem. There is a value wherever one could be made, also beside problems:
/// the caller can then look for more.
pub(crate) fn read<T: DeserializeOwned + JsonSchema>(
    node: &Node,
    more_keys: &[&str],
    sources: &Sources,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let schema = schema_for!(T).to_value();
    let before = check::errors(problems);
    let mut pruned = check::check(node, &schema, more_keys, sources, problems);
    let checked = check::errors(problems) == before;
    // What only serde can find (a `Deserialize` with rules of its own) comes one at a time: leave out what was
    // wrong and look again.
    for attempt in 0..100 {
        match T::deserialize(NodeDeserializer(&pruned)) {
            Ok(value) => return Some(value),
            Err(Error { span, text, missing }) => {
                let span = span.unwrap_or(node.span);
                // A missing key has been reported already, or it is missing because it was left out.
                if !missing || (checked && attempt == 0) {
                    let code = if missing { "S0103" } else { "S0107" };
                    problems.push(Problem { severity: Severity::Error, code, span, text, suggestion: None });
                }
                if !leave_out(&mut pruned, span) {
                    return None;
                }
            }
        }
    }
    None
}

/// Removes the innermost entry that contains `span`; from a list also what comes after it, so that classes
/// that count positions do not miscount.
fn leave_out(node: &mut Node, span: Span) -> bool {
    let holds = |inner: Span| inner.file == span.file && inner.start <= span.start && span.end <= inner.end;
    match &mut node.value {
        Value::Array(items) => {
            let Some(at) = items.iter().position(|item| holds(item.span) || contains(item, span)) else {
                return false;
            };
            let inner = items.get_mut(at).is_some_and(|item| leave_out(item, span));
            if !inner {
                items.truncate(at);
            }
            true
        }
        Value::Table(entries) => {
            let found = entries.iter().position(|entry| {
                holds(entry.key_span) || holds(entry.node.span) || contains(&entry.node, span)
            });
            let Some(at) = found else { return false };
            let inner = entries.get_mut(at).is_some_and(|entry| leave_out(&mut entry.node, span));
            if !inner {
                entries.remove(at);
            }
            true
        }
        _ => false,
    }
}

/// Whether `span` is that of something inside (a table's own span is only its header).
fn contains(node: &Node, span: Span) -> bool {
    node.span == span
        || node.items().iter().any(|item| contains(item, span))
        || node.entries().iter().any(|entry| entry.key_span == span || contains(&entry.node, span))
}
