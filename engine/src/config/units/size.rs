//! Sizes: `"64KiB"`, `"16MiB"`.

use std::fmt;
use std::str::FromStr;

use crate::config::units::{FormatError, text_type};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
