//! `type = "hl7.mllp"`: sends HL7 messages over MLLP and reads their acknowledgements.
//!
//! One connection per pool slot, one message outstanding on it: half of the peers measured answer only the
//! first of several frames. An acknowledgement belongs to its message (P7): MSA-2 must equal the MSH-10 that
//! was sent; whatever else comes is counted, put on the trace (`ack.late` for messages of this connection,
//! `ack.stray` for all others) and skipped while the wait goes on. When the wait ends without an answer the
//! connection goes with it, so that no late acknowledgement meets the next message; what has come in between
//! is taken out and counted before each send.
//!
//! A peer that closes after an answer is no error. Where its close crosses our next message, that message is
//! sent once more on a new connection within the same attempt; a peer that closes after every answer gets a
//! connection for each message.

mod connection;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use schemars::JsonSchema;
use septet_engine::body::Body;
use septet_engine::clock::{Patience, SharedClock};
use septet_engine::config::build::Build;
use septet_engine::config::settings::ClientTls;
use septet_engine::config::units::HostPort;
use septet_engine::event::{Level, NewEvent};
use septet_engine::fault::Fault;
use septet_engine::host::{
    BusinessOperation, HostFault, OperationContext, OperationError, OperationFactory, Outcome, Runtime,
};
use septet_engine::id::ItemName;
use septet_engine::registry::{Built, Factory, Facts, ItemClass, ItemKind};
use septet_engine::reply::Family;
use septet_hl7::ack::{Ack, AckCode, ack_of, condition};
use septet_hl7::{Message, Path, mllp};
use serde::{Deserialize, Serialize};

use crate::http_settings::check_tls;
use crate::stream_tls::Tls;
use connection::{Connection, Lost};

/// The class, for the table.
pub const CLASS: ItemClass = ItemClass {
    type_name: "hl7.mllp",
    kind: ItemKind::Operation,
    summary: "Sends HL7 messages over MLLP; the acknowledgement is the reply.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// The longest that connecting may take, where `response_timeout` allows more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A close that comes this soon after an answer is the peer's way to end an exchange.
const SOON: Duration = Duration::from_secs(1);

/// So many late acknowledgements before one answer, and the connection has served its time.
const REPEATS: usize = 16;

/// Settings of an `hl7.mllp` operation.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Host and port of the peer.
    pub connect: HostPort,
    /// Keep the connection open between messages.
    #[serde(default = "yes")]
    pub stay_connected: bool,
    /// Which acknowledgement answers a message: the one whose MSA-2 is the message's MSH-10 (`control_id`), or
    /// whichever comes next (`any`, only for peers that do not send MSA-2).
    #[serde(default)]
    pub match_ack: MatchAck,
    /// Send MSH-10 as it is (`keep`), or an id of our own that stays the same over retries (`new`).
    #[serde(default)]
    pub control_id: ControlId,
    /// MLLP over TLS: trusted authorities, a client certificate, another name to verify, or the one certificate
    /// to accept. `{}` trusts the system's authorities.
    #[serde(default)]
    pub tls: Option<ClientTls>,
}

/// See [`Settings::match_ack`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MatchAck {
    /// MSA-2 equals MSH-10.
    #[default]
    ControlId,
    /// Whichever comes next.
    Any,
}

/// See [`Settings::control_id`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ControlId {
    /// As it came.
    #[default]
    Keep,
    /// `S` and the number of the header that is sent.
    New,
}

fn yes() -> bool {
    true
}

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    if settings.match_ack == MatchAck::Any {
        let text = "any acknowledgement counts for any message: a late one is credited to the wrong message";
        let suggestion = Some("leave it at \"control_id\" unless the peer sends no MSA-2".into());
        build.warning("S0354", &["match_ack".into()], text, suggestion);
    }
    check_tls(build, settings.tls.as_ref());
    let facts = Facts { replies: Some(Family::Hl7), answers: true, ..Facts::default() };
    Some(Built { factory: Factory::Operation(Arc::new(MllpFactory(Arc::new(settings)))), facts })
}

#[derive(Debug)]
struct MllpFactory(Arc<Settings>);

impl OperationFactory for MllpFactory {
    fn create(&self, runtime: &Runtime, item: &ItemName) -> Box<dyn BusinessOperation> {
        Box::new(MllpOperation::new(self.0.clone(), runtime.clone(), item.clone()))
    }
}

struct MllpOperation {
    settings: Arc<Settings>,
    runtime: Runtime,
    item: ItemName,
    connection: Option<Connection>,
    tls: Option<Tls>,
    /// This peer closes after each answer: a connection is good for one message.
    one_shot: bool,
    /// How long an answer may take.
    patience: Patience,
}

