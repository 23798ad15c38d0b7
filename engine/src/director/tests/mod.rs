//! The Director on a memory store, with hosts whose other end is the test: an operation's peer answers
//! message by message, a service hands out its intake, a process is a closure.

mod control;
mod delivery;
mod durable;
mod items;
mod processes;
mod replay;
mod scripted;
pub(super) mod support;
