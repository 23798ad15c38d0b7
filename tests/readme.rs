//! The README's five-minute walk, on the shipped productions: what it promises a newcomer is what happens.

use std::process::Command;

use serde_json::Value;

use crate::support::shipped::{Shipped, root, text};

fn completed(all: &Value, item: &str) -> u64 {
    let items = all["items"].as_array().expect("items");
    items
        .iter()
        .find(|entry| entry["name"] == item)
        .and_then(|entry| entry["completed"].as_u64())
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_five_minute_walk_works() {
    let mut shipped = Shipped::new();
    shipped.spawn(&["run", "productions/lab-results", "productions/vendor"]);
    let items = "http://127.0.0.1:8700/api/v1/items";
    shipped
        .until("both run", "http://127.0.0.1:8701/api/v1/items", |all| {
            all["items"].as_array().is_some_and(|all| all.iter().all(|item| item["state"] == "running"))
        })
        .await;

    // Send a result and see the acknowledgement.
    let sent = shipped.walk("septet send mllp://127.0.0.1:2575 productions/lab-results/messages/oru.hl7");
    assert!(text(&sent).contains("MSA|AA|LAB-0001"), "{}", text(&sent));
    shipped.until("the vendor has it", items, |all| completed(all, "submit") == 1).await;
    let written = shipped.written("productions/vendor/out", 1).await;
    assert_eq!(written.len(), 1, "{written:?}");

    // See the whole session.
    let list = shipped.get("http://127.0.0.1:8700/api/v1/messages?control_id=LAB-0001").await;
    let session = list["messages"][0]["session"].to_string();
    assert!(text(&shipped.walk("septet messages --control-id LAB-0001")).contains(&session));
    let trace = text(&shipped.walk(&format!("septet trace {session}")));
    for leg in ["lis ──▶ router", "router ──▶ submit", "submit ──▶ vendor", "submit ◀── vendor"]
    {
        assert!(trace.contains(leg), "{trace}");
    }

    // The API never shows the token; its document has a version.
    let oauth = shipped.get("http://127.0.0.1:8700/api/v1/oauth").await;
    assert_eq!(oauth["clients"][0]["state"], "valid");
    assert!(shipped.get("http://127.0.0.1:8700/api/v1/openapi.json").await["openapi"].is_string());

    // Send one leg again.
    let leg =
        list["messages"].as_array().unwrap().iter().find(|leg| leg["target"] == "vendor").unwrap()["id"]
            .to_string();
    assert!(text(&shipped.walk(&format!("septet resend {leg}"))).contains(&format!("resends {leg}")));

    // A busy vendor: three refusals, then accepted.
    shipped.walk("septet send mllp://127.0.0.1:2575 productions/lab-results/messages/oru-busy.hl7");
    shipped.until("the busy one is through", items, |all| completed(all, "submit") == 2).await;
    let busy = shipped.get("http://127.0.0.1:8700/api/v1/messages?control_id=LAB-0002&target=vendor").await;
    assert_eq!(busy["messages"][0]["attempts"], 4);

    // Stop the vendor, watch the retry, kill everything, start again, watch it drain.
    shipped.post("http://127.0.0.1:8701/api/v1/items/api/stop").await;
    shipped.walk("septet send mllp://127.0.0.1:2575 productions/lab-results/messages/oru.hl7");
    let waiting = |all: &Value| {
        let queue = all["queues"].as_array()?.iter().find(|queue| queue["item"] == "vendor")?.clone();
        Some(queue["depth"] == 1 && queue["head"]["last_error"].is_string())
    };
    shipped
        .until("the queue waits", "http://127.0.0.1:8700/api/v1/queues", |all| waiting(all) == Some(true))
        .await;
    shipped.kill();
    shipped.spawn(&["run", "productions/lab-results", "productions/vendor"]);
    shipped
        .until("it waits again", "http://127.0.0.1:8700/api/v1/queues", |all| waiting(all) == Some(true))
        .await;
    shipped
        .until("api is still stopped", "http://127.0.0.1:8701/api/v1/items", |all| {
            all["items"]
                .as_array()
                .is_some_and(|all| all.iter().any(|item| item["name"] == "api" && item["state"] == "stopped"))
        })
        .await;
    shipped.post("http://127.0.0.1:8701/api/v1/items/api/start").await;
    shipped.until("it drains", items, |all| completed(all, "submit") == 3).await;
    assert!(text(&shipped.walk("septet items")).contains("vendor"));
}

#[test]
fn the_shipped_productions_have_no_problems_and_pass_their_tests() {
    let shipped = Shipped::new();
    let folders = std::fs::read_dir(root().join("productions")).expect("a folder").flatten();
    let productions = folders.filter(|entry| entry.path().join("production.toml").is_file());
    let all: Vec<_> =
        productions.map(|entry| format!("productions/{}", entry.file_name().to_string_lossy())).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let checked = shipped.command(&[&["check"], &all[..]].concat()).output().expect("the binary runs");
    assert!(checked.status.success(), "{}", text(&checked));
    assert!(!text(&checked).contains("warning S"), "{}", text(&checked));
    let tested = shipped.command(&[&["test"], &all[..]].concat()).output().expect("the binary runs");
    assert!(tested.status.success(), "{}", text(&tested));
    assert!(text(&tested).contains(" passed, 0 failed"), "{}", text(&tested));
}

/// The forum's first thread: the second message calls for no token.
#[test]
fn o_01_the_explicit_token_flow_asks_for_a_token_only_when_it_has_none() {
    let shipped = Shipped::new();
    let tested = shipped.command(&["test", "productions/token-by-hand"]).output().expect("the binary runs");
    assert!(tested.status.success(), "{}", text(&tested));
    assert!(text(&tested).contains(" passed, 0 failed"), "{}", text(&tested));
}

#[test]
fn every_command_that_the_readme_shows_exists() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let mut seen = 0;
    for line in readme.lines().filter(|line| line.starts_with("septet ")) {
        let command = line.split_whitespace().nth(1).expect("a command");
        let help =
            Command::new(env!("CARGO_BIN_EXE_septet")).args([command, "--help"]).output().expect("runs");
        assert!(help.status.success(), "{line}");
        for path in line.split_whitespace().filter(|word| word.starts_with("productions/")) {
            // A production's `data` is there once it has run.
            let shipped = path.trim_end_matches("/data");
            assert!(root().join(shipped).exists(), "{line}: there is no {path}");
        }
        seen += 1;
    }
    assert!(seen >= 5, "the walk has its commands");
    assert!(readme.contains("cargo run --release -- run productions/lab-results productions/vendor"));
    assert!(readme.contains("cargo test --workspace"));
}
