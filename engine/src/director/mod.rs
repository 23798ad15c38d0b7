//! The Director runs a plan: it starts and stops items, drives their queues, applies reply actions,
//! retries, suspends, raises alerts, and is what the admin API talks to.

//!
//! [`engine`] is the handle everybody outside uses; `items` has the life of one item; `intake`, `process`
//! and `operation` run the three kinds; `exchange` builds the transactions that create headers; `control`
//! is what operators do to single messages, `replay` and `bulk` to many; `reload` changes the plan.

use std::fmt;

use crate::id::{ItemName, MessageId, SessionId};
use crate::process::LaneFactory;
use crate::store::{ItemCounts, Store};
use crate::token::SharedTokens;

pub use bulk::{Bulk, BulkReport};
pub use engine::Engine;
pub use replay::{Order, Replay, ReplayReport, ReplayState};

mod alerts;
mod bulk;
mod control;
mod core;
mod engine;
mod exchange;
mod extract;
mod instance;
mod intake;
mod items;
mod jobs;
mod lanes;
mod operation;
mod orphans;
mod outcome;
mod process;
mod reload;
mod replay;
mod retention;
mod run;
mod selection;
mod verdict;
mod watch;

#[cfg(test)]
mod tests;

/// The state of an item as the API shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemState {
    /// Binding or starting its slots.
    Starting,
    /// At work.
    Running,
    /// Finishing work in flight.
    Stopping,
    /// Stopped by an operator; survives a restart.
    Stopped,
    /// `enabled = false`, or switched off by the action `disable`.
    Disabled,
    /// The environment does not let it run; it tries again with back-off.
    Faulted,
    /// Too many suspensions in a row, or lost script threads; `start` ends it.
    Paused,
}

impl ItemState {
    /// `starting`, `running`, …
    pub fn as_str(self) -> &'static str {
        match self {
            ItemState::Starting => "starting",
            ItemState::Running => "running",
            ItemState::Stopping => "stopping",
            ItemState::Stopped => "stopped",
            ItemState::Disabled => "disabled",
            ItemState::Faulted => "faulted",
            ItemState::Paused => "paused",
        }
    }
}

/// The state of the whole production.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductionState {
    /// Recovery and binding.
    Starting,
    /// At work.
    Running,
    /// SIGTERM: finishing work in flight.
    Draining,
    /// Stopped.
    Stopped,
}

impl ProductionState {
    /// `starting`, `running`, `draining`, `stopped`.
    pub fn as_str(self) -> &'static str {
        match self {
            ProductionState::Starting => "starting",
            ProductionState::Running => "running",
            ProductionState::Draining => "draining",
            ProductionState::Stopped => "stopped",
        }
    }
}

/// One item as `GET /api/v1/items` shows it.
#[derive(Clone, Debug)]
pub struct ItemView {
    /// Its name.
    pub name: ItemName,
    /// `service`, `process`, `operation`.
    pub kind: &'static str,
    /// Its class.
    pub type_name: &'static str,
    /// Its state.
    pub state: ItemState,
    /// Its counters.
    pub counts: ItemCounts,
}

/// What to do with queues whose item is not in the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Orphans {
    /// Do not start; name them.
    #[default]
    Refuse,
    /// Keep them as they are.
    Hold,
    /// Discard their messages.
    Discard,
    /// Give the queue of the first to the second.
    Rename(Vec<(ItemName, ItemName)>),
}

/// Why a production could not start or reload.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// Queues without an item.
    #[error("messages are queued for items that are not in the production: {0}")]
    Orphans(String),
    /// A reload could not bind something new; everything is as before.
    #[error("item {item} could not start: {text}")]
    Item {
        /// The item.
        item: ItemName,
        /// Why.
        text: String,
    },
    /// What a reload cannot change (`[store]`, `[admin]` addresses, the production's name).
    #[error("{0} cannot be changed by a reload; restart the production")]
    NeedsRestart(String),
    /// The store.
    #[error("{0}")]
    Store(String),
}

/// Why an operator's request was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ControlError {
    /// No such item.
    #[error("there is no item named {0}")]
    UnknownItem(String),
    /// No such message.
    #[error("there is no message {0}")]
    UnknownMessage(MessageId),
    /// No such replay.
    #[error("there is no replay {0}")]
    UnknownReplay(u64),
    /// It is not in a state that allows this: 409.
    #[error("{0}")]
    NotAllowed(String),
    /// The store cannot take it: 503.
    #[error("{0}")]
    Unavailable(String),
}

/// What resend made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resent {
    /// The new header.
    pub id: MessageId,
    /// Its session.
    pub session: SessionId,
    /// The original.
    pub resent_from: MessageId,
}

/// What the Director is started with, apart from the plan.
#[derive(Clone)]
pub struct Parts {
    /// The store.
    pub store: Store,
    /// Builds lanes.
    pub lanes: LaneFactory,
    /// OAuth tokens.
    pub tokens: SharedTokens,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parts")
    }
}
