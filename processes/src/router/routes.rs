//! The rules of a router at work: which of them match, where the message goes, and whose reply is the answer.
//! Pure: a job in, effects out. What a rule needs scripts for is asked of [`Scripts`].

use bytes::Bytes;
use septet_engine::body::Body;
use septet_engine::event::{Level, NewEvent};
use septet_engine::fault::Fault;
use septet_engine::id::ItemName;
use septet_engine::process::{Done, Effect, Input, Job, Next, Outgoing};
use septet_hl7::Path;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::Unmatched;
use crate::script::raised::Raised;

/// The rules of a stored definition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rules {
    pub(crate) rules: Vec<Rule>,
    pub(crate) unmatched: Unmatched,
}

/// One rule of a stored definition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rule {
    /// For the trace: `rule "lab results"` or `rule 2`.
    pub(super) label: String,
    /// Paths or fields, each with the values it may have.
    pub(super) when: Vec<(String, Vec<String>)>,
    /// The script of `if`.
    pub(super) condition: Option<usize>,
    pub(super) send: Vec<ItemName>,
    pub(super) transform: Option<String>,
    pub(super) reply_from: ReplyFrom,
    pub(super) go_on: bool,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ReplyFrom {
    /// Nothing is said: the only target, else generated.
    Unsaid,
    Generated,
    First,
    Item(ItemName),
}

/// What a rule needs the script engine for.
pub(crate) trait Scripts {
    /// The truth of an `if`.
    fn holds(&mut self, script: usize) -> Result<bool, Raised>;
    /// What a transform makes of the request.
    fn transform(&mut self, name: &str) -> Result<Outgoing, Raised>;
}

/// Rules ready to run.
#[derive(Debug)]
pub(crate) struct Routes {
    rules: Vec<(Rule, Vec<Condition>)>,
    unmatched: Unmatched,
}

/// One entry of a `when`.
#[derive(Debug)]
struct Condition {
    path: Option<Path>,
    field: String,
    values: Vec<String>,
}

/// What a router keeps while it waits.
#[derive(Debug, Serialize, Deserialize)]
struct Waiting {
    /// Calls whose reply may be the answer.
    router_calls: Vec<u64>,
}

impl Routes {
    pub(crate) fn new(rules: &Rules) -> Self {
        let conditions = |rule: &Rule| {
            let condition = |(path, values): &(String, Vec<String>)| Condition {
                path: path.parse().ok(),
                field: path.clone(),
                values: values.clone(),
            };
            (rule.clone(), rule.when.iter().map(condition).collect())
        };
        Routes { rules: rules.rules.iter().map(conditions).collect(), unmatched: rules.unmatched }
    }

    /// Handles a new request.
    pub(crate) fn route(&self, job: &Job, scripts: &mut dyn Scripts) -> Done {
        let mut effects = Vec::new();
        let mut legs: Vec<(ItemName, Outgoing)> = Vec::new();
        let mut reply_from = ReplyFrom::Unsaid;
        let mut matched = false;
        for (rule, conditions) in &self.rules {
            let holds = match self.matches(job, rule, conditions, scripts) {
                Ok(holds) => holds,
                Err(raised) => return failed(raised.fault),
            };
            if !holds {
                continue;
            }
            matched = true;
            effects.push(Effect::Event(NewEvent::new(
                Level::Info,
                "rule",
                format!("{} matched", rule.label),
            )));
            let body = match &rule.transform {
                None => Outgoing::Request,
                Some(name) => match scripts.transform(name) {
                    Ok(body) => body,
                    Err(raised) => return failed(raised.fault),
                },
            };
            legs.extend(rule.send.iter().map(|target| (target.clone(), body.clone())));
            if reply_from == ReplyFrom::Unsaid {
                reply_from = rule.reply_from.clone();
            }
            if !rule.go_on {
                break;
            }
        }
        if !matched {
            return self.unmatched(job, effects);
        }
        if reply_from == ReplyFrom::Unsaid {
            reply_from = match legs.as_slice() {
                [(only, _)] => ReplyFrom::Item(only.clone()),
                _ => ReplyFrom::Generated,
            };
        }
        send(job, effects, legs, &reply_from)
    }

