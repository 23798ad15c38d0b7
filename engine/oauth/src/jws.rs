//! A JWT in compact form (RFC 7515 §7.1, RFC 7519), split and decoded: strict where parsers are known to
//! disagree, so that nobody can show one token to us and another to somebody else.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::check::{Check, Refusal};
use crate::jwks::Key;
use crate::keys::Algorithm;

/// Larger tokens are not looked at.
pub(crate) const TOKEN_CAP: usize = 16 * 1024;

/// A token whose parts are what they should be; nothing is verified.
pub(crate) struct Parsed<'a> {
    message: &'a str,
    signature: &'a str,
    pub(crate) header: Map<String, Value>,
    pub(crate) claims: Map<String, Value>,
}

impl<'a> Parsed<'a> {
    pub(crate) fn new(token: &'a str) -> Result<Self, Refusal> {
        let malformed = |what: &str| Refusal::new(Check::Malformed, "a signed JWT", what);
        let (message, signature) = token.rsplit_once('.').ok_or_else(|| malformed("an opaque token"))?;
        let (header, claims) = message.split_once('.').ok_or_else(|| malformed("two parts"))?;
        if claims.contains('.') {
            return Err(malformed("more than three parts"));
        }
        let object = |part: &str, what: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed(what))?;
            serde_json::from_slice::<Object>(&bytes).map(|object| object.0).map_err(|_| malformed(what))
        };
        Ok(Parsed {
            header: object(header, "a header that is no JSON object, or names something twice")?,
            claims: object(claims, "claims that are no JSON object, or name something twice")?,
            message,
            signature,
        })
    }

    pub(crate) fn is_signed_by(&self, key: &Key, algorithm: Algorithm) -> bool {
        let verified =
            jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), &key.key, algorithm);
        verified.unwrap_or(false)
    }
}

/// A JSON object in which no name comes twice: of two values of one name, readers take different ones
/// (RFC 7515 §4, RFC 7519 §4).
struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Once)
    }
}

struct Once;

impl<'de> Visitor<'de> for Once {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Object, A::Error> {
        let mut object = Map::new();
        while let Some((name, value)) = entries.next_entry::<String, Value>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name comes twice"));
            }
        }
        Ok(Object(object))
    }
}
