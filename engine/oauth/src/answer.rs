//! Reading a token endpoint's reply: bytes in, token and lifetime out. Pure, and tolerant of everything that
//! servers are known to do: any content type, nested fields, `expires_in` as a number, a numeric string, null,
//! a date or missing, an `id_token` nobody asked for, an error with status 200.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use zeroize::Zeroizing;

/// Numbers from here on are a point in time (2001-09-09 in seconds), not a lifetime of 31 years.
const EPOCH_SECONDS: f64 = 1e9;
/// The same in milliseconds.
const EPOCH_MILLISECONDS: f64 = 1e12;

/// A good reply.
pub(crate) struct Answer {
    pub(crate) token: Zeroizing<String>,
    pub(crate) ends: Ends,
    pub(crate) refresh: Option<Zeroizing<String>>,
    /// When the refresh token ends, where the server says so: Keycloak and others do.
    pub(crate) refresh_ends: Option<Ends>,
    /// The scopes given, where the server says so (RFC 6749 §5.1).
    pub(crate) scope: Option<String>,
    /// Looked at after a sign-in only (OpenID Connect Core §3.1.3.3).
    pub(crate) id_token: Option<Zeroizing<String>>,
}

/// When a token ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ends {
    /// So long after it was asked for.
    After(Duration),
    /// Then.
    At(Timestamp),
    /// The server did not say, or not so that it can be read.
    Unsaid,
}

impl Ends {
    /// A date by a clock that is ahead of ours, by ours.
    pub(crate) fn by_our_clock(self, skew: Option<SignedDuration>) -> Ends {
        match self {
            Ends::At(moment) => {
                Ends::At(moment.saturating_sub(skew.unwrap_or_default()).unwrap_or(Timestamp::MIN))
            }
            other => other,
        }
    }

    /// The moment, for a token asked for at `asked`.
    pub(crate) fn at(self, asked: Timestamp, default_lifetime: Duration) -> Timestamp {
        let after = |lifetime| {
            let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
            asked.saturating_add(lifetime).unwrap_or(Timestamp::MAX)
        };
        match self {
            Ends::After(lifetime) => after(lifetime),
            Ends::At(moment) => moment,
            Ends::Unsaid => after(default_lifetime),
        }
    }
}

/// A reply without a token in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The server's OAuth error code where it gave a well-formed one (RFC 6749 §5.2).
    pub(crate) error: Option<String>,
    /// What is wrong, in our words.
    pub(crate) text: String,
    /// The server's words. Empty where they might hold a token.
    pub(crate) detail: String,
}

/// Reads a reply. `token` and `expires_in` are JSON pointers (RFC 6901).
pub(crate) fn read(status: u16, body: &[u8], token: &str, expires_in: &str) -> Result<Answer, Refusal> {
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    let json = serde_json::from_slice::<Value>(body).ok();
    let error = json.as_ref().and_then(error_code);
    if !(200..300).contains(&status) || error.is_some() {
        let detail = json.as_ref().and_then(described).unwrap_or_else(|| excerpt(body));
        let text = match (&error, status) {
            (Some(_), _) => format!("the token endpoint refused with status {status}"),
            (None, 300..400) => {
                format!("the token endpoint redirected (status {status}), which is not followed")
            }
            (None, _) => format!("the token endpoint answered with status {status}"),
        };
        return Err(Refusal { error, text, detail });
    }
    let refusal = |text: String| Refusal { error: None, text, detail: String::new() };
    let Some(json) = json else {
        return Err(refusal("the token endpoint's reply is not JSON".into()));
    };
    let found = json.pointer(token).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
    let Some(found) = found else {
        return Err(refusal(format!("the token endpoint's reply has no text at {token}")));
    };
    if !found.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(refusal("the token holds characters that no token may have".into()));
    }
    let kind = json.get("token_type").and_then(Value::as_str).unwrap_or_default();
    if ["dpop", "mac", "pop"].iter().any(|other| kind.eq_ignore_ascii_case(other)) {
        return Err(refusal("the token is not a bearer token".into()));
    }
    let secret = |name: &str| Some(Zeroizing::new(json.get(name)?.as_str()?.to_owned()));
    Ok(Answer {
        token: Zeroizing::new(found.to_owned()),
        ends: json.pointer(expires_in).map_or(Ends::Unsaid, ends),
        refresh: secret("refresh_token").filter(|text| !text.is_empty()),
        refresh_ends: ["refresh_token_expires_in", "refresh_expires_in"]
            .iter()
            .filter_map(|name| json.get(*name).map(ends))
            // Keycloak says 0 for a token without an end.
            .find(|ends| !matches!(ends, Ends::Unsaid | Ends::After(Duration::ZERO))),
        scope: scope(&json),
        id_token: secret("id_token"),
    })
}

/// The scopes as one text; some servers write a list. Cut, and without characters that no scope has.
fn scope(json: &Value) -> Option<String> {
    let scope = match json.get("scope")? {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        _ => return None,
    };
    let legal = |c: &char| c.is_ascii_graphic() || *c == ' ';
    Some(scope.chars().filter(legal).take(2000).collect())
}

/// A well-formed `error` (RFC 6749 §5.2 allows more characters; codes in use need no more than these).
fn error_code(json: &Value) -> Option<String> {
    let code = json.get("error")?.as_str()?;
    let fits = (1..=64).contains(&code.len())
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
    fits.then(|| code.to_owned())
}

fn described(json: &Value) -> Option<String> {
    let words = json.get("error_description")?.as_str()?;
    Some(excerpt(words.as_bytes()))
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(2000).collect()
}

