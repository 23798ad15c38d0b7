//! Transactions as the journal writes them. A batch's payload is a list of transactions, each a list of
//! fields (see [`super::codec`]); an operation is a required field, so that a version which does not know
//! it refuses instead of folding half of a transaction.
//!
//! | in | tags |
//! |---|---|
//! | payload | 1 transaction, 2 reservation of ids: the first id not reserved |
//! | transaction | 1 sequence, 2 time, then operations in order: 16 body, 17 header, 18 move, 19 event, 20 keep |
//! | body | 1 id, 2 type, 3 content type, 4 charset, 5 CRC-32 of the bytes as stored, 6 bytes |
//! | header | 1 id, 2 session, 3 kind, 4 request, 5 caused by, 6 resent from, 7 source, 8 target, 9 type, 10 control id, 11 status, 12 error, 13 attempts, 14 created, 16 processed, 17 body, 18 size, 19 key, 20 reply to, 21 position, 22 order keys, 23 next attempt, 24 failing since, 25 unsolicited |
//! | move | 1 header, 2 to, 3 error, 4 error cleared, 5 attempts, 6 next attempt, 7 failing since |
//! | event | 1 id, 2 time, 3 level, 4 kind, 5 item, 6 session, 7 message, 8 who, 9 text, 10 detail |
//! | keep | 1 family, 2 key, 3 value, 4 removed |
//! | error | 1 name, 2 code, 3 text, 4 detail |
//! | key | 1 name, 2 value |
//! | reply to | 1 service, 2 instance, 3 call |
//!
//! Sealed (tag 15) at any setting: values of `keep`, except for families that hold no secret. With
//! `encrypt_bodies` also: bytes of bodies, search keys, and details. An absent field is the type's empty
//! value. Numbers of statuses, kinds and levels are those of [`STATUSES`] and the like and never change.

use std::sync::Arc;

use bytes::Bytes;

use super::bodies::Place;
use super::change::{Change, Commit, Move};
use super::codec::{DecodeError, Encoder, Field, Fields, SEALED};
use crate::body::Body;
use crate::event::{Event, Level};
use crate::fault::{Fault, Sensitive};
use crate::header::{Header, Kind, ReplyTo, Status};
use crate::host::KeepFamily;
use crate::id::{BodyId, EventId, ItemName, MessageId, SessionId};
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

const FAMILIES: [KeepFamily; 10] = [
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
];

/// Why a record could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// The bytes are not what this version writes.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A sealed value does not open.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// What is sealed, and with what.
#[derive(Clone, Debug)]
pub(super) struct Sealer {
    pub(super) vault: Vault,
    /// Seal bodies, search keys and details too.
    pub(super) bodies: bool,
}

/// Where a body's bytes were put, counted from the beginning of the payload.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) id: BodyId,
    pub(super) offset: usize,
    pub(super) length: usize,
    pub(super) crc: u32,
    pub(super) sealed: bool,
}

// === Writing ===

/// Reserves the ids below `limit`.
pub(super) fn encode_reservation(limit: u64, out: &mut Encoder) {
    out.number(2, limit);
}

/// Writes a transaction and says where its bodies are.
pub(super) fn encode(
    commit: &Commit,
    sealer: &Sealer,
    out: &mut Encoder,
    located: &mut Vec<Located>,
) -> Result<(), VaultError> {
    let transaction = out.begin(1, true);
    out.number(1, commit.sequence);
    out.time(2, commit.at);
    for change in &commit.changes {
        match change {
            Change::Body(id, body) => {
                let nested = out.begin(16, true);
                located.push(encode_body(*id, body, sealer, out)?);
                out.end(nested);
            }
            Change::Header(header) => {
                let nested = out.begin(17, true);
                encode_header(header, sealer, out)?;
                out.end(nested);
            }
            Change::Move(change) => {
                let nested = out.begin(18, true);
                encode_move(change, sealer, out)?;
                out.end(nested);
            }
            Change::Event(event) => {
                let nested = out.begin(19, true);
                encode_event(event, sealer, out)?;
                out.end(nested);
            }
            Change::Keep(family, key, value) => {
                let nested = out.begin(20, true);
                out.number(1, *family as u64);
                out.text(2, key);
                match value {
                    None => out.flag(4, true),
                    Some(value) => sealed_if(is_secret(*family), sealer, out, |out| {
                        out.shared(3, value);
                    })?,
                }
                out.end(nested);
            }
        }
    }
    out.end(transaction);
    Ok(())
}

