//! End to end: the real binary, real sockets, an independent vendor, kill -9.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, as it should"
)]

mod check;
mod crash;
mod email;
mod fhir;
mod layout;
mod main_job;
mod oauth_client;
mod oauth_client_leaks;
mod oauth_client_oidc;
mod oauth_server;
mod openid;
mod operate;
mod productions;
mod readme;
mod relay;
mod replay;
mod resource_server;
mod search;
mod store;
mod support;
mod tls;
