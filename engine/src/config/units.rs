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

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::config::hours::Hours;

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
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(TextVisitor::<$name>($expects, PhantomData))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format, "examples": $examples })
            }
        }
    };
}

struct TextVisitor<T>(&'static str, PhantomData<T>);

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
        "septet-path" | "septet-file" => "a path",
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

// === Durations ===

/// A duration: `"5s"`, `"250ms"`, `"1h30m"`, `"30d"`. Units `ms s m h d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DurationText(pub Duration);

impl DurationText {
    /// Whole seconds.
    pub const fn secs(seconds: u64) -> Self {
        DurationText(Duration::from_secs(seconds))
    }
    /// Milliseconds.
    pub const fn millis(millis: u64) -> Self {
        DurationText(Duration::from_millis(millis))
    }
    /// The duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<DurationText> for Duration {
    fn from(text: DurationText) -> Self {
        text.0
    }
}

/// Milliseconds of one unit, longest first.
const TIME_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl FromStr for DurationText {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let wrong = || FormatError::new("expected a duration such as \"5s\": a number with ms, s, m, h or d");
        let mut rest = text.trim();
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, after) = rest.split_at(digits);
            let length = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, after) = after.split_at(length);
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let (_, millis) = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            let part = number.checked_mul(*millis);
            total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
            rest = after;
        }
        // A thousand years: longer ones overflow the arithmetic of points in time.
        if total > 1000 * 366 * 86_400_000 {
            return Err(FormatError::new("this duration is too long; \"never\" may be what is meant"));
        }
        Ok(DurationText(Duration::from_millis(total)))
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in TIME_UNITS {
            if rest >= millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

text_type!(DurationText, "septet-duration", "a duration such as \"5s\"", ["5s", "250ms", "1h30m", "30d"]);

/// A duration or `"never"`. The default is never.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MaybeNever(pub Option<Duration>);

impl MaybeNever {
    /// Whole seconds.
    pub const fn secs(seconds: u64) -> Self {
        MaybeNever(Some(Duration::from_secs(seconds)))
    }
    /// The duration; `None` means never.
    pub const fn get(self) -> Option<Duration> {
        self.0
    }
}

impl FromStr for MaybeNever {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        if text.trim() == "never" {
            return Ok(MaybeNever(None));
        }
        let duration: DurationText = text.parse().map_err(|_| {
            FormatError::new("expected a duration such as \"5s\" (ms, s, m, h, d), or \"never\"")
        })?;
        Ok(MaybeNever(Some(duration.0)))
    }
}

impl fmt::Display for MaybeNever {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(duration) => DurationText(duration).fmt(f),
            None => f.write_str("never"),
        }
    }
}

text_type!(
    MaybeNever,
    "septet-duration-or-never",
    "a duration such as \"5s\", or \"never\"",
    ["never", "30s", "24h"]
);

// === Sizes ===

/// A number of bytes: `"64KiB"`, `"16MiB"`, `"2GiB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Mebibytes.
    pub const fn mib(mebibytes: u64) -> Self {
        ByteSize(mebibytes << 20)
    }
    /// Bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// Bytes, as a length in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let wrong =
            || FormatError::new("expected a size such as \"16MiB\": a number with B, KiB, MiB, GiB or TiB");
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(wrong)?;
        let size = number.checked_mul(*bytes).filter(|size| *size <= i64::MAX as u64).ok_or_else(wrong)?;
        Ok(ByteSize(size))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            SIZE_UNITS.iter().take(4).find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes));
        match exact {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{}B", self.0),
        }
    }
}

text_type!(ByteSize, "septet-size", "a size such as \"16MiB\"", ["64KiB", "16MiB", "2GiB"]);

// === Addresses ===

/// Where a listener binds: an IP address and a port. `localhost` is 127.0.0.1; port 0 lets the system choose.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Listen(pub SocketAddr);

impl Listen {
    /// The address.
    pub const fn get(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for Listen {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
            return Ok(Listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)));
        }
        let wrong =
            "expected an IP address and a port such as \"127.0.0.1:2575\"; \"0.0.0.0:2575\" is every address";
        text.parse().map(Listen).map_err(|_| FormatError::new(wrong))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_type!(Listen, "septet-listen", "an address such as \"127.0.0.1:2575\"", ["127.0.0.1:2575"]);

