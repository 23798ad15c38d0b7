//! What operators do to messages: resend, replay, resume, discard. Everything here answers after
//! durability, and refuses rather than guesses.

use crate::body::Body;
use crate::director::core::Core;
use crate::director::engine::Engine;
use crate::director::exchange::{Draft, Leg, Placed};
use crate::director::{ControlError, ReplayReport, Resent};
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::header::{Header, Kind, ReplyTo, Status};
use crate::host::KeepFamily;
use crate::id::{ItemName, MessageId};
use crate::registry::ItemKind;
use crate::store::{
    Class, Committed, Conflict, Guard, MessageFilter, Op, ReadError, Transition, Unavailable,
};

/// Messages looked at in one go when a filter selects many.
const PAGE: usize = 500;

fn full(unavailable: &Unavailable) -> ControlError {
    ControlError::Unavailable(unavailable.to_string())
}

fn refused(conflict: Conflict) -> ControlError {
    match conflict {
        Conflict::Unknown(id) => ControlError::UnknownMessage(id),
        Conflict::Status { .. } | Conflict::Lease(_) => ControlError::NotAllowed(conflict.to_string()),
    }
}

impl Engine {
    fn core(&self) -> &Core {
        &self.0.core
    }

    fn header(&self, id: MessageId) -> Result<Header, ControlError> {
        self.core().store.header(id).ok_or(ControlError::UnknownMessage(id))
    }

    async fn durable(&self, committed: Committed) -> Result<(), ControlError> {
        let durable = self.core().store.durable(committed.sequence).await;
        durable.map(|_| ()).map_err(|failed| ControlError::Unavailable(failed.to_string()))
    }

    /// A new request over the stored (or an edited) body; durable when this returns.
    pub async fn resend(
        &self,
        id: MessageId,
        target: Option<&str>,
        body: Option<Body>,
        who: Option<&str>,
    ) -> Result<Resent, ControlError> {
        let (resent, committed) = self.send_again(id, target, body, who, "message.resent").await?;
        self.durable(committed).await?;
        Ok(resent)
    }

    async fn send_again(
        &self,
        id: MessageId,
        target: Option<&str>,
        edited: Option<Body>,
        who: Option<&str>,
        kind: &'static str,
    ) -> Result<(Resent, Committed), ControlError> {
        let original = self.header(id)?;
        let target = self.target_of(&original, target).map_err(|reason| match reason {
            Blocked::UnknownItem(name) => ControlError::UnknownItem(name),
            Blocked::Because(reason) => ControlError::NotAllowed(reason),
        })?;
        let stored = match &edited {
            Some(_) => None,
            None => Some(self.stored(&original).await.map_err(ControlError::NotAllowed)?),
        };
        let mut draft = Draft::new(self.core());
        // Reserved ids go up: the header comes first, so that lists show it before its body's number.
        let leg = Leg {
            session: Some(original.session),
            caused_by: None,
            source: &original.source,
            target: Some(&target),
            control_id: original.control_id.clone(),
            // Kept, so that the response shows to whom it would have gone; nobody gets it (see `respond`).
            reply_to: original.reply_to.clone(),
        };
        let mut keys = original.keys.clone();
        let placed = match (edited, stored) {
            (Some(body), _) => {
                // Found by what it says now.
                if let Some(source) = draft.directory.get(original.source.as_str()) {
                    keys = source.search_keys(&body);
                }
                draft.body(body)
            }
            (None, Some(placed)) => placed,
            (None, None) => return Err(ControlError::NotAllowed(format!("message {id} has no body"))),
        };
        let mut header = draft.leg(leg, Some(&placed));
        if let Some(id) = crate::director::exchange::control_id(&placed.body) {
            header.control_id = id;
        }
        header.resent_from = Some(original.id);
        header.keys = keys;
        let new = header.id;
        draft.header(header);
        let text = format!("sent again as message {new} to {target}");
        let event = NewEvent::new(Level::Info, kind, text).item(&target);
        draft.event(by(event.message(original.session, original.id), who));
        let committed = draft.commit(Class::Ingest).await.map_err(|e| full(&e))?.map_err(refused)?;
        Ok((Resent { id: new, session: original.session, resent_from: original.id }, committed))
    }

    /// Where a request may be sent again.
    fn target_of(&self, original: &Header, target: Option<&str>) -> Result<ItemName, Blocked> {
        if original.kind != Kind::Request {
            return Err(Blocked::Because("it is a response; only requests are sent again".to_owned()));
        }
        let name = match (target, &original.target) {
            (Some(name), _) => ItemName::new(name),
            (None, Some(name)) => name.clone(),
            (None, None) => return Err(Blocked::Because("it was rejected and has no target".to_owned())),
        };
        let directory = self.core().directory();
        match directory.get(name.as_str()) {
            None => Err(Blocked::UnknownItem(name.as_str().to_owned())),
            Some(routed) if routed.plan.kind == ItemKind::Service => {
                Err(Blocked::Because(format!("{name} is a service and receives no messages")))
            }
            Some(_) => Ok(name),
        }
    }

