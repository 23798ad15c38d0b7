//! What a job's scripts work on: `request`, `response`, `context` and `state` as JavaScript values, and the
//! effects gathered so far. Routers and flows share it.

use rquickjs::{Ctx, Object, Value};
use septet_engine::body::Body;
use septet_engine::event::{Level, NewEvent};
use septet_engine::process::{Effect, Job, Outgoing};
use septet_engine::record::{MessageTypes, Record, Undeclared};
use septet_engine::vault::Vault;
use septet_hl7::Message;
use serde_json::Value as Json;

use crate::closure::Closure;
use crate::flow::definition::{Payload, Place};
use crate::router::Scripts;
use crate::script::engine::{Engine, Loaded};
use crate::script::hl7_value::{Origin, as_message, message_value};
use crate::script::raised::Raised;
use crate::script::values::{Helpers, StoredMessage, UNTYPED};
use crate::transform::run::Made;

/// `context` and `state` take at most this many bytes each.
pub(crate) const MAX_KEPT: usize = 1 << 20;

/// What stays the same while a lane runs a definition.
pub(crate) struct Stage<'s> {
    pub(crate) engine: &'s Engine,
    pub(crate) loaded: &'s Loaded,
    pub(crate) closure: &'s Closure,
    pub(crate) types: &'s MessageTypes,
    pub(crate) vault: &'s Vault,
    pub(crate) job: &'s Job,
}

/// One job's values.
pub(crate) struct Scene<'s, 'js> {
    pub(crate) stage: &'s Stage<'s>,
    pub(crate) cx: Ctx<'js>,
    pub(crate) helpers: Helpers<'js>,
    pub(crate) request: Value<'js>,
    pub(crate) response: Value<'js>,
    pub(crate) context: Value<'js>,
    pub(crate) state: Value<'js>,
    pub(crate) effects: Vec<Effect>,
}

impl<'s, 'js> Scene<'s, 'js> {
    /// The scene of a job at its beginning; `context` is empty.
    pub(crate) fn open(stage: &'s Stage<'s>, cx: &Ctx<'js>, state: Option<&[u8]>) -> Result<Self, Raised> {
        let place = || stage.job.item.to_string();
        let made = stage.engine.guarded(cx, None, || {
            let helpers = stage.loaded.helpers(cx)?;
            let request = helpers.body(cx, stage.job.request_body.as_ref(), Origin::Request)?;
            let context = Object::new(cx.clone())?.into_value();
            Ok((helpers, request, context))
        });
        let (helpers, request, context) = made.map_err(|stopped| stopped.raise(&place()))?;
        let null = Value::new_null(cx.clone());
        let mut scene = Scene {
            stage,
            cx: cx.clone(),
            helpers,
            request,
            response: null.clone(),
            context,
            state: null,
            effects: Vec::new(),
        };
        scene.state = scene.read_state(state)?;
        Ok(scene)
    }

    // === Errors ===

    /// A step's place in error texts, with the item's name.
    pub(crate) fn place(&self, at: &str) -> String {
        format!("{} {at}", self.stage.job.item)
    }

    /// Runs engine work that calls into JavaScript.
    pub(crate) fn guarded<T>(
        &self,
        at: &str,
        work: impl FnOnce() -> rquickjs::Result<T>,
    ) -> Result<T, Raised> {
        let done = self.stage.engine.guarded(&self.cx, None, work);
        done.map_err(|stopped| stopped.raise(&self.place(at)))
    }

    // === State ===

