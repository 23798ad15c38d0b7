//! The layout that ARCHITECTURE.md promises: dependencies point one way.

use std::path::Path;

fn dependencies(manifest: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest);
    let text = std::fs::read_to_string(&path).expect("manifests are readable");
    let table: toml::Table = text.parse().expect("manifests are TOML");
    let dependencies = table.get("dependencies").and_then(toml::Value::as_table).expect("has dependencies");
    dependencies.keys().filter(|name| name.starts_with("septet-")).cloned().collect()
}

#[test]
fn dependencies_point_one_way() {
    let allowed: [(&str, &[&str]); 7] = [
        ("engine/hl7/Cargo.toml", &[]),
        ("engine/Cargo.toml", &["septet-hl7"]),
        ("engine/oauth/Cargo.toml", &["septet-hl7", "septet-engine"]),
        ("engine/admin/Cargo.toml", &["septet-hl7", "septet-engine", "septet-oauth"]),
        ("services/Cargo.toml", &["septet-hl7", "septet-engine", "septet-oauth"]),
        ("operations/Cargo.toml", &["septet-hl7", "septet-engine", "septet-oauth"]),
        ("processes/Cargo.toml", &["septet-hl7", "septet-engine"]),
    ];
    for (manifest, allowed) in allowed {
        for dependency in dependencies(manifest) {
            assert!(allowed.contains(&dependency.as_str()), "{manifest} must not depend on {dependency}");
        }
    }
}

#[test]
fn the_hl7_core_is_pure() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/hl7/Cargo.toml");
    let table: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    let dependencies = table.get("dependencies").and_then(toml::Value::as_table).unwrap();
    for forbidden in ["tokio", "jiff", "reqwest", "rustix"] {
        assert!(!dependencies.contains_key(forbidden), "the HL7 core must not know {forbidden}");
    }
}
