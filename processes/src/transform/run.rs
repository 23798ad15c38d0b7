//! Runs named transforms on a job's scene.

use rquickjs::{Object, Value};
use septet_engine::record::{FieldType, Record};
use septet_hl7::{Message, Path};
use serde_json::Value as Json;

use super::{Source, TransformDef};
use crate::router::field;
use crate::scene::Scene;
use crate::script::hl7_value::{Origin, as_message, message_value, taken_apart};
use crate::script::raised::Raised;
use crate::time;

/// What a transform made.
pub(crate) enum Made {
    Record(Record),
    Hl7(Message),
}

impl<'js> Scene<'_, 'js> {
    /// Runs a named transform on `source`.
    pub(crate) fn transform(&mut self, name: &str, source: &Value<'js>, at: &str) -> Result<Made, Raised> {
        let closure = self.stage.closure;
        let Some(transform) = closure.transforms.get(name) else {
            return Err(Raised::engine(
                "transform",
                "definition",
                self.place(&format!("{at}: no transform {name}")),
            ));
        };
        let place = format!("{at}, transform {name}");
        self.transformed(transform, source, &place).map_err(Raised::in_transform)
    }

    fn transformed(
        &mut self,
        transform: &TransformDef,
        source: &Value<'js>,
        at: &str,
    ) -> Result<Made, Raised> {
        let message = taken_apart(source).map(|kept| kept.message);
        let target = match (&transform.to, &message) {
            (Some(_), _) => self.guarded(at, || Ok(Object::new(self.cx.clone())?.into_value()))?,
            (None, Some(message)) => {
                let copy = message.clone();
                self.guarded(at, || message_value(&self.cx, copy, Origin::Own, true))?
            }
            (None, None) => {
                let text =
                    self.place(&format!("{at}: without a type it makes HL7 of HL7, and this is not HL7"));
                return Err(Raised::engine("transform", "transform", text));
            }
        };
        for (field, from) in &transform.set {
            self.set(transform, (source, message.as_ref()), &target, field, from, at)?;
        }
        let mut result = target.clone();
        if let Some(code) = transform.code {
            let value = self.run(code, Some((source, &target)), &[])?;
            if value.is_object() {
                result = value;
            }
        }
        match &transform.to {
            Some(to) => {
                let fields = self.guarded(at, || self.helpers.to_json(result))?.unwrap_or(Json::Null);
                self.record(to, fields, at)
                    .map(Made::Record)
                    .map_err(|raised| raised.also("message"))
                    .map_err(as_transform)
            }
            None => match as_message(&result) {
                Some((message, _)) => Ok(Made::Hl7(message)),
                None => {
                    let text = self.place(&format!("{at}: target is no HL7 message any more"));
                    Err(Raised::engine("transform", "transform", text))
                }
            },
        }
    }

    /// One entry of `set`.
    fn set(
        &mut self,
        transform: &TransformDef,
        (source, message): (&Value<'js>, Option<&Message>),
        target: &Value<'js>,
        field_name: &str,
        from: &Source,
        at: &str,
    ) -> Result<(), Raised> {
        let at = &format!("{at}, set {field_name}");
        let Some(to) = &transform.to else {
            return self.set_hl7((source, message), target, field_name, from, at);
        };
        let value = match from {
            Source::Constant(value) => self.guarded(at, || self.helpers.json_value(value))?,
            Source::Expression(script) => self.run(*script, Some((source, target)), &[])?,
            Source::Path(path) => {
                let kind = self.stage.types.get(to).and_then(|declared| {
                    declared.fields.iter().find(|(name, _)| name == field_name).map(|(_, field)| field.kind)
                });
                match self.at_path((source, message), path, kind, at)? {
                    Some(json) => self.guarded(at, || self.helpers.json_value(&json))?,
                    None => return Ok(()),
                }
            }
        };
        if value.is_undefined() {
            return Ok(());
        }
        let keys: Vec<String> = field_name.split('.').map(str::to_owned).collect();
        self.guarded(at, || self.helpers.merge(target, &keys, value))
    }

    /// What stands at a path of the source; nothing where there is nothing.
    fn at_path(
        &self,
        (source, message): (&Value<'js>, Option<&Message>),
        path: &str,
        kind: Option<FieldType>,
        at: &str,
    ) -> Result<Option<Json>, Raised> {
        let Some(message) = message else {
            let json = self.guarded(at, || self.helpers.to_json(source.clone()))?;
            return Ok(json.and_then(|json| field(&json, path).cloned()));
        };
        let Ok(path) = path.parse::<Path>() else {
            let text = self.place(&format!("{at}: {path} is no HL7 path, and the source is HL7"));
            return Err(Raised::engine("transform", "transform", text));
        };
        let timezone = self.stage.engine.timezone();
        if path.is_multiple() {
            let values =
                message.every(&path).into_iter().map(|text| typed(kind_of_items(kind), text, timezone));
            return Ok(Some(Json::Array(values.collect())));
        }
        if !message.exists(&path) {
            return Ok(None);
        }
        Ok(Some(typed(kind, message.get(&path), timezone)))
    }

    fn set_hl7(
        &mut self,
        (source, message): (&Value<'js>, Option<&Message>),
        target: &Value<'js>,
        path: &str,
        from: &Source,
        at: &str,
    ) -> Result<(), Raised> {
        let (method, value) = match from {
            // Components and subcomponents come along as they are encoded.
            Source::Path(from) => {
                let raw =
                    message.zip(from.parse::<Path>().ok()).map(|(message, from)| message.raw_text(&from));
                let Some(raw) = raw else {
                    let text = self.place(&format!("{at}: {from} is no HL7 path"));
                    return Err(Raised::engine("transform", "transform", text));
                };
                if raw.is_empty() && self.nothing_at(target, path) {
                    return Ok(());
                }
                ("setRaw", self.guarded(at, || self.js_text(&raw))?)
            }
            Source::Constant(Json::String(text)) => ("set", self.guarded(at, || self.js_text(text))?),
            Source::Constant(value) => ("set", self.guarded(at, || self.js_text(&value.to_string()))?),
            Source::Expression(script) => ("set", self.run(*script, Some((source, target)), &[])?),
        };
        let place = self.guarded(at, || self.js_text(path))?;
        self.guarded(at, || {
            let object = target.as_object().ok_or_else(|| rquickjs::Error::new_from_js("value", "HL7"))?;
            let set: rquickjs::Function<'js> = object.get(method)?;
            set.call((rquickjs::function::This(object.clone()), place, value))
        })
    }

    /// Whether there is nothing at a path that nothing is to be copied to: no segment is made for that.
    fn nothing_at(&self, target: &Value<'js>, path: &str) -> bool {
        let message = as_message(target).map(|(message, _)| message);
        message.zip(path.parse::<Path>().ok()).is_some_and(|(message, path)| !message.exists(&path))
    }

    fn js_text(&self, text: &str) -> rquickjs::Result<Value<'js>> {
        rquickjs::String::from_str(self.cx.clone(), text).map(rquickjs::String::into_value)
    }
}

/// A missing or mistyped field of what a transform makes is the transform's fault, and the message's.
fn as_transform(raised: Raised) -> Raised {
    let fault =
        septet_engine::fault::Fault { name: "transform".into(), code: "transform".into(), ..raised.fault };
    Raised { fault, also: raised.also }.also("message")
}

fn kind_of_items(kind: Option<FieldType>) -> Option<FieldType> {
    kind.filter(|kind| !matches!(kind, FieldType::List))
}

/// HL7 text as a value of a field's type, where it reads as one; checking comes later.
fn typed(kind: Option<FieldType>, text: String, timezone: &jiff::tz::TimeZone) -> Json {
    let trimmed = text.trim();
    match kind {
        Some(FieldType::Integer) => trimmed.parse::<i64>().map_or(Json::String(text), Json::from),
        Some(FieldType::Number) => {
            let whole = trimmed.parse::<i64>().ok().map(Json::from);
            let number =
                || trimmed.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Json::Number);
            whole.or_else(number).unwrap_or(Json::String(text))
        }
        Some(FieldType::Datetime) => match time::from_text(trimmed, timezone) {
            Some(moment) => Json::String(moment.to_string()),
            None => Json::String(text),
        },
        Some(FieldType::Boolean) => match trimmed {
            "true" | "Y" | "1" => Json::Bool(true),
            "false" | "N" | "0" => Json::Bool(false),
            _ => Json::String(text),
        },
        _ => Json::String(text),
    }
}
