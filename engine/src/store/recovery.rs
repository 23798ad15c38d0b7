//! Recovery: from the newest checkpoint on, folds every segment, oldest first, through [`State::apply`], and
//! leaves a journal that can be trusted. Segments that have ended get their index files on the way, so that
//! memory stays bounded however much there is to fold.
//!
//! **Damage or torn tail.** A frame that cannot be read is *damage* when it lies below a position that is
//! known to have been synced: below the synced position in any later whole frame, or in a segment that has
//! a successor (a segment is sealed and synced before its successor is named). Damage is reported with file
//! and offset and skipped; not a byte of it is changed. At or above every known synced position it is a
//! *torn tail*: nobody was ever told that it is durable. It is cut there, and the bytes are kept beside the
//! segment as `NUMBER-OFFSET.torn`. Zeros after the last frame are preallocated room and a clean end.
//!
//! **A segment that cannot be read.** Damaged bytes do not come back: the start goes on without them. A whole file
//! may: it is missing, the disk refuses, or nothing in it is a frame. Where it would have to be folded, starting
//! without it would lose what waits for good (the next checkpoint would say that it never was), so the start is
//! refused with what to do. Where a checkpoint has what it did, the start goes on and says so (`survey`).
//!
//! **After an unclean stop the page cache is not trusted**: if a sync had failed, what we read may never
//! have reached the disk, and a later sync would not notice. So the whole frames of the last segment are
//! made durable again with an end frame behind them, with the same number and offsets (see `heal`). Only then
//! does anything listen or deliver. The journal goes on in the next segment.

mod survey;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::change::Change;
use super::checkpoint::Mark;
use super::codec::{DecodeError, Fields};
use super::heal;
use super::journal::{Identity, Next};
use super::keeper::{Keeper, PART};
use super::open::OpenError;
use super::pager;
use super::record::{self, Entry, RecordError};
use super::segment::{self, Frame, FrameKind, HEADER, NoFrame, Position, SegmentHeader};
use super::shared::Shared;
use super::spine::Spot;
use super::state::Touched;
use super::window::Window;
use crate::files::{self, Files};
use crate::vault::{Vault, VaultError};

/// Records that are lost may have given out so many ids.
const LOST_IDS: u64 = 1 << 20;

/// What the journal held, besides the state.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// Where to go on; absent in a new store.
    pub(super) next: Option<Next>,
    /// The first id that may be given out.
    pub(super) next_id: u64,
    /// Damaged places.
    pub(super) damage: Vec<Damage>,
    /// What was cut.
    pub(super) torn: Option<PathBuf>,
}

/// A part of the journal that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    pub(super) file: PathBuf,
    pub(super) offset: usize,
    pub(super) length: usize,
    /// What is the matter with a whole segment that a checkpoint covers.
    pub(super) why: Option<String>,
}

/// How reading one segment ended.
#[derive(Debug, Default)]
struct Tail {
    /// Where its whole frames end.
    end: usize,
    sealed: bool,
    clean: bool,
    /// Where its end frame begins.
    seal: usize,
    torn: bool,
}

struct Recovery<'a> {
    files: &'a dyn Files,
    folder: &'a Path,
    shared: &'a Shared,
    keeper: &'a mut Keeper,
    out: Recovered,
    /// The state has the transactions up to this one from a checkpoint.
    known: u64,
    /// The last transaction folded or known.
    sequence: u64,
    /// The last transaction up to the frame read last: what is known may lie behind it.
    read: u64,
    batch: u64,
    /// Ids below are reserved.
    reserved: u64,
    touched: Touched,
    /// Only what the index has is folded: no kept values.
    index_only: bool,
}

