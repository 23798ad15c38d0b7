//! Whether, when and with which codes one message is answered: the setting `ack` and the message's header
//! (HL7 v2.5.1 §2.9.2: original mode where MSH-15 and MSH-16 are both empty, else enhanced mode; Table 0155).

use septet_hl7::ack::AckCode;
use septet_hl7::{Message, Path};

use super::policy::AckMode;

/// How one message is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Not at all.
    Silent,
    /// One answer with AA, AE or AR: once stored, or after the reply.
    Original {
        /// After the reply.
        after_reply: bool,
    },
    /// A commit answer with CA, CE or CR once stored, and an application answer after the reply.
    Enhanced {
        /// MSH-15.
        commit: When,
        /// MSH-16.
        application: When,
    },
}

/// HL7 Table 0155.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// AL.
    Always,
    /// ER.
    OnError,
    /// SU.
    OnSuccess,
    /// NE.
    Never,
}

impl When {
    /// Whether an answer of this code is wanted.
    pub(super) fn wants(self, code: AckCode) -> bool {
        match self {
            When::Always => true,
            When::OnError => !code.is_positive(),
            When::OnSuccess => code.is_positive(),
            When::Never => false,
        }
    }

    /// Beside a field that is set, an empty one means never; a value that the table does not have is taken
    /// for a wish to be answered.
    fn of(text: &str) -> Self {
        match text.trim() {
            "" | "NE" => When::Never,
            "ER" => When::OnError,
            "SU" => When::OnSuccess,
            _ => When::Always,
        }
    }
}

impl Mode {
    /// `message` is `None` for bytes without a readable header.
    pub(super) fn of(ack: AckMode, message: Option<&Message>) -> Self {
        let immediate = Mode::Original { after_reply: false };
        if ack == AckMode::Never {
            return Mode::Silent;
        }
        let Some(message) = message else { return immediate };
        // Answering acknowledgements could go on for ever.
        if matches!(value(message, "MSH-9.1").as_str(), "ACK" | "MCF") {
            return Mode::Silent;
        }
        match ack {
            AckMode::Never => Mode::Silent,
            AckMode::Immediate => immediate,
            AckMode::Application => Mode::Original { after_reply: true },
            AckMode::Msh => match (value(message, "MSH-15"), value(message, "MSH-16")) {
                (commit, application) if commit.is_empty() && application.is_empty() => immediate,
                (commit, application) => {
                    Mode::Enhanced { commit: When::of(&commit), application: When::of(&application) }
                }
            },
        }
    }

    /// Within a batch all messages are answered in one frame, so there is no second, later answer.
    pub(super) fn in_batch(self) -> Self {
        match self {
            Mode::Enhanced { commit, .. } => Mode::Enhanced { commit, application: When::Never },
            other => other,
        }
    }

    /// Whether the service waits for a reply.
    pub(super) fn wants_reply(self) -> bool {
        match self {
            Mode::Silent => false,
            Mode::Original { after_reply } => after_reply,
            Mode::Enhanced { application, .. } => application != When::Never,
        }
    }

    /// The code of the answer that may leave once the message is stored; `None` where none is wanted then.
    pub(super) fn first(self, outcome: AckCode) -> Option<AckCode> {
        match self {
            Mode::Silent => None,
            // What is refused has no reply to wait for.
            Mode::Original { after_reply } => (!after_reply || !outcome.is_positive()).then_some(outcome),
            Mode::Enhanced { commit, .. } => Some(outcome.commit()).filter(|code| commit.wants(*code)),
        }
    }

    /// Whether the answer after the reply is wanted, given its code.
    pub(super) fn wants_later(self, code: AckCode) -> bool {
        match self {
            Mode::Silent => false,
            Mode::Original { after_reply } => after_reply,
            Mode::Enhanced { application, .. } => application.wants(code),
        }
    }
}

fn value(message: &Message, path: &str) -> String {
    message.get(&path.parse::<Path>().expect("a valid path"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn mode(ack: AckMode, kind: &str, msh_15: &str, msh_16: &str) -> Mode {
        let text = format!("MSH|^~\\&|A|B|C|D|||{kind}|1|P|2.5|||{msh_15}|{msh_16}\r");
        Mode::of(ack, Some(&Message::parse(Bytes::from(text)).unwrap()))
    }

    #[test]
    fn acknowledgements_are_never_answered_in_any_mode() {
        for ack in [AckMode::Immediate, AckMode::Application, AckMode::Msh, AckMode::Never] {
            assert_eq!(mode(ack, "ACK^A01", "AL", "AL"), Mode::Silent);
            assert_eq!(mode(ack, "MCF", "", ""), Mode::Silent);
        }
    }

    #[test]
    fn only_msh_looks_at_what_the_header_asks_for() {
        assert_eq!(mode(AckMode::Immediate, "ADT", "NE", "NE"), Mode::Original { after_reply: false });
        assert_eq!(mode(AckMode::Application, "ADT", "NE", "NE"), Mode::Original { after_reply: true });
        assert_eq!(mode(AckMode::Msh, "ADT", "", ""), Mode::Original { after_reply: false });
        let enhanced = mode(AckMode::Msh, "ADT", "ER", "");
        assert_eq!(enhanced.first(AckCode::AA), None);
        assert_eq!(enhanced.first(AckCode::AE), Some(AckCode::CE));
        assert!(!enhanced.wants_reply());
        let both = mode(AckMode::Msh, "ADT", "AL", "SU");
        assert_eq!(both.first(AckCode::AA), Some(AckCode::CA));
        assert!(both.wants_reply() && both.wants_later(AckCode::AA) && !both.wants_later(AckCode::AE));
        assert!(!both.in_batch().wants_reply());
        assert_eq!(mode(AckMode::Msh, "ADT", "NE", "NE").first(AckCode::AR), None);
    }
}
