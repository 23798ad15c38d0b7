//! One function for each verb of a flow: checks its keys and adds its operations.

use septet_engine::config::node::{Node, Value};
use septet_engine::config::problem::did_you_mean;
use septet_engine::config::units::DurationText;
use septet_engine::id::ItemName;

use super::check::Reader;
use super::definition::{Act, Handler, Piece};
use super::template::{Part, split};
use crate::script::compile::is_variable;
use crate::script::{RESERVED, ScriptKind};

/// A wait of this many milliseconds holds up what is behind it.
const LONG: u64 = 60_000;

impl<'a> Reader<'_, '_, 'a> {
    pub(super) fn verb(&mut self, verb: &'static str, step: &'a Node, value: &'a Node) {
        match verb {
            "assign" => self.within(verb, |r| r.assign(value)),
            "if" => self.branch(step, value),
            "switch" => self.within(verb, |r| r.switch(value)),
            "foreach" => self.foreach(step, value),
            "while" => self.repeat(step, value),
            "call" => self.call(step, value),
            "sync" => self.sync(step, value),
            "parallel" => self.within(verb, |r| r.parallel(value)),
            "transform" => self.transform(step, value),
            "code" => {
                if let Some(script) = self.within(verb, |r| r.script(ScriptKind::Statements, value)) {
                    self.push(Act::Code { script });
                }
            }
            "send" => self.send(step, value),
            "delay" => self.within(verb, |r| r.delay(value)),
            "alert" | "trace" => self.within(verb, |r| r.message(verb, value)),
            "reply" => {
                self.facts.answers = true;
                self.gathered.any_type = true;
                if let Some(script) = self.within(verb, |r| r.expression(value)) {
                    self.push(Act::Reply { script });
                }
            }
            "throw" => {
                if let Some(script) = self.within(verb, |r| r.expression(value)) {
                    self.push(Act::Throw { script });
                }
            }
            _ => self.scope(step, value),
        }
    }

    fn assign(&mut self, value: &'a Node) {
        if !matches!(value.value, Value::Table(_)) {
            self.error("assign takes a table: { \"context.x\" = \"expression\" }", None);
            return;
        }
        for entry in value.entries() {
            let into = self.place(&entry.key).map_err(|text| self.key_error(&entry.key, text, None)).ok();
            let script = self.within(entry.key.as_str(), |r| r.expression(&entry.node));
            if let (Some(into), Some(script)) = (into, script) {
                self.push(Act::Assign { into, script });
            }
        }
    }

    fn branch(&mut self, step: &'a Node, value: &'a Node) {
        let script = self.within("if", |r| r.expression(value)).unwrap_or_default();
        self.required("then", step, "if");
        let unless = self.push(Act::Unless { script, to: 0 });
        self.inner("then", step);
        if step.get("else").is_some() {
            let over = self.push(Act::Jump { to: 0 });
            self.patch(unless, self.here());
            self.inner("else", step);
            self.patch(over, self.here());
        } else {
            self.patch(unless, self.here());
        }
    }

    fn switch(&mut self, value: &'a Node) {
        let mut over = Vec::new();
        let cases = self.array(value, "cases");
        for (index, case) in cases.iter().enumerate() {
            let step = self.step.clone();
            self.within(index, |r| {
                r.case_keys(case, &["case", "default", "do"]);
                r.required("do", case, "a case");
                let unless = match (case.get("case"), case.get("default")) {
                    (Some(entry), None) => {
                        let script = r.within("case", |r| r.expression(&entry.node)).unwrap_or_default();
                        Some(r.push(Act::Unless { script, to: 0 }))
                    }
                    (None, Some(entry)) => {
                        if !r.within("default", |r| r.flag(&entry.node)) {
                            r.error("default is true or absent", None);
                        }
                        if index + 1 < cases.len() {
                            r.error("default comes last", None);
                        }
                        None
                    }
                    _ => {
                        r.error("a case has either case or default = true", None);
                        None
                    }
                };
                r.step = format!("{step}.case {}", index + 1);
                r.inner("do", case);
                r.step = step;
                let jump = r.push(Act::Jump { to: 0 });
                over.push(jump);
                if let Some(unless) = unless {
                    r.patch(unless, r.here());
                }
            });
        }
        let end = self.here();
        over.into_iter().for_each(|jump| self.patch(jump, end));
    }

    fn case_keys(&mut self, case: &'a Node, known: &[&str]) {
        if !matches!(case.value, Value::Table(_)) {
            self.error("expected a table", None);
        }
        for entry in case.entries() {
            let key = entry.key.as_str();
            if !known.contains(&key) && !key.starts_with("x-") {
                let suggestion = did_you_mean(key, known.iter().copied());
                self.key_error(key, format!("there is no key {key} here"), suggestion);
            }
        }
    }

