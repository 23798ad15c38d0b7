//! `oauth` of an operation: which OAuth client gets the token, and where in the request it goes. The client is
//! named once and for all, or by each message (`{ client = "{tenant}" }`): then every tenant has a token of its
//! own, and a message whose tenant has no client is suspended rather than sent with somebody else's.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use septet_engine::config::build::{At, Build, Names};
use septet_engine::host::{OperationContext, OperationError};
use septet_engine::token::Placement;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use zeroize::Zeroizing;

use crate::http_template::{Known, check_template, unsuitable};
use crate::template::{Place, Source, Template};

/// `oauth = "name"` or `oauth = { client = "name", placement = "header" }`, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OauthUse {
    /// A name, or a template that makes one.
    client: String,
    /// Absent: as the client says.
    placement: Option<Placement>,
}

/// The same, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OauthPlan {
    pub(crate) client: ClientName,
    pub(crate) placement: Placement,
}

/// Which client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientName {
    /// This one.
    Named(String),
    /// The one that the message names.
    OfMessage(Template),
}

// === Checking ===

impl OauthUse {
    fn is_template(&self) -> bool {
        self.client.contains(['{', '}'])
    }

    /// Every client that may be asked: the named one, or all whose name begins like the template.
    pub(crate) fn clients(&self, names: &Names) -> Vec<String> {
        if !self.is_template() {
            return vec![self.client.clone()];
        }
        let start = Template::parse(&self.client).map(|template| template.literal_start().to_owned());
        let start = start.unwrap_or_default();
        names.oauth.iter().filter(|name| name.starts_with(&start)).cloned().collect()
    }

    /// Where the token goes: as written here, else as its client says.
    pub(crate) fn placement(&self, names: &Names) -> Placement {
        let of_clients =
            || self.clients(names).iter().find_map(|client| names.placements.get(client).copied());
        self.placement.or_else(of_clients).unwrap_or_default()
    }

    /// What it means; everything wrong with it is reported, except what only a message type shows.
    pub(crate) fn plan(&self, build: &mut Build<'_>) -> Option<OauthPlan> {
        let at = &[At::Key("oauth")];
        let placement = self.placement(build.names);
        if !self.is_template() {
            let client = ClientName::Named(self.client.clone());
            return build.oauth_client(at, &self.client).then_some(OauthPlan { client, placement });
        }
        // A template that cannot be read is reported where it is compared with the message types.
        let template = Template::parse(&self.client).ok()?;
        let clients = self.clients(build.names);
        if clients.is_empty() {
            let text =
                format!("there is no OAuth client whose name begins with \"{}\"", template.literal_start());
            build.error("S0204", at, text, None);
            return None;
        }
        let differs =
            |client: &String| build.names.placements.get(client).is_some_and(|own| *own != placement);
        if self.placement.is_none() && clients.iter().any(differs) {
            let text = "the clients that a message may name put their tokens in different places";
            build.error("S0335", at, text, Some("say placement = \"header\" here".to_owned()));
            return None;
        }
        Some(OauthPlan { client: ClientName::OfMessage(template), placement })
    }

    /// Compares a client that the message names with one message type.
    pub(crate) fn fits(&self, build: &mut Build<'_>, known: Known<'_>) -> bool {
        !self.is_template() || check_template(build, &[At::Key("oauth")], known, &self.client).is_some()
    }
}

// === Running ===

impl OauthPlan {
    /// One client for all messages.
    #[cfg(test)]
    pub(crate) fn named(client: &str, placement: Placement) -> OauthPlan {
        OauthPlan { client: ClientName::Named(client.to_owned()), placement }
    }

    /// The client for the message of `cx`. A message that names none is suspended; what it does name is the
    /// sender's word and stays in the detail.
    pub(crate) fn client<'a>(&'a self, cx: &OperationContext) -> Result<Cow<'a, str>, OperationError> {
        let template = match &self.client {
            ClientName::Named(name) => return Ok(Cow::Borrowed(name)),
            ClientName::OfMessage(template) => template,
        };
        let name: Zeroizing<String> = template.fill(Place::Plain, &Source::of(cx)).map_err(unsuitable)?;
        if cx.runtime.tokens.knows(&name) {
            return Ok(Cow::Owned(name.to_string()));
        }
        let text = format!("the message names no OAuth client: there is none for {template}");
        let mut error = OperationError::message("oauth", text);
        error.fault = error.fault.with_detail(name.as_str());
        Err(error)
    }
}

// === As it is written ===

const PLACEMENTS: [(&str, Placement); 3] =
    [("header", Placement::Header), ("body", Placement::Body), ("query", Placement::Query)];

impl<'de> Deserialize<'de> for OauthUse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = OauthUse;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an OAuth client, or { client = \"name\", placement = \"header\" }")
            }
            fn visit_str<E: de::Error>(self, client: &str) -> Result<OauthUse, E> {
                Ok(OauthUse { client: client.to_owned(), placement: None })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OauthUse, A::Error> {
                let (mut client, mut placement) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "client" => client = Some(map.next_value()?),
                        "placement" => {
                            let name = map.next_value::<String>()?;
                            let known = PLACEMENTS.iter().find(|(known, _)| *known == name);
                            let known = known.map(|(_, placement)| *placement).ok_or_else(|| {
                                de::Error::unknown_variant(&name, &["header", "body", "query"])
                            })?;
                            placement = Some(known);
                        }
                        other => return Err(de::Error::unknown_field(other, &["client", "placement"])),
                    }
                }
                let client = client.ok_or_else(|| de::Error::missing_field("client"))?;
                Ok(OauthUse { client, placement })
            }
        }
        deserializer.deserialize_any(NameOrTable)
    }
}

impl JsonSchema for OauthUse {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "OauthUse".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let client = "The name of an OAuth client; {field} takes it from the message.";
        json_schema!({ "anyOf": [
            { "type": "string", "description": client },
            { "type": "object",
              "properties": {
                  "client": { "type": "string", "description": client },
                  "placement": { "type": "string", "enum": ["header", "body", "query"],
                                 "description": "Where the token goes (RFC 6750 §2); absent: as the client says." } },
              "required": ["client"], "additionalProperties": false },
        ] })
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::check;

    fn problems(client: &str) -> String {
        check(&format!(
            "[messages.Submit]\ntenant = \"string\"\n\
             [oauth.north]\ntoken_url = \"https://a.example/t\"\ngrant = \"client_credentials\"\nclient_id = \"x\"\n\
             [oauth.south]\ntoken_url = \"https://b.example/t\"\ngrant = \"client_credentials\"\nclient_id = \"x\"\nplacement = \"query\"\n\
             [operations.out]\ntype = \"rest\"\nurl = \"https://v.example\"\noauth = {client}\n\
             [operations.out.requests.Submit]\npath = \"/x\"\n"
        ))
    }

    #[test]
    fn a_client_of_the_message_is_checked_against_its_types_and_the_clients() {
        assert_eq!(problems("{ client = \"{tenant}\", placement = \"header\" }"), "");
        assert!(problems("\"{tennant}\"").contains("Submit has no field tennant (did you mean tenant?)"));
        assert!(problems("\"west-{tenant}\"").contains("no OAuth client whose name begins with \"west-\""));
        assert!(problems("\"{tenant\"").contains("never closed"));
        assert!(problems("\"{tenant}\"").contains("in different places"));
        assert_eq!(problems("\"so{tenant}\""), "");
    }
}
