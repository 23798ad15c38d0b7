//! The jobs of a process driver: what a piece of work looks like to the host, and running a batch of them
//! in this task or on a lane.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::body::Body;
use crate::director::items::End;
use crate::director::lanes::Step;
use crate::director::outcome;
use crate::director::process::{Commit, Driver, Work};
use crate::fault::Fault;
use crate::header::ReplyTo;
use crate::host::{HostFault, Keep, KeepFamily};
use crate::id::BodyId;
use crate::process::{Definition, Done, Effect, Input, Job, Outgoing};
use crate::store::{self, Lease};

/// The time a script may take where its process does not say.
const SCRIPT_TIME: Duration = Duration::from_secs(1);

impl Driver {
    /// The job for a piece of work; a fault where what it needs cannot be read.
    async fn job(&mut self, work: &Work) -> Result<Job, Fault> {
        let unreadable = |error: store::ReadError| Fault::new("message", "body", error.to_string());
        let instance = self.instances.get(&work.instance());
        let (request, waiting) = match (work, instance) {
            (Work::Request(delivery), _) => (delivery.header.clone(), None),
            (_, Some(instance)) => (instance.request.clone(), Some(instance.waiting.clone())),
            (_, None) => return Err(Fault::new("message", "instance", "the instance has ended")),
        };
        let request_body = match request.body_id {
            Some(id) => Some(self.core.store.body(id).await.map_err(unreadable)?),
            None => None,
        };
        let input = match work {
            Work::Request(_) => Input::Request,
            Work::Timer(_, timer) => Input::Timer { timer: *timer },
            Work::Response(delivery, _, call) => {
                let (body, unread) = match delivery.header.body_id {
                    None => (None, None),
                    Some(id) => match self.core.store.body(id).await {
                        Ok(body) => (Some(body), None),
                        Err(error) => (None, Some(unreadable(error))),
                    },
                };
                let fault = delivery.header.error.clone().or(unread);
                Input::Response { call: *call, header: Some(delivery.header.clone()), body, fault }
            }
        };
        let definition = match &waiting {
            Some(waiting) => self.definition_of(&waiting.definition)?,
            None => self.definition().clone(),
        };
        let replied = waiting.as_ref().is_some_and(|waiting| waiting.replied);
        Ok(Job {
            item: self.name().clone(),
            definition,
            input,
            wants_reply: !replied && request.reply_to != ReplyTo::Nobody,
            request,
            request_body,
            instance: waiting.map(|waiting| waiting.bytes),
            state: self.state.clone(),
            now: self.core.store.clock().now(),
        })
    }

    pub(super) fn definition_of(&mut self, hash: &str) -> Result<Arc<Definition>, Fault> {
        if &*self.definition().hash == hash {
            return Ok(self.definition().clone());
        }
        if let Some(known) = self.definitions.get(hash) {
            return Ok(known.clone());
        }
        let kept = self.core.store.get(KeepFamily::Definition, hash);
        let lost =
            || Fault::new("script", "definition", "the definition it started with is not in the store");
        let definition = Arc::new(Definition { hash: hash.into(), bytes: kept.ok_or_else(lost)? });
        self.definitions.insert(hash.to_owned(), definition.clone());
        Ok(definition)
    }

    /// Runs jobs one after the other in this task.
    pub(super) async fn run_batch(
        &mut self,
        batch: Vec<Work>,
        handle: impl Fn(&Job) -> Option<Done>,
    ) -> Result<(), End> {
        let mut batch = VecDeque::from(batch);
        let mut full = false;
        while let Some(work) = batch.pop_front() {
            if full && matches!(work, Work::Request(_)) {
                self.untake(work);
                continue;
            }
            let done = match self.job(&work).await {
                Ok(job) => {
                    let panicked = || Fault::new("script", "panic", "the process panicked");
                    handle(&job).map(|done| (job, done)).ok_or_else(panicked)
                }
                Err(fault) => Err(fault),
            };
            let concluded = match done {
                Ok((job, done)) => self.conclude(work, &job, done).await,
                Err(fault) => self.suspend(work, fault, None).await,
            };
            full |= self.is_full_after(concluded?);
        }
        self.learn(full);
        Ok(())
    }

    /// Whether the requests behind must not start now.
    fn is_full_after(&self, commit: Commit) -> bool {
        match commit {
            Commit::Done | Commit::Refused => false,
            Commit::Suspended => true,
            Commit::Waits => self.room() == 0,
        }
    }

    /// Runs jobs on a lane as one batch.
    pub(super) async fn run_on_lane(&mut self, batch: Vec<Work>) -> Result<(), End> {
        let mut works = VecDeque::new();
        let mut jobs = Vec::new();
        for work in batch {
            match self.job(&work).await {
                Ok(job) => {
                    jobs.push(job.clone());
                    works.push_back((work, job));
                }
                Err(fault) => {
                    self.suspend(work, fault, None).await?;
                }
            }
        }
        if jobs.is_empty() {
            return Ok(());
        }
        let script_time = self.routed.plan.built.facts.script_time.unwrap_or(SCRIPT_TIME);
        let limit = script_time.saturating_mul(2);
        let Some(mut running) = self.lanes.start(jobs, limit).await else {
            return Err(End::Fault(HostFault::new("thread", "no script thread could be started")));
        };
        // Once a result does not count, the jobs behind it have seen state that is not there: they run again.
        let mut again = false;
        let mut full = false;
        while let Some(step) = running.next().await {
            let Some((work, job)) = works.pop_front() else { break };
            again |= full && matches!(work, Work::Request(_));
            if again {
                self.untake(work);
                continue;
            }
            let commit = match step {
                Step::Done(done) => self.conclude(work, &job, done).await?,
                Step::Hung => {
                    let text = format!("ran for more than {} ms; its thread is lost", limit.as_millis());
                    let fault = Fault::new("script", "hung", text);
                    let fenced = self.core.store.fence(work.instance());
                    self.suspend(work, fault, fenced).await?
                }
                Step::Broken => {
                    let fault = Fault::new("script", "panic", "the script thread ended unexpectedly");
                    self.suspend(work, fault, None).await?
                }
            };
            again = commit == Commit::Refused;
            full |= self.is_full_after(commit);
        }
        self.learn(full);
        // After a lost thread: what has not run.
        for (work, _) in works {
            self.untake(work);
        }
        Ok(())
    }

    /// Commits the outcome of a job.
    async fn conclude(&mut self, work: Work, job: &Job, done: Done) -> Result<Commit, End> {
        let bodies = self.stored_bodies(&done).await;
        outcome::commit(self, work, job, &done, bodies).await
    }

    /// Bodies that are in the store already and go out again.
    async fn stored_bodies(&self, done: &Done) -> BTreeMap<BodyId, Body> {
        let mut bodies = BTreeMap::new();
        for effect in &done.effects {
            let body = match effect {
                Effect::Send { body, .. } | Effect::Call { body, .. } => Some(body),
                Effect::Reply { body, .. } => body.as_ref(),
                _ => None,
            };
            if let Some(Outgoing::Stored(id)) = body
                && let Ok(body) = self.core.store.body(*id).await
            {
                bodies.insert(*id, body);
            }
        }
        bodies
    }

    /// The message waits for an operator. A response or timer that was on its way waits with it.
    async fn suspend(&mut self, work: Work, fault: Fault, fenced: Option<Lease>) -> Result<Commit, End> {
        outcome::suspend(self, work, fault, fenced).await
    }
}
