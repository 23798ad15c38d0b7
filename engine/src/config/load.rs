//! From files to a [`Plan`]: read, include, merge, override, resolve, check. Nothing stops at the first
//! problem; a plan exists only where there is no error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use schemars::schema_for;

use crate::config::build::Names;
use crate::config::check::unknown_key;
use crate::config::diagnostic::{Diagnostic, Severity};
use crate::config::env::{Env, apply_overrides};
use crate::config::files::{self, Files};
use crate::config::fingerprint;
use crate::config::items;
use crate::config::node::{Node, Span, Value};
use crate::config::plan::Plan;
use crate::config::problem::Problem;
use crate::config::report::Report;
use crate::config::settings::Log;
use crate::config::source::Sources;
use crate::config::{definitions, graph, oauth, resolve, sections};
use crate::registry::{ItemKind, Registry};

/// What a production file was read as.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What can run; absent where there is an error.
    pub plan: Option<Plan>,
    /// All problems, in the order of the files.
    pub diagnostics: Vec<Diagnostic>,
    /// The files that were read.
    pub sources: Sources,
    /// Where sections and items stand, by name.
    places: BTreeMap<String, Span>,
}

impl Loaded {
    /// How many errors there are; warnings do not count.
    pub fn errors(&self) -> usize {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count()
    }

    /// A diagnostic as people read it: place, code, text, the line it is about, and what to do.
    pub fn render(&self, diagnostic: &Diagnostic) -> String {
        let mut text = diagnostic.to_string();
        if let Some(excerpt) = self.sources.excerpt(diagnostic.span) {
            text.push('\n');
            text.push_str(&excerpt);
        }
        if let Some(suggestion) = &diagnostic.suggestion {
            text.push_str("\n  = ");
            text.push_str(suggestion);
        }
        text
    }
}

/// The production file of what a user named: a `.toml` file, or a folder with `production.toml`.
pub fn production_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("production.toml") } else { path.to_owned() }
}

/// Loads one production: a `.toml` file, or a folder with `production.toml`. Opens no socket and no store.
pub fn load(path: &Path, registry: &Registry, env: &Env) -> Loaded {
    load_files(&Files::disk(&production_file(path)), registry, env, false)
}

/// Loads the productions of one process. Variables that override settings are refused where there are several.
pub fn load_all(paths: &[PathBuf], registry: &Registry, env: &Env) -> Vec<Loaded> {
    let several = paths.len() > 1;
    let load = |path: &PathBuf| load_files(&Files::disk(&production_file(path)), registry, env, several);
    let mut all: Vec<Loaded> = paths.iter().map(load).collect();
    for at in 1..all.len() {
        let (earlier, rest) = all.split_at_mut(at);
        if let Some(later) = rest.first_mut() {
            beside(earlier, later);
        }
    }
    all
}

/// What two productions of one process cannot both have: a store, a socket.
fn beside(earlier: &[Loaded], later: &mut Loaded) {
    let Some(plan) = &later.plan else { return };
    let mut found = Vec::new();
    for other in earlier.iter().filter_map(|loaded| loaded.plan.as_ref()) {
        let name = &other.production.name;
        if plain(&plan.store.path) == plain(&other.store.path) {
            let text = format!("the store {} is that of {name} already", plan.store.path.display());
            found.push(("S0611", "store".to_owned(), text));
        }
        for (address, path, section) in sockets(plan) {
            let taken = |(a, p, _): &(_, Option<&str>, _)| graph::conflict(&(address, path), &(*a, *p));
            if sockets(other).iter().any(taken) {
                found.push(("S0212", section.to_owned(), format!("{address} is taken by {name} already")));
            }
        }
    }
    for (code, section, text) in found {
        let span = later.places.get(&section).or_else(|| later.places.get("production"));
        let span = span.copied().unwrap_or_default();
        let problem = Problem { severity: Severity::Error, code, span, text, suggestion: None };
        later.diagnostics.extend(diagnostics(vec![problem], &later.sources));
        later.plan = None;
    }
}

/// A path without `.` and `..`, absolute: for comparing.
fn plain(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.components().fold(PathBuf::new(), |mut plain, component| {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            component => plain.push(component),
        }
        plain
    })
}