    fn foreach(&mut self, step: &'a Node, value: &'a Node) {
        let script = self.within("foreach", |r| r.expression(value)).unwrap_or_default();
        let mut variable = String::from("item");
        if self.required("as", step, "foreach")
            && let Some(entry) = step.get("as")
        {
            self.within("as", |r| {
                let Some(name) = r.text(&entry.node) else { return };
                if !is_variable(name) || RESERVED.contains(&name) {
                    r.error(format!("{name} cannot name a variable"), None);
                }
                name.clone_into(&mut variable);
            });
        }
        self.required("do", step, "foreach");
        let start = self.push(Act::Foreach { script, end: 0 });
        let body = self.here();
        self.variables.push(variable);
        self.inner("do", step);
        self.variables.pop();
        self.push(Act::Next { body });
        self.patch(start, self.here());
    }

    fn repeat(&mut self, step: &'a Node, value: &'a Node) {
        let start = self.here();
        let script = self.within("while", |r| r.expression(value)).unwrap_or_default();
        self.required("do", step, "while");
        let unless = self.push(Act::Unless { script, to: 0 });
        self.inner("do", step);
        self.push(Act::Jump { to: start });
        self.patch(unless, self.here());
    }

    fn call(&mut self, step: &'a Node, value: &'a Node) {
        let target = self.within("call", |r| r.target(value));
        let payload = self.payload(step);
        let into = self.place_at("into", step);
        let timeout = self.milliseconds("timeout", step);
        let flag =
            |r: &mut Self, key| step.get(key).is_some_and(|entry| r.within(key, |r| r.flag(&entry.node)));
        let wait = !flag(self, "async");
        let leave = step.get("on_timeout").is_some_and(|entry| {
            self.within("on_timeout", |r| match r.text(&entry.node) {
                Some("leave") => true,
                Some("discard") | None => false,
                Some(other) => {
                    let suggestion = did_you_mean(other, ["discard", "leave"]);
                    r.error("on_timeout is \"discard\" or \"leave\"", suggestion);
                    false
                }
            })
        });
        if step.get("on_timeout").is_some() && timeout.is_none() {
            self.key_error("on_timeout", "on_timeout needs timeout", None);
        }
        let own = step.get("name").and_then(|entry| self.within("name", |r| r.text(&entry.node)));
        let Some(target) = target else { return };
        self.facts.calls.push(target.clone());
        self.facts.waits |= wait && timeout.is_none_or(|timeout| timeout >= LONG);
        let name = own.unwrap_or(target.as_str()).to_owned();
        self.calls.push(name.clone());
        self.push(Act::Call { target, name, payload, into, timeout, leave, wait });
    }

