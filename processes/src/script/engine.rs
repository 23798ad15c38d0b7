//! The script engine of one lane: a QuickJS runtime with limits, and one context per definition with all its
//! scripts compiled. Everything here stays on the lane's thread.
//!
//! Limits: the interrupt handler stops a script at its deadline, and no script can catch that; memory is
//! capped for the whole runtime. After either the runtime is thrown away and built anew
//! ([`Engine::renew`]), so that what a stopped script left behind is nobody's problem. What the interrupt
//! cannot stop (a long native builtin) is for the watchdog of whoever runs the lane.
//!
//! Scripts see no clock and no random source but the job's, so that the same job gives the same outcome.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rquickjs::context::EvalOptions;
use rquickjs::function::Args;
use rquickjs::{
    CatchResultExt, CaughtError, Class, Context, Ctx, Function, Object, Persistent, Runtime, Value,
};

use super::Script;
use super::compile::{compile, first_frame, in_script};
use super::deadline;
use super::hl7_value::{Hl7Value, SegmentValue, prototypes};
use super::raised::{Stopped, Thrown};
use super::values::{Helpers, Keeper, SavedHelpers};
use crate::time;

const STACK: usize = 512 << 10;
/// How many `log` calls one job may make; the rest is dropped.
const MAX_LOG: usize = 1000;
/// The longest text of one `log` call, in bytes.
const MAX_LOG_TEXT: usize = 64 << 10;

/// What scripts may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Per script call, and for all scripts of a job until one is stopped.
    pub(crate) time: Duration,
    /// For the runtime.
    pub(crate) memory: u64,
}

/// What the native functions in a context see of the job being run.
pub(crate) struct JobScope {
    /// Milliseconds since 1970.
    pub(crate) now: Timestamp,
    /// What makes this instance's uuids its own: the same for every run of the same job.
    pub(crate) identity: String,
    /// How many uuids and random numbers the instance has taken.
    pub(crate) taken: u64,
    /// Texts given to `log` since they were last collected.
    pub(crate) log: Vec<String>,
    /// How many texts the job has logged.
    pub(crate) logged: usize,
    /// Lookup tables of the definition.
    pub(crate) lookups: Rc<BTreeMap<String, BTreeMap<String, String>>>,
    /// Messages that values being kept or restored refer to.
    pub(crate) keeper: Keeper,
}

/// Shared by the engine and the native functions of its contexts.
pub(crate) struct Shared {
    timezone: TimeZone,
    pub(crate) job: RefCell<JobScope>,
}

/// The engine of one lane.
pub(crate) struct Engine {
    runtime: Runtime,
    pub(crate) shared: Rc<Shared>,
    limits: Cell<Limits>,
    /// The deadline of all scripts of the current job.
    job_deadline: Cell<Option<Instant>>,
    /// How often the current job was stopped.
    trips: Cell<u32>,
    /// A script was stopped in this runtime.
    spent: Cell<bool>,
    /// What the loaded definitions take: a script's memory comes on top.
    loaded: Cell<usize>,
}

/// How often a job may be stopped before it ends, whatever it catches.
const MAX_TRIPS: u32 = 2;

/// A definition's context, ready to run. Must be dropped before its engine's runtime.
pub(crate) struct Loaded {
    functions: Vec<Persistent<Function<'static>>>,
    helpers: SavedHelpers,
    pub(crate) context: Context,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({:?})", self.limits.get())
    }
}

impl Engine {
    /// A fresh runtime without contexts; `None` where there is no memory for it.
    pub(crate) fn new(timezone: TimeZone) -> Option<Self> {
        let shared = Rc::new(Shared {
            timezone,
            job: RefCell::new(JobScope {
                now: Timestamp::UNIX_EPOCH,
                identity: String::new(),
                taken: 0,
                log: Vec::new(),
                logged: 0,
                lookups: Rc::default(),
                keeper: Keeper::default(),
            }),
        });
        let runtime = Runtime::new().ok()?;
        runtime.set_max_stack_size(STACK);
        runtime.set_interrupt_handler(Some(Box::new(deadline::passed)));
        let limits = Limits { time: Duration::from_secs(1), memory: 64 << 20 };
        Some(Engine {
            runtime,
            shared,
            limits: Cell::new(limits),
            job_deadline: Cell::new(None),
            trips: Cell::new(0),
            spent: Cell::new(false),
            loaded: Cell::new(0),
        })
    }

