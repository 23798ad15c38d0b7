//! HL7 messages as scripts see them: the message stays in Rust, scripts hold a handle (CONTRACT §2.4).
//!
//! What came in (`request`, `response`, a transform's `source`) is read-only; `copy()` and a transform's
//! `target` can be edited. Edits gather in one [`Editor`] and become a message when somebody needs one, so
//! that a hundred `set` calls cost one copy.

use std::cell::RefCell;
use std::rc::Rc;

use rquickjs::class::Trace;
use rquickjs::{Class, Ctx, Exception, JsLifetime, Object, Result, Value};
use septet_hl7::{Editor, Index, Message, Path, Segment};

use super::deadline;

/// Where a message came from, as far as that saves storing it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It is the body of the request being handled.
    Request,
    /// A body of its own.
    Own,
}

/// The content behind one or more handles: a message, or edits on their way to one.
pub(crate) enum Content {
    Whole(Message),
    Edited(Box<Editor>),
}

impl Content {
    fn message(&mut self) -> Message {
        if let Content::Edited(editor) = self {
            *self = Content::Whole(editor.clone().finish());
        }
        match self {
            Content::Whole(message) => message.clone(),
            Content::Edited(editor) => editor.clone().finish(),
        }
    }

    fn editor(&mut self) -> Option<&mut Editor> {
        if let Content::Whole(message) = self {
            *self = Content::Edited(Box::new(message.edit()));
        }
        match self {
            Content::Edited(editor) => Some(editor),
            Content::Whole(_) => None,
        }
    }

    fn get(&self, path: &Path) -> String {
        match self {
            Content::Whole(message) => message.get(path),
            Content::Edited(editor) => editor.get(path),
        }
    }

    fn raw(&self, path: &Path) -> String {
        match self {
            Content::Whole(message) => message.raw_text(path),
            Content::Edited(editor) => editor.raw_text(path),
        }
    }

    fn every(&self, path: &Path) -> Vec<String> {
        match self {
            Content::Whole(message) => message.every(path),
            Content::Edited(editor) => editor.every(path),
        }
    }

    fn with_segments<T>(&self, read: impl FnOnce(&mut dyn Iterator<Item = Segment<'_>>) -> T) -> T {
        match self {
            Content::Whole(message) => read(&mut message.segments()),
            Content::Edited(editor) => read(&mut editor.segments()),
        }
    }
}

/// An HL7 message in a script.
#[derive(Trace, JsLifetime)]
#[rquickjs::class(rename = "HL7", frozen)]
pub(crate) struct Hl7Value {
    #[qjs(skip_trace)]
    content: Rc<RefCell<Content>>,
    #[qjs(skip_trace)]
    editable: bool,
    #[qjs(skip_trace)]
    origin: Origin,
}

/// One segment of an HL7 message in a script. Reads and writes the message it belongs to.
#[derive(Trace, JsLifetime)]
#[rquickjs::class(rename = "Segment", frozen)]
pub(crate) struct SegmentValue {
    #[qjs(skip_trace)]
    content: Rc<RefCell<Content>>,
    #[qjs(skip_trace)]
    editable: bool,
    #[qjs(skip_trace)]
    origin: Origin,
    /// 1-based place among all segments.
    #[qjs(skip_trace)]
    number: usize,
}

/// A handle taken apart, for keeping it on disk.
pub(crate) struct Kept {
    pub(crate) message: Message,
    pub(crate) origin: Origin,
    pub(crate) editable: bool,
    /// For a segment: which one.
    pub(crate) segment: Option<usize>,
}

/// A handle to `message`.
pub(crate) fn message_value<'js>(
    cx: &Ctx<'js>,
    message: Message,
    origin: Origin,
    editable: bool,
) -> Result<Value<'js>> {
    let content = Rc::new(RefCell::new(Content::Whole(message)));
    Ok(Class::instance(cx.clone(), Hl7Value { content, editable, origin })?.into_value())
}

/// A handle to one segment of `message`.
pub(crate) fn segment_value<'js>(cx: &Ctx<'js>, kept: Kept, number: usize) -> Result<Value<'js>> {
    let content = Rc::new(RefCell::new(Content::Whole(kept.message)));
    let value = SegmentValue { content, editable: kept.editable, origin: kept.origin, number };
    Ok(Class::instance(cx.clone(), value)?.into_value())
}

/// The message behind `value`, when it is a handle to one.
pub(crate) fn as_message(value: &Value<'_>) -> Option<(Message, Origin)> {
    let kept = taken_apart(value)?;
    kept.segment.is_none().then_some((kept.message, kept.origin))
}

/// What a handle of either kind refers to.
pub(crate) fn taken_apart(value: &Value<'_>) -> Option<Kept> {
    let object = value.as_object()?;
    if let Some(class) = object.as_class::<Hl7Value>() {
        let handle = class.borrow();
        let message = handle.content.borrow_mut().message();
        return Some(Kept { message, origin: handle.origin, editable: handle.editable, segment: None });
    }
    let class = object.as_class::<SegmentValue>()?;
    let handle = class.borrow();
    let message = handle.content.borrow_mut().message();
    let segment = Some(handle.number);
    Some(Kept { message, origin: handle.origin, editable: handle.editable, segment })
}

