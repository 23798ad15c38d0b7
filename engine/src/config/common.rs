//! The keys that every item has, and those of all services or all operations (CONTRACT §2.1).

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema, schema_for};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use serde_json::Value as Json;

use crate::config::hours::Hours;
use crate::config::node::{Node, Value};
use crate::config::problem::Problem;
use crate::config::read::read;
use crate::config::settings::{Common, ItemAlert, OnSuspend, PoolSize};
use crate::config::source::Sources;
use crate::config::units::{DurationText, MaybeNever, Ordered, Strings};
use crate::id::ItemName;
use crate::registry::ItemKind;
use crate::reply::Action;

/// Keys of every item.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ItemKeys {
    /// The item's type, for example "hl7.mllp".
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "read from the tree before; here for schema and reference")]
    type_name: String,
    /// A disabled item does not run; its queue takes messages and waits.
    #[serde(default = "yes")]
    enabled: bool,
    /// How many messages are worked on at a time; processes also take "unlimited".
    #[serde(default)]
    pool_size: Pool,
    /// HL7 paths or record fields; messages that share a value are handled one after the other, in order.
    #[serde(default)]
    order_by: Strings,
    /// What happens to the messages behind a suspended one; default "hold_key" with order_by, else "pass".
    #[serde(default)]
    on_suspend: Option<OnSuspend>,
    /// When an alert about the item's queue is raised.
    #[serde(default)]
    alert: AlertKeys,
    /// The hours in which the item runs, for example "Mon-Fri 07:00-19:00".
    #[serde(default)]
    schedule: Option<Hours>,
    /// For people.
    #[serde(default)]
    description: Option<String>,
    /// For people: groups items in the portal.
    #[serde(default)]
    category: Option<String>,
}

/// `alert = { … }`.
#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
struct AlertKeys {
    /// Raised when the oldest queued message is older than this.
    queue_age: Option<DurationText>,
    /// Raised when more messages than this are queued.
    queue_depth: Option<u64>,
    /// Raised when no message came for this long.
    inactive: Option<DurationText>,
    /// Only within these hours, for example "Mon-Fri 07:00-19:00".
    during: Option<Hours>,
}

/// Keys of every service.
#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServiceKeys {
    /// The processes and operations that get every message.
    targets: Strings,
    /// The target whose reply is the answer, where the service waits for one and has several targets.
    reply_from: Option<String>,
    /// Search keys: a name and the HL7 path or record field it is taken from at receipt.
    search: Ordered<String>,
}

/// Keys of every operation.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OperationKeys {
    /// The first wait before a retry, doubled up to 60 s.
    retry_interval: DurationText,
    /// A message that has been retried for this long is suspended.
    failure_timeout: MaybeNever,
    /// After so many consecutive suspensions of different messages the item pauses.
    suspend_limit: u32,
    /// How long to wait for the peer's answer.
    response_timeout: DurationText,
    /// What to do with a reply code: "complete", "warn", "retry", "suspend", "disable" or "fail".
    reply_actions: Ordered<Action>,
    /// The header under which HTTP operations send the idempotency key.
    idempotency_header: String,
}

impl Default for OperationKeys {
    fn default() -> Self {
        OperationKeys {
            retry_interval: DurationText::secs(5),
            failure_timeout: MaybeNever(None),
            suspend_limit: 5,
            response_timeout: DurationText::secs(30),
            reply_actions: Ordered::default(),
            idempotency_header: "Idempotency-Key".into(),
        }
    }
}

fn yes() -> bool {
    true
}

/// `pool_size`: a number from 1 or `"unlimited"`.
#[derive(Clone, Copy)]
struct Pool(PoolSize);

impl Default for Pool {
    fn default() -> Self {
        Pool(PoolSize::Limited(1))
    }
}

