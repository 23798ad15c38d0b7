//! Processes from the outside: a production's text goes in, jobs are run as the engine would run them, and
//! what they want done is compared. No engine, no store: processes are pure.

#![expect(clippy::unwrap_used, reason = "what a test helper cannot do fails the test")]

mod check;
mod fixtures;
mod flow;
mod router;
mod scripts;
mod support;
mod transforms;
