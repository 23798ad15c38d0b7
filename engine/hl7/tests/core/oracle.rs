//! hl7-parser as a second opinion on clean messages: every value of every level must be where it says.
//!
//! Only its `parse` is trusted, and only where it took the whole input (it drops what follows a line it does not
//! understand). It must never be asked to decode or display: both panic or corrupt on text beside escapes.

use std::fmt::Write as _;

use bytes::Bytes;
use proptest::prelude::*;
use septet_hl7::Message;

use crate::seeds;

/// Compares all levels; false where the oracle did not take the message whole.
fn agrees(text: &str) -> bool {
    let Ok(theirs) = hl7_parser::Message::parse(text) else { return false };
    if theirs.raw_value().len() != text.trim_end_matches('\r').len() && theirs.raw_value().len() != text.len()
    {
        return false;
    }
    let ours = Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap();
    let names: Vec<&str> = theirs.segments().map(|segment| segment.name).collect();
    assert_eq!(ours.segment_names().collect::<Vec<_>>(), names);
    for (segment, own) in theirs.segments().zip(ours.segments()) {
        let raw = |path: &str| std::str::from_utf8(own.raw_at(&path.parse().unwrap())).unwrap();
        let base = segment.name;
        for (field, number) in segment.fields().zip(1..) {
            if segment.name == "MSH" && number <= 2 {
                continue;
            }
            let mut at = format!("{base}-{number}[*]");
            assert_eq!(raw(&at), field.raw_value(), "{at}");
            for (repeat, r) in field.repeats().zip(1..) {
                at = format!("{base}-{number}[{r}]");
                assert_eq!(raw(&at), repeat.raw_value(), "{at}");
                // A value without parts is its own first component; once is enough.
                let parts = repeat.components().zip(1..).filter(|_| repeat.raw_value().contains(['^', '&']));
                for (component, c) in parts {
                    let at = format!("{at}.{c}");
                    assert_eq!(raw(&at), component.raw_value(), "{at}");
                    for (sub, s) in component.subcomponents().zip(1..) {
                        let at = format!("{at}.{s}");
                        assert_eq!(raw(&at), sub.value, "{at}");
                    }
                }
            }
        }
    }
    true
}

#[test]
fn clean_corpus_files_are_read_alike() {
    let folders = [
        "simhospital",
        "prime-reportstream",
        "cdc-data-exchange",
        "fhir-converter",
        "cdc-trusted-intermediary",
        "cosyte-hl7",
        "ruby-hl7",
        "hl7v2-fhir-converter",
    ];
    let files = seeds::files(&folders);
    let clean: Vec<_> = files
        .iter()
        .filter_map(|(_, bytes)| std::str::from_utf8(bytes).ok())
        .filter(|text| text.starts_with("MSH|^~\\&|") && !text.contains('\n') && !text.contains("\r\r"))
        .collect();
    let compared = clean.iter().filter(|text| agrees(text)).count();
    assert!(compared * 10 >= clean.len() * 9, "{compared} of {} compared", clean.len());
}

#[test]
fn our_own_clean_messages_are_read_alike() {
    let seeds = seeds::synthetic();
    let first = std::str::from_utf8(&seeds[0]).unwrap();
    assert!(agrees(first));
}

fn part() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 éü患\"\\.]{0,6}|\\\\[FSTRE]\\\\"
}

fn joined(
    part: impl Strategy<Value = String>,
    separator: &'static str,
    most: usize,
) -> impl Strategy<Value = String> {
    prop::collection::vec(part, 1..most).prop_map(move |parts| parts.join(separator))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn generated_clean_messages_are_read_alike(
        segments in prop::collection::vec(
            ("[A-Z][A-Z0-9]{2}", joined(joined(joined(joined(part(), "&", 3), "^", 4), "~", 3), "|", 8)), 0..8),
    ) {
        let mut text = String::from("MSH|^~\\&|A|B|C|D|20260101||ADT^A01^ADT_A01|1|P|2.5");
        for (name, fields) in segments.iter().filter(|(name, _)| name != "MSH" && name != "BHS" && name != "FHS") {
            write!(text, "\r{name}|{fields}").unwrap();
        }
        prop_assert!(agrees(&text), "the oracle refuses {text:?}");
    }
}
