//! `type = "hl7.http"`: sends HL7 messages as HTTP requests; the acknowledgement in the reply, framed or
//! bare, is judged as over MLLP (CONTRACT §2, §2.1).
//!
//! A readable acknowledgement counts whatever the HTTP status is. It belongs to its message (P7): one whose
//! MSA-2 is not the message's MSH-10 is an `ack.stray` and counts as no reply (`none`), as does a success
//! without an acknowledgement. Of other statuses without one those that refuse the message as it is (4xx but for
//! 401, 407, 408 and 429, and 3xx) are their own code, so that one message that a proxy finds too large does not
//! stop the rest (P11); what may heal is no usable reply (`fault`).

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, Request};
use schemars::JsonSchema;
use septet_engine::body::{Body, HL7};
use septet_engine::config::build::{At, Build};
use septet_engine::config::settings::ClientTls;
use septet_engine::config::units::Ordered;
use septet_engine::event::{Level, NewEvent};
use septet_engine::fault::Fault;
use septet_engine::host::{Disposition, OperationContext, OperationError, Outcome};
use septet_engine::registry::{Built, ItemClass, ItemKind};
use septet_engine::reply::Family;
use septet_engine::token::{AccessToken, Placement};
use septet_hl7::ack::{Ack, ack_of};
use septet_hl7::{Message, mllp};
use serde::Deserialize;
use url::Url;

use crate::hl7_mllp::{MatchAck, judge};
use crate::http_client::{PeerPlan, Reply, Secrets};
use crate::http_operation::{Dialogue, built};
use crate::http_reply::{answered, with_words};
use crate::http_settings::{check_clear_text, check_peer};
use crate::http_template::{Known, check_headers, check_template, fill_headers, has_credential, unsuitable};
use crate::oauth_use::OauthUse;
use crate::template::{Place, Source, Template};

/// The class, for the table.
pub const CLASS: ItemClass = ItemClass {
    type_name: "hl7.http",
    kind: ItemKind::Operation,
    summary: "Sends HL7 messages over HTTP; the acknowledgement in the reply is judged as over MLLP.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// Settings of an `hl7.http` operation.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Where messages are posted. `{PID-3.1}` takes a field of the message, and
    /// `{id} {session} {control_id} {date} {time}` something of its header.
    url: String,
    /// The OAuth client whose token goes with every request: its name, or `{ client, placement }` with
    /// placement `header` (the default) or `query`. `{MSH-4}` in the name takes it from the message.
    oauth: Option<OauthUse>,
    /// The content type that messages are sent with.
    #[serde(default = "hl7")]
    content_type: String,
    /// Headers; templates like `url`. One that is a single absent field is left out.
    #[serde(default)]
    headers: Ordered<String>,
    /// Which acknowledgement answers a message: the one whose MSA-2 is the message's MSH-10 (`control_id`), or
    /// any (only for peers that do not send MSA-2).
    #[serde(default)]
    match_ack: MatchAck,
    /// Lets tokens and credentials go over plain http to other machines: for networks that are trusted.
    #[serde(default)]
    allow_plain_http: bool,
    /// Trust and client certificate.
    tls: Option<ClientTls>,
}

fn hl7() -> String {
    HL7.to_owned()
}

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    let peer = check_peer(build, &settings.url, settings.oauth.as_ref(), settings.tls.as_ref());
    let placement = settings.oauth.as_ref().map(|oauth| oauth.placement(build.names));
    let mut right = settings.oauth.as_ref().is_none_or(|oauth| oauth.fits(build, Known::Hl7));
    if placement == Some(Placement::Body) {
        right = false;
        let text = "placement = \"body\" sends a form, which an HL7 message cannot be";
        let suggestion = Some("use placement = \"header\"".to_owned());
        build.error("S0335", &[At::Key("oauth"), At::Key("placement")], text, suggestion);
    }
    let content_type = HeaderValue::from_str(&settings.content_type).ok();
    if content_type.is_none() {
        build.error("S0336", &[At::Key("content_type")], "this is no content type", None);
    }
    if settings.match_ack == MatchAck::Any {
        let text =
            "any acknowledgement counts for any message: one of another message is credited to this one";
        let suggestion = Some("leave it at \"control_id\" unless the peer sends no MSA-2".to_owned());
        build.warning("S0354", &[At::Key("match_ack")], text, suggestion);
    }
    let template = check_template(build, &[At::Key("url")], Known::Hl7, &settings.url);
    let headers = check_headers(build, &[At::Key("headers")], Known::Hl7, placement, &settings.headers);
    let (url, peer) = peer?;
    let (oauth, secret) = (settings.oauth.as_ref(), has_credential(&settings.headers));
    check_clear_text(build, &url, oauth, secret, settings.allow_plain_http);
    let plan = Plan {
        url: template?,
        peer,
        content_type: content_type?,
        headers: headers?,
        match_ack: settings.match_ack,
    };
    right.then(|| built(build, oauth, Family::Hl7OverHttp, plan))
}

