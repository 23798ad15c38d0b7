//! Where bodies are. A body stays in memory until it is on stable storage; from then on it is kept as long
//! as the cache's budget lasts and read back from its place in the journal afterwards.
//!
//! The cache gives every body that was read since its last turn a second one (FIFO with a second chance).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::codec::{DecodeError, Encoder, Fields};
pub(super) use super::index::Description;
use crate::body::Body;
use crate::id::{BodyId, IdMap};

/// Descriptions that are remembered. Types come from outside: beyond it those that nobody has are forgotten.
const KINDS: usize = 4096;
/// Places looked up under one lock.
const STEP: usize = 1024;

/// Where a body's bytes lie in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The segment.
    pub(super) segment: u64,
    /// The offset of the (perhaps sealed) bytes in its file.
    pub(super) offset: u64,
    /// Their length.
    pub(super) length: u32,
    /// Their CRC-32.
    pub(super) crc: u32,
    /// They are sealed with the store's key.
    pub(super) sealed: bool,
}

/// A body that is not in memory.
#[derive(Clone, Debug)]
pub(super) struct Absent {
    pub(super) place: Place,
    pub(super) kind: Arc<Description>,
}

impl Absent {
    /// The body, once its bytes have been read.
    pub(super) fn body(&self, bytes: Bytes) -> Body {
        let kind = &*self.kind;
        Body::shared(kind.type_name.clone(), kind.content_type.clone(), kind.charset.clone(), bytes)
    }
}

#[derive(Debug)]
struct Row {
    kind: Arc<Description>,
    place: Option<Place>,
    resident: Option<Body>,
    /// It was read since the cache last looked at it.
    used: bool,
}

/// Bodies that have left.
#[derive(Debug)]
pub(super) struct Forgotten(Vec<Row>);

/// All bodies of a store.
#[derive(Debug)]
pub(super) struct Bodies(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    rows: IdMap<u64, Row>,
    kinds: HashMap<Arc<Description>, ()>,
    /// Evictable bodies, oldest first.
    turns: VecDeque<u64>,
    cached: usize,
    budget: usize,
}

/// What the table knows of a body.
pub(super) enum Found {
    /// Here it is.
    Resident(Body),
    /// It must be read.
    Absent(Absent),
}

impl Bodies {
    /// With room for this many bytes of bodies that are on disk too.
    pub(super) fn new(budget: u64) -> Self {
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        Bodies(Mutex::new(Table { budget, ..Table::default() }))
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new body; it stays in memory until [`Bodies::locate`].
    pub(super) fn add(&self, id: BodyId, body: &Body) {
        let mut table = self.table();
        let kind = table.kind(body);
        let row = Row { kind, place: None, resident: Some(body.clone()), used: false };
        // One that is written again (see `purge`) is no longer evictable.
        let before = table.rows.insert(id.0, row).and_then(|row| row.place.and(row.resident));
        if let Some(before) = before {
            table.cached = table.cached.saturating_sub(cost(&before));
        }
    }

    /// A body that recovery found.
    pub(super) fn found(&self, id: BodyId, body: &Body, place: Place) {
        let mut table = self.table();
        let kind = table.kind(body);
        table.rows.insert(id.0, Row { kind, place: Some(place), resident: None, used: false });
    }

    /// A body of a message that came back into memory.
    pub(super) fn page_in(&self, id: BodyId, place: Place, kind: Arc<Description>) {
        let mut table = self.table();
        table.rows.entry(id.0).or_insert_with(|| Row {
            kind,
            place: Some(place),
            resident: None,
            used: false,
        });
    }

    /// Where bodies are on stable storage; those that are not, or not known here, are left out.
    pub(super) fn places(&self, ids: &[u64]) -> Vec<(BodyId, Place, Arc<Description>)> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(STEP) {
            let table = self.table();
            found.extend(ids.iter().filter_map(|id| {
                let row = table.rows.get(id)?;
                Some((BodyId(*id), row.place?, row.kind.clone()))
            }));
        }
        found
    }