/// Every socket of a plan's enabled items, with its HTTP path and whose it is.
fn sockets(plan: &Plan) -> Vec<(std::net::SocketAddr, Option<&str>, &str)> {
    let admin = plan.admin.iter().map(|admin| (admin.listen, None, "admin"));
    let items = plan.items.iter().filter(|item| item.common.enabled).flat_map(|item| {
        let listens = item.built.facts.listens.iter();
        listens.map(|(address, path)| (*address, path.as_deref(), item.name.as_str()))
    });
    admin.chain(items).collect()
}

/// Loads a production from its text, as if it stood in `production.toml` in `folder`.
pub fn load_text(text: &str, folder: &Path, registry: &Registry, env: &Env) -> Loaded {
    let sources = [("production.toml".to_owned(), text.to_owned())];
    load_sources(&sources, folder, registry, env)
}

/// Loads a production from files as an earlier plan kept them ([`Plan::sources`]): the first is the
/// production file, the rest is what it included. `folder` is that of the production file.
pub fn load_sources(sources: &[(String, String)], folder: &Path, registry: &Registry, env: &Env) -> Loaded {
    load_files(&Files::kept(sources, folder), registry, env, false)
}

/// Sections that hold named things, each a table of its own.
const NAMED: [&str; 7] =
    ["oauth", "messages", "transforms", "lookups", "services", "processes", "operations"];
/// Sections that hold settings.
const SETTINGS: [&str; 4] = ["production", "store", "admin", "log"];

fn load_files(files: &Files, registry: &Registry, env: &Env, several: bool) -> Loaded {
    let mut sources = Sources::default();
    let mut problems = Vec::new();
    let read = files::read_all(files, &mut sources, &mut problems);
    let mut places = BTreeMap::new();
    for entry in read.iter().flat_map(Node::entries) {
        places.insert(entry.key.clone(), entry.key_span);
        let items = ItemKind::ALL.iter().any(|kind| kind.table() == entry.key);
        let inner = entry.node.entries().iter().filter(|_| items);
        places.extend(inner.map(|item| (item.key.clone(), item.key_span)));
    }
    let plan = match read {
        Some(mut root) => {
            override_settings(&mut root, env, several, &mut sources, &mut problems);
            let broken = resolve::resolve(&mut root, env, &sources, &mut problems);
            let known = problems.len();
            let plan = plan(&root, files, registry, &sources, &mut problems);
            let holds = |outer: &Span, inner: Span| {
                outer.file == inner.file && outer.start <= inner.start && inner.end <= outer.end
            };
            let mut at = 0;
            problems.retain(|problem| {
                at += 1;
                at <= known || !broken.iter().any(|value| holds(value, problem.span))
            });
            plan
        }
        None => None,
    };
    let plan = plan.filter(|_| !problems.iter().any(|problem| problem.severity == Severity::Error));
    let diagnostics = diagnostics(problems, &sources);
    Loaded { plan, diagnostics, sources, places }
}

fn override_settings(
    root: &mut Node,
    env: &Env,
    several: bool,
    sources: &mut Sources,
    problems: &mut Vec<Problem>,
) {
    if several {
        if let Some(name) = env.overrides().next() {
            let text = format!("{name} is set, but several productions run: it could only mean one of them");
            let suggestion = Some("use ${env:NAME} in each production file".to_owned());
            let span = root.span;
            problems.push(Problem { severity: Severity::Error, code: "S0112", span, text, suggestion });
        }
        return;
    }
    let schemas = [
        ("store", schema_for!(sections::StoreKeys).to_value()),
        ("admin", schema_for!(sections::AdminKeys).to_value()),
        ("log", schema_for!(sections::LogKeys).to_value()),
    ];
    if let Value::Table(entries) = &mut root.value {
        apply_overrides(entries, env, &schemas, sources, problems);
    }
}