impl<'de> Deserialize<'de> for Pool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrUnlimited;
        impl de::Visitor<'_> for NumberOrUnlimited {
            type Value = Pool;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number from 1, or \"unlimited\"")
            }
            fn visit_i64<E: de::Error>(self, size: i64) -> Result<Pool, E> {
                match u32::try_from(size) {
                    Ok(size) if size > 0 => Ok(Pool(PoolSize::Limited(size))),
                    _ => Err(E::invalid_value(de::Unexpected::Signed(size), &self)),
                }
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Pool, E> {
                match text {
                    "unlimited" => Ok(Pool(PoolSize::Unlimited)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(NumberOrUnlimited)
    }
}

impl JsonSchema for Pool {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PoolSize".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 100_000 }, { "const": "unlimited" }] })
    }
}

/// The schemas of the common keys of a kind: those of all items, then those of the kind.
pub fn schemas(kind: ItemKind) -> Vec<Json> {
    let mut all = vec![schema_for!(ItemKeys).to_value()];
    match kind {
        ItemKind::Service => all.push(schema_for!(ServiceKeys).to_value()),
        ItemKind::Process => {}
        ItemKind::Operation => all.push(schema_for!(OperationKeys).to_value()),
    }
    all
}

/// The names of the common keys of a kind.
pub(crate) fn keys(kind: ItemKind) -> Vec<String> {
    let of = |schema: Json| {
        let properties = schema.get("properties").and_then(Json::as_object).cloned().unwrap_or_default();
        properties.into_iter().map(|(key, _)| key)
    };
    schemas(kind).into_iter().flat_map(of).collect()
}

/// What was read of an item's common keys. Reply actions wait for the class to say which codes there are.
pub(crate) struct Read {
    pub(crate) common: Common,
    pub(crate) reply_actions: Ordered<Action>,
}

/// Reads the common keys of an item.
pub(crate) fn read_common(
    node: &Node,
    kind: ItemKind,
    sources: &Sources,
    problems: &mut Vec<Problem>,
) -> Option<Read> {
    let schemas = schemas(kind);
    let part = |index: usize| {
        let known =
            |key: &str| schemas.get(index).is_some_and(|schema| schema["properties"].get(key).is_some());
        let entries = node.entries().iter().filter(|entry| known(&entry.key)).cloned().collect();
        Node { span: node.span, value: Value::Table(entries) }
    };
    let item: Option<ItemKeys> = read(&part(0), &[], sources, problems);
    let service: Option<ServiceKeys> = match kind {
        ItemKind::Service => read(&part(1), &[], sources, problems),
        _ => Some(ServiceKeys::default()),
    };
    let operation: Option<OperationKeys> = match kind {
        ItemKind::Operation => read(&part(1), &[], sources, problems),
        _ => Some(OperationKeys::default()),
    };
    let (item, service, operation) = (item?, service?, operation?);
    let ordered = !item.order_by.0.is_empty();
    let on_suspend = if ordered { OnSuspend::HoldKey } else { OnSuspend::Pass };
    let common = Common {
        enabled: item.enabled,
        pool_size: item.pool_size.0,
        order_by: item.order_by.0,
        on_suspend: item.on_suspend.unwrap_or(on_suspend),
        alert: ItemAlert {
            queue_age: item.alert.queue_age.map(DurationText::get),
            queue_depth: item.alert.queue_depth,
            inactive: item.alert.inactive.map(DurationText::get),
            during: item.alert.during,
        },
        schedule: item.schedule,
        description: item.description,
        category: item.category,
        targets: service.targets.0.iter().map(ItemName::new).collect(),
        reply_from: service.reply_from.map(ItemName::new),
        search: service.search.0,
        retry_interval: operation.retry_interval.get(),
        failure_timeout: operation.failure_timeout.get(),
        suspend_limit: operation.suspend_limit,
        response_timeout: operation.response_timeout.get(),
        reply_actions: None,
        idempotency_header: operation.idempotency_header,
    };
    Some(Read { common, reply_actions: operation.reply_actions })
}
