//! Message → mail. A pure function of header and body, date, `Message-ID` and boundary included, so that a
//! mail sent again after a crash is the same mail (P3).
//!
//! What a message brings stays in its place: values in headers lose their line breaks, an address that is
//! filled in must be one address, and what is not ASCII is encoded.

use std::time::SystemTime;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lettre::address::Envelope;
use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment, Body, Mailbox, Message, MultiPart, SinglePart};
use septet_engine::body::TEXT;
use septet_engine::config::build::{At, Build};
use septet_engine::config::units::Strings;
use septet_engine::host::{OperationContext, OperationError};
use serde_json::Value;

use super::{AttachmentSettings, Settings};
use crate::file;
use crate::http_template::unsuitable;
use crate::template::{Place, Source, Template};

/// The longest subject that an alert makes of its own.
const LONGEST_SUBJECT: usize = 200;

/// The templates of a mail, checked.
pub(super) struct Letter {
    from: Template,
    to: Vec<Template>,
    cc: Vec<Template>,
    bcc: Vec<Template>,
    reply_to: Option<Template>,
    subject: Option<Template>,
    body: Option<Template>,
    attachments: Vec<Enclosure>,
}

struct Enclosure {
    name: Template,
    content: Content,
    content_type: Option<ContentType>,
}

enum Content {
    Message,
    Text(Template),
    Base64(Template),
}

/// A mail, ready to be sent.
pub(super) struct Mail {
    pub(super) envelope: Envelope,
    pub(super) bytes: Vec<u8>,
    /// The sender's address alone.
    pub(super) from: String,
}

// === Checking ===

/// Reads the templates; reports everything that is wrong with them.
pub(super) fn check(build: &mut Build<'_>, settings: &Settings) -> Option<Letter> {
    let from = address(build, &[At::Key("from")], &settings.from);
    let to = addresses(build, "to", Some(&settings.to));
    let cc = addresses(build, "cc", settings.cc.as_ref());
    let bcc = addresses(build, "bcc", settings.bcc.as_ref());
    if settings.to.0.is_empty() {
        build.error("S0357", &[At::Key("to")], "a mail without a recipient reaches nobody", None);
        return None;
    }
    let reply_to = settings.reply_to.as_ref().map(|text| address(build, &[At::Key("reply_to")], text));
    let subject = settings.subject.as_ref().map(|text| template(build, &[At::Key("subject")], text));
    let body = settings.body.as_ref().map(|text| template(build, &[At::Key("body")], text));
    let attachments: Vec<_> =
        settings.attachments.iter().enumerate().map(|(index, one)| enclosure(build, index, one)).collect();
    Some(Letter {
        from: from?,
        to: to?,
        cc: cc?,
        bcc: bcc?,
        reply_to: given(reply_to)?,
        subject: given(subject)?,
        body: given(body)?,
        attachments: attachments.into_iter().collect::<Option<_>>()?,
    })
}

/// `None` only for what was given and is wrong.
fn given<T>(checked: Option<Option<T>>) -> Option<Option<T>> {
    match checked {
        Some(None) => None,
        Some(right) => Some(right),
        None => Some(None),
    }
}

fn template(build: &mut Build<'_>, at: &[At<'_>], text: &str) -> Option<Template> {
    Template::parse(text).map_err(|error| build.error("S0337", at, error.to_string(), None)).ok()
}

fn address(build: &mut Build<'_>, at: &[At<'_>], text: &str) -> Option<Template> {
    let template = template(build, at, text)?;
    if template.is_literal() && text.replace("{{", "{").parse::<Mailbox>().is_err() {
        let suggestion = Some("write name@example.org or Name <name@example.org>, one an entry".to_owned());
        build.error("S0357", at, "this is no mail address", suggestion);
        return None;
    }
    Some(template)
}

fn addresses(build: &mut Build<'_>, key: &str, texts: Option<&Strings>) -> Option<Vec<Template>> {
    let texts = texts.map(|texts| texts.0.as_slice()).unwrap_or_default();
    let each = texts.iter().enumerate();
    let checked: Vec<_> =
        each.map(|(index, text)| address(build, &[At::Key(key), At::Index(index)], text)).collect();
    checked.into_iter().collect()
}

