//! What wakes a waiting flow: responses, timers, and with them the calls that a `sync` waits for.

use rquickjs::Value;
use septet_engine::event::Level;
use septet_engine::fault::Fault;
use septet_engine::process::{Effect, Input};

use super::instance::{Answer, Call, Thread, Wait};
use super::run::Machine;
use crate::script::hl7_value::Origin;
use crate::script::raised::Raised;

impl<'js> Machine<'_, '_, 'js> {
    /// Lets the threads know of a response or a timer.
    pub(super) fn take(&mut self, input: Input) -> Result<(), Raised> {
        match input {
            Input::Request => Ok(()),
            Input::Timer { timer } => self.timer(timer),
            Input::Response { call, header, body, fault } => {
                let ended = || Fault::new("call", "discarded", "the request ended without a response");
                let fault = fault.or_else(|| (header.is_none() && body.is_none()).then(ended));
                let Some(known) = self.calls.get(&call).filter(|known| known.done.is_none()).cloned() else {
                    return Ok(());
                };
                self.cancel_timer(known.timer);
                let scene = &mut *self.scene;
                let value = scene
                    .guarded(&known.step, || scene.helpers.body(&scene.cx, body.as_ref(), Origin::Own))?;
                scene.response = value.clone();
                let mut outcome = fault.map(|fault| self.call_failed(&known, fault));
                if outcome.is_none()
                    && let Some(into) = &known.into
                {
                    outcome = self.scene.assign(into, value, &known.step).err();
                }
                self.answered(call, outcome)
            }
        }
    }

    fn call_failed(&mut self, call: &Call, fault: Fault) -> Raised {
        let raised = Raised::of_call(fault);
        if !call.waited {
            let text = format!("asynchronous call {} failed: {}", call.name, raised.fault);
            self.event(Level::Warning, text, raised.fault.detail.clone().map(|detail| detail.0));
        }
        raised
    }

    /// A call has its outcome.
    fn answered(&mut self, number: u64, outcome: Option<Raised>) -> Result<(), Raised> {
        let waiting = |(id, thread): (&u32, &Thread<Value<'js>>)| match &thread.wait {
            Some(Wait::Call(call)) if *call == number => Some(*id),
            _ => None,
        };
        if let Some(id) = self.threads.iter().find_map(waiting) {
            self.calls.remove(&number);
            return match outcome {
                None => {
                    self.wake(id);
                    Ok(())
                }
                Some(raised) => self.raise(id, raised),
            };
        }
        if let Some(call) = self.calls.get_mut(&number) {
            call.done = Some(outcome.map_or(Answer::Well, Answer::Fault));
            call.timer = None;
        }
        let syncing: Vec<u32> = self
            .threads
            .iter()
            .filter(|(_, t)| matches!(t.wait, Some(Wait::Sync { .. })))
            .map(|(id, _)| *id)
            .collect();
        for id in syncing {
            let Some(Wait::Sync { names, any, timer }) = self.threads.get(&id).and_then(|t| t.wait.clone())
            else {
                continue;
            };
            if let Some(outcome) = self.synced(&names, any) {
                self.cancel_timer(timer);
                match outcome {
                    Ok(()) => self.wake(id),
                    Err(raised) => self.raise(id, raised)?,
                }
            }
        }
        Ok(())
    }

    pub(super) fn wake(&mut self, id: u32) {
        if let Some(thread) = self.threads.get_mut(&id) {
            thread.wait = None;
        }
    }

    fn timer(&mut self, timer: u64) -> Result<(), Raised> {
        let timed =
            |(number, call): (&u64, &Call)| (call.timer == Some(timer)).then(|| (*number, call.clone()));
        if let Some((number, call)) = self.calls.iter().find_map(timed) {
            self.scene.effects.push(Effect::CancelCall { call: number, leave: call.leave });
            let text = self.scene.place(&format!("{}: no response in time", call.step));
            return self.answered(number, Some(Raised::engine("timeout", "timeout", text)));
        }
        let waiting = self.threads.iter().find_map(|(id, thread)| match &thread.wait {
            Some(Wait::Timer(own)) if *own == timer => Some((*id, None)),
            Some(Wait::Sync { names, timer: Some(own), .. }) if *own == timer => {
                Some((*id, Some(names.clone())))
            }
            _ => None,
        });
        match waiting {
            None => Ok(()),
            Some((id, None)) => {
                self.wake(id);
                Ok(())
            }
            Some((id, Some(names))) => {
                self.give_up(&names);
                let step = self.threads.get(&id).map_or("sync".into(), |thread| self.step_before(thread.at));
                let text = self.scene.place(&format!("{step}: not all responses in time"));
                self.raise(id, Raised::engine("timeout", "timeout", text))
            }
        }
    }

    /// Late responses of these calls are discarded.
    fn give_up(&mut self, names: &[String]) {
        let late: Vec<u64> = self
            .calls
            .iter()
            .filter(|(_, c)| !c.waited && names.contains(&c.name))
            .map(|(n, _)| *n)
            .collect();
        for number in late {
            let Some(call) = self.calls.remove(&number) else { continue };
            if call.done.is_none() {
                self.scene.effects.push(Effect::CancelCall { call: number, leave: call.leave });
                self.cancel_timer(call.timer);
            }
        }
    }

    fn step_before(&self, at: usize) -> String {
        at.checked_sub(1).and_then(|at| self.program.ops.get(at)).map_or(String::new(), |op| op.at.clone())
    }

    /// Whether a `sync` has what it waits for; its calls are then forgotten. A fault of one of them is its.
    pub(super) fn synced(&mut self, names: &[String], any: bool) -> Option<Result<(), Raised>> {
        let named = |call: &Call| !call.waited && names.contains(&call.name);
        let (mut done, mut open) = (Vec::new(), 0);
        for (number, call) in self.calls.iter().filter(|(_, call)| named(call)) {
            match call.done {
                Some(_) => done.push(*number),
                None => open += 1,
            }
        }
        if open > 0 && (!any || done.is_empty()) {
            return None;
        }
        let mut outcome = Ok(());
        for number in done {
            if let Some(Some(Answer::Fault(raised))) = self.calls.remove(&number).map(|call| call.done)
                && outcome.is_ok()
            {
                outcome = Err(raised);
            }
        }
        Some(outcome)
    }
}
