//! The repair: what the check found, turned into steps, and the steps done one after the other. Each replaces
//! a whole file at once, so that a repair that is cut short is gone on with by the next.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::scan::{self, Scan};
use super::{Folder, KeyState, Keys, OfflineError, Report, check_with, look};
use crate::clock::SharedClock;
use crate::event::{Level, NewEvent};
use crate::files::{self, Files};
use crate::host::{Keep as _, KeepFamily};
use crate::store::Store;
use crate::store::codec::Encoder;
use crate::store::dropped;
use crate::store::heal::end_frame;
use crate::store::journal::Identity;
use crate::store::key;
use crate::store::open::{OpenError, Options};
use crate::store::record;
use crate::store::segment::{self, FRAME, FrameHeader, FrameKind, HEADER, Position, SegmentHeader};

/// The folder, in the store's, for what could not be read.
pub(super) const QUARANTINE: &str = "quarantine";

/// One thing that a repair does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Action {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// How many bytes are set aside.
    pub length: u64,
    /// What is done.
    pub text: String,
}

/// What a repair did, or would do.
#[derive(Clone, Debug, Serialize)]
pub struct Repair {
    /// The check before.
    pub before: Report,
    /// What is done, in order.
    pub actions: Vec<Action>,
    /// The check afterwards; absent where nothing was done.
    pub after: Option<Report>,
}

/// A new version of a segment's file.
#[derive(Debug)]
struct Step {
    number: u64,
    /// These bytes of the old file are set aside; everything, where it ends behind the file.
    aside: Vec<(usize, usize)>,
    /// These go in their place.
    patches: Vec<(usize, Vec<u8>)>,
    /// The new file ends here, before `tail`.
    end: Option<usize>,
    tail: Vec<u8>,
    /// The disk cannot give all of the old file: it is set aside as it is.
    whole_aside: bool,
    /// For people.
    texts: Vec<(usize, usize, String)>,
}

/// Repairs a store that nobody has open; without `write` only says what would be done. With it, the store has
/// been opened and closed once when this returns.
pub async fn repair(
    files: Arc<dyn Files>,
    clock: SharedClock,
    path: &Path,
    keys: &Keys,
    write: bool,
) -> Result<Repair, OfflineError> {
    let (before, actions, begins) = {
        let folder = Folder::open(&files, path)?;
        let (before, seen) = look(&folder, keys)?;
        match &before.key {
            KeyState::Right => {}
            KeyState::Missing(text) | KeyState::Wrong(text) => {
                return Err(OpenError::Io { path: path.to_owned(), text: text.clone() }.into());
            }
        }
        if let Some(newer) = before.problems.iter().find(|problem| problem.kind == "newer") {
            return Err(OpenError::Newer(newer.file.display().to_string()).into());
        }
        let steps = Plan::new(&folder, seen.identity, seen.nameless)?.steps(&seen.segments)?;
        let derived: Vec<PathBuf> = before
            .problems
            .iter()
            .filter(|problem| problem.kind == "derived")
            .map(|problem| problem.file.clone())
            .collect();
        let length = |file: &PathBuf| files.open(file).and_then(|file| file.length()).unwrap_or_default();
        let lengths: Vec<u64> = derived.iter().map(length).collect();
        if write {
            for step in &steps {
                step.run(&folder).map_err(|error| OpenError::io(&folder.path, error))?;
            }
            for file in &derived {
                set_file_aside(&folder, file).map_err(|error| OpenError::io(file, error))?;
            }
        }
        let mut actions = actions(path, &steps);
        if let (Some((there, known)), Some(last)) = (seen.behind, seen.segments.last()) {
            actions.push(Action {
                file: segment::path(&folder.journal, last.number),
                offset: last.end as u64,
                length: 0,
                text: format!("the journal goes on behind transaction {known}: a checkpoint has the state of those after {there}"),
            });
        }
        actions.extend(seen.beginning.clone().map(|number| Action {
            file: segment::path(&folder.journal, number),
            offset: 0,
            length: 0,
            text: "the file is missing, and so is what was in it: the journal begins behind it".to_owned(),
        }));
        let begins = (!seen.beginning.is_empty()).then_some(seen.beginning.end);
        actions.extend(derived.into_iter().zip(lengths).map(|(file, length)| {
            Action {
                file,
                offset: 0,
                length,
                text: "a derived file that cannot be used is set aside; it is made again from the journal"
                    .to_owned(),
            }
        }));
        (before, actions, begins)
    };
    if !write || actions.is_empty() {
        return Ok(Repair { before, actions, after: None });
    }
    // The proof that it opens; and who looks at its events later learns of it.
    let options = Options {
        key: keys.key.clone(),
        old_keys: keys.old.clone(),
        segment_size: 1 << 20,
        min_free: Some(0),
        ..Options::new(path)
    };
    let store = Store::open(options, clock, files.clone())?;
    for action in &actions {
        let text = format!("repaired {}:{}: {}", action.file.display(), action.offset, action.text);
        store.log(NewEvent::new(Level::Warning, "store.repaired", text));
    }
    if let Some(first) = begins {
        let given_up = store.put(KeepFamily::Counter, dropped::KEY, Some(dropped::encode(first - 1))).await;
        given_up.map_err(|error| OpenError::Io { path: path.to_owned(), text: error.to_string() })?;
    }
    store.close().await.map_err(|error| OpenError::io(path, error))?;
    drop(store);
    let after = check_with(&files, path, keys)?;
    Ok(Repair { before, actions, after: Some(after) })
}