/// Families whose values would give something away: production files and scripts may hold secrets, too.
fn is_secret(family: KeepFamily) -> bool {
    !matches!(family, KeepFamily::Counter | KeepFamily::ItemControl)
}

/// Writes fields in clear, or sealed.
fn sealed_if(
    seal: bool,
    sealer: &Sealer,
    out: &mut Encoder,
    fields: impl FnOnce(&mut Encoder),
) -> Result<(), VaultError> {
    if !seal {
        fields(out);
        return Ok(());
    }
    let mut clear = Encoder::default();
    fields(&mut clear);
    if clear.length() > 0 {
        out.shared(SEALED, &Bytes::from(sealer.vault.seal(&clear.slices().concat())?));
    }
    Ok(())
}

fn encode_body(id: BodyId, body: &Body, sealer: &Sealer, out: &mut Encoder) -> Result<Located, VaultError> {
    out.number(1, id.0);
    out.text(2, body.type_name());
    out.text(3, body.content_type());
    if let Some(charset) = body.charset() {
        out.text(4, charset);
    }
    let (tag, bytes) = match sealer.bodies {
        false => (6, body.bytes().clone()),
        true => {
            let mut clear = Encoder::default();
            clear.shared(6, body.bytes());
            (SEALED, Bytes::from(sealer.vault.seal(&clear.slices().concat())?))
        }
    };
    let crc = crc32fast::hash(&bytes);
    out.number(5, u64::from(crc));
    let offset = out.shared(tag, &bytes);
    Ok(Located { id, offset, length: bytes.len(), crc, sealed: sealer.bodies })
}

fn encode_header(header: &Header, sealer: &Sealer, out: &mut Encoder) -> Result<(), VaultError> {
    out.number(1, header.id.0);
    out.number(2, header.session.0);
    out.flag(3, header.kind == Kind::Response);
    for (tag, id) in [(4, header.request_id), (5, header.caused_by), (6, header.resent_from)] {
        if let Some(id) = id {
            out.number(tag, id.0);
        }
    }
    out.text(7, header.source.as_str());
    if let Some(target) = &header.target {
        out.text(8, target.as_str());
    }
    out.text(9, &header.type_name);
    out.text(10, &header.control_id);
    out.number(11, number_of(&STATUSES, header.status));
    if let Some(error) = &header.error {
        encode_fault(12, error, sealer, out)?;
    }
    if header.attempts > 0 {
        out.number(13, u64::from(header.attempts));
    }
    out.time(14, header.created);
    if let Some(processed) = header.processed {
        out.time(16, processed);
    }
    if let Some(body) = header.body_id {
        out.number(17, body.0);
        out.number(18, header.size);
    }
    sealed_if(sealer.bodies, sealer, out, |out| {
        for (name, value) in header.keys.iter() {
            let nested = out.begin(19, false);
            out.text(1, name);
            out.text(2, value);
            out.end(nested);
        }
    })?;
    match &header.reply_to {
        ReplyTo::Nobody => {}
        ReplyTo::Service => {
            let nested = out.begin(20, false);
            out.flag(1, true);
            out.end(nested);
        }
        ReplyTo::Call { instance, call } => {
            let nested = out.begin(20, false);
            out.number(2, instance.0);
            out.number(3, *call);
            out.end(nested);
        }
    }
    out.number(21, header.position);
    if !header.order_keys.is_empty() {
        let keys: Vec<u8> = header.order_keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        out.bytes(22, &keys);
    }
    if let Some(at) = header.next_attempt {
        out.time(23, at);
    }
    if let Some(at) = header.failing_since {
        out.time(24, at);
    }
    out.flag(25, header.unsolicited);
    Ok(())
}

