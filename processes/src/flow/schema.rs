//! The steps of a flow in the JSON Schema of the production file: what an editor offers and the reference
//! shows. The checks themselves are in [`super::check`], which knows places and names.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, IgnoredAny};

/// Steps as the settings hold them: read from the tree with places, not from here.
#[derive(Clone, Debug)]
pub struct Steps;

impl<'de> Deserialize<'de> for Steps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Steps)
    }
}

impl JsonSchema for Steps {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Steps".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "array",
            "items": true,
            "description": "Steps, each a table with one verb: assign, if, switch, foreach, while, call, sync, \
                parallel, transform, code, send, delay, alert, trace, reply, throw, scope."
        })
    }
}