fn actions(path: &Path, steps: &[Step]) -> Vec<Action> {
    let folder = path.join("journal");
    let of = |step: &Step| {
        let file = segment::path(&folder, step.number);
        let action = move |(offset, length, text): &(usize, usize, String)| Action {
            file: file.clone(),
            offset: *offset as u64,
            length: *length as u64,
            text: text.clone(),
        };
        step.texts.iter().map(action).collect::<Vec<_>>()
    };
    steps.iter().flat_map(of).collect()
}

/// What every step needs to know, and how far the journal is whole.
struct Plan {
    identity: Identity,
    nameless: bool,
    /// The last frame and transaction before what comes next.
    batch: u64,
    sequence: u64,
}

/// The frame and the transaction before it that a part of the journal begins with.
#[derive(Clone, Copy)]
struct Anchor {
    batch: u64,
    sequence: u64,
}

impl Plan {
    fn new(folder: &Folder<'_>, identity: Option<Identity>, nameless: bool) -> Result<Plan, OfflineError> {
        let Some(mut identity) = identity else {
            // Not one frame of any file: there is nothing to keep apart from the damage.
            return Err(OpenError::NotAJournal(folder.journal.clone()).into());
        };
        if nameless {
            identity.epoch = key::new_epoch().map_err(OpenError::from)?;
        }
        Ok(Plan { identity, nameless, batch: 0, sequence: 0 })
    }