/// The prototypes of both classes, to be frozen with everything else.
pub(crate) fn prototypes<'js>(cx: &Ctx<'js>) -> Result<[Option<Object<'js>>; 2]> {
    Ok([Class::<Hl7Value>::prototype(cx)?, Class::<SegmentValue>::prototype(cx)?])
}

fn path(cx: &Ctx<'_>, given: &Value<'_>) -> Result<Path> {
    deadline::check(cx)?;
    let text = given.as_string().map(rquickjs::String::to_string).transpose()?;
    let Some(text) = text else {
        return Err(Exception::throw_type(cx, "a path is text, for example 'PID-3.1'"));
    };
    let path: Path =
        text.parse().map_err(|error: septet_hl7::PathError| Exception::throw_type(cx, &error.to_string()))?;
    if !path.groups().is_empty() {
        let text = format!("{path}: paths through groups need the message's structure; write OBX[2]-5");
        return Err(Exception::throw_type(cx, &text));
    }
    Ok(path)
}

/// A value as the text of a field: numbers and booleans as written, nothing as empty.
fn text(cx: &Ctx<'_>, given: &Value<'_>) -> Result<String> {
    if given.is_null() || given.is_undefined() {
        return Ok(String::new());
    }
    if let Some(text) = given.as_string() {
        return text.to_string();
    }
    if given.is_number() || given.is_bool() {
        return given.get::<rquickjs::Coerced<String>>().map(|text| text.0);
    }
    Err(Exception::throw_type(cx, "a field takes text or a number; hl7Date(date) makes text of a date"))
}

fn edit(
    cx: &Ctx<'_>,
    content: &RefCell<Content>,
    editable: bool,
    change: impl FnOnce(&mut Editor) -> std::result::Result<(), septet_hl7::EditError>,
) -> Result<()> {
    deadline::check(cx)?;
    if !editable {
        return Err(Exception::throw_type(cx, "this message is read-only; edit a copy() of it"));
    }
    let mut content = content.borrow_mut();
    let changed = content.editor().map_or(Ok(()), change);
    changed.map_err(|error| Exception::throw_type(cx, &error.to_string()))
}

#[rquickjs::methods(rename_all = "camelCase")]
impl Hl7Value {
    fn get(&self, cx: Ctx<'_>, at: Value<'_>) -> Result<String> {
        Ok(self.content.borrow().get(&path(&cx, &at)?))
    }

    fn raw(&self, cx: Ctx<'_>, at: Value<'_>) -> Result<String> {
        Ok(self.content.borrow().raw(&path(&cx, &at)?))
    }

    fn all<'js>(&self, cx: Ctx<'js>, at: Value<'js>) -> Result<Vec<Value<'js>>> {
        let path = path(&cx, &at)?;
        if path.field().is_some() {
            let values = self.content.borrow().every(&path);
            return values.into_iter().map(|text| rquickjs::IntoJs::into_js(text, &cx)).collect();
        }
        let wanted = |nth: usize| match path.occurrence() {
            Index::First | Index::All => true,
            Index::At(n) => n as usize == nth,
        };
        let numbers: Vec<usize> = self.content.borrow().with_segments(|segments| {
            let named = segments.filter(|segment| segment.name() == path.segment());
            named.zip(1..).filter(|(_, nth)| wanted(*nth)).map(|(segment, _)| segment.number()).collect()
        });
        numbers.into_iter().map(|number| self.segment(&cx, number)).collect()
    }

    fn set(&self, cx: Ctx<'_>, at: Value<'_>, to: Value<'_>) -> Result<()> {
        let (path, text) = (path(&cx, &at)?, text(&cx, &to)?);
        edit(&cx, &self.content, self.editable, |editor| editor.set(&path, &text))
    }

    fn set_raw(&self, cx: Ctx<'_>, at: Value<'_>, to: Value<'_>) -> Result<()> {
        let (path, text) = (path(&cx, &at)?, text(&cx, &to)?);
        edit(&cx, &self.content, self.editable, |editor| editor.set_raw_text(&path, &text))
    }

    fn append(&self, cx: Ctx<'_>, segment: Value<'_>) -> Result<()> {
        let er7 = match segment.as_object().and_then(|object| object.as_class::<SegmentValue>()) {
            Some(segment) => segment.borrow().er7(),
            None => text(&cx, &segment)?,
        };
        edit(&cx, &self.content, self.editable, |editor| editor.append_segment_text(&er7))
    }

    fn remove(&self, cx: Ctx<'_>, at: Value<'_>) -> Result<()> {
        let path = path(&cx, &at)?;
        edit(&cx, &self.content, self.editable, |editor| editor.remove(&path))
    }

