//! `septet trace`: one session as a picture in text, leg by leg, with its events.

use std::process::ExitCode;

use serde_json::Value;

use super::client::{Client, print_json, text};
use crate::output::line;

/// Shows every leg of a session in order, and what happened on the way.
#[derive(clap::Args, Debug)]
pub(crate) struct Trace {
    /// The session: the id of its first message.
    session: u64,
    #[command(flatten)]
    client: Client,
}

impl Trace {
    /// Runs the command.
    pub(crate) async fn run(self) -> ExitCode {
        match self.client.get(&format!("/api/v1/sessions/{}", self.session), &[]).await {
            Ok(trace) if self.client.json => print_json(&trace),
            Ok(trace) => line(picture(&trace).trim_end()),
            Err(failure) => return failure.report(),
        }
        ExitCode::SUCCESS
    }
}

/// Time of day of an RFC 3339 text, with milliseconds.
fn clock(at: &str) -> &str {
    at.get(11..23).unwrap_or(at)
}

/// The trace as text: requests point right, responses left.
fn picture(trace: &Value) -> String {
    let mut out = format!(
        "session {}  {}  started {}\n",
        text(trace, "session"),
        text(trace, "status"),
        text(trace, "started")
    );
    let empty = Vec::new();
    let legs = trace.get("messages").and_then(Value::as_array).unwrap_or(&empty);
    let ends = |leg: &Value| {
        let (source, target) = (text(leg, "source").into_owned(), text(leg, "target").into_owned());
        if text(leg, "kind") == "response" {
            format!("{target} ◀── {source}")
        } else if target.is_empty() {
            format!("{source} ──✗")
        } else {
            format!("{source} ──▶ {target}")
        }
    };
    let width =
        |f: &dyn Fn(&Value) -> String| legs.iter().map(|leg| f(leg).chars().count()).max().unwrap_or(0);
    let ends_width = width(&ends);
    let types = |leg: &Value| text(leg, "type").into_owned();
    let types_width = width(&types);
    for leg in legs {
        let attempts = leg.get("attempts").and_then(Value::as_u64).unwrap_or(0);
        let tries = if attempts > 1 { format!("  {attempts} attempts") } else { String::new() };
        let again = leg.get("resent_from").and_then(Value::as_u64);
        let again = again.map(|id| format!("  resends {id}")).unwrap_or_default();
        out.push_str(&format!(
            "{:>8}  {}  {:<ends_width$}  {:<types_width$}  {}{tries}{again}\n",
            text(leg, "id"),
            clock(&text(leg, "created")),
            ends(leg),
            types(leg),
            text(leg, "status"),
        ));
        if leg.get("error").is_some_and(|error| !error.is_null()) {
            out.push_str(&format!("{:>24}{}\n", "", text(leg, "error")));
        }
        if leg.get("detail").is_some_and(|detail| !detail.is_null()) {
            out.push_str(&format!("{:>24}{}\n", "", text(leg, "detail").replace(['\r', '\n'], " ")));
        }
    }
    let events = trace.get("events").and_then(Value::as_array).unwrap_or(&empty);
    if !events.is_empty() {
        out.push_str("events\n");
    }
    for event in events {
        let item = text(event, "item");
        let detail = text(event, "detail");
        let detail = if detail.is_empty() {
            String::new()
        } else {
            format!("  {}", detail.replace(['\r', '\n'], " "))
        };
        out.push_str(&format!(
            "{:>8}  {}  {}  {item}  {}{detail}\n",
            text(event, "message_id"),
            clock(&text(event, "at")),
            text(event, "kind"),
            text(event, "text"),
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_drawn_leg_by_leg() {
        let leg = |id: u64, kind: &str, source: &str, target: &str| {
            serde_json::json!({
                "id": id, "kind": kind, "source": source, "target": target, "type": "ORU^R01", "status": "completed",
                "created": "2026-03-01T08:15:30.123456Z", "attempts": 1, "error": null,
            })
        };
        let trace = serde_json::json!({
            "session": 17, "status": "completed", "started": "2026-03-01T08:15:30.123456Z",
            "messages": [leg(17, "request", "lis", "router"), leg(18, "response", "router", "lis")],
            "events": [{ "at": "2026-03-01T08:15:30.200000Z", "kind": "rule", "item": "router", "text": "lab results", "message_id": 17 }],
        });
        insta::assert_snapshot!(picture(&trace), @r"
        session 17  completed  started 2026-03-01T08:15:30.123456Z
              17  08:15:30.123  lis ──▶ router  ORU^R01  completed
              18  08:15:30.123  lis ◀── router  ORU^R01  completed
        events
              17  08:15:30.200  rule  router  lab results
        ");
    }
}
