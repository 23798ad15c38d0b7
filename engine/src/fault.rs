//! What went wrong, said so that it may be shown: a stable code and a text without patient data,
//! and apart from them the foreign words (an error body, MSA-3, a thrown string) as [`Sensitive`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// Foreign or script-authored text. It is kept with the trace under body access and never printed:
/// `Debug` shows only its length, and there is no `Display`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sensitive(pub String);

impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sensitive({} bytes)", self.0.len())
    }
}

/// An error as it is stored on a header and handed to callers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {text}")]
pub struct Fault {
    /// What a flow's `catch` names: `timeout`, `call`, `script`, `transform`, `message`, or a thrown name.
    pub name: String,
    /// Short and stable: an HTTP status, an HL7 acknowledgement code, `connect`, `timeout`, `script`…
    pub code: String,
    /// What happened and where; engine-authored, never foreign text, never patient data.
    pub text: String,
    /// The peer's or a script's own words.
    pub detail: Option<Sensitive>,
}

impl Fault {
    /// A fault of kind `name` with an engine-authored text.
    pub fn new(name: impl Into<String>, code: impl Into<String>, text: impl Into<String>) -> Self {
        Fault { name: name.into(), code: code.into(), text: text.into(), detail: None }
    }

    /// The same fault with foreign words attached.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(Sensitive(detail.into()));
        self
    }
}
