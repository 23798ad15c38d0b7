//! Business operations: everything that sends messages out. One file per class; adding one is its file, a
//! `mod` line and an entry in [`CLASSES`]. What all of them share (queues, retry, reply actions, suspension,
//! order) is the engine's; an operation sends one message, reads the answer, and says what it was.

pub mod email;
pub mod fhir;
pub mod file;
pub mod hl7_http;
pub mod hl7_mllp;
mod http_client;
mod http_operation;
mod http_reply;
mod http_settings;
mod http_template;
mod message_map;
mod oauth_use;
pub mod rest;
mod stream_tls;
pub mod template;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_http;

use septet_engine::registry::ItemClass;

/// The classes of operations, in the order of the reference.
pub const CLASSES: &[ItemClass] =
    &[hl7_mllp::CLASS, hl7_http::CLASS, rest::CLASS, fhir::CLASS, email::CLASS, file::CLASS];
