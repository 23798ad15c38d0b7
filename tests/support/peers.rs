//! Peers nobody here wrote: packages from npm and pip that `.ci/run` installs below `tests/peers`, each behind
//! a small script there. A script listens on a free port of loopback, says so in one line of JSON on its
//! standard output, `{ "port": 1234, … }`, and ends when its standard input does.
//!
//! Where a package is not installed its tests are skipped, and say so; with `CI` set a skip is a failure.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// A running script; it ends with this value.
pub(crate) struct Peer {
    child: Child,
    /// What it said when it was ready.
    pub(crate) ready: Value,
}

impl Peer {
    /// Starts the Node script `tests/peers/SCRIPT`, which needs npm's `packages`.
    pub(crate) fn node(script: &str, packages: &[&str], arguments: &[&str]) -> Option<Peer> {
        let missing = packages.iter().find(|name| !folder().join("node_modules").join(name).is_dir());
        if let Some(name) = missing {
            return skip(&format!("{script} needs {name}: run `npm ci` in tests/peers"));
        }
        let mut command = Command::new("node");
        command.arg(script).args(arguments);
        Some(Peer::start(command))
    }

    /// Starts the Python script `tests/peers/SCRIPT`, which needs pip's `packages` (their import names).
    pub(crate) fn python(script: &str, packages: &[&str], arguments: &[&str]) -> Option<Peer> {
        let installed = folder().join("python");
        let missing = packages.iter().find(|name| !installed.join(name).is_dir());
        if let Some(name) = missing {
            let how = "run `python3 -m pip install --target python -r requirements.txt` in tests/peers";
            return skip(&format!("{script} needs {name}: {how}"));
        }
        let mut command = Command::new("python3");
        command.arg(script).args(arguments).env("PYTHONPATH", installed);
        Some(Peer::start(command))
    }

    fn start(mut command: Command) -> Peer {
        command.current_dir(folder()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the interpreter is installed");
        let output = child.stdout.take().expect("a pipe");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("a line from the peer");
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the peer said {line:?}"));
        Peer { child, ready }
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> u16 {
        let port = self.ready.get("port").and_then(Value::as_u64);
        port.and_then(|port| u16::try_from(port).ok()).expect("the peer says its port")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `tests/peers`.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

/// Nothing, said loudly; a failure in CI.
pub(crate) fn skip<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os("CI").is_none(), "skipped in CI: {why}");
    eprintln!("SKIPPED: {why}");
    None
}

/// Runs the Node script `tests/peers/SCRIPT` to its end with one JSON argument, trusting `ca`; what it printed.
pub(crate) fn run_node(
    script: &str,
    packages: &[&str],
    argument: &Value,
    ca: Option<&std::path::Path>,
) -> Option<Value> {
    let missing = packages.iter().find(|name| !folder().join("node_modules").join(name).is_dir());
    if let Some(name) = missing {
        return skip(&format!("{script} needs {name}: run `npm ci` in tests/peers"));
    }
    let mut command = Command::new("node");
    command.arg(script).arg(argument.to_string()).current_dir(folder());
    if let Some(ca) = ca {
        command.env("NODE_EXTRA_CA_CERTS", ca);
    }
    let output = command.output().expect("the interpreter is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    Some(
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{script} printed no JSON: {said}")),
    )
}
