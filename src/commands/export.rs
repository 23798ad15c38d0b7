//! `septet messages --export`: a selection with its bodies, page by page, as lines of JSON or as files.
//! What leaves goes through the admin API like any other look: secrets masked, every message audited.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use futures_util::{StreamExt as _, stream};
use septet_operations::file::write_new;
use septet_operations::template::file_value;
use serde_json::{Map, Value};

use super::client::{Client, Failure, text};
use super::messages::is_behind;
use crate::output;

/// Headers in one page.
const PAGE: u64 = 500;
/// Bodies asked for at the same time: each answer waits until the look at it is written down.
const TOGETHER: usize = 8;

/// Where an export goes.
enum Destination {
    /// Lines of JSON, and the file that they go to; without one, to standard output.
    Lines(BufWriter<Box<dyn Write>>, Option<PathBuf>),
    /// A file for each message.
    Folder(PathBuf),
}

/// Why an export ended early.
enum Stopped {
    Api(Failure),
    /// Writing failed; a reader that went away is no failure.
    Io(io::Error),
    /// By ctrl-c: what was fetched until then is there, whole.
    Interrupted,
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Stopped::Api(failure)
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Stopped::Io(error)
    }
}

/// What was done.
#[derive(Default)]
struct Tally {
    written: u64,
    without_body: u64,
    /// Their bodies had gone by the time they were asked for, or cannot be read.
    lost: u64,
    /// A list that was gone by may have lacked messages.
    behind: bool,
}

/// Exports what the filters select; 1 when something of it could not be.
pub(crate) async fn run(client: &Client, filters: Map<String, Value>, destination: &str) -> ExitCode {
    let mut to = match Destination::open(destination) {
        Ok(to) => to,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            output::error(format_args!("{destination} is there already; nothing is overwritten"));
            return ExitCode::from(2);
        }
        Err(error) => {
            output::error(format_args!("{destination}: {error}"));
            return ExitCode::from(2);
        }
    };
    let mut tally = Tally::default();
    let ended = tokio::select! {
        ended = all(client, filters, &mut to, &mut tally) => ended,
        _ = tokio::signal::ctrl_c() => Err(Stopped::Interrupted),
    };
    // Whatever ended it: no line is left half written.
    let ended = ended.and(to.finish().map_err(Stopped::Io));
    let Tally { written, without_body, lost, behind } = tally;
    if written == 0 && matches!(ended, Err(Stopped::Api(_))) {
        // So that the same command can be given again.
        to.take_back();
    }
    let mut said = format!("{written} messages exported to {}", to.name());
    if without_body > 0 {
        said = format!("{said}; {without_body} have no body");
    }
    if lost > 0 {
        said = format!("{said}; {lost} could not be read");
    }
    if behind {
        said = format!("{said}; the index is being made again: there may be more of them");
    }
    output::note(said);
    match ended {
        Ok(()) if lost > 0 || behind => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
        Err(Stopped::Interrupted) => {
            output::error("interrupted");
            ExitCode::FAILURE
        }
        Err(Stopped::Io(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Stopped::Io(error)) => {
            output::error(format_args!("{}: {error}", to.name()));
            ExitCode::FAILURE
        }
        Err(Stopped::Api(failure)) => failure.report(),
    }
}

async fn all(
    client: &Client,
    mut filters: Map<String, Value>,
    to: &mut Destination,
    tally: &mut Tally,
) -> Result<(), Stopped> {
    let limit = filters.remove("limit").as_ref().and_then(Value::as_str).map(str::parse);
    let mut left: u64 = match limit {
        None => u64::MAX,
        Some(limit) => limit.map_err(|_| Failure::Usage("limit must be a whole number".to_owned()))?,
    };
    while left > 0 {
        filters.insert("limit".to_owned(), left.min(PAGE).into());
        let page = client.post("/api/v1/messages/search", &Value::Object(filters.clone())).await?;
        let empty = Vec::new();
        let headers = page.get("messages").and_then(Value::as_array).unwrap_or(&empty);
        tally.behind |= is_behind(&page);
        left = left.saturating_sub(headers.len() as u64);
        let folder = to.folder();
        let fetched = headers.iter().map(|header| fetch(client, header, folder.as_deref()));
        let mut fetched = stream::iter(fetched).buffered(TOGETHER);
        while let Some((header, done)) = fetched.next().await {
            match done {
                Ok(Done::Written) => tally.written += 1,
                Ok(Done::Fetched(message)) => {
                    to.line(&message)?;
                    tally.written += 1;
                }
                Ok(Done::NoBody) => tally.without_body += 1,
                Err(Stopped::Api(Failure::Missing(reason) | Failure::Broken(reason))) => {
                    output::note(format_args!("message {}: {reason}", text(header, "id")));
                    tally.lost += 1;
                }
                Err(stopped) => return Err(stopped),
            }
        }
        match page.get("next") {
            Some(next) if next.is_u64() => filters.insert("cursor".to_owned(), next.clone()),
            _ => return Ok(()),
        };
    }
    Ok(())
}

