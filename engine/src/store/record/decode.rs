//! Reading transactions. No bytes make it panic; what it does not know it skips or refuses (see
//! [`crate::store`]'s codec).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::{FAMILIES, LEVELS, RecordError, STATUSES};
use crate::body::Body;
use crate::event::{Event, Level};
use crate::fault::{Fault, Sensitive};
use crate::header::{Header, Kind, ReplyTo, Status};
use crate::id::{BodyId, EventId, ItemName, MessageId, SessionId};
use crate::store::bodies::Place;
use crate::store::change::{Change, Commit, Move};
use crate::store::codec::{DecodeError, Field, Fields, SEALED};
use crate::vault::Vault;

/// What a payload holds.
#[derive(Debug)]
pub(in crate::store) enum Entry {
    /// A transaction, and where its bodies are (segment and offsets within the file).
    Commit(Commit, Vec<(BodyId, Place)>),
    /// Ids below are reserved.
    Reservation(u64),
    /// A repair put this in place of so many frames that could not be read.
    Lost(u64),
}

/// Reads a payload that begins at `offset` of the file of a segment. Bodies come without their bytes.
pub(in crate::store) fn decode(
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
            3 => entry(Entry::Lost(field.number()?)),
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
            17 => Change::Header(Box::new(decode_header(field.fields(), vault)?)),
            18 => Change::Move(decode_move(field, vault)?),
            19 => Change::Event(Arc::new(decode_event(field.fields(), vault)?)),
            20 => decode_keep(field, vault)?,
            21 => Change::Carried(Box::new(decode_header(field.fields(), vault)?)),
            22 => decode_expired(field)?,
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
pub(in crate::store) fn open_body(
    stored: Vec<u8>,
    sealed: bool,
    vault: &Vault,
) -> Result<Bytes, RecordError> {
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

/// Reads the fields of a header.
pub(in crate::store) fn decode_header(fields: Fields<'_>, vault: &Vault) -> Result<Header, RecordError> {
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
    each_field(fields, vault, &mut |field| {
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

fn decode_expired(field: Field<'_>) -> Result<Change, RecordError> {
    let (mut last, mut sessions) = (0, Vec::new());
    for field in field.fields() {
        let field = field?;
        match field.tag {
            1 => last = field.number()?,
            2 => sessions.extend(field.value.as_chunks::<8>().0.iter().map(|one| u64::from_le_bytes(*one))),
            _ => field.skip()?,
        }
    }
    Ok(Change::Expired(last, sessions))
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

/// Reads the fields of an event.
pub(in crate::store) fn decode_event(fields: Fields<'_>, vault: &Vault) -> Result<Event, RecordError> {
    let mut event = Event {
        id: EventId(0),
        at: jiff::Timestamp::UNIX_EPOCH,
        level: Level::Info,
        kind: Cow::default(),
        item: None,
        session: None,
        message_id: None,
        who: None,
        text: String::new(),
        detail: None,
    };
    each_field(fields, vault, &mut |field| {
        match field.tag {
            1 => event.id = EventId(field.number()?),
            2 => event.at = field.time()?,
            3 => event.level = one_of(&LEVELS, &field)?,
            4 => event.kind = field.string()?.into(),
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

/// Reads a kept value.
pub(in crate::store) fn decode_keep(field: Field<'_>, vault: &Vault) -> Result<Change, RecordError> {
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