/// The numbers of all segments, in order.
pub(super) fn segments(files: &dyn Files, folder: &Path) -> io::Result<Vec<u64>> {
    let names = files.list(folder)?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::number_of(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Epoch, salt and key of the store: from the newest segment whose header is whole.
pub(super) fn identity(
    files: &dyn Files,
    folder: &Path,
    numbers: &[u64],
    vault: &Vault,
) -> Result<Identity, OpenError> {
    let header = numbers.iter().rev().find_map(|number| {
        let file = files.open(&segment::path(folder, *number)).ok()?;
        let mut header = [0; HEADER];
        files::read_exact(&*file, &mut header, 0).ok()?;
        SegmentHeader::decode(&header)
    });
    let header = header.ok_or_else(|| OpenError::NotAJournal(folder.to_owned()))?;
    if !vault.holds(header.key_id) {
        return Err(OpenError::WrongKey { expected: header.key_id, found: vault.key_id() });
    }
    // What is written from now on is sealed with the current key.
    Ok(Identity { epoch: header.epoch, salt: header.salt, key_id: vault.key_id() })
}

/// Folds the segments from the checkpoint on into the shared state, and heals the last one. The snapshot
/// of the checkpoint is in the state already.
pub(super) fn recover(
    files: &dyn Files,
    folder: &Path,
    numbers: &[u64],
    identity: Identity,
    checkpoint: Option<Mark>,
    shared: &Shared,
    keeper: &mut Keeper,
) -> Result<Recovered, OpenError> {
    let known = checkpoint.map_or(0, |checkpoint| checkpoint.sequence);
    let reserved = checkpoint.map_or(1, |checkpoint| checkpoint.reserved.max(1));
    let out = Recovered { next_id: reserved, ..Recovered::default() };
    let mut recovery = Recovery {
        files,
        folder,
        shared,
        keeper,
        out,
        known,
        sequence: known,
        read: 0,
        batch: 0,
        reserved,
        touched: Touched::new(),
        index_only: false,
    };
    let Some(last) = numbers.last().copied() else { return Ok(recovery.out) };
    let first = checkpoint.map_or(0, |checkpoint| checkpoint.segment);
    let mut expected = checkpoint.map(|checkpoint| checkpoint.segment);
    let covered = numbers.iter().take_while(|number| **number < first).count();
    let surveyed = survey::survey(files, folder, numbers.get(..covered).unwrap_or_default());
    survey::needs_none_of(shared, &surveyed)?;
    for number in numbers.iter().copied().filter(|number| *number >= first) {
        if expected.is_some_and(|expected| expected != number) {
            let missing = expected.unwrap_or_default();
            if numbers.first().is_some_and(|first| *first < missing) {
                return Err(OpenError::needed(&segment::path(folder, missing), "it is missing"));
            }
            recovery.damaged(missing, 0, 0);
        }
        expected = Some(number + 1);
        shared.open_segment.store(number, Ordering::Release);
        recovery.segment(number, number == last, identity)?;
    }
    if first > last {
        // A clean stop: the checkpoint has everything, and where the next segment begins is in the last one.
        match recovery.ending(last, identity) {
            Err(OpenError::Needed { path, text }) => {
                recovery.batch = survey::batch_behind(files, folder, numbers);
                if surveyed.iter().all(|damage| damage.file != path) {
                    recovery.out.damage.push(Damage { file: path, offset: 0, length: 0, why: Some(text) });
                }
            }
            ended => ended?,
        }
    }
    let Recovery { mut out, batch, reserved, sequence, shared, .. } = recovery;
    // Records that were lost to damage may have used any id of their reservation, and reserved more.
    let lost = if out.damage.is_empty() { 0 } else { LOST_IDS };
    out.next_id = reserved.max(shared.state().highest_id + 1) + lost;
    out.damage = survey::with_beginning(out.damage, surveyed, shared, folder, numbers)?;
    out.next = Some(Next { segment: last + 1, batch, sequence });
    Ok(out)
}

/// A segment to be folded for the index only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refold {
    pub(super) number: u64,
    /// The state had the transactions up to this one from the beginning.
    pub(super) known: u64,
    /// The last transaction that the state has, and the last of the segments read: what is known may lie behind it.
    pub(super) sequence: u64,
    pub(super) read: u64,
    /// It is still being written.
    pub(super) open: bool,
}

/// Folds one segment into a state of its own that has everything before it. Gives what there is to fold next.
pub(super) fn refold(
    files: &dyn Files,
    folder: &Path,
    refold: Refold,
    identity: Identity,
    shared: &Shared,
    keeper: &mut Keeper,
) -> Result<Refold, OpenError> {
    let Refold { number, known, sequence, read, open } = refold;
    let mut recovery = Recovery {
        files,
        folder,
        shared,
        keeper,
        out: Recovered::default(),
        known,
        sequence,
        read,
        batch: 0,
        reserved: 1,
        touched: Touched::new(),
        index_only: true,
    };
    match open {
        true => drop(recovery.read(number, false, identity)?),
        false => recovery.segment(number, false, identity)?,
    }
    let Recovery { sequence, read, .. } = recovery;
    Ok(Refold { number: number + 1, sequence, read, ..refold })
}

impl Recovery<'_> {
    /// Reads how a segment ended without folding it.
    fn ending(&mut self, number: u64, identity: Identity) -> Result<(), OpenError> {
        let path = segment::path(self.folder, number);
        let mut content = Window::open(self.files, &path).map_err(|error| OpenError::needed(&path, error))?;
        let known = std::mem::replace(&mut self.known, u64::MAX);
        let tail = self.frames(number, &mut content, true, identity.salt);
        self.known = known;
        self.end(number, &mut content, &tail?, identity)
    }

    /// Makes sure that the end of the last segment is on stable storage.
    fn end(
        &mut self,
        number: u64,
        content: &mut Window,
        tail: &Tail,
        identity: Identity,
    ) -> Result<(), OpenError> {
        let path = segment::path(self.folder, number);
        let failed = |error| OpenError::io(&path, error);
        if !tail.clean {
            return self.heal(number, content, tail, identity);
        }
        let seal = content.between(tail.seal, tail.end).map_err(failed)?;
        heal::confirm(self.files, &path, seal, tail.seal).map_err(failed)
    }

    fn segment(&mut self, number: u64, last: bool, identity: Identity) -> Result<(), OpenError> {
        let (mut content, tail) = self.read(number, last, identity)?;
        if !last && !self.index_only && tail.end == HEADER {
            let path = segment::path(self.folder, number);
            let header = content.between(0, HEADER).map_err(|error| OpenError::needed(&path, error))?;
            if SegmentHeader::decode(header).is_none_or(|header| header.number != number) {
                return Err(OpenError::needed(&path, "nothing in it is what was written"));
            }
        }
        if last {
            self.end(number, &mut content, &tail, identity)?;
        }
        drop(content);
        self.keeper.sealed(number, self.read);
        Ok(())
    }

    /// Reads a segment and folds its frames.
    fn read(&mut self, number: u64, last: bool, identity: Identity) -> Result<(Window, Tail), OpenError> {
        let path = segment::path(self.folder, number);
        let failed = |error| OpenError::needed(&path, error);
        let mut content = Window::open(self.files, &path).map_err(failed)?;
        match SegmentHeader::decode(content.between(0, HEADER).map_err(failed)?) {
            Some(header) if header.number == number => {
                // Its predecessor may have lost its end frame; only if transactions are missing is it damage.
                if header.sequence > self.sequence && number > 1 && self.out.damage.is_empty() {
                    self.damaged(number - 1, 0, 0);
                }
                self.batch = self.batch.max(header.batch);
            }
            _ => self.damaged(number, 0, HEADER),
        }
        let tail = self.frames(number, &mut content, last, identity.salt)?;
        Ok((content, tail))
    }

    /// Folds the frames of a segment.
    fn frames(
        &mut self,
        number: u64,
        content: &mut Window,
        last: bool,
        salt: u32,
    ) -> Result<Tail, OpenError> {
        let path = segment::path(self.folder, number);
        let failed = |error| OpenError::needed(&path, error);
        let length = content.length();
        let mut tail = Tail { end: HEADER, ..Tail::default() };
        loop {
            let at = tail.end;
            let frame = match content.frame(at, number, salt).map_err(failed)? {
                Ok(frame) => frame,
                Err(NoFrame::End) => break,
                Err(NoFrame::Newer) => return Err(self.newer(number, at)),
                Err(NoFrame::Bad) => {
                    let here = Position { segment: number, offset: at as u64 };
                    let later = content.next_frame(at + 8, number, salt).map_err(failed)?;
                    match later.filter(|later| !last || later.header.synced > here) {
                        Some(later) => {
                            self.damaged(number, at, later.offset - at);
                            later
                        }
                        None if last => {
                            tail.torn = true;
                            break;
                        }
                        None => {
                            self.damaged(number, at, length - at);
                            break;
                        }
                    }
                }
            };
            tail.end = frame.end;
            self.batch = self.batch.max(frame.header.batch + 1);
            self.read = self.read.max(frame.header.sequence);
            match frame.header.kind {
                FrameKind::Batch => self.fold(number, &frame)?,
                FrameKind::End => {
                    tail.sealed = true;
                    tail.seal = frame.offset;
                    tail.clean = self
                        .end_frame(&frame)
                        .map_err(|error| self.unreadable(number, frame.offset, &error))?;
                    break;
                }
            }
        }
        Ok(tail)
    }

    fn fold(&mut self, number: u64, frame: &Frame<'_>) -> Result<(), OpenError> {
        let offset = frame.offset + segment::FRAME;
        let Recovery { shared, keeper, reserved, touched, known, sequence, index_only, .. } = self;
        let folded = record::decode(frame.payload, number, offset, &shared.vault, |entry| match entry {
            Entry::Reservation(limit) => *reserved = (*reserved).max(limit),
            Entry::Lost(_) => {
                // They may have used any id of their reservation, and reserved more.
                *reserved = (*reserved).max(shared.state().highest_id + LOST_IDS);
                *sequence = (*sequence).max(frame.header.sequence);
                let mut state = shared.state();
                state.sequence = state.sequence.max(frame.header.sequence);
            }
            Entry::Commit(commit, _) if commit.sequence <= *known => {}
            Entry::Commit(mut commit, places) => {
                if *index_only {
                    commit.changes.retain(|change| !matches!(change, Change::Keep(..)));
                }
                let mut places = places.into_iter();
                for change in &commit.changes {
                    if let Change::Body(id, body) = change
                        && let Some((_, place)) = places.next()
                    {
                        shared.bodies.found(*id, body, place);
                    }
                }
                pager::bring_back(&commit, shared, keeper.readers());
                *sequence = (*sequence).max(commit.sequence);
                shared.state().apply(&commit, touched);
                touched.clear();
            }
        });
        folded.map_err(|error| self.unreadable(number, frame.offset, &error))?;
        let spot = Spot::new(number, u64::try_from(frame.offset).unwrap_or(u64::MAX));
        self.shared.state().placed(self.sequence, spot, &self.shared.bodies);
        self.shared.durable.advance(self.sequence);
        let gathered = self.shared.state().fresh.weight();
        if gathered >= PART {
            // Not what the checkpoint knows of later segments.
            self.keeper.relieve(self.read);
        }
        Ok(())
    }

    /// Whether an end frame marks a clean stop. Then the next id is known exactly.
    fn end_frame(&mut self, frame: &Frame<'_>) -> Result<bool, RecordError> {
        let mut clean = false;
        for field in Fields::new(frame.payload, 0) {
            let field = field?;
            match field.tag {
                1 => clean = true,
                2 => self.reserved = field.number()?,
                _ => field.skip()?,
            }
        }
        Ok(clean)
    }

    /// Makes the last segment of an unclean stop durable, sealed, and free of what was torn.
    fn heal(
        &mut self,
        number: u64,
        content: &mut Window,
        tail: &Tail,
        identity: Identity,
    ) -> Result<(), OpenError> {
        let path = segment::path(self.folder, number);
        let failed = |error| OpenError::io(&path, error);
        let mut seal = None;
        // A write may have been torn within the padding of its frame.
        let end = tail.end.next_multiple_of(8);
        if !tail.sealed {
            let frame = heal::end_frame(number, self.batch, self.sequence, end, identity.salt);
            seal = Some(frame.ok_or_else(|| OpenError::NotAJournal(path.clone()))?);
        }
        let mut torn = Vec::new();
        if tail.torn {
            torn.extend_from_slice(content.rest(tail.end).map_err(failed)?);
            let zeros = torn.iter().rev().take_while(|byte| **byte == 0).count();
            torn.truncate(torn.len() - zeros);
        }
        let bytes = torn.len();
        let last = heal::Last { number, content, end, seal, torn };
        let healed = heal::heal(self.files, self.folder, last).map_err(failed)?;
        self.batch += u64::from(healed.sealed);
        if let Some(kept) = healed.kept {
            tracing::warn!(
                file = %kept.display(), bytes,
                "the last write before the crash was incomplete; nobody was told that it was stored; it is kept here"
            );
            self.out.torn = Some(kept);
        }
        Ok(())
    }

    fn damaged(&mut self, number: u64, offset: usize, length: usize) {
        let file = segment::path(self.folder, number);
        self.out.damage.push(Damage { file, offset, length, why: None });
    }

    fn newer(&self, number: u64, offset: usize) -> OpenError {
        OpenError::Newer(format!("{}:{offset}", segment::path(self.folder, number).display()))
    }

    fn unreadable(&self, number: u64, offset: usize, error: &RecordError) -> OpenError {
        let place = format!("{}:{offset}", segment::path(self.folder, number).display());
        match error {
            RecordError::Decode(DecodeError::Unknown(_)) => OpenError::Newer(place),
            RecordError::Vault(VaultError::WrongKey { found, expected }) => {
                OpenError::WrongKey { expected: *found, found: *expected }
            }
            error => OpenError::Unreadable { place, text: error.to_string() },
        }
    }
}
