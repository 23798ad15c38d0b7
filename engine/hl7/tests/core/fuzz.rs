//! Mutated input: nothing panics, nothing is lost, and what is written is read back.
//!
//! 100,000 rounds by default, `SEPTET_FUZZ_ROUNDS` for more; the rounds are spread over several tests so that they run
//! side by side. Everything follows from the seed of a round, which a failure prints.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Bytes, BytesMut};
use septet_hl7::ack::{AckCode, AckSpec, Err0357, build_ack, read_ack, recover_header};
use septet_hl7::batch::{Batch, is_batch};
use septet_hl7::mllp::{self, Event, Limits, Scanner};
use septet_hl7::{Message, Path};

use crate::seeds;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

const PIECES: &[&[u8]] = &[
    b"|",
    b"^",
    b"~",
    b"\\",
    b"&",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\r",
    b"\"\"",
    b"\x0b",
    b"\x1c",
    b"\x1c\r",
    b"\0",
    b"MSH|",
    b"MSH|^~\\&|",
    b"\rOBX|1|",
    b"\\T\\",
    b"\\X0D\\",
    b"\\X",
    b"\\.br\\",
    b"\xff",
    b"\x81",
    b"\xe9",
    b"\xc3\xa9",
    b"\x1b$B",
    b"\x1b(B",
    b"\x1b$(D",
    b"BHS|^~\\&|",
    b"\rBTS|1",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"8859/1",
    b"\xed\xa0\x80",
    b"",
];

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = random.pick(seeds).clone();
    for _ in 0..random.below(6) {
        let at = random.below(bytes.len() + 1);
        let length = random.below(24).min(bytes.len() - at);
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] = random.next() as u8,
            1 => drop(bytes.drain(at..at + length)),
            2 => drop(bytes.splice(at..at, random.pick(PIECES).iter().copied())),
            3 => drop(bytes.splice(at..at + length, random.pick(PIECES).iter().copied())),
            4 => bytes.truncate(at),
            5 => {
                let copy = bytes[at..at + length].to_vec();
                let to = random.below(bytes.len() + 1);
                drop(bytes.splice(to..to, copy));
            }
            _ => {
                let other = random.pick(seeds);
                let from = random.below(other.len());
                bytes.extend_from_slice(&other[from..(from + 40).min(other.len())]);
            }
        }
    }
    bytes
}

fn path(random: &mut Random) -> Path {
    let segment = random.pick(&["MSH", "PID", "OBX", "NTE", "ZX1", "ORC", "BHS"]);
    let mut index = |limit: usize| match random.below(6) {
        0 => String::from("[*]"),
        1 => format!("[{}]", 1 + random.below(limit)),
        _ => String::new(),
    };
    let (occurrence, repetition) = (index(3), index(4));
    let mut text = format!("{segment}{occurrence}");
    if random.below(8) > 0 {
        text.push_str(&format!("-{}{repetition}", 1 + random.below(20)));
        for _ in 0..random.below(3) {
            text.push_str(&format!(".{}", 1 + random.below(4)));
        }
    }
    text.parse().unwrap()
}

fn text(random: &mut Random) -> String {
    const CHARACTERS: &[char] = &[
        'a', 'Z', '7', ' ', '|', '^', '~', '\\', '&', '#', '*', '\r', '\n', '\t', '\0', '"', 'é', '患', '𠀋',
        '\u{1c}',
    ];
    (0..random.below(8)).map(|_| *random.pick(CHARACTERS)).collect()
}

fn round(random: &mut Random, seeds: &[Vec<u8>]) {
    let bytes = Bytes::from(mutate(random, seeds));
    scan(random, &bytes);
    let parts: Vec<u8> = Batch::split(&bytes).parts().iter().flat_map(|part| part.bytes.to_vec()).collect();
    assert_eq!(parts, bytes, "a batch keeps every byte");
    let batch = Batch::split(&bytes);
    let _ = (is_batch(&bytes), batch.findings(), batch.header(), recover_header(&bytes));
    let _ = read_ack(&bytes);
    let Ok(message) = Message::parse(bytes.clone()) else { return };
    assert_eq!(message.raw(), &bytes, "a message keeps every byte");
    assert_eq!(message.edit().finish().raw(), &bytes, "so does an edit of nothing");
    read(random, &message);
    write(random, &message);
    answer(random, &message);
}

fn read(random: &mut Random, message: &Message) {
    let _ = (message.findings(), format!("{message:?}"), message.message_type());
    for segment in message.segments() {
        let _ = (segment.name(), segment.fields(), segment.repetitions(3));
    }
    for _ in 0..4 {
        let path = path(random);
        let value = message.get(&path);
        assert_eq!(value.is_empty(), !message.exists(&path) || value.is_empty());
        let all = message.all(&path);
        if !path.is_multiple() && path.field().is_some() && !all.is_empty() {
            assert_eq!(all, [value], "{path}");
        }
        let _ = (message.every(&path), message.raw_text(&path), message.is_null(&path));
    }
}