fn enclosure(build: &mut Build<'_>, index: usize, settings: &AttachmentSettings) -> Option<Enclosure> {
    let at = |key| [At::Key("attachments"), At::Index(index), At::Key(key)];
    let name = template(build, &at("name"), &settings.name);
    let content = match (&settings.text, &settings.base64) {
        (Some(_), Some(_)) => {
            build.error("S0104", &at("base64"), "an attachment has text or base64, not both", None);
            None
        }
        (Some(text), None) => template(build, &at("text"), text).map(Content::Text),
        (None, Some(text)) => template(build, &at("base64"), text).map(Content::Base64),
        (None, None) => Some(Content::Message),
    };
    let content_type = settings.content_type.as_ref().map(|text| {
        let parsed = ContentType::parse(text).ok();
        if parsed.is_none() {
            build.error("S0104", &at("content_type"), "this is no content type", None);
        }
        parsed
    });
    Some(Enclosure { name: name?, content: content?, content_type: given(content_type)? })
}

// === Composing ===

/// The mail for the message of `cx`.
pub(super) fn mail(letter: &Letter, cx: &OperationContext) -> Result<Mail, OperationError> {
    let source = Source::of(cx);
    let from = mailbox(&letter.from, &source)?
        .ok_or_else(|| OperationError::message("address", "the mail has no sender"))?;
    let sender = from.email.to_string();
    let id = format!("<{}@{}>", cx.idempotency_key, from.email.domain());
    let mut builder = Message::builder()
        .message_id(Some(id))
        .date(SystemTime::from(cx.header.created))
        .from(from)
        .subject(subject(letter, cx, &source)?)
        // RFC 3834: no absence note is to answer it.
        .raw_header(HeaderValue::new(AUTO_SUBMITTED, "auto-generated".to_owned()));
    for to in mailboxes(&letter.to, &source)? {
        builder = builder.to(to);
    }
    for cc in mailboxes(&letter.cc, &source)? {
        builder = builder.cc(cc);
    }
    for bcc in mailboxes(&letter.bcc, &source)? {
        builder = builder.bcc(bcc);
    }
    if let Some(reply_to) = letter.reply_to.as_ref().map(|to| mailbox(to, &source)).transpose()?.flatten() {
        builder = builder.reply_to(reply_to);
    }
    let text = SinglePart::plain(text(letter, cx, &source)?);
    let message = if letter.attachments.is_empty() {
        builder.singlepart(text)
    } else {
        let mut parts = MultiPart::mixed().boundary(boundary(&cx.idempotency_key)).singlepart(text);
        for enclosure in &letter.attachments {
            parts = parts.singlepart(enclosure.part(cx, &source)?);
        }
        builder.multipart(parts)
    };
    // No recipient is left: all were filled with nothing.
    let message = message.map_err(|_| OperationError::message("address", "the mail has no recipient"))?;
    let mut bytes = message.formatted();
    // The end of DATA brings the last line end.
    bytes.truncate(bytes.strip_suffix(b"\r\n").unwrap_or(&bytes).len());
    Ok(Mail { envelope: message.envelope().clone(), bytes, from: sender })
}

const AUTO_SUBMITTED: HeaderName = HeaderName::new_from_ascii_str("Auto-Submitted");

/// The address that a template makes; nothing where it makes nothing.
fn mailbox(template: &Template, source: &Source<'_>) -> Result<Option<Mailbox>, OperationError> {
    let text = template.fill(Place::Line, source).map_err(unsuitable)?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let wrong = |_| {
        let text = format!("{template} makes no mail address of this message");
        OperationError::message("address", text)
    };
    text.trim().parse::<Mailbox>().map(Some).map_err(wrong)
}

fn mailboxes(templates: &[Template], source: &Source<'_>) -> Result<Vec<Mailbox>, OperationError> {
    let each = templates.iter().map(|template| mailbox(template, source));
    each.filter_map(Result::transpose).collect()
}