    fn steps(mut self, segments: &[Scan]) -> Result<Vec<Step>, OfflineError> {
        let mut steps = Vec::new();
        let usable = |scan: &&Scan| scan.first.is_some() || scan.header.is_some();
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(steps) };
        if let Some(anchor) = segments.iter().find(usable).and_then(anchor) {
            (self.batch, self.sequence) = (anchor.batch.saturating_sub(1), anchor.sequence);
        }
        let mut number = first.number;
        while number <= last.number {
            let scan = segments.iter().find(|scan| scan.number == number);
            let next = segments.iter().filter(usable).find(|scan| scan.number > number);
            let between = next.map_or(0, |next| next.number - number - 1);
            let step = match scan.filter(usable) {
                Some(scan) => self.mend(scan, next.and_then(anchor), between, number == last.number),
                None => self.placeholder(number, scan, next.and_then(anchor), between),
            };
            steps.extend(step);
            number += 1;
        }
        Ok(steps)
    }

    /// A segment of which something can be read.
    fn mend(&mut self, scan: &Scan, next: Option<Anchor>, between: u64, last: bool) -> Option<Step> {
        let mut step = Step::new(scan.number);
        step.replaces(scan);
        let Identity { epoch, salt, key_id } = self.identity;
        if scan.header.is_none_or(|header| header.epoch != epoch) {
            let key_id = scan.header.map_or(key_id, |header| header.key_id);
            let header = SegmentHeader {
                number: scan.number,
                epoch,
                salt,
                key_id,
                sequence: self.sequence,
                batch: self.batch + 1,
            };
            let name = if self.nameless { "; the store gets a new name (epoch)" } else { "" };
            let text = format!("its header is made again from what follows{name}");
            step.replace(0, HEADER, header.encode(), text);
        }
        for gap in &scan.gaps {
            let before = gap.before.map_or(self.batch, |before| before.batch);
            let frames = gap.after.batch.saturating_sub(before + 1).max(1);
            let frame =
                self.lost(scan.number, gap.offset, gap.length, frames, gap.after.batch - 1, gap.sequence);
            let text = format!("{frames} frames cannot be read ({}) and are marked as lost", gap.why);
            step.replace(gap.offset, gap.length, frame, text);
        }
        if let Some(frame) = scan.last {
            (self.batch, self.sequence) = (frame.batch, frame.sequence);
        }
        if !scan.sealed {
            self.end(scan, next, between, last, &mut step);
        }
        step.some()
    }

    /// The end of a segment that lacks its end frame.
    fn end(&mut self, scan: &Scan, next: Option<Anchor>, between: u64, last: bool, step: &mut Step) {
        // A write may have been torn within the padding of its frame.
        let (at, number) = (scan.end.next_multiple_of(8), scan.number);
        let missing =
            next.map_or(0, |next| next.batch.saturating_sub(self.batch + 1)).saturating_sub(between);
        let senseless = scan.senseless.is_some();
        if last && !senseless || missing == 0 && scan.tail == 0 {
            // Opening cuts what is torn; and a segment whose successor goes on with the next frame is whole.
            return;
        }
        let mut tail = Vec::new();
        // What is missing before the successor is lost here, but for the end frame itself.
        let lost = if last {
            1
        } else if between == 0 {
            missing.saturating_sub(1)
        } else {
            0
        };
        if lost > 0 {
            self.batch += lost;
            self.sequence = next.map_or(self.sequence, |next| next.sequence);
            tail = self.lost(number, at, 0, lost, self.batch, self.sequence);
        }
        if missing > 0 {
            self.batch += 1;
            let sealed = end_frame(number, self.batch, self.sequence, at + tail.len(), self.identity.salt);
            tail.extend(sealed.unwrap_or_default());
        }
        let text = match lost {
            0 => "what follows its last whole frame is set aside".to_owned(),
            _ => format!("what follows its last whole frame is set aside; {lost} frames are marked as lost"),
        };
        step.texts.push((at, scan.tail, text));
        if scan.tail > 0 {
            step.aside.push((at, scan.tail));
        }
        (step.end, step.tail) = (Some(at), tail);
    }

    /// A file in place of one that is missing, or of which nothing can be read.
    fn placeholder(
        &mut self,
        number: u64,
        scan: Option<&Scan>,
        next: Option<Anchor>,
        between: u64,
    ) -> Option<Step> {
        let mut step = Step::new(number);
        let Identity { epoch, salt, key_id } = self.identity;
        let (batch, sequence) = (self.batch + 1, self.sequence);
        let header = SegmentHeader { number, epoch, salt, key_id, sequence, batch };
        let mut content = header.encode();
        // The last of several takes all that is missing; the others get their end frames.
        let missing = next.map_or(2, |next| next.batch.saturating_sub(self.batch + 1));
        if between == 0 && missing > 1 {
            let lost = missing - 1;
            self.batch += lost;
            self.sequence = next.map_or(self.sequence, |next| next.sequence);
            content.extend(self.lost(number, HEADER, 0, lost, self.batch, self.sequence));
        }
        self.batch += 1;
        content.extend(end_frame(number, self.batch, self.sequence, content.len(), salt).unwrap_or_default());
        let length = scan.map_or(0, |scan| scan.length);
        if let Some(scan) = scan {
            step.replaces(scan);
        }
        let text = match scan {
            None => "the file is missing: one that marks its content as lost is put in its place",
            Some(_) => "nothing of it can be read: it is set aside, and its content is marked as lost",
        };
        if length > 0 {
            step.aside.push((0, length));
        }
        step.texts.push((0, length, text.to_owned()));
        (step.end, step.tail) = (Some(0), content);
        Some(step)
    }

    /// A frame that says that `frames` were lost, exactly `length` bytes long where that is not 0.
    fn lost(&self, number: u64, at: usize, length: usize, frames: u64, batch: u64, sequence: u64) -> Vec<u8> {
        let mut payload = Encoder::default();
        let room = length.saturating_sub(FRAME);
        if length == 0 || room >= 8 {
            record::encode_lost(frames, room, &mut payload);
        }
        let synced = Position { segment: number, offset: at as u64 };
        let header = FrameHeader { kind: FrameKind::Batch, segment: number, batch, sequence, synced };
        segment::encode_frame(&header, self.identity.salt, &payload.buffer).unwrap_or_default()
    }
}

