//! The way in: what a service receives becomes one transaction with the body, one request per target, its
//! search keys, its findings and whatever the service keeps with it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::director::core::{Answer, Core, Routed};
use crate::director::exchange::{self, Draft, Leg};
use crate::event::{Level, NewEvent};
use crate::header::{Header, ReplyTo, Status};
use crate::host::{Accepted, Inbound, Intake, Pending, Refused, ServiceReply};
use crate::id::{ItemName, MessageId};
use crate::store::{Class, Committed, Conflict, Op, Receipt, Store, StoreFailed};

/// The intake of one running service.
#[derive(Debug)]
pub(super) struct Door {
    core: Arc<Core>,
    routed: Arc<Routed>,
    /// Cancelled when the service is stopped at its deadline: nobody waits for replies any more.
    ended: CancellationToken,
}

impl Door {
    pub(super) fn new(core: Arc<Core>, routed: Arc<Routed>, ended: CancellationToken) -> Self {
        Door { core, routed, ended }
    }

    fn name(&self) -> &ItemName {
        &self.routed.plan.name
    }

    /// Who answers: `reply_from`, or the only target.
    fn answers(&self, target: &ItemName) -> bool {
        let common = &self.routed.plan.common;
        match &common.reply_from {
            Some(from) => from == target,
            None => common.targets.first() == Some(target),
        }
    }
}

#[async_trait]
impl Intake for Door {
    async fn receive(&self, inbound: Inbound) -> Result<Accepted, Refused> {
        if self.ended.is_cancelled() {
            return Err(Refused::Stopping);
        }
        let store = &self.core.store;
        let size = inbound.body.size() as u64;
        let permit = match store.reserve(Class::Ingest, size).await {
            Ok(permit) => permit,
            Err(refused) => return Err(Refused::Unavailable(refused.to_string())),
        };

        let mut draft = Draft::new(&self.core);
        let name = self.name();
        let control_id: Arc<str> = match inbound.control_id {
            Some(id) => id.into(),
            None => exchange::control_id(&inbound.body).unwrap_or_default(),
        };
        let keys = self.routed.search_keys(&inbound.body);
        // The session is named after its first header, so headers take their ids before the body does.
        let leg = |target| Leg {
            session: inbound.session,
            caused_by: None,
            source: name,
            target,
            control_id: control_id.clone(),
            reply_to: ReplyTo::Nobody,
        };
        let targets: Vec<Option<&ItemName>> = match (&inbound.reject, &*self.routed.plan.common.targets) {
            (Some(_), _) | (None, []) => vec![None],
            (None, targets) => targets.iter().map(Some).collect(),
        };
        let placed = exchange::Placed { id: crate::id::BodyId(0), body: inbound.body };
        let mut headers: Vec<Header> =
            targets.into_iter().map(|target| draft.leg(leg(target), Some(&placed))).collect();
        let body_id = draft.body(placed.body).id;
        let Some(first) = headers.first().map(|header| header.id) else { return Err(Refused::Stopping) };
        let session = inbound.session.unwrap_or(first.into());

        let mut waiting = None;
        for header in &mut headers {
            header.session = session;
            header.body_id = Some(body_id);
            header.keys = keys.clone();
            match (&header.target, &inbound.reject) {
                (Some(target), _) if inbound.wants_reply && self.answers(target) => {
                    header.reply_to = ReplyTo::Service;
                    waiting = Some(Waiting { request: header.id, answer: self.core.wait_for(header.id) });
                }
                (Some(_), _) => {}
                (None, reject) => {
                    header.status = if reject.is_some() { Status::Error } else { Status::Completed };
                    header.error.clone_from(reject);
                    header.processed = Some(draft.now);
                }
            }
        }
        if let Some(fault) = &inbound.reject {
            let mut event = NewEvent::new(Level::Warning, "message.rejected", fault.to_string());
            event.detail.clone_from(&fault.detail);
            draft.event(event.item(name).message(session, first));
        }
        for finding in inbound.findings {
            draft.event(finding.item(name).message(session, first));
        }
        if let Some(parent) = inbound.parent_session {
            let event = NewEvent::new(Level::Info, "trace", "continues a session of another production");
            draft.event(event.item(name).message(session, first).detail(parent));
        }
        for (family, key, value) in inbound.keep {
            draft.ops.push(Op::Keep(family, key, value));
        }
        let ids = headers.iter().map(|header| header.id).collect();
        for header in headers {
            draft.header(header);
        }
        // New headers have no guards, so this cannot conflict; if it did, nothing has been taken.
        let committed =
            draft.submit(permit).map_err(|conflict: Conflict| Refused::Unavailable(conflict.to_string()))?;
        match inbound.reject {
            Some(_) => self.routed.meters.errors.increment(1),
            None => self.routed.meters.received.increment(1),
        }
        let pending = Awaited { core: self.core.clone(), committed, waiting, ended: self.ended.clone() };
        Ok(Accepted { session, headers: ids, pending: Box::new(pending) })
    }

    fn accepting(&self) -> bool {
        self.core.store.accepting()
    }

    async fn until_accepting(&self) {
        self.core.store.until_accepting().await;
    }
}

#[derive(Debug)]
struct Waiting {
    request: MessageId,
    answer: oneshot::Receiver<Answer>,
}

/// A committed message of a service that may wait for more.
#[derive(Debug)]
struct Awaited {
    core: Arc<Core>,
    committed: Committed,
    waiting: Option<Waiting>,
    ended: CancellationToken,
}

impl Awaited {
    fn store(&self) -> &Store {
        &self.core.store
    }
}

#[async_trait]
impl Pending for Awaited {
    async fn durable(&self) -> Result<Receipt, StoreFailed> {
        self.store().durable(self.committed.sequence).await
    }

    async fn reply(&mut self, timeout: Duration) -> ServiceReply {
        let Some(mut waiting) = self.waiting.take() else { return ServiceReply::Timeout };
        let clock = self.store().clock().clone();
        let answer = tokio::select! {
            biased;
            answer = &mut waiting.answer => answer.ok(),
            () = clock.sleep(timeout) => None,
            () = self.ended.cancelled() => {
                self.core.stop_waiting(waiting.request);
                return ServiceReply::Stopping;
            }
        };
        self.core.stop_waiting(waiting.request);
        // A reply that was committed while the time ran out is still a reply.
        let answer = answer.or_else(|| waiting.answer.try_recv().ok());
        let Some(answer) = answer else { return ServiceReply::Timeout };
        match self.store().durable(answer.sequence).await {
            Ok(_) => ServiceReply::Reply { body: answer.body, fault: answer.fault },
            Err(_) => ServiceReply::Stopping,
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(waiting) = &self.waiting {
            self.core.stop_waiting(waiting.request);
        }
    }
}
