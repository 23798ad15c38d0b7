//! The check of the journal: every segment in order, one in memory at a time.

use std::ops::Range;

use super::ids::Ids;
use super::scan::{self, Scan, scan};
use super::{Finding, Folder, KeyState, OfflineError, Report, salt};
use crate::files;
use crate::header::Kind;
use crate::store::change::Change;
use crate::store::checkpoint;
use crate::store::dropped;
use crate::store::journal::Identity;
use crate::store::open::OpenError;
use crate::store::record::{self, Entry, RecordError};
use crate::store::segment::{self, FRAME, Frame, FrameKind, HEADER, SegmentHeader};
use crate::vault::{Vault, VaultError};

/// What was found, for a repair.
#[derive(Debug)]
pub(super) struct Seen {
    /// Epoch and salt; absent where no frame can be read.
    pub(super) identity: Option<Identity>,
    /// The epoch is not known any more.
    pub(super) nameless: bool,
    pub(super) segments: Vec<Scan>,
    /// Segments that are missing before the first.
    pub(super) beginning: Range<u64>,
    /// The last transaction of the journal, and a later one that a checkpoint knows.
    pub(super) behind: Option<(u64, u64)>,
}

/// Reads all of it.
pub(super) fn look(
    folder: &Folder<'_>,
    vault: Option<Vault>,
    report: &mut Report,
) -> Result<Seen, OfflineError> {
    let headers: Vec<SegmentHeader> =
        folder.numbers.iter().rev().filter_map(|number| header(folder, *number)).collect();
    let mut seen = Seen {
        identity: None,
        nameless: headers.is_empty(),
        segments: Vec::new(),
        beginning: 0..0,
        behind: None,
    };
    let identity = match headers.first() {
        Some(header) => Some(Identity { epoch: header.epoch, salt: header.salt, key_id: header.key_id }),
        None => derived_identity(folder, vault.as_ref())?,
    };
    report.epoch = headers.first().map(|header| format!("{:016x}", header.epoch));
    let begins = folder.numbers.first().copied().unwrap_or(1);
    let mut records = Records { vault, begins, some_purged: begins > 1, ..Records::default() };
    if let (Some(vault), Some(header)) = (&records.vault, headers.first())
        && !vault.holds(header.key_id)
    {
        let (expected, found) = (header.key_id, vault.key_id());
        report.key = KeyState::Wrong(OpenError::WrongKey { expected, found }.to_string());
        records.vault = None;
    }
    let Some(identity) = identity else {
        for number in &folder.numbers {
            let file = segment::path(&folder.journal, *number);
            report.problem(Finding {
                kind: "header",
                file,
                offset: Some(0),
                length: None,
                text: "no part of it can be read".into(),
            });
        }
        return Ok(seen);
    };
    seen.identity = Some(identity);
    let last = folder.numbers.last().copied();
    for number in folder.numbers.iter().copied() {
        let path = segment::path(&folder.journal, number);
        let (content, whole) =
            scan::content(folder.files, &path).map_err(|error| OpenError::io(&path, error))?;
        records.begin(number, SegmentHeader::decode(&content).filter(|header| header.salt == identity.salt));
        let mut scan = scan(&content, number, identity.salt, &mut |frame| records.look(&content, frame));
        scan.unreadable = !whole;
        if let Some(text) = records.wrong_key.take() {
            report.key = KeyState::Wrong(text);
            records.vault = None;
        }
        report.counts.segments += 1;
        report.counts.bytes += scan.length as u64;
        report.counts.frames += scan.frames;
        describe(folder, &scan, identity, seen.segments.last(), Some(number) == last, report);
        records.describe(&path, report);
        report.clean = scan.clean;
        seen.segments.push(scan);
    }
    records.add_to(&mut report.counts);
    seen.beginning = beginning(folder, &records);
    for missing in seen.beginning.clone() {
        let (file, text) = (segment::path(&folder.journal, missing), "the file is missing".to_owned());
        report.problem(Finding { kind: "missing", file, offset: None, length: None, text });
    }
    seen.behind = behind(folder, &records);
    if let (Some((there, known)), Some(last)) = (seen.behind, seen.segments.last()) {
        let text = format!(
            "transactions {} to {known} are missing at its end: the newest checkpoint has their state",
            there + 1
        );
        let (file, offset) = (segment::path(&folder.journal, last.number), Some(last.end as u64));
        report.problem(Finding { kind: "tail", file, offset, length: None, text });
    }
    Ok(seen)
}