fn ends(value: &Value) -> Ends {
    match value {
        Value::Number(number) => number.as_f64().map_or(Ends::Unsaid, from_number),
        Value::String(text) => {
            let text = text.trim();
            match text.parse::<f64>() {
                Ok(number) => from_number(number),
                Err(_) => date(text).map_or(Ends::Unsaid, Ends::At),
            }
        }
        _ => Ends::Unsaid,
    }
}

fn from_number(number: f64) -> Ends {
    if !number.is_finite() {
        return Ends::Unsaid;
    }
    if number < EPOCH_SECONDS {
        return Ends::After(Duration::try_from_secs_f64(number.max(0.0)).unwrap_or_default());
    }
    let seconds = if number < EPOCH_MILLISECONDS { number } else { number / 1000.0 };
    let moment = SignedDuration::try_from_secs_f64(seconds).unwrap_or(SignedDuration::MAX);
    Ends::At(Timestamp::from_duration(moment).unwrap_or(Timestamp::MAX))
}

/// RFC 3339, the date of HTTP and mail, or a date and time without a zone, which is read as UTC.
fn date(text: &str) -> Option<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    if let Ok(zoned) = jiff::fmt::rfc2822::parse(text) {
        return Some(zoned.timestamp());
    }
    let civil = text.parse::<DateTime>().ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifetime(expires_in: &str) -> Ends {
        let body = format!(r#"{{"access_token":"t","expires_in":{expires_in}}}"#);
        read(200, body.as_bytes(), "/access_token", "/expires_in").ok().unwrap().ends
    }

    #[test]
    fn a_lifetime_is_read_however_it_is_written() {
        let hour = Ends::After(Duration::from_secs(3600));
        for written in ["3600", "\"3600\"", "3600.0", "\" 3600 \"", "\"3600.0\""] {
            assert_eq!(lifetime(written), hour, "{written}");
        }
        assert_eq!(lifetime("-5"), Ends::After(Duration::ZERO));
        for written in ["null", "\"\"", "\"soon\"", "true", "[]", "{}"] {
            assert_eq!(lifetime(written), Ends::Unsaid, "{written}");
        }
        let moment = Ends::At("2030-01-02T03:04:05Z".parse().unwrap());
        for written in [
            "\"2030-01-02T03:04:05Z\"",
            "\"2030-01-02T04:04:05+01:00\"",
            "\"Wed, 02 Jan 2030 03:04:05 GMT\"",
            "\"2030-01-02T03:04:05\"",
            "\"2030-01-02 03:04:05\"",
            "1893553445",
            "\"1893553445\"",
            "1893553445000",
        ] {
            assert_eq!(lifetime(written), moment, "{written}");
        }
        assert_eq!(lifetime("1e300"), Ends::At(Timestamp::MAX));
    }

    #[test]
    fn a_nested_reply_is_found_by_pointers_and_an_id_token_is_ignored() {
        let body = br#"{"id_token":"x.y.z","data":{"token":"abc","ttl":"60"}}"#;
        let answer = read(200, body, "/data/token", "/data/ttl").ok().unwrap();
        assert_eq!(*answer.token, "abc");
        assert_eq!(answer.ends, Ends::After(Duration::from_secs(60)));
    }

    #[test]
    fn what_the_server_says_of_scope_and_refresh_token_is_read() {
        let read = |body: &str| read(200, body.as_bytes(), "/access_token", "/expires_in").ok().unwrap();
        let keycloak =
            read(r#"{"access_token":"t","refresh_token":"r","refresh_expires_in":1800,"scope":"a b"}"#);
        assert_eq!(keycloak.refresh_ends, Some(Ends::After(Duration::from_secs(1800))));
        assert_eq!(keycloak.scope.as_deref(), Some("a b"));
        let offline =
            read(r#"{"access_token":"t","refresh_token":"","refresh_expires_in":0,"scope":["a","b"]}"#);
        assert_eq!((offline.refresh.is_none(), offline.refresh_ends), (true, None));
        assert_eq!(offline.scope.as_deref(), Some("a b"));
        let other = read(r#"{"access_token":"t","refresh_token":"r","refresh_token_expires_in":"60"}"#);
        assert_eq!(other.refresh_ends, Some(Ends::After(Duration::from_secs(60))));
    }

    #[test]
    fn a_bad_reply_says_what_is_wrong_and_never_shows_what_might_be_a_token() {
        let refusal =
            |status, body: &str| read(status, body.as_bytes(), "/access_token", "/expires_in").err().unwrap();
        let denied = refusal(401, r#"{"error":"invalid_client","error_description":"who are you"}"#);
        assert_eq!(
            (denied.error.as_deref(), denied.detail.as_str()),
            (Some("invalid_client"), "who are you")
        );
        assert_eq!(
            refusal(200, r#"{"error":"bad_verification_code"}"#).error.as_deref(),
            Some("bad_verification_code")
        );
        let strange = refusal(400, r#"{"error":"no <such> thing"}"#);
        assert_eq!(strange.error, None);
        assert_eq!(strange.detail, r#"{"error":"no <such> thing"}"#);
        let truncated = refusal(200, r#"{"access_token":"s3cret"#);
        assert!(truncated.text.contains("not JSON") && truncated.detail.is_empty());
        let elsewhere = refusal(200, r#"{"token":"s3cret"}"#);
        assert!(elsewhere.text.contains("/access_token") && elsewhere.detail.is_empty());
        assert!(refusal(200, r#"{"access_token":"a\r\nb: c"}"#).text.contains("characters"));
        assert!(refusal(302, "").text.contains("not followed"));
        assert!(refusal(200, r#"{"access_token":"t","token_type":"DPoP"}"#).text.contains("bearer"));
    }
}
