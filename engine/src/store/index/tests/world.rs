//! Messages of some segments, made at random, as files and as plain lists.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::super::{
    BodyRow, Candidate, Coverage, Description, Error, Index, IndexFile, Overlay, Secret, Unfinished,
};
use crate::event::{Event, Level};
use crate::fault::{Fault, Sensitive};
use crate::files::SystemFiles;
use crate::header::{Header, Kind, ReplyTo, Status};
use crate::id::{BodyId, EventId, ItemName, MessageId, SessionId};
use crate::store::bodies::Place;
use crate::store::record::Sealer;
use crate::store::tests::sim::Random;
use crate::vault::Vault;

pub(super) const EPOCH: u64 = 77;
const START: i64 = 1_790_000_000_000_000;

/// What a file of a segment has.
#[derive(Clone, Debug, Default)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) first_id: u64,
    pub(super) headers: Vec<(Header, bool)>,
    pub(super) events: Vec<Event>,
    pub(super) bodies: Vec<BodyRow>,
}

/// Everything, and what memory would say.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) segments: Vec<Segment>,
    pub(super) unfinished: HashSet<u64>,
    pub(super) dead: HashMap<u64, u64>,
}

/// Memory's answers, and whether it was asked about provisional rows in vain.
pub(super) struct Memory<'a>(pub(super) &'a World);

impl Overlay for Memory<'_> {
    fn any_unfinished(&mut self, ids: RangeInclusive<u64>) -> Unfinished {
        let any = self.0.unfinished.iter().any(|id| ids.contains(id));
        Unfinished { suspended: any, waiting: any }
    }

    fn admit(&mut self, rows: &[Candidate]) -> Vec<bool> {
        rows.iter().map(|row| self.0.counts(row.id, row.session, row.segment, row.provisional)).collect()
    }
}

impl World {
    fn counts(&self, id: u64, session: u64, segment: u64, provisional: bool) -> bool {
        self.dead.get(&session).is_none_or(|bound| segment >= *bound)
            && (!provisional || self.unfinished.contains(&id))
    }

    /// The headers that count, by id.
    pub(super) fn headers(&self) -> BTreeMap<u64, Header> {
        let rows = self
            .segments
            .iter()
            .flat_map(|segment| segment.headers.iter().map(move |row| (segment.number, row)));
        rows.filter(|(segment, (header, provisional))| {
            self.counts(header.id.0, header.session.0, *segment, *provisional)
        })
        .map(|(_, (header, _))| (header.id.0, header.clone()))
        .collect()
    }

    /// The events that count, by id.
    pub(super) fn events(&self) -> BTreeMap<u64, Event> {
        let rows = self
            .segments
            .iter()
            .flat_map(|segment| segment.events.iter().map(move |row| (segment.number, row)));
        rows.filter(|(segment, event)| {
            self.counts(event.id.0, event.session.map_or(0, |session| session.0), *segment, false)
        })
        .map(|(_, event)| (event.id.0, event.clone()))
        .collect()
    }

    pub(super) fn random(random: &mut Random, most_segments: u64, most_rows: u64) -> World {
        let mut world = World::default();
        let (mut next, mut sessions, mut open): (u64, Vec<u64>, Vec<Header>) = (1, Vec::new(), Vec::new());
        let count = 1 + random.below(most_segments);
        for number in 1..=count {
            let mut segment = Segment { number, first_id: next, ..Segment::default() };
            let mut rest = Vec::new();
            for mut header in open.drain(..) {
                if random.one_in(2) {
                    finish(&mut header, next, random);
                    segment.headers.push((header, false));
                } else {
                    rest.push(header);
                }
            }
            open = rest;
            let most = if random.one_in(4) { most_rows } else { most_rows.min(60) };
            for _ in 0..random.below(most) {
                next += 1 + random.below(3);
                match random.below(6) {
                    0 => segment.events.push(event(next, &sessions, random)),
                    1 => segment.bodies.push(body(next, number, random)),
                    _ => {
                        let mut header = header(next, &sessions, random);
                        sessions.push(header.session.0);
                        if random.one_in(5) {
                            open.push(header.clone());
                            segment.headers.push((header, true));
                        } else {
                            finish(&mut header, next, random);
                            segment.headers.push((header, false));
                        }
                    }
                }
            }
            next += 1;
            world.segments.push(segment);
        }
        // Some of the unfinished are in memory in full, and files do not count for them.
        world.unfinished = open.iter().filter(|_| !random.one_in(3)).map(|header| header.id.0).collect();
        world.carry(&sessions, random);
        world
    }