/// Replies that were not the one waited for.
#[derive(Debug, Clone, Copy, Default)]
struct Skipped {
    late: usize,
    stray: usize,
}

/// An acknowledgement with the message it came as.
struct Reply {
    /// `None` where the reply has no MSA.
    ack: Option<Ack>,
    message: Message,
}

impl MllpOperation {
    fn new(settings: Arc<Settings>, runtime: Runtime, item: ItemName) -> Self {
        MllpOperation {
            settings,
            runtime,
            item,
            connection: None,
            tls: None,
            one_shot: false,
            patience: Patience::default(),
        }
    }
}

#[async_trait]
impl BusinessOperation for MllpOperation {
    async fn start(&mut self) -> Result<(), HostFault> {
        self.tls = self.settings.tls.clone().map(Tls::new).transpose()?;
        Ok(())
    }

    async fn on_message(&mut self, cx: &OperationContext) -> Result<Outcome, OperationError> {
        let (frame, control_id) = self.prepare(cx)?;
        let mut skipped = Skipped::default();
        let mut patience = std::mem::take(&mut self.patience);
        // Taken out: dropping this future at the stop deadline must leave no connection with a message
        // outstanding on it.
        let connection = self.connection.take();
        let result = tokio::select! {
            result = self.exchange(connection, &frame, &control_id, &mut skipped, cx) => result,
            () = patience.run_out(&cx.runtime.clock, cx.response_timeout) => {
                Err(OperationError::fault("timeout", "no acknowledgement came within response_timeout"))
            }
        };
        self.patience = patience;
        skipped.report(|event| cx.event(event));
        let (reply, connection) = result?;
        // A peer that repeats all its earlier answers each time does so for one connection.
        let repeats = skipped.late >= REPEATS;
        if self.settings.stay_connected && !self.one_shot && !repeats {
            self.connection = Some(connection);
        }
        Ok(outcome(reply))
    }

    async fn idle(&mut self) {
        let Some(connection) = &mut self.connection else {
            return std::future::pending().await;
        };
        let mut skipped = Skipped::default();
        let closed = match connection.next_frame(&self.runtime.clock).await {
            Ok(frame) => {
                skipped.add(&frame, connection);
                false
            }
            Err(_) => true,
        };
        if closed {
            self.closed_after_answer();
        }
        skipped.report(|event| {
            self.runtime.keep.event(NewEvent { item: Some(self.item.clone()), ..event });
        });
    }

    async fn stop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }
}

impl MllpOperation {
    /// The bytes to send and their MSH-10.
    fn prepare(&self, cx: &OperationContext) -> Result<(Bytes, String), OperationError> {
        let not_hl7 =
            || OperationError::message("hl7", "the message is not HL7, which is all that MLLP carries");
        let message = cx.body.as_hl7().ok_or_else(not_hl7)?;
        let (bytes, control_id) = match self.settings.control_id {
            ControlId::Keep => (message.raw().clone(), message.control_id().into_owned()),
            ControlId::New => {
                let id = format!("S{}", cx.header.id);
                let path: Path = "MSH-10".parse().expect("a valid path");
                let edited = message.set(&path, &id).map_err(|error| {
                    OperationError::message("control_id", format!("MSH-10 cannot be set: {error}"))
                })?;
                (edited.raw().clone(), id)
            }
        };
        if !mllp::fits_in_frame(&bytes) {
            let text = "the message contains the byte 1C, which would end its frame";
            return Err(OperationError::message("frame", text));
        }
        Ok((bytes, control_id))
    }

    async fn exchange(
        &mut self,
        kept: Option<Connection>,
        frame: &Bytes,
        control_id: &str,
        skipped: &mut Skipped,
        cx: &OperationContext,
    ) -> Result<(Reply, Connection), OperationError> {
        let (match_ack, clock) = (self.settings.match_ack, &cx.runtime.clock);
        let kept = kept.and_then(|connection| self.still_open(connection, skipped));
        if let Some(mut connection) = kept {
            match Self::send(match_ack, clock, &mut connection, frame, control_id, skipped).await {
                Ok(reply) => return Ok((reply, connection)),
                // Our message met the peer's close: it was not read, or its answer was lost, and either way
                // it must be sent again. Doing so now spares the queue a wait.
                Err(Lost::Closed { inside: false }) => {
                    self.one_shot |=
                        connection.answers() > 0 && connection.since_answer(&cx.runtime.clock) < SOON;
                }
                Err(lost) => return Err(lost.into()),
            }
        }
        if self.tls.is_none() {
            let tls = self.settings.tls.clone().map(Tls::new).transpose();
            self.tls = tls.map_err(|fault| OperationError::fault("tls", fault.text))?;
        }
        let timeout = CONNECT_TIMEOUT.min(cx.response_timeout);
        let mut connection = tokio::select! {
            connected = Connection::open(&self.settings.connect, self.tls.as_mut()) => connected?,
            () = cx.runtime.clock.sleep(timeout) => {
                let text = format!("{} did not accept a connection in time", self.settings.connect);
                return Err(OperationError::fault("connect", text));
            }
        };
        let reply = Self::send(match_ack, clock, &mut connection, frame, control_id, skipped).await?;
        Ok((reply, connection))
    }

