//! What services do where their settings say nothing (CONTRACT §2.1): the values that several classes share.

use septet_engine::config::units::{ByteSize, DurationText};

/// `path`.
pub(crate) fn root() -> String {
    "/".to_owned()
}

/// `reply_timeout`, `frame_timeout`, `request_timeout`.
pub(crate) fn half_a_minute() -> DurationText {
    DurationText::secs(30)
}

/// `duplicate_window`.
pub(crate) fn a_day() -> DurationText {
    DurationText::secs(24 * 3600)
}

/// `max_message`.
pub(crate) fn max_message() -> ByteSize {
    ByteSize::mib(64)
}

/// `max_connections`.
pub(crate) fn max_connections() -> u32 {
    1024
}

/// `charset`.
pub(crate) fn auto() -> String {
    "auto".to_owned()
}
