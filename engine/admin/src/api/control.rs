//! What operators do with messages: resend, resume, discard, purge. Replays are in `replay`.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use septet_engine::body::{Body, Format};
use septet_engine::director::Bulk;
use septet_engine::header::Header;
use septet_engine::id::MessageId;
use septet_engine::record::{Record, Undeclared};
use septet_engine::store::{MessageFilter, PurgeError, Purged};
use septet_engine::vault::MASK;
use septet_hl7::Message;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::Who;
use crate::api::messages::{header, json};
use crate::query::{MessageQuery, pairs_of};
use crate::view::HeaderView;
use crate::{Context, Problem};

/// A resent message.
#[derive(Serialize, ToSchema)]
pub(crate) struct ResentView {
    id: u64,
    session: u64,
    resent_from: u64,
}

/// A new request over the stored (or an edited) body: same session, same source, new id.
#[utoipa::path(post, path = "/api/v1/messages/{id}/resend", params(("id" = u64, Path)), request_body = Object, responses(
    (status = 201, body = ResentView), (status = 404, body = Problem), (status = 409, body = Problem)
))]
pub(crate) async fn resend(
    State(context): State<Context>,
    Extension(who): Who,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<ResentView>), Problem> {
    let options = json(&body)?;
    only(&options, &["target", "body"])?;
    let header = header(&context, &id).await?;
    let target = text(&options, "target")?;
    let body = match options.get("body") {
        None | Some(Value::Null) => None,
        Some(edited) => Some(edited_body(&context, &header, edited).await?),
    };
    let resent = context.parts.engine.resend(header.id, target, body, who.name.as_deref()).await?;
    let view = ResentView { id: resent.id.0, session: resent.session.0, resent_from: resent.resent_from.0 };
    Ok((StatusCode::CREATED, Json(view)))
}

/// The edited body as a body of the original's kind.
async fn edited_body(context: &Context, header: &Header, edited: &Value) -> Result<Body, Problem> {
    only(edited, &["text", "base64"])?;
    let as_text = edited.get("text").is_some();
    let bytes = match (text(edited, "text")?, text(edited, "base64")?) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(encoded)) => {
            STANDARD.decode(encoded).map_err(|_| Problem::bad_request("body.base64 is not base64"))?
        }
        _ => return Err(Problem::bad_request("body takes either text or base64")),
    };
    let engine = &context.parts.engine;
    let original = match header.body_id {
        Some(body) => engine.store().body(body).await?,
        None => Body::new(&header.type_name, septet_engine::body::BINARY, None, Bytes::new()),
    };
    match original.format() {
        Format::Record => {
            let fields: Value = serde_json::from_slice(&bytes)
                .map_err(|_| Problem::bad_request("this message is a record: its body must be JSON"))?;
            let stored = original.as_record().map(|record| record.fields.clone()).unwrap_or(Value::Null);
            let fields = unmask(fields, &stored);
            let plan = engine.plan();
            if plan.types.get(original.type_name()).is_none() {
                return Ok(Body::record(Record::untyped(original.type_name(), fields)));
            }
            let record =
                plan.types.create(original.type_name(), fields, Undeclared::Refuse, engine.store().vault());
            record.map(Body::record).map_err(|error| Problem::bad_request(error.to_string()))
        }
        Format::Hl7 if as_text => Ok(Body::hl7(in_charset_of(&bytes, original.as_hl7())?)),
        Format::Hl7 => Ok(Body::hl7(read_hl7(bytes.into())?)),
        // What could not be read when it came is a message once its header has been mended.
        _ if header.target.is_none() && bytes.starts_with(b"MSH") => Ok(Body::hl7(read_hl7(bytes.into())?)),
        Format::Text | Format::Binary => Ok(Body::new(
            original.type_name(),
            original.content_type(),
            original.charset(),
            Bytes::from(bytes),
        )),
    }
}

fn read_hl7(bytes: Bytes) -> Result<Message, Problem> {
    Message::parse(bytes).map_err(|error| Problem::bad_request(format!("this message is HL7: {error}")))
}

/// An edited text in the charset that its header declares, or in that of the original where it declares none.
fn in_charset_of(text: &[u8], original: Option<&Message>) -> Result<Message, Problem> {
    let edited = read_hl7(Bytes::copy_from_slice(text))?;
    let declares = |message: &Message| message.value("MSH-18").unwrap_or_default();
    let declared = declares(&edited);
    let charset = match original {
        Some(original) if declares(original) == declared => original.charset(),
        _ => edited.charset(),
    };
    match charset.encode(&String::from_utf8_lossy(text)) {
        Ok(encoded) => read_hl7(encoded.into_owned().into()),
        Err(_) if declared.is_empty() => Ok(edited),
        Err(unmappable) => Err(Problem::bad_request(unmappable.to_string())),
    }
}

