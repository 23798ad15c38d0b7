//! HL7 v2 messages as Septet needs them: bytes in, bytes out. No I/O, no clock, no runtime.
//!
//! Three rules shape everything here. *Bytes are sacred*: a [`Message`] keeps what arrived and gives it back
//! byte for byte; an edit re-emits every segment it did not touch as it was. *Lenient in, strict out*: anything
//! with a readable MSH is a message, what is odd about it is a [`Finding`], what we build follows the standard.
//! *No patient data in errors*: error texts, findings and `Debug` name places (segment, field, offset), never content.
//!
//! ```
//! use septet_hl7::Message;
//!
//! let raw = "MSH|^~\\&|LAB|H1|||20260101||ORU^R01|42|P|2.5\rPID|1||123^^^H^MR||Doe\\T\\Co^Jane\r";
//! let message = Message::parse(raw.into())?;
//! assert_eq!(message.message_type(), "ORU^R01");
//! assert_eq!(message.value("PID-3.1")?, "123");
//! assert_eq!(message.value("PID-5.1")?, "Doe&Co");
//!
//! let edited = message.set(&"PID-8".parse()?, "F")?;
//! assert_eq!(edited.raw(), &raw.replace("Jane", "Jane|||F"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | to | look in |
//! |---|---|
//! | read fields | [`Message`], [`Path`], [`Segment`] |
//! | change fields | [`Editor`] |
//! | find frames on a socket | [`mllp`] |
//! | answer | [`ack`] |
//! | split files and batches | [`batch`] |
//! | turn bytes into text | [`charset`], [`escape`] |

pub mod ack;
pub mod batch;
pub mod charset;
mod delimiters;
mod edit;
pub mod escape;
mod finding;
mod iso2022;
mod message;
pub mod mllp;
mod path;
mod segment;

pub use charset::Charset;
pub use delimiters::{Delimiters, HeaderError};
pub use edit::{EditError, Editor};
pub use finding::Finding;
pub use message::{Message, ParseError};
pub use path::{FieldPath, GroupStep, Index, Path, PathError};
pub use segment::Segment;
