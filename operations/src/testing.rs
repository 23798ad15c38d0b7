//! What the tests of operations share: headers, bodies, and a runtime that keeps events in a list.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::tz::TimeZone;
use septet_engine::body::{self, Body};
use septet_engine::clock::SystemClock;
use septet_engine::event::NewEvent;
use septet_engine::header::{Header, Kind, ReplyTo, Status};
use septet_engine::host::{Keep, KeepFamily, OperationContext, Runtime};
use septet_engine::id::{ItemName, MessageId, SessionId};
use septet_engine::record::{MessageTypes, Record};
use septet_engine::store::StoreFailed;
use septet_engine::token::NoTokens;
use septet_engine::vault::Vault;

/// An HL7 body.
pub(crate) fn hl7(text: &str) -> Body {
    Body::new("", body::HL7, None, Bytes::copy_from_slice(text.as_bytes()))
}

/// A record of type `Json`.
pub(crate) fn record(fields: serde_json::Value) -> Body {
    Body::record(Record::untyped("Json", fields))
}

/// A queued request of session 7 to the item `out`.
pub(crate) fn header(id: u64, body: &Body) -> Header {
    let control_id = body.as_hl7().map(septet_hl7::Message::control_id).unwrap_or_default();
    Header {
        id: MessageId(id),
        session: SessionId(7),
        kind: Kind::Request,
        request_id: None,
        caused_by: None,
        resent_from: None,
        source: "in".into(),
        target: Some("out".into()),
        type_name: body.type_name().into(),
        control_id: control_id.into(),
        status: Status::Delivered,
        error: None,
        attempts: 1,
        created: "2026-03-01T23:30:05Z".parse().unwrap(),
        processed: None,
        body_id: None,
        size: body.size() as u64,
        keys: Arc::new([]),
        reply_to: ReplyTo::Nobody,
        position: id,
        order_keys: Arc::new([]),
        next_attempt: None,
        failing_since: None,
        unsolicited: false,
    }
}

/// Remembers events, keeps nothing else.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<Vec<NewEvent>>);

impl Events {
    /// The kinds of the events so far.
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().iter().map(|event| event.kind).collect()
    }
}

#[async_trait]
impl Keep for Events {
    fn get(&self, _family: KeepFamily, _key: &str) -> Option<Bytes> {
        None
    }

    fn scan(&self, _family: KeepFamily, _prefix: &str) -> Vec<(String, Bytes)> {
        Vec::new()
    }

    async fn put(&self, _family: KeepFamily, _key: &str, _value: Option<Bytes>) -> Result<(), StoreFailed> {
        Ok(())
    }

    fn event(&self, event: NewEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// A runtime in UTC on the machine's clock.
pub(crate) fn runtime(events: Arc<Events>) -> Runtime {
    Runtime {
        production: "test".into(),
        clock: Arc::new(SystemClock),
        timezone: TimeZone::UTC,
        types: MessageTypes::default(),
        vault: Vault::ephemeral().unwrap(),
        tokens: Arc::new(NoTokens),
        epoch: "e1".into(),
        keep: events,
    }
}

/// The first delivery of `body` as message `id`.
pub(crate) fn delivery(id: u64, body: Body, runtime: &Runtime) -> OperationContext {
    OperationContext {
        item: ItemName::new("out"),
        header: header(id, &body),
        body,
        attempt: 1,
        tried_before: false,
        idempotency_key: format!("e1-{id}"),
        response_timeout: Duration::from_secs(10),
        runtime: runtime.clone(),
    }
}

/// What `check` says of a production that has only these tables, one problem a line.
pub(crate) fn check(text: &str) -> String {
    use septet_engine::config::env::Env;
    use septet_engine::config::load::load_text;
    use septet_engine::registry::Registry;
    let registry = Registry {
        items: crate::CLASSES.to_vec(),
        check_transform: |_, _, _| {},
        check_oauth: |_| Vec::new(),
        check_auth: |_| Vec::new(),
        lanes: Arc::new(|_| panic!("no lane is needed to check operations")),
    };
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[production]\nname = \"t\"\n[store]\npath = \"d\"\nretention = \"1d\"\n{text}");
    let loaded = load_text(&text, folder.path(), &registry, &Env::empty());
    let unreachable = |line: &String| !line.contains("S0401");
    let lines = loaded.diagnostics.iter().map(|d| match &d.suggestion {
        Some(suggestion) => format!("{} {}: {} ({suggestion})", d.severity.as_str(), d.code, d.text),
        None => format!("{} {}: {}", d.severity.as_str(), d.code, d.text),
    });
    lines.filter(unreachable).collect::<Vec<_>>().join("\n")
}