fn subject(letter: &Letter, cx: &OperationContext, source: &Source<'_>) -> Result<String, OperationError> {
    if let Some(template) = &letter.subject {
        return Ok(template.fill(Place::Line, source).map_err(unsuitable)?.to_string());
    }
    let production = &cx.runtime.production;
    let subject = match alert(cx) {
        Some(alert) => format!("[{production}] {}: {}", field(alert, "level"), field(alert, "text")),
        None => format!("[{production}] {} {}", cx.body.type_name(), cx.header.control_id),
    };
    let line: String = subject.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Ok(line.trim_end().chars().take(LONGEST_SUBJECT).collect())
}

fn text(letter: &Letter, cx: &OperationContext, source: &Source<'_>) -> Result<String, OperationError> {
    let text = match (&letter.body, alert(cx)) {
        (Some(template), _) => template.fill(Place::Mail, source).map_err(unsuitable)?.to_string(),
        (None, Some(alert)) => {
            let rows = ["level", "kind", "item", "at", "session", "message_id"].map(|name| {
                let value = field(alert, name);
                if value.is_empty() { value } else { format!("{name:<12}{value}\n") }
            });
            let trace = match field(alert, "session") {
                session if session.is_empty() => session,
                session => format!("\nIts trace: septet trace {session}\n"),
            };
            format!(
                "{}\n\nproduction  {}\n{}{trace}",
                field(alert, "text"),
                cx.runtime.production,
                rows.concat()
            )
        }
        (None, None) => format!(
            "A message of type {} is in production {}.\n\nIts trace: septet trace {}\n",
            cx.body.type_name(),
            cx.runtime.production,
            cx.header.session
        ),
    };
    // Segments of HL7 end in CR, which alone is no line end in a mail.
    Ok(text.replace("\r\n", "\n").replace('\r', "\n"))
}

/// The fields of an alert.
fn alert(cx: &OperationContext) -> Option<&Value> {
    if cx.body.type_name() != "Alert" {
        return None;
    }
    cx.body.as_record().map(|record| &record.fields)
}

fn field(alert: &Value, name: &str) -> String {
    match alert.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn boundary(key: &str) -> String {
    let hash = digest::digest(&digest::SHA256, key.as_bytes());
    let hex: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("septet-{hex}")
}

impl Enclosure {
    fn part(&self, cx: &OperationContext, source: &Source<'_>) -> Result<SinglePart, OperationError> {
        let name = self.name.fill(Place::FileName, source).map_err(unsuitable)?.to_string();
        let filled = |template: &Template| {
            template.fill(Place::Mail, source).map_err(unsuitable).map(|text| text.to_string())
        };
        let (bytes, default) = match &self.content {
            Content::Message => {
                let charset = cx.body.charset().map(|charset| format!("; charset={charset}"));
                let content_type = format!("{}{}", cx.body.content_type(), charset.unwrap_or_default());
                (file::content(&cx.body).to_vec(), content_type)
            }
            Content::Text(template) => (filled(template)?.into_bytes(), format!("{TEXT}; charset=utf-8")),
            Content::Base64(template) => {
                let text: String = filled(template)?.split_ascii_whitespace().collect();
                let wrong = |_| {
                    OperationError::message(
                        "attachment",
                        format!("{template} makes no base64 of this message"),
                    )
                };
                (STANDARD.decode(text).map_err(wrong)?, "application/octet-stream".to_owned())
            }
        };
        let octets = || ContentType::parse("application/octet-stream").expect("a content type");
        let default = || ContentType::parse(&default).unwrap_or_else(|_| octets());
        // Whatever it is, it arrives byte for byte.
        let body = Body::new_with_encoding(bytes, ContentTransferEncoding::Base64);
        let body =
            body.map_err(|_| OperationError::message("attachment", "the attachment cannot be encoded"))?;
        Ok(Attachment::new(name).body(body, self.content_type.clone().unwrap_or_else(default)))
    }
}