    fn read_state(&self, state: Option<&[u8]>) -> Result<Value<'js>, Raised> {
        let text = state.and_then(|bytes| std::str::from_utf8(bytes).ok());
        let Some(text) = text.filter(|_| self.stage.closure.uses_state) else {
            return self.guarded("state", || Ok(Object::new(self.cx.clone())?.into_value()));
        };
        let wrapped: Option<WithMessages> =
            if text.starts_with(WITH_MESSAGES) { serde_json::from_str(text).ok() } else { None };
        match wrapped {
            None => self.guarded("state", || self.helpers.kept_value(text)),
            Some(wrapped) => {
                self.restoring(&wrapped.messages, None);
                let json = wrapped.value.to_string();
                self.guarded("state", || self.helpers.kept_value(&json))
            }
        }
    }

    /// The state as it is to be stored, when the definition uses it.
    pub(crate) fn written_state(&self) -> Result<Option<Vec<u8>>, Raised> {
        if !self.stage.closure.uses_state {
            return Ok(None);
        }
        self.restoring(&[], None);
        let json = self.guarded("state", || self.helpers.kept_json(self.state.clone()))?;
        let messages = self.kept_messages();
        let text = if messages.is_empty() {
            json
        } else {
            let value = serde_json::from_str(&json).unwrap_or_default();
            serde_json::to_string(&WithMessages { messages, value }).unwrap_or_default()
        };
        if text.len() > MAX_KEPT {
            return Err(Raised::engine("script", "size", self.place("state is larger than 1 MiB")));
        }
        Ok(Some(text.into_bytes()))
    }

    /// Sets what kept values may refer to from here on.
    pub(crate) fn restoring(&self, messages: &[StoredMessage], request: Option<Message>) {
        let keeper = &mut self.stage.engine.shared.job.borrow_mut().keeper;
        keeper.request = request;
        keeper.messages = messages.iter().filter_map(StoredMessage::restore).collect();
    }

    /// The messages that kept values refer to.
    pub(crate) fn kept_messages(&self) -> Vec<StoredMessage> {
        let job = self.stage.engine.shared.job.borrow();
        job.keeper.messages.iter().map(StoredMessage::new).collect()
    }

    /// The request's message, when it is HL7.
    pub(crate) fn request_message(&self) -> Option<Message> {
        self.stage.job.request_body.as_ref().and_then(Body::as_hl7).cloned()
    }

    // === Scripts ===

    /// The value of a script; `variables` are those of the steps around it. What it logged becomes events.
    pub(crate) fn script(&mut self, index: usize, variables: &[Value<'js>]) -> Result<Value<'js>, Raised> {
        self.run(index, None, variables)
    }

    pub(crate) fn run(
        &mut self,
        index: usize,
        transform: Option<(&Value<'js>, &Value<'js>)>,
        variables: &[Value<'js>],
    ) -> Result<Value<'js>, Raised> {
        let Some(script) = self.stage.closure.scripts.get(index) else {
            return Err(Raised::engine("script", "definition", self.place("no such script")));
        };
        let mut arguments =
            vec![self.request.clone(), self.response.clone(), self.context.clone(), self.state.clone()];
        if let Some((source, target)) = transform {
            arguments.extend([source.clone(), target.clone()]);
        }
        arguments.extend_from_slice(variables);
        let value = self.stage.loaded.call(self.stage.engine, &self.cx, (script, index), arguments);
        self.collect_log(&script.place);
        value.map_err(|stopped| stopped.raise(&self.place(&script.place)))
    }

    fn collect_log(&mut self, at: &str) {
        let log = std::mem::take(&mut self.stage.engine.shared.job.borrow_mut().log);
        for text in log {
            let event = NewEvent::new(Level::Info, "trace", format!("log in {at}")).detail(text);
            self.effects.push(Effect::Event(event));
        }
    }

    /// Whether JavaScript takes a value for true.
    pub(crate) fn truth(&self, value: &Value<'js>, at: &str) -> Result<bool, Raised> {
        self.guarded(at, || value.get::<rquickjs::Coerced<bool>>().map(|truth| truth.0))
    }

    /// Sets `context.…` or `state.…`.
    pub(crate) fn assign(&self, into: &Place, value: Value<'js>, at: &str) -> Result<(), Raised> {
        let root = if into.state { &self.state } else { &self.context };
        // What came in is read-only; a copy of the handle in `context` would be too, which is right.
        self.guarded(at, || self.helpers.merge(root, &into.keys, value))
    }

    // === Messages ===

    /// The body to send for a call, a send or a reply.
    pub(crate) fn outgoing(
        &mut self,
        payload: &Payload,
        variables: &[Value<'js>],
        at: &str,
    ) -> Result<Outgoing, Raised> {
        match (&payload.message, payload.with) {
            (None, None) if self.stage.job.request_body.is_none() => {
                let text = self.place(&format!("{at}: the request has no body to send"));
                Err(Raised::engine("message", "message", text))
            }
            (None, None) => Ok(Outgoing::Request),
            (None, Some(with)) => {
                let value = self.script(with, variables)?;
                let none = || self.place(&format!("{at}: with gives nothing to send"));
                self.body_of(&value, at)?.ok_or_else(|| Raised::engine("message", "message", none()))
            }
            (Some(name), with) => {
                let fields = match with {
                    Some(with) => {
                        let value = self.script(with, variables)?;
                        self.guarded(at, || self.helpers.to_json(value))?.unwrap_or(Json::Null)
                    }
                    None => Json::Object(serde_json::Map::new()),
                };
                self.record(name, fields, at).map(|record| Outgoing::New(Body::record(record)))
            }
        }
    }

    pub(crate) fn record(&self, name: &str, fields: Json, at: &str) -> Result<Record, Raised> {
        let made = self.stage.types.create(name, fields, Undeclared::Refuse, self.stage.vault);
        made.map_err(|error| Raised::message(&self.place(at), &error))
    }

    /// A value as a body: HL7, text, or a record; none for nothing. A record that came with a message type
    /// (a transform's result, a typed reply) is one of that type again, and is checked as such.
    pub(crate) fn body_of(&self, value: &Value<'js>, at: &str) -> Result<Option<Outgoing>, Raised> {
        if value.is_null() || value.is_undefined() {
            return Ok(None);
        }
        if let Some((message, origin)) = as_message(value) {
            return Ok(Some(match origin {
                Origin::Request => Outgoing::Request,
                Origin::Own => Outgoing::New(Body::hl7(message)),
            }));
        }
        if let Some(text) = value.as_string() {
            let text = self.guarded(at, || text.to_string())?;
            return Ok(Some(Outgoing::New(Body::text("Text", text))));
        }
        if value.as_object().is_some() && *value == self.request {
            return Ok(Some(Outgoing::Request));
        }
        let type_name = self.guarded(at, || self.helpers.type_of(value))?;
        let json = self.guarded(at, || self.helpers.to_json(value.clone()))?;
        let Some(json) = json else { return Ok(None) };
        let record = match type_name.filter(|name| self.stage.types.get(name).is_some()) {
            Some(name) => self.record(&name, json, at)?,
            None => Record::untyped(UNTYPED, json),
        };
        Ok(Some(Outgoing::New(Body::record(record))))
    }

    /// What a transform made, as a value.
    pub(crate) fn made_value(&self, made: Made, at: &str) -> Result<Value<'js>, Raised> {
        self.guarded(at, || match made {
            Made::Record(record) => self.helpers.record_value(&record),
            Made::Hl7(message) => message_value(&self.cx, message, Origin::Own, true),
        })
    }
}

const WITH_MESSAGES: &str = "{\"$messages\":";

/// Kept JSON that refers to messages, and these.
#[derive(serde::Serialize, serde::Deserialize)]
struct WithMessages {
    #[serde(rename = "$messages")]
    messages: Vec<StoredMessage>,
    #[serde(rename = "$value")]
    value: Json,
}

/// A router's scripts on a scene.
pub(crate) struct SceneScripts<'a, 's, 'js>(pub(crate) &'a mut Scene<'s, 'js>);

impl Scripts for SceneScripts<'_, '_, '_> {
    fn holds(&mut self, script: usize) -> Result<bool, Raised> {
        let value = self.0.script(script, &[])?;
        self.0.truth(&value, "if")
    }

    fn transform(&mut self, name: &str) -> Result<Outgoing, Raised> {
        let source = self.0.request.clone();
        Ok(Outgoing::New(match self.0.transform(name, &source, "rule")? {
            Made::Record(record) => Body::record(record),
            Made::Hl7(message) => Body::hl7(message),
        }))
    }
}
