//! Business processes of Septet: routers, flows, transforms and the scripts in them. Pure: a job goes in,
//! effects come out; no I/O, and no clock but the job's. The engine knows this crate only through
//! [`CLASSES`], [`check_transform`] and [`lane_factory`].

mod check;
mod closure;
mod flow;
mod lane;
mod router;
mod scene;
mod script;
mod time;
mod transform;

use septet_engine::registry::ItemClass;

pub use flow::FlowSettings;
pub use lane::lane_factory;
pub use router::{RouterSettings, RuleSettings, Unmatched};
pub use script::{ScriptError, ScriptKind, check_script};
pub use transform::check::check_transform;

/// All process types, in the order of the reference.
pub const CLASSES: &[ItemClass] = &[router::CLASS, flow::CLASS];
