//! The way of a message from its bytes into the store. The way on, to its answers, is in [`super::taken`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use septet_engine::body::{self, Body};
use septet_engine::event::{Level, NewEvent};
use septet_engine::host::{Accepted, Inbound, Refused, ServiceContext};
use septet_engine::id::SessionId;
use septet_hl7::ack::{AckCode, recover_header};
use septet_hl7::batch::{self, Batch};
use septet_hl7::{Finding, Message, Path};

use super::answer::{Answer, Answers, Draft, Nack};
use super::duplicates::{Claim, Duplicates, Known};
use super::mode::Mode;
use super::policy::{BatchMode, DuplicatePolicy, Policy, Validate};
use super::taken::{Child, Fate, Taken, not_storable, read_answers};

/// How long an answer may wait for the store; then it is none, and the sender asks again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the messages of one HL7 service. Cheap to clone: connection tasks hold one each.
#[derive(Debug, Clone)]
pub struct Receiver(pub(super) Arc<Inner>);

/// What all clones share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) cx: ServiceContext,
    pub(super) policy: Policy,
    pub(super) answers: Answers,
    pub(super) duplicates: Option<Duplicates>,
}

/// Bytes as a transport got them: one message or one batch.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Byte for byte.
    pub bytes: Bytes,
    /// What was odd about their transport.
    pub findings: Vec<Finding>,
    /// The session of another production that they continue.
    pub parent_session: Option<String>,
}

impl Arrival {
    /// Bytes about which nothing was odd.
    pub fn new(bytes: Bytes) -> Self {
        Arrival { bytes, findings: Vec::new(), parent_session: None }
    }
}

/// What became of an [`Arrival`], for transports that take one at a time.
#[derive(Debug)]
pub enum Handled {
    /// It was taken, or refused for what it is: the answer.
    Answer(Answer),
    /// It was taken and asks for no answer.
    Silent,
    /// The store takes nothing now; nothing of it is stored.
    Unavailable(Option<Answer>),
    /// It may or may not be stored: the sender must ask again.
    Unknown,
}

impl Receiver {
    /// For one run of a service.
    pub fn new(cx: ServiceContext, policy: Policy) -> Self {
        let duplicates = match policy.duplicates {
            DuplicatePolicy::Accept => None,
            _ => Some(Duplicates::new(cx.clone(), policy.duplicate_window)),
        };
        Receiver(Arc::new(Inner { answers: Answers::new(cx.runtime.clone()), cx, policy, duplicates }))
    }

    /// The service it takes messages for.
    pub fn context(&self) -> &ServiceContext {
        &self.0.cx
    }

    /// Takes one message or batch: on return it is committed in memory. Not cancel-safe within a batch.
    pub async fn take(&self, arrival: Arrival) -> Taken {
        let Arrival { bytes, findings, parent_session } = arrival;
        let findings: Vec<NewEvent> = findings.iter().map(finding).collect();
        let empty = |batch: &Batch| batch.messages().next().is_none();
        let batch = Some(&bytes).filter(|bytes| batch::is_batch(bytes)).map(Batch::split);
        match batch.filter(|batch| !empty(batch)) {
            None => {
                let child = self.message(bytes, findings, parent_session, None, false).await;
                Taken { receiver: self.clone(), children: vec![child], batch: None }
            }
            Some(batch) => self.batch(batch, findings, parent_session).await,
        }
    }

    async fn batch(
        &self,
        batch: Batch,
        mut findings: Vec<NewEvent>,
        parent_session: Option<String>,
    ) -> Taken {
        findings.extend(batch.findings().iter().map(finding));
        let mut session = None;
        let mut children = Vec::new();
        for bytes in batch.messages() {
            let (findings, parent) = (std::mem::take(&mut findings), parent_session.clone());
            let child = self.message(own(bytes), findings, parent, session, true).await;
            if self.0.policy.batch == BatchMode::SingleSession {
                session = session.or(child.session());
            }
            children.push(child);
        }
        Taken { receiver: self.clone(), children, batch: Some(batch) }
    }

