//! The checks of `[transforms.NAME]`: paths, what stands below fields, scripts.

use septet_engine::config::build::{At, Build};
use septet_engine::config::settings::{SetValue, Transform};
use septet_engine::record::{FieldType, MessageType};
use septet_hl7::Path;

use crate::check::{field_path, key_problem, script_problem};
use crate::script::ScriptKind;

/// Checks one `[transforms.NAME]`: its paths and fields, its scripts. (That type and fields are declared is
/// checked with the declarations themselves.)
pub fn check_transform(build: &mut Build<'_>, _name: &str, transform: &Transform) {
    let names = build.names;
    let declared = match &transform.to {
        Some(to) => names.types.get(to),
        None => None,
    };
    for (target, value) in &transform.set {
        let at = [At::Key("set"), At::Key(target)];
        match (&transform.to, declared) {
            (None, _) => check_target_path(build, target),
            (Some(_), Some(declared)) => check_target_field(build, target, declared),
            (Some(_), None) => {}
        }
        match value {
            SetValue::Path(path) => check_source(build, &at, path),
            SetValue::Constant(_) => {}
            SetValue::Expression(code) => {
                let at = [At::Key("set"), At::Key(target), At::Key("expr")];
                script_problem(build, &at, ScriptKind::Expression, code);
            }
        }
    }
    if let Some(code) = &transform.code {
        script_problem(build, &["code".into()], ScriptKind::Transform, code);
    }
    if transform.set.is_empty() && transform.code.is_none() && transform.to.is_some() {
        build.error("S0312", &[], "this transform sets nothing: it has neither set nor code", None);
    }
}

fn check_target_path(build: &mut Build<'_>, target: &str) {
    let text = match target.parse::<Path>() {
        Err(error) => error.to_string(),
        Ok(path) if !path.groups().is_empty() => return group_path(build, &["set".into()], target),
        Ok(path) if path.field().is_none() => {
            format!("{target} is a whole segment; set takes fields, as in {target}-1")
        }
        Ok(_) => return,
    };
    key_problem(build, "S0213", &["set".into()], target, text, None);
}

/// What stands below a field; that the field itself is declared is checked with all declarations.
fn check_target_field(build: &mut Build<'_>, target: &str, declared: &MessageType) {
    let Some((first, _)) = target.split_once('.') else { return };
    let Some((_, field)) = declared.fields.iter().find(|(name, _)| name == first) else { return };
    if !matches!(field.kind, FieldType::Object | FieldType::Any) {
        let text = format!("{}.{first} is {}: nothing can be set below it", declared.name, field.kind.name());
        key_problem(build, "S0216", &["set".into()], target, text, None);
    }
}

fn check_source(build: &mut Build<'_>, at: &[At<'_>], path: &str) {
    match path.parse::<Path>() {
        Ok(path) if !path.groups().is_empty() => group_path(build, at, ""),
        Ok(_) => {}
        Err(_) if field_path(path) => {}
        Err(error) => {
            let suggestion =
                "set takes a path; a constant is { value = \"…\" }, an expression { expr = \"…\" }";
            build.error("S0213", at, error.to_string(), Some(suggestion.into()));
        }
    }
}

/// Reports a path through groups, at a key of the table at `at`, or at the value there.
pub(crate) fn group_path(build: &mut Build<'_>, at: &[At<'_>], key: &str) {
    let text = "paths through groups need the message's structure, which is not known here";
    let suggestion = Some("write the segment alone, for example OBX[2]-5".into());
    key_problem(build, "S0213", at, key, text, suggestion);
}
