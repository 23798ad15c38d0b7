//! Replay and export of selections on the real binary, kill -9 included.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::mllp::{Client, Receiver, oru};
use crate::support::{Septet, files_below, free_port};

/// A relay that has delivered so many messages, and its receiver.
async fn relay(messages: usize) -> (Septet, Receiver) {
    let (inbound, outbound) = (free_port(), free_port());
    let receiver = Receiver::listen(outbound).await;
    let septet = Septet::start(&format!(
        r#"
[production]
name = "relay"
[store]
path = "data"
retention = "30d"
[admin]
listen = "127.0.0.1:{{admin}}"
[services.in]
type = "hl7.mllp"
listen = "127.0.0.1:{inbound}"
targets = ["out"]
search = {{ mrn = "PID-3.1" }}
[operations.out]
type = "hl7.mllp"
connect = "127.0.0.1:{outbound}"
retry_interval = "50ms"
"#
    ))
    .await;
    let mut client = Client::connect(inbound).await;
    for n in 0..messages {
        client.send(&oru(&format!("C{n}"), "A", "M")).await;
    }
    receiver.until(messages).await;
    septet
        .until("/api/v1/messages?kind=request&status=queued,delivered", |page| empty(&page["messages"]))
        .await;
    (septet, receiver)
}

fn empty(list: &Value) -> bool {
    list.as_array().unwrap().is_empty()
}

