//! Brings messages that wait beyond their queue's window back into memory, by reading the journal forward:
//! a thread that is called when a window is half empty, and the same reading for whoever wants to change
//! one such message now.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::bodies::Bodies;
use super::change::{Change, Commit};
use super::readers::{ReadFailure, Readers};
use super::record::{self, Entry};
use super::segment::FRAME;
use super::shared::Shared;
use super::spine::{Reference, Spot};
use super::state::State;
use crate::header::Header;
use crate::id::MessageId;
use crate::vault::Vault;

/// When what could not be read is tried again.
const AGAIN: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(1) };
/// How many messages are brought back at a time.
const PAGE: usize = 2048;

/// A header from the journal, and the transaction that made it.
pub(super) type Found = (Header, u64);

/// Headers read back from the journal.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    found: HashMap<u64, Found>,
    /// Frames that are not what was written.
    pub(super) damaged: Vec<Spot>,
    /// Frames that the disk or the system did not give: perhaps another time.
    refused: Vec<Spot>,
}

/// Reads the headers of references from the journal, in the order of its frames.
pub(super) fn load(references: &[Reference], readers: &Readers, vault: &Vault) -> Loaded {
    let mut wanted: BTreeMap<Spot, Vec<u64>> = BTreeMap::new();
    for reference in references {
        if let Some(frame) = reference.frame {
            wanted.entry(frame).or_default().push(reference.id);
        }
    }
    let mut loaded = Loaded::default();
    for (spot, ids) in wanted {
        match readers.frame(spot) {
            Ok(frame) => {
                if collect(&frame, spot, &ids, vault, &mut loaded.found).is_err() {
                    loaded.damaged.push(spot);
                }
            }
            // What was in a segment that has been purged was carried, and is looked for where it is now.
            Err(ReadFailure::Io(_)) if !readers.is_dropped(u64::from(spot.segment)) => {
                loaded.refused.push(spot)
            }
            Err(ReadFailure::Damaged | ReadFailure::Io(_)) => loaded.damaged.push(spot),
        }
    }
    loaded
}

fn collect(
    frame: &[u8],
    spot: Spot,
    ids: &[u64],
    vault: &Vault,
    found: &mut HashMap<u64, Found>,
) -> Result<(), record::RecordError> {
    let payload = frame.get(FRAME..).unwrap_or_default();
    record::decode(payload, u64::from(spot.segment), FRAME, vault, |entry| {
        let Entry::Commit(commit, _) = entry else { return };
        for change in commit.changes {
            if let Change::Header(header) | Change::Carried(header) = change
                && ids.contains(&header.id.0)
            {
                found.insert(header.id.0, (*header, commit.sequence));
            }
        }
    })
}

impl Loaded {
    /// The header of one.
    pub(super) fn take(&mut self, id: MessageId) -> Option<Header> {
        self.found.remove(&id.0).map(|(header, _)| header)
    }

    /// Puts what was read into memory.
    pub(super) fn enter(&self, references: &[Reference], state: &mut State, bodies: &Bodies) {
        for reference in references {
            if let Some((header, sequence)) = self.found.get(&reference.id) {
                state.page_in(reference, header, *sequence, bodies);
            }
        }
    }
}

/// A transaction of the journal is about to change messages that wait beyond their queue's window, or are suspended:
/// they and those behind them come back.
pub(super) fn bring_back(commit: &Commit, shared: &Shared, readers: &Readers) {
    let moved = |change: &Change| if let Change::Move(change) = change { Some(change.id) } else { None };
    let ids: Vec<MessageId> = commit.changes.iter().filter_map(moved).collect();
    // One that comes back may drive out another, which then comes behind it: so often, at most. With neighbours only
    // once: they would drive out the others.
    let mut near = true;
    for _ in 0..=ids.len() {
        let mut away = false;
        for id in &ids {
            if bring_one(*id, shared, readers, near) {
                (away, near) = (true, false);
            }
        }
        if !away {
            return;
        }
    }
}

/// Whether it was away.
fn bring_one(id: MessageId, shared: &Shared, readers: &Readers, near: bool) -> bool {
    let references = {
        let state = shared.state();
        let absent = if state.beyond() == 0 { None } else { state.absent(id) };
        let Some((item, reference)) = absent else { return false };
        match state.parked(id.0) {
            Some(_) if near => state.neighbours(item, &reference),
            Some(_) => vec![reference],
            None => state.behind(item, reference.position),
        }
    };
    let loaded = load(&references, readers, &shared.vault);
    loaded.enter(&references, &mut shared.state(), &shared.bodies);
    true
}

