//! What is generated from the settings: the JSON Schema and the reference.

use super::*;

#[test]
fn the_schema_is_whole_and_takes_the_example() {
    let schema = crate::config::document::schema(&classes::registry());
    let mut open = vec![&schema];
    while let Some(part) = open.pop() {
        if let Some(path) = part.get("$ref").and_then(serde_json::Value::as_str) {
            assert!(schema.pointer(path.trim_start_matches('#')).is_some(), "{path}");
        }
        open.extend(part.as_object().into_iter().flat_map(|map| map.values()));
        open.extend(part.as_array().into_iter().flatten());
    }
    let rest = &schema["$defs"]["operations.rest"];
    assert_eq!(rest["properties"]["type"]["const"], "rest");
    assert_eq!(rest["patternProperties"]["^x-"], true);
    for key in ["url", "retry_interval", "enabled"] {
        assert!(rest["properties"].get(key).is_some(), "{key}");
    }
}

#[test]
fn the_reference_tells_what_each_setting_takes() {
    let registry = classes::registry();
    let text = crate::config::document::reference_of(&registry, "rest").unwrap();
    insta::assert_snapshot!(text, @r##"
## rest (operation)

For tests.

- `url`: a string, required
  Base URL.
- `oauth`: any value
  The client, or `{ client, placement }`.
- `headers`: a table
  Headers.
- `requests`: a table
  Message map.
  - `method`: "GET", "POST" or "PUT", required
    HTTP method.
  - `path`: a string, required
    Below the URL.
  - `reply`: a string
    The reply's type.

Keys of all operations:

- `enabled`: true or false, default true
  A disabled item does not run; its queue takes messages and waits.
- `pool_size`: a whole number or "unlimited"
  How many messages are worked on at a time; processes also take "unlimited".
- `order_by`: a string or a list
  HL7 paths or record fields; messages that share a value are handled one after the other, in order.
- `on_suspend`: "pass", "hold_key" or "hold_item"
  What happens to the messages behind a suspended one; default "hold_key" with order_by, else "pass".
- `alert`: a table
  When an alert about the item's queue is raised.
- `schedule`: hours such as "Mon-Fri 07:00-19:00"
  The hours in which the item runs, for example "Mon-Fri 07:00-19:00".
- `description`: a string
  For people.
- `category`: a string
  For people: groups items in the portal.
- `retry_interval`: a duration such as "5s", default "5s"
  The first wait before a retry, doubled up to 60 s.
- `failure_timeout`: a duration such as "5s", or "never", default "never"
  A message that has been retried for this long is suspended.
- `suspend_limit`: a whole number, default 5
  After so many consecutive suspensions of different messages the item pauses.
- `response_timeout`: a duration such as "5s", default "30s"
  How long to wait for the peer's answer.
- `reply_actions`: a table
  What to do with a reply code: "complete", "warn", "retry", "suspend", "disable" or "fail".
- `idempotency_header`: a string, default "Idempotency-Key"
  The header under which HTTP operations send the idempotency key.
"##);
    assert!(crate::config::document::reference_of(&registry, "rset").is_none());
    let whole = crate::config::document::reference(&registry);
    for topic in crate::config::document::topics(&registry) {
        assert!(whole.contains(&topic), "{topic}");
    }
}