fn write(random: &mut Random, message: &Message) {
    let (place, value) = (path(random), text(random));
    let before: Vec<&[u8]> = message.segments().map(|segment| segment.raw()).collect();
    if let Ok(edited) = message.set(&place, &value) {
        if !value.is_empty() {
            assert_eq!(edited.get(&place), value, "{place}: what is written is read back");
        }
        let now: Vec<&[u8]> = edited.segments().map(|segment| segment.raw()).collect();
        assert!(now.len() == before.len() || now.len() == before.len() + 1);
        let name = place.segment().as_bytes();
        for (before, now) in before.iter().zip(&now).filter(|(before, _)| !before.starts_with(name)) {
            assert_eq!(before, now, "{place}: other segments are untouched");
        }
        if edited.set(&place, &value).is_ok_and(|again| again.raw() != edited.raw()) {
            panic!("{place}: writing the same again changes nothing");
        }
    }
    if let Ok(edited) = message.remove(&place) {
        let all_gone = place.field().is_some_and(|f| f.component.is_none()) && !place.is_multiple();
        let taken_out = place.field().is_some_and(|f| matches!(f.repetition, septet_hl7::Index::At(_)));
        if all_gone && !taken_out {
            assert_eq!(edited.get(&place), "", "{place} is removed");
        }
    }
    if let Ok(longer) = message.append_segment(b"ZZ9|x") {
        assert_eq!(longer.segments().count(), before.len() + 1);
        assert_eq!(longer.value("ZZ9-1").unwrap(), if longer.delimiters().field == b'|' { "x" } else { "" });
        let appended = longer.segments().next_back().unwrap().number();
        assert_eq!(appended, before.len() + 1);
    }
    let piece: &[u8] = random.pick::<&[u8]>(PIECES);
    let _ = message.set_raw(&place, piece).map(|edited| edited.findings());
}

fn answer(random: &mut Random, message: &Message) {
    let location = path(random);
    let error = Err0357 { code: "207", text: Some("x|y"), location: Some(&location) };
    let spec =
        AckSpec { text: Some("a^b"), error: Some(error), ..AckSpec::new(AckCode::AE, "S1", "20260101") };
    let ack = Message::parse(build_ack(Some(message), &spec)).unwrap();
    assert_eq!(ack.delimiters(), message.delimiters());
    let id = |message: &Message, path: &str| message.raw_at(&path.parse().unwrap()).to_vec();
    // An escape sequence that is never taken back hides what follows it, here the rest of the header.
    if message.raw().is_ascii() && !message.raw().contains(&0x1b) {
        assert_eq!(id(&ack, "MSA-2[*]"), id(message, "MSH-10[*]"));
    }
}

fn scan(random: &mut Random, bytes: &Bytes) {
    let max_message = 1 + random.below(400);
    let mut scanner = Scanner::new(Limits { max_message });
    let mut buf = BytesMut::new();
    let mut stream = BytesMut::from(&bytes[..]);
    mllp::encode(bytes, &mut stream);
    stream.extend_from_slice(bytes);
    while !stream.is_empty() {
        let length = 1 + random.below(stream.len().min(200));
        buf.extend_from_slice(&stream.split_to(length));
        loop {
            match scanner.next(&mut buf) {
                Event::Frame(frame) => {
                    assert!(frame.body.len() <= max_message && !frame.body.contains(&mllp::FS))
                }
                Event::TooLarge(large) => assert!(large.head.len() <= max_message),
                Event::NeedMore { waiting_after_fs, .. } => {
                    if waiting_after_fs && random.below(2) == 0 {
                        let _ = scanner.flush(&mut buf);
                    }
                    break;
                }
            }
        }
        assert!(buf.len() <= max_message + 1, "the buffer is bounded by the cap");
    }
}

fn rounds(share: u64) {
    const SHARES: u64 = 4;
    let total = std::env::var("SEPTET_FUZZ_ROUNDS").map_or(100_000, |rounds| rounds.parse().unwrap());
    let mut seeds = seeds::synthetic();
    let corpus = seeds::files(&[]).into_iter().map(|(_, bytes)| bytes).filter(|bytes| bytes.len() < 1500);
    seeds.extend(corpus.step_by(9));
    for number in (share..total).step_by(SHARES as usize) {
        let run = || round(&mut Random(number), &seeds);
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            let input = mutate(&mut Random(number), &seeds);
            panic!("round {number} fails on {:?}", input.escape_ascii().to_string());
        }
    }
}

#[test]
fn mutated_input_does_no_harm_first_share() {
    rounds(0);
}

#[test]
fn mutated_input_does_no_harm_second_share() {
    rounds(1);
}

#[test]
fn mutated_input_does_no_harm_third_share() {
    rounds(2);
}

#[test]
fn mutated_input_does_no_harm_fourth_share() {
    rounds(3);
}
