//! Templates in HTTP requests: what `check` says of them, and headers filled in from a message. Shared by the
//! operations over HTTP; the templates themselves are in [`crate::template`].

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use septet_engine::config::build::{At, Build};
use septet_engine::config::problem::did_you_mean;
use septet_engine::config::units::Ordered;
use septet_engine::host::OperationError;
use septet_engine::record::{FieldType, MessageType, MessageTypes};
use septet_engine::token::Placement;
use zeroize::Zeroizing;

use crate::template::{FillError, Place, Source, Template};

/// What a message type's name says about its content.
#[derive(Clone, Copy)]
pub(crate) enum Known<'a> {
    Declared(&'a MessageType),
    Hl7,
    /// `Json`, `Text` and such: nothing is known of their fields.
    Open,
}

/// Types that services and operations make of undeclared content.
pub(crate) const UNDECLARED: [&str; 4] = ["Json", "Text", "Binary", "Alert"];

impl<'a> Known<'a> {
    /// What is known of the message type `name`; one that does not exist is reported.
    pub(crate) fn of(
        build: &mut Build<'_>,
        types: &'a MessageTypes,
        at: &[At<'_>],
        name: &str,
    ) -> Option<Known<'a>> {
        match types.get(name) {
            Some(declared) => Some(Known::Declared(declared)),
            None if name.contains('^') || matches!(name, "ACK" | "MCF") => Some(Known::Hl7),
            None if UNDECLARED.contains(&name) => Some(Known::Open),
            None => {
                build.message_type(at, name);
                None
            }
        }
    }
}

/// Reads a template and compares its places with the message type.
pub(crate) fn check_template(
    build: &mut Build<'_>,
    at: &[At<'_>],
    known: Known<'_>,
    text: &str,
) -> Option<Template> {
    let template = match Template::parse(text) {
        Ok(template) => template,
        Err(error) => {
            build.error("S0337", at, error.to_string(), None);
            return None;
        }
    };
    let mut whole = true;
    for name in template.fields() {
        let wrong = match known {
            Known::Declared(declared) => {
                let first = name.split('.').next().unwrap_or(name);
                let field = |field: &str| declared.fields.iter().any(|(known, _)| known == field);
                let near = did_you_mean(name, declared.fields.iter().map(|(known, _)| known.as_str()));
                (!field(name) && !field(first))
                    .then(|| (format!("{} has no field {name}", declared.name), near))
            }
            Known::Hl7 => {
                let path = name.parse::<septet_hl7::Path>();
                path.err().map(|error| (format!("this is no HL7 path: {error}"), None))
            }
            Known::Open => None,
        };
        if let Some((text, suggestion)) = wrong {
            build.error("S0337", at, text, suggestion);
            whole = false;
        }
    }
    whole.then_some(template)
}

/// Checks the table `headers` at the place `at`.
pub(crate) fn check_headers(
    build: &mut Build<'_>,
    at: &[At<'_>],
    known: Known<'_>,
    placement: Option<Placement>,
    headers: &Ordered<String>,
) -> Option<Vec<(HeaderName, Template)>> {
    let mut right = Vec::new();
    for (header, text) in headers.iter() {
        let at: Vec<At<'_>> = at.iter().copied().chain([At::Key(header)]).collect();
        let template = check_template(build, &at, known, text);
        let wrong = match HeaderName::try_from(header) {
            Err(_) => "this is no name of an HTTP header",
            Ok(name) if matches!(name.as_str(), "host" | "content-length" | "transfer-encoding") => {
                "this header is set by the connection"
            }
            Ok(AUTHORIZATION) if placement == Some(Placement::Header) => "Authorization is set by oauth",
            Ok(name) => {
                right.extend(template.map(|template| (name, template)));
                continue;
            }
        };
        build.error("S0336", &at, wrong, None);
    }
    (right.len() == headers.iter().count()).then_some(right)
}

/// Whether one of the headers is a secret though it stands in the file.
pub(crate) fn has_credential(headers: &Ordered<String>) -> bool {
    const CREDENTIALS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "x-api-key"];
    let is_credential = |header: &str| CREDENTIALS.iter().any(|known| header.eq_ignore_ascii_case(known));
    headers.iter().any(|(header, _)| is_credential(header))
}

/// Whether messages of this type have a secret field.
pub(crate) fn has_secret(build: &Build<'_>, name: &str) -> bool {
    let declared = build.names.types.get(name);
    declared.is_some_and(|t| t.fields.iter().any(|(_, field)| field.kind == FieldType::Secret))
}

/// The filled template; nothing where it is a single place and the message has no value for it: an optional
/// header or parameter is left out rather than sent empty.
pub(crate) fn present(
    template: &Template,
    place: Place,
    source: &Source<'_>,
) -> Result<Option<Zeroizing<String>>, FillError> {
    let text = template.source();
    let alone = text.starts_with('{') && text.find('}') == Some(text.len() - 1);
    match template.fill(place, source) {
        Ok(value) if alone && value.is_empty() => Ok(None),
        Err(FillError::Missing(_)) if alone => Ok(None),
        filled => filled.map(Some),
    }
}

/// The headers of one message.
pub(crate) fn fill_headers(
    headers: &[(HeaderName, Template)],
    source: &Source<'_>,
    into: &mut HeaderMap,
) -> Result<(), OperationError> {
    for (name, template) in headers {
        if let Some(value) = present(template, Place::Header, source).map_err(unsuitable)? {
            let wrong = |_| OperationError::message("template", format!("the header {name} cannot be sent"));
            let mut value = HeaderValue::from_str(&value).map_err(wrong)?;
            value.set_sensitive(true);
            into.insert(name, value);
        }
    }
    Ok(())
}

/// The message itself is wrong: it does not fill a template.
pub(crate) fn unsuitable(error: FillError) -> OperationError {
    OperationError::message("template", error.to_string())
}
