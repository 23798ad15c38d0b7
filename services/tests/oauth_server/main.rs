//! The authorization server over real sockets: what it answers to clients that know nothing of it, and our own
//! token manager and verifier against it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail by panicking")]

mod assertion;
mod code;
mod hostile;
mod inspect;
mod keys;
mod registration;
mod requirements;
mod support;
mod tokens;
