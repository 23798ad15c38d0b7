use bytes::Bytes;

use super::*;
use crate::batch::Batch;
use crate::{Charset, Message};

fn message(text: &str) -> Message {
    Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

fn spec(code: AckCode) -> AckSpec<'static> {
    AckSpec::new(code, "S1", "20261122101500")
}

fn build(original: Option<&str>, spec: &AckSpec<'_>) -> String {
    let original = original.map(message);
    let bytes = build_ack(original.as_ref(), spec);
    String::from_utf8(bytes.to_vec()).unwrap().replace('\r', "\n")
}

const ORU: &str =
    "MSH|^~\\&|LAB^1.2^ISO|H1|EHR|H2|20260101||ORU^R01^ORU_R01|A\\T\\7|T|2.5.1|||AL|NE||8859/1\rPID|1";

#[test]
fn sender_and_receiver_change_places_and_the_rest_is_echoed() {
    insta::assert_snapshot!(build(Some(ORU), &spec(AckCode::AA)), @r#"
MSH|^~\&|EHR|H2|LAB^1.2^ISO|H1|20261122101500||ACK^R01^ACK|S1|T|2.5.1||||||8859/1
MSA|AA|A\T\7
"#);
}

#[test]
fn errors_have_the_form_of_their_version() {
    let at: Path = "PID-3[2].4".parse().unwrap();
    let error = Err0357 { code: "101", text: Some("no | id"), location: Some(&at) };
    let spec = AckSpec { text: Some("PID-3 & more"), error: Some(error), ..spec(AckCode::AE) };
    insta::assert_snapshot!(build(Some(ORU), &spec), @r#"
MSH|^~\&|EHR|H2|LAB^1.2^ISO|H1|20261122101500||ACK^R01^ACK|S1|T|2.5.1||||||8859/1
MSA|AE|A\T\7|PID-3 \T\ more
ERR||PID^1^3^2^4|101^Required field missing^HL70357|E||||no \F\ id
"#);
    let old = ORU.replace("|2.5.1|", "|2.3|");
    insta::assert_snapshot!(build(Some(&old), &spec), @r#"
MSH|^~\&|EHR|H2|LAB^1.2^ISO|H1|20261122101500||ACK^R01|S1|T|2.3||||||8859/1
MSA|AE|A\T\7|PID-3 \T\ more
ERR|PID^1^3^101&no \F\ id&HL70357
"#);
    let nowhere = AckSpec { error: Some(Err0357::new("207")), ..spec };
    insta::assert_snapshot!(build(Some(&old), &nowhere), @r#"
MSH|^~\&|EHR|H2|LAB^1.2^ISO|H1|20261122101500||ACK^R01|S1|T|2.3||||||8859/1
MSA|AE|A\T\7|PID-3 \T\ more
ERR|^^^207&Application internal error&HL70357
"#);
}

#[test]
fn the_message_type_depends_on_the_version() {
    let kind = |version: &str, msh9: &str| {
        let text = format!("MSH|^~\\&|||||||{msh9}|1|P|{version}");
        let ack = message(&build(Some(&text), &spec(AckCode::AA)).replace('\n', "\r"));
        ack.raw_text(&"MSH-9".parse().unwrap())
    };
    assert_eq!(kind("2.1", "ADT^A01"), "ACK");
    assert_eq!(kind("2.2", "ADT^A01"), "ACK^A01");
    assert_eq!(kind("2.3", "ADT^A01"), "ACK^A01");
    assert_eq!(kind("2.3.1", "ADT^A01^ADT_A01"), "ACK^A01^ACK");
    assert_eq!(kind("2.8", "ADT^A01^ADT_A01"), "ACK^A01^ACK");
    assert_eq!(kind("2.5", "ADT"), "ACK");
    assert_eq!(kind("", "ADT^A01"), "ACK^A01^ACK");
    assert_eq!(kind("nonsense", "ADT^A01"), "ACK^A01^ACK");
}

#[test]
fn without_a_header_to_answer_it_is_all_our_own() {
    let error = Err0357 { text: Some("the message does not begin with MSH"), ..Err0357::new("100") };
    let spec = AckSpec { error: Some(error), ..spec(AckCode::AE) };
    insta::assert_snapshot!(build(None, &spec), @r#"
MSH|^~\&|SEPTET||||20261122101500||ACK|S1|P|2.5.1
MSA|AE|
ERR|||100^Segment sequence error^HL70357|E||||the message does not begin with MSH
"#);
}

#[test]
fn delimiters_and_charset_are_the_originals() {
    let custom = build(
        Some("MSH#*!@%#A#B#C#D###ADT*A01#7#P#2.4"),
        &AckSpec { text: Some("a#b"), ..spec(AckCode::AR) },
    );
    assert_eq!(custom, "MSH#*!@%#C#D#A#B#20261122101500##ACK*A01*ACK#S1#P#2.4\nMSA#AR#7#a@F@b\n");
    let bare = build(Some("MSH|^~|A|B|||||ADT|7"), &AckSpec { text: Some("a|b\r"), ..spec(AckCode::AE) });
    assert!(bare.ends_with("MSA|AE|7|ab\n"), "{bare}");

    let latin =
        Message::parse(Bytes::from_static(b"MSH|^~\\&|K\xf6ln||||||ADT|\xe9|P|2.5||||||8859/1")).unwrap();
    let ack = build_ack(Some(&latin), &AckSpec { text: Some("über 患"), ..spec(AckCode::AE) });
    assert!(ack.windows(6).any(|w| w == b"|K\xf6ln|"));
    assert!(ack.ends_with(b"MSA|AE|\xe9|\xfcber ?\r"));

    let wide: Vec<u8> = "MSH|^~\\&|A||||||ADT|7|P|2.5".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let wide = Message::parse(Bytes::from(wide)).unwrap();
    let ack = Message::parse(build_ack(Some(&wide), &spec(AckCode::AA))).unwrap();
    assert_eq!(ack.charset(), Charset::UTF_16LE);
    assert_eq!(ack.value("MSA-2").unwrap(), "7");
}

#[test]
fn a_batch_is_answered_by_a_batch() {
    let batch = Batch::split(&Bytes::from_static(
        b"BHS|^~\\&|A|B|C|D|1||||77\rMSH|^~\\&|A|B|C|D|1||ADT^A01|1|P|2.5\rMSH|^~\\&|A\rBTS|2\r",
    ));
    let first = message("MSH|^~\\&|A|B|C|D|1||ADT^A01|1|P|2.5");
    let children =
        [(Some(&first), spec(AckCode::AA)), (None, AckSpec { control_id: "S2", ..spec(AckCode::AE) })];
    let bytes = build_batch_ack(&batch, &children, "B1", "20261122101500");
    insta::assert_snapshot!(String::from_utf8(bytes.to_vec()).unwrap().replace('\r', "\n"), @r#"
BHS|^~\&|C|D|A|B|20261122101500||||B1|77
MSH|^~\&|C|D|A|B|20261122101500||ACK^A01^ACK|S1|P|2.5
MSA|AA|1
MSH|^~\&|SEPTET||||20261122101500||ACK|S2|P|2.5.1
MSA|AE|
BTS|2
"#);
    assert_eq!(read_ack(&bytes).unwrap().control_id, "1");
    assert_eq!(Batch::split(&bytes).declared_count(), Some(2));
    assert!(Batch::split(&bytes).findings().is_empty());
}

#[test]
fn what_is_built_is_read_back() {
    let at: Path = "PID-3".parse().unwrap();
    for (version, code) in [("2.3", AckCode::AR), ("2.5.1", AckCode::CE)] {
        let original = message(&ORU.replace("|2.5.1|", &format!("|{version}|")));
        let error = Err0357 { code: "205", text: Some("seen"), location: Some(&at) };
        let bytes =
            build_ack(Some(&original), &AckSpec { text: Some("a|b"), error: Some(error), ..spec(code) });
        let ack = read_ack(&bytes).unwrap();
        assert_eq!(ack.known_code(), Some(code));
        assert_eq!((ack.control_id.as_str(), ack.text.as_str()), ("A&7", "a|b"));
        assert_eq!(ack.control_id, original.control_id());
        assert_eq!(ack.errors, ["205"]);
    }
}

#[test]
fn acknowledgements_are_read_leniently() {
    let read = |bytes: &[u8]| read_ack(bytes).map(|ack| (ack.code, ack.control_id));
    let expect = Ok((String::from("AA"), String::from("7")));
    assert_eq!(read(b"\x0bMSH|^~\\&|A\rMSA|AA|7\r\x1c\r"), expect);
    assert_eq!(read(b"MSH|^~\\&|A\nMSA|AA|7"), expect);
    assert_eq!(read(b"\r\nMSH|^~\\&|A\rERR|\rMSA|AA|7||||"), expect);
    assert_eq!(read(b"MSH|^~\\&|A\rMSA"), Ok((String::new(), String::new())));
    assert_eq!(read(b"MSH|^~\\&|A\rPID|1"), Err(NotAnAck::NoMsa));
    assert_eq!(read(b"HTTP/1.1 200 OK"), Err(NotAnAck::NotHl7));
    assert_eq!(read(b""), Err(NotAnAck::NotHl7));
    assert_eq!(read_ack(b"MSH|^~\\&|\rMSA|ok|7").unwrap().known_code(), None);
    let debug = format!("{:?}", read_ack(b"MSH|^~\\&|\rMSA|AE|7|SECRET").unwrap());
    assert!(!debug.contains("SECRET"));
}

#[test]
fn headers_are_recovered_from_what_cannot_be_parsed() {
    let id = |bytes: &[u8]| recover_header(bytes).map(|header| header.control_id().into_owned());
    assert_eq!(id(b"MSH|^~\\&|A|B|||||ADT|77|P\rPID|cut o"), Some(String::from("77")));
    assert_eq!(id(b"garbage MSH|^~\\&|A|B|||||ADT|77"), Some(String::from("77")));
    assert_eq!(id(b"PID|1\rMSH MSH|^~\\&|A|B|||||ADT|78"), Some(String::from("78")));
    assert_eq!(id(b"MSH||A"), None);
    assert_eq!(id(b"nothing"), None);
}

#[test]
fn codes_are_written_and_read() {
    for code in ["AA", "AE", "AR", "CA", "CE", "CR"] {
        assert_eq!(code.parse::<AckCode>().unwrap().as_str(), code);
    }
    assert_eq!("XX".parse::<AckCode>(), Err(UnknownAckCode));
    assert_eq!(AckCode::AR.commit(), AckCode::CR);
    assert!(AckCode::CA.is_positive() && !AckCode::AE.is_positive());
}
