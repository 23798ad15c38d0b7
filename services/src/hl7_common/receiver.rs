//! The way of a message from its bytes to its answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use septet_engine::body::{self, Body};
use septet_engine::event::{Level, NewEvent};
use septet_engine::host::{Accepted, Inbound, Pending, Refused, ServiceContext, ServiceReply};
use septet_engine::id::SessionId;
use septet_engine::store::Receipt;
use septet_hl7::ack::{AckCode, read_ack, recover_header};
use septet_hl7::batch::{self, Batch};
use septet_hl7::{Finding, Message, Path};
use tokio::sync::watch;

use super::answer::{Answer, Answers, ChildAnswer, Draft, Nack};
use super::duplicates::{Claim, Duplicates, Known};
use super::mode::Mode;
use super::policy::{BatchMode, DuplicatePolicy, Policy, Validate};

/// How long an answer may wait for the store; then it is none, and the sender asks again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the messages of one HL7 service. Cheap to clone: connection tasks hold one each.
#[derive(Debug, Clone)]
pub struct Receiver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cx: ServiceContext,
    policy: Policy,
    answers: Answers,
    duplicates: Option<Duplicates>,
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

/// A message (or batch) that was taken or refused, and is still to be answered.
#[derive(Debug)]
pub struct Taken {
    receiver: Receiver,
    children: Vec<Child>,
    batch: Option<Batch>,
}

#[derive(Debug)]
struct Child {
    /// At least its header; `None` where none is readable.
    message: Option<Message>,
    mode: Mode,
    fate: Fate,
}

#[derive(Debug)]
enum Fate {
    /// Committed.
    Accepted {
        pending: Box<dyn Pending>,
        session: SessionId,
        claim: Option<Claim>,
        /// The answer that may leave once it is durable.
        draft: Option<Draft>,
    },
    /// Committed as a rejected message, or not stored at all (`pending` is `None`).
    Refused { nack: Nack, pending: Option<Box<dyn Pending>>, session: Option<SessionId>, unavailable: bool },
    /// It has been here before and was told this.
    Known(Vec<Answer>),
    /// It has been here before and will be told what the first one is told.
    Busy(watch::Receiver<Option<Vec<Bytes>>>),
}

// === impl Receiver ===

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
        inbound.control_id = message.as_ref().map(Message::control_id);
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

// === impl Taken ===

impl Taken {
    /// The last commit in it: await its durability before [`Taken::first`].
    pub fn pending(&self) -> Option<&dyn Pending> {
        self.children.iter().rev().find_map(|child| match &child.fate {
            Fate::Accepted { pending, .. } => Some(&**pending),
            Fate::Refused { pending, .. } => pending.as_deref(),
            Fate::Known(_) | Fate::Busy(_) => None,
        })
    }

    /// The store took at least one message of it not.
    pub fn is_unavailable(&self) -> bool {
        self.children.iter().any(|child| matches!(child.fate, Fate::Refused { unavailable: true, .. }))
    }

    /// Whether [`Taken::later`] may have to wait.
    pub fn waits(&self) -> bool {
        self.children.iter().any(Child::waits)
    }

    /// The answer that may leave now; `receipt` is that of [`Taken::pending`].
    pub fn first(&mut self, receipt: Option<&Receipt>) -> Option<Answer> {
        match (&self.batch, self.children.as_mut_slice()) {
            (None, [child]) => child.first(&self.receiver, receipt),
            (Some(_), children) if !children.iter().any(Child::waits) => self.batch_answer(receipt),
            _ => None,
        }
    }

    /// The answer that comes after the reply, for a message that [`Taken::waits`]. Errors of the wait become
    /// negative answers.
    pub async fn later(mut self) -> Option<Answer> {
        if !self.waits() {
            return None;
        }
        if self.batch.is_none() {
            let child = self.children.pop()?;
            return child.later(&self.receiver).await;
        }
        let mut told = Vec::new();
        for child in std::mem::take(&mut self.children) {
            let (message, mode) = (child.message.clone(), child.mode);
            let nack = match &child.fate {
                Fate::Refused { nack, .. } => Some(nack.clone()),
                _ => None,
            };
            let answer = match child.waits() {
                true => child.later(&self.receiver).await,
                false => child.own_code().map(|code| Answer { code, bytes: Bytes::new() }),
            };
            if let Some(answer) = answer.filter(|_| mode != Mode::Silent) {
                told.push((message, answer.code, nack));
            }
        }
        let children: Vec<_> = told
            .iter()
            .map(|(message, code, nack)| ChildAnswer {
                original: message.as_ref(),
                code: *code,
                nack: nack.as_ref(),
            })
            .collect();
        let batch = self.batch.as_ref()?;
        (!children.is_empty()).then(|| self.receiver.0.answers.batch(batch, &children))
    }

    /// One frame for all messages of a batch that are answered at all.
    fn batch_answer(&mut self, receipt: Option<&Receipt>) -> Option<Answer> {
        for child in &mut self.children {
            if let Fate::Accepted { claim, draft, .. } = &mut child.fate {
                // Positive only with a receipt, as for a single message.
                receipt?;
                if let (Some(claim), Some(draft)) = (claim.take(), draft) {
                    claim.complete(vec![draft.bytes().clone()]);
                }
            }
        }
        let children: Vec<_> = self
            .children
            .iter()
            .filter_map(|child| {
                let code = match &child.fate {
                    // What it was told before, it is told now.
                    Fate::Known(_) => child.own_code().filter(|_| child.mode != Mode::Silent),
                    _ => child.own_code().and_then(|code| child.mode.first(code)),
                }?;
                let nack = match &child.fate {
                    Fate::Refused { nack, .. } => Some(nack),
                    _ => None,
                };
                Some(ChildAnswer { original: child.message.as_ref(), code, nack })
            })
            .collect();
        let batch = self.batch.as_ref()?;
        (!children.is_empty()).then(|| self.receiver.0.answers.batch(batch, &children))
    }
}

