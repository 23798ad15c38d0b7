//! Where messages for tests come from: our own, and the corpus outside the repository where it is present.

use std::path::{Path, PathBuf};

/// Synthetic messages that between them have every feature of the syntax.
pub(crate) fn synthetic() -> Vec<Vec<u8>> {
    let utf8 = [
        "MSH|^~\\&|LAB|H1|EHR|H2|20260101120000||ORU^R01^ORU_R01|C1|P|2.5.1|||AL|NE||UNICODE UTF-8\rPID|1||10^^^H&1.2&ISO^MR~20^^^L||Müller^José^^^\"\"||19700101|F\rOBR|1|P1|F1|CBC^Count\rOBX|1|NM|WBC^Leuko||7.1|10\\S\\9/L|4-10|N|||F\rOBX|2|FT|N^Note||line\\.br\\two \\T\\ \\X41\\\\X42\\ \\H\\bold\\N\\\rNTE|1||a~b~c\r",
        "MSH|^~\\&|A|B|C|D|20260101||ADT^A01^ADT_A01|C2|P|2.3\nEVN|A01|20260101\nPID|||1||Doe^John\nPV1||I|W^1^1\n",
        "MSH|^~\\&|A|B|C|D|20260101||ADT^A08|C3|T|2.4\r\nPID|1\r\n\r\nPV1\r\nZX1|x\r\n",
        "MSH|^~\\&#|A|B|C|D|1||SIU^S12|C4|P|2.7\rSCH|1^A\\P\\\r",
        "MSH#*!@%#A#B#C#D#1##ORM*O01#C5#P#2.2\rORC#NW#1*A%B\rOBR#1#@F@#@S@!2\r",
        "MSH|^~\\|A|B|C|D|1||ACK|C6|P|2.1\rMSA|AA|77\rERR|PID^1^3^207&x&HL70357\r",
        "BHS|^~\\&|A|B|C|D|1||||B1\rMSH|^~\\&|A|B|C|D|1||ADT^A01|1|P|2.5\rPID|1\rMSH|^~\\&|A|B|C|D|1||ADT^A01|2|P|2.5\rBTS|2\r",
        "MSH|^~\\&|A|B|C|D|1||ORU^R01|C8|P|2.5\rOBX|1|ED|D||^application^pdf^Base64^JVBERi0xLjQKJeLjz9MK\rshort\rx\r|\r\x1c\r",
    ];
    let mut seeds: Vec<Vec<u8>> = utf8.iter().map(|text| text.as_bytes().to_vec()).collect();
    seeds.push(b"MSH|^~\\&|A|B|C|D|1||ADT^A01|L1|P|2.5||||||8859/1\rPID|1||2||M\xfcller\r".to_vec());
    seeds.push(
        b"MSH|^~\\&|\xa4\x7c|B|C|D|1||ADT^A01|B5|P|2.5||||||BIG-5\rPID|1|\xa5\x5c\xb3\x5c|3^\xa4\x7c\r"
            .to_vec(),
    );
    seeds.push(
        b"MSH|^~\\&|A|B|C|D|1||ADT^A01|GB|P|2.5||||||GB 18030-2000\rPID|1|\x81\x30\x81\x30\x81\x7c|3\r"
            .to_vec(),
    );
    seeds.push(
        b"MSH|^~\\&|A|B|C|D|1||ADT^A01|SJ|P|2.5||||||Shift_JIS\rPID|1|\x83\x5c\x83\x7c\xb1|3\r".to_vec(),
    );
    seeds.push(
        b"MSH|^~\\&|A|B|C|D|1||ADT^A01|JP|P|2.5||||||~ISO IR87\rPID|1||\x1b$B45<T\x1b(B^\x1b(I123\x1b(J\r"
            .to_vec(),
    );
    let wide = "MSH|^~\\&|A|B|C|D|1||ADT^A01|W1|P|2.5||||||UNICODE UTF-16\r\nPID|1||Müller^患者𠀋\r\n";
    seeds.push(wide.encode_utf16().flat_map(u16::to_le_bytes).collect());
    seeds.push([0xfe, 0xff].into_iter().chain(wide.encode_utf16().flat_map(u16::to_be_bytes)).collect());
    seeds.push(wide.chars().map(u32::from).flat_map(u32::to_le_bytes).collect());
    seeds
}

/// The corpus folder, where there is one.
pub(crate) fn corpus() -> Option<PathBuf> {
    let given = std::env::var_os("SEPTET_CORPUS").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    given.or(Some(beside)).filter(|folder| folder.is_dir())
}

/// The files of some folders of the corpus, all folders where none are named; nothing where there is no corpus.
pub(crate) fn files(folders: &[&str]) -> Vec<(PathBuf, Vec<u8>)> {
    let Some(corpus) = corpus() else { return Vec::new() };
    let mut paths: Vec<PathBuf> = std::fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|folder| folders.is_empty() || folders.iter().any(|name| folder.ends_with(name)))
        .filter(|folder| folder.is_dir())
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "hl7"))
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let bytes = std::fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}
