//! The filters of lists, the same from a query string and from a JSON body.

use septet_engine::header::{Kind, Status};
use septet_engine::id::SessionId;
use septet_engine::store::MessageFilter;
use serde_json::Value;

use crate::problem::Problem;

/// Names and values as they were given.
pub(crate) type Pairs = Vec<(String, String)>;

/// The pairs of a query string.
pub(crate) fn pairs(query: Option<&str>) -> Pairs {
    url::form_urlencoded::parse(query.unwrap_or("").as_bytes()).into_owned().collect()
}

/// The pairs of a JSON object: strings, numbers, booleans, lists (joined by commas), and
/// `"key": { "mrn": "…" }` as well as `"key.mrn": "…"`.
pub(crate) fn pairs_of(body: &Value) -> Result<Pairs, Problem> {
    let Value::Object(fields) = body else {
        return Err(Problem::bad_request("the body must be a JSON object of filters"));
    };
    let mut pairs = Pairs::new();
    for (name, value) in fields {
        match value {
            Value::Null => {}
            Value::Object(keys) if name == "key" => {
                for (key, value) in keys {
                    pairs.push((format!("key.{key}"), scalar(name, value)?));
                }
            }
            value => pairs.push((name.clone(), scalar(name, value)?)),
        }
    }
    Ok(pairs)
}

fn scalar(name: &str, value: &Value) -> Result<String, Problem> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(items) => {
            items.iter().map(|item| scalar(name, item)).collect::<Result<Vec<_>, _>>()?.join(",")
        }
        Value::Null | Value::Object(_) => {
            return Err(Problem::bad_request(format!("{name} must be a text, a number or a list of them")));
        }
    })
}

/// A page of `GET /messages`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MessageQuery {
    pub(crate) filter: MessageFilter,
    pub(crate) limit: usize,
    pub(crate) cursor: Option<u64>,
    pub(crate) keys: bool,
}

const MESSAGE_PARAMETERS: [&str; 14] = [
    "session",
    "source",
    "target",
    "status",
    "type",
    "control_id",
    "kind",
    "key.NAME",
    "from",
    "to",
    "q",
    "limit",
    "cursor",
    "keys",
];

impl MessageQuery {
    /// Reads the pairs; an unknown or unreadable one is named.
    pub(crate) fn new(pairs: Pairs) -> Result<Self, Problem> {
        let mut query = MessageQuery { limit: 100, ..MessageQuery::default() };
        let filter = &mut query.filter;
        for (name, value) in pairs {
            match name.as_str() {
                "session" => filter.session = Some(SessionId(number(&name, &value)?)),
                "source" => filter.source = Some(value),
                "target" => filter.target = Some(value),
                "status" => {
                    for status in value.split(',').map(str::trim) {
                        let status = Status::from_name(status)
                            .ok_or_else(|| unknown(&name, &Status::ALL.map(|s| s.1)))?;
                        filter.status.push(status);
                    }
                }
                "type" => filter.type_name = Some(value),
                "control_id" => filter.control_id = Some(value),
                "kind" => {
                    filter.kind = Some(match value.as_str() {
                        "request" => Kind::Request,
                        "response" => Kind::Response,
                        _ => return Err(unknown(&name, &["request", "response"])),
                    });
                }
                "from" => filter.from = Some(moment(&name, &value)?),
                "to" => filter.to = Some(moment(&name, &value)?),
                "q" => filter.text = Some(value),
                "limit" => query.limit = limit(&name, &value)?,
                "cursor" => query.cursor = Some(number(&name, &value)?),
                "keys" => {
                    query.keys = match value.as_str() {
                        "true" => true,
                        "false" => false,
                        _ => return Err(unknown(&name, &["true", "false"])),
                    };
                }
                other => match other.strip_prefix("key.") {
                    Some(key) if !key.is_empty() => filter.keys.push((key.to_owned(), value)),
                    _ => return Err(unknown_parameter(other, &MESSAGE_PARAMETERS)),
                },
            }
        }
        Ok(query)
    }

    /// Whether it looks for search keys or asks to show them: that is audited.
    pub(crate) fn touches_keys(&self) -> bool {
        self.keys || !self.filter.keys.is_empty()
    }
}

/// A number, or a problem that names the parameter.
pub(crate) fn number(name: &str, value: &str) -> Result<u64, Problem> {
    value.parse().map_err(|_| Problem::bad_request(format!("{name} must be a whole number")))
}

/// A page size: at most 1000, larger is capped.
pub(crate) fn limit(name: &str, value: &str) -> Result<usize, Problem> {
    let limit = number(name, value)?;
    if limit == 0 {
        return Err(Problem::bad_request(format!("{name} must be at least 1")));
    }
    Ok(usize::try_from(limit).unwrap_or(usize::MAX).min(1000))
}

/// A moment in RFC 3339.
pub(crate) fn moment(name: &str, value: &str) -> Result<jiff::Timestamp, Problem> {
    // A plus sign in a query that was not encoded arrives as a space; a space may also stand for the T.
    value.parse().or_else(|_| value.replace(' ', "+").parse()).map_err(|_| {
        Problem::bad_request(format!("{name} must be a time in RFC 3339, for example 2026-03-01T08:15:00Z"))
    })
}

fn unknown(name: &str, known: &[&str]) -> Problem {
    Problem::bad_request(format!("{name} takes {}", known.join(", ")))
}

/// A parameter nobody knows; lists those there are.
pub(crate) fn unknown_parameter(name: &str, known: &[&str]) -> Problem {
    Problem::bad_request(format!("there is no parameter {name}; there are {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<MessageQuery, Problem> {
        MessageQuery::new(pairs(Some(text)))
    }

    #[test]
    fn filters_read_the_same_from_a_query_and_from_json() {
        let from_url =
            query("status=queued,error&key.mrn=1%202&from=2026-03-01T00:00:00%2B01:00&limit=5000").unwrap();
        let json = serde_json::json!({
            "status": ["queued", "error"], "key": { "mrn": "1 2" }, "from": "2026-03-01T00:00:00+01:00", "limit": 5000,
        });
        let from_json = MessageQuery::new(pairs_of(&json).unwrap()).unwrap();
        assert_eq!(from_url, from_json);
        assert_eq!(from_url.limit, 1000);
        assert_eq!(from_url.filter.keys, [("mrn".to_owned(), "1 2".to_owned())]);
        assert!(from_url.touches_keys());
    }

    #[test]
    fn a_time_may_stand_in_a_query_in_each_way_that_rfc_3339_has() {
        let at = |text: &str| query(text).unwrap().filter.from;
        let expected = at("from=2026-03-01T08:15:00Z");
        for text in ["2026-03-01t08:15:00z", "2026-03-01%2008:15:00Z", "2026-03-01T09:15:00+01:00"] {
            assert_eq!(at(&format!("from={text}")), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert!(query("statsu=x").unwrap_err().detail.contains("there is no parameter statsu"));
        assert!(query("status=lost").unwrap_err().detail.contains("queued"));
        assert!(query("from=yesterday").unwrap_err().detail.contains("RFC 3339"));
        assert!(query("limit=0").is_err());
        assert!(query("keys=yes").unwrap_err().detail.contains("true, false"));
    }
}
