//! What the composition root hands the engine: the classes of items, in ordered tables, and how to build
//! lanes. Parser, `check`, JSON Schema, reference docs and portal all read these tables; adding a host is
//! one file, a `mod` line and an entry in its crate's `CLASSES`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use schemars::Schema;

use crate::config::auth::Auth;
use crate::config::build::Build;
use crate::config::settings::{OAuthClient, Transform};
use crate::fault::Fault;
use crate::host::{OperationFactory, ServiceFactory};
use crate::id::ItemName;
use crate::process::{BusinessProcess, Definition, Done, Job, Lane, LaneFactory, Next};
use crate::reply::Family;

/// The three kinds of item, in trace order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ItemKind {
    /// Brings messages in.
    Service,
    /// Decides.
    Process,
    /// Sends out.
    Operation,
}

impl ItemKind {
    /// All of them, in the order of a message's way.
    pub const ALL: [ItemKind; 3] = [ItemKind::Service, ItemKind::Process, ItemKind::Operation];

    /// `service`, `process`, `operation`.
    pub fn as_str(self) -> &'static str {
        match self {
            ItemKind::Service => "service",
            ItemKind::Process => "process",
            ItemKind::Operation => "operation",
        }
    }

    /// The table of the production file: `services`, `processes`, `operations`.
    pub fn table(self) -> &'static str {
        match self {
            ItemKind::Service => "services",
            ItemKind::Process => "processes",
            ItemKind::Operation => "operations",
        }
    }
}

/// One type of item: `type = "hl7.mllp"` under `[operations.…]`.
#[derive(Clone, Copy)]
pub struct ItemClass {
    /// The `type` in the production file.
    pub type_name: &'static str,
    /// Which table it belongs to.
    pub kind: ItemKind,
    /// One sentence for the reference.
    pub summary: &'static str,
    /// JSON Schema of its own settings, common keys excepted: `schemars::schema_for!(Settings)`.
    pub schema: fn() -> Schema,
    /// Checks the settings and makes what runs. Reports every problem it finds through `Build`; `None`
    /// only after at least one error. Opens nothing.
    pub build: fn(&mut Build<'_>) -> Option<Built>,
}

impl fmt::Debug for ItemClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ItemClass({} {})", self.kind.as_str(), self.type_name)
    }
}

/// What a class made of an item's settings.
#[derive(Clone, Debug)]
pub struct Built {
    /// Makes the running host.
    pub factory: Factory,
    /// What the cross-item checks and the Director need to know of it.
    pub facts: Facts,
}

/// Makes running hosts.
#[derive(Clone, Debug)]
pub enum Factory {
    /// A business service.
    Service(Arc<dyn ServiceFactory>),
    /// A business process.
    Process(ProcessHost),
    /// A business operation.
    Operation(Arc<dyn OperationFactory>),
}

/// How a process runs.
#[derive(Clone, Debug)]
pub enum ProcessHost {
    /// In its driver task: no scripts.
    Inline(Arc<dyn BusinessProcess>, Arc<Definition>),
    /// On a lane.
    Lane(Arc<Definition>),
}

/// What an item's own settings say that matters to others. Targets of services come from the common
/// key `targets` and are not repeated here.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Items it sends to without waiting (router `send`, flow `send`).
    pub sends: Vec<ItemName>,
    /// Items it calls and waits for (flow `call`, router `reply_from`); cycles are errors.
    pub calls: Vec<ItemName>,
    /// Sockets it listens on, each with the HTTP path where listeners are shared.
    pub listens: Vec<(SocketAddr, Option<String>)>,
    /// OAuth clients it uses.
    pub oauth: Vec<String>,
    /// Which built-in reply actions apply (operations only).
    pub replies: Option<Family>,
    /// It can wait for long (a delay, a call without timeout): `check` warns with pool 1.
    pub waits: bool,
    /// The time limit of its scripts (`script_time`), for the watchdog; absent = the default of a second.
    pub script_time: Option<Duration>,
    /// It can be called and answers (`reply`), or its peer's answer is the reply.
    pub answers: bool,
    /// It waits for the reply of its targets (`ack = "application"`, `reply = "wait"`), so that several
    /// targets need `reply_from`.
    pub needs_reply: bool,
    /// It is a service that brings no messages into the production (an authorization server): it has no
    /// targets and needs none.
    pub no_messages: bool,
    /// The listeners' URL for the start-up banner, for example `mllp://127.0.0.1:2575`.
    pub urls: Vec<String>,
}

/// Everything that can be configured, handed in by the composition root.
#[derive(Clone)]
pub struct Registry {
    /// All classes, in the order of the reference.
    pub items: Vec<ItemClass>,
    /// Checks one `[transforms.NAME]` (paths, script syntax); reports through `Build`.
    pub check_transform: fn(&mut Build<'_>, &str, &Transform),
    /// Checks one `[oauth.NAME]` (`septet_oauth::check`): the key at fault, a code, and what is wrong. Every
    /// entry is an error.
    pub check_oauth: fn(&OAuthClient) -> Vec<(&'static str, &'static str, String)>,
    /// Checks an `auth` table (`septet_oauth::check_auth`), in the same way.
    pub check_auth: fn(&Auth) -> Vec<(&'static str, &'static str, String)>,
    /// Builds lanes.
    pub lanes: LaneFactory,
}

impl Registry {
    /// A registry of these classes that checks nothing beyond them and has no lanes: for tests of hosts.
    pub fn of(items: Vec<ItemClass>) -> Registry {
        Registry {
            items,
            check_transform: |_, _, _| {},
            check_oauth: |_| Vec::new(),
            check_auth: |_| Vec::new(),
            lanes: Arc::new(|_| Box::new(NoLane)),
        }
    }

    /// The class of a type.
    pub fn class(&self, kind: ItemKind, type_name: &str) -> Option<&ItemClass> {
        self.items.iter().find(|class| class.kind == kind && class.type_name == type_name)
    }
}

/// A lane that can run nothing.
struct NoLane;

impl Lane for NoLane {
    fn run(&mut self, jobs: Vec<Job>, emit: &mut dyn FnMut(Done)) {
        for _ in jobs {
            let fault = Fault::new("script", "lane", "this registry has no lanes");
            emit(Done { effects: Vec::new(), next: Next::Fail(fault), state: None });
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("items", &self.items).finish_non_exhaustive()
    }
}
