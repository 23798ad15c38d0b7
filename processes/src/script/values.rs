//! Values between the engine and JavaScript.
//!
//! Two ways out of JavaScript: *plain* JSON as JSON.stringify makes it, for records; and *kept* JSON that comes
//! back as it was, for what an instance takes over a wait. Kept values may refer to HL7 messages, which stand
//! beside the JSON in a [`Keeper`]'s list; the request's own message is never copied.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rquickjs::{Ctx, Exception, Function, Object, Persistent, Result, Value};
use septet_engine::body::{Body, Format};
use septet_engine::record::Record;
use septet_hl7::{Charset, Message};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::hl7_value::{Kept, Origin, message_value, segment_value, taken_apart};

/// The type of records that nobody declared.
pub(crate) const UNTYPED: &str = "Json";

/// HL7 messages that kept values refer to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keeper {
    /// The request's message, referred to by name.
    pub(crate) request: Option<Message>,
    /// All others, referred to by place.
    pub(crate) messages: Vec<Message>,
}

/// A message on disk.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StoredMessage {
    raw: String,
    charset: String,
}

impl StoredMessage {
    pub(crate) fn new(message: &Message) -> Self {
        StoredMessage { raw: STANDARD.encode(message.raw()), charset: message.charset().name().to_owned() }
    }

    pub(crate) fn restore(&self) -> Option<Message> {
        let raw = Bytes::from(STANDARD.decode(&self.raw).ok()?);
        let message = Message::parse(raw).ok()?;
        Some(match Charset::from_name(&self.charset) {
            Some(charset) => message.with_charset(charset),
            None => message,
        })
    }
}

impl Keeper {
    /// A reference to what `value` is a handle to; `undefined` for any other value.
    pub(crate) fn keep<'js>(&mut self, cx: &Ctx<'js>, value: &Value<'js>) -> Result<Value<'js>> {
        let Some(kept) = taken_apart(value) else {
            return Ok(Value::new_undefined(cx.clone()));
        };
        let reference = Object::new(cx.clone())?;
        if kept.origin == Origin::Request && self.request.is_some() {
            reference.set("request", true)?;
        } else {
            let place =
                self.messages.iter().position(|known| known.raw().as_ptr() == kept.message.raw().as_ptr());
            let place = place.unwrap_or_else(|| {
                self.messages.push(kept.message.clone());
                self.messages.len() - 1
            });
            reference.set("message", place)?;
        }
        if kept.editable {
            reference.set("editable", true)?;
        }
        if let Some(number) = kept.segment {
            reference.set("segment", number)?;
        }
        Ok(reference.into_value())
    }

    /// The handle that a reference stands for.
    pub(crate) fn restore<'js>(&self, cx: &Ctx<'js>, reference: &Object<'js>) -> Result<Value<'js>> {
        let (message, origin) = if reference.contains_key("request")? {
            (self.request.as_ref(), Origin::Request)
        } else {
            (self.messages.get(reference.get::<_, usize>("message")?), Origin::Own)
        };
        let message =
            message.cloned().ok_or_else(|| Exception::throw_range(cx, "a kept message is missing"))?;
        let editable = reference.contains_key("editable")?;
        match reference.get::<_, Option<usize>>("segment")? {
            Some(number) => {
                segment_value(cx, Kept { message, origin, editable, segment: Some(number) }, number)
            }
            None => message_value(cx, message, origin, editable),
        }
    }
}

/// The prelude's helpers between jobs.
pub(crate) struct SavedHelpers([Persistent<Function<'static>>; NAMES.len()]);

const NAMES: [&str; 8] = ["record", "frozen", "plain", "encode", "decode", "time", "merge", "type"];

impl SavedHelpers {
    pub(crate) fn save<'js>(cx: &Ctx<'js>, helpers: &Object<'js>) -> Result<Self> {
        let get = |name: &str| {
            Ok::<_, rquickjs::Error>(Persistent::save(cx, helpers.get::<_, Function<'js>>(name)?))
        };
        let [a, b, c, d, e, f, g, h] = NAMES;
        Ok(SavedHelpers([get(a)?, get(b)?, get(c)?, get(d)?, get(e)?, get(f)?, get(g)?, get(h)?]))
    }

    pub(crate) fn restore<'js>(&self, cx: &Ctx<'js>) -> Result<Helpers<'js>> {
        let [record, frozen, plain, encode, decode, time, merge, type_of] = &self.0;
        let get = |saved: &Persistent<Function<'static>>| saved.clone().restore(cx);
        Ok(Helpers {
            record: get(record)?,
            frozen: get(frozen)?,
            plain: get(plain)?,
            encode: get(encode)?,
            decode: get(decode)?,
            time: get(time)?,
            merge: get(merge)?,
            type_of: get(type_of)?,
        })
    }
}

/// The prelude's helpers in one context.
pub(crate) struct Helpers<'js> {
    record: Function<'js>,
    frozen: Function<'js>,
    plain: Function<'js>,
    encode: Function<'js>,
    decode: Function<'js>,
    time: Function<'js>,
    merge: Function<'js>,
    type_of: Function<'js>,
}

