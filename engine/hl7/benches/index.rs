//! Speed of what happens to every message: index it, read a few fields, build its acknowledgement, find its frame.
//!
//! Throughput is in bytes of input. The promises (issue "main job"): a 1 KiB ADT at 500 MB/s, a 1 MB ORU with one base64
//! OBX at 2 GB/s. `cargo bench -p septet-hl7` runs with optimisation; anything else says nothing.

use std::fmt::Write as _;
use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use septet_hl7::ack::{AckCode, AckSpec, build_ack};
use septet_hl7::mllp::{self, Event, Limits, Scanner};
use septet_hl7::{Message, Path};

fn adt() -> Bytes {
    let mut text = String::from(
        "MSH|^~\\&|ADT1|GOOD HEALTH HOSPITAL|GHH LAB|ELAB-3|20260101120000||ADT^A01^ADT_A01|MSG00001|P|2.5.1|||AL|NE\r\
         EVN|A01|20260101120000|||C0001^Doe^Jane^^^^^^H^L\r\
         PID|1||000010^^^GOOD HEALTH HOSPITAL^MR~000011^^^LAB^PI||EVERYWOMAN^EVE^E^^^^L||19620320|F|||153 FERNWOOD DR^^STATESVILLE^OH^35292^USA||(206)3345232|(206)752-121|EN|M|CAT|AC555444444|67-A4335^OH^20030520\r\
         NK1|1|NUCLEAR^NELDA^W|SPO|2222 HOME STREET^^ANN ARBOR^MI^99999^USA\r\
         PV1|1|I|2000^2012^01||||004777^ATTEND^AARON^A|||SUR||||ADM|A0|||||||||||||||||||||||||||||20260101120000\r\
         DG1|1|I9|1550^MAL NEO LIVER, PRIMARY^I9|MAL NEO LIVER, PRIMARY|20260101103005|A\r\
         PR1|2234|M11|111^CODE151^I9|COMMON PROCEDURES|20260101103045\r\
         IN1|1|MEDICARE|3|MEDICARE|||||||Cost Center\r",
    );
    let missing = 1024 - text.len() - 9;
    let _ = write!(text, "ZX1|1|{}|\r", "x".repeat(missing));
    Bytes::from(text)
}

fn oru_base64() -> Bytes {
    let mut text = String::from(
        "MSH|^~\\&|A|B|C|D|20260101||ORU^R01^ORU_R01|1|P|2.5.1\rPID|1||1\rOBR|1\rOBX|1|ED|PDF||^application^pdf^Base64^",
    );
    text.push_str(&"JVBERi0xLjQKJeLjz9MK".repeat(50_000));
    text.push_str("||||||F\r");
    Bytes::from(text)
}

fn oru_many() -> Bytes {
    let mut text = String::from("MSH|^~\\&|A|B|C|D|20260101||ORU^R01^ORU_R01|1|P|2.5.1\rPID|1||1\rOBR|1\r");
    for number in 1..11_000 {
        let _ = write!(
            text,
            "OBX|{number}|NM|WBC^Leukocytes^L||7.{number}|10*9/L^giga^UCUM|4-10|N|||F|||20260101\r"
        );
    }
    Bytes::from(text)
}

fn path(text: &str) -> Path {
    text.parse().expect("a path of this bench")
}

fn index(criterion: &mut Criterion) {
    for (name, message) in
        [("ADT 1 KiB", adt()), ("ORU 1 MB base64", oru_base64()), ("ORU 1 MB of OBX", oru_many())]
    {
        let mut group = criterion.benchmark_group("index");
        group.throughput(Throughput::BytesDecimal(message.len() as u64));
        group.bench_function(name, |b| b.iter(|| Message::parse(black_box(message.clone()))));
        group.finish();
    }
}

fn one_message(criterion: &mut Criterion) {
    let message = Message::parse(adt()).expect("a message");
    let (id, kind) = (path("PID-3.1"), path("MSH-9.1"));
    criterion.bench_function("get MSH-9.1", |b| b.iter(|| black_box(&message).get(&kind)));
    criterion.bench_function("get PID-3.1", |b| b.iter(|| black_box(&message).get(&id)));
    criterion.bench_function("parse path", |b| b.iter(|| path(black_box("PID-3[2].4.1"))));
    criterion.bench_function("set PID-3.1", |b| b.iter(|| black_box(&message).set(&id, "4711")));
    criterion.bench_function("findings", |b| b.iter(|| black_box(&message).findings()));
    let spec = AckSpec::new(AckCode::AA, "0123456789", "20260101120000");
    criterion.bench_function("build ack", |b| b.iter(|| build_ack(Some(black_box(&message)), &spec)));
}

fn frames(criterion: &mut Criterion) {
    let mut stream = BytesMut::new();
    for _ in 0..64 {
        mllp::encode(&adt(), &mut stream);
    }
    let mut group = criterion.benchmark_group("frames");
    group.throughput(Throughput::BytesDecimal(stream.len() as u64));
    group.bench_function("64 of 1 KiB", |b| {
        b.iter(|| {
            let mut scanner = Scanner::new(Limits { max_message: 1 << 26 });
            let mut buf = stream.clone();
            let mut found = 0;
            while let Event::Frame(frame) = scanner.next(&mut buf) {
                found += frame.body.len();
            }
            found
        });
    });
    group.finish();
}

criterion_group!(benches, index, one_message, frames);
criterion_main!(benches);
