//! The items of a production: found, their common keys read, and handed to their classes.

use std::collections::BTreeMap;

use crate::config::build::{At, Build, Names};
use crate::config::common::{self, Read};
use crate::config::files::defined_twice;
use crate::config::fingerprint::{self, Basis};
use crate::config::node::{Entry, Node, Value};
use crate::config::plan::ItemPlan;
use crate::config::problem::did_you_mean;
use crate::config::report::Report;
use crate::config::settings::{Common, PoolSize};
use crate::id::ItemName;
use crate::registry::{Built, ItemClass, ItemKind, Registry};
use crate::reply::{Family, ReplyActions};

/// An item as it stands in the file.
pub(crate) struct Found<'a> {
    pub(crate) name: ItemName,
    pub(crate) kind: ItemKind,
    pub(crate) type_name: &'a str,
    pub(crate) entry: &'a Entry,
}

/// An item with its settings. `built` is absent where its class found errors.
pub(crate) struct Prepared<'a> {
    pub(crate) name: ItemName,
    pub(crate) kind: ItemKind,
    pub(crate) entry: &'a Entry,
    pub(crate) common: Common,
    pub(crate) class: Option<ItemClass>,
    pub(crate) built: Option<Built>,
}

impl Prepared<'_> {
    pub(crate) fn into_plan(self, basis: &Basis<'_>) -> Option<ItemPlan> {
        let built = self.built?;
        let fingerprint = fingerprint::item(self.kind, &self.entry.node, &built, basis);
        let type_name = self.class?.type_name;
        Some(ItemPlan {
            name: self.name,
            kind: self.kind,
            type_name,
            common: self.common,
            built,
            fingerprint,
        })
    }
}

/// All items with a legal name, in file order. One that has a name twice is reported and left out.
pub(crate) fn find<'a>(root: &'a Node, report: &mut Report<'_>) -> Vec<Found<'a>> {
    let mut found: Vec<Found<'a>> = Vec::new();
    let mut places = BTreeMap::new();
    for section in root.entries() {
        let Some(kind) = ItemKind::ALL.into_iter().find(|kind| kind.table() == section.key) else { continue };
        for entry in section.node.entries() {
            if !matches!(entry.node.value, Value::Table(_)) {
                continue;
            }
            if !ItemName::is_legal(&entry.key) {
                let text = format!("{:?} is no legal item name", entry.key);
                let suggestion = Some("a letter, then letters, digits, _ and -".to_owned());
                report.error("S0207", entry.key_span, text, suggestion);
                continue;
            }
            if let Some(first) = places.insert(entry.key.clone(), entry.key_span) {
                report.problems.push(defined_twice(entry, first, report.sources));
                places.insert(entry.key.clone(), first);
                continue;
            }
            let type_name = entry.node.get("type").and_then(|entry| entry.node.as_str()).unwrap_or_default();
            found.push(Found { name: ItemName::new(&entry.key), kind, type_name, entry });
        }
    }
    found
}

/// Reads and builds every item.
pub(crate) fn prepare<'a>(
    found: &[Found<'a>],
    registry: &Registry,
    names: &Names,
    report: &mut Report<'_>,
) -> Vec<Prepared<'a>> {
    found.iter().filter_map(|item| prepare_one(item, registry, names, report)).collect()
}

fn prepare_one<'a>(
    item: &Found<'a>,
    registry: &Registry,
    names: &Names,
    report: &mut Report<'_>,
) -> Option<Prepared<'a>> {
    let node = &item.entry.node;
    let class = registry.class(item.kind, item.type_name).copied();
    if class.is_none() && !item.type_name.is_empty() {
        unknown_type(item, registry, report);
    }
    let read = common::read_common(node, item.kind, report.sources, report.problems);
    let Read { mut common, reply_actions } = read?;
    if common.pool_size == PoolSize::Unlimited && item.kind != ItemKind::Process {
        let place = report.place(node, &["pool_size"]);
        report.error("S0215", place, "only the pool of a process can be unlimited", None);
        common.pool_size = PoolSize::Limited(1);
    }
    if !common.enabled {
        let place = report.place(node, &["enabled"]);
        report.warning("S0402", place, format!("{} is disabled", item.name), None);
    }
    let keys = common::keys(item.kind);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut build = Build {
        item: &item.name,
        node,
        common: &common,
        names,
        folder: report.sources.folder(node.span),
        sources: report.sources,
        common_keys: &keys,
        problems: &mut *report.problems,
    };
    check_common(&mut build);
    let built = class.and_then(|class| (class.build)(&mut build));
    if item.kind == ItemKind::Operation
        && let Some(built) = &built
    {
        let family = built.facts.replies.unwrap_or(Family::Plain);
        common.reply_actions = actions(family, node, &reply_actions, report);
    }
    Some(Prepared { name: item.name.clone(), kind: item.kind, entry: item.entry, common, class, built })
}

