//! Who is answered, when, with what: the modes, single messages and batches.

use septet_engine::fault::Fault;
use septet_engine::host::ServiceReply;

use super::*;
use crate::hl7_common::testing::replied;

#[tokio::test]
async fn acknowledgements_are_stored_and_never_answered() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    let ack = "MSH|^~\\&|LAB|KH|EPD|KH|20261122||ACK^R01|A1|P|2.5\rMSA|AA|M0\r";
    sender.send(&[framed(ack), framed(&ack.replace("ACK^R01", "MCF")), frame("M1")].concat()).await;
    assert_eq!(sender.told().await, "AA M1");
    assert_eq!(bench.desk.ids(), ["A1", "A1", "M1"]);
}

#[tokio::test]
async fn never_answers_nothing() {
    let bench = bench(|settings| settings.ack = AckMode::Never).await;
    let mut sender = bench.connect().await;
    sender.send(&[framed("HELLO"), frame("M1")].concat()).await;
    sender.stream.shutdown().await.unwrap();
    assert_eq!(sender.told().await, "closed");
    assert_eq!(bench.desk.ids(), ["!", "M1"]);
}

#[tokio::test]
async fn validate_header_refuses_what_lacks_a_control_id() {
    let bench = bench(|settings| settings.validate = Validate::Header).await;
    let mut sender = bench.connect().await;
    sender.send(&frame("")).await;
    let text = String::from_utf8(sender.frame().await.unwrap().to_vec()).unwrap();
    assert!(
        text.contains("MSA|AE||MSH-10 is empty\rERR||MSH^1^10^1|101^Required field missing^HL70357|E"),
        "{text}"
    );
    assert_eq!(bench.desk.ids(), ["!"]);
    // By default it is only a finding.
    let lenient = self::bench(|_| {}).await;
    let mut sender = lenient.connect().await;
    sender.send(&frame("")).await;
    assert_eq!(sender.told().await, "AA ");
    assert_eq!(lenient.desk.findings(), ["MSH-10 is empty"]);
}

#[tokio::test]
async fn msh_gives_a_commit_answer_and_an_application_answer_as_asked() {
    let bench = bench(|settings| settings.ack = AckMode::Msh).await;
    bench.desk.replies(|_| ServiceReply::Reply { body: None, fault: None });
    let mut sender = bench.connect().await;
    let asking = |id: &str, commit: &str, application: &str| {
        framed(&format!("MSH|^~\\&|A|B|C|D|||ADT^A01|{id}|P|2.5|||{commit}|{application}\rPID|1\r"))
    };
    sender.send(&asking("M1", "AL", "AL")).await;
    assert_eq!(sender.told().await, "CA M1");
    assert_eq!(sender.told().await, "AA M1");
    sender.send(&[asking("M2", "NE", "NE"), asking("M3", "ER", ""), asking("M4", "", "")].concat()).await;
    assert_eq!(sender.told().await, "AA M4");
    sender.send(&asking("M5", "AL", "ER")).await;
    assert_eq!(sender.told().await, "CA M5");
    bench.desk.open.send_replace(false);
    sender.send(&asking("M6", "ER", "")).await;
    assert_eq!(sender.told().await, "CR M6");
}

