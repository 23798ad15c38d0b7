//! What HL7 services share whatever their transport: reading a message, refusing it, storing it, and the
//! one answer it gets (CONTRACT §2.1 "hl7 services", "which nack").
//!
//! A transport hands each message (or batch) to [`Receiver::take`], awaits the durability of the last one
//! it took, and asks each [`Taken`] for its answers, in order. A positive answer exists only where there is
//! a `Receipt` (P1): it is drafted before and released by it.
//!
//! | file | decides |
//! |---|---|
//! | `policy` | what the settings say |
//! | `mode` | whether, when and with which codes a message is answered |
//! | `answer` | the bytes of an answer |
//! | `duplicates` | whether a message has been here before, and what it was told |
//! | `receiver` | the way of a message through all of these into the store |
//! | `taken` | which answers what was taken gets, and when |

mod answer;
mod duplicates;
mod mode;
mod policy;
mod receiver;
mod taken;
#[cfg(test)]
pub(crate) mod testing;

pub use answer::Answer;
pub use policy::{AckMode, BatchMode, DuplicatePolicy, Policy, Validate, WhenUnavailable, Written};
pub use receiver::{Arrival, Handled, Receiver};
pub use taken::Taken;
