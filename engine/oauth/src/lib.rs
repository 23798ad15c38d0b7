//! OAuth 2.0 for both ends of a connection, and nothing else: the crate knows no items, queues or messages.
//!
//! - [`TokenManager`] gives operations the tokens of the named clients `[oauth.NAME]`: stored sealed,
//!   checked before each call, fetched by one request for all who wait.
//! - [`Verifier`] judges the tokens that callers of our services show.
//! - [`keys`] holds the signing keys of our own authorization server (its endpoints are a service).
//!
//! Rules that hold everywhere here: no token and no secret in `Debug`, `Display`, events or faults; foreign
//! words are `detail` only; no redirects; replies are capped; plain http on loopback only.

mod answer;
mod auth;
mod check;
mod client;
mod discovery;
mod fetch;
mod introspect;
mod jwks;
mod jws;
mod kept;
pub mod keys;
mod manager;
mod net;
mod sign_in;
mod slot;
mod smart;
mod verify;
mod view;

pub use auth::{Auth, check_auth};
pub use check::{Check, Refusal};
pub use client::check;
pub use manager::{TokenAlert, TokenManager};
pub use sign_in::{Callback, SignInError};
pub use smart::Wanted;
pub use verify::{Claims, Presented, PublicKeys, Verifier};
pub use view::{ClientState, ClientView};