// === impl Child ===

impl Child {
    fn session(&self) -> Option<SessionId> {
        match &self.fate {
            Fate::Accepted { session, .. } => Some(*session),
            Fate::Refused { session, .. } => *session,
            Fate::Known(_) | Fate::Busy(_) => None,
        }
    }

    fn waits(&self) -> bool {
        match &self.fate {
            Fate::Accepted { .. } => self.mode.wants_reply(),
            Fate::Busy(_) => self.mode != Mode::Silent,
            Fate::Known(answers) => answers.len() > 1,
            Fate::Refused { .. } => false,
        }
    }

    /// What became of it, as a code of original mode.
    fn own_code(&self) -> Option<AckCode> {
        match &self.fate {
            Fate::Accepted { .. } => Some(AckCode::AA),
            Fate::Refused { nack, .. } => Some(nack.code),
            Fate::Known(answers) => answers.last().map(|answer| answer.code),
            Fate::Busy(_) => None,
        }
    }

    fn first(&mut self, receiver: &Receiver, receipt: Option<&Receipt>) -> Option<Answer> {
        let waits = self.waits();
        match &mut self.fate {
            Fate::Accepted { claim, draft, .. } => {
                let receipt = receipt?;
                let answer = draft.take().map(|draft| draft.release(receipt));
                if !waits && let Some(claim) = claim.take() {
                    claim.complete(answer.iter().map(|answer| answer.bytes.clone()).collect());
                }
                answer
            }
            Fate::Refused { nack, .. } => {
                let code = self.mode.first(nack.code)?;
                Some(receiver.0.answers.make(self.message.as_ref(), code, Some(nack)))
            }
            Fate::Known(answers) if self.mode != Mode::Silent => answers.first().cloned(),
            Fate::Known(_) | Fate::Busy(_) => None,
        }
    }

    async fn later(self, receiver: &Receiver) -> Option<Answer> {
        let inner = &*receiver.0;
        let Child { message, mode, fate } = self;
        match fate {
            Fate::Refused { .. } => None,
            Fate::Known(answers) => answers.into_iter().nth(1),
            Fate::Busy(mut told) => {
                let waited = tokio::select! {
                    told = told.wait_for(Option::is_some) => told.ok().and_then(|told| told.clone()),
                    () = inner.cx.runtime.clock.sleep(inner.policy.reply_timeout) => None,
                };
                let answer = waited.and_then(|answers| read_answers(answers).pop());
                answer.or_else(|| {
                    let text = "the message was received before and is still being worked on";
                    Some(inner.answers.make(message.as_ref(), AckCode::AE, Some(&Nack::error("207", text))))
                })
            }
            Fate::Accepted { mut pending, claim, draft, .. } => {
                let reply = pending.reply(inner.policy.reply_timeout).await;
                let answer = receiver.judge(message.as_ref(), reply);
                let answer = Some(answer).filter(|answer| mode.wants_later(answer.code));
                if let (Some(duplicates), Some(claim)) = (&inner.duplicates, claim) {
                    let first = draft.as_ref().map(|draft| draft.bytes().clone());
                    let all: Vec<Bytes> =
                        first.into_iter().chain(answer.iter().map(|answer| answer.bytes.clone())).collect();
                    let (family, key, value) = duplicates.change(&claim, &all, true);
                    // Unanswered rather than answered without a memory of it.
                    inner.cx.runtime.keep.put(family, &key, value).await.ok()?;
                    claim.complete(all);
                }
                answer
            }
        }
    }
}

impl Receiver {
    /// The application answer that a reply makes: the peer's acknowledgement where it is one, else one of ours.
    fn judge(&self, message: Option<&Message>, reply: ServiceReply) -> Answer {
        let answers = &self.0.answers;
        let error = |text: &str| answers.make(message, AckCode::AE, Some(&Nack::error("207", text)));
        match reply {
            ServiceReply::Reply { body, fault } => {
                let body = body.as_ref().and_then(Body::as_hl7);
                let forwarded = message.zip(body).and_then(|(message, body)| answers.forward(message, body));
                match (forwarded, fault) {
                    // An accepting reply with a fault is no acceptance.
                    (Some(answer), fault) if fault.is_none() || !answer.code.is_positive() => answer,
                    (_, Some(fault)) => error(&fault.text),
                    (_, None) => answers.make(message, AckCode::AA, None),
                }
            }
            ServiceReply::Timeout => error("there was no reply in time; the message goes on"),
            ServiceReply::Stopping => error("the engine stops before there was a reply; the message goes on"),
        }
    }
}

impl Fate {
    fn refused(refused: &Refused) -> Self {
        let nack = match refused {
            Refused::Unavailable(_) => not_storable(),
            Refused::Stopping => Nack::reject("the service is stopping"),
        };
        Fate::Refused { nack, pending: None, session: None, unavailable: true }
    }
}

fn not_storable() -> Nack {
    Nack::reject("messages cannot be stored now")
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

fn read_answers(all: Vec<Bytes>) -> Vec<Answer> {
    let read = |bytes: Bytes| {
        let code = read_ack(&bytes).ok().and_then(|ack| ack.known_code()).unwrap_or(AckCode::AE);
        Answer { code, bytes }
    };
    all.into_iter().map(read).collect()
}
