//! What a class sees while it checks an item's settings: the settings' place in the file, the names of
//! everything else in the production, and somewhere to report problems to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::config::diagnostic::Severity;
use crate::config::node::{Node, Span, Value};
use crate::config::problem::{Problem, did_you_mean};
use crate::config::read::read;
use crate::config::settings::{Common, Transform};
use crate::config::source::Sources;
use crate::id::ItemName;
use crate::record::MessageTypes;
use crate::registry::ItemKind;
use crate::token::Placement;

/// Everything an item may refer to, known before any item is built.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// All items with kind and type.
    pub items: BTreeMap<ItemName, (ItemKind, String)>,
    /// Declared message types.
    pub types: MessageTypes,
    /// Declared transforms.
    pub transforms: BTreeMap<String, Transform>,
    /// Declared OAuth clients.
    pub oauth: Vec<String>,
    /// Where an OAuth client's tokens go unless an operation says otherwise, for those that say something.
    pub placements: BTreeMap<String, Placement>,
    /// Lookup tables by name: key to value.
    pub lookups: BTreeMap<String, BTreeMap<String, String>>,
}

/// One item being built.
#[derive(Debug)]
pub struct Build<'a> {
    /// The item's name.
    pub item: &'a ItemName,
    /// The item's whole table.
    pub node: &'a Node,
    /// Settings common to all items of its kind, checked already.
    pub common: &'a Common,
    /// What it may refer to.
    pub names: &'a Names,
    /// Relative paths are relative to this folder: that of the file the item stands in.
    pub folder: &'a Path,
    /// The files that were read: places inside strings.
    pub sources: &'a Sources,
    /// The common keys of its kind, taken out of its own settings unless these have them too.
    pub common_keys: &'a [&'a str],
    /// Problems found so far.
    pub problems: &'a mut Vec<Problem>,
}

/// A step into the item's table: a key or an index.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// A key of a table.
    Key(&'a str),
    /// An index of an array, 0-based.
    Index(usize),
}

impl<'a> From<&'a str> for At<'a> {
    fn from(key: &'a str) -> Self {
        At::Key(key)
    }
}

impl From<usize> for At<'_> {
    fn from(index: usize) -> Self {
        At::Index(index)
    }
}

impl Build<'_> {
    /// The item's own settings (common keys taken out), checked against their schema: every unknown key
    /// (with "did you mean"), missing key and wrong type is reported at once.
    ///
    /// The problems are reported; a value is given wherever one can be made, also beside problems, so that the
    /// class can go on and find more. Keys beginning `x-` are dropped from structs and kept in maps; values of
    /// a format of paths come as absolute paths.
    pub fn settings<T: DeserializeOwned + JsonSchema>(&mut self) -> Option<T> {
        let schema = schemars::schema_for!(T).to_value();
        let own =
            |key: &str| schema.get("properties").is_some_and(|properties| properties.get(key).is_some());
        let entries = self.node.entries().iter();
        let entries =
            entries.filter(|entry| own(&entry.key) || !self.common_keys.contains(&entry.key.as_str()));
        let node = Node { span: self.node.span, value: Value::Table(entries.cloned().collect()) };
        read(&node, self.common_keys, self.sources, self.problems)
    }

    /// The place of a value in the item's table; the nearest enclosing one that exists.
    pub fn span(&self, at: &[At<'_>]) -> Span {
        let mut node = self.node;
        for step in at {
            let next = match step {
                At::Key(key) => node.get(key).map(|entry| &entry.node),
                At::Index(index) => node.items().get(*index),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.span
    }

    /// Reports an error at a place in the item's table.
    pub fn error(
        &mut self,
        code: &'static str,
        at: &[At<'_>],
        text: impl Into<String>,
        suggestion: Option<String>,
    ) {
        let span = self.span(at);
        self.report(Severity::Error, code, span, text, suggestion);
    }

    /// Reports a warning at a place in the item's table.
    pub fn warning(
        &mut self,
        code: &'static str,
        at: &[At<'_>],
        text: impl Into<String>,
        suggestion: Option<String>,
    ) {
        let span = self.span(at);
        self.report(Severity::Warning, code, span, text, suggestion);
    }

    /// Reports a problem at a span, for example inside a script (see [`Build::within`]).
    pub fn report(
        &mut self,
        severity: Severity,
        code: &'static str,
        span: Span,
        text: impl Into<String>,
        suggestion: Option<String>,
    ) {
        self.problems.push(Problem { severity, code, span, text: text.into(), suggestion });
    }

    /// The span of a position inside a string value, for script errors: 1-based line and column of the
    /// value's text. Exact in every kind of string literal, as long as no `${…}` was resolved in it.
    pub fn within(&self, at: &[At<'_>], line: usize, column: usize) -> Span {
        let span = self.span(at);
        self.sources.within(span, line, column).unwrap_or(span)
    }

    /// A path of the settings, relative to the folder of the file that the item stands in.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.folder.join(relative)
    }

    /// Resolves the name of another process or operation; reports an unknown one with "did you mean".
    pub fn target(&mut self, at: &[At<'_>], name: &str) -> Option<ItemName> {
        let found = self.names.items.get_key_value(name).filter(|(_, (kind, _))| *kind != ItemKind::Service);
        if let Some((item, _)) = found {
            return Some(item.clone());
        }
        let known = self.names.items.iter().filter(|(_, (kind, _))| *kind != ItemKind::Service);
        let suggestion = did_you_mean(name, known.map(|(item, _)| item.as_str()));
        self.error("S0201", at, format!("there is no process or operation named {name}"), suggestion);
        None
    }

    /// Checks that a message type is declared; reports an unknown one with "did you mean".
    /// `Json` and `Text`, the types of what nobody declared, are always there.
    pub fn message_type(&mut self, at: &[At<'_>], name: &str) -> bool {
        if self.names.types.get(name).is_some() || matches!(name, "Json" | "Text") {
            return true;
        }
        let suggestion = did_you_mean(name, self.names.types.iter().map(|t| t.name.as_str()));
        self.error("S0202", at, format!("message type {name} is not declared"), suggestion);
        false
    }

    /// Checks that a transform is declared; reports an unknown one with "did you mean".
    pub fn transform(&mut self, at: &[At<'_>], name: &str) -> bool {
        if self.names.transforms.contains_key(name) {
            return true;
        }
        let suggestion = did_you_mean(name, self.names.transforms.keys().map(String::as_str));
        self.error("S0203", at, format!("there is no transform named {name}"), suggestion);
        false
    }

    /// Checks that an OAuth client is declared; reports an unknown one with "did you mean".
    pub fn oauth_client(&mut self, at: &[At<'_>], name: &str) -> bool {
        if self.names.oauth.iter().any(|known| known == name) {
            return true;
        }
        let suggestion = did_you_mean(name, self.names.oauth.iter().map(String::as_str));
        self.error("S0204", at, format!("there is no OAuth client named {name}"), suggestion);
        false
    }
}
