//! A TOML value that knows its place. `${…}` references are resolved already.

/// A place in one of the production's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    /// Index into the list of files that were read.
    pub file: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub span: Span,
    /// What it is.
    pub value: Value,
}

/// The kinds of TOML values.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// Text, references resolved.
    String(String),
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// True or false.
    Boolean(bool),
    /// Any of TOML's four date and time types, as written.
    Datetime(String),
    /// A list.
    Array(Vec<Node>),
    /// Keys in file order.
    Table(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_span: Span,
    /// The value.
    pub node: Node,
}

impl std::fmt::Debug for Value {
    /// Values may be secrets: only the shape is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::String(text) => write!(f, "String({} bytes)", text.len()),
            Value::Integer(_) => f.write_str("Integer"),
            Value::Float(_) => f.write_str("Float"),
            Value::Boolean(_) => f.write_str("Boolean"),
            Value::Datetime(_) => f.write_str("Datetime"),
            Value::Array(items) => f.debug_list().entries(items).finish(),
            Value::Table(entries) => f.debug_list().entries(entries).finish(),
        }
    }
}

impl Node {
    /// The entries, when it is a table.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }

    /// The entry of `key`, when it is a table that has it.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The text, when it is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items, when it is an array.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::Array(items) => items,
            _ => &[],
        }
    }
}
