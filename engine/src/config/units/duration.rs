//! Durations: `"5s"`, `"250ms"`, `"1h30m"`, or `"never"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::config::units::{FormatError, text_type};

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
}
