//! septet-oauth against servers written for these tests, over real sockets.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail by panicking")]

mod check;
mod manager;
mod sign_in;
mod support;
mod verifier;
