//! Looking for text in stored bodies. Nothing is indexed for it: the bodies of the messages that the other
//! filters leave are read, newest messages first, and searched.
//!
//! It goes in batches. The bodies of a batch that are not in memory are read in the order in which they lie
//! in the journal, those that lie close together at once: messages of one time are neighbours there, so most
//! reads are long and in sequence. Each batch is one blocking task; whoever drops the search (a client that
//! went away) ends it after the batch that is being read. A search stops at its bound of time or bytes, says
//! so, and tells where to go on. Few searches run at once, because they compete with messages for the disk.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use bytes::Bytes;
use jiff::SignedDuration;
use memchr::memmem::Finder;
use rustix::io::Errno;
use septet_hl7::{Charset, Message};
use tokio::sync::Semaphore;

use super::bodies::{Found, Place};
use super::readers::{ReadFailure, Readers};
use super::search::folded;
use super::{MessageFilter, Page, ReadError, Store, record};
use crate::header::Header;
use crate::id::BodyId;

/// How far one search goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) time: Duration,
    /// Bytes of bodies.
    pub(super) bytes: u64,
}

/// Long enough for a day of most stores; short enough for somebody who waits.
pub(super) const BOUND: Bound = Bound { time: Duration::from_secs(5), bytes: 1 << 30 };

/// How many searches run at once in this process.
static TURNS: Semaphore = Semaphore::const_new(2);
/// The first batch is small, because often the newest messages have what is looked for.
const FIRST: usize = 64;
const MOST: usize = 1024;
/// A batch has not many more bytes of bodies than this.
const BATCH: u64 = 8 << 20;
/// Bodies that are this close together are read at once, what lies between included…
const GAP: u64 = 32 << 10;
/// … up to so many bytes.
const RUN: u64 = 1 << 20;
/// How often bodies are looked for that a purge moves while they are read.
const LOOKS: usize = 4;

/// A text that bodies are searched for, in either case and in whatever charset a body is.
#[derive(Clone, Debug)]
pub(super) enum Needle {
    /// Its bytes, in lower case: most charsets write ASCII as ASCII.
    Ascii(Box<Finder<'static>>),
    /// Compared as search keys are.
    Beyond(Box<str>),
}

impl Needle {
    pub(super) fn new(text: &str) -> Self {
        match text.is_ascii() {
            true => Needle::Ascii(Box::new(Finder::new(&text.to_ascii_lowercase()).into_owned())),
            false => Needle::Beyond(folded(text).into()),
        }
    }

