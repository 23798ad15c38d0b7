//! Edits one at a time and in series: what stands where afterwards, and that everything else is as it came.

use bytes::Bytes;

use super::*;
use crate::Charset;

const ADT: &str = "MSH|^~\\&|APP|FAC|||20260101||ADT^A01|1|P|2.5\rPID|1||123^^^H^MR~456||Doe^John\rOBX|1|NM|A||1\rOBX|2|NM|B||2\r";

fn message(text: &str) -> Message {
    Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

fn path(text: &str) -> Path {
    text.parse().unwrap()
}

fn text(message: &Message) -> String {
    String::from_utf8(message.raw().to_vec()).unwrap()
}

/// The one line of ADT that begins with the path's segment and is changed.
fn check(edit: impl Fn(&mut Editor) -> Result<(), EditError>, expect: &[&str]) {
    let base = message(ADT);
    let mut editor = base.edit();
    edit(&mut editor).unwrap();
    let edited = text(&editor.finish());
    let before: Vec<&str> = ADT.split('\r').collect();
    let changed: Vec<&str> = edited.split('\r').filter(|line| !before.contains(line)).collect();
    assert_eq!(changed, expect);
    let untouched = before.iter().filter(|line| edited.split('\r').any(|now| now == **line)).count();
    assert!(untouched + expect.len() >= before.len() - 1);
}

fn set(at: &str, value: &str, expect: &str) {
    check(|e| e.set(&path(at), value), &[expect]);
}

#[test]
fn a_value_is_replaced_where_it_is() {
    set("PID-5.1", "Roe", "PID|1||123^^^H^MR~456||Roe^John");
    set("PID-3.1", "9", "PID|1||9^^^H^MR~456||Doe^John");
    set("PID-3[2]", "9", "PID|1||123^^^H^MR~9||Doe^John");
    set("PID-3", "9", "PID|1||9~456||Doe^John");
    set("PID-3[*]", "9", "PID|1||9||Doe^John");
    set("PID-3[*].5", "X", "PID|1||123^^^H^X~456^^^^X||Doe^John");
    set("OBX[2]-5", "x", "OBX|2|NM|B||x");
    set("MSH-3", "NEW", "MSH|^~\\&|NEW|FAC|||20260101||ADT^A01|1|P|2.5");
    set("PID-5.1", "", "PID|1||123^^^H^MR~456||^John");
}

#[test]
fn missing_places_are_made() {
    set("PID-8", "F", "PID|1||123^^^H^MR~456||Doe^John|||F");
    set("PID-3[4].2.3", "x", "PID|1||123^^^H^MR~456~~^&&x||Doe^John");
    set("PID-3.4.2", "x", "PID|1||123^^^H&x^MR~456||Doe^John");
    set("MSH-18", "8859/1", "MSH|^~\\&|APP|FAC|||20260101||ADT^A01|1|P|2.5||||||8859/1");
    set("ZZZ-2", "x", "ZZZ||x");
    set("OBX[3]-1", "3", "OBX|3");
    check(|e| e.set(&path("PID-30.2"), ""), &[]);
    check(|e| e.set(&path("ZZZ-30.2"), ""), &[]);
}

#[test]
fn text_is_escaped_and_encoded_text_is_not() {
    set("PID-5.1", "a|b^c\nd", "PID|1||123^^^H^MR~456||a\\F\\b\\S\\c\\.br\\d^John");
    check(|e| e.set_raw(&path("PID-5"), b"A^B&C"), &["PID|1||123^^^H^MR~456||A^B&C"]);
    check(|e| e.set_raw(&path("PID-3[*]"), b"A~B"), &["PID|1||A~B||Doe^John"]);
    check(|e| e.set_raw(&path("PID"), b"PID|2"), &["PID|2"]);
    check(|e| e.set(&path("PID-5.1"), "\"\""), &["PID|1||123^^^H^MR~456||\"\"^John"]);
}

#[test]
fn segments_are_added_and_removed() {
    let base = message(ADT);
    let added = base.append_segment(b"NTE|1||text\r").unwrap();
    assert_eq!(text(&added), format!("{ADT}NTE|1||text\r"));
    assert_eq!(text(&added.remove(&path("NTE")).unwrap()), ADT);
    let less = base.remove(&path("OBX")).unwrap();
    assert_eq!(text(&less), ADT.replace("OBX|1|NM|A||1\r", ""));
    let none = base.remove(&path("OBX[*]")).unwrap();
    assert_eq!(none.segment_names().collect::<Vec<_>>(), ["MSH", "PID"]);
}

#[test]
fn added_segments_take_the_line_ends_of_the_message() {
    for (base, expect) in [
        ("MSH|^~\\&|A\rPID|1", "MSH|^~\\&|A\rPID|1\rNTE|1\rNTE|2"),
        ("MSH|^~\\&|A\nPID|1\n", "MSH|^~\\&|A\nPID|1\nNTE|1\nNTE|2\n"),
        ("MSH|^~\\&|A\r\nPID|1\r\n\r\n", "MSH|^~\\&|A\r\nPID|1\r\nNTE|1\r\nNTE|2\r\n\r\n"),
        ("MSH|^~\\&|A", "MSH|^~\\&|A\rNTE|1\rNTE|2"),
    ] {
        let mut editor = message(base).edit();
        editor.append_segment(b"NTE|1").unwrap();
        editor.append_segment(b"NTE|2").unwrap();
        assert_eq!(text(&editor.finish()), expect);
    }
}

#[test]
fn a_segment_added_after_the_last_was_removed_stands_in_its_place() {
    for (base, expect) in [
        ("MSH|^~\\&|A\rPID|1\rOBX|1\r", "MSH|^~\\&|A\rPID|1\rNTE|1\r"),
        ("MSH|^~\\&|A\rPID|1\rOBX|1", "MSH|^~\\&|A\rPID|1\rNTE|1\r"),
        ("MSH|^~\\&|A\nPID|1\nOBX|1\n\n", "MSH|^~\\&|A\nPID|1\nNTE|1\n\n"),
    ] {
        let mut editor = message(base).edit();
        editor.remove(&path("OBX")).unwrap();
        editor.append_segment(b"NTE|1").unwrap();
        assert_eq!(text(&editor.finish()), expect);
    }
}

#[test]
fn what_is_at_a_path_is_removed() {
    check(|e| e.remove(&path("PID-3")), &["PID|1||||Doe^John"]);
    check(|e| e.remove(&path("PID-3[1]")), &["PID|1||456||Doe^John"]);
    check(|e| e.remove(&path("PID-3[2]")), &["PID|1||123^^^H^MR||Doe^John"]);
    check(|e| e.remove(&path("PID-3[*].1")), &["PID|1||^^^H^MR~||Doe^John"]);
    check(|e| e.remove(&path("PID-5.2")), &["PID|1||123^^^H^MR~456||Doe^"]);
    check(|e| e.remove(&path("PID-50[3].2")), &[]);
    check(|e| e.remove(&path("ZZZ-1")), &[]);
}

#[test]
fn untouched_segments_keep_their_bytes_and_line_ends() {
    let odd = "\r\nMSH|^~\\&|A\r\n\r\nPID|1|\\broken|é\nshort\rZZ|?||||\n\nOBX|1\r";
    let edited = message(odd).set(&path("OBX-3"), "x").unwrap();
    assert_eq!(text(&edited), odd.replace("OBX|1", "OBX|1||x"));
    assert_eq!(text(&message(odd).edit().finish()), odd);
}

#[test]
fn reads_see_earlier_writes() {
    let mut editor = message(ADT).edit();
    editor.set(&path("PID-5.1"), "A&B").unwrap();
    editor.set(&path("OBX[*]-11"), "F").unwrap();
    assert_eq!(editor.get(&path("PID-5.1")), "A&B");
    assert_eq!(editor.raw_at(&path("PID-5.1")), b"A\\T\\B");
    assert_eq!(editor.every(&path("OBX-11")), ["F", "F"]);
    editor.remove(&path("OBX")).unwrap();
    assert_eq!(editor.get(&path("OBX-1")), "2");
    assert_eq!(editor.segments().map(|s| s.number()).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn values_are_copied_with_their_parts() {
    let source = message("MSH|^~\\&|A\rPID|||1^a\\T\\b^H&x~2||Doe");
    check(|e| e.copy(&path("PID-3[*]"), &source, &path("PID-3[*]")), &["PID|1||1^a\\T\\b^H&x~2||Doe^John"]);
    check(|e| e.copy(&path("PID-3"), &source, &path("PID-3[2]")), &["PID|1||2~456||Doe^John"]);
    check(|e| e.copy(&path("PID-5"), &source, &path("PID-9")), &["PID|1||123^^^H^MR~456||"]);
    check(|e| e.copy(&path("PID-5"), &source, &path("ZZZ-9")), &["PID|1||123^^^H^MR~456||"]);
    let custom = message("MSH#*!@%#A\rPID###1*a%b!2|2").edit();
    let mut custom = custom;
    custom.copy(&path("PID-3[*]"), &source, &path("PID-3[*]")).unwrap();
    assert_eq!(custom.raw_at(&path("PID-3[*]")), b"1*a&b*H%x!2");
    custom.set(&path("PID-5"), "a#b|c*d").unwrap();
    let custom = custom.finish();
    check(|e| e.copy(&path("PID-5"), &custom, &path("PID-5")), &["PID|1||123^^^H^MR~456||a#b\\F\\c*d"]);
    assert!(matches!(
        message(ADT).edit().copy(&path("PID-5.1"), &source, &path("PID-3")),
        Err(EditError::Breaks { .. })
    ));
}

#[test]
fn very_many_repetitions_cost_one_pass() {
    let many = format!("MSH|^~\\&|A\rPID|||{}", "x~".repeat(200_000));
    let edited = message(&many).set(&path("PID-3[*].2"), "y").unwrap();
    assert_eq!(edited.all(&path("PID-3[*].2")).len(), 200_001);
    assert_eq!(edited.value("PID-3[200000].2").unwrap_err().message, "the number is larger than 10000");
    let none = edited.remove(&path("PID-3[*].1")).unwrap();
    assert!(none.all(&path("PID-3[*].1")).iter().all(String::is_empty));
}

#[test]
fn edits_that_would_break_the_message_are_refused() {
    let problem =
        |edit: &dyn Fn(&Message) -> Result<Message, EditError>| edit(&message(ADT)).unwrap_err().to_string();
    insta::assert_snapshot!([
        problem(&|m| m.set(&path("MSH-1"), "x")),
        problem(&|m| m.set(&path("MSH-2"), "x")),
        problem(&|m| m.remove(&path("MSH"))),
        problem(&|m| m.set_raw(&path("MSH"), b"MSH|^~!&|")),
        problem(&|m| m.set(&path("OBX[9]-5"), "x")),
        problem(&|m| m.set(&path("OBX"), "x")),
        problem(&|m| m.set(&path("G/OBX-5"), "x")),
        problem(&|m| m.set_raw(&path("PID-5"), b"a|b")),
        problem(&|m| m.set_raw(&path("PID-5"), b"a\rb")),
        problem(&|m| m.set_raw(&path("PID-5.1"), b"a^b")),
        problem(&|m| m.set_raw(&path("PID-5.1.1"), b"a&b")),
        problem(&|m| m.append_segment(b"no segment")),
        problem(&|m| m.append_segment(b"NTE|a\rNTE|b")),
    ]
    .join("\n"), @r#"
MSH-1: delimiters and the header itself cannot be changed
MSH-2: delimiters and the header itself cannot be changed
MSH: delimiters and the header itself cannot be changed
MSH: delimiters and the header itself cannot be changed
OBX[9]-5: the message has no such segment
OBX: a field is needed, as in PID-3; a whole segment is written as encoded text
G/OBX-5: groups cannot be resolved without the message's structure
PID-5: the encoded text holds a separator that would break its surroundings
PID-5: the encoded text holds a separator that would break its surroundings
PID-5.1: the encoded text holds a separator that would break its surroundings
PID-5.1.1: the encoded text holds a separator that would break its surroundings
a segment begins with three upper-case letters or digits and the field separator
NTE: the encoded text holds a separator that would break its surroundings
"#);
    let latin = message(ADT).with_charset(Charset::LATIN_1);
    assert!(matches!(latin.set(&path("PID-5"), "患"), Err(EditError::Charset(_))));
    let bare = message("MSH|^~\rPID|1");
    assert!(matches!(bare.set(&path("PID-2"), "a|b"), Err(EditError::Escape(NoEscapeCharacter))));
    assert!(matches!(bare.set(&path("PID-2.1.2"), "a"), Err(EditError::NoSubcomponents { .. })));
}

#[test]
fn padding_is_bounded_by_the_path() {
    let wide = message(ADT).set(&path("PID-999[10000].999.999"), "x").unwrap();
    assert!(wide.raw().len() < 20_000);
    assert_eq!(wide.get(&path("PID-999[10000].999.999")), "x");
}
