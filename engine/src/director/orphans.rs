//! Queues whose item is not in the plan. Starting and reloading refuse them unless told what to do, so that
//! a renamed or removed item never leaves messages behind unseen.

use std::sync::Arc;

use crate::config::plan::Plan;
use crate::director::control;
use crate::director::core::Core;
use crate::director::exchange::{Draft, Leg, Placed};
use crate::director::{Orphans, StartError};
use crate::event::{Level, NewEvent};
use crate::header::{Header, Kind, ReplyTo, Status};
use crate::id::ItemName;
use crate::registry::ItemKind;
use crate::store::{Class, Guard, MessageFilter, Store, Transition};

const PAGE: usize = 500;

/// Items that have messages and no place in the plan.
pub(super) fn find(store: &Store, plan: &Plan) -> Vec<(ItemName, u64)> {
    let receives = |name: &ItemName| plan.item(name).is_some_and(|item| item.kind != ItemKind::Service);
    store.queued_items().into_iter().filter(|(name, count)| *count > 0 && !receives(name)).collect()
}

/// Whether `orphans` says what to do with all of them, and can be done.
pub(super) fn check(found: &[(ItemName, u64)], plan: &Plan, orphans: &Orphans) -> Result<(), StartError> {
    let named = |(name, count): &(ItemName, u64)| format!("{name} ({count})");
    let left: Vec<String> = match orphans {
        Orphans::Hold | Orphans::Discard => Vec::new(),
        Orphans::Refuse => found.iter().map(named).collect(),
        Orphans::Rename(pairs) => {
            let receives =
                |name: &ItemName| plan.item(name).is_some_and(|item| item.kind != ItemKind::Service);
            if let Some((_, to)) = pairs.iter().find(|(_, to)| !receives(to)) {
                return Err(StartError::Orphans(format!(
                    "{to} is not in the production and cannot take them"
                )));
            }
            found.iter().filter(|(name, _)| !pairs.iter().any(|(from, _)| from == name)).map(named).collect()
        }
    };
    if left.is_empty() { Ok(()) } else { Err(StartError::Orphans(left.join(", "))) }
}

/// Does what was asked for with the queues that are orphaned.
pub(super) async fn resolve(
    core: &Core,
    found: &[(ItemName, u64)],
    orphans: &Orphans,
) -> Result<(), StartError> {
    for (name, count) in found {
        let to = match orphans {
            Orphans::Refuse | Orphans::Hold => {
                tracing::warn!(item = %name, messages = count, "held: the item is not in the production");
                continue;
            }
            Orphans::Discard => None,
            Orphans::Rename(pairs) => match pairs.iter().find(|(from, _)| from == name) {
                Some((_, to)) => Some(to),
                None => continue,
            },
        };
        let text = match to {
            Some(to) => format!("{count} messages moved to {to}: the item is not in the production"),
            None => format!("{count} messages discarded: the item is not in the production"),
        };
        for header in headers(core, name).await? {
            settle(core, &header, to).await?;
        }
        core.store.log(NewEvent::new(Level::Warning, "message.discarded", text).item(name));
    }
    Ok(())
}

async fn headers(core: &Core, name: &ItemName) -> Result<Vec<Header>, StartError> {
    let filter = MessageFilter {
        target: Some(name.as_str().to_owned()),
        // Delivered: an instance of a process that is gone.
        status: vec![Status::Queued, Status::Delivered, Status::Suspended],
        ..MessageFilter::default()
    };
    let (mut headers, mut before) = (Vec::new(), None);
    loop {
        let page = core.store.search(&filter, before, PAGE).await;
        let page = page.map_err(|error| StartError::Store(error.to_string()))?;
        headers.extend(page.entries);
        match page.next {
            Some(next) => before = Some(next),
            None => break,
        }
    }
    headers.sort_by_key(|header| header.position);
    Ok(headers)
}

/// Discards one message, and with a new target queues it again there in the same transaction.
async fn settle(core: &Core, header: &Header, to: Option<&ItemName>) -> Result<(), StartError> {
    let failed = |reason: String| StartError::Store(reason);
    let mut draft = Draft::new(core);
    if header.kind == Kind::Response {
        draft.transition(Transition::new(header.id, Guard::Status(header.status), Status::Discarded));
    } else {
        control::discard(&mut draft, header);
        if let Some(to) = to {
            let placed = match header.body_id {
                Some(id) => {
                    let body = core.store.body(id).await.map_err(|error| failed(error.to_string()))?;
                    Some(Placed { id, body })
                }
                None => None,
            };
            let leg = Leg {
                session: Some(header.session),
                caused_by: header.caused_by,
                source: &header.source,
                target: Some(to),
                control_id: Arc::clone(&header.control_id),
                reply_to: ReplyTo::Nobody,
            };
            let mut moved = draft.leg(leg, placed.as_ref());
            moved.resent_from = Some(header.id);
            moved.keys = header.keys.clone();
            moved.status = match header.status {
                Status::Suspended => Status::Suspended,
                _ => Status::Queued,
            };
            moved.error = header.error.clone();
            draft.header(moved);
        }
    }
    let committed = draft.commit(Class::Completion).await.map_err(|error| failed(error.to_string()))?;
    committed.map(|_| ()).map_err(|conflict| failed(conflict.to_string()))
}
