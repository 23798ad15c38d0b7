//! Writing a checkpoint, a field at a time.

use std::io::{self, IoSlice};

use super::{BUFFER, Checkpoint, HEADER, MAGIC};
use crate::files::{self, File};
use crate::store::bodies::{Description, Place};
use crate::store::codec::Encoder;
use crate::store::record::{self, Sealer};
use crate::store::spine::Spot;
use crate::store::state::{ItemSnapshot, Parked};

/// Fields on their way into the file.
struct Output<'a> {
    file: &'a dyn File,
    fields: Encoder,
    /// How long the payload in the file is, and its CRC so far.
    length: u64,
    crc: crc32fast::Hasher,
}

impl Output<'_> {
    /// One field. Called for each, so that only few are in memory.
    fn field(
        &mut self,
        tag: u64,
        fields: impl FnOnce(&mut Encoder) -> Result<(), crate::vault::VaultError>,
    ) -> io::Result<()> {
        let nested = self.fields.begin(tag, true);
        fields(&mut self.fields).map_err(|error| io::Error::other(error.to_string()))?;
        self.fields.end(nested);
        if self.fields.length() >= BUFFER { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> io::Result<()> {
        let slices = self.fields.slices();
        slices.iter().for_each(|slice| self.crc.update(slice));
        let mut slices: Vec<IoSlice<'_>> =
            slices.into_iter().filter(|slice| !slice.is_empty()).map(IoSlice::new).collect();
        files::write_all(self.file, &mut slices, HEADER as u64 + self.length)?;
        self.length += self.fields.length() as u64;
        self.fields.clear();
        Ok(())
    }
}

/// Writes all of it; gives the length of the file.
pub(super) fn write(file: &dyn File, checkpoint: &Checkpoint, sealer: &Sealer) -> io::Result<u64> {
    let mut out = Output { file, fields: Encoder::default(), length: 0, crc: crc32fast::Hasher::new() };
    payload(checkpoint, sealer, &mut out)?;
    out.spill()?;
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&out.length.to_le_bytes());
    header.extend_from_slice(&out.crc.finalize().to_le_bytes());
    header.extend_from_slice(&sealer.vault.key_id().to_le_bytes());
    files::write_all(file, &mut [IoSlice::new(&header)], 0)?;
    Ok(HEADER as u64 + out.length)
}

fn payload(checkpoint: &Checkpoint, sealer: &Sealer, out: &mut Output<'_>) -> io::Result<()> {
    let Checkpoint { snapshot, segment, reserved, bodies, .. } = checkpoint;
    out.fields.number(1, snapshot.sequence);
    out.fields.number(2, *segment);
    out.fields.number(3, snapshot.next_position);
    out.fields.number(4, snapshot.highest_id);
    out.fields.number(5, *reserved);
    for item in &snapshot.items {
        out.field(16, |out| {
            encode_item(item, out);
            Ok(())
        })?;
        for chunk in item.spine.chunks() {
            out.field(23, |out| {
                chunk.encode(out);
                Ok(())
            })?;
        }
        for run in item.parked.runs() {
            let place = |parked: &Parked| {
                let Spot { segment, offset } = parked.frame;
                [parked.id, parked.position, u64::from(segment) << 32 | u64::from(offset)]
            };
            numbers(out, 24, run.iter().flat_map(place))?;
        }
        for run in item.keys_aside.runs().filter(|_| !item.parked.is_empty()) {
            numbers(out, 25, run.iter().flat_map(|(key, position)| [*key, *position]))?;
        }
    }
    for (header, sequence) in snapshot.headers() {
        out.field(17, |out| {
            out.number(1, sequence);
            let inner = out.begin(2, true);
            record::encode_header(&header, sealer, out)?;
            out.end(inner);
            Ok(())
        })?;
    }
    for event in &snapshot.events {
        out.field(18, |out| record::encode_event(event, sealer, out))?;
    }
    for (family, values) in &snapshot.keep {
        for (key, value) in values.from("") {
            out.field(19, |out| record::encode_keep(*family, key, Some(&value), sealer, out))?;
        }
    }
    for (id, place, kind) in bodies {
        out.field(20, |out| {
            out.number(1, id.0);
            encode_body(place, kind, out);
            Ok(())
        })?;
    }
    for (number, line) in snapshot.fresh.lines() {
        out.field(21, |out| {
            out.number(1, number);
            let pairs = line.all().flat_map(|(sequence, id)| [sequence, id]);
            let pairs: Vec<u8> = pairs.flat_map(u64::to_le_bytes).collect();
            out.bytes(2, &pairs);
            Ok(())
        })?;
    }
    for (session, last) in &snapshot.dead {
        out.field(22, |out| {
            out.number(1, *session);
            out.number(2, *last);
            Ok(())
        })?;
    }
    Ok(())
}

fn numbers(out: &mut Output<'_>, tag: u64, numbers: impl Iterator<Item = u64>) -> io::Result<()> {
    let bytes: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
    out.field(tag, |out| {
        out.bytes(1, &bytes);
        Ok(())
    })
}

fn encode_item(item: &ItemSnapshot, out: &mut Encoder) {
    out.text(1, &item.name);
    out.flag(2, item.receives);
    out.number(3, item.taken_in);
    out.number(4, item.rejected);
    out.number(5, item.completed);
    out.number(6, item.errors);
    if let Some(at) = item.last_activity {
        out.time(7, at);
    }
    if let Some(error) = &item.last_error {
        out.text(8, error);
    }
    for (position, id) in item.spine.returned() {
        let nested = out.begin(10, true);
        out.number(1, id);
        out.number(2, position);
        out.end(nested);
    }
}

/// A body's kind in the fields 2 to 4, its place in the one behind them.
fn encode_body(place: &Place, kind: &Description, out: &mut Encoder) {
    out.text(2, &kind.type_name);
    out.text(3, &kind.content_type);
    if let Some(charset) = &kind.charset {
        out.text(4, charset);
    }
    let mut bytes = Vec::with_capacity(25);
    bytes.extend_from_slice(&place.segment.to_le_bytes());
    bytes.extend_from_slice(&place.offset.to_le_bytes());
    bytes.extend_from_slice(&place.length.to_le_bytes());
    bytes.extend_from_slice(&place.crc.to_le_bytes());
    bytes.push(u8::from(place.sealed));
    out.bytes(5, &bytes);
}
