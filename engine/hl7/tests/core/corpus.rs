//! The corpus of real-looking messages: everything is kept, and the re-encoded ones read as the text they were made from.

use bytes::Bytes;
use septet_hl7::ack::{AckCode, AckSpec, build_ack, read_ack};
use septet_hl7::batch::{Batch, is_batch};
use septet_hl7::{Message, ParseError};
use serde_json::Value;

use crate::seeds;

#[test]
fn every_file_keeps_its_bytes_and_gets_an_answer() {
    for (path, bytes) in seeds::files(&[]) {
        let bytes = Bytes::from(bytes);
        let parts: Vec<u8> =
            Batch::split(&bytes).parts().iter().flat_map(|part| part.bytes.to_vec()).collect();
        assert_eq!(parts, bytes, "{}", path.display());
        let message = match Message::parse(bytes.clone()) {
            Ok(message) => message,
            Err(ParseError::Batch) => {
                assert!(is_batch(&bytes));
                continue;
            }
            Err(problem) => {
                let malformed = path.parent().is_some_and(|folder| folder.ends_with("malformed"));
                assert!(malformed, "{}: {problem}", path.display());
                continue;
            }
        };
        assert_eq!(message.raw(), &bytes);
        let ack = build_ack(Some(&message), &AckSpec::new(AckCode::AA, "1", "20260101"));
        let ack = read_ack(&ack).unwrap();
        assert_eq!(ack.control_id, message.control_id(), "{}", path.display());
    }
}

#[test]
fn well_formed_files_have_no_findings_about_their_segments() {
    let folders = ["simhospital", "prime-reportstream", "cdc-data-exchange", "fhir-converter", "ruby-hl7"];
    for (path, bytes) in seeds::files(&folders) {
        let message = Message::parse(Bytes::from(bytes)).unwrap();
        let codes: Vec<&str> = message.findings().iter().map(|finding| finding.code).collect();
        let expected = [
            "charset.",
            "header.encoding_characters",
            "message.blank_lines",
            "message.line_ends",
            "message.trailing_bytes",
        ];
        let other: Vec<&&str> =
            codes.iter().filter(|code| !expected.iter().any(|e| code.starts_with(e))).collect();
        assert!(other.is_empty(), "{}: {other:?}", path.display());
    }
}

#[test]
fn reencoded_files_read_as_the_text_they_were_made_from() {
    let Some(corpus) = seeds::corpus() else { return };
    let folder = corpus.join("charset-derived");
    let Ok(index) = std::fs::read(folder.join("index.json")) else { return };
    let index: Vec<Value> = serde_json::from_slice(&index).unwrap();
    assert!(!index.is_empty());
    for entry in index {
        let file = entry["file"].as_str().unwrap();
        let bytes = Bytes::from(std::fs::read(corpus.join(file)).unwrap());
        let message = Message::parse(bytes.clone()).unwrap();
        assert_eq!(message.value("PID-5").unwrap(), entry["name"].as_str().unwrap(), "{file}");
        let expected = entry["type"].as_str().unwrap();
        assert!(expected.starts_with(&*message.message_type()), "{file}");

        let path = "PID-5.2".parse().unwrap();
        let name = message.get(&path);
        let edited = message.set(&path, "x|^").unwrap();
        assert_eq!(edited.get(&path), "x|^", "{file}");
        assert_eq!(edited.set(&path, &name).unwrap().raw(), &bytes, "{file}: set back");
    }
}
