//! The shipped productions, copied into a folder of their own and moved to ports of their own: what the README
//! shows is run as it stands there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{PATIENCE, files_below, free_port};

/// The repository.
pub(crate) fn root() -> &'static Path {
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

/// How this machine is named in them.
const HOSTS: [&str; 2] = ["127.0.0.1:", "localhost:"];

/// The shipped productions in a folder of their own, on ports of their own.
pub(crate) struct Shipped {
    folder: tempfile::TempDir,
    ports: Vec<(String, String)>,
    child: Option<Child>,
}

impl Shipped {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        copy(&root().join("productions"), &folder.path().join("productions"));
        let mut ports = BTreeSet::new();
        for file in files_below(&folder.path().join("productions")) {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let after = HOSTS.iter().flat_map(|host| text.split(host).skip(1));
            let number = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
            ports.extend(after.map(number).filter(|port| (4..=5).contains(&port.len())));
        }
        let ports = ports.into_iter().map(|port| (port, free_port().to_string())).collect();
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
    pub(crate) fn here(&self, text: &str) -> String {
        let mut moved = String::new();
        let mut rest = text;
        // One pass: a new port may be another's old one.
        while let Some((at, host)) = HOSTS.iter().filter_map(|host| Some((rest.find(host)?, host))).min() {
            let (before, after) = rest.split_at(at + host.len());
            let port = after.chars().take_while(char::is_ascii_digit).count();
            let (port, after) = after.split_at(port);
            let known = self.ports.iter().find(|(old, _)| old == port);
            moved.push_str(before);
            moved.push_str(known.map_or(port, |(_, new)| new.as_str()));
            rest = after;
        }
        moved + rest
    }

    pub(crate) fn spawn(&mut self, arguments: &[&str]) {
        let log = std::fs::File::create(self.path("log")).expect("writable");
        let mut command = self.command(arguments);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("the binary starts");
        self.child = Some(child);
    }

    /// Waits until a production's `/readyz` says yes.
    pub(crate) async fn until_ready(&mut self, admin: &str) {
        let deadline = Instant::now() + PATIENCE;
        let url = self.here(&format!("{admin}/readyz"));
        loop {
            if reqwest::get(&url).await.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().expect("a child"));
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "{admin} is not ready ({ended:?}):\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_septet"));
        command.args(arguments.iter().map(|word| self.here(word))).current_dir(self.folder.path());
        command.env("SEPTET_URL", self.here("http://127.0.0.1:8700"));
        command
    }

    /// Runs a line of the README, such as `septet trace 17`.
    pub(crate) fn walk(&self, line: &str) -> Output {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let output = self.command(&words).output().expect("the binary runs");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) async fn get(&self, url: &str) -> Value {
        let answer = reqwest::get(self.here(url)).await.expect("the admin API answers");
        answer.json().await.expect("JSON")
    }

    pub(crate) async fn post(&self, url: &str) {
        let answer = reqwest::Client::new().post(self.here(url)).send().await.expect("the admin API answers");
        assert!(answer.status().is_success(), "{url}: {}", answer.status());
    }

    pub(crate) async fn until(&self, what: &str, url: &str, done: impl Fn(&Value) -> bool) -> Value {
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

    /// What an operation has written into a folder, once that are `count` files or more: whoever handed it the
    /// messages was answered before.
    pub(crate) async fn written(&self, folder: &str, count: usize) -> Vec<PathBuf> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A file on its way has another name, which begins with a dot.
            let mut files = files_below(&self.path(folder));
            files.retain(|file| {
                file.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
            });
            if files.len() >= count {
                return files;
            }
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{count} files in {folder}: {files:?}\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Shipped {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a command printed.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
