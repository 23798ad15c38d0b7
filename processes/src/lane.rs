//! The lane of this crate: one script engine on one thread, running the jobs of routers and flows.
//!
//! Definitions are compiled once per lane and kept by their hash. An engine that had to stop a script is
//! thrown away with everything compiled in it: the next job gets a fresh one.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use septet_engine::fault::Fault;
use septet_engine::id::ItemName;
use septet_engine::process::{Definition, Done, Input, Job, Lane, LaneFactory, LaneServices, Next};
use septet_engine::record::MessageTypes;

use crate::closure::{Closure, Process};
use crate::flow;
use crate::router::{self, Routes};
use crate::scene::{Scene, SceneScripts, Stage};
use crate::script::engine::{Engine, JobScope, Loaded};
use crate::script::values::Keeper;

/// How many definitions a lane keeps compiled.
const MAX_LOADED: usize = 64;

/// Builds lanes with a script engine each.
pub fn lane_factory() -> LaneFactory {
    Arc::new(|services| Box::new(ScriptLane { services, ready: HashMap::new(), engine: None }))
}

struct ScriptLane {
    services: LaneServices,
    // Compiled scripts go before the runtime they belong to.
    ready: HashMap<Arc<str>, Rc<Ready>>,
    engine: Option<Rc<Engine>>,
}

/// A definition that this lane can run.
struct Ready {
    loaded: Loaded,
    closure: Closure,
    types: MessageTypes,
    routes: Option<Routes>,
}

impl Lane for ScriptLane {
    fn run(&mut self, jobs: Vec<Job>, emit: &mut dyn FnMut(Done)) {
        // Jobs of a batch see the state that their predecessor left.
        let mut states: HashMap<ItemName, Bytes> = HashMap::new();
        for job in jobs {
            let state = states.get(&job.item).or(job.state.as_ref()).cloned();
            let done = catch_unwind(AssertUnwindSafe(|| self.job(&job, state))).unwrap_or_else(|_| {
                self.renew();
                failed(Fault::new("script", "panic", format!("{}: the engine failed; see the log", job.item)))
            });
            if let Some(state) = &done.state {
                states.insert(job.item.clone(), state.clone());
            }
            emit(done);
            if self.engine.as_ref().is_some_and(|engine| engine.is_spent()) {
                self.renew();
            }
        }
    }
}

impl ScriptLane {
    fn renew(&mut self) {
        self.ready.clear();
        self.engine = None;
    }

    fn engine(&mut self) -> Result<Rc<Engine>, String> {
        if let Some(engine) = &self.engine {
            return Ok(Rc::clone(engine));
        }
        let engine = Engine::new(self.services.timezone.clone()).ok_or("no memory for the script engine")?;
        let engine = Rc::new(engine);
        self.engine = Some(Rc::clone(&engine));
        Ok(engine)
    }

    fn ready(&mut self, engine: &Engine, definition: &Definition) -> Result<Rc<Ready>, String> {
        if let Some(ready) = self.ready.get(&definition.hash) {
            return Ok(Rc::clone(ready));
        }
        let closure = Closure::read(definition)?;
        let loaded = engine.load(&closure.scripts)?;
        let routes = match &closure.process {
            Process::Router(rules) => Some(Routes::new(rules)),
            Process::Flow(_) => None,
        };
        let ready = Rc::new(Ready { loaded, types: closure.message_types(), routes, closure });
        if self.ready.len() >= MAX_LOADED {
            self.ready.clear();
        }
        self.ready.insert(definition.hash.clone(), Rc::clone(&ready));
        Ok(ready)
    }

    fn job(&mut self, job: &Job, state: Option<Bytes>) -> Done {
        let ready = self.engine().and_then(|engine| Ok((self.ready(&engine, &job.definition)?, engine)));
        let (ready, engine) = match ready {
            Ok(ready) => ready,
            Err(text) => return failed(Fault::new("script", "definition", text)),
        };
        if let (Some(_), false) = (&ready.routes, matches!(job.input, Input::Request)) {
            return router::resume(job);
        }
        let created = job.request.created.as_microsecond();
        let identity =
            format!("{:08x}/{created}/{}/{}", self.services.vault.key_id(), job.item, job.request.id);
        engine.begin(
            ready.closure.limits(),
            JobScope {
                now: job.now,
                identity,
                taken: 0,
                log: Vec::new(),
                logged: 0,
                lookups: Rc::clone(&ready.closure.lookups),
                keeper: Keeper::default(),
            },
        );
        let stage = Stage {
            engine: &engine,
            loaded: &ready.loaded,
            closure: &ready.closure,
            types: &ready.types,
            vault: &self.services.vault,
            job,
        };
        let done = ready.loaded.context.with(|cx| {
            let mut scene = match Scene::open(&stage, &cx, state.as_deref()) {
                Ok(scene) => scene,
                Err(raised) => return failed(raised.fault),
            };
            let next = match (&ready.closure.process, &ready.routes) {
                (Process::Flow(program), _) => flow::run::run(&mut scene, program),
                (Process::Router(_), Some(routes)) => {
                    let mut done = routes.route(job, &mut SceneScripts(&mut scene));
                    scene.effects.append(&mut done.effects);
                    done.next
                }
                (Process::Router(_), None) => Next::Fail(Fault::new("script", "definition", "no rules")),
            };
            let written = match scene.written_state() {
                Ok(written) => written.map(Bytes::from),
                Err(raised) => {
                    return Done { effects: scene.effects, next: Next::Fail(raised.fault), state: None };
                }
            };
            let before = state.as_deref().unwrap_or(b"{}");
            let state = written.filter(|written| &written[..] != before);
            Done { effects: scene.effects, next, state }
        });
        // What a job left behind in cycles is not the next one's burden.
        engine.shared.job.borrow_mut().keeper = Keeper::default();
        done
    }
}

fn failed(fault: Fault) -> Done {
    Done { effects: Vec::new(), next: Next::Fail(fault), state: None }
}
