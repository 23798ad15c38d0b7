//! Business operations: everything that sends messages out. One file per class; adding one is its file, a
//! `mod` line and an entry in [`CLASSES`]. What all of them share (queues, retry, reply actions, suspension,
//! order) is the engine's; an operation sends one message, reads the answer, and says what it was.

pub mod file;
pub mod hl7_mllp;
pub mod template;
#[cfg(test)]
mod testing;

use septet_engine::registry::ItemClass;

/// The classes of operations, in the order of the reference.
pub const CLASSES: &[ItemClass] = &[hl7_mllp::CLASS, file::CLASS];
