//! Checks that need all items at once: who listens where, who reaches whom, who waits for whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::config::items::Prepared;
use crate::config::node::{Entry, Node, Span};
use crate::config::problem::did_you_mean;
use crate::config::report::Report;
use crate::config::settings::{Admin, PoolSize, Production};
use crate::id::ItemName;
use crate::registry::ItemKind;

/// Runs all of them.
pub(crate) fn check(
    items: &[Prepared<'_>],
    production: Option<(&Production, &Entry)>,
    admin: Option<&Option<Admin>>,
    root: &Node,
    report: &mut Report<'_>,
) {
    check_alerts(items, production, report);
    check_services(items, report);
    check_listeners(items, admin.and_then(Option::as_ref), root, report);
    check_cycles(items, report);
    check_pools(items, report);
    // Only where every item is there and was built is it known what leads where.
    let lost = report.problems.iter().any(|problem| matches!(problem.code, "S0004" | "S0201" | "S0207"));
    if !lost && items.iter().all(|item| item.built.is_some()) {
        check_reachable(items, production, report);
    }
}

fn check_alerts(items: &[Prepared<'_>], production: Option<(&Production, &Entry)>, report: &mut Report<'_>) {
    let Some((production, entry)) = production else { return };
    let node = entry.node.get("alerts").map(|entry| &entry.node);
    let receivers = || items.iter().filter(|item| item.kind != ItemKind::Service);
    for (index, name) in production.alerts.iter().enumerate() {
        if receivers().any(|item| item.name == *name) {
            continue;
        }
        let span = node.map_or(entry.node.span, |node| node.items().get(index).unwrap_or(node).span);
        let suggestion = did_you_mean(name.as_str(), receivers().map(|item| item.name.as_str()));
        report.error("S0201", span, format!("there is no process or operation named {name}"), suggestion);
    }
}

fn check_services(items: &[Prepared<'_>], report: &mut Report<'_>) {
    for item in items.iter().filter(|item| item.kind == ItemKind::Service) {
        let Some(built) = &item.built else { continue };
        let targets = &item.common.targets;
        let place = report.place(&item.entry.node, &["targets"]);
        if built.facts.no_messages {
            if !targets.is_empty() {
                report.error("S0210", place, "this type of service has no targets", None);
            }
        } else if targets.is_empty() {
            let suggestion = Some("for example targets = [\"router\"]".to_owned());
            report.error(
                "S0210",
                place,
                "a service needs targets: its messages would go nowhere",
                suggestion,
            );
        }
        if built.facts.needs_reply && targets.len() > 1 && item.common.reply_from.is_none() {
            let text = "with several targets it must be said whose reply is the answer";
            let suggestion = targets.first().map(|first| format!("for example reply_from = \"{first}\""));
            report.error("S0208", place, text, suggestion);
        }
    }
}

struct Listener<'a> {
    name: &'a str,
    enabled: bool,
    address: SocketAddr,
    path: Option<&'a str>,
    span: Span,
}

impl<'a> Listener<'a> {
    fn socket(&self) -> (SocketAddr, Option<&'a str>) {
        (self.address, self.path)
    }
}

fn check_listeners(items: &[Prepared<'_>], admin: Option<&Admin>, root: &Node, report: &mut Report<'_>) {
    let mut all: Vec<Listener<'_>> = Vec::new();
    if let (Some(admin), Some(entry)) = (admin, root.get("admin")) {
        let span = report.place(&entry.node, &["listen"]);
        all.push(Listener { name: "admin", enabled: true, address: admin.listen, path: None, span });
    }
    for item in items {
        let listens = item.built.as_ref().map(|built| built.facts.listens.as_slice()).unwrap_or_default();
        for (address, path) in listens {
            let listener = Listener {
                name: item.name.as_str(),
                enabled: item.common.enabled,
                address: *address,
                path: path.as_deref(),
                span: report.place(&item.entry.node, &["listen"]),
            };
            if let Some(other) = all.iter().find(|other| conflict(&other.socket(), &listener.socket())) {
                let (line, column) = report.sources.position(other.span);
                let place =
                    report.sources.get(other.span.file).map(|source| source.name.display().to_string());
                let what = match (listener.path, other.path) {
                    (Some(path), Some(_)) => format!("{address}{path}"),
                    _ => address.to_string(),
                };
                let name = other.name;
                let at = format!("{}:{line}:{column}", place.unwrap_or_default());
                let text = format!("{what} is taken by {name} already ({at})");
                if other.enabled && listener.enabled {
                    report.error("S0212", listener.span, text, None);
                } else {
                    report.warning("S0212", listener.span, text, None);
                }
            }
            all.push(listener);
        }
    }
}

/// Whether two listeners cannot both have what they want. HTTP services share a socket where their paths differ.
pub(crate) fn conflict(one: &(SocketAddr, Option<&str>), other: &(SocketAddr, Option<&str>)) -> bool {
    let (a, b) = (one.0, other.0);
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    if a.port() == 0 || a.port() != b.port() || !(a.ip() == b.ip() || any) {
        return false;
    }
    match (one.1, other.1) {
        (Some(path), Some(other)) if a == b => path == other,
        _ => true,
    }
}

fn check_cycles(items: &[Prepared<'_>], report: &mut Report<'_>) {
    let calls: BTreeMap<&ItemName, &[ItemName]> = items
        .iter()
        .filter_map(|item| Some((&item.name, item.built.as_ref()?.facts.calls.as_slice())))
        .collect();
    let mut reported = BTreeSet::new();
    for item in items {
        let Some(cycle) = find_cycle(&item.name, &calls) else { continue };
        let members: BTreeSet<_> = cycle.iter().copied().collect();
        if reported.insert(members) {
            let mut way: Vec<_> = cycle.iter().map(|name| name.as_str()).collect();
            way.push(item.name.as_str());
            let text =
                format!("these call each other in a circle and would wait for ever: {}", way.join(" → "));
            report.error("S0211", item.entry.key_span, text, None);
        }
    }
}

/// The shortest way from an item back to itself.
fn find_cycle<'a>(
    start: &'a ItemName,
    calls: &BTreeMap<&'a ItemName, &'a [ItemName]>,
) -> Option<Vec<&'a ItemName>> {
    let mut ways = std::collections::VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        let last = way.last().copied()?;
        for next in calls.get(last).copied().unwrap_or_default() {
            if next == start {
                return Some(way);
            }
            if seen.insert(next) {
                let mut longer = way.clone();
                longer.push(next);
                ways.push_back(longer);
            }
        }
    }
    None
}

/// Pools that make messages wait without need (DESIGN §6).
fn check_pools(items: &[Prepared<'_>], report: &mut Report<'_>) {
    let size = |item: &Prepared<'_>| match item.common.pool_size {
        PoolSize::Limited(size) => u64::from(size),
        PoolSize::Unlimited => u64::MAX,
    };
    for item in items {
        let Some(built) = item.built.as_ref().filter(|_| item.kind == ItemKind::Process) else { continue };
        let place = match item.entry.node.get("pool_size") {
            Some(entry) => entry.node.span,
            None => item.entry.key_span,
        };
        if built.facts.waits && size(item) == 1 {
            let text = format!("{} waits, and with pool_size = 1 all messages behind wait too", item.name);
            let suggestion = Some("raise pool_size, with order_by where order matters".to_owned());
            report.warning("S0403", place, text, suggestion);
        }
        for called in &built.facts.calls {
            let Some(callee) = items.iter().find(|other| other.name == *called) else { continue };
            if size(item) < size(callee) {
                let text =
                    format!("{}'s pool_size is smaller than that of {called}, which it calls", item.name);
                let suggestion = Some(format!("{called} can never be fully used from here"));
                report.warning("S0404", place, text, suggestion);
            }
        }
    }
}

fn check_reachable(
    items: &[Prepared<'_>],
    production: Option<(&Production, &Entry)>,
    report: &mut Report<'_>,
) {
    let alerts = production.map(|(production, _)| production.alerts.as_slice()).unwrap_or_default();
    let services = items.iter().filter(|item| item.kind == ItemKind::Service).map(|item| &item.name);
    let mut open: Vec<&ItemName> = services.chain(alerts).collect();
    let mut reached: BTreeSet<&ItemName> = open.iter().copied().collect();
    while let Some(name) = open.pop() {
        let Some(item) = items.iter().find(|item| item.name == *name) else { continue };
        let facts = item.built.as_ref().map(|built| &built.facts);
        let sends = facts.into_iter().flat_map(|facts| facts.sends.iter().chain(&facts.calls));
        for next in item.common.targets.iter().chain(sends) {
            if reached.insert(next) {
                open.push(next);
            }
        }
    }
    for item in items.iter().filter(|item| !reached.contains(&item.name)) {
        let text = format!("nothing leads to {}", item.name);
        report.warning("S0401", item.entry.key_span, text, None);
    }
}