    /// Some sessions are dead; some of these were carried to the last segment.
    fn carry(&mut self, sessions: &[u64], random: &mut Random) {
        let last = self.segments.len() as u64;
        for session in sessions {
            if !random.one_in(20) || self.dead.contains_key(session) {
                continue;
            }
            self.dead.insert(*session, if random.one_in(2) { u64::MAX } else { last });
            let mut headers = self.headers_of(*session, last);
            let mut events: Vec<Event> = self
                .segments
                .iter()
                .filter(|segment| segment.number < last)
                .flat_map(|segment| segment.events.clone())
                .collect();
            events.retain(|event| event.session == Some(SessionId(*session)));
            let Some(segment) = self.segments.last_mut() else { return };
            segment.headers.append(&mut headers);
            segment.events.append(&mut events);
        }
    }

    fn headers_of(&self, session: u64, before: u64) -> Vec<(Header, bool)> {
        let earlier = self.segments.iter().filter(|segment| segment.number < before);
        let rows = earlier.flat_map(|segment| segment.headers.iter());
        rows.filter(|(header, provisional)| header.session.0 == session && !provisional).cloned().collect()
    }

    /// Writes every segment, through parts now and then; the last one sometimes stays in parts, which are given.
    pub(super) fn write(&self, index: &Index, random: &mut Random) -> Result<Vec<Arc<IndexFile>>, Error> {
        for segment in &self.segments {
            let parts = segment.write_parts(index, random)?;
            if segment.number == self.segments.len() as u64 && random.one_in(2) {
                return Ok(parts);
            }
            segment.seal(index, parts)?;
        }
        Ok(Vec::new())
    }
}

impl Segment {
    pub(super) fn coverage(&self, part: u32) -> Coverage {
        let (first_sequence, last_sequence) = (self.number * 100, self.number * 100 + 99);
        Coverage {
            epoch: EPOCH,
            segment: self.number,
            part,
            first_sequence,
            last_sequence,
            first_id: self.first_id,
        }
    }

    fn write_parts(&self, index: &Index, random: &mut Random) -> Result<Vec<Arc<IndexFile>>, Error> {
        let count = 1 + random.below(3);
        let mut builders: Vec<_> = (0..count).map(|_| index.builder()).collect();
        for (header, provisional) in &self.headers {
            let part = random.below(count) as usize;
            builders[part].header(header, *provisional)?;
            // As it was born, in an earlier part or the same: the settled row counts.
            if !provisional && random.one_in(10) {
                let born = Header { status: Status::Queued, processed: None, error: None, ..header.clone() };
                builders[random.below(part as u64 + 1) as usize].header(&born, true)?;
            }
        }
        for event in &self.events {
            builders[random.below(count) as usize].event(event)?;
        }
        for body in &self.bodies {
            builders[random.below(count) as usize].body(body.id, &body.place, &body.kind);
        }
        let mut parts = Vec::new();
        for (number, builder) in builders.into_iter().enumerate() {
            let part = builder.write(self.coverage(number as u32 + 1), &[])?;
            index.replace(&[], vec![part.clone()]);
            parts.push(part);
        }
        Ok(parts)
    }

    /// Writes the file of the segment from the rows themselves.
    pub(super) fn seal_rows(&self, index: &Index) -> Result<Arc<IndexFile>, Error> {
        let mut builder = index.builder();
        for (header, provisional) in &self.headers {
            builder.header(header, *provisional)?;
        }
        for event in &self.events {
            builder.event(event)?;
        }
        for body in &self.bodies {
            builder.body(body.id, &body.place, &body.kind);
        }
        let file = builder.write(self.coverage(0), &[])?;
        index.replace(&[], vec![file.clone()]);
        Ok(file)
    }

    /// Merges parts into the file of the segment.
    pub(super) fn seal(&self, index: &Index, parts: Vec<Arc<IndexFile>>) -> Result<Arc<IndexFile>, Error> {
        let file = index.builder().write(self.coverage(0), &parts)?;
        index.replace(&parts, vec![file.clone()]);
        Ok(file)
    }
}

