//! Writing transactions.

use bytes::Bytes;

use super::{LEVELS, Located, STATUSES, Sealer};
use crate::body::Body;
use crate::event::Event;
use crate::fault::{Fault, Sensitive};
use crate::header::{Header, Kind, ReplyTo};
use crate::host::KeepFamily;
use crate::id::BodyId;
use crate::store::change::{Change, Commit, Move};
use crate::store::codec::{Encoder, SEALED};
use crate::vault::VaultError;

/// A payload of about `room` bytes (at most, and less than eight below) that stands for lost frames.
pub(in crate::store) fn encode_lost(frames: u64, room: usize, out: &mut Encoder) {
    // The length of padding takes up to five bytes.
    const AROUND: usize = 6;
    out.number(3, frames);
    if let Some(padding) = room.checked_sub(out.length() + AROUND) {
        out.bytes(4, &vec![0; padding]);
    }
}

/// Reserves the ids below `limit`.
pub(in crate::store) fn encode_reservation(limit: u64, out: &mut Encoder) {
    out.number(2, limit);
}

/// Writes a transaction and says where its bodies are.
pub(in crate::store) fn encode(
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
            Change::Carried(header) => {
                let nested = out.begin(21, true);
                encode_header(header, sealer, out)?;
                out.end(nested);
            }
            Change::Expired(last, sessions) => {
                let nested = out.begin(22, true);
                out.number(1, *last);
                let sessions: Vec<u8> = sessions.iter().flat_map(|session| session.to_le_bytes()).collect();
                out.bytes(2, &sessions);
                out.end(nested);
            }
            Change::Keep(family, key, value) => {
                let nested = out.begin(20, true);
                encode_keep(*family, key, value.as_ref(), sealer, out)?;
                out.end(nested);
            }
        }
    }
    out.end(transaction);
    Ok(())
}

/// Writes a kept value, sealed where its family holds secrets.
pub(in crate::store) fn encode_keep(
    family: KeepFamily,
    key: &str,
    value: Option<&Bytes>,
    sealer: &Sealer,
    out: &mut Encoder,
) -> Result<(), VaultError> {
    out.number(1, family as u64);
    out.text(2, key);
    match value {
        None => {
            out.flag(4, true);
            Ok(())
        }
        Some(value) => sealed_if(is_secret(family), sealer, out, |out| {
            out.shared(3, value);
        }),
    }
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

/// Writes the fields of a header.
pub(in crate::store) fn encode_header(
    header: &Header,
    sealer: &Sealer,
    out: &mut Encoder,
) -> Result<(), VaultError> {
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

/// Writes the fields of an event.
pub(in crate::store) fn encode_event(
    event: &Event,
    sealer: &Sealer,
    out: &mut Encoder,
) -> Result<(), VaultError> {
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
