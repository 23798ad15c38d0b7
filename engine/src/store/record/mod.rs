//! Transactions as the journal writes them. A batch's payload is a list of transactions, each a list of
//! fields (see [`super::codec`]); an operation is a required field, so that a version which does not know
//! it refuses instead of folding half of a transaction.
//!
//! | in | tags |
//! |---|---|
//! | payload | 1 transaction, 2 reservation of ids: the first id not reserved, 3 lost: how many frames a repair put this one in place of, 4 padding |
//! | transaction | 1 sequence, 2 time, then operations in order: 16 body, 17 header, 18 move, 19 event, 20 keep, 21 carried header, 22 expired sessions |
//! | body | 1 id, 2 type, 3 content type, 4 charset, 5 CRC-32 of the bytes as stored, 6 bytes |
//! | header | 1 id, 2 session, 3 kind, 4 request, 5 caused by, 6 resent from, 7 source, 8 target, 9 type, 10 control id, 11 status, 12 error, 13 attempts, 14 created, 16 processed, 17 body, 18 size, 19 key, 20 reply to, 21 position, 22 order keys, 23 next attempt, 24 failing since, 25 unsolicited |
//! | move | 1 header, 2 to, 3 error, 4 error cleared, 5 attempts, 6 next attempt, 7 failing since |
//! | event | 1 id, 2 time, 3 level, 4 kind, 5 item, 6 session, 7 message, 8 who, 9 text, 10 detail |
//! | keep | 1 family, 2 key, 3 value, 4 removed |
//! | expired sessions | 1 last segment that may have rows of them, 2 their ids |
//! | error | 1 name, 2 code, 3 text, 4 detail |
//! | key | 1 name, 2 value |
//! | reply to | 1 service, 2 instance, 3 call |
//!
//! Sealed (tag 15) at any setting: values of `keep`, except for families that hold no secret. With
//! `encrypt_bodies` also: bytes of bodies, search keys, and details. An absent field is the type's empty
//! value. Numbers of statuses, kinds and levels are those of [`STATUSES`] and the like and never change.

mod decode;
mod encode;

pub(in crate::store) use self::decode::{Entry, decode, decode_event, decode_header, decode_keep, open_body};
pub(in crate::store) use self::encode::{
    encode, encode_event, encode_header, encode_keep, encode_lost, encode_reservation,
};
use super::codec::DecodeError;
use crate::event::Level;
use crate::header::Status;
use crate::host::KeepFamily;
use crate::id::BodyId;
use crate::vault::{Vault, VaultError};

/// Statuses by their number on disk.
const STATUSES: [Status; 9] = [
    Status::Created,
    Status::Queued,
    Status::Delivered,
    Status::Completed,
    Status::Deferred,
    Status::Discarded,
    Status::Suspended,
    Status::Aborted,
    Status::Error,
];

const LEVELS: [Level; 3] = [Level::Info, Level::Warning, Level::Error];

const FAMILIES: [KeepFamily; 11] = [
    KeepFamily::ProcessState,
    KeepFamily::Instance,
    KeepFamily::Definition,
    KeepFamily::Token,
    KeepFamily::ItemControl,
    KeepFamily::Duplicate,
    KeepFamily::Plan,
    KeepFamily::ServerKey,
    KeepFamily::Service,
    KeepFamily::Counter,
    KeepFamily::Replay,
];

/// The number of a status on disk.
pub(in crate::store) fn status_number(status: Status) -> u8 {
    STATUSES.iter().position(|known| *known == status).unwrap_or_default() as u8
}

/// The number of a level on disk.
pub(in crate::store) fn level_number(level: Level) -> u8 {
    LEVELS.iter().position(|known| *known == level).unwrap_or_default() as u8
}

/// Why a record could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::store) enum RecordError {
    /// The bytes are not what this version writes.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A sealed value does not open.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// What is sealed, and with what.
#[derive(Clone, Debug)]
pub(in crate::store) struct Sealer {
    pub(in crate::store) vault: Vault,
    /// Seal bodies, search keys and details too.
    pub(in crate::store) bodies: bool,
}

