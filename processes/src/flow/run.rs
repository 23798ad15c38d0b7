//! Runs a flow: one job moves an instance from one wait to the next, or to its end.
//!
//! The machine is deterministic: calls, timers, uuids are numbered within the instance, so that the same job
//! gives the same effects (a job may run again after a crash). Threads run in the order of their numbers,
//! each until it waits; nothing is ever concurrent.

use std::collections::BTreeMap;

use rquickjs::Value;
use septet_engine::event::{Level, NewEvent};
use septet_engine::process::{Effect, Next};

use super::definition::{Act, Payload, Piece, Place, Program};
use super::instance::{Call, Registered, Scope, Thread, Wait};
use crate::scene::Scene;
use crate::script::engine::thrown_value;
use crate::script::raised::Raised;

/// How many operations one job may run.
const MAX_OPS: u32 = 1_000_000;

/// A flow being run.
pub(crate) struct Machine<'a, 's, 'js> {
    pub(super) scene: &'a mut Scene<'s, 'js>,
    pub(super) program: &'a Program,
    pub(super) threads: BTreeMap<u32, Thread<Value<'js>>>,
    pub(super) calls: BTreeMap<u64, Call>,
    pub(super) calls_made: u64,
    pub(super) timers_made: u64,
    pub(super) replied: bool,
    pub(super) ops: u32,
}

/// How far a thread got with one operation.
pub(super) enum Step {
    On,
    Goto(usize),
    Wait(Wait),
    Joined,
    End,
}

/// Runs the job of a scene to its next wait or end. Effects are left in the scene.
pub(crate) fn run(scene: &mut Scene<'_, '_>, program: &Program) -> Next {
    let mut machine = Machine {
        scene,
        program,
        threads: BTreeMap::new(),
        calls: BTreeMap::new(),
        calls_made: 0,
        timers_made: 0,
        replied: false,
        ops: 0,
    };
    let input = machine.scene.stage.job.input.clone();
    let begun = match machine.scene.stage.job.instance.clone() {
        None => {
            machine.threads.insert(0, Thread::new(None, 0, Vec::new()));
            Ok(())
        }
        Some(instance) => machine.restore(&instance).and_then(|()| machine.take(input)),
    };
    let outcome = begun.and_then(|()| machine.run());
    match outcome {
        Ok(true) => {
            machine.close();
            Next::Complete
        }
        Ok(false) => match machine.store() {
            Ok(instance) => Next::Wait { instance },
            Err(raised) => machine.fail(raised),
        },
        Err(raised) => machine.fail(raised),
    }
}

// === Beginning and end of a job ===

impl<'js> Machine<'_, '_, 'js> {
    fn fail(&mut self, raised: Raised) -> Next {
        self.abandon();
        Next::Fail(raised.fault)
    }

    /// The end: who waits gets an empty reply unless there was one.
    fn close(&mut self) {
        if self.scene.stage.job.wants_reply && !self.replied {
            self.scene.effects.push(Effect::Reply { body: None, fault: None });
        }
        self.abandon();
    }

    /// Nobody takes responses and timers any more; what was asked for is still sent.
    fn abandon(&mut self) {
        for (number, call) in std::mem::take(&mut self.calls) {
            if call.done.is_none() {
                self.scene.effects.push(Effect::CancelCall { call: number, leave: true });
            }
            self.cancel_timer(call.timer.filter(|_| call.done.is_none()));
        }
        for (_, thread) in std::mem::take(&mut self.threads) {
            match thread.wait {
                Some(Wait::Timer(timer)) => self.cancel_timer(Some(timer)),
                Some(Wait::Sync { timer, .. }) => self.cancel_timer(timer),
                _ => {}
            }
        }
    }

    pub(super) fn cancel_timer(&mut self, timer: Option<u64>) {
        self.scene.effects.extend(timer.map(|timer| Effect::CancelTimer { timer }));
    }
}

// === Operations ===

impl<'js> Machine<'_, '_, 'js> {
    pub(super) fn event(&mut self, level: Level, text: impl Into<String>, detail: Option<String>) {
        let event = NewEvent::new(level, "trace", text);
        let event = match detail {
            Some(detail) => event.detail(detail),
            None => event,
        };
        self.scene.effects.push(Effect::Event(event));
    }

