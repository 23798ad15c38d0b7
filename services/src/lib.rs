//! Business services: everything that brings messages in. One file per class; adding one is its file, a
//! `mod` line and an entry in [`CLASSES`]. A service gets bytes off a wire, hands them to its intake, and
//! answers only once they are on stable storage; queues, search keys and routing are the engine's.

mod auth;
mod bodies;
mod defaults;
mod endpoint;
mod heads;
pub mod hl7_common;
pub mod hl7_http;
pub mod hl7_mllp;
pub mod http;
pub mod listeners;
pub mod oauth_server;
mod problem;

use septet_engine::registry::ItemClass;

/// The classes of services, in the order of the reference.
pub const CLASSES: &[ItemClass] = &[hl7_mllp::CLASS, hl7_http::CLASS, http::CLASS, oauth_server::CLASS];