/// What is missing before the first segment, though no purge has dropped it.
fn beginning(folder: &Folder<'_>, records: &Records) -> Range<u64> {
    let first = folder.numbers.first().copied().unwrap_or(1);
    let purged = match records.vault {
        Some(_) => records.dropped_before_first,
        // It cannot be read what purges have dropped.
        None => folder.checkpoint.is_some_and(|checkpoint| checkpoint >= first),
    };
    if purged { 0..0 } else { dropped::missing(records.dropped, first) }
}

/// The last transaction in the journal and the last that the newest checkpoint knows, where that is more.
fn behind(folder: &Folder<'_>, records: &Records) -> Option<(u64, u64)> {
    let (vault, there) = (records.vault.as_ref()?, records.sequence?);
    let newest = checkpoint::load(folder.files, &folder.path, vault).ok()?.newest?;
    let known = newest.snapshot.sequence;
    (known > there).then_some((there, known))
}

fn header(folder: &Folder<'_>, number: u64) -> Option<SegmentHeader> {
    let file = folder.files.open(&segment::path(&folder.journal, number)).ok()?;
    let mut header = [0; HEADER];
    files::read_exact(&*file, &mut header, 0).ok()?;
    SegmentHeader::decode(&header).filter(|header| header.number == number)
}

/// Without a single header: the salt from the frames, the key that was given, and no name.
fn derived_identity(folder: &Folder<'_>, vault: Option<&Vault>) -> Result<Option<Identity>, OfflineError> {
    for number in folder.numbers.iter().rev().copied() {
        let path = segment::path(&folder.journal, number);
        let (content, _) = scan::content(folder.files, &path).map_err(|error| OpenError::io(&path, error))?;
        if let Some(salt) = salt::of_segment(&content, number) {
            let key_id = vault.map(Vault::key_id).unwrap_or_default();
            return Ok(Some(Identity { epoch: 0, salt, key_id }));
        }
    }
    Ok(None)
}

/// What is wrong with a segment as a file, and with its place among the others.
fn describe(
    folder: &Folder<'_>,
    scan: &Scan,
    identity: Identity,
    before: Option<&Scan>,
    last: bool,
    report: &mut Report,
) {
    let path = |number| segment::path(&folder.journal, number);
    let mut problem = |kind, number, offset: Option<usize>, length: Option<usize>, text: String| {
        let (offset, length) = (offset.map(|n| n as u64), length.map(|n| n as u64));
        report.problem(Finding { kind, file: path(number), offset, length, text });
    };
    let number = scan.number;
    for missing in before.map_or(number, |before| before.number + 1)..number {
        problem("missing", missing, None, None, "the file is missing".into());
    }
    if scan.unreadable {
        let text = "the disk cannot give all of it: what it cannot give counts as lost";
        problem("unreadable", number, None, None, text.into());
    }
    match scan.header {
        None => problem("header", number, Some(0), Some(HEADER), "its header cannot be read".into()),
        Some(header) if header.epoch != identity.epoch => {
            problem(
                "foreign",
                number,
                Some(0),
                None,
                format!("it belongs to another store ({:016x})", header.epoch),
            );
        }
        Some(_) => {}
    }
    for gap in &scan.gaps {
        problem("frame", number, Some(gap.offset), Some(gap.length), gap.why.clone());
    }
    for (offset, before, after) in &scan.skips {
        let text =
            format!("frame {after} follows frame {before}: {} are missing", after.saturating_sub(before + 1));
        problem("frame", number, Some(*offset), None, text);
    }
    if let Some(offset) = scan.newer {
        problem("newer", number, Some(offset), None, "a newer version wrote this".into());
    }
    match (&scan.senseless, last) {
        (Some(why), _) if scan.tail > 0 => {
            problem("frame", number, Some(scan.end), Some(scan.tail), why.clone())
        }
        (None, false) if scan.tail > 0 => {
            problem(
                "tail",
                number,
                Some(scan.end),
                Some(scan.tail),
                "no whole frame, to the end of the file".into(),
            );
        }
        _ => {}
    }
    if let (Some(before), Some(header)) = (before.filter(|before| before.number + 1 == number), scan.header) {
        let missing = before.last.map_or(0, |last| header.batch.saturating_sub(last.batch + 1));
        // Without damage that has been told already.
        if missing > 0
            && before.tail == 0
            && (before.sealed || header.sequence > before.last.map_or(0, |last| last.sequence))
        {
            let text = format!("{missing} frames are missing at its end");
            problem("tail", before.number, Some(before.end), None, text);
        }
    }
    if last && scan.tail > 0 && scan.senseless.is_none() {
        let text = "what a crash left incomplete; nobody was told that it was stored; opening cuts it";
        let (offset, length) = (Some(scan.end as u64), Some(scan.tail as u64));
        report.notes.push(Finding {
            kind: "torn",
            file: path(number),
            offset,
            length,
            text: text.to_owned(),
        });
    }
}

