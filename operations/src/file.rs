//! `type = "file"`: writes each message to a file of its own (CONTRACT §2.3).
//!
//! A file appears under its name whole and on stable storage, or not at all: it is written aside
//! (`.….part` in the same folder), synced, renamed without replacing anything, and its folder synced. What
//! is there already stays: another message with the same name gets `-1`, `-2` … before the suffix. Only a
//! header that may have been tried before takes a file with the same bytes for its own work and is done;
//! for any other, equal bytes are two messages and become two files.
//!
//! HL7 and text are written byte for byte, records as their JSON; secret fields of a record stand there as
//! `•••`, because nothing on disk holds a secret in clear.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use schemars::JsonSchema;
use septet_engine::body::Body;
use septet_engine::config::build::Build;
use septet_engine::host::{
    BusinessOperation, HostFault, OperationContext, OperationError, OperationFactory, Outcome, Runtime,
};
use septet_engine::id::ItemName;
use septet_engine::registry::{Built, Factory, Facts, ItemClass, ItemKind};
use septet_engine::reply::Family;
use serde::Deserialize;

use crate::template::{Place, Source, Template, file_value};

/// The class, for the table.
pub const CLASS: ItemClass = ItemClass {
    type_name: "file",
    kind: ItemKind::Operation,
    summary: "Writes each message to a file of its own.",
    schema: || schemars::schema_for!(Settings),
    build,
};

/// Settings of a `file` operation.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The file of a message: a template with fields of the message (`{PID-3.1}`, `{accession}`) and `{id}`,
    /// `{session}`, `{control_id}`, `{date}`, `{time}`. Relative to the production file's folder; folders are
    /// created. Files that exist are never replaced: `-1`, `-2` … is put before the suffix.
    pub path: String,
}

fn build(build: &mut Build<'_>) -> Option<Built> {
    let settings: Settings = build.settings()?;
    let template = match Template::parse(&settings.path) {
        Ok(template) => template,
        Err(error) => {
            build.error("S0351", &["path".into()], error.to_string(), None);
            return None;
        }
    };
    if settings.path.is_empty() || settings.path.ends_with('/') {
        let suggestion = Some(format!("write {}{{id}}", settings.path));
        build.error("S0352", &["path".into()], "the path has no file name", suggestion);
        return None;
    }
    if template.is_literal() {
        let text = "every message has the same file name; all but the first get -1, -2 …";
        build.warning("S0353", &["path".into()], text, Some("put {id} into the name".into()));
    }
    let factory = FileFactory { folder: build.folder.to_owned(), template: Arc::new(template) };
    Some(Built {
        factory: Factory::Operation(Arc::new(factory)),
        facts: Facts { replies: Some(Family::Plain), ..Facts::default() },
    })
}

#[derive(Debug)]
struct FileFactory {
    folder: PathBuf,
    template: Arc<Template>,
}

impl OperationFactory for FileFactory {
    fn create(&self, _runtime: &Runtime, _item: &ItemName) -> Box<dyn BusinessOperation> {
        Box::new(FileOperation { folder: self.folder.clone(), template: self.template.clone(), last: None })
    }
}

struct FileOperation {
    folder: PathBuf,
    template: Arc<Template>,
    /// The last name and the number it got: where all messages have one name, the next need not look at
    /// every earlier file.
    last: Option<(PathBuf, u32)>,
}

#[async_trait]
impl BusinessOperation for FileOperation {
    /// The part of the path that is the same for all messages must be a folder we can have: a missing mount
    /// is the environment's fault, not that of a message.
    async fn start(&mut self) -> Result<(), HostFault> {
        // Up to the last slash before the first name.
        let folder = match self.template.literal_start().rsplit_once('/') {
            None => self.folder.clone(),
            Some(("", _)) => PathBuf::from("/"),
            Some((fixed, _)) => self.folder.join(fixed),
        };
        let text =
            |error: io::Error| HostFault::new("folder", format!("{}: {}", folder.display(), error.kind()));
        let made = folder.clone();
        match tokio::task::spawn_blocking(move || create_folder(&made)).await {
            Ok(made) => made.map_err(text),
            Err(_) => Err(HostFault::new("folder", "the runtime is shutting down")),
        }
    }

    async fn on_message(&mut self, cx: &OperationContext) -> Result<Outcome, OperationError> {
        let source = Source::of(cx);
        let name = self.template.fill(Place::FileName, &source);
        let name = name.map_err(|error| OperationError::message("path", error.to_string()))?;
        let path = self.folder.join(name.as_str());
        let first = match &self.last {
            Some((last, number)) if *last == path && !cx.tried_before => number.saturating_add(1),
            _ => 0,
        };
        let work = Work {
            path: path.clone(),
            key: cx.idempotency_key.clone(),
            content: content(&cx.body),
            tried_before: cx.tried_before,
            first,
        };
        let number = match tokio::task::spawn_blocking(move || work.run()).await {
            Ok(done) => done.map_err(|error| self.error(&error))?,
            Err(_) => return Err(OperationError::fault("file", "the write was interrupted")),
        };
        self.last = Some((path, number));
        Ok(Outcome::Sent)
    }
}

