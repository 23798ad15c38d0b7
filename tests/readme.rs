//! The README's five-minute walk, on the shipped productions: what it promises a newcomer is what happens.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{PATIENCE, files_below, free_port};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a temporary folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            if !["data", "out", "alerts"].iter().any(|name| from.ends_with(name)) {
                copy(&from, &to);
            }
        } else {
            std::fs::copy(&from, &to).expect("a readable file");
        }
    }
}

/// The shipped productions in a folder of their own, on ports of their own.
struct Shipped {
    folder: tempfile::TempDir,
    ports: Vec<(String, String)>,
    child: Option<Child>,
}

impl Shipped {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        copy(&root().join("productions"), &folder.path().join("productions"));
        let ports = ["2575", "2577", "8780", "8790", "8791", "8700", "8701", "8702"];
        let ports: Vec<_> = ports.iter().map(|port| ((*port).to_owned(), free_port().to_string())).collect();
        let shipped = Shipped { folder, ports, child: None };
        for file in files_below(&shipped.folder.path().join("productions")) {
            if file.ends_with("production.toml") {
                let text = std::fs::read_to_string(&file).expect("text");
                std::fs::write(&file, shipped.here(&text)).expect("writable");
            }
        }
        shipped
    }

    /// A text with the shipped ports replaced by ours.
    fn here(&self, text: &str) -> String {
        let replace = |text: String, (old, new): &(String, String)| {
            text.replace(&format!("127.0.0.1:{old}"), &format!("127.0.0.1:{new}"))
        };
        self.ports.iter().fold(text.to_owned(), replace)
    }

    fn spawn(&mut self, arguments: &[&str]) {
        let log = std::fs::File::create(self.path("log")).expect("writable");
        let mut command = self.command(arguments);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("the binary starts");
        self.child = Some(child);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_septet"));
        command.args(arguments.iter().map(|word| self.here(word))).current_dir(self.folder.path());
        command.env("SEPTET_URL", self.here("http://127.0.0.1:8700"));
        command
    }

    /// Runs a line of the README, such as `septet trace 17`.
    fn walk(&self, line: &str) -> Output {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let output = self.command(&words).output().expect("the binary runs");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn get(&self, url: &str) -> Value {
        let answer = reqwest::get(self.here(url)).await.expect("the admin API answers");
        answer.json().await.expect("JSON")
    }

    async fn post(&self, url: &str) {
        let answer = reqwest::Client::new().post(self.here(url)).send().await.expect("the admin API answers");
        assert!(answer.status().is_success(), "{url}: {}", answer.status());
    }

    async fn until(&self, what: &str, url: &str, done: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(answer) = reqwest::get(self.here(url)).await
                && let Ok(value) = answer.json::<Value>().await
                && done(&value)
            {
                return value;
            }
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "never: {what}\n{log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Shipped {
    fn drop(&mut self) {
        self.kill();
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

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
    let written = files_below(&shipped.path("productions/vendor/out"));
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
    let all = ["productions/lab-results", "productions/vendor", "productions/token-by-hand"];
    let checked = shipped.command(&[&["check"], &all[..]].concat()).output().expect("the binary runs");
    assert!(checked.status.success(), "{}", text(&checked));
    assert!(!text(&checked).contains("warning S"), "{}", text(&checked));
    let tested = shipped.command(&[&["test"], &all[..]].concat()).output().expect("the binary runs");
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
            assert!(root().join(path).exists(), "{line}: there is no {path}");
        }
        seen += 1;
    }
    assert!(seen >= 5, "the walk has its commands");
    assert!(readme.contains("cargo run --release -- run productions/lab-results productions/vendor"));
    assert!(readme.contains("cargo test --workspace"));
}
