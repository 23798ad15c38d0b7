//! Headers as the state keeps them: item names are numbers, types are shared, and what only unfinished
//! messages need is apart.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use crate::fault::Fault;
use crate::header::{Header, Kind, ReplyTo, Status};
use crate::id::{BodyId, IdMap, ItemName, MessageId, SessionId};

/// No item: the target of a rejected frame.
const NOBODY: u32 = u32::MAX;

/// One header.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) status: Status,
    pub(super) kind: Kind,
    unsolicited: bool,
    pub(super) attempts: u32,
    pub(super) source: u32,
    target: u32,
    pub(super) session: u64,
    request_id: u64,
    caused_by: u64,
    resent_from: u64,
    pub(super) body_id: u64,
    size: u64,
    pub(super) position: u64,
    /// The last transaction that changed it.
    pub(super) sequence: u64,
    pub(super) created: Micros,
    processed: Micros,
    pub(super) type_name: Arc<str>,
    pub(super) control_id: Arc<str>,
    pub(super) keys: Arc<[(Arc<str>, String)]>,
    /// Absent where everything in it would be empty, as for most finished messages.
    extra: Option<Box<Extra>>,
}

#[derive(Clone, Debug, Default)]
struct Extra {
    error: Option<Fault>,
    reply_to: ReplyTo,
    order_keys: Arc<[u64]>,
    next_attempt: Micros,
    failing_since: Micros,
}

impl Extra {
    fn is_empty(&self) -> bool {
        self.error.is_none()
            && self.reply_to == ReplyTo::Nobody
            && self.order_keys.is_empty()
            && self.next_attempt == Micros::NONE
            && self.failing_since == Micros::NONE
    }
}

impl Row {
    pub(super) fn new(header: &Header, sequence: u64, names: &mut Names) -> Row {
        let extra = Extra {
            error: header.error.clone(),
            reply_to: header.reply_to.clone(),
            order_keys: header.order_keys.clone(),
            next_attempt: header.next_attempt.into(),
            failing_since: header.failing_since.into(),
        };
        Row {
            status: match header.status {
                Status::Delivered => Status::Queued,
                status => status,
            },
            kind: header.kind,
            unsolicited: header.unsolicited,
            attempts: header.attempts,
            source: names.item(&header.source),
            target: header.target.as_ref().map_or(NOBODY, |target| names.item(target)),
            session: header.session.0,
            request_id: header.request_id.map_or(0, |id| id.0),
            caused_by: header.caused_by.map_or(0, |id| id.0),
            resent_from: header.resent_from.map_or(0, |id| id.0),
            body_id: header.body_id.map_or(0, |id| id.0),
            size: header.size,
            position: header.position,
            sequence,
            created: Some(header.created).into(),
            processed: header.processed.into(),
            type_name: names.text(&header.type_name),
            control_id: header.control_id.clone(),
            keys: header.keys.clone(),
            extra: (!extra.is_empty()).then(|| Box::new(extra)),
        }
    }

    pub(super) fn header(&self, id: MessageId, names: &Names) -> Header {
        let extra = self.extra.as_deref();
        let some = |id: u64| (id != 0).then_some(MessageId(id));
        Header {
            id,
            session: SessionId(self.session),
            kind: self.kind,
            request_id: some(self.request_id),
            caused_by: some(self.caused_by),
            resent_from: some(self.resent_from),
            source: names.name(self.source),
            target: self.target().map(|target| names.name(target)),
            type_name: self.type_name.clone(),
            control_id: self.control_id.clone(),
            status: self.status,
            error: extra.and_then(|extra| extra.error.clone()),
            attempts: self.attempts,
            created: self.created.time().unwrap_or_default(),
            processed: self.processed.time(),
            body_id: (self.body_id != 0).then_some(BodyId(self.body_id)),
            size: self.size,
            keys: self.keys.clone(),
            reply_to: extra.map(|extra| extra.reply_to.clone()).unwrap_or_default(),
            position: self.position,
            order_keys: self.order_keys(),
            next_attempt: extra.and_then(|extra| extra.next_attempt.time()),
            failing_since: extra.and_then(|extra| extra.failing_since.time()),
            unsolicited: self.unsolicited,
        }
    }

    /// How many bytes of text it has: keys, control id, error.
    pub(super) fn text_bytes(&self) -> usize {
        let keys: usize = self.keys.iter().map(|(name, value)| name.len() + value.len()).sum();
        let extra = self.extra.as_deref().map_or(0, |extra| {
            let text = |fault: &Fault| {
                let detail = fault.detail.as_ref().map_or(0, |detail| detail.0.len());
                fault.text.len() + detail
            };
            extra.error.as_ref().map_or(0, text) + extra.order_keys.len() * 8
        });
        keys + self.control_id.len() + extra
    }

