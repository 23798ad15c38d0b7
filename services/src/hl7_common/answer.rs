//! The bytes of an answer, and which negative answer a problem gets: content that cannot be read or fails
//! validation is AE with an ERR segment (HL7 Table 0357), what we cannot take is AR.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use septet_engine::fault::Fault;
use septet_engine::host::Runtime;
use septet_engine::store::Receipt;
use septet_hl7::ack::{AckCode, AckSpec, Err0357, ack_of, build_ack, build_batch_ack};
use septet_hl7::batch::Batch;
use septet_hl7::{Message, Path};

/// One answer, ready to leave. `Debug` shows code and size.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// MSA-1; of a batch the worst one.
    pub code: AckCode,
    /// The acknowledgement, without frame marks.
    pub bytes: Bytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({}, {} bytes)", self.code, self.bytes.len())
    }
}

/// An answer that must not leave before what it speaks of is on stable storage.
#[derive(Clone, Debug)]
pub(super) struct Draft(Answer);

impl Draft {
    pub(super) fn new(answer: Answer) -> Self {
        Draft(answer)
    }

    /// The bytes, for the store only.
    pub(super) fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    pub(super) fn release(self, _durable: &Receipt) -> Answer {
        self.0
    }
}

/// Why a message gets a negative answer. The text is ours and holds no patient data.
#[derive(Debug, Clone)]
pub(super) struct Nack {
    pub(super) code: AckCode,
    /// HL7 Table 0357.
    pub(super) condition: &'static str,
    pub(super) text: String,
    pub(super) location: Option<Path>,
}

impl Nack {
    /// Something is wrong with the content.
    pub(super) fn error(condition: &'static str, text: impl Into<String>) -> Self {
        Nack { code: AckCode::AE, condition, text: text.into(), location: None }
    }

    /// We cannot take it (now).
    pub(super) fn reject(text: impl Into<String>) -> Self {
        Nack { code: AckCode::AR, condition: "207", text: text.into(), location: None }
    }

    pub(super) fn at(mut self, path: &str) -> Self {
        self.location = path.parse().ok();
        self
    }

    /// As the error of the rejected message.
    pub(super) fn fault(&self) -> Fault {
        Fault::new("message", self.code.as_str(), self.text.clone())
    }
}

/// Makes answers for one service: knows the time and numbers its acknowledgements.
#[derive(Debug)]
pub(super) struct Answers {
    runtime: Runtime,
    /// Starts at the time of the start in microseconds: ids differ over restarts, too.
    next: AtomicU64,
    /// The last second, and how MSH-7 writes it: made once a second, not once a message.
    second: Mutex<(i64, Arc<str>)>,
}

/// What one message of a batch is told.
pub(super) struct ChildAnswer<'a> {
    pub(super) original: Option<&'a Message>,
    pub(super) code: AckCode,
    pub(super) nack: Option<&'a Nack>,
}

impl Answers {
    pub(super) fn new(runtime: Runtime) -> Self {
        let start = u64::try_from(runtime.clock.now().as_microsecond()).unwrap_or(0);
        let second = Mutex::new((i64::MIN, Arc::default()));
        Answers { runtime, next: AtomicU64::new(start), second }
    }

    /// The answer to `original`; to bytes without a readable header where it is `None`.
    pub(super) fn make(&self, original: Option<&Message>, code: AckCode, nack: Option<&Nack>) -> Answer {
        let (control_id, timestamp) = (self.control_id(), self.timestamp());
        let bytes = build_ack(original, &spec(code, nack, &control_id, &timestamp));
        Answer { code, bytes }
    }

    /// The one answer to a batch.
    pub(super) fn batch(&self, batch: &Batch, children: &[ChildAnswer<'_>]) -> Answer {
        let timestamp = self.timestamp();
        let ids: Vec<String> = children.iter().map(|_| self.control_id()).collect();
        let specs: Vec<_> = children
            .iter()
            .zip(&ids)
            .map(|(child, id)| (child.original, spec(child.code, child.nack, id, &timestamp)))
            .collect();
        let worst = children.iter().map(|child| child.code).max_by_key(|code| severity(*code));
        let bytes = build_batch_ack(batch, &specs, &self.control_id(), &timestamp);
        Answer { code: worst.unwrap_or(AckCode::AA), bytes }
    }

    /// A peer's acknowledgement as our answer to `original`: its MSA-2 is `original`'s MSH-10, whatever id the
    /// message had on its way. `None` if it is no acknowledgement.
    pub(super) fn forward(&self, original: &Message, reply: &Message) -> Option<Answer> {
        let ack = ack_of(reply).ok()?;
        let code = ack.known_code()?;
        let (msh_10, msa_2) = (path("MSH-10"), path("MSA-2"));
        let bytes = match original.raw_at(&msh_10) {
            own if own == reply.raw_at(&msa_2) => reply.raw().clone(),
            own => reply.set_raw(&msa_2, own).ok()?.raw().clone(),
        };
        Some(Answer { code, bytes })
    }

    fn control_id(&self) -> String {
        self.next.fetch_add(1, Ordering::Relaxed).to_string()
    }

    fn timestamp(&self) -> Arc<str> {
        let now = self.runtime.clock.now();
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if second.0 != now.as_second() {
            let zoned = now.to_zoned(self.runtime.timezone.clone());
            *second = (now.as_second(), zoned.strftime("%Y%m%d%H%M%S%z").to_string().into());
        }
        second.1.clone()
    }
}

fn spec<'a>(code: AckCode, nack: Option<&'a Nack>, control_id: &'a str, timestamp: &'a str) -> AckSpec<'a> {
    let mut spec = AckSpec::new(code, control_id, timestamp);
    if let Some(nack) = nack {
        spec.text = Some(&nack.text);
        let location = nack.location.as_ref();
        spec.error = Some(Err0357 { code: nack.condition, text: Some(&nack.text), location });
    }
    spec
}

fn severity(code: AckCode) -> u8 {
    match code {
        AckCode::AA | AckCode::CA => 0,
        AckCode::AE | AckCode::CE => 1,
        AckCode::AR | AckCode::CR => 2,
    }
}

fn path(text: &str) -> Path {
    text.parse().expect("a valid path")
}
