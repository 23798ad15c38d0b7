//! `fhir`: messages as resources and bundles for a FHIR R4 server, by a map from message type to interaction.
//! Everything that crosses HTTP is as with `rest`; this class knows what FHIR adds to it: the interaction's
//! method and URL, conditional create and update, what an OperationOutcome says, and that a batch may be
//! answered 200 though some of its entries failed.
//!
//! [`request`] makes the request, [`outcome`] reads the answer; both are pure.

mod outcome;
mod request;
#[cfg(test)]
mod tests;

use reqwest::Request;
use reqwest::header::HeaderName;
use schemars::JsonSchema;
use septet_engine::config::build::{At, Build};
use septet_engine::config::problem::did_you_mean;
use septet_engine::config::settings::ClientTls;
use septet_engine::config::units::Ordered;
use septet_engine::host::{OperationContext, OperationError, Outcome};
use septet_engine::record::{FieldType, MessageType};
use septet_engine::registry::{Built, ItemClass, ItemKind};
use septet_engine::reply::Family;
use septet_engine::token::{AccessToken, Placement};
use serde::Deserialize;

use crate::http_client::{PeerPlan, Reply, Secrets};
use crate::http_operation::{Dialogue, built};
use crate::http_settings::{check_clear_text, check_peer};
use crate::http_template::{Known, check_headers, check_template, has_credential, has_secret};
use crate::message_map::{MessageMap, check_reply};
use crate::oauth_use::OauthUse;
use crate::template::Template;

/// The class.
pub const CLASS: ItemClass = ItemClass {
    type_name: "fhir",
    kind: ItemKind::Operation,
    summary: "Sends resources and bundles to a FHIR R4 server: create, update, transaction, batch.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// Messages as resources and bundles for a FHIR server.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// The server's base URL, below which its resource types are: `https://host/fhir`.
    url: String,
    /// The OAuth client whose token goes with every request: its name, or `{ client, placement }` with
    /// placement `header` (the default) or `query`. SMART Backend Services is a client with grant
    /// `client_credentials`, `client_auth = "private_key_jwt"` and `signing_alg` RS384 or ES384.
    oauth: Option<OauthUse>,
    /// Message type → interaction. The message, or the field of it named by `resource`, is the FHIR resource
    /// as JSON.
    requests: Ordered<RequestSettings>,
    /// Lets tokens and secrets go over plain http to other machines: for networks that are trusted.
    #[serde(default)]
    allow_plain_http: bool,
    /// Trust and client certificate.
    tls: Option<ClientTls>,
}

/// The interaction of one message type.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RequestSettings {
    /// `create`, `update`, `transaction` or `batch`. Without it a Bundle is sent as what its `type` says
    /// (transaction or batch), and any other resource is created.
    interaction: Option<Interaction>,
    /// The field of the message that holds the resource; without it the message itself is the resource.
    resource: Option<String>,
    /// Conditional create: search parameters such as `"identifier=urn:oid:1.2.3|{mrn}"`. Where a resource
    /// matches already, the server creates none, so that a message sent again makes no duplicate. A template;
    /// values are escaped.
    if_none_exist: Option<String>,
    /// Conditional update: search parameters that find the resource to update, in place of its `id`; where
    /// none matches, the server creates it. A template; values are escaped.
    condition: Option<String>,
    /// The version that an update must find, as in `"{version}"` (`If-Match: W/"…"`); where the server has
    /// another one it answers 412. A template.
    if_match: Option<String>,
    /// The message type of the reply; without it replies have type `Json`. A reply without a body, as to
    /// `Prefer: return=minimal`, becomes a record of `resourceType`, `id` and `meta.versionId` from its
    /// `Location`.
    reply: Option<String>,
    /// Headers; templates. One that is a single absent field is left out.
    #[serde(default)]
    headers: Ordered<String>,
}

/// An interaction of FHIR's RESTful API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Interaction {
    /// `POST [base]/Type`.
    Create,
    /// `PUT [base]/Type/id`, or `PUT [base]/Type?condition`.
    Update,
    /// `POST [base]` of a Bundle: all of it or nothing.
    Transaction,
    /// `POST [base]` of a Bundle: each entry for itself.
    Batch,
}

/// One entry of the message map, checked.
#[derive(Default)]
struct RequestPlan {
    interaction: Option<Interaction>,
    resource: Option<String>,
    if_none_exist: Option<Template>,
    /// With the `?` before it.
    condition: Option<Template>,
    if_match: Option<Template>,
    headers: Vec<(HeaderName, Template)>,
    reply: Option<String>,
}

// === Checking ===

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    let peer = check_peer(build, &settings.url, settings.oauth.as_ref(), settings.tls.as_ref());
    let placement = settings.oauth.as_ref().map(|oauth| oauth.placement(build.names));
    let mut whole = true;
    if placement == Some(Placement::Body) {
        let text = "placement = \"body\" sends a form, which a FHIR resource cannot be";
        let suggestion = Some("use placement = \"header\"".to_owned());
        build.error("S0335", &[At::Key("oauth"), At::Key("placement")], text, suggestion);
        whole = false;
    }
    if settings.url.contains(['{', '?']) {
        let text = "the base URL of a FHIR server is the same for all messages and has no query";
        build.error("S0331", &[At::Key("url")], text, None);
        whole = false;
    }
    let oauth = settings.oauth.as_ref();
    let mut secret = false;
    let requests = MessageMap::check(build, "an interaction", &settings.requests, |build, name, request| {
        secret |= has_secret(build, name) || has_credential(&request.headers);
        request_plan(build, oauth, name, request)
    });
    let (url, peer) = peer?;
    check_clear_text(build, &url, oauth, secret, settings.allow_plain_http);
    let base = settings.url.trim_end_matches('/').to_owned();
    let fhir = Fhir { base, requests: requests?, peer };
    whole.then(|| built(build, oauth, Family::Http, fhir))
}

