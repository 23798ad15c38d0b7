//! The operation against a scripted server: what it says, and what becomes of each answer. A mail server nobody
//! here wrote, with TLS and tokens, is met in the end-to-end tests.

use std::sync::{Arc, Mutex};

use septet_engine::body::Body;
use septet_engine::config::env::Env;
use septet_engine::config::load::load_text;
use septet_engine::host::{Disposition, OperationContext, OperationError, Outcome};
use septet_engine::record::Record;
use septet_engine::registry::Registry;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use crate::testing::{Events, check, delivery, hl7, record, runtime};
use crate::testing_http::Tokens;

// === A scripted server ===

/// Answers each line that begins with a word of `script` as it says, and notes what it was sent.
struct Server {
    port: u16,
    lines: Arc<Mutex<Vec<String>>>,
}

type Script = &'static [(&'static str, &'static str)];

const FRIENDLY: Script = &[
    ("", "220 mail.example"),
    ("EHLO", "250-mail.example\r\n250 AUTH PLAIN LOGIN XOAUTH2"),
    ("MAIL", "250 ok"),
    ("RCPT", "250 ok"),
    ("DATA", "354 go on"),
    (".", "250 2.0.0 queued as Q1"),
    ("QUIT", "221 bye"),
];

impl Server {
    async fn start(script: Script) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let log = lines.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (read, mut write) = stream.into_split();
                let mut input = BufReader::new(read).lines();
                let answer = |line: &str, data: bool| {
                    let own = script.iter().find(|(word, _)| !word.is_empty() && line.starts_with(word));
                    let theirs = FRIENDLY.iter().find(|(word, _)| !word.is_empty() && line.starts_with(word));
                    match (own.or(theirs), data) {
                        (_, true) if line != "." => None,
                        (Some((_, answer)), _) => Some(*answer),
                        (None, _) => Some("502 what?"),
                    }
                };
                let greeting = script.iter().find(|(word, _)| word.is_empty()).unwrap_or(&FRIENDLY[0]);
                let _ = write.write_all(format!("{}\r\n", greeting.1).as_bytes()).await;
                let mut data = false;
                while let Ok(Some(line)) = input.next_line().await {
                    log.lock().unwrap().push(line.clone());
                    if let Some(answer) = answer(&line, data) {
                        data = answer.starts_with("354");
                        if answer.is_empty() {
                            break;
                        }
                        let _ = write.write_all(format!("{answer}\r\n").as_bytes()).await;
                    }
                }
            }
        });
        Server { port, lines }
    }

    fn said(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

// === One operation ===

const TABLES: &str = r#"
[oauth.mail]
token_url = "https://a.example/token"
grant = "client_credentials"
client_id = "${env:ID:-x}"
"#;

const PLAIN: &str = "from = \"Septet <septet@example.org>\"\nto = \"ward@example.org\"\n";

fn problems(operation: &str) -> String {
    check(&format!("{TABLES}[operations.out]\ntype = \"email\"\n{operation}"))
}

/// Sends one message as `settings` say to a server that follows `script`.
async fn send(settings: &str, script: Script, body: Body) -> Sent {
    let server = Server::start(script).await;
    let text = format!(
        "[production]\nname = \"lab\"\n[store]\npath = \"d\"\nretention = \"1d\"\n{TABLES}\
         [operations.out]\ntype = \"email\"\nconnect = \"127.0.0.1:{}\"\n{settings}",
        server.port
    );
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::of(crate::CLASSES.to_vec());
    let loaded = load_text(&text, folder.path(), &registry, &Env::empty());
    let plan = loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.diagnostics));
    let item = plan.items.iter().find(|item| item.name.as_str() == "out").unwrap();
    let septet_engine::registry::Factory::Operation(factory) = &item.built.factory else { panic!() };
    let mut runtime = runtime(Arc::new(Events::default()));
    runtime.production = "lab".into();
    runtime.tokens = Arc::new(Tokens::default());
    let mut operation = factory.create(&runtime, &item.name);
    operation.start().await.unwrap();
    let cx: OperationContext = delivery(42, body, &runtime);
    let result = operation.on_message(&cx).await;
    Sent { result, said: server.said() }
}

struct Sent {
    result: Result<Outcome, OperationError>,
    said: Vec<String>,
}