fn control_id(body: &str) -> String {
    body.split('|').nth(9).unwrap_or("").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_over_a_kill_says_exactly_how_far_it_got() {
    let (mut septet, receiver) = relay(60).await;
    let order = json!({ "filter": { "kind": "request" }, "rate": 4 });
    let (status, report) = septet.post("/api/v1/replay", order).await;
    assert_eq!(status, 200, "{report}");
    assert_eq!(
        (&report["selected"], &report["replayable"], &report["duplicates"]),
        (&json!(60), &json!(60), &json!(60))
    );
    assert_eq!(report["started"], true);
    let path = format!("/api/v1/replays/{}", report["id"]);
    septet.until(&path, |replay| replay["sent"].as_u64() > Some(5)).await;
    septet.kill();
    septet.run().await;
    let replay = septet.get(&path).await;
    assert_eq!(replay["state"], "interrupted", "{replay}");
    let sent = replay["sent"].as_u64().unwrap();
    assert!((6..60).contains(&sent), "{replay}");
    let page = septet.get("/api/v1/messages?kind=request&limit=1000").await;
    let origins: Vec<_> = page["messages"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|header| header["resent_from"].as_u64())
        .collect();
    assert_eq!(origins.len() as u64, sent, "as many headers as it says");
    assert_eq!(origins.first(), replay["last_message"].as_u64().as_ref());
    assert_eq!(origins.iter().collect::<BTreeSet<_>>().len() as u64, sent, "each of them once");
    let text = septet.get("/api/v1/events?kind=replay").await["events"][0]["text"].to_string();
    assert!(text.contains(&format!("{sent} of 60")), "{text}");
    // What it made is delivered, oldest first; nothing goes on by itself.
    septet
        .until("/api/v1/queues", |all| {
            all["queues"].as_array().unwrap().iter().all(|queue| queue["depth"] == 0)
        })
        .await;
    let delivered: Vec<_> =
        receiver.bodies.lock().await.iter().skip(60).map(|body| control_id(body)).collect();
    let mut first_time = delivered.clone();
    let mut seen = BTreeSet::new();
    first_time.retain(|id| seen.insert(id.clone()));
    assert_eq!(first_time, (0..sent).map(|n| format!("C{n}")).collect::<Vec<_>>());
    let (status, _) = septet.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!(status, 409, "there is nothing to cancel");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replay_command_checks_sends_and_ends_with_the_right_code() {
    let (septet, receiver) = relay(5).await;
    let out = |arguments: &[&str]| {
        let output = septet.command(arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(out(&["replay"]).0, Some(2), "everything is replayed only when asked for");
    let (code, text) = out(&["replay", "--all", "--dry-run"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("10 selected, 5 replayable, 5 blocked") && text.contains("response"), "{text}");
    let (code, text) = out(&["replay", "--kind", "request", "--key.mrn", "m", "--rate", "1000"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("completed: 5 of 5 sent again"), "{text}");
    assert_eq!(receiver.until(10).await.len(), 10);
    assert_eq!(out(&["replay", "--control-id", "none such"]).0, Some(1));
    assert_eq!(out(&["replay", "--all", "--new-target", "nobody"]).0, Some(1));
    assert_eq!(out(&["replay", "--all", "--rate", "0"]).0, Some(2));
    let kept = septet.get("/api/v1/replays").await;
    assert_eq!(kept["replays"][0]["filter"], json!({ "key.mrn": "•••", "kind": "request" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_selection_is_exported_as_files_or_as_lines_and_nothing_is_overwritten() {
    let (septet, receiver) = relay(3).await;
    let folder = septet.path("export");
    let run = |arguments: &[&str]| septet.command(arguments);
    let into = format!("{}/", folder.display());
    assert!(run(&["messages", "--kind", "request", "--export", &into]).status.success());
    let mut files = files_below(&folder);
    // By id, the number at the beginning of the name.
    files.sort_by_key(|file| {
        let name = file.file_name().unwrap().to_str().unwrap();
        name.split('-').next().unwrap().parse::<u64>().unwrap()
    });
    assert_eq!(files.len(), 3);
    for (file, body) in files.iter().zip(receiver.bodies.lock().await.iter()) {
        assert_eq!(&std::fs::read_to_string(file).unwrap(), body, "the bytes as they arrived");
        assert!(
            file.to_str().unwrap().ends_with(&format!("-{}.hl7", control_id(body))),
            "{}",
            file.display()
        );
    }
    // Again: what is there stays, and what another wrote under such a name, too.
    std::fs::write(&files[0], "mine").unwrap();
    assert!(run(&["messages", "--kind", "request", "--export", &into]).status.success());
    assert_eq!(std::fs::read_to_string(&files[0]).unwrap(), "mine");
    files = files_below(&folder);
    assert_eq!(files.len(), 4, "{files:?}");

    let lines = septet.path("export.ndjson");
    let export = ["messages", "--limit", "4", "--export", lines.to_str().unwrap()];
    assert!(run(&export).status.success());
    let text = std::fs::read_to_string(&lines).unwrap();
    let messages: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(messages.len(), 4);
    assert!(messages.windows(2).all(|pair| pair[0]["id"].as_u64() > pair[1]["id"].as_u64()), "newest first");
    assert!(messages.iter().all(|message| message["body"]["text"].is_string()));
    assert_eq!(run(&export).status.code(), Some(2), "the file is there already");
    let never = septet.path("never.ndjson");
    assert_eq!(
        run(&["messages", "--no-such", "1", "--export", never.to_str().unwrap()]).status.code(),
        Some(2)
    );
    assert!(!never.exists(), "the same command, mended, can be given again");
    let piped = run(&["messages", "--kind", "request", "--export", "-"]);
    assert_eq!(String::from_utf8_lossy(&piped.stdout).lines().count(), 3);
    let viewed = septet.get("/api/v1/events?kind=message.viewed&limit=1000").await;
    let seen: BTreeSet<u64> =
        viewed["events"].as_array().unwrap().iter().filter_map(|e| e["message_id"].as_u64()).collect();
    assert!(
        messages.iter().all(|message| seen.contains(&message["id"].as_u64().unwrap())),
        "every look is audited"
    );
}

/// `SEPTET_SELECTION=300000` for one of the size that hospitals have.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_selection_is_exported_whole_and_its_replay_ends_where_it_is_cancelled() {
    let count = std::env::var("SEPTET_SELECTION").ok().and_then(|text| text.parse().ok()).unwrap_or(2500);
    let (septet, receiver) = relay(count).await;
    let folder = septet.path("export");
    let export = |to: &str| septet.command(&["messages", "--kind", "request", "--export", to]);
    let into = export(&format!("{}/", folder.display()));
    assert!(into.status.success(), "{into:?}");
    let texts = |files: Vec<std::path::PathBuf>| -> BTreeSet<String> {
        files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
    };
    let sent: BTreeSet<String> = receiver.bodies.lock().await.iter().cloned().collect();
    assert_eq!(sent.len(), count);
    assert!(texts(files_below(&folder)) == sent, "every message as it arrived");

    let lines = |name: &str| -> Vec<Value> {
        let file = septet.path(name);
        let done = export(file.to_str().unwrap());
        assert!(done.status.success(), "{done:?}");
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = lines("all.ndjson");
    assert!(all.windows(2).all(|pair| pair[0]["id"].as_u64() > pair[1]["id"].as_u64()), "newest first");
    let bodies = all.iter().map(|message| message["body"]["text"].as_str().unwrap().to_owned());
    assert!(bodies.collect::<BTreeSet<String>>() == sent);

    let order = json!({ "filter": { "kind": "request" }, "rate": 1000 });
    let (_, report) = septet.post("/api/v1/replay", order).await;
    assert_eq!((&report["selected"], &report["replayable"]), (&json!(count), &json!(count)), "{report}");
    let path = format!("/api/v1/replays/{}", report["id"]);
    septet.until(&path, |replay| replay["sent"].as_u64() > Some(300)).await;
    let (status, cancelled) = septet.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!((status, &cancelled["state"]), (200, &json!("cancelled")), "{cancelled}");
    let made = cancelled["sent"].as_u64().unwrap();
    assert!(made < count as u64, "{cancelled}");
    let after = lines("after.ndjson");
    let origins: Vec<u64> = after.iter().filter_map(|message| message["resent_from"].as_u64()).collect();
    assert_eq!(origins.len() as u64, made, "as many headers as it says");
    let oldest: Vec<u64> = all.iter().rev().filter_map(|message| message["id"].as_u64()).collect();
    assert_eq!(
        origins.iter().rev().copied().collect::<Vec<_>>(),
        oldest[..origins.len()],
        "the oldest, in order"
    );
    receiver.until(count + origins.len()).await;
}