    /// Whether a script was stopped: what it left behind is best thrown away with the runtime.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent.get()
    }

    /// The production's timezone.
    pub(crate) fn timezone(&self) -> &TimeZone {
        &self.shared.timezone
    }

    /// The job was stopped too often to go on.
    pub(crate) fn gives_up(&self) -> bool {
        self.trips.get() >= MAX_TRIPS
    }

    /// Compiles the scripts of a definition in a context of their own.
    pub(crate) fn load(&self, scripts: &[Script]) -> Result<Loaded, String> {
        self.runtime.set_memory_limit(0);
        let context = Context::full(&self.runtime).map_err(|_| "no memory for a script context")?;
        let (helpers, functions) = context.with(|cx| {
            let helpers = prepare(&cx, &self.shared).catch(&cx).map_err(|error| error.to_string())?;
            let mut functions = Vec::with_capacity(scripts.len());
            for (index, script) in scripts.iter().enumerate() {
                let function = compile(&cx, script, &file_name(index))
                    .map_err(|error| format!("{}: {error}", script.place))?;
                functions.push(Persistent::save(&cx, function));
            }
            Ok::<_, String>((helpers, functions))
        })?;
        self.loaded.set(usize::try_from(self.runtime.memory_usage().malloc_size).unwrap_or_default());
        Ok(Loaded { functions, helpers, context })
    }

    /// Begins a job: its limits, its clock, its identity.
    pub(crate) fn begin(&self, limits: Limits, scope: JobScope) {
        self.limits.set(limits);
        self.trips.set(0);
        *self.shared.job.borrow_mut() = scope;
        let memory = usize::try_from(limits.memory).unwrap_or(usize::MAX);
        self.runtime.set_memory_limit(memory.saturating_add(self.loaded.get()));
        self.job_deadline.set(Instant::now().checked_add(limits.time));
    }

    /// Whether this job has used up its time; whoever catches that gets half as much again, so that no job
    /// takes twice its time, at which the watchdog gives its thread up.
    pub(crate) fn late(&self) -> bool {
        let late = self.job_deadline.get().is_some_and(|deadline| Instant::now() >= deadline);
        if late {
            self.tripped();
        }
        late
    }

    fn tripped(&self) {
        self.trips.set(self.trips.get() + 1);
        self.spent.set(true);
        self.job_deadline.set(Instant::now().checked_add(self.limits.get().time / 2));
    }

    /// Runs `work`, which calls into JavaScript, under the job's deadline; an exception becomes a
    /// [`Stopped`]. `script` and `index` say whose text a position refers to.
    pub(crate) fn guarded<'js, T>(
        &self,
        cx: &Ctx<'js>,
        script: Option<(&Script, usize)>,
        work: impl FnOnce() -> rquickjs::Result<T>,
    ) -> Result<T, Stopped> {
        let limits = self.limits.get();
        deadline::set(self.job_deadline.get());
        let outcome = work().catch(cx);
        let late = deadline::clear();
        match outcome {
            Ok(value) => Ok(value),
            Err(_) if late => {
                self.tripped();
                Err(Stopped::Time(limits.time))
            }
            Err(caught) => {
                let stopped = stopped(caught, script, limits.memory);
                if matches!(stopped, Stopped::Memory(_)) {
                    self.spent.set(true);
                }
                Err(stopped)
            }
        }
    }
}

