//! Faults of a flow on their way to a `catch`: scopes are left, compensations run newest first, branches end.

use rquickjs::Object;
use septet_engine::event::Level;
use septet_engine::process::Effect;

use super::definition::Act;
use super::instance::{Unwinding, Wait};
use super::run::Machine;
use crate::script::raised::Raised;

impl Machine<'_, '_, '_> {
    /// Takes a fault to where it is caught, running compensations on the way. An error: nobody catches it.
    pub(super) fn raise(&mut self, id: u32, raised: Raised) -> Result<(), Raised> {
        if self.scene.stage.engine.gives_up() {
            return Err(raised);
        }
        let mut id = id;
        loop {
            let Some(thread) = self.threads.get_mut(&id) else { return Err(raised) };
            thread.wait = None;
            if let Some(unwinding) = thread.unwinding.last()
                && thread.scopes.len() <= unwinding.scopes
            {
                // A fault in a compensation takes the place of the one that caused it.
                let (loops, variables) = (unwinding.loops, unwinding.variables.clone());
                thread.loops.truncate(loops);
                thread.variables = variables;
                thread.unwinding.pop();
                continue;
            }
            let Some(scope) = thread.scopes.pop() else {
                let Some(parent) = thread.parent else { return Err(raised) };
                self.end_branches(parent);
                id = parent;
                continue;
            };
            thread.loops.truncate(scope.loops);
            thread.variables.truncate(scope.variables);
            if !scope.registered.is_empty() {
                thread.unwinding.push(Unwinding {
                    raised,
                    op: scope.op,
                    scopes: thread.scopes.len(),
                    loops: scope.loops,
                    variables: thread.variables.clone(),
                    left: scope.registered,
                });
                return self.compensate(id);
            }
            if self.caught(id, scope.op, &raised)? {
                return Ok(());
            }
        }
    }

    /// The next compensation of the innermost fault, or on to its handlers.
    pub(super) fn compensate(&mut self, id: u32) -> Result<(), Raised> {
        let Some(thread) = self.threads.get_mut(&id) else { return Ok(()) };
        let Some(unwinding) = thread.unwinding.last_mut() else { return Ok(()) };
        if let Some(next) = unwinding.left.pop() {
            thread.variables = next.variables;
            thread.at = next.to;
            return Ok(());
        }
        let Some(unwinding) = thread.unwinding.pop() else { return Ok(()) };
        thread.variables = unwinding.variables;
        if self.caught(id, unwinding.op, &unwinding.raised)? {
            return Ok(());
        }
        self.raise(id, unwinding.raised)
    }

    /// Whether the scope at `op` has a handler for the fault; the thread then goes on there.
    fn caught(&mut self, id: u32, op: usize, raised: &Raised) -> Result<bool, Raised> {
        let Some(Act::Scope { handlers }) = self.program.ops.get(op).map(|op| &op.act) else {
            return Ok(false);
        };
        let takes = |fault: &Option<String>| fault.as_ref().is_none_or(|name| raised.is(name));
        let Some(handler) = handlers.iter().find(|handler| takes(&handler.fault)) else { return Ok(false) };
        let fault = &raised.fault;
        let detail = fault.detail.as_ref().map(|detail| detail.0.clone());
        let value = self.scene.guarded("catch", || {
            let value = Object::new(self.scene.cx.clone())?;
            value.set("name", fault.name.as_str())?;
            value.set("code", fault.code.as_str())?;
            value.set("text", fault.text.as_str())?;
            value.set("detail", detail.clone())?;
            Ok(value.into_value())
        })?;
        self.event(Level::Info, format!("caught {fault}"), detail);
        if let Some(thread) = self.threads.get_mut(&id) {
            thread.variables.push(value);
            thread.at = handler.to;
            thread.wait = None;
        }
        Ok(true)
    }

    /// Ends all branches below a thread, with what they wait for.
    fn end_branches(&mut self, parent: u32) {
        let below: Vec<u32> =
            self.threads.iter().filter(|(_, t)| t.parent == Some(parent)).map(|(id, _)| *id).collect();
        for id in below {
            self.end_branches(id);
            match self.threads.remove(&id).and_then(|thread| thread.wait) {
                Some(Wait::Call(number)) => {
                    if let Some(call) = self.calls.remove(&number) {
                        self.scene.effects.push(Effect::CancelCall { call: number, leave: call.leave });
                        self.cancel_timer(call.timer);
                    }
                }
                Some(Wait::Timer(timer)) => self.cancel_timer(Some(timer)),
                Some(Wait::Sync { timer, .. }) => self.cancel_timer(timer),
                Some(Wait::Branches) | None => {}
            }
        }
    }
}