pub(super) fn index(folder: &Path, seal: bool, vault: &Vault) -> (Index, Vec<Error>) {
    let sealer = Sealer { vault: vault.clone(), bodies: seal };
    Index::open(Arc::new(SystemFiles), folder.to_owned(), Secret::new([7; 16]), sealer, EPOCH)
}

pub(super) fn micros(value: i64) -> Timestamp {
    Timestamp::from_microsecond(value).unwrap()
}

fn header(id: u64, sessions: &[u64], random: &mut Random) -> Header {
    let session = match sessions.len() {
        0 => id,
        _ if random.one_in(2) => id,
        count => sessions[random.below(count as u64) as usize],
    };
    let response = random.one_in(3);
    let names = [(Arc::from("mrn"), "mrn"), (Arc::from("name"), "Straße")];
    let keys: Vec<(Arc<str>, String)> = names
        .into_iter()
        .filter_map(|(name, text)| {
            let value = format!("{text}{}", random.below(12));
            (!random.one_in(3)).then_some((name, value))
        })
        .collect();
    Header {
        id: MessageId(id),
        session: SessionId(session),
        kind: if response { Kind::Response } else { Kind::Request },
        request_id: response.then(|| MessageId(id - 1)),
        caused_by: random.one_in(2).then_some(MessageId(session)),
        resent_from: None,
        source: ItemName::new(format!("source{}", random.below(3))),
        target: (!random.one_in(6)).then(|| ItemName::new(format!("target{}", random.below(3)))),
        type_name: format!("ADT^A0{}", random.below(4)).into(),
        control_id: if random.one_in(8) { "".into() } else { format!("C{}", random.below(40)).into() },
        status: Status::Queued,
        error: None,
        attempts: random.below(3) as u32,
        // Nearly in order of the ids.
        created: micros(START + (id * 1000 + random.below(5000)) as i64),
        processed: None,
        body_id: Some(BodyId(id)),
        size: random.below(100_000),
        keys: keys.into(),
        reply_to: if random.one_in(4) { ReplyTo::Service } else { ReplyTo::Nobody },
        position: id,
        order_keys: [random.next()].into(),
        next_attempt: None,
        failing_since: None,
        unsolicited: random.one_in(9),
    }
}

fn finish(header: &mut Header, now: u64, random: &mut Random) {
    header.status =
        [Status::Completed, Status::Completed, Status::Error, Status::Discarded][random.below(4) as usize];
    header.processed = Some(micros(START + (now * 1000 + random.below(9000)) as i64));
    if header.status == Status::Error || random.one_in(5) {
        let detail = random.one_in(2).then(|| Sensitive("x".repeat(random.below(3000) as usize)));
        header.error =
            Some(Fault { name: "fault".into(), code: "E1".into(), text: "it failed".into(), detail });
    }
}

fn event(id: u64, sessions: &[u64], random: &mut Random) -> Event {
    let session = (!sessions.is_empty() && random.one_in(2))
        .then(|| SessionId(sessions[random.below(sessions.len() as u64) as usize]));
    Event {
        id: EventId(id),
        at: micros(START + (id * 1000) as i64),
        level: [Level::Info, Level::Warning, Level::Error][random.below(3) as usize],
        kind: ["rule", "trace", "alert"][random.below(3) as usize].into(),
        item: random.one_in(2).then(|| ItemName::new(format!("target{}", random.below(3)))),
        session,
        message_id: session.map(|session| MessageId(session.0)),
        who: None,
        text: "something happened".to_owned(),
        detail: random.one_in(3).then(|| Sensitive("their words".to_owned())),
    }
}

fn body(id: u64, segment: u64, random: &mut Random) -> BodyRow {
    let kind = Description {
        type_name: format!("ADT^A0{}", random.below(4)).into(),
        content_type: "application/hl7-v2".into(),
        charset: random.one_in(2).then(|| "utf-8".into()),
    };
    let (offset, length, crc) = (random.below(1 << 26), random.below(1 << 20) as u32, random.next() as u32);
    BodyRow { id: BodyId(id), place: Place { segment, offset, length, crc, sealed: random.one_in(2) }, kind }
}