    /// Runs threads until all wait (`false`) or the flow has ended (`true`).
    fn run(&mut self) -> Result<bool, Raised> {
        loop {
            let Some(id) = self.threads.iter().find(|(_, t)| t.wait.is_none()).map(|(id, _)| *id) else {
                return Ok(false);
            };
            let Some(thread) = self.threads.get(&id) else { return Ok(false) };
            let program = self.program;
            let Some(op) = program.ops.get(thread.at) else { return Ok(true) };
            self.ops += 1;
            let stepped = if self.ops > MAX_OPS {
                return Err(self.too_long(&op.at));
            } else if self.scene.stage.engine.late() {
                Err(self.too_long(&op.at))
            } else {
                self.step(id, &op.act, &op.at)
            };
            match stepped {
                Ok(step) => {
                    if self.moved(id, step) {
                        return Ok(true);
                    }
                }
                Err(raised) => self.raise(id, raised)?,
            }
        }
    }

    fn too_long(&self, at: &str) -> Raised {
        let text = self.scene.place(&format!("{at}: the steps between two waits take too long"));
        Raised::engine("script", "script", text)
    }

    /// Moves a thread on; whether the flow has ended.
    fn moved(&mut self, id: u32, step: Step) -> bool {
        let Some(thread) = self.threads.get_mut(&id) else { return false };
        match step {
            Step::On => thread.at += 1,
            Step::Goto(at) => thread.at = at,
            Step::Wait(wait) => {
                thread.at += 1;
                thread.wait = Some(wait);
            }
            Step::End => return true,
            Step::Joined => {
                let parent = thread.parent;
                self.threads.remove(&id);
                if let Some(parent) = parent
                    && !self.threads.values().any(|thread| thread.parent == Some(parent))
                {
                    self.wake(parent);
                }
            }
        }
        false
    }

