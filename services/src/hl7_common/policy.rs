//! The settings that all HL7 services have. Each service names them in its own settings struct, so that a
//! mistake is reported where it stands, and hands them over as [`Written`], of which a [`Policy`] is made.

use std::time::Duration;

use schemars::JsonSchema;
use septet_engine::config::build::Build;
use septet_engine::config::problem::did_you_mean;
use septet_engine::config::units::{ByteSize, DurationText};
use septet_hl7::Charset;
use serde::{Deserialize, Serialize};

/// When a message is answered, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AckMode {
    /// As soon as it is on stable storage. MSH-15 and MSH-16 are ignored, codes are AA, AE, AR.
    #[default]
    Immediate,
    /// After the target's reply: its acknowledgement, or one made from what became of the message.
    Application,
    /// As MSH-15 and MSH-16 ask; where both are empty as `immediate`.
    Msh,
    /// Not at all.
    Never,
}

/// What happens to a message that has been here before (same MSH-3, MSH-4, MSH-10 and bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DuplicatePolicy {
    /// It is a message like any other.
    Accept,
    /// It gets the answer that the first one got, and is not processed again.
    AnswerAgain,
    /// It is refused with AE.
    Refuse,
}

/// What a service does while the store takes no messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenUnavailable {
    /// Answers AR once, closes, and stops accepting until the store takes messages again.
    #[default]
    Pause,
    /// Answers AR each time.
    Answer,
}

/// What a message must have to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Validate {
    /// A readable MSH.
    #[default]
    None,
    /// Also MSH-9 and MSH-10.
    Header,
}

/// How the messages of a batch belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchMode {
    /// All messages of a batch are one session.
    #[default]
    SingleSession,
    /// Each message of a batch is a session of its own.
    MultiSession,
}

/// The settings of one HL7 service, as they are written.
#[derive(Debug)]
pub struct Written<'a> {
    /// `ack`.
    pub ack: AckMode,
    /// `reply_timeout`.
    pub reply_timeout: DurationText,
    /// `duplicates`.
    pub duplicates: Option<DuplicatePolicy>,
    /// `duplicate_window`.
    pub duplicate_window: DurationText,
    /// `validate`.
    pub validate: Validate,
    /// `batch`.
    pub batch: BatchMode,
    /// `charset`.
    pub charset: &'a str,
    /// `max_message`.
    pub max_message: ByteSize,
}

/// The settings of one HL7 service, checked.
#[derive(Debug, Clone)]
pub struct Policy {
    /// `ack`.
    pub ack: AckMode,
    /// `reply_timeout`.
    pub reply_timeout: Duration,
    /// `duplicates`.
    pub duplicates: DuplicatePolicy,
    /// `duplicate_window`.
    pub duplicate_window: Duration,
    /// `validate`.
    pub validate: Validate,
    /// `batch`.
    pub batch: BatchMode,
    /// `charset` for empty MSH-18; `None` = from the bytes.
    pub charset: Option<Charset>,
    /// `max_message`, for the text of its refusal.
    pub max_message: u64,
}

impl Written<'_> {
    /// What they mean; what is wrong with them is reported.
    pub fn check(&self, build: &mut Build<'_>) -> Option<Policy> {
        charset(build, self.charset).map(|charset| self.policy(charset))
    }

    pub(crate) fn policy(&self, charset: Option<Charset>) -> Policy {
        // A sender that waits for a reply asks again when it does not come.
        let duplicates = match self.ack {
            AckMode::Application => DuplicatePolicy::AnswerAgain,
            _ => DuplicatePolicy::Accept,
        };
        Policy {
            ack: self.ack,
            reply_timeout: self.reply_timeout.get(),
            duplicates: self.duplicates.unwrap_or(duplicates),
            duplicate_window: self.duplicate_window.get(),
            validate: self.validate,
            batch: self.batch,
            charset,
            max_message: self.max_message.get(),
        }
    }
}

/// Checks the setting `charset`: `auto`, or a name of HL7 Table 0211. `None` after an error was reported.
fn charset(build: &mut Build<'_>, name: &str) -> Option<Option<Charset>> {
    if name == "auto" {
        return Some(None);
    }
    let found = Charset::from_name(name);
    if found.is_none() {
        let known = ["auto", "ASCII", "8859/1", "8859/2", "8859/9", "8859/15", "UNICODE UTF-8"];
        let suggestion = did_you_mean(name, known);
        let suggestion = suggestion.or(Some("use a name of HL7 Table 0211 such as \"8859/1\"".into()));
        build.error("S0355", &["charset".into()], "this is no charset known here", suggestion);
    }
    found.map(Some)
}
