//! Everything that can be configured: the classes of all three kinds, from the tables of their crates, and how
//! to build lanes. Parser, `check`, JSON Schema, reference and portal read it.

use septet_engine::registry::Registry;

/// The registry of this program.
pub(crate) fn registry() -> Registry {
    let tables = [septet_services::CLASSES, septet_processes::CLASSES, septet_operations::CLASSES];
    Registry {
        items: tables.concat(),
        check_transform: septet_processes::check_transform,
        check_oauth: septet_oauth::check,
        check_auth: septet_oauth::check_auth,
        lanes: septet_processes::lane_factory(),
    }
}