/// What the transactions say, over all segments.
#[derive(Debug, Default)]
struct Records {
    vault: Option<Vault>,
    wrong_key: Option<String>,
    segment: u64,
    counts: super::Counts,
    headers: Ids,
    bodies: Ids,
    /// The segment that the journal begins with.
    begins: u64,
    /// The last segment that a purge has dropped, and whether that one, or a later, is the one before the journal begins.
    dropped: u64,
    dropped_before_first: bool,
    /// The journal does not begin with its first segment.
    some_purged: bool,
    /// Then ids up to here may have been purged.
    purged: u64,
    first: Option<u64>,
    sequence: Option<u64>,
    batch: Option<u64>,
    /// A repair has marked something as lost: what is missing from here on follows from that.
    lost: bool,
    /// Of the segment that is being read.
    bodies_bad: Vec<(u64, u64, u64)>,
    missing: Vec<(&'static str, usize, String)>,
}

impl Records {
    /// The next segment. Its header may go on behind what is there: with what a checkpoint had when the store was
    /// opened.
    fn begin(&mut self, number: u64, header: Option<SegmentHeader>) {
        self.segment = number;
        self.bodies_bad.clear();
        self.missing.clear();
        let (Some(before), Some(batch), Some(header)) = (self.sequence, self.batch, header) else { return };
        if header.batch == batch + 1 && header.sequence > before {
            let text = format!(
                "transactions {} to {} are not in the journal; a checkpoint had their state",
                before + 1,
                header.sequence
            );
            self.missing.push(("lost", 0, text));
            self.lost = true;
            self.sequence = Some(header.sequence);
        }
    }

    /// Reads a whole frame; gives how many transactions it holds.
    fn look(&mut self, content: &[u8], frame: &Frame<'_>) -> Result<u64, String> {
        if self.batch.is_some_and(|before| before + 1 != frame.header.batch) {
            // Told as missing frames already.
            self.sequence = None;
        }
        self.batch = Some(frame.header.batch);
        let Some(vault) = self.vault.clone().filter(|_| frame.header.kind == FrameKind::Batch) else {
            return Ok(0);
        };
        let mut entries = Vec::new();
        let decoded = record::decode(frame.payload, self.segment, frame.offset + FRAME, &vault, |entry| {
            entries.push(entry)
        });
        match decoded {
            Ok(()) => {}
            Err(RecordError::Vault(error @ VaultError::WrongKey { .. })) => {
                self.wrong_key.get_or_insert(error.to_string());
                return Ok(0);
            }
            Err(error) => return Err(format!("a whole frame that cannot be read: {error}")),
        }
        let mut transactions = 0;
        for entry in entries {
            match entry {
                Entry::Reservation(_) => {}
                Entry::Lost(frames) => {
                    self.sequence = Some(frame.header.sequence);
                    self.lost = true;
                    let text = format!("an earlier repair marked {frames} frames as lost here");
                    self.missing.push(("lost", frame.offset, text));
                }
                Entry::Commit(commit, places) => {
                    transactions += 1;
                    for (_, place) in &places {
                        let bytes = usize::try_from(place.offset).ok().and_then(|from| {
                            content.get(from..from.checked_add(usize::try_from(place.length).ok()?)?)
                        });
                        if bytes.is_none_or(|bytes| crc32fast::hash(bytes) != place.crc) {
                            self.bodies_bad.push((place.offset, u64::from(place.length), commit.sequence));
                        }
                    }
                    self.commit(frame.offset, commit.sequence, &commit.changes);
                }
            }
        }
        Ok(transactions)
    }

