//! Named transforms (`[transforms.NAME]`): from a message to a typed message, or from HL7 to HL7, where the
//! target starts as a copy of the source. `set` fills fields in file order, `code` comes after, and what
//! comes out is checked against its type.

pub(crate) mod check;
pub(crate) mod run;

use septet_engine::config::settings::{SetValue, Transform};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::script::ScriptKind;

/// A transform of a stored definition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TransformDef {
    /// The type it makes; none for HL7 to HL7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) to: Option<String>,
    /// In file order: the target's path or field, and what it gets.
    pub(crate) set: Vec<(String, Source)>,
    /// The script of `code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<usize>,
}

/// What a field is set to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    /// What stands at a path or field of the source.
    Path(String),
    /// Always this.
    Constant(Json),
    /// The value of a script.
    Expression(usize),
}

impl TransformDef {
    /// From the settings; `script` takes a script and gives its number.
    pub(crate) fn new(
        name: &str,
        transform: &Transform,
        script: &mut dyn FnMut(ScriptKind, &str, String) -> usize,
    ) -> Self {
        let set = transform.set.iter().map(|(target, value)| {
            let source = match value {
                SetValue::Path(path) => Source::Path(path.clone()),
                SetValue::Constant(value) => Source::Constant(value.clone()),
                SetValue::Expression(code) => {
                    let place = format!("transform {name}, set {target}");
                    Source::Expression(script(ScriptKind::Expression, code, place))
                }
            };
            (target.clone(), source)
        });
        let set = set.collect();
        let place = || format!("transform {name}, code");
        let code = transform.code.as_deref().map(|code| script(ScriptKind::Transform, code, place()));
        TransformDef { to: transform.to.clone(), set, code }
    }
}
