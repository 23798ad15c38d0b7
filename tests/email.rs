//! The `email` operation and the production mail-alerts against a mail server nobody here wrote (aiosmtpd), which
//! wants STARTTLS with a certificate of an authority of our own and a token (XOAUTH2).

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::peers::Peer;
use crate::support::shipped::Shipped;
use crate::support::{Septet, assert_nowhere, free_port};

fn tls(name: &str) -> String {
    format!("{}/tests/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

async fn server(mode: &'static str) -> Option<Peer> {
    let start = move || {
        let (cert, key) = (tls("server.pem"), tls("server.key"));
        Peer::python("mail.py", &["aiosmtpd"], &[mode, &cert, &key])
    };
    tokio::task::spawn_blocking(start).await.expect("it starts")
}

fn token_port(peer: &Peer) -> u64 {
    peer.ready["http"].as_u64().unwrap()
}

async fn ask(peer: &Peer, path: &str) -> Value {
    let url = format!("http://127.0.0.1:{}/{path}", token_port(peer));
    reqwest::get(url).await.expect("the peer answers").json().await.expect("JSON")
}

async fn revoke(peer: &Peer) {
    let url = format!("http://127.0.0.1:{}/revoke", token_port(peer));
    reqwest::Client::new().post(url).body("").send().await.expect("the peer answers");
}

/// The mails that were taken, once there are `count`.
async fn mails(peer: &Peer, count: usize, log: impl Fn() -> String) -> Vec<Value> {
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    loop {
        let mails = ask(peer, "mails").await.as_array().cloned().unwrap_or_default();
        if mails.len() >= count {
            assert_eq!(mails.len(), count, "{mails:#?}");
            return mails;
        }
        assert!(std::time::Instant::now() < deadline, "{} of {count} mails came:\n{}", mails.len(), log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn data(mail: &Value) -> String {
    String::from_utf8(STANDARD.decode(mail["data"].as_str().unwrap()).unwrap()).unwrap()
}

/// A production whose HTTP service hands JSON to an `email` operation with these settings.
async fn sender(peer: &Peer, more: &str) -> (Septet, u16) {
    let (inbound, port, tokens) = (free_port(), peer.port(), token_port(peer));
    let ca = tls("ca.pem");
    let text = format!(
        r#"
[production]
name = "sender"
[store]
path = "data"
retention = "30d"
[admin]
listen = "127.0.0.1:{{admin}}"
[oauth.mailbox]
token_url = "http://127.0.0.1:{tokens}/contoso/oauth2/v2.0/token"
grant = "client_credentials"
client_id = "septet"
client_secret = "${{env:NO_SUCH_VARIABLE:-app-secret}}"
client_auth = "post"
scope = "https://outlook.office365.com/.default"
[services.in]
type = "http"
listen = "127.0.0.1:{inbound}"
targets = ["mail"]
[operations.mail]
type = "email"
connect = "localhost:{port}"
tls = {{ ca = "{ca}" }}
retry_interval = "50ms"
from = "Septet <septet@example.org>"
subject = "{{subject}}"
body = "{{text}}"
{more}
"#
    );
    (Septet::start(&text).await, inbound)
}

async fn send(inbound: u16, fields: Value) -> u64 {
    let url = format!("http://127.0.0.1:{inbound}/");
    let answer = reqwest::Client::new().post(url).json(&fields).send().await.unwrap();
    answer.json::<Value>().await.unwrap()["session"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn o_11_microsoft_365_client_credentials_mail_every_alert_by_configuration_alone() {
    let Some(peer) = server("starttls").await else { return };
    let mut shipped = Shipped::new();
    let file = shipped.path("productions/mail-alerts/production.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let here = [
        ("smtp.office365.com:587", format!("localhost:{}", peer.port())),
        (
            "https://login.microsoftonline.com/contoso.example",
            format!("http://127.0.0.1:{}/contoso", token_port(&peer)),
        ),
        ("oauth   = \"mailbox\"", format!("tls = {{ ca = \"{}\" }}\noauth   = \"mailbox\"", tls("ca.pem"))),
    ];
    let text = here.iter().fold(text, |text, (theirs, ours)| text.replace(theirs, ours));
    std::fs::write(&file, text).unwrap();
    shipped.spawn(&["run", "productions/mail-alerts"]);
    shipped.until_ready("http://127.0.0.1:8717").await;
    shipped.walk("septet send mllp://127.0.0.1:2582 productions/mail-alerts/messages/critical.hl7");
    let log = || std::fs::read_to_string(shipped.path("log")).unwrap_or_default();
    let mails = mails(&peer, 2, log).await;

    let to =
        |address: &str| mails.iter().find(|mail| mail["to"] == json!([address])).expect("a mail to them");
    let alert = to("on-call@example.org");
    assert_eq!((&alert["user"], &alert["tls"]), (&json!("septet@example.org"), &json!(true)));
    let alert = data(alert);
    assert!(alert.contains("Subject: [mail-alerts] warning: a critical result has arrived"), "{alert}");
    assert!(alert.contains("item        watch"), "{alert}");
    assert!(!alert.contains("40017") && !alert.contains("Brandt"), "an alert names no patient: {alert}");
    let ward = data(to("ward7@example.org"));
    assert!(ward.contains("Subject: Critical result F-9002"), "{ward}");
    assert!(ward.contains("Patient 40017, Potassium: a critical value was reported."), "{ward}");
    let attached = STANDARD.encode("MSH|^~\\&|LIS|");
    assert!(ward.contains("filename=\"MAIL-0001.hl7\"") && ward.contains(&attached[..16]), "{ward}");
    let signins = ask(&peer, "signins").await;
    assert!(
        signins.as_array().unwrap().iter().all(|one| one["right"] == true && one["known"] == true),
        "{signins}"
    );
    assert_nowhere(&shipped.path("productions/mail-alerts/data"), &["mail-token-1"]);
    assert!(!log().contains("mail-token-1"));
}

const XOAUTH2: &str = "oauth = \"mailbox\"\nto = \"{to}\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn o_11_a_token_refused_with_535_is_fetched_once_and_tried_once_more() {
    let Some(peer) = server("starttls").await else { return };
    let (septet, inbound) = sender(&peer, XOAUTH2).await;
    let mail = |n: u32| json!({ "to": "ward@example.org", "subject": format!("Nr. {n} – Größe"), "text": "x\n.\ny" });
    send(inbound, mail(1)).await;
    mails(&peer, 1, || septet.log()).await;
    revoke(&peer).await;
    let session = send(inbound, mail(2)).await;
    let both = mails(&peer, 2, || septet.log()).await;
    let trace = septet.settled(session).await;
    assert_eq!(trace["messages"][0]["attempts"], 1, "one attempt in all");
    let known = ask(&peer, "signins").await;
    let known: Vec<_> = known.as_array().unwrap().iter().map(|one| one["known"].clone()).collect();
    assert_eq!(known, [json!(true), json!(false), json!(true)]);
    let second = data(&both[1]);
    let id = trace["messages"][0]["id"].as_u64().unwrap();
    assert!(second.contains(&format!("-{id}@example.org>")), "{second}");
    assert!(second.contains("Subject: Nr. 2 =?utf-8?b?4oCTIEdyw7bDn2U=?="), "{second}");
    assert!(second.ends_with("\r\n\r\nx\r\n.\r\ny\r\n"), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn o_11_the_decoded_challenge_of_a_refused_token_is_detail_and_never_logged() {
    let Some(peer) = server("starttls").await else { return };
    let more = format!(
        "{XOAUTH2}username = \"somebody-else@example.org\"\nreply_actions = {{ \"535\" = \"suspend\" }}"
    );
    let (septet, inbound) = sender(&peer, &more).await;
    let session = send(inbound, json!({ "to": "ward@example.org", "subject": "s", "text": "t" })).await;
    let trace = septet.settled(session).await;
    assert_eq!(trace["status"], "suspended");
    let error = trace["messages"][0]["error"].as_str().unwrap();
    let expected = format!("535: localhost:{} answered 535 5.7.8 to AUTH", peer.port());
    assert_eq!(error, expected);
    let challenge = "\\\"status\\\": \\\"401\\\", \\\"schemes\\\": \\\"bearer\\\"";
    assert!(trace.to_string().contains(challenge), "{trace:#}");
    assert!(!septet.log().contains("schemes"), "{}", septet.log());
    assert_eq!(ask(&peer, "signins").await.as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_of_the_server_retry_or_suspend_and_a_crash_in_between_loses_nothing() {
    let Some(peer) = server("tls").await else { return };
    let more = "security = \"tls\"\nusername = \"septet\"\nto = \"{to}\"\n\
                password = \"${env:NO_SUCH_VARIABLE:-correct-horse}\"";
    let (mut septet, inbound) = sender(&peer, more).await;
    let fields = |to: &str| json!({ "to": to, "subject": "s", "text": "t" });
    let refused = send(inbound, fields("nobody@example.org")).await;
    let trace = septet.settled(refused).await;
    let error = trace["messages"][0]["error"].as_str().unwrap();
    assert_eq!(error, format!("550: localhost:{} answered 550 5.1.1 to RCPT TO", peer.port()));
    assert!(!error.contains("Jane") && trace.to_string().contains("No Jane Doe at this address"));

    let busy = send(inbound, fields("busy@example.org")).await;
    septet.kill();
    septet.run().await;
    let trace = septet.settled(busy).await;
    assert_eq!(trace["status"], "completed");
    // Once, or twice where the kill came between the mail and its durable completion: then it is the same mail.
    let taken = ask(&peer, "mails").await;
    let taken: BTreeSet<String> = taken.as_array().unwrap().iter().map(Value::to_string).collect();
    assert_eq!(taken.len(), 1, "{taken:#?}");
    assert!(taken.iter().all(|mail| mail.contains("busy@example.org")), "{taken:#?}");
    assert_nowhere(Path::new(&septet.path("data")), &["correct-horse"]);
}