/// What became of one message.
enum Done {
    /// To be written as a line.
    Fetched(Value),
    /// It is in its file.
    Written,
    NoBody,
}

async fn fetch<'a>(
    client: &Client,
    header: &'a Value,
    folder: Option<&Path>,
) -> (&'a Value, Result<Done, Stopped>) {
    let done = match folder {
        None => {
            let message = client.get(&format!("/api/v1/messages/{}", text(header, "id")), &[]).await;
            message.map(Done::Fetched).map_err(Stopped::Api)
        }
        Some(_) if header.get("body_id").is_none_or(Value::is_null) => Ok(Done::NoBody),
        Some(folder) => write_raw(client, header, folder).await.map(|()| Done::Written),
    };
    (header, done)
}

/// The bytes of a message as they arrived, in a file of its own.
async fn write_raw(client: &Client, header: &Value, folder: &Path) -> Result<(), Stopped> {
    let id = text(header, "id").into_owned();
    let (content_type, bytes) = client.bytes(&format!("/api/v1/messages/{id}/raw")).await?;
    let suffix = suffix(&content_type);
    let name = match &*text(header, "control_id") {
        "" => format!("{id}{suffix}"),
        control_id => format!("{id}-{}{suffix}", file_value(control_id)),
    };
    let path = folder.join(name);
    let written = tokio::task::spawn_blocking(move || write_new(&path, &id, bytes)).await;
    written.map_err(io::Error::other)??;
    Ok(())
}

impl Destination {
    fn open(name: &str) -> io::Result<Self> {
        if name == "-" {
            let out: Box<dyn Write> = Box::new(io::stdout());
            return Ok(Destination::Lines(BufWriter::new(out), None));
        }
        let path = Path::new(name);
        if name.ends_with('/') || path.is_dir() {
            return Ok(Destination::Folder(path.to_owned()));
        }
        let file: Box<dyn Write> = Box::new(File::options().write(true).create_new(true).open(path)?);
        Ok(Destination::Lines(BufWriter::new(file), Some(path.to_owned())))
    }

    fn name(&self) -> String {
        match self {
            Destination::Lines(_, None) => "standard output".to_owned(),
            Destination::Lines(_, Some(path)) | Destination::Folder(path) => path.display().to_string(),
        }
    }

    fn folder(&self) -> Option<PathBuf> {
        match self {
            Destination::Lines(..) => None,
            Destination::Folder(path) => Some(path.clone()),
        }
    }

    fn line(&mut self, message: &Value) -> io::Result<()> {
        match self {
            Destination::Lines(out, _) => writeln!(out, "{message}"),
            Destination::Folder(_) => Ok(()),
        }
    }

    /// Removes the file that was made for lines which never came.
    fn take_back(&self) {
        if let Destination::Lines(_, Some(path)) = self
            && path.metadata().is_ok_and(|made| made.is_file() && made.len() == 0)
        {
            let _ = std::fs::remove_file(path);
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Destination::Lines(out, _) => out.flush(),
            Destination::Folder(_) => Ok(()),
        }
    }
}

/// The suffix of a file with this content.
fn suffix(content_type: &str) -> &'static str {
    match content_type.split(';').next().unwrap_or("").trim() {
        "application/hl7-v2" | "x-application/hl7-v2+er7" => ".hl7",
        kind if kind == "application/json" || kind.ends_with("+json") => ".json",
        kind if kind.ends_with("/xml") || kind.ends_with("+xml") => ".xml",
        kind if kind.starts_with("text/") => ".txt",
        _ => ".bin",
    }
}
