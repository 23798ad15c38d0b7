//! Message → FHIR interaction. A pure function of the header and the body, so that a repeat after a crash is
//! the same request (P3).

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_MATCH};
use reqwest::{Method, Request};
use septet_engine::host::{OperationContext, OperationError};
use serde_json::Value;
use url::Url;
use zeroize::Zeroizing;

use super::{Interaction, RequestPlan};
use crate::http_client::Secrets;
use crate::http_operation::{note_secrets, reveal};
use crate::http_template::{fill_headers, unsuitable};
use crate::template::{Place, Source, Template};

/// The media type of FHIR in JSON (FHIR R4, 3.1.0.1.9).
pub(super) const FHIR_JSON: &str = "application/fhir+json";

const IF_NONE_EXIST: HeaderName = HeaderName::from_static("if-none-exist");

/// The request for the message of `cx`.
pub(super) fn make(
    base: &str,
    plan: &RequestPlan,
    cx: &OperationContext,
    secrets: &mut Secrets,
) -> Result<Request, OperationError> {
    let source = Source::of(cx);
    let (resource, body) = resource(plan, cx, secrets)?;
    let (method, path) = target(plan, &resource, &source)?;
    let url = Url::parse(&format!("{base}{path}")).map_err(|_| wrong("the message makes no valid URL"))?;
    let mut request = Request::new(method, url);
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(FHIR_JSON));
    headers.insert(ACCEPT, HeaderValue::from_static(FHIR_JSON));
    condition(IF_NONE_EXIST, plan.if_none_exist.as_ref(), headers, |template| {
        template.fill(Place::Search, &source).map_err(unsuitable)
    })?;
    condition(IF_MATCH, plan.if_match.as_ref(), headers, |template| {
        let version = template.fill(Place::Search, &source).map_err(unsuitable)?;
        Ok(Zeroizing::new(format!("W/\"{}\"", version.as_str())))
    })?;
    fill_headers(&plan.headers, &source, headers)?;
    *request.body_mut() = Some(body.into());
    Ok(request)
}

/// The resource of the message, and the bytes to send: those of the message itself where it is the resource
/// and nothing has to be opened or added.
fn resource(
    plan: &RequestPlan,
    cx: &OperationContext,
    secrets: &mut Secrets,
) -> Result<(Value, Vec<u8>), OperationError> {
    let no_record = || wrong(format!("a message of type {} is no record", cx.body.type_name()));
    let record = cx.body.as_record().ok_or_else(no_record)?;
    note_secrets(record, &cx.runtime.vault, secrets)?;
    let mut as_it_came = plan.resource.is_none() && !record.has_secrets();
    let mut resource = reveal(record, &cx.runtime.vault)?;
    if let Some(field) = &plan.resource {
        let held = resource.get_mut(field).map(Value::take).filter(Value::is_object);
        resource = held.ok_or_else(|| wrong(format!("the field {field} holds no resource")))?;
    }
    let kind = match plan.interaction {
        Some(Interaction::Transaction) => "transaction",
        Some(Interaction::Batch) => "batch",
        _ => "",
    };
    if !kind.is_empty() {
        if type_of(&resource)? != "Bundle" {
            return Err(wrong(format!("a {kind} is a Bundle")));
        }
        match resource.get("type").and_then(Value::as_str) {
            Some(given) if given == kind => {}
            Some(_) => return Err(wrong(format!("the Bundle is of another type than {kind}"))),
            None => {
                if let Some(fields) = resource.as_object_mut() {
                    fields.insert("type".to_owned(), kind.into());
                }
                as_it_came = false;
            }
        }
    }
    let body = if as_it_came { cx.body.bytes().to_vec() } else { resource.to_string().into_bytes() };
    Ok((resource, body))
}

/// Method and what follows the base URL.
fn target(
    plan: &RequestPlan,
    resource: &Value,
    source: &Source<'_>,
) -> Result<(Method, String), OperationError> {
    let type_name = type_of(resource)?;
    let bundle = || matches!(resource.get("type").and_then(Value::as_str), Some("transaction" | "batch"));
    Ok(match plan.interaction {
        Some(Interaction::Transaction | Interaction::Batch) => (Method::POST, String::new()),
        None if type_name == "Bundle" && bundle() => (Method::POST, String::new()),
        None | Some(Interaction::Create) => (Method::POST, format!("/{type_name}")),
        Some(Interaction::Update) => {
            let which = match &plan.condition {
                Some(condition) => condition.fill(Place::Search, source).map_err(unsuitable)?.to_string(),
                None => format!("/{}", id_of(resource)?),
            };
            (Method::PUT, format!("/{type_name}{which}"))
        }
    })
}

fn type_of(resource: &Value) -> Result<&str, OperationError> {
    let name = resource.get("resourceType").and_then(Value::as_str).unwrap_or_default();
    let right = !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphabetic());
    right.then_some(name).ok_or_else(|| wrong("the message has no resourceType, so it is no FHIR resource"))
}

/// The resource's id, of the form that FHIR allows (R4, 2.24.0.1).
fn id_of(resource: &Value) -> Result<&str, OperationError> {
    let id = resource.get("id").and_then(Value::as_str).unwrap_or_default();
    let right = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    let right = (1..=64).contains(&id.len()) && id.bytes().all(right) && !matches!(id, "." | "..");
    right.then_some(id).ok_or_else(|| wrong("an update needs the resource's id, or a condition"))
}

fn condition(
    name: HeaderName,
    template: Option<&Template>,
    headers: &mut HeaderMap,
    fill: impl Fn(&Template) -> Result<Zeroizing<String>, OperationError>,
) -> Result<(), OperationError> {
    if let Some(template) = template {
        let mut value = HeaderValue::from_str(&fill(template)?)
            .map_err(|_| wrong(format!("the header {name} cannot be sent")))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(())
}

fn wrong(text: impl Into<String>) -> OperationError {
    OperationError::message("request", text)
}
