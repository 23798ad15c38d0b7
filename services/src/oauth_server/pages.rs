//! The pages a person sees: sign-in, consent, and what went wrong. Plain HTML forms, no script, nothing from
//! elsewhere; they may not be framed or cached. Everything that did not come from here is escaped.

use std::fmt::Write as _;
use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use axum::http::StatusCode;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_LANGUAGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::clients::Client;
use super::words::{Around, Language};

const STYLE: &str = ":root{color-scheme:light dark;--ink:#1c2733;--soft:#5b6875;--line:#c9d1d9;--page:#eef2f5;\
--card:#fff;--go:#0b5cad;--on:#fff;--bad:#a3161f;--tint:#fdecec}\
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf0;--soft:#a3afbb;--line:#46525e;--page:#12181e;--card:#1c242c;\
--go:#6db3f2;--on:#0c1620;--bad:#ffb3b3;--tint:#3a1d20}}\
*{box-sizing:border-box}\
body{font:1rem/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Noto Sans\",\"Noto Sans JP\",sans-serif;\
color:var(--ink);background:var(--page);margin:0;padding:max(1rem,8vh) 1rem}\
main{max-width:25rem;margin:0 auto;background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:1.75rem}\
h1{font-size:1.4rem;line-height:1.25;margin:0 0 .5rem}p{margin:.5rem 0}\
strong,li,code{overflow-wrap:anywhere}\
label{display:block;margin:1rem 0 .25rem;font-weight:600}\
input{display:block;width:100%;font:inherit;color:inherit;background:transparent;padding:.55rem .65rem;\
border:1px solid var(--soft);border-radius:.4rem}\
ul{padding-left:1.2rem;margin:.75rem 0}li{margin:.35rem 0}small{color:var(--soft);display:block}\
button{font:inherit;font-weight:600;padding:.55rem 1.4rem;margin:1.25rem .5rem 0 0;border-radius:.4rem;cursor:pointer;\
border:1px solid var(--go);color:var(--on);background:var(--go)}\
button[value=deny]{color:var(--ink);background:transparent;border-color:var(--soft)}\
:focus-visible{outline:3px solid var(--go);outline-offset:2px}\
a{color:var(--go)}.note{color:var(--soft);font-size:.9rem}\
.wrong{color:var(--bad);background:var(--tint);border-left:4px solid var(--bad);padding:.5rem .75rem;border-radius:.25rem}";

/// Only our own style may run; forms go wherever the answer sends the person, so that `form-action` cannot say.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
    format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; frame-ancestors 'none'")
});

/// Text for HTML, quotes included.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A sentence with a name in it.
fn around((before, after): Around, name: &str) -> String {
    format!("{}<strong>{}</strong>{}", escaped(before), escaped(name), escaped(after))
}

fn page(status: StatusCode, language: Language, title: &str, content: &str) -> Response {
    let (title, tag) = (escaped(title), language.tag());
    let html = format!(
        "<!doctype html>\n<html lang=\"{tag}\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<style>{STYLE}</style>\n</head>\n\
         <body>\n<main>\n<h1>{title}</h1>\n{content}</main>\n</body>\n</html>\n"
    );
    let mut response = (status, html).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (CONTENT_LANGUAGE, tag),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// What a form of a page carries along.
pub(super) struct Form<'a> {
    pub(super) language: Language,
    /// Where it goes.
    pub(super) action: &'a str,
    /// The request that it belongs to.
    pub(super) request: &'a str,
}

impl Form<'_> {
    fn open(&self) -> String {
        format!(
            "<form method=\"post\" action=\"{}\">\n<input type=\"hidden\" name=\"request\" value=\"{}\">\n",
            escaped(self.action),
            escaped(self.request)
        )
    }
}

/// Asks for name and password. `wrong` says why it is asked again; `name` is what the client or the person
/// said before.
pub(super) fn sign_in(
    status: StatusCode,
    form: &Form<'_>,
    client: &Client,
    name: &str,
    wrong: Option<&str>,
) -> Response {
    let words = form.language.words();
    let told =
        wrong.map(|text| format!("<p class=\"wrong\" role=\"alert\" id=\"wrong\">{}</p>\n", escaped(text)));
    let described = if wrong.is_some() { " aria-describedby=\"wrong\" aria-invalid=\"true\"" } else { "" };
    let (on_name, on_password) = if name.is_empty() { (" autofocus", "") } else { ("", " autofocus") };
    let value = if name.is_empty() { String::new() } else { format!(" value=\"{}\"", escaped(name)) };
    let content = format!(
        "<p>{}</p>\n{}{}<label for=\"username\">{}</label>\n\
         <input id=\"username\" name=\"username\"{} autocomplete=\"username\" autocapitalize=\"none\" \
         spellcheck=\"false\" required{described}{on_name}>\n<label for=\"password\">{}</label>\n\
         <input id=\"password\" name=\"password\" type=\"password\" autocomplete=\"current-password\" \
         required{described}{on_password}>\n<button>{}</button>\n</form>\n",
        around(words.sign_in_for, client.shown()),
        told.unwrap_or_default(),
        form.open(),
        escaped(words.name),
        value,
        escaped(words.password),
        escaped(words.sign_in),
    );
    page(status, form.language, words.sign_in, &content)
}

/// Asks whether a client may have these scopes, each with its description. `home` is the host that the person
/// will be sent back to.
pub(super) fn consent(
    form: &Form<'_>,
    client: &Client,
    user: &str,
    home: &str,
    scopes: &[(String, String)],
) -> Response {
    let words = form.language.words();
    let mut items = String::new();
    for (name, description) in scopes {
        let shown = if description == name {
            format!("<li>{}</li>\n", escaped(name))
        } else {
            format!("<li>{} <small>{}</small></li>\n", escaped(description), escaped(name))
        };
        items.push_str(&shown);
    }
    if items.is_empty() {
        let _ = writeln!(items, "<li>{}</li>", escaped(words.nothing_more));
    }
    let unverified = if client.registered {
        format!("<p class=\"wrong\">{}</p>\n", escaped(words.unverified))
    } else {
        String::new()
    };
    let content = format!(
        "<p>{}</p>\n{unverified}<p>{}</p>\n<ul>\n{items}</ul>\n<p class=\"note\">{}</p>\n{}\
         <button name=\"decision\" value=\"allow\">{}</button>\n\
         <button name=\"decision\" value=\"deny\">{}</button>\n</form>\n",
        around(words.signed_in_as, user),
        around(words.asks, client.shown()),
        around(words.returns_to, home),
        form.open(),
        escaped(words.allow),
        escaped(words.deny),
    );
    page(StatusCode::OK, form.language, words.consent, &content)
}

/// Says what is wrong where the person cannot be sent back to the client.
pub(super) fn problem(status: StatusCode, language: Language, text: &str) -> Response {
    page(status, language, language.words().problem, &format!("<p>{}</p>\n", escaped(text)))
}

/// Says that the request of a client was refused, where the person is to decide whether to go back there.
pub(super) fn problem_with_link(language: Language, client: &Client, url: &str) -> Response {
    let words = language.words();
    let content = format!(
        "<p>{}</p>\n<p><a href=\"{}\" rel=\"noreferrer\">{}</a></p>\n",
        escaped(words.refused),
        escaped(url),
        around(words.back_to, client.shown()),
    );
    page(StatusCode::BAD_REQUEST, language, words.problem, &content)
}