fn anchor(scan: &Scan) -> Option<Anchor> {
    let header = scan.header.map(|header| Anchor { batch: header.batch, sequence: header.sequence });
    header.or_else(|| scan.first.map(|first| Anchor { batch: first.batch, sequence: first.sequence }))
}

impl Step {
    fn new(number: u64) -> Step {
        Step {
            number,
            aside: Vec::new(),
            patches: Vec::new(),
            end: None,
            tail: Vec::new(),
            whole_aside: false,
            texts: Vec::new(),
        }
    }

    fn replace(&mut self, offset: usize, length: usize, by: Vec<u8>, text: String) {
        self.aside.push((offset, length));
        self.patches.push((offset, by));
        self.texts.push((offset, length, text));
    }

    /// A file that the disk cannot give all of gets another in its place, with what it can.
    fn replaces(&mut self, scan: &Scan) {
        self.whole_aside = scan.unreadable;
        if scan.unreadable {
            let text = "the disk cannot give all of it: a file with what it can takes its place";
            self.texts.push((0, scan.length, text.to_owned()));
        }
    }

    fn some(self) -> Option<Step> {
        (!self.texts.is_empty()).then_some(self)
    }

    fn run(&self, folder: &Folder<'_>) -> io::Result<()> {
        let path = segment::path(&folder.journal, self.number);
        let mut content = match scan::content(folder.files, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            content => content?.0,
        };
        for (offset, length) in &self.aside {
            let bytes = content.get(*offset..content.len().min(offset + length)).unwrap_or_default();
            set_aside(folder, self.number, *offset, bytes)?;
        }
        for (offset, patch) in &self.patches {
            if content.len() < offset + patch.len() {
                content.resize(offset + patch.len(), 0);
            }
            if let Some(place) = content.get_mut(*offset..offset + patch.len()) {
                place.copy_from_slice(patch);
            }
        }
        if let Some(end) = self.end {
            content.resize(end, 0);
            content.extend_from_slice(&self.tail);
        }
        let aside = folder.journal.join(".repaired.part");
        let file = folder.files.create(&aside)?;
        files::write_all(&*file, &mut [IoSlice::new(&content)], 0)?;
        file.sync()?;
        if self.whole_aside {
            set_file_aside(folder, &path)?;
        }
        folder.files.rename(&aside, &path)?;
        folder.files.sync_dir(&folder.journal)
    }
}

/// Moves a file that is of no use out of the way.
fn set_file_aside(folder: &Folder<'_>, file: &Path) -> io::Result<()> {
    let quarantine = folder.path.join(QUARANTINE);
    folder.files.create_dir(&quarantine)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    folder.files.rename(file, &quarantine.join(format!("{name}.bad")))?;
    folder.files.sync_dir(&quarantine)?;
    folder.files.sync_dir(file.parent().unwrap_or(&folder.path))
}

/// Keeps bytes of a segment, under a name that says where they were.
fn set_aside(folder: &Folder<'_>, number: u64, offset: usize, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let quarantine = folder.path.join(QUARANTINE);
    folder.files.create_dir(&quarantine)?;
    let names = folder.files.list(&quarantine)?;
    let name = |suffix: &str| format!("{}-{offset}{suffix}.bad", segment::file_name(number));
    let mut free = std::iter::once(name("")).chain((1u32..).map(|n| name(&format!("-{n}"))));
    let name = free.find(|name| !names.contains(name)).unwrap_or_default();
    files::write_new(folder.files, &quarantine, &name, bytes)
}