impl FileOperation {
    /// Names the template, not the file: a file's name may hold patient data.
    fn error(&self, error: &io::Error) -> OperationError {
        let text = format!("cannot write {}: {}", self.template, error.kind());
        match error.kind() {
            io::ErrorKind::InvalidFilename => OperationError::message("path", text),
            _ => OperationError::fault("file", text),
        }
    }
}

/// What leaves for a place at rest (a file, a mailbox): a record's secrets are masked.
pub(crate) fn content(body: &Body) -> Bytes {
    match body.as_record() {
        Some(record) if record.has_secrets() => Bytes::from(record.masked().to_string()),
        _ => body.bytes().clone(),
    }
}

/// Writes a file whole or not at all, durably, with the folders it needs, and never over another: beside
/// one with other bytes it gets `-1`, `-2` … before its suffix; one with the same bytes is taken for it.
/// `key` tells leftovers apart. Blocks.
pub fn write_new(path: &Path, key: &str, content: Bytes) -> io::Result<PathBuf> {
    let work = Work { path: path.to_owned(), key: key.to_owned(), content, tried_before: true, first: 0 };
    work.run().map(|number| numbered(path, number))
}

/// One message to be written, away from the runtime's threads. It may go on after its caller has been
/// dropped at the stop deadline, beside a second delivery of the same header: both end in one file.
struct Work {
    path: PathBuf,
    key: String,
    content: Bytes,
    tried_before: bool,
    /// The number to begin with: 0 for the plain name.
    first: u32,
}

impl Work {
    /// Writes the file and gives the number that its name got.
    fn run(&self) -> io::Result<u32> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        create_folder(folder)?;
        let mut aside = None;
        for number in self.first..u32::MAX {
            let path = numbered(&self.path, number);
            if exists(&path)? {
                if self.tried_before && self.is_ours(&path)? {
                    // The crash may have come between the rename and its sync.
                    sync_folder(folder)?;
                    return Ok(number);
                }
                continue;
            }
            let aside = match &mut aside {
                Some(aside) => aside,
                empty => empty.insert(Aside::write(folder, &self.key, &self.content)?),
            };
            match aside.rename(&path) {
                Ok(()) => {
                    sync_folder(folder)?;
                    return Ok(number);
                }
                // Somebody was faster: look at what is there now.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if self.tried_before && self.is_ours(&path)? {
                        return Ok(number);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists))
    }

    fn is_ours(&self, path: &Path) -> io::Result<bool> {
        let meta = fs::metadata(path)?;
        Ok(meta.is_file() && meta.len() == self.content.len() as u64 && fs::read(path)? == self.content)
    }
}

/// A file under its temporary name; removed unless it was renamed.
struct Aside {
    path: PathBuf,
    renamed: bool,
}

impl Aside {
    /// The name is unique within the process and names the message, so that nobody else writes to it and
    /// what a crash leaves behind can be told apart.
    fn write(folder: &Path, key: &str, content: &[u8]) -> io::Result<Aside> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".{}-{}-{count}.part", file_value(key), std::process::id());
        let aside = Aside { path: folder.join(name), renamed: false };
        let mut file = File::options().write(true).create_new(true).open(&aside.path)?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(aside)
    }

    fn rename(&mut self, to: &Path) -> io::Result<()> {
        rename_without_replacing(&self.path, to)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.renamed {
            // Best effort: a leftover is harmless, its name begins with a dot.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Atomic where the file system can do it; elsewhere by a second link, and where there are no links (some
/// network shares) by looking first.
fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(error) => {
                use rustix::io::Errno;
                if ![Errno::INVAL, Errno::NOSYS, Errno::NOTSUP].contains(&error) {
                    return Err(error.into());
                }
            }
        }
    }
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        Err(_) if exists(to)? => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}

/// Also true for a dangling link: its name is taken.
fn exists(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The path with `-number` before its suffix.
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (stem, suffix) = match name.rfind('.') {
        Some(dot) if dot > 0 => name.split_at(dot),
        _ => (&*name, ""),
    };
    path.with_file_name(format!("{stem}-{number}{suffix}"))
}