    fn matches(
        &self,
        job: &Job,
        rule: &Rule,
        conditions: &[Condition],
        scripts: &mut dyn Scripts,
    ) -> Result<bool, Raised> {
        let body = job.request_body.as_ref();
        if !conditions.iter().all(|condition| body.is_some_and(|body| condition.holds(body))) {
            return Ok(false);
        }
        rule.condition.map_or(Ok(true), |script| scripts.holds(script))
    }

    fn unmatched(&self, job: &Job, mut effects: Vec<Effect>) -> Done {
        let event = NewEvent::new(Level::Warning, "message.unmatched", "no rule matched");
        effects.push(Effect::Event(event));
        match self.unmatched {
            Unmatched::Complete => {
                if job.wants_reply {
                    effects.push(Effect::Reply { body: None, fault: None });
                }
                Done { effects, next: Next::Complete, state: None }
            }
            Unmatched::Suspend => {
                let fault = Fault::new("message", "unmatched", "no rule matched");
                Done { effects, next: Next::Suspend(fault), state: None }
            }
        }
    }
}

impl Condition {
    fn holds(&self, body: &Body) -> bool {
        if let Some(message) = body.as_hl7() {
            let Some(path) = &self.path else { return false };
            if !path.is_multiple() {
                let found = message.text_at(path);
                return self.values.iter().any(|value| *value == found);
            }
            return message.all(path).iter().any(|value| self.values.contains(value));
        }
        let value = body.as_record().and_then(|record| field(&record.fields, &self.field));
        let text = match value {
            Some(Json::String(text)) => text.clone(),
            Some(value @ (Json::Number(_) | Json::Bool(_))) => value.to_string(),
            None | Some(Json::Null) => String::new(),
            Some(_) => return false,
        };
        self.values.contains(&text)
    }
}

pub(super) fn failed(fault: Fault) -> Done {
    Done { effects: Vec::new(), next: Next::Fail(fault), state: None }
}

/// Sends to all targets; calls those whose reply is waited for.
fn send(
    job: &Job,
    mut effects: Vec<Effect>,
    legs: Vec<(ItemName, Outgoing)>,
    reply_from: &ReplyFrom,
) -> Done {
    let mut waiting = Waiting { router_calls: Vec::new() };
    for (target, body) in legs {
        let wanted = job.wants_reply
            && match reply_from {
                ReplyFrom::First => true,
                ReplyFrom::Item(item) => *item == target && waiting.router_calls.is_empty(),
                ReplyFrom::Generated | ReplyFrom::Unsaid => false,
            };
        if wanted {
            let call = waiting.router_calls.len() as u64 + 1;
            waiting.router_calls.push(call);
            effects.push(Effect::Call { call, target, body });
        } else {
            effects.push(Effect::Send { target, body });
        }
    }
    if waiting.router_calls.is_empty() {
        if job.wants_reply {
            effects.push(Effect::Reply { body: None, fault: None });
        }
        return Done { effects, next: Next::Complete, state: None };
    }
    let instance = Bytes::from(serde_json::to_vec(&waiting).unwrap_or_default());
    Done { effects, next: Next::Wait { instance }, state: None }
}

/// Handles the response (or a stray wake-up) of a router that waits for a reply to hand on.
pub(crate) fn resume(job: &Job) -> Done {
    let stored = job.instance.as_deref().and_then(|bytes| serde_json::from_slice::<Waiting>(bytes).ok());
    let Some(waiting) = stored else {
        return failed(Fault::new("script", "instance", "the stored instance cannot be read"));
    };
    match &job.input {
        Input::Response { call, header, body, fault } if waiting.router_calls.contains(call) => {
            let stored = header.as_ref().and_then(|header| header.body_id).map(Outgoing::Stored);
            let body = stored.or_else(|| body.clone().map(Outgoing::New));
            let mut effects = vec![Effect::Reply { body, fault: fault.clone() }];
            let others = waiting.router_calls.iter().filter(|other| *other != call);
            effects.extend(others.map(|call| Effect::CancelCall { call: *call, leave: true }));
            Done { effects, next: Next::Complete, state: None }
        }
        _ => {
            let instance = job.instance.clone().unwrap_or_default();
            Done { effects: Vec::new(), next: Next::Wait { instance }, state: None }
        }
    }
}

/// The value of a dotted field.
pub(crate) fn field<'v>(value: &'v Json, path: &str) -> Option<&'v Json> {
    path.split('.').try_fold(value, |value, name| value.get(name))
}
