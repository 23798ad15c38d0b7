//! Bodies as they travel over HTTP, whichever way: what a `Content-Type` says, the one a body gets, and the body
//! that bytes make which are no message of a known type.

use bytes::Bytes;

use crate::body::{BINARY, Body, TEXT};

/// The media type of a `Content-Type` in lower case, and its charset.
pub fn media_type(content_type: &str) -> (String, Option<String>) {
    let mut parts = content_type.split(';');
    let media = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let charset = parts.find_map(|part| {
        let (name, value) = part.trim().split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"').to_owned())
    });
    (media, charset.filter(|charset| !charset.is_empty()))
}

/// The `Content-Type` of a body.
pub fn content_type(body: &Body) -> String {
    match body.charset() {
        Some(charset) => format!("{}; charset={charset}", body.content_type()),
        None => body.content_type().to_owned(),
    }
}

/// Bytes as they came, as a body of type `Text` or `Binary`.
pub fn untyped(media: &str, charset: Option<&str>, bytes: &Bytes) -> Body {
    let utf8 = std::str::from_utf8(bytes).is_ok();
    if media.starts_with("text/") || media.ends_with("xml") {
        return Body::new("Text", media, charset.or(utf8.then_some("utf-8")), bytes.clone());
    }
    match utf8 {
        // Whatever it claims to be (broken JSON, nothing at all), it reads as text.
        true => Body::new("Text", TEXT, Some("utf-8"), bytes.clone()),
        false => Body::new("Binary", if media.is_empty() { BINARY } else { media }, None, bytes.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_type_is_a_media_type_and_a_charset() {
        assert_eq!(
            media_type("Text/Plain; Charset=\"iso-8859-1\""),
            ("text/plain".into(), Some("iso-8859-1".into()))
        );
        assert_eq!(media_type("application/json"), ("application/json".into(), None));
        assert_eq!(media_type("text/plain; charset="), ("text/plain".into(), None));
    }

    #[test]
    fn bytes_are_text_where_they_say_so_or_read_as_it() {
        let of = |media, bytes: &'static [u8]| {
            let body = untyped(media, None, &Bytes::from_static(bytes));
            format!("{} {}", body.type_name(), content_type(&body))
        };
        assert_eq!(of("text/csv", b"a;b"), "Text text/csv; charset=utf-8");
        assert_eq!(of("application/soap+xml", b"\xe4"), "Text application/soap+xml");
        assert_eq!(of("application/json", b"{"), "Text text/plain; charset=utf-8");
        assert_eq!(of("image/png", b"\x89PNG"), "Binary image/png");
        assert_eq!(of("", b"\xff"), "Binary application/octet-stream");
    }
}
