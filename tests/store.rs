//! `septet store` on the real binary: check, repair, backup while messages come in, restore.

use serde_json::Value;

use crate::support::mllp::{Client, Receiver, msa, oru};
use crate::support::{Septet, files_below, free_port};

fn production(inbound: u16, outbound: u16) -> String {
    format!(
        r#"
[production]
name = "relay"
[store]
path = "data"
retention = "30d"
segment_size = "1MiB"
[admin]
listen = "127.0.0.1:{{admin}}"
[services.in]
type = "hl7.mllp"
listen = "127.0.0.1:{inbound}"
targets = ["out"]
[operations.out]
type = "hl7.mllp"
connect = "127.0.0.1:{outbound}"
retry_interval = "50ms"
"#
    )
}

async fn send(port: u16, from: usize, count: usize) {
    let mut client = Client::connect(port).await;
    for n in from..from + count {
        let id = format!("M{n}");
        let mut message = oru(&id, &id, "4711");
        message.push_str(&format!("NTE|1||{}\r", "x".repeat(4000)));
        client.write(&Client::frame(message.as_bytes())).await.unwrap();
        assert_eq!(msa(&client.read().await.unwrap()), ("AA".to_owned(), id));
    }
}

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_made_while_messages_come_in_is_checked_and_restored() {
    let (inbound, outbound) = (free_port(), free_port());
    let _receiver = Receiver::listen(outbound).await;
    let mut septet = Septet::write(&production(inbound, outbound));
    septet.run().await;
    let at = |name: &str| septet.path(name).display().to_string();
    let (data, backup, copy) = (at("data"), at("backup"), at("copy"));
    let url = septet.url("");
    let make = |septet: &Septet| septet.command(&["store", "backup", "--url", &url, &backup]);

    send(inbound, 0, 100).await;
    let sending = tokio::spawn(send(inbound, 100, 400));
    let first = make(&septet);
    assert_eq!(first.status.code(), Some(0), "{first:?}");
    sending.await.unwrap();
    septet
        .until("/api/v1/queues", |all| {
            all["queues"].as_array().unwrap().iter().all(|queue| queue["depth"] == 0)
        })
        .await;
    let again = make(&septet);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    let third = String::from_utf8(make(&septet).stdout).unwrap();
    // What the audit event of the second copy takes is all that is new.
    let copied: u64 = third.split(", ").last().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(copied < 10_000, "{third}");
    let events = septet.get("/api/v1/events?kind=store.copied").await;
    assert!(!events["events"].as_array().unwrap().is_empty());

    let in_use = septet.command(&["store", "check", &data]);
    assert_eq!(in_use.status.code(), Some(3));
    assert!(String::from_utf8(in_use.stderr).unwrap().contains("in use by process"));
    assert_eq!(septet.terminate(), Some(0));
    let original = json(&septet.command(&["store", "check", "--json", &data]));
    assert_eq!((&original["problem_count"], &original["clean"]), (&0.into(), &true.into()));

    let restored = septet.command(&["store", "restore", &backup, &copy]);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}");
    assert!(String::from_utf8(restored.stdout).unwrap().contains("it needs key"));
    assert_eq!(septet.command(&["store", "check", &copy]).status.code(), Some(3), "the key is not there yet");
    std::fs::copy(septet.path("data/store.key"), septet.path("copy/store.key")).unwrap();
    let report = json(&septet.command(&["store", "check", "--json", &copy]));
    assert_eq!(report["problem_count"], 0, "{report}");
    assert_ne!(report["epoch"], original["epoch"]);
    assert_eq!(report["counts"]["headers"], original["counts"]["headers"]);
    assert_eq!(septet.command(&["store", "restore", &backup, &copy]).status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_into_a_folder_that_holds_something_else_is_refused_and_changes_nothing() {
    let (inbound, outbound) = (free_port(), free_port());
    let mut other = Septet::start(&production(inbound, outbound)).await;
    send(inbound, 0, 3).await;
    assert_eq!(other.terminate(), Some(0));
    let content = |septet: &Septet| -> Vec<_> {
        let files = files_below(&septet.path("data"));
        files.into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect()
    };
    let before = content(&other);

    let septet = Septet::start(&production(free_port(), outbound)).await;
    let url = septet.url("");
    let refused = |folder: &std::path::Path| {
        let made = septet.command(&["store", "backup", "--url", &url, &folder.display().to_string()]);
        assert_eq!(made.status.code(), Some(2), "{made:?}");
        let text = String::from_utf8(made.stderr).unwrap();
        assert!(text.contains("is no backup, and not empty"), "{text}");
    };
    refused(&other.path("data"));
    assert!(content(&other) == before, "the other store is as it was");
    refused(&septet.path("."));
    std::fs::create_dir_all(septet.path("empty/lost+found")).unwrap();
    let empty = septet.path("empty").display().to_string();
    for _ in 0..2 {
        let made = septet.command(&["store", "backup", "--url", &url, &empty]);
        assert_eq!(made.status.code(), Some(0), "{made:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_found_and_repaired_and_the_engine_goes_on() {
    let (inbound, outbound) = (free_port(), free_port());
    let _receiver = Receiver::listen(outbound).await;
    let mut septet = Septet::write(&production(inbound, outbound));
    septet.run().await;
    send(inbound, 0, 300).await;
    assert_eq!(septet.terminate(), Some(0));
    let data = septet.path("data").display().to_string();
    let segment = septet.path("data/journal/0000000001.seg");
    let mut content = std::fs::read(&segment).unwrap();
    content[500_000] ^= 0x10;
    std::fs::write(&segment, content).unwrap();

    let found = septet.command(&["store", "check", "--json", &data]);
    assert_eq!(found.status.code(), Some(1));
    let problem = &json(&found)["problems"][0];
    assert!(problem["file"].as_str().unwrap().ends_with("0000000001.seg"), "{problem}");
    let offset = problem["offset"].as_u64().unwrap();
    assert!(offset <= 500_000 && offset + problem["length"].as_u64().unwrap() > 500_000);

    let dry = septet.command(&["store", "repair", &data]);
    assert!(String::from_utf8(dry.stdout).unwrap().contains("--yes does it"));
    let done = septet.command(&["store", "repair", "--yes", &data]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(septet.path(&format!("data/quarantine/0000000001.seg-{offset}.bad")).is_file());
    assert_eq!(septet.command(&["store", "check", &data]).status.code(), Some(0));

    septet.run().await;
    let events = septet.get("/api/v1/events?kind=store.repaired").await;
    assert!(events["events"][0]["text"].as_str().unwrap().contains("0000000001.seg"));
    send(inbound, 1000, 1).await;
}

/// Flips a bit of the first body that has this control id.
fn damage_body(septet: &Septet, control_id: &[u8; 4]) {
    let segment = septet.path("data/journal/0000000001.seg");
    let mut content = std::fs::read(&segment).unwrap();
    let place = content.windows(4).position(|window| window == control_id).unwrap();
    content[place + 1] ^= 0x10;
    std::fs::write(&segment, content).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_goes_on_past_a_body_that_cannot_be_read() {
    let (inbound, outbound) = (free_port(), free_port());
    let receiver = Receiver::listen(outbound).await;
    let mut septet = Septet::write(&production(inbound, outbound));
    septet.run().await;
    send(inbound, 0, 3).await;
    receiver.until(3).await;
    assert_eq!(septet.terminate(), Some(0));
    damage_body(&septet, b"|M1|");

    septet.run().await;
    let folder = septet.path("export");
    std::fs::create_dir(&folder).unwrap();
    let export = septet.command(&["messages", "--source", "in", "--export", &folder.display().to_string()]);
    assert_eq!(export.status.code(), Some(1), "{export:?}");
    let said = String::from_utf8(export.stderr).unwrap();
    assert!(said.contains("is damaged at") && said.contains("1 could not be read"), "{said}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_body_is_damaged_keeps_its_header_and_is_not_sent_again() {
    let (inbound, outbound) = (free_port(), free_port());
    let receiver = Receiver::listen(outbound).await;
    let mut septet = Septet::write(&production(inbound, outbound));
    septet.run().await;
    send(inbound, 0, 3).await;
    receiver.until(3).await;
    let messages = septet.get("/api/v1/messages?source=in&control_id=M1").await;
    let id = messages["messages"][0]["id"].as_u64().unwrap();
    assert_eq!(septet.terminate(), Some(0));
    damage_body(&septet, b"|M1|");

    for repaired in [false, true] {
        if repaired {
            assert_eq!(septet.terminate(), Some(0));
            let data = septet.path("data").display().to_string();
            assert_eq!(septet.command(&["store", "repair", "--yes", &data]).status.code(), Some(0));
        }
        septet.run().await;
        let message = septet.get(&format!("/api/v1/messages/{id}")).await;
        assert_eq!((&message["control_id"], &message["body"]), (&"M1".into(), &serde_json::Value::Null));
        let error = &message["body_error"];
        assert_eq!(error["code"], "body_damaged", "{message}");
        assert!(error["text"].as_str().unwrap().contains("0000000001.seg:"), "{message}");
        let raw = reqwest::get(septet.url(&format!("/api/v1/messages/{id}/raw"))).await.unwrap();
        let raw: serde_json::Value = serde_json::from_str(&raw.text().await.unwrap()).unwrap();
        assert_eq!((&raw["status"], &raw["code"]), (&500.into(), &"body_damaged".into()), "{raw}");
        let session = message["session"].as_u64().unwrap();
        assert_eq!(septet.get(&format!("/api/v1/sessions/{session}")).await["messages"][0]["id"], id);
        let order = serde_json::json!({ "filter": { "source": "in" }, "dry_run": true });
        let (_, dry) = septet.post("/api/v1/replay", order).await;
        assert_eq!((&dry["selected"], &dry["replayable"]), (&3.into(), &2.into()), "{dry}");
        assert_eq!(dry["blocked"][0]["id"], id);
        assert!(dry["blocked"][0]["reason"].as_str().unwrap().contains("body damaged"), "{dry}");
        assert_eq!(dry["bodies_complete"], true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_follows_copies_what_comes_until_it_is_asked_to_stop() {
    let (inbound, outbound) = (free_port(), free_port());
    let _receiver = Receiver::listen(outbound).await;
    let septet = Septet::start(&production(inbound, outbound)).await;
    let backup = septet.path("backup");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_septet"));
    command.args(["store", "backup", "--follow", "--url", &septet.url("")]).arg(&backup);
    let mut follower = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let copied = async |number: &str| {
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        while !files_below(&backup)
            .iter()
            .any(|file| std::fs::read(file).is_ok_and(|bytes| contains(&bytes, number.as_bytes())))
        {
            assert!(std::time::Instant::now() < deadline, "{number} was not copied");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    send(inbound, 0, 1).await;
    copied("|M0|").await;
    send(inbound, 1, 1).await;
    copied("|M1|").await;
    std::process::Command::new("kill").arg(follower.id().to_string()).status().unwrap();
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_follows_while_segments_are_purged_is_a_whole_store() {
    let (inbound, outbound) = (free_port(), free_port());
    let receiver = Receiver::listen(outbound).await;
    let mut septet = Septet::start(&production(inbound, outbound)).await;
    let backup = septet.path("backup");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_septet"));
    command.args(["store", "backup", "--follow", "--url", &septet.url("")]).arg(&backup);
    let mut follower = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut dropped = 0;
    for round in 0..4 {
        send(inbound, round * 250, 250).await;
        receiver.until((round + 1) * 250).await;
        let order = serde_json::json!({ "before": "2999-01-01T00:00:00Z" });
        // While the next ones come in.
        let (purged, ()) = tokio::join!(septet.post("/api/v1/purge", order), send(inbound, 5000 + round, 1));
        assert_eq!(purged.0, 200, "{purged:?}");
        dropped += purged.1["segments"].as_u64().unwrap();
    }
    assert!(dropped >= 3, "{dropped} segments were dropped");
    send(inbound, 9000, 1).await;
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while !files_below(&backup)
        .iter()
        .any(|file| std::fs::read(file).is_ok_and(|bytes| contains(&bytes, b"|M9000|")))
    {
        assert!(std::time::Instant::now() < deadline, "the last message was not copied");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    std::process::Command::new("kill").arg(follower.id().to_string()).status().unwrap();
    assert_eq!(follower.wait().unwrap().code(), Some(0));
    let last = septet.get("/api/v1/messages?control_id=M9000&source=in").await["messages"][0]["id"].clone();
    assert_eq!(septet.terminate(), Some(0));

    let at = |name: &str| septet.path(name).display().to_string();
    let checked =
        septet.command(&["store", "check", "--key-file", &at("data/store.key"), "--json", &at("backup")]);
    assert_eq!(json(&checked)["problem_count"], 0, "what was purged is not missing: {checked:?}");
    let restored = septet.command(&["store", "restore", &at("backup"), &at("copy")]);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}");
    std::fs::copy(septet.path("data/store.key"), septet.path("copy/store.key")).unwrap();
    let report = json(&septet.command(&["store", "check", "--json", &at("copy")]));
    assert_eq!(report["problem_count"], 0, "{report}");
    // It opens, and goes on.
    std::fs::rename(septet.path("data"), septet.path("before")).unwrap();
    std::fs::rename(septet.path("copy"), septet.path("data")).unwrap();
    septet.run().await;
    let message = septet.get(&format!("/api/v1/messages/{last}")).await;
    assert!(message["body"]["text"].as_str().unwrap().contains("|M9000|"), "{message}");
    send(inbound, 9001, 1).await;
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
