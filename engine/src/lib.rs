//! The Septet engine: what is true for every item.
//!
//! Messages and their headers, the durable store, the production file and the plan made of it, and
//! the Director that runs a plan: queues, retry, reply actions, suspension, alerts. Concrete hosts
//! (MLLP, REST, flows, …) live in sibling crates and are handed in by the composition root as a
//! [`registry::Registry`]; this crate knows only their contracts in [`host`] and [`process`].

pub mod body;
pub mod client_tls;
pub mod clock;
pub mod config;
pub mod director;
pub mod event;
pub mod event_limit;
pub mod fault;
pub mod files;
pub mod header;
pub mod host;
pub mod id;
pub mod media;
pub mod process;
pub mod queue;
pub mod record;
pub mod registry;
pub mod reply;
pub mod server_tls;
mod sorted;
pub mod store;
pub mod token;
pub mod vault;