impl Loaded {
    /// The helpers of this context.
    pub(crate) fn helpers<'js>(&self, cx: &Ctx<'js>) -> rquickjs::Result<Helpers<'js>> {
        self.helpers.restore(cx)
    }

    /// Calls script number `index` with `arguments` (see [`super::compile::parameters`]).
    pub(crate) fn call<'js>(
        &self,
        engine: &Engine,
        cx: &Ctx<'js>,
        (script, index): (&Script, usize),
        arguments: impl IntoIterator<Item = Value<'js>>,
    ) -> Result<Value<'js>, Stopped> {
        let saved = self.functions.get(index).ok_or(Stopped::Engine("no such script"))?;
        let value = engine.guarded(cx, Some((script, index)), || {
            let function = saved.clone().restore(cx)?;
            let mut args = Args::new_unsized(cx.clone());
            args.push_args(arguments)?;
            function.call_arg::<Value<'js>>(args)
        })?;
        if value.is_promise() {
            return Err(Stopped::Engine("scripts are synchronous: there is no async and no await"));
        }
        Ok(value)
    }
}

fn file_name(index: usize) -> String {
    format!("script{index}")
}

/// What an exception says.
fn stopped(caught: CaughtError<'_>, script: Option<(&Script, usize)>, memory: u64) -> Stopped {
    match caught {
        CaughtError::Exception(exception) => {
            let detail = exception.message().unwrap_or_default();
            if detail == "out of memory" {
                return Stopped::Memory(memory);
            }
            let name = exception.as_object().get::<_, String>("name").ok();
            let at = script.and_then(|(script, index)| {
                let stack = exception.stack().unwrap_or_default();
                let (line, column) = first_frame(&stack, &file_name(index))?;
                in_script(&script.code, line, column)
            });
            Stopped::Thrown(Thrown { name, detail, at })
        }
        // QuickJS throws null where there is no memory even for an error.
        CaughtError::Value(value) if value.is_null() => Stopped::Memory(memory),
        CaughtError::Value(value) => Stopped::Thrown(thrown_value(&value)),
        CaughtError::Error(_) => Stopped::Engine("a value cannot be used here"),
    }
}

/// A thrown value that is no Error.
pub(crate) fn thrown_value(value: &Value<'_>) -> Thrown {
    if let Some(text) = value.as_string() {
        let text = text.to_string().unwrap_or_default();
        return Thrown { name: Some(text.clone()), detail: text, at: None };
    }
    if let Some(object) = value.as_object() {
        let name = object.get::<_, String>("name").ok();
        let message = object.get::<_, String>("message").ok();
        let detail = message.or_else(|| name.clone()).unwrap_or_default();
        return Thrown { name, detail, at: None };
    }
    let detail = value.get::<rquickjs::Coerced<String>>().map(|text| text.0).unwrap_or_default();
    Thrown { name: None, detail, at: None }
}

