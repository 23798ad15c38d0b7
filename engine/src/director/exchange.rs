//! Builds the transactions that create headers: requests of services and processes, responses to whoever
//! waits for them. Nothing here decides *whether* to send; it knows how a leg looks in the trace.
//!
//! A response goes where its request says: into the queue of the process whose instance called, to the
//! service that waits in memory, or nowhere (then a header is kept only for a body worth keeping).

use std::sync::Arc;

use jiff::Timestamp;

use crate::body::{Body, Format};
use crate::director::core::{Answer, Core, Directory};
use crate::director::extract;
use crate::event::NewEvent;
use crate::fault::Fault;
use crate::header::{Header, Kind, ReplyTo, Status};
use crate::id::{BodyId, ItemName, MessageId, SessionId};
use crate::store::{Class, Committed, Conflict, Lease, Op, Permit, Transaction, Transition, Unavailable};

/// A body that is in the store, or in this draft.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) id: BodyId,
    pub(super) body: Body,
}

/// What a new request is, apart from its body.
#[derive(Clone, Debug)]
pub(super) struct Leg<'a> {
    pub(super) session: Option<SessionId>,
    pub(super) caused_by: Option<MessageId>,
    pub(super) source: &'a ItemName,
    pub(super) target: Option<&'a ItemName>,
    pub(super) control_id: Arc<str>,
    pub(super) reply_to: ReplyTo,
}

