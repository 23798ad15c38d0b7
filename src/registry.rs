//! Everything that can be configured: the classes of all three kinds, from the tables of their crates, and how
//! to build lanes. Parser, `check`, JSON Schema, reference and portal read it.

use septet_engine::registry::{ItemClass, Registry};

/// The registry of this program.
pub(crate) fn registry() -> Registry {
    let items: Vec<ItemClass> = Vec::new();
    Registry { check_oauth: septet_oauth::check, ..Registry::of(items) }
}