impl<'js> Helpers<'js> {
    /// A body as scripts see it: an HL7 value, a plain object, or text; `null` for none and for anything else.
    /// It cannot be changed: it is what came.
    pub(crate) fn body(&self, cx: &Ctx<'js>, body: Option<&Body>, origin: Origin) -> Result<Value<'js>> {
        let Some(body) = body else { return Ok(Value::new_null(cx.clone())) };
        if let Some(message) = body.as_hl7() {
            return message_value(cx, message.clone(), origin, false);
        }
        if body.format() == Format::Record && body.as_record().is_some() {
            let json = body.as_text().unwrap_or("null");
            let read = if origin == Origin::Request { &self.frozen } else { &self.record };
            let type_name = Some(body.type_name()).filter(|name| *name != UNTYPED);
            return read.call((json, type_name));
        }
        match body.as_text() {
            Some(text) => Ok(rquickjs::String::from_str(cx.clone(), text)?.into_value()),
            None => Ok(Value::new_null(cx.clone())),
        }
    }

    /// A record as a value; secrets in it are opaque.
    pub(crate) fn record_value(&self, record: &Record) -> Result<Value<'js>> {
        self.record.call((record.fields.to_string(), record.type_name.as_str()))
    }

    /// The message type of a record that is a value.
    pub(crate) fn type_of(&self, value: &Value<'js>) -> Result<Option<String>> {
        self.type_of.call((value.clone(),))
    }

    /// JSON as a plain value; secrets in it are opaque.
    pub(crate) fn json_value(&self, json: &Json) -> Result<Value<'js>> {
        self.record.call((json.to_string(),))
    }

    /// The JSON of a value as JSON.stringify makes it; `None` for undefined.
    pub(crate) fn to_json(&self, value: Value<'js>) -> Result<Option<Json>> {
        let cx = value.ctx().clone();
        let text = self.plain.call::<_, Option<rquickjs::String<'js>>>((value,))?;
        let Some(text) = text else { return Ok(None) };
        let unusable = |_| Exception::throw_range(&cx, "a text holds half a character");
        serde_json::from_str(&text.to_string()?).map(Some).map_err(unusable)
    }

    /// JSON that [`Helpers::kept_value`] reads back as it was.
    pub(crate) fn kept_json(&self, value: Value<'js>) -> Result<String> {
        let text = self.encode.call::<_, Option<rquickjs::String<'js>>>((value,))?;
        text.map_or(Ok("null".into()), |text| text.to_string())
    }

    /// See [`Helpers::kept_json`].
    pub(crate) fn kept_value(&self, json: &str) -> Result<Value<'js>> {
        self.decode.call((json,))
    }

    /// Milliseconds of a date.
    pub(crate) fn time_of(&self, value: &Value<'js>) -> Result<Option<f64>> {
        self.time.call((value.clone(),))
    }

    /// Sets a value at a path of keys, making objects on the way.
    pub(crate) fn merge(&self, target: &Value<'js>, path: &[String], value: Value<'js>) -> Result<()> {
        self.merge.call((target.clone(), path.to_vec(), value))
    }

    /// A value as text for people: nothing as empty, secrets masked, objects as JSON.
    pub(crate) fn text(&self, value: &Value<'js>) -> Result<String> {
        if value.is_null() || value.is_undefined() {
            return Ok(String::new());
        }
        if let Some(text) = value.as_string() {
            return text.to_string();
        }
        if value.is_object() && !value.is_error() {
            let json = self.to_json(value.clone())?;
            return Ok(match json {
                Some(Json::String(text)) => text,
                Some(json) => Record::untyped("Json", json).masked().to_string_or_text(),
                None => String::new(),
            });
        }
        value.get::<rquickjs::Coerced<String>>().map(|text| text.0)
    }
}

trait TextOfJson {
    fn to_string_or_text(&self) -> String;
}

impl TextOfJson for Json {
    /// Text without quotes, anything else as JSON.
    fn to_string_or_text(&self) -> String {
        match self {
            Json::String(text) => text.clone(),
            other => other.to_string(),
        }
    }
}
