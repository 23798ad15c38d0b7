//! No answer before the store has the message, and none twice: what senders are told while the store is slow,
//! full or gone, and about messages that have been here before.

use super::*;
use crate::hl7_common::testing::replied;

#[tokio::test]
async fn no_ack_leaves_before_the_message_is_on_stable_storage() {
    let bench = bench(|_| {}).await;
    bench.desk.syncing.send_replace(false);
    let mut sender = bench.connect().await;
    sender.send(&frame("M1")).await;
    bench.desk.until(1).await;
    assert!(sender.stream.try_read(&mut [0; 16]).is_err(), "answered before it was durable");
    bench.desk.syncing.send_replace(true);
    assert_eq!(sender.told().await, "AA M1");
}

#[tokio::test]
async fn an_answer_that_gets_too_old_is_not_given() {
    let bench = bench(|_| {}).await;
    bench.desk.syncing.send_replace(false);
    let mut sender = bench.connect().await;
    sender.send(&frame("M1")).await;
    bench.desk.until(1).await;
    assert_eq!(bench.as_time_passes(Duration::from_secs(1), sender.told()).await, "closed");
}

#[tokio::test]
async fn a_full_store_is_told_once_and_the_listener_closes_until_it_accepts() {
    // While it is closed nobody else is given its port.
    let listen = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let bench = bench(|settings| settings.listen = listen).await;
    let mut sender = bench.connect().await;
    bench.desk.open.send_replace(false);
    sender.send(&[frame("M1"), frame("M2")].concat()).await;
    assert_eq!(sender.told().await, "AR M1");
    assert_eq!(sender.told().await, "closed");
    while TcpStream::connect(bench.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    bench.desk.open.send_replace(true);
    while TcpStream::connect(bench.address).await.is_err() {
        tokio::task::yield_now().await;
    }
    let mut again = bench.connect().await;
    again.send(&frame("M1")).await;
    assert_eq!(again.told().await, "AA M1");
    assert_eq!(bench.desk.ids(), ["M1"]);
}

#[tokio::test]
async fn when_unavailable_answer_says_ar_each_time() {
    let bench = bench(|settings| settings.when_unavailable = WhenUnavailable::Answer).await;
    bench.desk.open.send_replace(false);
    let mut sender = bench.connect().await;
    for id in ["M1", "M2"] {
        sender.send(&frame(id)).await;
        assert_eq!(sender.told().await, format!("AR {id}"));
    }
    bench.desk.open.send_replace(true);
    sender.send(&frame("M1")).await;
    assert_eq!(sender.told().await, "AA M1");
}

#[tokio::test]
async fn a_duplicate_is_accepted_by_default_and_answered_again_where_asked() {
    let accepting = bench(|_| {}).await;
    let mut sender = accepting.connect().await;
    sender.send(&[frame("M1"), frame("M1")].concat()).await;
    assert_eq!((sender.told().await, sender.told().await), ("AA M1".into(), "AA M1".into()));
    assert_eq!(accepting.desk.ids(), ["M1", "M1"]);

    let again = bench(|settings| settings.duplicates = Some(DuplicatePolicy::AnswerAgain)).await;
    let mut sender = again.connect().await;
    sender.send(&frame("M1")).await;
    let first = sender.frame().await.unwrap();
    let mut other = again.connect().await;
    other.send(&frame("M1")).await;
    assert_eq!(other.frame().await.unwrap(), first, "another answer");
    // Same control id, other content: another message.
    other.send(&framed(&format!("{}NTE|1\r", message("M1")))).await;
    assert_eq!(other.told().await, "AA M1");
    assert_eq!(again.desk.ids(), ["M1", "M1"]);
    // Forgotten after a day.
    again.desk.clock.advance(Duration::from_secs(24 * 3600 + 1));
    sender.send(&frame("M1")).await;
    assert_ne!(sender.frame().await.unwrap(), first);
    assert_eq!(again.desk.ids().len(), 3);
}

#[tokio::test]
async fn a_duplicate_of_a_message_that_is_not_durable_yet_is_not_answered_either() {
    let bench = bench(|settings| settings.duplicates = Some(DuplicatePolicy::AnswerAgain)).await;
    bench.desk.syncing.send_replace(false);
    let mut first = bench.connect().await;
    first.send(&frame("M1")).await;
    bench.desk.until(1).await;
    assert_eq!(bench.as_time_passes(Duration::from_secs(1), first.told()).await, "closed");
    let mut second = bench.connect().await;
    second.send(&frame("M1")).await;
    while bench.desk.events().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(second.stream.try_read(&mut [0; 16]).is_err(), "answered before it was durable");
    bench.desk.syncing.send_replace(true);
    assert_eq!(second.told().await, "AA M1");
    assert_eq!(bench.desk.ids(), ["M1"]);
}

#[tokio::test]
async fn a_duplicate_is_refused_where_asked() {
    let bench = bench(|settings| settings.duplicates = Some(DuplicatePolicy::Refuse)).await;
    let mut sender = bench.connect().await;
    sender.send(&[frame("M1"), frame("M1")].concat()).await;
    assert_eq!(sender.told().await, "AA M1");
    let text = String::from_utf8(sender.frame().await.unwrap().to_vec()).unwrap();
    assert!(text.contains("MSA|AE|M1|") && text.contains("205^Duplicate key identifier"), "{text}");
    assert_eq!(bench.desk.ids(), ["M1", "!M1"]);
}

#[tokio::test]
async fn a_copy_of_a_message_still_worked_on_waits_for_its_answer() {
    let bench = bench(|settings| settings.ack = AckMode::Application).await;
    bench.desk.replies(|_| replied("MSH|^~\\&|PEER||||||ACK|7|P|2.5\rMSA|AA|M1\r"));
    bench.desk.replying.send_replace(false);
    let (mut first, mut second) = (bench.connect().await, bench.connect().await);
    first.send(&frame("M1")).await;
    bench.desk.until(1).await;
    second.send(&frame("M1")).await;
    while bench.desk.events().is_empty() {
        tokio::task::yield_now().await;
    }
    bench.desk.replying.send_replace(true);
    let answer = first.frame().await.unwrap();
    assert_eq!(second.frame().await.unwrap(), answer);
    second.send(&frame("M1")).await;
    assert_eq!(second.frame().await.unwrap(), answer);
    assert_eq!(bench.desk.ids(), ["M1"], "processed again");
}