    fn sync(&mut self, step: &'a Node, value: &'a Node) {
        let names = self.within("sync", |r| {
            let items: Vec<&'a Node> = match value.as_str() {
                Some(_) => vec![value],
                None => r.array(value, "names of calls").iter().collect(),
            };
            let one = items.len() == 1 && value.as_str().is_some();
            let mut names = Vec::new();
            for (index, item) in items.into_iter().enumerate() {
                let mut read = |r: &mut Self| {
                    if let Some(name) = r.text(item) {
                        r.syncs.push((r.at.clone(), name.to_owned()));
                        names.push(name.to_owned());
                    }
                };
                if one { read(r) } else { r.within(index, |r| read(r)) }
            }
            names
        });
        let timeout = self.milliseconds("timeout", step);
        let any = step.get("any").is_some_and(|entry| self.within("any", |r| r.flag(&entry.node)));
        self.facts.waits |= timeout.is_none_or(|timeout| timeout >= LONG);
        self.push(Act::Sync { names, timeout, any });
    }

    /// Names in `sync` that no call has.
    pub(super) fn check_syncs(&mut self) {
        for (at, name) in std::mem::take(&mut self.syncs) {
            if !self.calls.contains(&name) {
                let suggestion = did_you_mean(&name, self.calls.iter().map(String::as_str));
                self.build.error("S0330", &at, format!("this flow has no call named {name}"), suggestion);
            }
        }
    }

    fn parallel(&mut self, value: &'a Node) {
        let fork = self.push(Act::Fork { branches: Vec::new(), join: 0 });
        let mut starts = Vec::new();
        for (index, branch) in self.array(value, "lists of steps").iter().enumerate() {
            starts.push(self.here());
            let prefix = format!("{}.branch {}.", self.step, index + 1);
            self.within(index, |r| r.list(branch, &prefix));
            self.push(Act::Joined);
        }
        if let Some(Act::Fork { branches, .. }) = self.ops.get_mut(fork).map(|op| &mut op.act) {
            *branches = starts;
        }
        self.patch(fork, self.here());
    }

    fn transform(&mut self, step: &'a Node, value: &'a Node) {
        let name = self.within("transform", |r| {
            let name = r.text(value)?;
            if r.build.transform(&r.at, name) {
                r.gathered.transform(r.build.names, name);
            }
            Some(name.to_owned())
        });
        let from = step.get("from").and_then(|entry| self.within("from", |r| r.expression(&entry.node)));
        self.required("into", step, "transform");
        let into = self.place_at("into", step);
        if let (Some(name), Some(into)) = (name, into) {
            self.push(Act::Transform { name, from, into });
        }
    }

    fn send(&mut self, step: &'a Node, value: &'a Node) {
        let targets: Vec<ItemName> = self.within("send", |r| match value.as_str() {
            Some(_) => r.target(value).into_iter().collect(),
            None => {
                let items = r.array(value, "items").iter().enumerate();
                items.filter_map(|(index, item)| r.within(index, |r| r.target(item))).collect()
            }
        });
        let payload = self.payload(step);
        self.facts.sends.extend(targets.iter().cloned());
        self.push(Act::Send { targets, payload });
    }

    fn delay(&mut self, value: &'a Node) {
        let Some(text) = self.text(value) else { return };
        if let Ok(duration) = text.parse::<DurationText>() {
            let milliseconds = u64::try_from(duration.get().as_millis()).unwrap_or(u64::MAX);
            self.facts.waits = true;
            self.push(Act::Delay { milliseconds });
            return;
        }
        // A number with a unit that is none is a mistaken duration, not an expression.
        if text.chars().next().is_some_and(|c| c.is_ascii_digit()) {
            self.error("delay is a duration such as \"5s\", or an expression that gives a time", None);
            return;
        }
        self.facts.waits = true;
        let script = self.script_text(ScriptKind::Expression, text, (1, 1));
        self.push(Act::DelayUntil { script });
    }

    fn message(&mut self, verb: &str, value: &'a Node) {
        let Some(template) = self.text(value) else { return };
        let mut pieces = Vec::new();
        match split(template) {
            Err(text) => self.error(text, Some("write {{ for a brace".into())),
            Ok(parts) => {
                for part in parts {
                    match part {
                        Part::Text(text) => pieces.push(Piece::Text(text)),
                        Part::Code(code, at) => {
                            let before = template.get(..at).unwrap_or_default();
                            let line = before.matches('\n').count() + 1;
                            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
                            let script = self.script_text(ScriptKind::Expression, code, (line, column));
                            pieces.push(Piece::Script(script));
                        }
                    }
                }
            }
        }
        let template = template.to_owned();
        self.push(if verb == "alert" {
            Act::Alert { template, pieces }
        } else {
            Act::Trace { template, pieces }
        });
    }

    fn scope(&mut self, step: &'a Node, value: &'a Node) {
        let start = self.push(Act::Scope { handlers: Vec::new() });
        self.scopes += 1;
        let prefix = format!("{}.scope.", self.step);
        self.within("scope", |r| r.list(value, &prefix));
        self.scopes -= 1;
        self.push(Act::Unscope);
        let mut over = vec![self.push(Act::Jump { to: 0 })];
        let mut handlers = Vec::new();
        if let Some(entry) = step.get("catch") {
            self.within("catch", |r| r.handlers(&entry.node, &mut handlers, &mut over));
        }
        let end = self.here();
        over.into_iter().for_each(|jump| self.patch(jump, end));
        if let Some(Act::Scope { handlers: place }) = self.ops.get_mut(start).map(|op| &mut op.act) {
            *place = handlers;
        }
    }

    fn handlers(&mut self, node: &'a Node, handlers: &mut Vec<Handler>, over: &mut Vec<usize>) {
        for (index, handler) in self.array(node, "handlers").iter().enumerate() {
            let step = self.step.clone();
            self.within(index, |r| {
                r.case_keys(handler, &["fault", "any", "do"]);
                r.required("do", handler, "a handler");
                let fault = match (handler.get("fault"), handler.get("any")) {
                    (Some(entry), None) => r.within("fault", |r| r.text(&entry.node)).map(str::to_owned),
                    (None, Some(entry)) => {
                        if !r.within("any", |r| r.flag(&entry.node)) {
                            r.error("any is true or absent", None);
                        }
                        None
                    }
                    _ => {
                        r.error("a handler has either fault = \"name\" or any = true", None);
                        None
                    }
                };
                handlers.push(Handler { fault, to: r.here() });
                r.variables.push("fault".into());
                r.step = format!("{step}.catch {}", index + 1);
                r.inner("do", handler);
                r.step = step;
                r.variables.pop();
                r.push(Act::Caught);
                let jump = r.push(Act::Jump { to: 0 });
                over.push(jump);
            });
        }
    }

    pub(super) fn compensation(&mut self, node: &'a Node) {
        let register = self.here() + 2;
        self.push(Act::Register { compensation: register });
        let over = self.push(Act::Jump { to: 0 });
        let prefix = format!("{}.compensate.", self.step);
        self.within("compensate", |r| r.list(node, &prefix));
        self.push(Act::Compensated);
        self.patch(over, self.here());
    }
}