/// A peer: a host name or IP address, and a port.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = FormatError;
    fn from_str(text: &str) -> Result<Self, FormatError> {
        let wrong = || FormatError::new("expected a host and a port such as \"10.0.0.5:2575\"");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => {
                address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
                address
            }
            None => host,
        };
        let name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        let legal = text.starts_with('[') || host.chars().all(name);
        if host.is_empty() || !legal {
            return Err(wrong());
        }
        Ok(HostPort { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

text_type!(HostPort, "septet-host-port", "host and port such as \"10.0.0.5:2575\"", ["10.0.0.5:2575"]);

// === Hours ===

text_type!(Hours, "septet-hours", "hours such as \"Mon-Fri 07:00-19:00\"", ["Mon-Fri 07:00-19:00"]);

// === Lists and tables ===

/// One string or a list of them: `"ORU"` or `["R01", "R03"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings(pub Vec<String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Strings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Strings, E> {
                Ok(Strings(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Strings, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(Strings(all))
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

impl Serialize for Strings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_str(one),
            all => serializer.collect_seq(all),
        }
    }
}

impl JsonSchema for Strings {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Strings".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

/// A table whose order is the file's: `when`, `assign`, `set`, `search`. Its keys are data, so that keys
/// beginning `x-` are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered<T>(pub Vec<(String, T)>);

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Ordered(Vec::new())
    }
}

impl<T> Ordered<T> {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&T> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }
    /// Keys and values in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
    /// No entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> IntoIterator for Ordered<T> {
    type Item = (String, T);
    type IntoIter = std::vec::IntoIter<(String, T)>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Ordered<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

impl<T: Serialize> Serialize for Ordered<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<T: JsonSchema> JsonSchema for Ordered<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Ordered_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": generator.subschema_for::<T>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write_back() {
        for (text, millis, canonical) in [
            ("5s", 5_000, "5s"),
            ("250ms", 250, "250ms"),
            ("1h30m", 5_400_000, "1h30m"),
            ("90s", 90_000, "1m30s"),
            ("30d", 30 * 86_400_000, "30d"),
            ("24h", 86_400_000, "1d"),
            ("0s", 0, "0s"),
        ] {
            let read: DurationText = text.parse().unwrap();
            assert_eq!(read.get(), Duration::from_millis(millis), "{text}");
            assert_eq!(read.to_string(), canonical);
            assert_eq!(canonical.parse::<DurationText>().unwrap(), read);
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "s", "5 s", "-5s", "1.5s", "5S", "5sec", "99999999999999999999s", "400000d"] {
            assert!(text.parse::<DurationText>().is_err(), "{text}");
        }
        assert_eq!("never".parse::<MaybeNever>().unwrap().get(), None);
        assert!("always".parse::<MaybeNever>().is_err());
    }

    #[test]
    fn sizes_read_and_write_back() {
        for (text, bytes) in [("64KiB", 65_536), ("16MiB", 16 << 20), ("2GiB", 2 << 30), ("100B", 100)] {
            let read: ByteSize = text.parse().unwrap();
            assert_eq!((read.get(), read.to_string().as_str()), (bytes, text));
        }
        for text in ["", "16", "MiB", "16 mib", "-1B", "99999999TiB", "1.5GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_need_a_port() {
        assert_eq!("localhost:80".parse::<Listen>().unwrap().to_string(), "127.0.0.1:80");
        assert!("[::1]:80".parse::<Listen>().is_ok());
        for text in ["2575", ":2575", "127.0.0.1", "lab:2575", "127.0.0.1:70000"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
        assert_eq!("lab.example:2575".parse::<HostPort>().unwrap().host, "lab.example");
        assert_eq!("[::1]:2575".parse::<HostPort>().unwrap().to_string(), "[::1]:2575");
        for text in ["lab", "lab:0", ":1", "a b:1", "mllp://lab:1", "[lab]:1", "::1:5"] {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
    }
}