#[tokio::test]
async fn application_passes_the_targets_ack_on_under_our_control_id() {
    let bench = bench(|settings| settings.ack = AckMode::Application).await;
    bench.desk.replies(|body| match body.as_hl7().unwrap().control_id().as_ref() {
        "M1" => replied("MSH|^~\\&|PEER||||||ACK|7|P|2.5\rMSA|AE|S99|not here\rZZZ|x\r"),
        "M2" => ServiceReply::Reply { body: None, fault: None },
        "M3" => replied("MSH|^~\\&|PEER||||||ORU|7|P|2.5\rPID|1\r"),
        "M4" => {
            ServiceReply::Reply { body: None, fault: Some(Fault::new("call", "connect", "the peer is down")) }
        }
        _ => ServiceReply::Timeout,
    });
    let mut sender = bench.connect().await;
    let all: Vec<u8> = ["M1", "M2", "M3", "M4", "M5"].iter().flat_map(|id| frame(id)).collect();
    sender.send(&all).await;
    let forwarded = sender.frame().await.unwrap();
    assert_eq!(forwarded, "MSH|^~\\&|PEER||||||ACK|7|P|2.5\rMSA|AE|M1|not here\rZZZ|x\r");
    assert_eq!(sender.told().await, "AA M2");
    assert_eq!(sender.told().await, "AA M3");
    let failed = sender.frame().await.unwrap();
    assert_eq!(code_and_id(&failed), "AE M4");
    assert!(String::from_utf8_lossy(&failed).contains("the peer is down"));
    assert_eq!(sender.told().await, "AE M5");
}

#[tokio::test]
async fn a_batch_is_one_session_and_gets_one_answer() {
    let bench = bench(|_| {}).await;
    let mut sender = bench.connect().await;
    let ack = message("A1").replace("ORU^R01", "ACK^R01");
    let batch = format!(
        "BHS|^~\\&|LAB|KH|EPD|KH|20261122||||B7\r{}{}{ack}MSH\r{}BTS|5\r",
        message("M1"),
        message("M2"),
        message("M3")
    );
    sender.send(&[framed(&batch), frame("M4")].concat()).await;
    let text = String::from_utf8(sender.frame().await.unwrap().to_vec()).unwrap();
    let segments: Vec<&str> = text.split_terminator('\r').map(|segment| &segment[..3]).collect();
    assert_eq!(segments, ["BHS", "MSH", "MSA", "MSH", "MSA", "MSH", "MSA", "ERR", "MSH", "MSA", "BTS"]);
    let told: Vec<&str> = text.split('\r').filter(|segment| segment.starts_with("MSA")).collect();
    assert_eq!(told[..2], ["MSA|AA|M1", "MSA|AA|M2"]);
    assert!(told[2].starts_with("MSA|AE||") && told[3] == "MSA|AA|M3", "{told:?}");
    assert_eq!(sender.told().await, "AA M4");
    assert_eq!(bench.desk.ids(), ["M1", "M2", "A1", "!", "M3", "M4"]);
    let joined = bench.desk.joined();
    assert!(joined[0].is_none() && joined[1].is_some() && joined[1..5].iter().all(|one| *one == joined[1]));
    assert!(joined[5].is_none());
}

#[tokio::test]
async fn a_batch_waits_for_all_its_replies() {
    let bench = bench(|settings| settings.ack = AckMode::Application).await;
    bench.desk.replies(|body| match body.as_hl7().unwrap().control_id().as_ref() {
        "M2" => replied("MSH|^~\\&|PEER||||||ACK|7|P|2.5\rMSA|AR|M2\r"),
        _ => ServiceReply::Reply { body: None, fault: None },
    });
    let mut sender = bench.connect().await;
    sender.send(&framed(&format!("BHS|^~\\&|LAB\r{}{}BTS|2\r", message("M1"), message("M2")))).await;
    let text = String::from_utf8(sender.frame().await.unwrap().to_vec()).unwrap();
    assert!(text.contains("\rMSA|AA|M1\r") && text.contains("\rMSA|AR|M2\r"), "{text}");
    // Sent again, it is told the same without being processed again.
    sender.send(&framed(&format!("BHS|^~\\&|LAB\r{}{}BTS|2\r", message("M1"), message("M2")))).await;
    let text = String::from_utf8(sender.frame().await.unwrap().to_vec()).unwrap();
    assert!(text.contains("\rMSA|AA|M1\r") && text.contains("\rMSA|AR|M2\r"), "{text}");
    assert_eq!(bench.desk.ids(), ["M1", "M2"]);
}
