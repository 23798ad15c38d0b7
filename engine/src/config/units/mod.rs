//! The small value types of the production file, shared by all hosts: durations, sizes, addresses, hours,
//! tables whose order matters. Each is a string (or list) in TOML, names its form in its JSON Schema, and
//! says in its error what it would have liked to see.
//!
//! The schema `format` of each type lets the loader check every value of an item at once, before serde
//! (which stops at the first error) sees any of them: see [`check_format`].
//!
//! ```
//! # use serde::Deserialize; use schemars::JsonSchema;
//! use septet_engine::config::units::{ByteSize, DurationText, Listen, MaybeNever, Ordered, Strings};
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Settings {
//!     /// Where it listens.
//!     listen: Listen,                       // "127.0.0.1:2575"
//!     /// First byte to end of frame.
//!     #[serde(default = "frame_timeout")]
//!     frame_timeout: DurationText,          // "30s" "250ms" "1h30m" "30d"
//!     /// Closes idle connections.
//!     #[serde(default)]
//!     idle_timeout: MaybeNever,             // a duration or "never" (the default)
//!     /// Larger messages are refused.
//!     #[serde(default = "max_message")]
//!     max_message: ByteSize,                // "64MiB"
//!     /// Paths and the values they must have, in file order.
//!     #[serde(default)]
//!     when: Ordered<Strings>,               // { "MSH-9.1" = "ORU", "MSH-9.2" = ["R01", "R03"] }
//! }
//! fn frame_timeout() -> DurationText { DurationText::secs(30) }
//! fn max_message() -> ByteSize { ByteSize::mib(64) }
//! ```

mod address;
mod duration;
mod size;
mod table;

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Visitor};

use crate::config::hours::Hours;

pub use address::{HostPort, Listen};
pub use duration::{DurationText, MaybeNever};
pub use size::ByteSize;
pub use table::{Ordered, Strings};

/// Text that is not of the form a setting needs; says what the form is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FormatError(pub String);

impl FormatError {
    fn new(text: impl Into<String>) -> Self {
        FormatError(text.into())
    }
}

/// Serde and schema of a type that is written as one string and read by `FromStr`.
macro_rules! text_type {
    ($name:ident, $format:literal, $expects:literal, $examples:expr) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let visitor = $crate::config::units::TextVisitor::<$name>($expects, std::marker::PhantomData);
                deserializer.deserialize_str(visitor)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "format": $format, "examples": $examples })
            }
        }
    };
}
use text_type;

pub(crate) struct TextVisitor<T>(&'static str, PhantomData<T>);

impl<T: FromStr<Err = FormatError>> Visitor<'_> for TextVisitor<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// What a schema `format` of this module expects, for diagnostics; `None` for other formats.
pub fn format_name(format: &str) -> Option<&'static str> {
    Some(match format {
        "septet-duration" => "a duration such as \"5s\"",
        "septet-duration-or-never" => "a duration such as \"5s\", or \"never\"",
        "septet-size" => "a size such as \"16MiB\"",
        "septet-listen" => "an address such as \"127.0.0.1:2575\"",
        "septet-host-port" => "host and port such as \"10.0.0.5:2575\"",
        "septet-hours" => "hours such as \"Mon-Fri 07:00-19:00\"",
        "septet-path" | "septet-certificate" | "septet-authorities" | "septet-key" => "a path",
        "septet-secret" => "a string",
        _ => return None,
    })
}

/// Checks `text` against a schema `format` of this module; other formats are always right.
pub fn check_format(format: &str, text: &str) -> Result<(), FormatError> {
    match format {
        "septet-duration" => text.parse::<DurationText>().map(drop),
        "septet-duration-or-never" => text.parse::<MaybeNever>().map(drop),
        "septet-size" => text.parse::<ByteSize>().map(drop),
        "septet-listen" => text.parse::<Listen>().map(drop),
        "septet-host-port" => text.parse::<HostPort>().map(drop),
        "septet-hours" => text.parse::<Hours>().map(drop),
        _ => Ok(()),
    }
}

text_type!(Hours, "septet-hours", "hours such as \"Mon-Fri 07:00-19:00\"", ["Mon-Fri 07:00-19:00"]);