    /// Whether a body contains it; `scratch` saves making room for each.
    pub(super) fn is_in(&self, body: &[u8], scratch: &mut Vec<u8>) -> bool {
        match self {
            Needle::Ascii(finder) => {
                // To lower all of it and search that is several times faster than comparing letters either way.
                scratch.clear();
                match is_wide(body) {
                    true => scratch.extend_from_slice(decoded(body).as_bytes()),
                    false => scratch.extend_from_slice(body),
                }
                scratch.make_ascii_lowercase();
                finder.find(scratch).is_some()
            }
            // The escapes of ISO 2022 are ASCII.
            Needle::Beyond(_) if body.is_ascii() && !body.contains(&ESCAPE) && !is_wide(body) => false,
            Needle::Beyond(text) => folded(&decoded(body)).contains(&**text),
        }
    }
}

const ESCAPE: u8 = 0x1b;

/// Whether each of its characters takes two bytes or four: those of the beginning are ASCII.
fn is_wide(body: &[u8]) -> bool {
    let beginning = body.get(..4).unwrap_or(body);
    beginning.contains(&0) || beginning.starts_with(&[0xff, 0xfe]) || beginning.starts_with(&[0xfe, 0xff])
}

/// The text of a body: of an HL7 message in its charset, of anything else as what it most likely is.
fn decoded(body: &[u8]) -> String {
    let charset = Message::parse(Bytes::copy_from_slice(body)).map(|message| message.charset());
    let charset = charset.unwrap_or_else(|_| match std::str::from_utf8(body) {
        Ok(_) => Charset::UTF_8,
        Err(_) => Charset::LATIN_1,
    });
    charset.decode(body).into_owned()
}

impl Store {
    /// Messages that the filter selects and whose bodies contain `text`, newest first.
    pub(super) async fn search_text(
        &self,
        filter: &MessageFilter,
        text: &str,
        before: Option<u64>,
        limit: usize,
        bound: Bound,
    ) -> Result<Page<Header>, ReadError> {
        // Never closed.
        let _turn = TURNS.acquire().await;
        let time = SignedDuration::try_from(bound.time).unwrap_or(SignedDuration::MAX);
        let end = self.clock().now().saturating_add(time).unwrap_or(jiff::Timestamp::MAX);
        let needle = Needle::new(text);
        let mut entries: Vec<Header> = Vec::new();
        let (mut before, mut size, mut bytes) = (before, FIRST, 0u64);
        loop {
            let page = self.headers(filter.clone(), before, size).await?;
            let (mut batch, mut next) = (page.entries, page.next);
            let fits = fitting(&batch);
            if fits < batch.len() {
                batch.truncate(fits);
                next = batch.last().map(|header| header.id.0);
            }
            bytes = batch.iter().fold(bytes, |sum, header| sum.saturating_add(header.size));
            let last = batch.last().map(|header| header.created);
            let (store, needle) = (self.clone(), needle.clone());
            let found = tokio::task::spawn_blocking(move || store.containing(batch, &needle)).await;
            entries.extend(found.map_err(|error| ReadError::Search(error.to_string()))??);
            if entries.len() > limit {
                entries.truncate(limit);
                let next = entries.last().map(|header| header.id.0);
                return Ok(Page { entries, next, lag_ms: page.lag_ms, incomplete: None });
            }
            let ended = next.is_none();
            let incomplete = (!ended && (bytes >= bound.bytes || self.clock().now() >= end)).then(|| {
                let back = last.map_or_else(String::new, |last| format!(" back to {last}"));
                format!("bodies were searched{back} ({bytes} bytes); go on at next, or narrow the selection")
            });
            if ended || incomplete.is_some() {
                return Ok(Page { entries, next, lag_ms: page.lag_ms, incomplete });
            }
            before = next;
            size = (size * 2).min(MOST);
        }
    }

    /// Those of a batch whose bodies contain a text. A body that is gone contains nothing; neither does a
    /// damaged one, which is reported.
    fn containing(&self, batch: Vec<Header>, needle: &Needle) -> Result<Vec<Header>, ReadError> {
        let mut looking =
            Looking { needle, scratch: Vec::new(), found: HashSet::new(), moved: Vec::new(), bytes: 0 };
        let mut ids: BTreeSet<BodyId> = batch.iter().filter_map(|header| header.body_id).collect();
        // A purge may drop segments while they are read: what lives on is looked for where it is then.
        for _ in 0..LOOKS {
            self.search_bodies(&ids, &mut looking)?;
            ids = looking.moved.drain(..).collect();
            if ids.is_empty() {
                break;
            }
        }
        metrics::counter!("septet_store_text_searched_bytes_total").increment(looking.bytes);
        let found = looking.found;
        Ok(batch.into_iter().filter(|header| header.body_id.is_some_and(|id| found.contains(&id))).collect())
    }