// === Running ===

struct Plan {
    url: Template,
    peer: PeerPlan,
    content_type: HeaderValue,
    headers: Vec<(HeaderName, Template)>,
    match_ack: MatchAck,
}

/// All that is sent here.
fn hl7_of(cx: &OperationContext) -> Result<&Message, OperationError> {
    let not_hl7 = || OperationError::message("hl7", "the message is not HL7, which is all that is sent here");
    cx.body.as_hl7().ok_or_else(not_hl7)
}

impl Dialogue for Plan {
    fn peer(&self) -> &PeerPlan {
        &self.peer
    }

    fn request(
        &self,
        cx: &OperationContext,
        _form_token: Option<&AccessToken>,
        _secrets: &mut Secrets,
    ) -> Result<Request, OperationError> {
        request(self, cx, hl7_of(cx)?)
    }

    fn outcome(&self, reply: Reply, cx: &OperationContext, peer: &str) -> Result<Outcome, OperationError> {
        let message = hl7_of(cx)?;
        let ours = |ack: &Ack| {
            self.match_ack == MatchAck::Any || ack.control_id.trim() == message.control_id().trim()
        };
        outcome(&reply, ours, cx, peer)
    }
}

/// The request for one message: a pure function of header and body.
fn request(plan: &Plan, cx: &OperationContext, message: &Message) -> Result<Request, OperationError> {
    let source = Source::of(cx);
    let text = plan.url.fill(Place::Url, &source).map_err(unsuitable)?;
    let url = Url::parse(&text)
        .map_err(|_| OperationError::message("template", "the message makes no valid URL"))?;
    let mut request = Request::new(Method::POST, url);
    request.headers_mut().insert(CONTENT_TYPE, plan.content_type.clone());
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static(HL7));
    *request.body_mut() = Some(message.raw().clone().into());
    fill_headers(&plan.headers, &source, request.headers_mut())?;
    Ok(request)
}

