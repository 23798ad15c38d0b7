//! What the end-to-end tests stand on: the real binary as a child process, an MLLP client, a client of the
//! admin API, and an independent vendor.

pub(crate) mod authority;
pub(crate) mod issuer;
pub(crate) mod mllp;
pub(crate) mod peers;
pub(crate) mod pki;
mod port;
pub(crate) mod scripted;
pub(crate) mod shipped;
pub(crate) mod vendor;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) use self::port::free_port;

/// How long anything may take before a test gives up on it, also on a slow machine that has more to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A production in a folder of its own, and the binary that runs it.
pub(crate) struct Septet {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) admin: u16,
    child: Option<Child>,
    env: Vec<(String, String)>,
}

impl Septet {
    /// Writes `production` with `{admin}` filled in, without starting it.
    pub(crate) fn write(production: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let admin = free_port();
        let text = production.replace("{admin}", &admin.to_string());
        std::fs::write(folder.path().join("production.toml"), text).expect("the folder is writable");
        Septet { folder, admin, child: None, env: Vec::new() }
    }

    /// Writes and starts a production and waits until it is ready.
    pub(crate) async fn start(production: &str) -> Self {
        let mut septet = Septet::write(production);
        septet.run().await;
        septet
    }

    /// Starts the binary and waits until `/readyz` says yes.
    pub(crate) async fn run(&mut self) {
        self.spawn(&[]);
        self.until_ready().await;
    }

    /// Starts the binary with more arguments of `run`.
    pub(crate) fn spawn(&mut self, more: &[&str]) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the folder is writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_septet"));
        command.arg("run").arg(self.folder.path()).args(more);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        self.child = Some(command.spawn().expect("the binary starts"));
    }

    /// Waits until `/readyz` says yes.
    pub(crate) async fn until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(answer) = reqwest::get(self.url("/readyz")).await
                && answer.status() == 200
            {
                return;
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().expect("a child")) {
                panic!("septet ended with {status}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "septet is not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGKILL, and waits for the process to be gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the process can be killed");
            child.wait().expect("the process ends");
        }
    }

    /// SIGTERM; does not wait.
    pub(crate) fn ask_to_stop(&self) {
        let pid = self.child.as_ref().expect("running").id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().expect("kill exists");
    }

    /// SIGTERM; returns the exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.ask_to_stop();
        let mut child = self.child.take()?;
        child.wait().expect("the process ends").code()
    }

    /// SIGHUP.
    pub(crate) fn hang_up(&self) {
        let pid = self.child.as_ref().expect("running").id().to_string();
        Command::new("kill").args(["-HUP", &pid]).status().expect("kill exists");
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.admin)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.path("septet.log")
    }

    /// All that the process wrote to stdout and stderr.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// GET of the admin API as JSON.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = reqwest::get(self.url(path)).await.expect("the admin API answers");
        let status = answer.status();
        let text = answer.text().await.expect("a body");
        assert!(status.is_success(), "GET {path}: {status} {text}");
        serde_json::from_str(&text).expect("the admin API answers JSON")
    }

    /// POST of the admin API; status and JSON.
    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let request = reqwest::Client::new().post(self.url(path)).json(&body);
        let answer = request.send().await.expect("the admin API answers");
        let status = answer.status().as_u16();
        let text = answer.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// GETs until the answer satisfies `done`.
    pub(crate) async fn until(&self, path: &str, done: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(path).await;
            if done(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "GET {path} never became right: {answer:#}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// The trace of a session once nothing in it is active.
    pub(crate) async fn settled(&self, session: u64) -> Value {
        self.until(&format!("/api/v1/sessions/{session}"), |trace| trace["status"] != "active").await
    }

    /// The legs of a trace as `source>target type status`.
    pub(crate) fn legs(trace: &Value) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let leg = |header: &Value| {
            let (source, target) = (text(&header["source"]), text(&header["target"]));
            format!(
                "{} {source}>{target} {} {}",
                text(&header["kind"]),
                text(&header["type"]),
                text(&header["status"])
            )
        };
        trace["messages"].as_array().expect("a list of headers").iter().map(leg).collect()
    }

    /// Runs another command of the binary against this production's admin API.
    pub(crate) fn command(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_septet"));
        command.args(arguments).env("SEPTET_URL", self.url(""));
        command.output().expect("the binary runs")
    }
}

impl Drop for Septet {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Every file below a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Asserts that no file below `folder` holds any of `secrets` in clear.
pub(crate) fn assert_nowhere(folder: &Path, secrets: &[&str]) {
    for file in files_below(folder) {
        if file.file_name().is_some_and(|name| name == "production.toml") {
            continue;
        }
        let bytes = std::fs::read(&file).expect("a readable file");
        for secret in secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds a secret in clear", file.display());
        }
    }
}