/// Where a body's bytes were put, counted from the beginning of the payload.
#[derive(Debug)]
pub(in crate::store) struct Located {
    pub(in crate::store) id: BodyId,
    pub(in crate::store) offset: usize,
    pub(in crate::store) length: usize,
    pub(in crate::store) crc: u32,
    pub(in crate::store) sealed: bool,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::change::{Change, Commit};
    use super::super::codec::Encoder;
    use super::*;
    use crate::body::Body;
    use std::sync::Arc;

    use crate::event::Event;
    use crate::fault::Sensitive;
    use crate::id::{EventId, MessageId};

    fn sealer(bodies: bool) -> Sealer {
        Sealer { vault: Vault::ephemeral().unwrap(), bodies }
    }

    fn commit() -> Commit {
        let event = Event {
            id: EventId(3),
            at: "2026-11-22T08:00:00.000001Z".parse().unwrap(),
            level: Level::Error,
            kind: "alert".into(),
            item: None,
            session: None,
            message_id: Some(MessageId(0)),
            who: None,
            text: String::new(),
            detail: Some(Sensitive("a detail".into())),
        };
        let body = Body::new("ADT^A01", "application/hl7-v2", Some("utf-8"), Bytes::from_static(b"MSH|"));
        let changes = vec![
            Change::Body(BodyId(2), body),
            Change::Event(Arc::new(event)),
            Change::Keep(KeepFamily::Token, "vendor".into(), Some(Bytes::from_static(b"token"))),
        ];
        Commit { sequence: 1 << 40, at: "1969-01-01T00:00:00Z".parse().unwrap(), changes }
    }

    fn entries(bytes: &[u8], vault: &Vault) -> Result<Vec<Entry>, RecordError> {
        let mut entries = Vec::new();
        decode(bytes, 1, 100, vault, |entry| entries.push(entry))?;
        Ok(entries)
    }

    #[test]
    fn what_is_written_reads_back_sealed_or_not() {
        for bodies in [false, true] {
            let (sealer, mut out, mut located) = (sealer(bodies), Encoder::default(), Vec::new());
            encode_reservation(77, &mut out);
            encode(&commit(), &sealer, &mut out, &mut located).unwrap();
            let bytes = out.slices().concat();
            for clear in ["token", "a detail", "MSH|"] {
                let found = bytes.windows(clear.len()).any(|window| window == clear.as_bytes());
                assert_eq!(found, !bodies && clear != "token", "{clear}");
            }
            let mut entries = entries(&bytes, &sealer.vault).unwrap();
            let Some(Entry::Commit(found, places)) = entries.pop() else { panic!() };
            assert!(matches!(entries.pop(), Some(Entry::Reservation(77))));
            let (id, place) = places[0];
            assert_eq!((id, place.sealed, place.crc), (BodyId(2), bodies, located[0].crc));
            assert_eq!(place.offset as usize, 100 + located[0].offset);
            let stored = bytes[located[0].offset..located[0].offset + located[0].length].to_vec();
            assert_eq!(&open_body(stored, bodies, &sealer.vault).unwrap()[..], b"MSH|");
            // Bodies are read from their places; all else is equal.
            let text = |commit: &Commit| format!("{:?}", &commit.changes[1..]);
            assert_eq!((found.sequence, found.at, text(&found)), (1 << 40, commit().at, text(&commit())));
        }
    }

    #[test]
    fn an_operation_of_a_newer_version_is_refused_and_an_optional_field_is_skipped() {
        for (required, expected) in [(true, false), (false, true)] {
            let mut out = Encoder::default();
            let transaction = out.begin(1, true);
            out.number(1, 9);
            let operation = out.begin(60, required);
            out.text(1, "from the future");
            out.end(operation);
            out.end(transaction);
            let read = entries(&out.slices().concat(), &sealer(false).vault);
            assert_eq!(read.is_ok(), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let vault = sealer(false).vault;
            let _ = entries(&bytes, &vault);
        }

        #[test]
        fn altered_transactions_never_make_reading_panic(at in 0usize..200, byte: u8) {
            let (sealer, mut out, mut located) = (sealer(false), Encoder::default(), Vec::new());
            encode(&commit(), &sealer, &mut out, &mut located).unwrap();
            let mut bytes = out.slices().concat();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            let _ = entries(&bytes, &sealer.vault);
        }
    }
}