    async fn message(
        &self,
        bytes: Bytes,
        mut findings: Vec<NewEvent>,
        parent_session: Option<String>,
        session: Option<SessionId>,
        in_batch: bool,
    ) -> Child {
        let inner = &*self.0;
        let read = match inner.policy.charset {
            Some(charset) => Message::parse_assuming(bytes.clone(), charset),
            None => Message::parse(bytes.clone()),
        };
        let mut inbound = match &read {
            Ok(message) => {
                findings.extend(message.findings().iter().map(finding));
                Inbound::new(match inner.policy.charset {
                    Some(charset) => Body::hl7_assuming(message.clone(), charset),
                    None => Body::hl7(message.clone()),
                })
            }
            Err(_) => Inbound::new(unreadable(bytes.clone())),
        };
        inbound.findings = findings;
        inbound.parent_session = parent_session;
        inbound.session = session;
        let message = match read {
            Ok(message) => message,
            Err(error) => {
                let nack = Nack::error("100", format!("{error}"));
                return self.rejected(recover_header(&bytes), inbound, nack).await;
            }
        };
        if let Some(nack) = self.invalid(&message) {
            return self.rejected(Some(message), inbound, nack).await;
        }
        let mode = Mode::of(inner.policy.ack, Some(&message));
        let mode = if in_batch { mode.in_batch() } else { mode };
        let claim = match inner.duplicates.as_ref().map(|duplicates| duplicates.look_up(&message)) {
            None => None,
            Some(Known::First(claim)) => Some(claim),
            Some(_) if inner.policy.duplicates == DuplicatePolicy::Refuse => {
                let nack = Nack::error("205", "this message has been received before").at("MSH-10");
                return self.rejected(Some(message), inbound, nack).await;
            }
            Some(known) => return self.seen_before(message, mode, known).await,
        };
        self.accepted(message, mode, inbound, claim).await
    }

    /// What `validate` misses.
    fn invalid(&self, message: &Message) -> Option<Nack> {
        let missing = match self.0.policy.validate {
            Validate::None => None,
            Validate::Header => ["MSH-9", "MSH-10"]
                .into_iter()
                .find(|path| path.parse::<Path>().is_ok_and(|path| !message.exists(&path))),
        }?;
        Some(Nack::error("101", format!("{missing} is empty")).at(missing))
    }

    async fn accepted(
        &self,
        message: Message,
        mode: Mode,
        mut inbound: Inbound,
        claim: Option<Claim>,
    ) -> Child {
        let inner = &*self.0;
        let first = mode.first(AckCode::AA);
        let draft = first.map(|code| Draft::new(inner.answers.make(Some(&message), code, None)));
        inbound.wants_reply = mode.wants_reply();
        if let (Some(duplicates), Some(claim)) = (&inner.duplicates, &claim) {
            let answers: Vec<Bytes> = draft.iter().map(|draft| draft.bytes().clone()).collect();
            inbound.keep = duplicates.changes(claim, &answers, !mode.wants_reply());
        }
        let fate = match inner.cx.intake.receive(inbound).await {
            Ok(Accepted { pending, session, .. }) => Fate::Accepted { pending, session, claim, draft },
            Err(refused) => Fate::refused(&refused),
        };
        Child { message: Some(message), mode, fate }
    }

    /// Stores what is refused for its content.
    async fn rejected(&self, message: Option<Message>, mut inbound: Inbound, nack: Nack) -> Child {
        let mode = Mode::of(self.0.policy.ack, message.as_ref());
        inbound.control_id = message.as_ref().map(|message| message.control_id().into_owned());
        inbound.reject = Some(nack.fault());
        let fate = match self.0.cx.intake.receive(inbound).await {
            Ok(Accepted { pending, session, .. }) => {
                Fate::Refused { nack, pending: Some(pending), session: Some(session), unavailable: false }
            }
            Err(refused) => Fate::refused(&refused),
        };
        Child { message, mode, fate }
    }