    /// Nobody in memory needs these bodies any more; the index knows where they are. To be dropped when no lock
    /// is held.
    pub(super) fn forget(&self, ids: &[u64]) -> Forgotten {
        let mut forgotten = Forgotten(Vec::with_capacity(ids.len()));
        let mut table = self.table();
        for id in ids {
            let Some(row) = table.rows.remove(id) else { continue };
            if let (Some(_), Some(body)) = (row.place, &row.resident) {
                table.cached = table.cached.saturating_sub(cost(body));
            }
            forgotten.0.push(row);
        }
        // What is no longer known leaves the line of turns when its turn comes, or here when it got long.
        if table.turns.len() > table.rows.len().saturating_mul(2) + 1024 {
            let Table { turns, rows, .. } = &mut *table;
            turns.retain(|id| rows.contains_key(id));
        }
        forgotten
    }

    /// These bodies are on stable storage: from now on they may leave memory.
    pub(super) fn locate(&self, places: impl IntoIterator<Item = (BodyId, Place)>) {
        let mut table = self.table();
        for (id, place) in places {
            let Some(row) = table.rows.get_mut(&id.0) else { continue };
            row.place = Some(place);
            if let Some(size) = row.resident.as_ref().map(cost) {
                table.cached += size;
                table.turns.push_back(id.0);
            }
        }
        table.evict();
    }

    /// Where a body is.
    pub(super) fn find(&self, id: BodyId) -> Option<Found> {
        let mut table = self.table();
        let row = table.rows.get_mut(&id.0)?;
        row.used = true;
        if let Some(body) = &row.resident {
            return Some(Found::Resident(body.clone()));
        }
        Some(Found::Absent(Absent { place: row.place?, kind: row.kind.clone() }))
    }

    /// Keeps a body that was read.
    pub(super) fn keep(&self, id: BodyId, body: &Body) {
        let mut table = self.table();
        let Some(row) = table.rows.get_mut(&id.0) else { return };
        if row.resident.is_none() {
            row.resident = Some(body.clone());
            row.used = false;
            table.cached += cost(body);
            table.turns.push_back(id.0);
            table.evict();
        }
    }
}

impl Table {
    fn kind(&mut self, body: &Body) -> Arc<Description> {
        let (type_name, content_type, charset) = body.shared_names();
        let kind = Description { type_name, content_type, charset };
        if let Some((known, ())) = self.kinds.get_key_value(&kind) {
            return known.clone();
        }
        let kind = Arc::new(kind);
        if self.kinds.len() >= KINDS {
            self.kinds.retain(|kind, ()| Arc::strong_count(kind) > 1);
        }
        if self.kinds.len() < KINDS {
            self.kinds.insert(kind.clone(), ());
        }
        kind
    }

    fn evict(&mut self) {
        while self.cached > self.budget
            && let Some(id) = self.turns.pop_front()
        {
            let Some(row) = self.rows.get_mut(&id) else { continue };
            if row.used {
                row.used = false;
                self.turns.push_back(id);
            } else if let Some(body) = row.resident.take() {
                self.cached = self.cached.saturating_sub(cost(&body));
            }
        }
    }
}

/// What a body costs in memory: its bytes, and what a view of it may take.
fn cost(body: &Body) -> usize {
    body.size().saturating_add(512)
}

/// What a body is.
pub(super) fn describe(type_name: &str, content_type: &str, charset: Option<&str>) -> Description {
    Description {
        type_name: type_name.into(),
        content_type: content_type.into(),
        charset: charset.map(Into::into),
    }
}

impl Description {
    /// As fields: 1 type, 2 content type, 3 charset.
    pub(super) fn encode(&self, out: &mut Encoder) {
        out.text(1, &self.type_name);
        out.text(2, &self.content_type);
        if let Some(charset) = &self.charset {
            out.text(3, charset);
        }
    }

    /// From its fields.
    pub(super) fn decode(fields: Fields<'_>) -> Result<Description, DecodeError> {
        let mut kind = describe("", "", None);
        for field in fields {
            let field = field?;
            match field.tag {
                1 => kind.type_name = field.text()?.into(),
                2 => kind.content_type = field.text()?.into(),
                3 => kind.charset = Some(field.text()?.into()),
                _ => field.skip()?,
            }
        }
        Ok(kind)
    }
}