/// The thread.
#[derive(Debug)]
pub(super) struct Pager {
    calls: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pager {
    /// Starts it.
    pub(super) fn start(shared: Arc<Shared>, readers: Arc<Readers>) -> std::io::Result<Pager> {
        let (sender, calls) = bounded(1);
        let thread = std::thread::Builder::new().name("septet-pager".to_owned());
        let thread = thread.spawn(move || run(&shared, &readers, &calls))?;
        Ok(Pager { calls: Some(sender), thread: Some(thread) })
    }

    /// Some window runs low. Never blocks: a call that has not been heard yet counts for this one too.
    pub(super) fn call(&self) {
        if let Some(calls) = &self.calls {
            let _ = calls.try_send(());
        }
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, readers: &Readers, calls: &Receiver<()>) {
    let mut refused: Vec<u32> = Vec::new();
    loop {
        let called = match refused.is_empty() {
            true => calls.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => calls.recv_timeout(AGAIN),
        };
        if called == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        shared.state().low.extend(refused.drain(..));
        loop {
            let Some(page) = shared.state().next_page(PAGE) else { break };
            let loaded = load(&page.absent, readers, &shared.vault);
            if let Some(spot) = loaded.refused.first() {
                // Whoever left the queue now would be lost for ever, and nobody behind may go first.
                refused.push(page.item);
                let place = readers.frame_name(*spot);
                shared.report_damage(&place, "messages that wait in a queue, which waits until they can,");
                continue;
            }
            let (lost, ready) = {
                let mut state = shared.state();
                loaded.enter(&page.absent, &mut state, &shared.bodies);
                state.fill(&page)
            };
            ready.notify_one();
            for spot in &loaded.damaged {
                let place = readers.frame_name(*spot);
                shared.report_damage(&place, &format!("{} messages that wait in a queue", lost.len()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ItemName;
    use crate::store::Store;
    use crate::store::api::Lanes;
    use crate::store::state::{Page, Touched};
    use crate::store::tests::support::{header, manual_clock};

    /// A state in which these messages wait beyond the window, in memory and in the journal.
    fn waiting(headers: &[Header]) -> State {
        let (mut state, mut touched) = (State::new(0), Touched::new());
        for (sequence, header) in (1..).zip(headers) {
            let changes = vec![Change::Header(Box::new(header.clone()))];
            state.apply(&Commit { sequence, at: header.created, changes }, &mut touched);
        }
        state.placed(2, Spot::new(1, 64), &Bodies::new(0));
        state
    }

    fn next_page(state: &mut State) -> Page {
        let number = state.item_number(&ItemName::new("out"));
        state.low.insert(number);
        state.next_page(1).unwrap()
    }

    #[test]
    fn what_leaves_memory_while_its_page_is_read_comes_with_the_next_and_is_not_lost() {
        let store = Store::memory(manual_clock());
        let new = |position| Header { position, ..header(&store, "lis", "out", store.clock().now()) };
        let headers: Vec<Header> = (1..=2).map(new).collect();
        let mut state = waiting(&headers);
        let page = next_page(&mut state);
        assert_eq!((page.references.len(), page.absent.len()), (1, 0), "nothing has to be read");
        // Now the index gets both, and they leave memory.
        state.indexed(2, false, 10);
        assert!(state.rows.is_empty());
        assert!(state.fill(&page).0.is_empty(), "it is not lost");
        assert_eq!(state.beyond(), 2);

        let page = next_page(&mut state);
        assert_eq!(page.absent, page.references);
        state.page_in(&page.absent[0], &headers[0], 1, &Bodies::new(0));
        assert!(state.fill(&page).0.is_empty());
        let taken = state.take(&ItemName::new("out"), Lanes::Requests, 8, store.clock().now());
        assert_eq!(taken.iter().map(|delivery| delivery.header.id).collect::<Vec<_>>(), [headers[0].id]);
        assert_eq!(state.beyond(), 1);
    }

    #[test]
    fn what_was_not_in_memory_and_cannot_be_read_is_lost() {
        let store = Store::memory(manual_clock());
        let header = Header { position: 1, ..header(&store, "lis", "out", store.clock().now()) };
        let mut state = waiting(std::slice::from_ref(&header));
        state.indexed(2, false, 10);
        let page = next_page(&mut state);
        assert_eq!(state.fill(&page).0, [header.id.0]);
        assert_eq!(state.beyond(), 0);
    }
}