/// Creates what is missing of a folder, outermost first, and makes each new entry durable.
fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new(""));
    create_folder(parent)?;
    match fs::create_dir(folder) {
        Ok(()) => sync_folder(parent),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Events, delivery, hl7, record, runtime};
    use septet_engine::record::Record;
    use serde_json::json;

    struct Bench {
        folder: tempfile::TempDir,
        runtime: Runtime,
        operation: FileOperation,
    }

    fn bench(template: &str) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let template = Arc::new(Template::parse(template).unwrap());
        let operation = FileOperation { folder: folder.path().to_owned(), template, last: None };
        Bench { folder, runtime: runtime(Arc::new(Events::default())), operation }
    }

    impl Bench {
        async fn send(&mut self, id: u64, body: Body, tried_before: bool) -> Result<Outcome, OperationError> {
            let mut cx = delivery(id, body, &self.runtime);
            cx.tried_before = tried_before;
            self.operation.on_message(&cx).await
        }

        /// Every file below the folder with its content, hidden ones included.
        fn files(&self) -> Vec<(String, String)> {
            fn walk(folder: &Path, root: &Path, found: &mut Vec<(String, String)>) {
                for entry in fs::read_dir(folder).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() {
                        walk(&path, root, found);
                    } else {
                        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                        found.push((name, fs::read_to_string(&path).unwrap()));
                    }
                }
            }
            let mut found = Vec::new();
            walk(self.folder.path(), self.folder.path(), &mut found);
            found.sort();
            found
        }
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[tokio::test]
    async fn a_message_becomes_a_file_in_folders_made_for_it() {
        let mut bench = bench("out/{PID-3.1}/{control_id}-{id}.hl7");
        let text = "MSH|^~\\&|A|B|C|D|||ADT^A01|M1|P|2.5\rPID|||../7\r";
        bench.send(5, hl7(text), false).await.unwrap();
        assert_eq!(bench.files(), pairs(&[("out/%2E.%2F7/M1-5.hl7", text)]));
    }

    #[tokio::test]
    async fn other_content_is_never_replaced() {
        let mut bench = bench("a.b.txt");
        fs::write(bench.folder.path().join("a.b.txt"), "old").unwrap();
        for (id, text) in [(1, "one"), (2, "two"), (3, "two")] {
            bench.send(id, Body::text("Text", text.into()), false).await.unwrap();
        }
        let expected = [("a.b-1.txt", "one"), ("a.b-2.txt", "two"), ("a.b-3.txt", "two"), ("a.b.txt", "old")];
        assert_eq!(bench.files(), pairs(&expected));
    }

    #[tokio::test]
    async fn only_a_message_that_was_tried_before_takes_equal_bytes_for_its_own_work() {
        let mut bench = bench("x");
        let body = || Body::text("Text", "same".into());
        bench.send(1, body(), false).await.unwrap();
        bench.send(1, body(), true).await.unwrap();
        assert_eq!(bench.files(), pairs(&[("x", "same")]), "a repeat made a second file");
        bench.send(2, body(), false).await.unwrap();
        assert_eq!(bench.files(), pairs(&[("x", "same"), ("x-1", "same")]), "a second message was lost");
        bench.send(3, Body::text("Text", "more".into()), true).await.unwrap();
        assert_eq!(bench.files().len(), 3);
    }

    #[tokio::test]
    async fn secrets_are_masked_in_files() {
        let mut bench = bench("{id}.json");
        let token = bench.runtime.vault.seal_json("s3cret").unwrap();
        let body = Body::record(Record::untyped("T", json!({ "token": token, "n": 1 })));
        bench.send(9, body, false).await.unwrap();
        assert_eq!(bench.files(), pairs(&[("9.json", r#"{"token":"•••","n":1}"#)]));
    }

    #[tokio::test]
    async fn many_writers_of_one_name_each_keep_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime(Arc::new(Events::default()));
        let mut tasks = Vec::new();
        for id in 0..16u64 {
            let template = Arc::new(Template::parse("same.txt").unwrap());
            let mut operation = FileOperation { folder: folder.path().to_owned(), template, last: None };
            let cx = delivery(id, Body::text("Text", id.to_string()), &runtime);
            tasks.push(tokio::spawn(async move { operation.on_message(&cx).await.map(|_| ()) }));
        }
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let mut found: Vec<u64> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap().parse().unwrap())
            .collect();
        found.sort_unstable();
        assert_eq!(found, (0..16).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_had_is_a_fault_of_the_environment() {
        let mut bench = bench("blocked/{id}");
        fs::write(bench.folder.path().join("blocked"), "a file").unwrap();
        assert_eq!(bench.operation.start().await.unwrap_err().code, "folder");
        let error = bench.send(1, record(json!({ "mrn": "123" })), false).await.unwrap_err();
        assert_eq!(error.disposition, septet_engine::host::Disposition::ByCode("fault"));
        assert!(error.fault.text.starts_with("cannot write blocked/{id}"), "{}", error.fault.text);
    }
}
