//! Operating a production: reload, accounts, TLS of the admin API, the commands that talk to it.

use std::time::Duration;

use serde_json::json;

use crate::support::mllp::{Client, Receiver, msa, oru};
use crate::support::{Septet, free_port};

fn relay(inbound: u16, outbound: u16, more: &str) -> String {
    format!(
        r#"
[production]
name = "relay"
[store]
path = "data"
retention = "30d"
[admin]
listen = "127.0.0.1:{{admin}}"
{more}
[services.in]
type = "hl7.mllp"
listen = "127.0.0.1:{inbound}"
targets = ["router"]
search = {{ mrn = "PID-3.1" }}
[processes.router]
type = "router"
[[processes.router.rules]]
when = {{}}
send = ["out"]
[operations.out]
type = "hl7.mllp"
connect = "127.0.0.1:{outbound}"
retry_interval = "50ms"
"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_switches_what_changed_and_a_broken_file_changes_nothing() {
    let (inbound, first, second) = (free_port(), free_port(), free_port());
    let (one, two) = (Receiver::listen(first).await, Receiver::listen(second).await);
    let mut septet = Septet::start(&relay(inbound, first, "")).await;
    let mut client = Client::connect(inbound).await;
    client.send(&oru("C1", "A", "M")).await;
    one.until(1).await;

    let file = septet.path("production.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let before = septet.get("/api/v1/production").await["version"].clone();
    std::fs::write(&file, text.replace(&first.to_string(), &second.to_string())).unwrap();
    septet.hang_up();
    septet.until("/api/v1/production", |now| now["version"] != before).await;
    // The service did not change: its connection lives on.
    let ack = client.send(&oru("C2", "A", "M")).await;
    assert_eq!(msa(&ack), ("AA".into(), "C2".into()));
    two.until(1).await;
    assert_eq!(one.bodies.lock().await.len(), 1);

    std::fs::write(&file, text.replace("targets", "tragets")).unwrap();
    let (status, problem) = septet.post("/api/v1/production/reload", json!({})).await;
    assert_eq!(status, 409, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("production.toml:"), "{problem}");
    client.send(&oru("C3", "A", "M")).await;
    two.until(2).await;
    assert_eq!(septet.terminate(), Some(0), "SIGTERM drains and ends with 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_have_roles_and_the_api_can_speak_tls() {
    let certified =
        rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let hash = |token: &str| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let accounts = format!(
        "tls = {{ cert = \"cert.pem\", key = \"key.pem\" }}\n\
         [admin.tokens.looker]\nhash = \"{}\"\nrole = \"viewer\"\n\
         [admin.tokens.worker]\nhash = \"{}\"\nrole = \"operator\"\n\
         [admin.tokens.chief]\nhash = \"{}\"\nrole = \"admin\"\n",
        hash("look"),
        hash("work"),
        hash("rule")
    );
    let inbound = free_port();
    let mut septet = Septet::write(&relay(inbound, free_port(), &accounts));
    std::fs::write(septet.path("cert.pem"), certified.cert.pem()).unwrap();
    std::fs::write(septet.path("key.pem"), certified.signing_key.serialize_pem()).unwrap();
    septet.spawn(&[]);

    let root = reqwest::Certificate::from_pem(certified.cert.pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
    let url = |path: &str| format!("https://127.0.0.1:{}{path}", septet.admin);
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while !client.get(url("/readyz")).send().await.is_ok_and(|answer| answer.status() == 200) {
        assert!(std::time::Instant::now() < deadline, "not ready: {}", septet.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = async |method: reqwest::Method, path: &str, token: Option<&str>| {
        let request = client.request(method, url(path));
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        request.send().await.unwrap().status().as_u16()
    };
    let (get, post) = (reqwest::Method::GET, reqwest::Method::POST);
    assert_eq!(status(get.clone(), "/api/v1/items", None).await, 401);
    assert_eq!(status(get.clone(), "/metrics", None).await, 401);
    assert_eq!(status(get.clone(), "/healthz", None).await, 200);
    assert_eq!(status(get.clone(), "/api/v1/items", Some("wrong")).await, 401);
    assert_eq!(status(get, "/api/v1/items", Some("look")).await, 200);
    assert_eq!(status(post.clone(), "/api/v1/items/out/stop", Some("look")).await, 403);
    assert_eq!(status(post.clone(), "/api/v1/items/out/stop", Some("work")).await, 200);
    assert_eq!(status(post.clone(), "/api/v1/production/reload", Some("work")).await, 403);
    assert_eq!(status(post, "/api/v1/production/reload", Some("rule")).await, 200);
    let events = client.get(url("/api/v1/events?kind=production.reloaded")).bearer_auth("look").send().await;
    let events: serde_json::Value = serde_json::from_str(&events.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(events["events"][0]["who"], "chief");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_show_what_the_api_says_and_end_with_the_right_code() {
    let (inbound, outbound) = (free_port(), free_port());
    let receiver = Receiver::listen(outbound).await;
    let septet = Septet::start(&relay(inbound, outbound, "")).await;
    Client::connect(inbound).await.send(&oru("C1", "A", "MRN 1")).await;
    receiver.until(1).await;
    let out = |arguments: &[&str]| {
        let output = septet.command(arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = out(&["messages", "--key.mrn", "mrn 1", "--kind", "request"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("ORU^R01") && !text.contains("MRN 1"), "{text}");
    assert_eq!(out(&["messages", "--no_such_filter", "1"]).0, Some(2));
    let (code, text) = out(&["items", "--json"]);
    assert_eq!(code, Some(0));
    assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["items"].is_array());
    assert_eq!(out(&["trace", "999999"]).0, Some(1));
    assert_eq!(out(&["trace"]).0, Some(2));
    assert_eq!(out(&["items", "--url", "http://127.0.0.1:1"]).0, Some(3));
    // `septet items | head` is no error: a reader that went away is no reason to panic.
    let mut piped = std::process::Command::new(env!("CARGO_BIN_EXE_septet"));
    piped.arg("items").env("SEPTET_URL", septet.url("")).stdout(std::process::Stdio::piped());
    let mut piped = piped.spawn().unwrap();
    drop(piped.stdout.take());
    assert_eq!(piped.wait().unwrap().code(), Some(0));
    let searched = septet.get("/api/v1/events?kind=messages.searched").await;
    assert_eq!(searched["events"].as_array().unwrap().len(), 1, "{searched}");
    assert!(!searched.to_string().to_lowercase().contains("mrn 1"), "the audit names the key, not its value");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looked_at_a_message_is_known_after_a_kill() {
    let (inbound, outbound) = (free_port(), free_port());
    let _receiver = Receiver::listen(outbound).await;
    let mut septet = Septet::start(&relay(inbound, outbound, "")).await;
    Client::connect(inbound).await.send(&oru("C1", "A1", "MRN-1")).await;
    let found = septet
        .until("/api/v1/messages?control_id=C1", |page| !page["messages"].as_array().unwrap().is_empty())
        .await;
    let id = found["messages"][0]["id"].as_u64().unwrap();
    septet.get(&format!("/api/v1/messages/{id}")).await;
    septet.kill();
    septet.run().await;
    let events = septet.get("/api/v1/events?kind=message.viewed").await;
    assert_eq!(events["events"][0]["message_id"].as_u64(), Some(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_cannot_read_is_a_problem_document_and_touches_nothing() {
    let septet = Septet::start(&relay(free_port(), free_port(), "")).await;
    for path in ["/api/v1/messages/%ff", "/api/v1/store/files/x?from=abc", "/api/v1/messages?keys=yes"] {
        let answer = reqwest::get(septet.url(path)).await.unwrap();
        let media = answer.headers()["content-type"].to_str().unwrap().to_owned();
        assert_eq!((answer.status().as_u16(), media.as_str()), (400, "application/problem+json"), "{path}");
        let problem: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(problem["status"], 400, "{path}");
    }
    // A page size says nothing about how much a replay or a discard may touch.
    for path in ["/api/v1/replay", "/api/v1/messages/discard"] {
        let (status, problem) = septet.post(path, json!({ "filter": { "limit": 1 } })).await;
        assert_eq!(status, 400, "{problem}");
    }
}