    /// A copy that can be edited.
    fn copy<'js>(&self, cx: Ctx<'js>) -> Result<Value<'js>> {
        deadline::check(&cx)?;
        message_value(&cx, self.content.borrow_mut().message(), Origin::Own, true)
    }

    #[qjs(get, rename = "segments")]
    fn segments<'js>(&self, cx: Ctx<'js>) -> Result<Vec<Value<'js>>> {
        deadline::check(&cx)?;
        let count = self.content.borrow().with_segments(|segments| segments.count());
        (1..=count).map(|number| self.segment(&cx, number)).collect()
    }

    #[qjs(get, rename = "type")]
    fn message_type(&self) -> String {
        self.content.borrow_mut().message().message_type().into_owned()
    }

    #[qjs(get, rename = "controlId")]
    fn control_id(&self) -> String {
        self.content.borrow_mut().message().control_id().into_owned()
    }

    /// The whole message as text.
    #[qjs(rename = "toString")]
    fn er7(&self) -> String {
        let message = self.content.borrow_mut().message();
        message.charset().decode(message.raw()).into_owned()
    }

    #[qjs(rename = "toJSON")]
    fn json(&self) -> String {
        self.er7()
    }
}

impl Hl7Value {
    fn segment<'js>(&self, cx: &Ctx<'js>, number: usize) -> Result<Value<'js>> {
        let content = Rc::clone(&self.content);
        let value = SegmentValue { content, editable: self.editable, origin: self.origin, number };
        Ok(Class::instance(cx.clone(), value)?.into_value())
    }
}

#[rquickjs::methods(rename_all = "camelCase")]
impl SegmentValue {
    fn get(&self, cx: Ctx<'_>, at: Value<'_>) -> Result<String> {
        let path = path(&cx, &at)?;
        Ok(self.read(|segment| segment.get(&path)).unwrap_or_default())
    }

    fn raw(&self, cx: Ctx<'_>, at: Value<'_>) -> Result<String> {
        let path = path(&cx, &at)?;
        Ok(self.read(|segment| segment.raw_text(&path)).unwrap_or_default())
    }

    /// All repetitions at a path of this segment.
    fn all(&self, cx: Ctx<'_>, at: Value<'_>) -> Result<Vec<String>> {
        let mut path = path(&cx, &at)?;
        if let Some(field) = path.field()
            && field.repetition == Index::First
        {
            let open = format!("{}-{}[*]{}", path.segment(), field.field, below(&field));
            path = open.parse().unwrap_or(path);
        }
        Ok(self.read(|segment| segment.all(&path)).unwrap_or_default())
    }

    fn set(&self, cx: Ctx<'_>, at: Value<'_>, to: Value<'_>) -> Result<()> {
        let (path, text) = (self.place(&cx, &at)?, text(&cx, &to)?);
        edit(&cx, &self.content, self.editable, |editor| editor.set(&path, &text))
    }

    fn set_raw(&self, cx: Ctx<'_>, at: Value<'_>, to: Value<'_>) -> Result<()> {
        let (path, text) = (self.place(&cx, &at)?, text(&cx, &to)?);
        edit(&cx, &self.content, self.editable, |editor| editor.set_raw_text(&path, &text))
    }

    #[qjs(get, rename = "name")]
    fn name(&self) -> String {
        self.read(|segment| segment.name().to_owned()).unwrap_or_default()
    }

    /// The segment as it is encoded.
    #[qjs(rename = "toString")]
    fn er7(&self) -> String {
        let message = self.content.borrow_mut().message();
        self.read(|segment| message.charset().decode(segment.raw()).into_owned()).unwrap_or_default()
    }

    #[qjs(rename = "toJSON")]
    fn json(&self) -> String {
        self.er7()
    }
}

impl SegmentValue {
    fn read<T>(&self, read: impl FnOnce(Segment<'_>) -> T) -> Option<T> {
        match &*self.content.borrow() {
            Content::Whole(message) => message.segment(self.number).map(read),
            Content::Edited(editor) => editor.segments().nth(self.number.checked_sub(1)?).map(read),
        }
    }

    /// A path within this segment as a path in the message.
    fn place(&self, cx: &Ctx<'_>, at: &Value<'_>) -> Result<Path> {
        let given = path(cx, at)?;
        let name = self.name();
        if given.segment() != name || given.field().is_none() {
            let text = format!("{given} is no field of this segment, which is {name}");
            return Err(Exception::throw_type(cx, &text));
        }
        let nth = self.content.borrow().with_segments(|segments| {
            segments.take(self.number).filter(|segment| segment.name() == name).count()
        });
        let field = given
            .field()
            .map_or(String::new(), |field| format!("-{}{}{}", field.field, field.repetition, below(&field)));
        format!("{name}[{nth}]{field}")
            .parse()
            .map_err(|error: septet_hl7::PathError| Exception::throw_type(cx, &error.to_string()))
    }
}

fn below(field: &septet_hl7::FieldPath) -> String {
    let parts = [field.component, field.subcomponent];
    parts.into_iter().flatten().map(|part| format!(".{part}")).collect()
}
