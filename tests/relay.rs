//! MLLP in, MLLP out, with our own `send` and `listen` at the ends: what receivers get wrong loses nothing and
//! keeps the order, and both commands tell the truth in their exit codes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{Septet, free_port};

const MESSAGE: &str = "MSH|^~\\&|LAB|KH|EPD|KH|20261122||ADT^A01|M|P|2.5\rPID|1||4711^^^KH||Mueller^Hans\r";

fn septet(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_septet"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts `septet listen` and waits until it listens.
fn listen(port: u16, more: &[&str]) -> Child {
    let url = format!("mllp://127.0.0.1:{port}");
    let mut child = septet(&[&["listen", &url, "--json"], more].concat()).spawn().expect("the binary starts");
    let mut line = String::new();
    let stderr = child.stderr.as_mut().expect("a pipe");
    BufReader::new(stderr).read_line(&mut line).expect("it says where it listens");
    assert!(line.starts_with("listening on"), "{line}");
    child
}

/// What `septet listen` printed: the messages, and the counts at the end.
fn received(listener: Child) -> (Vec<Value>, Value) {
    let output = listener.wait_with_output().expect("it ends by itself");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("JSON");
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let counts = lines.pop().expect("the counts");
    (lines, counts)
}

fn send(port: u16, more: &[&str]) -> Output {
    let url = format!("mllp://127.0.0.1:{port}");
    let mut child =
        septet(&[&["send", &url, "-", "--json"], more].concat()).spawn().expect("the binary starts");
    child.stdin.take().expect("a pipe").write_all(MESSAGE.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_misbehaves_loses_nothing_and_keeps_the_order() {
    let (inbound, outbound) = (free_port(), free_port());
    // The first twelve messages meet a fault or are repeats after one.
    let faults = ["no-ack", "close", "wrong-id", "nak=AR", "slow=20ms", "ack"];
    let script: Vec<&str> = faults.iter().flat_map(|fault| ["--fault", fault]).collect();
    // An answer that is late makes it try again, too: the limit is far from what a slow machine takes for one.
    // Four of the six kinds make the sender try again: 12 messages are 4 deliveries and 8 repeats.
    let listener = listen(outbound, &[&script[..], &["--times", "12", "--count", "48"]].concat());
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
[operations.out]
type = "hl7.mllp"
connect = "127.0.0.1:{outbound}"
response_timeout = "3s"
retry_interval = "20ms"
"#
    ))
    .await;
    let sent = send(inbound, &["--repeat", "40", "--expect", "AA"]);
    assert_eq!((sent.status.code(), &json(&sent)["acknowledged"]), (Some(0), &Value::from(40)));

    let (messages, counts) = tokio::task::spawn_blocking(|| received(listener)).await.expect("it ends");
    assert_eq!(counts["received"], 48);
    let mut last = 0;
    for message in &messages {
        let id = message["control_id"].as_str().expect("an id");
        let number: u32 = id.strip_prefix("M-").and_then(|number| number.parse().ok()).expect("our ids");
        assert!(number == last || number == last + 1, "{id} came after M-{last}");
        last = number;
    }
    assert_eq!(last, 40);
    septet.until("/api/v1/items", |all| all["items"][1]["completed"] == 40).await;
    let events = septet.get("/api/v1/events?kind=ack.stray").await;
    assert!(!events["events"].as_array().expect("a list").is_empty(), "the wrong id was not counted");
    assert!(!septet.log().contains("4711"), "patient data in the log");
}

#[test]
fn send_says_in_its_exit_code_what_became_of_the_messages() {
    let port = free_port();
    assert_eq!(send(port, &[]).status.code(), Some(3), "nobody listens");
    let missing = septet(&["send", &format!("mllp://127.0.0.1:{port}"), "/no/such/file"]).output();
    assert_eq!(missing.expect("the binary runs").status.code(), Some(2));

    let refusing = listen(port, &["--fault", "nak", "--count", "2"]);
    assert_eq!(send(port, &[]).status.code(), Some(0), "a negative answer is an answer");
    let unexpected = send(port, &["--expect", "AA"]);
    assert_eq!((unexpected.status.code(), &json(&unexpected)["unexpected"]), (Some(1), &Value::from(1)));
    drop(received(refusing));

    let port = free_port();
    let silent = listen(port, &["--fault", "no-ack", "--count", "1"]);
    let unanswered = send(port, &["--timeout", "200ms"]);
    assert_eq!((unanswered.status.code(), &json(&unanswered)["missing"]), (Some(1), &Value::from(1)));
    drop(received(silent));

    let port = free_port();
    let wrong = listen(port, &["--fault", "wrong-id", "--count", "1"]);
    let unmatched = send(port, &["--timeout", "3s"]);
    assert_eq!((unmatched.status.code(), &json(&unmatched)["unmatched"]), (Some(1), &Value::from(1)));
    drop(received(wrong));
}