/// Puts the stored secret back wherever the edited record still says `•••`.
fn unmask(edited: Value, stored: &Value) -> Value {
    match (edited, stored) {
        (Value::String(text), stored)
            if text == MASK && septet_engine::vault::sealed_text(stored).is_some() =>
        {
            stored.clone()
        }
        (Value::Object(fields), Value::Object(old)) => {
            let back = |(name, value): (String, Value)| {
                let value = unmask(value, old.get(&name).unwrap_or(&Value::Null));
                (name, value)
            };
            Value::Object(fields.into_iter().map(back).collect())
        }
        (Value::Array(items), Value::Array(old)) => {
            let back = |(n, value)| unmask(value, old.get(n).unwrap_or(&Value::Null));
            Value::Array(items.into_iter().enumerate().map(back).collect())
        }
        (edited, _) => edited,
    }
}

/// A suspended message goes back to its place in the queue.
#[utoipa::path(post, path = "/api/v1/messages/{id}/resume", params(("id" = u64, Path)), responses(
    (status = 200, body = HeaderView), (status = 404, body = Problem), (status = 409, body = Problem)
))]
pub(crate) async fn resume(
    State(context): State<Context>,
    Extension(who): Who,
    Path(id): Path<String>,
) -> Result<Json<HeaderView>, Problem> {
    let found = header(&context, &id).await?;
    context.parts.engine.resume(found.id, who.name.as_deref()).await?;
    Ok(Json(HeaderView::new(&header(&context, &id).await?, false)))
}

/// A suspended or queued message will not be processed any more.
#[utoipa::path(post, path = "/api/v1/messages/{id}/discard", params(("id" = u64, Path)), responses(
    (status = 200, body = HeaderView), (status = 404, body = Problem), (status = 409, body = Problem)
))]
pub(crate) async fn discard(
    State(context): State<Context>,
    Extension(who): Who,
    Path(id): Path<String>,
) -> Result<Json<HeaderView>, Problem> {
    let found = header(&context, &id).await?;
    context.parts.engine.discard(found.id, who.name.as_deref()).await?;
    Ok(Json(HeaderView::new(&header(&context, &id).await?, false)))
}

/// What a bulk action did, or would do.
#[derive(Serialize, ToSchema)]
pub(crate) struct BulkView {
    /// How many suspended messages the filter selects.
    selected: u64,
    /// How many were resumed or discarded; 0 in a dry run.
    done: u64,
    /// Those that could not be, and why; the oldest thousand.
    failed: Vec<Blocked>,
    /// How many could not be.
    failed_count: u64,
}

/// A message that something could not be done with.
#[derive(Serialize, ToSchema)]
pub(crate) struct Blocked {
    id: u64,
    reason: String,
}

impl Blocked {
    pub(crate) fn all(listed: impl IntoIterator<Item = (MessageId, String)>) -> Vec<Self> {
        listed.into_iter().map(|(id, reason)| Blocked { id: id.0, reason }).collect()
    }
}

/// Resumes every suspended message that a filter selects, oldest first.
#[utoipa::path(post, path = "/api/v1/messages/resume", request_body = Object, responses((status = 200, body = BulkView)))]
pub(crate) async fn resume_many(
    State(context): State<Context>,
    Extension(who): Who,
    body: Bytes,
) -> Result<Json<BulkView>, Problem> {
    bulk(&context, who.name.as_deref(), &body, Bulk::Resume).await
}

/// Discards every suspended message that a filter selects.
#[utoipa::path(post, path = "/api/v1/messages/discard", request_body = Object, responses((status = 200, body = BulkView)))]
pub(crate) async fn discard_many(
    State(context): State<Context>,
    Extension(who): Who,
    body: Bytes,
) -> Result<Json<BulkView>, Problem> {
    bulk(&context, who.name.as_deref(), &body, Bulk::Discard).await
}

async fn bulk(
    context: &Context,
    who: Option<&str>,
    body: &[u8],
    action: Bulk,
) -> Result<Json<BulkView>, Problem> {
    let options = json(body)?;
    only(&options, &["filter", "dry_run"])?;
    let filter = filter(context, who, &options).await?;
    let report = context.parts.engine.bulk(&filter, action, dry_run(&options)?, who).await?;
    Ok(Json(BulkView {
        selected: report.selected,
        done: report.done,
        failed: Blocked::all(report.failed),
        failed_count: report.failed_count,
    }))
}

/// What was purged, or would be.
#[derive(Serialize, ToSchema)]
pub(crate) struct PurgedView {
    /// Files of the journal.
    segments: u64,
    /// Room on the disk, in bytes.
    bytes: u64,
    messages: u64,
    sessions: u64,
    /// Messages that were kept because their sessions live on.
    carried: u64,
    dry_run: bool,
}

