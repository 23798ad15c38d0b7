//! Writing again what lives on, in slices: however much it is, only some of it is in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::judge::{Verdict, outlives};
use super::{Purge, PurgeError, blocking};
use crate::body::Body;
use crate::event::Event;
use crate::header::Header;
use crate::id::{BodyId, MessageId};
use crate::store::bodies::Absent;
use crate::store::change::Change;
use crate::store::index::{BodyRow, IndexFile};
use crate::store::pager;
use crate::store::spine::Spot;
use crate::store::{ReadError, Store};

/// Bodies carried in one transaction.
const BYTES: u64 = 1 << 20;
/// Rows carried in one transaction.
const ROWS: usize = 512;
/// What a row takes beside its body, at least.
const ROW: u64 = 512;
/// About how many headers are carried in one slice.
const SLICE: u64 = if cfg!(test) { 8 } else { 8192 };

/// What is carried at a time: the sessions whose numbers leave this remainder.
#[derive(Clone, Copy, Debug)]
struct Slice {
    of: u64,
    rest: u64,
}

/// Suspended messages that were read back: where, and how they stood there.
type Read = HashMap<MessageId, (Spot, Box<Header>)>;

/// What of a segment is carried.
#[derive(Debug, Default)]
struct Load {
    headers: Vec<Header>,
    events: Vec<Event>,
    bodies: Vec<BodyRow>,
}

impl Store {
    /// Writes again what lives on, and waits until that is durable. A body goes with the headers that have it
    /// in one transaction: so every segment that has a body has a header of it too.
    pub(super) async fn carry(
        &self,
        file: &Arc<IndexFile>,
        verdict: &Verdict,
        purge: Purge,
    ) -> Result<(), PurgeError> {
        let lives = Arc::new(verdict.lives.clone());
        let of = verdict.carried.div_ceil(SLICE).max(1);
        let mut last = 0;
        for rest in 0..of {
            let (file, lives) = (file.clone(), lives.clone());
            let load = blocking(move || load(&file, &lives, purge, Slice { of, rest })).await?;
            last = self.carry_load(load).await?.max(last);
        }
        self.durable(last).await?;
        Ok(())
    }

    /// Gives the last transaction.
    async fn carry_load(&self, load: Load) -> Result<u64, PurgeError> {
        let mut by_body: BTreeMap<u64, Vec<Header>> = BTreeMap::new();
        for header in load.headers {
            by_body.entry(header.body_id.map_or(0, |body| body.0)).or_default().push(header);
        }
        let (mut changes, mut last) = (Vec::new(), 0);
        let carried = |header: Header| Change::Carried(Box::new(header));
        let mut rows = load.bodies.into_iter().peekable();
        while rows.peek().is_some() {
            let mut bytes = 0;
            let some = std::iter::from_fn(|| {
                rows.next_if(|row| {
                    let first = bytes == 0;
                    bytes += u64::from(row.place.length) + ROW;
                    first || bytes <= BYTES
                })
            });
            let (some, store): (Vec<BodyRow>, _) = (some.collect(), self.clone());
            for (id, body) in blocking(move || store.read_all(some)).await? {
                changes.push(Change::Body(id, body));
                changes.extend(by_body.remove(&id.0).into_iter().flatten().map(carried));
            }
            last = self.write(std::mem::take(&mut changes), bytes).await?;
        }
        let rest = by_body.into_values().flatten().map(carried);
        for change in rest.chain(load.events.into_iter().map(|event| Change::Event(Arc::new(event)))) {
            changes.push(change);
            if changes.len() >= ROWS {
                last = self.write(std::mem::take(&mut changes), 0).await?;
            }
        }
        if !changes.is_empty() {
            last = self.write(changes, 0).await?;
        }
        Ok(last)
    }

    /// Reads bodies that are carried. One that cannot be read now will not be readable later: it has been
    /// reported.
    fn read_all(&self, rows: Vec<BodyRow>) -> Result<Vec<(BodyId, Body)>, PurgeError> {
        let mut bodies = Vec::with_capacity(rows.len());
        for row in rows {
            match self.read_body(row.id, &Absent { place: row.place, kind: Arc::new(row.kind) }) {
                Ok(body) => bodies.push((row.id, body)),
                Err(ReadError::Corrupt { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bodies)
    }

    /// Writes headers as they are at that moment: what one was when its segment ended may be long past.
    async fn write(&self, mut changes: Vec<Change>, bytes: u64) -> Result<u64, PurgeError> {
        let permit = self.permit(bytes).await?;
        let mut read = Read::new();
        loop {
            let past: HashSet<MessageId> = {
                let state = self.0.shared.state();
                let past = changes.iter_mut().filter_map(|change| match change {
                    Change::Carried(header) if !header.status.is_final() => {
                        if let Some(now) = state.stored_header(header.id) {
                            **header = now;
                            return None;
                        }
                        let known = match (state.parked(header.id.0), read.get(&header.id)) {
                            (Some((_, parked)), Some((frame, now))) if parked.frame == *frame => {
                                header.clone_from(now);
                                true
                            }
                            (parked, _) => parked.is_none() && state.waits_beyond(header.id.0),
                        };
                        (!known).then_some(header.id)
                    }
                    _ => None,
                });
                let past: HashSet<MessageId> = past.collect();
                if past.is_empty() {
                    return Ok(self.commit(state, permit, self.clock().now(), changes).sequence);
                }
                past
            };
            let store = self.clone();
            (changes, read) = blocking(move || {
                let mut now = |change| match change {
                    Change::Carried(header) if past.contains(&header.id) => {
                        let now = Box::new(store.past(&header, &mut read)?);
                        Some(Change::Carried(now))
                    }
                    change => Some(change),
                };
                let changes = changes.into_iter().filter_map(&mut now).collect();
                Ok((changes, read))
            })
            .await?;
        }
    }

    /// What became of a message that is not in memory. Suspended: then that may change yet, and what is read
    /// holds for its frame. Otherwise it was finished, which does not change any more.
    fn past(&self, header: &Header, read: &mut Read) -> Option<Header> {
        let embedded = self.0.embedded.as_ref()?;
        let parked = self.0.shared.state().absent(header.id);
        let Some((reference, frame)) = parked.and_then(|(_, found)| Some((found.clone(), found.frame?)))
        else {
            return self.header(header.id);
        };
        let mut loaded = pager::load(&[reference], &embedded.readers, &self.0.shared.vault);
        // If it cannot be read back, the index has all that is left of it.
        let now = loaded.take(header.id).or_else(|| self.header(header.id))?;
        read.insert(header.id, (frame, Box::new(now.clone())));
        Some(now)
    }
}

/// Reads a slice of what lives on.
fn load(file: &IndexFile, lives: &HashSet<u64>, purge: Purge, slice: Slice) -> Result<Load, PurgeError> {
    let ours = |session: u64| session % slice.of == slice.rest;
    let mut load = Load::default();
    let mut needed: HashSet<BodyId> = HashSet::new();
    if !lives.is_empty() {
        file.glance_headers(|row| {
            if ours(row.session) && lives.contains(&row.session) {
                needed.extend(row.body);
                load.headers.push(row.header()?);
            }
            Ok(())
        })?;
    }
    file.glance_events(|row| {
        if ours(row.session) && outlives(row, lives, purge) {
            load.events.push(row.event()?);
        }
        Ok(())
    })?;
    if !needed.is_empty() {
        file.scan_bodies(|body| needed.contains(&body), |body| load.bodies.push(body))?;
    }
    Ok(load)
}