fn encode_move(change: &Move, sealer: &Sealer, out: &mut Encoder) -> Result<(), VaultError> {
    out.number(1, change.id.0);
    out.number(2, number_of(&STATUSES, change.to));
    match &change.error {
        None => {}
        Some(Some(error)) => encode_fault(3, error, sealer, out)?,
        Some(None) => out.flag(4, true),
    }
    if let Some(attempts) = change.attempts {
        out.number(5, u64::from(attempts));
    }
    if let Some(at) = change.next_attempt {
        out.time(6, at);
    }
    if let Some(at) = change.failing_since {
        out.time(7, at);
    }
    Ok(())
}

fn encode_event(event: &Event, sealer: &Sealer, out: &mut Encoder) -> Result<(), VaultError> {
    out.number(1, event.id.0);
    out.time(2, event.at);
    out.number(3, number_of(&LEVELS, event.level));
    out.text(4, &event.kind);
    if let Some(item) = &event.item {
        out.text(5, item.as_str());
    }
    if let Some(session) = event.session {
        out.number(6, session.0);
    }
    if let Some(message) = event.message_id {
        out.number(7, message.0);
    }
    if let Some(who) = &event.who {
        out.text(8, who);
    }
    out.text(9, &event.text);
    encode_detail(10, event.detail.as_ref(), sealer, out)
}

fn encode_fault(tag: u64, fault: &Fault, sealer: &Sealer, out: &mut Encoder) -> Result<(), VaultError> {
    let nested = out.begin(tag, false);
    out.text(1, &fault.name);
    out.text(2, &fault.code);
    out.text(3, &fault.text);
    encode_detail(4, fault.detail.as_ref(), sealer, out)?;
    out.end(nested);
    Ok(())
}

fn encode_detail(
    tag: u64,
    detail: Option<&Sensitive>,
    sealer: &Sealer,
    out: &mut Encoder,
) -> Result<(), VaultError> {
    let Some(Sensitive(detail)) = detail else { return Ok(()) };
    sealed_if(sealer.bodies, sealer, out, |out| out.text(tag, detail))
}

fn number_of<T: PartialEq>(all: &[T], one: T) -> u64 {
    all.iter().position(|known| *known == one).map_or(0, |index| index as u64)
}

// === Reading ===

/// What a payload holds.
#[derive(Debug)]
pub(super) enum Entry {
    /// A transaction, and where its bodies are (segment and offsets within the file).
    Commit(Commit, Vec<(BodyId, Place)>),
    /// Ids below are reserved.
    Reservation(u64),
}

/// Reads a payload that begins at `offset` of the file of a segment. Bodies come without their bytes.
pub(super) fn decode(
    payload: &[u8],
    segment: u64,
    offset: usize,
    vault: &Vault,
    mut entry: impl FnMut(Entry),
) -> Result<(), RecordError> {
    for field in Fields::new(payload, offset) {
        let field = field?;
        match field.tag {
            1 => {
                let (commit, places) = decode_commit(field, segment, vault)?;
                entry(Entry::Commit(commit, places));
            }
            2 => entry(Entry::Reservation(field.number()?)),
            _ => field.skip()?,
        }
    }
    Ok(())
}

fn decode_commit(
    field: Field<'_>,
    segment: u64,
    vault: &Vault,
) -> Result<(Commit, Vec<(BodyId, Place)>), RecordError> {
    let mut commit = Commit { sequence: 0, at: jiff::Timestamp::UNIX_EPOCH, changes: Vec::new() };
    let mut places = Vec::new();
    for field in field.fields() {
        let field = field?;
        let change = match field.tag {
            1 => {
                commit.sequence = field.number()?;
                continue;
            }
            2 => {
                commit.at = field.time()?;
                continue;
            }
            16 => {
                let (id, body, place) = decode_body(field, segment)?;
                places.push((id, place));
                Change::Body(id, body)
            }
            17 => Change::Header(Box::new(decode_header(field, vault)?)),
            18 => Change::Move(decode_move(field, vault)?),
            19 => Change::Event(Box::new(decode_event(field, vault)?)),
            20 => decode_keep(field, vault)?,
            _ => {
                field.skip()?;
                continue;
            }
        };
        commit.changes.push(change);
    }
    Ok((commit, places))
}

