//! FHIR reply → outcome. What an OperationOutcome says is parted: its codes and the elements they concern
//! belong to the error, its words may hold patient data and belong to the detail. A batch whose entries fail
//! is answered 200 all the same: its code is that of the worst entry.

use septet_engine::body::Body;
use septet_engine::fault::Fault;
use septet_engine::host::{OperationContext, Outcome};
use septet_engine::record::{Record, Undeclared};
use serde_json::{Value, json};

use crate::http_client::{Reply, cut};
use crate::http_reply::{self, answered, refusal};

/// How many issues and entries are named in an error.
const NAMED: usize = 3;

/// What the reply means for the message; `declared` is the type that a successful reply should have.
pub(super) fn of(reply: Reply, declared: Option<&str>, cx: &OperationContext, peer: &str) -> Outcome {
    let retry_after = reply.retry_after(cx.runtime.clock.now());
    let resource: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let located = reply.is_success().then(|| location(&reply)).flatten();
    let typed = declared.and_then(|name| cx.runtime.types.get(name));
    let (body, misfit) = match located.filter(|_| reply.body.is_empty()) {
        Some(located) => (Some(record(located, declared, cx)), None),
        None => http_reply::read(&reply, typed, cx),
    };
    let mut code = format!("{:03}", reply.status);
    let fault = match failed_entries(&resource) {
        _ if !reply.is_success() => Some(refused(&reply, &resource, peer)),
        Some(failed) => {
            code = format!("{:03}", failed.worst);
            let text = format!("{}, but {}", answered(reply.status, peer), failed.text);
            let mut detail = failed.detail;
            cut(&mut detail);
            Some(Fault::new("call", code.clone(), text).with_detail(detail))
        }
        None => misfit,
    };
    Outcome::Replied { code, body, fault, retry_after }
}

/// The fault of a reply that is no success.
fn refused(reply: &Reply, resource: &Value, peer: &str) -> Fault {
    let mut fault = refusal(reply, peer);
    let Some(mut said) = Said::of(resource) else { return fault };
    if !said.codes.is_empty() {
        fault.text = format!("{}: {}", fault.text, said.codes);
    }
    cut(&mut said.words);
    match said.words.is_empty() {
        true => fault,
        false => fault.with_detail(said.words),
    }
}

/// What the server made, from its `Location`: `[base]/Patient/12/_history/1`.
fn location(reply: &Reply) -> Option<Value> {
    let text =
        reply.headers.get("location").or_else(|| reply.headers.get("content-location"))?.to_str().ok()?;
    let mut parts = text.split('?').next()?.rsplit('/');
    let mut next = || parts.next().filter(|part| !part.is_empty());
    let (last, before) = (next()?, next()?);
    let (version, id, type_name) = match before {
        "_history" => (Some(last), next()?, next()?),
        type_name => (None, last, type_name),
    };
    let mut made = json!({ "resourceType": type_name, "id": id });
    if let (Some(version), Some(fields)) = (version, made.as_object_mut()) {
        fields.insert("meta".to_owned(), json!({ "versionId": version }));
    }
    Some(made)
}

/// A record of the declared type where it fits, else of type `Json`.
fn record(value: Value, declared: Option<&str>, cx: &OperationContext) -> Body {
    let typed = declared.and_then(|name| {
        cx.runtime.types.create(name, value.clone(), Undeclared::Ignore, &cx.runtime.vault).ok()
    });
    Body::record(typed.unwrap_or_else(|| Record::untyped("Json", value)))
}

// === Entries of a batch ===

struct Failed {
    /// The highest status: a 5xx is worth another try, whatever else failed.
    worst: u16,
    text: String,
    detail: String,
}

/// What failed in the response to a batch; `None` where nothing did.
fn failed_entries(bundle: &Value) -> Option<Failed> {
    let kind = bundle.get("type").and_then(Value::as_str)?;
    if !matches!(kind, "batch-response" | "transaction-response") {
        return None;
    }
    let entries = bundle.get("entry").and_then(Value::as_array)?;
    let failed: Vec<_> = entries.iter().enumerate().filter_map(|(at, entry)| failure(at, entry)).collect();
    let worst = failed.iter().map(|(status, ..)| *status).max()?;
    let first: Vec<_> = failed.iter().take(NAMED).map(|(_, text, _)| text.as_str()).collect();
    let more = if failed.len() > NAMED { ", …" } else { "" };
    let text = format!("{} of {} entries failed: {}{more}", failed.len(), entries.len(), first.join(", "));
    let words: Vec<_> = failed.iter().map(|(.., words)| words.as_str()).filter(|w| !w.is_empty()).collect();
    Some(Failed { worst, text, detail: words.join("\n") })
}

