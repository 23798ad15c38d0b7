//! What `septet send` sends: files split into messages, and their copies with numbered control ids.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use septet_hl7::batch::split_messages;
use septet_hl7::{Message, Path as Hl7Path};

/// Stands where MSH-10 ends, while its place is looked for.
const MARK: &[u8] = b"\x01SEPTET\x01";

/// One message.
#[derive(Debug)]
pub(super) struct Letter {
    /// The file it is from.
    pub(super) name: String,
    /// The bytes up to and including MSH-10; all of them where nothing is numbered.
    before: Bytes,
    after: Bytes,
    /// MSH-10; `None` where there is no header to read it from.
    control_id: Option<String>,
}

/// Reads files, folders (recursively, in the order of their names) and `-`.
pub(super) fn read(files: &[PathBuf], numbered: bool) -> Result<Vec<Letter>, String> {
    let mut letters = Vec::new();
    for path in files {
        let cannot = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
        if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).map_err(cannot)?;
            add("-", Bytes::from(bytes), numbered, &mut letters);
        } else if path.is_dir() {
            let mut found = Vec::new();
            walk(path, &mut found).map_err(cannot)?;
            for file in found {
                let bytes = Bytes::from(std::fs::read(&file).map_err(cannot)?);
                // A folder of messages may hold a README; a file named by the user is sent whatever it is.
                if !split_messages(&bytes).is_empty() {
                    add(&file.display().to_string(), bytes, numbered, &mut letters);
                }
            }
        } else {
            let bytes = std::fs::read(path).map_err(cannot)?;
            add(&path.display().to_string(), Bytes::from(bytes), numbered, &mut letters);
        }
    }
    Ok(letters)
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let entries: Result<Vec<_>, _> = std::fs::read_dir(folder)?.collect();
    let mut paths: Vec<PathBuf> = entries?.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        match (hidden, path.is_dir()) {
            (true, _) => {}
            (false, true) => walk(&path, found)?,
            (false, false) => found.push(path),
        }
    }
    Ok(())
}

fn add(name: &str, bytes: Bytes, numbered: bool, letters: &mut Vec<Letter>) {
    let messages = split_messages(&bytes);
    let whole = (!bytes.is_empty()).then_some(bytes).into_iter();
    let messages = if messages.is_empty() { whole.collect() } else { messages };
    letters.extend(messages.iter().map(|bytes| Letter::of(name.to_owned(), bytes, numbered)));
}

impl Letter {
    pub(super) fn of(name: String, bytes: &Bytes, numbered: bool) -> Self {
        let message = Message::parse(bytes.clone()).ok();
        let control_id = message.as_ref().map(|message| message.control_id().into_owned());
        let split = message.as_ref().filter(|_| numbered).and_then(|message| {
            let path: Hl7Path = "MSH-10".parse().ok()?;
            let marked = [message.raw_at(&path), MARK].concat();
            let marked = message.set_raw(&path, &marked).ok()?.raw().clone();
            let at = marked.windows(MARK.len()).position(|window| window == MARK)?;
            Some((marked.slice(..at), marked.slice(at + MARK.len()..)))
        });
        let (before, after) = split.unwrap_or_else(|| (bytes.clone(), Bytes::new()));
        Letter { name, before, after, control_id }
    }

    /// Puts the message into `body` and gives its control id.
    pub(super) fn write(&self, number: Option<u64>, body: &mut Vec<u8>) -> Option<String> {
        body.clear();
        body.extend_from_slice(&self.before);
        let mut control_id = self.control_id.clone();
        // Without a header there is no place for a number.
        if let (Some(number), Some(id)) = (number, &mut control_id) {
            let suffix = format!("-{number}");
            body.extend_from_slice(suffix.as_bytes());
            id.push_str(&suffix);
        }
        body.extend_from_slice(&self.after);
        control_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_as_they_are_but_for_the_number_of_a_repeat() {
        let text = "MSH|^~\\&|A|B|C|D|||ADT^A01|M1|P|2.5\r\nPID|1\n\n";
        let bytes = Bytes::from(text);
        let mut body = Vec::new();
        let plain = Letter::of("x".into(), &bytes, false);
        assert_eq!(plain.write(None, &mut body).as_deref(), Some("M1"));
        assert_eq!(body, text.as_bytes());
        let numbered = Letter::of("x".into(), &bytes, true);
        assert_eq!(numbered.write(Some(12), &mut body).as_deref(), Some("M1-12"));
        assert_eq!(body, text.replace("|M1|", "|M1-12|").as_bytes());
    }

    #[test]
    fn a_file_is_split_at_msh_and_one_without_is_sent_whole() {
        let folder = std::env::temp_dir().join(format!("septet-send-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("b.hl7"), "MSH|^~\\&|2\rPID|1\rMSH|^~\\&|3\r").unwrap();
        std::fs::write(folder.join("a.hl7"), "MSH|^~\\&|1\r").unwrap();
        std::fs::write(folder.join("notes.txt"), "no message").unwrap();
        let all = read(std::slice::from_ref(&folder), false).unwrap();
        let bodies: Vec<&[u8]> = all.iter().map(|letter| &letter.before[..]).collect();
        assert_eq!(bodies, [&b"MSH|^~\\&|1\r"[..], b"MSH|^~\\&|2\rPID|1\r", b"MSH|^~\\&|3\r"]);
        assert_eq!(read(&[folder.join("notes.txt")], false).unwrap().len(), 1);
        assert!(read(&[folder.join("missing")], false).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
