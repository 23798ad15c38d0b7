//! What HTTP services read in the head of a request: how its body is written, and which session it goes on.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use septet_engine::media;

/// The media type in lower case, and its charset.
pub(crate) fn media_type(headers: &HeaderMap) -> (String, Option<String>) {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media::media_type(text)
}

/// The session of another production that this request continues: its `Septet-Session`, else its trace.
pub(crate) fn parent_session(headers: &HeaderMap) -> Option<String> {
    let plain = |text: &&str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
        !text.is_empty() && text.len() <= 128 && text.chars().all(legal)
    };
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let session = value("septet-session").filter(plain);
    session.or_else(|| value("traceparent").filter(plain)).map(str::to_owned)
}