/// Drops sessions whose last activity is before a moment, what is unfinished left out: segments of the journal,
/// oldest first, so that some of them may stay until later.
#[utoipa::path(post, path = "/api/v1/purge", request_body = Object, responses(
    (status = 200, body = PurgedView), (status = 400, body = Problem), (status = 409, body = Problem),
    (status = 503, body = Problem)
))]
pub(crate) async fn purge(
    State(context): State<Context>,
    Extension(who): Who,
    body: Bytes,
) -> Result<Json<PurgedView>, Problem> {
    let options = json(&body)?;
    only(&options, &["before", "dry_run"])?;
    let before = text(&options, "before")?;
    let before = before
        .ok_or_else(|| Problem::bad_request("before is missing: a time such as 2026-01-31T00:00:00Z"))?;
    let before = before.parse().map_err(|_| Problem::bad_request("before is not a time of RFC 3339"))?;
    let dry_run = dry_run(&options)?;
    let purged = context.parts.engine.purge(before, dry_run, who.name.as_deref()).await;
    let Purged { segments, bytes, messages, sessions, carried } = purged.map_err(|error| {
        let status = match error {
            PurgeError::Memory => StatusCode::CONFLICT,
            PurgeError::Failed(_) | PurgeError::Stopped(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, error.to_string())
    })?;
    Ok(Json(PurgedView { segments, bytes, messages, sessions, carried, dry_run }))
}

pub(crate) async fn filter(
    context: &Context,
    who: Option<&str>,
    options: &Value,
) -> Result<MessageFilter, Problem> {
    let Some(filter) = options.get("filter") else {
        return Err(Problem::bad_request("filter is missing; {} selects everything"));
    };
    let pairs = pairs_of(filter)?;
    if let Some((name, _)) = pairs.iter().find(|(name, _)| matches!(name.as_str(), "limit" | "cursor")) {
        // Passed over in silence it would touch more than was meant.
        let text = format!("{name} makes pages of a list; here a filter selects everything that it matches");
        return Err(Problem::bad_request(text));
    }
    let query = MessageQuery::new(pairs)?;
    if query.touches_keys() {
        context.audit.searched(who, &query.filter.keys).await;
    }
    Ok(query.filter)
}

pub(crate) fn dry_run(options: &Value) -> Result<bool, Problem> {
    match options.get("dry_run") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Problem::bad_request("dry_run must be true or false")),
    }
}

pub(crate) fn text<'a>(options: &'a Value, name: &str) -> Result<Option<&'a str>, Problem> {
    match options.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Problem::bad_request(format!("{name} must be a text"))),
    }
}

/// Refuses keys nobody knows: a mistyped `dry_run` must not start a replay.
pub(crate) fn only(options: &Value, known: &[&str]) -> Result<(), Problem> {
    let Value::Object(fields) = options else {
        return Err(Problem::bad_request("the body must be a JSON object"));
    };
    match fields.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => {
            Err(Problem::bad_request(format!("there is no {name} here; there are {}", known.join(", "))))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use septet_engine::record::map_sealed;
    use serde_json::json;

    #[test]
    fn an_unchanged_mask_keeps_the_stored_secret() {
        let sealed = json!({ "$sealed": "abc" });
        let stored = json!({ "token": sealed, "list": [{ "pin": sealed }], "note": "•••" });
        let edited = json!({ "token": "•••", "list": [{ "pin": "•••" }], "note": "•••", "more": 1 });
        let back = unmask(edited, &stored);
        assert_eq!(back, json!({ "token": sealed, "list": [{ "pin": sealed }], "note": "•••", "more": 1 }));
        assert_eq!(unmask(json!({ "token": "new" }), &stored), json!({ "token": "new" }));
        let masked = map_sealed(&stored, &mut |_| Ok::<_, ()>(Value::from(MASK))).unwrap();
        assert_eq!(unmask(masked, &stored), stored);
    }

    #[test]
    fn a_mistyped_option_is_refused() {
        assert!(only(&json!({ "dryrun": true }), &["filter", "dry_run"]).is_err());
        assert!(dry_run(&json!({ "dry_run": "yes" })).is_err());
    }

    fn message(charset: &str, name: &[u8]) -> Message {
        let head = format!("MSH|^~\\&|A|B|C|D|2026||ADT^A01|1|P|2.5||||||{charset}\rPID|1||1||");
        read_hl7([head.as_bytes(), name, b"\r"].concat().into()).unwrap()
    }

    #[test]
    fn an_edited_text_keeps_the_charset_of_its_message() {
        let latin = message("8859/1", b"M\xfcller");
        let text = message("8859/1", "Möller".as_bytes());
        assert_eq!(
            in_charset_of(text.raw(), Some(&latin)).unwrap().raw(),
            message("8859/1", b"M\xf6ller").raw()
        );
        let undeclared = message("", b"M\xfcller");
        let text = message("", "Möller".as_bytes());
        assert_eq!(
            in_charset_of(text.raw(), Some(&undeclared)).unwrap().raw(),
            message("", b"M\xf6ller").raw()
        );
        let utf8 = message("UNICODE UTF-8", "Möller".as_bytes());
        assert_eq!(in_charset_of(utf8.raw(), Some(&latin)).unwrap().raw(), utf8.raw());
        let impossible = message("8859/1", "東".as_bytes());
        assert!(in_charset_of(impossible.raw(), Some(&latin)).is_err());
    }
}
