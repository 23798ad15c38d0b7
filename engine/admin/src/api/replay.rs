//! Replays: check what a selection would send again, start it, watch it, cancel it.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use septet_engine::director::{Engine, Order, Replay};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

use crate::api::control::{Blocked, dry_run, filter, only, text};
use crate::api::messages::json;
use crate::api::{Who, id};
use crate::view::time;
use crate::{Context, Problem};

/// What a replay does, or would do.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReplayReportView {
    /// How many messages the filter selects.
    selected: u64,
    /// How many of them can be sent again.
    replayable: u64,
    /// Those that cannot, and why; the oldest thousand.
    blocked: Vec<Blocked>,
    /// How many cannot.
    blocked_count: u64,
    /// How many of the replayable ones their receiver would get twice: completed there, still queued there,
    /// or sent there again before.
    duplicates: u64,
    /// `false`: there may be more duplicates than were counted.
    duplicates_complete: bool,
    /// `false`: not every body was read; some of the replayable ones may turn out to be damaged.
    bodies_complete: bool,
    /// Whether it was started.
    started: bool,
    /// Its number, for `GET /api/v1/replays/{id}`; null where nothing was started.
    id: Option<u64>,
}

/// Sends every request again that a filter selects, oldest first, at `rate` messages a second (500; at most
/// 10000), in the background; with `dry_run` only says what would be.
#[utoipa::path(post, path = "/api/v1/replay", request_body = Object, responses(
    (status = 200, body = ReplayReportView), (status = 400, body = Problem), (status = 404, body = Problem),
    (status = 409, body = Problem, description = "enough replays are at work already")
))]
pub(crate) async fn start(
    State(context): State<Context>,
    Extension(who): Who,
    body: Bytes,
) -> Result<Json<ReplayReportView>, Problem> {
    let options = json(&body)?;
    only(&options, &["filter", "target", "dry_run", "rate"])?;
    let who = who.name.as_deref();
    let order = Order {
        target: text(&options, "target")?.map(str::to_owned),
        dry_run: dry_run(&options)?,
        rate: rate(&options)?,
        filter: filter(&context, who, &options).await?,
    };
    let report = context.parts.engine.replay(&order, who).await?;
    Ok(Json(ReplayReportView {
        selected: report.selected,
        replayable: report.replayable,
        blocked: Blocked::all(report.blocked),
        blocked_count: report.blocked_count,
        duplicates: report.duplicates,
        duplicates_complete: report.duplicates_complete,
        bodies_complete: report.bodies_complete,
        started: report.started,
        id: report.id,
    }))
}

fn rate(options: &Value) -> Result<Option<u32>, Problem> {
    let wrong = || Problem::bad_request("rate takes a whole number of messages a second, 1 to 10000");
    match options.get("rate") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let rate = value.as_u64().and_then(|rate| u32::try_from(rate).ok()).ok_or_else(wrong)?;
            if Order::RATES.contains(&rate) { Ok(Some(rate)) } else { Err(wrong()) }
        }
    }
}

/// A replay, at work or ended.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReplayView {
    id: u64,
    /// `running`, `completed`, `cancelled` or `interrupted` (the engine stopped, cleanly or not).
    #[schema(value_type = String)]
    state: &'static str,
    /// Who ordered it.
    who: Option<String>,
    cancelled_by: Option<String>,
    /// The filter; search values as `•••`.
    filter: BTreeMap<String, String>,
    /// Another receiver than that of the messages.
    target: Option<String>,
    /// Messages a second, at most.
    rate: u32,
    selected: u64,
    replayable: u64,
    /// How many could not be sent again when it was ordered.
    blocked: u64,
    duplicates: u64,
    /// How many have been sent again.
    sent: u64,
    /// How many could not be any more when their turn came.
    failed: u64,
    last_failure: Option<String>,
    /// All selected messages up to this one are done, none after it.
    last_message: Option<u64>,
    started: String,
    ended: Option<String>,
}

impl From<Replay> for ReplayView {
    fn from(replay: Replay) -> Self {
        ReplayView {
            id: replay.id,
            state: replay.state.as_str(),
            who: replay.who,
            cancelled_by: replay.cancelled_by,
            filter: replay.filter,
            target: replay.target,
            rate: replay.rate,
            selected: replay.selected,
            replayable: replay.replayable,
            blocked: replay.blocked,
            duplicates: replay.duplicates,
            sent: replay.sent,
            failed: replay.failed,
            last_failure: replay.last_failure,
            last_message: replay.last_message.map(|id| id.0),
            started: time(replay.started),
            ended: replay.ended.map(time),
        }
    }
}

/// The replays that are remembered.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReplayList {
    replays: Vec<ReplayView>,
}

/// Replays at work and the last ones that ended, newest first.
#[utoipa::path(get, path = "/api/v1/replays", responses((status = 200, body = ReplayList)))]
pub(crate) async fn list(State(engine): State<Engine>) -> Json<ReplayList> {
    Json(ReplayList { replays: engine.replays().into_iter().map(ReplayView::from).collect() })
}

/// How far a replay has got.
#[utoipa::path(get, path = "/api/v1/replays/{id}", params(("id" = u64, Path)), responses(
    (status = 200, body = ReplayView), (status = 404, body = Problem)
))]
pub(crate) async fn show(
    State(engine): State<Engine>,
    Path(number): Path<String>,
) -> Result<Json<ReplayView>, Problem> {
    let number = id(&number)?;
    let replay = engine.replay_of(number);
    replay
        .map(|replay| Json(replay.into()))
        .ok_or_else(|| Problem::not_found(format!("there is no replay {number}")))
}

/// Ends a replay. What it has sent again stays in the queues.
#[utoipa::path(post, path = "/api/v1/replays/{id}/cancel", params(("id" = u64, Path)), responses(
    (status = 200, body = ReplayView), (status = 404, body = Problem), (status = 409, body = Problem)
))]
pub(crate) async fn cancel(
    State(engine): State<Engine>,
    Extension(who): Who,
    Path(number): Path<String>,
) -> Result<Json<ReplayView>, Problem> {
    let replay = engine.cancel_replay(id(&number)?, who.name.as_deref()).await?;
    Ok(Json(replay.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rate_is_a_number_of_messages_a_second_within_bounds() {
        assert_eq!(rate(&json!({})).unwrap(), None);
        assert_eq!(rate(&json!({ "rate": 10_000 })).unwrap(), Some(10_000));
        for wrong in [json!(0), json!(10_001), json!(1.5), json!(-1), json!("fast")] {
            assert!(rate(&json!({ "rate": wrong })).is_err(), "{wrong}");
        }
    }
}