/// What the reply means for the message.
fn outcome(
    reply: &Reply,
    ours: impl Fn(&Ack) -> bool,
    cx: &OperationContext,
    peer: &str,
) -> Result<Outcome, OperationError> {
    let retry_after = reply.retry_after(cx.runtime.clock.now());
    let bare = mllp::unframed(&reply.body);
    let message = Message::parse(Bytes::copy_from_slice(bare)).ok();
    let read = message.and_then(|message| Some((ack_of(&message).ok()?, message)));
    let (code, body, fault) = match read {
        Some((ack, message)) if ours(&ack) => {
            let (code, fault) = judge(&ack);
            (code, Some(Body::hl7(message)), fault)
        }
        Some(_) => {
            let text = "the acknowledgement in the reply answers another message";
            cx.event(NewEvent::new(Level::Warning, "ack.stray", text));
            ("none".to_owned(), None, Some(Fault::new("call", "none", text)))
        }
        None if reply.is_success() => {
            let text = format!("{peer} answered HTTP {} without an acknowledgement", reply.status);
            ("none".to_owned(), None, Some(with_words(Fault::new("call", "none", text), reply)))
        }
        None => {
            let text = format!("{} without an acknowledgement", answered(reply.status, peer));
            let status = format!("{:03}", reply.status);
            let fault = with_words(Fault::new("call", status.clone(), text), reply);
            if Family::refused(reply.status) {
                return Ok(Outcome::Replied { code: status, body: None, fault: Some(fault), retry_after });
            }
            if retry_after.is_none() {
                return Err(OperationError {
                    disposition: Disposition::ByCode("fault"),
                    fault,
                    retry_after: None,
                });
            }
            ("fault".to_owned(), None, Some(fault))
        }
    };
    Ok(Outcome::Replied { code, body, fault, retry_after })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::http::{HeaderMap, Uri};
    use axum::response::{IntoResponse, Response};
    use reqwest::StatusCode;
    use septet_engine::host::BusinessOperation as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::http_operation::HttpOperation;
    use crate::testing::{Events, check, delivery, hl7, runtime};

    const MESSAGE: &str = "MSH|^~\\&|A|B|C|D|20260101||ORU^R01|M1|P|2.5\rPID|1||4711\rZZZ|odd\n";

    fn ack(code: &str, id: &str) -> String {
        format!("MSH|^~\\&|C|D|A|B|20260101||ACK|9|P|2.5\rMSA|{code}|{id}|Jane Doe\r")
    }

    fn peer(name: &str) -> PeerPlan {
        let idempotency_header = "idempotency-key".parse().unwrap();
        PeerPlan { name: name.into(), oauth: None, tls: None, idempotency_header }
    }

    struct Sent {
        result: Result<Outcome, OperationError>,
        seen: Vec<(String, HeaderMap, String)>,
        events: Vec<&'static str>,
    }

    impl Sent {
        fn code(&self) -> &str {
            match self.result.as_ref().unwrap() {
                Outcome::Replied { code, .. } => code,
                Outcome::Sent => panic!("there is always a reply"),
            }
        }
    }

    /// Sends [`MESSAGE`] to a peer that answers with `reply`.
    async fn send(reply: impl Fn() -> Response + Clone + Send + Sync + 'static) -> Sent {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let router = Router::new().fallback(move |uri: Uri, headers: HeaderMap, body: String| {
            log.lock().unwrap().push((uri.to_string(), headers, body));
            let response = reply();
            async move { response }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hl7/{{PID-3.1}}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let plan = Plan {
            url: Template::parse(&url).unwrap(),
            peer: peer("partner.example:443"),
            content_type: HeaderValue::from_static("x-application/hl7-v2+er7"),
            headers: vec![("x-type".parse().unwrap(), Template::parse("{MSH-9.2}").unwrap())],
            match_ack: MatchAck::ControlId,
        };
        let mut operation = HttpOperation::new(Arc::new(plan));
        operation.start().await.unwrap();
        let events = Arc::new(Events::default());
        let cx = delivery(42, hl7(MESSAGE), &runtime(events.clone()));
        let result = operation.on_message(&cx).await;
        let seen = seen.lock().unwrap().clone();
        Sent { result, seen, events: events.kinds() }
    }

    #[tokio::test]
    async fn the_message_goes_out_byte_for_byte_and_its_ack_is_the_reply() {
        let sent = send(|| ack("AA", "M1").into_response()).await;
        let (uri, headers, body) = &sent.seen[0];
        assert_eq!((uri.as_str(), body.as_str()), ("/hl7/4711", MESSAGE));
        assert_eq!(headers["content-type"], "x-application/hl7-v2+er7");
        assert_eq!(
            (&headers["x-type"], &headers["idempotency-key"]),
            (&"R01".parse().unwrap(), &"e1-42".parse().unwrap())
        );
        assert_eq!(sent.code(), "AA");
        let Ok(Outcome::Replied { body: Some(body), fault: None, .. }) = sent.result else { panic!() };
        assert_eq!((body.type_name(), body.as_text().unwrap()), ("ACK", ack("AA", "M1").as_str()));
    }

    #[tokio::test]
    async fn an_ack_counts_whatever_the_status_and_framed_or_bare() {
        for (status, code) in [(200, "AA"), (500, "AE"), (400, "AR"), (503, "AR"), (200, "CE")] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(send(move || (status, ack(code, "M1")).into_response()).await.code(), code);
        }
        let framed = || format!("\u{b}{}\u{1c}\r", ack("AE", "M1")).into_response();
        let sent = send(framed).await;
        let Ok(Outcome::Replied { code, body: Some(body), fault: Some(fault), .. }) = sent.result else {
            panic!()
        };
        assert_eq!((code.as_str(), body.as_text().unwrap()), ("AE", ack("AE", "M1").as_str()));
        assert!(!fault.text.contains("Jane Doe") && fault.detail.unwrap().0.contains("Jane Doe"));
    }

    #[tokio::test]
    async fn an_ack_of_another_message_is_none() {
        let sent = send(|| ack("AA", "M2").into_response()).await;
        assert_eq!((sent.code(), sent.events.as_slice()), ("none", ["ack.stray"].as_slice()));
    }

    #[tokio::test]
    async fn without_an_ack_a_success_is_none_and_anything_else_a_fault() {
        assert_eq!(send(|| "OK".into_response()).await.code(), "none");
        assert_eq!(send(|| StatusCode::NO_CONTENT.into_response()).await.code(), "none");
        let sent = send(|| (StatusCode::BAD_GATEWAY, "proxy says no").into_response()).await;
        let error = sent.result.unwrap_err();
        assert_eq!((&error.disposition, error.fault.code.as_str()), (&Disposition::ByCode("fault"), "502"));
        assert_eq!(
            error.fault.text,
            "partner.example:443 answered HTTP 502 Bad Gateway without an acknowledgement"
        );
        let busy = || (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3")]).into_response();
        let Ok(Outcome::Replied { code, retry_after, .. }) = send(busy).await.result else { panic!() };
        assert_eq!((code.as_str(), retry_after.unwrap().as_secs()), ("fault", 3));
    }

    #[tokio::test]
    async fn a_refusal_of_the_message_without_an_ack_is_its_own_code_and_what_may_heal_is_none() {
        for status in [400, 404, 413, 302] {
            let answer = StatusCode::from_u16(status).unwrap();
            assert_eq!(send(move || answer.into_response()).await.code(), status.to_string());
        }
        for status in [401, 407, 408, 429, 500] {
            let answer = StatusCode::from_u16(status).unwrap();
            let error = send(move || answer.into_response()).await.result.unwrap_err();
            assert_eq!(error.disposition, Disposition::ByCode("fault"), "{status}");
        }
    }

    #[tokio::test]
    async fn what_is_not_hl7_is_the_messages_own_fault() {
        let plan = Plan {
            url: Template::parse("http://127.0.0.1:9/").unwrap(),
            peer: peer("x"),
            content_type: HeaderValue::from_static(HL7),
            headers: Vec::new(),
            match_ack: MatchAck::ControlId,
        };
        let mut operation = HttpOperation::new(Arc::new(plan));
        operation.start().await.unwrap();
        let body = crate::testing::record(serde_json::json!({}));
        let error = operation.on_message(&delivery(1, body, &runtime(Arc::default()))).await.unwrap_err();
        assert_eq!(error.disposition, Disposition::Suspend);
    }

    #[test]
    fn misuse_is_found_by_check() {
        let problems = |text: &str| {
            let oauth = "[oauth.v]\ntoken_url = \"https://a.example/t\"\ngrant = \"client_credentials\"\nclient_id = \"x\"\n";
            check(&format!("{oauth}[operations.out]\ntype = \"hl7.http\"\n{text}"))
        };
        assert_eq!(problems("url = \"https://p.example/hl7\"\noauth = \"v\"\n"), "");
        assert!(problems("url = \"http://p.example/\"\noauth = \"v\"\n").contains("error S0332"));
        let all = problems(
            "url = \"https://p.example/{mrn}\"\noauth = { client = \"v\", placement = \"body\" }\nmatch_ack = \"any\"\nheaders = { Authorization = \"x\", Host = \"y\" }\n",
        );
        for code in ["S0335", "S0337", "S0354", "S0336: this header is set by the connection"] {
            assert!(all.contains(code), "missing {code} in\n{all}");
        }
    }
}
