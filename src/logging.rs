//! The log: to standard error, as `SEPTET_LOG` and `SEPTET_LOG_FORMAT` say, else as `[log]` of the production
//! file says, else `info` as text. A log that cannot be written never stops the engine: errors of writing,
//! also to a closed standard error, are ignored.

use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;

use septet_engine::config::settings::{Log, LogFormat};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt, reload};

type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

/// Lets [`configure`] change what [`start`] set up.
static LAYER: OnceLock<reload::Handle<Boxed, Registry>> = OnceLock::new();

/// Starts logging as the environment says.
pub(crate) fn start() {
    let (layer, handle) = reload::Layer::new(layer(&Log::default()));
    if tracing_subscriber::registry().with(layer).try_init().is_ok() {
        let _ = LAYER.set(handle);
    }
}

/// Applies `[log]` of a production file; the environment comes before it.
pub(crate) fn configure(log: &Log) {
    if let Some(handle) = LAYER.get() {
        let _ = handle.reload(layer(log));
    }
}

fn layer(log: &Log) -> Boxed {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let level = variable("SEPTET_LOG").or_else(|| log.level.clone()).unwrap_or_else(|| "info".to_owned());
    let filter = EnvFilter::try_new(&level).unwrap_or_else(|_| {
        crate::output::error(format_args!("{level:?} is no log level; info is used"));
        EnvFilter::new("info")
    });
    let json = match variable("SEPTET_LOG_FORMAT").as_deref() {
        Some("json") => true,
        Some("text") => false,
        _ => log.format == Some(LogFormat::Json),
    };
    if json {
        fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(|| Quiet(io::stderr()))
            .with_filter(filter)
            .boxed()
    } else {
        let colours = io::stderr().is_terminal();
        fmt::layer().with_ansi(colours).with_writer(|| Quiet(io::stderr())).with_filter(filter).boxed()
    }
}

/// A writer whose errors do not matter.
struct Quiet<W>(W);

impl<W: Write> Write for Quiet<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_log_that_cannot_be_written_is_no_error() {
        let mut log = Quiet(Closed);
        assert_eq!(log.write(b"line\n").unwrap(), 5);
        assert!(log.flush().is_ok());
    }
}