fn plan(
    root: &Node,
    files: &Files,
    registry: &Registry,
    sources: &Sources,
    problems: &mut Vec<Problem>,
) -> Option<Plan> {
    let mut report = Report { sources, problems };
    check_sections(root, &mut report);
    let empty = |name: &str| Node {
        span: root.get(name).map_or(root.span, |e| e.key_span),
        value: Value::Table(Vec::new()),
    };
    let section = |name: &str| root.get(name).map_or_else(|| empty(name), |entry| entry.node.clone());

    let production = match root.get("production") {
        Some(entry) => sections::production(&entry.node, &mut report),
        None => {
            let suggestion = Some("begin with [production] and name = \"…\"".to_owned());
            report.error("S0103", root.span, "[production] is missing", suggestion);
            None
        }
    };
    let store = sections::store(&section("store"), &mut report);
    let admin = root.get("admin").map(|entry| sections::admin(&entry.node, registry, &mut report));
    let log = root.get("log").map_or(Some(Log::default()), |entry| sections::log(&entry.node, &mut report));
    let clients = oauth::clients(&section("oauth"), root.get("admin").is_some(), registry, &mut report);
    let types = definitions::messages(&section("messages"), &mut report);
    let transforms = definitions::transforms(&section("transforms"), &types, &mut report);
    let lookups = definitions::lookups(&section("lookups"), &mut report);

    let found = items::find(root, &mut report);
    let mut names = Names {
        items: found.iter().map(|item| (item.name.clone(), (item.kind, item.type_name.to_owned()))).collect(),
        types: types.clone(),
        transforms,
        oauth: section("oauth").entries().iter().map(|entry| entry.key.clone()).collect(),
        placements: BTreeMap::new(),
        lookups,
    };
    names.placements = clients.iter().map(|(name, (_, placement))| (name.clone(), *placement)).collect();
    items::check_transforms(&section("transforms"), registry, &names, &mut report);
    let prepared = items::prepare(&found, registry, &names, &mut report);
    graph::check(
        &prepared,
        production.as_ref().zip(root.get("production")),
        admin.as_ref(),
        root,
        &mut report,
    );

    let basis = fingerprint::Basis { root, timezone: production.as_ref().map(|p| &p.timezone) };
    let items = prepared.into_iter().filter_map(|item| item.into_plan(&basis)).map(Arc::new).collect();
    Some(Plan {
        production: production?,
        store: store?,
        admin: match admin {
            Some(admin) => Some(admin?),
            None => None,
        },
        log: log?,
        oauth: clients.into_iter().map(|(name, (client, _))| (name, client)).collect(),
        types,
        items,
        version: fingerprint::version(root, sources),
        sources: files.kept_form(sources),
    })
}

/// Unknown sections, and sections that are no tables of tables.
fn check_sections(root: &Node, report: &mut Report<'_>) {
    let known = SETTINGS.iter().chain(&NAMED).copied();
    for entry in root.entries() {
        let name = entry.key.as_str();
        if name.starts_with("x-") {
            continue;
        }
        if !known.clone().any(|known| known == name) {
            report.problems.push(unknown_key(entry, known.clone(), &["include"]));
            continue;
        }
        if !matches!(entry.node.value, Value::Table(_)) {
            report.error("S0104", entry.node.span, format!("expected a table [{name}]"), None);
            continue;
        }
        if NAMED.contains(&name) {
            for inner in entry.node.entries() {
                if !matches!(inner.node.value, Value::Table(_)) {
                    let text = format!("expected a table [{name}.{}]", inner.key);
                    report.error("S0104", inner.node.span, text, None);
                }
            }
        }
    }
}

/// Problems with places, in the order of the files, each once.
fn diagnostics(mut problems: Vec<Problem>, sources: &Sources) -> Vec<Diagnostic> {
    problems.sort_by_key(|problem| (problem.span.file, problem.span.start, problem.severity));
    let mut seen = BTreeSet::new();
    problems.retain(|p| seen.insert((p.code, p.span.file, p.span.start, p.text.clone())));
    let diagnostic = |problem: Problem| {
        let (line, column) = sources.position(problem.span);
        let file = sources.get(problem.span.file).map(|source| source.name.clone()).unwrap_or_default();
        let Problem { severity, code, span, text, suggestion } = problem;
        Diagnostic { severity, code, file, line, column, text, suggestion, span }
    };
    problems.into_iter().map(diagnostic).collect()
}
