//! Texts of alerts and trace entries: `value {expr} of {expr}`.

pub(super) enum Part<'t> {
    Text(String),
    /// With the byte where it begins.
    Code(&'t str, usize),
}

/// Splits `text with {expr}` at its braces; `{{` and `}}` are single braces, braces and quotes inside an
/// expression are part of it.
pub(super) fn split(template: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut chars = template.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '{' | '}' if chars.peek().is_some_and(|(_, next)| *next == c) => {
                chars.next();
                text.push(c);
            }
            '{' => {
                let (mut depth, mut quote, mut end) = (1usize, None, None);
                while let Some((at, c)) = chars.next() {
                    match (quote, c) {
                        (Some(_), '\\') => drop(chars.next()),
                        (Some(open), c) if c == open => quote = None,
                        (Some(_), _) => {}
                        (None, '"' | '\'' | '`') => quote = Some(c),
                        (None, '{') => depth += 1,
                        (None, '}') => depth -= 1,
                        (None, _) => {}
                    }
                    if depth == 0 {
                        end = Some(at);
                        break;
                    }
                }
                let code = end.and_then(|end| template.get(at + 1..end));
                let code = code.ok_or("a brace in this text is not closed")?;
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(Part::Code(code, at + 1));
            }
            '}' => return Err("a brace in this text was not opened".into()),
            c => text.push(c),
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}
