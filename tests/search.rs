//! Searches on the real binary: text in many bodies, and a client that does not wait for its answer.

use axum::response::IntoResponse as _;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::mllp::{Client, oru};
use crate::support::scripted::Scripted;
use crate::support::{Septet, free_port};

const CLIENTS: usize = 8;
const EACH: usize = 250;
/// What makes a message long.
const NOTE: usize = 50_000;

/// Long messages that wait for a peer that is not there.
async fn long_messages() -> Septet {
    let (inbound, outbound) = (free_port(), free_port());
    let septet = Septet::start(&format!(
        r#"
[production]
name = "search"
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
"#
    ))
    .await;
    let send = |client: usize| async move {
        let mut connection = Client::connect(inbound).await;
        for number in 0..EACH {
            let message = oru(&format!("C{client}-{number}"), "A", "M");
            let ack = connection.send(&format!("{message}NTE|1||{}\r", "lorem ".repeat(NOTE / 6))).await;
            assert!(ack.contains("MSA|AA"), "{ack}");
        }
    };
    let senders: Vec<_> = (0..CLIENTS).map(|client| tokio::spawn(send(client))).collect();
    for sender in senders {
        sender.await.unwrap();
    }
    septet
}

/// How many bytes of bodies searches for text have read.
async fn searched(septet: &Septet) -> u64 {
    let metrics = reqwest::get(septet.url("/metrics")).await.unwrap().text().await.unwrap();
    let line = metrics.lines().find(|line| line.starts_with("septet_store_text_searched_bytes_total"));
    line.and_then(|line| line.split_whitespace().last()).map_or(0, |number| number.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_for_text_ends_when_its_client_goes_away() {
    let septet = long_messages().await;
    let question = json!({ "q": "nowhere to be found" }).to_string();
    let address = septet.url("").trim_start_matches("http://").to_owned();
    let mut client = TcpStream::connect(&address).await.unwrap();
    let request = format!(
        "POST /api/v1/messages/search HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{question}",
        question.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut read = 0;
    while read == 0 {
        read = searched(&septet).await;
    }
    drop(client);
    // A whole search after it: what the first one went on reading would be counted, too.
    let mut question = json!({ "q": "nowhere to be found", "limit": 50 });
    loop {
        let (status, page) = septet.post("/api/v1/messages/search", question.clone()).await;
        assert_eq!((status, &page["messages"]), (200, &json!([])), "{page}");
        if page["next"] == Value::Null {
            break;
        }
        // In a slow build it stops at its bound of time, and says so.
        assert!(page["incomplete"].is_string(), "{page}");
        question["cursor"] = page["next"].clone();
    }
    let total = (CLIENTS * EACH * NOTE) as u64;
    let all = searched(&septet).await;
    assert!(all >= total, "the second search read everything: {all}");
    assert!(all < total + total / 4 * 3, "the first read {} of {total} bytes", all - total);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_say_what_a_list_lacks() {
    let answer = |lag: u64, incomplete: Option<&'static str>| {
        Scripted::start(move |_| {
            let page = json!({ "messages": [], "next": null, "index_lag_ms": lag, "incomplete": incomplete });
            axum::Json(page).into_response()
        })
    };
    let run = |port: u16, arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_septet"));
        command.args(arguments).args(["--url", &format!("http://127.0.0.1:{port}")]);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let whole = answer(0, None).await;
    assert_eq!(run(whole.port, &["messages"]), (Some(0), String::new()));
    let behind = answer(7, None).await;
    let (code, said) = run(behind.port, &["messages"]);
    assert!(code == Some(0) && said.contains("the index is being made again"), "{code:?} {said}");
    let (code, said) = run(behind.port, &["messages", "--export", "-"]);
    assert!(code == Some(1) && said.contains("the index is being made again"), "{code:?} {said}");
    let stopped = answer(0, Some("bodies were searched back to noon")).await;
    let (code, said) = run(stopped.port, &["messages", "--q", "x"]);
    assert!(code == Some(0) && said.contains("bodies were searched back to noon"), "{code:?} {said}");
}