/// Calls `each` for every field, those inside sealed ones included.
fn each_field(
    fields: Fields<'_>,
    vault: &Vault,
    each: &mut dyn FnMut(Field<'_>) -> Result<(), RecordError>,
) -> Result<(), RecordError> {
    for field in fields {
        let field = field?;
        if field.tag == SEALED {
            let clear = vault.open(field.value)?;
            each_field(Fields::new(&clear, 0), vault, each)?;
        } else {
            each(field)?;
        }
    }
    Ok(())
}

fn decode_body(field: Field<'_>, segment: u64) -> Result<(BodyId, Body, Place), RecordError> {
    let mut id = BodyId(0);
    let (mut type_name, mut content_type, mut charset) = ("", "", None);
    let mut place = Place { segment, offset: 0, length: 0, crc: 0, sealed: false };
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => id = BodyId(field.number()?),
            2 => type_name = field.text()?,
            3 => content_type = field.text()?,
            4 => charset = Some(field.text()?),
            5 => place.crc = field.small()?,
            6 | SEALED => {
                place.offset = field.offset as u64;
                place.length = u32::try_from(field.value.len()).map_err(|_| DecodeError::Malformed)?;
                place.sealed = field.tag == SEALED;
            }
            _ => field.skip()?,
        }
    }
    Ok((id, Body::new(type_name, content_type, charset, Bytes::new()), place))
}

/// The bytes of a body from what was stored for it.
pub(super) fn open_body(stored: Vec<u8>, sealed: bool, vault: &Vault) -> Result<Bytes, RecordError> {
    if !sealed {
        return Ok(Bytes::from(stored));
    }
    let clear = vault.open(&stored)?;
    for field in Fields::new(&clear, 0) {
        let field = field?;
        match field.tag {
            6 => return Ok(Bytes::copy_from_slice(field.value)),
            _ => field.skip()?,
        }
    }
    Err(DecodeError::Malformed.into())
}

fn decode_header(field: Field<'_>, vault: &Vault) -> Result<Header, RecordError> {
    let mut keys: Vec<(Arc<str>, String)> = Vec::new();
    let mut header = Header {
        id: MessageId(0),
        session: SessionId(0),
        kind: Kind::Request,
        request_id: None,
        caused_by: None,
        resent_from: None,
        source: ItemName::new(""),
        target: None,
        type_name: Arc::default(),
        control_id: Arc::default(),
        status: Status::Created,
        error: None,
        attempts: 0,
        created: jiff::Timestamp::UNIX_EPOCH,
        processed: None,
        body_id: None,
        size: 0,
        keys: Arc::default(),
        reply_to: ReplyTo::Nobody,
        position: 0,
        order_keys: Arc::default(),
        next_attempt: None,
        failing_since: None,
        unsolicited: false,
    };
    each_field(field.fields(), vault, &mut |field| {
        match field.tag {
            1 => header.id = MessageId(field.number()?),
            2 => header.session = SessionId(field.number()?),
            3 => header.kind = Kind::Response,
            4 => header.request_id = Some(MessageId(field.number()?)),
            5 => header.caused_by = Some(MessageId(field.number()?)),
            6 => header.resent_from = Some(MessageId(field.number()?)),
            7 => header.source = ItemName::new(field.text()?),
            8 => header.target = Some(ItemName::new(field.text()?)),
            9 => header.type_name = field.text()?.into(),
            10 => header.control_id = field.text()?.into(),
            11 => header.status = one_of(&STATUSES, &field)?,
            12 => header.error = Some(decode_fault(field, vault)?),
            13 => header.attempts = field.small()?,
            14 => header.created = field.time()?,
            16 => header.processed = Some(field.time()?),
            17 => header.body_id = Some(BodyId(field.number()?)),
            18 => header.size = field.number()?,
            19 => keys.push(decode_key(field)?),
            20 => header.reply_to = decode_reply_to(field)?,
            21 => header.position = field.number()?,
            22 => header.order_keys = decode_order_keys(field),
            23 => header.next_attempt = Some(field.time()?),
            24 => header.failing_since = Some(field.time()?),
            25 => header.unsolicited = true,
            _ => field.skip()?,
        }
        Ok(())
    })?;
    header.keys = keys.into();
    Ok(header)
}

fn decode_key(field: Field<'_>) -> Result<(Arc<str>, String), RecordError> {
    let (mut name, mut value) = (Arc::default(), String::new());
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => name = field.text()?.into(),
            2 => value = field.string()?,
            _ => field.skip()?,
        }
    }
    Ok((name, value))
}

