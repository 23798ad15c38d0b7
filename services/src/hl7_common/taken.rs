//! What was taken, and the answers it gets: at once, after the reply, or in one frame for a whole batch. A positive
//! answer is released by the receipt of its message and by nothing else (P1).

use bytes::Bytes;
use septet_engine::body::Body;
use septet_engine::host::{Pending, Refused, ServiceReply};
use septet_engine::id::SessionId;
use septet_engine::store::Receipt;
use septet_hl7::Message;
use septet_hl7::ack::{AckCode, read_ack};
use septet_hl7::batch::Batch;
use tokio::sync::watch;

use super::answer::{Answer, Answers, ChildAnswer, Draft, Nack};
use super::duplicates::Claim;
use super::mode::Mode;
use super::receiver::Receiver;

/// A message (or batch) that was taken or refused, and is still to be answered.
#[derive(Debug)]
pub struct Taken {
    pub(super) receiver: Receiver,
    pub(super) children: Vec<Child>,
    pub(super) batch: Option<Batch>,
}

/// One message of it.
#[derive(Debug)]
pub(super) struct Child {
    /// At least its header; `None` where none is readable.
    pub(super) message: Option<Message>,
    pub(super) mode: Mode,
    pub(super) fate: Fate,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Fate {
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
    pub(super) fn session(&self) -> Option<SessionId> {
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
                let answer = judge(&inner.answers, message.as_ref(), reply);
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

/// The application answer that a reply makes: the peer's acknowledgement where it is one, else one of ours.
fn judge(answers: &Answers, message: Option<&Message>, reply: ServiceReply) -> Answer {
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

impl Fate {
    pub(super) fn refused(refused: &Refused) -> Self {
        let nack = match refused {
            Refused::Unavailable(_) => not_storable(),
            Refused::Stopping => Nack::reject("the service is stopping"),
        };
        Fate::Refused { nack, pending: None, session: None, unavailable: true }
    }
}

pub(super) fn not_storable() -> Nack {
    Nack::reject("messages cannot be stored now")
}

pub(super) fn read_answers(all: Vec<Bytes>) -> Vec<Answer> {
    let read = |bytes: Bytes| {
        let code = read_ack(&bytes).ok().and_then(|ack| ack.known_code()).unwrap_or(AckCode::AE);
        Answer { code, bytes }
    };
    all.into_iter().map(read).collect()
}