    pub(super) fn target(&self) -> Option<u32> {
        (self.target != NOBODY).then_some(self.target)
    }

    /// It came from outside: nothing in this store caused it.
    pub(super) fn came_in(&self) -> bool {
        self.kind == Kind::Request && self.caused_by == 0 && self.resent_from == 0
    }

    pub(super) fn order_keys(&self) -> Arc<[u64]> {
        self.extra.as_ref().map(|extra| extra.order_keys.clone()).unwrap_or_default()
    }

    pub(super) fn next_attempt(&self) -> Option<Timestamp> {
        self.extra.as_ref().and_then(|extra| extra.next_attempt.time())
    }

    /// When it was created or finished, in microseconds since 1970.
    pub(super) fn last_activity(&self) -> i64 {
        self.created.0.max(self.processed.0)
    }

    /// Queued and never tried: the header in the journal says all there is to say.
    pub(super) fn is_as_born(&self) -> bool {
        let untried = |extra: &Extra| {
            extra.error.is_none() && extra.next_attempt == Micros::NONE && extra.failing_since == Micros::NONE
        };
        self.status == Status::Queued && self.attempts == 0 && self.extra.as_deref().is_none_or(untried)
    }

    /// Forgets that it must wait.
    pub(super) fn hurry(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.next_attempt = Micros::NONE;
        }
    }

    /// Folds a transition; `at` is when it was submitted.
    pub(super) fn change(&mut self, change: &super::change::Move, sequence: u64, at: Timestamp) {
        let adds = |error: &Option<Option<Fault>>| matches!(error, Some(Some(_)));
        if adds(&change.error) || change.next_attempt.is_some() || change.failing_since.is_some() {
            self.extra.get_or_insert_default();
        }
        if let Some(extra) = &mut self.extra {
            if let Some(error) = &change.error {
                extra.error.clone_from(error);
            }
            extra.next_attempt = change.next_attempt.into();
            extra.failing_since = change.failing_since.into();
        }
        self.extra.take_if(|extra| extra.is_empty());
        self.status = match change.to {
            Status::Delivered => Status::Queued,
            to => to,
        };
        self.sequence = sequence;
        if let Some(attempts) = change.attempts {
            self.attempts = attempts;
        }
        if change.to.is_final() {
            self.processed = Some(at).into();
        }
    }
}

/// A moment in microseconds, or none, in eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Micros(i64);

impl Micros {
    pub(super) const NONE: Micros = Micros(i64::MIN);

    pub(super) fn time(self) -> Option<Timestamp> {
        if self == Self::NONE { None } else { Timestamp::from_microsecond(self.0).ok() }
    }
}

impl Default for Micros {
    fn default() -> Self {
        Self::NONE
    }
}

impl From<Option<Timestamp>> for Micros {
    fn from(time: Option<Timestamp>) -> Self {
        time.map_or(Self::NONE, |time| Micros(time.as_microsecond()))
    }
}

/// Shared texts that are remembered. Types come from outside: beyond it those that no row has are forgotten.
const TEXTS: usize = 4096;

/// Item names as numbers, and shared texts.
#[derive(Debug, Default)]
pub(super) struct Names {
    items: Vec<ItemName>,
    numbers: IdMap<ItemName, u32>,
    texts: HashSet<Arc<str>>,
}

impl Names {
    /// The items by their numbers, and nothing else.
    pub(super) fn items(&self) -> Names {
        Names { items: self.items.clone(), ..Names::default() }
    }

    /// The number of an item, given at first sight.
    pub(super) fn item(&mut self, name: &ItemName) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.items.len()).unwrap_or(NOBODY);
        self.items.push(name.clone());
        self.numbers.insert(name.clone(), number);
        number
    }

    /// The number of an item that has been seen.
    pub(super) fn known(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    pub(super) fn name(&self, number: u32) -> ItemName {
        let name = usize::try_from(number).ok().and_then(|index| self.items.get(index));
        name.cloned().unwrap_or_else(|| ItemName::new(""))
    }

    /// The one shared copy of a text that occurs often.
    pub(super) fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        if self.texts.len() >= TEXTS {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
        }
        if self.texts.len() < TEXTS {
            self.texts.insert(text.clone());
        }
        text.clone()
    }
}
