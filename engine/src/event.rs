//! The event log: what happened to items and messages, for operators and for the audit trail.
//! Kinds are the names of CONTRACT §3; text is engine-authored and free of patient data.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fault::Sensitive;
use crate::id::{EventId, ItemName, MessageId, SessionId};

/// How loud an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Routine.
    Info,
    /// Worth a look.
    Warning,
    /// Something failed.
    Error,
}

impl Level {
    /// `info`, `warning` or `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// One stored event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the log.
    pub id: EventId,
    /// When it happened.
    pub at: Timestamp,
    /// How loud it is.
    pub level: Level,
    /// `message.rejected`, `item.faulted`, `oauth.fetched`, … (CONTRACT §3).
    pub kind: Cow<'static, str>,
    /// The item it is about.
    pub item: Option<ItemName>,
    /// The session it belongs to.
    pub session: Option<SessionId>,
    /// The message it is about.
    pub message_id: Option<MessageId>,
    /// The account that acted or looked.
    pub who: Option<String>,
    /// Engine-authored, no patient data.
    pub text: String,
    /// Foreign or script-authored words; shown only with the trace.
    pub detail: Option<Sensitive>,
}

impl Event {
    /// How many bytes of text it has.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text.len() + self.detail.as_ref().map_or(0, |detail| detail.0.len())
    }
}

/// An event before it is stored: the store gives it id and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// How loud it is.
    pub level: Level,
    /// See [`Event::kind`].
    pub kind: &'static str,
    /// The item it is about.
    pub item: Option<ItemName>,
    /// The session it belongs to.
    pub session: Option<SessionId>,
    /// The message it is about.
    pub message_id: Option<MessageId>,
    /// The account that acted or looked.
    pub who: Option<String>,
    /// Engine-authored, no patient data.
    pub text: String,
    /// Foreign or script-authored words.
    pub detail: Option<Sensitive>,
}

impl NewEvent {
    /// An event about nothing in particular; narrow it with the builder methods.
    pub fn new(level: Level, kind: &'static str, text: impl Into<String>) -> Self {
        NewEvent {
            level,
            kind,
            item: None,
            session: None,
            message_id: None,
            who: None,
            text: text.into(),
            detail: None,
        }
    }

    /// About this item.
    pub fn item(mut self, item: &ItemName) -> Self {
        self.item = Some(item.clone());
        self
    }

    /// About this message of this session.
    pub fn message(mut self, session: SessionId, id: MessageId) -> Self {
        self.session = Some(session);
        self.message_id = Some(id);
        self
    }

    /// Done by this account.
    pub fn who(mut self, who: impl Into<String>) -> Self {
        self.who = Some(who.into());
        self
    }

    /// With foreign or script-authored words.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(Sensitive(detail.into()));
        self
    }
}