/// Status, text and words of an entry that failed. One without a readable status is taken to have failed.
fn failure(at: usize, entry: &Value) -> Option<(u16, String, String)> {
    let response = entry.get("response");
    let status = response.and_then(|response| response.get("status")).and_then(Value::as_str);
    let number = status.and_then(|text| text.get(..3)).and_then(|text| text.parse::<u16>().ok());
    let (status, shown) = match number {
        Some(status) if (200..400).contains(&status) => return None,
        Some(status) => (status, status.to_string()),
        None => (500, "no status".to_owned()),
    };
    let said = response.and_then(|response| response.get("outcome")).and_then(Said::of);
    let said = said.unwrap_or_default();
    let codes = if said.codes.is_empty() { String::new() } else { format!(" {}", said.codes) };
    let words = said.words.lines().map(|line| format!("entry {at}: {line}")).collect::<Vec<_>>().join("\n");
    Some((status, format!("entry {at} {shown}{codes}"), words))
}

// === OperationOutcome ===

/// What an OperationOutcome says.
#[derive(Default)]
struct Said {
    /// `invalid at Patient.name, required at Patient.gender`: nothing foreign.
    codes: String,
    /// The server's own words, one line an issue.
    words: String,
}

impl Said {
    fn of(resource: &Value) -> Option<Said> {
        if resource.get("resourceType").and_then(Value::as_str) != Some("OperationOutcome") {
            return None;
        }
        let issues: Vec<&Value> = resource.get("issue").and_then(Value::as_array)?.iter().collect();
        let severity =
            |issue: &Value| issue.get("severity").and_then(Value::as_str).unwrap_or("error").to_owned();
        let grave = |issue: &&&Value| matches!(severity(issue).as_str(), "error" | "fatal");
        let mut told: Vec<&Value> = issues.iter().filter(grave).copied().collect();
        if told.is_empty() {
            told = issues.clone();
        }
        let codes: Vec<String> = told.iter().filter_map(|issue| code(issue)).take(NAMED).collect();
        let words: Vec<String> = issues.iter().map(|issue| words(issue)).filter(|w| !w.is_empty()).collect();
        Some(Said { codes: codes.join(", "), words: words.join("\n") })
    }
}

/// Code and element of an issue. Both are foreign: a code counts when FHIR knows it, an element when it can
/// hold no value.
fn code(issue: &Value) -> Option<String> {
    let code = issue.get("code").and_then(Value::as_str).filter(|code| ISSUE_TYPES.contains(code))?;
    let lists = ["expression", "location"].into_iter().filter_map(|key| issue.get(key)?.as_array());
    let place = lists.flatten().filter_map(Value::as_str).find(|text| is_element(text));
    Some(place.map_or_else(|| code.to_owned(), |place| format!("{code} at {place}")))
}

/// `Bundle.entry[2].resource.ofType(Patient).name`: a path of elements and nothing else. A FHIRPath with a
/// comparison could hold patient data.
fn is_element(text: &str) -> bool {
    let part = |part: &str| (1..=48).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric());
    text.len() <= 160
        && text.split(['.', '[', ']', '(', ')']).filter(|text| !text.is_empty()).all(part)
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn words(issue: &Value) -> String {
    let details = issue.get("details");
    let coded = details.and_then(|details| details.get("coding")?.get(0)?.get("display"));
    let text = details.and_then(|details| details.get("text"));
    let places =
        ["expression", "location"].into_iter().filter_map(|key| issue.get(key)?.as_array()).flatten();
    let said = [text.or(coded), issue.get("diagnostics")].into_iter().flatten();
    let all: Vec<&str> = said.chain(places).filter_map(Value::as_str).collect();
    all.join("; ").replace(['\r', '\n'], " ")
}

/// FHIR R4's value set `issue-type`.
const ISSUE_TYPES: [&str; 31] = [
    "invalid",
    "structure",
    "required",
    "value",
    "invariant",
    "security",
    "login",
    "unknown",
    "expired",
    "forbidden",
    "suppressed",
    "processing",
    "not-supported",
    "duplicate",
    "multiple-matches",
    "not-found",
    "deleted",
    "too-long",
    "code-invalid",
    "extension",
    "too-costly",
    "business-rule",
    "conflict",
    "transient",
    "lock-error",
    "no-store",
    "exception",
    "timeout",
    "incomplete",
    "throttled",
    "informational",
];
