//! kill -9 under load: what was acknowledged is delivered, byte for byte and in order; nothing is invented.

use std::collections::BTreeSet;

use crate::support::mllp::{Client, Receiver, msa, oru};
use crate::support::{Septet, free_port};

fn rounds() -> usize {
    std::env::var("SEPTET_CRASH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// Sends until the connection breaks; returns the control ids that were acknowledged.
async fn sender(port: u16, name: String, stop: tokio_util::sync::CancellationToken) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut client = Client::connect(port).await;
    for n in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let id = format!("{name}-{n}");
        if client.write(&Client::frame(oru(&id, &id, &name).as_bytes())).await.is_err() {
            break;
        }
        let Some(ack) = client.read().await else { break };
        assert_eq!(msa(&ack), ("AA".to_owned(), id.clone()));
        acknowledged.push(id);
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_is_never_lost_over_kill_9() {
    let (inbound, outbound) = (free_port(), free_port());
    let receiver = Receiver::listen(outbound).await;
    let mut septet = Septet::write(&format!(
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
targets = ["router"]
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
    ));
    let mut acknowledged = Vec::new();
    for round in 0..rounds() {
        septet.run().await;
        let stop = tokio_util::sync::CancellationToken::new();
        let senders: Vec<_> =
            (0..4).map(|s| tokio::spawn(sender(inbound, format!("R{round}S{s}"), stop.clone()))).collect();
        let moment = std::time::Duration::from_millis(30 + (round as u64 * 37) % 170);
        tokio::time::sleep(moment).await;
        septet.kill();
        stop.cancel();
        for sender in senders {
            acknowledged.extend(sender.await.expect("a sender only sees what is right"));
        }
    }
    septet.run().await;
    septet
        .until("/api/v1/queues", |all| {
            all["queues"].as_array().unwrap().iter().all(|queue| queue["depth"] == 0)
        })
        .await;

    let delivered = receiver.bodies.lock().await.clone();
    let id = |body: &String| body.split('|').nth(9).unwrap_or("").to_owned();
    let seen: BTreeSet<String> = delivered.iter().map(id).collect();
    assert!(acknowledged.len() > rounds(), "the load was real: {} acknowledged", acknowledged.len());
    for id in &acknowledged {
        assert!(seen.contains(id), "{id} was acknowledged and never delivered");
    }
    for body in &delivered {
        let id = id(body);
        let name = id.rsplit_once('-').expect("our ids").0.to_owned();
        assert_eq!(body, &oru(&id, &id, &name), "bytes differ");
    }
    // First deliveries are in order per sender, whatever was repeated after a crash.
    let mut last: std::collections::BTreeMap<String, i64> = std::collections::BTreeMap::new();
    let mut first = BTreeSet::new();
    for body in &delivered {
        let id = id(body);
        if first.insert(id.clone()) {
            let (name, n) = id.rsplit_once('-').expect("our ids");
            let n: i64 = n.parse().expect("our ids");
            let before = last.insert(name.to_owned(), n).unwrap_or(-1);
            assert!(n > before, "{id} came after {name}-{before}");
        }
    }
}
