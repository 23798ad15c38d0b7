//! Hours of the week, for `schedule` and `alert.during`: `Mon-Fri 07:00-19:00`, several separated by `;`.
//! Days are `Mon`, `Mon-Fri` or `Sat,Sun` and default to every day; the time defaults to the whole day; a
//! range such as `22:00-06:00` runs into the next morning. Times are local to the production's timezone.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{DateTime, Time, Weekday};

use crate::config::units::FormatError;

/// A set of windows within the week.
#[derive(Clone, PartialEq, Eq)]
pub struct Hours {
    text: String,
    windows: Vec<Window>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    /// Monday first.
    days: [bool; 7],
    from: Time,
    /// Exclusive; equal to `from` means the whole day.
    to: Time,
}

const DAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

impl Hours {
    /// Whether a moment, in local time, lies within.
    pub fn contains(&self, local: DateTime) -> bool {
        self.windows.iter().any(|window| window.contains(local))
    }
}

impl Window {
    fn contains(&self, local: DateTime) -> bool {
        let on = |day: Weekday| {
            let index = usize::try_from(day.to_monday_zero_offset()).unwrap_or_default();
            self.days.get(index).copied().unwrap_or_default()
        };
        let (today, time) = (local.weekday(), local.time());
        if self.from == self.to {
            return on(today);
        }
        if self.from < self.to {
            return on(today) && time >= self.from && time < self.to;
        }
        (on(today) && time >= self.from) || (on(today.previous()) && time < self.to)
    }
}

impl FromStr for Hours {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let wrong = || FormatError("expected hours such as \"Mon-Fri 07:00-19:00; Sat 08:00-12:00\"".into());
        let windows: Option<Vec<_>> = text.split(';').map(window).collect();
        Ok(Hours { text: text.to_owned(), windows: windows.ok_or_else(wrong)? })
    }
}

fn window(text: &str) -> Option<Window> {
    let mut days = [true; 7];
    let (mut from, mut to) = (Time::midnight(), Time::midnight());
    let words: Vec<_> = text.split_whitespace().collect();
    let times = match words.as_slice() {
        [word] if word.contains(':') => Some(*word),
        [word] => {
            days = day_set(word)?;
            None
        }
        [first, second] => {
            days = day_set(first)?;
            Some(*second)
        }
        _ => return None,
    };
    if let Some(times) = times {
        let (start, end) = times.split_once('-')?;
        from = clock(start)?;
        to = if end == "24:00" { Time::midnight() } else { clock(end)? };
        if from == to && end != "24:00" {
            return None;
        }
    }
    Some(Window { days, from, to })
}

fn day_set(text: &str) -> Option<[bool; 7]> {
    let number = |name: &str| DAYS.iter().position(|(known, _)| name.eq_ignore_ascii_case(known));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        let mut day = first;
        loop {
            *days.get_mut(day)? = true;
            if day == last {
                break;
            }
            day = (day + 1) % 7;
        }
    }
    Some(days)
}

fn clock(text: &str) -> Option<Time> {
    let (hour, minute) = text.split_once(':')?;
    if hour.len() > 2 || minute.len() != 2 {
        return None;
    }
    Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    fn check(hours: &str, day: i8, hour: i8, expect: bool) {
        // 2 November 2026 is a Monday.
        let local = date(2026, 11, day).at(hour, 30, 0, 0);
        assert_eq!(hours.parse::<Hours>().unwrap().contains(local), expect, "{hours} {local}");
    }

    #[test]
    fn hours_hold_on_their_days_and_run_over_midnight() {
        check("Mon-Fri 07:00-19:00", 2, 7, true);
        check("Mon-Fri 07:00-19:00", 2, 19, false);
        check("Mon-Fri 07:00-19:00", 7, 12, false);
        check("Mon-Fri 07:00-19:00; Sat 08:00-14:00", 7, 12, true);
        check("Fri-Mon", 8, 3, true);
        check("Sat,Sun", 6, 3, false);
        check("22:00-06:00", 4, 23, true);
        check("Fri 22:00-06:00", 7, 5, true);
        check("Fri 22:00-06:00", 8, 5, false);
        check("Mon 20:00-24:00", 2, 23, true);
        check("Mon 20:00-24:00", 3, 1, false);
    }

    #[test]
    fn what_is_no_hours_is_refused() {
        for text in
            ["", "Mo-Fr", "Mon-Fri 7", "Mon 25:00-26:00", "07:00-07:00", "Mon Tue 07:00-08:00", "Mon;"]
        {
            assert!(text.parse::<Hours>().is_err(), "{text}");
        }
    }
}