    /// Searches bodies wherever they are now.
    fn search_bodies(&self, ids: &BTreeSet<BodyId>, looking: &mut Looking<'_>) -> Result<(), ReadError> {
        let (mut places, mut unknown) = (Vec::new(), Vec::new());
        for id in ids {
            match self.0.shared.bodies.find(*id) {
                Some(Found::Resident(body)) => looking.at(*id, body.bytes()),
                Some(Found::Absent(absent)) => places.push((*id, absent.place)),
                None => unknown.push(*id),
            }
        }
        let Some(embedded) = &self.0.embedded else { return Ok(()) };
        let indexed = self.indexed(|index| index.bodies(&unknown)).unwrap_or_default();
        // What was carried while the index was asked is in memory now.
        let known: HashSet<BodyId> = indexed.iter().map(|row| row.id).collect();
        for id in unknown.into_iter().filter(|id| !known.contains(id)) {
            if let Some(Found::Resident(body)) = self.0.shared.bodies.find(id) {
                looking.at(id, body.bytes());
            }
        }
        places.extend(indexed.into_iter().map(|row| (row.id, row.place)));
        for run in runs(places) {
            self.search_run(&embedded.readers, &run, looking)?;
        }
        Ok(())
    }

    /// Searches bodies that lie close together.
    fn search_run(&self, readers: &Readers, run: &Run, looking: &mut Looking<'_>) -> Result<(), ReadError> {
        let Some((first, place)) = run.bodies.first() else { return Ok(()) };
        let read = match readers.bytes(place.segment, run.start, run.end.saturating_sub(run.start)) {
            Ok(read) => read,
            // The segment has been purged.
            Err(ReadFailure::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                looking.moved.extend(run.bodies.iter().map(|(id, _)| *id));
                return Ok(());
            }
            // The file is shorter than it was, or the disk gives only some of it: what is there is found one by one.
            Err(ReadFailure::Damaged) => Vec::new(),
            Err(ReadFailure::Io(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                Vec::new()
            }
            Err(ReadFailure::Io(error)) => return Err(ReadError::Io(*first, error.to_string())),
        };
        for (id, place) in &run.bodies {
            let from = usize::try_from(place.offset.saturating_sub(run.start)).unwrap_or(usize::MAX);
            let length = usize::try_from(place.length).unwrap_or(usize::MAX);
            let stored = from.checked_add(length).and_then(|end| read.get(from..end));
            let whole = stored.filter(|stored| crc32fast::hash(stored) == place.crc);
            match whole {
                Some(stored) if !place.sealed => looking.at(*id, stored),
                _ => {
                    let stored = whole.map_or_else(|| readers.read(place).ok(), |whole| Some(whole.to_vec()));
                    let vault = &self.0.shared.vault;
                    match stored.and_then(|stored| record::open_body(stored, place.sealed, vault).ok()) {
                        Some(body) => looking.at(*id, &body),
                        None => drop(self.damaged_body(*id, place, &readers.name(place))),
                    }
                }
            }
        }
        Ok(())
    }
}

/// A batch that is being searched.
struct Looking<'a> {
    needle: &'a Needle,
    /// Saves making room for each body.
    scratch: Vec<u8>,
    found: HashSet<BodyId>,
    /// What was not where it was said to be.
    moved: Vec<BodyId>,
    bytes: u64,
}

impl Looking<'_> {
    fn at(&mut self, id: BodyId, body: &[u8]) {
        self.bytes = self.bytes.saturating_add(body.len() as u64);
        if self.needle.is_in(body, &mut self.scratch) {
            self.found.insert(id);
        }
    }
}

/// How many of these headers make a batch: at least one.
fn fitting(headers: &[Header]) -> usize {
    let mut sum = 0u64;
    let more = headers.iter().position(|header| {
        let full = sum >= BATCH;
        sum = sum.saturating_add(header.size);
        full
    });
    more.unwrap_or(headers.len())
}

/// Bodies of one segment that are read at once.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    start: u64,
    end: u64,
    bodies: Vec<(BodyId, Place)>,
}