    async fn seen_before(&self, message: Message, mode: Mode, known: Known) -> Child {
        let text = "a message that had been received before was answered again";
        self.0.cx.event(NewEvent::new(Level::Info, "message.finding", text));
        let fate = match known {
            // The connection that took the first may have given up before it was on stable storage; what is put
            // now is so after it (P1).
            Known::Answered(answers, (family, key, value)) => {
                match self.0.cx.runtime.keep.put(family, &key, value).await {
                    Ok(()) => Fate::Known(read_answers(answers)),
                    Err(_) => Fate::refused(&Refused::Unavailable(String::new())),
                }
            }
            Known::Busy(told) => Fate::Busy(told),
            Known::First(_) | Known::Unanswered => {
                let text = "the message was received before, and no reply to it is known";
                Fate::Known(vec![self.0.answers.make(
                    Some(&message),
                    AckCode::AE,
                    Some(&Nack::error("207", text)),
                )])
            }
        };
        Child { message: Some(message), mode, fate }
    }

    /// Stores bytes that never became a message (a frame that was not finished) as a rejected one. Answered
    /// only where a header can be read.
    pub async fn take_unfinished(&self, bytes: Bytes, text: &str) -> Taken {
        let header = recover_header(&bytes);
        let answerable = header.is_some();
        let inbound = Inbound::new(unreadable(bytes));
        let mut child = self.rejected(header, inbound, Nack::error("100", text)).await;
        if !answerable {
            child.mode = Mode::Silent;
        }
        Taken { receiver: self.clone(), children: vec![child], batch: None }
    }

    /// The answer to a message larger than `max_message`, of which this is the beginning; nothing is stored.
    pub fn too_large(&self, head: &[u8]) -> Option<Answer> {
        let text = format!("the message is larger than {} bytes", self.0.policy.max_message);
        self.0.cx.event(NewEvent::new(Level::Warning, "message.rejected", text.clone()));
        self.refusal(head, &Nack::reject(text))
    }

    /// The answer to a message that is not even looked at while the store takes none.
    pub fn unavailable(&self, bytes: &[u8]) -> Option<Answer> {
        self.refusal(bytes, &not_storable())
    }

    fn refusal(&self, bytes: &[u8], nack: &Nack) -> Option<Answer> {
        let header = recover_header(bytes);
        let code = Mode::of(self.0.policy.ack, header.as_ref()).first(nack.code)?;
        Some(self.0.answers.make(header.as_ref(), code, Some(nack)))
    }

    /// The whole way of one arrival, with the store's patience.
    pub async fn handle(&self, arrival: Arrival) -> Handled {
        let clock = self.0.cx.runtime.clock.clone();
        let stored = async {
            let taken = self.take(arrival).await;
            let receipt = match taken.pending() {
                Some(pending) => Some(pending.durable().await),
                None => None,
            };
            (taken, receipt)
        };
        let (mut taken, receipt) = tokio::select! {
            stored = stored => stored,
            () = clock.sleep(PATIENCE) => return Handled::Unknown,
        };
        let Ok(receipt) = receipt.transpose() else { return Handled::Unknown };
        let unavailable = taken.is_unavailable();
        let first = taken.first(receipt.as_ref());
        if unavailable {
            return Handled::Unavailable(first);
        }
        // There is one answer to a request: the application's, where both are wanted.
        match taken.later().await.or(first) {
            Some(answer) => Handled::Answer(answer),
            None => Handled::Silent,
        }
    }
}

fn finding(finding: &Finding) -> NewEvent {
    NewEvent::new(Level::Info, "message.finding", finding.text.clone())
}

/// A body for bytes that are no message.
fn unreadable(bytes: Bytes) -> Body {
    match std::str::from_utf8(&bytes) {
        Ok(_) => Body::new("Text", body::TEXT, Some("utf-8"), bytes),
        Err(_) => Body::new("Binary", body::BINARY, None, bytes),
    }
}

/// The messages of a batch share its buffer; each keeps bytes of its own, so that one small message that
/// lives long does not keep a large batch in memory.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
