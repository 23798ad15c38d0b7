//! Values taken out of bodies when a message is received or enqueued: search keys and the hashes of
//! `order_by` values. A path means an HL7 path on an HL7 body and a field (dotted below the first level) on
//! a record; it gives nothing on any other body.

use std::sync::Arc;

use septet_hl7::Path;
use serde_json::Value;

use crate::body::{Body, Format};

/// One configured path or field.
#[derive(Clone, Debug)]
pub(super) struct Extract {
    path: Option<Path>,
    field: String,
}

impl Extract {
    /// From the text of the production file, which has been checked.
    pub(super) fn new(text: &str) -> Self {
        Extract { path: text.parse().ok(), field: text.to_owned() }
    }

    /// The values there, empty ones left out. A path without `[*]` names one value.
    pub(super) fn values(&self, body: &Body) -> Vec<String> {
        let mut values = match (body.format(), &self.path) {
            (Format::Hl7, Some(path)) => match body.as_hl7() {
                Some(message) if path.is_multiple() => message.all(path),
                Some(message) => vec![message.get(path)],
                None => Vec::new(),
            },
            (Format::Record, _) => self.fields(body),
            _ => Vec::new(),
        };
        values.retain(|value| !value.is_empty());
        values
    }

    fn fields(&self, body: &Body) -> Vec<String> {
        let Some(record) = body.as_record() else { return Vec::new() };
        let found = self.field.split('.').try_fold(&record.fields, |value, name| value.get(name));
        match found {
            Some(Value::Array(values)) => values.iter().filter_map(scalar).collect(),
            Some(value) => scalar(value).into_iter().collect(),
            None => Vec::new(),
        }
    }
}

/// Text of a simple value. Objects give nothing, sealed secrets (which are objects) least of all.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The `order_by` hashes of a body. Hashes go by value alone, so that a message whose MRG-1.1 names a
/// patient waits for those that have the same patient in PID-3.1.
pub(super) fn order_keys(order_by: &[Extract], body: &Body) -> Arc<[u64]> {
    if let ([Extract { path: Some(path), .. }], Some(message)) = (order_by, body.as_hl7())
        && !path.is_multiple()
    {
        let value = message.text_at(path);
        return if value.is_empty() { Arc::default() } else { Arc::new([hash(value.as_bytes())]) };
    }
    order_by.iter().flat_map(|extract| extract.values(body)).map(|value| hash(value.as_bytes())).collect()
}

/// FNV-1a, 64 bits: kept with the queue entries, so it must never change. A collision costs a wait.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::body;
    use crate::record::Record;

    fn adt() -> Body {
        let raw = "MSH|^~\\&|A|B|C|D|20260101||ADT^A40|1|P|2.5\rPID|||4711~4712\rMRG|4711\r";
        Body::new("ADT^A40", body::HL7, None, Bytes::from_static(raw.as_bytes()))
    }

    #[test]
    fn paths_read_hl7_and_names_read_records() {
        assert_eq!(Extract::new("PID-3.1").values(&adt()), ["4711"]);
        assert_eq!(Extract::new("PID-3[*].1").values(&adt()), ["4711", "4712"]);
        assert!(Extract::new("OBR-3").values(&adt()).is_empty());
        let fields = json!({ "mrn": "4711", "n": 7, "order": { "id": "x" }, "none": null });
        let record = Body::record(Record::untyped("R", fields));
        assert_eq!(Extract::new("mrn").values(&record), ["4711"]);
        assert_eq!(Extract::new("n").values(&record), ["7"]);
        assert_eq!(Extract::new("order.id").values(&record), ["x"]);
        assert!(Extract::new("order").values(&record).is_empty());
        assert!(Extract::new("none").values(&record).is_empty());
    }

    #[test]
    fn the_same_value_is_the_same_key_wherever_it_stands() {
        let of = |path: &str| order_keys(&[Extract::new(path)], &adt());
        assert_eq!(of("PID-3.1"), of("MRG-1"));
        assert_eq!(*of("PID-3.1"), [hash(b"4711")]);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c, "the published test vector");
    }
}
