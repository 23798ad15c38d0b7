//! What operators do to single messages: resend, resume, discard. Everything here answers after
//! durability, and refuses rather than guesses. For many at once see `replay` and `bulk`.

use jiff::Timestamp;

use crate::body::Body;
use crate::director::core::Core;
use crate::director::engine::Engine;
use crate::director::exchange::{Draft, Leg, Placed};
use crate::director::{ControlError, Resent, retention};
use crate::event::{Level, NewEvent};
use crate::fault::Fault;
use crate::header::{Header, Kind, ReplyTo, Status};
use crate::host::KeepFamily;
use crate::id::{ItemName, MessageId};
use crate::registry::ItemKind;
use crate::store::{
    Class, Committed, Conflict, Guard, Op, Purge, PurgeError, Purged, ReadError, Transition, Unavailable,
};

/// Why a message cannot be sent again.
pub(super) const NO_BODY: &str = "it has no body";
/// Why a message cannot be sent again.
const PURGED: &str = "its body is no longer in the store";

pub(super) fn full(unavailable: &Unavailable) -> ControlError {
    ControlError::Unavailable(unavailable.to_string())
}

/// Why a message cannot be sent again whose body cannot be had.
pub(super) fn unusable_body(error: &ReadError) -> String {
    match error {
        ReadError::Gone(_) => PURGED.to_owned(),
        ReadError::Corrupt { place, .. } => format!("body damaged at {place}"),
        error => error.to_string(),
    }
}

pub(super) fn refused(conflict: Conflict) -> ControlError {
    match conflict {
        Conflict::Unknown(id) => ControlError::UnknownMessage(id),
        Conflict::Status { .. } | Conflict::Lease(_) => ControlError::NotAllowed(conflict.to_string()),
    }
}

impl Engine {
    /// Drops sessions whose last activity is before a moment, now; counts only, with `dry_run`.
    pub async fn purge(
        &self,
        before: Timestamp,
        dry_run: bool,
        who: Option<&str>,
    ) -> Result<Purged, PurgeError> {
        let core = self.core();
        let audit_before = retention::audit_before(&core.store, &core.directory().plan.store);
        let purge = Purge { audit_before, dry_run, within: true, ..Purge::before(before) };
        retention::purge(&core.store, purge, who).await
    }

    pub(super) fn core(&self) -> &Core {
        &self.0.core
    }

    pub(super) fn header(&self, id: MessageId) -> Result<Header, ControlError> {
        self.core().store.header(id).ok_or(ControlError::UnknownMessage(id))
    }

    pub(super) async fn durable(&self, committed: Committed) -> Result<(), ControlError> {
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
        let original = self.header(id)?;
        let target = self.target_of(&original, target)?;
        let mut draft = Draft::new(self.core());
        let placed = match body {
            Some(edited) => draft.body(edited),
            None => self.stored(&original).await.map_err(ControlError::NotAllowed)?,
        };
        let new = again(&mut draft, &original, &target, &placed, who);
        let committed = draft.commit(Class::Ingest).await.map_err(|e| full(&e))?.map_err(refused)?;
        self.durable(committed).await?;
        Ok(Resent { id: new, session: original.session, resent_from: original.id })
    }

    /// Where a request may be sent again.
    pub(super) fn target_of(
        &self,
        original: &Header,
        target: Option<&str>,
    ) -> Result<ItemName, ControlError> {
        let refuse = |reason: String| Err(ControlError::NotAllowed(reason));
        if original.kind != Kind::Request {
            return refuse("it is a response; only requests are sent again".to_owned());
        }
        let name = match (target, &original.target) {
            (Some(name), _) => ItemName::new(name),
            (None, Some(name)) => name.clone(),
            (None, None) => return refuse("it was rejected and has no target".to_owned()),
        };
        let directory = self.core().directory();
        match directory.get(name.as_str()) {
            None => Err(ControlError::UnknownItem(name.as_str().to_owned())),
            Some(routed) if routed.plan.kind == ItemKind::Service => {
                refuse(format!("{name} is a service and receives no messages"))
            }
            Some(_) => Ok(name),
        }
    }

    /// The body of a message, read and checked.
    pub(super) async fn stored(&self, header: &Header) -> Result<Placed, String> {
        let Some(id) = header.body_id else { return Err(NO_BODY.to_owned()) };
        match self.core().store.body(id).await {
            Ok(body) => Ok(Placed { id, body }),
            Err(error) => Err(unusable_body(&error)),
        }
    }

    /// A suspended message goes back to its place.
    pub async fn resume(&self, id: MessageId, who: Option<&str>) -> Result<(), ControlError> {
        let committed = self.put_back(id, who).await?;
        self.durable(committed).await
    }

    /// A suspended or queued message will not be processed. In flight: refused.
    pub async fn discard(&self, id: MessageId, who: Option<&str>) -> Result<(), ControlError> {
        let committed = self.give_up(id, who).await?;
        self.durable(committed).await
    }

    /// Commits the way back of a suspended message; not yet durable.
    pub(super) async fn put_back(&self, id: MessageId, who: Option<&str>) -> Result<Committed, ControlError> {
        let header = self.header(id)?;
        let mut draft = Draft::new(self.core());
        draft.transition(Transition::new(id, Guard::Status(Status::Suspended), Status::Queued));
        let event = NewEvent::new(Level::Info, "message.resumed", "put back to its place by an operator");
        draft.event(by(about(event, &header), who));
        let committed = draft.commit(Class::Completion).await.map_err(|e| full(&e))?.map_err(refused)?;
        self.core().call_changed(&header);
        Ok(committed)
    }

    /// Commits the end of a suspended or queued message; not yet durable.
    pub(super) async fn give_up(&self, id: MessageId, who: Option<&str>) -> Result<Committed, ControlError> {
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
        Ok(committed)
    }
}

/// Adds a request to a draft that sends `original` once more, over its own body or an edited one.
pub(super) fn again(
    draft: &mut Draft<'_>,
    original: &Header,
    target: &ItemName,
    placed: &Placed,
    who: Option<&str>,
) -> MessageId {
    let leg = Leg {
        session: Some(original.session),
        caused_by: None,
        source: &original.source,
        target: Some(target),
        control_id: original.control_id.clone(),
        // Kept, so that the response shows to whom it would have gone; nobody gets it (see `respond`).
        reply_to: original.reply_to.clone(),
    };
    let mut header = draft.leg(leg, Some(placed));
    if let Some(id) = crate::director::exchange::control_id(&placed.body) {
        header.control_id = id;
    }
    header.resent_from = Some(original.id);
    header.keys = original.keys.clone();
    if Some(placed.id) != original.body_id
        && let Some(source) = draft.directory.get(original.source.as_str())
    {
        // Found by what it says now.
        header.keys = source.search_keys(&placed.body);
    }
    let new = draft.header(header);
    let text = format!("sent again as message {new} to {target}");
    let event = NewEvent::new(Level::Info, "message.resent", text).item(target);
    draft.event(by(event.message(original.session, original.id), who));
    new
}

/// Done by this account, where there are accounts.
pub(super) fn by(event: NewEvent, who: Option<&str>) -> NewEvent {
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
