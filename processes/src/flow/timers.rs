//! The time of a flow: delays, timeouts, and which moment a value means. There is no clock but the job's.

use jiff::{SignedDuration, Timestamp};
use rquickjs::Value;
use septet_engine::config::units::DurationText;
use septet_engine::process::Effect;

use super::instance::Wait;
use super::run::{Machine, Step};
use crate::script::raised::Raised;
use crate::time;

impl<'js> Machine<'_, '_, 'js> {
    pub(super) fn after(&self, milliseconds: u64) -> Timestamp {
        let span = SignedDuration::from_millis(i64::try_from(milliseconds).unwrap_or(i64::MAX));
        self.scene.stage.job.now.saturating_add(span).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn start_timer(&mut self, at: Timestamp) -> u64 {
        self.timers_made += 1;
        self.scene.effects.push(Effect::Timer { timer: self.timers_made, at });
        self.timers_made
    }

    pub(super) fn delay(&mut self, until: Timestamp) -> Step {
        if until <= self.scene.stage.job.now {
            return Step::On;
        }
        Step::Wait(Wait::Timer(self.start_timer(until)))
    }

    /// The point in time that a value means: a date, milliseconds, a text; a text may also be a duration.
    pub(super) fn moment(&self, value: &Value<'js>, at: &str) -> Result<Timestamp, Raised> {
        let milliseconds = match value.as_number() {
            Some(number) => Some(number),
            None => self.scene.guarded(at, || self.scene.helpers.time_of(value))?,
        };
        let text = match value.as_string() {
            Some(text) => Some(self.scene.guarded(at, || text.to_string())?),
            None => None,
        };
        let moment = match (milliseconds, text) {
            (Some(milliseconds), _) => time::from_milliseconds(milliseconds),
            (None, Some(text)) => match text.parse::<DurationText>() {
                Ok(duration) => {
                    Some(self.after(u64::try_from(duration.get().as_millis()).unwrap_or(u64::MAX)))
                }
                Err(_) => time::from_text(&text, self.scene.stage.engine.timezone()),
            },
            (None, None) => None,
        };
        let none = || Raised::engine("script", "script", self.scene.place(&format!("{at}: this is no time")));
        moment.ok_or_else(none)
    }
}