impl Sent {
    /// Code, error text and detail.
    fn reply(&self) -> (String, String, String) {
        match self.result.as_ref().unwrap() {
            Outcome::Replied { code, fault: None, .. } => (code.clone(), String::new(), String::new()),
            Outcome::Replied { code, fault: Some(fault), .. } => {
                let detail = fault.detail.as_ref().map(|detail| detail.0.clone()).unwrap_or_default();
                (code.clone(), fault.text.clone(), detail)
            }
            Outcome::Sent => panic!("there is always a reply"),
        }
    }

    fn error(&self) -> (&str, &str) {
        let error = self.result.as_ref().unwrap_err();
        (&error.fault.code, &error.fault.text)
    }

    /// The mail as it was sent, without its date.
    fn mail(&self) -> String {
        let from = self.said.iter().position(|line| line == "DATA").unwrap() + 1;
        let to = self.said.iter().position(|line| line == ".").unwrap();
        let lines = self.said[from..to].iter().filter(|line| !line.starts_with("Date: "));
        lines.map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

fn alert() -> Body {
    Body::record(Record::untyped(
        "Alert",
        json!({ "id": 42, "at": "2026-03-01T23:30:05Z", "level": "error", "kind": "item.faulted",
                "item": "vendor", "text": "the peer is away", "session": 17, "message_id": 18 }),
    ))
}

// === Mails ===

#[tokio::test]
async fn an_alert_becomes_a_mail_without_any_template() {
    let sent = send(&format!("security = \"none\"\n{PLAIN}"), &[], alert()).await;
    assert_eq!(sent.reply().0, "250");
    let expected =
        ["EHLO [127.0.0.1]", "MAIL FROM:<septet@example.org>", "RCPT TO:<ward@example.org>", "DATA"];
    assert_eq!(sent.said[..4], expected);
    insta::assert_snapshot!(sent.mail(), @r"
    Message-ID: <e1-42@example.org>
    From: Septet <septet@example.org>
    Subject: [lab] error: the peer is away
    Auto-Submitted: auto-generated
    To: ward@example.org
    MIME-Version: 1.0
    Content-Type: text/plain; charset=utf-8
    Content-Transfer-Encoding: 7bit

    the peer is away

    production  lab
    level       error
    kind        item.faulted
    item        vendor
    at          2026-03-01T23:30:05Z
    session     17
    message_id  18

    Its trace: septet trace 17
    ");
    let Ok(Outcome::Replied { body: Some(body), .. }) = &sent.result else { panic!() };
    assert_eq!(body.as_record().unwrap().fields, json!({ "code": 250, "text": "2.0.0 queued as Q1" }));
}

#[tokio::test]
async fn fields_of_a_message_fill_the_mail_and_it_can_be_attached() {
    let settings = r#"
security = "none"
from = "{MSH-4} <septet@example.org>"
to = ["ward@example.org", "{PV1-99}"]
cc = "{PID-13.4}"
bcc = "audit@example.org"
reply_to = "lab@example.org"
subject = "Befund für {PID-5.1}"
body = "Größe: {OBX-5}\n.\nEnde"
attachments = [{ name = "{control_id}.hl7" }, { name = "{MSH-4}.txt", text = "{OBX-5}" }]
"#;
    let message = "MSH|^~\\&|A|Lab|C|D|20260101||ORU^R01|M1|P|2.5|||||||UNICODE UTF-8\r\
                   PID|1||4711||M\u{fc}ller^J||||||||^^^doc@example.org\rOBX|1|NM|x||1,80\r";
    let sent = send(settings, &[], hl7(message)).await;
    assert_eq!(sent.reply().0, "250", "{:?}", sent.result);
    let recipients: Vec<_> = sent.said.iter().filter(|line| line.starts_with("RCPT")).collect();
    let expected = ["RCPT TO:<ward@example.org>", "RCPT TO:<doc@example.org>", "RCPT TO:<audit@example.org>"];
    assert_eq!(recipients, expected);
    let mail = sent.mail();
    assert!(!mail.contains("audit@"), "a blind copy is seen:\n{mail}");
    assert!(mail.contains("Subject: Befund =?utf-8?b?ZsO8ciBNw7xsbGVy?="), "{mail}");
    assert!(mail.contains("Reply-To: lab@example.org"), "{mail}");
    let (_, parts) = mail.split_once("\n\n").unwrap();
    assert!(parts.contains("Gr=C3=B6=C3=9Fe: 1,80\n..\nEnde"), "{mail}");
    assert!(parts.contains("filename=\"M1.hl7\"") && parts.contains("filename=\"Lab.txt\""), "{mail}");
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(message);
    assert!(parts.replace('\n', "").contains(&encoded), "the message is attached byte for byte");
}

#[tokio::test]
async fn a_mail_that_is_sent_again_is_the_same_mail() {
    let settings = format!("security = \"none\"\nattachments = [{{ name = \"a.json\" }}]\n{PLAIN}");
    let first = send(&settings, &[], alert()).await;
    assert_eq!(first.mail(), send(&settings, &[], alert()).await.mail());
    assert!(first.said.contains(&"Message-ID: <e1-42@example.org>".to_owned()));
    let date = first.said.iter().find(|line| line.starts_with("Date: ")).unwrap();
    assert!(date.starts_with("Date: Sun, 01 Mar 2026 23:30:05"), "{date}");
}

#[tokio::test]
async fn no_value_adds_a_header_or_a_recipient() {
    let evil = "x\r\nBcc: thief@example.net\r\n\r\nbody";
    let settings = format!("security = \"none\"\nsubject = \"{{s}}\"\nbody = \"{{s}}\"\n{PLAIN}");
    let sent = send(&settings, &[], record(json!({ "s": evil }))).await;
    assert_eq!(sent.said.iter().filter(|line| line.starts_with("RCPT")).count(), 1);
    let mail = sent.mail();
    let (headers, _) = mail.split_once("\n\n").unwrap();
    assert!(headers.contains("Subject: x  Bcc: thief@example.net"), "{headers}");
    assert!(!headers.lines().any(|line| line.starts_with("Bcc")), "{headers}");

    let settings = "security = \"none\"\nfrom = \"a@example.org\"\nto = \"{to}\"\n";
    let tricks = [
        "x\r\nRCPT TO:<thief@example.net>",
        "a@example.org, thief@example.net",
        "a@example.org> <thief@example.net",
        "no address",
    ];
    for to in tricks {
        let sent = send(settings, &[], record(json!({ "to": to }))).await;
        assert_eq!(sent.error(), ("address", "{to} makes no mail address of this message"), "{to}");
        assert!(sent.said.is_empty());
    }
    let sent = send(settings, &[], record(json!({ "to": "" }))).await;
    assert_eq!(sent.error().1, "the mail has no recipient");
    assert_eq!(sent.result.unwrap_err().disposition, Disposition::Suspend);
}

#[tokio::test]
async fn a_secret_is_no_part_of_a_mail() {
    let runtime = runtime(Arc::new(Events::default()));
    let sealed = runtime.vault.seal_json("hunter22").unwrap();
    let body = || record(json!({ "p": sealed }));
    let settings = format!("security = \"none\"\nbody = \"{{p}}\"\n{PLAIN}");
    let sent = send(&settings, &[], body()).await;
    assert_eq!(sent.error().1, "p is a secret and cannot be part of a file name or a mail");
    let settings = format!("security = \"none\"\nattachments = [{{ name = \"a.json\" }}]\n{PLAIN}");
    let mail = send(&settings, &[], body()).await.mail();
    use base64::Engine as _;
    let masked = base64::engine::general_purpose::STANDARD.encode("{\"p\":\"•••\"}");
    assert!(mail.contains(&masked), "{mail}");
}

#[tokio::test]
async fn content_that_comes_in_base64_is_attached_decoded() {
    let settings = format!(
        "security = \"none\"\n{PLAIN}attachments = [{{ name = \"b.pdf\", base64 = \"{{pdf}}\", \
         content_type = \"application/pdf\" }}]\n"
    );
    let sent = send(&settings, &[], record(json!({ "pdf": "JVBE\nRg==" }))).await;
    assert!(sent.mail().contains("Content-Type: application/pdf"), "{}", sent.mail());
    assert!(sent.mail().contains("JVBERg=="), "{}", sent.mail());
    let sent = send(&settings, &[], record(json!({ "pdf": "Jane Doe" }))).await;
    assert_eq!(sent.error(), ("attachment", "{pdf} makes no base64 of this message"));
}

// === Signing in ===

#[tokio::test]
async fn plain_and_login_say_user_and_password() {
    let script: Script = &[("AUTH PLAIN AHUAcGFzc3dvcmQ=", "235 ok"), ("AUTH", "535 no")];
    let settings = format!("security = \"none\"\nusername = \"u\"\npassword = \"password\"\n{PLAIN}");
    assert_eq!(send(&settings, script, alert()).await.reply().0, "250");
    let script: Script =
        &[("AUTH LOGIN", "334 VXNlcm5hbWU6"), ("dQ==", "334 UGFzc3dvcmQ6"), ("cGFzc3dvcmQ=", "235 ok")];
    let settings = format!("{settings}auth = \"login\"\n");
    assert_eq!(send(&settings, script, alert()).await.reply().0, "250");
}

const XOAUTH2: &str = "security = \"none\"\noauth = \"mail\"\n";

#[tokio::test]
async fn o_11_the_engine_builds_xoauth2_from_the_mailbox_and_the_token() {
    // user=septet@example.org^Aauth=Bearer token-1^A^A
    let line = "AUTH XOAUTH2 dXNlcj1zZXB0ZXRAZXhhbXBsZS5vcmcBYXV0aD1CZWFyZXIgdG9rZW4tMQEB";
    let sent = send(&format!("{XOAUTH2}{PLAIN}"), &[("AUTH", "235 2.7.0 Accepted")], alert()).await;
    assert_eq!(sent.reply().0, "250");
    assert!(sent.said.iter().any(|said| said == line), "{:?}", sent.said);
}

#[tokio::test]
async fn o_11_a_refused_token_is_fetched_once_more_and_the_challenge_is_the_detail() {
    // {"status":"401","schemes":"bearer","scope":"https://mail.example/"}
    const CHALLENGE: &str =
        "334 eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiYmVhcmVyIiwic2NvcGUiOiJodHRwczovL21haWwuZXhhbXBsZS8ifQ==";
    // token-2 is taken.
    let second = "AUTH XOAUTH2 dXNlcj1zZXB0ZXRAZXhhbXBsZS5vcmcBYXV0aD1CZWFyZXIgdG9rZW4tMgEB";
    let script: Script = &[
        ("AUTH XOAUTH2 dXNlcj1zZXB0ZXRAZXhhbXBsZS5vcmcBYXV0aD1CZWFyZXIgdG9rZW4tMgEB", "235 ok"),
        ("AUTH", CHALLENGE),
    ];
    let settings = format!("{XOAUTH2}{PLAIN}");
    // The empty answer to the challenge matches no word of the script: it is answered 502, like by many servers.
    let sent = send(&settings, script, alert()).await;
    assert_eq!(sent.reply().0, "502");
    assert!(!sent.said.iter().any(|said| said == second), "only a 535 is worth a new token");

    let refusing: Script = &[("AUTH", "535 5.7.139 token-2 is not for Jane Doe")];
    let sent = send(&settings, refusing, alert()).await;
    let (code, text, detail) = sent.reply();
    assert_eq!((code.as_str(), detail.as_str()), ("535", "5.7.139 ••• is not for Jane Doe"));
    assert!(text.ends_with(" answered 535 5.7.139 to AUTH"), "{text}");
    assert_eq!(sent.said.iter().filter(|said| said.starts_with("AUTH")).count(), 2);
    assert!(sent.said.iter().any(|said| said == second));
}

// === Answers ===

#[tokio::test]
async fn the_code_of_whatever_was_refused_is_the_reply_code() {
    let settings = format!("security = \"none\"\n{PLAIN}");
    let cases: [(Script, &str, &str); 5] = [
        (&[("", "421 4.3.2 closing")], "421", "421 4.3.2 to the connection"),
        (&[("MAIL", "451-4.7.1 greylisted\r\n451 4.7.1 come again")], "451", "451 4.7.1 to MAIL FROM"),
        (&[("RCPT", "550 5.1.1 no Jane Doe here")], "550", "550 5.1.1 to RCPT TO"),
        (&[("DATA", "554 no")], "554", "554 to DATA"),
        (&[(".", "552 5.3.4 too large")], "552", "552 5.3.4 to the mail"),
    ];
    for (script, code, end) in cases {
        let (given, text, detail) = send(&settings, script, alert()).await.reply();
        assert_eq!(given, code);
        assert!(text.ends_with(&format!("answered {end}")) && !text.contains("Jane"), "{text}");
        assert!(!detail.is_empty());
    }
}

#[tokio::test]
async fn what_gives_no_usable_answer_is_a_fault() {
    let plain = format!("security = \"none\"\n{PLAIN}");
    let password = format!("{plain}username = \"u\"\npassword = \"password\"\n");
    let cases: [(&str, Script, &str); 6] = [
        // A password goes to no server that does not ask for it.
        (&password, &[("EHLO", "250-x\r\n250 AUTH XOAUTH2")], "auth"),
        (&plain, &[("", "SSH-2.0-OpenSSH_9.2")], "reply"),
        (&plain, &[("DATA", "")], "reply"),
        // Without STARTTLS nothing is sent.
        (PLAIN, &[], "starttls"),
        (PLAIN, &[("", "HTTP/1.1 400 Bad Request")], "reply"),
        // What comes in clear after STARTTLS is read as TLS, and is none.
        (PLAIN, &[("EHLO", "250-x\r\n250 STARTTLS"), ("STARTTLS", "220 go\r\n250 injected")], "tls"),
    ];
    for (settings, script, code) in cases {
        let sent = send(settings, script, alert()).await;
        assert_eq!(sent.error().0, code, "{script:?}");
        assert_eq!(sent.result.as_ref().unwrap_err().disposition, Disposition::ByCode("fault"));
        assert!(!sent.said.iter().any(|line| line.starts_with("RCPT") && settings == PLAIN));
        assert!(!sent.said.iter().any(|line| line.starts_with("AUTH")));
    }
}

// === Checks ===

#[test]
fn a_right_operation_has_no_problem() {
    let connect = "connect = \"mail.example:587\"\n";
    let more = r#"
oauth = "mail"
username = "septet@example.org"
reply_actions = { "4xx" = "retry", "550,535" = "fail" }
cc = ["{doctor}", "Ärztin <a@example.org>"]
subject = "{text}"
tls = { pin = "sha256:0000000000000000000000000000000000000000000000000000000000000000" }
"#;
    assert_eq!(problems(&format!("{connect}{PLAIN}")), "");
    assert_eq!(problems(&format!("{connect}{PLAIN}{more}")), "");
}

#[test]
fn passwords_and_tokens_stay_off_plain_connections() {
    let plain = |host: &str, more: &str| {
        problems(&format!("connect = \"{host}:25\"\nsecurity = \"none\"\n{PLAIN}{more}"))
    };
    let out = plain("mail.example", "oauth = \"mail\"\n");
    assert!(out.starts_with("error S0332: an OAuth token would be sent over a plain connection"), "{out}");
    let password = "username = \"u\"\npassword = \"${env:P:-x}\"\n";
    assert!(plain("10.0.0.1", password).starts_with("error S0332: a password would"));
    let allowed = plain("10.0.0.1", &format!("{password}allow_plain = true\n"));
    assert_eq!(
        allowed,
        "warning S0332: a password would be sent over a plain connection (use starttls or tls)"
    );
    assert_eq!(plain("127.0.0.1", password), "");
    assert_eq!(plain("mail.example", ""), "");
}

#[test]
fn every_mistake_is_named_at_once() {
    let out = problems(
        r#"
connect = "mail.example:25"
security = "none"
tls = {}
auth = "login"
from = "nobody"
to = ["ward@example.org", "a@b, c@d"]
subject = "{text"
attachments = [{ name = "a", text = "b", base64 = "c" }, { name = "d", content_type = "e" }]
"#,
    );
    let expected = [
        "S0333: there is no TLS with security = \"none\"",
        "S0358: this sign-in needs a username",
        "S0332: a password would be sent",
        "S0357: this is no mail address",
        "S0337: a { at character 1 is never closed",
        "S0104: an attachment has text or base64, not both",
        "S0104: this is no content type",
    ];
    for line in expected {
        assert!(out.contains(line), "missing {line} in\n{out}");
    }
    assert_eq!(out.matches("S0357").count(), 2, "{out}");
    let sign_in = |more: &str| problems(&format!("connect = \"mail.example:587\"\n{PLAIN}{more}"));
    assert!(sign_in("auth = \"xoauth2\"\n").contains("S0358: xoauth2 needs oauth"));
    assert!(sign_in("username = \"u\"\n").contains("S0358: this sign-in needs a password"));
    assert!(sign_in("oauth = \"male\"\n").contains("S0204"));
    assert!(sign_in("hello = \"a b\"\n").contains("S0358: a server is greeted"));
    let nobody = problems("connect = \"mail.example:587\"\nfrom = \"a@example.org\"\nto = []\n");
    assert!(nobody.contains("S0357: a mail without a recipient"), "{nobody}");
    let codes = "S0214: \"AA\" is no reply code of this kind of operation (there are codes such as 550";
    assert!(sign_in("reply_actions = { AA = \"complete\" }\n").contains(codes));
}