/// Bodies in the order in which they lie in the journal, those close together in one run.
fn runs(places: Vec<(BodyId, Place)>) -> Vec<Run> {
    let sorted: BTreeMap<(u64, u64), (BodyId, Place)> =
        places.into_iter().map(|(id, place)| ((place.segment, place.offset), (id, place))).collect();
    let mut runs: Vec<Run> = Vec::new();
    for (id, place) in sorted.into_values() {
        let end = place.offset.saturating_add(u64::from(place.length));
        let near = |run: &&mut Run| {
            let same = run.bodies.last().is_some_and(|(_, last)| last.segment == place.segment);
            same && place.offset <= run.end.saturating_add(GAP) && end.saturating_sub(run.start) <= RUN
        };
        match runs.last_mut().filter(near) {
            Some(run) => {
                run.end = run.end.max(end);
                run.bodies.push((id, place));
            }
            None => runs.push(Run { start: place.offset, end, bodies: vec![(id, place)] }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_wherever_it_stands() {
        let contains = |body: &[u8], text: &str| Needle::new(text).is_in(body, &mut Vec::new());
        assert!(contains(b"PID|1||12345^^^A", "12345"));
        assert!(contains(b"PID|1||SMITH", "Smith"));
        assert!(contains(b"ab", ""));
        assert!(!contains(b"PID|1||1234", "12345"));
        assert!(contains("PID|1||M\u{fc}LLER".as_bytes(), "M\u{fc}ller"));
        assert!(contains(b"PID|1||M\xfcller", "m\u{fc}LLER"));
        assert!(!contains("\u{e9}".as_bytes(), "\u{e8}"));
        assert!(contains("PID|1||M\u{dc}LLER".as_bytes(), "mu\u{308}ller"));
    }

    #[test]
    fn text_is_found_in_the_charset_of_its_message() {
        let message = |charset: &str, name: &[u8]| {
            let head = format!("MSH|^~\\&|A|B|C|D|2026||ADT^A01|7|P|2.5||||||{charset}\rPID|1||1||");
            [head.as_bytes(), name, b"\r"].concat()
        };
        let contains = |body: &[u8], text: &str| Needle::new(text).is_in(body, &mut Vec::new());
        let cyrillic = message("8859/5", b"\xb8\xb2\xb0\xbd\xbe\xb2");
        assert!(contains(&cyrillic, "Иванов") && contains(&cyrillic, "adt^a01"));
        assert!(!contains(&cyrillic, "¸²°½¾²"), "what its bytes would be in another charset");
        assert!(contains(&message("ISO IR87", b"\x1b$B45<T\x1b(B"), "患者"));
        assert!(contains(&message("GB 18030-2000", b"\xcd\xf5"), "王"));
        let wide: Vec<u8> = String::from_utf8(message("UNICODE UTF-16", "Müller".as_bytes()))
            .unwrap()
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        assert!(contains(&wide, "MÜLLER") && contains(&wide, "Adt^A01") && !contains(&wide, "Meier"));
        assert!(contains("{\"name\":\"王\"}".as_bytes(), "王") && !contains(b"PID|1", "王"));
    }

    #[test]
    fn bodies_that_lie_close_together_are_read_at_once() {
        let place = |segment, offset, length| Place { segment, offset, length, crc: 0, sealed: false };
        let places =
            [(2, 0, 10), (1, 5000, 100), (1, 100, 1000), (1, 1 << 20, 10), (1, (1 << 20) + 10, 3 << 20)];
        let places = places.into_iter().enumerate();
        let places =
            places.map(|(id, (segment, offset, length))| (BodyId(id as u64), place(segment, offset, length)));
        let runs: Vec<_> = runs(places.collect())
            .into_iter()
            .map(|run| (run.start, run.end, run.bodies.into_iter().map(|(id, _)| id.0).collect::<Vec<_>>()))
            .collect();
        let long = 1u64 << 20;
        assert_eq!(
            runs,
            [
                (100, 5100, vec![2, 1]),
                (long, long + 10, vec![3]),
                (long + 10, long + 10 + (3 << 20), vec![4]),
                (0, 10, vec![0]),
            ]
        );
    }
}