    async fn stored(&self, header: &Header) -> Result<Placed, String> {
        let Some(id) = header.body_id else { return Err("it has no body".to_owned()) };
        match self.core().store.body(id).await {
            Ok(body) => Ok(Placed { id, body }),
            Err(ReadError::Gone(_)) => Err("its body is no longer in the store".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A suspended message goes back to its place.
    pub async fn resume(&self, id: MessageId, who: Option<&str>) -> Result<(), ControlError> {
        let header = self.header(id)?;
        let mut draft = Draft::new(self.core());
        draft.transition(Transition::new(id, Guard::Status(Status::Suspended), Status::Queued));
        let event = NewEvent::new(Level::Info, "message.resumed", "put back to its place by an operator");
        draft.event(by(about(event, &header), who));
        let committed = draft.commit(Class::Completion).await.map_err(|e| full(&e))?.map_err(refused)?;
        self.core().call_changed(&header);
        self.durable(committed).await
    }

    /// A suspended or queued message will not be processed. In flight: refused.
    pub async fn discard(&self, id: MessageId, who: Option<&str>) -> Result<(), ControlError> {
        let header = self.header(id)?;
        if header.kind != Kind::Request || !matches!(header.status, Status::Suspended | Status::Queued) {
            let status = header.status.as_str();
            return Err(ControlError::NotAllowed(format!("message {id} is {status}")));
        }
        let mut draft = Draft::new(self.core());
        discard(&mut draft, &header);
        let event = NewEvent::new(Level::Info, "message.discarded", "discarded by an operator");
        draft.event(by(about(event, &header), who));
        let committed = draft.commit(Class::Completion).await.map_err(|e| full(&e))?.map_err(refused)?;
        self.core().call_changed(&header);
        self.core().forget_calls(id);
        self.durable(committed).await
    }

    /// Resends every request that the filter selects, oldest first, or says what would be.
    pub async fn replay(
        &self,
        filter: &MessageFilter,
        target: Option<&str>,
        dry_run: bool,
        who: Option<&str>,
    ) -> Result<ReplayReport, ControlError> {
        let selected = self.select(filter).await?;
        let mut report = ReplayReport { selected: selected.len() as u64, ..ReplayReport::default() };
        let mut replayable = Vec::new();
        for header in selected {
            match self.blocked(&header, target).await {
                Some(reason) => report.blocked.push((header.id, reason)),
                None => replayable.push(header.id),
            }
        }
        report.replayable = replayable.len() as u64;
        if dry_run || replayable.is_empty() {
            return Ok(report);
        }
        let text =
            format!("replay of {} messages, {} of them blocked", report.selected, report.blocked.len());
        self.core().store.log(by(NewEvent::new(Level::Info, "replay", text), who));
        let mut last = None;
        for id in replayable {
            match self.send_again(id, target, None, who, "message.resent").await {
                Ok((_, committed)) => last = Some(committed),
                // It was purged or its target went away since the check: say so, and go on.
                Err(ControlError::Unavailable(reason)) => return Err(ControlError::Unavailable(reason)),
                Err(error) => report.blocked.push((id, error.to_string())),
            }
        }
        if let Some(last) = last {
            self.durable(last).await?;
        }
        report.started = true;
        Ok(report)
    }

    /// Everything a filter selects, oldest first.
    async fn select(&self, filter: &MessageFilter) -> Result<Vec<Header>, ControlError> {
        let unreadable = |error: ReadError| ControlError::Unavailable(error.to_string());
        let mut selected = Vec::new();
        let mut before = None;
        loop {
            let page = self.core().store.search(filter, before, PAGE).await.map_err(unreadable)?;
            selected.extend(page.entries);
            match page.next {
                Some(next) => before = Some(next),
                None => break,
            }
        }
        selected.sort_by_key(|header| header.id);
        Ok(selected)
    }

    /// Why a message cannot be replayed.
    async fn blocked(&self, header: &Header, target: Option<&str>) -> Option<String> {
        let target = match self.target_of(header, target) {
            Ok(target) => target,
            Err(Blocked::UnknownItem(name)) => return Some(format!("there is no item named {name}")),
            Err(Blocked::Because(reason)) => return Some(reason),
        };
        let directory = self.core().directory();
        if directory.get(target.as_str()).is_some_and(|routed| !routed.plan.common.enabled) {
            return Some(format!("{target} is disabled"));
        }
        self.stored(header).await.err()
    }
}

enum Blocked {
    UnknownItem(String),
    Because(String),
}

fn by(event: NewEvent, who: Option<&str>) -> NewEvent {
    match who {
        Some(who) => event.who(who),
        None => event,
    }
}

fn about(event: NewEvent, header: &Header) -> NewEvent {
    let event = event.message(header.session, header.id);
    match &header.target {
        Some(target) => event.item(target),
        None => event,
    }
}

/// Discards a request that is not in flight; whoever waits for its answer gets the fault `call`.
pub(super) fn discard(draft: &mut Draft<'_>, header: &Header) {
    draft.transition(Transition::new(header.id, Guard::Status(header.status), Status::Discarded));
    if header.reply_to != ReplyTo::Nobody {
        let fault = Fault::new("call", "discarded", format!("request {} was discarded", header.id));
        draft.respond(header, None, Some(fault));
    }
    // A suspended process instance that will not go on.
    draft.ops.push(Op::Keep(KeepFamily::Instance, header.id.to_string(), None));
}
