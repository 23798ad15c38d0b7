//! Message → HTTP request. A pure function of the header, the body and the token, so that a repeat after a
//! crash is the same request (P3). Secrets are opened here and nowhere else in this operation.

use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Request};
use septet_engine::body::{JSON, TEXT};
use septet_engine::host::{OperationContext, OperationError};
use septet_engine::media;
use septet_engine::record::Record;
use septet_engine::token::AccessToken;
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::{BodyKind, RequestPlan};
use crate::http_client::Secrets;
use crate::http_operation::{note_secrets, reveal};
use crate::http_template::{fill_headers, present, unsuitable};
use crate::template::{Place, Source};

const FORM: &str = "application/x-www-form-urlencoded";

/// The request for the message of `cx`.
pub(super) fn make(
    plan: &RequestPlan,
    cx: &OperationContext,
    form_token: Option<&AccessToken>,
    secrets: &mut Secrets,
) -> Result<Request, OperationError> {
    let source = Source::of(cx);
    let record = cx.body.as_record();
    if let Some(record) = record {
        note_secrets(record, &cx.runtime.vault, secrets)?;
    }

    let text = plan.url.fill(Place::Url, &source).map_err(unsuitable)?;
    let mut url = Url::parse(&text)
        .map_err(|_| OperationError::message("template", "the message makes no valid URL"))?;
    for (name, template) in &plan.query {
        if let Some(value) = present(template, Place::Plain, &source).map_err(unsuitable)? {
            url.query_pairs_mut().append_pair(name, &value);
        }
    }

    let mut request = Request::new(plan.method.clone(), url);
    if let Some((content_type, bytes)) = body(plan, cx, record, form_token)? {
        let content_type = HeaderValue::from_str(&content_type).unwrap_or(HeaderValue::from_static(TEXT));
        request.headers_mut().insert(CONTENT_TYPE, content_type);
        *request.body_mut() = Some(bytes.into());
    }
    fill_headers(&plan.headers, &source, request.headers_mut())?;
    Ok(request)
}

/// Content type and bytes of the body, if the request has one.
fn body(
    plan: &RequestPlan,
    cx: &OperationContext,
    record: Option<&Record>,
    form_token: Option<&AccessToken>,
) -> Result<Option<(String, Vec<u8>)>, OperationError> {
    let fallback = match (&plan.method, record) {
        (&Method::GET | &Method::HEAD | &Method::DELETE, _) => BodyKind::None,
        (_, Some(_)) => BodyKind::Json,
        (_, None) => BodyKind::Raw,
    };
    let kind = if form_token.is_some() { BodyKind::Form } else { plan.body.unwrap_or(fallback) };
    let fields = |record: Option<&Record>| {
        let type_name = cx.body.type_name();
        let record = record.ok_or_else(|| {
            OperationError::message("request", format!("a message of type {type_name} is no record"))
        })?;
        reveal(record, &cx.runtime.vault)
    };
    Ok(match kind {
        BodyKind::None => None,
        BodyKind::Json => Some((JSON.to_owned(), fields(record)?.to_string().into_bytes())),
        BodyKind::Form => {
            let fields = fields(record)?;
            let mut form = form_urlencoded::Serializer::new(String::new());
            for (name, value) in fields.as_object().into_iter().flatten() {
                if let Some(text) = form_text(value) {
                    form.append_pair(name, &text);
                }
            }
            if let Some(token) = form_token {
                form.append_pair("access_token", &token.secret);
            }
            Some((FORM.to_owned(), form.finish().into_bytes()))
        }
        BodyKind::Raw => Some((media::content_type(&cx.body), cx.body.bytes().to_vec())),
    })
}

/// A value as a form field: text as it is, lists and objects as JSON, null not at all.
fn form_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}