    /// Takes out what came since the last answer; `None` if the peer has closed meanwhile.
    fn still_open(&mut self, mut connection: Connection, skipped: &mut Skipped) -> Option<Connection> {
        loop {
            match connection.frame_now() {
                Ok(Some(frame)) => skipped.add(&frame, &connection),
                Ok(None) => return Some(connection),
                Err(_) => {
                    self.connection = Some(connection);
                    self.closed_after_answer();
                    return None;
                }
            }
        }
    }

    /// The peer has closed a connection on which nothing was outstanding: no error.
    fn closed_after_answer(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.one_shot |= connection.answers() == 1 && connection.since_answer(&self.runtime.clock) < SOON;
        }
    }

    async fn send(
        match_ack: MatchAck,
        clock: &SharedClock,
        connection: &mut Connection,
        frame: &Bytes,
        control_id: &str,
        skipped: &mut Skipped,
    ) -> Result<Reply, Lost> {
        connection.send(frame, control_id).await?;
        loop {
            let body = connection.next_frame(clock).await?;
            let message = Message::parse(body.clone()).ok();
            let ack = message.as_ref().and_then(|message| ack_of(message).ok());
            let ours = match match_ack {
                MatchAck::Any => true,
                MatchAck::ControlId => {
                    ack.as_ref().is_some_and(|ack| ack.control_id.trim() == control_id.trim())
                }
            };
            match message {
                Some(message) if ours => {
                    connection.answered(clock);
                    return Ok(Reply { ack, message });
                }
                _ => skipped.add(&body, connection),
            }
        }
    }
}

impl Skipped {
    fn add(&mut self, body: &Bytes, connection: &Connection) {
        let ack = Message::parse(body.clone()).ok().and_then(|message| ack_of(&message).ok());
        match ack {
            Some(ack) if connection.has_sent(&ack.control_id) => self.late += 1,
            _ => self.stray += 1,
        }
    }

    /// One event for each kind, however many there were: some peers repeat all earlier answers every time.
    fn report(self, event: impl Fn(NewEvent)) {
        let all = [
            (self.late, "ack.late", "acknowledgements of earlier messages, skipped"),
            (self.stray, "ack.stray", "replies that answer no message of this connection, skipped"),
        ];
        for (count, kind, text) in all {
            if count > 0 {
                event(NewEvent::new(Level::Warning, kind, format!("{text}: {count}")));
            }
        }
    }
}

fn outcome(reply: Reply) -> Outcome {
    let Reply { ack, message } = reply;
    let (code, fault) = match &ack {
        None => {
            let text = "the peer's reply has no MSA segment";
            (String::from("none"), Some(Fault::new("call", "none", text)))
        }
        Some(ack) => judge(ack),
    };
    Outcome::Replied { code, body: Some(Body::hl7(message)), fault, retry_after: None }
}

/// The reply code of an acknowledgement, and what is wrong with it. Foreign words become detail; a code that
/// is none of Table 0008 is foreign, too.
pub fn judge(ack: &Ack) -> (String, Option<Fault>) {
    let code = ack.known_code();
    if code.is_some_and(AckCode::is_positive) {
        return (code.map_or("", AckCode::as_str).to_owned(), None);
    }
    let name = match code {
        Some(code) => code.as_str(),
        None if ack.code.trim().is_empty() => "none",
        None => "unknown",
    };
    let mut text = match name {
        "none" => String::from("the acknowledgement has no code"),
        "unknown" => String::from("the acknowledgement has a code that HL7 does not know"),
        code => format!("the peer answered {code}"),
    };
    let conditions = ack.errors.iter().filter_map(|code| Some((code, condition(code)?)));
    for (code, meaning) in conditions.take(3) {
        text.push_str(&format!(", {code} {meaning}"));
    }
    let mut fault = Fault::new("call", name, text);
    if !ack.text.is_empty() {
        fault = fault.with_detail(ack.text.clone());
    }
    (name.to_owned(), Some(fault))
}

#[cfg(test)]
mod tests;