fn request_plan(
    build: &mut Build<'_>,
    oauth: Option<&OauthUse>,
    name: &str,
    request: &RequestSettings,
) -> Option<RequestPlan> {
    let types = build.names.types.clone();
    let known = Known::of(build, &types, &[At::Key("requests"), At::Key(name)], name)?;
    let place = |key| [At::Key("requests"), At::Key(name), At::Key(key)];
    let mut whole = match known {
        Known::Hl7 => {
            let suggestion = Some("make a bundle of it in a transform first".to_owned());
            let at = [At::Key("requests"), At::Key(name)];
            build.error("S0335", &at, "an HL7 message is no FHIR resource", suggestion);
            return None;
        }
        Known::Declared(declared) => check_resource(build, &place("resource"), declared, request),
        Known::Open => true,
    };
    whole &= oauth.is_none_or(|oauth| oauth.fits(build, known));
    let placement = oauth.map(|oauth| oauth.placement(build.names));
    let interaction = request.interaction;
    let conditions = [
        ("if_none_exist", request.if_none_exist.is_some(), Interaction::Create),
        ("condition", request.condition.is_some(), Interaction::Update),
        ("if_match", request.if_match.is_some(), Interaction::Update),
    ];
    for (key, given, wants) in conditions {
        if given && interaction != Some(wants) {
            let wants = if wants == Interaction::Create { "create" } else { "update" };
            let suggestion = Some(format!("say interaction = \"{wants}\""));
            build.error("S0335", &place(key), format!("{key} goes only with {wants}"), suggestion);
            whole = false;
        }
    }
    if interaction == Some(Interaction::Create) && request.if_none_exist.is_none() {
        let text = "a create that is sent again after a lost reply makes a second resource";
        let suggestion = Some("give if_none_exist = \"identifier=…\"".to_owned());
        build.warning("S0338", &place("interaction"), text, suggestion);
    }
    let reply = check_reply(build, name, request.reply.as_ref());
    let mut template = |key, text: Option<String>| match text {
        None => Some(None),
        Some(text) => check_template(build, &place(key), known, &text).map(Some),
    };
    let if_none_exist = template("if_none_exist", request.if_none_exist.clone());
    let condition = template("condition", request.condition.as_ref().map(|text| format!("?{text}")));
    let if_match = template("if_match", request.if_match.clone());
    let at = place("headers");
    let headers = check_headers(build, &at, known, placement, &request.headers);
    let plan = RequestPlan {
        interaction,
        resource: request.resource.clone(),
        if_none_exist: if_none_exist?,
        condition: condition?,
        if_match: if_match?,
        headers: headers?,
        reply: reply?,
    };
    whole.then_some(plan)
}

/// Whether a declared message can be, or hold, a resource.
fn check_resource(
    build: &mut Build<'_>,
    at: &[At<'_>],
    declared: &MessageType,
    request: &RequestSettings,
) -> bool {
    let field = |name: &str| declared.fields.iter().find(|(known, _)| known == name).map(|(_, field)| field);
    let Some(name) = &request.resource else {
        let whole = field("resourceType").is_some();
        if !whole {
            let text = format!("{} has no field resourceType, so it is no resource itself", declared.name);
            let suggestion = Some("name the field that holds it: resource = \"…\"".to_owned());
            build.error("S0335", at, text, suggestion);
        }
        return whole;
    };
    let (text, suggestion) = match field(name) {
        Some(field) if matches!(field.kind, FieldType::Object | FieldType::Any) => return true,
        Some(_) => (format!("the field {name} of {} is no object", declared.name), None),
        None => {
            let near = did_you_mean(name, declared.fields.iter().map(|(known, _)| known.as_str()));
            (format!("{} has no field {name}", declared.name), near)
        }
    };
    build.error("S0335", at, text, suggestion);
    false
}

// === Running ===

struct Fhir {
    /// Without a slash at its end.
    base: String,
    requests: MessageMap<RequestPlan>,
    peer: PeerPlan,
}

impl Dialogue for Fhir {
    fn peer(&self) -> &PeerPlan {
        &self.peer
    }

    fn request(
        &self,
        cx: &OperationContext,
        _form_token: Option<&AccessToken>,
        secrets: &mut Secrets,
    ) -> Result<Request, OperationError> {
        request::make(&self.base, self.requests.plan(cx)?, cx, secrets)
    }

    fn outcome(&self, reply: Reply, cx: &OperationContext, peer: &str) -> Result<Outcome, OperationError> {
        Ok(outcome::of(reply, self.requests.plan(cx)?.reply.as_deref(), cx, peer))
    }
}