fn decode_reply_to(field: Field<'_>) -> Result<ReplyTo, RecordError> {
    let (mut instance, mut number) = (None, 0);
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => {}
            2 => instance = Some(MessageId(field.number()?)),
            3 => number = field.number()?,
            _ => field.skip()?,
        }
    }
    Ok(instance.map_or(ReplyTo::Service, |instance| ReplyTo::Call { instance, call: number }))
}

fn decode_order_keys(field: Field<'_>) -> Arc<[u64]> {
    let (keys, _) = field.value.as_chunks::<8>();
    keys.iter().map(|key| u64::from_le_bytes(*key)).collect()
}

fn decode_move(field: Field<'_>, vault: &Vault) -> Result<Move, RecordError> {
    let mut change = Move {
        id: MessageId(0),
        to: Status::Created,
        error: None,
        attempts: None,
        next_attempt: None,
        failing_since: None,
    };
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => change.id = MessageId(field.number()?),
            2 => change.to = one_of(&STATUSES, &field)?,
            3 => change.error = Some(Some(decode_fault(field, vault)?)),
            4 => change.error = Some(None),
            5 => change.attempts = Some(field.small()?),
            6 => change.next_attempt = Some(field.time()?),
            7 => change.failing_since = Some(field.time()?),
            _ => field.skip()?,
        }
    }
    Ok(change)
}

fn decode_event(field: Field<'_>, vault: &Vault) -> Result<Event, RecordError> {
    let mut event = Event {
        id: EventId(0),
        at: jiff::Timestamp::UNIX_EPOCH,
        level: Level::Info,
        kind: String::new(),
        item: None,
        session: None,
        message_id: None,
        who: None,
        text: String::new(),
        detail: None,
    };
    each_field(field.fields(), vault, &mut |field| {
        match field.tag {
            1 => event.id = EventId(field.number()?),
            2 => event.at = field.time()?,
            3 => event.level = one_of(&LEVELS, &field)?,
            4 => event.kind = field.string()?,
            5 => event.item = Some(ItemName::new(field.text()?)),
            6 => event.session = Some(SessionId(field.number()?)),
            7 => event.message_id = Some(MessageId(field.number()?)),
            8 => event.who = Some(field.string()?),
            9 => event.text = field.string()?,
            10 => event.detail = Some(Sensitive(field.string()?)),
            _ => field.skip()?,
        }
        Ok(())
    })?;
    Ok(event)
}

fn decode_fault(field: Field<'_>, vault: &Vault) -> Result<Fault, RecordError> {
    let mut fault = Fault { name: String::new(), code: String::new(), text: String::new(), detail: None };
    each_field(field.fields(), vault, &mut |field| {
        match field.tag {
            1 => fault.name = field.string()?,
            2 => fault.code = field.string()?,
            3 => fault.text = field.string()?,
            4 => fault.detail = Some(Sensitive(field.string()?)),
            _ => field.skip()?,
        }
        Ok(())
    })?;
    Ok(fault)
}

fn decode_keep(field: Field<'_>, vault: &Vault) -> Result<Change, RecordError> {
    let (mut family, mut key, mut value) = (None, String::new(), Some(Bytes::new()));
    each_field(field.fields(), vault, &mut |field| {
        match field.tag {
            1 => {
                let number = field.number()?;
                family = FAMILIES.into_iter().find(|family| *family as u64 == number);
                // A family of a newer version: to ignore it would be to lose it.
                family.ok_or(DecodeError::Unknown(number))?;
            }
            2 => key = field.string()?,
            3 => value = Some(Bytes::copy_from_slice(field.value)),
            4 => value = None,
            _ => field.skip()?,
        }
        Ok(())
    })?;
    let family = family.ok_or(DecodeError::Malformed)?;
    Ok(Change::Keep(family, key, value))
}

fn one_of<T: Copy>(all: &[T], field: &Field<'_>) -> Result<T, RecordError> {
    let index = usize::try_from(field.number()?).map_err(|_| DecodeError::Malformed)?;
    Ok(*all.get(index).ok_or(DecodeError::Unknown(field.tag))?)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            Change::Event(Box::new(event)),
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