    fn variables(&self, id: u32) -> Vec<Value<'js>> {
        self.threads.get(&id).map(|thread| thread.variables.clone()).unwrap_or_default()
    }

    fn value(&mut self, id: u32, script: usize) -> Result<Value<'js>, Raised> {
        let variables = self.variables(id);
        self.scene.script(script, &variables)
    }

    fn payload(
        &mut self,
        id: u32,
        payload: &Payload,
        at: &str,
    ) -> Result<septet_engine::process::Outgoing, Raised> {
        let variables = self.variables(id);
        self.scene.outgoing(payload, &variables, at)
    }

    fn step(&mut self, id: u32, act: &Act, at: &str) -> Result<Step, Raised> {
        match act {
            Act::Assign { into, script } => {
                let value = self.value(id, *script)?;
                self.scene.assign(into, value, at)?;
            }
            Act::Jump { to } => return Ok(Step::Goto(*to)),
            Act::Unless { script, to } => {
                let value = self.value(id, *script)?;
                if !self.scene.truth(&value, at)? {
                    return Ok(Step::Goto(*to));
                }
            }
            Act::Foreach { script, end } => return self.foreach(id, *script, *end, at),
            Act::Next { body } => return Ok(self.next_round(id, *body)),
            Act::Call { target, name, payload, into, timeout, leave, wait } => {
                let body = self.payload(id, payload, at)?;
                self.calls_made += 1;
                let number = self.calls_made;
                self.scene.effects.push(Effect::Call { call: number, target: target.clone(), body });
                let timer = timeout.map(|timeout| self.start_timer(self.after(timeout)));
                let call = Call {
                    name: name.clone(),
                    step: at.to_owned(),
                    into: into.clone(),
                    timer,
                    leave: *leave,
                    waited: *wait,
                    done: None,
                };
                self.calls.insert(number, call);
                if *wait {
                    return Ok(Step::Wait(Wait::Call(number)));
                }
            }
            Act::Sync { names, timeout, any } => match self.synced(names, *any) {
                Some(outcome) => outcome?,
                None => {
                    let timer = timeout.map(|timeout| self.start_timer(self.after(timeout)));
                    return Ok(Step::Wait(Wait::Sync { names: names.clone(), any: *any, timer }));
                }
            },
            Act::Fork { branches, join } => return Ok(self.fork(id, branches, *join)),
            Act::Joined => return Ok(Step::Joined),
            Act::Transform { name, from, into } => self.transform(id, name, *from, into, at)?,
            Act::Code { script } => drop(self.value(id, *script)?),
            Act::Send { targets, payload } => {
                let body = self.payload(id, payload, at)?;
                let sends =
                    targets.iter().map(|target| Effect::Send { target: target.clone(), body: body.clone() });
                self.scene.effects.extend(sends);
            }
            Act::Delay { milliseconds } => return Ok(self.delay(self.after(*milliseconds))),
            Act::DelayUntil { script } => {
                let value = self.value(id, *script)?;
                let until = self.moment(&value, at)?;
                return Ok(self.delay(until));
            }
            Act::Alert { template, pieces } => {
                let filled = self.filled(id, pieces, at)?;
                self.scene.effects.push(Effect::Alert { template: template.clone(), filled });
            }
            Act::Trace { template, pieces } => {
                let filled = self.filled(id, pieces, at)?;
                self.event(Level::Info, template.clone(), Some(filled));
            }
            Act::Reply { script } => {
                let value = self.value(id, *script)?;
                let body = self.scene.body_of(&value, at)?;
                if !std::mem::replace(&mut self.replied, true) {
                    self.scene.effects.push(Effect::Reply { body, fault: None });
                }
            }
            Act::Throw { script } => {
                let value = self.value(id, *script)?;
                return Err(thrown_value(&value).thrown_by_step(&self.scene.place(at)));
            }
            Act::Scope { .. } => {
                if let Some(thread) = self.threads.get_mut(&id) {
                    let (variables, loops) = (thread.variables.len(), thread.loops.len());
                    thread.scopes.push(Scope { op: thread.at, variables, loops, registered: Vec::new() });
                }
            }
            Act::Unscope => {
                // What was done inside is, for a fault further out, still to be undone.
                let ended = self.threads.get_mut(&id).and_then(|thread| thread.scopes.pop());
                if let (Some(ended), Some(outer)) = (ended, self.innermost_scope(id)) {
                    outer.registered.extend(ended.registered);
                }
            }
            Act::Caught => {
                if let Some(thread) = self.threads.get_mut(&id) {
                    thread.variables.pop();
                }
            }
            Act::Register { compensation } => {
                let registered = Registered { to: *compensation, variables: self.variables(id) };
                if let Some(scope) = self.innermost_scope(id) {
                    scope.registered.push(registered);
                }
            }
            Act::Compensated => {
                self.compensate(id)?;
                let at = self.threads.get(&id).map_or(0, |thread| thread.at);
                return Ok(Step::Goto(at));
            }
            Act::End => return Ok(Step::End),
        }
        Ok(Step::On)
    }

    /// The scope around a thread: its own, or its parents'.
    fn innermost_scope(&mut self, id: u32) -> Option<&mut Scope<Value<'js>>> {
        let mut id = id;
        while self.threads.get(&id)?.scopes.is_empty() {
            id = self.threads.get(&id)?.parent?;
        }
        self.threads.get_mut(&id)?.scopes.last_mut()
    }

    fn foreach(&mut self, id: u32, script: usize, end: usize, at: &str) -> Result<Step, Raised> {
        let value = self.value(id, script)?;
        let mut items: Vec<Value<'js>> = match value.as_array() {
            Some(list) => self.scene.guarded(at, || list.iter::<Value<'js>>().collect())?,
            None if value.is_null() || value.is_undefined() => Vec::new(),
            None => {
                let text = self.scene.place(&format!("{at}: foreach needs a list"));
                return Err(Raised::engine("script", "script", text));
            }
        };
        items.reverse();
        let Some(first) = items.pop() else { return Ok(Step::Goto(end)) };
        if let Some(thread) = self.threads.get_mut(&id) {
            thread.loops.push(items);
            thread.variables.push(first);
        }
        Ok(Step::On)
    }

    fn next_round(&mut self, id: u32, body: usize) -> Step {
        let Some(thread) = self.threads.get_mut(&id) else { return Step::On };
        thread.variables.pop();
        match thread.loops.last_mut().and_then(Vec::pop) {
            Some(item) => {
                thread.variables.push(item);
                Step::Goto(body)
            }
            None => {
                thread.loops.pop();
                Step::On
            }
        }
    }

    fn fork(&mut self, id: u32, branches: &[usize], join: usize) -> Step {
        let variables = self.variables(id);
        let free = self.threads.keys().next_back().map_or(0, |last| last + 1);
        for (branch, number) in branches.iter().zip(free..) {
            self.threads.insert(number, Thread::new(Some(id), *branch, variables.clone()));
        }
        if branches.is_empty() {
            return Step::Goto(join);
        }
        if let Some(thread) = self.threads.get_mut(&id) {
            thread.at = join;
            thread.wait = Some(Wait::Branches);
        }
        Step::Goto(join)
    }

    fn transform(
        &mut self,
        id: u32,
        name: &str,
        from: Option<usize>,
        into: &Place,
        at: &str,
    ) -> Result<(), Raised> {
        let source = match from {
            Some(script) => self.value(id, script)?,
            None => self.scene.request.clone(),
        };
        let made = self.scene.transform(name, &source, at)?;
        let value = self.scene.made_value(made, at)?;
        self.scene.assign(into, value, at)
    }

    fn filled(&mut self, id: u32, pieces: &[Piece], at: &str) -> Result<String, Raised> {
        let mut filled = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Script(script) => {
                    let value = self.value(id, *script)?;
                    let text = self.scene.guarded(at, || self.scene.helpers.text(&value))?;
                    filled.push_str(&text);
                }
            }
        }
        Ok(filled)
    }
}
