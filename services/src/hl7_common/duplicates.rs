//! Messages that have been here before, and what they were told.
//!
//! A message is known by a hash of MSH-3, MSH-4, MSH-10 and its bytes; neither key nor value holds patient
//! data beyond the answer itself. What is known is committed in the transaction that stores the message and
//! completed when its answer exists, so that it survives a crash; what is being worked on is in memory, so
//! that a copy that comes meanwhile (on another connection, after the sender lost patience) waits for the
//! answer of the first. At most [`LIMIT`] messages are remembered, and none beyond `duplicate_window`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use septet_engine::host::{KeepFamily, ServiceContext};
use septet_hl7::{Message, Path};
use tokio::sync::watch;

/// The newest messages that are remembered, per service.
const LIMIT: usize = 1_000_000;
/// How many entries one message may push out: more than come in, so that the rest drains.
const EVICTED: usize = 8;

/// Names one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 16]);

/// A change to be committed with a message.
pub(super) type Change = (KeepFamily, String, Option<Bytes>);

/// What is known of a message.
#[derive(Debug)]
pub(super) enum Known {
    /// Nothing: it is the first. Whoever has the claim says what it is told.
    First(Claim),
    /// It was taken and told this; the change, put once more, is durable after whatever stored the message.
    Answered(Vec<Bytes>, Change),
    /// It is being worked on; the answers come here, `None` if there will be none.
    Busy(watch::Receiver<Option<Vec<Bytes>>>),
    /// It was taken, and the engine stopped before it was told anything.
    Unanswered,
}

/// The memory of one service.
#[derive(Debug)]
pub(super) struct Duplicates {
    cx: ServiceContext,
    window: Duration,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    busy: HashMap<Key, watch::Receiver<Option<Vec<Bytes>>>>,
    /// Oldest first, with the microsecond of each.
    order: VecDeque<(i64, Key)>,
}

/// The right to answer a message; given up when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    key: Key,
    at: i64,
    told: watch::Sender<Option<Vec<Bytes>>>,
    inner: Arc<Mutex<Inner>>,
}

impl Duplicates {
    /// Reads what the store remembers.
    pub(super) fn new(cx: ServiceContext, window: Duration) -> Self {
        let prefix = prefix(&cx);
        let kept = cx.runtime.keep.scan(KeepFamily::Duplicate, &prefix);
        let entry = |(name, value): (String, Bytes)| {
            let key = Key::from_hex(name.strip_prefix(&prefix)?)?;
            Some((Entry::read(value)?.at, key))
        };
        let mut order: Vec<(i64, Key)> = kept.into_iter().filter_map(entry).collect();
        order.sort_unstable_by_key(|(at, _)| *at);
        let inner = Inner { busy: HashMap::new(), order: order.into() };
        Duplicates { cx, window, inner: Arc::new(Mutex::new(inner)) }
    }

    /// What is known of a message.
    pub(super) fn look_up(&self, message: &Message) -> Known {
        let key = Key::of(message);
        let now = self.cx.runtime.clock.now().as_microsecond();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(busy) = inner.busy.get(&key) {
            return Known::Busy(busy.clone());
        }
        let kept = self.cx.runtime.keep.get(KeepFamily::Duplicate, &self.name(key)).and_then(Entry::read);
        match kept {
            Some(entry) if !self.expired(entry.at, now) => match entry.complete {
                true => {
                    let change = (KeepFamily::Duplicate, self.name(key), Some(entry.write()));
                    Known::Answered(entry.answers, change)
                }
                false => Known::Unanswered,
            },
            _ => {
                let (told, busy) = watch::channel(None);
                inner.busy.insert(key, busy);
                Known::First(Claim { key, at: now, told, inner: self.inner.clone() })
            }
        }
    }

    /// What is committed with the message: its answers as far as they are known, and what is forgotten for it.
    pub(super) fn changes(&self, claim: &Claim, answers: &[Bytes], complete: bool) -> Vec<Change> {
        let mut changes = vec![self.change(claim, answers, complete)];
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..EVICTED {
            let gone = inner.order.front().copied();
            let Some((at, key)) =
                gone.filter(|(at, _)| self.expired(*at, claim.at) || inner.order.len() >= LIMIT)
            else {
                break;
            };
            inner.order.pop_front();
            let name = self.name(key);
            let kept = self.cx.runtime.keep.get(KeepFamily::Duplicate, &name).and_then(Entry::read);
            // It may have come again after it expired: then its later entry counts.
            if kept.is_some_and(|kept| kept.at == at) && key != claim.key {
                changes.push((KeepFamily::Duplicate, name, None));
            }
        }
        inner.order.push_back((claim.at, claim.key));
        changes
    }

    /// The same entry with more, or the last, answers.
    pub(super) fn change(&self, claim: &Claim, answers: &[Bytes], complete: bool) -> Change {
        let entry = Entry { complete, at: claim.at, answers: answers.to_vec() };
        (KeepFamily::Duplicate, self.name(claim.key), Some(entry.write()))
    }

    fn expired(&self, at: i64, now: i64) -> bool {
        let window = i64::try_from(self.window.as_micros()).unwrap_or(i64::MAX);
        now.saturating_sub(at) > window
    }

    fn name(&self, key: Key) -> String {
        format!("{}{}", prefix(&self.cx), key.hex())
    }
}

impl Claim {
    /// Tells those who wait what the message was told.
    pub(super) fn complete(self, answers: Vec<Bytes>) {
        self.told.send_replace(Some(answers));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).busy.remove(&self.key);
    }
}

/// Item names hold no slash.
fn prefix(cx: &ServiceContext) -> String {
    format!("{}/", cx.item)
}

// === Key and entry ===

impl Key {
    fn of(message: &Message) -> Self {
        let mut hash = Context::new(&SHA256);
        for path in ["MSH-3", "MSH-4", "MSH-10"] {
            let value = message.raw_at(&path.parse::<Path>().expect("a valid path"));
            hash.update(&(value.len() as u64).to_be_bytes());
            hash.update(value);
        }
        hash.update(message.raw());
        let hash = hash.finish();
        Key(hash.as_ref().first_chunk().copied().unwrap_or_default())
    }

    fn hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    fn from_hex(text: &str) -> Option<Self> {
        u128::from_str_radix(text, 16).ok().map(|number| Key(number.to_be_bytes()))
    }
}

/// A kept entry: version 1, complete or not, microseconds, then each answer with its length.
struct Entry {
    complete: bool,
    at: i64,
    answers: Vec<Bytes>,
}

impl Entry {
    fn write(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(1);
        out.put_u8(u8::from(self.complete));
        out.put_i64(self.at);
        for answer in &self.answers {
            out.put_u32(u32::try_from(answer.len()).unwrap_or(u32::MAX));
            out.put_slice(answer);
        }
        out.freeze()
    }

    fn read(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != 1 {
            return None;
        }
        let complete = bytes.try_get_u8().ok()? == 1;
        let at = bytes.try_get_i64().ok()?;
        let mut answers = Vec::new();
        while bytes.has_remaining() {
            let length = bytes.try_get_u32().ok()? as usize;
            if length > bytes.len() {
                return None;
            }
            answers.push(bytes.split_to(length));
        }
        Some(Entry { complete, at, answers })
    }
}
