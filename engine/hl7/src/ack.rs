//! Acknowledgements: building them and reading them.
//!
//! HL7 v2.5.1 §2.9.2 (message processing rules), §2.14.1 (general acknowledgement), §2.15.5 (ERR), §2.15.8 (MSA), tables
//! 0008 (codes) and 0357 (error conditions). What an acknowledgement echoes (control id, applications, processing id,
//! version) is copied as encoded bytes, in the delimiters and the charset of the message it answers, so it can be matched
//! byte for byte. Time and control id come from the caller: this crate has no clock.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::Path;

mod build;
mod read;

pub use build::{build_ack, build_batch_ack, recover_header};
pub use read::{Ack, NotAnAck, ack_of, read_ack};

/// HL7 Table 0008: the first letter says which mode, the second what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AckCode {
    /// Application accept.
    AA,
    /// Application error: there is something wrong with the content.
    AE,
    /// Application reject: cannot be taken (now).
    AR,
    /// Commit accept.
    CA,
    /// Commit error.
    CE,
    /// Commit reject.
    CR,
}

/// Everything of an acknowledgement that the answered message does not give.
#[derive(Debug, Clone, Copy)]
pub struct AckSpec<'a> {
    /// MSA-1.
    pub code: AckCode,
    /// MSA-3.
    pub text: Option<&'a str>,
    /// An ERR segment.
    pub error: Option<Err0357<'a>>,
    /// MSH-10 of the acknowledgement itself.
    pub control_id: &'a str,
    /// MSH-7, as HL7 writes times: `20261122101500+0100`.
    pub timestamp: &'a str,
    /// MSH-3 where there is no message to answer.
    pub sender: &'a str,
}

/// One error condition of HL7 Table 0357.
#[derive(Debug, Clone, Copy)]
pub struct Err0357<'a> {
    /// `207`.
    pub code: &'a str,
    /// What happened, in words; the table's own text stands beside the code whatever this says.
    pub text: Option<&'a str>,
    /// Where.
    pub location: Option<&'a Path>,
}

impl<'a> AckSpec<'a> {
    /// Without text and error; the sender is `SEPTET`.
    pub const fn new(code: AckCode, control_id: &'a str, timestamp: &'a str) -> Self {
        Self { code, text: None, error: None, control_id, timestamp, sender: "SEPTET" }
    }
}

impl<'a> Err0357<'a> {
    /// A condition without a place.
    pub const fn new(code: &'a str) -> Self {
        Self { code, text: None, location: None }
    }
}

impl AckCode {
    /// As MSA-1 writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AA => "AA",
            Self::AE => "AE",
            Self::AR => "AR",
            Self::CA => "CA",
            Self::CE => "CE",
            Self::CR => "CR",
        }
    }

    /// AA and CA.
    pub const fn is_positive(self) -> bool {
        matches!(self, Self::AA | Self::CA)
    }

    /// The same outcome in the commit codes of enhanced mode.
    #[must_use]
    pub const fn commit(self) -> Self {
        match self {
            Self::AA | Self::CA => Self::CA,
            Self::AE | Self::CE => Self::CE,
            Self::AR | Self::CR => Self::CR,
        }
    }
}

impl fmt::Display for AckCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A code that Table 0008 does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no acknowledgement code; there are AA, AE, AR, CA, CE and CR")]
pub struct UnknownAckCode;

impl FromStr for AckCode {
    type Err = UnknownAckCode;

    fn from_str(code: &str) -> Result<Self, UnknownAckCode> {
        [Self::AA, Self::AE, Self::AR, Self::CA, Self::CE, Self::CR]
            .into_iter()
            .find(|known| known.as_str() == code)
            .ok_or(UnknownAckCode)
    }
}

/// HL7 Table 0357.
pub fn condition(code: &str) -> Option<&'static str> {
    Some(match code {
        "0" => "Message accepted",
        "100" => "Segment sequence error",
        "101" => "Required field missing",
        "102" => "Data type error",
        "103" => "Table value not found",
        "104" => "Value too long",
        "200" => "Unsupported message type",
        "201" => "Unsupported event code",
        "202" => "Unsupported processing id",
        "203" => "Unsupported version id",
        "204" => "Unknown key identifier",
        "205" => "Duplicate key identifier",
        "206" => "Application record locked",
        "207" => "Application internal error",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