    /// Whether what is not there may have been in a segment that was purged: what is older than the end of the
    /// first segment that is there.
    fn may_be_purged(&self, id: u64) -> bool {
        let in_first = self.first.is_none_or(|first| first == self.segment);
        self.some_purged && (in_first || id <= self.purged)
    }

    fn commit(&mut self, offset: usize, sequence: u64, changes: &[Change]) {
        self.counts.transactions += 1;
        if let Some(before) = self.sequence.filter(|before| before + 1 != sequence) {
            let text = format!("transaction {sequence} follows transaction {before}");
            self.missing.push(("sequence", offset, text));
        }
        self.sequence = Some(sequence);
        for change in changes {
            if let Change::Body(id, _) = change {
                self.counts.bodies += 1;
                self.bodies.add(id.0);
            }
        }
        for change in changes {
            match change {
                Change::Body(..) => {}
                // Of what came before only this is left.
                Change::Carried(header) => self.headers.add(header.id.0),
                // Of a segment behind whose end this stands, only the purge speaks that drops it.
                Change::Expired(segment, _) => self.dropped_before_first |= *segment + 1 == self.begins,
                Change::Header(header) => {
                    self.counts.headers += 1;
                    if *self.first.get_or_insert(self.segment) == self.segment {
                        self.purged = self.purged.max(header.id.0);
                    }
                    let known = |ids: &Ids, id: u64| ids.has(id) || self.may_be_purged(id);
                    let mut lacks = Vec::new();
                    if let Some(body) = header.body_id.filter(|body| !known(&self.bodies, body.0)) {
                        lacks.push(format!("message {} has body {body}, which is not there", header.id));
                    }
                    let request = header.request_id.filter(|_| header.kind == Kind::Response);
                    if let Some(request) = request.filter(|request| !known(&self.headers, request.0)) {
                        lacks.push(format!("response {} answers {request}, which is not there", header.id));
                    }
                    self.missing.extend(lacks.into_iter().map(|text| ("reference", offset, text)));
                    self.headers.add(header.id.0);
                }
                Change::Move(change) => {
                    let id = change.id;
                    if !self.headers.has(id.0) && !self.may_be_purged(id.0) {
                        let text = format!("a change of message {id}, which is not there");
                        self.missing.push(("reference", offset, text));
                    }
                }
                Change::Event(_) => self.counts.events += 1,
                Change::Keep(..) => {
                    self.counts.kept += 1;
                    if let Some(segment) = dropped::said_by(change) {
                        self.dropped = self.dropped.max(segment);
                        self.dropped_before_first |= segment + 1 >= self.begins;
                    }
                }
            }
        }
    }

    /// What is wrong in the segment that has just been read.
    fn describe(&mut self, path: &std::path::Path, report: &mut Report) {
        for (offset, length, sequence) in self.bodies_bad.drain(..) {
            let text = format!("a body of transaction {sequence} does not fit its checksum");
            let file = path.to_owned();
            report.problem(Finding { kind: "body", file, offset: Some(offset), length: Some(length), text });
        }
        for (kind, offset, text) in self.missing.drain(..) {
            let finding =
                Finding { kind, file: path.to_owned(), offset: Some(offset as u64), length: None, text };
            match kind {
                "lost" => report.note(finding),
                "reference" if self.lost => report.note(finding),
                _ => report.problem(finding),
            }
        }
    }

    fn add_to(&self, counts: &mut super::Counts) {
        *counts = super::Counts {
            segments: counts.segments,
            bytes: counts.bytes,
            frames: counts.frames,
            ..self.counts
        };
    }
}