/// A transaction being written, with what must follow its commit.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    core: &'a Core,
    pub(super) directory: Arc<Directory>,
    pub(super) now: Timestamp,
    pub(super) ops: Vec<Op>,
    /// Bytes of new bodies and kept values.
    pub(super) bytes: u64,
    answers: Vec<(MessageId, Answer)>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(core: &'a Core) -> Self {
        let directory = core.directory();
        let now = core.store.clock().now();
        Draft { core, directory, now, ops: Vec::with_capacity(4), bytes: 0, answers: Vec::new() }
    }

    /// Stores a new body.
    pub(super) fn body(&mut self, body: Body) -> Placed {
        let id = BodyId(self.core.store.next_id());
        self.bytes += body.size() as u64;
        self.ops.push(Op::Body(id, body.clone()));
        Placed { id, body }
    }

    /// A header that is not yet in the draft: a queued request.
    pub(super) fn leg(&self, leg: Leg<'_>, placed: Option<&Placed>) -> Header {
        let id = MessageId(self.core.store.next_id());
        let routed = leg.target.and_then(|target| self.directory.get(target.as_str()));
        let order_keys = match (routed, placed) {
            (Some(routed), Some(placed)) if !routed.order_by.is_empty() => {
                let keys = extract::order_keys(&routed.order_by, &placed.body);
                if keys.is_empty() {
                    routed.meters.unordered.increment(1);
                }
                keys
            }
            _ => Arc::default(),
        };
        Header {
            id,
            session: leg.session.unwrap_or(id.into()),
            kind: Kind::Request,
            request_id: None,
            caused_by: leg.caused_by,
            resent_from: None,
            source: leg.source.clone(),
            target: leg.target.cloned(),
            type_name: placed.map_or_else(Arc::default, |placed| placed.body.shared_type_name()),
            control_id: leg.control_id,
            status: Status::Queued,
            error: None,
            attempts: 0,
            created: self.now,
            processed: None,
            body_id: placed.map(|placed| placed.id),
            size: placed.map_or(0, |placed| placed.body.size() as u64),
            keys: Arc::default(),
            reply_to: leg.reply_to,
            position: 0,
            order_keys,
            next_attempt: None,
            failing_since: None,
            unsolicited: false,
        }
    }

    /// Adds a header.
    pub(super) fn header(&mut self, header: Header) -> MessageId {
        let id = header.id;
        self.ops.push(Op::Header(Box::new(header)));
        id
    }

    /// A request that `parent`'s handling sends.
    pub(super) fn request(
        &mut self,
        parent: &Header,
        source: &ItemName,
        target: &ItemName,
        placed: &Placed,
        reply_to: ReplyTo,
    ) -> MessageId {
        let leg = Leg {
            session: Some(parent.session),
            caused_by: Some(parent.id),
            source,
            target: Some(target),
            control_id: self.control_id(parent, Some(placed)),
            reply_to,
        };
        let header = self.leg(leg, Some(placed));
        self.header(header)
    }

    /// The response that ends `request`, where one is wanted or worth keeping.
    pub(super) fn respond(&mut self, request: &Header, placed: Option<&Placed>, fault: Option<Fault>) {
        let status = match request.reply_to {
            // Nobody waits for the answer to a resend: it is kept for the record.
            _ if request.resent_from.is_some() && placed.is_none() => return,
            _ if request.resent_from.is_some() && request.reply_to != ReplyTo::Nobody => Status::Discarded,
            ReplyTo::Nobody if placed.is_none() => return,
            ReplyTo::Nobody => Status::Completed,
            ReplyTo::Call { .. } => Status::Queued,
            ReplyTo::Service if self.core.is_waited_for(request.id) => {
                let body = placed.map(|placed| placed.body.clone());
                self.answers.push((request.id, Answer { body, fault: fault.clone(), sequence: 0 }));
                Status::Completed
            }
            ReplyTo::Service => Status::Discarded,
        };
        let source = request.target.as_ref().unwrap_or(&request.source);
        let leg = Leg {
            session: Some(request.session),
            caused_by: Some(request.id),
            source,
            target: Some(&request.source),
            control_id: self.control_id(request, placed),
            reply_to: request.reply_to.clone(),
        };
        let mut header = self.leg(leg, placed);
        header.kind = Kind::Response;
        header.request_id = Some(request.id);
        header.order_keys = Arc::default();
        header.status = status;
        header.processed = status.is_final().then_some(self.now);
        header.error = fault;
        header.unsolicited = status.is_final();
        self.header(header);
    }

    /// MSH-10 of HL7; for records that of the session's first message.
    fn control_id(&self, parent: &Header, placed: Option<&Placed>) -> Arc<str> {
        match placed {
            Some(placed) if Some(placed.id) == parent.body_id => parent.control_id.clone(),
            Some(placed) if placed.body.format() == Format::Hl7 => {
                control_id(&placed.body).unwrap_or_default()
            }
            _ if parent.session == parent.id.into() => parent.control_id.clone(),
            _ => {
                let first = self.core.store.header(MessageId(parent.session.0));
                first.map_or_else(|| parent.control_id.clone(), |first| first.control_id)
            }
        }
    }

    /// A change of status.
    pub(super) fn transition(&mut self, transition: Transition) {
        self.ops.push(Op::Transition(transition));
    }

    /// A change of status under a lease.
    pub(super) fn finish(&mut self, lease: Lease, to: Status) {
        self.transition(Transition::new(lease.id, crate::store::Guard::Lease(lease), to));
    }

    /// An event.
    pub(super) fn event(&mut self, event: NewEvent) {
        self.ops.push(Op::Event(event));
    }

    /// Waits for room and commits.
    pub(super) async fn commit(self, class: Class) -> Result<Result<Committed, Conflict>, Unavailable> {
        let permit = self.core.store.reserve(class, self.bytes).await?;
        Ok(self.submit(permit))
    }

    /// Commits, and hands answers to the services that wait for them.
    pub(super) fn submit(self, permit: Permit) -> Result<Committed, Conflict> {
        let committed = self.core.store.submit(permit, Transaction::new(self.ops))?;
        for (request, answer) in self.answers {
            self.core.answer(request, Answer { sequence: committed.sequence, ..answer });
        }
        Ok(committed)
    }
}

/// MSH-10 of an HL7 body.
pub(super) fn control_id(body: &Body) -> Option<Arc<str>> {
    body.as_hl7().map(|message| Arc::from(&*message.control_id()))
}
