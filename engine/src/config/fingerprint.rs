//! Fingerprints: what a reload compares to touch only what changed. An item's covers its resolved settings and
//! everything these refer to: OAuth clients, message types, the production's timezone, and for processes the
//! definition (which holds transforms, types and lookup tables).

use std::collections::BTreeSet;

use aws_lc_rs::digest::{Context, SHA256};
use jiff::tz::TimeZone;

use crate::config::node::{Node, Value};
use crate::config::resolve::DATA_TABLES;
use crate::config::source::Sources;
use crate::registry::{Built, Factory, ItemKind, ProcessHost};

/// What fingerprints are made of beside the item itself.
pub(crate) struct Basis<'a> {
    pub(crate) root: &'a Node,
    pub(crate) timezone: Option<&'a TimeZone>,
}

/// The fingerprint of one item.
pub(crate) fn item(kind: ItemKind, node: &Node, built: &Built, basis: &Basis<'_>) -> String {
    let mut context = Context::new(&SHA256);
    context.update(kind.table().as_bytes());
    feed(&mut context, node, false);
    let zone = basis.timezone.and_then(TimeZone::iana_name).unwrap_or_default();
    context.update(zone.as_bytes());
    let mut feed_named = |section: &str, name: &str| {
        if let Some(entry) = basis.root.get(section).and_then(|section| section.node.get(name)) {
            context.update(name.as_bytes());
            feed(&mut context, &entry.node, false);
        }
    };
    for client in &built.facts.oauth {
        feed_named("oauth", client);
    }
    let mut words = BTreeSet::new();
    collect(node, &mut words);
    for word in words {
        feed_named("messages", word);
    }
    if let Factory::Process(ProcessHost::Inline(_, definition) | ProcessHost::Lane(definition)) =
        &built.factory
    {
        context.update(definition.hash.as_bytes());
    }
    hex(context, 16)
}

/// The version of the whole production: every file, and every value that came from outside them.
pub(crate) fn version(root: &Node, sources: &Sources) -> String {
    let mut context = Context::new(&SHA256);
    for source in sources.iter() {
        context.update(&(source.text.len() as u64).to_be_bytes());
        context.update(source.text.as_bytes());
    }
    feed(&mut context, root, false);
    hex(context, 6)
}

fn hex(context: Context, bytes: usize) -> String {
    context.finish().as_ref().iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes a value without its places. Annotations do not count, except in tables whose keys are `data`.
fn feed(context: &mut Context, node: &Node, data: bool) {
    let mut part = |tag: u8, bytes: &[u8]| {
        context.update(&[tag]);
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    match &node.value {
        Value::String(text) => part(1, text.as_bytes()),
        Value::Integer(number) => part(2, &number.to_be_bytes()),
        Value::Float(number) => part(3, &number.to_be_bytes()),
        Value::Boolean(value) => part(4, &[u8::from(*value)]),
        Value::Datetime(text) => part(5, text.as_bytes()),
        Value::Array(items) => {
            part(6, &(items.len() as u64).to_be_bytes());
            for item in items {
                feed(context, item, false);
            }
        }
        Value::Table(entries) => {
            part(7, &[]);
            for entry in entries.iter().filter(|entry| data || !entry.key.starts_with("x-")) {
                context.update(&(entry.key.len() as u64).to_be_bytes());
                context.update(entry.key.as_bytes());
                feed(context, &entry.node, DATA_TABLES.contains(&entry.key.as_str()));
            }
            context.update(&[8]);
        }
    }
}

/// Every key and text in a tree: the names it may refer to.
fn collect<'a>(node: &'a Node, words: &mut BTreeSet<&'a str>) {
    match &node.value {
        Value::String(text) => drop(words.insert(text)),
        Value::Array(items) => items.iter().for_each(|item| collect(item, words)),
        Value::Table(entries) => {
            for entry in entries {
                words.insert(&entry.key);
                collect(&entry.node, words);
            }
        }
        _ => {}
    }
}