fn unknown_type(item: &Found<'_>, registry: &Registry, report: &mut Report<'_>) {
    let place = report.place(&item.entry.node, &["type"]);
    let kind = item.kind.as_str();
    let text = format!("there is no {kind} of type {}", item.type_name);
    let of_kind =
        || registry.items.iter().filter(|class| class.kind == item.kind).map(|class| class.type_name);
    let elsewhere = registry.items.iter().find(|class| class.type_name == item.type_name);
    let suggestion = match elsewhere {
        Some(class) => Some(format!("{} is a type of {}", class.type_name, class.kind.table())),
        None => did_you_mean(item.type_name, of_kind())
            .or_else(|| Some(format!("there are {}", of_kind().collect::<Vec<_>>().join(", ")))),
    };
    report.error("S0205", place, text, suggestion);
}

/// What can be said of the common keys without the class.
fn check_common(build: &mut Build<'_>) {
    let common = build.common;
    let listed = build.node.get("targets").is_some_and(|targets| targets.node.as_str().is_none());
    for (index, target) in common.targets.iter().enumerate() {
        let at: &[At<'_>] =
            if listed { &[At::Key("targets"), At::Index(index)] } else { &[At::Key("targets")] };
        if common.targets.iter().take(index).any(|earlier| earlier == target) {
            build.error("S0217", at, format!("{target} is a target already"), None);
        }
        build.target(at, target.as_str());
    }
    if let Some(from) = &common.reply_from
        && !common.targets.contains(from)
    {
        let suggestion = did_you_mean(from.as_str(), common.targets.iter().map(ItemName::as_str));
        build.error("S0209", &["reply_from".into()], format!("{from} is not among the targets"), suggestion);
    }
    for (name, path) in &common.search {
        check_path(build, &["search".into(), name.as_str().into()], path);
    }
    let listed = build.node.get("order_by").is_some_and(|paths| paths.node.as_str().is_none());
    for (index, path) in common.order_by.iter().enumerate() {
        let at: &[At<'_>] =
            if listed { &[At::Key("order_by"), At::Index(index)] } else { &[At::Key("order_by")] };
        check_path(build, at, path);
    }
}

/// An HL7 path, or the name of a record's field.
fn check_path(build: &mut Build<'_>, at: &[At<'_>], text: &str) {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    let segment = text.get(..3).is_some_and(|name| {
        name.starts_with(|c: char| c.is_ascii_uppercase())
            && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
    });
    let below =
        text.get(3..).unwrap_or_default().starts_with(|c: char| c.is_ascii_digit() || "-[./".contains(c));
    if text.split('.').all(word) && !(segment && below) {
        return;
    }
    if let Err(error) = text.parse::<septet_hl7::Path>() {
        build.error("S0213", at, error.to_string(), Some("HL7 paths are like PID-3.1 or OBX[2]-5".into()));
    }
}

fn actions(
    family: Family,
    node: &Node,
    entries: &crate::config::units::Ordered<crate::reply::Action>,
    report: &mut Report<'_>,
) -> Option<ReplyActions> {
    let mut seen: Vec<&str> = Vec::new();
    let mut kept = Vec::new();
    let table = node.get("reply_actions").map(|entry| &entry.node);
    for (keys, action) in entries.iter() {
        let span = table.and_then(|table| table.get(keys)).map_or(node.span, |entry| entry.key_span);
        for code in keys.split(',').map(str::trim) {
            if !family.knows(code) {
                let text = format!("{code:?} is no reply code of this kind of operation");
                report.error("S0214", span, text, Some(codes(family).into()));
            } else if seen.contains(&code) {
                report.error("S0214", span, format!("{code} is given twice"), None);
            } else {
                seen.push(code);
                kept.push((code, *action));
            }
        }
    }
    ReplyActions::new(family, kept).ok()
}

fn codes(family: Family) -> &'static str {
    match family {
        Family::Hl7 => "there are AA, AE, AR, CA, CE, CR, none, fault and *",
        Family::Hl7OverHttp => {
            "there are AA, AE, AR, CA, CE, CR, none, fault, *, and without an ack codes such as 404 and classes 3xx, 4xx"
        }
        Family::Http => "there are codes such as 404, classes such as 4xx, fault and *",
        Family::Smtp => "there are codes such as 550, classes such as 4xx, fault and *",
        Family::Plain => "there are fault and *",
    }
}

/// Lets the registry check the transforms' paths and scripts.
pub(crate) fn check_transforms(section: &Node, registry: &Registry, names: &Names, report: &mut Report<'_>) {
    let common = common::read_common(
        &Node {
            span: section.span,
            value: Value::Table(vec![Entry {
                key: "type".into(),
                key_span: section.span,
                node: Node { span: section.span, value: Value::String("transform".into()) },
            }]),
        },
        ItemKind::Process,
        report.sources,
        report.problems,
    );
    let Some(Read { common, .. }) = common else { return };
    for entry in section.entries() {
        let Some(transform) = names.transforms.get(&entry.key) else { continue };
        let name = ItemName::new(&entry.key);
        let mut build = Build {
            item: &name,
            node: &entry.node,
            common: &common,
            names,
            folder: report.sources.folder(entry.node.span),
            sources: report.sources,
            common_keys: &[],
            problems: &mut *report.problems,
        };
        (registry.check_transform)(&mut build, &entry.key, transform);
    }
}
