//! The pages a person sees: sign-in, consent, and what went wrong. Plain HTML forms, no script, nothing from
//! elsewhere; they may not be framed or cached.

use axum::http::StatusCode;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::response::{IntoResponse, Response};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:4rem auto;padding:0 1rem}\
    label{display:block;margin:.8rem 0}input{display:block;width:100%;font:inherit;padding:.4rem;box-sizing:border-box}\
    button{font:inherit;padding:.4rem 1.2rem;margin:.8rem .5rem 0 0}.wrong{color:#a00}";

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

fn page(status: StatusCode, title: &str, content: &str) -> Response {
    let title = escaped(title);
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\n\
         <body>\n<h1>{title}</h1>\n{content}</body>\n</html>\n"
    );
    let mut response = (status, html).into_response();
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Asks for name and password. `wrong` says why it is asked again.
pub(super) fn sign_in(
    status: StatusCode,
    action: &str,
    request: &str,
    client: &str,
    wrong: Option<&str>,
) -> Response {
    let wrong = wrong.map(|text| format!("<p class=\"wrong\" role=\"alert\">{}</p>\n", escaped(text)));
    let content = format!(
        "<p>to go on to <strong>{}</strong></p>\n{}<form method=\"post\" action=\"{}\">\n\
         <input type=\"hidden\" name=\"request\" value=\"{}\">\n\
         <label>Name <input name=\"username\" autocomplete=\"username\" autofocus required></label>\n\
         <label>Password <input name=\"password\" type=\"password\" autocomplete=\"current-password\" required></label>\n\
         <button>Sign in</button>\n</form>\n",
        escaped(client),
        wrong.unwrap_or_default(),
        escaped(action),
        escaped(request),
    );
    page(status, "Sign in", &content)
}

/// Asks whether a client may have these scopes, each with its description.
pub(super) fn consent(
    action: &str,
    request: &str,
    client: &str,
    user: &str,
    scopes: &[(String, String)],
) -> Response {
    let mut items = String::new();
    for (name, description) in scopes {
        items.push_str(&format!("<li>{} <small>({})</small></li>\n", escaped(description), escaped(name)));
    }
    let items = if items.is_empty() { "<li>know who you are</li>\n".to_owned() } else { items };
    let content = format!(
        "<p>You are signed in as <strong>{}</strong>. <strong>{}</strong> asks to:</p>\n<ul>\n{items}</ul>\n\
         <form method=\"post\" action=\"{}\">\n<input type=\"hidden\" name=\"request\" value=\"{}\">\n\
         <button name=\"decision\" value=\"allow\">Allow</button>\n\
         <button name=\"decision\" value=\"deny\">Deny</button>\n</form>\n",
        escaped(user),
        escaped(client),
        escaped(action),
        escaped(request),
    );
    page(StatusCode::OK, "Allow access?", &content)
}

/// Says what is wrong where the person cannot be sent back to the client.
pub(super) fn problem(status: StatusCode, text: &str) -> Response {
    page(status, "This does not work", &format!("<p>{}</p>\n", escaped(text)))
}
