//! Reading acknowledgements, leniently: peers leave out what they please.

use std::fmt;

use bytes::Bytes;
use thiserror::Error;

use super::AckCode;
use crate::batch::{self, Batch};
use crate::segment::Segment;
use crate::{Message, Path, mllp};

/// What an acknowledgement says.
#[derive(Clone, PartialEq, Eq)]
pub struct Ack {
    /// MSA-1 as it came; see [`Ack::known_code`].
    pub code: String,
    /// MSA-2: the MSH-10 of the message it answers.
    pub control_id: String,
    /// MSA-3, or ERR-8 where that is empty. Foreign text: may hold patient data.
    pub text: String,
    /// The condition codes of its ERR segments.
    pub errors: Vec<String>,
}

/// Why bytes are no acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotAnAck {
    /// No message at all.
    #[error("the reply is no HL7 message")]
    NotHl7,
    /// A message without MSA.
    #[error("the reply has no MSA segment")]
    NoMsa,
}

impl Ack {
    /// MSA-1, where it is a code of Table 0008.
    pub fn known_code(&self) -> Option<AckCode> {
        self.code.trim().parse().ok()
    }
}

/// Code and control id only.
impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, control_id, text, errors } = self;
        write!(f, "Ack({code:?} for {control_id:?}, {} errors, {} bytes of text)", errors.len(), text.len())
    }
}

/// Reads an acknowledgement, framed or not. Of a batch of them, the first.
pub fn read_ack(bytes: &[u8]) -> Result<Ack, NotAnAck> {
    let body = mllp::unframed(bytes);
    let first = if batch::is_batch(body) {
        Batch::split(&Bytes::copy_from_slice(body)).messages().next().cloned().ok_or(NotAnAck::NoMsa)?
    } else {
        Bytes::copy_from_slice(body)
    };
    ack_of(&Message::parse(first).map_err(|_| NotAnAck::NotHl7)?)
}

/// What an acknowledgement that is already a message says.
pub fn ack_of(message: &Message) -> Result<Ack, NotAnAck> {
    let msa = message.segments().find(|segment| segment.has_name(*b"MSA")).ok_or(NotAnAck::NoMsa)?;
    let get = |segment: &Segment<'_>, name: [u8; 3], field: u16, component: Option<u16>| {
        segment.get(&Path::of(name, field, component))
    };
    let mut errors = Vec::new();
    let mut text = get(&msa, *b"MSA", 3, None);
    for err in message.segments().filter(|segment| segment.has_name(*b"ERR")) {
        let new_form = get(&err, *b"ERR", 3, Some(1));
        let old_form = || err.value("ERR-1.4.1").unwrap_or_default();
        let code = if new_form.is_empty() { old_form() } else { new_form };
        if !code.is_empty() {
            errors.push(code);
        }
        if text.is_empty() {
            text = get(&err, *b"ERR", 8, None);
        }
    }
    Ok(Ack { code: get(&msa, *b"MSA", 1, None), control_id: get(&msa, *b"MSA", 2, None), text, errors })
}
