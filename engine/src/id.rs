//! Identifiers. Message, session and body ids come from one dense per-store sequence below 2^53
//! (so that JavaScript and JSON read them exactly); they carry no time and are never reused.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A map by ids, or by names of a production: nobody outside can choose keys that collide, so it hashes fast.
pub type IdMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

numeric_id!(
    /// Names one header: one leg of a session.
    MessageId
);
numeric_id!(
    /// Names a session: the id of its first header.
    SessionId
);
numeric_id!(
    /// Names a stored body; many headers may share one.
    BodyId
);
numeric_id!(
    /// Names an entry of the event log.
    EventId
);

impl From<MessageId> for SessionId {
    /// The session that this header, as the first of its session, gives its name to.
    fn from(id: MessageId) -> Self {
        SessionId(id.0)
    }
}

/// The unique name of an item within its production: `[A-Za-z][A-Za-z0-9_-]*`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ItemName(Arc<str>);

impl ItemName {
    /// Takes a name as it stands; the production file's checks decide whether it is well formed.
    pub fn new(name: impl AsRef<str>) -> Self {
        ItemName(Arc::from(name.as_ref()))
    }

    /// Whether `name` is a legal item name.
    pub fn is_legal(name: &str) -> bool {
        let mut chars = name.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphabetic())
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for ItemName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ItemName {
    fn from(name: &str) -> Self {
        ItemName::new(name)
    }
}

impl fmt::Display for ItemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ItemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