/// Sets up a context: the prelude, over native functions that see the job.
fn prepare<'js>(cx: &Ctx<'js>, shared: &Rc<Shared>) -> rquickjs::Result<SavedHelpers> {
    let native = Object::new(cx.clone())?;
    let scope = Rc::clone(shared);
    native.set("now", Function::new(cx.clone(), move || scope.job.borrow().now.as_millisecond())?)?;
    let scope = Rc::clone(shared);
    native.set("random", Function::new(cx.clone(), move || random(&mut scope.job.borrow_mut()))?)?;
    let scope = Rc::clone(shared);
    native.set("uuid", Function::new(cx.clone(), move || uuid(&mut scope.job.borrow_mut()))?)?;
    let scope = Rc::clone(shared);
    let lookup = move |cx: Ctx<'js>, table: String, key: String| -> rquickjs::Result<Option<String>> {
        let job = scope.job.borrow();
        match job.lookups.get(&table) {
            Some(found) => Ok(found.get(&key).cloned()),
            None => {
                Err(rquickjs::Exception::throw_reference(&cx, &format!("there is no lookup table {table}")))
            }
        }
    };
    native.set("lookup", Function::new(cx.clone(), lookup)?)?;
    let scope = Rc::clone(shared);
    let hl7_date = move |cx: Ctx<'js>, date: Value<'js>| -> rquickjs::Result<String> {
        let formatted = match (date.as_number(), date.as_string()) {
            (Some(milliseconds), _) => time::hl7_of_milliseconds(milliseconds, &scope.timezone),
            (None, Some(text)) => time::hl7_of_text(&text.to_string()?, &scope.timezone),
            _ => None,
        };
        formatted.ok_or_else(|| rquickjs::Exception::throw_range(&cx, "hl7Date takes a date"))
    };
    native.set("hl7Date", Function::new(cx.clone(), hl7_date)?)?;
    let scope = Rc::clone(shared);
    native
        .set("log", Function::new(cx.clone(), move |text: String| log(&mut scope.job.borrow_mut(), text))?)?;
    let scope = Rc::clone(shared);
    let keep = move |cx: Ctx<'js>, value: Value<'js>| scope.job.borrow_mut().keeper.keep(&cx, &value);
    native.set("keep", Function::new(cx.clone(), keep)?)?;
    let scope = Rc::clone(shared);
    let restore = move |cx: Ctx<'js>, kept: Object<'js>| scope.job.borrow().keeper.restore(&cx, &kept);
    native.set("restore", Function::new(cx.clone(), restore)?)?;

    // Instances find their prototypes once the classes are known to the context.
    let scratch = Object::new(cx.clone())?;
    Class::<Hl7Value>::define(&scratch)?;
    Class::<SegmentValue>::define(&scratch)?;
    let hidden = rquickjs::Array::new(cx.clone())?;
    for (index, prototype) in prototypes(cx)?.into_iter().enumerate() {
        hidden.set(index, prototype)?;
    }

    let mut options = EvalOptions::default();
    options.filename = Some("prelude".into());
    let prelude: Function<'js> = cx.eval_with_options(include_str!("prelude.js"), options)?;
    let helpers: Object<'js> = prelude.call((native, hidden))?;
    SavedHelpers::save(cx, &helpers)
}

fn log(job: &mut JobScope, mut text: String) {
    job.logged += 1;
    if job.logged > MAX_LOG {
        return;
    }
    if text.len() > MAX_LOG_TEXT {
        let mut end = MAX_LOG_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    job.log.push(text);
}

fn hash(job: &mut JobScope, algorithm: &'static digest::Algorithm, purpose: &[u8]) -> digest::Digest {
    job.taken += 1;
    let mut context = digest::Context::new(algorithm);
    context.update(purpose);
    context.update(job.identity.as_bytes());
    context.update(&job.taken.to_be_bytes());
    context.finish()
}

/// A name-based UUID (RFC 9562 version 5: SHA-1 of a namespace and a name) of the instance and a counter.
fn uuid(job: &mut JobScope) -> String {
    /// Septet's own namespace, a random UUID.
    const NAMESPACE: [u8; 16] =
        [0x8d, 0x1c, 0x6f, 0x5e, 0x0b, 0x52, 0x4a, 0x7b, 0x9c, 0x0e, 0x37, 0x5a, 0x2f, 0x61, 0xd4, 0x90];
    let digest = hash(job, &digest::SHA1_FOR_LEGACY_USE_ONLY, &NAMESPACE);
    let mut bytes = digest.as_ref().first_chunk::<16>().copied().unwrap_or_default();
    bytes[6] = bytes[6] & 0x0f | 0x50;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let number = u128::from_be_bytes(bytes);
    let hex = format!("{number:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

/// `Math.random()`: in [0, 1), the same for every run of the same job.
fn random(job: &mut JobScope) -> f64 {
    let digest = hash(job, &digest::SHA256, b"random");
    let word = u64::from_be_bytes(digest.as_ref().first_chunk::<8>().copied().unwrap_or_default());
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
    let fraction = (word >> 11) as f64 / (1u64 << 53) as f64;
    fraction
}
