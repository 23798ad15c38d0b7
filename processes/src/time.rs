//! Points in time between JavaScript (milliseconds), records (RFC 3339) and HL7 (`YYYYMMDDHHMMSS`). What
//! carries no zone is in the production's timezone.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// A JavaScript time as HL7 text; `None` where it is no time.
pub(crate) fn hl7_of_milliseconds(milliseconds: f64, timezone: &TimeZone) -> Option<String> {
    from_milliseconds(milliseconds).map(|moment| hl7(moment, timezone))
}

/// RFC 3339, zoneless or HL7 text as HL7 text.
pub(crate) fn hl7_of_text(text: &str, timezone: &TimeZone) -> Option<String> {
    from_text(text, timezone).map(|moment| hl7(moment, timezone))
}

fn hl7(moment: Timestamp, timezone: &TimeZone) -> String {
    moment.to_zoned(timezone.clone()).strftime("%Y%m%d%H%M%S").to_string()
}

/// A JavaScript time.
pub(crate) fn from_milliseconds(milliseconds: f64) -> Option<Timestamp> {
    if !milliseconds.is_finite() || milliseconds.abs() > 8.64e15 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked to be in range")]
    Timestamp::from_millisecond(milliseconds as i64).ok()
}

/// A point in time written in RFC 3339, without zone, or as HL7 does.
pub(crate) fn from_text(text: &str, timezone: &TimeZone) -> Option<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    if let Some(moment) = from_hl7(text, timezone) {
        return Some(moment);
    }
    let civil = text.parse::<DateTime>().ok()?;
    civil.to_zoned(timezone.clone()).ok().map(|zoned| zoned.timestamp())
}

/// HL7's `YYYY[MM[DD[HH[MM[SS[.S[S[S[S]]]]]]]]][+/-ZZZZ]` (v2.5.1 §2.A.22); what is left out is its least.
pub(crate) fn from_hl7(text: &str, timezone: &TimeZone) -> Option<Timestamp> {
    let (local, zone) = match text.find(['+', '-']) {
        Some(at) => text.split_at_checked(at)?,
        None => (text, ""),
    };
    let (whole, fraction) = local.split_once('.').unwrap_or((local, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole)
        || !digits(fraction)
        || fraction.len() > 4
        || !matches!(whole.len(), 4 | 6 | 8 | 10 | 12 | 14)
    {
        return None;
    }
    let part = |from: usize, to: usize, least: i8| match whole.get(from..to) {
        Some(text) => text.parse::<i8>().ok(),
        None => Some(least),
    };
    let year = whole.get(..4)?.parse::<i16>().ok()?;
    let nanoseconds = format!("{fraction:0<9}").parse::<i32>().ok()?;
    let (month, day, hour) = (part(4, 6, 1)?, part(6, 8, 1)?, part(8, 10, 0)?);
    let (minute, second) = (part(10, 12, 0)?, part(12, 14, 0)?);
    let civil = DateTime::new(year, month, day, hour, minute, second, nanoseconds).ok()?;
    if zone.is_empty() {
        return civil.to_zoned(timezone.clone()).ok().map(|zoned| zoned.timestamp());
    }
    let (sign, digits) = zone.split_at_checked(1)?;
    let hours = digits.get(..2)?.parse::<i32>().ok()?;
    let minutes = digits.get(2..4)?.parse::<i32>().ok().filter(|_| digits.len() == 4)?;
    let seconds = (hours * 60 + minutes) * 60 * if sign == "-" { -1 } else { 1 };
    let offset = jiff::tz::Offset::from_seconds(seconds).ok()?;
    offset.to_timestamp(civil).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hl7_times_without_zone_are_the_productions() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let read = |text: &str| from_text(text, &berlin).map(|moment| moment.to_string());
        assert_eq!(read("20260314120000").as_deref(), Some("2026-03-14T11:00:00Z"));
        assert_eq!(read("202603141200+0000").as_deref(), Some("2026-03-14T12:00:00Z"));
        assert_eq!(read("20260314").as_deref(), Some("2026-03-13T23:00:00Z"));
        assert_eq!(read("20260314120000.5-0500").as_deref(), Some("2026-03-14T17:00:00.5Z"));
        assert_eq!(read("2026-03-14T12:00:00").as_deref(), Some("2026-03-14T11:00:00Z"));
        assert_eq!(read("2026-03-14T12:00:00Z").as_deref(), Some("2026-03-14T12:00:00Z"));
        assert_eq!(read("2026031"), None);
        assert_eq!(read("20261314"), None);
        assert_eq!(hl7_of_text("2026-03-14T12:00:00Z", &berlin).as_deref(), Some("20260314130000"));
        assert_eq!(hl7_of_milliseconds(f64::NAN, &berlin), None);
    }
}
