use super::*;

fn message(text: &str) -> Message {
    Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

fn of(bytes: &[u8]) -> Message {
    Message::parse(Bytes::copy_from_slice(bytes)).unwrap()
}

fn path(text: &str) -> Path {
    text.parse().unwrap()
}

const ORU: &str = "MSH|^~\\&|LAB|H1|EHR|H2|20260101||ORU^R01^ORU_R01|42|P|2.5\r\
    PID|1||123^^^H^MR~456^^^L||Doe\\T\\Co^Jane||\"\"\r\
    OBX|1|NM|A^Alpha||7|mg\r\
    NTE|1||first\r\
    OBX|2|ST|B||x~y\r\
    OBX|3|ST|C\r";

#[test]
fn values_are_found_by_path() {
    let oru = message(ORU);
    let check = |at: &str, expect: &str| assert_eq!(oru.value(at).unwrap(), expect, "{at}");
    check("MSH-1", "|");
    check("MSH-2", "^~\\&");
    check("MSH-9", "ORU^R01^ORU_R01");
    check("MSH-9.2", "R01");
    check("PID-3", "123^^^H^MR");
    check("PID-3[2].1", "456");
    check("PID-5.1", "Doe&Co");
    check("PID-5", "Doe\\T\\Co^Jane");
    check("OBX[2]-5", "x");
    check("OBX[2]-5[2]", "y");
    check("OBX[3]-3", "C");
    check("OBX[4]-3", "");
    check("OBX[1000000]-3", "");
    check("NTE", "NTE|1||first");
    check("ZZZ", "");
    check("G/OBX-3", "");
    assert_eq!((&*oru.message_type(), &*oru.control_id()), ("ORU^R01", "42"));
    assert_eq!(oru.raw_at(&path("PID-5.1")), b"Doe\\T\\Co");
    assert_eq!(oru.raw_at(&path("PID-3[*]")), b"123^^^H^MR~456^^^L");
    assert!(oru.value("PID.5").is_err());
}

#[test]
fn null_is_not_empty() {
    let oru = message(ORU);
    assert!(oru.is_null(&path("PID-7")) && oru.exists(&path("PID-7")));
    assert_eq!(oru.value("PID-7").unwrap(), "\"\"");
    assert!(!oru.is_null(&path("PID-6")) && !oru.exists(&path("PID-6")));
    assert!(!oru.exists(&path("PID-70")) && oru.exists(&path("NTE")) && !oru.exists(&path("ZZZ")));
}

#[test]
fn all_is_to_the_letter_and_every_is_generous() {
    let oru = message(ORU);
    let all = |at: &str| oru.all(&path(at));
    let every = |at: &str| oru.every(&path(at));
    assert_eq!(all("OBX[*]-1"), ["1", "2", "3"]);
    assert_eq!(all("OBX[*]-5"), ["7", "x", ""]);
    assert_eq!(all("OBX[*]-5[*]"), ["7", "x", "y"]);
    assert_eq!(all("OBX-1"), ["1"]);
    assert_eq!(all("PID-3[*].1"), ["123", "456"]);
    assert_eq!(all("NTE"), ["NTE|1||first"]);
    assert_eq!(all("OBX").len(), 3);
    assert_eq!(all("OBX[2]").len(), 1);
    assert!(all("ZZZ[*]-1").is_empty() && all("ZZZ").is_empty() && all("G/OBX[*]-1").is_empty());
    assert_eq!(every("OBX-5"), ["7", "x", "y"]);
    assert_eq!(every("PID-3.1"), ["123", "456"]);
    assert_eq!(every("OBX[2]-5"), ["x", "y"]);
    assert_eq!(every("OBX-5[*]"), ["7"]);
    assert_eq!(every("OBX").len(), 3);
}

#[test]
fn segments_are_listed_with_their_places() {
    let oru = message(ORU);
    assert_eq!(oru.segment_names().collect::<Vec<_>>(), ["MSH", "PID", "OBX", "NTE", "OBX", "OBX"]);
    let codes: Vec<String> = oru.segments_named("OBX").map(|obx| obx.value("OBX-3.1").unwrap()).collect();
    assert_eq!(codes, ["A", "B", "C"]);
    assert_eq!(oru.segments().next_back().unwrap().number(), 6);
    assert_eq!(oru.segment(6).unwrap().raw(), oru.segments().next_back().unwrap().raw());
    assert!(oru.segment(0).is_none() && oru.segment(7).is_none());
    assert_eq!(oru.segments_named("nonsense").count(), 0);
}

#[test]
fn every_line_end_ends_a_segment_and_odd_lines_are_kept() {
    for (text, names) in [
        ("MSH|^~\\&|A\rPID|1\rPV1", vec!["MSH", "PID", "PV1"]),
        ("MSH|^~\\&|A\nPID|1\n", vec!["MSH", "PID"]),
        ("MSH|^~\\&|A\r\nPID|1\r\n", vec!["MSH", "PID"]),
        ("MSH|^~\\&|A\r\r\n\n  \rPID|1", vec!["MSH", "PID"]),
        ("MSH|^~\\&|A\rZZ|1\rZPID|2\rcontinued text\rpid|3\r|\r", vec!["MSH", "ZZ", "ZPID", "", "pid", ""]),
        ("\r\n MSH|^~\\&|A\r\x1c\r", vec!["MSH"]),
        ("\u{feff}MSH|^~\\&|A", vec!["MSH"]),
        ("MSH|^~\\&", vec!["MSH"]),
    ] {
        let parsed = message(text);
        assert_eq!(parsed.segment_names().collect::<Vec<_>>(), names, "{text:?}");
        assert_eq!(parsed.raw(), text.as_bytes());
    }
}

#[test]
fn only_a_readable_header_is_required() {
    let problem = |text: &str| Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap_err();
    assert_eq!(problem(""), ParseError::Empty);
    assert_eq!(problem("\r\n \x1c\r"), ParseError::Empty);
    assert_eq!(problem("HELLO"), ParseError::NoHeader);
    assert_eq!(problem("PID|1\rMSH|^~\\&|A"), ParseError::NoHeader);
    assert_eq!(problem("BHS|^~\\&|A\rMSH|^~\\&|A"), ParseError::Batch);
    assert_eq!(problem("FHS|^~\\&|A"), ParseError::Batch);
    assert_eq!(problem("MSH"), ParseError::Header(HeaderError::Truncated));
    assert_eq!(problem("MSHX^~\\&|A"), ParseError::Header(HeaderError::FieldSeparator));
    assert_eq!(problem("MSH||A"), ParseError::Header(HeaderError::EncodingCharacters));
}

#[test]
fn the_truncation_character_does_not_shift_fields() {
    let new = message("MSH|^~\\&#|APP|FAC|||1||ADT^A01|7|P|2.7\rPID|1||a\\P\\b");
    assert_eq!(new.value("MSH-3").unwrap(), "APP");
    assert_eq!(new.value("MSH-10").unwrap(), "7");
    assert_eq!(new.value("PID-3").unwrap(), "a#b");
}

#[test]
fn the_charset_is_declared_detected_or_given() {
    let with = |name: &str, text: &[u8]| {
        let header = format!("MSH|^~\\&|||||||ADT^A01|1|P|2.5||||||{name}\rPID|");
        Bytes::from([header.as_bytes(), text].concat())
    };
    let check = |name: &str, text: &[u8], charset: Charset, expect: &str| {
        let parsed = Message::parse(with(name, text)).unwrap();
        assert_eq!((parsed.charset(), parsed.value("PID-1").unwrap().as_str()), (charset, expect), "{name}");
    };
    check("", b"plain", Charset::UTF_8, "plain");
    check("", "é".as_bytes(), Charset::UTF_8, "é");
    check("", b"\xe9", Charset::LATIN_1, "é");
    check("8859/1", b"\xe9\x80", Charset::LATIN_1, "é€");
    check("8859/1", "Mü".as_bytes(), Charset::UTF_8, "Mü");
    check("8859/2", b"\xb1", Charset::from_name("8859/2").unwrap(), "ą");
    check("8859/2~UNICODE UTF-8", b"\xb1", Charset::from_name("8859/2").unwrap(), "ą");
    check("ASCII", "é".as_bytes(), Charset::UTF_8, "é");
    check("UNICODE UTF-8", b"\xe9", Charset::UTF_8, "é");
    check("KLINGON", b"\xe9", Charset::LATIN_1, "é");
    check("~ISO IR87", b"\x1b$B45<T\x1b(B", Charset::ISO_2022_JP, "患者");
    let given = Message::parse_with(with("8859/1", b"\xb1"), Charset::from_name("8859/2").unwrap()).unwrap();
    assert_eq!(given.value("PID-1").unwrap(), "ą");
    let assumed = Charset::from_name("8859/5").unwrap();
    assert_eq!(Message::parse_assuming(with("", b"\xb8"), assumed).unwrap().charset(), assumed);
    assert_eq!(
        Message::parse_assuming(with("8859/1", b"\xb8"), assumed).unwrap().charset(),
        Charset::LATIN_1
    );
    let reread = given.clone().with_charset(Charset::LATIN_1);
    assert_eq!((reread.value("PID-1").unwrap().as_str(), reread.raw()), ("±", given.raw()));
    assert_eq!(given.clone().with_charset(Charset::UTF_16LE).charset(), given.charset());
}

#[test]
fn bytes_inside_characters_are_no_delimiters() {
    // Second bytes: 0x7C, 0x5E, 0x5C, 0x7E, which are | ^ \ and ~ elsewhere.
    for (name, bytes, text) in [
        ("GB 18030-2000", &b"\x81\x7c\x81\x5e\x81\x5c\x81\x7e"[..], "亅乗乗"),
        ("BIG-5", b"\xa5\x5c\xb3\x5c\xa4\x7c", "功許弋"),
        ("Shift_JIS", b"\x83\x5c\x83\x7c\x89\x5e", "ソポ運"),
    ] {
        let encoded =
            [format!("MSH|^~\\&|||||||ADT|1||||||||{name}\rPID|1|").as_bytes(), bytes, b"|3^4\r"].concat();
        let parsed = of(&encoded);
        assert_eq!(parsed.raw_at(&path("PID-2")), bytes, "{name}");
        if name != "GB 18030-2000" {
            assert_eq!(parsed.value("PID-2").unwrap(), text);
        }
        assert_eq!(parsed.value("PID-3.2").unwrap(), "4");
        let edited = parsed.set(&path("PID-2"), "功|x");
        if let Ok(edited) = edited {
            assert_eq!(edited.value("PID-2").unwrap(), "功|x");
            assert_eq!(edited.value("PID-3.2").unwrap(), "4");
        }
        let longer = parsed.set(&path("PID-3.2"), "5").unwrap();
        assert_eq!(longer.raw_at(&path("PID-2")), bytes);
    }
}

#[test]
fn a_header_that_hides_delimiters_is_read_in_its_own_charset() {
    let encoded = b"MSH|^~\\&|\xa4\x7c\xa5\x5c||||||ADT|1||||||||BIG-5\rPID|1";
    let parsed = of(encoded);
    assert_eq!(parsed.charset(), Charset::from_name("BIG-5").unwrap());
    assert_eq!(parsed.value("MSH-3").unwrap(), "弋功");
    assert_eq!(parsed.control_id(), "1");
}

fn wide(text: &str, charset: Charset, mark: &[u8]) -> Vec<u8> {
    [mark, &charset.encode(text).unwrap()].concat()
}

#[test]
fn wide_messages_are_read_and_edited_in_place() {
    let text = "MSH|^~\\&|A||||||ADT^A01|1|P|2.5\r\nPID|1||Müller^患者𠀋\r\n\r\nOBX|1||x\r\n";
    for (charset, mark) in [
        (Charset::UTF_16LE, &b""[..]),
        (Charset::UTF_16BE, b""),
        (Charset::UTF_16LE, b"\xff\xfe"),
        (Charset::UTF_16BE, b"\xfe\xff"),
        (Charset::UTF_32LE, b""),
        (Charset::UTF_32BE, b"\0\0\xfe\xff"),
    ] {
        let bytes = wide(text, charset, mark);
        let parsed = of(&bytes);
        assert_eq!((parsed.charset(), &parsed.raw()[..]), (charset, &bytes[..]));
        assert_eq!(parsed.value("PID-3.2").unwrap(), "患者𠀋");
        assert_eq!(parsed.segment_names().collect::<Vec<_>>(), ["MSH", "PID", "OBX"]);
        let edited = parsed.set(&path("OBX-3"), "𠀋é").unwrap();
        assert_eq!(edited.raw()[..], wide(&text.replace("|x", "|𠀋é"), charset, mark)[..]);
        let added = edited.append_segment(b"NTE|1").unwrap();
        assert_eq!(
            added.raw()[..],
            wide(&format!("{}NTE|1\r\n", text.replace("|x", "|𠀋é")), charset, mark)[..]
        );
        let less = added.remove(&path("NTE")).unwrap().remove(&path("PID")).unwrap();
        assert_eq!(less.segment_names().collect::<Vec<_>>(), ["MSH", "OBX"]);
    }
}

#[test]
fn broken_wide_text_keeps_its_bytes_through_edits() {
    let mut bytes = wide("MSH|^~\\&|A\rPID|?|2\rOBX|1\r", Charset::UTF_16LE, b"");
    let at = bytes.iter().position(|&b| b == b'?').unwrap();
    bytes[at..at + 2].copy_from_slice(&0xd800_u16.to_le_bytes());
    bytes.push(b'!');
    let edited = of(&bytes).set(&path("OBX-1"), "9").unwrap();
    let mut expect = bytes.clone();
    let at = expect.iter().rposition(|&b| b == b'1').unwrap();
    expect[at] = b'9';
    assert_eq!(edited.raw()[..], expect[..]);
}

#[test]
fn debug_shows_type_control_id_and_size_only() {
    assert_eq!(format!("{:?}", message(ORU)), "Message(ORU^R01 42, 166 bytes)");
    let hostile = message("MSH|^~\\&|||||||Doe Jane|id\\X0A\\|P");
    assert_eq!(format!("{hostile:?}"), "Message(Doe?Jane id?, 33 bytes)");
}

#[test]
fn clones_share_their_bytes() {
    let oru = message(ORU);
    assert_eq!(oru.clone().raw().as_ptr(), oru.raw().as_ptr());
}
